#pragma once

#include "rlhf/math/lane.hpp"

namespace rlhf::inline RLHF_COMPUTE::math::detail {

/// c[First] + c[First + 1] x + ... with `Count` coefficients; power[k] holds x^(2^k).
template <int First, int Count, lane V>
RLHF_HOST_DEVICE RLHF_INLINE V estrin(const V* power, const scalar_of<V>* c) {
  if constexpr (Count == 1) {
    return constant<V>(c[First]);
  } else {
    constexpr int level = Count > 8 ? 3 : Count > 4 ? 2 : Count > 2 ? 1 : 0;
    constexpr int half = 1 << level;
    const V low = estrin<First, half>(power, c);
    const V high = estrin<First + half, Count - half>(power, c);
    return fma(power[level], high, low);
  }
}

/// c0 + c1 x + c2 x² + ..., 2 to 16 coefficients, the order of Estrin: a short chain of fma.
template <lane V, class... C>
RLHF_HOST_DEVICE RLHF_INLINE V polynomial(const V& x, C... coefficients) {
  using T = scalar_of<V>;
  constexpr int count = sizeof...(C);
  static_assert(2 <= count && count <= 16);
  const T c[] = {static_cast<T>(coefficients)...};
  const V x2 = count > 2 ? x * x : x;
  const V x4 = count > 4 ? x2 * x2 : x;
  const V x8 = count > 8 ? x4 * x4 : x;
  const V power[] = {x, x2, x4, x8};
  return estrin<0, count>(power, c);
}

}  // namespace rlhf::inline RLHF_COMPUTE::math::detail
