// docs/grpo.md: GRPO where the trainer's own network gives log-probs and takes their gradient.

#include <cstdint>
#include <cstdio>
#include <vector>

//! [include]
#include <rlhf/advantage/group_relative_advantage.hpp>
#include <rlhf/backend/host.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
//! [include]

int main() {
  //! [advantage]
  // Two prompts, two answers to each, side by side; an answer has up to three tokens.
  const std::vector<float> reward = {1.0f, 0.0f, 1.0f, 1.0f};
  std::vector<float> advantage(4);
  const auto groups = rlhf::group_relative_advantage<float>(
      {.reward = reward}, {.advantage = advantage}, {.group_size = rlhf::group_size{2}});
  //! [advantage]

  //! [loss]
  // Log-probs of the sampled tokens, [answers, time]: of the network now, of the one that sampled,
  // and of the reference. The tokens of the prompt are not among them.
  const rlhf::shape tokens(4, 3);
  const std::vector<float> log_prob = {-0.9f, -0.5f, -1.2f, -0.7f, -2.0f, 0.0f,
                                       -0.3f, 0.0f,  0.0f,  -1.0f, -1.1f, -0.8f};
  const std::vector<float> old_log_prob = {-1.2f, -0.5f, -1.2f, -0.7f, -1.6f, 0.0f,
                                           -0.3f, 0.0f,  0.0f,  -1.0f, -1.1f, -0.9f};
  const std::vector<float> ref_log_prob = {-1.3f, -0.6f, -1.1f, -0.7f, -1.5f, 0.0f,
                                           -0.4f, 0.0f,  0.0f,  -1.0f, -1.2f, -0.9f};
  const std::vector<std::int32_t> length = {3, 2, 1, 3};
  std::vector<float> d_log_prob(12);
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {log_prob, tokens},
       .old_log_prob = {old_log_prob, tokens},
       .ref_log_prob = {ref_log_prob, tokens},
       .advantage = advantage,
       .layout = rlhf::lengths(length)},
      {.d_log_prob = {d_log_prob, tokens}},
      {.clip_low = 0.2,
       .clip_high = 0.28,
       .over = rlhf::aggregation::sequence_mean_token_mean(4),  // answers of the whole step
       .kl = {.coefficient = 0.04}});
  //! [loss]

  //! [log]
  std::printf("loss %.4f, of that policy %.4f\n", r.loss, r.policy_loss);
  std::printf("KL to the reference %.4f nats per token\n", r.kl.mean());
  std::printf("ratio %.3f to %.3f, clipped %.2f\n", r.ratio_min, r.ratio_max,
              r.clip_fraction.mean());
  std::printf("%g tokens of %g answers\n", r.tokens, r.sequences);
  std::printf("mean reward %.2f, groups without a signal %g of %g\n", groups.reward.mean,
              groups.degenerate_groups, groups.groups);
  //! [log]
  for (int i = 0; i < 4; ++i) {
    std::printf("advantage %5.2f  d_log_prob",
                static_cast<double>(advantage[static_cast<unsigned>(i)]));
    for (int j = 0; j < 3; ++j)
      std::printf(" %7.4f", static_cast<double>(d_log_prob[static_cast<unsigned>(3 * i + j)]));
    std::printf("\n");
  }
}
