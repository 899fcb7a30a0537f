#include "rlhf/advantage/leave_one_out_advantage.hpp"

#include "bench/support/samples.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: reward read: 4; advantage written: 4.
const registration lines = sample_lines({.family = "advantage",
                                         .name = "leave_one_out_advantage",
                                         .variant = "group_size",
                                         .item = "sequence",
                                         .bytes = 8,
                                         .sizes = {512, 65536},
                                         .goal = [](index) { return target{.ns = 15}; }},
                                        [](sample_data& d) {
                                          const auto reward = d.input("reward", 0, 1);
                                          const auto advantage = d.output("advantage");
                                          return [=](const auto& exec) {
                                            return rlhf::leave_one_out_advantage<float>(
                                                {.reward = reward}, {.advantage = advantage},
                                                {.group_size = rlhf::group_size{8}}, exec);
                                          };
                                        });

}  // namespace
