#include "rlhf/backend/host.hpp"
#include "rlhf/reward/bradley_terry.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::reduction;

/// Logits are [chosen; rejected], one column.
template <class T>
void trl_reward(const request& c, place<T>& on, answer& out) {
  const array logits = c.input("logits").reshaped({c.input("logits").size()});
  const index pairs = logits.size() / 2;
  const array chosen = logits.rows_of(0, pairs), rejected = logits.rows_of(pairs, 2 * pairs);
  const auto d_chosen = on.out({pairs}), d_rejected = on.out({pairs});
  std::optional<array> margin;
  if (c.has("margin")) margin = c.input("margin");
  const auto r = rlhf::bradley_terry_loss<T>(
      {.chosen_reward = on.in(chosen), .rejected_reward = on.in(rejected), .margin = on.in(margin)},
      {.d_chosen_reward = d_chosen.view, .d_rejected_reward = d_rejected.view},
      {.centering = c.maybe("center_rewards_coefficient").value_or(0),
       .over = reduction::mean(rlhf::local)});
  out.put("loss", r.loss);
  array d = c.input("logits");
  const array a = d_chosen.read(), b = d_rejected.read();
  for (index i = 0; i < pairs; ++i) d[i] = a[i], d[pairs + i] = b[i];
  out.grad("logits", d);
  out.log("min_reward", r.reward_min);
  out.log("max_reward", r.reward_max);
  out.log("mean_reward", (r.chosen_reward.sum + r.rejected_reward.sum) /
                             (r.chosen_reward.count + r.rejected_reward.count));
  out.log("accuracy", r.accuracy.mean());
  out.log("margin", r.margin.mean());
}

template <class T>
void openrlhf_pair(const request& c, place<T>& on, answer& out, bool with_margin) {
  const array& chosen = c.input("chosen_reward");
  const auto d_chosen = on.out(chosen.shape), d_rejected = on.out(chosen.shape);
  std::optional<array> margin;
  if (c.has("margin") && with_margin) margin = c.input("margin");
  const auto r = rlhf::bradley_terry_loss<T>(
      {.chosen_reward = on.in(chosen),
       .rejected_reward = on.in(c.input("reject_reward")),
       .margin = on.in(margin)},
      {.d_chosen_reward = d_chosen.view, .d_rejected_reward = d_rejected.view},
      {.over = reduction::mean(rlhf::local)});
  out.put("loss", r.loss);
  out.grad("chosen_reward", d_chosen.read());
  out.grad("reject_reward", d_rejected.read());
}

template <class T>
void openrlhf_pairwise(const request& c, place<T>& on, answer& out) {
  openrlhf_pair(c, on, out, true);
}

/// log(1 + exp(−d)) written so that it overflows; it takes a margin and ignores it.
template <class T>
void openrlhf_log_exp(const request& c, place<T>& on, answer& out) {
  openrlhf_pair(c, on, out, false);
}

/// Rows alternate chosen and rejected. Half the valid rows are pairs, and 1e-8 is added to them.
template <class T>
void nemo_preference(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const array& sample = c.input("sample_mask");
  const index pairs = sample.size() / 2;
  array chosen = array::filled({pairs}, 0), rejected = chosen, valid = chosen;
  for (index i = 0; i < pairs; ++i) {
    chosen[i] = logits[2 * i];
    rejected[i] = logits[2 * i + 1];
    valid[i] = sample[2 * i];
  }
  const double n = c.number("global_valid_seqs") / 2 + small_count;
  const auto d_chosen = on.out({pairs}), d_rejected = on.out({pairs});
  const auto r = rlhf::bradley_terry_loss<T>(
      {.chosen_reward = on.in(chosen),
       .rejected_reward = on.in(rejected),
       .weight = on.mask(valid)},
      {.d_chosen_reward = d_chosen.view, .d_rejected_reward = d_rejected.view},
      {.over = reduction::mean(n)});
  array d = logits;
  const array a = d_chosen.read(), b = d_rejected.read();
  for (index i = 0; i < pairs; ++i) d[2 * i] = a[i], d[2 * i + 1] = b[i];
  out.put("loss", r.loss);
  out.grad("logits", d);
  out.log("loss", r.loss);
  out.log("accuracy", r.accuracy.sum / n);
  out.log("rewards_chosen_mean", r.chosen_reward.sum / n);
  out.log("rewards_rejected_mean", r.rejected_reward.sum / n);
  out.log("num_valid_samples", r.pairs);
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("trl.reward_loss", trl_reward),
    GOLDEN_ADAPTER("openrlhf.PairWiseLoss", openrlhf_pairwise),
    GOLDEN_ADAPTER("openrlhf.LogExpLoss", openrlhf_log_exp),
    GOLDEN_ADAPTER("nemo_rl.PreferenceLossFn", nemo_preference),
};

}  // namespace

std::span<const adapter> reward_adapters() { return adapters; }

}  // namespace golden
