#include "rlhf/advantage/discounted_returns.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

using rlhf::discounted_returns;
using rlhf::hole_mode;
using rlhf::hole_reward;

template <class T>
std::vector<T> drawn(random_numbers& random, index n) {
  std::vector<T> x;
  for (index k = 0; k < n; ++k) x.push_back(static_cast<T>(random.uniform(-1, 1)));
  return x;
}

TEST_CASE_TEMPLATE("discounted_returns: values by hand", B, RLHF_TEST_BACKENDS) {
  // gamma 0.5: 8, 4 + 4, 2 + 4 | the middle token is masked and no time step: 8, 2 + 4
  const auto reward = rows<B>({{2, 4, 8}, {2, not_a_number, 8}});
  const auto mask = flags<B>({{1, 1, 1}, {1, 0, 1}});
  auto returns = rows<B>({{7, 7, 7}, {7, 7, 7}});
  const auto r = discounted_returns<double>({.reward = reward.tensor(), .mask = mask.tensor()},
                                            {.returns = returns.tensor()}, {.gamma = 0.5});
  CHECK(returns(0, 2) == 8);
  CHECK(returns(0, 1) == 8);
  CHECK(returns(0, 0) == 6);
  CHECK(returns(1, 2) == 8);
  CHECK(returns(1, 1) == 0);
  CHECK(returns(1, 0) == 6);
  // 8, 8, 6, 8, 6: mean 7.2, squares 264 - 5 · 51.84
  CHECK(r.returns.count == 5);
  CHECK(r.returns.mean == doctest::Approx(7.2));
  CHECK(r.returns.m2 == doctest::Approx(4.8));
  CHECK(r.tokens == 5);
  CHECK(r.sequences == 2);
  CHECK(r.nonfinite == 0);
}

TEST_CASE("discounted_returns: holes skipped, as zeros, counted") {
  // mask 1 0 1, reward 1 5 3, gamma 0.5: 1 + 1.5 | 1 + 0.5 · 1.5 | 1 + 0.5 · (5 + 1.5)
  const std::vector<double> reward{1, 5, 3};
  const std::vector<std::uint8_t> mask{1, 0, 1};
  const auto first = [&](hole_mode holes, hole_reward rule = hole_reward::drop) {
    std::vector<double> g(3, 7);
    discounted_returns<double>({.reward = {reward, {1, 3}}, .mask = {mask, {1, 3}}},
                               {.returns = {g, {1, 3}}},
                               {.gamma = 0.5, .holes = holes, .reward_at_hole = rule});
    CHECK(g[1] == 0);
    CHECK(g[2] == 3);
    return g[0];
  };
  CHECK(first(hole_mode::skip) == 2.5);
  CHECK(first(hole_mode::zero) == 1.75);
  CHECK(first(hole_mode::count) == 4.25);
  CHECK(first(hole_mode::skip, hole_reward::to_previous) == 7.5);
  CHECK(first(hole_mode::zero, hole_reward::to_previous) == 6.75);
}

TEST_CASE("discounted_returns: what follows the last token, a terminated and a truncated one") {
  // gamma 0.5, reward 1 everywhere, bootstrap 8
  const std::vector<double> reward(5, 1), bootstrap{8}, next{99, 99, 16, 99, 99};
  const std::vector<std::uint8_t> terminated{0, 1, 0, 0, 0}, truncated{0, 0, 1, 0, 0},
      last{0, 0, 0, 0, 1};
  const rlhf::shape s{1, 5};
  std::vector<double> g(5);
  discounted_returns<double>({.reward = {reward, s}, .bootstrap_value = bootstrap},
                             {.returns = {g, s}}, {.gamma = 0.5});
  CHECK(g[4] == 5);
  CHECK(g[3] == 3.5);
  discounted_returns<double>(
      {.reward = {reward, s}, .bootstrap_value = bootstrap, .truncated = {last, s}},
      {.returns = {g, s}}, {.gamma = 0.5});
  CHECK(g[4] == 5);
  CHECK(g[3] == 3.5);
  discounted_returns<double>({.reward = {reward, s},
                              .next_value = {next, s},
                              .bootstrap_value = bootstrap,
                              .terminated = {terminated, s},
                              .truncated = {truncated, s}},
                             {.returns = {g, s}}, {.gamma = 0.5});
  CHECK(g[4] == 5);
  CHECK(g[3] == 3.5);
  CHECK(g[2] == 9);  // 1 + 0.5 · 16
  CHECK(g[1] == 1);  // nothing follows
  CHECK(g[0] == 1.5);
}

