#include "rlhf/advantage/sample_statistics.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

namespace parts = rlhf::RLHF_COMPUTE::detail;
using rlhf::group_advantage_result;
using rlhf::RLHF_COMPUTE::sample_group;
using numbers = std::vector<double>;

template <class T>
rlhf::token_input<T> input(const std::vector<T>& x) {
  return {x.data(), 1, 0, 0, T(0)};
}
parts::group_rewards rewards(const numbers& x) {
  return parts::rewards_of(input(x), {nullptr, 0, static_cast<index>(x.size())});
}

TEST_CASE("sample_statistics: the rewards of a group, by hand") {
  // 4 1 7 NaN 4: mean 4, squares 0 9 9 0
  const auto r = rewards({4, 1, 7, not_a_number, 4});
  CHECK(r.all.count == 4);
  CHECK(r.all.mean == 4);
  CHECK(r.all.m2 == 18);
  CHECK(r.low == 1);
  CHECK(r.high == 7);
  CHECK(r.at_low == 1);
  CHECK(r.at_high == 1);
  CHECK(r.unscorable == 1);
  CHECK(r.nonfinite == 1);
  CHECK_FALSE(r.equal());
}

TEST_CASE("sample_statistics: samples of a group may lie anywhere, in any stride") {
  const numbers x{1, 0, 9, 0, 3, 0, 5, 0};
  const index order[] = {3, 0, 2};
  const auto r =
      parts::rewards_of(rlhf::token_input<double>{x.data(), 2, 0, 0, 0}, sample_group{order, 0, 3});
  CHECK(r.all.count == 3);
  CHECK(r.all.mean == 3);  // 5 1 3
  CHECK(r.all.m2 == 8);
  CHECK(r.low == 1);
  CHECK(r.high == 5);
}

TEST_CASE("sample_statistics: equal rewards have no spread, and a large mean costs no digit") {
  const auto equal = rewards({0.1, 0.1, 0.1});
  CHECK(equal.equal());
  CHECK(equal.all.mean == 0.1);
  CHECK(equal.all.m2 == 0);
  CHECK(equal.at_low == 3);
  CHECK(equal.at_high == 3);
  const auto far = rewards({1e15 + 1, 1e15 + 2, 1e15 + 3});
  CHECK(far.all.mean == 1e15 + 2);
  CHECK(far.all.m2 == 2);
}

TEST_CASE("sample_statistics: a group without a scorable reward says nothing; an infinity shows") {
  const auto none = rewards({not_a_number, not_a_number});
  CHECK(none.all.count == 0);
  CHECK(none.unscorable == 2);
  CHECK(rewards({}).all.count == 0);
  const auto infinity = rewards({1, infinite});
  CHECK(infinity.nonfinite == 1);
  CHECK(infinity.unscorable == 0);
  CHECK(std::isnan(infinity.all.m2));
}

TEST_CASE("sample_statistics: the moments of all others are those of the others") {
  random_numbers random(3);
  for (int round = 0; round < 50; ++round) {
    numbers x;
    for (int k = 0; k < 2 + round % 7; ++k) x.push_back(std::floor(random.uniform(0, 4)));
    const auto r = rewards(x);
    for (std::size_t i = 0; i < x.size(); ++i) {
      numbers others = x;
      others.erase(others.begin() + static_cast<std::ptrdiff_t>(i));
      const auto wanted = rewards(others).all;
      const auto m = r.without(x[i]);
      CHECK(m.count == wanted.count);
      CHECK(m.mean == doctest::Approx(wanted.mean).epsilon(1e-14));
      CHECK(m.m2 == doctest::Approx(wanted.m2).epsilon(1e-13));
      if (wanted.m2 == 0) CHECK(m.m2 == 0);  // no rounding noise where the others agree
    }
  }
  CHECK(rewards({5}).without(5).count == 0);
}

TEST_CASE("sample_statistics: what a group's rewards say of it") {
  const auto mixed = parts::group_figures(rewards({1, 3, not_a_number}), 1);
  CHECK(mixed.groups == 1);
  CHECK(mixed.degenerate_groups == 0);
  CHECK(mixed.single_groups == 0);
  CHECK(mixed.unscorable == 1);
  CHECK(mixed.group_deviation.sum == doctest::Approx(std::sqrt(2.0)));
  CHECK(mixed.group_deviation.count == 1);
  CHECK(mixed.rewards.low == 1);
  CHECK(mixed.rewards.high == 3);
  const auto single = parts::group_figures(rewards({2}), 1);
  CHECK(single.single_groups == 1);
  CHECK(single.degenerate_groups == 1);
  CHECK(single.group_deviation.count == 0);
  const auto nothing = parts::group_figures(rewards({not_a_number}), 1);
  CHECK(nothing.groups == 0);
  CHECK(nothing.unscorable == 1);
}

