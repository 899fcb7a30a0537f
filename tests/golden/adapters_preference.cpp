#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/preference/dpo.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "tests/golden/linear_head.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

using rlhf::aggregation;
using rlhf::dpo_variant;
using rlhf::reduction;

/// The halves of rows [chosen; rejected].
array chosen(const array& a) { return a.rows_of(0, a.rows() / 2); }
array rejected(const array& a) { return a.rows_of(a.rows() / 2, a.rows()); }
array stacked(const array& a, const array& b) {
  array r = a;
  r.shape[0] += b.shape[0];
  r.data.insert(r.data.end(), b.data.begin(), b.data.end());
  return r;
}

struct dpo_answer {
  rlhf::dpo_result figures;
  array d_chosen, d_rejected, pair_loss;
};

/// From log-probs of whole answers.
template <class T>
dpo_answer dpo(place<T>& on, const array& a, const array& b, const array& ref_a, const array& ref_b,
               const rlhf::dpo_config& config, const rlhf::upstream_scale<T>& upstream = {}) {
  const auto d_a = on.out(a.shape), d_b = on.out(b.shape), pair = on.out({a.rows()});
  const auto r = rlhf::dpo_loss<T>({.chosen_log_prob = on.in(a),
                                    .rejected_log_prob = on.in(b),
                                    .ref_chosen_log_prob = on.in(ref_a),
                                    .ref_rejected_log_prob = on.in(ref_b)},
                                   {.d_chosen_log_prob = d_a.view,
                                    .d_rejected_log_prob = d_b.view,
                                    .pair_loss = pair.view,
                                    .upstream = upstream},
                                   config);
  return {r, d_a.read(), d_b.read(), pair.read()};
}

/// From log-probs of tokens; the weights of the tokens are both policies'.
template <class T>
dpo_answer dpo_tokens(place<T>& on, const array& log_prob, const array& ref, const array& weight,
                      const rlhf::dpo_config& config) {
  const array a = chosen(log_prob), b = rejected(log_prob);
  const auto d_a = on.out(a.shape), d_b = on.out(b.shape);
  const auto r =
      rlhf::dpo_loss<T>({.chosen_log_prob = on.in(a),
                         .rejected_log_prob = on.in(b),
                         .ref_chosen_log_prob = on.in(chosen(ref)),
                         .ref_rejected_log_prob = on.in(rejected(ref)),
                         .chosen_mask = on.weights(chosen(weight)),
                         .rejected_mask = on.weights(rejected(weight))},
                        {.d_chosen_log_prob = d_a.view, .d_rejected_log_prob = d_b.view}, config);
  return {r, d_a.read(), d_b.read(), {}};
}

/// The transforms of f-DPO. They are not part of the loss: a case that has one is the loss of
/// transformed log-ratios, and the chain rule.
struct divergence {
  std::string name;
  double alpha;

  double value(double a) const {
    if (name == "js_divergence") return -rlhf::math::softplus(-a);
    if (name == "forward_kl") return -std::exp(-a);
    if (name == "alpha_divergence" && std::abs(alpha - 1) > 1e-6)
      return std::exp((alpha - 1) * a) / (alpha - 1);
    return a;
  }
  double slope(double a) const {
    if (name == "js_divergence") return rlhf::math::sigmoid(-a);
    if (name == "forward_kl") return std::exp(-a);
    if (name == "alpha_divergence" && std::abs(alpha - 1) > 1e-6) return std::exp((alpha - 1) * a);
    return 1;
  }
};

divergence read_divergence(const request& c) {
  divergence f{c.text("f_divergence_type", "reverse_kl"), c.number("f_alpha_divergence_coef", 1)};
  if (f.name != "reverse_kl" && f.name != "js_divergence" && f.name != "forward_kl" &&
      f.name != "alpha_divergence")
    unknown_value("f_divergence_type", f.name);
  return f;
}

/// Weights of LD-DPO: a token beyond the shorter answer's length counts alpha.
array length_weights(const array& mask, double alpha) {
  const array n = row_sums(mask);
  const index pairs = mask.rows() / 2;
  array weight = mask;
  for (index i = 0; i < mask.rows(); ++i) {
    const double shared = std::min(n[i % pairs], n[i % pairs + pairs]);
    double ordinal = 0;
    for (index j = 0; j < mask.columns(); ++j)
      if (mask(i, j) != 0 && ++ordinal > shared) weight(i, j) = alpha;
  }
  return weight;
}

