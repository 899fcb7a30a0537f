#include "rlhf/primitive/map_reduce.hpp"

#include <doctest/doctest.h>

#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;

namespace {

/// The kernel of the header's comment.
struct squared_error {
  using scalar_type = float;
  static constexpr int inputs = 2, outputs = 1, sums = 1, ranges = 0, scales = 1;
  static constexpr int observed = 2;
  static constexpr int scaled_sums = 1;
  template <class Token>
  RLHF_HOST_DEVICE void operator()(Token& t) const {
    const auto error = t.in[0] - t.in[1];
    t.sum[0] = error * error * t.scale[0];
    t.out[0] = (error + error) * t.scale[0];
  }
};

/// Sums one input and keeps its range.
struct plain_sum {
  using scalar_type = float;
  static constexpr int inputs = 1, outputs = 0, sums = 1, ranges = 1, scales = 0;
  static constexpr int observed = 1, scaled_sums = 0;
  template <class Token>
  RLHF_HOST_DEVICE void operator()(Token& t) const {
    t.sum[0] = t.in[0];
    t.range[0] = t.in[0];
  }
};

/// A sum of values split at the largest power of two, as the documentation says.
double tree(const std::vector<double>& x, std::size_t begin, std::size_t end) {
  if (end - begin == 0) return 0;
  if (end - begin == 1) return x[begin];
  std::size_t half = 1;
  while (half * 2 < end - begin) half *= 2;
  return tree(x, begin, begin + half) + tree(x, begin + half, end);
}
double tree(const std::vector<double>& x) { return tree(x, 0, x.size()); }

/// The documented order in plain loops, from rows of values.
double documented_order(const std::vector<std::vector<float>>& rows) {
  std::vector<double> groups;
  for (std::size_t first = 0; first < rows.size(); first += 64) {
    std::vector<double> flushes;
    float lane[16] = {};
    int steps = 0;
    const auto flush = [&] {
      double wide[16];
      for (int l = 0; l < 16; ++l) wide[l] = static_cast<double>(lane[l]);
      for (int half = 8; half > 0; half /= 2)
        for (int l = 0; l < half; ++l) wide[l] += wide[l + half];
      flushes.push_back(wide[0]);
      for (float& x : lane) x = 0;
      steps = 0;
    };
    for (std::size_t i = first; i < rows.size() && i < first + 64; ++i) {
      const auto& row = rows[i];
      const std::size_t count = row.empty() ? 1 : (row.size() + 15) / 16;
      for (std::size_t s = 0; s < count; ++s) {
        for (std::size_t l = 0; l < 16; ++l)
          if (s * 16 + l < row.size()) lane[l] += row[s * 16 + l];
        if (++steps == 64) flush();
      }
    }
    if (steps > 0) flush();
    groups.push_back(tree(flushes));
  }
  return tree(groups);
}

template <class Exec>
std::vector<double> sum_of(const std::vector<float>& x, const std::vector<std::int64_t>& offsets,
                           const Exec& exec) {
  const rlhf::view<const float> v(x);
  rlhf::token_binder<rlhf::host_space> bind("sum_of", "x", v, rlhf::packed(offsets), {});
  rlhf::token_arguments<plain_sum, rlhf::host_space> a;
  a.domain = bind.domain();
  a.in[0] = bind.token("x", v);
  auto run = exec.begin("sum_of");
  std::vector<double> figures(rlhf::sums_of<plain_sum>::size);
  run.map_reduce(plain_sum{}, a, figures.data());
  return figures;
}

}  // namespace

TEST_CASE("map_reduce: the order of sums is the documented one, bit by bit, on any number of threads") {
  random_numbers random(71);
  for (const auto& [rows, longest] : {std::pair<std::ptrdiff_t, std::ptrdiff_t>{1, 1},
                                      {1, 5000},
                                      {3, 40000},
                                      {64, 20},
                                      {65, 33},
                                      {200, 300},
                                      {1000, 17}}) {
    std::vector<std::vector<float>> values;
    std::vector<float> flat;
    std::vector<std::int64_t> offsets{0};
    for (std::ptrdiff_t i = 0; i < rows; ++i) {
      const auto n = random.chance(0.1) ? 0 : random.below(longest + 1);
      std::vector<float> row;
      for (std::ptrdiff_t j = 0; j < n; ++j)
        row.push_back(static_cast<float>(random.uniform(-1, 3)));
      flat.insert(flat.end(), row.begin(), row.end());
      offsets.push_back(static_cast<std::int64_t>(flat.size()));
      values.push_back(row);
    }
    const auto how_many = rows;  // a structured binding cannot be captured in clang 14
    CAPTURE(how_many);
    const double expected = documented_order(values);
    CHECK(sum_of(flat, offsets, rlhf::serial{})[0] == expected);
    for (const std::ptrdiff_t threads : {2, 5}) {
      const thread_pool pool{threads};
      CHECK(sum_of(flat, offsets, rlhf::parallel<thread_pool>{pool})[0] == expected);
    }
  }
}

TEST_CASE("map_reduce: figures are sums, the count of non-finite tokens, and the ends of ranges") {
  const std::vector<float> x{1, -4, static_cast<float>(not_a_number), 3};
  const auto figures = sum_of(x, {0, 2, 2, 4}, rlhf::serial{});
  CHECK(figures[0] != figures[0]);
  CHECK(figures[rlhf::sums_of<plain_sum>::nonfinite] == 1);
  CHECK(figures[rlhf::sums_of<plain_sum>::low] == -4);
  CHECK(figures[rlhf::sums_of<plain_sum>::high] == 3);
  const auto none = sum_of({}, {0, 0}, rlhf::serial{});
  CHECK(none[0] == 0);
  CHECK(none[rlhf::sums_of<plain_sum>::low] == infinite);
}

