#include "rlhf/reward/ensemble.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::ensemble;
using rlhf::ensemble_reward;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("ensemble_reward: values by hand", B, RLHF_TEST_BACKENDS) {
  // columns 1 3 8: mean 4, squares 9 + 1 + 16 = 26 | 2 2 2
  const auto reward = rows<B>({{1, 2}, {3, 2}, {8, 2}});
  auto d = rows<B>({{7, 7}, {7, 7}, {7, 7}});
  numbers combined(2, 7), disagreement(2, 7);
  const auto run = [&](ensemble combine, double coefficient = 0, double ddof = 0) {
    return ensemble_reward<double>(
        {.reward = reward.tensor()},
        {.combined = combined, .disagreement = disagreement, .d_reward = d.tensor()},
        {.combine = combine, .coefficient = coefficient, .ddof = ddof});
  };
  const double variance = 26.0 / 3, deviation = std::sqrt(variance);
  const auto r = run(ensemble::mean);
  CHECK(combined == numbers{4, 2});
  CHECK(disagreement[0] == doctest::Approx(deviation));
  CHECK(disagreement[1] == 0);
  CHECK(d(2, 0) == doctest::Approx(1.0 / 3));
  CHECK(r.combined.mean() == 3);
  CHECK(r.disagreement.mean() == doctest::Approx(deviation / 2));
  CHECK(r.sequences == 2);
  run(ensemble::worst_case);
  CHECK(combined == numbers{1, 2});
  CHECK(d(0, 0) == 1);
  CHECK(d(1, 0) == 0);
  CHECK(d(0, 1) == 1);  // a tie goes to the lowest member
  CHECK(d(2, 1) == 0);
  run(ensemble::median);
  CHECK(combined == numbers{3, 2});
  CHECK(d(1, 0) == 1);
  CHECK(d(2, 0) == 0);
  run(ensemble::uncertainty_weighted, 0.5);
  CHECK(combined[0] == doctest::Approx(4 - 0.5 * variance));
  CHECK(combined[1] == 2);
  CHECK(d(2, 0) == doctest::Approx(1.0 / 3 - 2 * 0.5 * 4 / 3));
  run(ensemble::uncertainty_weighted, 0.1, 1);
  CHECK(combined[0] == doctest::Approx(4 - 0.1 * 13));
  CHECK(d(0, 0) == doctest::Approx(1.0 / 3 + 2 * 0.1 * 3 / 2));
  run(ensemble::mean_minus_std, 2);
  CHECK(combined[0] == doctest::Approx(4 - 2 * deviation));
  CHECK(d(2, 0) == doctest::Approx(1.0 / 3 - 2 * 4 / (3 * deviation)));
  CHECK(d(1, 1) == doctest::Approx(1.0 / 3));  // no spread: the slope of the mean
}

TEST_CASE("ensemble_reward: the median of an even number is the mean of the two in the middle") {
  const numbers reward{4, 1, 3, 2};
  numbers combined(1), d(4);
  ensemble_reward<double>({.reward = {reward, {4, 1}}},
                          {.combined = combined, .d_reward = {d, {4, 1}}},
                          {.combine = ensemble::median});
  CHECK(combined[0] == 2.5);
  CHECK(d == numbers{0, 0, 0.5, 0.5});
}

TEST_CASE("ensemble_reward: the gradient is the slope of the combined reward") {
  random_numbers random(2);
  numbers reward(5 * 4), d(5 * 4), combined(4), above{1, -2, 0.5, 3};
  for (double& x : reward) x = random.uniform(-3, 3);
  reward[7] = not_a_number;
  for (const auto combine : {ensemble::mean, ensemble::worst_case, ensemble::median,
                             ensemble::uncertainty_weighted, ensemble::mean_minus_std})
    for (const double ddof : {0.0, 1.0}) {
      const bool weighted =
          combine == ensemble::uncertainty_weighted || combine == ensemble::mean_minus_std;
      const rlhf::ensemble_config config{
          .combine = combine, .coefficient = weighted ? 0.7 : 0, .ddof = ddof};
      ensemble_reward<double>({.reward = {reward, {5, 4}}},
                              {.d_reward = {d, {5, 4}}, .upstream = above}, config);
      const auto loss = [&] {
        ensemble_reward<double>({.reward = {reward, {5, 4}}}, {.combined = combined}, config);
        double s = 0;
        for (std::size_t b = 0; b < 4; ++b) s += above[b] * combined[b];
        return s;
      };
      for (std::size_t i = 0; i < 20; ++i)
        CHECK(d[i] == doctest::Approx(i == 7 ? 0 : slope_of(loss, reward[i], 1e-4)).epsilon(1e-7));
    }
}

