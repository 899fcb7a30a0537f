#include "rlhf/kl/kl_estimate.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"

using namespace rlhf_test;
using rlhf::aggregation;
using rlhf::kl_estimate;
using rlhf::kl_estimator;
using rlhf::kl_weighting;
using numbers = std::vector<double>;

namespace {

constexpr kl_estimator estimators[] = {kl_estimator::k1, kl_estimator::k2, kl_estimator::k3,
                                       kl_estimator::absolute};
constexpr kl_weighting weightings[] = {kl_weighting::plain, kl_weighting::ratio,
                                       kl_weighting::straight_through, kl_weighting::score};

numbers softmax(const numbers& z) {
  double sum = 0;
  for (const double x : z) sum += std::exp(x);
  numbers p;
  for (const double x : z) p.push_back(std::exp(x) / sum);
  return p;
}

/// The expected gradient, with respect to the logits of the policy, of an estimator used as a loss:
/// every answer enumerated, weighed by its probability under the policy that samples.
numbers expected_gradient(const numbers& logits, const numbers& ref_logits,
                          const numbers& old_logits, kl_estimator estimator, kl_weighting weighting,
                          double* value = nullptr) {
  const numbers p = softmax(logits), q = softmax(ref_logits), o = softmax(old_logits);
  const auto n = static_cast<rlhf::index>(p.size());
  numbers log_p, log_q, log_o, d(p.size());
  for (std::size_t i = 0; i < p.size(); ++i)
    log_p.push_back(std::log(p[i])), log_q.push_back(std::log(q[i])),
        log_o.push_back(std::log(o[i]));
  rlhf::kl_estimate_batch<double> batch{
      .log_prob = {log_p, {1, n}}, .ref_log_prob = {log_q, {1, n}}, .mask = {o, {1, n}}};
  if (weighting == kl_weighting::ratio) batch.old_log_prob = {log_o, {1, n}};
  const auto r = kl_estimate<double>(
      batch, {.d_log_prob = {d, {1, n}}},
      {.estimator = estimator, .weighting = weighting, .over = aggregation::token_sum()});
  if (value != nullptr) *value = r.loss;
  double sum = 0;
  for (const double x : d) sum += x;
  numbers g;  // d log p_i / d z_j = [i = j] − p_j
  for (std::size_t j = 0; j < p.size(); ++j) g.push_back(d[j] - p[j] * sum);
  return g;
}

double kl_of(const numbers& p, const numbers& q) {
  double s = 0;
  for (std::size_t i = 0; i < p.size(); ++i) s += p[i] * std::log(p[i] / q[i]);
  return s;
}

/// d KL(p || q) / d z = p (log p/q − KL); d KL(q || p) / d z = p − q.
numbers reverse_gradient(const numbers& p, const numbers& q) {
  numbers g;
  for (std::size_t i = 0; i < p.size(); ++i)
    g.push_back(p[i] * (std::log(p[i] / q[i]) - kl_of(p, q)));
  return g;
}

double distance(const numbers& a, const numbers& b) {
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) most = std::fmax(most, std::fabs(a[i] - b[i]));
  return most;
}

}  // namespace

