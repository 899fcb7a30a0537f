#pragma once

#include "rlhf/math/dual.hpp"
#include "rlhf/primitive/map_reduce.hpp"
#include "rlhf/statistics/aggregation.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"
#include "rlhf/statistics/nonfinite.hpp"
#include "rlhf/statistics/row.hpp"

namespace rlhf::inline v1 {

/// The inputs of a loss over pairs, one number per pair. A score is whatever the formula compares:
/// a reward, or the log-probability of a whole answer.
template <scalar T, class Space = host_space>
struct pair_batch {
  named_only use_designators = named_only();
  view<const T, Space> chosen_score = {};      ///< differentiable
  view<const T, Space> rejected_score = {};    ///< differentiable
  view<const T, Space> ref_chosen_score = {};  ///< for a formula that uses a reference
  view<const T, Space> ref_rejected_score = {};
  view<const T, Space> margin = {};  ///< left out: 0
  view<const T, Space> target = {};  ///< P(chosen is better); left out: 1
  mask_view<Space> weight = {};      ///< a flag, or a weight >= 0; 0 = ignored
};

/// What a loss over pairs writes, where given.
template <scalar T, class Space = host_space>
struct pair_output {
  named_only use_designators = named_only();
  output<T, Space> d_chosen_score = {};  ///< gradient of the loss
  output<T, Space> d_rejected_score = {};
  output<T, Space> pair_loss = {};         ///< of each pair, unweighted
  upstream_scale<T, Space> upstream = {};  ///< a number, a device_scalar, or one number per pair
};

struct pair_config {
  reduction over;  ///< no default: the caller says what divides the loss
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

/// What every loss over pairs returns. Results of micro-batches and ranks add up.
struct pair_result {
  double loss = 0;       ///< the scalar whose gradients are written
  metric accuracy = {};  ///< share of pairs with chosen_reward > rejected_reward; a tie is wrong
  metric ties = {};      ///< share of pairs with equal rewards
  metric margin = {};    ///< chosen_reward − rejected_reward
  metric chosen_reward = {};  ///< what the formula calls the reward of the chosen answer
  metric rejected_reward = {};
  metric chosen_score = {};  ///< the inputs themselves
  metric rejected_score = {};
  double reward_min = __builtin_inf();  ///< over both answers of all pairs
  double reward_max = -__builtin_inf();
  double pairs = 0;      ///< sum of the weights
  double positions = 0;  ///< pairs whose weight is > 0
  double nonfinite = 0;  ///< counted pairs with a NaN or an infinity among their inputs

