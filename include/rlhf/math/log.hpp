#pragma once

#include "rlhf/math/exp.hpp"
#include "rlhf/math/lane.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/math/polynomial.hpp"

/// log, log1p and log1mexp. All write their argument as 2^k (1 + f) with 1 + f between sqrt(1/2)
/// and sqrt(2), where f is exact: log = (k ln 2 + f) + (log(1 + f) - f).

namespace rlhf::inline RLHF_COMPUTE::math {

namespace detail {

template <class T>
struct log_constants;

template <>
struct log_constants<float> {
  static constexpr std::uint32_t sqrt_half = 0x3f35'04f3u;
  static constexpr std::uint32_t one = 0x3f80'0000u;
  static constexpr std::uint32_t mantissa = 0x007f'ffffu;
  static constexpr std::uint32_t integer = 0x4b00'0000u;  // the bits of 2^23
  static constexpr float integer_bias = 0x1p+23f + 127;
  static constexpr float lift = 0x1p+23f;  // makes any denormal normal
  static constexpr float lift_exponent = 23;
};

template <>
struct log_constants<double> {
  static constexpr std::uint64_t sqrt_half = 0x3fe6'a09e'667f'3bcdu;
  static constexpr std::uint64_t one = 0x3ff0'0000'0000'0000u;
  static constexpr std::uint64_t mantissa = 0x000f'ffff'ffff'ffffu;
  static constexpr std::uint64_t integer = 0x4330'0000'0000'0000u;  // the bits of 2^52
  static constexpr double integer_bias = 0x1p+52 + 1023;
  static constexpr double lift = 0x1p+52;
  static constexpr double lift_exponent = 52;
};

/// x = 2^k m, sqrt(1/2) <= m < sqrt(2), for positive normal x; anything for other x.
template <lane V>
struct binary_parts {
  V k, m;
};

template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE binary_parts<V> split_exponent(const V& x) {
  using T = scalar_of<V>;
  using K = log_constants<T>;
  using traits = lane_traits<V>;
  using bits = typename traits::bits;
  const bits word = traits::to_bits(x) + (K::one - K::sqrt_half);
  const bits biased = word >> format<T>::mantissa_bits;
  V shifted = traits::from_bits(biased | K::integer);
#if defined(RLHF_FAST_MATH)
  keep_rounding(shifted);
#endif
  return {shifted - constant<V>(K::integer_bias),
          traits::from_bits((word & K::mantissa) + K::sqrt_half)};
}

/// The same for positive denormal x too.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE binary_parts<V> split_any_exponent(const V& x) {
  using T = scalar_of<V>;
  using K = log_constants<T>;
  const mask_of<V> denormal = x < constant<V>(format<T>::smallest_normal);
  const binary_parts<V> p = split_exponent(select(denormal, x * constant<V>(K::lift), x));
  return {p.k - select(denormal, constant<V>(K::lift_exponent), constant<V>(0)), p.m};
}

/// log(1 + f) - f + more for -0.293 <= f <= 0.5, |more| small beside 1. Minimax: float,
/// f² (f P(f) - 1/2) with degree 8, 2^-27.8; double, through s = f / (2 + f) and
/// log(1 + f) = 2 s + s³ G(s²) with degree 6, 2^-55.8; both errors relative to log(1 + f).
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V log1p_beyond_first_order(const V& f, const V& more) {
  if constexpr (sizeof(scalar_of<V>) == sizeof(float)) {
    const V p =
        polynomial(f, 0x1.555548p-2, -0x1.0000a4p-2, 0x1.99a4fcp-3, -0x1.551adp-3, 0x1.230360p-3,
                   -0x1.02399p-3, 0x1.f1943cp-4, -0x1.b33312p-4, 0x1.96fc64p-5);
    return fma(f * f, fma(f, p, constant<V>(-0.5)), more);
  } else {
    const V s = f / (constant<V>(2) + f);
    const V z = s * s;
    const V g = polynomial(z, 0x1.555555555575ep-1, 0x1.99999998f5452p-2, 0x1.249249afb4ef1p-2,
                           0x1.c71c02a4ef6d5p-3, 0x1.7474b7d418758p-3, 0x1.3855b6ad55cdbp-3,
                           0x1.3aaaa6d5f26e6p-3);
    const V half_square = constant<V>(0.5) * (f * f);
    return fma(s, fma(z, g, half_square), -half_square) + more;
  }
}

/// k ln 2 + log(1 + f) + more, |more| small beside 1.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V assemble_log(const V& k, const V& f, const V& more) {
  using K = exp_constants<scalar_of<V>>;
  const V multiple = k * constant<V>(K::ln2_high);  // exact
  const V high = multiple + f;
  const V lost = f - (high - multiple);
  const V low = fma(k, constant<V>(K::ln2_low), lost + more);
  return high + log1p_beyond_first_order(f, low);
}

/// 1 / (1 + f) for -0.293 <= f <= 0.5, to 1.3 %: it weighs corrections of less than an ULP.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V rough_reciprocal(const V& f) {
  return polynomial(f, 0x1.025772p+0, -0x1.146e88p+0, 0x1.a5d2ecp-1);
}

