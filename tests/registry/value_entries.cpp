#include "rlhf/value/clipped_value_loss.hpp"
#include "rlhf/value/explained_variance.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {
namespace {

/// Variants 0..7: the aggregations; 8: no clip; 9: no factor 1/2.
struct clipped_value {
  static bool clips(int v) { return v != 8; }
  static rlhf::aggregation_mode mode(int v) { return mode_of(v < 8 ? v : 0); }
  static entry describe() {
    entry e;
    e.name = "clipped_value_loss";
    e.variants = 10;
    e.inputs = [](int v) {
      std::vector<input_spec> s{{"value", extent::token, -2, 2, "d_value"}};
      if (clips(v)) s.push_back({"old_value", extent::token, -2, 2});
      s.push_back({"returns", extent::token, -2, 2});
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_value"}};
      if (v % 2 == 1) s.push_back({"token_loss", extent::token, 2});
      return s;
    };
    e.shape_inputs = [](problem& p, random_numbers& random) {
      if (clips(p.variant))
        for (std::size_t k = 0; k < p.inputs["value"].size(); ++k)
          p.inputs["old_value"][k] = p.inputs["value"][k] + random.uniform(-0.6, 0.6);
      if (mode(p.variant) == rlhf::aggregation_mode::group_mean_token_mean) draw_groups(p, random);
    };
    e.count_names = aggregation_counts;
    e.refused = {{"clip", {-0.1, not_a_number}}};
    e.loss_degree = 2;
    e.homogeneous = [](int v) {
      return v == 8 ? std::vector<std::string>{"value", "returns"} : std::vector<std::string>{};
    };
    e.reference = [](const problem& p, const quad_inputs& x) {
      const auto w = aggregation_weights(p, mode(p.variant), 16);
      quad loss = 0;
      for (index i = 0; i < p.rows; ++i)
        for (index j = 0; j < p.columns; ++j) {
          if (!(p.w(i, j) > 0)) continue;
          const quad value = quad_at(p, x, "value", i, j), returns = quad_at(p, x, "returns", i, j);
          const quad term = clips(p.variant) ? rlhf::formula::clipped_squared_error(
                                                   value, quad_at(p, x, "old_value", i, j), returns,
                                                   static_cast<quad>(0.25))
                                                   .loss
                                             : rlhf::formula::squared_error(value, returns).loss;
          loss += w[static_cast<std::size_t>(i * p.columns + j)] * term / (p.variant == 9 ? 1 : 2);
        }
      return loss;
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::clipped_value_loss<T>(
        {.value = a.in("value"),
         .old_value = a.in("old_value"),
         .returns = a.in("returns"),
         .group_id = a.id("group_id"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.d_value = a.out("d_value"), .token_loss = a.out("token_loss"), .upstream = a.upstream()},
        {.clip = a.number("clip", clips(v) ? 0.25 : 0),
         .half = v != 9,
         .over = aggregation_of(a, mode(v)),
         .nonfinite = a.nonfinite},
        exec);
  }
  static figures read(const rlhf::clipped_value_result& r) {
    figures f;
    put(f, "loss", r.loss);
    put(f, "clip_fraction", r.clip_fraction);
    put(f, "clip_distance_fraction", r.clip_distance_fraction);
    put(f, "value", r.value);
    put(f, "returns", r.returns);
    put(f, "error", r.error);
    put(f, "squared_error", r.squared_error);
    put(f, "returns_squared", r.returns_squared);
    put(f, "min:value", r.value_min);
    put(f, "max:value", r.value_max);
    put(f, "tokens", r.tokens);
    put(f, "positions", r.positions);
    put(f, "sequences", r.sequences);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

/// Of tokens, or of one number per row.
template <bool Tokens>
struct explained_variance {
  static entry describe() {
    entry e;
    e.name = Tokens ? "explained_variance" : "explained_variance, one row";
    e.tokens = Tokens;
    e.scales = false;
    e.inputs = [](int) {
      return std::vector<input_spec>{{"value", extent::token, -2, 2},
                                     {"returns", extent::token, -2, 2}};
    };
    e.outputs = [](int) { return std::vector<output_spec>{}; };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::explained_variance<T>({.value = a.in("value"),
                                        .returns = a.in("returns"),
                                        .mask = a.mask(),
                                        .layout = a.layout()},
                                       {}, {.nonfinite = a.nonfinite}, exec);
  }
  static figures read(const rlhf::explained_variance_result& r) {
    figures f;
    put(f, "value", r.value);
    put(f, "returns", r.returns);
    put(f, "residual", r.residual);
    put(f, "own:explained_variance", r.explained_variance());
    put(f, "own:uncentred", r.uncentred());
    put(f, "tokens", r.tokens);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

const registrar a(make_entry<clipped_value>());
const registrar b(make_entry<explained_variance<true>>());
const registrar c(make_entry<explained_variance<false>>());

}  // namespace
}  // namespace rlhf_test
