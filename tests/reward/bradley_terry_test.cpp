#include "rlhf/reward/bradley_terry.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::bradley_terry_loss;
using rlhf::reduction;
using numbers = std::vector<double>;

TEST_CASE("bradley_terry_loss: values by hand") {
  // d = 1, 0, -2; softplus(-d) = ln(1 + e^-1), ln 2, ln(1 + e^2)
  const numbers chosen{1, 2, 3}, rejected{0, 2, 5};
  numbers d_chosen(3, 7), d_rejected(3, 7), each(3, 7);
  const auto r = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected},
      {.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected, .pair_loss = each},
      {.over = reduction::mean(rlhf::local)});
  const double l0 = std::log1p(std::exp(-1.0)), l1 = std::log(2.0), l2 = std::log1p(std::exp(2.0));
  CHECK(r.loss == doctest::Approx((l0 + l1 + l2) / 3).epsilon(1e-14));
  CHECK(each[0] == doctest::Approx(l0).epsilon(1e-14));
  CHECK(each[2] == doctest::Approx(l2).epsilon(1e-14));
  // slope of the chosen: -sigmoid(-d) / 3 = -0.26894/3, -0.5/3, -0.88080/3
  CHECK(d_chosen[0] == doctest::Approx(-1 / (1 + std::exp(1.0)) / 3).epsilon(1e-14));
  CHECK(d_chosen[1] == doctest::Approx(-0.5 / 3).epsilon(1e-14));
  CHECK(d_rejected[2] == doctest::Approx(1 / (1 + std::exp(-2.0)) / 3).epsilon(1e-14));
  CHECK(r.accuracy.mean() == doctest::Approx(1.0 / 3));  // a tie is not accurate
  CHECK(r.ties.mean() == doctest::Approx(1.0 / 3));
  CHECK(r.margin.mean() == doctest::Approx(-1.0 / 3));
  CHECK(r.chosen_reward.mean() == 2);
  CHECK(r.rejected_reward.mean() == doctest::Approx(7.0 / 3));
  CHECK(r.reward_min == 0);
  CHECK(r.reward_max == 5);
  CHECK(r.pairs == 3);
  CHECK(r.positions == 3);
}

TEST_CASE("bradley_terry_loss: margin, target, smoothing and centering follow their formulas") {
  const numbers chosen{0.3, -1.2, 2.5}, rejected{0.1, 0.4, -0.7};
  const numbers margin{0.5, 0, 1}, target{1, 0.25, 0.5};
  const double e = 0.1, c = 0.01;
  const auto r = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected, .margin = margin, .target = target},
      {}, {.label_smoothing = e, .centering = c, .over = reduction::sum()});
  long double expected = 0;
  for (std::size_t i = 0; i < 3; ++i) {
    const long double up{chosen[i]}, down{rejected[i]}, m{margin[i]}, ee{e}, cc{c};
    const long double z = up - down - m;
    const long double t = static_cast<long double>(target[i]) * (1 - 2 * ee) + ee;
    expected += t * std::log1p(std::exp(-z)) + (1 - t) * std::log1p(std::exp(z)) +
                cc * (up + down) * (up + down);
  }
  CHECK(r.loss == doctest::Approx(static_cast<double>(expected)).epsilon(1e-13));
}

