#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/policy_from_logits.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "tests/registry/policy.hpp"

namespace rlhf_test {
namespace {

constexpr double hot = 1.25;  // the temperature of every odd variant
inline double temperature(int v) { return v % 2 == 1 ? hot : 1; }

/// One row of logits, summed the plain way.
struct quad_row {
  quad log_sum = 0, entropy = 0, log_prob = 0, mean_log_prob = 0;
  quad_row(const problem& p, const quad_inputs& x, index i, index j) {
    const quad t = temperature(p.variant);
    quad y[problem_classes], sum = 0;
    for (index k = 0; k < problem_classes; ++k) {
      y[k] = quad_at(p, x, "logits", i, j * problem_classes + k) / t;
      sum += expq(y[k]);
    }
    log_sum = logq(sum);
    for (const quad z : y) {
      entropy -= expq(z - log_sum) * (z - log_sum);
      mean_log_prob += (z - log_sum) / problem_classes;
    }
    if (p.has("label")) log_prob = y[static_cast<int>(quad_at(p, x, "label", i, j))] - log_sum;
  }
};

/// The sum over the tokens that count of w · term(row, i, j).
template <class Term>
quad sum_over_rows(const problem& p, const quad_inputs& x, const std::vector<quad>& w,
                   const Term& term) {
  quad sum = 0;
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.columns; ++j)
      if (p.w(i, j) > 0)
        sum += w[static_cast<std::size_t>(i * p.columns + j)] * term(quad_row(p, x, i, j), i, j);
  return sum;
}

constexpr input_spec logits_in{"logits", extent::logit, -3, 3, "d_logits"};
constexpr input_spec label_in{"label", extent::token, 0, 0, nullptr, false, kind::label};

entry logits_entry(const char* name) {
  entry e;
  e.name = name;
  e.screens = false;
  e.refused = {{"temperature", {0, -1, not_a_number, infinite}}};
  return e;
}

inline figures read_log_prob(const rlhf::token_log_prob_result& r) {
  figures f;
  put(f, "log_prob", r.log_prob);
  put(f, "entropy", r.entropy);
  put(f, "accuracy", r.accuracy);
  put(f, "tokens", r.tokens);
  put(f, "positions", r.positions);
  put(f, "nonfinite", r.nonfinite);
  return f;
}

/// Variant 2: without labels.
struct token_log_prob {
  static entry describe() {
    entry e = logits_entry("token_log_prob");
    e.variants = 3;
    e.scales = false;
    e.inputs = [](int v) {
      std::vector<input_spec> s{logits_in};
      if (v != 2) s.push_back(label_in);
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"entropy"}, {"log_sum_exp"}};
      if (v != 2) s.push_back({"log_prob"});
      if (v != 1) s.push_back({"sum_p_squared"});
      return s;
    };
    e.needs_outputs = true;  // a label is required where log_prob is
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::token_log_prob<T>(
        {.logits = a.in("logits"),
         .label = a.label("label"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.log_prob = a.out("log_prob"),
         .entropy = a.out("entropy"),
         .log_sum_exp = a.out("log_sum_exp"),
         .sum_p_squared = a.out("sum_p_squared")},
        {.temperature = a.number("temperature", temperature(a.p->variant))}, exec);
  }
  static figures read(const rlhf::token_log_prob_result& r) { return read_log_prob(r); }
};

