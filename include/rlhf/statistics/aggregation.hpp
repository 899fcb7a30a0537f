#pragma once

#include "rlhf/core/config.hpp"
#include "rlhf/primitive/count.hpp"
#include "rlhf/primitive/group_reduce.hpp"
#include "rlhf/primitive/map_reduce.hpp"
#include "rlhf/statistics/nonfinite.hpp"

namespace rlhf::inline v1 {

/// "Divide by what this call sees": right for one batch on one machine, wrong under gradient
/// accumulation or data parallelism, and therefore said by name.
struct local_normaliser {
  explicit constexpr local_normaliser() = default;
};
inline constexpr local_normaliser local{};

/// What divides a loss: a number of the whole optimiser step (any arithmetic type), a
/// device_scalar, or rlhf::local.
class normaliser {
  double value_ = 0;
  const double* device_ = nullptr;
  bool local_ = false;

 public:
  constexpr normaliser(local_normaliser) : local_(true) {}
  constexpr normaliser(device_scalar s) : device_(s.address()) {}
  template <class N>
    requires std::is_arithmetic_v<N>
  constexpr normaliser(N n) : value_(static_cast<double>(n)) {}

  constexpr bool is_local() const { return local_; }
  constexpr const double* device() const { return device_; }
  constexpr double value() const { return value_; }
};

class reduction;

namespace detail {

/// What is given for .over where the number alone does not say what it counts.
template <class X>
concept bare_count = std::is_arithmetic_v<X> || std::same_as<X, local_normaliser> ||
    std::same_as<X, device_scalar> || std::same_as<X, normaliser>;

}  // namespace detail

enum class aggregation_mode : unsigned char {
  token_mean,
  token_sum,
  sequence_mean_token_sum,
  sequence_mean_token_sum_norm,
  sequence_mean_token_mean,
  group_mean_token_mean,
  turn_mean,
  none
};

/// How the losses of tokens become one number: L = sum over tokens of w · loss. With N tokens,
/// S sequences, n_i the weight of sequence i, and every count that of the whole optimiser step:
///
///     token_mean(N)                         w = 1 / N
///     token_sum()                           w = 1
///     sequence_mean_token_sum(S)            w = 1 / S
///     sequence_mean_token_sum_norm(S, h)    w = 1 / (S · h), h the generation budget (Dr. GRPO)
///     sequence_mean_token_mean(S)           w = 1 / (S · n_i) (GRPO)
///     group_mean_token_mean(G)              w = 1 / (G · n_g), n_g the weight of the sequence's
///                                           .group_id: a prompt's group, or a rollout's samples
///     turn_mean(U)                          w = 1 / (U · n_u), a turn u being a maximal run of
///                                           counted tokens
///     none()                                w = 1 and the loss is their sum: for .upstream of
///                                           one number per token
///
/// A sequence-level loss of row i weighs n_i · w: with sequence_mean_token_sum it is LUSPO's
/// length-weighted mean. A count may be rlhf::local. Sequences without a token do not count in
/// `local`; pass the number of rows to count them.
///
/// Edges     a count of 0 gives loss 0 and gradient 0; given as a number it must be > 0 unless
///           nothing counts, so that a forgotten reduction does not silence a trainer
/// Source    token_mean over the step: Yu et al. 2025, arXiv:2503.14476; sum_norm: Liu et al. 2025,
///           arXiv:2503.20783; token mean per sequence: Shao et al. 2024, arXiv:2402.03300
class aggregation {
  aggregation_mode mode_;
  normaliser by_;
  double horizon_;

  constexpr aggregation(aggregation_mode mode, normaliser by, double horizon = 1)
      : mode_(mode), by_(by), horizon_(horizon) {}

 public:
  /// Left out of a config: viable, so the call resolves and this sentence is what the user reads.
  template <class Never = void>
  constexpr aggregation() : aggregation(aggregation_mode::none, 1) {
    static_assert(
        !std::is_void_v<Never>,
        "rlhf: say what divides the loss: .over = aggregation::token_mean(global_tokens), "
        "or (rlhf::local)");
  }

