#pragma once

#include "rlhf/kl/adaptive_kl_controller.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/clipped_value_loss.hpp"

/// What trainers out there compute, as configs: change a field of what comes back where your run
/// differs. Each reproduces the numbers of that project; a default of ours that is better is not
/// here. What divides a loss is theirs too, but its count is the caller's: pass the whole step's.

namespace rlhf::inline RLHF_COMPUTE::presets {

namespace detail {

/// A KL loss with the clamps of a peer. A clamp kills the gradient where the policy has drifted
/// most; none of our own defaults has one.
inline kl_estimate_config clamped_kl(kl_estimator estimator, kl_weighting weighting,
                                     double input_clamp, double output_clamp,
                                     const aggregation& over) {
  return {.estimator = estimator,
          .weighting = weighting,
          .input_clamp = input_clamp,
          .output_clamp = output_clamp,
          .over = over};
}

}  // namespace detail

namespace trl {

/// TRL GRPO losses: clip 0.2 both sides; the KL term is plain k3, whose gradient is that of the
/// forward KL. loss_type "grpo": sequence_mean_token_mean(rows), "bnpo": token_mean(local tokens),
/// "dapo": token_mean(tokens of the step), "dr_grpo": sequence_mean_token_sum_norm(rows,
/// max_completion_length).
inline clipped_surrogate_config grpo(const aggregation& over, double beta = 0) {
  return {
      .clip_low = 0.2,
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

/// PPOTrainer: cliprange_value 0.2.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.2, .half = true, .over = over};
}
/// PPOTrainer: kl_coef 0.05, k1, and the score one slot behind the last token.
inline kl_penalty_config kl_penalty(double coefficient = 0.05) {
  return {.coefficient = coefficient, .score_at = score_position::after_last};
}
/// GRPOTrainer with beta > 0: k3 as it stands, so the gradient of the forward KL.
inline kl_estimate_config kl_estimate(const aggregation& over) {
  return {.estimator = kl_estimator::k3, .weighting = kl_weighting::plain, .over = over};
}
/// RewardTrainer; center_rewards_coefficient is off there, 0.01 where it is used.
inline bradley_terry_config bradley_terry(const reduction& over, double centering = 0) {
  return {.centering = centering, .over = over};
}
/// masked_whiten of PPOTrainer.
inline whiten_config whiten(bool shift_mean = true) { return {.shift_mean = shift_mean}; }

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

/// compute_value_loss: cliprange_value 0.5.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.5, .half = true, .over = over};
}
/// apply_kl_penalty with "kl": k1 in the reward. Scores are per token there.
inline kl_penalty_config kl_penalty(double coefficient = 0.001) {
  return {.coefficient = coefficient};
}
/// kl_penalty(name): k3 is cut at 20 inside and 10 outside; a name with "+" is straight_through.
inline kl_estimate_config kl_estimate(kl_estimator estimator, kl_weighting weighting,
                                      const aggregation& over) {
  const bool cut = estimator == kl_estimator::k3;
  return detail::clamped_kl(estimator, weighting, cut ? 20 : 0, cut ? 10 : 0, over);
}
/// AdaptiveKLController, fed the mean over tokens.
inline adaptive_kl_config adaptive_kl(double coefficient = 0.001) {
  return {.coefficient = coefficient, .target = 0.1, .unit = kl_unit::per_token};
}
/// masked_whiten.
inline whiten_config whiten(bool shift_mean = true) { return {.shift_mean = shift_mean}; }

}  // namespace verl

namespace openrlhf {

/// OpenRLHF PolicyLoss "ppo" with its token-level loss.
inline clipped_surrogate_config ppo(normaliser tokens) {
  return {.clip_low = 0.2, .clip_high = 0.2, .over = aggregation::token_mean(tokens)};
}

/// ValueLoss: value_clip 0.5.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.5, .half = true, .over = over};
}
/// compute_reward: k1 in the reward, the score at the last token of the action mask.
inline kl_penalty_config kl_penalty(double coefficient = 0.01) {
  return {.coefficient = coefficient};
}
/// compute_approx_kl: every estimator is cut at 10, k1 too.
inline kl_estimate_config kl_estimate(kl_estimator estimator, const aggregation& over) {
  return detail::clamped_kl(estimator, kl_weighting::plain, 0, 10, over);
}
inline adaptive_kl_config adaptive_kl(double coefficient, double target) {
  return {.coefficient = coefficient, .target = target, .unit = kl_unit::per_token};
}
/// PairWiseLoss.
inline bradley_terry_config bradley_terry(const reduction& over) { return {.over = over}; }
/// masked_normalize: population variance with a floor.
inline whiten_config whiten() {
  return {.ddof = 0, .epsilon = 1e-8, .epsilon_mode = epsilon_mode::floor};
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

/// MseValueLossFn: cliprange 0.2.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.2, .half = true, .over = over};
}
/// The KL term of ClippedPGLossFn: calculate_kl, cut at 20 and 10, times exp(x − constant x).
inline kl_estimate_config kl_estimate(const aggregation& over,
                                      kl_estimator estimator = kl_estimator::k3) {
  return detail::clamped_kl(estimator, kl_weighting::score, 20, 10, over);
}
inline whiten_config whiten() { return {}; }

}  // namespace nemo_rl

namespace slime {

/// slime compute_policy_loss: per-token losses; the caller's weights come as .upstream.
inline clipped_surrogate_config policy_loss() {
  return {.clip_low = 0.2, .clip_high = 0.2, .over = aggregation::none()};
}

/// Its value loss has no factor 1/2 and counts clip_distance_fraction.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.2, .half = false, .over = over};
}
/// compute_approx_kl with "low_var_kl": k3 cut at 10.
inline kl_estimate_config low_variance_kl(const aggregation& over) {
  return detail::clamped_kl(kl_estimator::k3, kl_weighting::plain, 0, 10, over);
}
/// The score on the last token of the response, be its loss mask 0.
inline kl_penalty_config kl_penalty(double coefficient) {
  return {.coefficient = coefficient, .score_at = score_position::last_token};
}
inline whiten_config whiten(bool shift_mean = true) { return {.shift_mean = shift_mean}; }

}  // namespace slime

namespace torchtune {

/// torchtune PPOLoss: clip 0.1, mean over the tokens at hand.
inline clipped_surrogate_config ppo(normaliser tokens) {
  return {.clip_low = 0.1, .clip_high = 0.1, .over = aggregation::token_mean(tokens)};
}

/// PPOLoss: value_clip_range 0.2.
inline clipped_value_config clipped_value(const aggregation& over) {
  return {.clip = 0.2, .half = true, .over = over};
}
/// get_rewards_ppo without valid_score_idxs; with them set score_at to by_index.
inline kl_penalty_config kl_penalty(double coefficient) {
  return {.coefficient = coefficient, .score_at = score_position::last_column};
}
/// whiten(shift_mean): torchtune adds the mean back when its flag is true, the default.
inline whiten_config whiten(bool torchtune_shift_mean = true) {
  return {.shift_mean = !torchtune_shift_mean};
}

}  // namespace torchtune

}  // namespace rlhf::inline RLHF_COMPUTE::presets
