#include "rlhf/primitive/row_reduce.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "rlhf/backend/host.hpp"
#include "tests/support/logits.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::row_place;

namespace {

/// A kernel of a user: −log p, its gradient, the range of entropies, and where it was called.
struct visited {
  static constexpr int sums = 2, ranges = 1;
  std::vector<row_place>* counted;
  std::vector<row_place>* masked_slots;
  rlhf::row_statistics* last;

  void operator()(rlhf::row_token<visited>& t) const {
    counted->push_back(t.place);
    *last = t.of;
    t.sum[0] = -t.of.log_prob * t.weight;
    t.sum[1] = t.weight;
    t.range[0] = t.of.entropy;
    t.nonfinite = t.of.finite ? 0 : 1;
    t.slope = {.label = -t.weight, .p = t.weight};
  }
  void masked(const row_place& at) const { masked_slots->push_back(at); }
};

/// The same without the diary, for pools.
struct negative_log_prob {
  static constexpr int sums = 1, ranges = 0;
  RLHF_HOST_DEVICE void operator()(rlhf::row_token<negative_log_prob>& t) const {
    t.sum[0] = -t.of.log_prob * t.weight;
    t.slope = {.label = -t.weight, .p = t.weight};
  }
  RLHF_HOST_DEVICE void masked(const row_place&) const {}
};

rlhf::row_arguments<float, rlhf::host_space> dense(const std::vector<float>& x, std::ptrdiff_t rows,
                                                   std::ptrdiff_t columns, std::ptrdiff_t classes,
                                                   const std::vector<int>& label) {
  rlhf::row_arguments<float, rlhf::host_space> a;
  a.domain.rows = rows;
  a.domain.columns = columns;
  a.logits = {x.data(), columns * classes, 0, classes, 1};
  a.classes = classes;
  a.label = rlhf::index_view<>(label.data(), {rows, columns});
  return a;
}

}  // namespace

TEST_CASE("row_reduce: a kernel of one's own sees each counted row once, in order") {
  const auto x = normal<float>(2 * 3 * 5, 2);
  const std::vector<int> y{0, 1, 2, 3, 4, 0};
  const std::uint8_t mask[] = {1, 0, 1, 1, 1, 0};
  std::vector<row_place> counted, masked;
  std::vector<float> gradient(30, 7);
  rlhf::row_statistics last;
  auto a = dense(x, 2, 3, 5, y);
  a.domain.mask = rlhf::mask_view<>(mask, {2, 3});
  a.gradient = {gradient.data(), 15, 0, 5, 1};
  auto run = rlhf::serial{}.begin("test");
  double figures[rlhf::sums_of<visited>::size];
  run.row_reduce(visited{&counted, &masked, &last}, a, figures);
  REQUIRE(counted.size() == 4);
  CHECK(counted[1].position == 2);
  CHECK(counted[2].sequence == 1);
  CHECK(masked.size() == 2);
  long double expected = 0, low = 100, high = 0;
  for (const std::size_t k : {std::size_t{0}, std::size_t{2}, std::size_t{3}, std::size_t{4}}) {
    const auto r = reference_row(x.data() + 5 * k, 5, static_cast<std::size_t>(y[k]));
    expected -= r.log_prob;
    low = std::min(low, r.entropy);
    high = std::max(high, r.entropy);
    for (std::size_t v = 0; v < 5; ++v)
      CHECK(static_cast<double>(gradient[5 * k + v]) ==
            doctest::Approx(static_cast<double>(r.p[v]) -
                            (v == static_cast<std::size_t>(y[k]) ? 1.0 : 0.0)));
  }
  for (const std::size_t k : {std::size_t{1}, std::size_t{5}})
    for (std::size_t v = 0; v < 5; ++v) CHECK(gradient[5 * k + v] == 0);
  CHECK(figures[0] == doctest::Approx(static_cast<double>(expected)).epsilon(1e-6));
  CHECK(figures[1] == 4);
  CHECK(figures[rlhf::sums_of<visited>::nonfinite] == 0);
  CHECK(figures[rlhf::sums_of<visited>::low] ==
        doctest::Approx(static_cast<double>(low)).epsilon(1e-6));
  CHECK(figures[rlhf::sums_of<visited>::high] ==
        doctest::Approx(static_cast<double>(high)).epsilon(1e-6));
}