TEST_CASE_TEMPLATE("discounted_returns: the definition as a sum, at many lengths", T, float,
                   double) {
  random_numbers random(1);
  for (const index n : {1, 7, 8, 9, 64, 1023, 1024, 1025, 2050})
    for (const double gamma : {1.0, 0.99, 0.3, 0.0}) {
      const rlhf::shape s{index{1}, n};
      const auto reward = drawn<T>(random, n), bootstrap = drawn<T>(random, 1);
      std::vector<T> g(reward.size());
      discounted_returns<T>({.reward = {reward, s}, .bootstrap_value = bootstrap},
                            {.returns = {g, s}}, {.gamma = gamma});
      double error = 0, largest = 1;
      for (std::size_t t = 0; t < g.size(); ++t) {
        double weight = 1, sum = 0;
        for (std::size_t k = t; k < g.size(); ++k, weight *= gamma)
          sum += weight * static_cast<double>(reward[k]);
        sum += weight * static_cast<double>(bootstrap[0]);
        error = std::max(error, std::abs(sum - static_cast<double>(g[t])));
        largest = std::max(largest, std::abs(sum));
      }
      INFO(n, " tokens, gamma ", gamma);
      CHECK(error <= (sizeof(T) == 4 ? 2e-6 : 1e-14) * largest);
    }
}

TEST_CASE("discounted_returns: linear in the rewards") {
  random_numbers random(2);
  const index n = 300;
  const rlhf::shape s{index{1}, n};
  auto a = drawn<double>(random, n), b = drawn<double>(random, n), sum = a;
  for (std::size_t t = 0; t < sum.size(); ++t) sum[t] = 2 * a[t] - 3 * b[t];
  const auto run = [&](const std::vector<double>& reward) {
    std::vector<double> g(reward.size());
    discounted_returns<double>({.reward = {reward, s}}, {.returns = {g, s}}, {.gamma = 0.97});
    return g;
  };
  const auto ga = run(a), gb = run(b), gs = run(sum);
  for (std::size_t t = 0; t < sum.size(); ++t)
    CHECK(gs[t] == doctest::Approx(2 * ga[t] - 3 * gb[t]).epsilon(1e-12));
}

TEST_CASE(
    "discounted_returns: padded, masked, packed and threads give the same bits, NaN beside the "
    "tokens or not") {
  random_numbers random(3);
  const index rows = 90, columns = 130;
  std::vector<float> packed_reward,
      reward(static_cast<std::size_t>(rows * columns), static_cast<float>(not_a_number));
  std::vector<std::int32_t> length, offsets{0};
  std::vector<std::uint8_t> mask(reward.size(), 0);
  for (index i = 0; i < rows; ++i) {
    length.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
    for (index j = 0; j < length.back(); ++j) {
      const auto k = static_cast<std::size_t>(i * columns + j);
      reward[k] = static_cast<float>(random.uniform(-1, 1));
      mask[k] = 1;
      packed_reward.push_back(reward[k]);
    }
    offsets.push_back(static_cast<std::int32_t>(packed_reward.size()));
  }
  const rlhf::shape s{rows, columns};
  std::vector<float> by_length(reward.size()), by_mask(reward.size()), threads(reward.size()),
      packed(packed_reward.size());
  const thread_pool pool{3};
  const auto a = discounted_returns<float>({.reward = {reward, s}, .layout = rlhf::lengths(length)},
                                           {.returns = {by_length, s}}, {.gamma = 0.99});
  const auto b = discounted_returns<float>({.reward = {reward, s}, .mask = {mask, s}},
                                           {.returns = {by_mask, s}}, {.gamma = 0.99});
  const auto c =
      discounted_returns<float>({.reward = packed_reward, .layout = rlhf::packed(offsets)},
                                {.returns = packed}, {.gamma = 0.99});
  const auto d =
      discounted_returns<float>({.reward = {reward, s}, .mask = {mask, s}},
                                {.returns = {threads, s}}, {.gamma = 0.99}, rlhf::parallel{pool});
  CHECK(std::memcmp(by_length.data(), by_mask.data(), by_length.size() * sizeof(float)) == 0);
  CHECK(std::memcmp(by_length.data(), threads.data(), by_length.size() * sizeof(float)) == 0);
  bool equal = true;
  for (index i = 0; i < rows; ++i)
    equal = equal && std::memcmp(by_length.data() + i * columns,
                                 packed.data() + offsets[static_cast<std::size_t>(i)],
                                 static_cast<std::size_t>(length[static_cast<std::size_t>(i)]) *
                                     sizeof(float)) == 0;
  CHECK(equal);
  for (const auto& r : {b, c, d}) CHECK(std::memcmp(&r, &a, sizeof a) == 0);
}

