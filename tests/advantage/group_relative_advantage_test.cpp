#include "rlhf/advantage/group_relative_advantage.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

using rlhf::epsilon_mode;
using rlhf::group_relative_advantage;
using rlhf::group_scale;
using rlhf::group_size;
using rlhf::group_statistics;
using rlhf::single_group;
using config = rlhf::group_relative_advantage_config;
using result = rlhf::group_relative_advantage_result;
using numbers = std::vector<double>;

struct answer {
  numbers advantage, baseline, deviation;
  rlhf::group_relative_advantage_result r;
};
answer advantages(const numbers& reward, const config& c, const std::vector<int>& id = {}) {
  answer a{numbers(reward.size(), 7), numbers(reward.size(), 7), numbers(reward.size(), 7), {}};
  a.r = group_relative_advantage<double>(
      {.reward = reward, .group_id = id.empty() ? rlhf::index_view<>() : rlhf::index_view<>(id)},
      {.advantage = a.advantage, .baseline = a.baseline, .deviation = a.deviation}, c);
  return a;
}

TEST_CASE("group_relative_advantage: values by hand") {
  // group {1, 3}: mean 2, s = sqrt(2) | {0, 0, 6, 6}: mean 3, s = sqrt(36 / 3)
  const numbers reward{1, 0, 0, 3, 6, 6};
  const std::vector<int> id{4, 9, 9, 4, 9, 9};
  const auto a = advantages(reward, {.epsilon = 0}, id);
  const double half = 1 / std::sqrt(2.0), three = 3 / std::sqrt(12.0);
  const double wanted[] = {-half, -three, -three, half, three, three};
  for (std::size_t i = 0; i < 6; ++i) {
    CHECK(a.advantage[i] == doctest::Approx(wanted[i]));
    CHECK(a.baseline[i] == (id[i] == 4 ? 2 : 3));
    CHECK(a.deviation[i] == doctest::Approx(id[i] == 4 ? std::sqrt(2.0) : std::sqrt(12.0)));
  }
  CHECK(a.r.groups == 2);
  CHECK(a.r.degenerate_groups == 0);
  CHECK(a.r.reward.count == 6);
  CHECK(a.r.reward.mean == doctest::Approx(16.0 / 6));
  CHECK(a.r.reward.m2 == doctest::Approx(1 + 9 + 72 - 256.0 / 6));
  CHECK(a.r.rewards.low == 0);
  CHECK(a.r.rewards.high == 6);
  CHECK(a.r.group_deviation.mean() == doctest::Approx((std::sqrt(2.0) + std::sqrt(12.0)) / 2));
  CHECK(a.r.advantage.count == 6);
  CHECK(a.r.advantage.mean == doctest::Approx(0));
  CHECK(a.r.advantages.high == doctest::Approx(three));
  CHECK(a.r.unscorable == 0);
}

TEST_CASE("group_relative_advantage: scales, ddof and the three places of epsilon") {
  const numbers reward{0, 4, 1, 1, 1, 5};
  const auto run = [&](const config& c) { return advantages(reward, c).advantage; };
  const group_size two{2};
  // none: R - mean
  CHECK(run({.group_size = two, .scale = group_scale::none}) == numbers{-2, 2, 0, 0, -2, 2});
  // ddof 1: s = sqrt(8), ddof 0: s = 2
  CHECK(run({.group_size = two, .epsilon = 0})[1] == doctest::Approx(2 / std::sqrt(8.0)));
  CHECK(run({.group_size = two, .epsilon = 0, .ddof = 0})[1] == doctest::Approx(1));
  CHECK(run({.group_size = two, .epsilon = 0.5, .ddof = 0})[1] == doctest::Approx(2 / 2.5));
  CHECK(run({.group_size = two,
             .epsilon = 0.5,
             .epsilon_mode = epsilon_mode::inside,
             .ddof = 0})[1] == doctest::Approx(2 / std::sqrt(4.5)));
  CHECK(run({.group_size = two, .epsilon = 9, .epsilon_mode = epsilon_mode::floor, .ddof = 0})[1] ==
        doctest::Approx(2.0 / 3));
  CHECK(run({.group_size = two, .epsilon = 1, .epsilon_mode = epsilon_mode::floor, .ddof = 0})[1] ==
        doctest::Approx(1));
  // batch: all six: mean 2, squares 4 + 4 + 1 + 1 + 1 + 9 = 20
  const auto batch =
      advantages(reward, {.group_size = two, .scale = group_scale::batch_std, .epsilon = 0});
  for (const std::size_t i : {1u, 5u})
    CHECK(batch.advantage[i] == doctest::Approx(2 / std::sqrt(20.0 / 5)));
  CHECK(batch.advantage[2] == 0);
  CHECK(batch.deviation[0] == doctest::Approx(2));
}

