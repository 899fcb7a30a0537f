#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_penalty.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {
namespace {

constexpr rlhf::kl_estimator estimators[] = {rlhf::kl_estimator::k1, rlhf::kl_estimator::k2,
                                             rlhf::kl_estimator::k3, rlhf::kl_estimator::absolute};

/// Weightings whose slope is that of the loss, or those whose slope is another one by design.
/// Variants: the four estimators with one weighting, then with the other; 8, 9: with clamps.
template <bool Slope>
struct kl_estimate {
  static rlhf::kl_weighting weighting(int v) {
    using rlhf::kl_weighting;
    const bool second = v % 8 >= 4;
    if (Slope) return second ? kl_weighting::ratio : kl_weighting::plain;
    return second ? kl_weighting::score : kl_weighting::straight_through;
  }
  static double input_clamp(int v) { return v >= 8 ? 0.8 : 0; }
  static double output_clamp(int v) { return v == 9 ? 0.3 : 0; }
  static rlhf::aggregation_mode mode(int v) { return mode_of(v % 8); }
  static entry describe() {
    entry e;
    e.name = Slope ? "kl_estimate" : "kl_estimate, slope by design";
    e.variants = 10;
    e.inputs = [](int v) {
      std::vector<input_spec> s{{"log_prob", extent::token, -3, -0.1, "d_log_prob"},
                                {"ref_log_prob", extent::token, -3, -0.1}};
      if (weighting(v) == rlhf::kl_weighting::ratio)
        s.insert(s.begin() + 1, {"old_log_prob", extent::token, -3, -0.1});
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_log_prob"}};
      if (v % 2 == 0) s.push_back({"kl"});
      return s;
    };
    e.shape_inputs = [](problem& p, random_numbers& random) {
      if (mode(p.variant) == rlhf::aggregation_mode::group_mean_token_mean) draw_groups(p, random);
    };
    e.count_names = aggregation_counts;
    e.refused = {{"input_clamp", {-1, not_a_number}}, {"output_clamp", {-1, not_a_number}}};
    if (!Slope) return e;
    e.reference = [](const problem& p, const quad_inputs& x) {
      const auto w = aggregation_weights(p, mode(p.variant), 16);
      quad loss = 0;
      for (index i = 0; i < p.rows; ++i)
        for (index j = 0; j < p.columns; ++j) {
          if (!(p.w(i, j) > 0)) continue;
          const quad now = quad_at(p, x, "log_prob", i, j);
          const quad ratio = expq(now - quad_at(p, x, "old_log_prob", i, j));
          loss += w[static_cast<std::size_t>(i * p.columns + j)] *
                  rlhf::formula::kl_estimate<quad>(now - quad_at(p, x, "ref_log_prob", i, j), ratio,
                                                   estimators[p.variant % 4], weighting(p.variant),
                                                   static_cast<quad>(input_clamp(p.variant)),
                                                   static_cast<quad>(output_clamp(p.variant)))
                      .value;
        }
      return loss;
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::kl_estimate<T>(
        {.log_prob = a.in("log_prob"),
         .old_log_prob = a.in("old_log_prob"),
         .ref_log_prob = a.in("ref_log_prob"),
         .group_id = a.id("group_id"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.kl = a.out("kl"), .d_log_prob = a.out("d_log_prob"), .upstream = a.upstream()},
        {.estimator = estimators[v % 4],
         .weighting = weighting(v),
         .input_clamp = a.number("input_clamp", input_clamp(v)),
         .output_clamp = a.number("output_clamp", output_clamp(v)),
         .over = aggregation_of(a, mode(v)),
         .nonfinite = a.nonfinite},
        exec);
  }
  static figures read(const rlhf::kl_estimate_result& r) {
    figures f;
    put(f, "loss", r.loss);
    put(f, "kl", r.kl);
    put(f, "kl_per_sequence", r.kl_per_sequence);
    put(f, "min:kl", r.kl_min);
    put(f, "max:kl", r.kl_max);
    put(f, "tokens", r.tokens);
    put(f, "positions", r.positions);
    put(f, "sequences", r.sequences);
    put(f, "nonfinite", r.nonfinite);
    put(f, "saturated", r.saturated);
    return f;
  }
};

/// Variants: the estimators with a score per sequence, per token, and without one. A score that is
/// placed on a masked slot is what tests/kl/kl_penalty_test.cpp is about.
struct kl_penalty {
  static entry describe() {
    entry e;
    e.name = "kl_penalty";
    e.variants = 6;
    e.weighs = false;
    e.scales = false;
    e.exact_add = false;  // the score is added to what the token already holds
    e.inputs = [](int v) {
      std::vector<input_spec> s{{"log_prob", extent::token, -3, -0.1},
                                {"ref_log_prob", extent::token, -3, -0.1}};
      if (v % 3 != 2)
        s.push_back({"score", v % 3 == 0 ? extent::row : extent::token, -2, 2, nullptr, true});
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"reward"}};
      if (v % 2 == 0) s.push_back({"kl"});
      return s;
    };
    e.refused = {{"coefficient", {-1, not_a_number, infinite}}};
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::kl_penalty<T>({.log_prob = a.in("log_prob"),
                                .ref_log_prob = a.in("ref_log_prob"),
                                .score = a.in("score"),
                                .mask = a.mask(),
                                .layout = a.layout()},
                               {.reward = a.out("reward"), .kl = a.out("kl")},
                               {.coefficient = a.number("coefficient", 0.25),
                                .estimator = estimators[a.p->variant % 4],
                                .nonfinite = a.nonfinite},
                               exec);
  }
  static figures read(const rlhf::kl_penalty_result& r) {
    figures f;
    put(f, "kl", r.kl);
    put(f, "kl_per_sequence", r.kl_per_sequence);
    put(f, "non_score_reward", r.non_score_reward);
    put(f, "score", r.score);
    put(f, "total", r.total);
    put(f, "unplaced", r.unplaced);
    put(f, "tokens", r.tokens);
    put(f, "positions", r.positions);
    put(f, "sequences", r.sequences);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

const registrar a(make_entry<kl_estimate<true>>());
const registrar b(make_entry<kl_estimate<false>>());
const registrar c(make_entry<kl_penalty>());

}  // namespace
}  // namespace rlhf_test
