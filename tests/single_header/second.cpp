#include <rlhf/rlhf.hpp>

#include <vector>

double loss_in_second_unit(const std::vector<float>& log_prob,
                           const std::vector<float>& old_log_prob,
                           const std::vector<float>& advantage);

double loss_in_second_unit(const std::vector<float>& log_prob,
                           const std::vector<float>& old_log_prob,
                           const std::vector<float>& advantage) {
  const std::vector<int> ends{0, 2, 3};
  return rlhf::clipped_surrogate_loss<float>({.log_prob = log_prob,
                                              .old_log_prob = old_log_prob,
                                              .advantage = advantage,
                                              .layout = rlhf::packed(ends)},
                                             {},
                                             {.clip_low = 0.2,
                                              .clip_high = 0.28,
                                              .over = rlhf::aggregation::token_mean(rlhf::local)})
      .loss;
}
