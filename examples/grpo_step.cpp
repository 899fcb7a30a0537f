// GRPO learns two sums without a critic: the answers to a prompt are compared with each other. The
// policy is a table of logits, five possible answers to each prompt; the right one earns a reward.

#include <rlhf/advantage/group_relative_advantage.hpp>
#include <rlhf/backend/eigen.hpp>
#include <rlhf/distribution/policy_from_logits.hpp>
#include <rlhf/distribution/token_log_prob.hpp>

#include <cstdint>
#include <cstdio>
#include <random>

namespace {

constexpr int prompts = 2, choices = 5, samples = 8;  // samples of each prompt
using table = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using labels = Eigen::Array<std::int32_t, Eigen::Dynamic, 1>;

constexpr int right_answer[prompts] = {2, 4};  // 1 + 1 and 2 + 2

table probabilities(const table& logits) {
  table p = logits.array().exp().matrix();
  for (int i = 0; i < p.rows(); ++i) p.row(i) /= p.row(i).sum();
  return p;
}

}  // namespace

int main() {
  table policy = table::Zero(prompts, choices);
  std::mt19937_64 random(1);
  std::printf("step  P(1 + 1 = 2)  P(2 + 2 = 4)  mean reward  silent groups\n");
  for (int step = 0; step <= 60; ++step) {
    // Every prompt is answered `samples` times; an answer is one token.
    const table p = probabilities(policy);
    table logits(prompts * samples, choices);
    labels answer(prompts * samples);
    Eigen::ArrayXd reward(prompts * samples);
    for (int i = 0; i < answer.size(); ++i) {
      const int prompt = i / samples;
      logits.row(i) = policy.row(prompt);
      double left = static_cast<double>(random() >> 11) * 0x1p-53;
      int drawn = 0;
      while (drawn + 1 < choices && left >= p(prompt, drawn)) left -= p(prompt, drawn++);
      answer[i] = drawn;
      reward[i] = drawn == right_answer[prompt] ? 1 : 0;
    }

    // A reward above the group's mean is an advantage; equal rewards teach nothing.
    Eigen::ArrayXd advantage(reward.size());
    const auto groups = rlhf::group_relative_advantage<double>(
        {.reward = reward}, {.advantage = advantage}, {.group_size = rlhf::group_size{samples}});
    if (step % 15 == 0)
      std::printf("%4d  %12.2f  %12.2f  %11.2f  %13g\n", step, p(0, right_answer[0]),
                  p(1, right_answer[1]), groups.reward.mean, groups.degenerate_groups);

    Eigen::ArrayXd old_log_prob(reward.size());
    rlhf::token_log_prob<double>({.logits = logits, .label = answer}, {.log_prob = old_log_prob},
                                 {});
    for (int epoch = 0; epoch < 2; ++epoch) {
      for (int i = 0; i < answer.size(); ++i) logits.row(i) = policy.row(i / samples);
      table d_logits(logits.rows(), logits.cols());
      rlhf::clipped_surrogate_from_logits<double>(
          {.logits = logits, .label = answer, .old_log_prob = old_log_prob, .advantage = advantage},
          {.d_logits = d_logits}, {.over = rlhf::aggregation::token_mean(answer.size())});
      for (int i = 0; i < answer.size(); ++i) policy.row(i / samples) -= d_logits.row(i);
    }
  }
}
