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

  /// The product of the extents; −1 where one is negative, they are more than three, or the product
  /// does not fit.
  constexpr index elements() const {
    if (rank > 3) return -1;
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

/// What a field was given does not fit together. The view cannot say whose it is, so it has no
/// memory and carries the mistake in a stride, until a check that knows function and argument looks
/// for the memory.
enum class misfit : index {
  length,   ///< a shape, and a range of so many elements, which are not its own
  range,    ///< a shape, and a tensor of this rank that is no contiguous range
  strides,  ///< so many strides, and another number of extents
  rank,     ///< a tensor of this rank
};
inline constexpr index first_misfit = -(index{1} << 62), misfit_numbers = index{1} << 58;
constexpr index stride_of(misfit what, index number) {
  const index n = number < misfit_numbers ? number : misfit_numbers - 1;
  return first_misfit + static_cast<index>(what) * misfit_numbers + n;
}

RLHF_RARE inline sentence& add_shape(sentence& s, const shape& a) {
  if (a.rank > 3) return s.add(static_cast<index>(a.rank)).add(" dimensions");
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

/// For a tensor without memory: says what is wrong with it, if anything.
RLHF_NOINLINE inline void check_misfit(const char* function, const char* argument, const shape& s,
                                       const index* stride) {
  int k = 0;
  while (k < s.rank && k < 3 && stride[k] >= first_misfit + 4 * misfit_numbers) ++k;
  if (k == s.rank || k == 3) return;
  const index code = stride[k] - first_misfit;
  const index number = code % misfit_numbers;
  sentence expected, received;
  switch (static_cast<misfit>(code / misfit_numbers)) {
    case misfit::length:
      expected.add("a range ");
      if (const index n = s.elements(); n >= 0)
        expected.add("of ").add(n).add(n == 1 ? " element " : " elements ");
      add_shape(expected.add("for its shape "), s);
      received.add("one of ").add(number);
      fail(function, argument, expected.c_str(), received.c_str());
    case misfit::range:
      received.add(number == 1 ? "one with gaps" : "rank ");
      if (number != 1) received.add(number);
      fail(function, argument, "a contiguous range of rank 1 before a shape", received.c_str());
    case misfit::strides:
      add_shape(expected.add("a stride for each extent of "), s);
      fail(function, argument, expected.c_str(), number);
    case misfit::rank:
      fail(function, argument, "one to three dimensions", number);
  }
}

}  // namespace RLHF_CHECKS

}  // namespace detail

}  // namespace rlhf::inline v1
