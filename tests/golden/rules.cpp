// What is left out, and why. A rule is a predicate over a case's function, params and inputs; it
// never names a case by its number.

#include <algorithm>

#include "tests/golden/golden.hpp"

namespace golden {
namespace {

/// A case with a few questions that rules ask.
struct asked {
  const test_case& c;

  const parameter* find(const char* name) const {
    const auto at = c.params.find(name);
    return at == c.params.end() ? nullptr : &at->second;
  }
  bool is(const char* name, const char* value) const {
    const parameter* p = find(name);
    return p != nullptr && std::holds_alternative<std::string>(*p) &&
           std::get<std::string>(*p) == value;
  }
  bool on(const char* name) const {
    const parameter* p = find(name);
    return p != nullptr && std::holds_alternative<bool>(*p) && std::get<bool>(*p);
  }
  double number(const char* name, double otherwise) const {
    const parameter* p = find(name);
    return p != nullptr && std::holds_alternative<double>(*p) ? std::get<double>(*p) : otherwise;
  }
  bool given(const char* name) const {
    const parameter* p = find(name);
    return p != nullptr && !std::holds_alternative<std::nullptr_t>(*p);
  }
  /// Is one of these among a list of texts?
  bool lists(const char* name, std::initializer_list<const char*> wanted) const {
    const parameter* p = find(name);
    if (p == nullptr || !std::holds_alternative<std::vector<std::string>>(*p)) return false;
    const auto& texts = std::get<std::vector<std::string>>(*p);
    return std::any_of(texts.begin(), texts.end(), [&](const std::string& text) {
      return std::any_of(wanted.begin(), wanted.end(), [&](const char* w) { return text == w; });
    });
  }
};

bool always(const asked&) { return true; }

struct rule {
  const char* function;  // a name, or the start of names when it ends in *
  bool (*applies)(const asked&);
  const char* reason;
};

/// A row that does not count beside one of its group that does.
bool invalid_beside_valid(const asked& a) {
  if (!a.on("leave_one_out_baseline")) return false;
  const array& valid = a.c.inputs.at("valid_mask");
  const array& prompt = a.c.inputs.at("prompts");
  const index n = prompt.size() / prompt.rows();
  for (index i = 0; i < valid.size(); ++i)
    for (index j = 0; j < valid.size(); ++j)
      if (valid[i] == 0 && valid[j] != 0 &&
          std::equal(prompt.data.begin() + i * n, prompt.data.begin() + (i + 1) * n,
                     prompt.data.begin() + j * n))
        return true;
  return false;
}

bool nan_in_masked_slot(const asked& a) {
  if (!a.is("loss_agg_mode", "seq-mean-token-sum") &&
      !a.is("loss_agg_mode", "seq-mean-token-mean") &&
      !a.is("loss_agg_mode", "seq-mean-token-sum-norm"))
    return false;
  const array& loss = a.c.inputs.at("loss_mat");
  return std::any_of(loss.data.begin(), loss.data.end(), [](double x) { return std::isnan(x); });
}

bool overflowed(const asked& a) { return std::isinf(a.c.outputs.at("loss")[0]); }

/// A loss of NaN from finite numbers: a mean over nothing.
bool mean_of_nothing(const asked& a) {
  const auto loss = a.c.outputs.find("loss");
  if (loss == a.c.outputs.end() || loss->second.size() != 1 || !std::isnan(loss->second[0]))
    return false;
  for (const auto& [name, input] : a.c.inputs)
    for (const double x : input.data)
      if (!std::isfinite(x)) return false;
  return true;
}

bool series_of_zero(const asked& a) { return a.number("gamma", 1) * a.number("lmbda", 1) == 0; }

bool tight_two_sided(const asked& a) {
  const double high = a.number("epsilon_high", 0.2);
  return a.given("delta") && (a.number("delta", 0) < 1 + high || a.number("delta", 0) <= 1);
}

bool sequence_kl(const asked& a) {
  return a.on("use_bias_correction_kl") && a.find("importance_sampling_level") != nullptr &&
         !a.is("importance_sampling_level", "token") && a.number("beta", 0.04) != 0;
}

bool other_dpo(const asked& a) {
  return a.lists("loss_types", {"hinge", "ipo", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
                                "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop"});
}

bool liger_other_dpo(const asked& a) {
  return a.given("loss_type") && !a.is("loss_type", "sigmoid") && !a.is("loss_type", "robust");
}

bool liger_other_loss(const asked& a) {
  return a.is("loss_type", "luspo") || a.is("loss_type", "sapo") || a.is("loss_type", "vespo") ||
         a.is("loss_type", "cispo");
}

const rule rules[] = {
    // ---------------------------------------------------------------- the source is wrong
    {"torchtune.GRPOCompletionLoss", always,
     "source defect: one ratio, that of the whole batch, stands in every row"},
    {"trl.grpo_loss_luspo", always, "source defect: padding enters the loss and gets gradient"},
    {"trl.dpo_options",
     [](const asked& a) { return a.on("use_weighting") && a.lists("loss_types", {"hinge"}); },
     "source defect: its backward pass raises"},
    {"openrlhf.LogExpLoss", overflowed, "source defect: overflows where the rejected reward leads"},
    {"verl.agg_loss", nan_in_masked_slot,
     "source defect: a NaN in a masked slot reaches the sequence means"},
    {"*", mean_of_nothing, "source defect: 0/0 where nothing counts; the library gives 0"},
    {"torchrl.vec_generalized_advantage_estimate", series_of_zero,
     "source defect: raises where gamma * lambda is 0"},
    {"torchrl.vec_td_lambda_*", series_of_zero, "source defect: raises where gamma * lambda is 0"},
    {"torchrl.vtrace_advantage_estimate", always,
     "not built yet: E8 vtrace (and a source defect at truncated steps)"},
    {"nemo_rl.calculate_baseline_and_std_per_prompt", invalid_beside_valid,
     "source defect: an invalid row is left out of its baseline twice"},

    // ---------------------------------------------------------------- policy
    {"trl.grpo_loss_cispo", always, "not built yet: P9 cispo"},
    {"trl.grpo_loss_sapo", always, "not built yet: P10 sapo"},
    {"trl.grpo_loss_vespo", always, "not built yet: P18 vespo"},
    {"trl.gmpo_loss", always, "not built yet: P8 gmpo"},
    {"trl.a2po_loss", always, "not built yet: P22 a2po"},
    {"trl.grpo_loss_*", [](const asked& a) { return a.given("off_policy_mask_threshold"); },
     "not built yet: R11 off-policy sequence mask"},
    {"trl.grpo_loss_*", [](const asked& a) { return a.given("top_entropy_quantile"); },
     "not built yet: R13 top-entropy mask"},
    {"trl.*", tight_two_sided, "not built yet: P4 two-sided clip below the ceiling"},
    {"trl.*", sequence_kl, "not built yet: K6 with the ratio of a sequence"},
    {"trl.grpo_vllm_is_ratio", always, "not built yet: R1 to R4 importance weights"},
    {"liger.grpo_loss_fn", liger_other_loss, "not built yet: P9, P10, P17, P18 policy losses"},
    {"liger.grpo_loss_fn", tight_two_sided, "not built yet: P4 two-sided clip below the ceiling"},
    {"liger.grpo_loss_fn", sequence_kl, "not built yet: K6 with the ratio of a sequence"},
    {"liger.fused_linear_grpo", liger_other_loss, "not built yet: P9, P10, P17, P18 policy losses"},
    {"verl.compute_policy_loss_bypass_mode", always, "not built yet: R1 to R10 rollout correction"},
    {"verl.compute_policy_loss_cispo", always, "not built yet: P9 cispo"},
    {"verl.compute_policy_loss_clip_cov", always, "not built yet: P12 clip_cov"},
    {"verl.compute_policy_loss_dppo_kl", always, "not built yet: P15 dppo_kl"},
    {"verl.compute_policy_loss_dppo_tv", always, "not built yet: P14 dppo_tv"},
    {"verl.compute_policy_loss_dro", always, "not built yet: P16 dro"},
    {"verl.compute_policy_loss_geo_mean", always, "not built yet: P8 gmpo"},
    {"verl.compute_policy_loss_gpg", always, "not built yet: P11 gpg"},
    {"verl.compute_policy_loss_kl_cov", always, "not built yet: P13 kl_cov"},
    {"verl.compute_policy_loss_sapo", always, "not built yet: P10 sapo"},
    {"verl.compute_rollout_correction_weights", always,
     "not built yet: R1 to R10 rollout correction"},
    {"verl.compute_rollout_rejection_mask", always, "not built yet: R7 and R8 rejection"},
    {"verl.compute_offpolicy_metrics", always, "not built yet: K12 mismatch metrics"},
    {"nemo_rl.ClippedPGLossFn", always, "not built yet: K12 mismatch metrics, P24, R1 to R6"},
    {"openrlhf.PolicyLoss", [](const asked& a) { return a.on("enable_vllm_is_correction"); },
     "not built yet: R1 to R6 importance weights"},
    {"slime.compute_cispo_loss", always, "not built yet: P9 cispo"},
    {"slime.compute_opsm_mask", always, "not built yet: R11 off-policy sequence mask"},
    {"slime.icepop_function", always, "not built yet: R3 icepop"},
    {"slime.vanilla_tis_function", always, "not built yet: R1 truncated importance weights"},

    // ---------------------------------------------------------------- advantage
    {"nemo_rl.GDPOAdvantageEstimator", always, "not built yet: E26 gdpo"},
    {"verl.compute_gdpo_outcome_advantage", always, "not built yet: E26 gdpo"},
    {"nemo_rl.OPDAdvantageEstimator", always, "not built yet: E29 opd"},
    {"trl.minillm_advantage", always, "not built yet: E30 minillm"},
    {"verl.compute_gpg_outcome_advantage", always, "not built yet: E22 gpg"},
    {"verl.compute_grpo_passk_outcome_advantage", always, "not built yet: E23 pass@k"},
    {"verl.compute_multi_turn_optimal_token_baseline_advantage", always, "not built yet: E27 otb"},
    {"verl.compute_optimal_token_baseline_advantage", always, "not built yet: E27 otb"},
    {"verl.compute_opo_outcome_advantage", always, "not built yet: E21 opo"},
    {"verl.compute_remax_outcome_advantage", always, "not built yet: E20 remax"},
    {"rlax.general_off_policy_returns", always, "not built yet: E9 retrace family"},
    {"rlax.importance_corrected_td_errors", always,
     "not built yet: E10 importance-corrected errors"},
    {"rlax.leaky_vtrace", always, "not built yet: E8 vtrace"},
    {"rlax.n_step_bootstrapped_returns", always, "not built yet: E2 n-step returns"},
    {"rlax.test_vtrace", always, "not built yet: E8 vtrace"},
    {"rlax.vtrace", always, "not built yet: E8 vtrace"},
    {"rlax.vtrace_td_error_and_advantage", always, "not built yet: E8 vtrace"},

    // ---------------------------------------------------------------- preference, reward
    {"liger.fused_linear_cpo", always, "not built yet: DP-41 cpo"},
    {"liger.fused_linear_orpo", always, "not built yet: DP-43 orpo"},
    {"liger.fused_linear_simpo", always, "not built yet: DP-40 simpo"},
    {"liger.fused_linear_kto", always, "not built yet: UP-1 kto"},
    {"trl.bco_loss", always, "not built yet: UP-3 bco"},
    {"trl.cpo_loss", always, "not built yet: DP-41 cpo"},
    {"trl.dpo_options", other_dpo, "not built yet: DP-4 to DP-12 preference losses"},
    {"trl.dpo_options", [](const asked& a) { return a.on("use_weighting"); },
     "not built yet: DP-16 wpo weights"},
    {"trl.dpo_f_divergence", other_dpo, "not built yet: DP-4 to DP-12 preference losses"},
    {"liger.fused_linear_dpo", liger_other_dpo, "not built yet: DP-4 to DP-12 preference losses"},
    {"trl.dpo_aot", always, "not built yet: DP-10 aot"},
    {"trl.dpo_aot_unpaired", always, "not built yet: DP-10 aot"},
    {"trl.dpo_apo_down", always, "not built yet: DP-11 apo"},
    {"trl.dpo_apo_zero", always, "not built yet: DP-11 apo"},
    {"trl.dpo_bco_pair", always, "not built yet: DP-8 bco_pair"},
    {"trl.dpo_discopop", always, "not built yet: DP-12 discopop"},
    {"trl.dpo_exo_pair", always, "not built yet: DP-6 exo_pair"},
    {"trl.dpo_hinge", always, "not built yet: DP-4 hinge"},
    {"trl.dpo_ipo", always, "not built yet: DP-5 ipo with token means"},
    {"trl.dpo_nca_pair", always, "not built yet: DP-7 nca_pair"},
    {"trl.dpo_sppo_hard", always, "not built yet: DP-9 sppo_hard"},
    {"trl.kto", always, "not built yet: UP-1 kto"},
    {"trl.nash_md_losses", always, "not built yet: ON-3 nash-md"},
    {"trl.orpo_odds_ratio_loss", always, "not built yet: DP-43 orpo"},
    {"trl.tpo_loss", always, "not built yet: DP-44 tpo"},
    {"trl.xpo_losses", always, "not built yet: ON-2 xpo"},
    {"torchtune.RSOLoss", always, "not built yet: DP-4 hinge"},
    {"openrlhf.apply_overlong_penalty", always, "not built yet: S6 overlong penalty"},
    {"openrlhf.apply_stop_properly_penalty", always, "not built yet: S5 stop properly"},
    {"torchtune.get_reward_penalty_mask", always, "not built yet: S3 missing end of sequence"},

    // ---------------------------------------------------------------- distillation, sequences
    {"liger.fused_linear_cosine_similarity", always, "not built yet: distillation"},
    {"liger.fused_linear_jsd", always, "not built yet: KD-4 generalised JSD"},
    {"nemo_rl.DistillationLossFn", always, "not built yet: distillation"},
    {"nemo_rl.DraftCrossEntropyLossFn", always, "not built yet: distillation"},
    {"torchtune.ForwardKLLoss", always, "not built yet: KD-1 forward KL"},
    {"torchtune.ReverseKLLoss", always, "not built yet: KD-2 reverse KL"},
    {"torchtune.SymmetricKLLoss", always, "not built yet: KD-3 symmetric KL"},
    {"trl.generalized_jsd_loss", always, "not built yet: KD-4 generalised JSD"},
    {"trl.self_distillation", always, "not built yet: KD-18 self-distillation"},
    {"trl.dft_loss", always, "not built yet: SF-3 dft"},
    {"trl.flush_left", always, "not part of a loss library: moves tokens"},
    {"torchtune.truncate_sequence_at_first_stop_token", always,
     "not part of a loss library: moves tokens"},
    {"trl.nanstd", always, "not built yet: statistics that skip NaN"},
};

bool matches(std::string_view pattern, std::string_view name) {
  if (!pattern.ends_with('*')) return pattern == name;
  return name.starts_with(pattern.substr(0, pattern.size() - 1));
}

}  // namespace

const char* excluded(const test_case& c) {
  for (const rule& r : rules)
    if (matches(r.function, c.function) && r.applies({c})) return r.reason;
  return nullptr;
}

}  // namespace golden