/// base + log(1 + e) for e in two parts, 0 <= e <= 1. An infinite base is the result.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V plus_log1p_of_fraction(const V& base, const two_parts<V>& e) {
  using K = exp_constants<scalar_of<V>>;
  const V half = constant<V>(0.5);
  const V zero = constant<V>(0);
  const mask_of<V> upper = e.high >= half;  // then 1 + e = 2 (1 + f), and f is exact
  const V f = select(upper, fma(half, e.high, -half), e.high);
  const V rest = select(upper, half * e.low, e.low);
  const V ln2_high = select(upper, constant<V>(K::ln2_high), zero);
  const V ln2_low = select(upper, constant<V>(K::ln2_low), zero);
  const V high = ln2_high + f;
  const V lost = f - (high - ln2_high);
  const V more = fma(rest, rough_reciprocal(f), ln2_low + lost);
  const V low = log1p_beyond_first_order(f, more);
  const V sum = base + high;
  const V total = sum + (low + (high - (sum - base)));
  return select(abs(base) < constant<V>(__builtin_inf()), total, sum);
}

}  // namespace detail

/// Natural logarithm.
///
/// Edges     log(1) = +0; log(±0) = -inf; log(x < 0) = NaN; log(+inf) = +inf; NaN gives NaN;
///           denormal x is right
/// Numerics  <= 1 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V log(const V& x) {
  if constexpr (requires { lane_traits<V>::log(x); }) {
    return lane_traits<V>::log(x);
  } else {
    const V zero = constant<V>(0);
    const V infinity = constant<V>(__builtin_inf());
    const detail::binary_parts<V> p = detail::split_any_exponent(x);
    const V y = detail::assemble_log(p.k, p.m - constant<V>(1), zero);
    const V special = select(x == zero, -infinity, constant<V>(__builtin_nan("")));
    const V from_zero_up = select(x > zero, y, special);
    return select(x < infinity, from_zero_up, x + x);
  }
}

/// log(1 + x), without cancellation near 0.
///
/// Edges     log1p(±0) = ±0; log1p(-1) = -inf; log1p(x < -1) = NaN; log1p(+inf) = +inf; NaN gives
///           NaN; x itself for denormal x
/// Numerics  <= 1 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V log1p(const V& x) {
  if constexpr (requires { lane_traits<V>::log1p(x); }) {
    return lane_traits<V>::log1p(x);
  } else {
    const V zero = constant<V>(0);
    const V one = constant<V>(1);
    const V infinity = constant<V>(__builtin_inf());
    const V u = one + x;
    const V back = u - one;
    const V lost = (one - (u - back)) + (x - back);  // 1 + x = u + lost, exactly
    const detail::binary_parts<V> p = detail::split_exponent(u);
    const mask_of<V> near_one = p.k == zero;  // then 1 + f = 1 + x, and nothing is lost
    const V f = select(near_one, x, p.m - one);
    const V more = select(near_one, zero, lost / u);
    const V y = detail::assemble_log(p.k, f, more);
    const V special = select(x == -one, -infinity, constant<V>(__builtin_nan("")));
    const V from_minus_one_up = select(x > -one, y, special);
    const V not_zero = select(x < infinity, from_minus_one_up, x + x);
    return select(x == zero, x, not_zero);
  }
}

/// log(1 - e^x) for x <= 0: the log-probability of all that an event of log-probability x leaves.
///
/// Edges     log1mexp(±0) = -inf; log1mexp(-inf) = -0; log1mexp(x > 0) = NaN; NaN gives NaN; x just
///           below 0 gives log(-x), denormal x too
/// Numerics  <= 1.1 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V log1mexp(const V& x) {
  if constexpr (requires { lane_traits<V>::log1mexp(x); }) {
    return lane_traits<V>::log1mexp(x);
  } else {
    using K = detail::exp_constants<scalar_of<V>>;
    const V zero = constant<V>(0);
    const V one = constant<V>(1);
    const V infinity = constant<V>(__builtin_inf());

    // Near 0: 1 - e^x = -expm1(x) = 2^k m in two parts. Where it passes 1/e, |log| passes 1: from
    // there on its error no longer counts twice, and 1 - e^x is taken from e^x.
    const mask_of<V> is_near = x > constant<V>(-0.4587);
    const V y = select(is_near, x, zero);
    const V square = y * y;
    const V q = detail::exp_second_order_wide(y);
    const V high = -fma(square, q, y);
    const V low = -fma(square, q, y + high);
    const detail::binary_parts<V> p = detail::split_any_exponent(high);

    // Far from 0: 1 - e = 1 - e, or (2 - 2 e) / 2; f is exact in both.
    const detail::two_parts<V> e = detail::exp_two_parts(clamp(x, constant<V>(K::lowest), zero));
    const mask_of<V> halved = e.high > constant<V>(0.2929);
    const V far_f = select(halved, fma(constant<V>(-2), e.high, one), -e.high);
    const V far_low = select(halved, constant<V>(-2) * e.low, -e.low);
    const V far_k = select(halved, -one, zero);

    const V f = select(is_near, p.m - one, far_f);
    const V k = select(is_near, p.k, far_k);
    // low / high is low 2^-k / m; the quotient is taken where 2^-k would overflow, too.
    const V more = select(is_near, low / high, far_low * detail::rough_reciprocal(f));
    const V result = detail::assemble_log(k, f, more);
    const V at_zero = select(x == zero, -infinity, x + constant<V>(__builtin_nan("")));
    return select(x < zero, result, at_zero);
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math
