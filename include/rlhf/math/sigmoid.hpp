#pragma once

#include "rlhf/math/exp.hpp"
#include "rlhf/math/lane.hpp"
#include "rlhf/math/log.hpp"

/// The logistic function and its relatives, from e = exp(-|x|): it never overflows, and 1 + e is
/// between 1 and 2. Never form 1 - sigmoid(x), that is sigmoid(-x); nor log(sigmoid(x)).

namespace rlhf::inline RLHF_COMPUTE::math {

namespace detail {

/// e^-|x| in two parts. A NaN stays.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE two_parts<V> exp_of_minus_abs(const V& x) {
  using K = exp_constants<scalar_of<V>>;
  return exp_two_parts((max)(-abs(x), constant<V>(K::lowest)));
}

/// 1 / d for 1 <= d <= 2, to 1.1 %: it weighs corrections of less than an ULP.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V rough_reciprocal_of_sum(const V& d) {
  return polynomial(d, 0x1.0f83ep+1, -0x1.745d18p+0, 0x1.4afd6ap-2);
}

/// 1 + e in two parts.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE two_parts<V> one_plus(const two_parts<V>& e) {
  const V one = constant<V>(1);
  const V sum = one + e.high;
  return {sum, (e.high - (sum - one)) + e.low};
}

/// e / (1 + e) where `small` is true, else 1 / (1 + e).
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V fraction_of_sum(const mask_of<V>& small, const two_parts<V>& e) {
  const V zero = constant<V>(0);
  const two_parts<V> sum = one_plus(e);
  const V top = select(small, e.high, constant<V>(1));
  const V top_rest = select(small, e.low, zero);
  const V quotient = top / sum.high;
  const V rest = fma(-quotient, sum.low, top_rest);
  return fma(rest, rough_reciprocal_of_sum(sum.high), quotient);
}

}  // namespace detail

/// 1 / (1 + e^-x).
///
/// Edges     sigmoid(0) = 1/2; sigmoid(-inf) = 0; sigmoid(+inf) = 1; NaN gives NaN; denormal
///           results on the way to 0
/// Numerics  <= 1.3 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V sigmoid(const V& x) {
  if constexpr (requires { lane_traits<V>::sigmoid(x); }) {
    return lane_traits<V>::sigmoid(x);
  } else {
    return detail::fraction_of_sum(x < constant<V>(0), detail::exp_of_minus_abs(x));
  }
}

/// What the losses over pairs are made of, from one exponential: the bits of the four functions.
template <lane V>
struct logistic_parts {
  V softplus, softplus_of_minus;  // log(1 + e^x), log(1 + e^-x)
  V sigmoid, sigmoid_of_minus;
};

/// softplus and sigmoid of x and of -x.
///
/// Edges     those of softplus and sigmoid
/// Numerics  those of softplus and sigmoid, bit by bit
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE logistic_parts<V> logistic(const V& x);

/// The slope of sigmoid: sigmoid(x) sigmoid(-x) = e / (1 + e)², e = exp(-|x|). Even in x.
///
/// Edges     dsigmoid(0) = 1/4; dsigmoid(±inf) = 0; NaN gives NaN
/// Numerics  <= 2.2 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V dsigmoid(const V& x) {
  if constexpr (requires { lane_traits<V>::dsigmoid(x); }) {
    return lane_traits<V>::dsigmoid(x);
  } else {
    const detail::two_parts<V> e = detail::exp_of_minus_abs(x);
    const detail::two_parts<V> sum = detail::one_plus(e);
    const V reciprocal = detail::rough_reciprocal_of_sum(sum.high);
    const V quotient = (e.high / sum.high) / sum.high;
    const V rest = fma(constant<V>(-2) * quotient, sum.low, e.low * reciprocal);
    return fma(rest, reciprocal, quotient);
  }
}

/// log(1 + e^x) = max(x, 0) + log1p(e^-|x|).
///
/// Edges     softplus(-inf) = 0; softplus(+inf) = +inf; NaN gives NaN; softplus(-1e4) = 0 and
///           softplus(1e4) = 1e4; denormal results on the way to 0
/// Numerics  <= 1.3 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V softplus(const V& x) {
  if constexpr (requires { lane_traits<V>::softplus(x); }) {
    return lane_traits<V>::softplus(x);
  } else {
    return detail::plus_log1p_of_fraction((max)(x, constant<V>(0)), detail::exp_of_minus_abs(x));
  }
}

template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE logistic_parts<V> logistic(const V& x) {
  if constexpr (requires { lane_traits<V>::softplus(x); }) {
    return {softplus(x), softplus(-x), sigmoid(x), sigmoid(-x)};
  } else {
    const V zero = constant<V>(0);
    const detail::two_parts<V> e = detail::exp_of_minus_abs(x);
    return {detail::plus_log1p_of_fraction((max)(x, zero), e),
            detail::plus_log1p_of_fraction((max)(-x, zero), e),
            detail::fraction_of_sum(x < zero, e), detail::fraction_of_sum(-x < zero, e)};
  }
}

/// log(sigmoid(x)) = -softplus(-x); its slope is sigmoid(-x).
///
/// Edges     log_sigmoid(-inf) = -inf; log_sigmoid(+inf) = -0; NaN gives NaN; log_sigmoid(-1e4) =
///           -1e4 and log_sigmoid(1e4) = -0
/// Numerics  <= 1.3 ULP in float and double
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V log_sigmoid(const V& x) {
  if constexpr (requires { lane_traits<V>::log_sigmoid(x); }) {
    return lane_traits<V>::log_sigmoid(x);
  } else {
    return -softplus(-x);
  }
}

/// log(e^a + e^b), without overflow.
///
/// Edges     (-inf, -inf) gives -inf; (+inf, anything but NaN) gives +inf; NaN if either is
/// Numerics  <= 2 ULP of the larger of |a|, |b| and |result|; where the two terms of
///           max(a, b) + log1p(e^-|a - b|) have opposite signs, the result may cancel to 0
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V logaddexp(const V& a, const V& b) {
  if constexpr (requires { lane_traits<V>::logaddexp(a, b); }) {
    return lane_traits<V>::logaddexp(a, b);
  } else {
    const V gap = select(a == b, constant<V>(0), a - b);  // not inf - inf
    return detail::plus_log1p_of_fraction((max)(a, b), detail::exp_of_minus_abs(gap));
  }
}

}  // namespace rlhf::inline RLHF_COMPUTE::math
