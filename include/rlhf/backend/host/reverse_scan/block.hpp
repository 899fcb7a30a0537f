#pragma once

#include <utility>

#include "rlhf/math/pack.hpp"

namespace rlhf::inline RLHF_COMPUTE::detail {

/// N values that are worked on together.
template <class X, int N>
struct block_of {
  X part[static_cast<std::size_t>(N)];
  RLHF_INLINE X& operator[](int i) { return part[i]; }
  RLHF_INLINE const X& operator[](int i) const { return part[i]; }
};

/// f(0), f(1), ... with constants: what they index stays in registers.
template <class F, int... N>
RLHF_INLINE void unrolled(std::integer_sequence<int, N...>, F&& f) {
  (f(std::integral_constant<int, N>()), ...);
}
template <int N, class F>
RLHF_INLINE void unrolled(F&& f) {
  unrolled(std::make_integer_sequence<int, N>(), f);
}

/// y[i + K] of each half of a block of 8, and `rest` beyond the half's end.
template <int K, class V, int P>
RLHF_INLINE void shift_in_fours(const block_of<V, P>& y, const V& rest, block_of<V, P>& to) {
  if constexpr (P == 8) {
    for (int i = 0; i < 8; ++i) to[i] = i % 4 + K < 4 ? y[i + K] : rest;
  } else {
#if RLHF_PACK_BYTES > 0
    if constexpr (P == 1) {
      const auto& a = y[0].native;
      const auto& b = rest.native;
      if constexpr (K == 1)
        to[0] = {__builtin_shufflevector(a, b, 1, 2, 3, 8, 5, 6, 7, 12)};
      else
        to[0] = {__builtin_shufflevector(a, b, 2, 3, 8, 9, 6, 7, 12, 13)};
    } else if constexpr (P == 2) {
      for (int p = 0; p < 2; ++p) to[p] = math::shift_down<K>(y[p], rest);
    } else {
      for (int p = 0; p < 4; p += 2) {
        to[p] = K == 1 ? math::shift_down<1>(y[p], y[p + 1]) : y[p + 1];
        to[p + 1] = K == 1 ? math::shift_down<1>(y[p + 1], rest) : rest;
      }
    }
#endif
  }
}

/// y[4] in the first half of a block, `rest` in the second.
template <class V, int P>
RLHF_INLINE void spread_middle(const block_of<V, P>& y, const V& rest, block_of<V, P>& to) {
  if constexpr (P == 1) {
#if RLHF_PACK_BYTES > 0
    const auto& a = y[0].native;
    const auto& b = rest.native;
    to[0] = {__builtin_shufflevector(a, b, 4, 4, 4, 4, 8, 9, 10, 11)};
#endif
  } else {
    const V middle = math::constant<V>(math::first(y[P / 2]));
    for (int p = 0; p < P; ++p) to[p] = p < P / 2 ? middle : rest;
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
