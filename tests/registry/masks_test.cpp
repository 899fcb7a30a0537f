// What lies in a masked slot changes no bit of anything.

#include <doctest/doctest.h>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

template <class T>
std::vector<T> poisons() {
  std::vector<T> p{std::numeric_limits<T>::quiet_NaN(), std::numeric_limits<T>::infinity(),
                   -std::numeric_limits<T>::infinity(), std::numeric_limits<T>::max(),
                   std::numeric_limits<T>::denorm_min()};
  if constexpr (sizeof(T) == 8)
    p.push_back(__builtin_bit_cast(T, std::uint64_t{0x7ff0000000000001}));  // signalling
  else
    p.push_back(__builtin_bit_cast(T, std::uint32_t{0x7f800001}));
  return p;
}

template <class T, class Call>
void check_poison(const entry& e, const Call& call) {
  CAPTURE(e.name);
  random_numbers random(5);
  for (int v = 0; v < e.variants; ++v)
    for (const form f : forms_of(e)) {
      if (e.has_holes(v)) continue;
      CAPTURE(v);
      CAPTURE(static_cast<int>(f));
      const bool holes = f != form::lengths || v % 2 == 0;
      // Smaller tensors that are column-major are gathered, these go through a row panel.
      const problem p = draw(e, v, 5, f == form::column_major ? 823 : 37, holes, random);
      auto clean = lay_out<T>(e, p, f);
      const figures expected = call(clean);
      for (const T value : poisons<T>()) {
        auto dirty = lay_out<T>(e, p, f);
        poison(e, dirty, value);
        CHECK(same_bits(call(dirty), expected));
        for (const auto& [name, m] : clean.written) {
          const std::string& named = name;  // clang 14 captures no structured binding
          CAPTURE(named);
          CHECK(same_bits(dense(dirty, name), dense(clean, name)));
        }
      }
      // masked slots of outputs are +0
      for (const output_spec& s : e.outputs(v)) {
        if (s.size != extent::token && s.size != extent::logit) continue;
        CAPTURE(s.name);
        const auto out = dense(clean, s.name);
        const std::ptrdiff_t width = p.width(s.size);
        for (std::ptrdiff_t i = 0; i < p.rows; ++i)
          for (std::ptrdiff_t c = 0; c < width; ++c)
            if (!p.counts_at(s.size, i, c))
              CHECK(same_bits(out[static_cast<std::size_t>(i * width + c)], T(0)));
      }
    }
}

}  // namespace

TEST_CASE("poison in masked slots changes no bit, and their outputs are +0") {
  for (const entry& e : registry()) {
    if (!e.masked) continue;
    check_poison<double>(e, [&](auto& a) { return e.call_double(a); });
    check_poison<float>(e, [&](auto& a) { return e.call_float(a); });
  }
}

TEST_CASE("add_to leaves masked slots as they were and adds to the others") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(6);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 4, 21, true, random);
      auto plain = lay_out<double>(e, p, form::mask_u8);
      auto added = lay_out<double>(e, p, form::mask_u8, 0.5);
      added.accumulate = true;
      const figures a = e.call_double(plain);
      CHECK(same_bits(e.call_double(added), a));
      for (const output_spec& s : e.outputs(v)) {
        CAPTURE(s.name);
        const auto x = dense(plain, s.name), y = dense(added, s.name);
        const std::ptrdiff_t width = p.width(s.size);
        for (std::ptrdiff_t i = 0; i < p.rows; ++i)
          for (std::ptrdiff_t c = 0; c < width; ++c) {
            const auto k = static_cast<std::size_t>(i * width + c);
            const double expected = p.counts_at(s.size, i, c) ? 0.5 + x[k] : 0.5;
            if (e.exact_add)
              CHECK(y[k] == expected);
            else
              CHECK(y[k] == doctest::Approx(expected).epsilon(1e-15));
          }
      }
    }
  }
}

TEST_CASE("a weight of 0 is a mask, a weight of 1 is none") {
  for (const entry& e : registry()) {
    if (!e.masked) continue;
    CAPTURE(e.name);
    random_numbers random(7);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 6, 19, true, random);
      auto flags = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(flags);
      for (const form f : {form::mask_float, form::mask_double}) {
        auto weights = lay_out<double>(e, p, f);
        CHECK(same_bits(e.call_double(weights), expected));
        for (const auto& [name, m] : flags.written)
          CHECK(same_bits(dense(weights, name), dense(flags, name)));
      }
    }
  }
}

TEST_CASE("a batch of nothing gives zeros") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(8);
    for (int v = 0; v < e.variants; ++v)
      for (const auto& [rows, columns] :
           {std::pair<std::ptrdiff_t, std::ptrdiff_t>{0, 4}, {3, 0}, {0, 0}, {3, 4}}) {
        if (!e.masked && rows != 0) continue;
        if (!e.tokens && columns == 0) continue;
        CAPTURE(v);
        const std::ptrdiff_t how_many = rows;  // clang 14 captures no structured binding
        CAPTURE(how_many);
        problem p = draw(e, v, rows, columns, false, random);
        for (double& w : p.weight) w = 0;
        auto a = lay_out<double>(e, p, form::mask_u8);
        const figures f = e.call_double(a);
        if (f.count("loss") != 0) CHECK(f.at("loss") == 0);
        for (const auto& [name, x] : f) {
          const std::string& named = name;  // clang 14 captures no structured binding
          CAPTURE(named);
          if (name.rfind("min:", 0) != 0 && name.rfind("max:", 0) != 0) CHECK(!std::isnan(x));
        }
        for (const auto& [name, m] : a.written) {
          if (e.masked)
            for (const double x : dense(a, name)) CHECK(x == 0);
        }
      }
  }
}
