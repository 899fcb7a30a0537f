// Layout, strides, threads and batch composition change no bit; splits merge.

#include <doctest/doctest.h>

#include <algorithm>
#include <numeric>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

TEST_CASE("padded, lengths, packed and strided give the same bits") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(21);
    for (int v = 0; v < e.variants; ++v)
      for (const bool holes : {false, true}) {
        CAPTURE(v);
        CAPTURE(holes);
        const problem p = draw(e, v, 67, 63, holes, random);
        auto first = lay_out<double>(e, p, form::mask_u8);
        const figures expected = e.call_double(first);
        for (const form f : {form::lengths, form::packed, form::strided, form::column_major}) {
          if (!e.tokens && f != form::strided) continue;
          CAPTURE(static_cast<int>(f));
          auto other = lay_out<double>(e, p, f);
          CHECK(same_bits(e.call_double(other), expected));
          for (const auto& [name, m] : first.written) {
            const std::string& named = name;  // clang 14 captures no structured binding
            CAPTURE(named);
            CHECK(same_bits(dense(other, name), dense(first, name)));
          }
        }
      }
  }
}

TEST_CASE("column-major tensors give the bits of row-major ones, on any number of threads") {
  // Rows and columns that fill no square of a transposed copy, long rows, and so long ones that no
  // copy is made.
  const std::pair<std::ptrdiff_t, std::ptrdiff_t> sizes[] = {
      {131, 37}, {70, 300}, {9, 6000}, {5, 40000}};
  for (const entry& e : registry()) {
    if (!e.tokens) continue;
    CAPTURE(e.name);
    random_numbers random(31);
    for (int v = 0; v < e.variants; ++v) {
      const auto& size = sizes[v % 5 == 4 ? 3 : v % 3];
      const std::ptrdiff_t rows = size.first, columns = size.second;
      bool logits = false;
      for (const input_spec& s : e.inputs(v)) logits = logits || s.size == extent::logit;
      if (logits && columns > 300) continue;
      CAPTURE(v);
      CAPTURE(rows);
      const problem p = draw(e, v, rows, columns, v % 2 == 0, random);
      for (const bool add : {false, true}) {
        auto by_row = lay_out<double>(e, p, form::mask_u8);
        by_row.accumulate = add;
        const figures expected = e.call_double(by_row);
        const auto holds = [&](const arguments<double>& other) {
          for (const auto& [name, m] : by_row.written) {
            const std::string& named = name;  // clang 14 captures no structured binding
            CAPTURE(named);
            CHECK(same_bits(dense(other, name), dense(by_row, name)));
          }
        };
        for (const std::ptrdiff_t threads : {2, 3, 11}) {
          CAPTURE(threads);
          auto by_column = lay_out<double>(e, p, form::column_major);
          by_column.accumulate = add;
          CHECK(same_bits(e.call_parallel(by_column, thread_pool{threads}), expected));
          holds(by_column);
        }
        auto alone = lay_out<double>(e, p, form::column_major);
        alone.accumulate = add;
        std::vector<std::byte> memory(e.workspace(alone));
        CHECK(same_bits(e.call_in_workspace(alone, memory.data(), memory.size()), expected));
        CHECK(allocations_of_last_call == 0);
        holds(alone);
      }
    }
  }
}

TEST_CASE("any number of threads gives the bits of one") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(22);
    for (int v = 0; v < e.variants; v += 3)
      for (const auto& [rows, columns] :
           {std::pair<std::ptrdiff_t, std::ptrdiff_t>{300, 9}, {3, 5000}, {1, 20000}}) {
        const problem p = draw(e, v, rows, columns, v % 2 == 0, random);
        auto alone = lay_out<double>(e, p, form::mask_u8);
        const figures expected = e.call_double(alone);
        for (const std::ptrdiff_t threads : {2, 3, 7}) {
          auto shared = lay_out<double>(e, p, form::mask_u8);
          CHECK(same_bits(e.call_parallel(shared, thread_pool{threads}), expected));
          for (const auto& [name, m] : alone.written) CHECK(same_bits(shared.written.at(name), m));
        }
      }
  }
}

