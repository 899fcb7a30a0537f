#include "rlhf/advantage/group_relative_advantage.hpp"

#include "bench/support/samples.hpp"

namespace {

using namespace rlhf_bench;

constexpr double goal_ns = 15;

// Bytes: reward read: 4; advantage written: 4.
const registration in_a_row = sample_lines({.family = "advantage",
                                            .name = "group_relative_advantage",
                                            .variant = "group_size",
                                            .item = "sequence",
                                            .bytes = 8,
                                            .sizes = {512, 65536},
                                            .goal = [](index) { return target{.ns = goal_ns}; }},
                                           [](sample_data& d) {
                                             const auto reward = d.input("reward", 0, 1);
                                             const auto advantage = d.output("advantage");
                                             return [=](const auto& exec) {
                                               return rlhf::group_relative_advantage<float>(
                                                   {.reward = reward}, {.advantage = advantage},
                                                   {.group_size = rlhf::group_size{8}}, exec);
                                             };
                                           });

// Bytes: reward read: 4; group_id read: 4; advantage written: 4.
const registration by_id = sample_lines({.family = "advantage",
                                         .name = "group_relative_advantage",
                                         .variant = "group_id",
                                         .item = "sequence",
                                         .bytes = 12,
                                         .sizes = {512, 65536}},
                                        [](sample_data& d) {
                                          const auto reward = d.input("reward", 0, 1);
                                          const auto group_id = d.group_id(8);
                                          const auto advantage = d.output("advantage");
                                          return [=](const auto& exec) {
                                            return rlhf::group_relative_advantage<float>(
                                                {.reward = reward, .group_id = group_id},
                                                {.advantage = advantage}, {}, exec);
                                          };
                                        });

}  // namespace
