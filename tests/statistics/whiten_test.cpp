#include "rlhf/statistics/whiten.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/backends.hpp"
#include "tests/support/slope.hpp"
#include "tests/support/thread_pool.hpp"

using namespace rlhf_test;
using rlhf::epsilon_mode;
using rlhf::whiten;
using rlhf::whiten_backward;
using numbers = std::vector<double>;

TEST_CASE_TEMPLATE("whiten: values by hand", B, RLHF_TEST_BACKENDS) {
  // 1 3 8: mean 4, unbiased variance 13; masked NaN
  const auto value = rows<B>({{1, not_a_number, 3}, {8, infinite, not_a_number}});
  const auto mask = flags<B>({{1, 0, 1}, {1, 0, 0}});
  auto y = rows<B>({{7, 7, 7}, {7, 7, 7}});
  const auto run = [&](const rlhf::whiten_config& config) {
    return whiten<double>({.value = value.tensor(), .mask = mask.tensor()},
                          {.whitened = y.tensor()}, config);
  };
  const auto r = run({.epsilon = 0});
  CHECK(r.mean == 4);
  CHECK(r.variance == doctest::Approx(13));
  CHECK(r.scale == doctest::Approx(1 / std::sqrt(13.0)));
  CHECK(r.tokens == 3);
  CHECK(y(0, 0) == doctest::Approx(-3 / std::sqrt(13.0)));
  CHECK(y(0, 1) == 0);
  CHECK(y(1, 0) == doctest::Approx(4 / std::sqrt(13.0)));
  CHECK(y(1, 2) == 0);
  run({.epsilon = 3});
  CHECK(y(0, 0) == doctest::Approx(-3.0 / 4));
  run({.epsilon = 3, .epsilon_mode = epsilon_mode::add});
  CHECK(y(0, 0) == doctest::Approx(-3 / (std::sqrt(13.0) + 3)));
  run({.epsilon = 16, .epsilon_mode = epsilon_mode::floor});
  CHECK(y(0, 0) == doctest::Approx(-3.0 / 4));
  run({.epsilon = 4, .epsilon_mode = epsilon_mode::floor});
  CHECK(y(0, 0) == doctest::Approx(-3 / std::sqrt(13.0)));
  run({.ddof = 0, .epsilon = 0});
  CHECK(y(0, 0) == doctest::Approx(-3 / std::sqrt(26.0 / 3)));
  run({.shift_mean = false, .epsilon = 0});
  CHECK(y(0, 0) == doctest::Approx(4 - 3 / std::sqrt(13.0)));
  CHECK(y(0, 1) == 0);
}

TEST_CASE("whiten: the result has mean 0 and variance 1, and whitening twice changes nothing") {
  random_numbers random(3);
  numbers value(500), once(500), twice(500);
  for (double& x : value) x = random.uniform(5, 9);
  whiten<double>({.value = value}, {.whitened = once}, {.epsilon = 0});
  const auto r = whiten<double>({.value = once}, {.whitened = twice}, {.epsilon = 0});
  CHECK(std::fabs(r.mean) < 1e-14);
  CHECK(r.variance == doctest::Approx(1).epsilon(1e-13));
  for (std::size_t i = 0; i < 500; ++i) CHECK(twice[i] == doctest::Approx(once[i]).epsilon(1e-12));
}

TEST_CASE("whiten: equal numbers, a single one and none give exactly 0, whatever epsilon is") {
  for (const double epsilon : {0.0, 1e-8})
    for (const auto mode : {epsilon_mode::inside, epsilon_mode::add, epsilon_mode::floor}) {
      const rlhf::whiten_config config{.epsilon = epsilon, .epsilon_mode = mode};
      std::vector<float> flat(77, 0.1f), y(77, 7.0f);
      whiten<float>({.value = flat}, {.whitened = y}, config);
      CHECK(y == std::vector<float>(77, 0.0f));
      whiten<float>({.value = flat}, {.whitened = y}, {.shift_mean = false, .epsilon_mode = mode});
      CHECK(y == flat);
      const std::vector<std::uint8_t> single{0, 1, 0}, none{0, 0, 0};
      const numbers value{1, 2, 3};
      numbers z(3, 7);
      whiten<double>({.value = value, .mask = single}, {.whitened = z}, config);
      CHECK(z == numbers(3, 0));
      z.assign(3, 7);
      whiten<double>({.value = value, .mask = none}, {.whitened = z}, config);
      CHECK(z == numbers(3, 0));
    }
}

