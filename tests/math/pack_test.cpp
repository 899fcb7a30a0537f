#include <doctest/doctest.h>

#include "accuracy.hpp"

#if RLHF_PACK_BYTES > 0

namespace {

using namespace rlhf_test;  // NOLINT: tests only
using rlhf::lane;
using rlhf::mask_of;

template <class T>
struct pair_of_packs {
  static constexpr int w = math::width<math::pack<T>>;
  T a[static_cast<std::size_t>(w)];
  T b[static_cast<std::size_t>(w)];
};

/// Runs of odd values side by side: every pair of special values comes by.
template <class T, class Check>
void for_special_pairs(Check check) {
  const auto values = special_values<T>();
  pair_of_packs<T> p;
  int filled = 0;
  for (const T x : values) {
    for (const T y : values) {
      p.a[filled] = x;
      p.b[filled] = y;
      if (++filled == p.w) {
        check(p);
        filled = 0;
      }
    }
  }
}

/// How many elements differ from the same function on scalars.
template <class T, class Function>
int pairs_that_differ(Function function) {
  using V = math::pack<T>;
  int count = 0;
  for_special_pairs<T>([&](const pair_of_packs<T>& p) {
    T got[static_cast<std::size_t>(pair_of_packs<T>::w)];
    math::store<V>(got, function(math::load<V>(p.a), math::load<V>(p.b)));
    for (int i = 0; i < p.w; ++i) {
      if (!same_bits(got[i], function(p.a[i], p.b[i]))) ++count;
    }
  });
  return count;
}

template <lane V>
V as_number(const mask_of<V>& m) {
  return math::select(m, math::constant<V>(1), math::constant<V>(0));
}

}  // namespace

TEST_CASE_TEMPLATE("pack: arithmetic, min, max, clamp as scalars, NaN and zeros included", T, float,
                   double) {
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return a + b; }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return a - b; }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return a * b; }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return a / b; }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return -a + b; }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return (math::min)(a, b); }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return (math::max)(a, b); }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) {
          return math::clamp(a, -math::abs(b), math::abs(b));
        }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto&) { return math::bounded(a); }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return math::copysign(a, b); }) ==
        0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto&) { return math::sqrt(a); }) == 0);
  CHECK(pairs_that_differ<T>([](const auto& a, const auto& b) { return math::fma(a, b, a); }) == 0);
}

TEST_CASE_TEMPLATE("pack: comparisons and masks as scalars", T, float, double) {
  const auto agree = [](auto mask) {
    return pairs_that_differ<T>([&](const auto& a, const auto& b) {
      using V = std::decay_t<decltype(a)>;
      const mask_of<V> m = mask(a, b);
      return as_number<V>(m);
    });
  };
  CHECK(agree([](const auto& a, const auto& b) { return a < b; }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return a <= b; }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return a > b; }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return a >= b; }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return a == b; }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return a != b; }) == 0);
  CHECK(agree([](const auto& a, const auto&) { return math::is_nan(a); }) == 0);
  CHECK(agree([](const auto& a, const auto&) { return math::is_finite(a); }) == 0);
  CHECK(agree([](const auto& a, const auto& b) { return !(a < b); }) == 0);
  CHECK(agree([](const auto& a, const auto& b) {
          using V = std::decay_t<decltype(a)>;
          const mask_of<V> less = a < b;
          const mask_of<V> nan = math::is_nan(a);
          return (less | nan) & !(less & nan);
        }) == 0);
}

TEST_CASE_TEMPLATE("pack: any, all and to_bit_set see each element", T, float, double) {
  using V = math::pack<T>;
  constexpr int w = math::width<V>;
  for (int set = 0; set < (1 << w); ++set) {
    T x[static_cast<std::size_t>(w)];
    for (int i = 0; i < w; ++i) x[i] = (set >> i & 1) != 0 ? T(1) : T(-1);
    const auto m = math::load<V>(x) > math::constant<V>(0);
    CHECK(math::any(m) == (set != 0));
    CHECK(math::all(m) == (set == (1 << w) - 1));
    CHECK(math::to_bit_set(m) == set);
  }
}

