#include "rlhf/value/explained_variance.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "tests/support/backends.hpp"

using namespace rlhf_test;
using rlhf::explained_variance;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("explained_variance: values by hand", B, RLHF_TEST_BACKENDS) {
  // returns 0 2 4 6: m2 = 9 + 1 + 1 + 9 = 20; residual 1 0 1 2: mean 1, m2 = 0 + 1 + 0 + 1 = 2
  const auto value = rows<B>({{-1, 2, 3}, {4, not_a_number, not_a_number}});
  const auto returns = rows<B>({{0, 2, 4}, {6, not_a_number, not_a_number}});
  const auto mask = flags<B>({{1, 1, 1}, {1, 0, 0}});
  const auto r = explained_variance<double>(
      {.value = value.tensor(), .returns = returns.tensor(), .mask = mask.tensor()});
  CHECK(r.defined());
  CHECK(r.explained_variance() == doctest::Approx(1 - 2.0 / 20));
  // squared residuals 1 + 0 + 1 + 4 = 6
  CHECK(r.uncentred() == doctest::Approx(1 - 6.0 / 20));
  CHECK(r.returns.mean == 3);
  CHECK(r.value.mean == 2);
  CHECK(r.residual.mean == 1);
  CHECK(r.tokens == 4);
}

TEST_CASE(
    "explained_variance: a perfect critic explains all, a constant error is free when centred") {
  const numbers returns{1, 2, 4, 8};
  numbers value = returns;
  const auto perfect = explained_variance<double>({.value = value, .returns = returns});
  CHECK(perfect.explained_variance() == 1);
  CHECK(perfect.uncentred() == 1);
  for (double& v : value) v += 3;
  const auto off = explained_variance<double>({.value = value, .returns = returns});
  CHECK(off.explained_variance() == 1);
  CHECK(off.uncentred() < 0);
}

TEST_CASE("explained_variance: returns that do not vary leave nothing to explain") {
  const numbers value{1, 2, 3}, flat(3, 0.1), one{5};
  const auto r = explained_variance<double>({.value = value, .returns = flat});
  CHECK_FALSE(r.defined());
  CHECK(r.explained_variance() == 0);
  CHECK(r.uncentred() == 0);
  CHECK_FALSE(explained_variance<double>({.value = one, .returns = one}).defined());
  const numbers none;
  const auto empty = explained_variance<double>({.value = none, .returns = none});
  CHECK_FALSE(empty.defined());
  CHECK(empty.tokens == 0);
}

TEST_CASE("explained_variance: a mean of 1e6 costs no digit in float, and shards merge") {
  random_numbers random(6);
  const std::size_t n = 5000;
  std::vector<float> value(n), returns(n);
  long double m = 0, m_residual = 0;
  for (std::size_t i = 0; i < n; ++i) {
    returns[i] = static_cast<float>(1e6 + random.uniform(-2, 2));
    value[i] = returns[i] + static_cast<float>(random.uniform(-1, 1));
    m += static_cast<long double>(returns[i]) / n;
    m_residual += (static_cast<long double>(returns[i]) - static_cast<long double>(value[i])) / n;
  }
  long double v = 0, v_residual = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const long double a = static_cast<long double>(returns[i]) - m;
    const long double b =
        static_cast<long double>(returns[i]) - static_cast<long double>(value[i]) - m_residual;
    v += a * a, v_residual += b * b;
  }
  const auto whole = explained_variance<float>({.value = value, .returns = returns});
  CHECK(whole.returns.m2 == doctest::Approx(static_cast<double>(v)).epsilon(1e-6));
  CHECK(whole.explained_variance() ==
        doctest::Approx(static_cast<double>(1 - v_residual / v)).epsilon(1e-6));
  const auto part = [&](rlhf::index from, rlhf::index count) {
    return explained_variance<float>(
        {.value = {value.data() + from, count}, .returns = {returns.data() + from, count}});
  };
  const auto merged = part(0, 17) + part(17, 3000) + part(3017, 0) + part(3017, 1983);
  CHECK(merged.explained_variance() == doctest::Approx(whole.explained_variance()).epsilon(1e-6));
  CHECK(merged.tokens == 5000);
}

TEST_CASE("explained_variance: NaN is seen, or dropped and counted") {
  const numbers value{1, not_a_number, 3, 4}, returns{1, 2, 3, 5};
  CHECK(std::isnan(
      explained_variance<double>({.value = value, .returns = returns}).explained_variance()));
  const auto r = explained_variance<double>({.value = value, .returns = returns}, {},
                                            {.nonfinite = rlhf::nonfinite_policy::drop_token});
  // returns 1 3 5: m2 = 8; residual 0 0 1: m2 = 2/3
  CHECK(r.explained_variance() == doctest::Approx(1 - 2.0 / 24));
  CHECK(r.nonfinite == 1);
  CHECK(r.tokens == 3);
}
