#include "rlhf/primitive/reverse_scan.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
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
