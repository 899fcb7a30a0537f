#include "rlhf/distribution/policy_from_logits.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "rlhf/backend/host.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/logits.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::clipped_surrogate_from_logits;

namespace {

/// A batch of 3 sequences of 4 slots with holes, garbage where nothing counts.
template <class L, class T = rlhf::compute_of<L>>
struct batch {
  static constexpr std::size_t rows = 3, time = 4;
  std::size_t classes;
  std::vector<L> logits;
  std::vector<std::int64_t> label;
  std::vector<T> old_log_prob, ref_log_prob, advantage;
  std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1, 0, 0, 1, 1, 1, 1};
  std::vector<T> log_prob, entropy, d_log_prob, d_entropy, token_loss, ratio;

  explicit batch(std::size_t v) : classes(v), logits(normal<L>(12 * v, 1.5)) {
    const auto noise = normal<T>(36, 1, 5);
    for (std::size_t k = 0; k < 12; ++k) label.push_back(static_cast<std::int64_t>((k * 31) % v));
    log_prob = entropy = d_log_prob = d_entropy = token_loss = ratio = std::vector<T>(12);
    rlhf::token_log_prob<L>({.logits = {logits, {12, v}}, .label = label}, {.log_prob = log_prob});
    for (std::size_t k = 0; k < 12; ++k) {
      old_log_prob.push_back(log_prob[k] + T(0.3) * noise[k]);
      ref_log_prob.push_back(log_prob[k] + T(0.3) * noise[12 + k]);
      advantage.push_back(noise[24 + k]);
      if (mask[k] != 0) continue;
      label[k] = -7;
      old_log_prob[k] = ref_log_prob[k] = advantage[k] = static_cast<T>(not_a_number);
      for (std::size_t c = 0; c < v; ++c) logits[k * v + c] = L(static_cast<T>(not_a_number));
    }
  }
  rlhf::shape whole() const { return {rows, time, classes}; }

  rlhf::policy_result composed(const rlhf::clipped_surrogate_from_logits_config& c,
                               std::vector<L>& d_logits) {
    const rlhf::token_log_prob_config layer{.temperature = c.temperature};
    rlhf::token_log_prob<L>(
        {.logits = {logits, whole()}, .label = {label, {rows, time}}, .mask = {mask, {rows, time}}},
        {.log_prob = {log_prob, {rows, time}}, .entropy = {entropy, {rows, time}}}, layer);
    rlhf::policy_batch<T> in{.log_prob = {log_prob, {rows, time}},
                             .old_log_prob = {old_log_prob, {rows, time}},
                             .entropy = {entropy, {rows, time}},
                             .advantage = {advantage, {rows, time}},
                             .mask = {mask, {rows, time}}};
    if (c.kl.coefficient.given()) in.ref_log_prob = {ref_log_prob, {rows, time}};
    const auto r = rlhf::clipped_surrogate_loss<T>(in,
                                                   {.d_log_prob = {d_log_prob, {rows, time}},
                                                    .d_entropy = {d_entropy, {rows, time}},
                                                    .token_loss = {token_loss, {rows, time}},
                                                    .ratio = {ratio, {rows, time}}},
                                                   {.clip_low = c.clip_low,
                                                    .clip_high = c.clip_high,
                                                    .dual_clip = c.dual_clip,
                                                    .over = c.over,
                                                    .kl = c.kl,
                                                    .entropy = c.entropy,
                                                    .nonfinite = c.nonfinite});
    rlhf::token_log_prob_backward<L>({.logits = {logits, whole()},
                                      .label = {label, {rows, time}},
                                      .d_log_prob = {d_log_prob, {rows, time}},
                                      .d_entropy = {d_entropy, {rows, time}},
                                      .mask = {mask, {rows, time}}},
                                     {.d_logits = {d_logits, whole()}}, layer);
    return r;
  }

  rlhf::policy_logits_batch<L> fused(const std::vector<L>& x,
                                     const rlhf::clipped_surrogate_from_logits_config& c) const {
    rlhf::policy_logits_batch<L> in{.logits = {x, whole()},
                                    .label = {label, {rows, time}},
                                    .old_log_prob = {old_log_prob, {rows, time}},
                                    .advantage = {advantage, {rows, time}},
                                    .mask = {mask, {rows, time}}};
    if (c.kl.coefficient.given()) in.ref_log_prob = {ref_log_prob, {rows, time}};
    return in;
  }
};

