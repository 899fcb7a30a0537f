#pragma once

#include "rlhf/policy/policy_loss.hpp"

namespace rlhf::inline RLHF_COMPUTE::formula {

/// The loss of one token, its slope, and which clip decides: −min(ratio·A, clip(ratio)·A), for
/// A < 0 not above −dual·A where dual is finite.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> clipped_surrogate(const V& ratio, const V& advantage,
                                                               const V& ratio_floor,
                                                               const V& ratio_ceiling,
                                                               const V& dual) {
  const V zero = math::constant<V>(0);
  const V one = math::constant<V>(1);
  const mask_of<V> negative = advantage < zero;
  const mask_of<V> positive = advantage > zero;
  // A > 0 is cut above, A < 0 below and, by the dual clip, far above; A = 0 is cut nowhere.
  const V lowest = math::select(negative, ratio_floor, zero);
  const V highest = math::select(positive, ratio_ceiling, dual);
  const V used = math::clamp(ratio, lowest, highest);
  const mask_of<V> low = used > ratio;  // false for NaN: a NaN stays visible in the slope
  const mask_of<V> above = used < ratio;
  const mask_of<V> high = above & positive;
  const mask_of<V> far = above & negative;
  const V against = -advantage;
  const V slope = ratio * against;  // d ratio / d log_prob = ratio
  return {.loss = used * against,
          .d_log_prob = math::select(low | above, zero, slope),
          .clipped_low = math::select(low, one, zero),
          .clipped_high = math::select(high, one, zero),
          .dual_clipped = math::select(far, one, zero)};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline RLHF_COMPUTE {

struct clipped_surrogate_config {
  double clip_low = 0.2;      ///< ratio floor is 1 − clip_low; >= 1 means no floor
  double clip_high = 0.2;     ///< ratio ceiling is 1 + clip_high, clip_high >= 0
  double dual_clip = 0;       ///< 0: none; > 1: the loss of A < 0 is at most −dual_clip·A
  aggregation over;           ///< no default: the caller says what divides the loss
  kl_term kl = {};            ///< + coefficient · aggregate(KL estimate against ref_log_prob)
  entropy_term entropy = {};  ///< − coefficient · aggregate(entropy)
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

using clipped_surrogate_result = policy_result;

/// The formula with its constants: what policy_loss and the fused log-prob layer run.
template <scalar T>
struct clipped_surrogate_term {
  static constexpr bool silent = true;
  T ratio_floor, ratio_ceiling, dual;

  clipped_surrogate_term(const char* function, double clip_low, double clip_high,
                         double dual_clip) {
    expects(clip_low >= 0, function, "clip_low", ">= 0", clip_low);
    expects(clip_high >= 0, function, "clip_high", ">= 0", clip_high);
    expects(dual_clip == 0 || dual_clip > 1, function, "dual_clip", "0 (none) or > 1", dual_clip);
    ratio_floor = clip_low >= 1 ? T(-1) : static_cast<T>(1 - clip_low);
    ratio_ceiling = static_cast<T>(1 + clip_high);
    dual = dual_clip == 0 ? static_cast<T>(__builtin_inf()) : static_cast<T>(dual_clip);
  }

  template <lane V>
  RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> operator()(const policy_token<V>& t) const {
    return formula::clipped_surrogate(t.ratio, t.advantage, math::constant<V>(ratio_floor),
                                      math::constant<V>(ratio_ceiling), math::constant<V>(dual));
  }
};

/// Clipped surrogate policy loss of PPO, its gradient, and the metrics a trainer logs.
///
///     ratio = exp(log_prob − old_log_prob)
///     loss  = aggregate(−min(ratio·A, clip(ratio, 1 − clip_low, 1 + clip_high)·A))
///             + kl.coefficient · aggregate(kl) − entropy.coefficient · aggregate(entropy)
///
/// With dual_clip = c the loss of a token with A < 0 is at most −c·A.
///
/// Shapes    log_prob, old_log_prob, ref_log_prob, entropy, mask and every output: [batch, time],
///           padded or packed; advantage, coefficient, upstream: [batch, time] or [batch]
/// Units     log-probabilities of the sampled tokens, in nats; mask: a flag, or a weight >= 0;
///           0 = ignored
/// Requires  one shape; clip_low >= 0; clip_high >= 0; dual_clip 0 or > 1; ref_log_prob exactly
///           when kl.coefficient is not 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  writes ∂loss/∂log_prob = −w·ratio·A, and 0 where a clip decides (w: the weight the
///           aggregation gives the token), plus the KL term's; at a bound the gradient flows;
///           old_log_prob, ref_log_prob, advantage and coefficient are constants
/// Edges     masked positions are not read (NaN there is harmless) and get gradient 0;
///           an empty mask gives loss 0 and tokens 0; A = 0 gives loss 0 and gradient 0 at any ratio;
///           NaN in a counted token reaches the loss, an infinite log-ratio is taken at its
///           bound; both are counted, and .nonfinite may drop them
/// Numerics  per token (4 + 2|log ratio|)·2⁻²⁴ relative in float; log ratio is bounded at 80, beyond
///           it the value and slope are those at 80, counted in saturated; sums: fixed tree, in double
/// Cost      mask read once for the weights, then one pass: 4 reads and 1 write per token;
///           host: no allocation with a workspace
/// Source    Schulman et al. 2017, arXiv:1707.06347, eq. 7; clip_low != clip_high: Yu et al. 2025,
///           arXiv:2503.14476 (DAPO); dual clip: Ye et al. 2019, arXiv:1912.09729
/// Elsewhere verl "vanilla" (always with a dual clip), OpenRLHF PolicyLoss, TRL GRPO losses,
///           rlax clipped_surrogate_pg_loss
/// Example   examples/ppo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, clipped_surrogate_result> clipped_surrogate_loss(
    const policy_batch<T, space_of<Exec>>& batch, const policy_output<T, space_of<Exec>>& output,
    const clipped_surrogate_config& config = detail::no_config<T, clipped_surrogate_config>::value,
    const Exec& exec = {}) {
  const char* const function = "clipped_surrogate_loss";
  const clipped_surrogate_term<T> term(function, config.clip_low, config.clip_high,
                                       config.dual_clip);
  return policy_loss<T>(term, batch, output, config, exec, function);
}

}  // namespace rlhf::inline RLHF_COMPUTE
