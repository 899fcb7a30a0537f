#include "rlhf/primitive/moment_reduce.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/value/explained_variance.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;

namespace {

/// A row as the order sees it: numbers up to the last one that counts, and their weights.
template <class T>
struct row_of {
  std::vector<T> value, weight;
};

/// Moments of x − shift.
struct shifted_moments {
  rlhf::moments of;
  double shift = 0;
};

/// The documented order in plain loops: the moments of one flush, then the tree.
template <class T>
shifted_moments of_flush(const std::vector<T>& value, const std::vector<T>& weight, bool weighted) {
  const std::size_t steps = value.size() / 16;
  const auto tree = [](const double* lane) {
    double wide[16];
    for (int l = 0; l < 16; ++l) wide[l] = lane[l];
    for (int half = 8; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) wide[l] += wide[l + half];
    return wide[0];
  };
  double first[16] = {}, have[16] = {}, count[16] = {};
  for (std::size_t l = 0; l < 16; ++l)
    for (std::size_t s = 0; s < steps; ++s) {
      const double w = static_cast<double>(weight[s * 16 + l]);
      count[l] += w;
      if (w > 0 && have[l] == 0 && s < 4) {
        have[l] = 1;
        first[l] = static_cast<double>(value[s * 16 + l]);
      }
    }
  const double n = tree(count), found = tree(have);
  if (n == 0) return {};
  T shift = found > 0 ? static_cast<T>(tree(first) / found) : T(0);
  double sum = 0, square = 0;
  for (int sweep = 0; sweep < 3; ++sweep) {
    T s[2][16] = {}, q[2][16] = {};
    for (std::size_t k = 0; k < value.size(); ++k) {
      const T w = weight[k];
      if (!(w > T(0))) continue;
      const T d = value[k] - shift;
      T part = weighted ? w * d : d;
      rlhf::math::detail::keep_rounding(part);
      const std::size_t odd = k / 16 % 2, l = k % 16;
      s[odd][l] = s[odd][l] + part;
      q[odd][l] = rlhf::math::fma(part, d, q[odd][l]);
    }
    double sums[16], squares[16];
    for (std::size_t l = 0; l < 16; ++l) {
      sums[l] = static_cast<double>(s[0][l] + s[1][l]);
      squares[l] = static_cast<double>(q[0][l] + q[1][l]);
    }
    sum = tree(sums), square = tree(squares);
    if (!(2 * (sum * (sum / n)) > square) || sweep == 2) break;
    shift = static_cast<T>(static_cast<double>(shift) + sum / n);
  }
  const double m2 = rlhf::math::fma(-sum, sum / n, square);
  return {{n, sum / n, m2 < 0 ? 0 : m2}, static_cast<double>(shift)};
}

/// Two merge about the shift of the first.
shifted_moments merge(const shifted_moments& a, const shifted_moments& b) {
  if (a.of.count == 0) return b;
  if (b.of.count == 0) return a;
  rlhf::moments moved = b.of;
  moved.mean = (b.shift - a.shift) + moved.mean;
  return {a.of + moved, a.shift};
}

shifted_moments tree(const std::vector<shifted_moments>& x, std::size_t begin, std::size_t end) {
  if (end - begin == 0) return {};
  if (end - begin == 1) return x[begin];
  std::size_t half = 1;
  while (half * 2 < end - begin) half *= 2;
  return merge(tree(x, begin, begin + half), tree(x, begin + half, end));
}

template <class T>
rlhf::moments documented_order(const std::vector<row_of<T>>& rows, bool weighted) {
  std::vector<shifted_moments> groups;
  for (std::size_t first = 0; first < rows.size(); first += 64) {
    std::vector<shifted_moments> flushes;
    std::vector<T> value, weight;
    const auto flush = [&] {
      flushes.push_back(of_flush(value, weight, weighted));
      value.clear();
      weight.clear();
    };
    for (std::size_t i = first; i < rows.size() && i < first + 64; ++i) {
      std::size_t length = rows[i].value.size();
      while (length > 0 && !(rows[i].weight[length - 1] > T(0))) --length;
      const std::size_t steps = length == 0 ? 1 : (length + 15) / 16;
      for (std::size_t k = 0; k < steps * 16; ++k) {
        const bool there = k < length && rows[i].weight[k] > T(0);
        value.push_back(there ? rows[i].value[k] : T(0));
        weight.push_back(there ? rows[i].weight[k] : T(0));
        if (value.size() == 1024) flush();
      }
    }
    if (!value.empty()) flush();
    groups.push_back(tree(flushes, 0, flushes.size()));
  }
  const shifted_moments all = tree(groups, 0, groups.size());
  return {all.of.count, all.shift + all.of.mean, all.of.m2};
}

enum class drawn { near_zero, far_from_zero, outlier_first, long_masked_head };

/// Rows of numbers in every memory there is; what does not count is NaN.
template <class T>
struct batch {
  rlhf::index rows, columns;
  std::vector<std::int32_t> length;
  std::vector<std::int64_t> offset{0};
  std::vector<T> padded, in_columns, packed, packed_weight;
  std::vector<std::uint8_t> flag, packed_flag;
  std::vector<T> weight;
  std::vector<row_of<T>> as_rows;

