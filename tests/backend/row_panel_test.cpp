// Tensors whose rows lie side by side are walked through row panels: the bits are those of
// row-major ones, nothing else is written, and a workspace serves.

#include <doctest/doctest.h>

#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "tests/support/backends.hpp"
#include "tests/support/thread_pool.hpp"

namespace rlhf_test {
namespace {

/// Where a tensor [rows, columns] lies: element (i, j) at origin + i · per_row + j · stride.
struct memory_order {
  index per_row, stride, origin, size;

  static memory_order row_major(index rows, index columns) {
    return {columns, 1, 0, rows * columns};
  }
  /// Row- or column-major, dense or with gaps, either direction of time.
  static memory_order any(index rows, index columns, random_numbers& random) {
    switch (random.below(6)) {
      case 0:
        return row_major(rows, columns);
      case 1:
        return {columns + 5, 1, 0, rows * (columns + 5)};
      case 2:
        return {1, rows + 3, 0, columns * (rows + 3)};
      case 3:
        return {2, 2 * rows + 1, 1, columns * (2 * rows + 1) + 1};
      case 4:  // rows upside down, the last token first
        return {-1, -rows, rows * columns - 1, rows * columns};
      default:
        return {1, rows, 0, rows * columns};
    }
  }
  index place(index i, index j) const { return origin + i * per_row + j * stride; }
};

/// A tensor in some order; what lies between its elements is 123.
template <class X>
struct tensor_in {
  index rows, columns;
  memory_order order;
  std::vector<X> memory;

  tensor_in(const std::vector<X>& dense, index of_rows, index of_columns, const memory_order& in)
      : rows(of_rows), columns(of_columns), order(in), memory(static_cast<std::size_t>(in.size)) {
    for (X& x : memory) x = X(123);
    for (index i = 0; i < rows; ++i)
      for (index j = 0; j < columns; ++j)
        memory[static_cast<std::size_t>(order.place(i, j))] =
            dense[static_cast<std::size_t>(i * columns + j)];
  }
  X* data() { return memory.data() + order.origin; }
  rlhf::shape extents() const { return rlhf::shape(rows, columns); }
  rlhf::shape strides() const { return rlhf::shape(order.per_row, order.stride); }
  rlhf::view<const X> in() { return rlhf::view<const X>(data(), extents(), strides()); }
  rlhf::view<X> out() { return rlhf::view<X>(data(), extents(), strides()); }
  rlhf::mask_view<> mask() { return {data(), extents(), strides()}; }