TEST_CASE("group_relative_advantage: leave_one_out compares with the others alone") {
  random_numbers random(1);
  for (int round = 0; round < 30; ++round) {
    const index n = 2 + random.below(7);
    numbers reward;
    for (index k = 0; k < n; ++k) reward.push_back(random.uniform(-2, 2));
    const auto a = advantages(
        reward, {.group_size = group_size{n}, .statistics = group_statistics::leave_one_out});
    for (std::size_t i = 0; i < reward.size(); ++i) {
      double mean = 0, m2 = 0;
      for (std::size_t j = 0; j < reward.size(); ++j)
        mean += j == i ? 0 : reward[j] / static_cast<double>(n - 1);
      for (std::size_t j = 0; j < reward.size(); ++j)
        m2 += j == i ? 0 : (reward[j] - mean) * (reward[j] - mean);
      const double s = n > 2 ? std::sqrt(m2 / static_cast<double>(n - 2)) : 0;
      CHECK(a.baseline[i] == doctest::Approx(mean));
      CHECK(a.deviation[i] == doctest::Approx(s).epsilon(1e-9));
      CHECK(a.advantage[i] ==
            doctest::Approx((reward[i] - mean) / (n > 2 ? s + 1e-6 : 1)).epsilon(1e-9));
    }
  }
  // where the others agree there is no scale: 0.9 and not a million; nor where one other is left
  const auto agree =
      advantages({0.1, 0.1, 1.0, 0.1},
                 {.group_size = group_size{4}, .statistics = group_statistics::leave_one_out});
  CHECK(agree.advantage[2] == doctest::Approx(0.9));
  CHECK(agree.deviation[2] == 0);
  const auto highest =
      advantages({1.0, 0.1, 1.0, 1.0},
                 {.group_size = group_size{4}, .statistics = group_statistics::leave_one_out});
  CHECK(highest.advantage[1] == doctest::Approx(-0.9));
}

TEST_CASE_TEMPLATE("group_relative_advantage: equal rewards get exactly 0, whatever they are", T,
                   float, double) {
  random_numbers random(2);
  for (int round = 0; round < 300; ++round) {
    const index n = 2 + random.below(60);
    const T c = round == 0   ? T(0.7)
                : round == 1 ? T(70.7)
                             : static_cast<T>(random.uniform(-1000, 1000));
    const std::vector<T> reward(static_cast<std::size_t>(n), c);
    for (const group_scale scale :
         {group_scale::group_std, group_scale::none, group_scale::batch_std})
      for (const auto statistics : {group_statistics::all, group_statistics::leave_one_out}) {
        std::vector<T> a(reward.size(), T(7));
        const auto r = group_relative_advantage<T>({.reward = reward}, {.advantage = a},
                                                   {.group_size = group_size{n},
                                                    .scale = scale,
                                                    .statistics = statistics,
                                                    .epsilon = 1e-9});
        CHECK(std::all_of(a.begin(), a.end(), [](T x) { return x == 0 && !std::signbit(x); }));
        CHECK(r.degenerate_groups == 1);
        CHECK(r.all_high_groups == 1);
        CHECK(r.all_low_groups == 1);
        CHECK(r.reward.m2 == 0);
      }
  }
}

TEST_CASE("group_relative_advantage: a group of one gets 0, or its reward by name") {
  const numbers reward{5, 1, 3};
  const std::vector<int> id{0, 1, 1};
  CHECK(advantages(reward, {}, id).advantage[0] == 0);
  CHECK(advantages(reward, {}, id).r.single_groups == 1);
  CHECK(advantages(reward, {}, id).r.degenerate_groups == 1);
  CHECK(advantages(reward, {.single = single_group::raw}, id).advantage[0] == 5);
  CHECK(advantages(reward, {.scale = group_scale::none, .single = single_group::raw}, id)
            .baseline[0] == 0);
  CHECK(advantages(reward, {.statistics = group_statistics::leave_one_out}, id).advantage[0] == 0);
  CHECK(advantages(reward,
                   {.statistics = group_statistics::leave_one_out, .single = single_group::raw}, id)
            .advantage[0] == 5);
}