TEST_CASE("whiten: a mean of 1e6 with standard deviation 1 keeps 1e-6 in float") {
  random_numbers random(5);
  const std::size_t n = 4096;
  std::vector<float> value(n), y(n);
  long double mean = 0, m2 = 0;
  for (float& v : value)
    mean += static_cast<long double>(v = static_cast<float>(1e6 + random.uniform(-1.7, 1.7)));
  mean /= n;
  for (const float v : value)
    m2 += (static_cast<long double>(v) - mean) * (static_cast<long double>(v) - mean);
  whiten<float>({.value = value}, {.whitened = y});
  for (std::size_t i = 0; i < n; ++i) {
    const long double exact = (static_cast<long double>(value[i]) - mean) / std::sqrt(m2 / (n - 1));
    CHECK(std::fabs(static_cast<long double>(y[i]) - exact) < 1e-6L);
  }
}

TEST_CASE("whiten: merged moments of the shards whiten each shard like the whole") {
  random_numbers random(8);
  numbers value(90), whole(90), parts(90);
  for (double& x : value) x = random.uniform(-1, 4);
  whiten<double>({.value = {value, {9, 10}}}, {.whitened = {whole, {9, 10}}});
  const auto shard = [&](rlhf::index from, rlhf::index n) {
    return rlhf::view<const double>(value.data() + from * 10, {n, rlhf::index{10}});
  };
  const auto merged = rlhf::masked_moments<double>({.value = shard(0, 2)}) +
                      rlhf::masked_moments<double>({.value = shard(2, 0)}) +
                      rlhf::masked_moments<double>({.value = shard(2, 7)});
  for (const rlhf::index from : {0, 2}) {
    const rlhf::index n = from == 0 ? 2 : 7;
    const auto r = whiten<double>({.value = shard(from, n)},
                                  {.whitened = {parts.data() + from * 10, {n, rlhf::index{10}}}},
                                  {.moments = merged.moments});
    CHECK(r.moments.count == 90);
    CHECK(r.tokens == static_cast<double>(n * 10));
  }
  for (std::size_t i = 0; i < 90; ++i) CHECK(parts[i] == doctest::Approx(whole[i]).epsilon(1e-13));
}

TEST_CASE("whiten: NaN is in every result, or dropped and counted") {
  const numbers value{1, not_a_number, 3};
  numbers y(3, 7);
  const auto seen = whiten<double>({.value = value}, {.whitened = y});
  CHECK(std::isnan(y[0]));
  CHECK(seen.nonfinite == 1);
  const auto r = whiten<double>({.value = value}, {.whitened = y},
                                {.epsilon = 0, .nonfinite = rlhf::nonfinite_policy::drop_token});
  CHECK(y[0] == doctest::Approx(-std::sqrt(0.5)));
  CHECK(y[1] == 0);
  CHECK(r.nonfinite == 1);
}

TEST_CASE("whiten: padded, lengths and packed give the same bits") {
  random_numbers random(12);
  const std::vector<std::int32_t> length{4, 19, 0, 7}, offset{0, 4, 23, 23, 30};
  std::vector<float> x(80, NAN), packed, a(80, 7.0f), b(30);
  std::vector<std::uint8_t> mask(80, 0);
  for (std::size_t i = 0; i < 4; ++i)
    for (std::size_t j = 0; j < static_cast<std::size_t>(length[i]); ++j) {
      packed.push_back(x[i * 20 + j] = static_cast<float>(random.uniform(-3, 0)));
      mask[i * 20 + j] = 1;
    }
  const auto r = whiten<float>({.value = {x, {4, 20}}, .layout = rlhf::lengths(length)},
                               {.whitened = {a, {4, 20}}});
  const auto p = whiten<float>({.value = packed, .layout = rlhf::packed(offset)}, {.whitened = b});
  CHECK(r.moments.m2 == p.moments.m2);
  std::vector<float> c(80, 7.0f);
  whiten<float>({.value = {x, {4, 20}}, .mask = {mask, {4, 20}}}, {.whitened = {c, {4, 20}}});
  CHECK(a == c);
  std::size_t at = 0;
  for (std::size_t k = 0; k < 80; ++k) CHECK(a[k] == (mask[k] != 0 ? b[at++] : 0.0f));
}

