#pragma once

// What the entries of losses over pairs share.

#include "rlhf/statistics/pair_loss.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {

inline entry pair_entry(const char* name) {
  entry e;
  e.name = name;
  e.tokens = false;
  e.mask_name = "weight";
  e.count_names = {"pairs"};
  return e;
}

inline quad quad_softplus(quad x) { return (x > 0 ? x : 0) + log1pq(expq(x > 0 ? -x : x)); }

/// The weighted mean, or sum, of a term over the pairs.
template <class Term>
quad pair_reference(const problem& p, bool mean, const Term& term) {
  quad loss = 0, pairs = 0;
  for (index i = 0; i < p.rows; ++i) {
    if (!(p.w(i, 0) > 0)) continue;
    loss += p.w(i, 0) * term(i);
    pairs += p.w(i, 0);
  }
  const auto given = p.counts.find("pairs");
  if (given != p.counts.end()) pairs = given->second;
  return mean ? (pairs > 0 ? loss / pairs : 0) : loss;
}

inline figures read_pairs(const rlhf::pair_result& r) {
  figures f;
  put(f, "loss", r.loss);
  put(f, "accuracy", r.accuracy);
  put(f, "ties", r.ties);
  put(f, "margin", r.margin);
  put(f, "chosen_reward", r.chosen_reward);
  put(f, "rejected_reward", r.rejected_reward);
  put(f, "chosen_score", r.chosen_score);
  put(f, "rejected_score", r.rejected_score);
  put(f, "min:reward", r.reward_min);
  put(f, "max:reward", r.reward_max);
  put(f, "tokens", r.pairs);
  put(f, "positions", r.positions);
  put(f, "nonfinite", r.nonfinite);
  return f;
}

}  // namespace rlhf_test
