// One step of PPO on two short answers, from scores to gradients, with every number in between.

#include <rlhf/advantage/generalized_advantage_estimation.hpp>
#include <rlhf/backend/host.hpp>
#include <rlhf/kl/adaptive_kl_controller.hpp>
#include <rlhf/kl/kl_penalty.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
#include <rlhf/statistics/whiten.hpp>
#include <rlhf/value/clipped_value_loss.hpp>
#include <rlhf/value/explained_variance.hpp>

#include <cstdint>
#include <cstdio>

namespace {

constexpr int answers = 2, longest = 4;
using per_token = double[answers][longest];

void print(const char* name, const per_token& x) {
  std::printf("%-10s", name);
  for (const auto& row : x) {
    std::printf("  |");
    for (const double y : row) std::printf(" %7.3f", y);
  }
  std::printf("\n");
}

}  // namespace

int main() {
  // The second answer has three tokens; what lies behind them is never read.
  const std::int32_t length[answers] = {4, 3};
  const per_token old_log_prob = {{-1.0, -0.5, -2.0, -0.1}, {-1.5, -0.7, -0.2, 0}};
  const per_token ref_log_prob = {{-1.2, -0.9, -1.9, -0.1}, {-1.8, -0.6, -0.2, 0}};
  const per_token old_value = {{0.2, 0.3, 0.1, 0.5}, {0.0, -0.2, -0.4, 0}};
  const double score[answers] = {1, -1};  // of the reward model, for whole answers
  const auto layout = rlhf::lengths(length);

  // The reward: a penalty for leaving the reference at every token, and the score at the last one.
  rlhf::adaptive_kl_controller controller({.coefficient = 0.1, .target = 0.2, .horizon = 100});
  per_token reward;
  const auto penalty = rlhf::kl_penalty<double>(
      {.log_prob = old_log_prob, .ref_log_prob = ref_log_prob, .score = score, .layout = layout},
      {.reward = reward}, {.coefficient = controller.coefficient()});
  print("reward", reward);

  // What each token brought beyond the critic's expectation, and what the critic should learn.
  per_token advantage, returns, whitened;
  rlhf::generalized_advantage_estimation<double>(
      {.reward = reward, .value = old_value, .layout = layout},
      {.advantage = advantage, .returns = returns}, {.gamma = 1, .lambda = 0.95});
  rlhf::whiten<double>({.value = advantage, .layout = layout}, {.whitened = whitened}, {});
  print("advantage", advantage);
  print("returns", returns);
  print("whitened", whitened);

  // After a few gradient steps the policy and the critic have moved.
  const per_token log_prob = {{-0.7, -0.5, -2.1, -0.1}, {-1.9, -0.7, -0.1, 0}};
  const per_token value = {{0.35, 0.45, 0.4, 0.6}, {-0.15, -0.3, -0.5, 0}};
  const auto over = rlhf::aggregation::token_mean(7);
  per_token d_log_prob, d_value;
  const auto policy = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = whitened, .layout = layout},
      {.d_log_prob = d_log_prob}, {.over = over});
  const auto critic = rlhf::clipped_value_loss<double>(
      {.value = value, .old_value = old_value, .returns = returns, .layout = layout},
      {.d_value = d_value}, {.clip = 0.2, .over = over});
  print("d_log_prob", d_log_prob);
  print("d_value", d_value);

  const auto explained =
      rlhf::explained_variance<double>({.value = old_value, .returns = returns, .layout = layout});
  controller.update(penalty, answers);
  std::printf("policy loss %.4f  clipped %.2f  KL(old || new) %.4f\n", policy.loss,
              policy.clip_fraction.mean(), policy.approx_kl_k3.mean());
  std::printf("value loss %.4f  clipped %.2f  explained variance %.3f\n", critic.loss,
              critic.clip_fraction.mean(), explained.explained_variance());
  std::printf("KL to the reference %.3f per answer, next coefficient %.4f\n",
              penalty.kl_per_sequence.mean(), controller.coefficient());
}
