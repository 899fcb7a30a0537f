#pragma once

#include "rlhf/kl/kl_estimator.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline v1 {

/// Which token of a sequence receives its score. A sequence without a counted token receives none.
enum class score_position : unsigned char {
  last_valid,   ///< the last counted token, behind every hole: where the answer ends
  after_last,   ///< the slot behind it where the row has one, else last_valid (TRL PPO)
  last_token,   ///< the last token of the layout, masked or not (slime)
  last_column,  ///< the last slot of the row, padding or not (lm-human-preferences)
  by_index      ///< score_index, one column per sequence (torchtune)
};

template <scalar T, class Space = host_space>
struct kl_penalty_batch {
  named_only use_designators = named_only();
  view<const T, Space> log_prob = {};  ///< of the policy that sampled
  view<const T, Space> ref_log_prob = {};
  signal<const T, Space> score = {};   ///< per sequence, placed; or per token, added where it is
  index_view<Space> score_index = {};  ///< column of the score, exactly with by_index
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct kl_penalty_output {
  named_only use_designators = named_only();
  output<T, Space> reward = {};  ///< score − coefficient · kl
  output<T, Space> kl = {};      ///< the estimate of each token, nats
};

struct kl_penalty_config {
  rlhf::coefficient coefficient = 0.05;  ///< beta, >= 0
  kl_estimator estimator = kl_estimator::k1;
  score_position score_at = score_position::last_valid;
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct kl_penalty_result {
  metric kl;                ///< nats per token
  metric kl_per_sequence;   ///< mean over sequences of the sum over tokens
  metric non_score_reward;  ///< −coefficient · (sum of kl), per sequence
  metric score;             ///< per sequence, of those that received one
  metric total;             ///< sum of the reward, per sequence
  double unplaced = 0;      ///< scores without a place: no counted token, or an index out of range
  double tokens = 0;
  double positions = 0;
  double sequences = 0;
  double nonfinite = 0;  ///< counted tokens with a NaN or an infinity; a score counts at each token

  friend kl_penalty_result operator+(const kl_penalty_result& a, const kl_penalty_result& b) {
    kl_penalty_result r;
    r.kl = a.kl + b.kl;
    r.kl_per_sequence = a.kl_per_sequence + b.kl_per_sequence;
    r.non_score_reward = a.non_score_reward + b.non_score_reward;
    r.score = a.score + b.score;
    r.total = a.total + b.total;
    r.unplaced = a.unplaced + b.unplaced;
    r.tokens = a.tokens + b.tokens;
    r.positions = a.positions + b.positions;
    r.sequences = a.sequences + b.sequences;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

template <scalar T>
struct kl_penalty_kernel {
  using scalar_type = T;
  enum input { log_prob, ref_log_prob, score };
  static constexpr int inputs = 3, observed = 3;
  enum out { reward, kl_out };
  static constexpr int outputs = 2;
  static constexpr int scales = 0;
  // The sums of rewards take no weight: a reward is a reward, however much its token weighs.
  enum sum { non_score, kl_sum, score_sum, kl };
  static constexpr int scaled_sums = 3, sums = 4, ranges = 0;

  const T* coefficient;  // in the executor's memory
  kl_estimator estimator;
  bool token_score;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V zero = math::constant<V>(0);
    const V delta = t.in[log_prob] - t.in[ref_log_prob];
    const V k = formula::kl_estimate(delta, zero, estimator, kl_weighting::plain, T(0), T(0)).value;
    const V penalty = -(math::constant<V>(*coefficient) * k);
    const V given = token_score ? t.in[score] : zero;
    t.out[reward] = penalty + given;
    t.out[kl_out] = k;
    t.sum[non_score] = penalty;
    t.sum[kl_sum] = k;
    t.sum[score_sum] = given;
    t.sum[kl] = k;
  }
};

template <scalar T>
struct store_coefficient {
  double number;
  const double* device;
  T* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    *to = static_cast<T>(device != nullptr ? *device : number);
  }
};

inline constexpr const char* index_range = "a column of its row";

/// Puts the score of row i where it belongs: placed[i], value[i] say whether, and what; wrong[i]
/// whether its score_index is no column of the row: on a stream nobody could refuse it earlier.
template <scalar T, class Space>
struct place_score {
  token_domain<Space> domain;
  token_input<T> score;
  index_view<Space> score_index;
  score_position at;
  token_output<T> reward;
  double* placed;
  double* value;
  double* wrong = nullptr;