/// The gradient of sum(d_log_prob · log_prob + d_entropy · entropy + d_log_sum_exp · log_sum_exp).
struct token_log_prob_backward {
  static entry describe() {
    entry e = logits_entry("token_log_prob_backward");
    e.variants = 4;
    e.weighs = e.scales = false;
    e.needs_outputs = true;
    e.inputs = [](int v) {
      std::vector<input_spec> s{logits_in};
      if (v != 2) s.push_back(label_in);
      if (v != 2) s.push_back({"d_log_prob", extent::token, -1, 1, nullptr, true});
      if (v != 1) s.push_back({"d_entropy", extent::token, -1, 1, nullptr, true});
      if (v == 3) s.push_back({"d_log_sum_exp", extent::row, -1, 1, nullptr, true});
      return s;
    };
    e.outputs = [](int) { return std::vector<output_spec>{{"d_logits", extent::logit}}; };
    e.reference = [](const problem& p, const quad_inputs& x) {
      const std::vector<quad> one(static_cast<std::size_t>(p.rows * p.columns), 1);
      return sum_over_rows(p, x, one, [&](const quad_row& row, index i, index j) {
        return quad_at(p, x, "d_log_prob", i, j) * row.log_prob +
               quad_at(p, x, "d_entropy", i, j) * row.entropy +
               quad_at(p, x, "d_log_sum_exp", i, j) * row.log_sum;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::token_log_prob_backward<T>(
        {.logits = a.in("logits"),
         .label = a.label("label"),
         .d_log_prob = a.in("d_log_prob"),
         .d_entropy = a.in("d_entropy"),
         .d_log_sum_exp = a.in("d_log_sum_exp"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.d_logits = a.out("d_logits")},
        {.temperature = a.number("temperature", temperature(a.p->variant))}, exec);
  }
  static figures read(const rlhf::token_log_prob_result& r) { return read_log_prob(r); }
};

/// Variants 0..7: the aggregations; 8: smoothing; 9: z-loss; 10: both.
struct cross_entropy {
  static rlhf::aggregation_mode mode(int v) { return mode_of(v % 8); }
  static double smoothing(int v) { return v == 8 || v == 10 ? 0.1 : 0; }
  static double z_loss(int v) { return v >= 9 ? 0.01 : 0; }
  static entry describe() {
    entry e = logits_entry("cross_entropy_loss");
    e.variants = 11;
    e.convex = true;
    e.inputs = [](int) { return std::vector<input_spec>{logits_in, label_in}; };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_logits", extent::logit}};
      if (v % 2 == 0) s.push_back({"token_loss"});
      return s;
    };
    e.shape_inputs = [](problem& p, random_numbers& random) {
      if (mode(p.variant) == rlhf::aggregation_mode::group_mean_token_mean) draw_groups(p, random);
    };
    e.count_names = aggregation_counts;
    e.refused.push_back({"label_smoothing", {-0.1, 1.1, not_a_number}});
    e.refused.push_back({"z_loss", {-1, not_a_number, infinite}});
    e.reference = [](const problem& p, const quad_inputs& x) {
      const quad s = smoothing(p.variant), z = z_loss(p.variant);
      return sum_over_rows(p, x, aggregation_weights(p, mode(p.variant), 16),
                           [&](const quad_row& row, index, index) {
                             return -(1 - s) * row.log_prob - s * row.mean_log_prob +
                                    z * row.log_sum * row.log_sum;
                           });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::cross_entropy_loss<T>(
        {.logits = a.in("logits"),
         .label = a.label("label"),
         .group_id = a.id("group_id"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.d_logits = a.out("d_logits"),
         .token_loss = a.out("token_loss"),
         .upstream = a.upstream()},
        {.label_smoothing = a.number("label_smoothing", smoothing(v)),
         .z_loss = a.number("z_loss", z_loss(v)),
         .temperature = a.number("temperature", temperature(v)),
         .over = aggregation_of(a, mode(v))},
        exec);
  }
  static figures read(const rlhf::cross_entropy_result& r) {
    figures f;
    put(f, "loss", r.loss);
    put(f, "nll", r.nll);
    put(f, "entropy", r.entropy);
    put(f, "accuracy", r.accuracy);
    put(f, "tokens", r.tokens);
    put(f, "positions", r.positions);
    put(f, "sequences", r.sequences);
    put(f, "nonfinite", r.nonfinite);
    return f;
  }
};

/// The variants of the policy losses, with logits in the place of log_prob and entropy.
struct clipped_surrogate_from_logits {
  static entry describe() {
    entry e = logits_entry("clipped_surrogate_from_logits");
    e.screens = true;
    e.variants = policy_variants;
    e.count_names = aggregation_counts;
    e.homogeneous = policy_homogeneous;
    for (const auto& r : policy_refused()) e.refused.push_back(r);
    e.refused.push_back({"clip_low", {-0.1, not_a_number}});
    e.refused.push_back({"clip_high", {-0.1, not_a_number}});
    e.refused.push_back({"dual_clip", {-1, 0.5, 1, not_a_number}});
    e.inputs = [](int v) {
      std::vector<input_spec> s{logits_in, label_in};
      for (const input_spec& x : policy_inputs(v))
        if (x.gradient == nullptr) s.push_back(x);
      return s;
    };
    e.outputs = [](int v) {
      std::vector<output_spec> s{{"d_logits", extent::logit}};
      if (v % 2 == 0) s.push_back({"log_prob", extent::token, 0});
      if (v % 3 == 0) s.push_back({"entropy", extent::token, 0});
      for (const output_spec& y : policy_outputs(v))
        if (y.name[0] != 'd') s.push_back(y);
      return s;
    };
    e.shape_inputs = [](problem& p, random_numbers& random) {
      if (policy_variant_of(p.variant).mode == rlhf::aggregation_mode::group_mean_token_mean)
        draw_groups(p, random);
    };
    e.reference = [](const problem& p, const quad_inputs& given) {
      quad_inputs x = given;  // with what the logits say
      for (index i = 0; i < p.rows; ++i)
        for (index j = 0; j < p.columns; ++j) {
          const quad_row row(p, given, i, j);
          x["log_prob"].push_back(row.log_prob);
          x["entropy"].push_back(row.entropy);
        }
      const quad one = 1;
      return policy_reference(p, x, [&](index i, index j) {
        const quad ratio =
            expq(quad_at(p, x, "log_prob", i, j) - quad_at(p, x, "old_log_prob", i, j));
        return rlhf::formula::clipped_surrogate(ratio, quad_at(p, x, "advantage", i, j),
                                                one - static_cast<quad>(0.2),
                                                one + static_cast<quad>(0.28), quad(1e300))
            .loss;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::clipped_surrogate_from_logits<T>(
        {.logits = a.in("logits"),
         .label = a.label("label"),
         .old_log_prob = a.in("old_log_prob"),
         .ref_log_prob = a.in("ref_log_prob"),
         .advantage = a.in("advantage"),
         .coefficient = a.in("coefficient"),
         .group_id = a.id("group_id"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.d_logits = a.out("d_logits"),
         .log_prob = a.out("log_prob"),
         .entropy = a.out("entropy"),
         .token_loss = a.out("token_loss"),
         .ratio = a.out("ratio"),
         .upstream = a.upstream()},
        {.clip_low = a.number("clip_low", 0.2),
         .clip_high = a.number("clip_high", 0.28),
         .dual_clip = a.number("dual_clip", 0),
         .over = aggregation_of(a, policy_variant_of(v).mode),
         .kl = kl_of(a),
         .entropy = entropy_of(a),
         .nonfinite = a.nonfinite,
         .temperature = a.number("temperature", temperature(v))},
        exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

/// A formula of the user's own on logits.
struct own_formula {
  template <rlhf::lane V>
  V operator()(const rlhf::policy_token<V>& t) const {
    return t.ratio * t.ratio * t.advantage;
  }
};
struct own_policy_loss_from_logits {
  static entry describe() {
    entry e = clipped_surrogate_from_logits::describe();
    e.name = "policy_loss_from_logits";
    e.variants = 2;
    e.refused = {{"temperature", {0, -1, not_a_number, infinite}}};
    e.reference = [](const problem& p, const quad_inputs& x) {
      const auto w = aggregation_weights(p, policy_variant_of(p.variant).mode, 16);
      return sum_over_rows(p, x, w, [&](const quad_row& row, index i, index j) {
        return expq(2 * (row.log_prob - quad_at(p, x, "old_log_prob", i, j))) *
               quad_at(p, x, "advantage", i, j);
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::policy_loss_from_logits<T>(
        own_formula(),
        {.logits = a.in("logits"),
         .label = a.label("label"),
         .old_log_prob = a.in("old_log_prob"),
         .advantage = a.in("advantage"),
         .mask = a.mask(),
         .layout = a.layout()},
        {.d_logits = a.out("d_logits"),
         .log_prob = a.out("log_prob"),
         .entropy = a.out("entropy"),
         .token_loss = a.out("token_loss"),
         .ratio = a.out("ratio"),
         .upstream = a.upstream()},
        {.over = aggregation_of(a, policy_variant_of(v).mode),
         .nonfinite = a.nonfinite,
         .temperature = a.number("temperature", temperature(v))},
        exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

const registrar a(make_entry<token_log_prob>());
const registrar b(make_entry<token_log_prob_backward>());
const registrar c(make_entry<cross_entropy>());
const registrar d(make_entry<clipped_surrogate_from_logits>());
const registrar f(make_entry<own_policy_loss_from_logits>());

}  // namespace
}  // namespace rlhf_test
