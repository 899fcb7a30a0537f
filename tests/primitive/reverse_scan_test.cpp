#include "rlhf/primitive/reverse_scan.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

/// The kernel of the header's comment.
template <class T>
struct reward_to_go {
  using scalar_type = T;
  static constexpr int inputs = 1, outputs = 1, flags = 0, shifted = -1;
  double decay;
  template <class Token>
  void step(Token& t) const {
    t.b = t.in[0];
  }
  template <class Token>
  void emit(Token& t) const {
    t.out[0] = t.x;
  }
  template <class Token>
  bool usable(const Token& t) const {
    return rlhf::math::is_finite(t.in[0]);
  }
};

/// x_t = b_t + a_t x_{t+1}, with x itself and what came before it.
template <class T>
struct varying {
  using scalar_type = T;
  static constexpr int inputs = 2, outputs = 2, flags = 0, shifted = 0;
  static constexpr bool varying_decay = true;
  template <class Token>
  void step(Token& t) const {
    t.b = t.in[0];
    t.a = t.in[1];
  }
  template <class Token>
  void emit(Token& t) const {
    t.out[0] = t.x;
    t.out[1] = t.next;
  }
  template <class Token>
  bool usable(const Token& t) const {
    return rlhf::math::is_finite(t.in[0]) && rlhf::math::is_finite(t.in[1]);
  }
};

template <class T>
std::vector<T> drawn(random_numbers& random, index n, double low, double high) {
  std::vector<T> x;
  for (index k = 0; k < n; ++k) x.push_back(static_cast<T>(random.uniform(low, high)));
  return x;
}

template <class T>
rlhf::token_input<T> padded_input(const std::vector<T>& x, index columns) {
  return {x.data(), columns, 0, 1, T(0)};
}
template <class T>
rlhf::token_output<T> padded_output(std::vector<T>& x, index columns) {
  return {x.data(), columns, 0, 1, false};
}

TEST_CASE_TEMPLATE("reverse_scan: decays that vary, against a plain loop", T, float, double) {
  random_numbers random(1);
  for (const index n : {1, 7, 8, 9, 31, 64, 1023, 1024, 1025, 1033, 2500}) {
    const auto b = drawn<T>(random, 2 * n, -1, 1);
    auto a = drawn<T>(random, 2 * n, 0.2, 1.0);
    for (auto& x : a)
      if (random.chance(0.01)) x = T(0);
    const auto end = drawn<T>(random, 2, -1, 1), after = drawn<T>(random, 2, -1, 1);
    std::vector<T> x(b.size()), next(b.size());
    rlhf::scan_arguments<varying<T>, rlhf::host_space> arguments;
    arguments.domain.rows = 2;
    arguments.domain.columns = n;
    arguments.in[0] = padded_input(b, n);
    arguments.in[1] = padded_input(a, n);
    arguments.out[0] = padded_output(x, n);
    arguments.out[1] = padded_output(next, n);
    arguments.end = {end.data(), 1, 0, 0, T(0)};
    arguments.after = {after.data(), 1, 0, 0, T(0)};
    double figures[rlhf::scan_figures<varying<T>>::size];
    rlhf::serial{}.begin("test").reverse_scan(varying<T>{}, arguments, figures);
    double error = 0, mean = 0;
    bool shifted = true;
    for (index i = 0; i < 2; ++i) {
      const auto row = static_cast<std::size_t>(i);
      double y = static_cast<double>(end[row]);
      T following = after[row];
      for (index j = n; j-- > 0;) {
        const auto k = static_cast<std::size_t>(i * n + j);
        y = static_cast<double>(b[k]) + static_cast<double>(a[k]) * y;
        error = std::max(error, std::abs(y - static_cast<double>(x[k])));
        shifted = shifted && next[k] == following;
        following = b[k];
        mean += static_cast<double>(x[k]) / static_cast<double>(2 * n);
      }
    }
    INFO(n, " tokens");
    CHECK(error <= (sizeof(T) == 4 ? 3e-6 : 1e-14));
    CHECK(shifted);
    CHECK(figures[0] == 2.0 * static_cast<double>(n));
    CHECK(figures[1] == 0);
    CHECK(figures[2] == doctest::Approx(mean).epsilon(1e-9));
  }
}