TEST_CASE_TEMPLATE("pack: load_flags takes any nonzero byte for true and reads only its own", T,
                   float, double) {
  using V = math::pack<T>;
  constexpr int w = math::width<V>;
  generator random;
  for (int round = 0; round < 500; ++round) {
    std::uint8_t flags[static_cast<std::size_t>(w)];
    for (auto& f : flags) f = static_cast<std::uint8_t>((random() & 3) == 0 ? 0 : random());
    if (round == 0) {
      for (auto& f : flags) f = 0x80;  // a sign bit is not a sign
    }
    const auto m = math::load_flags<V>(flags);
    int want = 0;
    for (int i = 0; i < w; ++i) want |= flags[i] != 0 ? 1 << i : 0;
    REQUIRE(math::to_bit_set(m) == want);
    const auto opposite = math::lane_traits<V>::load_no_flags(flags);
    REQUIRE(math::to_bit_set(opposite) == (want ^ ((1 << w) - 1)));
  }
}

TEST_CASE_TEMPLATE("pack: a constant keeps the sign of its zero", T, float, double) {
  using V = math::pack<T>;
  for (int i = 0; i < math::width<V>; ++i) {
    CHECK(std::signbit(math::lane_at(math::constant<V>(T(-0.0)), i)));
    CHECK(!std::signbit(math::lane_at(math::constant<V>(T(0)), i)));
  }
}

TEST_CASE_TEMPLATE("pack: load, store, load_first, store_first, iota, lane_at, reverse", T, float,
                   double) {
  using V = math::pack<T>;
  constexpr int w = math::width<V>;
  T row[static_cast<std::size_t>(w + 2)];
  for (int i = 0; i < w + 2; ++i) row[i] = static_cast<T>(i);
  const V x = math::load<V>(row + 1);  // one element off any alignment
  for (int i = 0; i < w; ++i) {
    CHECK(math::lane_at(x, i) == static_cast<T>(i + 1));
    CHECK(math::lane_at(math::iota<V>(), i) == static_cast<T>(i));
    CHECK(math::lane_at(math::reverse(x), i) == static_cast<T>(w - i));
  }
  CHECK(math::first(x) == T(1));
  for (int count = 0; count <= w; ++count) {
    const V y = math::load_first<V>(row + 1, count, T(-7));
    T out[static_cast<std::size_t>(w)];
    for (auto& o : out) o = T(99);
    math::store_first<V>(out, x, count);
    for (int i = 0; i < w; ++i) {
      CHECK(math::lane_at(y, i) == (i < count ? row[i + 1] : T(-7)));
      CHECK(out[i] == (i < count ? row[i + 1] : T(99)));
    }
  }
}

TEST_CASE_TEMPLATE("pack: shift_down joins the end of one pack with the start of the next", T,
                   float, double) {
  using V = math::pack<T>;
  constexpr int w = math::width<V>;
  T row[static_cast<std::size_t>(2 * w)];
  for (int i = 0; i < 2 * w; ++i) row[i] = static_cast<T>(i);
  const V a = math::load<V>(row);
  const V b = math::load<V>(row + w);
  const auto holds = [&]<int K>() {
    const V moved = math::shift_down<K>(a, b);
    for (int i = 0; i < w; ++i) CHECK(math::lane_at(moved, i) == static_cast<T>(i + K));
  };
  holds.template operator()<0>();
  holds.template operator()<1>();
  holds.template operator()<w / 2>();
  holds.template operator()<w - 1>();
  holds.template operator()<w>();
}

TEST_CASE("pack: widen_low and widen_high are the two halves in double") {
  using V = math::pack<float>;
  using W = math::pack<double>;
  float row[math::width<V>];
  for (int i = 0; i < math::width<V>; ++i) row[i] = 0.1f * static_cast<float>(i);
  const W low = math::widen_low(math::load<V>(row));
  const W high = math::widen_high(math::load<V>(row));
  for (int i = 0; i < math::width<W>; ++i) {
    CHECK(math::lane_at(low, i) == static_cast<double>(row[i]));
    CHECK(math::lane_at(high, i) == static_cast<double>(row[i + math::width<W>]));
  }
}

#endif
