// A broken call says which function, which argument and what was wrong, and has written nothing.

#include <doctest/doctest.h>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

/// The name a function reports: what stands before a comma of an entry's name.
std::string function_of(const entry& e) { return e.name.substr(0, e.name.find(',')); }

template <class Fault>
void expect_violation(const entry& e, const problem& p, form f, const std::string& argument,
                      const Fault& fault) {
  CAPTURE(e.name);
  CAPTURE(p.variant);
  CAPTURE(argument);
  auto a = lay_out<double>(e, p, f);
  const auto before = a.written;
  fault(a);
  const std::string said = message_of([&] { e.call_double(a); });
  CHECK(said.rfind(function_of(e) + ": " + argument, 0) == 0);
  CHECK(said.find("expected") != std::string::npos);
  for (const auto& [name, m] : before) CHECK(same_bits(a.written.at(name), m));
}

}  // namespace

TEST_CASE("a required input left out is named") {
  for (const entry& e : registry()) {
    random_numbers random(31);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      for (const input_spec& s : e.inputs(v))
        if (!s.optional && s.size != extent::none)
          expect_violation(e, p, form::mask_u8, s.name, [&](auto& a) { a.left_out = s.name; });
      for (const auto& [name, ids] : p.ids)
        expect_violation(e, p, form::mask_u8, name, [&, n = name](auto& a) { a.left_out = n; });
    }
  }
}

TEST_CASE("a tensor of another shape is named with both shapes") {
  for (const entry& e : registry()) {
    random_numbers random(32);
    for (int v = 0; v < e.variants; ++v)
      for (const form f : {form::mask_u8, form::packed}) {
        if (!e.tokens && f == form::packed) continue;
        const problem p = draw(e, v, 3, 4, false, random);
        bool leading = true;  // the first input sets the shape: the next one disagrees
        for (const input_spec& s : e.inputs(v)) {
          if (!leading && !s.leads && s.size != extent::none)
            expect_violation(e, p, f, s.name, [&](auto& a) { a.wrong_shape = s.name; });
          leading = false;
        }
        for (const output_spec& s : e.outputs(v))
          expect_violation(e, p, f, s.name, [&](auto& a) { a.wrong_shape = s.name; });
      }
  }
}

TEST_CASE("a null pointer with elements behind it is named") {
  for (const entry& e : registry()) {
    random_numbers random(33);
    const problem p = draw(e, 0, 3, 4, false, random);
    for (const input_spec& s : e.inputs(0))
      if (s.size != extent::none)
        expect_violation(e, p, form::mask_u8, s.name, [&](auto& a) { a.null_data = s.name; });
    for (const output_spec& s : e.outputs(0))
      expect_violation(e, p, form::mask_u8, s.name, [&](auto& a) { a.null_data = s.name; });
  }
}

TEST_CASE("lengths and offsets that do not fit are named") {
  for (const entry& e : registry()) {
    if (!e.tokens) continue;
    random_numbers random(34);
    problem p = draw(e, 0, 3, 4, false, random);
    for (const int bad : {-1, 5})
      expect_violation(e, p, form::lengths, e.layout_name + ": lengths",
                       [&](auto& a) { a.lengths32[1] = bad; });
    expect_violation(e, p, form::lengths, e.layout_name + ": lengths",
                     [&](auto& a) { a.lengths32.pop_back(); });
    p.length = {2, 1, 3};
    expect_violation(e, p, form::packed, e.layout_name + ": packed",
                     [&](auto& a) { a.offsets[0] = 1; });
    expect_violation(e, p, form::packed, e.layout_name + ": packed",
                     [&](auto& a) { a.offsets[1] = 5; });
    expect_violation(e, p, form::packed, e.layout_name + ": packed", [&](auto& a) {
      for (const auto& [name, size] : a.sizes)
        if (size == extent::token && a.memory.count(name) != 0) a.memory[name].push_back(0);
      a.offsets.back() += 0;
      a.offsets[2] = a.offsets[3] + 4;
    });
  }
}

TEST_CASE("weights that are no weights are named") {
  for (const entry& e : registry()) {
    if (!e.masked) continue;
    random_numbers random(35);
    const problem p = draw(e, 0, 3, 4, false, random);
    for (const double bad : {-1.0, not_a_number, infinite})
      expect_violation(e, p, form::mask_double, e.mask_name,
                       [&](auto& a) { a.mask_double[2] = bad; });
  }
}

TEST_CASE("an output that lies on an input or another output is named") {
  for (const entry& e : registry()) {
    random_numbers random(36);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      const auto outputs = e.outputs(v);
      if (outputs.size() < 2 || outputs[0].size != outputs[1].size) continue;
      auto a = lay_out<double>(e, p, form::mask_u8);
      // Two names, one vector: the second output's view is made from the first one's memory.
      a.alias[outputs[1].name] = outputs[0].name;
      CAPTURE(e.name);
      const std::string said = message_of([&] { e.call_double(a); });
      CHECK(said.find("memory of its own") != std::string::npos);
    }
  }
}

TEST_CASE("a workspace of the size that was asked for serves the call without an allocation") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(37);
    for (int v = 0; v < e.variants; ++v)
      for (const form f : forms_of(e)) {
        CAPTURE(v);
        CAPTURE(static_cast<int>(f));
        // Smaller tensors that are column-major are gathered, these go through a row panel.
        const std::ptrdiff_t columns = f == form::column_major ? 59 : 19;
        const problem p = draw(e, v, 70, columns, f != form::lengths, random);
        auto free_run = lay_out<double>(e, p, f);
        const figures expected = e.call_double(free_run);
        auto a = lay_out<double>(e, p, f);
        const std::size_t bytes = e.workspace(a);
        for (const auto& [name, m] : a.written)  // the dry run has written nothing
          for (const double x : m) CHECK(x == 7);
        std::vector<std::byte> memory(bytes + 1);
        CHECK(same_bits(e.call_in_workspace(a, memory.data() + 1, bytes), expected));
        CHECK(allocations_of_last_call == 0);
        for (const auto& [name, m] : free_run.written) CHECK(same_bits(a.written.at(name), m));
        if (bytes == 0) continue;
        auto b = lay_out<double>(e, p, f);
        const std::string said = message_of([&] { e.call_in_workspace(b, memory.data(), 8); });
        CHECK(said.find(": workspace: expected what workspace_bytes says") != std::string::npos);
        for (const auto& [name, m] : b.written)
          for (const double x : m) CHECK(x == 7);
      }
  }
}
