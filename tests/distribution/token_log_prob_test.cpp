#include "rlhf/distribution/token_log_prob.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "rlhf/backend/host.hpp"
#include "tests/support/logits.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::token_log_prob;
using rlhf::token_log_prob_backward;

namespace {

constexpr float infinite_float = std::numeric_limits<float>::infinity();
constexpr float nan_float = std::numeric_limits<float>::quiet_NaN();

template <class T>
struct figures {
  std::vector<T> log_prob, entropy, log_sum_exp, sum_p_squared;
  rlhf::token_log_prob_result result;
};

template <class L, class T = rlhf::compute_of<L>>
figures<T> forward(const std::vector<L>& x, std::size_t classes, const std::vector<int>& label,
                   double temperature = 1) {
  const std::size_t n = label.size();
  figures<T> f{std::vector<T>(n), std::vector<T>(n), std::vector<T>(n), std::vector<T>(n), {}};
  f.result = token_log_prob<L>({.logits = {x, {n, classes}}, .label = label},
                               {.log_prob = f.log_prob,
                                .entropy = f.entropy,
                                .log_sum_exp = f.log_sum_exp,
                                .sum_p_squared = f.sum_p_squared},
                               {.temperature = temperature});
  return f;
}

template <class L, class T = rlhf::compute_of<L>>
std::vector<L> backward(const std::vector<L>& x, std::size_t classes, const std::vector<int>& label,
                        const std::vector<T>& d_log_prob, const std::vector<T>& d_entropy,
                        double temperature = 1) {
  std::vector<L> d(x.size(), L(T(7)));
  token_log_prob_backward<L>({.logits = {x, {label.size(), classes}},
                              .label = label,
                              .d_log_prob = d_log_prob,
                              .d_entropy = d_entropy},
                             {.d_logits = {d, {label.size(), classes}}},
                             {.temperature = temperature});
  return d;
}

std::vector<int> labels(std::size_t n, std::size_t classes) {
  std::vector<int> y;
  for (std::size_t i = 0; i < n; ++i) y.push_back(static_cast<int>(i * 7919 % classes));
  return y;
}

constexpr std::size_t sizes[] = {1, 2, 3, 127, 128, 129, 1023, 1024, 1025, 5000, 32000};

}  // namespace

TEST_CASE("token_log_prob: values by hand") {
  // softmax of (0, ln 2, ln 5) is (1, 2, 5) / 8
  const std::vector<double> x{0, std::log(2.0), std::log(5.0)};
  const auto f = forward(x, 3, {1});
  CHECK(f.log_prob[0] == doctest::Approx(std::log(2.0 / 8)));
  CHECK(f.log_sum_exp[0] == doctest::Approx(std::log(8.0)));
  // −(1/8 ln 1/8 + 2/8 ln 2/8 + 5/8 ln 5/8)
  CHECK(f.entropy[0] ==
        doctest::Approx(-(std::log(0.125) + 2 * std::log(0.25) + 5 * std::log(0.625)) / 8));
  CHECK(f.sum_p_squared[0] == doctest::Approx((1.0 + 4 + 25) / 64));
  CHECK(f.result.accuracy.mean() == 0);
  CHECK(f.result.tokens == 1);
  CHECK(f.result.perplexity() == doctest::Approx(4));
  CHECK(forward(x, 3, {2}).result.accuracy.mean() == 1);
  // gradient of log p_1: (−1, 8 − 2, −5) / 8
  const auto d = backward(x, 3, {1}, {1.0}, {0.0});
  CHECK(d[0] == doctest::Approx(-0.125));
  CHECK(d[1] == doctest::Approx(0.75));
  CHECK(d[2] == doctest::Approx(-0.625));
}

TEST_CASE("token_log_prob: float and double against long double, every size of row") {
  for (const std::size_t classes : sizes) {
    CAPTURE(classes);
    const std::size_t n = 5;
    const auto y = labels(n, classes);
    const auto narrow = normal<float>(n * classes, 3);
    const auto f = forward(narrow, classes, y, 0.7);
    const std::vector<double> wide(narrow.begin(), narrow.end());
    const auto d = forward(wide, classes, y, 0.7);
    for (std::size_t i = 0; i < n; ++i) {
      const auto r = reference_row(narrow.data() + i * classes, classes,
                                   static_cast<std::size_t>(y[i]), static_cast<long double>(0.7));
      // Relative to 1 where the result is small: the error of e^d beside a maximum of 1.
      const auto close = [&](auto value, long double exact, long double unit) {
        return std::abs(static_cast<long double>(value) - exact) <=
               unit * std::max(std::abs(exact), 1.0L / 4);
      };
      CHECK(close(f.log_prob[i], r.log_prob, 0x1p-23L));
      CHECK(close(f.entropy[i], r.entropy, 0x1p-22L));
      CHECK(close(f.log_sum_exp[i], r.log_sum_exp, 0x1p-23L));
      CHECK(close(f.sum_p_squared[i], r.sum_p_squared, 0x1p-21L));
      CHECK(close(d.log_prob[i], r.log_prob, 0x1p-51L));
      CHECK(close(d.entropy[i], r.entropy, 0x1p-50L));
      CHECK(close(d.sum_p_squared[i], r.sum_p_squared, 0x1p-49L));
    }
  }
}