TEST_CASE("ensemble_reward: a missing member is skipped, and none left is unscorable") {
  const double n = not_a_number;
  const numbers reward{1, n, n, 3, n, 5};  // members 2: [2, 3]
  numbers combined(3), disagreement(3), d(6, 7);
  const auto r = ensemble_reward<double>(
      {.reward = {reward, {2, 3}}},
      {.combined = combined, .disagreement = disagreement, .d_reward = {d, {2, 3}}},
      {.combine = ensemble::mean_minus_std, .coefficient = 1, .ddof = 1});
  CHECK(combined[0] == 2 - std::sqrt(2.0));  // 1 and 3
  CHECK(std::isnan(combined[1]));
  CHECK(std::isnan(disagreement[1]));
  CHECK(combined[2] == 5);  // one member: no variance
  CHECK(disagreement[2] == 0);
  CHECK(d[1] == 0);
  CHECK(d[4] == 0);
  CHECK(d[5] == 1);
  CHECK(d[2] == 0);
  CHECK(r.unscorable == 1);
  CHECK(r.missing == 3);
  CHECK(r.combined.count == 2);
  CHECK(std::isfinite(r.combined.mean()));
}

TEST_CASE(
    "ensemble_reward: a single member is its own reward; equal ones do not disagree, in float") {
  const std::vector<float> reward{0.1f, 0.1f, 0.1f};
  std::vector<float> combined(1), disagreement(1);
  for (const auto combine : {ensemble::mean, ensemble::worst_case, ensemble::median})
    for (const rlhf::index k : {1, 3}) {
      ensemble_reward<float>({.reward = {reward.data(), {k, rlhf::index{1}}}},
                             {.combined = combined, .disagreement = disagreement},
                             {.combine = combine});
      CHECK(combined[0] == 0.1f);
      CHECK(disagreement[0] == 0);
    }
}

TEST_CASE("ensemble_reward: no sequence is silence, shards add up, add_to adds") {
  const numbers none;
  CHECK(ensemble_reward<double>({.reward = {none, {3, 0}}}, {}, {}).sequences == 0);
  const numbers reward{1, 2, 3, 4};
  numbers combined{10, 20};
  const auto r = ensemble_reward<double>({.reward = {reward, {2, 2}}},
                                         {.combined = rlhf::add_to(combined)}, {});
  CHECK(combined == numbers{12, 23});
  const auto sum = r + r;
  CHECK(sum.combined.mean() == r.combined.mean());
  CHECK(sum.sequences == 4);
}

TEST_CASE("ensemble_reward: a broken contract names itself and writes nothing") {
  const numbers reward{1, 2, 3, 4, 5, 6};
  numbers combined(3, 7), two(2, 7), d(6, 7);
  const auto broken = [&](const rlhf::ensemble_batch<double>& batch,
                          const rlhf::ensemble_output<double>& output,
                          const rlhf::ensemble_config& config) {
    const std::string m = message_of([&] { ensemble_reward<double>(batch, output, config); });
    CHECK(combined == numbers(3, 7));
    CHECK(two == numbers(2, 7));
    CHECK(d == numbers(6, 7));
    return m;
  };
  const rlhf::view<const double> v(reward.data(), {2, 3});
  CHECK(broken({}, {.combined = combined}, {}) ==
        "ensemble_reward: reward: expected a tensor: this input is required, received none");
  CHECK(broken({.reward = reward}, {.combined = combined}, {}) ==
        "ensemble_reward: reward: expected rank 2, [members, batch], received [6]");
  CHECK(broken({.reward = v}, {.combined = two}, {}) ==
        "ensemble_reward: combined: expected shape [3], received [2]");
  CHECK(broken({.reward = v}, {.combined = combined, .d_reward = {d, {3, 2}}}, {}) ==
        "ensemble_reward: d_reward: expected shape [2, 3], received [3, 2]");
  CHECK(broken({.reward = v}, {.combined = combined}, {.coefficient = 0.5}) ==
        "ensemble_reward: coefficient: expected 0: this way to combine has none, received 0.5");
  CHECK(broken({.reward = v}, {.combined = combined},
               {.combine = ensemble::mean_minus_std, .coefficient = -1})
            .find("coefficient") != std::string::npos);
  CHECK(broken({.reward = v}, {.combined = combined}, {.ddof = 2}).find("ddof") !=
        std::string::npos);
  CHECK(broken({.reward = {reward.data(), {rlhf::index{0}, rlhf::index{3}}}},
               {.combined = combined}, {})
            .find("at least one member") != std::string::npos);
}
