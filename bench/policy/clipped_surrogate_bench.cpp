#include "rlhf/policy/clipped_surrogate.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

target goal(const token_case& of) {
  const index tokens = of.rows * of.columns;
  const bool million = tokens < 1'100'000, short_rows = of.columns <= 16;
  if (tokens > 1 << 22) return {};  // none is set
  if (of.layout == token_layout::lengths) return {.ns = short_rows ? 1.6 : million ? 1.1 : 1.2};
  if (of.layout == token_layout::mask) return {.ns = short_rows ? 2.0 : million ? 1.35 : 1.4};
  return {};
}

// Bytes: log_prob, old_log_prob, advantage read: 12; d_log_prob written: 4.
const registration lines = token_lines(
    {.family = "policy",
     .name = "clipped_surrogate",
     .read = 12,
     .write = 4,
     .goal = goal,
     .scan = true,
     .growth = true},
    [](token_data& d) {
      const auto log_prob = d.input("log_prob", -3, 0);
      const auto old_log_prob = d.input_near("old_log_prob", log_prob, 0.2f);
      const auto advantage = d.input("advantage", -1, 1);
      const auto d_log_prob = d.output("d_log_prob");
      return [=, mask = d.mask, layout = d.layout, n = d.counted()](const auto& exec) {
        return rlhf::clipped_surrogate_loss<float>(
            {.log_prob = log_prob,
             .old_log_prob = old_log_prob,
             .advantage = advantage,
             .mask = mask,
             .layout = layout},
            {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(n)}, exec);
      };
    });

}  // namespace