TEST_CASE("token_log_prob: logits up to 1e4 and offsets of 1e5 cost no digits") {
  for (const std::size_t classes : {std::size_t{3}, std::size_t{129}, std::size_t{5000}})
    for (const float offset : {0.0f, 1e5f, -1e5f})
      for (const double spread : {1.0, 3000.0}) {
        CAPTURE(classes);
        CAPTURE(offset);
        CAPTURE(spread);
        auto x = normal<float>(4 * classes, spread);
        for (float& v : x) v = std::max(-1e4f, std::min(1e4f, v)) + offset;
        const auto y = labels(4, classes);
        const auto f = forward(x, classes, y);
        for (std::size_t i = 0; i < 4; ++i) {
          const auto r =
              reference_row(x.data() + i * classes, classes, static_cast<std::size_t>(y[i]));
          if (std::abs(r.log_prob) > 0.1L) CHECK(ulps(f.log_prob[i], r.log_prob) <= 4);
          if (r.entropy > 0.1L) CHECK(ulps(f.entropy[i], r.entropy) <= 8);
          CHECK(std::abs(static_cast<long double>(f.log_prob[i]) - r.log_prob) <=
                0x1p-23L * std::max(0.01L, std::abs(r.log_prob)));
          CHECK(std::abs(static_cast<long double>(f.entropy[i]) - r.entropy) <=
                0x1p-22L * std::max(0.01L, r.entropy));
        }
      }
}

TEST_CASE("token_log_prob: log-probabilities near 0 keep their digits") {
  // Gaps that float holds exactly: log p = −log1p(Σ e^−gap).
  for (const float gap : {5.0f, 12.0f, 20.0f, 40.0f, 60.0f})
    for (const std::size_t classes : {std::size_t{2}, std::size_t{50}, std::size_t{3000}}) {
      CAPTURE(gap);
      CAPTURE(classes);
      std::vector<float> x(classes, -gap);
      x[classes / 2] = 0;
      const auto f = forward(x, classes, {static_cast<int>(classes / 2)});
      const auto r = reference_row(x.data(), classes, classes / 2);
      CHECK(ulps(f.log_prob[0], r.log_prob) <= 4);
      CHECK(ulps(f.entropy[0], r.entropy) <= 8);
      // the gradient of the label, 1 − p, keeps them too
      const auto d = backward(x, classes, {static_cast<int>(classes / 2)}, {1.0f}, {0.0f});
      CHECK(ulps(d[classes / 2], -std::expm1(r.log_prob)) <= 4);
    }
}

TEST_CASE("token_log_prob: a common offset that is exact changes no bit") {
  std::vector<float> x;
  for (int k = 0; k < 3000; ++k) x.push_back(static_cast<float>((k * 37) % 64 - 32) / 8);
  auto shifted = x;
  for (float& v : shifted) v += 1024;
  const auto y = labels(3, 1000);
  for (const double temperature : {1.0, 0.7}) {
    const auto a = forward(x, 1000, y, temperature), b = forward(shifted, 1000, y, temperature);
    CHECK(same_bits(a.log_prob, b.log_prob));
    CHECK(same_bits(a.entropy, b.entropy));
    const std::vector<float> one{1, -1, 2};
    CHECK(same_bits(backward(x, 1000, y, one, one, temperature),
                    backward(shifted, 1000, y, one, one, temperature)));
  }
}

TEST_CASE("token_log_prob: the order of the vocabulary does not matter beyond rounding") {
  auto x = normal<float>(5000, 3);
  const auto a = forward(x, 5000, {17});
  const float label = x[17];
  std::mt19937 random(4);
  std::shuffle(x.begin(), x.end(), random);
  const auto at = static_cast<int>(std::find(x.begin(), x.end(), label) - x.begin());
  const auto b = forward(x, 5000, {at});
  CHECK(a.log_prob[0] == doctest::Approx(static_cast<double>(b.log_prob[0])).epsilon(1e-6));
  CHECK(a.entropy[0] == doctest::Approx(static_cast<double>(b.entropy[0])).epsilon(1e-6));
}

TEST_CASE("token_log_prob: probabilities sum to 1, gradients to 0") {
  const auto x = normal<double>(700, 3);
  double total = 0;
  for (int v = 0; v < 700; ++v) total += std::exp(forward(x, 700, {v}).log_prob[0]);
  CHECK(total == doctest::Approx(1).epsilon(1e-13));
  const auto narrow = normal<float>(32000, 3);
  const auto d = backward(narrow, 32000, {5}, {1.5f}, {0.5f});
  double sum = 0, size = 0;
  for (const float g : d) sum += static_cast<double>(g), size += std::abs(static_cast<double>(g));
  CHECK(std::abs(sum) <= 32000 * 0x1p-24 * size);
  CHECK(std::abs(sum) <= 1e-5 * size);
}