/// TRL's DPO: a weighted sum of losses on one batch. The reference is known per answer only, so it
/// stands on the first token of each.
template <class T>
void trl_dpo(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("per_token_logps");
  const array& completion = c.input("completion_mask");
  const array mask = completion.columns_of(1, completion.columns());
  const auto alpha = c.maybe("ld_alpha");
  const array weight = alpha ? length_weights(mask, *alpha) : mask;
  const array ref = stacked(c.input("ref_chosen_logps"), c.input("ref_rejected_logps"));
  const double beta = c.number("beta"), smoothing = c.number("label_smoothing", 0);
  const divergence f = read_divergence(c);
  c.flag("use_weighting", false);  // true is excluded by a rule
  const auto mean = reduction::mean(rlhf::local);
  const index pairs = ref.size() / 2;

  const array n = row_sums(mask), s = row_sums(kept(log_prob, weight) * weight), a = s - ref;
  out.exponent(std::max(largest(s), largest(a)));
  array ref_token = zeros_like(log_prob);
  bool all_have_tokens = true;
  for (index i = 0; i < mask.rows(); ++i) {
    index first = 0;
    while (first < mask.columns() && weight(i, first) == 0) ++first;
    if (first < mask.columns() && weight(i, first) == 1)
      ref_token(i, first) = ref[i];
    else
      all_have_tokens = false;
  }
  const bool direct = all_have_tokens && f.name == "reverse_kl";

  // One loss on answers; the slope of an answer goes to its tokens.
  const auto of_answers = [&](const array& length, const rlhf::dpo_config& config, array& d) {
    const array x = map([&](double u, double m) { return f.value(u) / m; }, a, length);
    const array zero = array::filled({pairs}, 0);
    const auto r = dpo(on, chosen(x), rejected(x), zero, zero, config);
    const array slope = map([&](double u, double m) { return f.slope(u) / m; }, a, length) *
                        stacked(r.d_chosen, r.d_rejected);
    d = spread(slope, mask.columns()) * weight;
    return r.figures.loss;
  };
  const auto of_tokens = [&](const rlhf::dpo_config& config, array& d) {
    const auto r = dpo_tokens(on, log_prob, ref_token, weight, config);
    d = stacked(r.d_chosen, r.d_rejected);
    return r.figures.loss;
  };

  double loss = 0;
  array d_log_prob = zeros_like(log_prob);
  c.ignore({"logits", "input_ids"});
  std::optional<array> d_logits;
  const auto types = c.texts("loss_types");
  const auto shares = c.numbers("loss_weights", std::vector<double>(types.size(), 1));
  for (size_t k = 0; k < types.size(); ++k) {
    const std::string& type = types[k];
    if (type == "sft") {
      const array& logits = c.input("logits");
      const index time = logits.shape[1] - 1, classes = logits.shape[2];
      array shifted = array::filled({pairs, time, classes}, 0);
      for (index i = 0; i < pairs; ++i)
        for (index j = 0; j < time * classes; ++j)
          shifted[i * time * classes + j] = logits[i * (time + 1) * classes + j];
      const auto to = on.out(shifted.shape);
      const auto r = rlhf::cross_entropy_loss<T>(
          {.logits = on.in(shifted),
           .label = on.integers(chosen(c.input("input_ids")).columns_of(1, time + 1)),
           .mask = on.mask(chosen(mask))},
          {.d_logits = to.view, .upstream = above<T>(shares[k])},
          {.over = aggregation::token_mean(rlhf::local)});
      loss += shares[k] * r.loss;
      const array d = to.read();
      d_logits = zeros_like(logits);
      for (index i = 0; i < pairs; ++i)
        for (index j = 0; j < time * classes; ++j)
          (*d_logits)[i * (time + 1) * classes + j] = d[i * time * classes + j];
      continue;
    }
    if (type != "sigmoid" && type != "robust" && type != "sigmoid_norm")
      unknown_value("loss_types", type);
    const bool robust = type == "robust", normalised = type == "sigmoid_norm";
    const rlhf::dpo_config config{
        .beta = beta,
        .variant = robust ? dpo_variant::robust : dpo_variant::sigmoid,
        .label_smoothing = robust ? smoothing : 0,  // TRL's sigmoid ignores it
        .over = mean};
    rlhf::dpo_config per_token = config;
    per_token.length_normalised = normalised;
    const array length = normalised ? map([](double m) { return std::max(m, 1.0); }, n)
                                    : array::filled({2 * pairs}, 1);
    array d;
    loss += shares[k] * (direct && !(normalised && alpha) ? of_tokens(per_token, d)
                                                          : of_answers(length, config, d));
    d_log_prob = d_log_prob + d * shares[k];
  }
  out.put("loss", loss);
  out.grad("per_token_logps", d_log_prob);
  if (c.has("logits")) out.grad("logits", d_logits.value_or(zeros_like(c.input("logits"))));

  // The logged rewards are those without a divergence.
  const rlhf::dpo_config plain{.beta = beta, .over = mean};
  const auto r = all_have_tokens
                     ? dpo_tokens(on, log_prob, ref_token, weight, plain).figures
                     : dpo(on, chosen(s), rejected(s), chosen(ref), rejected(ref), plain).figures;
  out.log("rewards/chosen", r.chosen_reward.mean());
  out.log("rewards/rejected", r.rejected_reward.mean());
  out.log("rewards/accuracies", r.accuracy.mean());
  out.log("rewards/margins", r.margin.mean());
  out.log("logps/chosen", r.chosen_score.mean());
  out.log("logps/rejected", r.rejected_score.mean());
}