TEST_CASE("bradley_terry_loss: the gradients are the slopes of the loss") {
  random_numbers random(3);
  for (const bool soft : {false, true})
    for (const double centering : {0.0, 0.3}) {
      numbers chosen(9), rejected(9), margin(9), target(9), weight(9), d_chosen(9), d_rejected(9);
      for (std::size_t i = 0; i < 9; ++i) {
        chosen[i] = random.uniform(-3, 3), rejected[i] = random.uniform(-3, 3);
        margin[i] = random.uniform(0, 1), target[i] = random.uniform();
        weight[i] = i == 4 ? 0 : random.uniform(0.1, 2);
      }
      const auto run = [&](const rlhf::bradley_terry_output<double>& output) {
        rlhf::bradley_terry_batch<double> batch{.chosen_reward = chosen,
                                                .rejected_reward = rejected,
                                                .margin = margin,
                                                .weight = weight};
        if (soft) batch.target = target;
        return bradley_terry_loss<double>(batch, output,
                                          {.label_smoothing = soft ? 0.2 : 0.0,
                                           .centering = centering,
                                           .over = reduction::mean(7)});
      };
      run({.d_chosen_reward = d_chosen, .d_rejected_reward = d_rejected});
      const auto loss = [&] { return run({}).loss; };
      for (std::size_t i = 0; i < 9; ++i) {
        CHECK(d_chosen[i] == doctest::Approx(slope_of(loss, chosen[i])).epsilon(1e-9));
        CHECK(d_rejected[i] == doctest::Approx(slope_of(loss, rejected[i])).epsilon(1e-9));
        if (centering == 0) CHECK(d_chosen[i] == -d_rejected[i]);
      }
    }
}

TEST_CASE("bradley_terry: the slopes written out are those of dual numbers") {
  using dual = rlhf::math::dual<double>;
  random_numbers random(19);
  for (int i = 0; i < 200; ++i) {
    const double c = random.uniform(-20, 20), r = random.uniform(-20, 20);
    const double m = random.uniform(0, 2), t = random.uniform();
    const auto hard = rlhf::formula::bradley_terry(c, r, m);
    const auto soft = rlhf::formula::bradley_terry_soft(c, r, m, t);
    const auto hard_dual = rlhf::formula::bradley_terry(dual{c, 1}, dual{r, 0}, dual{m, 0});
    const auto soft_dual =
        rlhf::formula::bradley_terry_soft(dual{c, 0}, dual{r, 1}, dual{m, 0}, dual{t, 0});
    CHECK(hard.d_chosen_reward == doctest::Approx(hard_dual.loss.tangent).epsilon(1e-13));
    CHECK(soft.d_rejected_reward == doctest::Approx(soft_dual.loss.tangent).epsilon(1e-12));
    CHECK(rlhf::formula::bradley_terry_soft(c, r, m, 1.0).loss ==
          doctest::Approx(hard.loss).epsilon(1e-15));
  }
}

TEST_CASE("bradley_terry_loss: rewards far apart stay finite in float, log(sigmoid) would not") {
  const std::vector<float> chosen{1e4f, -1e4f, 100, -100}, rejected{-1e4f, 1e4f, 0, 0};
  std::vector<float> d_chosen(4), each(4);
  const auto r = bradley_terry_loss<float>({.chosen_reward = chosen, .rejected_reward = rejected},
                                           {.d_chosen_reward = d_chosen, .pair_loss = each},
                                           {.over = reduction::sum()});
  CHECK(each[0] == 0);
  CHECK(each[1] == 2e4f);
  CHECK(each[2] == doctest::Approx(std::exp(-100.0)).epsilon(1e-4));  // not lost against 1
  CHECK(each[3] == 100);
  CHECK(d_chosen[1] == -1);
  CHECK(d_chosen[0] == 0);
  CHECK(r.loss == 2e4 + 100);
  CHECK(r.nonfinite == 0);
  const std::vector<float> target{1, 1, 0, 0.5f};
  bradley_terry_loss<float>(
      {.chosen_reward = chosen, .rejected_reward = rejected, .target = target},
      {.d_chosen_reward = d_chosen, .pair_loss = each}, {.over = reduction::sum()});
  CHECK(each[0] == 0);
  CHECK(each[1] == 2e4f);
  CHECK(each[2] == 100);
  CHECK(d_chosen[2] == 1);
  CHECK(each[3] == 50);
}

