// Relations between a call and a changed call that hold for every function they fit.

#include <doctest/doctest.h>

#include <algorithm>

#include "tests/registry/registry.hpp"

using namespace rlhf_test;

namespace {

using size = std::size_t;

/// The figures of both, equal up to rounding; those named are expected to differ.
void check_close(const figures& a, const figures& b, double tolerance,
                 const std::vector<std::string>& but = {}) {
  for (const auto& [name, x] : a) {
    if (std::find(but.begin(), but.end(), name) != but.end()) continue;
    const std::string& named = name;  // clang 14 captures no structured binding
    CAPTURE(named);
    CHECK(b.at(name) == doctest::Approx(x).epsilon(tolerance));
  }
}

/// A number of an output that should be what another call wrote: to the bit where rows are on their
/// own, up to rounding where the whole batch decides.
void check_number(const entry& e, double a, double b) {
  if (e.per_row)
    CHECK(same_bits(a, b));
  else
    CHECK(a == doctest::Approx(b).epsilon(1e-12));
}

/// p with rows and columns around it that do not count: `before` and `after` each row and column.
problem surrounded(const entry& e, const problem& p, std::ptrdiff_t before, std::ptrdiff_t after) {
  problem q = p;
  const std::ptrdiff_t wide = e.tokens ? p.columns + before + after : 1;
  q.rows = p.rows + before + after;
  q.columns = wide;
  q.length.assign(static_cast<size>(q.rows), e.tokens ? 0 : 1);
  q.weight.assign(static_cast<size>(q.rows * wide), 0);
  const std::ptrdiff_t shift = e.tokens ? before : 0;
  for (std::ptrdiff_t i = 0; i < p.rows; ++i) {
    q.length[static_cast<size>(i + before)] = wide;
    for (std::ptrdiff_t j = 0; j < p.columns; ++j)
      q.weight[static_cast<size>((i + before) * wide + shift + j)] = p.w(i, j);
  }
  for (auto& [name, v] : q.ids) {
    v.assign(static_cast<size>(q.rows), 123456);
    for (std::ptrdiff_t i = 0; i < p.rows; ++i)
      v[static_cast<size>(i + before)] = p.ids.at(name)[static_cast<size>(i)];
  }
  for (const input_spec& s : e.inputs(p.variant)) {
    if (!p.has(s.name)) continue;
    const std::ptrdiff_t width = q.width(s.size), old = p.width(s.size);
    const std::ptrdiff_t at = s.size == extent::logit   ? shift * problem_classes
                              : s.size == extent::token ? shift
                                                        : 0;
    auto& v = q.inputs[s.name];
    v.assign(static_cast<size>(q.rows * width), 0);
    for (std::ptrdiff_t i = 0; i < p.rows; ++i)
      for (std::ptrdiff_t c = 0; c < old; ++c)
        v[static_cast<size>((i + before) * width + at + c)] =
            p.inputs.at(s.name)[static_cast<size>(i * old + c)];
  }
  return q;
}

/// Compares the outputs of p with the part of q's that lies inside.
template <class Check>
void compare_inside(const entry& e, const problem& p, const arguments<double>& a,
                    const arguments<double>& b, std::ptrdiff_t before, const Check& check) {
  for (const output_spec& s : e.outputs(p.variant)) {
    CAPTURE(s.name);
    const auto x = dense(a, s.name), y = dense(b, s.name);
    const std::ptrdiff_t width = p.width(s.size), wide = b.p->width(s.size);
    const std::ptrdiff_t at = !e.tokens                 ? 0
                              : s.size == extent::token ? before
                              : s.size == extent::logit ? before * problem_classes
                                                        : 0;
    for (std::ptrdiff_t i = 0; i < p.rows; ++i)
      for (std::ptrdiff_t c = 0; c < width; ++c)
        check(y[static_cast<size>((i + before) * wide + at + c)],
              x[static_cast<size>(i * width + c)]);
  }
}

/// A token that does not count stays where it is.
int copies(double weight) { return weight > 0 ? static_cast<int>(weight) : 1; }

}  // namespace

