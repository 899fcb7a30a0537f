#include "rlhf/advantage/leave_one_out_advantage.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "rlhf/advantage/group_relative_advantage.hpp"
#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using rlhf::group_size;
using rlhf::leave_one_out_advantage;
using rlhf::single_group;
using numbers = std::vector<double>;

TEST_CASE("leave_one_out_advantage: values by hand") {
  // {1, 2, 6}: 1 - 4, 2 - 3.5, 6 - 1.5 | {5, 7}: 5 - 7, 7 - 5
  const numbers reward{1, 5, 2, 7, 6};
  const std::vector<int> id{0, 1, 0, 1, 0};
  numbers a(5), b(5);
  const auto r = leave_one_out_advantage<double>({.reward = reward, .group_id = id},
                                                 {.advantage = a, .baseline = b});
  const numbers wanted{-3, -2, -1.5, 2, 4.5}, baseline{4, 7, 3.5, 5, 1.5};
  for (std::size_t i = 0; i < 5; ++i) {
    CHECK(a[i] == doctest::Approx(wanted[i]));
    CHECK(b[i] == doctest::Approx(baseline[i]));
  }
  CHECK(r.groups == 2);
  CHECK(r.reward.mean == doctest::Approx(4.2));
  CHECK(r.advantage.count == 5);
  CHECK(r.advantage.mean == doctest::Approx(0).epsilon(1e-12));
}

TEST_CASE(
    "leave_one_out_advantage: n / (n - 1) of the unscaled group relative advantage, and sums to "
    "0") {
  random_numbers random(1);
  for (const index n : {2, 3, 8, 17}) {
    numbers reward, a(static_cast<std::size_t>(2 * n)), g(a.size());
    for (index k = 0; k < 2 * n; ++k) reward.push_back(random.uniform(-3, 3));
    leave_one_out_advantage<double>({.reward = reward}, {.advantage = a},
                                    {.group_size = group_size{n}});
    rlhf::group_relative_advantage<double>(
        {.reward = reward}, {.advantage = g},
        {.group_size = group_size{n}, .scale = rlhf::group_scale::none});
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      const double others = static_cast<double>(n) / static_cast<double>(n - 1);
      CHECK(a[i] == doctest::Approx(others * g[i]).epsilon(1e-12));
      sum += a[i];
    }
    CHECK(std::abs(sum) < 1e-12);
  }
}

TEST_CASE(
    "leave_one_out_advantage: rewards times 2^k scale it, to the bit; a shift of integers changes "
    "nothing") {
  random_numbers random(2);
  numbers reward, scaled, shifted, a(32), b(32);
  for (int k = 0; k < 32; ++k) {
    reward.push_back(static_cast<double>(random.below(10)));
    scaled.push_back(reward.back() / 8);
    shifted.push_back(reward.back() + 512);
  }
  const rlhf::leave_one_out_advantage_config c{.group_size = group_size{8}};
  leave_one_out_advantage<double>({.reward = reward}, {.advantage = a}, c);
  leave_one_out_advantage<double>({.reward = scaled}, {.advantage = b}, c);
  for (std::size_t i = 0; i < 32; ++i) CHECK(b[i] == a[i] / 8);
  leave_one_out_advantage<double>({.reward = shifted}, {.advantage = b}, c);
  for (std::size_t i = 0; i < 32; ++i) CHECK(b[i] == doctest::Approx(a[i]).epsilon(1e-13));
}

TEST_CASE("leave_one_out_advantage: equal rewards, groups of one, NaN") {
  const numbers reward{0.7, 0.7, 0.7, 5, 1, not_a_number, 3};
  const std::vector<int> id{0, 0, 0, 1, 2, 2, 2};
  numbers a(7, 7), b(7, 7);
  auto r = leave_one_out_advantage<double>({.reward = reward, .group_id = id},
                                           {.advantage = a, .baseline = b});
  CHECK(a == numbers{0, 0, 0, 0, -2, 0, 2});
  CHECK(b == numbers{0.7, 0.7, 0.7, 5, 3, 0, 1});
  CHECK(r.groups == 3);
  CHECK(r.degenerate_groups == 2);
  CHECK(r.single_groups == 1);
  CHECK(r.unscorable == 1);
  leave_one_out_advantage<double>({.reward = reward, .group_id = id},
                                  {.advantage = a, .baseline = b}, {.single = single_group::raw});
  CHECK(a[3] == 5);
  CHECK(b[3] == 0);
}

TEST_CASE("leave_one_out_advantage: a broken contract says its name and writes nothing") {
  const numbers reward(6, 1);
  const std::vector<int> id{0, 0, 1, 1, 2, 2};
  numbers a(6, 7), d(6, 7);
  const auto says = [&](const char* what, const auto& call) {
    const std::string message = message_of(call);
    INFO("expected ", what, ", received ", message);
    CHECK(message.find("leave_one_out_advantage") != std::string::npos);
    CHECK(message.find(what) != std::string::npos);
    CHECK(a == numbers(6, 7));
  };
  says("reward", [&] { leave_one_out_advantage<double>({.group_id = id}, {.advantage = a}); });
  says("group_id", [&] { leave_one_out_advantage<double>({.reward = reward}, {.advantage = a}); });
  says("group_size", [&] {
    leave_one_out_advantage<double>({.reward = reward}, {.advantage = a},
                                    {.group_size = group_size{5}});
  });
  says("deviation", [&] {
    leave_one_out_advantage<double>({.reward = reward, .group_id = id},
                                    {.advantage = a, .deviation = d});
  });
  says("overlaps", [&] {
    leave_one_out_advantage<double>({.reward = reward, .group_id = id},
                                    {.advantage = a, .baseline = a});
  });
}

}  // namespace
}  // namespace rlhf_test
