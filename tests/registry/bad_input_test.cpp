// Odd and broken input beyond shapes: numbers out of range, memory that overlaps or is misaligned,
// strides, extents that overflow, and what NaN, infinities and positive log-probs do.

#include <doctest/doctest.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

using raw_tensor = rlhf::raw_view<double, rlhf::host_space>;
using size = std::size_t;

std::string function_of(const entry& e) { return e.name.substr(0, e.name.find(',')); }

/// Makes a call that must be refused, for `argument` and with `words`, and leave all memory as it was.
template <class Fault>
void expect_refusal(const entry& e, const problem& p, form f, const std::string& argument,
                    const std::string& words, const Fault& fault) {
  CAPTURE(e.name);
  CAPTURE(p.variant);
  CAPTURE(argument);
  auto a = lay_out<double>(e, p, f);
  fault(a);
  const auto inputs = a.memory, outputs = a.written;
  const std::string said = message_of([&] { e.call_double(a); });
  CAPTURE(said);
  CHECK(said.rfind(function_of(e) + ": " + argument, 0) == 0);
  CHECK(said.find(words) != std::string::npos);
  for (const auto& [name, m] : outputs) CHECK(same_bits(a.written.at(name), m));
  for (const auto& [name, m] : inputs) CHECK(same_bits(a.memory.at(name), m));
}

bool is_number(const input_spec& s) { return s.kind == kind::number && s.size != extent::none; }

/// A token that counts, or {-1, -1}.
std::pair<std::ptrdiff_t, std::ptrdiff_t> counted_token(const problem& p) {
  for (std::ptrdiff_t i = p.rows; i-- > 0;)
    for (std::ptrdiff_t j = 0; j < p.columns; ++j)
      if (p.w(i, j) > 0) return {i, j};
  return {-1, -1};
}

/// Puts a number into the counted token of an input: one of its numbers, or that of its row.
void spoil(problem& p, const input_spec& s, double x) {
  const auto [i, j] = counted_token(p);
  const std::ptrdiff_t width = p.width(s.size);
  const std::ptrdiff_t c = s.size == extent::token   ? j
                           : s.size == extent::logit ? j * problem_classes
                                                     : 0;
  p.inputs[s.name][static_cast<size>(i * width + c)] = x;
}

}  // namespace

TEST_CASE("a number of the config that is out of range is named (B21..B25, B36)") {
  for (const entry& e : registry()) {
    random_numbers random(61);
    for (const refused_number& r : e.refused) {
      const problem p = draw(e, r.variant, 3, 4, false, random);
      for (const double value : r.values) {
        CAPTURE(value);
        expect_refusal(e, p, form::mask_u8, r.name, "expected",
                       [&](auto& a) { a.numbers[r.name] = value; });
      }
    }
  }
}

TEST_CASE("a normaliser that is no count is named (B35)") {
  for (const entry& e : registry()) {
    random_numbers random(62);
    for (int v = 0; v < e.variants; ++v) {
      problem p = draw(e, v, 3, 4, false, random);
      p.weight.assign(p.weight.size(), 1);
      p.length.assign(p.length.size(), p.columns);
      for (const double bad : {-1.0, not_a_number, infinite, 0.0})
        for (const auto& name : e.count_names) {
          problem q = p;
          q.counts[name] = bad;
          auto probe = lay_out<double>(e, q, form::mask_u8);
          const std::string said = message_of([&] { e.call_double(probe); });
          if (said.empty()) continue;  // this variant has another count, or none
          expect_refusal(e, q, form::mask_u8, "over", "expected", [](auto&) {});
        }
    }
  }
}

TEST_CASE("a shape that does not fit its range is named with both") {
  for (const entry& e : registry()) {
    random_numbers random(75);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      for (const form f : {form::mask_u8, form::packed}) {
        if (f == form::packed && !e.tokens) continue;
        const auto check = [&](const char* name) {
          expect_refusal(e, p, f, name, "received one of ", [&](auto& a) {
            a.bent = name;
            a.bend = [](raw_tensor& r) {
              rlhf::shape s;
              s.rank = r.rank;
              for (int k = 0; k < r.rank; ++k) s.size[k] = r.size[k];
              std::vector<double> longer(static_cast<size>(s.elements()) + 2);
              r = rlhf::view<double>(longer, s).raw();
            };
          });
        };
        for (const input_spec& s : e.inputs(v))
          if (is_number(s)) check(s.name);
        for (const output_spec& s : e.outputs(v)) check(s.name);
      }
    }
  }
}

