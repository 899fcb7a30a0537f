#include "rlhf/backend/host.hpp"
#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/token_log_prob.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "tests/golden/peers.hpp"

namespace golden {
namespace {

std::vector<index> without_classes(const array& logits) {
  return {logits.shape.begin(), logits.shape.end() - 1};
}

/// Log-probs of labels and, where the case has it, the gradient of their weighted sum.
template <class T>
void log_probs(const request& c, place<T>& on, answer& out, const char* label, const char* name) {
  const array& logits = c.input("logits");
  const array& labels = c.input(label);
  const rlhf::token_log_prob_config config{.temperature = c.number("temperature", 1)};
  const auto to = on.out(labels.shape);
  rlhf::token_log_prob<T>({.logits = on.in(logits), .label = on.integers(labels)},
                          {.log_prob = to.view}, config);
  out.put(name, to.read());
  if (!c.differentiated("logits")) return;
  const auto d = on.out(logits.shape);
  rlhf::token_log_prob_backward<T>({.logits = on.in(logits),
                                    .label = on.integers(labels),
                                    .d_log_prob = on.in(c.cotangent(name))},
                                   {.d_logits = d.view}, config);
  out.grad("logits", d.read());
}

template <class T>
void verl_log_probs(const request& c, place<T>& on, answer& out) {
  log_probs(c, on, out, "labels", "logprobs");
}
template <class T>
void trl_log_probs(const request& c, place<T>& on, answer& out) {
  log_probs(c, on, out, "index", "logps");
}
template <class T>
void openrlhf_log_probs(const request& c, place<T>& on, answer& out) {
  log_probs(c, on, out, "labels", "log_probs");
}

template <class T>
void entropy(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const auto to = on.out(without_classes(logits)), d = on.out(logits.shape);
  rlhf::token_log_prob<T>({.logits = on.in(logits)}, {.entropy = to.view});
  rlhf::token_log_prob_backward<T>(
      {.logits = on.in(logits), .d_entropy = on.in(c.cotangent("entropy"))}, {.d_logits = d.view});
  out.put("entropy", to.read());
  out.grad("logits", d.read());
}

/// The keep mask removes classes from the log-prob, never the sampled one, and none from the
/// entropy.
template <class T>
void slime_log_probs(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const array& labels = c.input("tokens");
  c.ignore({"chunk_size", "with_entropy_grad"});  // the cotangents say what takes part
  array kept_logits = logits;
  if (c.has("log_prob_keep_mask")) {
    const array& keep = c.input("log_prob_keep_mask");
    for (index i = 0; i < logits.rows(); ++i)
      for (index j = 0; j < logits.columns(); ++j)
        if (keep(i, j) == 0 && static_cast<index>(labels[i]) != j) kept_logits(i, j) = -infinity;
  }
  const auto log_prob = on.out(labels.shape), d = on.out(logits.shape);
  rlhf::token_log_prob<T>({.logits = on.in(kept_logits), .label = on.integers(labels)},
                          {.log_prob = log_prob.view});
  out.put("log_probs", log_prob.read());
  rlhf::token_log_prob_backward<T>(
      {.logits = on.in(kept_logits),
       .label = on.integers(labels),
       .d_log_prob = on.in(c.cotangent("log_probs").reshaped(labels.shape))},
      {.d_logits = d.view});
  if (c.flag("with_entropy", false)) {
    const auto to = on.out(labels.shape);
    rlhf::token_log_prob<T>({.logits = on.in(logits)}, {.entropy = to.view});
    out.put("entropy", to.read());
    rlhf::token_log_prob_backward<T>(
        {.logits = on.in(logits), .d_entropy = on.in(c.cotangent("entropy"))},
        {.d_logits = rlhf::add_to(rlhf::output<T>(d.view))});
  }
  out.grad("logits", d.read());
}

/// Logits of position t predict the label of t + 1.
struct shifted {
  array logits, labels;
};

shifted shift(const array& logits, const array& labels) {
  const index rows = logits.shape[0], time = logits.shape[1], classes = logits.shape[2];
  shifted s{array::filled({rows, time - 1, classes}, 0), labels.columns_of(1, time)};
  for (index i = 0; i < rows; ++i)
    for (index k = 0; k < (time - 1) * classes; ++k)
      s.logits[i * (time - 1) * classes + k] = logits[i * time * classes + k];
  return s;
}

/// Back to the full length; the last position has no gradient.
array unshift(const array& d, const array& like) {
  array full = zeros_like(like);
  const index rows = d.shape[0], n = d.size() / rows, all = like.size() / rows;
  for (index i = 0; i < rows; ++i)
    for (index k = 0; k < n; ++k) full[i * all + k] = d[i * n + k];
  return full;
}

template <class T>
void openrlhf_lm_loss(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const auto s = shift(logits, c.input("labels"));
  const auto d = on.out(s.logits.shape);
  const auto r = rlhf::cross_entropy_loss<T>(
      {.logits = on.in(s.logits), .label = on.integers(s.labels)}, {.d_logits = d.view},
      {.over = rlhf::aggregation::token_mean(rlhf::local)});
  out.put("loss", r.loss);
  out.grad("logits", unshift(d.read(), logits));
}

/// Sums or means over the labels that are not -100; the mean divides by (count + 1e-8).
template <class T>
void torchtune_log_probs(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const auto s = shift(logits, c.input("labels"));
  const array counted = map([](double label) { return label == -100 ? 0.0 : 1.0; }, s.labels);
  const array share = c.flag("return_average_logprobs", false)
                          ? map([](double n) { return 1 / (n + small_count); }, row_sums(counted))
                          : array::filled({s.labels.rows()}, 1);
  const auto to = on.out(s.labels.shape), d = on.out(s.logits.shape);
  rlhf::token_log_prob<T>({.logits = on.in(s.logits), .label = on.integers(s.labels)},
                          {.log_prob = to.view});
  rlhf::token_log_prob_backward<T>({.logits = on.in(s.logits),
                                    .label = on.integers(s.labels),
                                    .d_log_prob = on.in(c.cotangent("logps") * share)},
                                   {.d_logits = d.view});
  out.put("logps", row_sums(to.read()) * share);
  out.grad("logits", unshift(d.read(), logits));
}

/// The aggregated entropy, down to the logits.
template <class T>
void verl_entropy_loss(const request& c, place<T>& on, answer& out) {
  const array& logits = c.input("logits");
  const array& mask = c.input("response_mask");
  const auto agg = verl_aggregation(c.text("loss_agg_mode", "token-mean"), {}, mask);
  const auto to = on.out(mask.shape), d_entropy = on.out(mask.shape), d = on.out(logits.shape);
  rlhf::token_log_prob<T>({.logits = on.in(logits)}, {.entropy = to.view});
  const auto r = rlhf::reinforce_loss<T>({.log_prob = on.in(to.read()),
                                          .advantage = on.in(array::filled({mask.rows()}, -1)),
                                          .coefficient = on.in(agg.coefficient({}, mask.columns())),
                                          .mask = on.mask(mask)},
                                         {.d_log_prob = d_entropy.view}, {.over = agg.over});
  rlhf::token_log_prob_backward<T>({.logits = on.in(logits), .d_entropy = on.in(d_entropy.read())},
                                   {.d_logits = d.view});
  out.put("loss", r.loss);
  out.put("entropy", to.read());
  out.grad("logits", d.read());
}

constexpr adapter adapters[] = {
    GOLDEN_ADAPTER("verl.logprobs_from_logits", verl_log_probs),
    GOLDEN_ADAPTER("trl.selective_log_softmax", trl_log_probs),
    GOLDEN_ADAPTER("openrlhf.log_probs_from_logits", openrlhf_log_probs),
    GOLDEN_ADAPTER("trl.entropy_from_logits", entropy),
    GOLDEN_ADAPTER("openrlhf.compute_entropy", entropy),
    GOLDEN_ADAPTER("slime.calculate_log_probs_and_entropy", slime_log_probs),
    GOLDEN_ADAPTER("openrlhf.GPTLMLoss", openrlhf_lm_loss),
    GOLDEN_ADAPTER("torchtune.get_batch_log_probs", torchtune_log_probs),
    GOLDEN_ADAPTER("verl.compute_entropy_loss", verl_entropy_loss),
};

}  // namespace

std::span<const adapter> distribution_adapters() { return adapters; }

}  // namespace golden
