#pragma once

#include "rlhf/policy/policy_loss.hpp"

namespace rlhf::inline RLHF_COMPUTE::formula {

/// The score-function loss of one token: −A·log_prob.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> reinforce(const V& log_prob, const V& advantage) {
  const V slope = -advantage;
  return {.loss = slope * log_prob, .d_log_prob = slope};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline RLHF_COMPUTE {

struct reinforce_config {
  aggregation over;           ///< no default: the caller says what divides the loss
  kl_term kl = {};            ///< + coefficient · aggregate(KL estimate against ref_log_prob)
  entropy_term entropy = {};  ///< − coefficient · aggregate(entropy)
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

using reinforce_result = policy_result;

/// The formula: what policy_loss and the fused log-prob layer run.
struct reinforce_term {
  static constexpr bool needs_old_log_prob = false;
  static constexpr bool silent = true;
  template <lane V>
  RLHF_HOST_DEVICE RLHF_INLINE policy_terms<V> operator()(const policy_token<V>& t) const {
    return formula::reinforce(t.log_prob, t.advantage);
  }
};

/// Vanilla policy gradient: the loss whose gradient is that of E[A].
///
///     loss = aggregate(coefficient · −A·log_prob)
///            + kl.coefficient · aggregate(kl) − entropy.coefficient · aggregate(entropy)
///
/// Its value has no meaning of its own; its gradient has. An importance weight of an off-policy
/// sample goes into `coefficient`. old_log_prob may be given for the ratio and KL metrics alone.
///
/// Shapes    log_prob, old_log_prob, ref_log_prob, entropy, mask and every output: [batch, time],
///           padded or packed; advantage, coefficient, upstream: [batch, time] or [batch]
/// Units     log-probabilities of the sampled tokens, in nats; mask: a flag, or a weight >= 0
/// Requires  one shape; ref_log_prob exactly when kl.coefficient is not 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  writes ∂loss/∂log_prob = −w·coefficient·A, plus the KL term's; advantage, coefficient,
///           old_log_prob and ref_log_prob are constants
/// Edges     masked positions are not read and get gradient 0; an empty mask gives loss 0; a
///           log_prob of −inf in a counted token is counted in nonfinite and reaches the loss
/// Numerics  one product per token; sums: fixed tree, in double
/// Cost      mask read once for the weights, then one pass: 3 reads and 1 write per token
/// Source    Williams 1992, Machine Learning 8, 229-256
/// Elsewhere verl compute_policy_loss_reinforce, NeMo-RL disable_ppo_ratio, rlax
///           policy_gradient_loss
template <scalar T, executor Exec = serial>
result_of<Exec, reinforce_result> reinforce_loss(
    const policy_batch<T, space_of<Exec>>& batch, const policy_output<T, space_of<Exec>>& output,
    const reinforce_config& config = detail::no_config<T, reinforce_config>::value,
    const Exec& exec = {}) {
  return policy_loss<T>(reinforce_term{}, batch, output, config, exec, "reinforce_loss");
}

}  // namespace rlhf::inline RLHF_COMPUTE