TEST_CASE("token_log_prob: one logit far above the rest") {
  std::vector<float> x(300, 0);
  x[111] = 1e4f;
  CHECK(forward(x, 300, {111}).log_prob[0] == 0);
  CHECK(forward(x, 300, {110}).log_prob[0] == -1e4f);
  CHECK(forward(x, 300, {111}).entropy[0] == 0);
  CHECK(forward(x, 300, {111}).result.accuracy.mean() == 1);
}

TEST_CASE("token_log_prob: uniform logits have entropy log V") {
  for (const std::size_t classes : sizes) {
    CAPTURE(classes);
    const std::vector<float> x(classes, -3.25f);
    const auto f = forward(x, classes, {0});
    CHECK(ulps(f.entropy[0], std::log(static_cast<long double>(classes))) <= 1);
    CHECK(ulps(f.log_prob[0], -std::log(static_cast<long double>(classes))) <= 1);
    CHECK(f.result.accuracy.mean() == 1);  // the first of equals
    if (classes > 1) {
      const auto last = forward(x, classes, {static_cast<int>(classes) - 1});
      CHECK(last.result.accuracy.mean() == 0);
    }
  }
}

TEST_CASE("token_log_prob: temperature divides the logits") {
  const auto x = normal<float>(4 * 129, 3);
  const auto y = labels(4, 129);
  auto halved = x;
  for (float& v : halved) v *= 2;  // exact
  const auto a = forward(x, 129, y, 0.5), b = forward(halved, 129, y);
  for (std::size_t i = 0; i < 4; ++i) {
    CHECK(ulps(a.log_prob[i], static_cast<long double>(b.log_prob[i])) <= 2);
    CHECK(ulps(a.entropy[i], static_cast<long double>(b.entropy[i])) <= 4);
  }
}

TEST_CASE("token_log_prob: classes of -inf take no part") {
  auto x = normal<float>(1500, 3);
  const auto before = forward(x, 1500, {42});
  auto longer = x;
  longer.push_back(-infinite_float);
  const auto after = forward(longer, 1501, {42});
  CHECK(same_bits(before.log_prob, after.log_prob));
  CHECK(same_bits(before.entropy, after.entropy));
  CHECK(same_bits(before.log_sum_exp, after.log_sum_exp));
  const auto d = backward(x, 1500, {42}, {1.0f}, {2.0f});
  auto e = backward(longer, 1501, {42}, {1.0f}, {2.0f});
  CHECK(e.back() == 0);
  CHECK(!std::signbit(e.back()));
  e.pop_back();
  CHECK(same_bits(d, e));

  // Whole tiles of them, first, middle and last.
  std::vector<float> sparse(5000, -infinite_float);
  sparse[1500] = 1, sparse[1700] = 3, sparse[4000] = 2;
  const auto f = forward(sparse, 5000, {4000});
  const std::vector<float> dense{1, 3, 2};
  const auto g = forward(dense, 3, {2});
  CHECK(f.log_prob[0] == doctest::Approx(static_cast<double>(g.log_prob[0])).epsilon(1e-7));
  CHECK(f.entropy[0] == doctest::Approx(static_cast<double>(g.entropy[0])).epsilon(1e-7));
  CHECK(f.result.nonfinite == 0);
  const auto h = backward(sparse, 5000, {4000}, {1.0f}, {1.0f});
  for (std::size_t v = 0; v < 5000; ++v)
    if (sparse[v] == -infinite_float) REQUIRE(h[v] == 0);
}

TEST_CASE("token_log_prob: a label of -inf gives -inf and no NaN") {
  const std::vector<float> x{1, -infinite_float, 2};
  const auto f = forward(x, 3, {1});
  CHECK(f.log_prob[0] == -infinite_float);
  CHECK(std::isfinite(f.entropy[0]));
  CHECK(f.result.nonfinite == 1);
  const auto d = backward(x, 3, {1}, {1.0f}, {0.5f});
  CHECK(std::isfinite(d[0]));
  CHECK(d[1] == 0);
  CHECK(std::isfinite(d[2]));
}

TEST_CASE("token_log_prob: a row with NaN, +inf or nothing finite is NaN and counted") {
  for (const std::size_t classes : {std::size_t{3}, std::size_t{2100}})
    for (const float poison : {nan_float, infinite_float, -infinite_float})
      for (std::size_t place = 0; place < classes; place += classes / 3) {
        CAPTURE(classes);
        CAPTURE(poison);
        CAPTURE(place);
        std::vector<float> x(2 * classes, 1);
        x[place] = poison;
        if (poison == -infinite_float)
          for (std::size_t v = 0; v < classes; ++v) x[v] = poison;
        const auto f = forward(x, classes, {0, 0});
        CHECK(std::isnan(f.log_prob[0]));
        CHECK(std::isnan(f.entropy[0]));
        CHECK(std::isfinite(f.log_prob[1]));
        CHECK(f.result.nonfinite == 1);
        const auto d = backward(x, classes, {0, 0}, {1.0f, 1.0f}, {0.0f, 0.0f});
        for (std::size_t v = 0; v < classes; ++v) REQUIRE(std::isnan(d[v]));
        for (std::size_t v = classes; v < 2 * classes; ++v) REQUIRE(std::isfinite(d[v]));
      }
  // NaN beside nothing but -inf, in a tile of its own
  std::vector<float> x(3000, 0);
  for (std::size_t v = 1024; v < 2048; ++v) x[v] = -infinite_float;
  x[1500] = nan_float;
  CHECK(std::isnan(forward(x, 3000, {0}).log_prob[0]));
}