/// Both outputs, a shifted input and a flag: x_t = r_t + V_{t+1} + decay · x_{t+1}, and x_t + V_t.
template <class T>
struct two_outputs {
  using scalar_type = T;
  static constexpr int inputs = 2, outputs = 2, flags = 1, shifted = 1;
  double decay;
  template <class Token>
  void step(Token& t) const {
    t.b = t.in[0] + t.next;
  }
  template <class Token>
  void emit(Token& t) const {
    t.out[0] = t.x;
    t.out[1] = t.x + t.in[1];
  }
  template <class Token>
  bool usable(const Token& t) const {
    return rlhf::math::is_finite(t.in[0]) && rlhf::math::is_finite(t.in[1]);
  }
};

/// The valid tokens of one row, and what lies behind them.
template <class T>
struct plain_row {
  std::vector<T> reward, value;
  std::vector<std::uint8_t> flag;
  T after = T(0), end = T(0);
  std::vector<T> x, sum;  // outputs
};

/// The documented order in plain loops, for the kernel above.
template <class T>
class documented_order {
  using moments = rlhf::RLHF_COMPUTE::detail::scan_sums<2>;
  double power_[9], far_[129];
  double tile_;
  double decay_;

  // Of a segment.
  bool fresh_ = true;
  double shift_[2] = {}, lane_[2][8] = {}, lane_square_[2][8] = {}, odd_[2] = {},
         odd_square_[2] = {};
  double positions_ = 0;

  static T narrow(double x) {
    const T y = static_cast<T>(x);
    return y < std::numeric_limits<T>::min() ? T(0) : y;
  }
  static T fused(T a, T b, T c) { return rlhf::math::fma(a, b, c); }

  static double add_up(double* lane) {
    for (int half = 4; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) lane[l] += lane[l + half];
    return lane[0];
  }
  moments take_piece() {
    moments m;
    m.positions = positions_;
    for (int k = 0; k < 2; ++k) {
      m.shift[k] = shift_[k];
      m.sum[k] = add_up(lane_[k]) + odd_[k];
      m.square[k] = add_up(lane_square_[k]) + odd_square_[k];
      odd_[k] = odd_square_[k] = 0;
      for (int l = 0; l < 8; ++l) lane_[k][l] = lane_square_[k][l] = 0;
    }
    positions_ = 0;
    return m;
  }
  static moments tree(const std::vector<moments>& x, std::size_t begin, std::size_t n) {
    if (n == 0) return {};
    if (n == 1) return x[begin];
    std::size_t half = 1;
    while (2 * half < n) half *= 2;
    return moments::merge(tree(x, begin, half), tree(x, begin + half, n - half));
  }

  void count(const plain_row<T>& row, std::size_t at, int lane) {
    for (int k = 0; k < 2; ++k) {
      const double d = static_cast<double>(k == 0 ? row.x[at] : row.sum[at]) - shift_[k];
      double& sum = lane < 0 ? odd_[k] : lane_[k][lane];
      double& square = lane < 0 ? odd_square_[k] : lane_square_[k][lane];
      sum += d;
      square = rlhf::math::fma(d, d, square);
    }
    positions_ += 1;
  }