  batch(rlhf::index r, rlhf::index c, drawn how, bool ragged, bool holes, bool weighted,
        std::uint64_t seed)
      : rows(r), columns(c) {
    random_numbers random(seed);
    const auto n = static_cast<std::size_t>(r * c);
    padded.assign(n, static_cast<T>(not_a_number));
    in_columns = padded;
    flag.assign(n, 0);
    weight.assign(n, T(0));
    for (rlhf::index i = 0; i < r; ++i) {
      rlhf::index m =
          ragged ? static_cast<rlhf::index>(random.uniform(0, static_cast<double>(c) + 0.999)) : c;
      length.push_back(static_cast<std::int32_t>(m));
      row_of<T> row;
      for (rlhf::index j = 0; j < m; ++j) {
        double x = random.uniform(-1, 1);
        if (how == drawn::far_from_zero) x += 1e4;
        if (how == drawn::outlier_first && j < 16) x += 300;
        bool counted = !holes || random.uniform(0, 1) < 0.8;
        if (how == drawn::long_masked_head && holes && j < 100) counted = false;
        if (how == drawn::long_masked_head) x += 50;
        const auto at = static_cast<std::size_t>(i * c + j);
        const T w = !counted ? T(0) : weighted ? static_cast<T>(random.uniform(0.1, 2)) : T(1);
        flag[at] = counted ? 1 : 0;
        weight[at] = w;
        if (counted) {
          padded[at] = static_cast<T>(x);
          in_columns[static_cast<std::size_t>(j * r + i)] = static_cast<T>(x);
        }
        packed.push_back(padded[at]);
        packed_flag.push_back(flag[at]);
        packed_weight.push_back(w);
        row.value.push_back(padded[at]);
        row.weight.push_back(w);
      }
      as_rows.push_back(row);
      offset.push_back(offset.back() + m);
    }
  }
};

template <class T>
void check_same(const rlhf::masked_moments_result& r, const rlhf::moments& m) {
  CHECK(r.moments.count == doctest::Approx(m.count).epsilon(1e-12));
  CHECK(r.moments.mean == m.mean);
  CHECK(r.moments.m2 == m.m2);
}

struct extent {
  rlhf::index rows, columns;
};

}  // namespace

TEST_CASE("moment_reduce: a mean a million times the spread costs no digits of the variance") {
  const rlhf::index rows = 40, columns = 1000;
  random_numbers random(5);
  std::vector<double> x;
  for (rlhf::index k = 0; k < rows * columns; ++k) x.push_back(1e6 + random.uniform(-1, 1));
  long double sum = 0, square = 0;  // of what is left when the large part is taken away exactly
  for (const double v : x) {
    const long double d = static_cast<long double>(v) - 1e6L;
    sum += d;
    square += d * d;
  }
  const long double n = static_cast<long double>(rows * columns);
  const long double m2 = square - sum * sum / n;
  const auto r = rlhf::masked_moments<double>({.value = {x, rlhf::shape(rows, columns)}});
  CHECK(std::fabs(static_cast<double>((static_cast<long double>(r.moments.m2) - m2) / m2)) < 2e-15);
  CHECK(std::fabs(r.moments.mean - static_cast<double>(1e6L + sum / n)) <= 1.2e-10);  // half an ULP
}