TEST_CASE("token_log_prob_backward: the gradient is the slope of log_prob and entropy") {
  // Central differences of the long double textbook form.
  for (const std::size_t classes : {std::size_t{2}, std::size_t{7}, std::size_t{40}})
    for (const double temperature : {1.0, 0.7, 2.0}) {
      const auto x = normal<double>(classes, 2, 3);
      const auto y = classes / 2;
      const double up = 0.75, spread = -1.25;  // exact in long double too
      const auto d = backward(x, classes, {static_cast<int>(y)}, {up}, {spread}, temperature);
      for (std::size_t v = 0; v < classes; ++v) {
        const auto loss = [&](long double h) {
          std::vector<long double> z(x.begin(), x.end());
          z[v] += h;
          const auto r = reference_row(z.data(), classes, y, static_cast<long double>(temperature));
          return 0.75L * r.log_prob - 1.25L * r.entropy;
        };
        const long double h = 1e-5L;
        const long double slope =
            (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h);
        CHECK(std::abs(static_cast<long double>(d[v]) - slope) <= 1e-12L);
      }
    }
}

TEST_CASE("token_log_prob_backward: float gradients against long double") {
  for (const std::size_t classes : sizes) {
    CAPTURE(classes);
    const auto x = normal<float>(classes, 3);
    const auto y = classes / 2;
    const auto r = reference_row(x.data(), classes, y);
    const auto d = backward(x, classes, {static_cast<int>(y)}, {0.5f}, {0.25f});
    for (std::size_t v = 0; v < classes; ++v) {
      const long double p = r.p[v], spread = p * (r.log_p[v] + r.entropy);
      const long double exact = 0.5L * ((v == y ? 1 : 0) - p) - 0.25L * spread;
      // e^d doubles the error of d, which is half a unit of its last place
      REQUIRE(std::abs(static_cast<long double>(d[v]) - exact) <=
              0x1p-24L * (p * (8 + 4 * std::abs(r.log_p[v])) + 2 * std::abs(exact)));
    }
  }
}

TEST_CASE("token_log_prob_backward: d_log_sum_exp is carried down") {
  const std::vector<double> x{0, std::log(3.0)};
  std::vector<double> d(2);
  const std::vector<double> two{2};
  token_log_prob_backward<double>({.logits = {x, {1, 2}}, .d_log_sum_exp = two},
                                  {.d_logits = {d, {1, 2}}});
  CHECK(d[0] == doctest::Approx(0.5));
  CHECK(d[1] == doctest::Approx(1.5));
}

TEST_CASE_TEMPLATE("token_log_prob: storage of 16 bits is the float path, rounded at the end", L,
                   rlhf::bfloat16, rlhf::half) {
  for (const std::size_t classes : {std::size_t{3}, std::size_t{129}, std::size_t{2500}}) {
    CAPTURE(classes);
    const auto x = normal<L>(3 * classes, 3);
    std::vector<float> wide;
    for (const L v : x) wide.push_back(static_cast<float>(v));
    const auto y = labels(3, classes);
    const auto a = forward(x, classes, y, 0.7);
    const auto b = forward(wide, classes, y, 0.7);
    CHECK(same_bits(a.log_prob, b.log_prob));
    CHECK(same_bits(a.entropy, b.entropy));
    const std::vector<float> up{1, -2, 0.5f}, spread{0.1f, 0, -1};
    const auto c = backward(x, classes, y, up, spread, 0.7);
    std::vector<L> rounded;
    for (const float g : backward(wide, classes, y, up, spread, 0.7)) rounded.push_back(L(g));
    CHECK(same_bits(c, rounded));
  }
}

TEST_CASE_TEMPLATE("token_log_prob_backward: in place and out of place give the same bits", L,
                   float, double, rlhf::bfloat16, rlhf::half) {
  using T = rlhf::compute_of<L>;
  for (const std::size_t classes :
       {std::size_t{1}, std::size_t{129}, std::size_t{1024}, std::size_t{2500}})
    for (const T entropy_slope : {T(0), T(0.5)}) {
      CAPTURE(classes);
      auto x = normal<L>(3 * classes, 3);
      const auto y = labels(3, classes);
      const std::vector<T> up{1, -2, 0.5}, spread(3, entropy_slope);
      const auto d = backward(x, classes, y, up, spread);
      token_log_prob_backward<L>(
          {.logits = {x, {3, classes}}, .label = y, .d_log_prob = up, .d_entropy = spread},
          {.d_logits = {x, {3, classes}}});
      CHECK(same_bits(x, d));
    }
}