  friend pair_result operator+(const pair_result& a, const pair_result& b) {
    pair_result r;
    r.loss = a.loss + b.loss;
    r.accuracy = a.accuracy + b.accuracy;
    r.ties = a.ties + b.ties;
    r.margin = a.margin + b.margin;
    r.chosen_reward = a.chosen_reward + b.chosen_reward;
    r.rejected_reward = a.rejected_reward + b.rejected_reward;
    r.chosen_score = a.chosen_score + b.chosen_score;
    r.rejected_score = a.rejected_score + b.rejected_score;
    r.reward_min = a.reward_min < b.reward_min ? a.reward_min : b.reward_min;
    r.reward_max = a.reward_max > b.reward_max ? a.reward_max : b.reward_max;
    r.pairs = a.pairs + b.pairs;
    r.positions = a.positions + b.positions;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

inline namespace RLHF_CHECKS {

/// Turns rank-1 views of one length into a domain of one row, with every check of shape, memory and
/// overlap: the pair counterpart of token_binder. A batch of pairs may be eight numbers long, so
/// tensors without gaps take a short way through the checks.
template <class Space>
class pair_binder {
  struct named_range {
    const char* name;
    detail::byte_range bytes;
    bool written;
  };

  static constexpr int most_tensors = 16;

  const char* function_;
  index pairs_;
  token_domain<Space> domain_;
  named_range seen_[most_tensors];
  int seen_count_ = 0;
  bool any_written_ = false;

  template <class V>
  void match(const char* name, const V& v) const {
    if (v.rank() != 1 || v.size(0) != pairs_) [[unlikely]]
      detail::fail_shape(function_, name, shape(pairs_), v.shape());
  }
  RLHF_NOINLINE void fail_overlap(const char* name, const char* other) const {
    detail::sentence s;
    s.add("memory that overlaps ").add(other);
    detail::fail(function_, name, "memory of its own", s.c_str());
  }
  void note(const char* name, const detail::byte_range& bytes, bool written) {
    note(name, bytes.begin, bytes.end, written, bytes.pitch, bytes.width);
  }
  /// Numbers instead of a range: they stay in registers.
  void note(const char* name, std::uintptr_t begin, std::uintptr_t end, bool written,
            std::uintptr_t pitch, std::uintptr_t width) {
    any_written_ = any_written_ || written;
    for (int k = any_written_ ? 0 : seen_count_; k < seen_count_; ++k)
      if ((written || seen_[k].written) && begin < seen_[k].bytes.end &&
          seen_[k].bytes.begin < end && detail::overlap({begin, end, pitch, width}, seen_[k].bytes))
          [[unlikely]]
        fail_overlap(name, seen_[k].name);
    if (seen_count_ < most_tensors)
      seen_[seen_count_++] = {name, {begin, end, pitch, width}, written};
  }
  /// Checks the memory of a tensor of the right shape.
  template <class T>
  void note_memory(const char* name, const view<T, Space>& v, bool written) {
    const auto at = reinterpret_cast<std::uintptr_t>(v.data());
    if (v.stride(0) == 1 && at != 0 && at % alignof(T) == 0 && pairs_ > 0) [[likely]] {
      const std::uintptr_t bytes = static_cast<std::uintptr_t>(pairs_) * sizeof(T);
      note(name, at, at + bytes, written, 0, bytes);
    } else {
      note_any_memory(name, v, written);
    }
  }
  template <class T>
  RLHF_NOINLINE void note_any_memory(const char* name, const view<T, Space>& v, bool written) {
    detail::check_memory(function_, name, v);
    if (written) detail::check_distinct(function_, name, v);
    note(name, detail::bytes_of(v), written);
  }
  RLHF_NOINLINE void bind_weight(const mask_view<Space>& weight) {
    static constexpr token_field_names names{.mask = "weight"};
    match("weight", weight);
    detail::check_indices(function_, "weight", weight);
    domain_.mask = detail::as_row(weight);
    domain_.names = &names;
    if constexpr (std::same_as<Space, host_space>) {
      if (weight.kind() == mask_kind::flag) return;
      for (index i = 0; i < pairs_; ++i) {
        const double w = weight.at(i * weight.stride(0));
        if (!detail::is_weight(w)) [[unlikely]]
          detail::fail(function_, "weight", detail::weight_range, w);
      }
    }
  }

 public:
  /// `first` is the tensor whose length all others share.
  template <class T>
  pair_binder(const char* function, const char* name, const view<T, Space>& first,
              const mask_view<Space>& weight)
      : function_(function), pairs_(first.size(0)) {
    if (!first) [[unlikely]]
      detail::fail(function, name, "a tensor: this input is required", "none");
    if (first.rank() != 1) [[unlikely]]
      detail::fail_shape(function, name, "rank 1, one number per pair", first.shape());
    if (pairs_ < 0) [[unlikely]]
      detail::check_memory(function, name, first);
    domain_.rows = 1;
    domain_.columns = pairs_;
    if (weight) bind_weight(weight);
  }

  const token_domain<Space>& domain() const { return domain_; }
  const char* function() const { return function_; }

  template <class T>
  token_input<T> pair(const char* name, const view<const T, Space>& v) {
    if (!v) [[unlikely]]
      detail::fail(function_, name, "a tensor: this input is required", "none");
    match(name, v);
    note_memory(name, v, false);
    return {v.data(), 0, 0, v.stride(0), T(0)};
  }
  template <class T>
  token_input<T> pair(const char* name, const view<const T, Space>& v, T absent) {
    if (v) return pair(name, v);
    token_input<T> none;
    none.absent = absent;
    return none;
  }
  template <class T>
  token_output<T> written(const char* name, const output<T, Space>& v) {
    if (!v) return {};
    match(name, v);
    note_memory(name, static_cast<const view<T, Space>&>(v), true);
    return {v.data(), 0, 0, v.stride(0), v.accumulate};
  }
  /// The tensor of .upstream, if it is one.
  template <class T>
  token_input<T> upstream(const upstream_scale<T, Space>& scale) {
    detail::check_address(function_, "upstream", scale.device);
    return pair("upstream", static_cast<const view<const T, Space>&>(scale), T(1));
  }
  /// Fills the upstream fields of pair_arguments.
  template <class Pairs, class T>
  void upstream(Pairs& pairs, const upstream_scale<T, Space>& scale) {
    pairs.upstream = upstream(scale);
    pairs.upstream_number = scale || scale.device != nullptr ? 1 : scale.number;
    pairs.upstream_at = scale.device;
  }
  /// A field this call has no use for must not be given.
  void unused(const char* name, bool given) const {
    if (given) [[unlikely]]
      detail::fail(function_, name, "to be left out: this call does not use it", "one");
  }
  /// Memory of a tensor that is bound elsewhere; what is written must not overlap it.
  void occupy(const char* name, const detail::byte_range& bytes, bool is_written) {
    note(name, bytes, is_written);
  }
};

}  // namespace RLHF_CHECKS

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

/// One lane of pairs as a formula sees it.
template <lane V>
struct scored_pair {
  V chosen;
  V rejected;
  V ref_chosen;
  V ref_rejected;
  V margin;
  V target;
};

/// What a formula says of them.
template <lane V>
struct pair_terms {
  V loss;
  V d_chosen;
  V d_rejected;
  V chosen_reward;  ///< what accuracy and margin compare
  V rejected_reward;
};

/// A loss over pairs, bound: what the kernel reads and writes. The tensors may be the caller's or
/// scratch memory of the run.
template <class T, class Space>
struct pair_arguments {
  token_domain<Space> domain = {};  ///< one row
  token_input<T> chosen = {}, rejected = {};
  token_input<T> ref_chosen = {}, ref_rejected = {};
  token_input<T> margin = {};
  token_input<T> target = {nullptr, 0, 0, 0, T(1)};
  token_input<T> upstream = {nullptr, 0, 0, 0, T(1)};
  token_output<T> d_chosen = {}, d_rejected = {}, pair_loss = {};
  double upstream_number = 1;
  const double* upstream_at = nullptr;  ///< in the executor's memory
};

namespace detail {

template <class Term>
constexpr bool uses_reference() {
  if constexpr (requires { Term::uses_reference; })
    return Term::uses_reference;
  else
    return false;
}

/// Whether a formula reads the target; one that does not saves an input.
template <class Term>
constexpr bool uses_target() {
  if constexpr (requires { Term::uses_target; })
    return Term::uses_target;
  else
    return true;
}

/// Whether the rewards of a formula are its scores, so that they need not be summed twice.
template <class Term>
constexpr bool rewards_are_scores() {
  if constexpr (requires { Term::rewards_are_scores; })
    return Term::rewards_are_scores;
  else
    return false;
}

/// The formula, and its slopes: written out, or, when it returns the loss alone, from dual numbers.
template <class Term, lane V>
RLHF_HOST_DEVICE RLHF_INLINE pair_terms<V> evaluate_pair(const Term& term,
                                                         const scored_pair<V>& p) {
  if constexpr (std::same_as<std::remove_cv_t<decltype(term(p))>, V>) {
    using D = math::dual<V>;
    const V one = math::constant<V>(1), zero = math::constant<V>(0);
    const D ref_chosen{p.ref_chosen, zero}, ref_rejected{p.ref_rejected, zero};
    const D margin{p.margin, zero}, target{p.target, zero};
    if constexpr (math::detail::is_returned<D, decltype(term(scored_pair<D>{}))>()) {
      const D by_chosen = term(scored_pair<D>{D{p.chosen, one}, D{p.rejected, zero}, ref_chosen,
                                              ref_rejected, margin, target});
      const D by_rejected = term(scored_pair<D>{D{p.chosen, zero}, D{p.rejected, one}, ref_chosen,
                                                ref_rejected, margin, target});
      return {.loss = by_chosen.value,
              .d_chosen = by_chosen.tangent,
              .d_rejected = by_rejected.tangent,
              .chosen_reward = p.chosen - p.ref_chosen,
              .rejected_reward = p.rejected - p.ref_rejected};
    }
  } else if constexpr (math::detail::is_returned<pair_terms<V>, decltype(term(p))>()) {
    return term(p);
  }
}

template <scalar T, class Term>
struct pair_kernel {
  using scalar_type = T;
  static constexpr bool with_reference = uses_reference<Term>();

  enum input { chosen, rejected, ref_chosen, ref_rejected };
  static constexpr bool with_target = uses_target<Term>();
  static constexpr int margin_in = with_reference ? 4 : 2;
  static constexpr int target_in = margin_in + (with_target ? 1 : 0);
  static constexpr int upstream_in = target_in + 1;
  static constexpr int inputs = upstream_in + 1;
  static constexpr int observed = upstream_in;
  enum out { d_chosen, d_rejected, pair_loss };
  static constexpr int outputs = 3;
  enum factor { loss, gradient };
  static constexpr int scales = 2;
  static constexpr int scaled_sums = 1;
  static constexpr bool plain = rewards_are_scores<Term>();
  enum metric_sum {
    accuracy = 1,
    ties,
    margin,
    chosen_reward,
    rejected_reward,
    chosen_score,
    rejected_score
  };
  static constexpr int sums = plain ? chosen_score : rejected_score + 1;
  static constexpr int ranges = 2;

  Term term;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V zero = math::constant<V>(0);
    const V one = math::constant<V>(1);
    const scored_pair<V> pair{t.in[chosen],
                              t.in[rejected],
                              with_reference ? t.in[with_reference ? ref_chosen : 0] : zero,
                              with_reference ? t.in[with_reference ? ref_rejected : 0] : zero,
                              t.in[margin_in],
                              with_target ? t.in[target_in] : one};
    const pair_terms<V> terms = evaluate_pair(term, pair);
    const V slope = t.scale[gradient] * t.in[upstream_in];
    t.out[d_chosen] = terms.d_chosen * slope;
    t.out[d_rejected] = terms.d_rejected * slope;
    t.out[pair_loss] = terms.loss;
    t.sum[0] = terms.loss * t.scale[loss];
    t.sum[accuracy] = math::select(terms.chosen_reward > terms.rejected_reward, one, zero);
    t.sum[ties] = math::select(terms.chosen_reward == terms.rejected_reward, one, zero);
    t.sum[margin] = terms.chosen_reward - terms.rejected_reward;
    t.sum[chosen_reward] = terms.chosen_reward;
    t.sum[rejected_reward] = terms.rejected_reward;
    if constexpr (!plain) {
      t.sum[chosen_score] = pair.chosen;
      t.sum[rejected_score] = pair.rejected;
    }
    t.range[0] = terms.chosen_reward;
    t.range[1] = terms.rejected_reward;
  }

  static pair_result read(const double* figures) {
    const double* const sum = figures + token_counts::size;
    using at = sums_of<pair_kernel>;
    pair_result r;
    r.pairs = figures[0];
    r.positions = figures[1];
    r.loss = sum[0];
    r.accuracy = {sum[accuracy], r.pairs};
    r.ties = {sum[ties], r.pairs};
    r.margin = {sum[margin], r.pairs};
    r.chosen_reward = {sum[chosen_reward], r.pairs};
    r.rejected_reward = {sum[rejected_reward], r.pairs};
    r.chosen_score = {sum[plain ? chosen_reward : chosen_score], r.pairs};
    r.rejected_score = {sum[plain ? rejected_reward : rejected_score], r.pairs};
    const double* const low = sum + at::low;
    const double* const high = sum + at::high;
    r.reward_min = low[0] < low[1] ? low[0] : low[1];
    r.reward_max = high[0] > high[1] ? high[0] : high[1];
    r.nonfinite = sum[at::nonfinite];
    return r;
  }
};

}  // namespace detail

/// The middle of a loss over pairs, for algorithms that bind their tensors themselves: weights,
/// screen, factors, one pass. Returns figures in the executor's memory; finish the run with
///
///     run.template finish<my_result>(figures, &my_read);   // my_read calls read_pairs<T, Term>
template <class T, class Run, class Term, class Space>
const double* reduce_pairs(Run& run, const Term& term, const pair_arguments<T, Space>& pairs,
                           const pair_config& config) {
  using K = detail::pair_kernel<T, Term>;
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size);
  run.count(pairs.domain, figures);
  detail::check_count(run, config.over.by(), figures);
  const token_input<T> observed[] = {pairs.chosen,       pairs.rejected, pairs.ref_chosen,
                                     pairs.ref_rejected, pairs.margin,   pairs.target};
  const auto screened = screen_nonfinite<T>(run, pairs.domain, observed, config.nonfinite);
  const normaliser& by = config.over.by();
  const double* const counted = by.is_local() ? figures : nullptr;
  quotient share{.count = by.value(), .counted = counted != nullptr ? counted : by.device()};