  RLHF_HOST_DEVICE void operator()(index i) const {
    const index valid = domain.valid_length(i);
    const index slots = domain.slots(i);
    index j = valid - 1;
    switch (at) {
      case score_position::last_valid:
        break;
      case score_position::after_last:
        j = valid < slots ? valid : j;
        break;
      case score_position::last_token:
        j = domain.length(i) - 1;
        break;
      case score_position::last_column:
        j = slots - 1;
        break;
      case score_position::by_index:
        j = score_index[i];
        break;
    }
    const bool inside = j >= 0 && j<slots, fits = valid> 0 && inside;
    if (wrong != nullptr) wrong[i] = inside ? 0 : 1;
    placed[i] = fits ? 1 : 0;
    value[i] = 0;
    if (!fits) return;
    const T s = score.data[i * score.per_row];
    value[i] = static_cast<double>(s);
    if (reward.data == nullptr) return;
    reward.data[i * reward.per_row + domain.begin(i) * reward.per_begin + j * reward.stride] += s;
  }
};

/// The last figures: rows that received a score, and the sum of those scores.
struct add_placed {
  const double* placed;
  const double* value;
  index rows;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    to[0] = to[1] = 0;
    for (index i = 0; i < rows; ++i) to[0] += placed[i], to[1] += value[i];
    to[2] = static_cast<double>(rows) - to[0];
  }
};

/// The same for scores per token: every sequence with a counted token has its own.
struct no_placed {
  const double* sequences;  // null: no score at all
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    to[0] = sequences != nullptr ? *sequences : 0;
    to[1] = to[2] = 0;
  }
};

template <scalar T>
kl_penalty_result read_kl_penalty(const double* figures) {
  using K = kl_penalty_kernel<T>;
  const double* const sum = figures + token_counts::size;
  const double* const placed = sum + sums_of<K>::size;
  kl_penalty_result r;
  r.tokens = figures[0];
  r.positions = figures[1];
  r.sequences = figures[2];
  r.kl = {sum[K::kl], r.tokens};
  r.kl_per_sequence = {sum[K::kl_sum], r.sequences};
  r.non_score_reward = {sum[K::non_score], r.sequences};
  r.score = {sum[K::score_sum] + placed[1], placed[0]};
  r.total = {sum[K::non_score] + r.score.sum, r.sequences};
  r.unplaced = placed[2];
  r.nonfinite = sum[sums_of<K>::nonfinite];
  return r;
}

}  // namespace detail

