#include "rlhf/statistics/moments.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "tests/support/backends.hpp"

namespace rlhf_test {
namespace {

using rlhf::moments;

moments of(const std::vector<double>& x) {
  moments m;
  for (const double v : x) m.add(v);
  return m;
}

bool same_bits(const moments& a, const moments& b) { return std::memcmp(&a, &b, sizeof a) == 0; }

TEST_CASE("moments: values by hand") {
  // 2, 4, 4, 6: mean 4, squares 4 + 0 + 0 + 4
  const moments m = of({2, 4, 4, 6});
  CHECK(m.count == 4);
  CHECK(m.mean == 4);
  CHECK(m.m2 == 8);
  CHECK(m.variance() == doctest::Approx(8.0 / 3));
  CHECK(m.variance(0) == 2);
}

TEST_CASE("moments: fewer numbers than the variance needs have variance 0") {
  CHECK(moments().mean == 0);
  CHECK(moments().variance() == 0);
  CHECK(moments().variance(0) == 0);
  CHECK(of({3}).mean == 3);
  CHECK(of({3}).variance() == 0);
  CHECK(of({3}).variance(0) == 0);
  CHECK(of({3, 5}).variance(2) == 0);
  CHECK(of({3, 5}).variance(3) == 0);
}

TEST_CASE("moments: nothing at all is the identity of a merge, to the bit") {
  const moments m = of({0.1, 0.7, -3});
  CHECK(same_bits(m + moments(), m));
  CHECK(same_bits(moments() + m, m));
  CHECK(same_bits(moments() + moments(), moments()));
}

TEST_CASE("moments: every tree of merges gives the same, one by one as well") {
  random_numbers random(3);
  std::vector<double> x;
  for (int k = 0; k < 200; ++k) x.push_back(random.uniform(-3, 5));
  const moments all = of(x);
  for (int round = 0; round < 20; ++round) {
    std::vector<moments> parts;
    for (std::size_t k = 0; k < x.size();) {
      std::vector<double> part;
      for (auto n = static_cast<std::size_t>(random.below(9)); n > 0 && k < x.size(); --n)
        part.push_back(x[k++]);
      parts.push_back(of(part));
    }
    while (parts.size() > 1) {
      const auto at = static_cast<std::size_t>(random.below(static_cast<index>(parts.size()) - 1));
      parts[at] += parts[at + 1];
      parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    CHECK(parts[0].count == all.count);
    CHECK(parts[0].mean == doctest::Approx(all.mean).epsilon(1e-13));
    CHECK(parts[0].m2 == doctest::Approx(all.m2).epsilon(1e-13));
  }
}

TEST_CASE("moments: a mean of a million beside a deviation of one loses nothing") {
  moments m, n;
  for (int k = 0; k < 100000; ++k) (k % 3 == 0 ? m : n).add(1e6 + (k % 2 == 0 ? 1 : -1));
  const moments all = m + n;
  CHECK(all.mean == doctest::Approx(1e6).epsilon(1e-15));
  CHECK(all.variance(0) == doctest::Approx(1).epsilon(1e-9));
}

TEST_CASE("moments: equal numbers have no spread, whatever they are") {
  for (const double c : {0.1, 0.7, 1000.1, 1e300, -1e-300}) {
    moments m, n;
    for (int k = 0; k < 7; ++k) m.add(c);
    for (int k = 0; k < 3; ++k) n.add(c);
    CHECK(m.m2 == 0);
    CHECK((m + n).m2 == 0);
    CHECK((m + n).mean == c);
  }
}

TEST_CASE("moments: counts beyond 2^40 do not overflow") {
  moments m{0x1p41, 1, 0};
  const moments n = m + moments{0x1p41, 3, 0};
  CHECK(n.count == 0x1p42);
  CHECK(n.mean == 2);
  CHECK(n.variance(0) == 1);
}

TEST_CASE("moments: NaN and infinity stay visible") {
  CHECK(std::isnan(of({1, not_a_number, 2}).mean));
  CHECK(std::isnan((of({1, 2}) + of({not_a_number})).mean));
  CHECK(!std::isfinite(of({1, infinite}).mean));
}

}  // namespace
}  // namespace rlhf_test
