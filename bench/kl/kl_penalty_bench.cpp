#include "rlhf/kl/kl_penalty.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: log_prob and ref_log_prob read: 8; reward written: 4. The score is one number per sequence.
const registration lines =
    token_lines({.family = "kl", .name = "kl_penalty", .read = 8, .write = 4}, [](token_data& d) {
      const auto log_prob = d.input("log_prob", -3, 0);
      const auto ref_log_prob = d.input_near("ref_log_prob", log_prob, 0.5f);
      const auto score = d.row_input("score", -1, 1);
      const auto reward = d.output("reward");
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::kl_penalty<float>({.log_prob = log_prob,
                                        .ref_log_prob = ref_log_prob,
                                        .score = rlhf::per_sequence(score),
                                        .mask = mask,
                                        .layout = layout},
                                       {.reward = reward}, {.coefficient = 0.05}, exec);
      };
    });

}  // namespace
