#include "rlhf/kl/kl_penalty.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::kl_penalty;
using rlhf::score_position;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("kl_penalty: values by hand, with a hole and an empty row", B,
                   RLHF_TEST_BACKENDS) {
  // k1 = 1, 2, hole, -1, padding | empty | 4, 0, 0, 0, padding
  const double n = not_a_number;
  const auto log_prob = rows<B>({{1, 2, n, 0, n}, {n, n, n, n, n}, {4, 0, 0, 0, n}});
  const auto ref = rows<B>({{0, 0, n, 1, n}, {n, n, n, n, n}, {0, 0, 0, 0, n}});
  const auto mask = flags<B>({{1, 1, 0, 1, 0}, {0, 0, 0, 0, 0}, {1, 1, 1, 1, 0}});
  const numbers score{10, 20, 30};
  auto reward = rows<B>({{7, 7, 7, 7, 7}, {7, 7, 7, 7, 7}, {7, 7, 7, 7, 7}});
  auto kl = reward;
  const auto r =
      kl_penalty<double>({.log_prob = log_prob.tensor(),
                          .ref_log_prob = ref.tensor(),
                          .score = score,
                          .mask = mask.tensor()},
                         {.reward = reward.tensor(), .kl = kl.tensor()}, {.coefficient = 0.5});
  const auto expected = rows<B>({{-0.5, -1, 0, 10.5, 0}, {0, 0, 0, 0, 0}, {-2, 0, 0, 30, 0}});
  for (rlhf::index i = 0; i < 3; ++i)
    for (rlhf::index j = 0; j < 5; ++j) CHECK(reward(i, j) == expected(i, j));
  CHECK(kl(0, 1) == 2);
  CHECK(kl(0, 2) == 0);
  CHECK(kl(0, 3) == -1);
  CHECK(r.kl.sum == 6);
  CHECK(r.kl.count == 7);
  CHECK(r.kl_per_sequence.mean() == 3);  // (2 + 4) / 2
  CHECK(r.non_score_reward.mean() == -1.5);
  CHECK(r.score.mean() == 20);  // (10 + 30) / 2: the score of the empty row has no place
  CHECK(r.total.mean() == 18.5);
  CHECK(r.unplaced == 1);
  CHECK(r.sequences == 2);
  CHECK(r.nonfinite == 0);
}

TEST_CASE("kl_penalty: each position puts the score where it says") {
  // lengths 3 and 5 of 5 columns; the last token of the first row is a hole
  const numbers zero(10, 0), score{1, 2};
  const std::vector<std::int32_t> length{3, 5}, at{4, 0};
  const std::vector<std::uint8_t> mask{1, 1, 0, 0, 0, 1, 1, 1, 1, 1};
  const auto place = [&](score_position position) {
    numbers reward(10, 7);
    rlhf::kl_penalty_batch<double> batch{.log_prob = {zero, {2, 5}},
                                         .ref_log_prob = {zero, {2, 5}},
                                         .score = score,
                                         .mask = {mask, {2, 5}},
                                         .layout = rlhf::lengths(length)};
    if (position == score_position::by_index) batch.score_index = at;
    const auto r = kl_penalty<double>(batch, {.reward = {reward, {2, 5}}}, {.score_at = position});
    CHECK(r.score.sum == 3);
    CHECK(r.total.sum == 3);
    return reward;
  };
  CHECK(place(score_position::last_valid) == numbers{0, 1, 0, 0, 0, 0, 0, 0, 0, 2});
  CHECK(place(score_position::after_last) == numbers{0, 0, 1, 0, 0, 0, 0, 0, 0, 2});
  CHECK(place(score_position::last_token) == numbers{0, 0, 1, 0, 0, 0, 0, 0, 0, 2});
  CHECK(place(score_position::last_column) == numbers{0, 0, 0, 0, 1, 0, 0, 0, 0, 2});
  CHECK(place(score_position::by_index) == numbers{0, 0, 0, 0, 1, 2, 0, 0, 0, 0});
}

TEST_CASE("kl_penalty: packed rows, and scores marked per sequence") {
  const numbers log_prob{1, 2, 3, 4}, ref{0, 0, 0, 0}, score{10, 20, 30};
  const std::vector<std::int64_t> offset{0, 3, 3, 4};
  numbers reward(4, 7);
  const auto r = kl_penalty<double>({.log_prob = log_prob,
                                     .ref_log_prob = ref,
                                     .score = rlhf::per_sequence(score),
                                     .layout = rlhf::packed(offset)},
                                    {.reward = reward}, {.coefficient = 1});
  CHECK(reward == numbers{-1, -2, 7, 26});
  CHECK(r.unplaced == 1);
  const numbers each{5, 6, 7, 8};
  kl_penalty<double>(
      {.log_prob = log_prob, .ref_log_prob = ref, .score = each, .layout = rlhf::packed(offset)},
      {.reward = reward}, {.coefficient = 1});
  CHECK(reward == numbers{4, 4, 4, 4});
}

