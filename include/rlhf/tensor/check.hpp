#pragma once

#include <cstdint>

#include "rlhf/tensor/layout.hpp"

namespace rlhf::inline v1::detail::inline RLHF_CHECKS {

inline shape shape_of(int rank, const index* size) {
  shape s;
  s.rank = rank;
  for (int k = 0; k < rank; ++k) s.size[k] = size[k];
  return s;
}

[[noreturn, gnu::noinline, gnu::cold]] inline void fail_extents(const char* function,
                                                                const char* argument,
                                                                const char* expected, int rank,
                                                                const index* size) {
  fail_shape(function, argument, expected, shape_of(rank, size));
}

inline void check_aligned(const char* function, const char* argument, const void* data,
                          std::size_t alignment) {
  const auto beyond = static_cast<index>(reinterpret_cast<std::uintptr_t>(data) % alignment);
  if (beyond == 0) [[likely]]
    return;
  sentence received;
  received.add("one ")
      .add(beyond)
      .add(beyond == 1 ? " byte" : " bytes")
      .add(" beyond a multiple of ");
  received.add(static_cast<index>(alignment));
  fail(function, argument, "a pointer aligned for its element type", received.c_str());
}

/// The checks every view passes before a call writes anything: extents, memory, alignment. The type
/// of its elements is left behind, so that one function serves them all.
RLHF_NOINLINE inline void check_memory(const char* function, const char* argument, const void* data,
                                       std::size_t alignment, int rank, const index* size,
                                       const index* stride) {
  index elements = 1;
  for (int k = 0; k < rank; ++k) {
    if (size[k] < 0) [[unlikely]]
      fail_extents(function, argument, "extents >= 0", rank, size);
    if (__builtin_mul_overflow(elements, size[k], &elements)) [[unlikely]]
      fail_extents(function, argument, "a number of elements that fits 63 bits", rank, size);
  }
  if (data == nullptr) [[unlikely]] {
    check_misfit(function, argument, shape_of(rank, size), stride);
    if (elements > 0)
      fail_extents(function, argument, "memory behind the tensor: its pointer is null", rank, size);
  }
  check_aligned(function, argument, data, alignment);
}
template <class T, class Space>
void check_memory(const char* function, const char* argument, const view<T, Space>& v) {
  check_memory(function, argument, v.data(), alignof(T), v.rank(), v.raw().size, v.raw().stride);
}

/// A weight is 0, or a number that float and double can both hold and multiply by.
RLHF_HOST_DEVICE constexpr bool is_weight(double w) {
  return (w == 0) | ((w >= 1e-30) & (w <= 1e30));
}
inline constexpr const char* weight_range = "weights of 0, or from 1e-30 to 1e30";

/// The elements of a tensor that lies row after row without a gap; −1 for any other.
inline index dense_elements(int rank, const index* size, const index* stride) {
  index n = 1;
  for (int k = rank - 1; k >= 0; --k)
    if (stride[k] != n || __builtin_mul_overflow(n, size[k], &n)) return -1;
  return n;
}

/// An output must not write one element twice.
RLHF_NOINLINE inline void check_distinct(const char* function, const char* argument, int rank,
                                         const index* size, const index* stride) {
  constexpr index largest = index{1} << 60;
  const index dense = dense_elements(rank, size, stride);
  if (dense >= 0 && dense <= largest) [[likely]]
    return;
  index reach[3] = {0, 0, 0};
  index step[3] = {0, 0, 0};
  int n = 0;
  for (int k = 0; k < rank; ++k)
    if (size[k] == 0) return;
  for (int k = 0; k < rank; ++k) {
    if (size[k] == 1) continue;
    expects(stride[k] > -largest && stride[k] < largest, function, argument,
            "strides that fit 62 bits", stride[k]);
    const index s = stride[k] < 0 ? -stride[k] : stride[k];
    int at = n++;
    for (; at > 0 && step[at - 1] > s; --at) step[at] = step[at - 1], reach[at] = reach[at - 1];
    step[at] = s;
    if (__builtin_mul_overflow(s, size[k] - 1, &reach[at]) || reach[at] > largest) [[unlikely]]
      fail(function, argument, "strides whose tensor fits the address space", stride[k]);
  }
  index covered = 0;
  for (int k = 0; k < n; ++k) {
    expects(step[k] > covered, function, argument, "strides that give every element its own place",
            step[k]);
    covered += reach[k];
  }
}
template <class T, class Space>
void check_distinct(const char* function, const char* argument, const view<T, Space>& v) {
  check_distinct(function, argument, v.rank(), v.raw().size, v.raw().stride);
}

/// The same for lengths, offsets, labels, ids and masks.
template <class V>
void check_indices(const char* function, const char* argument, const V& v) {
  if (v.data() == nullptr) [[unlikely]]
    check_misfit(function, argument, v.shape(), v.strides());
  const index n = v.shape().elements();
  if (n < 0) [[unlikely]]
    fail_shape(function, argument, "extents >= 0 whose product fits 63 bits", v.shape());
  if (n > 0 && v.data() == nullptr) [[unlikely]]
    fail_shape(function, argument, "memory behind the tensor: its pointer is null", v.shape());
  check_aligned(function, argument, v.data(), v.element_size());
}

/// Where a tensor lies: rows of `width` bytes, `pitch` apart, from begin to end. A dense tensor is one
/// row; of strides that fit neither, only the first element is known.
struct byte_range {
  std::uintptr_t begin, end;
  std::uintptr_t pitch, width;
};

inline byte_range bytes_of(const void* data, std::size_t element, int rank, const index* size,
                           const index* stride) {
  const auto begin = reinterpret_cast<std::uintptr_t>(data);
  const index dense = dense_elements(rank, size, stride);
  if (rank > 0 && dense >= 0) [[likely]] {
    const std::uintptr_t all = static_cast<std::uintptr_t>(dense) * element;
    return {begin, begin + all, 0, all};
  }
  std::uintptr_t elements = rank > 0 ? 1 : 0;
  for (int k = 0; k < rank; ++k) elements *= static_cast<std::uintptr_t>(size[k]);
  if (elements == 0) return {begin, begin, 0, 0};
  // The dimensions that are no choice are left out, the others go from the innermost outwards.
  std::uintptr_t row = element;
  bool used[3] = {false, false, false};
  for (bool more = true; more;) {
    more = false;
    for (int k = 0; k < rank; ++k)
      if (!used[k] && size[k] > 1 && stride[k] > 0 &&
          static_cast<std::uintptr_t>(stride[k]) * element == row) {
        row *= static_cast<std::uintptr_t>(size[k]);
        used[k] = more = true;
      }
  }
  int outer = -1, left = 0;
  for (int k = 0; k < rank; ++k)
    if (!used[k] && size[k] > 1) outer = k, ++left;
  if (left == 0) return {begin, begin + row, 0, row};
  const auto pitch = static_cast<std::uintptr_t>(stride[outer] > 0 ? stride[outer] : 0) * element;
  if (left == 1 && pitch >= row)
    return {begin, begin + pitch * static_cast<std::uintptr_t>(size[outer] - 1) + row, pitch, row};
  return {begin, begin + element, 0, element};
}

template <class T, class Space>
byte_range bytes_of(const view<T, Space>& v) {
  return bytes_of(v.data(), sizeof(T), v.rank(), v.raw().size, v.raw().stride);
}

inline bool overlap(const byte_range& a, const byte_range& b) {
  if (!(a.begin < b.end && b.begin < a.end)) return false;
  if (a.pitch == 0 && b.pitch == 0) return true;
  const std::uintptr_t pitch = a.pitch == 0 ? b.pitch : a.pitch;
  if (a.pitch != 0 && b.pitch != 0 && a.pitch != b.pitch) return a.begin == b.begin;
  // Both repeat with one pitch: rows meet where their places within it do.
  const std::uintptr_t behind = (b.begin - a.begin) % pitch;
  const std::uintptr_t ahead = (a.begin - b.begin) % pitch;
  const std::uintptr_t b_at = b.begin >= a.begin ? behind : (pitch - ahead) % pitch;
  return b_at < a.width || pitch - b_at < b.width || a.width >= pitch || b.width >= pitch;
}

}  // namespace rlhf::inline v1::detail::inline RLHF_CHECKS