TEST_CASE("map_reduce: a kernel of the user's own, with a factor per row") {
  const float x[2][3] = {{1, 2, 3}, {4, 5, 6}}, y[2][3] = {{0, 2, 1}, {4, 4, 0}};
  float d[2][3];
  const double unit = 0.5, per_row[2] = {1, 2};
  rlhf::token_binder<rlhf::host_space> bind("example", "x", rlhf::view<const float>(x), {}, {});
  rlhf::token_arguments<squared_error, rlhf::host_space> a;
  a.domain = bind.domain();
  a.in[0] = bind.token("x", rlhf::view<const float>(x));
  a.in[1] = bind.token("y", rlhf::view<const float>(y));
  a.out[0] = bind.written("d", rlhf::output<float>(d));
  a.scale[0] = {&unit, per_row};
  double figures[rlhf::sums_of<squared_error>::size];
  const rlhf::serial exec;
  auto run = exec.begin("example");
  run.map_reduce(squared_error{}, a, figures);
  // (1 + 0 + 4) / 2 + (0 + 1 + 36)
  CHECK(figures[0] == 2.5 + 37);
  CHECK(d[0][2] == 2);   // 2 · 2 · 0.5
  CHECK(d[1][2] == 12);  // 2 · 6 · 1
}

TEST_CASE("map_reduce: rows that fill their steps, side by side in memory, keep the documented order") {
  random_numbers random(72);
  for (const std::ptrdiff_t columns : {16, 32, 112})
    for (const double holes : {0.0, 0.05, 0.5}) {
      const std::ptrdiff_t rows = 150;
      const rlhf::shape shape(rows, columns);
      std::vector<float> x;
      std::vector<std::uint8_t> mask;
      std::vector<std::vector<float>> counted;
      for (std::ptrdiff_t i = 0; i < rows; ++i) {
        std::vector<float> row;
        std::size_t length = 0;
        const auto end = random.chance(holes) ? random.below(columns) : columns;
        for (std::ptrdiff_t j = 0; j < columns; ++j) {
          const bool kept = j < end && !random.chance(holes / 4);
          x.push_back(kept ? static_cast<float>(random.uniform(0.5, 3))
                           : static_cast<float>(not_a_number));
          mask.push_back(kept ? 1 : 0);
          row.push_back(kept ? x.back() : 0.0f);
          if (kept) length = row.size();
        }
        row.resize(length);  // a row ends with its last counted token
        counted.push_back(row);
      }
      CAPTURE(columns);
      CAPTURE(holes);
      const rlhf::view<const float> v(x, shape);
      rlhf::token_binder<rlhf::host_space> bind("sum_of", "x", v, {}, {mask, shape});
      rlhf::token_arguments<plain_sum, rlhf::host_space> a;
      a.domain = bind.domain();
      a.in[0] = bind.token("x", v);
      double figures[rlhf::sums_of<plain_sum>::size];
      const rlhf::serial exec;
      auto run = exec.begin("sum_of");
      run.map_reduce(plain_sum{}, a, figures);
      CHECK(figures[0] == documented_order(counted));
      CHECK(figures[rlhf::sums_of<plain_sum>::nonfinite] == 0);
    }
}

TEST_CASE("map_reduce: rows side by side in memory keep factors and padding of their own") {
  const std::ptrdiff_t rows = 5, columns = 32;
  const rlhf::shape shape(rows, columns);
  const std::vector<float> x(static_cast<std::size_t>(rows * columns), 3), y(x.size(), 1);
  std::vector<float> d(x.size(), 7);
  std::vector<std::uint8_t> mask(x.size(), 1);
  mask[2 * 32 + 31] = 0;  // the third row ends one token early
  const double unit = 1, per_row[5] = {1, 2, 4, 8, 16};
  rlhf::token_binder<rlhf::host_space> bind("example", "x", rlhf::view<const float>(x, shape), {},
                                            {mask, shape});
  rlhf::token_arguments<squared_error, rlhf::host_space> a;
  a.domain = bind.domain();
  a.in[0] = bind.token("x", rlhf::view<const float>(x, shape));
  a.in[1] = bind.token("y", rlhf::view<const float>(y, shape));
  a.out[0] = bind.written("d", rlhf::output<float>(d, shape));
  const rlhf::serial exec;
  double figures[rlhf::sums_of<squared_error>::size];
  for (const bool scaled : {false, true}) {
    a.scale[0] = {&unit, scaled ? per_row : nullptr};
    auto run = exec.begin("example");
    run.map_reduce(squared_error{}, a, figures);
    double sum = 0;
    for (std::size_t i = 0; i < 5; ++i)
      for (std::size_t j = 0; j < 32; ++j) {
        const double factor = scaled ? per_row[i] : 1;
        const bool counted = mask[i * 32 + j] != 0;
        sum += counted ? 4 * factor : 0;  // (3 − 1)²
        CHECK(static_cast<double>(d[i * 32 + j]) == (counted ? 4 * factor : 0));
      }
    CHECK(figures[0] == sum);
  }
}