TEST_CASE("a pointer that is misaligned for its type is named (B32)") {
  const auto misalign = [](raw_tensor& r) {
    r.data = reinterpret_cast<double*>(reinterpret_cast<char*>(r.data) + 4);
  };
  for (const entry& e : registry()) {
    random_numbers random(63);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      const auto check = [&](const char* name) {
        expect_refusal(e, p, form::mask_u8, name, "aligned", [&](auto& a) {
          a.bent = name;
          a.bend = misalign;
        });
      };
      for (const input_spec& s : e.inputs(v))
        if (is_number(s)) check(s.name);
      for (const output_spec& s : e.outputs(v)) check(s.name);
    }
  }
}

TEST_CASE("an output that lies on an input is named (B30)") {
  for (const entry& e : registry()) {
    random_numbers random(64);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      for (const output_spec& out : e.outputs(v))
        for (const input_spec& in : e.inputs(v)) {
          if (!is_number(in) || in.size != out.size) continue;
          if (std::string(out.name) == "d_logits") continue;  // the logits' own memory is right
          expect_refusal(e, p, form::mask_u8, "", "overlaps",
                         [&](auto& a) { a.alias[out.name] = in.name; });
        }
    }
  }
}

TEST_CASE("an output that overlaps an input in part is named (B29)") {
  for (const entry& e : registry()) {
    random_numbers random(65);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      for (const output_spec& out : e.outputs(v))
        for (const input_spec& in : e.inputs(v)) {
          if (!is_number(in) || in.size != out.size) continue;
          expect_refusal(e, p, form::mask_u8, "", "memory of its own", [&](auto& a) {
            a.memory[in.name].resize(a.memory[in.name].size() + 1);
            a.alias[out.name] = in.name;
            a.bent = out.name;
            a.bend = [](raw_tensor& r) { ++r.data; };
          });
        }
    }
  }
}

TEST_CASE("an output with stride 0 is named, an input may have one (B9)") {
  for (const entry& e : registry()) {
    random_numbers random(66);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      const auto flatten = [](raw_tensor& r) { r.stride[0] = 0; };
      for (const output_spec& s : e.outputs(v))
        expect_refusal(e, p, form::mask_u8, s.name, "strides", [&](auto& a) {
          a.bent = s.name;
          a.bend = flatten;
        });
      for (const input_spec& s : e.inputs(v)) {
        if (!is_number(s)) continue;
        // One row for all is the same as that row repeated.
        problem same = p;
        const std::ptrdiff_t width = p.width(s.size);
        auto& numbers = same.inputs[s.name];
        if (s.size == extent::member) continue;
        for (std::ptrdiff_t i = 1; i < p.rows; ++i)
          for (std::ptrdiff_t c = 0; c < width; ++c)
            numbers[static_cast<size>(i * width + c)] = numbers[static_cast<size>(c)];
        auto repeated = lay_out<double>(e, same, form::mask_u8);
        auto broadcast = lay_out<double>(e, p, form::mask_u8);
        broadcast.bent = s.name;
        broadcast.bend = flatten;
        CAPTURE(e.name);
        CAPTURE(s.name);
        CHECK(same_bits(e.call_double(broadcast), e.call_double(repeated)));
        for (const auto& [name, m] : repeated.written)
          CHECK(same_bits(broadcast.written.at(name), m));
      }
    }
  }
}

TEST_CASE("inputs and outputs may run backwards (B9)") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(67);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 5, 9, true, random);
      auto forwards = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(forwards);
      const auto check = [&](const char* name, std::vector<double>& memory_of_name, auto& a) {
        CAPTURE(name);
        // The whole tensor backwards: the last element of memory is the first.
        std::reverse(memory_of_name.begin(), memory_of_name.end());
        a.bent = name;
        a.bend = [](raw_tensor& r) {
          for (int k = 0; k < r.rank; ++k) {
            r.data += (r.size[k] - 1) * r.stride[k];
            r.stride[k] = -r.stride[k];
          }
        };
        CHECK(same_bits(e.call_double(a), expected));
        std::reverse(memory_of_name.begin(), memory_of_name.end());
        for (const auto& [other, m] : forwards.written) CHECK(same_bits(a.written.at(other), m));
      };
      for (const input_spec& s : e.inputs(v)) {
        if (!is_number(s)) continue;
        auto a = lay_out<double>(e, p, form::mask_u8);
        check(s.name, a.memory[s.name], a);
      }
      for (const output_spec& s : e.outputs(v)) {
        auto a = lay_out<double>(e, p, form::mask_u8);
        check(s.name, a.written[s.name], a);
      }
    }
  }
}

