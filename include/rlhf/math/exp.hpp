#pragma once

#include "rlhf/math/lane.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/math/polynomial.hpp"

/// exp and expm1. All functions below write x = n ln 2 + r with an integer n, take e^r - 1 from a
/// polynomial in the small r, and scale by 2^n through the exponent's bits.
///
/// In this folder a product that is rounded is never a term of + or -: that sum is written as fma.
/// Otherwise the compiler may fuse it in a scalar and not in a pack, and their bits would differ.

namespace rlhf::inline RLHF_COMPUTE::math {

namespace detail {

template <class T>
struct exp_constants;

template <>
struct exp_constants<float> {
  static constexpr float log2_e = 0x1.715476p+0f;
  // ln 2 in two parts; the first has 16 bits, so its product with any exponent is exact.
  static constexpr float ln2_high = 0x1.62e4p-1f;
  static constexpr float ln2_low = 0x1.7f7d1cp-20f;
  // 1.5 * 2^23: a float of that size has no fraction bits left, so adding it rounds to an integer
  // that then stands in the low bits.
  static constexpr float round = 0x1.8p+23f;
  static constexpr float lowest = -104;   // e^x is 0 from here down
  static constexpr float highest = 89;    // e^x is infinite from here up
  static constexpr float vanished = -60;  // e^x is nothing beside 1, and still normal
};

template <>
struct exp_constants<double> {
  static constexpr double log2_e = 0x1.71547652b82fep+0;
  static constexpr double ln2_high = 0x1.62e42fefa38p-1;  // 42 bits
  static constexpr double ln2_low = 0x1.ef35793c7673p-45;
  static constexpr double round = 0x1.8p+52;
  static constexpr double lowest = -746;
  static constexpr double highest = 710;
  static constexpr double vanished = -100;
};

/// The integer n nearest to x / ln 2, as a number and, plus `bias`, in the low bits of `word`.
template <lane V>
struct exponent_of_e {
  V n;
  typename lane_traits<V>::bits word;
};

template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE exponent_of_e<V> nearest_exponent(const V& x, int bias) {
  using T = scalar_of<V>;
  using K = exp_constants<T>;
  const V round = constant<V>(K::round + static_cast<T>(bias));
  V sum = fma(x, constant<V>(K::log2_e), round);
#if defined(RLHF_FAST_MATH)
  keep_rounding(sum);
#endif
  return {sum - round, lane_traits<V>::to_bits(sum)};
}

/// x - n ln 2. Exact but for one rounding, and x itself where n is 0.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V reduce_by_ln2(const V& x, const V& n) {
  using K = exp_constants<scalar_of<V>>;
  return fma(n, constant<V>(-K::ln2_low), fma(n, constant<V>(-K::ln2_high), x));
}

/// 2^e for the biased exponent e in the low bits of `word`; the bits above fall off the left end.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V power_of_two(const typename lane_traits<V>::bits& word) {
  return lane_traits<V>::from_bits(word << format<scalar_of<V>>::mantissa_bits);
}

/// 2^n as a product of two powers that are both normal, -1076 <= n <= 1025 (float: -150, 129).
template <lane V>
struct split_power {
  V a, b;
};

/// From the word of nearest_exponent(x, 2 * bias).
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE split_power<V> split_power_of_two(
    const typename lane_traits<V>::bits& word) {
  const typename lane_traits<V>::bits half = word >> 1;
  return {power_of_two<V>(half), power_of_two<V>(word - half)};
}

/// (e^r - 1 - r) / r² for |r| <= 0.347. Minimax in e^r: float degree 4, 2^-27.7 of e^r; double
/// degree 9, 2^-56.3.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V exp_second_order(const V& r) {
  if constexpr (sizeof(scalar_of<V>) == sizeof(float)) {
    return polynomial(r, 0x1.fffffcp-2, 0x1.55549p-3, 0x1.5558f4p-5, 0x1.123a2ap-7, 0x1.6a23cp-10);
  } else {
    return polynomial(r, 0x1.000000000000ap-1, 0x1.55555555554f9p-3, 0x1.555555555083ap-5,
                      0x1.1111111127d43p-7, 0x1.6c16c1843a1d5p-10, 0x1.a01a012a002e8p-13,
                      0x1.a01999dd838a9p-16, 0x1.71df25cc2934fp-19, 0x1.28ada0c00e5ebp-22,
                      0x1.ad7f268cf8cb3p-26);
  }
}

/// (e^r - 1 - r) / r² for |r| <= 0.5, precise in itself. Minimax with the exact constant term: float
/// degree 6, relative 2^-29.2; double degree 11, 2^-55.3.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V exp_second_order_wide(const V& r) {
  if constexpr (sizeof(scalar_of<V>) == sizeof(float)) {
    return polynomial(r, 0x1p-1, 0x1.555556p-3, 0x1.555554p-5, 0x1.110fd4p-7, 0x1.6c1782p-10,
                      0x1.a29dbp-13, 0x1.a0e17cp-16);
  } else {
    return polynomial(r, 0x1p-1, 0x1.5555555555555p-3, 0x1.555555555558ep-5, 0x1.1111111111067p-7,
                      0x1.6c16c16c02247p-10, 0x1.a01a01a04fba1p-13, 0x1.a01a01f83ec90p-16,
                      0x1.71de39f05e823p-19, 0x1.27e45136fb667p-22, 0x1.ae64c943af038p-26,
                      0x1.201c7b151764ep-29, 0x1.618fcb8516d8ap-33);
  }
}