TEST_CASE(
    "bradley_terry_loss: swapping the answers flips the margin and obeys L(c, r) - L(r, c) = r - "
    "c") {
  random_numbers random(5);
  numbers chosen(40), rejected(40);
  for (std::size_t i = 0; i < 40; ++i)
    chosen[i] = random.uniform(-4, 4), rejected[i] = i % 7 == 0 ? chosen[i] : random.uniform(-4, 4);
  const auto run = [](const numbers& c, const numbers& r) {
    return bradley_terry_loss<double>({.chosen_reward = c, .rejected_reward = r}, {},
                                      {.over = reduction::sum()});
  };
  const auto forth = run(chosen, rejected), back = run(rejected, chosen);
  CHECK(forth.margin.sum == -back.margin.sum);
  CHECK(forth.accuracy.sum + back.accuracy.sum + forth.ties.sum == 40);
  CHECK(forth.loss - back.loss == doctest::Approx(-forth.margin.sum).epsilon(1e-12));
  const auto half = [](const numbers& c, const numbers& r) {
    return bradley_terry_loss<double>({.chosen_reward = c, .rejected_reward = r}, {},
                                      {.label_smoothing = 0.5, .over = reduction::sum()})
        .loss;
  };
  CHECK(half(chosen, rejected) == half(rejected, chosen));
}

TEST_CASE("bradley_terry_loss: a constant added to both rewards changes nothing") {
  const numbers chosen{1, 2.5, -3}, rejected{0.5, 4, -3};
  numbers chosen_up = chosen, rejected_up = rejected, d0(3), d1(3);
  for (std::size_t i = 0; i < 3; ++i) chosen_up[i] += 64, rejected_up[i] += 64;
  const auto a = bradley_terry_loss<double>({.chosen_reward = chosen, .rejected_reward = rejected},
                                            {.d_chosen_reward = d0}, {.over = reduction::sum()});
  const auto b =
      bradley_terry_loss<double>({.chosen_reward = chosen_up, .rejected_reward = rejected_up},
                                 {.d_chosen_reward = d1}, {.over = reduction::sum()});
  CHECK(a.loss == b.loss);
  CHECK(d0 == d1);
}

TEST_CASE("bradley_terry_loss: ignored pairs are not read, whatever they hold") {
  const numbers chosen{1, not_a_number, 3}, rejected{0, infinite, 1};
  const std::vector<std::uint8_t> flag{1, 0, 1};
  const numbers weight{1, 0, 1};
  numbers d0(3, 7), d1(3, 7);
  const auto a = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected, .weight = flag},
      {.d_chosen_reward = d0}, {.over = reduction::mean(rlhf::local)});
  const auto b = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected, .weight = weight},
      {.d_chosen_reward = d1}, {.over = reduction::mean(rlhf::local)});
  CHECK(a.loss == doctest::Approx((std::log1p(std::exp(-1.0)) + std::log1p(std::exp(-2.0))) / 2));
  CHECK(a.loss == b.loss);
  CHECK(d0 == d1);
  CHECK(d0[1] == 0);
  CHECK_FALSE(std::signbit(d0[1]));
  CHECK(a.pairs == 2);
  CHECK(a.nonfinite == 0);
}

TEST_CASE("bradley_terry_loss: a weight of 2 counts like the pair twice") {
  const numbers chosen{1, -2, 0.5}, rejected{0, 1, 0.25}, weight{2, 0.5, 1};
  const auto r = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected, .weight = weight}, {},
      {.over = reduction::mean(rlhf::local)});
  const auto l = [](double d) { return std::log1p(std::exp(-d)); };
  CHECK(r.loss == doctest::Approx((2 * l(1) + 0.5 * l(-3) + l(0.25)) / 3.5).epsilon(1e-13));
  CHECK(r.accuracy.mean() == doctest::Approx(3 / 3.5));
  CHECK(r.pairs == 3.5);
  CHECK(r.positions == 3);
}

TEST_CASE("bradley_terry_loss: no pair is silence, and so are none with weight") {
  numbers none;
  const auto a =
      bradley_terry_loss<double>({.chosen_reward = none, .rejected_reward = none},
                                 {.d_chosen_reward = none}, {.over = reduction::mean(rlhf::local)});
  CHECK(a.loss == 0);
  CHECK(a.pairs == 0);
  CHECK(a.accuracy.mean() == 0);
  const numbers one{not_a_number};
  const std::vector<std::uint8_t> flag{0};
  numbers d(1, 7);
  const auto b =
      bradley_terry_loss<double>({.chosen_reward = one, .rejected_reward = one, .weight = flag},
                                 {.d_chosen_reward = d}, {.over = reduction::mean(0)});
  CHECK(b.loss == 0);
  CHECK(d[0] == 0);
}