  void scan(plain_row<T>& row, std::vector<moments>& pieces, bool& cut) {
    const std::size_t n = row.reward.size();
    row.x.resize(n);
    row.sum.resize(n);
    const auto b = [&](std::size_t t) {
      return row.reward[t] + (t + 1 < n ? row.value[t + 1] : row.after);
    };
    const auto put = [&](std::size_t t, T x, int lane) {
      row.x[t] = x + T(0);
      row.sum[t] = x + row.value[t] + T(0);
      count(row, t, lane);
    };
    const auto follow = [&](std::size_t t, T later) {
      return row.flag[t] != 0 || decay_ == 0 ? b(t) : fused(narrow(power_[1]), later, b(t));
    };
    if (fresh_ && n > 0) {
      const T x = follow(n - 1, row.end);
      shift_[0] = static_cast<double>(x);
      shift_[1] = static_cast<double>(x + row.value[n - 1]);
      fresh_ = false;
    }
    double carry = static_cast<double>(row.end);
    std::size_t hi = n;
    for (int tiles = 1; hi > 0; ++tiles) {
      const std::size_t lo = hi > 1024 ? hi - 1024 : 0;
      T chain = 0, outer = static_cast<T>(carry);
      double held = carry;
      std::size_t at = hi;
      int m = 0;
      for (; at >= lo + 8; ++m) {
        at -= 8;
        const T total = fused(narrow(far_[m]), outer, chain);
        T x[8], y[8];
        bool stops = false;
        for (std::size_t l = 0; l < 8; ++l)
          x[l] = b(at + l), stops = stops || row.flag[at + l] != 0;
        if (decay_ == 0) {
        } else if (stops) {
          T later = total;
          for (std::size_t l = 8; l-- > 0;) x[l] = later = follow(at + l, later);
          chain = later;
          outer = 0;
          held = 0;
        } else {
          for (int l = 0; l < 8; ++l)
            y[l] = fused(narrow(power_[1]), l % 4 < 3 ? x[l + 1] : T(0), x[l]);
          for (int l = 0; l < 8; ++l)
            x[l] = fused(narrow(power_[2]), l % 4 < 2 ? y[l + 2] : T(0), y[l]);
          for (int l = 0; l < 4; ++l) y[l] = fused(narrow(power_[4 - l]), x[4], x[l]);
          for (int l = 4; l < 8; ++l) y[l] = x[l];
          chain = fused(narrow(power_[8]), chain, y[0]);
          for (int l = 0; l < 8; ++l) x[l] = fused(narrow(power_[8 - l]), total, y[l]);
        }
        for (int l = 0; l < 8; ++l) put(at + static_cast<std::size_t>(l), x[l], l);
      }
      const T reached = narrow(far_[m]);
      T later = reached > 0 ? fused(reached, outer, chain) : chain;
      while (at-- > lo) put(at, later = follow(at, later), -1);
      carry = static_cast<double>(chain);
      if (tile_ > 0) carry = rlhf::math::fma(tile_, held, carry);
      hi = lo;
      if (tiles % 4 == 0 && hi > 0) {
        pieces.push_back(take_piece());
        cut = true;
      }
    }
  }

 public:
  explicit documented_order(double decay) : decay_(decay) {
    power_[0] = far_[0] = 1;
    for (int k = 1; k <= 8; ++k) power_[k] = power_[k - 1] * decay;
    for (int m = 1; m <= 128; ++m) far_[m] = far_[m - 1] * power_[8];
    tile_ = decay > 0 ? far_[128] * power_[8] / power_[8] : 0;
  }

  /// Fills the outputs of all rows; returns the figures.
  std::vector<double> operator()(std::vector<plain_row<T>>& rows) {
    std::vector<moments> groups;
    for (std::size_t i = 0; i < rows.size();) {
      std::vector<moments> segments;
      do {
        std::vector<moments> pieces;
        bool cut = false;
        fresh_ = true;
        shift_[0] = shift_[1] = 0;
        do scan(rows[i++], pieces, cut);
        while (i < rows.size() && i % 64 != 0 && positions_ < 512 && !cut);
        pieces.push_back(take_piece());
        segments.push_back(tree(pieces, 0, pieces.size()));
      } while (i < rows.size() && i % 64 != 0);
      groups.push_back(tree(segments, 0, segments.size()));
    }
    std::vector<double> figures(6);
    tree(groups, 0, groups.size()).write(figures.data());
    return figures;
  }
};

/// How the valid tokens of rows lie in memory.
enum class lying { packed, lengths, mask, columns, holes };

