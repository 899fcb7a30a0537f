#include "rlhf/statistics/pair_loss.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::pair_loss;
using rlhf::reduction;
using numbers = std::vector<double>;

namespace {

/// A formula of a user's: its loss alone.
struct hinge {
  template <rlhf::lane V>
  RLHF_HOST_DEVICE V operator()(const rlhf::scored_pair<V>& p) const {
    const V zero = rlhf::math::constant<V>(0);
    const V gap = p.margin - (p.chosen - p.rejected);
    return rlhf::math::select(gap > zero, gap * gap, zero);
  }
};

/// One that uses a reference: the identity preference loss.
struct identity_preference {
  static constexpr bool uses_reference = true;
  template <rlhf::lane V>
  RLHF_HOST_DEVICE V operator()(const rlhf::scored_pair<V>& p) const {
    const V h = (p.chosen - p.ref_chosen) - (p.rejected - p.ref_rejected);
    const V off = h - rlhf::math::constant<V>(5);  // 1 / (2 · 0.1)
    return off * off * p.target;
  }
};

}  // namespace

TEST_CASE("pair_loss: a formula that returns its loss alone gets its slopes from dual numbers") {
  // margin 1: d = 0.5 leaves a gap of 0.5, d = 2 none, d = -1 one of 2
  const numbers chosen{1, 2, 0}, rejected{0.5, 0, 1}, margin{1, 1, 1};
  numbers d_chosen(3, 7), d_rejected(3, 7), each(3, 7);
  const auto r = pair_loss<double>(
      hinge{}, {.chosen_score = chosen, .rejected_score = rejected, .margin = margin},
      {.d_chosen_score = d_chosen, .d_rejected_score = d_rejected, .pair_loss = each},
      {.over = reduction::mean(2)});
  CHECK(r.loss == (0.25 + 0 + 4) / 2);
  CHECK(each == numbers{0.25, 0, 4});
  CHECK(d_chosen == numbers{-0.5, 0, -2});
  CHECK(d_rejected == numbers{0.5, 0, 2});
  CHECK(r.accuracy.sum == 2);
  CHECK(r.margin.sum == 0.5 + 2 - 1);
  CHECK(r.chosen_score.sum == 3);
  CHECK(r.rejected_score.mean() == 0.5);
}

TEST_CASE("pair_loss: a formula with a reference has rewards relative to it") {
  random_numbers random(2);
  numbers chosen(20), rejected(20), ref_chosen(20), ref_rejected(20), target(20), dc(20), dr(20);
  for (auto* v : {&chosen, &rejected, &ref_chosen, &ref_rejected, &target})
    for (double& x : *v) x = random.uniform(-2, 2);
  const auto run = [&](const rlhf::pair_output<double>& output) {
    return pair_loss<double>(identity_preference{},
                             {.chosen_score = chosen,
                              .rejected_score = rejected,
                              .ref_chosen_score = ref_chosen,
                              .ref_rejected_score = ref_rejected,
                              .target = target},
                             output, {.over = reduction::mean(rlhf::local)});
  };
  const auto r = run({.d_chosen_score = dc, .d_rejected_score = dr});
  double reward = 0;
  for (std::size_t i = 0; i < 20; ++i) reward += chosen[i] - ref_chosen[i];
  CHECK(r.chosen_reward.mean() == doctest::Approx(reward / 20));
  const auto loss = [&] { return run({}).loss; };
  for (std::size_t i = 0; i < 20; ++i) {
    CHECK(dc[i] == doctest::Approx(slope_of(loss, chosen[i])).epsilon(1e-9));
    CHECK(dr[i] == doctest::Approx(slope_of(loss, rejected[i])).epsilon(1e-9));
  }
}

TEST_CASE("pair_loss: a reference is given exactly when the formula uses one") {
  const numbers x{1, 2};
  const auto over = reduction::sum();
  CHECK(message_of([&] {
          pair_loss<double>(hinge{},
                            {.chosen_score = x, .rejected_score = x, .ref_chosen_score = x}, {},
                            {.over = over});
        }) == "pair_loss: ref_chosen_score: expected to be left out: this call does not use it");
  CHECK(message_of([&] {
          pair_loss<double>(identity_preference{}, {.chosen_score = x, .rejected_score = x}, {},
                            {.over = over});
        }) == "pair_loss: ref_chosen_score: expected a tensor: this input is required");
}

TEST_CASE("pair_loss: with a workspace of the size the dry run names, nothing else is needed") {
  numbers chosen(100, 1), rejected(100, 0.5), d(100);
  chosen[3] = not_a_number;
  const auto call = [&](const auto& exec) {
    return pair_loss<double>(
        hinge{}, {.chosen_score = chosen, .rejected_score = rejected}, {.d_chosen_score = d},
        {.over = reduction::mean(rlhf::local), .nonfinite = rlhf::nonfinite_policy::drop_token},
        exec);
  };
  const std::size_t bytes = rlhf::workspace_bytes(call);
  std::vector<char> memory(bytes);
  CHECK(call(rlhf::serial{memory.data(), bytes}).nonfinite == 1);
  CHECK_THROWS_AS(call(rlhf::serial{memory.data(), bytes - 65}), rlhf::contract_violation);
}
