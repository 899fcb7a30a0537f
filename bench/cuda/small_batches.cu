#include "bench/cuda/measure.hpp"

#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/preference/dpo.hpp"

namespace rlhf_bench {

namespace {

// Read four log-probabilities of answers; write two gradients: 24 per pair.
constexpr double dpo_bytes = 24;

struct dpo_set {
  index pairs;
  uniform chosen, rejected, ref_chosen, ref_rejected;
  array<float> d_chosen, d_rejected;
  dpo_set(index n, std::uint32_t seed)
      : pairs(n),
        chosen(n, -90, -10, 4 * seed),
        rejected(n, -90, -10, 4 * seed + 1),
        ref_chosen(n, -90, -10, 4 * seed + 2),
        ref_rejected(n, -90, -10, 4 * seed + 3),
        d_chosen(n),
        d_rejected(n) {}
  template <class Exec>
  void call(const Exec& exec) const {
    const rlhf::shape shape(pairs);
    rlhf::dpo_loss<float>({.chosen_log_prob = {chosen.data(), shape},
                           .rejected_log_prob = {rejected.data(), shape},
                           .ref_chosen_log_prob = {ref_chosen.data(), shape},
                           .ref_rejected_log_prob = {ref_rejected.data(), shape}},
                          {.d_chosen_log_prob = {d_chosen.data(), shape},
                           .d_rejected_log_prob = {d_rejected.data(), shape}},
                          {.over = rlhf::reduction::mean(static_cast<double>(pairs))}, exec);
  }
};

// Read a reward, write an advantage: 8 per sequence.
constexpr double group_bytes = 8;

struct group_set {
  index samples;
  uniform reward;
  array<float> advantage;
  group_set(index n, std::uint32_t seed) : samples(n), reward(n, 0, 1, seed), advantage(n) {}
  template <class Exec>
  void call(const Exec& exec) const {
    const rlhf::shape shape(samples);
    rlhf::group_relative_advantage<float>({.reward = {reward.data(), shape}},
                                          {.advantage = {advantage.data(), shape}},
                                          {.group_size = rlhf::group_size(8)}, exec);
  }
};

template <class Set>
void add(table& to, const char* name, index n, double bytes) {
  to.add({.family = "pairs and groups",
          .operation = name,
          .size = std::to_string(n),
          .items = static_cast<double>(n),
          .bytes_per_item = bytes,
          .goal_us = 4,
          .goal_launches = 1},
         [=](std::uint32_t seed) { return std::make_shared<Set>(n, seed); });
}

}  // namespace

void small_batches(table& to) {
  for (const index n : {256, 65536}) {
    add<dpo_set>(to, "dpo_loss", n, dpo_bytes);
    add<group_set>(to, "group_relative_advantage, of 8", n, group_bytes);
  }
}

}  // namespace rlhf_bench