struct answer_inputs {
  array a, b, ref_a, ref_b;
};

answer_inputs read_answers(const request& c) {
  return {c.input("policy_chosen_logps"), c.input("policy_rejected_logps"),
          c.input("reference_chosen_logps"), c.input("reference_rejected_logps")};
}

rlhf::dpo_config conservative(double beta, double smoothing) {
  return {.beta = beta,
          .variant = smoothing > 0 ? dpo_variant::conservative : dpo_variant::sigmoid,
          .label_smoothing = smoothing,
          .over = reduction::mean(rlhf::local)};
}

/// IPO is no option of dpo_loss: it is the squared distance of the margin from 1 / (2 beta).
template <class T>
void openrlhf_dpo(const request& c, place<T>& on, answer& out) {
  const auto x = read_answers(c);
  const double beta = c.number("beta"), smoothing = c.number("label_smoothing", 0);
  out.put("chosen_rewards", (x.a - x.ref_a) * beta);
  out.put("rejected_rewards", (x.b - x.ref_b) * beta);
  if (!c.flag("ipo", false)) {
    const auto r = dpo(on, x.a, x.b, x.ref_a, x.ref_b, conservative(beta, smoothing));
    out.put("loss", r.figures.loss);
    out.grad("policy_chosen_logps", r.d_chosen);
    out.grad("policy_rejected_logps", r.d_rejected);
    return;
  }
  const array margin = ((x.a - x.ref_a) - (x.b - x.ref_b)).reshaped({x.a.size(), 1});
  const auto d = on.out(margin.shape);
  const auto r = rlhf::clipped_value_loss<T>(
      {.value = on.in(margin), .returns = on.in(array::filled(margin.shape, 1 / (2 * beta)))},
      {.d_value = d.view},
      {.clip = 0, .half = false, .over = aggregation::token_mean(rlhf::local)});
  const array slope = d.read().reshaped({x.a.size()});
  out.put("loss", r.loss);
  out.grad("policy_chosen_logps", slope);
  out.grad("policy_rejected_logps", -slope);
}

template <class T>
void torchtune_dpo(const request& c, place<T>& on, answer& out) {
  const auto x = read_answers(c);
  const double beta = c.number("beta", 0.1);
  auto config = conservative(beta, c.number("label_smoothing", 0));
  config.over = reduction::sum();
  const auto r = dpo<T>(on, x.a, x.b, x.ref_a, x.ref_b, config, on.in(c.cotangent("losses")));
  out.put("losses", r.pair_loss);
  out.put("chosen_rewards", (x.a - x.ref_a) * beta);
  out.put("rejected_rewards", (x.b - x.ref_b) * beta);
  out.grad("policy_chosen_logps", r.d_chosen);
  out.grad("policy_rejected_logps", r.d_rejected);
}