TEST_CASE("appended rows and columns that do not count change no row's bits (M2, M3)") {
  for (const entry& e : registry()) {
    if (!e.masked) continue;
    CAPTURE(e.name);
    random_numbers random(41);
    for (int v = 0; v < e.variants; ++v) {
      if (e.has_holes(v)) continue;
      CAPTURE(v);
      problem p = draw(e, v, 6, 21, true, random);
      auto a = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(a);
      const problem q = surrounded(e, p, 0, 5);
      auto b = lay_out<double>(e, q, form::mask_u8);
      poison(e, b, not_a_number);
      figures f = e.call_double(b);
      check_close(expected, f, 1e-12, {"unplaced"});
      compare_inside(e, p, a, b, 0, [&](double y, double x) { check_number(e, y, x); });
    }
  }
}

TEST_CASE("moved to the right behind columns that do not count, tokens keep their numbers (M5)") {
  for (const entry& e : registry()) {
    if (!e.masked || !e.tokens) continue;
    CAPTURE(e.name);
    random_numbers random(42);
    for (int v = 0; v < e.variants; ++v) {
      if (e.has_holes(v)) continue;
      CAPTURE(v);
      problem p = draw(e, v, 6, 21, true, random);
      auto a = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(a);
      for (const std::ptrdiff_t before : {1, 8, 13}) {
        const problem q = surrounded(e, p, before, 2);
        auto b = lay_out<double>(e, q, form::mask_u8);
        poison(e, b, not_a_number);
        check_close(expected, e.call_double(b), 1e-12, {"unplaced"});
        compare_inside(e, p, a, b, before,
                       [](double y, double x) { CHECK(y == doctest::Approx(x).epsilon(1e-12)); });
      }
    }
  }
}

