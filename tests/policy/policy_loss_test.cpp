#include "rlhf/policy/policy_loss.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "rlhf/policy/clipped_surrogate.hpp"
#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::policy_loss;

namespace {

/// A formula of the user's own, value only: dual numbers give its slope.
struct square_ratio {
  template <rlhf::lane V>
  V operator()(const rlhf::policy_token<V>& t) const {
    return t.ratio * t.ratio * t.advantage + t.log_prob;
  }
};

/// The same with a log-prob of the sampler.
struct behaviour_difference {
  static constexpr bool uses_behaviour_log_prob = true;
  static constexpr bool needs_old_log_prob = false;
  template <rlhf::lane V>
  V operator()(const rlhf::policy_token<V>& t) const {
    return (t.log_prob - t.behaviour_log_prob) * t.advantage;
  }
};

/// Clipped surrogate without its slope, to be compared with the one that has it written out.
struct clipped_value_only {
  template <rlhf::lane V>
  V operator()(const rlhf::policy_token<V>& t) const {
    namespace math = rlhf::math;
    const V low = math::constant<V>(0.8), high = math::constant<V>(1.2);
    const V plain = t.ratio * t.advantage;
    const V cut = math::clamp(t.ratio, low, high) * t.advantage;
    return -math::select(cut < plain, cut, plain);
  }
};

}  // namespace

TEST_CASE("policy_loss: a formula that returns the loss alone gets its slope from dual numbers") {
  const double log_prob[1][2] = {{-1, -2}}, old[1][2] = {{-1.5, -2}}, advantage[1] = {3};
  double gradient[1][2];
  const auto r = policy_loss<double>(
      square_ratio{}, {.log_prob = log_prob, .old_log_prob = old, .advantage = advantage},
      {.d_log_prob = gradient}, {.over = aggregation::token_mean(2)});
  const double ratio = std::exp(0.5);
  CHECK(r.loss == doctest::Approx((3 * ratio * ratio - 1 + 3 - 2) / 2));
  CHECK(gradient[0][0] == doctest::Approx((6 * ratio * ratio + 1) / 2));
  CHECK(gradient[0][1] == doctest::Approx((6.0 + 1) / 2));
}

TEST_CASE(
    "policy_loss: a formula may ask for the sampler's log-probs and do without the old ones") {
  const float log_prob[1][2] = {{-1, -2}}, behaviour[1][2] = {{-3, -2}}, advantage[1] = {2};
  float gradient[1][2];
  const auto r = policy_loss<float>(
      behaviour_difference{},
      {.log_prob = log_prob, .behaviour_log_prob = behaviour, .advantage = advantage},
      {.d_log_prob = gradient}, {.over = aggregation::token_sum()});
  CHECK(r.loss == 4);
  CHECK(gradient[0][0] == 2);
  CHECK(
      message_of([&] {
        policy_loss<float>(behaviour_difference{}, {.log_prob = log_prob, .advantage = advantage},
                           {}, {.over = aggregation::token_sum()});
      }) ==
      "policy_loss: behaviour_log_prob: expected a tensor: this input is required, received none");
}

TEST_CASE("policy_loss: a value-only clipped surrogate equals the built-in one") {
  random_numbers random(4);
  host_matrix<float> now(3, 50), old(3, 50), advantage(3, 50), a(3, 50), b(3, 50);
  for (std::size_t k = 0; k < now.data.size(); ++k) {
    now.data[k] = static_cast<float>(random.uniform(-3, 0));
    old.data[k] = now.data[k] + static_cast<float>(random.uniform(-0.5, 0.5));
    advantage.data[k] = static_cast<float>(random.uniform(-1, 1));
  }
  const rlhf::policy_batch<float> batch{
      .log_prob = now.tensor(), .old_log_prob = old.tensor(), .advantage = advantage.tensor()};
  const auto x = policy_loss<float>(clipped_value_only{}, batch, {.d_log_prob = a.tensor()},
                                    {.over = aggregation::token_mean(150)});
  const auto y = rlhf::clipped_surrogate_loss<float>(batch, {.d_log_prob = b.tensor()},
                                                     {.over = aggregation::token_mean(150)});
  CHECK(x.loss == doctest::Approx(y.loss).epsilon(1e-6));
  for (std::size_t k = 0; k < a.data.size(); ++k)
    CHECK(a.data[k] == doctest::Approx(b.data[k]).epsilon(1e-5));
}