  template <std::same_as<reduction> X>
  constexpr aggregation(const X&) : aggregation(aggregation_mode::none, 1) {
    static_assert(std::is_void_v<X>,
                  "rlhf: this loss is over tokens: .over = aggregation::token_mean(n), ...; a "
                  "reduction is for losses over pairs");
  }
  template <detail::bare_count X>
  constexpr aggregation(const X&) : aggregation(aggregation_mode::none, 1) {
    static_assert(std::is_void_v<X>,
                  "rlhf: say what is counted: .over = aggregation::token_mean(n), ...");
  }

  static constexpr aggregation token_mean(normaliser tokens) {
    return {aggregation_mode::token_mean, tokens};
  }
  static constexpr aggregation token_sum() { return {aggregation_mode::token_sum, 1}; }
  static constexpr aggregation sequence_mean_token_sum(normaliser sequences) {
    return {aggregation_mode::sequence_mean_token_sum, sequences};
  }
  static constexpr aggregation sequence_mean_token_sum_norm(normaliser sequences, double horizon) {
    return {aggregation_mode::sequence_mean_token_sum_norm, sequences, horizon};
  }
  static constexpr aggregation sequence_mean_token_mean(normaliser sequences) {
    return {aggregation_mode::sequence_mean_token_mean, sequences};
  }
  static constexpr aggregation group_mean_token_mean(normaliser groups) {
    return {aggregation_mode::group_mean_token_mean, groups};
  }
  static constexpr aggregation turn_mean(normaliser turns) {
    return {aggregation_mode::turn_mean, turns};
  }
  static constexpr aggregation none() { return {aggregation_mode::none, 1}; }

  constexpr aggregation_mode mode() const { return mode_; }
  constexpr const normaliser& by() const { return by_; }
  constexpr double horizon() const { return horizon_; }
};

/// How the losses of pairs (or of whole sequences) become one number.
class reduction {
  bool mean_;
  normaliser by_;

  constexpr reduction(bool mean, normaliser by) : mean_(mean), by_(by) {}

 public:
  template <class Never = void>
  constexpr reduction() : reduction(false, 1) {
    static_assert(!std::is_void_v<Never>,
                  "rlhf: say what divides the loss: .over = reduction::mean(global_pairs), or "
                  "(rlhf::local)");
  }
  template <std::same_as<aggregation> X>
  constexpr reduction(const X&) : reduction(false, 1) {
    static_assert(std::is_void_v<X>,
                  "rlhf: this loss is over pairs: .over = reduction::mean(n) or reduction::sum(); "
                  "an aggregation is for losses over tokens");
  }
  template <detail::bare_count X>
  constexpr reduction(const X&) : reduction(false, 1) {
    static_assert(std::is_void_v<X>, "rlhf: say what is counted: .over = reduction::mean(n)");
  }

  static constexpr reduction mean(normaliser pairs) { return {true, pairs}; }
  static constexpr reduction sum() { return {false, 1}; }

