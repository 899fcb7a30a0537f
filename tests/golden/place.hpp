#pragma once

#include <cstdint>

#include "tests/golden/golden.hpp"

namespace golden {

inline constexpr double never_written = 777.25;

inline rlhf::shape to_shape(const std::vector<index>& s) {
  if (s.size() == 1) return rlhf::shape(s[0]);
  if (s.size() == 2) return rlhf::shape(s[0], s[1]);
  if (s.size() == 3) return rlhf::shape(s[0], s[1], s[2]);
  throw std::logic_error("a tensor has one to three extents");
}

template <class T>
rlhf::raw_view<T, rlhf::host_space> to_raw(const rlhf::view<T>& v) {
  rlhf::raw_view<T, rlhf::host_space> r;
  r.data = v.data();
  r.rank = v.rank();
  for (int k = 0; k < 3; ++k) {
    r.size[k] = v.size(k);
    r.stride[k] = v.stride(k);
  }
  return r;
}

/// Keeps whatever the views look at.
template <class T>
class keeping_place : public place<T> {
  std::deque<std::shared_ptr<void>> kept_;

 protected:
  template <class X>
  X& keep(X x) {
    auto owner = std::make_shared<X>(std::move(x));
    kept_.push_back(owner);
    return *owner;
  }
  /// As C arrays: what every backend takes.
  template <class I>
  I* keep_numbers(const array& a) {
    std::shared_ptr<I[]> owner(new I[a.data.size() + 1]);
    for (index i = 0; i < a.size(); ++i) owner[i] = static_cast<I>(a[i]);
    kept_.push_back(owner);
    return owner.get();
  }
};

}  // namespace golden
