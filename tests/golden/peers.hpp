#pragma once

// Habits of the sources that several adapters share.

#include <algorithm>

#include "rlhf/statistics/aggregation.hpp"
#include "rlhf/statistics/metric.hpp"
#include "tests/golden/golden.hpp"

namespace golden {

/// verl, OpenRLHF and torchtune divide by (count + 1e-8). The library divides by the count, so
/// where their numbers are compared the adapter puts the difference back.
inline constexpr double small_count = 1e-8;

inline double mean_with_epsilon(const rlhf::metric& m) { return m.sum / (m.count + small_count); }

/// An aggregation of a peer: the library's, times `scale`, and for each row times `row_factor`.
struct peer_aggregation {
  rlhf::aggregation over;
  double scale = 1;
  std::optional<array> row_factor = std::nullopt;

  /// The coefficient of the policy term that carries row_factor beside a peer's own weights.
  std::optional<array> coefficient(const std::optional<array>& own, index columns) const {
    if (!row_factor) return own;
    const array rows = spread(*row_factor, columns);
    return own ? rows * *own : rows;
  }
};

inline array with_epsilon(const array& mask) {
  return map([](double n) { return n / (n + small_count); }, row_sums(mask));
}

inline rlhf::normaliser count_or_local(const std::map<std::string, double>& info,
                                       const std::string& name) {
  const auto at = info.find(name);
  if (at == info.end()) return rlhf::local;
  return at->second;
}

/// verl's agg_loss. Its seq-mean-token-mean divides each row by (n + 1e-8).
inline peer_aggregation verl_aggregation(const std::string& mode,
                                         const std::map<std::string, double>& info,
                                         const array& mask) {
  for (const auto& [name, value] : info)
    if (name != "dp_size" && name != "batch_num_tokens" && name != "global_batch_size" &&
        name != "loss_scale_factor")
      unknown_value("global_batch_info", name);
  using rlhf::aggregation;
  const auto dp = info.find("dp_size");
  const double scale = dp == info.end() ? 1 : dp->second;
  const auto tokens = count_or_local(info, "batch_num_tokens");
  const auto sequences = count_or_local(info, "global_batch_size");
  if (mode == "token-mean") return {aggregation::token_mean(tokens), scale};
  if (mode == "token-sum") return {aggregation::token_sum(), scale};
  if (mode == "seq-mean-token-sum") return {aggregation::sequence_mean_token_sum(sequences), scale};
  if (mode == "seq-mean-token-sum-norm") {
    const auto horizon = info.find("loss_scale_factor");
    const double h = horizon == info.end() ? static_cast<double>(mask.columns()) : horizon->second;
    return {aggregation::sequence_mean_token_sum_norm(sequences, h), scale};
  }
  if (mode == "seq-mean-token-mean")
    return {aggregation::sequence_mean_token_mean(sequences), scale, with_epsilon(mask)};
  unknown_value("loss_agg_mode", mode);
}

/// The scattered params of verl's agg_loss as one table.
inline std::map<std::string, double> verl_batch_info(const request& c) {
  std::map<std::string, double> info;
  for (const char* name : {"dp_size", "batch_num_tokens", "global_batch_size", "loss_scale_factor"})
    if (const auto value = c.maybe(name)) info[name] = *value;
  return info;
}

/// OpenRLHF: a mean over tokens, or over sequences of means that divide by (n + 1e-8).
inline peer_aggregation openrlhf_aggregation(const request& c, bool token_level,
                                             const array& mask) {
  auto info = verl_batch_info(c);
  if (token_level && !info.contains("batch_num_tokens")) info.erase("dp_size");
  if (!token_level && !info.contains("global_batch_size")) info.erase("dp_size");
  return verl_aggregation(token_level ? "token-mean" : "seq-mean-token-mean", info, mask);
}

/// TRL counts all rows, and never divides by less than 1 token.
inline rlhf::aggregation trl_aggregation(const std::string& loss_type, const array& mask,
                                         double horizon, std::optional<double> items) {
  using rlhf::aggregation;
  const double rows = static_cast<double>(mask.rows());
  const double tokens = std::max(sum(mask), 1.0);
  if (loss_type == "grpo") return aggregation::sequence_mean_token_mean(rows);
  if (loss_type == "bnpo") return aggregation::token_mean(tokens);
  if (loss_type == "dr_grpo") return aggregation::sequence_mean_token_sum_norm(rows, horizon);
  if (loss_type == "dapo") return aggregation::token_mean(items.value_or(tokens));
  unknown_value("loss_type", loss_type);
}

/// Log-probs whose log-ratio some peers cut before they use it, with no gradient beyond.
struct cut_log_prob {
  array value;
  array inside;  // 1 where the gradient passes
};

inline cut_log_prob cut_log_ratio(const array& log_prob, const array& old_log_prob, double most) {
  cut_log_prob r{log_prob, ones_like(log_prob)};
  for (index i = 0; i < log_prob.size(); ++i) {
    const double d = log_prob[i] - old_log_prob[i];
    if (!(std::abs(d) > most)) continue;
    r.value[i] = old_log_prob[i] + (d > 0 ? most : -most);
    r.inside[i] = 0;
  }
  return r;
}

/// A gradient scaled from above by one number.
template <class T>
rlhf::upstream_scale<T> above(double scale) {
  rlhf::upstream_scale<T> u;
  u.number = scale;
  return u;
}

/// The largest |log ratio| over sums of a row, for the tolerance in float.
inline double largest_row_sum(const array& log_ratio, const array& mask) {
  return largest(row_sums(kept(log_ratio, mask)));
}

}  // namespace golden
