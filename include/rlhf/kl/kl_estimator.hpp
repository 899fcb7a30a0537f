#pragma once

#include "rlhf/math/kl.hpp"
#include "rlhf/math/lane.hpp"

namespace rlhf::inline v1 {

/// Estimators of KL(policy || reference) from one sample, delta = log_prob − ref_log_prob:
/// k1 = delta, k2 = delta² / 2, k3 = exp(−delta) − 1 + delta, absolute = |delta|.
enum class kl_estimator : unsigned char { k1, k2, k3, absolute };

/// What multiplies the estimator when it is a term of a loss, and so whose gradient the term has.
/// For samples of the current policy, in expectation:
///
///     plain             k1: zero; k2: KL(policy || ref); k3: the forward KL(ref || policy)
///     ratio             ratio · k, gradient through both: KL(policy || ref) for k1 and k3, and
///                       unbiased for samples of the old policy too
///     straight_through  value k, gradient delta (that of k2): KL(policy || ref)
///     score             value k, gradient k + dk (a factor exp(x − constant x)): KL for k1 and k3
enum class kl_weighting : unsigned char { plain, ratio, straight_through, score };

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE::formula {

template <lane V>
struct kl_terms {
  V value;
  V d_log_prob;
};

/// One token's estimate and its slope. A clamp of 0 is none; where a clamp holds the estimator is
/// constant, as in the peers that have one, so it takes part by preset only.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE kl_terms<V> kl_estimate(const V& delta, const V& ratio,
                                                     kl_estimator estimator, kl_weighting weighting,
                                                     scalar_of<V> input_clamp,
                                                     scalar_of<V> output_clamp) {
  const V zero = math::constant<V>(0);
  const V one = math::constant<V>(1);
  V x = delta;
  V inside = one;
  if (input_clamp > 0) {
    const V edge = math::constant<V>(input_clamp);
    x = math::clamp(delta, -edge, edge);
    inside = math::select(x == delta, one, zero);
  }
  // The exponential of k3 stays finite: beyond the bound, value and slope are those at it.
  if (estimator == kl_estimator::k3) x = (math::max)(x, math::constant<V>(-80));
  V value = x;
  V slope = one;
  switch (estimator) {
    case kl_estimator::k1:
      break;
    case kl_estimator::k2:
      value = math::constant<V>(0.5) * x * x;
      slope = x;
      break;
    case kl_estimator::k3: {
      const math::k3_terms_of<V> k3 = math::k3_terms(x);
      value = k3.value;
      slope = k3.slope;
      break;
    }
    case kl_estimator::absolute:
      value = math::abs(x);
      slope = math::select(x > zero, one, math::select(x < zero, -one, zero));
      break;
  }
  slope = slope * inside;
  if (output_clamp > 0) {
    const V edge = math::constant<V>(output_clamp);
    const V clamped = math::clamp(value, -edge, edge);
    slope = math::select(clamped == value, slope, zero);
    value = clamped;
  }
  switch (weighting) {
    case kl_weighting::plain:
      break;
    case kl_weighting::ratio:
      // k + dk of k3 is delta: the exponentials cancel on paper, so they are not computed.
      slope = estimator == kl_estimator::k3 && !(input_clamp > 0) && !(output_clamp > 0)
                  ? ratio * x
                  : ratio * (value + slope);
      value = ratio * value;
      break;
    case kl_weighting::straight_through:
      slope = delta;
      break;
    case kl_weighting::score:
      slope = estimator == kl_estimator::k3 && !(input_clamp > 0) && !(output_clamp > 0)
                  ? x
                  : value + slope;
      break;
  }
  return {value, slope};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula
