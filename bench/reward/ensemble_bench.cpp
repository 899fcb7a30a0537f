#include "rlhf/reward/ensemble.hpp"

#include "bench/support/samples.hpp"

namespace {

using namespace rlhf_bench;

constexpr index members = 4;

// Bytes: the reward of four members read: 16; combined written: 4.
const registration lines = sample_lines(
    {.family = "reward",
     .name = "ensemble",
     .variant = "four_members",
     .item = "sequence",
     .bytes = 20,
     .sizes = {512, 65536}},
    [](sample_data& d) {
      const auto reward = d.input("reward", -2, 2, {members, d.samples()});
      const auto combined = d.output("combined");
      return [=](const auto& exec) {
        return rlhf::ensemble_reward<float>(
            {.reward = reward}, {.combined = combined},
            {.combine = rlhf::ensemble::uncertainty_weighted, .coefficient = 0.5}, exec);
      };
    });

}  // namespace