/// Every second row from `first`.
array alternate(const array& a, index first) {
  std::vector<index> shape = a.shape;
  const index step = a.size() / a.rows();
  shape[0] /= 2;
  array r = array::filled(shape, 0);
  for (index i = 0; i < shape[0]; ++i)
    for (index j = 0; j < step; ++j) r[i * step + j] = a[(2 * i + first) * step + j];
  return r;
}

/// Rows alternate; half the valid rows are pairs, and 1e-8 is added to them. The SFT term is the
/// negative log-prob of the chosen answers.
template <class T>
void nemo_dpo(const request& c, place<T>& on, answer& out) {
  const array& log_prob = c.input("next_token_logprobs");
  const array& sample = c.input("sample_mask");
  const index time = log_prob.columns();
  const array ref = c.input("reference_policy_logprobs").columns_of(0, time);
  const array mask = c.input("token_mask").columns_of(1, time + 1) * spread(sample, time);
  const double n = c.number("global_valid_seqs") / 2 + small_count;
  c.ignore({"global_valid_toks"});
  const double beta = c.number("reference_policy_kl_penalty", 0.05);
  const double weight = c.number("preference_loss_weight", 1);
  const double sft_weight = c.number("sft_loss_weight", 0);
  const bool average = c.flag("preference_average_log_probs", false);
  const bool sft_average = c.flag("sft_average_log_probs", false);
  const array valid = alternate(sample, 0);

  const auto d_a = on.out({log_prob.rows() / 2, time}), d_b = on.out({log_prob.rows() / 2, time});
  const auto r =
      rlhf::dpo_loss<T>({.chosen_log_prob = on.in(alternate(log_prob, 0)),
                         .rejected_log_prob = on.in(alternate(log_prob, 1)),
                         .ref_chosen_log_prob = on.in(alternate(ref, 0)),
                         .ref_rejected_log_prob = on.in(alternate(ref, 1)),
                         .weight = on.mask(valid),
                         .chosen_mask = on.mask(alternate(mask, 0)),
                         .rejected_mask = on.mask(alternate(mask, 1))},
                        {.d_chosen_log_prob = d_a.view,
                         .d_rejected_log_prob = d_b.view,
                         .upstream = above<T>(weight)},
                        {.beta = beta, .length_normalised = average, .over = reduction::mean(n)});
  array d_chosen = d_a.read();
  double sft = 0;
  if (sft_weight > 0) {
    const auto d = on.out(d_chosen.shape);
    const auto nll =
        rlhf::reinforce_loss<T>({.log_prob = on.in(alternate(log_prob, 0)),
                                 .advantage = on.in(array::filled({d_chosen.rows()}, 1)),
                                 .mask = on.mask(alternate(mask, 0))},
                                {.d_log_prob = d.view, .upstream = above<T>(sft_weight)},
                                {.over = sft_average ? aggregation::sequence_mean_token_mean(n)
                                                     : aggregation::sequence_mean_token_sum(n)});
    sft = nll.loss;
    d_chosen = d_chosen + d.read();
  }
  array d = log_prob;
  const array d_rejected = d_b.read();
  for (index i = 0; i < d_chosen.rows(); ++i) {
    d.set_row(2 * i, d_chosen.row(i));
    d.set_row(2 * i + 1, d_rejected.row(i));
  }
  const double loss = weight * r.loss + sft_weight * sft;
  out.exponent(largest_row_sum(log_prob - ref, mask));
  out.put("loss", loss);
  out.grad("next_token_logprobs", d);
  out.log("loss", loss);
  out.log("sft_loss", sft);
  out.log("preference_loss", r.loss);
  out.log("accuracy", r.accuracy.sum / n);
  out.log("rewards_chosen_mean", r.chosen_reward.sum / beta / n);
  out.log("rewards_rejected_mean", r.rejected_reward.sum / beta / n);
  out.log("num_valid_samples", r.pairs);
}