TEST_CASE("permuted rows permute the outputs of functions that look at the whole batch (M6)") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(43);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 7, 9, true, random);
      const std::vector<std::ptrdiff_t> order{3, 0, 6, 1, 5, 2, 4};
      const problem q = select_rows(e, p, order);
      auto a = lay_out<double>(e, p, form::mask_u8);
      auto b = lay_out<double>(e, q, form::mask_u8);
      check_close(e.call_double(a), e.call_double(b), 1e-12);
      for (const output_spec& s : e.outputs(v)) {
        CAPTURE(s.name);
        const auto x = dense(a, s.name), y = dense(b, s.name);
        const std::ptrdiff_t width = p.width(s.size);
        for (std::ptrdiff_t i = 0; i < p.rows; ++i)
          for (std::ptrdiff_t c = 0; c < width; ++c)
            CHECK(y[static_cast<size>(i * width + c)] ==
                  doctest::Approx(x[static_cast<size>(order[static_cast<size>(i)] * width + c)])
                      .epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("other ids for the same groups change no bit (M7)") {
  for (const entry& e : registry()) {
    CAPTURE(e.name);
    random_numbers random(44);
    for (int v = 0; v < e.variants; ++v) {
      const problem p = draw(e, v, 12, 7, true, random);
      if (p.ids.empty()) continue;
      CAPTURE(v);
      problem q = p;
      for (auto& [name, ids] : q.ids)
        for (auto& id : ids) id = 5 * id + 40;  // in the same order: sums over groups are in it
      auto a = lay_out<double>(e, p, form::mask_u8);
      auto b = lay_out<double>(e, q, form::mask_u8);
      CHECK(same_bits(e.call_double(b), e.call_double(a)));
      for (const auto& [name, m] : a.written) CHECK(same_bits(b.written.at(name), m));
      for (auto& [name, ids] : q.ids)
        for (auto& id : ids) id = -id;
      auto c = lay_out<double>(e, q, form::mask_u8);
      check_close(e.call_double(a), e.call_double(c), 1e-14);
      for (const auto& [name, m] : a.written)
        for (size k = 0; k < m.size(); ++k)
          CHECK(c.written.at(name)[k] == doctest::Approx(m[k]).epsilon(1e-14));
    }
  }
}

TEST_CASE("groups that stay whole add up over micro-batches (M8)") {
  for (const entry& e : registry()) {
    if (!e.reduces) continue;
    CAPTURE(e.name);
    random_numbers random(45);
    for (int v = 0; v < e.variants; ++v) {
      problem p = draw(e, v, 12, 7, true, random);
      if (p.ids.empty()) continue;
      // The scale of a whole batch is no sum.
      if (e.name == "group_relative_advantage" && v % 3 == 2) continue;
      CAPTURE(v);
      give_counts(e, p);
      auto whole = lay_out<double>(e, p, form::mask_u8);
      const figures expected = e.call_double(whole);
      const auto& ids = p.ids.begin()->second;
      figures sum;
      for (const std::ptrdiff_t id : {-7, 993, 1993}) {
        std::vector<std::ptrdiff_t> rows;
        for (std::ptrdiff_t i = 0; i < p.rows; ++i)
          if (ids[static_cast<size>(i)] == id) rows.push_back(i);
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

TEST_CASE("a power of two on what a function is homogeneous in scales it exactly (M13, M24)") {
  for (const entry& e : registry()) {
    if (!e.homogeneous) continue;
    CAPTURE(e.name);
    random_numbers random(46);
    for (int v = 0; v < e.variants; ++v) {
      const auto names = e.homogeneous(v);
      if (names.empty()) continue;
      CAPTURE(v);
      const problem p = draw(e, v, 6, 17, true, random);
      for (const double c : {0.25, 8.0}) {
        CAPTURE(c);
        problem q = p;
        for (const auto& name : names)
          for (double& x : q.inputs.at(name)) x *= c;
        auto a = lay_out<double>(e, p, form::mask_u8);
        auto b = lay_out<double>(e, q, form::mask_u8);
        const figures f = e.call_double(a), g = e.call_double(b);
        if (f.count("loss") != 0) CHECK(g.at("loss") == std::pow(c, e.loss_degree) * f.at("loss"));
        for (const output_spec& s : e.outputs(v)) {
          CAPTURE(s.name);
          const auto x = dense(a, s.name), y = dense(b, s.name);
          for (size k = 0; k < x.size(); ++k) CHECK(y[k] == std::pow(c, s.degree) * x[k]);
        }
      }
    }
  }
}

TEST_CASE("a weight of n counts like the token n times (M48)") {
  for (const entry& e : registry()) {
    if (!e.masked || !e.weighs) continue;
    CAPTURE(e.name);
    random_numbers random(47);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      problem p = draw(e, v, 5, 9, true, random);
      for (double& w : p.weight) w *= static_cast<double>(1 + random.below(3));
      // Each token w times in a row of tokens, each pair w times in the batch.
      problem q = p;
      std::vector<std::ptrdiff_t> from;  // number of p behind each number of q
      if (e.tokens) {
        q.columns = 3 * p.columns;
        q.weight.clear();
        for (auto& n : q.length) n = q.columns;
        for (std::ptrdiff_t i = 0; i < p.rows; ++i) {
          for (std::ptrdiff_t j = 0; j < p.columns; ++j)
            for (int copy = 0; copy < copies(p.w(i, j)); ++copy) {
              from.push_back(i * p.columns + j);
              q.weight.push_back(p.w(i, j) > 0 ? 1 : 0);
            }
          from.resize(static_cast<size>((i + 1) * q.columns), i * p.columns);
          q.weight.resize(from.size(), 0);
        }
        for (const input_spec& s : e.inputs(v)) {
          if (s.size != extent::token && s.size != extent::logit) continue;
          const std::ptrdiff_t n = s.size == extent::logit ? problem_classes : 1;
          auto& to = q.inputs[s.name];
          to.clear();
          for (const std::ptrdiff_t k : from)
            for (std::ptrdiff_t c = 0; c < n; ++c)
              to.push_back(p.inputs.at(s.name)[static_cast<size>(k * n + c)]);
        }
      } else {
        for (std::ptrdiff_t i = 0; i < p.rows; ++i)
          for (int copy = 0; copy < copies(p.w(i, 0)); ++copy) from.push_back(i);
        q = select_rows(e, p, from);
        for (double& w : q.weight) w = w > 0 ? 1 : 0;
      }
      auto a = lay_out<double>(e, p, form::mask_double);
      auto b = lay_out<double>(e, q, form::mask_double);
      // A sum over the tokens of a sequence takes no weights, nor does a number of tokens.
      check_close(e.call_double(a), e.call_double(b), 1e-12, {"positions", "kl_per_sequence.sum"});
      for (const input_spec& s : e.inputs(v)) {
        if (s.gradient == nullptr || a.written.count(s.gradient) == 0) continue;
        CAPTURE(s.name);
        const auto x = dense(a, s.gradient), y = dense(b, s.gradient);
        const std::ptrdiff_t n = s.size == extent::logit ? problem_classes : 1;
        std::vector<double> sum(x.size(), 0);
        for (size k = 0; k < from.size(); ++k)
          for (std::ptrdiff_t c = 0; c < n; ++c)
            sum[static_cast<size>(from[k] * n + c)] +=
                y[k * static_cast<size>(n) + static_cast<size>(c)];
        for (size k = 0; k < x.size(); ++k) CHECK(sum[k] == doctest::Approx(x[k]).epsilon(1e-12));
      }
    }
  }
}

TEST_CASE("a small step against the gradient lowers the loss as foretold (M49)") {
  for (const entry& e : registry()) {
    if (!e.reference || !e.slope_of_loss) continue;
    CAPTURE(e.name);
    random_numbers random(48);
    for (int v = 0; v < e.variants; ++v) {
      CAPTURE(v);
      const problem p = draw(e, v, 5, 7, true, random);
      auto a = lay_out<double>(e, p, form::mask_u8);
      const figures f = e.call_double(a);
      if (f.count("loss") == 0) continue;
      double squares = 0;
      for (const input_spec& s : e.inputs(v))
        if (s.gradient != nullptr && a.written.count(s.gradient) != 0)
          for (const double g : dense(a, s.gradient)) squares += g * g;
      if (!(squares > 0)) continue;
      const double expected = 1e-7, step = expected / squares;
      problem q = p;
      for (const input_spec& s : e.inputs(v))
        if (s.gradient != nullptr && a.written.count(s.gradient) != 0) {
          const auto g = dense(a, s.gradient);
          for (size k = 0; k < g.size(); ++k) q.inputs[s.name][k] -= step * g[k];
        }
      auto b = lay_out<double>(e, q, form::mask_u8);
      const double fell = f.at("loss") - e.call_double(b).at("loss");
      CHECK(fell > 0.9 * expected);
      CHECK(fell < 1.1 * expected);
    }
  }
}

TEST_CASE("convex losses lie below their chords (M50)") {
  for (const entry& e : registry()) {
    if (!e.convex) continue;
    CAPTURE(e.name);
    random_numbers random(49);
    for (int v = 0; v < e.variants; ++v) {
      if (e.name == "dpo_loss" && v == 3) continue;  // robust: a difference of convex functions
      CAPTURE(v);
      problem p = draw(e, v, 6, 9, true, random);
      problem q = p, middle = p;
      for (const input_spec& s : e.inputs(v))
        if (s.gradient != nullptr)
          for (size k = 0; k < p.inputs[s.name].size(); ++k) {
            q.inputs[s.name][k] = random.uniform(s.low, s.high);
            middle.inputs[s.name][k] = (p.inputs[s.name][k] + q.inputs[s.name][k]) / 2;
          }
      double loss[3];
      int n = 0;
      for (const problem* x : {&p, &middle, &q}) {
        auto a = lay_out<double>(e, *x, form::mask_u8);
        loss[n++] = e.call_double(a).at("loss");
      }
      CHECK(loss[1] <= (loss[0] + loss[2]) / 2 + 1e-12);
    }
  }
}
