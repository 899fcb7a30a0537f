#include "rlhf/statistics/pair_loss.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"
#include "tests/support/thread_pool.hpp"

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
        }) ==
        "pair_loss: ref_chosen_score: expected to be left out: this call does not use it, received "
        "one");
  CHECK(message_of([&] {
          pair_loss<double>(identity_preference{}, {.chosen_score = x, .rejected_score = x}, {},
                            {.over = over});
        }) ==
        "pair_loss: ref_chosen_score: expected a tensor: this input is required, received none");
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

TEST_CASE("pair_loss: any number of pairs has the same bits dense, strided and on two threads") {
  for (const std::size_t n : {1u, 7u, 8u, 9u, 15u, 16u, 17u, 1000u, 2049u}) {
    CAPTURE(n);
    random_numbers random(n);
    numbers chosen(n), rejected(n), weight(n), dc(n, 7), dr(n, 7), wide(2 * n, not_a_number);
    numbers wide_dc(2 * n, 7), other_dc(n, 7), other_dr(n, 7);
    for (std::size_t i = 0; i < n; ++i) {
      chosen[i] = wide[2 * i] = random.uniform(-2, 2);
      rejected[i] = random.uniform(-2, 2);
      weight[i] = i % 5 == 3 ? 0 : 1;
      if (weight[i] == 0) chosen[i] = wide[2 * i] = not_a_number;
    }
    const auto count = static_cast<rlhf::index>(n);
    const thread_pool two{2};
    const auto run = [&](const rlhf::view<const double>& first,
                         const rlhf::output<double>& to_chosen,
                         const rlhf::output<double>& to_rejected, const auto& exec) {
      return pair_loss<double>(
          hinge{}, {.chosen_score = first, .rejected_score = rejected, .weight = weight},
          {.d_chosen_score = to_chosen, .d_rejected_score = to_rejected},
          {.over = reduction::mean(rlhf::local)}, exec);
    };
    const auto a = run(chosen, dc, dr, rlhf::serial{});
    const auto b = run({wide.data(), {count}, {rlhf::index{2}}},
                       rlhf::view<double>(wide_dc.data(), {count}, {rlhf::index{2}}), other_dr,
                       rlhf::serial{});
    const auto c = run(chosen, other_dc, other_dr, rlhf::parallel{two});
    for (const auto& r : {b, c}) {
      CHECK(r.loss == a.loss);
      CHECK(r.margin.sum == a.margin.sum);
      CHECK(r.pairs == a.pairs);
      CHECK(r.reward_max == a.reward_max);
    }
    CHECK(other_dc == dc);
    CHECK(other_dr == dr);
    for (std::size_t i = 0; i < n; ++i) {
      CHECK(wide_dc[2 * i] == dc[i]);
      CHECK(wide_dc[2 * i + 1] == 7);
    }
  }
}

TEST_CASE(
    "pair_loss: shapes and memory, dense and strided, are looked at before anything is written") {
  numbers x{1, 2, 3}, y{3, 2, 1}, d(3, 7), wide(6, 0);
  const auto broken = [&](const rlhf::pair_batch<double>& batch,
                          const rlhf::pair_output<double>& output) {
    const std::string m =
        message_of([&] { pair_loss<double>(hinge{}, batch, output, {.over = reduction::sum()}); });
    CHECK(d == numbers(3, 7));
    CHECK(x == numbers{1, 2, 3});
    return m;
  };
  const rlhf::view<const double> odd(wide.data(), {rlhf::index{3}}, {rlhf::index{2}});
  const rlhf::view<double> even(wide.data() + 1, {rlhf::index{3}}, {rlhf::index{2}});
  const rlhf::view<double> into(wide.data() + 2, {rlhf::index{2}}, {rlhf::index{1}});
  CHECK(broken({.chosen_score = x, .rejected_score = odd}, {.d_chosen_score = even}).empty());
  CHECK(broken({.chosen_score = odd, .rejected_score = y}, {.d_chosen_score = d, .pair_loss = d})
            .find("pair_loss: pair_loss: expected memory of its own, received memory that overlaps "
                  "d_chosen_score") == 0);
  CHECK(broken({.chosen_score = x, .rejected_score = y}, {.d_rejected_score = x})
            .find("pair_loss: d_rejected_score: expected memory of its own, received memory that "
                  "overlaps "
                  "chosen_score") == 0);
  CHECK(broken({.chosen_score = x, .rejected_score = y}, {.d_chosen_score = into})
            .find("pair_loss: d_chosen_score: expected shape [3], received [2]") == 0);
  CHECK(broken({.chosen_score = x, .rejected_score = {wide.data(), {3, 2}}}, {})
            .find("pair_loss: rejected_score: expected shape [3]") == 0);
  CHECK(broken({.chosen_score = {wide.data(), {3, 2}}, .rejected_score = y}, {}).find("rank 1") !=
        std::string::npos);
  CHECK(broken({.chosen_score = x,
                .rejected_score = rlhf::view<const double>(static_cast<const double*>(nullptr),
                                                           {rlhf::index{3}})},
               {})
            .find("its pointer is null") != std::string::npos);
  const rlhf::view<double> one_place(d.data(), {rlhf::index{3}}, {rlhf::index{0}});
  CHECK(broken({.chosen_score = x, .rejected_score = y}, {.d_chosen_score = one_place})
            .find("its own place") != std::string::npos);
  const rlhf::view<const double> none(static_cast<const double*>(nullptr), {rlhf::index{0}});
  CHECK(broken({.chosen_score = none, .rejected_score = none}, {}).empty());
}
