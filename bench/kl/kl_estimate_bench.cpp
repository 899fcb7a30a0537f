#include "rlhf/kl/kl_estimate.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// k3 with its gradient.
//
// Bytes: log_prob and ref_log_prob read: 8; d_log_prob written: 4.
const registration lines =
    token_lines({.family = "kl", .name = "kl_estimate", .read = 8, .write = 4}, [](token_data& d) {
      const auto log_prob = d.input("log_prob", -3, 0);
      const auto ref_log_prob = d.input_near("ref_log_prob", log_prob, 0.5f);
      const auto d_log_prob = d.output("d_log_prob");
      return [=, mask = d.mask, layout = d.layout, n = d.counted()](const auto& exec) {
        return rlhf::kl_estimate<float>(
            {.log_prob = log_prob, .ref_log_prob = ref_log_prob, .mask = mask, .layout = layout},
            {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(n)}, exec);
      };
    });

}  // namespace