TEST_CASE("bradley_terry_loss: NaN reaches the loss, is dropped, or is refused, and is counted") {
  const numbers chosen{1, not_a_number, 3}, rejected{0, 0, 1};
  const auto run = [&](rlhf::nonfinite_policy policy, numbers& d) {
    return bradley_terry_loss<double>({.chosen_reward = chosen, .rejected_reward = rejected},
                                      {.d_chosen_reward = d},
                                      {.over = reduction::mean(3), .nonfinite = policy});
  };
  numbers d(3, 7);
  const auto seen = run(rlhf::nonfinite_policy::propagate, d);
  CHECK(std::isnan(seen.loss));
  CHECK(seen.nonfinite == 1);
  const auto dropped = run(rlhf::nonfinite_policy::drop_token, d);
  CHECK(dropped.loss ==
        doctest::Approx((std::log1p(std::exp(-1.0)) + std::log1p(std::exp(-2.0))) / 3));
  CHECK(dropped.nonfinite == 1);
  CHECK(d[1] == 0);
  d.assign(3, 7);
  CHECK_THROWS_AS(run(rlhf::nonfinite_policy::error, d), rlhf::contract_violation);
  CHECK(d == numbers(3, 7));
}

TEST_CASE("bradley_terry_loss: upstream scales the gradient, as a number or one per pair") {
  const numbers chosen{1, 2}, rejected{0, 3}, above{2, -3};
  numbers d0(2), d1(2), d2(2, 10);
  const auto go = [&](const rlhf::bradley_terry_output<double>& output) {
    return bradley_terry_loss<double>({.chosen_reward = chosen, .rejected_reward = rejected},
                                      output, {.over = reduction::sum()});
  };
  const double loss = go({.d_chosen_reward = d0}).loss;
  CHECK(go({.d_chosen_reward = d1, .upstream = above}).loss == loss);
  CHECK(d1[0] == 2 * d0[0]);
  CHECK(d1[1] == -3 * d0[1]);
  CHECK(go({.d_chosen_reward = rlhf::add_to(d2), .upstream = 2}).loss == loss);
  CHECK(d2[0] == 10 + 2 * d0[0]);
  const double device = 3;
  go({.d_chosen_reward = d2, .upstream = rlhf::device_scalar{&device}});
  CHECK(d2[1] == doctest::Approx(3 * d0[1]));
}

TEST_CASE("bradley_terry_loss: results and gradients of shards are those of the whole") {
  random_numbers random(11);
  const rlhf::index n = 130;
  numbers chosen(n), rejected(n), whole(n), parts(n);
  for (auto* v : {&chosen, &rejected})
    for (double& x : *v) x = random.uniform(-2, 2);
  const rlhf::bradley_terry_config config{.centering = 0.1, .over = reduction::mean(n)};
  const auto all = bradley_terry_loss<double>(
      {.chosen_reward = chosen, .rejected_reward = rejected}, {.d_chosen_reward = whole}, config);
  rlhf::bradley_terry_result merged;
  for (rlhf::index i = 0; i < n; i += 50) {
    const rlhf::index m = n - i < 50 ? n - i : 50;
    merged =
        merged + bradley_terry_loss<double>({.chosen_reward = {chosen.data() + i, m},
                                             .rejected_reward = {rejected.data() + i, m}},
                                            {.d_chosen_reward = {parts.data() + i, m}}, config);
  }
  CHECK(merged.loss == doctest::Approx(all.loss).epsilon(1e-14));
  CHECK(parts == whole);
  CHECK(merged.pairs == all.pairs);
  CHECK(merged.accuracy.sum == all.accuracy.sum);
  CHECK(merged.reward_max == all.reward_max);
}

