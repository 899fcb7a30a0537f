#include "rlhf/primitive/map_reduce.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <cstring>
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

TEST_CASE(
    "map_reduce: the order of sums is the documented one, bit by bit, on any number of threads") {
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

TEST_CASE(
    "map_reduce: rows that fill their steps, side by side in memory, keep the documented order") {
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

namespace {

/// A kernel in two parts with everything it may say of itself.
struct in_parts {
  using scalar_type = float;
  static constexpr int inputs = 2, outputs = 1, sums = 4, ranges = 1, scales = 1;
  static constexpr int observed = 2, scaled_sums = 1, plain_sum = 3;
  static constexpr int kept = 1, first_inputs = 1, rare_sum = 3;
  static constexpr bool early(int k) { return k == 1; }
  static constexpr bool silent(int k) { return k != 1; }
  static constexpr bool silent_outputs = true;

  template <class Token>
  RLHF_HOST_DEVICE void first(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    t.kept[0] = t.in[0] * t.in[0];
    t.sum[1] = t.in[0] + rlhf::math::constant<V>(3);
    t.range[0] = t.in[0];
  }
  template <class Token>
  RLHF_HOST_DEVICE void second(Token& t) const {
    t.sum[0] = t.kept[0] * t.in[1] * t.scale[0];
    t.sum[2] = t.in[1];
    t.out[0] = t.in[0] * t.in[1] * t.scale[0];
  }
  template <class V>
  static rlhf::mask_of<V> is_extreme(const V*, const V* high) {
    return high[0] > rlhf::math::constant<V>(2.5);
  }
  template <class Token>
  RLHF_HOST_DEVICE void rare(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    t.sum[3] = rlhf::math::select(t.in[0] > rlhf::math::constant<V>(2.5),
                                  rlhf::math::constant<V>(1), rlhf::math::constant<V>(0));
  }
  template <class Token>
  RLHF_HOST_DEVICE void operator()(Token& t) const {
    first(t);
    second(t);
    rare(t);
  }
};

/// The same kernel, which says nothing.
struct in_one {
  using scalar_type = float;
  static constexpr int inputs = 2, outputs = 1, sums = 4, ranges = 1, scales = 1;
  static constexpr int observed = 2, scaled_sums = 1, plain_sum = 3;
  template <class Token>
  RLHF_HOST_DEVICE void operator()(Token& t) const {
    in_parts{}(t);
  }
};

/// Tokens [batch, time] in one of the forms a mask may take.
struct masked_batch {
  std::ptrdiff_t rows, columns;
  std::vector<float> x, y, weight;
  std::vector<std::uint8_t> mask;
  std::vector<std::int32_t> length;

  rlhf::shape shape() const { return {rows, columns}; }
  std::size_t size() const { return x.size(); }
};

/// Blocks of 128 tokens that are whole, empty or have holes; what is masked is NaN, and a few
/// counted tokens are large, infinite or NaN.
masked_batch blocks(std::ptrdiff_t rows, std::ptrdiff_t columns, bool odd, std::uint64_t seed) {
  random_numbers random(seed);
  masked_batch b{rows, columns, {}, {}, {}, {}, {}};
  for (std::ptrdiff_t i = 0; i < rows; ++i) {
    std::ptrdiff_t length = 0;
    int kind = 0;
    for (std::ptrdiff_t j = 0; j < columns; ++j) {
      if (j % 128 == 0) kind = static_cast<int>(random.below(3));
      const bool counted = kind == 0 || (kind == 1 && random.chance(0.7));
      const bool strange = odd && random.chance(0.002);
      const double value = strange ? (random.chance(0.5) ? 3 : infinite) : random.uniform(-2, 2);
      b.x.push_back(static_cast<float>(counted ? value : not_a_number));
      b.y.push_back(static_cast<float>(counted ? random.uniform(-2, 2) : not_a_number));
      b.mask.push_back(counted ? static_cast<std::uint8_t>(1 + random.below(255)) : 0);
      b.weight.push_back(counted ? static_cast<float>(random.uniform(0.5, 2)) : 0.0f);
      if (counted) length = j + 1;
    }
    b.length.push_back(static_cast<std::int32_t>(length));
  }
  return b;
}

struct outcome {
  std::vector<double> figures;
  std::vector<float> out;
  friend bool operator==(const outcome& a, const outcome& b) {
    const std::size_t bytes = a.figures.size() * sizeof(double);
    return std::memcmp(a.figures.data(), b.figures.data(), bytes) == 0 &&
           std::memcmp(a.out.data(), b.out.data(), a.out.size() * sizeof(float)) == 0;
  }
};

enum class given { flags, weights, lengths };

/// `gap` elements lie between one row and the next.
template <class K, class Exec>
outcome run(const masked_batch& b, given how, const Exec& exec, std::ptrdiff_t gap = 0,
            double factor = -0.75) {
  const std::ptrdiff_t step = b.columns + gap;
  const rlhf::shape strides(step, 1);
  const auto spread = [&](const auto& from) {
    std::remove_cvref_t<decltype(from)> to(static_cast<std::size_t>(b.rows * step));
    for (std::ptrdiff_t i = 0; i < b.rows; ++i)
      for (std::ptrdiff_t j = 0; j < b.columns; ++j)
        to[static_cast<std::size_t>(i * step + j)] =
            from[static_cast<std::size_t>(i * b.columns + j)];
    return to;
  };
  const auto x = spread(b.x), y = spread(b.y), weight = spread(b.weight);
  const auto mask = spread(b.mask);
  std::vector<float> out(x.size(), 7);
  const rlhf::view<const float> in(x.data(), b.shape(), strides);
  rlhf::mask_view<> m;
  rlhf::sequence_layout<> layout;
  if (how == given::flags) m = {mask.data(), b.shape(), strides};
  if (how == given::weights) m = {weight.data(), b.shape(), strides};
  if (how == given::lengths) layout = rlhf::lengths(b.length);
  rlhf::token_binder<rlhf::host_space> bind("run", "x", in, layout, m);
  rlhf::token_arguments<K, rlhf::host_space> a;
  a.domain = bind.domain();
  a.in[0] = bind.token("x", in);
  a.in[1] = bind.token("y", rlhf::view<const float>(y.data(), b.shape(), strides));
  a.out[0] = bind.written("out", rlhf::output<float>(out.data(), b.shape(), strides));
  a.scale[0] = {&factor, nullptr};
  outcome r;
  r.figures.resize(rlhf::sums_of<K>::size);
  auto call = exec.begin("run");
  call.map_reduce(K{}, a, r.figures.data());
  for (std::ptrdiff_t i = 0; i < b.rows; ++i)
    for (std::ptrdiff_t j = 0; j < b.columns; ++j)
      r.out.push_back(out[static_cast<std::size_t>(i * step + j)]);
  return r;
}

}  // namespace

TEST_CASE(
    "map_reduce: what a kernel says of itself changes no bit, whole, empty and broken blocks") {
  std::uint64_t seed = 80;
  for (const auto& [rows, columns] : {std::pair<std::ptrdiff_t, std::ptrdiff_t>{1, 5000},
                                      {3, 2048},
                                      {70, 1000},
                                      {130, 16},
                                      {200, 10},
                                      {90, 48},
                                      {65, 333}})
    for (const bool odd : {false, true})
      for (const given how : {given::flags, given::weights}) {
        const auto b = blocks(rows, columns, odd, ++seed);
        CAPTURE(seed);
        const auto plain = run<in_one>(b, how, rlhf::serial{});
        CHECK(run<in_parts>(b, how, rlhf::serial{}) == plain);
        CHECK(run<in_parts>(b, how, rlhf::serial{}, 5) == plain);  // rows do not join
        const thread_pool pool{3};
        CHECK(run<in_parts>(b, how, rlhf::parallel<thread_pool>{pool}) == plain);
        // The figures in plain loops: counts, the rare one too, weigh nothing.
        double nonfinite = 0, large = 0, lowest = infinite, highest = -infinite;
        std::vector<std::vector<float>> counted;
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < static_cast<std::size_t>(b.rows); ++i) {
          std::vector<float> row;
          for (std::size_t j = 0; j < static_cast<std::size_t>(b.length[i]); ++j) {
            const std::size_t at = i * static_cast<std::size_t>(b.columns) + j;
            const bool counts = b.mask[at] != 0;
            const double x = static_cast<double>(b.x[at]);
            const float weight = how == given::weights ? b.weight[at] : 1.0f;
            row.push_back(counts ? b.y[at] * weight : 0.0f);
            if (!counts) {
              wrong += plain.out[at] != 0 || std::signbit(plain.out[at]) ? 1u : 0u;
              continue;
            }
            nonfinite += x - x == 0 ? 0 : 1;
            large += x > 2.5 ? 1 : 0;
            lowest = x < lowest ? x : lowest;
            highest = x > highest ? x : highest;
          }
          counted.push_back(row);
        }
        CHECK(wrong == 0);
        CHECK(plain.figures[2] == documented_order(counted));
        CHECK(plain.figures[3] == large);
        CHECK(plain.figures[rlhf::sums_of<in_parts>::nonfinite] == nonfinite);
        CHECK(plain.figures[rlhf::sums_of<in_parts>::low] == lowest);
        CHECK(plain.figures[rlhf::sums_of<in_parts>::high] == highest);
      }
}

TEST_CASE("map_reduce: a factor that is not finite stays out of masked tokens") {
  // What is no number has bits of no meaning.
  const auto agree = [](double x, double y) {
    return std::isnan(x) ? std::isnan(y) : x == y && std::signbit(x) == std::signbit(y);
  };
  std::uint64_t seed = 180;
  for (const auto& [rows, columns] :
       {std::pair<std::ptrdiff_t, std::ptrdiff_t>{1, 1000}, {70, 300}, {130, 16}, {200, 10}})
    for (const given how : {given::flags, given::weights})
      for (const double factor : {infinite, -infinite, not_a_number, 1e39})
        for (const std::ptrdiff_t gap : {0, 5}) {
          const auto b = blocks(rows, columns, false, ++seed);
          CAPTURE(seed);
          CAPTURE(factor);
          const auto plain = run<in_one>(b, how, rlhf::serial{}, gap, factor);
          const auto parts = run<in_parts>(b, how, rlhf::serial{}, gap, factor);
          std::size_t wrong = 0;
          for (std::size_t k = 0; k < b.size(); ++k) {
            const auto out = static_cast<double>(parts.out[k]);
            wrong += agree(out, static_cast<double>(plain.out[k])) ? 0u : 1u;
            if (b.mask[k] == 0) wrong += agree(out, 0) ? 0u : 1u;
          }
          CHECK(wrong == 0);
          for (std::size_t k = 0; k < plain.figures.size(); ++k)
            CHECK(agree(parts.figures[k], plain.figures[k]));
        }
}

TEST_CASE(
    "map_reduce: lengths, the same as flags, and rows packed one behind the other share their "
    "bits") {
  random_numbers random(95);
  for (const std::ptrdiff_t columns : {5, 16, 32, 40, 160, 700, 1024})
    for (const double full : {0.0, 0.7}) {
      masked_batch b{150, columns, {}, {}, {}, {}, {}};
      std::vector<float> x, y;
      std::vector<std::int64_t> offsets{0};
      for (std::ptrdiff_t i = 0; i < b.rows; ++i) {
        const auto n = random.chance(full) ? columns : random.below(columns + 1);
        for (std::ptrdiff_t j = 0; j < columns; ++j) {
          const bool counted = j < n;
          b.x.push_back(static_cast<float>(counted ? random.uniform(-2, 2) : not_a_number));
          b.y.push_back(static_cast<float>(counted ? random.uniform(-2, 2) : not_a_number));
          b.mask.push_back(counted ? 1 : 0);
          b.weight.push_back(counted ? 1.0f : 0.0f);
          if (counted) x.push_back(b.x.back()), y.push_back(b.y.back());
        }
        b.length.push_back(static_cast<std::int32_t>(n));
        offsets.push_back(static_cast<std::int64_t>(x.size()));
      }
      CAPTURE(columns);
      CAPTURE(full);
      const auto by_length = run<in_parts>(b, given::lengths, rlhf::serial{});
      CHECK(run<in_parts>(b, given::lengths, rlhf::serial{}, 3) == by_length);
      CHECK(run<in_parts>(b, given::flags, rlhf::serial{}) == by_length);
      CHECK(run<in_parts>(b, given::weights, rlhf::serial{}) == by_length);
      CHECK(run<in_one>(b, given::lengths, rlhf::serial{}) == by_length);
      const thread_pool pool{2};
      CHECK(run<in_parts>(b, given::lengths, rlhf::parallel<thread_pool>{pool}) == by_length);

      std::vector<float> out(x.size(), 7);
      const rlhf::view<const float> in(x);
      rlhf::token_binder<rlhf::host_space> bind("run", "x", in, rlhf::packed(offsets), {});
      rlhf::token_arguments<in_parts, rlhf::host_space> a;
      a.domain = bind.domain();
      a.in[0] = bind.token("x", in);
      a.in[1] = bind.token("y", rlhf::view<const float>(y));
      a.out[0] = bind.written("out", rlhf::output<float>(out));
      const double unit = -0.75;
      a.scale[0] = {&unit, nullptr};
      const rlhf::serial exec;
      auto call = exec.begin("run");
      outcome packed{std::vector<double>(rlhf::sums_of<in_parts>::size), {}};
      call.map_reduce(in_parts{}, a, packed.figures.data());
      for (std::size_t i = 0, at = 0; i < 150; ++i)
        for (std::ptrdiff_t j = 0; j < columns; ++j)
          packed.out.push_back(j < b.length[i] ? out[at++] : 0.0f);
      CHECK(packed == by_length);
    }
}

TEST_CASE("map_reduce: one number per row reaches short rows that run as one") {
  for (const std::ptrdiff_t columns : {16, 32, 10, 9 * 16, 40 * 16}) {
    const std::ptrdiff_t rows = 100;
    const auto size = static_cast<std::size_t>(rows * columns);
    const rlhf::shape shape(rows, columns);
    std::vector<float> x(size, 1), per_row, out(size, 7);
    for (std::ptrdiff_t i = 0; i < rows; ++i) per_row.push_back(static_cast<float>(i + 1));
    rlhf::token_binder<rlhf::host_space> bind("run", "x", rlhf::view<const float>(x, shape), {},
                                              {});
    rlhf::token_arguments<in_parts, rlhf::host_space> a;
    a.domain = bind.domain();
    a.in[0] = bind.token("x", rlhf::view<const float>(x, shape));
    a.in[1] = bind.sequence("y", rlhf::view<const float>(per_row));
    a.out[0] = bind.written("out", rlhf::output<float>(out, shape));
    const double unit = 1;
    a.scale[0] = {&unit, nullptr};
    const rlhf::serial exec;
    double figures[rlhf::sums_of<in_parts>::size];
    auto call = exec.begin("run");
    call.map_reduce(in_parts{}, a, figures);
    std::size_t wrong = 0;
    for (std::size_t j = 0; j < size; ++j)
      wrong += out[j] != static_cast<float>(j / static_cast<std::size_t>(columns) + 1) ? 1u : 0u;
    CHECK(wrong == 0);
    CHECK(figures[2] == static_cast<double>(columns * rows * (rows + 1) / 2));  // exact in float
  }
}

TEST_CASE("count: the same numbers from one thread and from many, of flags and of weights") {
  random_numbers random(96);
  for (const auto& [rows, columns] : {std::pair<std::ptrdiff_t, std::ptrdiff_t>{1, 200003},
                                      {3, 70001},
                                      {500, 300},
                                      {20000, 7},
                                      {2, 5}}) {
    const rlhf::shape shape(rows, columns);
    std::vector<std::uint8_t> mask;
    std::vector<double> weight;
    std::vector<double> row_tokens;
    double tokens = 0, positions = 0, sequences = 0, weights = 0;
    for (std::ptrdiff_t i = 0; i < rows; ++i) {
      const double share = random.uniform();
      double of_row = 0, weight_of_row = 0;
      for (std::ptrdiff_t j = 0; j < columns; ++j) {
        const bool counted = random.chance(share * share);
        mask.push_back(counted ? static_cast<std::uint8_t>(1 + random.below(255)) : 0);
        weight.push_back(counted ? random.uniform(0.1, 1) : 0);
        of_row += counted ? 1 : 0;
        weight_of_row += weight.back();
      }
      row_tokens.push_back(of_row);
      tokens += of_row;
      weights += weight_of_row;
      sequences += of_row > 0 ? 1 : 0;
    }
    positions = tokens;
    const auto check = [&](const auto& exec, const auto& given, double expected) {
      const rlhf::view<const double> x(weight, shape);
      rlhf::token_binder<rlhf::host_space> bind("count", "x", x, {}, {given, shape});
      double counts[3];
      std::vector<double> row(row_tokens.size());
      auto call = exec.begin("count");
      call.count(bind.domain(), counts, row.data());
      CHECK(counts[0] == expected);
      CHECK(counts[1] == positions);
      CHECK(counts[2] == sequences);
      if (expected == positions) CHECK(row == row_tokens);
      call.count(bind.domain(), counts);
      CHECK(counts[0] == expected);
    };
    check(rlhf::serial{}, mask, tokens);
    check(rlhf::serial{}, weight, weights);
    const thread_pool pool{3};
    check(rlhf::parallel<thread_pool>{pool}, mask, tokens);
    check(rlhf::parallel<thread_pool>{pool}, weight, weights);
  }
}