template <class T>
void liger_dpo(const request& c, place<T>& on, answer& out) {
  const auto bias = [&](const char* name) {
    return c.has(name) ? std::optional<array>(c.input(name)) : std::nullopt;
  };
  const linear_head policy{c.input("_input"), c.input("lin_weight"), bias("bias")};
  const array& label = c.input("target");
  const double beta = c.number("beta", 0.1), smoothing = c.number("label_smoothing", 0);
  const bool average = c.flag("average_log_prob", false);
  const bool with_nll = c.flag("compute_nll_loss", false);
  const double alpha = c.number("alpha", 1);
  const auto type = c.text("loss_type", "sigmoid");
  if (type != "sigmoid" && type != "robust") unknown_value("loss_type", type);
  c.ignore({"chunk_size"});

  const array logits = policy.logits();
  const auto log_prob_of = [&](const array& z) {
    const auto to = on.out(label.shape);
    rlhf::token_log_prob<T>({.logits = on.in(z), .label = on.integers(label)},
                            {.log_prob = to.view});
    return to.read();
  };
  const array log_prob = log_prob_of(logits);
  const bool with_ref = c.has("ref_input");
  const array ref =
      with_ref
          ? log_prob_of(
                linear_head{c.input("ref_input"), c.input("ref_weight"), bias("ref_bias")}.logits())
          : zeros_like(log_prob);
  const array mask = map([](double x) { return x == -100 ? 0.0 : 1.0; }, label);
  const auto r =
      dpo_tokens(on, log_prob, ref, mask,
                 {.beta = beta,
                  .variant = type == "robust" ? dpo_variant::robust : dpo_variant::sigmoid,
                  .label_smoothing = type == "robust" ? smoothing : 0,
                  .length_normalised = average,
                  .over = reduction::mean(rlhf::local)});
  array d_log_prob = stacked(r.d_chosen, r.d_rejected);
  double loss = r.figures.loss, nll = 0;
  if (with_nll) {
    const auto d = on.out(r.d_chosen.shape);
    const auto sft =
        rlhf::reinforce_loss<T>({.log_prob = on.in(chosen(log_prob)),
                                 .advantage = on.in(array::filled({log_prob.rows() / 2}, 1)),
                                 .mask = on.mask(chosen(mask))},
                                {.d_log_prob = d.view, .upstream = above<T>(alpha)},
                                {.over = aggregation::token_mean(rlhf::local)});
    nll = sft.loss;
    loss += alpha * nll;
    d_log_prob = d_log_prob + stacked(d.read(), zeros_like(r.d_rejected));
  }
  const auto to = on.out(logits.shape);
  rlhf::token_log_prob_backward<T>(
      {.logits = on.in(logits), .label = on.integers(label), .d_log_prob = on.in(d_log_prob)},
      {.d_logits = to.view});
  const array d_logits = to.read();

  const auto slopes = policy.slopes(d_logits);
  const array n = row_sums(mask);
  const auto of_answers = [&](const array& x) {
    return average ? map([](double s, double m) { return m > 0 ? s / m : 0; }, row_sums(x), n)
                   : row_sums(x);
  };
  const array s = of_answers(log_prob), reward = (s - of_answers(ref)) * beta;
  out.exponent(largest(s) + largest(logits));
  out.put("loss", loss);
  out.put("chosen_logps", chosen(s));
  out.put("rejected_logps", rejected(s));
  out.put("chosen_logits_mean", sum(chosen(logits)) / static_cast<double>(logits.size() / 2));
  out.put("rejected_logits_mean", sum(rejected(logits)) / static_cast<double>(logits.size() / 2));
  out.put("nll_loss", nll);
  out.put("aux0", chosen(reward));
  out.put("aux1", rejected(reward));
  out.grad("lin_weight", slopes.weight);
  out.grad("_input", slopes.input);
  out.grad("bias", slopes.bias);
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("trl.dpo_sigmoid", trl_dpo),
    GOLDEN_ADAPTER("trl.dpo_robust", trl_dpo),
    GOLDEN_ADAPTER("trl.dpo_sigmoid_norm", trl_dpo),
    GOLDEN_ADAPTER("trl.dpo_sft", trl_dpo),
    GOLDEN_ADAPTER("trl.dpo_options", trl_dpo),
    GOLDEN_ADAPTER("trl.dpo_f_divergence", trl_dpo),
    GOLDEN_ADAPTER("openrlhf.DPOLoss", openrlhf_dpo),
    GOLDEN_ADAPTER("torchtune.DPOLoss", torchtune_dpo),
    GOLDEN_ADAPTER("nemo_rl.DPOLossFn", nemo_dpo),
    GOLDEN_ADAPTER("liger.fused_linear_dpo", liger_dpo),
};

}  // namespace

std::span<const adapter> preference_adapters() { return adapters; }

}  // namespace golden