/// e^x = scale (1 + first), first = r + second, with n = 0 and so r = x for |x| < 0.5: nothing
/// cancels there in e^x - 1 = first, nor in e^x - 1 - x = second.
template <lane V>
struct exp_parts {
  V scale;   // 2^(n + shift)
  V r;       // |r| <= 0.5
  V first;   // e^r - 1
  V second;  // e^r - 1 - r
};

/// Needs |x| small enough for a normal scale; a NaN comes out in r and second.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE exp_parts<V> wide_exp_parts(const V& x, int shift) {
  using T = scalar_of<V>;
  const V outer = select(abs(x) < constant<V>(0.5), constant<V>(0), x);
  const exponent_of_e<V> e = nearest_exponent(outer, format<T>::bias + shift);
  const V r = reduce_by_ln2(x, e.n);
  const V square = r * r;
  const V q = exp_second_order_wide(r);
  return {power_of_two<V>(e.word), r, fma(square, q, r), square * q};
}

/// A value in two parts, high + low, |low| <= half an ULP of high.
template <lane V>
struct two_parts {
  V high, low;
};

/// e^x with 8 bits more than V holds, for lowest <= x <= 0.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE two_parts<V> exp_two_parts(const V& x) {
  using T = scalar_of<V>;
  const exponent_of_e<V> e = nearest_exponent(x, 2 * format<T>::bias);
  const V r = reduce_by_ln2(x, e.n);
  const V one = constant<V>(1);
  const V sum = one + r;
  const V rest = fma(r * r, exp_second_order(r), r - (sum - one));
  const V high = sum + rest;
  const V low = rest - (high - sum);
  const split_power<V> scale = split_power_of_two<V>(e.word);
  return {high * scale.a * scale.b, low * scale.a * scale.b};
}

}  // namespace detail

/// e^x.
///
/// Edges     exp(±0) = 1; exp(-inf) = 0; exp(+inf) = +inf; NaN gives NaN; beyond the range 0 and
///           +inf, with denormal results on the way to 0
/// Numerics  <= 1.1 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V exp(const V& x) {
  if constexpr (requires { lane_traits<V>::exp(x); }) {
    return lane_traits<V>::exp(x);
  } else {
    using T = scalar_of<V>;
    using K = detail::exp_constants<T>;
    const V y = clamp(x, constant<V>(K::lowest), constant<V>(K::highest));
    const detail::exponent_of_e<V> e = detail::nearest_exponent(y, 2 * detail::format<T>::bias);
    const V r = detail::reduce_by_ln2(y, e.n);
    const V unscaled = constant<V>(1) + fma(r * r, detail::exp_second_order(r), r);
    const detail::split_power<V> scale = detail::split_power_of_two<V>(e.word);
    return unscaled * scale.a * scale.b;
  }
}

/// e^x for |x| <= 87 (double: 708), about a fifth cheaper than exp.
///
/// Edges     NaN gives NaN; any value for |x| beyond the range
/// Numerics  <= 1.1 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V exp_bounded(const V& x) {
  if constexpr (requires { lane_traits<V>::exp(x); }) {
    return lane_traits<V>::exp(x);
  } else {
    const detail::exponent_of_e<V> e =
        detail::nearest_exponent(x, detail::format<scalar_of<V>>::bias);
    const V r = detail::reduce_by_ln2(x, e.n);
    const V unscaled = constant<V>(1) + fma(r * r, detail::exp_second_order(r), r);
    return unscaled * detail::power_of_two<V>(e.word);
  }
}

/// e^x - 1, without cancellation near 0.
///
/// Edges     expm1(±0) = ±0; expm1(-inf) = -1; expm1(+inf) = +inf; NaN gives NaN; x itself for
///           denormal x
/// Numerics  <= 1.5 ULP in float, 1.2 in double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V expm1(const V& x) {
  if constexpr (requires { lane_traits<V>::expm1(x); }) {
    return lane_traits<V>::expm1(x);
  } else {
    using T = scalar_of<V>;
    using K = detail::exp_constants<T>;
    const V y = clamp(x, constant<V>(K::vanished), constant<V>(K::highest));
    // Half of the result: 2^n alone would overflow before e^x does.
    const detail::exp_parts<V> e = detail::wide_exp_parts(y, -1);
    const V half = fma(e.scale, e.first, e.scale - constant<V>(0.5));
    const T unit = T(1) / static_cast<T>(std::uint64_t{2} << detail::format<T>::mantissa_bits);
    return select(abs(x) < constant<V>(unit), x, half + half);
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math