TEST_CASE("whiten_backward: it is the slope of whiten, in every mode") {
  random_numbers random(14);
  numbers value(10), u(10), weight{1, 2, 0, 0.5, 1, 1, 3, 1, 1, 0.25}, y(10), d(10);
  for (double& x : value) x = random.uniform(-2, 2);
  for (double& x : u) x = random.uniform(-1, 1);
  for (const auto mode : {epsilon_mode::inside, epsilon_mode::add, epsilon_mode::floor})
    for (const double epsilon : {1e-8, 0.5, 30.0})
      for (const bool shift : {true, false})
        for (const double ddof : {0.0, 1.0})
          for (const bool weighted : {false, true}) {
            const rlhf::whiten_config config{
                .shift_mean = shift, .ddof = ddof, .epsilon = epsilon, .epsilon_mode = mode};
            rlhf::mask_view<> mask;
            if (weighted) mask = {weight, {2, 5}};
            whiten_backward<double>(
                {.value = {value, {2, 5}}, .d_whitened = {u, {2, 5}}, .mask = mask},
                {.d_value = {d, {2, 5}}}, config);
            const auto loss = [&] {
              whiten<double>({.value = {value, {2, 5}}, .mask = mask}, {.whitened = {y, {2, 5}}},
                             config);
              double s = 0;
              for (std::size_t i = 0; i < 10; ++i) s += u[i] * y[i];
              return s;
            };
            for (std::size_t i = 0; i < 10; ++i)
              CHECK(d[i] == doctest::Approx(slope_of(loss, value[i])).epsilon(1e-8));
          }
}

TEST_CASE("whiten_backward: given moments are constants; equal numbers have gradient 0") {
  const numbers value{1, 2, 4}, u{1, -1, 2}, flat(3, 5);
  numbers d(3, 7);
  const auto r = whiten_backward<double>({.value = value, .d_whitened = u}, {.d_value = d},
                                         {.epsilon = 0, .moments = rlhf::moments{10, 1, 36}});
  CHECK(r.scale == 0.5);
  CHECK(d == numbers{0.5, -0.5, 1});
  whiten_backward<double>({.value = flat, .d_whitened = u}, {.d_value = d});
  CHECK(d == numbers(3, 0));
}

TEST_CASE("whiten: a broken contract names itself and writes nothing") {
  const numbers value{1, 2}, three{1, 2, 3};
  numbers y(2, 7);
  const auto broken = [&](const rlhf::whiten_config& config) {
    const std::string m =
        message_of([&] { whiten<double>({.value = value}, {.whitened = y}, config); });
    CHECK(y == numbers(2, 7));
    return m;
  };
  CHECK(broken({.ddof = -1}) == "whiten: ddof: expected >= 0, received -1");
  CHECK(broken({.epsilon = -1}).find("epsilon") != std::string::npos);
  CHECK(broken({.epsilon = not_a_number}).find("epsilon") != std::string::npos);
  CHECK(broken({.moments = rlhf::moments{-1, 0, 0}}).find("moments") != std::string::npos);
  CHECK(message_of([&] {
          whiten<double>({.value = three}, {.whitened = y});
        }).find("whiten: whitened: expected shape") == 0);
  CHECK(message_of([&] { whiten<double>({.value = y}, {.whitened = y}); }).find("overlaps") !=
        std::string::npos);
  CHECK(y == numbers(2, 7));
}

