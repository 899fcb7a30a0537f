#include "rlhf/math/storage.hpp"

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace math = rlhf::math;

namespace {

/// Another library's type, made known in one line.
struct foreign_bfloat16 {
  unsigned short word;
};

/// The nearest value of a format, by search among its neighbours; ties to the even word.
template <class Format>
std::uint16_t nearest(float x) {
  std::uint16_t best = 0;
  double distance = std::numeric_limits<double>::infinity();
  for (std::uint32_t w = 0; w < 0x8000u; ++w) {
    const auto word = static_cast<std::uint16_t>(w);
    const double value = static_cast<double>(Format::widen(word));
    if (std::isnan(value) || std::isinf(value)) break;
    const double d = std::abs(value - std::abs(static_cast<double>(x)));
    if (d < distance || (d == distance && (word & 1u) == 0)) best = word, distance = d;
  }
  return static_cast<std::uint16_t>(best | (std::signbit(x) ? 0x8000u : 0u));
}

}  // namespace

template <>
struct rlhf::storage_traits<foreign_bfloat16> : rlhf::bfloat16_format {};

TEST_CASE("storage: known words of both formats") {
  CHECK(rlhf::bfloat16(1.0f).bits == 0x3f80);
  CHECK(rlhf::bfloat16(-2.0f).bits == 0xc000);
  CHECK(static_cast<float>(rlhf::bfloat16(3.140625f)) == 3.140625f);
  CHECK(rlhf::half(1.0f).bits == 0x3c00);
  CHECK(rlhf::half(65504.0f).bits == 0x7bff);
  CHECK(rlhf::half(0x1p-24f).bits == 0x0001);
  CHECK(rlhf::half(-0.0f).bits == 0x8000);
  CHECK(sizeof(rlhf::half) == 2);
  CHECK(std::is_trivially_copyable_v<rlhf::bfloat16>);
  CHECK(std::is_same_v<rlhf::compute_of<rlhf::half>, float>);
  CHECK(std::is_same_v<rlhf::compute_of<double>, double>);
  CHECK(rlhf::storage<foreign_bfloat16>);
  CHECK(!rlhf::storage<unsigned short>);
}

TEST_CASE_TEMPLATE("storage: every word survives the way to float and back", F,
                   rlhf::bfloat16_format, rlhf::half_format) {
  int wrong = 0;
  for (std::uint32_t w = 0; w < 0x10000u; ++w) {
    const auto word = static_cast<std::uint16_t>(w);
    const float x = F::widen(word);
    const std::uint16_t back = F::narrow(x);
    if (std::isnan(x))
      wrong += std::isnan(F::widen(back)) && (back & 0x8000u) == (word & 0x8000u) ? 0 : 1;
    else
      wrong += back == word ? 0 : 1;
  }
  CHECK(wrong == 0);
}

TEST_CASE_TEMPLATE("storage: writing rounds to nearest, ties to even", F, rlhf::bfloat16_format,
                   rlhf::half_format) {
  const float samples[] = {1.0f,       1.00390625f,   1.01171875f, 1.00048828125f, 1.00146484375f,
                           0.1f,       -3.3333333f,   1e-5f,       6.1e-5f,        0x1p-25f,
                           0x1.8p-24f, 0x1.0002p-25f, 2047.5f,     2048.5f,        1e-8f};
  for (const float x : samples) {
    CAPTURE(x);
    CHECK(F::narrow(x) == nearest<F>(x));
  }
}

TEST_CASE("storage: what rounds past the largest value is infinite") {
  CHECK(rlhf::half(65519.996f).bits == 0x7bff);
  CHECK(rlhf::half(65520.0f).bits == 0x7c00);
  CHECK(rlhf::half(-1e30f).bits == 0xfc00);
  CHECK(rlhf::bfloat16(3.4e38f).bits == 0x7f80);
  CHECK(rlhf::bfloat16(0x1.fep127f).bits == 0x7f7f);
  CHECK(rlhf::bfloat16(std::numeric_limits<float>::infinity()).bits == 0x7f80);
}

template <class X>
static void packs_agree_with_scalars() {
  using V = math::native_lane<float>;
  constexpr auto w = static_cast<std::size_t>(math::width<V>);
  int wrong = 0;
  for (std::uint32_t base = 0; base < 0x10000u; base += static_cast<std::uint32_t>(w)) {
    X words[w];
    for (std::size_t k = 0; k < w; ++k) words[k].bits = static_cast<std::uint16_t>(base + k);
    float wide[w];
    math::store<V>(wide, math::load_storage<V>(words));
    for (std::size_t k = 0; k < w; ++k) {
      const float one = math::widen(words + k);
      wrong += std::memcmp(&one, wide + k, sizeof one) == 0 ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
  // A walk through all magnitudes of float, NaN among them.
  for (std::uint32_t word = 0; word < 0xffff'0000u; word += 0x3a7bu) {
    float x[w];
    for (std::size_t k = 0; k < w; ++k)
      x[k] = std::bit_cast<float>(word + static_cast<std::uint32_t>(k) * 0x11u);
    X narrow[w];
    math::store_storage<V>(narrow, math::load<V>(x));
    for (std::size_t k = 0; k < w; ++k) {
      X one;
      math::narrow(&one, x[k]);
      wrong += one.bits == narrow[k].bits ? 0 : 1;
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("storage: packs of bfloat16 give the bits of scalars") {
  packs_agree_with_scalars<rlhf::bfloat16>();
}
TEST_CASE("storage: packs of half give the bits of scalars") {
  packs_agree_with_scalars<rlhf::half>();
}

TEST_CASE("storage: a foreign type with traits is read and written") {
  foreign_bfloat16 x{0x4049};
  CHECK(math::widen(&x) == 3.140625f);
  math::narrow(&x, -1.0f);
  CHECK(x.word == 0xbf80);
}
