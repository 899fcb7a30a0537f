// Every function on random shapes, masks and layouts: garbage in slots that do not count changes no
// bit, layouts agree to the bit, micro-batches add up. A failure shrinks to a small batch.

#if defined(RLHF_TEST_RAPIDCHECK)

#include <doctest/doctest.h>
#include <rapidcheck.h>

#include <cstdlib>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

/// What a property is about: small numbers that shrink on their own.
struct batch {
  int variant;
  problem p;
  form f;
};

/// Draws all it needs at once, so that a failure shrinks each number on its own.
batch any_batch(const entry& e) {
  const int variant = *rc::gen::inRange(0, e.variants).as("variant");
  const int rows = *rc::gen::inRange(0, 9).as("rows");
  const int columns = *rc::gen::inRange(0, 40).as("columns");
  const auto seed = *rc::gen::inRange<std::uint64_t>(0, 1000000).as("seed");
  const bool holes = *rc::gen::arbitrary<bool>().as("holes");
  const auto forms = forms_of(e);
  const auto f = *rc::gen::inRange<std::size_t>(0, forms.size()).as("form");
  random_numbers random(seed);
  return {variant, draw(e, variant, rows, columns, holes, random), forms[f]};
}

bool same_outputs(const arguments<double>& a, const arguments<double>& b) {
  for (const auto& [name, m] : a.written)
    if (!same_bits(dense(a, name), dense(b, name))) return false;
  return true;
}

/// RLHF_LONG_TESTS=1 asks for the long run.
int runs() { return std::getenv("RLHF_LONG_TESTS") != nullptr ? 5000 : 200; }

template <class Fits, class Property>
void for_each_entry(const Fits& fits, const Property& property) {
  for (const entry& e : registry()) {
    if (!fits(e)) continue;
    rc::detail::TestParams parameters = rc::detail::configuration().testParams;
    parameters.seed = 1;  // the same batches in every run
    parameters.maxSuccess = runs();
    const auto result =
        rc::detail::checkTestable([&] { property(e); }, rc::detail::TestMetadata(), parameters);
    std::ostringstream said;
    rc::detail::printResultMessage(result, said);
    CAPTURE(e.name);
    INFO(said.str());
    CHECK(result.template is<rc::detail::SuccessResult>());
  }
}

}  // namespace

TEST_CASE("garbage in slots that do not count changes no bit, whatever the batch") {
  for_each_entry([](const entry& e) { return e.masked; },
                 [](const entry& e) {
                   const batch b = any_batch(e);
                   if (e.has_holes(b.variant)) return;
                   auto clean = lay_out<double>(e, b.p, b.f), dirty = lay_out<double>(e, b.p, b.f);
                   poison(e, dirty, not_a_number);
                   const figures expected = e.call_double(clean);
                   RC_ASSERT(same_bits(e.call_double(dirty), expected));
                   RC_ASSERT(same_outputs(dirty, clean));
                 });
}

TEST_CASE("every layout gives the same bits, whatever the batch") {
  for_each_entry([](const entry&) { return true; },
                 [](const entry& e) {
                   const batch b = any_batch(e);
                   auto plain = lay_out<double>(e, b.p, form::mask_u8),
                        other = lay_out<double>(e, b.p, b.f);
                   const figures expected = e.call_double(plain);
                   RC_ASSERT(same_bits(e.call_double(other), expected));
                   RC_ASSERT(same_outputs(other, plain));
                 });
}

TEST_CASE("micro-batches with given counts add up, wherever the batch is cut") {
  for_each_entry(
      [](const entry& e) { return e.reduces; },
      [](const entry& e) {
        batch b = any_batch(e);
        if (!b.p.ids.empty()) return;
        give_counts(e, b.p);
        const auto cut = *rc::gen::inRange<rlhf_test::index>(0, b.p.rows + 1).as("cut");
        std::vector<rlhf_test::index> parts[2];
        for (rlhf_test::index i = 0; i < b.p.rows; ++i) parts[i < cut ? 0 : 1].push_back(i);
        auto whole = lay_out<double>(e, b.p, b.f);
        const figures expected = e.call_double(whole);
        figures sum;
        for (const auto& rows : parts) {
          const problem q = select_rows(e, b.p, rows);
          auto part = lay_out<double>(e, q, b.f);
          add_figures(sum, e.call_double(part));
        }
        for (const auto& [name, x] : expected) {
          if (begins(name, "own:")) continue;
          RC_LOG() << name << ": " << sum.at(name) << " for " << x << '\n';
          RC_ASSERT(sum.at(name) == x || std::abs(sum.at(name) - x) <= 1e-12 * (1 + std::abs(x)));
        }
      });
}

#endif