TEST_CASE("a transposed tensor and one of another rank are named (B3, B4)") {
  for (const entry& e : registry()) {
    random_numbers random(72);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 4, 5, false, random);
      const auto check = [&](const char* name, const auto& bend) {
        expect_refusal(e, p, form::mask_u8, name, "expected", [&](auto& a) {
          a.bent = name;
          a.bend = bend;
        });
      };
      const auto transpose = [](raw_tensor& r) {
        std::swap(r.size[0], r.size[1]);
        std::swap(r.stride[0], r.stride[1]);
      };
      const auto raise = [](raw_tensor& r) {
        if (r.rank == 3) {  // a row of logits less
          r.rank = 2;
          r.size[2] = 1;
          return;
        }
        r.size[r.rank] = 1;
        r.stride[r.rank++] = 1;
      };
      const auto flat = [&](extent size) {
        return size == extent::row || (size == extent::token && !e.tokens);
      };
      bool leading = true;
      for (const input_spec& s : e.inputs(v)) {
        if (is_number(s) && !leading && !s.leads) {
          check(s.name, raise);
          if (!flat(s.size)) check(s.name, transpose);
        }
        leading = false;
      }
      for (const output_spec& s : e.outputs(v)) {
        check(s.name, raise);
        if (!flat(s.size)) check(s.name, transpose);
      }
    }
  }
}

TEST_CASE(
    "a label that is no class is named where it counts, and may be anything elsewhere (B13)") {
  for (const entry& e : registry()) {
    random_numbers random(73);
    for (int v = 0; v < e.variants; ++v)
      for (const form f : {form::mask_u8, form::lengths, form::packed}) {
        const problem p = draw(e, v, 4, 5, false, random);
        const auto [i, j] = counted_token(p);
        if (i < 0) continue;
        for (const input_spec& s : e.inputs(v)) {
          if (s.kind != kind::label) continue;
          for (const std::int64_t bad :
               {std::int64_t{-1}, std::int64_t{problem_classes},
                std::numeric_limits<std::int64_t>::min(), std::numeric_limits<std::int64_t>::max()})
            expect_refusal(e, p, f, s.name, "expected", [&, row = i, column = j](auto& a) {
              a.labels[s.name][static_cast<size>(a.place(s.size, row, column))] = bad;
            });
        }
      }
  }
}

TEST_CASE("an ignored label is a masked token (B13)") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(74);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 5, 9, true, random);
      problem masked = p, ignored = p;
      bool any = false;
      for (const input_spec& s : e.inputs(v))
        if (s.kind == kind::label)
          for (size k = 0; k < p.weight.size(); ++k)
            if (random.chance(0.3)) {
              any = true;
              masked.weight[k] = 0;
              ignored.inputs[s.name][k] = -100;
            }
      if (!any) continue;
      CAPTURE(v);
      auto a = lay_out<double>(e, masked, form::mask_u8),
           b = lay_out<double>(e, ignored, form::mask_u8);
      CHECK(same_bits(e.call_double(b), e.call_double(a)));
      for (const auto& [name, m] : a.written) CHECK(same_bits(b.written.at(name), m));
    }
  }
}

TEST_CASE("extents that are negative or overflow are named (B9, B10)") {
  for (const entry& e : registry()) {
    random_numbers random(68);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 3, 4, false, random);
      const char* const leading = e.inputs(v).front().name;
      for (const std::ptrdiff_t extent_of :
           {std::ptrdiff_t{-1}, std::ptrdiff_t{1} << 62, (std::ptrdiff_t{1} << 32) + 4}) {
        CAPTURE(extent_of);
        expect_refusal(e, p, form::mask_u8, "", "expected", [&](auto& a) {
          a.bent = leading;
          a.bend = [extent_of](raw_tensor& r) { r.size[0] = extent_of; };
        });
      }
    }
  }
}

