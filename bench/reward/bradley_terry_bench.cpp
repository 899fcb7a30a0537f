#include "rlhf/reward/bradley_terry.hpp"

#include "bench/support/samples.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: two rewards read: 8; two gradients written: 8.
const registration lines =
    sample_lines({.family = "reward",
                  .name = "bradley_terry",
                  .variant = "pairs",
                  .item = "pair",
                  .bytes = 16,
                  .sizes = {8, 256, 65536}},
                 [](sample_data& d) {
                   const auto chosen = d.input("chosen_reward", -2, 3);
                   const auto rejected = d.input("rejected_reward", -3, 2);
                   const auto d_chosen = d.output("d_chosen_reward");
                   const auto d_rejected = d.output("d_rejected_reward");
                   return [=, n = d.samples()](const auto& exec) {
                     return rlhf::bradley_terry_loss<float>(
                         {.chosen_reward = chosen, .rejected_reward = rejected},
                         {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected},
                         {.over = rlhf::reduction::mean(n)}, exec);
                   };
                 });

}  // namespace