TEST_CASE_TEMPLATE("moment_reduce: the documented order, bit by bit, in every memory", T, float,
                   double) {
  for (const extent e :
       {extent{1, 1}, extent{1, 15}, extent{1, 16}, extent{3, 17}, extent{2, 1000}, extent{1, 2049},
        extent{70, 16}, extent{130, 33}, extent{5, 3000}, extent{65, 1}, extent{1, 40000}})
    for (const drawn how :
         {drawn::near_zero, drawn::far_from_zero, drawn::outlier_first, drawn::long_masked_head})
      for (const bool ragged : {false, true})
        for (const bool holes : {false, true})
          for (const bool weighted : {false, true}) {
            CAPTURE(e.rows);
            CAPTURE(e.columns);
            CAPTURE(static_cast<int>(how));
            CAPTURE(ragged);
            CAPTURE(holes);
            CAPTURE(weighted);
            const batch<T> b(e.rows, e.columns, how, ragged, holes, weighted, 5);
            const rlhf::moments m = documented_order(b.as_rows, weighted);
            const rlhf::shape shape(e.rows, e.columns);
            const rlhf::view<const T> padded(b.padded.data(), shape);
            const rlhf::view<const T> columns(b.in_columns.data(), shape,
                                              rlhf::shape(rlhf::index{1}, e.rows));
            const thread_pool two{2};
            const auto run = [&](const rlhf::view<const T>& value, const rlhf::mask_view<>& mask,
                                 const rlhf::sequence_layout<>& layout) {
              const rlhf::masked_values<T> given{.value = value, .mask = mask, .layout = layout};
              const auto r = rlhf::masked_moments<T>(given);
              check_same<T>(r, m);
              const auto p = rlhf::masked_moments<T>(given, {}, {}, rlhf::parallel{two});
              check_same<T>(p, m);
              CHECK(p.min == r.min);
              CHECK(p.max == r.max);
            };
            if (weighted) {
              const rlhf::mask_view<> mask(b.weight, shape);
              run(padded, mask, {});
              run(columns, mask, {});
              run({b.packed.data(), rlhf::shape(static_cast<rlhf::index>(b.packed.size()))},
                  b.packed_weight, rlhf::packed(b.offset));
              continue;
            }
            const rlhf::mask_view<> mask(b.flag, shape);
            run(padded, mask, {});
            run(columns, mask, {});
            run(padded, mask, rlhf::lengths(b.length));
            run({b.packed.data(), rlhf::shape(static_cast<rlhf::index>(b.packed.size()))},
                b.packed_flag, rlhf::packed(b.offset));
            if (holes) continue;
            run(padded, {}, rlhf::lengths(b.length));
            run(columns, {}, rlhf::lengths(b.length));
            run({b.packed.data(), rlhf::shape(static_cast<rlhf::index>(b.packed.size()))}, {},
                rlhf::packed(b.offset));
            if (!ragged) run(padded, {}, {});
          }
}