template <class T, class Exec>
std::string in_documented_order(const std::vector<plain_row<T>>& rows, double decay, lying how,
                                const std::vector<double>& figures, const Exec& exec) {
  using K = two_outputs<T>;
  random_numbers random(rows.size());
  const auto n = static_cast<index>(rows.size());
  index longest = 1, total = 0;
  for (const auto& row : rows) {
    longest = std::max(longest, static_cast<index>(row.reward.size()));
    total += static_cast<index>(row.reward.size());
  }
  const bool holes = how == lying::holes || how == lying::columns;
  const index columns = holes ? longest + longest / 4 + 3 : longest;
  const auto slots = static_cast<std::size_t>(how == lying::packed ? total : n * columns);
  const index step = how == lying::columns ? n : 1, per_row = how == lying::columns ? 1 : columns;
  const T poison = static_cast<T>(not_a_number);
  std::vector<T> reward(slots, poison), value(slots, poison), x(slots, T(7)), sum(slots, T(7));
  std::vector<std::uint8_t> flag(slots, 1), mask(slots, 0);
  std::vector<T> after, end;
  std::vector<std::int64_t> length, offset{0};
  std::vector<std::size_t> place;
  for (index i = 0; i < n; ++i) {
    const auto& row = rows[static_cast<std::size_t>(i)];
    const auto count = static_cast<index>(row.reward.size());
    length.push_back(count);
    after.push_back(row.after);
    end.push_back(row.end);
    index spare = holes ? columns - count : 0;
    for (index j = 0, at = 0; j < count; ++j, ++at) {
      while (spare > 0 && random.chance(0.2)) ++at, --spare;
      const index slot = how == lying::packed ? offset.back() + j : i * per_row + at * step;
      const auto k = static_cast<std::size_t>(slot), t = static_cast<std::size_t>(j);
      place.push_back(k);
      reward[k] = row.reward[t];
      value[k] = row.value[t];
      flag[k] = row.flag[t];
      mask[k] = static_cast<std::uint8_t>(1 + 127 * (j % 3));
    }
    offset.push_back(offset.back() + count);
  }
  rlhf::scan_arguments<K, rlhf::host_space> a;
  a.domain.rows = n;
  a.domain.columns = how == lying::packed ? total : columns;
  if (how == lying::packed) a.domain.kind = rlhf::arrangement::packed;
  if (how == lying::lengths) a.domain.kind = rlhf::arrangement::lengths;
  if (how == lying::packed) a.domain.indices = rlhf::index_view<>(offset);
  if (how == lying::lengths) a.domain.indices = rlhf::index_view<>(length);
  const rlhf::shape shape(n, columns), strides(per_row, step);
  if (how == lying::mask || holes) a.domain.mask = rlhf::mask_view<>(mask.data(), shape, strides);
  const index row_step = how == lying::packed ? 0 : per_row, begin = how == lying::packed ? 1 : 0;
  a.in[0] = {reward.data(), row_step, begin, step, T(0)};
  a.in[1] = {value.data(), row_step, begin, step, T(0)};
  a.flag[0] = {flag.data(), row_step, begin, step};
  a.after = {after.data(), 1, 0, 0, T(0)};
  a.end = {end.data(), 1, 0, 0, T(0)};
  a.out[0] = {x.data(), row_step, begin, step, false};
  a.out[1] = {sum.data(), row_step, begin, step, false};
  std::vector<double> found(6);
  exec.begin("test").reverse_scan(K{decay}, a, found.data());

  std::size_t p = 0;
  for (const auto& row : rows)
    for (std::size_t t = 0; t < row.reward.size(); ++t, ++p) {
      if (std::memcmp(&x[place[p]], &row.x[t], sizeof(T)) != 0) return "x";
      if (std::memcmp(&sum[place[p]], &row.sum[t], sizeof(T)) != 0) return "the second output";
      x[place[p]] = sum[place[p]] = T(0);
    }
  for (std::size_t k = 0; k < slots; ++k)
    if (x[k] != 0 || sum[k] != 0) return "what is no token";
  return std::memcmp(found.data(), figures.data(), 6 * sizeof(double)) == 0 ? "" : "the moments";
}

