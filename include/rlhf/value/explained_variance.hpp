#pragma once

#include "rlhf/statistics/masked_mean.hpp"

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct explained_variance_batch {
  named_only use_designators = named_only();
  view<const T, Space> value = {};    ///< of the critic
  view<const T, Space> returns = {};  ///< what it should have said
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

struct explained_variance_output {
  named_only use_designators = named_only();
};

struct explained_variance_config {
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

/// Moments that merge; the figures are read off the merged ones.
struct explained_variance_result {
  moments value;
  moments returns;
  moments residual;   ///< of returns − value
  double tokens = 0;  ///< sum of the weights that took part
  double nonfinite = 0;

  /// The returns vary, so that there is something to explain.
  constexpr bool defined() const { return returns.m2 > 0; }
  /// 1 − Var(returns − value) / Var(returns); a constant error of the critic costs nothing. <= 1;
  /// 0 where it is not defined.
  constexpr double explained_variance() const {
    return returns.m2 == 0 ? 0 : 1 - residual.m2 / returns.m2;
  }
  /// 1 − mean (returns − value)² / Var(returns): a constant error costs its square.
  constexpr double uncentred() const {
    return returns.m2 == 0
               ? 0
               : 1 - (residual.m2 + residual.count * residual.mean * residual.mean) / returns.m2;
  }

  friend constexpr explained_variance_result operator+(const explained_variance_result& a,
                                                       const explained_variance_result& b) {
    return {a.value + b.value, a.returns + b.returns, a.residual + b.residual, a.tokens + b.tokens,
            a.nonfinite + b.nonfinite};
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

struct value_series {
  static constexpr int inputs = 2, size = 3;
  template <class V>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(const V* in, V* x) const {
    x[0] = in[0];
    x[1] = in[1];
    x[2] = in[1] - in[0];
  }
};

inline explained_variance_result read_explained_variance(const double* figures) {
  using at = moments_figures<value_series>;
  explained_variance_result r;
  r.value = at::read(figures, 0);
  r.returns = at::read(figures, 1);
  r.residual = at::read(figures, 2);
  r.tokens = r.value.count;
  r.nonfinite = figures[at::nonfinite];
  return r;
}

}  // namespace detail

/// How much of the spread of the returns the critic foresaw: 1 is all of it, 0 no more than a
/// constant would, below 0 worse than a constant. A metric, without a gradient.
///
/// Shapes    value, returns, mask: [batch, time], padded or packed, or all [batch]
/// Units     those of the reward; mask: a flag, or a weight >= 0; 0 = ignored
/// Requires  one shape
/// Throws    contract_violation when a requirement is broken
/// Edges     masked positions are not read; equal returns, one token, or none: defined() is false
///           and both figures are 0; NaN or inf in a counted token reaches both, unless .nonfinite
///           drops it
/// Numerics  shifted moments, in double, merged exactly, as masked_moments; population and unbiased
///           variance give the same ratio
/// Cost      mask read once for the weights, then one pass; host: no allocation with a workspace
/// Source    the coefficient of determination; textbook
/// Elsewhere torchrl, verl, NeMo-RL (centred); lm-human-preferences (uncentred)
template <scalar T, executor Exec = serial>
result_of<Exec, explained_variance_result> explained_variance(
    const explained_variance_batch<T, space_of<Exec>>& batch, const explained_variance_output& = {},
    const explained_variance_config& config = {}, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using at = detail::moments_figures<detail::value_series>;
  const char* const function = "explained_variance";
  const masked_values<T, Space> values{
      .value = batch.value, .mask = batch.mask, .layout = batch.layout};
  const bool row = detail::one_row(values);
  auto bind = detail::bind_values(function, values);
  const token_input<T> in[] = {bind.token("value", detail::row_if(row, batch.value)),
                               bind.token("returns", detail::row_if(row, batch.returns))};

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(at::size);
  double* const counts = run.template allocate<double>(token_counts::size);
  run.count(bind.domain(), counts);
  const auto screened = screen_nonfinite<T>(run, bind.domain(), in, config.nonfinite);
  const double* const kept = detail::count_kept(run, screened, counts);
  detail::gather_moments<T, false>(run, detail::value_series{}, screened.domain, in, kept, figures);
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, figures + at::nonfinite});
  return run.template finish<explained_variance_result>(figures, &detail::read_explained_variance);
}

}  // namespace rlhf::inline RLHF_COMPUTE