  token_arguments<K, Space> a;
  a.domain = screened.domain;
  a.in[K::chosen] = pairs.chosen;
  a.in[K::rejected] = pairs.rejected;
  if constexpr (K::with_reference) {
    a.in[K::ref_chosen] = pairs.ref_chosen;
    a.in[K::ref_rejected] = pairs.ref_rejected;
  }
  a.in[K::margin_in] = pairs.margin;
  if constexpr (K::with_target) a.in[K::target_in] = pairs.target;
  a.in[K::upstream_in] = pairs.upstream;
  a.out[K::d_chosen] = pairs.d_chosen;
  a.out[K::d_rejected] = pairs.d_rejected;
  a.out[K::pair_loss] = pairs.pair_loss;
  a.scale[K::loss] = run.scale(share);
  share.upstream = pairs.upstream_number;
  share.upstream_at = pairs.upstream_at;
  a.scale[K::gradient] = run.scale(share);
  double* const sums = figures + token_counts::size;
  run.map_reduce(K{term}, a, sums);
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, sums + sums_of<K>::nonfinite});
  return figures;
}

/// What reduce_pairs left in `figures`.
template <class T, class Term>
pair_result read_pairs(const double* figures) {
  return detail::pair_kernel<T, Term>::read(figures);
}

/// A loss over pairs of your own: a formula and this call. The formula is a copyable struct
///
///     struct hinge {
///       template <rlhf::lane V>
///       RLHF_HOST_DEVICE V operator()(const rlhf::scored_pair<V>& p) const {
///         const V zero = rlhf::math::constant<V>(0);
///         return (rlhf::math::max)(p.margin - (p.chosen - p.rejected), zero);
///       }
///     };
///
/// that returns the loss of one pair, or pair_terms<V> with its slopes written out. Where it
/// returns the loss alone, dual numbers give the slopes, and the rewards are score − ref score. A
/// formula that reads ref_chosen and ref_rejected says `static constexpr bool uses_reference =
/// true`; one whose rewards are its scores may save two sums by `rewards_are_scores = true`, and one
/// that does not read the target an input by `uses_target = false`.
///
/// Shapes    every tensor: [pairs], any stride
/// Units     weight: a flag, or a weight >= 0; 0 = the pair is ignored
/// Requires  one length; the reference exactly when the formula uses one
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  d_score = w · d formula · upstream, w = weight / over; all but the two scores are
///           constants
/// Edges     ignored pairs are not read and get gradient +0; no pair gives loss 0; a NaN or inf in
///           a counted pair does what .nonfinite says and is counted
/// Numerics  sums: fixed tree, in double
/// Cost      weights read once for their sum, then one pass; host: no allocation with a workspace
/// Source    the composition is ours; see the losses built on it
template <scalar T, class Term, executor Exec = serial>
result_of<Exec, pair_result> pair_loss(
    const Term& term, const pair_batch<T, space_of<Exec>>& batch,
    const pair_output<T, space_of<Exec>>& output,
    const pair_config& config = detail::no_config<T, pair_config>::value, const Exec& exec = {},
    const char* function = "pair_loss") {
  using Space = space_of<Exec>;
  pair_binder<Space> bind(function, "chosen_score", batch.chosen_score, batch.weight);
  pair_arguments<T, Space> pairs;
  pairs.chosen = bind.pair("chosen_score", batch.chosen_score);
  pairs.rejected = bind.pair("rejected_score", batch.rejected_score);
  if constexpr (detail::uses_reference<Term>()) {
    pairs.ref_chosen = bind.pair("ref_chosen_score", batch.ref_chosen_score);
    pairs.ref_rejected = bind.pair("ref_rejected_score", batch.ref_rejected_score);
  } else {
    bind.unused("ref_chosen_score", bool(batch.ref_chosen_score));
    bind.unused("ref_rejected_score", bool(batch.ref_rejected_score));
  }
  pairs.margin = bind.pair("margin", batch.margin, T(0));
  pairs.target = bind.pair("target", batch.target, T(1));
  bind.upstream(pairs, output.upstream);
  pairs.d_chosen = bind.written("d_chosen_score", output.d_chosen_score);
  pairs.d_rejected = bind.written("d_rejected_score", output.d_rejected_score);
  pairs.pair_loss = bind.written("pair_loss", output.pair_loss);
  pairs.domain = bind.domain();
  detail::check_normaliser(function, config.over.by());

  auto run = exec.begin(function);
  const double* const figures = reduce_pairs<T>(run, term, pairs, config);
  return run.template finish<pair_result>(figures, &read_pairs<T, Term>);
}

}  // namespace rlhf::inline RLHF_COMPUTE