TEST_CASE("group_relative_advantage: a NaN is unscorable and changes nothing else") {
  const numbers reward{1, not_a_number, 3, not_a_number, 2, not_a_number};
  const std::vector<int> id{0, 0, 0, 1, 2, 2};
  for (const auto scale : {group_scale::group_std, group_scale::batch_std}) {
    const auto a = advantages(reward, {.scale = scale}, id);
    const auto b = advantages({1, 3, 2}, {.scale = scale}, {0, 0, 2});
    for (const std::size_t i : {1u, 3u, 5u}) {
      CHECK(a.advantage[i] == 0);
      CHECK(a.baseline[i] == 0);
    }
    CHECK(a.advantage[0] == b.advantage[0]);
    CHECK(a.advantage[2] == b.advantage[1]);
    CHECK(a.advantage[4] == 0);  // alone among scorable ones
    CHECK(a.r.unscorable == 3);
    CHECK(a.r.nonfinite == 3);
    CHECK(a.r.groups == 2);
    CHECK(a.r.single_groups == 1);
    CHECK(a.r.reward.count == 3);
    CHECK(a.r.advantage.count == 3);
  }
  const auto none = advantages({not_a_number, not_a_number}, {.group_size = group_size{2}});
  CHECK(none.advantage == numbers{0, 0});
  CHECK(none.r.groups == 0);
  const auto inf = advantages({infinite, 1, 4, 6}, {.group_size = group_size{2}});
  CHECK(std::isnan(inf.advantage[0]));
  CHECK(std::isnan(inf.advantage[1]));
  CHECK(inf.advantage[3] == doctest::Approx(std::sqrt(0.5)));
  CHECK(inf.r.nonfinite == 1);
  CHECK(inf.r.unscorable == 0);
}

TEST_CASE("group_relative_advantage: shifts change nothing, scales scale, sums vanish") {
  random_numbers random(3);
  numbers reward, shifted, scaled;
  for (int k = 0; k < 64; ++k) {
    reward.push_back(static_cast<double>(random.below(9)));
    shifted.push_back(reward.back() + 1024);
    scaled.push_back(reward.back() * 0.25);
  }
  const group_size eight{8};
  for (const auto scale : {group_scale::group_std, group_scale::none, group_scale::batch_std}) {
    const auto a =
        advantages(reward, {.group_size = eight, .scale = scale, .epsilon = 0}).advantage;
    const auto b =
        advantages(shifted, {.group_size = eight, .scale = scale, .epsilon = 0}).advantage;
    const auto c =
        advantages(scaled, {.group_size = eight, .scale = scale, .epsilon = 0}).advantage;
    for (std::size_t i = 0; i < a.size(); ++i) {
      CHECK(b[i] == doctest::Approx(a[i]).epsilon(1e-12));
      if (scale == group_scale::none) CHECK(c[i] == a[i] * 0.25);
      if (scale == group_scale::group_std) CHECK(c[i] == doctest::Approx(a[i]).epsilon(1e-14));
    }
    for (std::size_t g = 0; g < 8; ++g) {
      double sum = 0;
      for (std::size_t i = 0; i < 8; ++i) sum += a[8 * g + i];
      CHECK(std::abs(sum) < 1e-12);
    }
  }
}

TEST_CASE("group_relative_advantage: differences of 1 beside a reward of a million, in float") {
  const std::vector<float> reward{1000000, 1000001, 1000002, 1000003};
  std::vector<float> a(4);
  const auto r = group_relative_advantage<float>({.reward = reward}, {.advantage = a},
                                                 {.group_size = group_size{4}, .epsilon = 0});
  CHECK(a[3] == doctest::Approx(1.5 / std::sqrt(5.0 / 3)));
  CHECK(r.reward.variance() == doctest::Approx(5.0 / 3));
}

TEST_CASE(
    "group_relative_advantage: permuted rows are permuted results; sizes, ids, threads agree to "
    "the bit") {
  random_numbers random(4);
  const std::size_t n = 960;
  numbers reward(n), a(n), b(n), c(n);
  std::vector<int> id(n);
  for (std::size_t i = 0; i < n; ++i) reward[i] = random.uniform(), id[i] = static_cast<int>(i / 6);
  const auto r = group_relative_advantage<double>({.reward = reward}, {.advantage = a},
                                                  {.group_size = group_size{6}});
  const auto s =
      group_relative_advantage<double>({.reward = reward, .group_id = id}, {.advantage = b}, {});
  const thread_pool pool{3};
  const auto t = group_relative_advantage<double>({.reward = reward, .group_id = id},
                                                  {.advantage = c}, {}, rlhf::parallel{pool});
  CHECK(a == b);
  CHECK(a == c);
  CHECK(std::memcmp(&r, &s, sizeof r) == 0);
  CHECK(std::memcmp(&r, &t, sizeof r) == 0);
  // whole groups move, and the samples of different groups mix, with their order within a group
  // kept
  std::vector<std::size_t> to(n);
  for (std::size_t i = 0; i < n; ++i) to[i] = i % 6 * 160 + (i / 6 * 7) % 160;
  numbers moved(n);
  std::vector<std::int64_t> moved_id(n);
  for (std::size_t i = 0; i < n; ++i) moved[to[i]] = reward[i], moved_id[to[i]] = -9 * id[i];
  group_relative_advantage<double>({.reward = moved, .group_id = moved_id}, {.advantage = c}, {});
  bool equal = true;
  for (std::size_t i = 0; i < n; ++i) equal = equal && c[to[i]] == a[i];
  CHECK(equal);
}

