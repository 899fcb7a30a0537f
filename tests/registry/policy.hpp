#pragma once

// What the entries of policy losses share.

#include "rlhf/policy/policy_loss.hpp"
#include "tests/registry/registry.hpp"

namespace rlhf_test {

/// Variants 0..7 walk through the aggregations; 8.. add the KL and entropy terms, coefficient and
/// per-token advantage.
struct policy_variant {
  rlhf::aggregation_mode mode;
  bool kl = false, entropy = false, coefficient = false, per_token_advantage = false;
  rlhf::kl_estimator estimator = rlhf::kl_estimator::k3;
  rlhf::kl_weighting weighting = rlhf::kl_weighting::ratio;
};

inline constexpr int policy_variants = 16;

inline policy_variant policy_variant_of(int v) {
  using rlhf::aggregation_mode;
  using rlhf::kl_estimator;
  using rlhf::kl_weighting;
  constexpr aggregation_mode modes[] = {aggregation_mode::token_mean,
                                        aggregation_mode::token_sum,
                                        aggregation_mode::sequence_mean_token_sum,
                                        aggregation_mode::sequence_mean_token_sum_norm,
                                        aggregation_mode::sequence_mean_token_mean,
                                        aggregation_mode::group_mean_token_mean,
                                        aggregation_mode::turn_mean,
                                        aggregation_mode::none};
  policy_variant r{modes[v % 8]};
  if (v < 8) return r;
  r.mode = modes[v % 6];
  r.kl = true;
  r.entropy = v % 2 == 0;
  r.coefficient = v % 3 == 0;
  r.per_token_advantage = v % 2 == 1;
  constexpr kl_estimator estimators[] = {kl_estimator::k1, kl_estimator::k2, kl_estimator::k3,
                                         kl_estimator::absolute};
  r.estimator = estimators[v % 4];
  r.weighting = v < 12 ? kl_weighting::ratio : kl_weighting::plain;
  return r;
}

inline std::vector<input_spec> policy_inputs(int variant, bool old_optional = false) {
  const policy_variant v = policy_variant_of(variant);
  std::vector<input_spec> s{{"log_prob", extent::token, -3, -0.1, "d_log_prob"},
                            {"old_log_prob", extent::token, -3, -0.1, nullptr, old_optional}};
  if (v.kl) s.push_back({"ref_log_prob", extent::token, -3, -0.1});
  if (v.entropy) s.push_back({"entropy", extent::token, 0, 2, "d_entropy"});
  s.push_back({"advantage", v.per_token_advantage ? extent::token : extent::row, -2, 2});
  if (v.coefficient) s.push_back({"coefficient", extent::token, 0.2, 1.5, nullptr, true});
  return s;
}

inline std::vector<output_spec> policy_outputs(int variant) {
  const policy_variant v = policy_variant_of(variant);
  std::vector<output_spec> s{{"d_log_prob"}};
  if (v.entropy) s.push_back({"d_entropy"});
  if (variant % 3 == 1) s.push_back({"token_loss"});
  if (variant % 3 == 2) s.push_back({"ratio", extent::token, 0});
  return s;
}

/// Old log-probs near the new ones, groups of rows that interleave.
inline void shape_policy(problem& p, random_numbers& random) {
  auto& old = p.inputs["old_log_prob"];
  const auto& now = p.inputs["log_prob"];
  for (std::size_t k = 0; k < old.size(); ++k) old[k] = now[k] + random.uniform(-0.5, 0.5);
  if (policy_variant_of(p.variant).mode == rlhf::aggregation_mode::group_mean_token_mean)
    draw_groups(p, random);
}

template <class T>
rlhf::policy_batch<T> policy_batch_of(const arguments<T>& a) {
  return {.log_prob = a.in("log_prob"),
          .old_log_prob = a.in("old_log_prob"),
          .behaviour_log_prob = a.in("behaviour_log_prob"),
          .ref_log_prob = a.in("ref_log_prob"),
          .entropy = a.in("entropy"),
          .advantage = a.in("advantage"),
          .coefficient = a.in("coefficient"),
          .group_id = a.id("group_id"),
          .mask = a.mask(),
          .layout = a.layout()};
}

template <class T>
rlhf::policy_output<T> policy_output_of(arguments<T>& a) {
  return {.d_log_prob = a.out("d_log_prob"),
          .d_entropy = a.out("d_entropy"),
          .token_loss = a.out("token_loss"),
          .ratio = a.out("ratio"),
          .upstream = a.upstream()};
}

inline constexpr double policy_kl = 0.3, policy_entropy = 0.05;

template <class T>
rlhf::kl_term kl_of(const arguments<T>& a) {
  const policy_variant v = policy_variant_of(a.p->variant);
  if (!v.kl) return {};
  return {.coefficient = a.number("kl.coefficient", policy_kl),
          .estimator = v.estimator,
          .weighting = v.weighting,
          .input_clamp = a.number("kl.input_clamp", 0),
          .output_clamp = a.number("kl.output_clamp", 0)};
}
template <class T>
rlhf::entropy_term entropy_of(const arguments<T>& a) {
  if (!policy_variant_of(a.p->variant).entropy) return {};
  return {.coefficient = a.number("entropy.coefficient", policy_entropy)};
}

/// Variants without KL, entropy and anything that is not of degree 1 in the advantage.
inline std::vector<std::string> policy_homogeneous(int variant) {
  return policy_variant_of(variant).kl ? std::vector<std::string>{}
                                       : std::vector<std::string>{"advantage"};
}
inline std::vector<refused_number> policy_refused() {
  return {{"kl.coefficient", {-1, not_a_number, infinite}, 8},
          {"kl.input_clamp", {-1, not_a_number}, 8},
          {"kl.output_clamp", {-1, not_a_number}, 8},
          {"entropy.coefficient", {not_a_number, infinite}, 8}};
}

inline figures read_policy(const rlhf::policy_result& r) {
  figures f;
  put(f, "loss", r.loss);
  put(f, "policy_loss", r.policy_loss);
  put(f, "kl", r.kl);
  put(f, "entropy", r.entropy);
  put(f, "clip_fraction", r.clip_fraction);
  put(f, "clip_fraction_low", r.clip_fraction_low);
  put(f, "clip_fraction_high", r.clip_fraction_high);
  put(f, "dual_clip_fraction", r.dual_clip_fraction);
  put(f, "approx_kl_k1", r.approx_kl_k1);
  put(f, "approx_kl_k2", r.approx_kl_k2);
  put(f, "approx_kl_k3", r.approx_kl_k3);
  put(f, "ratio", r.ratio);
  put(f, "min:ratio", r.ratio_min);
  put(f, "max:ratio", r.ratio_max);
  put(f, "tokens", r.tokens);
  put(f, "positions", r.positions);
  put(f, "sequences", r.sequences);
  put(f, "nonfinite", r.nonfinite);
  put(f, "saturated", r.saturated);
  return f;
}

/// KL and entropy terms of a policy loss, and a token's weight: plain loops over the formulas.
template <class TokenLoss>
quad policy_reference(const problem& p, const quad_inputs& x, rlhf::aggregation_mode mode,
                      const TokenLoss& token_loss) {
  const policy_variant v = policy_variant_of(p.variant);
  const auto w = aggregation_weights(p, mode, 16);
  quad loss = 0;
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.columns; ++j) {
      if (!(p.w(i, j) > 0)) continue;
      const quad weight = w[static_cast<std::size_t>(i * p.columns + j)];
      const quad c = v.coefficient ? quad_at(p, x, "coefficient", i, j) : 1;
      loss += weight * c * token_loss(i, j);
      if (v.kl) {
        const quad now = quad_at(p, x, "log_prob", i, j);
        const quad ratio = expq(now - quad_at(p, x, "old_log_prob", i, j));
        const quad delta = now - quad_at(p, x, "ref_log_prob", i, j);
        loss += weight * static_cast<quad>(policy_kl) *
                rlhf::formula::kl_estimate(delta, ratio, v.estimator, v.weighting, quad(0), quad(0))
                    .value;
      }
      if (v.entropy)
        loss -= weight * static_cast<quad>(policy_entropy) * quad_at(p, x, "entropy", i, j);
    }
  return loss;
}

template <class TokenLoss>
quad policy_reference(const problem& p, const quad_inputs& x, const TokenLoss& token_loss) {
  return policy_reference(p, x, policy_variant_of(p.variant).mode, token_loss);
}

}  // namespace rlhf_test