TEST_CASE(
    "whiten: outputs that go past the caches, and any alignment, have the bits of small ones") {
  // 17 MiB of floats: written with streaming stores where there are such.
  const std::ptrdiff_t columns = 1027, many = 4340;
  random_numbers random(21);
  std::vector<float> value(static_cast<std::size_t>(many * columns + 3), 0.0f);
  for (float& x : value) x = static_cast<float>(random.uniform(-1, 1));
  std::vector<float> whole(value.size(), 7.0f), row(static_cast<std::size_t>(columns));
  std::vector<std::int32_t> length(static_cast<std::size_t>(many));
  std::vector<std::uint8_t> mask(value.size(), 1);
  for (std::size_t i = 0; i < length.size(); ++i)
    length[i] = static_cast<std::int32_t>(i % 7 == 0 ? i % 50 : 1027 - i % 20);
  for (std::size_t i = 0; i < mask.size(); i += 5) mask[i] = 0;
  const thread_pool two{2};
  const rlhf::shape shape(many, columns);
  for (const std::ptrdiff_t skew : {0, 1, 3})
    for (const int kind : {0, 1, 2}) {
      CAPTURE(skew);
      CAPTURE(kind);
      const rlhf::view<const float> from(value.data() + skew, shape);
      const rlhf::view<float> to(whole.data() + skew, shape);
      rlhf::mask_view<> flags;
      rlhf::sequence_layout<> layout;
      if (kind == 1) layout = rlhf::lengths(length);
      if (kind == 2) flags = rlhf::mask_view<>(rlhf::view<const std::uint8_t>(mask.data(), shape));
      const auto all = whiten<float>({.value = from, .mask = flags, .layout = layout},
                                     {.whitened = to}, {}, rlhf::parallel{two});
      const std::vector<float> on_two(whole);
      whole.assign(whole.size(), 7.0f);
      whiten<float>({.value = from, .mask = flags, .layout = layout}, {.whitened = to});
      CHECK(whole == on_two);
      std::size_t apart = 0;
      for (const std::ptrdiff_t i : {std::ptrdiff_t{0}, std::ptrdiff_t{8}, many / 2, many - 1}) {
        const std::ptrdiff_t at = i * columns;
        const rlhf::view<const float> one(value.data() + skew + at, {std::ptrdiff_t{1}, columns});
        rlhf::mask_view<> one_mask;
        if (kind == 2)
          one_mask = rlhf::mask_view<>(
              rlhf::view<const std::uint8_t>(mask.data() + at, {std::ptrdiff_t{1}, columns}));
        const std::vector<std::int32_t> one_length{length[static_cast<std::size_t>(i)]};
        rlhf::sequence_layout<> one_layout;
        if (kind == 1) one_layout = rlhf::lengths(one_length);
        whiten<float>({.value = one, .mask = one_mask, .layout = one_layout},
                      {.whitened = {row, {std::ptrdiff_t{1}, columns}}}, {.moments = all.moments});
        for (std::size_t j = 0; j < row.size(); ++j)
          apart += row[j] != whole[static_cast<std::size_t>(skew + at) + j] ? 1u : 0u;
      }
      CHECK(apart == 0);
      if (skew > 0) CHECK(whole[0] == 7.0f);  // what is not the tensor's keeps its bits
      whole.assign(whole.size(), 7.0f);
    }
}

TEST_CASE("whiten: it adds where it is asked to, and masked slots keep their bits") {
  const numbers value{1, 3, 5, 2, 2, 2};
  const std::vector<std::uint8_t> mask{1, 1, 0, 1, 1, 1};
  numbers plain(6, 7), added(6, 7);
  whiten<double>({.value = value, .mask = mask}, {.whitened = plain});
  whiten<double>({.value = value, .mask = mask}, {.whitened = rlhf::add_to(added)});
  for (std::size_t i = 0; i < 6; ++i) CHECK(added[i] == (mask[i] != 0 ? 7 + plain[i] : 7));
  CHECK(plain[2] == 0);
}