TEST_CASE_TEMPLATE("token_log_prob_backward: a slope of entropy that is 0 changes no bit", L, float,
                   double, rlhf::bfloat16) {
  // Without one the exponentials wait in d_logits, where a row may end within a step of 16.
  using T = rlhf::compute_of<L>;
  const T nothing = -std::numeric_limits<T>::infinity();
  for (const std::size_t classes :
       {std::size_t{1}, std::size_t{40}, std::size_t{1024}, std::size_t{1030}, std::size_t{3000}})
    for (const double spread : {0.5, 40.0}) {
      CAPTURE(classes);
      CAPTURE(spread);
      constexpr std::size_t rows = 5;
      auto x = normal<L>(rows * classes, spread);
      // A label that is the largest, one of two that are, one of -inf, a whole tile of -inf.
      const std::size_t last = classes - 1;
      const std::vector<int> y{int(last), int(classes / 2), 0, int(last), int(last / 3)};
      x[last] = x[classes + classes / 2] = x[classes + classes / 4] = L(T(200));
      x[2 * classes] = L(nothing);
      for (std::size_t v = 0; v < classes && v < 1024; ++v) x[3 * classes + v] = L(nothing);
      const std::vector<T> up{1, -2, 0.5, 3, 1}, none(rows, T(0));
      const auto expected = backward(x, classes, y, up, none);
      std::vector<L> apart(x.size(), L(T(7)));
      const auto call = [&](std::vector<L>& to) {
        return token_log_prob_backward<L>(
            {.logits = {x, {rows, classes}}, .label = y, .d_log_prob = up},
            {.d_logits = {to, {rows, classes}}});
      };
      const auto figures = forward(x, classes, y).result;
      for (std::vector<L>* const to : {&apart, &x}) {
        const auto r = call(*to);
        CHECK(same_bits(*to, expected));
        CHECK(same_bits(std::vector{r.log_prob.sum, r.entropy.sum},
                        std::vector{figures.log_prob.sum, figures.entropy.sum}));
        CHECK(r.accuracy.sum == figures.accuracy.sum);
      }
    }
}

TEST_CASE("token_log_prob_backward: infinite slopes say the same wherever they are written") {
  constexpr std::size_t rows = 4, classes = 1030;
  const float infinite = std::numeric_limits<float>::infinity();
  std::vector<float> x = normal<float>(rows * classes, 2);
  x[7] = -infinite, x[classes + 3] = 300;
  const std::vector<int> y{0, 1029, 5, 600};
  const std::vector<float> up{infinite, -infinite, 3e38f, 1};
  std::vector<float> apart(x.size(), 7.0f), sum(x.size(), 0.0f), in_place = x;
  const auto call = [&](const std::vector<float>& from, const rlhf::output<float>& to) {
    token_log_prob_backward<float>(
        {.logits = {from, {rows, classes}}, .label = y, .d_log_prob = up}, {.d_logits = to});
  };
  call(x, {apart, {rows, classes}});
  call(x, rlhf::add_to(sum, {rows, classes}));
  call(in_place, {in_place, {rows, classes}});
  for (std::size_t k = 0; k < x.size(); ++k)
    for (const float z : {sum[k], in_place[k]})
      CHECK((z == apart[k] || (std::isnan(z) && std::isnan(apart[k]))));
  CHECK(std::isinf(apart[1]));
}

TEST_CASE("token_log_prob: strides, rows that are longer than their classes") {
  const std::size_t n = 4, classes = 1030, stride = 1100;
  const auto dense = normal<float>(n * classes, 3);
  std::vector<float> wide(n * stride, nan_float), columns(n * classes);
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t v = 0; v < classes; ++v) {
      wide[i * stride + v] = dense[i * classes + v];
      columns[v * n + i] = dense[i * classes + v];
    }
  const auto y = labels(n, classes);
  const std::vector<float> up{1, 2, 3, 4}, spread{1, 0, -1, 0};
  const auto expected = forward(dense, classes, y);
  const auto gradient = backward(dense, classes, y, up, spread);
  const auto run = [&](std::vector<float>& x, const rlhf::shape& strides) {
    std::vector<float> log_prob(n), entropy(n);
    const rlhf::view<float> logits(x.data(), {n, classes}, strides);
    const rlhf::view<const float> seen(x.data(), {n, classes}, strides);
    token_log_prob<float>({.logits = seen, .label = y}, {.log_prob = log_prob, .entropy = entropy});
    CHECK(same_bits(log_prob, expected.log_prob));
    CHECK(same_bits(entropy, expected.entropy));
    token_log_prob_backward<float>(
        {.logits = seen, .label = y, .d_log_prob = up, .d_entropy = spread}, {.d_logits = logits});
  };
  run(wide, {stride, 1});
  run(columns, {1, n});
  int wrong = 0;
  for (std::size_t i = 0; i < n; ++i)
    for (std::size_t v = 0; v < stride; ++v) {
      const float got = wide[i * stride + v];
      if (v >= classes) {
        wrong += std::isnan(got) ? 0 : 1;  // beyond the row: untouched
        continue;
      }
      wrong += got == gradient[i * classes + v] ? 0 : 1;
      wrong += columns[v * n + i] == got ? 0 : 1;
    }
  CHECK(wrong == 0);
}

