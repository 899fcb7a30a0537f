// Compiled several times, each time with other flags and another name for the function, without
// optimisation, so that the linker has to choose among whatever the units share.
#include "tests/odr/unit.hpp"

#include <rlhf/backend/host.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

unit_result RLHF_TEST_UNIT(const std::vector<float>& log_prob,
                           const std::vector<float>& old_log_prob,
                           const std::vector<float>& advantage) {
  unit_result result{RLHF_PACK_BYTES, 0, std::vector<float>(log_prob.size())};
  const std::vector<int> ends{0, static_cast<int>(log_prob.size())};
  const auto r = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = log_prob,
       .old_log_prob = old_log_prob,
       .advantage = advantage,
       .layout = rlhf::packed(ends)},
      {.d_log_prob = result.d_log_prob},
      {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)});
  result.loss = r.loss;
  return result;
}