/// The reward of KL-regularised RLHF: the score of the reward model at one token of the answer, and
/// a penalty for leaving the reference at every token.
///
///     reward = −coefficient · k(log_prob − ref_log_prob), + score where score_at says
///
/// With k1 (the default) and a return that sums what follows, it has the gradient of
/// KL(policy || ref), unbiased. k2, k3 and absolute drop a term in the reward and are biased there;
/// they are for peers that use them, or for a KL that is only logged.
///
/// Shapes    log_prob, ref_log_prob, mask, reward, kl: [batch, time], padded or packed; score:
///           [batch], or per token; score_index: [batch]
/// Units     log-probabilities in nats; score and reward: the unit of the score
/// Requires  one shape; coefficient >= 0; score_index exactly with score_position::by_index, each
///           within its row (columns of a padded row, tokens of a packed one)
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none: a reward is a constant for differentiation
/// Edges     masked positions are not read and get reward 0, or the score where it falls on one;
///           holes: last_valid is the last counted token, behind every hole; a sequence without a
///           counted token gets reward 0 everywhere and its score is counted in unplaced; NaN in a
///           counted token or score reaches the reward, unless .nonfinite drops it
/// Numerics  k1 is one subtraction; k3 <= 4 ULP; sums: fixed tree, in double
/// Cost      mask read twice, then one pass: 2 reads and 1 write per token, and one write per
///           sequence; host: no allocation with a workspace
/// Source    Ziegler et al. 2019, arXiv:1909.08593, eq. 2; Stiennon et al. 2020, arXiv:2009.01325
/// Elsewhere TRL PPO, verl apply_kl_penalty and compute_rewards, OpenRLHF compute_reward,
///           torchtune get_rewards_ppo, lm-human-preferences compute_rewards
/// Example   examples/ppo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, kl_penalty_result> kl_penalty(
    const kl_penalty_batch<T, space_of<Exec>>& batch,
    const kl_penalty_output<T, space_of<Exec>>& output,
    const kl_penalty_config& config = detail::no_config<T, kl_penalty_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using K = detail::kl_penalty_kernel<T>;
  const char* const function = "kl_penalty";
  token_binder<Space> bind(function, "log_prob", batch.log_prob, batch.layout, batch.mask);
  const auto& domain = bind.domain();
  const auto log_prob = bind.token("log_prob", batch.log_prob);
  const auto ref = bind.token("ref_log_prob", batch.ref_log_prob);
  const auto score = bind.either("score", batch.score, T(0));
  const auto reward = bind.written("reward", output.reward);
  const auto kl = bind.written("kl", output.kl);
  const bool per_sequence =
      batch.score && (batch.score.one_per_sequence ||
                      (batch.score.rank() == 1 && domain.kind != arrangement::packed));
  const bool by_index = config.score_at == score_position::by_index;
  if (by_index) {
    bind.row_ids("score_index", batch.score_index);
    if (!per_sequence) bind.unused("score_index", true);
    if constexpr (std::same_as<Space, host_space>)
      for (index i = 0; i < domain.rows; ++i)
        if (batch.score_index[i] < 0 || batch.score_index[i] >= domain.slots(i)) [[unlikely]]
          detail::fail(function, "score_index", detail::index_range, batch.score_index[i]);
  } else {
    bind.unused("score_index", bool(batch.score_index));
  }
  detail::check_coefficient(function, "coefficient", config.coefficient);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size + 3);
  T* const beta = run.template allocate<T>(1);
  double* const placed = run.template allocate<double>(domain.rows);
  double* const value = run.template allocate<double>(domain.rows);
  run.count(domain, figures);
  const token_input<T> observed[] = {log_prob, ref, score};
  const auto screened = screen_nonfinite<T>(run, domain, observed, config.nonfinite);
  run.for_each(
      1, detail::store_coefficient<T>{config.coefficient.value, config.coefficient.device, beta});
  token_arguments<K, Space> a;
  a.domain = screened.domain;
  a.in[K::log_prob] = log_prob;
  a.in[K::ref_log_prob] = ref;
  a.in[K::score] = score;
  a.out[K::reward] = reward;
  a.out[K::kl_out] = kl;
  double* const sums = figures + token_counts::size;
  double* const tail = sums + sums_of<K>::size;
  run.map_reduce(K{beta, config.estimator, batch.score && !per_sequence}, a, sums);
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, sums + sums_of<K>::nonfinite});
  if (per_sequence) {
    detail::place_score<T, Space> place{
        screened.domain, score, batch.score_index, config.score_at, reward, placed, value};
    if constexpr (!std::same_as<Space, host_space>)
      if (by_index) place.wrong = run.template allocate<double>(domain.rows + 1);
    run.for_each(domain.rows, place);
    if (double* const wrong = place.wrong; wrong != nullptr) {
      run.for_each(1, detail::add_rows{wrong, domain.rows, wrong + domain.rows});
      run.refuse(wrong + domain.rows, "score_index", detail::index_range);
    }
    run.for_each(1, detail::add_placed{placed, value, domain.rows, tail});
  } else {
    const bool given = bool(batch.score);
    run.for_each(1, detail::no_placed{given ? figures + 2 : nullptr, tail});
  }
  return run.template finish<kl_penalty_result>(figures, &detail::read_kl_penalty<T>);
}

}  // namespace rlhf::inline RLHF_COMPUTE