TEST_CASE("kl_penalty: scores per token are added where they are, masked ones are not read") {
  const numbers log_prob{1, 2, not_a_number, 0}, ref{0, 0, 0, 0}, score{1, 0, not_a_number, 5};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1};
  numbers reward(4, 7);
  const auto r = kl_penalty<double>({.log_prob = {log_prob, {2, 2}},
                                     .ref_log_prob = {ref, {2, 2}},
                                     .score = {score, {2, 2}},
                                     .mask = {mask, {2, 2}}},
                                    {.reward = {reward, {2, 2}}}, {.coefficient = 0.1});
  CHECK(reward == numbers{0.9, -0.2, 0, 5});
  CHECK(r.score.mean() == 3);
  CHECK(r.total.mean() == doctest::Approx(2.85));
}

TEST_CASE("kl_penalty: without a score it is the penalty alone; 0 leaves the score alone") {
  const numbers log_prob{1, 2}, ref{0, 0}, score{5};
  numbers reward(2, 7);
  const auto r = kl_penalty<double>({.log_prob = {log_prob, {1, 2}}, .ref_log_prob = {ref, {1, 2}}},
                                    {.reward = {reward, {1, 2}}}, {.coefficient = 2});
  CHECK(reward == numbers{-2, -4});
  CHECK(r.score.mean() == 0);
  CHECK(r.unplaced == 0);
  kl_penalty<double>(
      {.log_prob = {log_prob, {1, 2}}, .ref_log_prob = {ref, {1, 2}}, .score = score},
      {.reward = {reward, {1, 2}}}, {.coefficient = 0});
  CHECK(reward == numbers{0, 5});
}

TEST_CASE("kl_penalty: a weight of the mask is no factor of the reward") {
  const numbers log_prob{1, 2}, ref{0, 0}, weight{0.5, 2}, score{3};
  numbers reward(2, 7);
  const auto r = kl_penalty<double>({.log_prob = {log_prob, {1, 2}},
                                     .ref_log_prob = {ref, {1, 2}},
                                     .score = score,
                                     .mask = {weight, {1, 2}}},
                                    {.reward = {reward, {1, 2}}}, {.coefficient = 1});
  CHECK(reward == numbers{-1, 1});
  CHECK(r.total.sum == 0);
  CHECK(r.kl_per_sequence.sum == 3);
  CHECK(r.kl.mean() == (0.5 * 1 + 2 * 2) / 2.5);
}

TEST_CASE("kl_penalty: add_to keeps what was there, in masked slots as well") {
  const numbers log_prob{1, 2}, ref{0, 0}, score{3};
  const std::vector<std::uint8_t> mask{1, 0};
  numbers reward{100, 200};
  rlhf::output<double> out(reward, {1, 2});
  out.accumulate = true;
  kl_penalty<double>({.log_prob = {log_prob, {1, 2}},
                      .ref_log_prob = {ref, {1, 2}},
                      .score = score,
                      .mask = {mask, {1, 2}}},
                     {.reward = out}, {.coefficient = 1});
  CHECK(reward == numbers{102, 200});
}

TEST_CASE("kl_penalty: the estimator and a coefficient on the device") {
  const numbers log_prob{-1}, ref{-1 - std::log(2.0)};
  const double beta = 0.25;
  numbers reward(1);
  const auto r = kl_penalty<double>(
      {.log_prob = {log_prob, {1, 1}}, .ref_log_prob = {ref, {1, 1}}}, {.reward = {reward, {1, 1}}},
      {.coefficient = rlhf::device_scalar{&beta}, .estimator = rlhf::kl_estimator::k3});
  CHECK(r.kl.mean() == doctest::Approx(std::log(2.0) - 0.5));
  CHECK(reward[0] == doctest::Approx(-0.25 * (std::log(2.0) - 0.5)));
}

