#pragma once

#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"

/// Configs that reproduce the policy losses of other projects. What divides the loss is theirs too,
/// but its count is the caller's: pass the whole step's.
namespace rlhf::inline RLHF_COMPUTE::presets {

namespace trl {

/// TRL GRPO losses: clip 0.2 both sides; the KL term is plain k3, whose gradient is that of the
/// forward KL. loss_type "grpo": sequence_mean_token_mean(rows), "bnpo": token_mean(local tokens),
/// "dapo": token_mean(tokens of the step), "dr_grpo": sequence_mean_token_sum_norm(rows,
/// max_completion_length).
inline clipped_surrogate_config grpo(const aggregation& over, double beta = 0) {
  return {.clip_low = 0.2,
          .clip_high = 0.2,
          .over = over,
          .kl = {.coefficient = beta, .estimator = kl_estimator::k3, .weighting = kl_weighting::plain}};
}

/// TRL RLOO: a clip on the ratio of the whole answer, mean over sequences.
inline sequence_clipped_surrogate_config rloo(normaliser sequences) {
  return {.clip_low = 0.2,
          .clip_high = 0.2,
          .ratio = sequence_ratio::sum,
          .over = aggregation::sequence_mean_token_mean(sequences)};
}

}  // namespace trl

namespace verl {

/// verl "vanilla": a dual clip at 3 is always on.
inline clipped_surrogate_config vanilla(const aggregation& over) {
  return {.clip_low = 0.2, .clip_high = 0.2, .dual_clip = 3, .over = over};
}

/// verl "gspo": the token form, sequence mean of token means whatever its aggregation setting says.
inline sequence_clipped_surrogate_config gspo(normaliser sequences) {
  return {.clip_low = 0.2,
          .clip_high = 0.2,
          .form = sequence_form::token,
          .over = aggregation::sequence_mean_token_mean(sequences)};
}

}  // namespace verl

namespace openrlhf {

/// OpenRLHF PolicyLoss "ppo" with its token-level loss.
inline clipped_surrogate_config ppo(normaliser tokens) {
  return {.clip_low = 0.2, .clip_high = 0.2, .over = aggregation::token_mean(tokens)};
}

}  // namespace openrlhf

namespace nemo_rl {

/// NeMo-RL ClippedPGLossFn: its KL term has value k3 and, through a factor exp(x − constant x), the
/// gradient of the reverse KL; log-ratio and estimate are clamped at 20 and 10.
inline clipped_surrogate_config clipped_pg(normaliser tokens, double kl_penalty = 0.01) {
  return {.clip_low = 0.2,
          .clip_high = 0.2,
          .over = aggregation::token_mean(tokens),
          .kl = {.coefficient = kl_penalty,
                 .estimator = kl_estimator::k3,
                 .weighting = kl_weighting::score,
                 .input_clamp = 20,
                 .output_clamp = 10}};
}

}  // namespace nemo_rl

namespace slime {

/// slime compute_policy_loss: per-token losses; the caller's weights come as .upstream.
inline clipped_surrogate_config policy_loss() {
  return {.clip_low = 0.2, .clip_high = 0.2, .over = aggregation::none()};
}

}  // namespace slime

namespace torchtune {

/// torchtune PPOLoss: clip 0.1, mean over the tokens at hand.
inline clipped_surrogate_config ppo(normaliser tokens) {
  return {.clip_low = 0.1, .clip_high = 0.1, .over = aggregation::token_mean(tokens)};
}

}  // namespace torchtune

}  // namespace rlhf::inline RLHF_COMPUTE::presets