TEST_CASE("a row's outputs do not depend on its neighbours or their order") {
  for (const entry& e : registry()) {
    if (!e.per_row) continue;
    CAPTURE(e.name);
    random_numbers random(23);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem p = draw(e, v, 9, 23, true, random);
      if (!p.ids.empty()) continue;  // rows of one group belong together
      give_counts(e, p);
      auto whole = lay_out<double>(e, p, form::mask_u8);
      e.call_double(whole);
      std::vector<std::ptrdiff_t> order(9);
      std::iota(order.begin(), order.end(), 0);
      std::reverse(order.begin() + 2, order.end());
      for (const auto& rows : {order, std::vector<std::ptrdiff_t>{4}}) {
        const problem q = select_rows(e, p, rows);
        auto part = lay_out<double>(e, q, form::mask_u8);
        e.call_double(part);
        for (const output_spec& s : e.outputs(v)) {
          CAPTURE(s.name);
          const auto x = dense(whole, s.name), y = dense(part, s.name);
          const std::ptrdiff_t n = p.width(s.size);
          for (std::size_t i = 0; i < rows.size(); ++i)
            for (std::ptrdiff_t j = 0; j < n; ++j)
              CHECK(same_bits(y[i * static_cast<std::size_t>(n) + static_cast<std::size_t>(j)],
                              x[static_cast<std::size_t>(rows[i] * n + j)]));
        }
      }
    }
  }
}

TEST_CASE("micro-batches with given counts add up to the batch") {
  for (const entry& e : registry()) {
    if (!e.reduces) continue;
    CAPTURE(e.name);
    random_numbers random(24);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem p = draw(e, v, 10, 13, true, random);
      if (!p.ids.empty()) continue;
      give_counts(e, p);
      auto whole = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(whole);
      figures sum;
      for (const auto& rows : {std::vector<std::ptrdiff_t>{0, 1, 2}, {3}, {4, 5, 6, 7, 8, 9}}) {
        const problem q = select_rows(e, p, rows);
        auto part = lay_out<double>(e, q, form::mask_u8);
        add_figures(sum, e.call_double(part));
      }
      for (const auto& [name, x] : expected) {
        if (begins(name, "own:")) continue;
        const std::string& named = name;  // clang 14 captures no structured binding
        CAPTURE(named);
        CHECK(sum.at(name) == doctest::Approx(x).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("an upstream power of two scales every gradient exactly and no figure") {
  for (const entry& e : registry()) {
    if (!e.scales) continue;
    CAPTURE(e.name);
    random_numbers random(25);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem p = draw(e, v, 5, 17, true, random);
      auto one = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(one);
      problem q = p;
      q.upstream = 0.25;
      auto quarter = lay_out<double>(e, q, form::mask_u8);
      CHECK(same_bits(e.call_double(quarter), expected));
      for (const input_spec& s : e.inputs(v)) {
        if (s.gradient == nullptr || one.written.count(s.gradient) == 0) continue;
        const auto x = dense(one, s.gradient), y = dense(quarter, s.gradient);
        for (std::size_t i = 0; i < x.size(); ++i) CHECK(y[i] == 0.25 * x[i]);
      }
    }
  }
}

TEST_CASE("figures do not depend on what is written") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    if (e.needs_outputs) continue;
    random_numbers random(26);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 5, 17, true, random);
      auto all = lay_out<double>(e, p, form::mask_u8);
      auto none = lay_out<double>(e, p, form::mask_u8);
      none.written.clear();
      const figures expected = e.call_double(all);
      CAPTURE(v);
      CHECK(same_bits(e.call_double(none), expected));
    }
  }
}

TEST_CASE("float is close to double") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(27);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 9, 29, true, random);
      auto wide = lay_out<double>(e, p, form::mask_u8);
      auto narrow = lay_out<float>(e, p, form::mask_u8);
      const figures a = e.call_double(wide), b = e.call_float(narrow);
      if (a.count("loss") != 0) CHECK(b.at("loss") == doctest::Approx(a.at("loss")).epsilon(2e-6));
      for (const auto& [name, m] : wide.written) {
        const std::string& named = name;  // clang 14 captures no structured binding
        CAPTURE(named);
        const auto x = dense(wide, name);
        const auto y = dense(narrow, name);
        double largest = 0;
        for (const double t : x) largest = std::max(largest, std::abs(t));
        for (std::size_t i = 0; i < x.size(); ++i)
          CHECK(std::abs(static_cast<double>(y[i]) - x[i]) <=
                e.float_error * 0x1p-24 * (largest > 0 ? largest : 1));
      }
    }
  }
}