  constexpr bool is_mean() const { return mean_; }
  constexpr const normaliser& by() const { return by_; }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

inline void check_coefficient(const char* function, const char* argument, const coefficient& c) {
  check_address(function, argument, c.device);
  if (c.device == nullptr)
    expects(c.value >= 0 && c.value <= 1.7976931348623157e308, function, argument,
            "a number that is finite and >= 0", c.value);
}

/// As the caller wrote it.
inline const char* name_of(aggregation_mode mode) {
  switch (mode) {
    case aggregation_mode::token_mean:
      return "token_mean";
    case aggregation_mode::token_sum:
      return "token_sum";
    case aggregation_mode::sequence_mean_token_sum:
      return "sequence_mean_token_sum";
    case aggregation_mode::sequence_mean_token_sum_norm:
      return "sequence_mean_token_sum_norm";
    case aggregation_mode::sequence_mean_token_mean:
      return "sequence_mean_token_mean";
    case aggregation_mode::group_mean_token_mean:
      return "group_mean_token_mean";
    case aggregation_mode::turn_mean:
      return "turn_mean";
    case aggregation_mode::none:
      break;
  }
  return "none";
}

inline void check_normaliser(const char* function, const normaliser& by) {
  if (by.is_local()) return;
  if (by.device() != nullptr) return check_address(function, "over", by.device());
  expects(by.value() >= 0 && by.value() <= 1.7976931348623157e308, function, "over",
          "a count that is finite and > 0", by.value());
}

inline void check_aggregation(const char* function, const aggregation& over) {
  check_normaliser(function, over.by());
  if (over.mode() == aggregation_mode::sequence_mean_token_sum_norm)
    expects(over.horizon() > 0 && over.horizon() <= 1.7976931348623157e308, function, "over",
            "a horizon that is finite and > 0", over.horizon());
}

/// Memory for the weight of each row where `over` needs it, else null: rows may be short and many.
template <class Run, class... Aggregation>
double* allocate_row_weight(Run& run, index rows, const Aggregation&... over) {
  const bool needed = ((over.mode() == aggregation_mode::sequence_mean_token_mean ||
                        over.mode() == aggregation_mode::group_mean_token_mean) ||
                       ...);
  return needed ? run.template allocate<double>(rows) : nullptr;
}

/// *to = 1: the factor of a term that has none.
struct set_one {
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to = 1; }
};

/// −1 where tokens count though the normaliser says that nothing does.
struct forgotten_count {
  const double* tokens;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to = *tokens > 0 ? -1 : 0; }
};

/// A normaliser of 0 is right for a batch of nothing and a mistake for any other.
template <class Run>
void check_count(Run& run, const normaliser& by, const double* tokens) {
  if (by.is_local() || by.device() != nullptr || by.value() > 0) return;
  double* const wrong = run.template allocate<double>(1);
  run.for_each(1, forgotten_count{tokens, wrong});
  run.refuse(wrong, "over", "a count > 0, because tokens count");
}

template <class Run>
void check_count(Run& run, const aggregation& over, const double* tokens) {
  check_count(run, over.by(), tokens);
}

struct copy_reciprocal {
  const double* x;
  double* to;
  RLHF_HOST_DEVICE void operator()(index i) const { to[i] = x[i] > 0 ? 1 / x[i] : 0; }
};

/// 1 / (weight of the rows that share an id) for each row; how many ids have weight.
struct group_weights {
  const double* row_weight;
  double* per_row;

  struct partial {
    double groups = 0;
    static constexpr int size = 1;
    RLHF_HOST_DEVICE friend partial operator+(const partial& a, const partial& b) {
      return {a.groups + b.groups};
    }
    RLHF_HOST_DEVICE void write(double* to) const { *to = groups; }
  };

  RLHF_RARE RLHF_HOST_DEVICE partial operator()(const sample_group& group) const {
    double weight = 0;
    for (index k = 0; k < group.size(); ++k) weight += row_weight[group[k]];
    for (index k = 0; k < group.size(); ++k) per_row[group[k]] = weight > 0 ? 1 / weight : 0;
    return {weight > 0 ? 1.0 : 0.0};
  }
};

