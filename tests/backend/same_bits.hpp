#pragma once

// A pool gives the bits of one thread: gradients, outputs and every figure of the result.

#include <cstring>
#include <vector>

#include <doctest/doctest.h>

#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "tests/support/backends.hpp"

namespace rlhf_test {

using bytes_written = std::vector<unsigned char>;

template <class X>
void append(bytes_written& to, const X* x, std::size_t n) {
  const auto* const from = reinterpret_cast<const unsigned char*>(x);
  to.insert(to.end(), from, from + n * sizeof(X));
}
template <class X>
void append(bytes_written& to, const std::vector<X>& x) {
  append(to, x.data(), x.size());
}

/// Rows of these lengths, one after the other: how unequal they are is what cuts the work.
struct row_lengths {
  std::vector<std::int64_t> offsets;
  explicit row_lengths(const std::vector<index>& lengths) : offsets(1, 0) {
    for (const index n : lengths) offsets.push_back(offsets.back() + n);
  }
  index tokens() const { return static_cast<index>(offsets.back()); }
  index rows() const { return static_cast<index>(offsets.size()) - 1; }
};

template <class T>
std::vector<T> random_tokens(std::uint64_t seed, index n, double low, double high) {
  random_numbers random(seed);
  std::vector<T> x(static_cast<std::size_t>(n));
  for (T& value : x) value = static_cast<T>(random.uniform(low, high));
  return x;
}

/// Everything that calls over such rows write and return.
template <class T, class Exec>
bytes_written run_all(const row_lengths& rows, const Exec& exec) {
  const index n = rows.tokens();
  const auto log_prob = random_tokens<T>(1, n, -4, 0), old = random_tokens<T>(2, n, -4, 0);
  const auto reward = random_tokens<T>(3, n, -1, 1), value = random_tokens<T>(4, n, -1, 1);
  const auto advantage = random_tokens<T>(5, rows.rows(), -2, 2);
  const auto weight = random_tokens<double>(6, n, 0, 2);
  std::vector<T> a(log_prob.size()), b(log_prob.size()), c(log_prob.size()), d(log_prob.size());
  std::vector<T> e(advantage.size());
  const auto layout = rlhf::packed(rows.offsets);
  using rlhf::aggregation;

  const auto clipped = rlhf::clipped_surrogate_loss<T>(
      {.log_prob = log_prob,
       .old_log_prob = old,
       .advantage = rlhf::per_sequence(advantage),
       .layout = layout},
      {.d_log_prob = a}, {.over = aggregation::token_mean(rlhf::local)}, exec);
  const auto weighted = rlhf::sequence_clipped_surrogate_loss<T>(
      {.log_prob = log_prob,
       .old_log_prob = old,
       .advantage = rlhf::per_sequence(advantage),
       .mask = weight,
       .layout = layout},
      {.d_log_prob = b}, {.over = aggregation::sequence_mean_token_mean(rlhf::local)}, exec);
  const auto estimated = rlhf::generalized_advantage_estimation<T>(
      {.reward = reward, .value = value, .layout = layout}, {.advantage = c, .returns = d}, {},
      exec);
  std::vector<std::int32_t> id;
  for (std::size_t k = 0; k < advantage.size(); ++k)
    id.push_back(static_cast<std::int32_t>(k * 7919 % 100));
  const auto grouped = rlhf::group_relative_advantage<T>({.reward = advantage, .group_id = id},
                                                         {.advantage = e}, {}, exec);
  bytes_written all;
  append(all, &clipped, 1);
  append(all, &weighted, 1);
  append(all, &estimated, 1);
  append(all, &grouped, 1);
  append(all, a), append(all, b), append(all, c), append(all, d), append(all, e);
  return all;
}

/// The log-prob layer, whose rows are long whatever the sequences are.
template <class Exec>
bytes_written run_logits(const Exec& exec) {
  const index n = 37, classes = 2100;
  const auto logits = random_tokens<float>(7, n * classes, -5, 5);
  std::vector<std::int32_t> label;
  for (index k = 0; k < n; ++k) label.push_back(static_cast<std::int32_t>(k * 53 % classes));
  std::vector<float> log_prob(static_cast<std::size_t>(n)), entropy(static_cast<std::size_t>(n));
  const auto r =
      rlhf::token_log_prob<float>({.logits = {logits, rlhf::shape(n, classes)}, .label = label},
                                  {.log_prob = log_prob, .entropy = entropy}, {}, exec);
  bytes_written all;
  append(all, &r, 1);
  append(all, log_prob), append(all, entropy);
  return all;
}

/// Unequal groups of 64 rows, one long row among short ones, one row alone, rows of nothing, none.
inline std::vector<row_lengths> odd_rows() {
  std::vector<index> unequal, one_long(130, 3);
  for (index i = 0; i < 300; ++i) unequal.push_back(i < 64 ? 1 + i % 5 : i * 131 % 90);
  one_long[70] = 40000;
  return {row_lengths(unequal), row_lengths(one_long), row_lengths({70001}),
          row_lengths({0, 0, 5, 0}), row_lengths({})};
}

template <class Pool>
void check_same_bits(const Pool& pool) {
  for (const row_lengths& rows : odd_rows()) {
    CAPTURE(rows.rows());
    CHECK(run_all<float>(rows, rlhf::serial{}) == run_all<float>(rows, rlhf::parallel{pool}));
    CHECK(run_all<double>(rows, rlhf::serial{}) == run_all<double>(rows, rlhf::parallel{pool}));
  }
  CHECK(run_logits(rlhf::serial{}) == run_logits(rlhf::parallel{pool}));
}

}  // namespace rlhf_test