TEST_CASE("a NaN or an infinity in a counted token is counted and stays visible (B17, B18)") {
  for (const entry& e : registry()) {
    if (e.nan_is_data) continue;
    CAPTURE(e.name);
    random_numbers random(69);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem clean = draw(e, v, 4, 9, true, random);
      if (counted_token(clean).first < 0) continue;
      for (const input_spec& s : e.inputs(v)) {
        if (!is_number(s)) continue;
        CAPTURE(s.name);
        for (const double bad : {not_a_number, infinite, -infinite}) {
          CAPTURE(bad);
          problem p = clean;
          spoil(p, s, bad);
          auto a = lay_out<double>(e, p, form::mask_u8);
          const figures f = e.call_double(a);
          // A bootstrap value stands behind the tokens, and a truncated token alone has a next one.
          const std::string name = s.name;
          if (name == "bootstrap_value" || name == "next_value") continue;
          // What carries a gradient down is no input of the statistics.
          if (name.rfind("d_", 0) == 0) continue;
          // -inf is a class that cannot be.
          if (s.size == extent::logit && bad == -infinite) continue;
          CHECK(f.at("nonfinite") > 0);
          if (bad == bad) continue;
          bool visible = false;
          for (const auto& [figure, x] : f) visible = visible || !std::isfinite(x);
          for (const auto& [output, m] : a.written)
            for (const double x : m) visible = visible || std::isnan(x);
          CHECK(visible);
        }
      }
    }
  }
}

TEST_CASE("drop_token and drop_sequence are masks, error is a refusal (B17, B18)") {
  for (const entry& e : registry()) {
    if (!e.screens) continue;
    CAPTURE(e.name);
    random_numbers random(70);
    for (int v = 0; v < e.variants; ++v) {
      if (e.has_holes(v)) continue;
      CAPTURE(v);
      problem clean = draw(e, v, 5, 9, true, random);
      give_counts(e, clean);
      const auto [row, column] = counted_token(clean);
      if (row < 0) continue;
      const input_spec first = e.inputs(v).front();
      problem p = clean;
      spoil(p, first, not_a_number);
      for (const auto policy :
           {rlhf::nonfinite_policy::drop_token, rlhf::nonfinite_policy::drop_sequence}) {
        const bool whole = policy == rlhf::nonfinite_policy::drop_sequence;
        CAPTURE(whole);
        problem masked = clean;
        if (e.tokens || !whole) {
          for (std::ptrdiff_t j = 0; j < p.columns; ++j)
            if (whole || j == column) masked.weight[static_cast<size>(row * p.columns + j)] = 0;
        } else {
          continue;  // numbers without a time are one sequence
        }
        auto a = lay_out<double>(e, p, form::mask_u8);
        auto b = lay_out<double>(e, masked, form::mask_u8);
        a.nonfinite = policy;
        const figures f = e.call_double(a), g = e.call_double(b);
        CHECK(f.at("nonfinite") == 1);
        // Denominators are those of the whole mask: modes whose weights vary by row differ by them.
        const bool own_weights = e.name.find("dpo") != std::string::npos;
        if (f.count("loss") != 0 && !own_weights && e.count_names.size() == 1)
          CHECK(f.at("loss") == doctest::Approx(g.at("loss")).epsilon(1e-14));
        for (const output_spec& s : e.outputs(v)) {
          CAPTURE(s.name);
          const auto x = dense(a, s.name), y = dense(b, s.name);
          for (size k = 0; k < x.size(); ++k) CHECK(!std::isnan(x[k]));
          const std::ptrdiff_t width = p.width(s.size);
          if (s.size == extent::token && (e.tokens || !whole))
            for (std::ptrdiff_t j = 0; j < p.columns; ++j)
              if (whole || j == column)
                CHECK(same_bits(x[static_cast<size>(row * width + j)], 0.0));
        }
      }
      auto c = lay_out<double>(e, p, form::mask_u8);
      c.nonfinite = rlhf::nonfinite_policy::error;
      const std::string said = message_of([&] { e.call_double(c); });
      CHECK(said.rfind(function_of(e) + ": inputs", 0) == 0);
      for (const auto& [name, m] : c.written)
        for (const double x : m) CHECK(x == 7);
    }
  }
}

TEST_CASE("a positive log-prob, as a density may have, is a number like any other (B20)") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(71);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem p = draw(e, v, 4, 6, true, random);
      bool any = false;
      for (auto& [name, x] : p.inputs)
        if (name.find("log_prob") != std::string::npos && name.rfind("d_", 0) != 0) {
          any = true;
          for (double& y : x) y += 4;
        }
      if (!any) continue;
      auto a = lay_out<double>(e, p, form::mask_u8);
      const figures f = e.call_double(a);
      if (f.count("loss") != 0) CHECK(std::isfinite(f.at("loss")));
      CHECK(f.at("nonfinite") == 0);
    }
  }
}
