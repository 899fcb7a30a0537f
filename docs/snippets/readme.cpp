// The code blocks of README.md, compiled: tests/checks/check_readme_code.py looks for them here and
// in the examples.

#include <rlhf/backend/eigen.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <rlhf/preference/dpo.hpp>

#include <cstddef>
#include <cstdio>
#include <vector>

namespace {

double first_screen() {
  //! [first]
  // Two answers of up to three tokens; the second one has two.
  Eigen::ArrayXXf log_prob(2, 3), old_log_prob(2, 3), d_log_prob(2, 3);
  log_prob << -1.0f, -0.7f, -2.0f, -0.9f, -1.1f, 0.0f;
  old_log_prob << -1.2f, -1.1f, -2.0f, -0.5f, -1.0f, 0.0f;
  const Eigen::Array2f advantage(1.0f, -0.5f);  // one per answer
  const Eigen::Array2i length(3, 2);

  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::lengths(length)},
      {.d_log_prob = d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});
  //! [first]
  return r.loss;
}

double memory_of_its_own() {
  const Eigen::Array2f chosen(-10, -12), rejected(-14, -11), ref_chosen(-11, -12),
      ref_rejected(-13, -12);
  Eigen::Array2f d_chosen, d_rejected;
  const auto call = [&](const auto& exec) {
    return rlhf::dpo_loss<float>({.chosen_log_prob = chosen,
                                  .rejected_log_prob = rejected,
                                  .ref_chosen_log_prob = ref_chosen,
                                  .ref_rejected_log_prob = ref_rejected},
                                 {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
                                 {.over = rlhf::reduction::mean(rlhf::local)}, exec);
  };
  std::vector<std::byte> memory(
      rlhf::workspace_bytes(call));  // on a pool: (call, pool.concurrency())
  call(rlhf::serial{memory.data(), memory.size()});
  return call(rlhf::serial{}).loss;
}

double your_own_loss() {
  const Eigen::ArrayXXf log_prob = Eigen::ArrayXXf::Constant(2, 3, -1.0f);
  const Eigen::ArrayXXf old_log_prob = log_prob;
  const Eigen::Array2f advantage(1.0f, -0.5f);
  const auto r = rlhf::policy_loss<float>(
      [](const auto& t) { return -(t.ratio * t.advantage); },
      {.log_prob = log_prob, .old_log_prob = old_log_prob, .advantage = advantage}, {},
      {.over = rlhf::aggregation::token_mean(6)});
  return r.loss;
}

}  // namespace

int main() {
  std::printf("first screen %.4f\n", first_screen());
  std::printf("own memory   %.4f\n", memory_of_its_own());
  std::printf("own loss     %.4f\n", your_own_loss());
}