TEST_CASE("token_log_prob: padded, lengths, mask, packed and ignored labels are one batch") {
  // Rows of 3, 0 and 2 tokens.
  const std::size_t classes = 70, time = 3;
  const auto tokens = normal<float>(5 * classes, 3);
  const std::vector<int> y{1, 2, 3, 4, 5};
  const std::vector<float> up{1, 2, 3, 4, 5};
  const std::vector<float> packed_mask{1, 1, 1, 1, 1};
  const std::int64_t offsets[] = {0, 3, 3, 5};
  const int length[] = {3, 0, 2};
  std::vector<float> x(9 * classes, nan_float), slope(9, nan_float);
  std::vector<std::int64_t> label(9, 1 << 30), ignored(9, -100);
  std::vector<std::uint8_t> mask(9, 0);
  const std::size_t place[] = {0, 1, 2, 6, 7};
  for (std::size_t k = 0; k < 5; ++k) {
    for (std::size_t v = 0; v < classes; ++v) x[place[k] * classes + v] = tokens[k * classes + v];
    slope[place[k]] = up[k];
    label[place[k]] = ignored[place[k]] = y[k];
    mask[place[k]] = 1;
  }
  std::vector<float> log_prob(5), d(5 * classes);
  const auto r = token_log_prob<float>(
      {.logits = {tokens, {5, classes}}, .label = y, .layout = rlhf::packed(offsets)},
      {.log_prob = log_prob});
  token_log_prob_backward<float>({.logits = {tokens, {5, classes}},
                                  .label = y,
                                  .d_log_prob = up,
                                  .layout = rlhf::packed(offsets)},
                                 {.d_logits = {d, {5, classes}}});
  CHECK(r.tokens == 5);

  const auto check = [&](const std::vector<std::int64_t>& labels_given, bool with_mask,
                         bool with_lengths) {
    rlhf::mask_view<> m;
    if (with_mask) m = rlhf::mask_view<>(mask, {3, time});
    rlhf::sequence_layout<> layout;
    if (with_lengths) layout = rlhf::lengths(length);
    std::vector<float> got(9, 7), gradient(9 * classes, 7);
    const rlhf::shape all(std::size_t{3}, time, classes);
    const auto s = token_log_prob<float>(
        {.logits = {x, all}, .label = {labels_given, {3, time}}, .mask = m, .layout = layout},
        {.log_prob = {got, {3, time}}});
    token_log_prob_backward<float>({.logits = {x, all},
                                    .label = {labels_given, {3, time}},
                                    .d_log_prob = {slope, {3, time}},
                                    .mask = m,
                                    .layout = layout},
                                   {.d_logits = {gradient, all}});
    CHECK(s.log_prob.sum == r.log_prob.sum);
    CHECK(s.entropy.sum == r.entropy.sum);
    CHECK(s.tokens == 5);
    CHECK(s.nonfinite == 0);
    std::vector<float> expected(9, 0), expected_gradient(9 * classes, 0);
    for (std::size_t k = 0; k < 5; ++k) {
      expected[place[k]] = log_prob[k];
      for (std::size_t v = 0; v < classes; ++v)
        expected_gradient[place[k] * classes + v] = d[k * classes + v];
    }
    CHECK(same_bits(got, expected));
    CHECK(same_bits(gradient, expected_gradient));
    auto in_place = x;
    token_log_prob_backward<float>({.logits = {in_place, all},
                                    .label = {labels_given, {3, time}},
                                    .d_log_prob = {slope, {3, time}},
                                    .mask = m,
                                    .layout = layout},
                                   {.d_logits = {in_place, all}});
    CHECK(same_bits(in_place, expected_gradient));
  };
  check(label, true, false);
  check(label, false, true);
  check(label, true, true);
  check(ignored, false, false);
}

TEST_CASE("token_log_prob: a row has the same bits alone, in a batch, and on any pool") {
  const std::size_t n = 37, classes = 2100;
  const auto x = normal<float>(n * classes, 3);
  const auto y = labels(n, classes);
  const auto all = forward(x, classes, y);
  const std::vector<float> alone(x.begin() + 5 * 2100, x.begin() + 6 * 2100);
  CHECK(forward(alone, classes, {y[5]}).log_prob[0] == all.log_prob[5]);
  std::vector<float> up(n, 0.5f), d(n * classes), e(n * classes);
  const auto expected = backward(x, classes, y, up, up);
  for (const std::ptrdiff_t threads : {1, 2, 3, 64}) {
    const thread_pool pool{threads};
    std::vector<float> log_prob(n);
    const auto r = token_log_prob<float>({.logits = {x, {n, classes}}, .label = y},
                                         {.log_prob = log_prob}, {}, rlhf::parallel{pool});
    CHECK(same_bits(log_prob, all.log_prob));
    CHECK(r.log_prob.sum == all.result.log_prob.sum);
    CHECK(r.entropy.sum == all.result.entropy.sum);
    token_log_prob_backward<float>(
        {.logits = {x, {n, classes}}, .label = y, .d_log_prob = up, .d_entropy = up},
        {.d_logits = {d, {n, classes}}}, {}, rlhf::parallel{pool});
    CHECK(same_bits(d, expected));
  }
}