TEST_CASE("row_reduce: figures on request, the maximum in any tile") {
  for (const std::size_t classes : {std::size_t{1}, std::size_t{130}, std::size_t{5000}})
    for (std::size_t top = 0; top < classes; top += 1 + classes / 5) {
      CAPTURE(classes);
      CAPTURE(top);
      auto x = normal<float>(classes, 2);
      x[top] = 12;
      if (classes > 1) x[(top + 7) % classes] = -std::numeric_limits<float>::infinity();
      std::vector<row_place> counted, masked;
      rlhf::row_statistics last;
      auto a = dense(x, 1, 1, static_cast<std::ptrdiff_t>(classes), {static_cast<int>(top)});
      const std::vector<int> label{static_cast<int>(top)};
      a.label = rlhf::index_view<>(label.data(), {1, 1});
      a.mean_wanted = a.squares_wanted = true;
      auto run = rlhf::serial{}.begin("test");
      double figures[rlhf::sums_of<visited>::size];
      run.row_reduce(visited{&counted, &masked, &last}, a, figures);
      const auto r = reference_row(x.data(), classes, top);
      CHECK(last.log_prob == doctest::Approx(static_cast<double>(r.log_prob)).epsilon(1e-6));
      CHECK(last.entropy == doctest::Approx(static_cast<double>(r.entropy)).epsilon(1e-6));
      CHECK(last.log_sum_exp == doctest::Approx(static_cast<double>(r.log_sum_exp)).epsilon(1e-7));
      CHECK(last.mean_log_prob ==
            doctest::Approx(static_cast<double>(r.mean_log_prob)).epsilon(1e-6));
      CHECK(last.sum_p_squared ==
            doctest::Approx(static_cast<double>(r.sum_p_squared)).epsilon(1e-6));
      CHECK(last.classes == static_cast<double>(classes > 1 ? classes - 1 : 1));
      CHECK(last.label_is_largest);
    }
}

TEST_CASE("row_reduce: the label is largest where it is the first of equals") {
  std::vector<float> x(2500, 0);
  x[1100] = x[1200] = x[2300] = 5;
  std::vector<row_place> counted, masked;
  for (const int label : {0, 1100, 1200, 2300}) {
    CAPTURE(label);
    rlhf::row_statistics last;
    const std::vector<int> y{label};
    const auto a = dense(x, 1, 1, 2500, y);
    auto run = rlhf::serial{}.begin("test");
    double figures[rlhf::sums_of<visited>::size];
    run.row_reduce(visited{&counted, &masked, &last}, a, figures);
    CHECK(last.label_is_largest == (label == 1100));
  }
}

TEST_CASE("row_reduce: packed sequences, empty ones among them") {
  const auto x = normal<float>(4 * 3, 2);
  const std::vector<int> y{0, 1, 2, 0};
  const int offsets[] = {0, 0, 3, 3, 4, 4};
  std::vector<row_place> counted, masked;
  rlhf::row_statistics last;
  rlhf::row_arguments<float, rlhf::host_space> a;
  a.domain.rows = 5;
  a.domain.columns = 4;
  a.domain.kind = rlhf::arrangement::packed;
  a.domain.indices = rlhf::index_view<>(offsets);
  a.logits = {x.data(), 0, 3, 3, 1};
  a.classes = 3;
  a.label = rlhf::index_view<>(y);
  auto run = rlhf::serial{}.begin("test");
  double figures[rlhf::sums_of<visited>::size];
  run.row_reduce(visited{&counted, &masked, &last}, a, figures);
  REQUIRE(counted.size() == 4);
  CHECK(counted[0].sequence == 1);
  CHECK(counted[2].position == 2);
  CHECK(counted[3].sequence == 3);
  CHECK(counted[3].begin == 3);
  CHECK(counted[3].position == 0);
}

TEST_CASE("row_reduce: pools give the bits of one thread, for sums and gradients") {
  const std::ptrdiff_t rows = 61, classes = 1500;
  const auto x = normal<float>(static_cast<std::size_t>(rows * classes), 3);
  const std::vector<int> y(static_cast<std::size_t>(rows), 3);
  std::vector<float> d(x.size()), e(x.size());
  auto a = dense(x, rows, 1, classes, y);
  a.gradient = {d.data(), classes, 0, classes, 1};
  double expected[rlhf::sums_of<negative_log_prob>::size];
  double got[rlhf::sums_of<negative_log_prob>::size];
  auto run = rlhf::serial{}.begin("test");
  run.row_reduce(negative_log_prob{}, a, expected);
  a.gradient.data = e.data();
  for (const std::ptrdiff_t threads : {2, 5, 200}) {
    const thread_pool pool{threads};
    const rlhf::parallel exec{pool};
    auto many = exec.begin("test");
    many.row_reduce(negative_log_prob{}, a, got);
    CHECK(got[0] == expected[0]);
    CHECK(same_bits(d, e));
  }
}

TEST_CASE("row_reduce: no slots at all") {
  const std::vector<float> x;
  const std::vector<int> y;
  auto a = dense(x, 0, 4, 3, y);
  auto run = rlhf::serial{}.begin("test");
  double figures[rlhf::sums_of<negative_log_prob>::size];
  run.row_reduce(negative_log_prob{}, a, figures);
  CHECK(figures[0] == 0);
}
