#include "rlhf/advantage/generalized_advantage_estimation.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "rlhf/advantage/discounted_returns.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

using rlhf::generalized_advantage_estimation;
using rlhf::hole_mode;
using rlhf::hole_reward;
using config = rlhf::generalized_advantage_estimation_config;

template <class T>
std::vector<T> drawn(random_numbers& random, index n) {
  std::vector<T> x;
  for (index k = 0; k < n; ++k) x.push_back(static_cast<T>(random.uniform(-1, 1)));
  return x;
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// The definition, in double and in the order of the paper: A_t is a sum over all later steps.
struct reference {
  std::vector<double> advantage, returns;
};
template <class T>
reference by_definition(const std::vector<T>& reward, const std::vector<T>& value, double gamma,
                        double lambda, double bootstrap = 0) {
  const std::size_t n = reward.size();
  reference r{std::vector<double>(n), std::vector<double>(n)};
  for (std::size_t t = 0; t < n; ++t) {
    double weight = 1, sum = 0;
    for (std::size_t k = t; k < n; ++k, weight *= gamma * lambda) {
      const double next = k + 1 < n ? static_cast<double>(value[k + 1]) : bootstrap;
      sum +=
          weight * (static_cast<double>(reward[k]) + gamma * next - static_cast<double>(value[k]));
    }
    r.advantage[t] = sum;
    r.returns[t] = sum + static_cast<double>(value[t]);
  }
  return r;
}

TEST_CASE_TEMPLATE("generalized_advantage_estimation: values by hand", B, RLHF_TEST_BACKENDS) {
  // gamma 0.5, lambda 0.5, backwards: delta = r + 0.5 V' - V
  // row 0: t2: 1 - 3 = -2; t1: 0 + 1.5 - 2 = -0.5, A = -0.5 - 0.5 = -1; t0: 0 + 1 - 1 = 0, A =
  // -0.25 row 1: the third token is masked: t1: 4 - 2 = 2; t0: 0 + 1 - 1 = 0, A = 0.5
  const auto reward = rows<B>({{0, 0, 1}, {0, 4, not_a_number}});
  const auto value = rows<B>({{1, 2, 3}, {1, 2, not_a_number}});
  const auto mask = flags<B>({{1, 1, 1}, {1, 1, 0}});
  auto advantage = rows<B>({{7, 7, 7}, {7, 7, 7}});
  auto returns = rows<B>({{7, 7, 7}, {7, 7, 7}});
  const auto r = generalized_advantage_estimation<double>(
      {.reward = reward.tensor(), .value = value.tensor(), .mask = mask.tensor()},
      {.advantage = advantage.tensor(), .returns = returns.tensor()},
      {.gamma = 0.5, .lambda = 0.5});
  CHECK(advantage(0, 2) == -2);
  CHECK(advantage(0, 1) == -1);
  CHECK(advantage(0, 0) == -0.25);
  CHECK(advantage(1, 1) == 2);
  CHECK(advantage(1, 0) == 0.5);
  CHECK(advantage(1, 2) == 0);
  CHECK(returns(0, 2) == 1);
  CHECK(returns(0, 1) == 1);
  CHECK(returns(0, 0) == 0.75);
  CHECK(returns(1, 2) == 0);
  // advantages -2, -1, -0.25, 2, 0.5: mean -0.15, squares 9.3125 - 5 · 0.0225
  CHECK(r.advantage.count == 5);
  CHECK(r.advantage.mean == doctest::Approx(-0.15));
  CHECK(r.advantage.m2 == doctest::Approx(9.3125 - 5 * 0.0225));
  // returns 1, 1, 0.75, 4, 1.5
  CHECK(r.returns.mean == doctest::Approx(1.65));
  CHECK(r.tokens == 5);
  CHECK(r.positions == 5);
  CHECK(r.sequences == 2);
  CHECK(r.nonfinite == 0);
}

TEST_CASE("generalized_advantage_estimation: the three hole modes, gamma 1, lambda 0.95") {
  // mask 1 1 0 0 1 1, V = .5 .6 9 9 .7 .8, r = 1 at the end
  const std::vector<double> value{.5, .6, 9, 9, .7, .8}, reward{0, 0, 0, 0, 0, 1};
  const std::vector<std::uint8_t> mask{1, 1, 0, 0, 1, 1};
  const auto run = [&](hole_mode holes) {
    std::vector<double> a(6, 7), g(6, 7);
    generalized_advantage_estimation<double>(
        {.reward = {reward, {1, 6}}, .value = {value, {1, 6}}, .mask = {mask, {1, 6}}},
        {.advantage = {a, {1, 6}}, .returns = {g, {1, 6}}}, {.holes = holes});
    for (const std::size_t hole : {2u, 3u}) {
      CHECK(a[hole] == 0);
      CHECK(g[hole] == 0);
    }
    CHECK(a[5] == doctest::Approx(0.2));
    CHECK(a[4] == doctest::Approx(0.1 + 0.95 * 0.2));
    return a;
  };
  const double last = 0.29;
  // skip: delta1 = .7 - .6, delta0 = .6 - .5
  CHECK(run(hole_mode::skip)[1] == doctest::Approx(0.1 + 0.95 * last));
  CHECK(run(hole_mode::skip)[0] == doctest::Approx(0.1 + 0.95 * (0.1 + 0.95 * last)));
  // zero: A3 = .7 + .95 · .29, A2 = .95 A3, A1 = -.6 + .95 A2
  const double a3 = 0.7 + 0.95 * last, a1 = -0.6 + 0.95 * 0.95 * a3;
  CHECK(run(hole_mode::zero)[1] == doctest::Approx(a1));
  CHECK(run(hole_mode::zero)[0] == doctest::Approx(0.1 + 0.95 * a1));
  // count: A3 = .7 - 9 + .95 · .29, A2 = .95 A3, A1 = 9 - .6 + .95 A2
  const double c3 = -8.3 + 0.95 * last, c1 = 8.4 + 0.95 * 0.95 * c3;
  CHECK(run(hole_mode::count)[1] == doctest::Approx(c1));
  CHECK(run(hole_mode::count)[0] == doctest::Approx(0.1 + 0.95 * c1));
}

TEST_CASE(
    "generalized_advantage_estimation: a reward at a hole is dropped, or goes to the token "
    "before") {
  // mask 0 1 0 0 1 0 0; rewards at holes 8, 2, 3, 5, 6; gamma and lambda 1, V = 0: returns to go
  const std::vector<double> value(7, 0), reward{8, 1, 2, 3, 10, 5, 6};
  const std::vector<std::uint8_t> mask{0, 1, 0, 0, 1, 0, 0};
  const auto run = [&](hole_reward rule, hole_mode holes) {
    std::vector<double> a(7, 7);
    generalized_advantage_estimation<double>(
        {.reward = {reward, {1, 7}}, .value = {value, {1, 7}}, .mask = {mask, {1, 7}}},
        {.advantage = {a, {1, 7}}}, {.lambda = 1, .holes = holes, .reward_at_hole = rule});
    return a;
  };
  for (const hole_mode holes : {hole_mode::skip, hole_mode::zero}) {
    CHECK(run(hole_reward::drop, holes)[4] == 10);
    CHECK(run(hole_reward::drop, holes)[1] == 11);
    CHECK(run(hole_reward::to_previous, holes)[4] == 10 + 5 + 6);
    CHECK(run(hole_reward::to_previous, holes)[1] == 21 + 1 + 2 + 3 + 8);
  }
  CHECK(message_of([&] {
          run(hole_reward::to_previous, hole_mode::count);
        }).find("reward_at_hole") != std::string::npos);
}

TEST_CASE_TEMPLATE("generalized_advantage_estimation: the definition as a sum, at many lengths", T,
                   float, double) {
  random_numbers random(1);
  for (const index n : {1, 2, 7, 8, 9, 15, 16, 17, 64, 100, 1023, 1024, 1025, 1031, 2049, 3000})
    for (const double gamma : {1.0, 0.99, 0.5})
      for (const double lambda : {1.0, 0.95, 0.0}) {
        const auto reward = drawn<T>(random, n), value = drawn<T>(random, n);
        const auto bootstrap = drawn<T>(random, 1);
        auto advantage = reward, returns = reward;
        const auto r = generalized_advantage_estimation<T>(
            {.reward = {reward, {index{1}, n}},
             .value = {value, {index{1}, n}},
             .bootstrap_value = bootstrap},
            {.advantage = {advantage, {index{1}, n}}, .returns = {returns, {index{1}, n}}},
            {.gamma = gamma, .lambda = lambda});
        const auto wanted =
            by_definition(reward, value, gamma, lambda, static_cast<double>(bootstrap[0]));
        double error = 0, largest = 1, mean = 0;
        for (std::size_t t = 0; t < reward.size(); ++t) {
          const double a = static_cast<double>(advantage[t]), g = static_cast<double>(returns[t]);
          error =
              std::max({error, std::abs(a - wanted.advantage[t]), std::abs(g - wanted.returns[t])});
          largest = std::max(largest, std::abs(wanted.advantage[t]));
          mean += a / static_cast<double>(n);
        }
        INFO(n, " tokens, gamma ", gamma, ", lambda ", lambda);
        CHECK(error <= (sizeof(T) == 4 ? 2e-6 : 1e-14) * largest);
        CHECK(r.advantage.mean == doctest::Approx(mean).epsilon(1e-9));
      }
}

TEST_CASE("generalized_advantage_estimation: a million floats keep six digits") {
  const index n = 1 << 20;
  random_numbers random(2);
  const auto reward = drawn<float>(random, n), value = drawn<float>(random, n);
  std::vector<float> advantage(reward.size());
  const std::vector<std::uint8_t> never(reward.size(), 0);
  for (const bool flagged : {false, true}) {
    generalized_advantage_estimation<float>(
        {.reward = {reward, {index{1}, n}},
         .value = {value, {index{1}, n}},
         .terminated = flagged ? rlhf::mask_view<>(never, {index{1}, n}) : rlhf::mask_view<>()},
        {.advantage = {advantage, {index{1}, n}}}, {.gamma = 0.999, .lambda = 1});
    double a = 0, next = 0, error = 0, largest = 0;
    const double gamma = static_cast<double>(static_cast<float>(0.999));
    for (std::size_t t = reward.size(); t-- > 0;) {
      a = static_cast<double>(reward[t]) + gamma * next - static_cast<double>(value[t]) + 0.999 * a;
      next = static_cast<double>(value[t]);
      error = std::max(error, std::abs(a - static_cast<double>(advantage[t])));
      largest = std::max(largest, std::abs(a));
    }
    INFO("error ", error / largest, " of max |A|");
    CHECK(error <= 2e-6 * largest);
  }
}

TEST_CASE(
    "generalized_advantage_estimation: lambda 1 is return less value, lambda 0 the temporal "
    "difference") {
  random_numbers random(4);
  const index n = 700;
  const auto reward = drawn<double>(random, n), value = drawn<double>(random, n);
  std::vector<double> a(reward.size()), g(reward.size()), to_go(reward.size());
  const rlhf::shape s{index{1}, n};
  generalized_advantage_estimation<double>({.reward = {reward, s}, .value = {value, s}},
                                           {.advantage = {a, s}, .returns = {g, s}},
                                           {.gamma = 0.99, .lambda = 1});
  rlhf::discounted_returns<double>({.reward = {reward, s}}, {.returns = {to_go, s}},
                                   {.gamma = 0.99});
  for (std::size_t t = 0; t < a.size(); ++t) {
    CHECK(a[t] == doctest::Approx(to_go[t] - value[t]).epsilon(1e-11));
    CHECK(g[t] == doctest::Approx(to_go[t]).epsilon(1e-11));
  }
  generalized_advantage_estimation<double>({.reward = {reward, s}, .value = {value, s}},
                                           {.advantage = {a, s}}, {.gamma = 0.99, .lambda = 0});
  for (std::size_t t = 0; t < a.size(); ++t) {
    const double next = t + 1 < a.size() ? value[t + 1] : 0;
    CHECK(a[t] == doctest::Approx(reward[t] + 0.99 * next - value[t]));
  }
}

TEST_CASE_TEMPLATE(
    "generalized_advantage_estimation: rewards and values times 2^k scale it, to the bit", T, float,
    double) {
  random_numbers random(5);
  const index n = 1200;
  const rlhf::shape s{index{1}, n};
  auto reward = drawn<T>(random, n), value = drawn<T>(random, n);
  std::vector<T> a(reward.size()), b(reward.size());
  generalized_advantage_estimation<T>({.reward = {reward, s}, .value = {value, s}},
                                      {.advantage = {a, s}}, {.gamma = 0.9});
  for (auto* x : {&reward, &value, &a})
    for (T& y : *x) y *= T(0.125);
  generalized_advantage_estimation<T>({.reward = {reward, s}, .value = {value, s}},
                                      {.advantage = {b, s}}, {.gamma = 0.9});
  CHECK(same_bits(a, b));
}

TEST_CASE_TEMPLATE(
    "generalized_advantage_estimation: a suffix of a row, padded, masked, packed, gives the same "
    "bits",
    T, float, double) {
  random_numbers random(6);
  std::vector<std::vector<T>> reward, value;
  index longest = 0, total = 0;
  for (const index n : {0, 1, 5, 8, 13, 40, 64, 65, 700, 1024, 1025, 2600}) {
    reward.push_back(drawn<T>(random, n));
    value.push_back(drawn<T>(random, n));
    longest = std::max(longest, n);
    total += n;
  }
  const auto rows = static_cast<index>(reward.size());
  const config c{.gamma = 0.98, .lambda = 0.9};

  // packed, the base of comparison
  std::vector<T> all_rewards, all_values;
  std::vector<std::int64_t> offsets{0};
  for (std::size_t i = 0; i < reward.size(); ++i) {
    all_rewards.insert(all_rewards.end(), reward[i].begin(), reward[i].end());
    all_values.insert(all_values.end(), value[i].begin(), value[i].end());
    offsets.push_back(static_cast<std::int64_t>(all_rewards.size()));
  }
  std::vector<T> advantage(all_rewards.size()), returns(all_rewards.size());
  const auto base = generalized_advantage_estimation<T>(
      {.reward = all_rewards, .value = all_values, .layout = rlhf::packed(offsets)},
      {.advantage = advantage, .returns = returns}, c);

  const auto compare = [&](const char* what, index columns, const auto& place, auto mask_type,
                           bool by_lengths, const rlhf::shape& strides, const auto& exec) {
    // `place(i, j)`: the column of valid token j of row i
    using M = decltype(mask_type);
    INFO(what);
    const auto slots = static_cast<std::size_t>(rows * columns);
    const std::size_t reach = slots * (strides.rank == 0 ? 1 : 3);
    const T poison = static_cast<T>(not_a_number);
    std::vector<T> r(reach, poison), v(reach, poison), a(reach, T(7)), g(reach, T(7));
    std::vector<M> mask(slots, M(0));
    std::vector<std::int32_t> length;
    const auto at = [&](index i, index j) {
      return static_cast<std::size_t>(
          strides.rank == 0 ? i * columns + j : i * strides.size[0] + j * strides.size[1]);
    };
    for (index i = 0; i < rows; ++i) {
      const auto& row = reward[static_cast<std::size_t>(i)];
      length.push_back(static_cast<std::int32_t>(row.size()));
      for (index j = 0; j < static_cast<index>(row.size()); ++j) {
        const index k = place(i, j);
        r[at(i, k)] = row[static_cast<std::size_t>(j)];
        v[at(i, k)] = value[static_cast<std::size_t>(i)][static_cast<std::size_t>(j)];
        mask[static_cast<std::size_t>(i * columns + k)] = M(1 + 2 * (j % 3));
      }
    }
    const rlhf::shape s{rows, columns};
    const rlhf::shape step = strides.rank == 0 ? rlhf::shape(columns, index{1}) : strides;
    const auto result = generalized_advantage_estimation<T>(
        {.reward = rlhf::view<const T>(r.data(), s, step),
         .value = rlhf::view<const T>(v.data(), s, step),
         .mask = by_lengths ? rlhf::mask_view<>() : rlhf::mask_view<>(mask.data(), s),
         .layout = by_lengths ? rlhf::lengths(length) : rlhf::sequence_layout<>()},
        {.advantage = rlhf::view<T>(a.data(), s, step),
         .returns = rlhf::view<T>(g.data(), s, step)},
        c, exec);
    bool equal = true, clean = true;
    for (index i = 0; i < rows; ++i) {
      std::vector<bool> taken(static_cast<std::size_t>(columns));
      for (index j = 0; j < static_cast<index>(reward[static_cast<std::size_t>(i)].size()); ++j) {
        const index k = place(i, j);
        taken[static_cast<std::size_t>(k)] = true;
        const auto from = static_cast<std::size_t>(offsets[static_cast<std::size_t>(i)] + j);
        equal = equal && std::memcmp(&a[at(i, k)], &advantage[from], sizeof(T)) == 0 &&
                std::memcmp(&g[at(i, k)], &returns[from], sizeof(T)) == 0;
      }
      for (index k = 0; k < columns; ++k)
        if (!taken[static_cast<std::size_t>(k)])
          clean = clean && a[at(i, k)] == 0 && g[at(i, k)] == 0 && !std::signbit(a[at(i, k)]);
    }
    CHECK(equal);
    CHECK(clean);
    CHECK(std::memcmp(&result.advantage, &base.advantage, sizeof base.advantage) == 0);
    CHECK(std::memcmp(&result.returns, &base.returns, sizeof base.returns) == 0);
    CHECK(result.positions == base.positions);
    CHECK(result.nonfinite == 0);
  };

  const auto left = [](index, index j) { return j; };
  const auto right = [&](index i, index j) {
    return longest + 3 - static_cast<index>(reward[static_cast<std::size_t>(i)].size()) + j;
  };
  const auto holes = [](index i, index j) { return j + (j + i) / 5 + 40 * (j / 300); };
  const auto sparse = [](index, index j) { return 11 * j + 3; };
  const rlhf::serial one;
  const thread_pool pool{3};
  const rlhf::parallel many{pool};
  const rlhf::shape none;
  compare("lengths", longest + 2, left, std::uint8_t(), true, none, one);
  compare("a mask of flags", longest + 2, left, std::uint8_t(), false, none, one);
  compare("left padding", longest + 3, right, std::uint8_t(), false, none, one);
  compare("holes", longest * 2, holes, std::uint8_t(), false, none, one);
  compare("holes in weights", longest * 2, holes, float(), false, none, one);
  compare("few tokens", longest * 11 + 5, sparse, double(), false, none, one);
  compare("strides", longest + 2, left, std::uint8_t(), true, rlhf::shape(index{3}, 3 * rows), one);
  compare("strides and holes", longest * 2, holes, std::uint8_t(), false,
          rlhf::shape(index{3}, 3 * rows), one);
  compare("threads", longest + 2, left, std::uint8_t(), true, none, many);
  compare("threads and holes", longest * 2, holes, std::uint8_t(), false, none, many);
  compare("threads, weights", longest * 2, holes, double(), false, none, many);
  CHECK(total == base.positions);

  // M22: what comes before changes nothing, here by a row alone against the batch
  for (std::size_t i = 1; i < reward.size(); ++i) {
    const rlhf::shape s{index{1}, static_cast<index>(reward[i].size())};
    std::vector<T> a(reward[i].size());
    generalized_advantage_estimation<T>({.reward = {reward[i], s}, .value = {value[i], s}},
                                        {.advantage = {a, s}}, c);
    CHECK(std::memcmp(a.data(), advantage.data() + offsets[i], a.size() * sizeof(T)) == 0);
  }
}

TEST_CASE("generalized_advantage_estimation: ends of episodes inside a row") {
  // gamma 0.5, lambda 1, V = 4 everywhere, next_value 8; t1 terminated, t3 truncated
  const std::vector<double> reward{1, 1, 1, 1, 1}, value(5, 4), next(5, 8);
  const std::vector<std::uint8_t> terminated{0, 1, 0, 0, 0}, truncated{0, 0, 0, 1, 0};
  const rlhf::shape s{1, 5};
  std::vector<double> a(5);
  generalized_advantage_estimation<double>({.reward = {reward, s},
                                            .value = {value, s},
                                            .next_value = {next, s},
                                            .terminated = {terminated, s},
                                            .truncated = {truncated, s}},
                                           {.advantage = {a, s}}, {.gamma = 0.5, .lambda = 1});
  CHECK(a[4] == 1 + 4 - 4);
  CHECK(a[3] == 1 + 4 - 4);  // cut: its value goes on, its advantage does not
  CHECK(a[2] == 1 + 4 - 4 + 0.5 * a[3]);
  CHECK(a[1] == 1 - 4);  // terminated: nothing follows
  CHECK(a[0] == 1 + 4 - 4 + 0.5 * a[1]);
}

TEST_CASE(
    "generalized_advantage_estimation: a row that ends truncated goes on with its bootstrap "
    "value") {
  // V after the last valid token is 10; row 1 terminates there all the same
  const std::vector<double> reward{0, 1, 0, 1}, value{2, 3, 2, 3}, bootstrap{10, 10};
  const std::vector<std::uint8_t> terminated{0, 0, 0, 1}, truncated{0, 1, 0, 1};
  const rlhf::shape s{2, 2};
  std::vector<double> a(4), g(4);
  const auto run = [&](rlhf::mask_view<> cut) {
    generalized_advantage_estimation<double>({.reward = {reward, s},
                                              .value = {value, s},
                                              .bootstrap_value = bootstrap,
                                              .terminated = {terminated, s},
                                              .truncated = cut},
                                             {.advantage = {a, s}, .returns = {g, s}},
                                             {.lambda = 1});
    CHECK(a[1] == 1 + 10 - 3);
    CHECK(a[0] == 3 - 2 + a[1]);
    CHECK(g[0] == 11);
    CHECK(a[3] == 1 - 3);
    CHECK(g[2] == 1);
  };
  run({truncated, s});
  run({});
}

TEST_CASE_TEMPLATE("generalized_advantage_estimation: flags that are all false change no bit", T,
                   float, double) {
  random_numbers random(8);
  const rlhf::shape s{3, 1500};
  const auto reward = drawn<T>(random, 4500), value = drawn<T>(random, 4500);
  const std::vector<std::uint8_t> never(4500, 0);
  std::vector<std::uint8_t> mask(4500);
  for (auto& m : mask) m = random.chance(0.8) ? 1 : 0;
  std::vector<T> a(4500), b(4500), next(4500, static_cast<T>(not_a_number));
  generalized_advantage_estimation<T>(
      {.reward = {reward, s}, .value = {value, s}, .mask = {mask, s}}, {.advantage = {a, s}},
      {.gamma = 0.99});
  generalized_advantage_estimation<T>({.reward = {reward, s},
                                       .value = {value, s},
                                       .terminated = {never, s},
                                       .truncated = {never, s},
                                       .mask = {mask, s}},
                                      {.advantage = {b, s}}, {.gamma = 0.99});
  CHECK(same_bits(a, b));
  // and a given next value that is the next token's
  for (index i = 0; i < 3; ++i) {
    T following = T(0);
    for (index j = 1500; j-- > 0;) {
      const auto k = static_cast<std::size_t>(i * 1500 + j);
      if (mask[k] == 0) continue;
      next[k] = following;
      following = value[k];
    }
  }
  generalized_advantage_estimation<T>(
      {.reward = {reward, s}, .value = {value, s}, .next_value = {next, s}, .mask = {mask, s}},
      {.advantage = {b, s}}, {.gamma = 0.99});
  CHECK(same_bits(a, b));
}

TEST_CASE_TEMPLATE(
    "generalized_advantage_estimation: every flag, hole mode and layout against a plain loop", T,
    float, double) {
  random_numbers random(9);
  for (int round = 0; round < 150; ++round) {
    const index batch = random.below(4), time = random.chance(0.1) ? 1500 : random.below(70);
    const index n = batch * time;
    const rlhf::shape s{batch, time};
    const auto reward = drawn<T>(random, n), value = drawn<T>(random, n),
               next = drawn<T>(random, n);
    const auto bootstrap = drawn<T>(random, batch);
    std::vector<std::uint8_t> mask, ended, cut;
    std::vector<std::int64_t> length;
    const double density = random.uniform();
    for (index k = 0; k < n; ++k) {
      mask.push_back(random.chance(density) ? static_cast<std::uint8_t>(1 + random.below(255)) : 0);
      ended.push_back(random.chance(0.05) ? 2 : 0);
      cut.push_back(random.chance(0.05) ? 1 : 0);
    }
    for (index i = 0; i < batch; ++i) length.push_back(random.below(time + 1));
    const auto holes = static_cast<hole_mode>(random.below(3));
    const bool to_previous = holes != hole_mode::count && random.chance(0.5);
    const bool given_next = random.chance(0.5), given_cut = given_next && random.chance(0.7);
    const bool given_end = random.chance(0.6), given_mask = random.chance(0.7);
    const bool given_bootstrap = !given_next && random.chance(0.5),
               given_length = random.chance(0.5);
    const double gamma = random.chance(0.2) ? 0 : 0.97, lambda = random.chance(0.2) ? 0 : 0.9;

    std::vector<double> wanted(static_cast<std::size_t>(n), 0), wanted_returns = wanted;
    double positions = 0;
    for (index i = 0; i < batch; ++i) {
      const auto at = [&](index j) { return static_cast<std::size_t>(i * time + j); };
      const index columns = given_length ? length[static_cast<std::size_t>(i)] : time;
      const auto valid = [&](index j) { return !given_mask || mask[at(j)] != 0; };
      std::vector<double> r(static_cast<std::size_t>(time), 0);
      index first = -1, last = -1;
      double ahead = 0;
      for (index j = 0; j < columns; ++j) {
        const double x = static_cast<double>(reward[at(j)]);
        if (valid(j)) {
          if (first < 0) first = j;
          last = j;
          r[static_cast<std::size_t>(j)] += x;
        } else if (holes == hole_mode::count) {
          r[static_cast<std::size_t>(j)] = x;
        } else if (to_previous) {
          (last < 0 ? ahead : r[static_cast<std::size_t>(last)]) += x;
        }
      }
      if (first >= 0) r[static_cast<std::size_t>(first)] += ahead;
      double a = 0,
             v = given_bootstrap ? static_cast<double>(bootstrap[static_cast<std::size_t>(i)]) : 0;
      for (index j = last; j >= 0; --j) {
        if (!valid(j) && holes == hole_mode::skip) continue;
        const bool read = valid(j) || holes == hole_mode::count;
        const bool stop = given_end && read && ended[at(j)] != 0;
        const bool pause = given_cut && read && cut[at(j)] != 0;
        const double here = read ? static_cast<double>(value[at(j)]) : 0;
        const double following = stop         ? 0
                                 : given_next ? (read ? static_cast<double>(next[at(j)]) : 0)
                                              : v;
        a = r[static_cast<std::size_t>(j)] + gamma * following - here +
            (stop || pause ? 0 : gamma * lambda * a);
        v = here;
        if (!valid(j)) continue;
        wanted[at(j)] = a;
        wanted_returns[at(j)] = a + here;
        positions += 1;
      }
    }
    std::vector<T> a(static_cast<std::size_t>(n), T(7)), g = a,
                                                         added(static_cast<std::size_t>(n), T(3));
    const auto none = rlhf::mask_view<>();
    const auto call = [&](rlhf::output<T> advantage, rlhf::output<T> returns) {
      return generalized_advantage_estimation<T>(
          {.reward = {reward, s},
           .value = {value, s},
           .next_value = given_next ? rlhf::view<const T>(next, s) : rlhf::view<const T>(),
           .bootstrap_value =
               given_bootstrap ? rlhf::view<const T>(bootstrap) : rlhf::view<const T>(),
           .terminated = given_end ? rlhf::mask_view<>(ended, s) : none,
           .truncated = given_cut ? rlhf::mask_view<>(cut, s) : none,
           .mask = given_mask ? rlhf::mask_view<>(mask, s) : none,
           .layout = given_length ? rlhf::lengths(length) : rlhf::sequence_layout<>()},
          {.advantage = advantage, .returns = returns},
          {.gamma = gamma,
           .lambda = lambda,
           .holes = holes,
           .reward_at_hole = to_previous ? hole_reward::to_previous : hole_reward::drop});
    };
    const auto result = call({a, s}, {g, s});
    rlhf::view<T> onto(added, s);
    call(rlhf::add_to(onto), {});
    double error = 0;
    bool sums = true;
    for (std::size_t k = 0; k < a.size(); ++k) {
      error = std::max({error, std::abs(static_cast<double>(a[k]) - wanted[k]),
                        std::abs(static_cast<double>(g[k]) - wanted_returns[k])});
      sums = sums && added[k] == T(3) + a[k];
    }
    INFO("round ", round);
    CHECK(error <= (sizeof(T) == 4 ? 2e-5 : 1e-13));
    CHECK(sums);
    CHECK(result.positions == positions);
    CHECK(result.advantage.count == positions);
  }
}

TEST_CASE_TEMPLATE(
    "generalized_advantage_estimation: NaN in a masked slot changes no bit of anything", T, float,
    double) {
  random_numbers random(10);
  const rlhf::shape s{4, 1300};
  auto reward = drawn<T>(random, 5200), value = drawn<T>(random, 5200);
  std::vector<std::uint8_t> mask(5200), ended(5200);
  for (auto& m : mask) m = random.chance(0.7) ? 1 : 0;
  std::vector<T> a(5200), g(5200), b(5200), h(5200);
  for (const hole_mode holes : {hole_mode::skip, hole_mode::zero}) {
    const auto run = [&](std::vector<T>& advantage, std::vector<T>& returns) {
      return generalized_advantage_estimation<T>(
          {.reward = {reward, s}, .value = {value, s}, .terminated = {ended, s}, .mask = {mask, s}},
          {.advantage = {advantage, s}, .returns = {returns, s}}, {.holes = holes});
    };
    const auto clean = run(a, g);
    for (std::size_t k = 0; k < mask.size(); ++k)
      if (mask[k] == 0) {
        reward[k] = value[k] = static_cast<T>(k % 2 == 0 ? not_a_number : infinite);
        ended[k] = 1;
      }
    const auto poisoned = run(b, h);
    CHECK(same_bits(a, b));
    CHECK(same_bits(g, h));
    CHECK(std::memcmp(&clean, &poisoned, sizeof clean) == 0);
    for (std::size_t k = 0; k < mask.size(); ++k)
      if (mask[k] == 0) reward[k] = value[k] = T(0), ended[k] = 0;
  }
}

TEST_CASE_TEMPLATE("generalized_advantage_estimation: nothing is computed from masked slots", T,
                   float, double) {
  constexpr T largest = (std::numeric_limits<T>::max)();
  for (const index columns : {5, 13, 16, 31, 300, 2100}) {
    const index rows = 40;
    const auto n = static_cast<std::size_t>(rows * columns);
    random_numbers random(7);
    std::vector<T> reward = drawn<T>(random, rows * columns), value = reward, a(n);
    std::vector<std::uint8_t> mask(n, 1);
    for (std::size_t k = 0; k < n; ++k)
      if (random.uniform(0, 1) < 0.2) {
        mask[k] = 0;
        reward[k] = largest;
        value[k] = -largest;  // whoever adds the two overflows
      }
    std::feclearexcept(FE_ALL_EXCEPT);
    generalized_advantage_estimation<T>({.reward = {reward, {rows, columns}},
                                         .value = {value, {rows, columns}},
                                         .mask = {mask, {rows, columns}}},
                                        {.advantage = {a, {rows, columns}}}, {.gamma = 0.99});
    CAPTURE(columns);
    CHECK(std::fetestexcept(FE_OVERFLOW | FE_INVALID) == 0);
  }
}

TEST_CASE("generalized_advantage_estimation: add_to keeps the bits of masked slots") {
  const std::vector<float> reward{1, 2, 3}, value{0, 0, 0};
  const std::vector<std::uint8_t> mask{1, 0, 1};
  std::vector<float> a{10, -0.0f, 30};
  const rlhf::shape s{1, 3};
  rlhf::view<float> onto(a, s);
  generalized_advantage_estimation<float>(
      {.reward = {reward, s}, .value = {value, s}, .mask = {mask, s}},
      {.advantage = rlhf::add_to(onto)}, {.lambda = 1});
  CHECK(a[0] == 10 + 4);
  CHECK(std::signbit(a[1]));
  CHECK(a[2] == 33);
}

TEST_CASE(
    "generalized_advantage_estimation: rows without tokens, zero columns, zero rows are silence") {
  const std::vector<double> reward{1, 2}, value{3, 4};
  const std::vector<std::uint8_t> mask{0, 0};
  std::vector<double> a{7, 7}, g{7, 7};
  const auto r = generalized_advantage_estimation<double>(
      {.reward = {reward, {1, 2}}, .value = {value, {1, 2}}, .mask = {mask, {1, 2}}},
      {.advantage = {a, {1, 2}}, .returns = {g, {1, 2}}});
  CHECK(a[0] == 0);
  CHECK(g[1] == 0);
  CHECK(r.advantage.count == 0);
  CHECK(r.advantage.mean == 0);
  CHECK(r.returns.variance() == 0);
  CHECK(r.tokens == 0);
  CHECK(r.sequences == 0);
  const std::vector<double> nothing;
  std::vector<double> nowhere;
  for (const rlhf::shape& s : {rlhf::shape(3, 0), rlhf::shape(0, 3), rlhf::shape(0, 0)}) {
    const auto none = generalized_advantage_estimation<double>(
        {.reward = {nothing, s}, .value = {nothing, s}}, {.advantage = {nowhere, s}});
    CHECK(none.positions == 0);
  }
}

TEST_CASE(
    "generalized_advantage_estimation: a NaN reaches all earlier tokens of its episode, and is "
    "counted") {
  std::vector<double> reward(20, 1), value(20, 0), a(20);
  const rlhf::shape s{1, 20};
  reward[15] = not_a_number;
  const auto run = [&](const config& c, rlhf::mask_view<> ended = {}) {
    return generalized_advantage_estimation<double>(
        {.reward = {reward, s}, .value = {value, s}, .terminated = ended}, {.advantage = {a, s}},
        c);
  };
  auto r = run({.lambda = 1});
  for (std::size_t t = 0; t < 20; ++t) CHECK(std::isnan(a[t]) == (t <= 15));
  CHECK(r.nonfinite == 1);
  CHECK(std::isnan(r.advantage.mean));
  // an episode's end before it, or lambda 0, holds it back
  std::vector<std::uint8_t> ended(20, 0);
  ended[13] = 1;
  r = run({.lambda = 1}, {ended, s});
  for (std::size_t t = 0; t < 20; ++t) CHECK(std::isnan(a[t]) == (t == 14 || t == 15));
  CHECK(r.nonfinite == 1);
  run({.lambda = 0});
  for (std::size_t t = 0; t < 20; ++t) CHECK(std::isnan(a[t]) == (t == 15));
  // dropped: the token is skipped, or the row
  r = run({.lambda = 1, .nonfinite = rlhf::nonfinite_policy::drop_token});
  CHECK(a[15] == 0);
  CHECK(a[14] == 5);
  CHECK(a[0] == 19);
  CHECK(r.nonfinite == 1);
  CHECK(r.positions == 20);
  CHECK(r.advantage.count == 19);
  r = run({.lambda = 1, .nonfinite = rlhf::nonfinite_policy::drop_sequence});
  CHECK(a[0] == 0);
  CHECK(r.advantage.count == 0);
  a.assign(20, 7);
  CHECK(message_of([&] { run({.nonfinite = rlhf::nonfinite_policy::error}); }) != "");
  CHECK(a[0] == 7);
}

TEST_CASE("generalized_advantage_estimation: results of micro-batches add up") {
  random_numbers random(12);
  const auto reward = drawn<double>(random, 80), value = drawn<double>(random, 80);
  std::vector<double> a(80);
  const auto part = [&](index from, index n) {
    return generalized_advantage_estimation<double>(
        {.reward = {reward.data() + from * 10, {n, index{10}}},
         .value = {value.data() + from * 10, {n, index{10}}}},
        {.advantage = {a.data() + from * 10, {n, index{10}}}});
  };
  const auto all = part(0, 8), sum = part(0, 3) + part(3, 5);
  CHECK(sum.advantage.count == 80);
  CHECK(sum.advantage.mean == doctest::Approx(all.advantage.mean));
  CHECK(sum.advantage.m2 == doctest::Approx(all.advantage.m2));
  CHECK(sum.returns.m2 == doctest::Approx(all.returns.m2));
  CHECK(sum.sequences == 8);
}

TEST_CASE("generalized_advantage_estimation: a broken contract says its name and writes nothing") {
  const std::vector<float> reward(6, 1), value(6, 1), next(6, 1), bootstrap(2, 1), small(5);
  const std::vector<std::uint8_t> cut{0, 1, 0, 0, 0, 0}, last{0, 0, 1, 0, 0, 1};
  const std::vector<float> weights(6, 1);
  std::vector<float> a(6, 7);
  const rlhf::shape s{2, 3};
  using batch = rlhf::generalized_advantage_estimation_batch<float>;
  const auto says = [&](const char* what, const batch& b, const config& c = {}) {
    const std::string message = message_of([&] {
      generalized_advantage_estimation<float>(b, {.advantage = {a, s}}, c);
    });
    INFO("expected ", what, ", received ", message);
    CHECK(message.find("generalized_advantage_estimation") != std::string::npos);
    CHECK(message.find(what) != std::string::npos);
    for (const float x : a) CHECK(x == 7);
  };
  const batch good{.reward = {reward, s}, .value = {value, s}};
  for (const double bad : {-0.1, 1.1, not_a_number}) {
    says("gamma", good, {.gamma = bad});
    says("lambda", good, {.lambda = bad});
  }
  says("reward", {.value = {value, s}});
  says("value", {.reward = {reward, s}});
  says("value", {.reward = {reward, s}, .value = {value, {3, 2}}});
  says("bootstrap_value", {.reward = {reward, s}, .value = {value, s}, .bootstrap_value = small});
  says("bootstrap_value", {.reward = {reward, s},
                           .value = {value, s},
                           .next_value = {next, s},
                           .bootstrap_value = bootstrap});
  says("terminated", {.reward = {reward, s}, .value = {value, s}, .terminated = {weights, s}});
  says("truncated", {.reward = {reward, s}, .value = {value, s}, .truncated = {cut, {3, 2}}});
  says("next_value", {.reward = {reward, s}, .value = {value, s}, .truncated = {cut, s}});
  says("next_value", {.reward = {reward, s},
                      .value = {value, s},
                      .bootstrap_value = bootstrap,
                      .truncated = {cut, s}});
  says("next_value", {.reward = {reward, s}, .value = {value, s}, .truncated = {last, s}});
  says("advantage", {.reward = {a, s}, .value = {value, s}});
  says("mask", {.reward = {reward, s}, .value = {value, s}, .mask = {cut, {3, 2}}});
  // but a row's last valid token may be cut with a bootstrap value, and a terminated one anywhere
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1};
  CHECK(message_of([&] {
          generalized_advantage_estimation<float>({.reward = {reward, s},
                                                   .value = {value, s},
                                                   .bootstrap_value = bootstrap,
                                                   .truncated = {cut, s},
                                                   .mask = {mask, s}},
                                                  {.advantage = {a, s}});
          generalized_advantage_estimation<float>({.reward = {reward, s},
                                                   .value = {value, s},
                                                   .terminated = {cut, s},
                                                   .truncated = {cut, s}},
                                                  {.advantage = {a, s}});
        }) == "");
}

}  // namespace
}  // namespace rlhf_test