TEST_CASE_TEMPLATE("kl_estimate: values by hand", B, RLHF_TEST_BACKENDS) {
  // delta = ln 2, -ln 2, 0, masked: k3 = 1/2 - 1 + ln 2, 2 - 1 - ln 2, 0
  const double ln2 = std::log(2.0);
  const auto log_prob = rows<B>({{-1, -1 - ln2}, {-3, not_a_number}});
  const auto ref_log_prob = rows<B>({{-1 - ln2, -1}, {-3, not_a_number}});
  const auto mask = flags<B>({{1, 1}, {1, 0}});
  auto kl = rows<B>({{7, 7}, {7, 7}});
  auto slope = rows<B>({{7, 7}, {7, 7}});
  const auto run = [&](kl_estimator estimator) {
    return kl_estimate<double>({.log_prob = log_prob.tensor(),
                                .ref_log_prob = ref_log_prob.tensor(),
                                .mask = mask.tensor()},
                               {.kl = kl.tensor(), .d_log_prob = slope.tensor()},
                               {.estimator = estimator, .over = aggregation::token_sum()});
  };
  const auto r3 = run(kl_estimator::k3);
  CHECK(kl(0, 0) == doctest::Approx(ln2 - 0.5));
  CHECK(kl(0, 1) == doctest::Approx(1 - ln2));
  CHECK(kl(1, 0) == 0);
  CHECK(kl(1, 1) == 0);
  CHECK(r3.loss == doctest::Approx(0.5));
  CHECK(r3.kl.mean() == doctest::Approx(0.5 / 3));
  CHECK(r3.kl_per_sequence.mean() == doctest::Approx(0.25));
  CHECK(slope(0, 0) == doctest::Approx(0.5));  // 1 - e^-ln2
  CHECK(slope(0, 1) == doctest::Approx(-1));   // 1 - e^ln2
  CHECK(slope(1, 1) == 0);
  CHECK(r3.kl_max == doctest::Approx(1 - ln2));
  CHECK(r3.tokens == 3);
  CHECK(run(kl_estimator::k1).loss == doctest::Approx(0));
  CHECK(slope(0, 1) == 1);
  CHECK(kl(0, 1) == doctest::Approx(-ln2));  // a negative estimate keeps its sign
  CHECK(run(kl_estimator::k2).loss == doctest::Approx(ln2 * ln2));
  CHECK(slope(0, 1) == doctest::Approx(-ln2));
  CHECK(run(kl_estimator::absolute).loss == doctest::Approx(2 * ln2));
  CHECK(slope(0, 1) == -1);
  CHECK(slope(1, 0) == 0);
}

TEST_CASE("kl_estimate: the table of gradients holds by exact enumeration") {
  const numbers z{0.3, -1.1, 0.8, 0.1, -0.4}, ref{-0.2, 0.5, 0.1, -1.3, 0.9};
  const numbers p = softmax(z), q = softmax(ref);
  const numbers zero(5, 0), reverse = reverse_gradient(p, q);
  numbers forward;
  for (std::size_t i = 0; i < 5; ++i) forward.push_back(p[i] - q[i]);
  const auto on_policy = [&](kl_estimator e, kl_weighting w) {
    return expected_gradient(z, ref, z, e, w);
  };
  // plain: k1 nothing, k2 the reverse KL, k3 the forward KL, absolute twice the total variation
  CHECK(distance(on_policy(kl_estimator::k1, kl_weighting::plain), zero) < 1e-15);
  CHECK(distance(on_policy(kl_estimator::k2, kl_weighting::plain), reverse) < 1e-14);
  CHECK(distance(on_policy(kl_estimator::k3, kl_weighting::plain), forward) < 1e-14);
  numbers variation;  // d/dz of sum |p - q|
  double mean_sign = 0;
  for (std::size_t i = 0; i < 5; ++i) mean_sign += p[i] * (p[i] > q[i] ? 1 : -1);
  for (std::size_t i = 0; i < 5; ++i)
    variation.push_back(p[i] * ((p[i] > q[i] ? 1 : -1) - mean_sign));
  CHECK(distance(on_policy(kl_estimator::absolute, kl_weighting::plain), variation) < 1e-14);
  // score: k1 and k3 the reverse KL
  CHECK(distance(on_policy(kl_estimator::k1, kl_weighting::score), reverse) < 1e-14);
  CHECK(distance(on_policy(kl_estimator::k3, kl_weighting::score), reverse) < 1e-14);
  // straight_through: every estimator the reverse KL
  for (const auto e : estimators)
    CHECK(distance(on_policy(e, kl_weighting::straight_through), reverse) < 1e-14);
}

TEST_CASE("kl_estimate: with ratio weighting value and gradient are unbiased off policy") {
  const numbers z{0.3, -1.1, 0.8, 0.1}, ref{-0.2, 0.5, 0.1, -1.3}, old{0.1, 0.2, -0.5, 0.4};
  const numbers p = softmax(z), q = softmax(ref);
  for (const auto e : {kl_estimator::k1, kl_estimator::k3}) {
    double value = 0;
    const numbers g = expected_gradient(z, ref, old, e, kl_weighting::ratio, &value);
    CHECK(value == doctest::Approx(kl_of(p, q)).epsilon(1e-13));
    CHECK(distance(g, reverse_gradient(p, q)) < 1e-14);
  }
}