TEST_CASE("token_log_prob: weights weigh the metrics, results of halves add up") {
  const auto x = normal<double>(4 * 6, 2);
  const std::vector<int> y{0, 1, 2, 3};
  const std::vector<double> w{0.5, 0, 2, 1};
  std::vector<double> log_prob(4);
  const auto r = token_log_prob<double>({.logits = {x, {4, 6}}, .label = y, .mask = w},
                                        {.log_prob = log_prob});
  CHECK(r.tokens == 3.5);
  CHECK(r.positions == 3);
  CHECK(r.log_prob.mean() ==
        doctest::Approx((0.5 * log_prob[0] + 2 * log_prob[2] + log_prob[3]) / 3.5));
  const auto half = [&](std::size_t from) {
    return token_log_prob<double>({.logits = {x.data() + from * 6, {2, 6}},
                                   .label = {y.data() + from, {2}},
                                   .mask = {w.data() + from, {2}}},
                                  {});
  };
  const auto sum = half(0) + half(2);
  CHECK(sum.tokens == r.tokens);
  CHECK(sum.log_prob.mean() == doctest::Approx(r.log_prob.mean()));
  CHECK(sum.entropy.mean() == doctest::Approx(r.entropy.mean()));
  CHECK(sum.accuracy.mean() == doctest::Approx(r.accuracy.mean()));
}

TEST_CASE("token_log_prob: entropy alone needs no label") {
  const std::vector<float> x{0, 0, 0, 0};
  std::vector<float> entropy(2), d(4);
  const auto r = token_log_prob<float>({.logits = {x, {2, 2}}}, {.entropy = entropy});
  CHECK(entropy[1] == doctest::Approx(std::log(2.0)));
  CHECK(r.log_prob.sum == 0);
  const std::vector<float> one{1, 1};
  token_log_prob_backward<float>({.logits = {x, {2, 2}}, .d_entropy = one},
                                 {.d_logits = {d, {2, 2}}});
  CHECK(d == std::vector<float>(4, 0));
}

TEST_CASE("token_log_prob_backward: add_to adds and leaves masked rows alone") {
  const auto x = normal<float>(3 * 200, 2);
  const std::vector<int> y{1, -100, 3};
  const std::vector<float> up{1, nan_float, 2};
  std::vector<float> plain(600), sum(600, 0.5f);
  token_log_prob_backward<float>({.logits = {x, {3, 200}}, .label = y, .d_log_prob = up},
                                 {.d_logits = {plain, {3, 200}}});
  token_log_prob_backward<float>(
      {.logits = {x, {3, 200}}, .label = y, .d_log_prob = up},
      {.d_logits = rlhf::add_to(rlhf::view<float>(sum.data(), {3, 200}))});
  for (std::size_t k = 0; k < 600; ++k) {
    if (k / 200 == 1) {
      REQUIRE(plain[k] == 0);
      REQUIRE(!std::signbit(plain[k]));
      REQUIRE(sum[k] == 0.5f);
    } else {
      REQUIRE(sum[k] == 0.5f + plain[k]);
    }
  }
}

TEST_CASE("token_log_prob: the workspace is enough and all that is used") {
  const auto x = normal<rlhf::bfloat16>(8 * 3000, 2);
  const auto y = labels(8, 3000);
  std::vector<float> up(8, 1);
  std::vector<rlhf::bfloat16> d(8 * 3000);
  const auto call = [&](const auto& exec) {
    return token_log_prob_backward<rlhf::bfloat16>(
        {.logits = {x, {8, 3000}}, .label = y, .d_log_prob = up}, {.d_logits = {d, {8, 3000}}}, {},
        exec);
  };
  const std::size_t bytes = rlhf::workspace_bytes(call);
  std::vector<std::byte> memory(bytes);
  CHECK(call(rlhf::serial{memory.data(), bytes}).tokens == 8);
  CHECK_THROWS_AS(call(rlhf::serial{memory.data(), 64}), rlhf::contract_violation);

  // A row of scratch is for 16 bits and for slopes of the entropy.
  const auto wide = normal<float>(8 * 3000, 2);
  std::vector<float> d_wide(8 * 3000);
  const auto need = [&](const rlhf::signal<const float>& spread) {
    return rlhf::workspace_bytes([&](const auto& exec) {
      return token_log_prob_backward<float>(
          {.logits = {wide, {8, 3000}}, .label = y, .d_log_prob = up, .d_entropy = spread},
          {.d_logits = {d_wide, {8, 3000}}}, {}, exec);
    });
  };
  const std::size_t row = 3000 * sizeof(float);
  CHECK(bytes >= row);
  CHECK(need(up) >= row);
  CHECK(need({}) < row / 8);
}

TEST_CASE("token_log_prob: no tokens") {
  const std::vector<float> x;
  const std::vector<int> y;
  std::vector<float> log_prob;
  const auto r = token_log_prob<float>({.logits = {x, {0, 5}}, .label = y}, {.log_prob = log_prob});
  CHECK(r.tokens == 0);
  CHECK(r.perplexity() == 1);
}