TEST_CASE(
    "group_relative_advantage: groups that are all worst or all best are counted, over merges "
    "too") {
  const numbers first{0, 0, 1, 1, 0, 1}, second{2, 2, 0, 0, 1, 1};
  const auto a = advantages(first, {.group_size = group_size{2}}).r;
  CHECK(a.all_low_groups == 1);
  CHECK(a.all_high_groups == 1);
  const auto b = advantages(second, {.group_size = group_size{2}}).r;
  const auto sum = a + b;
  CHECK(sum.all_low_groups == 2);
  CHECK(sum.all_high_groups == 1);  // the largest reward is 2 now
  CHECK(sum.groups == 6);
  CHECK(sum.degenerate_groups == 5);
  numbers both = first;
  both.insert(both.end(), second.begin(), second.end());
  const auto all = advantages(both, {.group_size = group_size{2}}).r;
  CHECK(all.all_low_groups == sum.all_low_groups);
  CHECK(all.all_high_groups == sum.all_high_groups);
  CHECK(all.reward.m2 == doctest::Approx(sum.reward.m2));
  const auto same = result() + a;
  CHECK(std::memcmp(&same, &a, sizeof a) == 0);
}

TEST_CASE("group_relative_advantage: no samples, strides, add_to") {
  const auto none = advantages({}, {.group_size = group_size{2}});
  CHECK(none.r.groups == 0);
  CHECK(none.r.rewards.low > none.r.rewards.high);
  const numbers wide{1, 99, 3, 99};
  numbers a{10, 7, 10, 7};
  const rlhf::shape two(2), step(2);
  const rlhf::view<double> onto(a.data(), two, step);
  group_relative_advantage<double>({.reward = rlhf::view<const double>(wide.data(), two, step)},
                                   {.advantage = rlhf::add_to(onto)},
                                   {.group_size = group_size{2}, .scale = group_scale::none});
  CHECK(a == numbers{9, 7, 11, 7});
}

TEST_CASE("group_relative_advantage: a broken contract says its name and writes nothing") {
  const numbers reward(6, 1);
  const std::vector<int> id{0, 0, 1, 1, 2, 2}, short_id{0, 1};
  numbers a(6, 7), small(5, 7);
  const auto says = [&](const char* what, const rlhf::group_advantage_batch<double>& b,
                        const config& c, rlhf::output<double> to) {
    const std::string message =
        message_of([&] { group_relative_advantage<double>(b, {.advantage = to}, c); });
    INFO("expected ", what, ", received ", message);
    CHECK(message.find("group_relative_advantage") != std::string::npos);
    CHECK(message.find(what) != std::string::npos);
    CHECK(a == numbers(6, 7));
    CHECK(small == numbers(5, 7));
  };
  const rlhf::group_advantage_batch<double> good{.reward = reward, .group_id = id};
  for (const double bad : {-1.0, not_a_number, infinite}) {
    says("epsilon", good, {.epsilon = bad}, a);
    says("ddof", good, {.ddof = bad}, a);
  }
  says("reward", {.group_id = id}, {}, a);
  says("reward", {.reward = {reward, {2, 3}}, .group_id = id}, {}, a);
  says("group_id", {.reward = reward}, {}, a);
  says("group_id", {.reward = reward, .group_id = short_id}, {}, a);
  says("group_id", good, {.group_size = group_size{2}}, a);
  says("group_size", {.reward = reward}, {.group_size = group_size{4}}, a);
  says("group_size", {.reward = reward}, {.group_size = group_size{-1}}, a);
  says("advantage", good, {}, small);
  says("overlaps reward", {.reward = a, .group_id = id}, {}, a);
}

}  // namespace
}  // namespace rlhf_test