TEST_CASE("discounted_returns: nothing to do is silence, and a NaN is counted") {
  std::vector<double> reward{1, not_a_number, 3}, g(3, 7);
  const std::vector<std::uint8_t> none(3, 0);
  const rlhf::shape s{1, 3};
  auto r =
      discounted_returns<double>({.reward = {reward, s}, .mask = {none, s}}, {.returns = {g, s}});
  CHECK(g == std::vector<double>{0, 0, 0});
  CHECK(r.returns.count == 0);
  CHECK(r.nonfinite == 0);
  r = discounted_returns<double>({.reward = {reward, s}}, {.returns = {g, s}});
  CHECK(std::isnan(g[0]));
  CHECK(g[2] == 3);
  CHECK(r.nonfinite == 1);
  // gamma 0: a return is its reward, and no NaN travels
  discounted_returns<double>({.reward = {reward, s}}, {.returns = {g, s}}, {.gamma = 0});
  CHECK(g[0] == 1);
  r = discounted_returns<double>({.reward = {reward, s}}, {.returns = {g, s}},
                                 {.nonfinite = rlhf::nonfinite_policy::drop_token});
  CHECK(g == std::vector<double>{4, 0, 3});
  CHECK(r.nonfinite == 1);
  const std::vector<double> bootstrap{infinite};
  reward[1] = 2;
  r = discounted_returns<double>({.reward = {reward, s}, .bootstrap_value = bootstrap},
                                 {.returns = {g, s}});
  CHECK(r.nonfinite == 1);
  rlhf::view<double> onto(g, s);
  g = {1, 1, 1};
  discounted_returns<double>({.reward = {reward, s}}, {.returns = rlhf::add_to(onto)});
  CHECK(g == std::vector<double>{7, 6, 4});
}

TEST_CASE("discounted_returns: a broken contract says its name and writes nothing") {
  const std::vector<float> reward(6, 1), next(6, 1), small(5);
  const std::vector<std::uint8_t> cut{0, 1, 0, 0, 0, 0};
  std::vector<float> g(6, 7);
  const rlhf::shape s{2, 3};
  using batch = rlhf::discounted_returns_batch<float>;
  const auto says = [&](const char* what, const batch& b,
                        const rlhf::discounted_returns_config& c = {}) {
    const std::string message = message_of([&] {
      discounted_returns<float>(b, {.returns = {g, s}}, c);
    });
    INFO("expected ", what, ", received ", message);
    CHECK(message.find("discounted_returns") != std::string::npos);
    CHECK(message.find(what) != std::string::npos);
    for (const float x : g) CHECK(x == 7);
  };
  for (const double bad : {-0.1, 1.1, not_a_number})
    says("gamma", {.reward = {reward, s}}, {.gamma = bad});
  says("reward", {});
  says("reward", {.reward = reward});
  says("bootstrap_value", {.reward = {reward, s}, .bootstrap_value = small});
  says("next_value", {.reward = {reward, s}, .next_value = {next, s}});
  says("next_value", {.reward = {reward, s}, .truncated = {cut, s}});
  says("terminated", {.reward = {reward, s}, .terminated = {reward, s}});
  says("reward_at_hole", {.reward = {reward, s}},
       {.holes = hole_mode::count, .reward_at_hole = hole_reward::to_previous});
  says("returns", {.reward = {g, s}});
}

}  // namespace
}  // namespace rlhf_test