void agree(const rlhf::policy_result& a, const rlhf::policy_result& b, double unit) {
  const auto close = [&](double x, double y) {
    return x == y || std::abs(x - y) <= unit * std::max(1.0, std::abs(y));
  };
  CHECK(close(a.loss, b.loss));
  CHECK(close(a.policy_loss, b.policy_loss));
  CHECK(close(a.kl.sum, b.kl.sum));
  CHECK(close(a.entropy.sum, b.entropy.sum));
  CHECK(a.clip_fraction.sum == b.clip_fraction.sum);
  CHECK(close(a.approx_kl_k1.sum, b.approx_kl_k1.sum));
  CHECK(close(a.approx_kl_k3.sum, b.approx_kl_k3.sum));
  CHECK(a.ratio_min == b.ratio_min);
  CHECK(a.ratio_max == b.ratio_max);
  CHECK(a.tokens == b.tokens);
  CHECK(a.positions == b.positions);
  CHECK(a.sequences == b.sequences);
  CHECK(a.nonfinite == b.nonfinite);
}

}  // namespace

TEST_CASE_TEMPLATE("clipped_surrogate_from_logits: the bits of the three calls it stands for", L,
                   float, double, rlhf::bfloat16) {
  using T = rlhf::compute_of<L>;
  const rlhf::clipped_surrogate_from_logits_config configs[] = {
      {.over = aggregation::token_mean(rlhf::local)},
      {.clip_high = 0.28,
       .dual_clip = 3,
       .over = aggregation::sequence_mean_token_mean(rlhf::local),
       .entropy = {.coefficient = 0.01},
       .temperature = 0.7},
      {.over = aggregation::sequence_mean_token_sum_norm(3, 4),
       .kl = {.coefficient = 0.1},
       .entropy = {.coefficient = 0.5}},
      {.over = aggregation::turn_mean(rlhf::local)}};
  for (const std::size_t classes : {std::size_t{9}, std::size_t{1200}})
    for (const auto& config : configs) {
      CAPTURE(classes);
      batch<L> b(classes);
      std::vector<L> expected(b.logits.size()), got(b.logits.size());
      const auto r = b.composed(config, expected);
      std::vector<T> log_prob(12, 7), entropy(12, 7), token_loss(12, 7), ratio(12, 7);
      const auto s = clipped_surrogate_from_logits<L>(b.fused(b.logits, config),
                                                      {.d_logits = {got, b.whole()},
                                                       .log_prob = {log_prob, {3, 4}},
                                                       .entropy = {entropy, {3, 4}},
                                                       .token_loss = {token_loss, {3, 4}},
                                                       .ratio = {ratio, {3, 4}}},
                                                      config);
      agree(s, r, std::is_same_v<T, float> ? 1e-6 : 1e-14);
      CHECK(same_bits(got, expected));
      CHECK(same_bits(log_prob, b.log_prob));
      CHECK(same_bits(entropy, b.entropy));
      CHECK(same_bits(token_loss, b.token_loss));
      CHECK(same_bits(ratio, b.ratio));
      auto in_place = b.logits;
      clipped_surrogate_from_logits<L>(b.fused(in_place, config),
                                       {.d_logits = {in_place, b.whole()}}, config);
      CHECK(same_bits(in_place, expected));
      const thread_pool pool{3};
      std::vector<L> pooled(got.size());
      const auto p = clipped_surrogate_from_logits<L>(b.fused(b.logits, config),
                                                      {.d_logits = {pooled, b.whole()}}, config,
                                                      rlhf::parallel{pool});
      CHECK(p.loss == s.loss);
      CHECK(same_bits(pooled, expected));
    }
}

TEST_CASE("clipped_surrogate_from_logits: the gradient is the slope of the loss in every logit") {
  const rlhf::clipped_surrogate_from_logits_config config{
      .over = aggregation::token_mean(rlhf::local),
      .kl = {.coefficient = 0.2},
      .entropy = {.coefficient = 0.3},
      .temperature = 1.3};
  batch<double> b(6);
  std::vector<double> d(b.logits.size());
  auto x = b.logits;
  clipped_surrogate_from_logits<double>(b.fused(x, config), {.d_logits = {d, b.whole()}}, config);
  for (std::size_t k = 0; k < x.size(); ++k) {
    if (b.mask[k / 6] == 0) {
      CHECK(d[k] == 0);
      continue;
    }
    const auto loss = [&](double h) {
      x[k] = b.logits[k] + h;
      const double l = clipped_surrogate_from_logits<double>(b.fused(x, config), {}, config).loss;
      x[k] = b.logits[k];
      return l;
    };
    const double h = 1e-4;
    const double slope = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h);
    CHECK(std::abs(d[k] - slope) <= 1e-10);
  }
}