TEST_CASE("kl_estimate: E[k1] and E[k3] are the KL, and all are 0 at equality") {
  const numbers z{1.3, -0.1, 0.4}, ref{0, 0.7, -0.3};
  for (const auto e : {kl_estimator::k1, kl_estimator::k3}) {
    double value = 0;
    expected_gradient(z, ref, z, e, kl_weighting::plain, &value);
    CHECK(value == doctest::Approx(kl_of(softmax(z), softmax(ref))).epsilon(1e-13));
  }
  for (const auto e : estimators)
    for (const auto w : weightings) {
      double value = 1;
      const numbers g = expected_gradient(z, z, z, e, w, &value);
      CHECK(value == 0);
      CHECK(distance(g, numbers(3, 0)) == 0);
    }
}

TEST_CASE("kl_estimate: where it is the gradient of its loss, it is the slope of its loss") {
  random_numbers random(17);
  numbers log_prob(6), ref(6), old(6), d(6), weight{1, 0.5, 2, 0, 1, 1};
  for (auto* v : {&log_prob, &ref, &old})
    for (double& x : *v) x = random.uniform(-3, -0.1);
  for (const auto e : estimators)
    for (const auto w : {kl_weighting::plain, kl_weighting::ratio}) {
      const auto run = [&](const rlhf::kl_estimate_output<double>& output) {
        rlhf::kl_estimate_batch<double> batch{.log_prob = {log_prob, {2, 3}},
                                              .ref_log_prob = {ref, {2, 3}},
                                              .mask = {weight, {2, 3}}};
        if (w == kl_weighting::ratio) batch.old_log_prob = {old, {2, 3}};
        return kl_estimate<double>(
            batch, output,
            {.estimator = e, .weighting = w, .over = aggregation::sequence_mean_token_mean(2)});
      };
      run({.d_log_prob = {d, {2, 3}}, .upstream = -1.5});
      const auto loss = [&] { return run({}).loss; };
      for (std::size_t i = 0; i < 6; ++i)
        CHECK(d[i] == doctest::Approx(-1.5 * slope_of(loss, log_prob[i])).epsilon(1e-9));
    }
}

TEST_CASE("kl_estimate: a step against the gradient lowers the KL, far from the reference too") {
  const numbers ref(3, 0.0);
  for (const double drift : {0.1, 3.0, 10.0, 20.0}) {
    numbers z{drift, 0, 0};
    const double before = kl_of(softmax(z), softmax(ref));
    const numbers g = expected_gradient(z, ref, z, kl_estimator::k3, kl_weighting::score);
    double norm = 0;
    for (const double x : g) norm += x * x;
    CHECK(norm > 0);
    for (std::size_t i = 0; i < 3; ++i) z[i] -= 1e-3 / std::sqrt(norm) * g[i];
    CHECK(kl_of(softmax(z), softmax(ref)) < before);
  }
}

TEST_CASE("kl_estimate: k3 keeps a gradient far out and stays finite beyond exp's range") {
  const std::vector<float> log_prob{-3, -10, -20, -1e4f, 0}, ref{0, 0, 0, 0, -1e4f};
  std::vector<float> d(5), kl(5);
  const auto r = kl_estimate<float>({.log_prob = {log_prob, {1, 5}}, .ref_log_prob = {ref, {1, 5}}},
                                    {.kl = {kl, {1, 5}}, .d_log_prob = {d, {1, 5}}},
                                    {.over = aggregation::token_sum()});
  CHECK(d[0] == doctest::Approx(1 - std::exp(3.0)));
  CHECK(d[1] == doctest::Approx(1 - std::exp(10.0)));
  CHECK(d[2] == doctest::Approx(1 - std::exp(20.0)));
  CHECK(d[3] == doctest::Approx(-std::exp(80.0)));
  CHECK(std::isfinite(kl[3]));
  CHECK(kl[4] == 9999);
  CHECK(d[4] == 1);
  CHECK(r.saturated == 1);
  CHECK(r.nonfinite == 0);
}