  std::vector<X> dense() const {
    std::vector<X> d;
    for (index i = 0; i < rows; ++i)
      for (index j = 0; j < columns; ++j)
        d.push_back(memory[static_cast<std::size_t>(order.place(i, j))]);
    return d;
  }
  /// Whether the memory is what a fresh tensor of these elements would be.
  bool gaps_kept() const { return tensor_in(dense(), rows, columns, order).memory == memory; }
};

template <class T>
bool same(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

enum class masked { no, by_flags, by_floats, by_doubles };

/// One batch, and calls over it with tensors in any order.
template <class T>
struct batch {
  index rows, columns;
  masked how;
  bool by_lengths, add;
  std::vector<T> number[6];
  std::vector<std::uint8_t> flag[3];
  std::vector<float> float_weight;
  std::vector<double> double_weight;
  std::vector<std::int32_t> length;

  batch(index of_rows, index of_columns, random_numbers& random)
      : rows(of_rows),
        columns(of_columns),
        how(static_cast<masked>(random.below(4))),
        by_lengths(random.chance(0.5)),
        add(random.chance(0.4)) {
    const index n = rows * columns;
    for (auto& v : number)
      for (index k = 0; k < n; ++k) v.push_back(static_cast<T>(random.uniform(-2, 2)));
    for (auto& v : flag) {
      const double share = &v == flag ? 0.8 : 0.01;  // of the mask; of ends of episodes
      for (index k = 0; k < n; ++k) v.push_back(random.chance(share) ? 1 : 0);
    }
    for (index k = 0; k < n; ++k) {
      double_weight.push_back(random.chance(0.2) ? 0 : random.uniform(0.5, 2));
      float_weight.push_back(static_cast<float>(double_weight.back()));
    }
    for (index i = 0; i < rows; ++i)
      length.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
  }

  /// All outputs, dense, then all figures; `order()` says where the next tensor lies.
  template <class Order, class Exec>
  std::vector<T> run(const Order& order, const Exec& exec) {
    const auto place = [&](const auto& dense) { return tensor_in(dense, rows, columns, order()); };
    tensor_in<T> x[6] = {place(number[0]), place(number[1]), place(number[2]),
                         place(number[3]), place(number[4]), place(number[5])};
    tensor_in<std::uint8_t> f[3] = {place(flag[0]), place(flag[1]), place(flag[2])};
    tensor_in<float> w32 = place(float_weight);
    tensor_in<double> w64 = place(double_weight);
    const rlhf::mask_view<> mask = how == masked::by_flags     ? f[0].mask()
                                   : how == masked::by_floats  ? w32.mask()
                                   : how == masked::by_doubles ? w64.mask()
                                                               : rlhf::mask_view<>();
    const rlhf::sequence_layout<> layout =
        by_lengths ? rlhf::lengths(length) : rlhf::sequence_layout<>();
    const auto written = [&](tensor_in<T>& y) {
      rlhf::output<T> o{y.out()};
      o.accumulate = add;
      return o;
    };
    std::vector<T> all;
    const auto take = [&](const tensor_in<T>& y) {
      CHECK(y.gaps_kept());
      const auto d = y.dense();
      all.insert(all.end(), d.begin(), d.end());
    };

    const auto policy = rlhf::clipped_surrogate_loss<T>(
        {.log_prob = x[0].in(),
         .old_log_prob = x[1].in(),
         .advantage = x[2].in(),
         .mask = mask,
         .layout = layout},
        {.d_log_prob = written(x[3]), .token_loss = written(x[4])},
        {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)}, exec);
    take(x[3]);
    take(x[4]);
    const auto sequence = rlhf::sequence_clipped_surrogate_loss<T>(
        {.log_prob = x[0].in(),
         .old_log_prob = x[1].in(),
         .advantage = x[2].in(),
         .mask = mask,
         .layout = layout},
        {.d_log_prob = written(x[3])},
        {.over = rlhf::aggregation::sequence_mean_token_mean(rlhf::local)}, exec);
    take(x[3]);
    const auto moments = rlhf::whiten<T>({.value = x[0].in(), .mask = mask, .layout = layout},
                                         {.whitened = written(x[5])}, {}, exec);
    take(x[5]);
    rlhf::generalized_advantage_estimation<T>(
        {.reward = x[0].in(),
         .value = x[1].in(),
         .next_value = x[2].in(),
         .terminated = f[1].mask(),
         .truncated = f[2].mask(),
         .mask = mask,
         .layout = layout},
        {.advantage = written(x[3]), .returns = written(x[4])}, {.gamma = 0.99, .lambda = 0.9},
        exec);
    take(x[3]);
    take(x[4]);
    for (const double figure :
         {policy.loss, policy.approx_kl_k3.sum, policy.tokens, sequence.loss, sequence.tokens,
          moments.moments.mean, moments.moments.m2, moments.tokens, moments.positions})
      all.push_back(static_cast<T>(figure));
    return all;
  }
};

template <class T>
void check(index rows, index columns, random_numbers& random) {
  CAPTURE(rows);
  CAPTURE(columns);
  batch<T> b(rows, columns, random);
  CAPTURE(static_cast<int>(b.how));
  CAPTURE(b.by_lengths);
  CAPTURE(b.add);
  const auto expected =
      b.run([&] { return memory_order::row_major(rows, columns); }, rlhf::serial{});
  const auto any = [&] { return memory_order::any(rows, columns, random); };
  CHECK(same(b.run(any, rlhf::serial{}), expected));
  CHECK(same(b.run(
                 [&] {
                   return memory_order{1, rows, 0, rows * columns};
                 },
                 rlhf::serial{}),
             expected));
  const thread_pool pool{1 + random.below(4)};
  CHECK(same(b.run(any, rlhf::parallel{pool}), expected));
}

/// A pool that says it has many threads, and takes the work in turn.
struct in_turn {
  index threads;
  index concurrency() const { return threads; }
  template <class F>
  void parallel_for(index n, const F& f) const {
    for (index i = n; i-- > 0;) f(i);
  }
};

}  // namespace

TEST_CASE_TEMPLATE("row panels: any order of memory has the bits of row-major tensors", T, float,
                   double) {
  random_numbers random(sizeof(T));
  for (int round = 0; round < 24; ++round)
    check<T>(1 + random.below(200), 20 + random.below(200), random);
  // Many columns of few rows: panels of fewer rows than there are, then none.
  check<T>(37, 3001, random);
  check<T>(19, 6007, random);
  check<T>(5, 20011, random);
  check<T>(4, 140000, random);
}

TEST_CASE("row panels: threads that are many take them as one does") {
  random_numbers random(3);
  for (const index threads : {2, 9, 64}) {
    CAPTURE(threads);
    batch<float> b(150, 131, random);
    const auto expected = b.run([&] { return memory_order::row_major(150, 131); }, rlhf::serial{});
    const in_turn pool{threads};
    CHECK(same(b.run(
                   [&] {
                     return memory_order{1, 150, 0, 150 * 131};
                   },
                   rlhf::parallel{pool}),
               expected));
  }
}

TEST_CASE("row panels: a workspace holds them, and is smaller than 2 MiB for each thread") {
  for (const auto& size : {std::pair<index, index>{512, 2048}, {64, 16000}, {9, 700}}) {
    const index rows = size.first, columns = size.second, n = rows * columns;
    std::vector<float> log_prob(static_cast<std::size_t>(n), -1.0f), gradient(log_prob);
    for (index k = 0; k < n; ++k)
      log_prob[static_cast<std::size_t>(k)] = -0.001f * static_cast<float>(k % 991);
    const auto call = [&](const rlhf::shape& strides, const auto& exec) {
      const rlhf::view<const float> x(log_prob.data(), rlhf::shape(rows, columns), strides);
      return rlhf::clipped_surrogate_loss<float>(
          {.log_prob = x, .old_log_prob = x, .advantage = x},
          {.d_log_prob = rlhf::view<float>(gradient.data(), rlhf::shape(rows, columns), strides)},
          {.over = rlhf::aggregation::token_mean(rlhf::local)}, exec);
    };
    const rlhf::shape by_row(columns, index{1}), by_column(index{1}, rows);
    const auto bytes = [&](const rlhf::shape& strides, index threads) {
      return rlhf::workspace_bytes([&](const auto& exec) { return call(strides, exec); }, threads);
    };
    for (const index threads : {1, 3}) {
      const std::size_t needed = bytes(by_column, threads);
      CHECK(needed > bytes(by_row, threads));
      CHECK(needed < bytes(by_row, threads) + (static_cast<std::size_t>(threads) << 21));
      std::vector<std::byte> memory(needed);
      const in_turn pool{threads};
      const double loss = call(by_column, rlhf::parallel{pool, memory.data(), needed}).loss;
      CHECK(loss == call(by_column, rlhf::serial{}).loss);
      CHECK_THROWS(call(by_column, rlhf::parallel{pool, memory.data(), needed - 128}));
    }
  }
}

}  // namespace rlhf_test
