#pragma once

#include <cstdint>

#include "rlhf/tensor/layout.hpp"

namespace rlhf::inline v1::detail {

/// The checks every view passes before a call writes anything: extents, memory, alignment.
template <class T, class Space>
void check_memory(const char* function, const char* argument, const view<T, Space>& v) {
  index elements = 1;
  for (int k = 0; k < v.rank(); ++k) {
    if (v.size(k) < 0) [[unlikely]]
      fail_shape(function, argument, "extents >= 0", v.shape());
    if (__builtin_mul_overflow(elements, v.size(k), &elements)) [[unlikely]]
      fail_shape(function, argument, "a number of elements that fits 63 bits", v.shape());
  }
  if (elements > 0 && v.data() == nullptr) [[unlikely]]
    fail_shape(function, argument, "memory behind the tensor: its pointer is null", v.shape());
  if (reinterpret_cast<std::uintptr_t>(v.data()) % alignof(T) != 0) [[unlikely]]
    fail(function, argument, "a pointer aligned for its element type");
}

/// An output must not write one element twice.
template <class T, class Space>
void check_distinct(const char* function, const char* argument, const view<T, Space>& v) {
  index reach[3] = {0, 0, 0};
  index step[3] = {0, 0, 0};
  int n = 0;
  for (int k = 0; k < v.rank(); ++k)
    if (v.size(k) == 0) return;
  for (int k = 0; k < v.rank(); ++k) {
    if (v.size(k) == 1) continue;
    const index s = v.stride(k) < 0 ? -v.stride(k) : v.stride(k);
    int at = n++;
    for (; at > 0 && step[at - 1] > s; --at) step[at] = step[at - 1], reach[at] = reach[at - 1];
    step[at] = s;
    reach[at] = s * (v.size(k) - 1);
  }
  index covered = 0;
  for (int k = 0; k < n; ++k) {
    expects(step[k] > covered, function, argument, "strides that give every element its own place",
            step[k]);
    covered += reach[k];
  }
}

/// The bytes of a dense view, or of its first element when it is strided: enough to see that an
/// output lies on something else without refusing views that interleave.
struct byte_range {
  std::uintptr_t begin = 0, end = 0;
};

template <class T, class Space>
byte_range bytes_of(const view<T, Space>& v) {
  index elements = v.rank() > 0 ? 1 : 0;
  bool dense = true;
  index step = 1;
  for (int k = v.rank() - 1; k >= 0; --k) {
    if (v.size(k) > 1 && v.stride(k) != step) dense = false;
    step *= v.size(k);
    elements *= v.size(k);
  }
  bool dense_columns = v.rank() == 2;
  if (v.rank() == 2 && !dense) {
    if (v.size(0) > 1 && v.stride(0) != 1) dense_columns = false;
    if (v.size(1) > 1 && v.stride(1) != v.size(0)) dense_columns = false;
    dense = dense_columns;
  }
  const auto begin = reinterpret_cast<std::uintptr_t>(v.data());
  const auto count = static_cast<std::uintptr_t>(elements == 0 ? 0 : dense ? elements : 1);
  return {begin, begin + count * sizeof(T)};
}

inline bool overlap(const byte_range& a, const byte_range& b) {
  return a.begin < b.end && b.begin < a.end;
}

}  // namespace rlhf::inline v1::detail