TEST_CASE("kl_penalty: a NaN score reaches its reward, or drops its sequence") {
  const numbers log_prob{1, 2, 3, 4}, ref{0, 0, 0, 0}, score{not_a_number, 5};
  numbers reward(4, 7);
  const auto run = [&](rlhf::nonfinite_policy policy) {
    return kl_penalty<double>(
        {.log_prob = {log_prob, {2, 2}}, .ref_log_prob = {ref, {2, 2}}, .score = score},
        {.reward = {reward, {2, 2}}}, {.coefficient = 1, .nonfinite = policy});
  };
  CHECK(run(rlhf::nonfinite_policy::propagate).nonfinite == 2);
  CHECK(std::isnan(reward[1]));
  const auto r = run(rlhf::nonfinite_policy::drop_token);
  CHECK(reward == numbers{0, 0, -3, 1});
  CHECK(r.unplaced == 1);
  CHECK(r.score.mean() == 5);
  reward.assign(4, 7);
  CHECK_THROWS_AS(run(rlhf::nonfinite_policy::error), rlhf::contract_violation);
  CHECK(reward == numbers(4, 7));
}

TEST_CASE("kl_penalty: padded, lengths and packed give the same bits, and micro-batches add up") {
  random_numbers random(9);
  const std::vector<std::int32_t> length{4, 19, 0, 7}, offset{0, 4, 23, 23, 30};
  std::vector<float> x(80, NAN), f(80, NAN), px, pf, score{1, 2, 3, 4};
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < static_cast<std::size_t>(length[i]); ++j) {
      px.push_back(x[i * 20 + j] = static_cast<float>(random.uniform(-3, 0)));
      pf.push_back(f[i * 20 + j] = static_cast<float>(random.uniform(-3, 0)));
    }
  std::vector<float> a(80), b(30);
  const rlhf::kl_penalty_config config{.coefficient = 0.3, .estimator = rlhf::kl_estimator::k3};
  const auto r = kl_penalty<float>({.log_prob = {x, {4, 20}},
                                    .ref_log_prob = {f, {4, 20}},
                                    .score = score,
                                    .layout = rlhf::lengths(length)},
                                   {.reward = {a, {4, 20}}}, config);
  const auto p = kl_penalty<float>({.log_prob = px,
                                    .ref_log_prob = pf,
                                    .score = rlhf::per_sequence(score),
                                    .layout = rlhf::packed(offset)},
                                   {.reward = b}, config);
  CHECK(r.kl.sum == p.kl.sum);
  CHECK(r.total.sum == p.total.sum);
  std::size_t at = 0;
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < 20; ++j)
      CHECK(a[i * 20 + j] == (j < static_cast<std::size_t>(length[i]) ? b[at++] : 0.0f));
  const auto twice = r + p;
  CHECK(twice.kl.mean() == doctest::Approx(r.kl.mean()));
  CHECK(twice.unplaced == 2);
  CHECK(twice.sequences == 6);
}

TEST_CASE("kl_penalty: a broken contract names itself and writes nothing") {
  const numbers x{1, 2, 3, 4}, score{1, 2}, three{1, 2, 3};
  const std::vector<std::int32_t> index_{0, 2};
  numbers reward(4, 7);
  const rlhf::view<const double> v(x.data(), {2, 2});
  const auto broken = [&](const rlhf::kl_penalty_batch<double>& batch,
                          const rlhf::kl_penalty_config& config) {
    const std::string m = message_of([&] {
      kl_penalty<double>(batch, {.reward = {reward, {2, 2}}}, config);
    });
    CHECK(reward == numbers(4, 7));
    return m;
  };
  CHECK(broken({.log_prob = v, .ref_log_prob = v}, {.coefficient = -0.1}) ==
        "kl_penalty: coefficient: expected a number that is finite and >= 0, received -0.1");
  CHECK(broken({.log_prob = v}, {}) ==
        "kl_penalty: ref_log_prob: expected a tensor: this input is required, received none");
  CHECK(broken({.log_prob = v, .ref_log_prob = v, .score = three}, {}) ==
        "kl_penalty: score: expected shape [2], received [3]");
  CHECK(
      broken({.log_prob = v, .ref_log_prob = v, .score = score, .score_index = index_}, {}) ==
      "kl_penalty: score_index: expected to be left out: this call does not use it, received one");
  CHECK(broken({.log_prob = v, .ref_log_prob = v, .score = score},
               {.score_at = score_position::by_index})
            .find("score_index") != std::string::npos);
  CHECK(broken({.log_prob = v, .ref_log_prob = v, .score = score, .score_index = index_},
               {.score_at = score_position::by_index}) ==
        "kl_penalty: score_index: expected a column of its row, received 2");
}