TEST_CASE("clipped_surrogate_from_logits: non-finite tokens are dropped or refused when asked") {
  const auto run = [](batch<double>& b, rlhf::nonfinite_policy policy, std::vector<double>& d) {
    const rlhf::clipped_surrogate_from_logits_config config{
        .over = aggregation::token_mean(rlhf::local), .nonfinite = policy};
    return clipped_surrogate_from_logits<double>(b.fused(b.logits, config),
                                                 {.d_logits = {d, b.whole()}}, config);
  };
  const auto zero_rows = [](const std::vector<double>& d) {
    int n = 0;
    for (std::size_t k = 0; k < 12; ++k) {
      bool zero = true;
      for (std::size_t v = 0; v < 5; ++v) zero = zero && d[5 * k + v] == 0;
      n += zero ? 1 : 0;
    }
    return n;
  };
  batch<double> b(5);
  std::vector<double> d(60, 7);
  b.logits[1 * 5 + 2] = not_a_number;  // token 1 of the first sequence
  b.old_log_prob[8] = not_a_number;    // token 0 of the last
  CHECK(std::isnan(run(b, rlhf::nonfinite_policy::propagate, d).loss));
  const auto dropped = run(b, rlhf::nonfinite_policy::drop_token, d);
  CHECK(std::isfinite(dropped.loss));
  CHECK(dropped.nonfinite == 2);
  CHECK(dropped.tokens == 9);
  CHECK(zero_rows(d) >= 3 + 2);
  const auto fewer = run(b, rlhf::nonfinite_policy::drop_sequence, d);
  CHECK(std::isfinite(fewer.loss));
  CHECK(zero_rows(d) >= 12 - 2);
  std::vector<double> canary(60, 7);
  CHECK_THROWS_AS(run(b, rlhf::nonfinite_policy::error, canary), rlhf::contract_violation);
  CHECK(canary == std::vector<double>(60, 7));
}

namespace {
/// A formula of a user: the loss alone; dual numbers give its slope.
struct square_ratio {
  template <rlhf::lane V>
  RLHF_HOST_DEVICE V operator()(const rlhf::policy_token<V>& t) const {
    return -(t.ratio * t.ratio * t.advantage);
  }
};
}  // namespace

TEST_CASE("policy_loss_from_logits: a formula of one's own, tokens without sequences") {
  const auto x = normal<double>(3 * 4, 1);
  const std::vector<int> y{0, 1, 3};
  const std::vector<double> advantage{1, -2, 0.5};
  std::vector<double> log_prob(3), d(12), expected(12), d_log_prob(3);
  rlhf::token_log_prob<double>({.logits = {x, {3, 4}}, .label = y}, {.log_prob = log_prob});
  std::vector<double> old = log_prob;
  old[0] += 0.5;
  const auto r = rlhf::policy_loss_from_logits<double>(
      square_ratio{},
      {.logits = {x, {3, 4}}, .label = y, .old_log_prob = old, .advantage = advantage},
      {.d_logits = {d, {3, 4}}, .upstream = 2}, {.over = aggregation::token_mean(rlhf::local)});
  // ratios e^−0.5, 1, 1
  CHECK(r.loss == doctest::Approx(-(std::exp(-1.0) - 2 + 0.5) / 3));
  const double slope[] = {-2 * std::exp(-1.0), 4, -1};
  for (std::size_t i = 0; i < 3; ++i) d_log_prob[i] = 2 * slope[i] / 3;
  rlhf::token_log_prob_backward<double>(
      {.logits = {x, {3, 4}}, .label = y, .d_log_prob = d_log_prob},
      {.d_logits = {expected, {3, 4}}});
  for (std::size_t k = 0; k < 12; ++k) CHECK(d[k] == doctest::Approx(expected[k]).epsilon(1e-13));
}