TEST_CASE_TEMPLATE("moment_reduce: rows without a token, between packed rows of full steps", T,
                   float, double) {
  random_numbers random(21);
  for (int round = 0; round < 40; ++round) {
    CAPTURE(round);
    std::vector<std::int32_t> length;
    std::vector<std::int64_t> offset{0};
    if (round == 0) {
      length = {16, 0, 16, 16};
    } else {
      for (rlhf::index i = 0, rows = 2 + random.below(150); i < rows; ++i)
        length.push_back(static_cast<std::int32_t>(16 * random.below(3)));
    }
    const auto rows = static_cast<rlhf::index>(length.size());
    const rlhf::shape shape(rows, rlhf::index{32});
    std::vector<T> padded(static_cast<std::size_t>(32 * rows), static_cast<T>(not_a_number));
    std::vector<T> weight(padded.size(), T(0)), packed, packed_weight;
    std::vector<std::uint8_t> flag(padded.size(), 0), packed_flag;
    for (std::size_t i = 0; i < length.size(); ++i) {
      for (std::size_t j = 0; j < static_cast<std::size_t>(length[i]); ++j) {
        const std::size_t at = 32 * i + j;
        padded[at] = static_cast<T>(random.uniform(-1, 1));
        flag[at] = random.chance(0.8) ? 1 : 0;
        weight[at] = flag[at] != 0 ? static_cast<T>(random.uniform(0.1, 2)) : T(0);
        packed.push_back(padded[at]);
        packed_flag.push_back(flag[at]);
        packed_weight.push_back(weight[at]);
      }
      offset.push_back(offset.back() + length[i]);
    }
    enum class masked { by_nothing, by_flags, by_weights };
    for (const masked by : {masked::by_nothing, masked::by_flags, masked::by_weights}) {
      CAPTURE(static_cast<int>(by));
      rlhf::mask_view<> of_padded, of_packed;
      if (by == masked::by_flags) of_padded = {flag, shape}, of_packed = packed_flag;
      if (by == masked::by_weights) of_padded = {weight, shape}, of_packed = packed_weight;
      std::vector<row_of<T>> as_rows;
      for (std::size_t i = 0; i < length.size(); ++i) {
        row_of<T> row;
        for (std::size_t at = 32 * i; at < 32 * i + static_cast<std::size_t>(length[i]); ++at) {
          row.value.push_back(padded[at]);
          row.weight.push_back(by == masked::by_nothing ? T(1)
                               : by == masked::by_flags ? static_cast<T>(flag[at])
                                                        : weight[at]);
        }
        as_rows.push_back(row);
      }
      const auto expected = documented_order(as_rows, by == masked::by_weights);
      const auto in_rows = rlhf::masked_moments<T>(
          {.value = {padded, shape}, .mask = of_padded, .layout = rlhf::lengths(length)});
      const auto side_by_side = rlhf::masked_moments<T>(
          {.value = packed, .mask = of_packed, .layout = rlhf::packed(offset)});
      check_same<T>(in_rows, expected);
      check_same<T>(side_by_side, expected);
      CHECK(side_by_side.moments.count == in_rows.moments.count);
    }
  }
}

TEST_CASE_TEMPLATE("moment_reduce: equal numbers have no spread, wherever they lie", T, float,
                   double) {
  for (const double number : {0.1, -3.7, 1e-3, 123456.789, 0.0, -0.0})
    for (const rlhf::index n : {rlhf::index{1}, rlhf::index{7}, rlhf::index{16}, rlhf::index{100},
                                rlhf::index{1024}, rlhf::index{5000}})
      for (const rlhf::index head : {rlhf::index{0}, rlhf::index{3}, rlhf::index{200}}) {
        const auto x = static_cast<T>(number);
        std::vector<T> value(static_cast<std::size_t>(n + head), static_cast<T>(not_a_number));
        std::vector<std::uint8_t> flag(value.size(), 0);
        std::vector<T> weight(value.size(), T(0));
        for (std::size_t k = static_cast<std::size_t>(head); k < value.size(); ++k) {
          value[k] = x;
          flag[k] = 1;
          weight[k] = static_cast<T>(0.3) + static_cast<T>(k % 5);
        }
        for (const auto& r : {rlhf::masked_moments<T>({.value = value, .mask = flag}),
                              rlhf::masked_moments<T>({.value = value, .mask = weight})}) {
          CHECK(r.moments.mean == static_cast<double>(x));
          CHECK(r.moments.m2 == 0);
          CHECK(r.min == static_cast<double>(x));
          CHECK(r.max == static_cast<double>(x));
          CHECK(r.nonfinite == 0);
        }
      }
}

