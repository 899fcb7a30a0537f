#pragma once

#include <concepts>

#include "rlhf/core/contract.hpp"

namespace rlhf::inline v1 {

/// Up to three extents (or strides). Any integer type converts, so int, size_t and Eigen::Index mix.
struct shape {
  int rank = 0;
  index size[3] = {0, 1, 1};

  constexpr shape() = default;
  template <std::integral N>
  constexpr shape(N n) : rank(1), size{static_cast<index>(n), 1, 1} {}
  template <std::integral N, std::integral M>
  constexpr shape(N rows, M columns)
      : rank(2), size{static_cast<index>(rows), static_cast<index>(columns), 1} {}
  template <std::integral N, std::integral M, std::integral K>
  constexpr shape(N batch, M time, K classes)
      : rank(3),
        size{static_cast<index>(batch), static_cast<index>(time), static_cast<index>(classes)} {}

  /// The product of the extents; −1 where one is negative or the product does not fit.
  constexpr index elements() const {
    index n = 1;
    for (int k = 0; k < rank; ++k)
      if (size[k] < 0 || __builtin_mul_overflow(n, size[k], &n)) return -1;
    return n;
  }

  friend constexpr bool operator==(const shape& a, const shape& b) {
    return a.rank == b.rank && a.size[0] == b.size[0] && a.size[1] == b.size[1] &&
           a.size[2] == b.size[2];
  }
};

/// What a tensor trait returns: a pointer, the extents and the strides, counted in elements.
template <class T, class Space>
struct raw_view {
  using element = T;
  using space = Space;
  T* data = nullptr;
  int rank = 0;
  index size[3] = {0, 1, 1};
  index stride[3] = {0, 0, 0};
};

namespace detail {

RLHF_NOINLINE inline sentence& add_shape(sentence& s, const shape& a) {
  s.add("[");
  for (int k = 0; k < a.rank; ++k) {
    if (k > 0) s.add(", ");
    s.add(a.size[k]);
  }
  return s.add("]");
}

inline namespace RLHF_CHECKS {

[[noreturn, gnu::noinline, gnu::cold]] inline void fail_shape(const char* function,
                                                              const char* argument,
                                                              const shape& expected,
                                                              const shape& received) {
  sentence s;
  s.add(function).add(": ").add(argument).add(": expected shape ");
  add_shape(s, expected).add(", received ");
  add_shape(s, received);
  report(s.c_str());
}

[[noreturn, gnu::noinline, gnu::cold]] inline void fail_shape(const char* function,
                                                              const char* argument,
                                                              const char* expected,
                                                              const shape& received) {
  sentence s;
  s.add(function).add(": ").add(argument).add(": expected ").add(expected).add(", received ");
  add_shape(s, received);
  report(s.c_str());
}

}  // namespace RLHF_CHECKS

}  // namespace detail

}  // namespace rlhf::inline v1