TEST_CASE_TEMPLATE(
    "reverse_scan: steps and moments have the documented order, bit by bit, wherever tokens lie "
    "and "
    "on any number of threads",
    T, float, double) {
  random_numbers random(3);
  struct batch {
    index rows, shortest, longest;
  };
  const thread_pool two{2}, seven{7};
  for (const batch& size : {batch{1, 0, 0},
                            {1, 9000, 9000},
                            {2, 3000, 14000},
                            {150, 0, 20},
                            {70, 0, 7},
                            {65, 8, 8},
                            {66, 9, 9},
                            {40, 15, 17},
                            {20, 63, 65},
                            {30, 0, 300},
                            {9, 1016, 1034},
                            {1300, 1, 9},
                            {5, 0, 5000}})
    for (const double decay : {0.97, 1.0, 0.25, 0.0}) {
      std::vector<plain_row<T>> rows;
      for (index i = 0; i < size.rows; ++i) {
        const index n = size.shortest + random.below(size.longest - size.shortest + 1);
        plain_row<T> row;
        row.reward = drawn<T>(random, n, -1, 1);
        row.value = drawn<T>(random, n, -1, 1);
        for (index j = 0; j < n; ++j) row.flag.push_back(random.chance(0.01) ? 1 : 0);
        row.after = static_cast<T>(random.uniform(-1, 1));
        row.end = static_cast<T>(random.uniform(-1, 1));
        rows.push_back(row);
      }
      const auto figures = documented_order<T>(decay)(rows);
      for (const lying how :
           {lying::packed, lying::lengths, lying::mask, lying::columns, lying::holes}) {
        INFO(size.rows, " rows up to ", size.longest, ", decay ", decay, ", ",
             static_cast<int>(how));
        CHECK(in_documented_order(rows, decay, how, figures, rlhf::serial{}) == "");
        CHECK(in_documented_order(rows, decay, how, figures, rlhf::parallel{two}) == "");
        CHECK(in_documented_order(rows, decay, how, figures, rlhf::parallel{seven}) == "");
      }
    }
}

TEST_CASE("reverse_scan: a NaN stays in its row, and in its episode") {
  for (const index columns : {5, 8, 16, 29, 64, 1100})
    for (const bool masked : {false, true}) {
      const index rows = 20;
      const auto slots = static_cast<std::size_t>(rows * columns);
      std::vector<float> reward(slots, 1.0f), value(slots, 0.5f), x(slots), sum(slots);
      std::vector<std::uint8_t> flag(slots, 0), mask(slots, 1);
      const auto at = [&](index i, index j) { return static_cast<std::size_t>(i * columns + j); };
      if (masked)
        for (index i = 0; i < rows; ++i) mask[at(i, 2)] = 0;
      reward[at(7, columns - 1)] = static_cast<float>(not_a_number);
      reward[at(9, columns - 1)] = static_cast<float>(not_a_number);
      flag[at(9, columns - 2)] = 1;
      rlhf::scan_arguments<two_outputs<float>, rlhf::host_space> a;
      a.domain.rows = rows;
      a.domain.columns = columns;
      if (masked) a.domain.mask = rlhf::mask_view<>(mask, {rows, columns});
      a.in[0] = padded_input(reward, columns);
      a.in[1] = padded_input(value, columns);
      a.flag[0] = {flag.data(), columns, 0, 1};
      a.out[0] = padded_output(x, columns);
      a.out[1] = padded_output(sum, columns);
      double figures[6];
      rlhf::serial{}.begin("test").reverse_scan(two_outputs<float>{0.9}, a, figures);
      index wrong = 0;
      for (index i = 0; i < rows; ++i)
        for (index j = 0; j < columns; ++j) {
          const bool token = !masked || j != 2;
          const bool lost = token && (i == 7 || (i == 9 && j == columns - 1));
          wrong += std::isnan(x[at(i, j)]) == lost && std::isnan(sum[at(i, j)]) == lost ? 0 : 1;
        }
      INFO(columns, " columns");
      CHECK(wrong == 0);
      CHECK(figures[1] == 2);
    }
}