TEST_CASE("kl_estimate: k3 is never below 0 and does not cancel near 0 in float") {
  for (int i = -2000; i <= 2000; ++i) {
    const float x = static_cast<float>(i) * 1e-6f;
    const std::vector<float> log_prob{x}, ref{0};
    std::vector<float> kl(1);
    kl_estimate<float>({.log_prob = {log_prob, {1, 1}}, .ref_log_prob = {ref, {1, 1}}},
                       {.kl = {kl, {1, 1}}}, {.over = aggregation::token_sum()});
    CHECK(kl[0] >= 0);
    const long double d = static_cast<long double>(x);
    const long double exact = std::expm1(-d) + d;
    if (i > 100 || i < -100)
      CHECK(std::fabs(static_cast<long double>(kl[0]) - exact) <= 6e-7L * exact);
  }
}

TEST_CASE(
    "kl_estimate: the clamps of peers cut the value and the gradient, straight_through keeps it") {
  // delta 25 and -12; verl: inside at 20, outside at 10
  const numbers log_prob{0, -12, -0.5}, ref{-25, 0, -1};
  numbers kl(3), d(3);
  const auto run = [&](kl_weighting w) {
    kl_estimate<double>(
        {.log_prob = {log_prob, {1, 3}}, .ref_log_prob = {ref, {1, 3}}},
        {.kl = {kl, {1, 3}}, .d_log_prob = {d, {1, 3}}},
        {.weighting = w, .input_clamp = 20, .output_clamp = 10, .over = aggregation::token_sum()});
  };
  run(kl_weighting::plain);
  CHECK(kl[0] == 10);
  CHECK(kl[1] == 10);
  CHECK(d[0] == 0);
  CHECK(d[1] == 0);
  CHECK(d[2] == doctest::Approx(1 - std::exp(-0.5)));
  run(kl_weighting::straight_through);
  CHECK(kl[0] == 10);
  CHECK(d == numbers{25, -12, 0.5});
}

TEST_CASE("kl_estimate: an empty mask is silence, NaN in a counted token is not") {
  const numbers x{not_a_number, 1};
  const std::vector<std::uint8_t> none{0, 0};
  numbers d(2, 7);
  const auto r = kl_estimate<double>(
      {.log_prob = {x, {1, 2}}, .ref_log_prob = {x, {1, 2}}, .mask = {none, {1, 2}}},
      {.d_log_prob = {d, {1, 2}}}, {.over = aggregation::token_mean(rlhf::local)});
  CHECK(r.loss == 0);
  CHECK(r.kl_per_sequence.mean() == 0);
  CHECK(d == numbers{0, 0});
  const auto seen = kl_estimate<double>({.log_prob = {x, {1, 2}}, .ref_log_prob = {x, {1, 2}}}, {},
                                        {.over = aggregation::token_sum()});
  CHECK(std::isnan(seen.loss));
  CHECK(seen.nonfinite == 1);
}

TEST_CASE("kl_estimate: a broken contract names itself and writes nothing") {
  const numbers x{1, 2};
  numbers d(2, 7);
  const rlhf::view<const double> v(x.data(), {1, 2});
  const auto over = aggregation::token_sum();
  const auto broken = [&](const rlhf::kl_estimate_batch<double>& batch,
                          const rlhf::kl_estimate_config& config) {
    const std::string m = message_of([&] {
      kl_estimate<double>(batch, {.d_log_prob = {d, {1, 2}}}, config);
    });
    CHECK(d == numbers(2, 7));
    return m;
  };
  CHECK(broken({.log_prob = v}, {.over = over}) ==
        "kl_estimate: ref_log_prob: expected a tensor: this input is required, received none");
  CHECK(broken({.log_prob = v, .ref_log_prob = v},
               {.weighting = kl_weighting::ratio, .over = over}) ==
        "kl_estimate: old_log_prob: expected a tensor: this input is required, received none");
  CHECK(broken({.log_prob = v, .old_log_prob = v, .ref_log_prob = v}, {.over = over}) ==
        "kl_estimate: old_log_prob: expected to be left out: this call does not use it, received "
        "one");
  CHECK(broken({.log_prob = v, .ref_log_prob = v}, {.output_clamp = -1, .over = over})
            .find("output_clamp") != std::string::npos);
  CHECK(broken({.log_prob = v, .ref_log_prob = v}, {.over = aggregation::group_mean_token_mean(1)})
            .find("group_id") != std::string::npos);
}