TEST_CASE(
    "clipped_surrogate_from_logits: an infinite upstream says the same wherever it is written") {
  // Without an entropy term the slopes wait in place; add_to goes another way.
  constexpr int rows = 4, classes = 1030;
  const float infinite = std::numeric_limits<float>::infinity();
  std::vector<float> logits, old_log_prob(rows, -6), advantage{1, -2, 0, 0.5f};
  for (int k = 0; k < rows * classes; ++k) logits.push_back(static_cast<float>(k * 7 % 11) / 4);
  logits[3] = -infinite;
  const std::vector<std::int32_t> label{0, 1029, 5, 600};
  const std::vector<float> large{1e38f, -1e38f, 1, 3e38f};
  for (const auto& upstream :
       {rlhf::upstream_scale<float>(infinite), rlhf::upstream_scale<float>(-infinite),
        rlhf::upstream_scale<float>(large)}) {
    std::vector<float> apart(logits.size(), 7.0f), sum(logits.size(), 0.0f), in_place = logits;
    const auto call = [&](const std::vector<float>& from, const rlhf::output<float>& to) {
      rlhf::clipped_surrogate_from_logits<float>({.logits = {from, {rows, classes}},
                                                  .label = label,
                                                  .old_log_prob = old_log_prob,
                                                  .advantage = advantage},
                                                 {.d_logits = to, .upstream = upstream},
                                                 {.over = rlhf::aggregation::token_sum()});
    };
    call(logits, {apart, {rows, classes}});
    call(logits, rlhf::add_to(sum, {rows, classes}));
    call(in_place, {in_place, {rows, classes}});
    bool wild = false;
    for (std::size_t k = 0; k < logits.size(); ++k) {
      wild = wild || !(std::abs(apart[k]) < 1e30f);
      for (const float x : {sum[k], in_place[k]})
        CHECK((x == apart[k] || (std::isnan(x) && std::isnan(apart[k]))));
    }
    CHECK(wild);
  }
}

TEST_CASE("clipped_surrogate_from_logits: packed is padded without the padding") {
  const auto x = normal<float>(5 * 40, 2);
  const std::vector<int> y{1, 2, 3, 4, 5};
  const std::vector<float> old{-3, -4, -2, -3, -4}, advantage{1, -1};
  const int offsets[] = {0, 3, 5}, length[] = {3, 2};
  std::vector<float> d(200), padded(240, 9), e(240, 7), old_padded(6, 9);
  std::vector<int> label(6, -5);
  for (std::size_t k = 0; k < 5; ++k) {
    label[k] = y[k], old_padded[k] = old[k];
    std::copy(x.begin() + static_cast<std::ptrdiff_t>(40 * k),
              x.begin() + static_cast<std::ptrdiff_t>(40 * k + 40),
              padded.begin() + static_cast<std::ptrdiff_t>(40 * k));
  }
  const rlhf::clipped_surrogate_from_logits_config config{
      .over = aggregation::sequence_mean_token_mean(rlhf::local), .entropy = {.coefficient = 0.1}};
  const auto a = clipped_surrogate_from_logits<float>({.logits = {x, {5, 40}},
                                                       .label = y,
                                                       .old_log_prob = old,
                                                       .advantage = rlhf::per_sequence(advantage),
                                                       .layout = rlhf::packed(offsets)},
                                                      {.d_logits = {d, {5, 40}}}, config);
  const auto b = clipped_surrogate_from_logits<float>({.logits = {padded, {2, 3, 40}},
                                                       .label = {label, {2, 3}},
                                                       .old_log_prob = {old_padded, {2, 3}},
                                                       .advantage = advantage,
                                                       .layout = rlhf::lengths(length)},
                                                      {.d_logits = {e, {2, 3, 40}}}, config);
  CHECK(a.loss == b.loss);
  CHECK(a.entropy.sum == b.entropy.sum);
  d.resize(240, 0);
  CHECK(same_bits(d, e));
}

TEST_CASE("clipped_surrogate_from_logits: contracts, and nothing is written when one is broken") {
  batch<float> b(5);
  std::vector<float> d(60, 7);
  const auto broken = [&](const rlhf::policy_logits_batch<float>& in,
                          const rlhf::clipped_surrogate_from_logits_config& config) {
    CHECK_THROWS_AS(clipped_surrogate_from_logits<float>(in, {.d_logits = {d, b.whole()}}, config),
                    rlhf::contract_violation);
    CHECK(d == std::vector<float>(60, 7));
  };
  const auto over = aggregation::token_mean(rlhf::local);
  const auto good = b.fused(b.logits, {.over = over});
  broken(good, {.clip_low = -1, .over = over});
  broken(good, {.dual_clip = 0.5, .over = over});
  broken(good, {.over = over, .kl = {.coefficient = 1}});  // without ref_log_prob
  broken(good, {.over = over, .temperature = 0});
  broken(good, {.over = aggregation::token_mean(0)});
  broken(good, {.over = aggregation::group_mean_token_mean(rlhf::local)});  // without group_id
  auto in = good;
  in.ref_log_prob = {b.ref_log_prob, {3, 4}};  // without a KL term
  broken(in, {.over = over});
  in = good;
  in.old_log_prob = {};
  broken(in, {.over = over});
  in = good;
  in.label = {};
  broken(in, {.over = over});
  b.label[0] = 5;
  broken(good, {.over = over});
}
