#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"
#include "tests/registry/policy.hpp"

namespace rlhf_test {
namespace {

entry policy_entry(const char* name, bool old_optional = false) {
  entry e;
  e.name = name;
  e.variants = policy_variants;
  e.inputs = [old_optional](int v) { return policy_inputs(v, old_optional); };
  e.outputs = policy_outputs;
  e.shape_inputs = shape_policy;
  e.count_names = aggregation_counts;
  e.homogeneous = policy_homogeneous;
  e.refused = policy_refused();
  return e;
}

struct clipped_surrogate {
  static double dual(int v) { return v % 4 == 3 ? 1.3 : 0; }
  static entry describe() {
    entry e = policy_entry("clipped_surrogate_loss");
    e.refused.push_back({"clip_low", {-0.1, not_a_number}});
    e.refused.push_back({"clip_high", {-0.1, not_a_number}});
    e.refused.push_back({"dual_clip", {-1, 0.5, 1, not_a_number}});
    e.reference = [](const problem& p, const quad_inputs& x) {
      const quad one = 1;
      const quad limit = dual(p.variant) == 0 ? quad(1e300) : static_cast<quad>(dual(p.variant));
      return policy_reference(p, x, [&](index i, index j) {
        const quad ratio =
            expq(quad_at(p, x, "log_prob", i, j) - quad_at(p, x, "old_log_prob", i, j));
        return rlhf::formula::clipped_surrogate(ratio, quad_at(p, x, "advantage", i, j),
                                                one - static_cast<quad>(0.2),
                                                one + static_cast<quad>(0.28), limit)
            .loss;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::clipped_surrogate_loss<T>(policy_batch_of(a), policy_output_of(a),
                                           {.clip_low = a.number("clip_low", 0.2),
                                            .clip_high = a.number("clip_high", 0.28),
                                            .dual_clip = a.number("dual_clip", dual(v)),
                                            .over = aggregation_of(a, policy_variant_of(v).mode),
                                            .kl = kl_of(a),
                                            .entropy = entropy_of(a),
                                            .nonfinite = a.nonfinite},
                                           exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

struct reinforce {
  static entry describe() {
    entry e = policy_entry("reinforce_loss", true);
    e.reference = [](const problem& p, const quad_inputs& x) {
      return policy_reference(p, x, [&](index i, index j) {
        return rlhf::formula::reinforce(quad_at(p, x, "log_prob", i, j),
                                        quad_at(p, x, "advantage", i, j))
            .loss;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    return rlhf::reinforce_loss<T>(policy_batch_of(a), policy_output_of(a),
                                   {.over = aggregation_of(a, policy_variant_of(v).mode),
                                    .kl = kl_of(a),
                                    .entropy = entropy_of(a),
                                    .nonfinite = a.nonfinite},
                                   exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

template <rlhf::sequence_form Form>
struct sequence_clipped_surrogate {
  static quad drawn(const problem& p, index i, index j) {
    return static_cast<quad>(p.inputs.at("log_prob")[static_cast<std::size_t>(i * p.columns + j)]);
  }
  static rlhf::aggregation_mode mode_of(int v) {
    return policy_variant_of(v == 6 ? 1 : v).mode;  // turn_mean is refused
  }
  static rlhf::sequence_ratio kind(int v) {
    return v % 2 == 0 ? rlhf::sequence_ratio::mean : rlhf::sequence_ratio::sum;
  }
  static entry describe() {
    entry e = policy_entry(Form == rlhf::sequence_form::sequence
                               ? "sequence_clipped_surrogate_loss"
                               : "sequence_clipped_surrogate_loss, token form");
    e.refused.push_back({"clip_low", {-0.1, not_a_number}});
    e.refused.push_back({"clip_high", {-0.1, not_a_number}});
    const auto outputs = e.outputs;
    e.outputs = [outputs](int v) {
      auto s = outputs(v);
      if (v % 3 == 1) s.push_back({"sequence_loss", extent::row});
      return s;
    };
    constexpr bool to_token = Form == rlhf::sequence_form::token;
    e.slope_of_loss = !to_token;
    e.reference = [](const problem& p, const quad_inputs& x) {
      const quad one = 1;
      return policy_reference(p, x, mode_of(p.variant), [&](index i, index k) {
        // The token form holds the sequence's ratio constant and moves it with its own token.
        quad sum = 0, n = 0;
        for (index j = 0; j < p.columns; ++j)
          if (p.w(i, j) > 0) {
            const quad now = to_token ? drawn(p, i, j) : quad_at(p, x, "log_prob", i, j);
            sum += p.w(i, j) * (now - quad_at(p, x, "old_log_prob", i, j));
            n += p.w(i, j);
          }
        quad u = kind(p.variant) == rlhf::sequence_ratio::mean ? sum / n : sum;
        if (to_token) u += quad_at(p, x, "log_prob", i, k) - drawn(p, i, k);
        const quad ratio = expq(u);
        return rlhf::formula::clipped_surrogate(ratio, quad_at(p, x, "advantage", i, k),
                                                one - static_cast<quad>(0.1),
                                                one + static_cast<quad>(0.15), quad(1e300))
            .loss;
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    const int v = a.p->variant;
    auto output = policy_output_of(a);
    output.sequence_loss = a.out("sequence_loss");
    return rlhf::sequence_clipped_surrogate_loss<T>(policy_batch_of(a), output,
                                                    {.clip_low = a.number("clip_low", 0.1),
                                                     .clip_high = a.number("clip_high", 0.15),
                                                     .ratio = kind(v),
                                                     .form = Form,
                                                     .over = aggregation_of(a, mode_of(v)),
                                                     .kl = kl_of(a),
                                                     .entropy = entropy_of(a),
                                                     .nonfinite = a.nonfinite},
                                                    exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

/// A formula of the user's own, without a slope: dual numbers find it.
struct own_formula {
  static constexpr bool uses_behaviour_log_prob = true;
  template <rlhf::lane V>
  V operator()(const rlhf::policy_token<V>& t) const {
    const V apart = t.log_prob - t.behaviour_log_prob;
    return rlhf::math::constant<V>(0.125) * apart * apart - t.ratio * t.advantage;
  }
};
struct own_policy_loss {
  static entry describe() {
    entry e = policy_entry("policy_loss");
    e.homogeneous = nullptr;
    e.inputs = [](int v) {
      auto s = policy_inputs(v);
      s.insert(s.begin() + 2, {"behaviour_log_prob", extent::token, -3, -0.1});
      return s;
    };
    e.reference = [](const problem& p, const quad_inputs& x) {
      return policy_reference(p, x, [&](index i, index j) {
        const quad now = quad_at(p, x, "log_prob", i, j);
        const quad apart = now - quad_at(p, x, "behaviour_log_prob", i, j);
        return apart * apart / 8 -
               expq(now - quad_at(p, x, "old_log_prob", i, j)) * quad_at(p, x, "advantage", i, j);
      });
    };
    return e;
  }
  template <class T, class Exec>
  static auto call(arguments<T>& a, const Exec& exec) {
    return rlhf::policy_loss<T>(own_formula(), policy_batch_of(a), policy_output_of(a),
                                {.over = aggregation_of(a, policy_variant_of(a.p->variant).mode),
                                 .kl = kl_of(a),
                                 .entropy = entropy_of(a),
                                 .nonfinite = a.nonfinite},
                                exec);
  }
  static figures read(const rlhf::policy_result& r) { return read_policy(r); }
};

const registrar a(make_entry<clipped_surrogate>());
const registrar b(make_entry<reinforce>());
const registrar c(make_entry<sequence_clipped_surrogate<rlhf::sequence_form::sequence>>());
const registrar e(make_entry<own_policy_loss>());
const registrar d(make_entry<sequence_clipped_surrogate<rlhf::sequence_form::token>>());

}  // namespace
}  // namespace rlhf_test
