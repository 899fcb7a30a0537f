#include "rlhf/statistics/aggregation.hpp"

#include <doctest/doctest.h>

#include "rlhf/policy/reinforce.hpp"
#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;

namespace {

/// The weight each token gets: the gradient of REINFORCE with A = -1.
host_matrix<double> weights(const aggregation& over, const std::vector<std::int64_t>& group = {}) {
  // lengths 3, 1, 0, 2 of 4 columns, a hole in the first row
  static const std::uint8_t mask[4][4] = {{1, 0, 1, 1}, {1, 0, 0, 0}, {0, 0, 0, 0}, {1, 1, 0, 0}};
  static const double log_prob[4][4] = {}, advantage[4] = {-1, -1, -1, -1};
  host_matrix<double> w(4, 4, 7);
  rlhf::policy_batch<double> batch{.log_prob = log_prob, .advantage = advantage, .mask = mask};
  if (!group.empty()) batch.group_id = group;
  rlhf::reinforce_loss<double>(batch, {.d_log_prob = w.tensor()}, {.over = over});
  return w;
}

void check(const host_matrix<double>& w, std::initializer_list<double> expected) {
  // the six counted tokens in reading order; all others are 0
  const std::ptrdiff_t at[6] = {0, 2, 3, 4, 12, 13};
  std::size_t k = 0;
  double sum = 0, all = 0;
  for (const double e : expected) {
    CHECK(w.data[static_cast<std::size_t>(at[k++])] == doctest::Approx(e));
    sum += e;
  }
  for (const double x : w.data) all += x;
  CHECK(all == doctest::Approx(sum));
}

}  // namespace

TEST_CASE("aggregation: the weight of every mode by hand") {
  // N = 6 tokens, S = 3 sequences, n = 3, 1, 0, 2
  check(weights(aggregation::token_mean(rlhf::local)),
        {1.0 / 6, 1.0 / 6, 1.0 / 6, 1.0 / 6, 1.0 / 6, 1.0 / 6});
  check(weights(aggregation::token_mean(60)),
        {1.0 / 60, 1.0 / 60, 1.0 / 60, 1.0 / 60, 1.0 / 60, 1.0 / 60});
  check(weights(aggregation::token_sum()), {1, 1, 1, 1, 1, 1});
  check(weights(aggregation::none()), {1, 1, 1, 1, 1, 1});
  check(weights(aggregation::sequence_mean_token_sum(rlhf::local)),
        {1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 3, 1.0 / 3});
  check(weights(aggregation::sequence_mean_token_sum_norm(4, 8)),
        {1.0 / 32, 1.0 / 32, 1.0 / 32, 1.0 / 32, 1.0 / 32, 1.0 / 32});
  check(weights(aggregation::sequence_mean_token_mean(rlhf::local)),
        {1.0 / 9, 1.0 / 9, 1.0 / 9, 1.0 / 3, 1.0 / 6, 1.0 / 6});
  // turns: {1}, {1 1}, {1}, {1 1}: 4 of them
  check(weights(aggregation::turn_mean(rlhf::local)),
        {1.0 / 4, 1.0 / 8, 1.0 / 8, 1.0 / 4, 1.0 / 8, 1.0 / 8});
}

TEST_CASE("aggregation: groups are found by id, in any order; a group without tokens is none") {
  // rows 0 and 3 (5 tokens), row 1 (1 token), row 2 (none)
  check(weights(aggregation::group_mean_token_mean(rlhf::local), {900, -4, 7, 900}),
        {1.0 / 10, 1.0 / 10, 1.0 / 10, 1.0 / 2, 1.0 / 10, 1.0 / 10});
  check(weights(aggregation::group_mean_token_mean(5), {900, -4, 7, 900}),
        {1.0 / 25, 1.0 / 25, 1.0 / 25, 1.0 / 5, 1.0 / 25, 1.0 / 25});
}

TEST_CASE("aggregation: group ids are required where they are used, and refused where not") {
  CHECK(message_of([] { weights(aggregation::group_mean_token_mean(rlhf::local)); }) ==
        "reinforce_loss: group_id: expected a tensor: this input is required, received none");
  CHECK(
      message_of([] {
        weights(aggregation::token_sum(), {1, 1, 1, 1});
      }) ==
      "reinforce_loss: group_id: expected to be left out: this call does not use it, received one");
  CHECK(message_of([] {
          weights(aggregation::group_mean_token_mean(rlhf::local), {1, 1});
        }) == "reinforce_loss: group_id: expected shape [4], received [2]");
}

TEST_CASE("aggregation: counts and horizons that are none") {
  CHECK(message_of([] { weights(aggregation::sequence_mean_token_sum_norm(3, 0)); }) ==
        "reinforce_loss: over: expected a horizon that is finite and > 0, received 0");
  CHECK(message_of([] { weights(aggregation::token_mean(not_a_number)); }) ==
        "reinforce_loss: over: expected a count that is finite and > 0, received nan");
}