TEST_CASE("token_log_prob: contracts, and nothing is written when one is broken") {
  const auto x = normal<float>(6 * 5, 1);
  std::vector<int> y{0, 1, 2, 3, 4, 0};
  std::vector<float> log_prob(6, 7), up(6, 1), d(30, 7);
  const auto broken = [&](const rlhf::token_log_prob_input<float>& input,
                          const rlhf::token_log_prob_config& config = {}) {
    CHECK_THROWS_AS(token_log_prob<float>(input, {.log_prob = log_prob}, config),
                    rlhf::contract_violation);
    CHECK_THROWS_AS(token_log_prob_backward<float>({.logits = input.logits,
                                                    .label = input.label,
                                                    .d_log_prob = up,
                                                    .mask = input.mask,
                                                    .layout = input.layout},
                                                   {.d_logits = {d, {6, 5}}}, config),
                    rlhf::contract_violation);
    CHECK(log_prob == std::vector<float>(6, 7));
    CHECK(d == std::vector<float>(30, 7));
  };
  const rlhf::token_log_prob_input<float> good{.logits = {x, {6, 5}}, .label = y};
  for (const double t :
       {0.0, -1.0, static_cast<double>(nan_float), static_cast<double>(infinite_float)})
    broken(good, {.temperature = t});
  for (const int bad : {5, -1, -99, 1 << 30, -(1 << 30)}) {
    y[5] = bad;
    broken(good);
    const std::vector<std::int64_t> wide(y.begin(), y.end());
    broken({.logits = {x, {6, 5}}, .label = wide});
  }
  y[5] = -100;
  broken(good, {.ignore_index = -1});
  CHECK(token_log_prob<float>(good, {}).tokens == 5);
  y[5] = 99;  // masked: may be anything
  const std::vector<std::uint8_t> mask{1, 1, 1, 1, 1, 0};
  CHECK(token_log_prob<float>({.logits = {x, {6, 5}}, .label = y, .mask = mask}, {}).tokens == 5);
  y[5] = 0;

  const std::vector<int> short_labels{0, 1, 2};
  broken({.logits = {x, {6, 5}}, .label = short_labels});
  broken({.logits = {x, {6, 5}}});
  broken({.label = y});
  broken({.logits = {x, {30, 1, 1}}, .label = y});
  broken({.logits = x, .label = y});
  const int offsets[] = {0, 5};
  broken({.logits = {x, {6, 5}}, .label = y, .layout = rlhf::packed(offsets)});
  const int length[] = {6};
  broken({.logits = {x, {6, 5}}, .label = y, .layout = rlhf::lengths(length)});
  const float negative[] = {1, 1, 1, 1, 1, -1};
  broken({.logits = {x, {6, 5}}, .label = y, .mask = negative});
  CHECK_THROWS_AS(token_log_prob<float>({.logits = {x, {30, 0}}, .label = y}, {}),
                  rlhf::contract_violation);
}

TEST_CASE("token_log_prob_backward: only exact aliasing of the logits is allowed") {
  auto memory = normal<float>(200, 1);
  const auto before = memory;
  const std::vector<int> y{0, 1, 2};
  const std::vector<float> up{1, 1, 1};
  // Logits: 3 rows of 10 in steps of 20, from element 50.
  const auto call = [&](std::ptrdiff_t from, std::ptrdiff_t stride) {
    const rlhf::view<const float> logits(memory.data() + 50, {3, 10}, {20, 1});
    token_log_prob_backward<float>({.logits = logits, .label = y, .d_log_prob = up},
                                   {.d_logits = rlhf::view<float>(memory.data() + from, {3, 10},
                                                                  {stride, std::ptrdiff_t{1}})});
  };
  for (const std::ptrdiff_t from : {41, 49, 51, 59, 70, 90, 31}) {
    CAPTURE(from);
    CHECK_THROWS_AS(call(from, 20), rlhf::contract_violation);
  }
  CHECK_THROWS_AS(call(50, 21), rlhf::contract_violation);
  CHECK_THROWS_AS(call(45, 10), rlhf::contract_violation);
  CHECK(same_bits(memory, before));
  call(60, 20);   // side by side
  call(120, 20);  // apart
  memory = before;
  call(50, 20);  // in place
  CHECK(memory[50] != before[50]);
  CHECK(memory[60] == before[60]);
  auto logits = normal<float>(30, 1);
  CHECK_THROWS_AS(token_log_prob_backward<float>(
                      {.logits = {logits, {3, 10}}, .label = y, .d_log_prob = up},
                      {.d_logits = rlhf::add_to(rlhf::view<float>(logits.data(), {3, 10}))}),
                  rlhf::contract_violation);
  std::vector<float> log_prob(3);
  CHECK_THROWS_AS(token_log_prob<float>({.logits = {logits, {3, 10}}, .label = y},
                                        {.log_prob = {logits.data() + 3, {3}}}),
                  rlhf::contract_violation);
  CHECK_THROWS_AS(token_log_prob<float>({.logits = {logits, {3, 10}}, .label = y},
                                        {.log_prob = log_prob, .entropy = log_prob}),
                  rlhf::contract_violation);
}