TEST_CASE("policy_loss: upstream may be a number, a scalar in memory, per row or per token") {
  const double log_prob[2][2] = {{-1, -1}, {-1, -1}}, advantage[2] = {1, 1};
  const double per_row[2] = {2, 3}, per_token[2][2] = {{1, 2}, {3, 4}}, scalar = 5;
  double g[2][2];
  const auto call = [&](rlhf::upstream_scale<double> upstream) {
    return rlhf::clipped_surrogate_loss<double>(
               {.log_prob = log_prob, .old_log_prob = log_prob, .advantage = advantage},
               {.d_log_prob = g, .upstream = upstream}, {.over = aggregation::none()})
        .loss;
  };
  CHECK(call(2) == -4);
  CHECK((g[0][0] == -2 && g[1][1] == -2));
  CHECK(call(rlhf::device_scalar{&scalar}) == -4);
  CHECK((g[0][0] == -5 && g[1][1] == -5));
  CHECK(call(per_row) == -4);
  CHECK((g[0][1] == -2 && g[1][0] == -3));
  CHECK(call(per_token) == -4);
  CHECK((g[0][0] == -1 && g[0][1] == -2 && g[1][0] == -3 && g[1][1] == -4));
}

TEST_CASE("policy_loss: an upstream number that is not finite leaves masked tokens alone") {
  // Blocks of 128 tokens that are whole, empty and broken; the last row counts nothing.
  constexpr std::ptrdiff_t rows = 3, columns = 400;
  random_numbers random(31);
  std::vector<float> log_prob, old, advantage, weight;
  std::vector<std::uint8_t> flag;
  const std::vector<std::int32_t> length{400, 290, 0};
  const std::vector<std::int64_t> offset{0, 400, 800, 1200};
  for (std::ptrdiff_t i = 0; i < rows; ++i)
    for (std::ptrdiff_t j = 0; j < columns; ++j) {
      const bool counted =
          j < length[static_cast<std::size_t>(i)] && (j < 128 || (j >= 256 && random.chance(0.7)));
      flag.push_back(counted ? 1 : 0);
      weight.push_back(counted ? 0.5f : 0.0f);
      log_prob.push_back(static_cast<float>(counted ? random.uniform(-2, 0) : not_a_number));
      old.push_back(log_prob.back());
      advantage.push_back(static_cast<float>(counted ? random.uniform(-1, 1) : not_a_number));
    }
  const rlhf::shape shape(rows, columns), flat(rows * columns);
  const auto check = [&](const rlhf::shape& s, const rlhf::mask_view<>& mask,
                         const rlhf::sequence_layout<>& layout, bool tokens, double upstream,
                         const aggregation& over) {
    std::vector<float> gradient(flag.size(), 7), loss(flag.size(), 7);
    const rlhf::policy_batch<float> batch{.log_prob = {log_prob, s},
                                          .old_log_prob = {old, s},
                                          .advantage = {advantage, s},
                                          .mask = mask,
                                          .layout = layout};
    rlhf::policy_output<float> out{.d_log_prob = rlhf::view<float>(gradient, s),
                                   .upstream = upstream};
    if (tokens) out.token_loss = rlhf::view<float>(loss, s);
    const auto r = rlhf::clipped_surrogate_loss<float>(batch, out, {.over = over});
    CHECK(r.ratio.mean() == 1);
    std::size_t wrong = 0;
    for (std::size_t k = 0; k < flag.size(); ++k) {
      if (flag[k] != 0) {
        wrong += std::isfinite(gradient[k]) ? 1u : 0u;
        continue;
      }
      wrong += gradient[k] != 0 || std::signbit(gradient[k]) ? 1u : 0u;
      if (tokens) wrong += loss[k] != 0 || std::signbit(loss[k]) ? 1u : 0u;
    }
    CHECK(wrong == 0);
  };
  for (const bool tokens : {false, true}) {
    for (const double upstream : {infinite, -infinite, not_a_number, 1e42}) {
      CAPTURE(upstream);
      const auto over = aggregation::token_mean(rlhf::local);
      check(shape, {flag, shape}, {}, tokens, upstream, over);
      check(shape, {weight, shape}, {}, tokens, upstream, over);
      check(shape, {flag, shape}, rlhf::lengths(length), tokens, upstream, over);
      check(flat, {flag, flat}, rlhf::packed(offset), tokens, upstream, over);
      check(flat, {weight, flat}, rlhf::packed(offset), tokens, upstream, over);
    }
    check(shape, {flag, shape}, {}, tokens, 1, aggregation::token_mean(1e-45));
  }
}

TEST_CASE("policy_loss: normaliser and coefficients may be scalars in the executor's memory") {
  const double log_prob[1][2] = {{-1, -1}}, ref[1][2] = {{-2, -2}}, advantage[1] = {1};
  const double tokens = 8, beta = 0.25;
  double g[1][2];
  const auto r = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = log_prob, .old_log_prob = log_prob, .ref_log_prob = ref, .advantage = advantage},
      {.d_log_prob = g},
      {.over = aggregation::token_mean(rlhf::device_scalar{&tokens}),
       .kl = {.coefficient = rlhf::device_scalar{&beta}, .estimator = rlhf::kl_estimator::k2}});
  CHECK(r.loss == doctest::Approx((-2 + 0.25 * 2 * 0.5) / 8));
}