TEST_CASE_TEMPLATE("moment_reduce: equal numbers whose sum or squares overflow", T, float, double) {
  const bool narrow = std::is_same_v<T, float>;
  for (const double number :
       {narrow ? 3e38 : 1e308, narrow ? -3e38 : -1e308, narrow ? 1e25 : 1e200})
    for (const std::size_t n : {2u, 16u, 40u, 3000u})
      for (const std::size_t head : {0u, 5u, 200u}) {
        const auto x = static_cast<T>(number);
        std::vector<T> value(n + head, x), weight(n + head, T(2));
        std::vector<std::uint8_t> flag(n + head, 1);
        for (std::size_t k = 0; k < head; ++k) {
          value[k] = static_cast<T>(not_a_number);
          weight[k] = T(0);
          flag[k] = 0;
        }
        for (const auto& r : {rlhf::masked_moments<T>({.value = value, .mask = flag}),
                              rlhf::masked_moments<T>({.value = value, .mask = weight})}) {
          CHECK(r.moments.mean == static_cast<double>(x));
          CHECK(r.moments.m2 == 0);
          CHECK(r.nonfinite == 0);
        }
      }
}

TEST_CASE("moment_reduce: nothing counted, no row, no column") {
  const std::vector<float> value(40, static_cast<float>(not_a_number));
  const std::vector<std::uint8_t> none(40, 0);
  const auto masked =
      rlhf::masked_moments<float>({.value = {value, {2, 20}}, .mask = {none, {2, 20}}});
  const auto no_row =
      rlhf::masked_moments<float>({.value = rlhf::view<const float>(value.data(), {0, 20})});
  const auto no_column =
      rlhf::masked_moments<float>({.value = rlhf::view<const float>(value.data(), {2, 0})});
  for (const auto& r : {masked, no_row, no_column}) {
    CHECK(r.moments.count == 0);
    CHECK(r.moments.mean == 0);
    CHECK(r.moments.m2 == 0);
    CHECK(r.min > r.max);
  }
}

TEST_CASE(
    "moment_reduce: tokens that are not finite are counted once, whatever series they are in") {
  std::vector<float> value(3000, 1.0f), returns(3000, 2.0f);
  value[5] = static_cast<float>(not_a_number);
  returns[5] = static_cast<float>(infinite);
  returns[2999] = -static_cast<float>(infinite);
  value[1024] = static_cast<float>(infinite);
  std::vector<std::uint8_t> mask(3000, 1);
  mask[7] = 0;
  value[7] = static_cast<float>(not_a_number);
  const auto r = rlhf::explained_variance<float>(
      {.value = {value, {3, 1000}}, .returns = {returns, {3, 1000}}, .mask = {mask, {3, 1000}}});
  CHECK(r.nonfinite == 3);
  const auto m = rlhf::masked_moments<float>({.value = value, .mask = mask});
  CHECK(m.nonfinite == 2);
  CHECK(std::isnan(m.moments.m2));
}

TEST_CASE("moment_reduce: variance to 3e-7, mean to 3e-8 deviations, wherever the numbers lie") {
  for (const drawn how :
       {drawn::near_zero, drawn::far_from_zero, drawn::outlier_first, drawn::long_masked_head}) {
    const batch<float> b(40, 1500, how, true, true, true, 9);
    const auto r = rlhf::masked_moments<float>(
        {.value = {b.padded, {40, 1500}}, .mask = {b.weight, {40, 1500}}});
    long double n = 0, mean = 0, m2 = 0;
    for (std::size_t k = 0; k < b.padded.size(); ++k)
      if (b.weight[k] > 0) {
        n += static_cast<long double>(b.weight[k]);
        mean += static_cast<long double>(b.weight[k]) * static_cast<long double>(b.padded[k]);
      }
    mean /= n;
    for (std::size_t k = 0; k < b.padded.size(); ++k)
      if (b.weight[k] > 0) {
        const long double d = static_cast<long double>(b.padded[k]) - mean;
        m2 += static_cast<long double>(b.weight[k]) * d * d;
      }
    CHECK(std::fabs(static_cast<double>((static_cast<long double>(r.moments.m2) - m2) / m2)) <
          3e-7);
    CHECK(std::fabs(static_cast<double>((static_cast<long double>(r.moments.mean) - mean) /
                                        std::sqrt(m2 / n))) < 3e-8);
  }
}
