#pragma once

#include "rlhf/math/exp.hpp"
#include "rlhf/math/lane.hpp"

/// The k3 estimator of a KL divergence and the ratio it comes with. With n = 0 near 0, see exp.hpp,
/// e^x - 1 - x is the last term of the exponential's own polynomial: no cancellation, no second
/// series, and never below 0.

namespace rlhf::inline RLHF_COMPUTE::math {

/// e^-d - 1 + d >= 0: k3 of Schulman for d = log p - log q at a sample of p, an unbiased estimate
/// of KL(p || q).
///
/// Edges     k3(0) = 0; k3(±inf) = +inf; NaN gives NaN; +inf where e^-d overflows (d < -88.7,
///           double: -709.7)
/// Numerics  <= 4 ULP in float and double, and never negative
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V k3(const V& d) {
  if constexpr (requires { lane_traits<V>::k3(d); }) {
    return lane_traits<V>::k3(d);
  } else {
    using K = detail::exp_constants<scalar_of<V>>;
    const V half = constant<V>(0.5);
    const V x = (min)(-d, constant<V>(K::highest));
    // Half of the result: 2^n alone would overflow before e^x does.
    const detail::exp_parts<V> e = detail::wide_exp_parts((max)(x, constant<V>(K::vanished)), -1);
    const V line = (e.scale - half) - half * x;
    const V halved = fma(e.scale, e.second, fma(e.scale, e.r, line));
    return halved + halved;
  }
}

/// The slope of k3: 1 - e^-d.
///
/// Edges     k3_slope(±0) = ±0; k3_slope(+inf) = 1; k3_slope(-inf) = -inf; NaN gives NaN
/// Numerics  as expm1
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V k3_slope(const V& d) {
  return -expm1(-d);
}

template <class V>
struct k3_terms_of {
  V value;  // k3(d)
  V slope;  // k3_slope(d)
};

/// k3 and its slope from one exponential, the bits of k3(d) and k3_slope(d) for d >= -88 (double:
/// -709).
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE k3_terms_of<V> k3_terms(const V& d) {
  if constexpr (requires { lane_traits<V>::k3(d); }) {
    return {k3(d), k3_slope(d)};
  } else {
    using T = scalar_of<V>;
    using K = detail::exp_constants<T>;
    const V half = constant<V>(0.5);
    const V x = (min)(-d, constant<V>(K::highest));
    const detail::exp_parts<V> e = detail::wide_exp_parts((max)(x, constant<V>(K::vanished)), -1);
    const V rise = e.scale - half;
    const V halved = fma(e.scale, e.second, fma(e.scale, e.r, rise - half * x));
    const V grown = fma(e.scale, e.first, rise);
    const T unit = T(1) / static_cast<T>(std::uint64_t{2} << detail::format<T>::mantissa_bits);
    return {halved + halved, select(abs(d) < constant<V>(unit), d, -(grown + grown))};
  }
}

/// What a policy loss and its metrics need of one log-ratio.
template <class V>
struct ratio_terms_of {
  V ratio;  // e^d
  V k3;     // e^d - 1 - d >= 0: k3(-d), the estimate of KL(old || new) for d = new - old
};

/// The ratio e^d and k3(-d) from one exponential, for |d| <= 87 (double: 708), see bounded().
///
/// Edges     NaN gives NaN in both; any values for |d| beyond the range
/// Numerics  ratio <= 1.3 ULP, k3 <= 4 ULP and never negative, in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE ratio_terms_of<V> ratio_terms(const V& d) {
  if constexpr (requires { lane_traits<V>::ratio_terms(d); }) {
    return lane_traits<V>::ratio_terms(d);
  } else {
    const V one = constant<V>(1);
    const detail::exp_parts<V> e = detail::wide_exp_parts(d, 0);
    const V ratio = e.scale * (one + e.first);
    const V line = (e.scale - one) - d;
    return {ratio, fma(e.scale, e.second, fma(e.scale, e.r, line))};
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math