TEST_CASE("policy_loss: results of micro-batches add up") {
  const rlhf::policy_result a{
      .loss = 1, .clip_fraction = {2, 4}, .ratio_min = 0.5, .ratio_max = 2, .tokens = 4};
  const rlhf::policy_result b{
      .loss = 2, .clip_fraction = {1, 6}, .ratio_min = 0.7, .ratio_max = 3, .tokens = 6};
  const auto c = a + b;
  CHECK(c.loss == 3);
  CHECK(c.clip_fraction.mean() == doctest::Approx(0.3));
  CHECK(c.ratio_min == 0.5);
  CHECK(c.ratio_max == 3);
  CHECK(c.tokens == 10);
}

TEST_CASE("policy_loss: a dry run touches nothing, whatever is dropped and however many threads") {
  const float x[2][3] = {{-1, -1, -1}, {-1, -1, -1}}, advantage[2] = {1, 1};
  for (const auto policy : {rlhf::nonfinite_policy::propagate, rlhf::nonfinite_policy::drop_token,
                            rlhf::nonfinite_policy::drop_sequence}) {
    const auto need = [&](std::ptrdiff_t threads) {
      return rlhf::workspace_bytes(
          [&](const auto& exec) {
            return rlhf::clipped_surrogate_loss<float>(
                {.log_prob = x, .old_log_prob = x, .advantage = advantage}, {},
                {.over = aggregation::token_sum(), .nonfinite = policy}, exec);
          },
          threads);
    };
    CHECK(need(1) > 0);
    CHECK(need(4) >= need(1));
  }
}

TEST_CASE("policy_loss: the workspace depends on shapes alone") {
  std::vector<float> x(2 * 5000, -1);
  const float advantage[2] = {1, 1};
  const auto need = [&](std::int32_t length) {
    const std::vector<std::int32_t> n{length, length};
    return rlhf::workspace_bytes(
        [&](const auto& exec) {
          return rlhf::clipped_surrogate_loss<float>({.log_prob = {x, {2, 5000}},
                                                      .old_log_prob = {x, {2, 5000}},
                                                      .advantage = advantage,
                                                      .layout = rlhf::lengths(n)},
                                                     {}, {.over = aggregation::token_sum()}, exec);
        },
        4);
  };
  CHECK(need(1) == need(5000));
}

TEST_CASE("policy_loss: a forgotten count is refused in the KL and entropy terms too") {
  const double x[1][2] = {{-1, -1}}, advantage[1] = {1};
  const auto call = [&](rlhf::kl_term kl, rlhf::entropy_term entropy) {
    return message_of([&] {
      rlhf::policy_batch<double> batch{
          .log_prob = x, .old_log_prob = x, .entropy = x, .advantage = advantage};
      if (kl.coefficient.given()) batch.ref_log_prob = x;
      rlhf::clipped_surrogate_loss<double>(
          batch, {}, {.over = aggregation::token_mean(2), .kl = kl, .entropy = entropy});
    });
  };
  CHECK(call({}, {}) == "");
  CHECK(call({.coefficient = 0.5, .over = aggregation::token_mean(0)}, {}) != "");
  CHECK(call({}, {.coefficient = 0.5, .over = aggregation::token_mean(0)}) != "");
}

TEST_CASE("policy_loss: a term that is off brings no fields with it") {
  const double x[1][2] = {{-1, -1}}, advantage[1] = {1};
  const std::vector<std::int64_t> id{1};
  CHECK(message_of([&] {
          rlhf::clipped_surrogate_loss<double>(
              {.log_prob = x, .old_log_prob = x, .advantage = advantage, .group_id = id}, {},
              {.over = aggregation::token_sum(),
               .kl = {.over = aggregation::group_mean_token_mean(1)}});
        }) ==
        "clipped_surrogate_loss: group_id: expected to be left out: this call does not use it, "
        "received one");
}

TEST_CASE("policy_loss: saturated counts tokens, not weights, and the KL term's bound as well") {
  const double now[1][3] = {{-1, -101, -1}}, old[1][3] = {{-101, -101, -1}},
               ref[1][3] = {{-1, -1, -1}};
  const double advantage[1] = {1}, weight[1][3] = {{0.25, 0.25, 0.25}};
  const auto r = rlhf::clipped_surrogate_loss<double>(
      {.log_prob = now,
       .old_log_prob = old,
       .ref_log_prob = ref,
       .advantage = advantage,
       .mask = weight},
      {}, {.over = aggregation::token_sum(), .kl = {.coefficient = 1}});
  CHECK(r.saturated == 2);  // the ratio of the first, exp(-delta) of the second
}
