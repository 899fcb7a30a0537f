#pragma once

#include "rlhf/kl/adaptive_kl_controller.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/clipped_value_loss.hpp"

/// What trainers out there compute, as configs: change a field of what comes back where your run
/// differs. Each reproduces the numbers of that project; a default of ours that is better is not
/// here. `over` is always the caller's.

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