TEST_CASE_TEMPLATE("reverse_scan: a decay of 0 stops everything, NaN as well", T, float, double) {
  const index n = 40;
  std::vector<T> b(40, T(1)), a(40, T(0.5)), x(40), next(40);
  a[20] = T(0);
  b[30] = static_cast<T>(not_a_number);
  rlhf::scan_arguments<varying<T>, rlhf::host_space> arguments;
  arguments.domain.rows = 1;
  arguments.domain.columns = n;
  arguments.in[0] = padded_input(b, n);
  arguments.in[1] = padded_input(a, n);
  arguments.out[0] = padded_output(x, n);
  double figures[rlhf::scan_figures<varying<T>>::size];
  rlhf::serial{}.begin("test").reverse_scan(varying<T>{}, arguments, figures);
  for (index j = 0; j < n; ++j)
    CHECK(std::isnan(x[static_cast<std::size_t>(j)]) == (j > 20 && j <= 30));
  CHECK(x[20] == T(1));
  CHECK(figures[1] == 1);
}

TEST_CASE(
    "reverse_scan: moments do not depend on who works, and see a deviation of 1 beside a mean of a "
    "million") {
  random_numbers random(2);
  const index rows = 300, columns = 37;
  auto b = drawn<double>(random, rows * columns, -1, 1);
  for (double& x : b) x += 1e6;
  std::vector<std::int32_t> length;
  for (index i = 0; i < rows; ++i)
    length.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
  std::vector<double> x(b.size());
  rlhf::scan_arguments<reward_to_go<double>, rlhf::host_space> arguments;
  arguments.domain.rows = rows;
  arguments.domain.columns = columns;
  arguments.domain.kind = rlhf::arrangement::lengths;
  arguments.domain.indices = rlhf::index_view<>(length);
  arguments.in[0] = padded_input(b, columns);
  arguments.out[0] = padded_output(x, columns);
  const reward_to_go<double> kernel{0};
  double one[4], three[4];
  rlhf::serial{}.begin("test").reverse_scan(kernel, arguments, one);
  const thread_pool pool{3};
  rlhf::parallel{pool}.begin("test").reverse_scan(kernel, arguments, three);
  CHECK(std::memcmp(one, three, sizeof one) == 0);
  double n = 0, mean = 0, m2 = 0;
  for (int pass = 0; pass < 2; ++pass) {
    for (index i = 0; i < rows; ++i)
      for (index j = 0; j < length[static_cast<std::size_t>(i)]; ++j) {
        const double v = b[static_cast<std::size_t>(i * columns + j)] - 1e6;
        if (pass == 0)
          n += 1, mean += v;
        else
          m2 += (v - mean) * (v - mean);
      }
    if (pass == 0) mean /= n;
  }
  CHECK(one[0] == n);
  CHECK(one[2] - 1e6 == doctest::Approx(mean).epsilon(1e-6));
  CHECK(one[3] == doctest::Approx(m2).epsilon(1e-9));
}

TEST_CASE(
    "reverse_scan: a workspace of the size that a dry run names is enough, and nothing less") {
  const index n = 100;
  const std::vector<float> b(300, 1.0f), weight(300, 0.5f);
  std::vector<float> x(300);
  rlhf::scan_arguments<reward_to_go<float>, rlhf::host_space> arguments;
  arguments.domain.rows = 3;
  arguments.domain.columns = n;
  arguments.domain.mask = rlhf::mask_view<>(weight, {index{3}, n});
  arguments.in[0] = padded_input(b, n);
  arguments.out[0] = padded_output(x, n);
  const auto call = [&](const auto& exec) {
    auto run = exec.begin("test");
    double* const figures = run.template allocate<double>(4);
    run.reverse_scan(reward_to_go<float>{0.5}, arguments, figures);
  };
  const std::size_t bytes = rlhf::workspace_bytes(call);
  std::vector<std::byte> memory(bytes);
  call(rlhf::serial{memory.data(), bytes});
  CHECK(x[0] == doctest::Approx(2));
  CHECK(message_of([&] { call(rlhf::serial{memory.data(), bytes - 128}); }) != "");
}

}  // namespace
}  // namespace rlhf_test
