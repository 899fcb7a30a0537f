#include "rlhf/preference/dpo.hpp"

#include "bench/support/samples.hpp"
#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Log-probabilities of whole answers.
//
// Bytes: four log-probs read: 16; two gradients written: 8.
const registration of_answers = sample_lines(
    {.family = "preference",
     .name = "dpo",
     .variant = "pairs",
     .item = "pair",
     .bytes = 24,
     .sizes = {8, 256, 65536},
     .goal = [](index n) { return target{.ns = n == 8       ? 37.5
                                               : n == 65536 ? 5.0
                                                            : 0}; }},
    [](sample_data& d) {
      const auto chosen = d.input("chosen_log_prob", -50, -10);
      const auto rejected = d.input("rejected_log_prob", -50, -10);
      const auto ref_chosen = d.input("ref_chosen_log_prob", -50, -10);
      const auto ref_rejected = d.input("ref_rejected_log_prob", -50, -10);
      const auto d_chosen = d.output("d_chosen_log_prob");
      const auto d_rejected = d.output("d_rejected_log_prob");
      return [=, n = d.samples()](const auto& exec) {
        return rlhf::dpo_loss<float>(
            {.chosen_log_prob = chosen,
             .rejected_log_prob = rejected,
             .ref_chosen_log_prob = ref_chosen,
             .ref_rejected_log_prob = ref_rejected},
            {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
            {.over = rlhf::reduction::mean(n)}, exec);
      };
    });

// Log-probabilities of tokens, summed and their gradient spread again.
//
// Bytes at one place of chosen and rejected: four log-probs read: 16; two gradients written: 8.
const registration of_tokens = token_lines(
    {.family = "preference", .name = "dpo_tokens", .read = 16, .write = 8, .answers = 2},
    [](token_data& d) {
      const auto chosen = d.input("chosen_log_prob", -3, 0);
      const auto rejected = d.input("rejected_log_prob", -3, 0);
      const auto ref_chosen = d.input_near("ref_chosen_log_prob", chosen, 0.2f);
      const auto ref_rejected = d.input_near("ref_rejected_log_prob", rejected, 0.2f);
      const auto d_chosen = d.output("d_chosen_log_prob");
      const auto d_rejected = d.output("d_rejected_log_prob");
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::dpo_loss<float>(
            {.chosen_log_prob = chosen,
             .rejected_log_prob = rejected,
             .ref_chosen_log_prob = ref_chosen,
             .ref_rejected_log_prob = ref_rejected,
             .chosen_mask = mask,
             .rejected_mask = mask,
             .chosen_layout = layout,
             .rejected_layout = layout},
            {.d_chosen_log_prob = d_chosen, .d_rejected_log_prob = d_rejected},
            {.over = rlhf::reduction::mean(rlhf::local)}, exec);
      };
    });

}  // namespace