TEST_CASE("bradley_terry_loss: strides and [c; r] halves give the bits of plain arrays") {
  random_numbers random(13);
  const rlhf::index n = 37;
  numbers chosen(n), rejected(n), interleaved(2 * n), d(n), d_interleaved(2 * n);
  for (rlhf::index i = 0; i < n; ++i) {
    const auto k = static_cast<std::size_t>(i);
    interleaved[2 * k] = chosen[k] = random.uniform(-2, 2);
    interleaved[2 * k + 1] = rejected[k] = random.uniform(-2, 2);
  }
  const rlhf::bradley_terry_config config{.over = reduction::mean(rlhf::local)};
  const auto a = bradley_terry_loss<double>({.chosen_reward = chosen, .rejected_reward = rejected},
                                            {.d_chosen_reward = d}, config);
  const auto b = bradley_terry_loss<double>({.chosen_reward = {interleaved.data(), n, 2},
                                             .rejected_reward = {interleaved.data() + 1, n, 2}},
                                            {.d_chosen_reward = {d_interleaved.data(), n, 2},
                                             .d_rejected_reward = {d_interleaved.data() + 1, n, 2}},
                                            config);
  CHECK(a.loss == b.loss);
  for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
    CHECK(d[i] == d_interleaved[2 * i]);
    CHECK(d[i] == -d_interleaved[2 * i + 1]);
  }
}

TEST_CASE("bradley_terry_loss: a broken contract names itself and writes nothing") {
  const numbers chosen{1, 2}, rejected{0, 3}, short_one{1}, bad_weight{1, -1};
  numbers d(2, 7);
  const auto over = reduction::sum();
  const auto broken = [&](auto change, const rlhf::bradley_terry_config& config) {
    rlhf::bradley_terry_batch<double> batch{.chosen_reward = chosen, .rejected_reward = rejected};
    rlhf::bradley_terry_output<double> output{.d_chosen_reward = d};
    change(batch, output);
    const std::string m = message_of([&] { bradley_terry_loss<double>(batch, output, config); });
    CHECK(d == numbers(2, 7));
    return m;
  };
  const auto as_is = [](auto&, auto&) {};
  CHECK(broken(as_is, {.label_smoothing = 0.6, .over = over}) ==
        "bradley_terry_loss: label_smoothing: expected 0 to 0.5, received 0.6");
  CHECK(broken(as_is, {.centering = -1, .over = over}).find("centering") != std::string::npos);
  CHECK(broken(as_is, {.centering = not_a_number, .over = over}).find("centering") !=
        std::string::npos);
  CHECK(broken(as_is, {.over = reduction::mean(0)}).find("over") != std::string::npos);
  CHECK(broken(as_is, {.over = reduction::mean(-1)}).find("over") != std::string::npos);
  CHECK(broken([&](auto& b, auto&) { b.rejected_reward = short_one; }, {.over = over}) ==
        "bradley_terry_loss: rejected_reward: expected shape [2], received [1]");
  CHECK(broken([&](auto& b, auto&) { b.rejected_reward = {}; }, {.over = over}) ==
        "bradley_terry_loss: rejected_reward: expected a tensor: this input is required, received "
        "none");
  CHECK(broken(
            [&](auto& b, auto&) {
              b.chosen_reward = {chosen.data(), {1, 2}};
            },
            {.over = over}) ==
        "bradley_terry_loss: chosen_reward: expected rank 1, one number per pair, received [1, 2]");
  CHECK(broken([&](auto& b, auto&) { b.weight = short_one; }, {.over = over}) ==
        "bradley_terry_loss: weight: expected shape [2], received [1]");
  CHECK(broken([&](auto& b, auto&) { b.weight = bad_weight; }, {.over = over}) ==
        "bradley_terry_loss: weight: expected weights of 0, or from 1e-30 to 1e30, received -1");
  CHECK(broken([&](auto&, auto& o) { o.d_rejected_reward = d; }, {.over = over}).find("overlaps") !=
        std::string::npos);
}