TEST_CASE("sample_statistics: the moments of advantages, one by one") {
  parts::advantage_figures seen;
  CHECK(seen.result().count == 0);
  for (const double x : {2.0, -1.0, 5.0}) seen.add(x);
  CHECK(seen.result().count == 3);
  CHECK(seen.result().mean == 2);
  CHECK(seen.result().m2 == 18);
  CHECK(seen.low == -1);
  CHECK(seen.high == 5);
}

TEST_CASE("sample_statistics: a value is written, or added; never -0") {
  std::vector<float> to{7, 7, 7, 7};
  const rlhf::token_output<float> plain{to.data(), 2, 0, 0, false};
  const rlhf::token_output<float> adds{to.data(), 2, 0, 0, true};
  parts::put(plain, 1, -0.0);
  CHECK(to == std::vector<float>{7, 7, 0, 7});
  CHECK_FALSE(std::signbit(to[2]));
  parts::put(adds, 0, 0.5);
  CHECK(to == std::vector<float>{7.5, 7, 0, 7});
  parts::put(rlhf::token_output<float>{}, 0, 1);
}

TEST_CASE("sample_statistics: results merge; who solved nothing is told by the whole batch") {
  group_advantage_result a, b;
  a.rewards = {0, 1}, b.rewards = {0, 2};
  a.groups = 3, b.groups = 4;
  a.all_low_groups = 1, b.all_low_groups = 2;
  a.all_high_groups = 1, b.all_high_groups = 1;
  a.reward = {2, 1, 0}, b.reward = {2, 3, 0};
  a.group_deviation = {1, 2}, b.group_deviation = {3, 4};
  const auto r = a + b;
  CHECK(r.groups == 7);
  CHECK(r.all_low_groups == 3);   // both have the smallest reward
  CHECK(r.all_high_groups == 1);  // 1 is not the largest
  CHECK(r.rewards.high == 2);
  CHECK(r.reward.mean == 2);
  CHECK(r.reward.m2 == 4);
  CHECK(r.group_deviation.sum == 4);
  CHECK(r.group_deviation.count == 6);

  double figures[group_advantage_result::size];
  r.write(figures);
  const auto back = group_advantage_result::read(figures);
  double again[group_advantage_result::size];
  back.write(again);
  for (int k = 0; k < group_advantage_result::size; ++k) CHECK(figures[k] == again[k]);
}

TEST_CASE("sample_binder: what does not fit is named, and nothing overlaps an output") {
  numbers reward(4), out(4), few(3);
  using binder = parts::sample_binder<rlhf::host_space>;
  const rlhf::view<const double> leading(reward);
  const auto make = [&] { return binder("f", "reward", leading); };
  CHECK(make().samples() == 4);
  CHECK(message_of([] { binder("f", "reward", rlhf::view<const double>()); }).find("f: reward") ==
        0);
  const rlhf::view<const double> square(reward.data(), {2, 2});
  CHECK(message_of([&] { binder("f", "reward", square); }).find("rank 1") != std::string::npos);
  CHECK(message_of([&] {
          make().written("advantage", rlhf::output<double>(few));
        }).find("f: advantage") == 0);
  auto bind = make();
  CHECK(bind.read("reward", leading).data == reward.data());
  CHECK(bind.written("advantage", rlhf::output<double>()).data == nullptr);
  CHECK(bind.written("advantage", rlhf::output<double>(out)).per_row == 1);
  CHECK(message_of([&] {
          bind.written("baseline", rlhf::output<double>(out));
        }).find("overlaps advantage") != std::string::npos);
  CHECK(message_of([&] {
          bind.written("baseline", rlhf::output<double>(reward));
        }).find("overlaps reward") != std::string::npos);
  double one = 0;
  const rlhf::view<double> same(&one, {index{4}}, {index{0}});
  CHECK(message_of([&] {
          bind.written("baseline", rlhf::output<double>(same));
        }).find("its own place") != std::string::npos);
}

}  // namespace
}  // namespace rlhf_test