/// factor · coefficient / (weight of the token's turn) for each token, turns counted per row.
template <class T, class Space>
struct turn_weights {
  token_domain<Space> domain;
  token_input<T> coefficient;
  T* to;  // [rows, columns] or packed like the domain
  double* row_turns;
  RLHF_RARE RLHF_HOST_DEVICE void operator()(index i) const {
    const index begin = domain.begin(i), n = domain.length(i);
    const index at = domain.mask_offset(i), step = domain.mask_stride();
    T* const row = to + (domain.kind == arrangement::packed ? begin : i * domain.columns);
    double turns = 0;
    for (index j = 0; j < n;) {
      index end = j;
      double weight = 0;
      for (; end < n; ++end) {
        const double w = domain.mask.at(at + end * step);
        if (!(w > 0)) break;
        weight += w;
      }
      for (index k = j; k < end; ++k) {
        const T c = coefficient.data == nullptr
                        ? coefficient.absent
                        : coefficient.data[i * coefficient.per_row + begin * coefficient.per_begin +
                                           k * coefficient.stride];
        row[k] = static_cast<T>(static_cast<double>(c) / weight);
      }
      if (end > j) turns += 1;
      if (end == j) {
        row[j] = T(0);
        ++end;
      }
      j = end;
    }
    row_turns[i] = turns;
  }
};

}  // namespace detail

/// An aggregation worked out for one batch: the factor of each row, and, where w varies inside a
/// row, a coefficient per token that carries it.
template <class T>
struct aggregation_plan {
  row_scale scale;
  quotient share;  ///< what `scale` is, its factors per row aside
  token_input<T> coefficient;
};

/// The factors of `over` on a domain. `counts` and `row_weight` come from run.count; `factor`
/// (times *factor_at where given) multiplies every weight.
template <class T, class Run, class Space>
RLHF_NOINLINE aggregation_plan<T> plan_aggregation(Run& run, const token_domain<Space>& domain,
                                                   const aggregation& over, const double* counts,
                                                   const double* row_weight,
                                                   const index_view<Space>& group_id,
                                                   token_input<T> coefficient, double factor = 1,
                                                   const double* factor_at = nullptr) {
  const normaliser& by = over.by();
  const double* counted = by.is_local() ? counts + 2 : nullptr;  // sequences
  double divisor = 1;
  aggregation_plan<T> plan;
  plan.coefficient = coefficient;
  const double* per_row = nullptr;
  switch (over.mode()) {
    case aggregation_mode::token_mean:
      if (by.is_local()) counted = counts;
      break;
    case aggregation_mode::sequence_mean_token_sum_norm:
      divisor = over.horizon();
      break;
    case aggregation_mode::sequence_mean_token_mean: {
      double* const reciprocal = run.template allocate<double>(domain.rows);
      run.for_each(domain.rows, detail::copy_reciprocal{row_weight, reciprocal});
      per_row = reciprocal;
      break;
    }
    case aggregation_mode::group_mean_token_mean: {
      double* const groups = run.template allocate<double>(1);
      double* const reciprocal = run.template allocate<double>(domain.rows);
      run.group_reduce(sample_groups<Space>{domain.rows, 0, group_id},
                       detail::group_weights{row_weight, reciprocal}, groups);
      per_row = reciprocal;
      if (by.is_local()) counted = groups;
      break;
    }
    case aggregation_mode::turn_mean: {
      const index slots =
          domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
      T* const per_token = run.template allocate<T>(slots);
      double* const row_turns = run.template allocate<double>(domain.rows);
      double* const turns = run.template allocate<double>(1);
      run.for_each(domain.rows,
                   detail::turn_weights<T, Space>{domain, coefficient, per_token, row_turns});
      run.for_each(1, detail::add_rows{row_turns, domain.rows, turns});
      const bool packed = domain.kind == arrangement::packed;
      plan.coefficient = {per_token, packed ? 0 : domain.columns, packed ? 1 : 0, 1, T(1)};
      if (by.is_local()) counted = turns;
      break;
    }
    case aggregation_mode::token_sum:
    case aggregation_mode::sequence_mean_token_sum:
    case aggregation_mode::none:
      break;
  }
  plan.share = {.count = by.value(),
                .counted = counted != nullptr ? counted : by.device(),
                .divisor = divisor,
                .factor = factor,
                .factor_at = factor_at};
  plan.scale = run.scale(plan.share);
  plan.scale.per_row = per_row;
  return plan;
}

}  // namespace rlhf::inline RLHF_COMPUTE
