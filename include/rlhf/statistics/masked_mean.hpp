#pragma once

#include "rlhf/primitive/map_reduce.hpp"
#include "rlhf/primitive/moment_reduce.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/nonfinite.hpp"
#include "rlhf/statistics/row.hpp"

namespace rlhf::inline v1 {

/// Numbers under a mask: [batch, time] in any layout, or one number per sequence, [batch].
template <scalar T, class Space = host_space>
struct masked_values {
  named_only use_designators = named_only();
  view<const T, Space> value = {};
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct masked_gradient {
  named_only use_designators = named_only();
  output<T, Space> d_value = {};           ///< gradient of the statistic
  upstream_scale<T, Space> upstream = {};  ///< a number or a device_scalar
};

template <scalar T, class Space = host_space>
struct masked_moments_output {
  named_only use_designators = named_only();
};

struct masked_mean_config {
  normaliser over = local;  ///< what divides the sum; the weights of this call, unless said
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct masked_mean_result {
  double mean = 0;       ///< sum / over, the scalar whose gradient d_value holds; 0 for no token
  metric value;          ///< merges exactly: sum, and the sum of the weights
  double tokens = 0;     ///< sum of the mask's weights
  double positions = 0;  ///< tokens whose weight is > 0
  double nonfinite = 0;

  /// The mean of both, by what each has counted.
  friend masked_mean_result operator+(const masked_mean_result& a, const masked_mean_result& b) {
    masked_mean_result r;
    r.value = a.value + b.value;
    r.mean = r.value.mean();
    r.tokens = a.tokens + b.tokens;
    r.positions = a.positions + b.positions;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

struct masked_moments_config {
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct masked_moments_result {
  rlhf::moments moments;  ///< count is the sum of the weights
  double min = __builtin_inf();
  double max = -__builtin_inf();
  double positions = 0;
  double nonfinite = 0;

  friend masked_moments_result operator+(const masked_moments_result& a,
                                         const masked_moments_result& b) {
    masked_moments_result r;
    r.moments = a.moments + b.moments;
    r.min = a.min < b.min ? a.min : b.min;
    r.max = a.max > b.max ? a.max : b.max;
    r.positions = a.positions + b.positions;
    r.nonfinite = a.nonfinite + b.nonfinite;
    return r;
  }
};

struct masked_variance_config {
  double ddof = 1;  ///< m2 / (count − ddof): 1 is unbiased (Bessel), 0 is that of the population
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct masked_variance_result {
  double variance = 0;    ///< 0 for fewer tokens than ddof + 1
  rlhf::moments moments;  ///< merge these, then take their variance
  double positions = 0;
  double nonfinite = 0;
};

namespace detail {

template <scalar T, class Space>
bool one_row(const masked_values<T, Space>& batch) {
  return batch.value.rank() == 1 && batch.layout.kind == arrangement::padded;
}

/// The binder of masked_values: a rank-1 tensor without a layout is one row.
template <scalar T, class Space>
token_binder<Space> bind_values(const char* function, const masked_values<T, Space>& batch) {
  const bool row = one_row(batch);
  return {function, "value", row_if(row, batch.value), batch.layout, row_if(row, batch.mask)};
}

}  // namespace detail

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// What is measured of a token: itself.
struct identity_series {
  static constexpr int inputs = 1, size = 1;
  template <class V>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(const V* in, V* x) const {
    x[0] = in[0];
  }
};

/// The moments of the series, and where `Ranged`, their smallest and largest numbers.
template <scalar T, class Series, bool Ranged>
struct moment_kernel {
  using scalar_type = T;
  using moments = rlhf::moments;
  static constexpr int inputs = Series::inputs, outputs = 0, scales = 0, size = Series::size;
  static constexpr bool ranged = Ranged;
  Series series;
  template <class V>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(const V* in, V* x) const {
    series(in, x);
  }
};

/// Where gather_moments leaves its figures.
template <class Series>
struct moments_figures : moments_of<Series> {
  static moments read(const double* figures, int k) {
    return {figures[3 * k], figures[3 * k + 1], figures[3 * k + 2]};
  }
};

/// The counts are sums of weights, to the last bit those of `weight`.
struct finish_moments {
  const double* weight;
  double* to;
  RLHF_HOST_DEVICE void operator()(index k) const { to[3 * k] = *weight; }
};

struct nothing_more {
  RLHF_HOST_DEVICE void operator()(index) const {}
};

/// finish(k) for every series, then more(0).
template <class Series, class More>
struct finish_and_more {
  finish_moments finish;
  More more;
  RLHF_HOST_DEVICE void operator()(index) const {
    for (index k = 0; k < Series::size; ++k) finish(k);
    more(0);
  }
};

/// Moments of each series over a domain whose weights sum to *weight. `figures` is laid out as
/// moments_figures says; more(0) may read them.
template <scalar T, bool Ranged, class Run, class Series, class Space, class More = nothing_more>
void gather_moments(Run& run, const Series& series, const token_domain<Space>& domain,
                    const token_input<T> (&in)[Series::inputs], const double* weight,
                    double* figures, const More& more = {}) {
  using K = moment_kernel<T, Series, Ranged>;
  token_arguments<K, Space> a;
  a.domain = domain;
  for (int k = 0; k < Series::inputs; ++k) a.in[k] = in[k];
  run.moment_reduce(K{series}, a, figures, 1,
                    finish_and_more<Series, More>{{weight, figures}, more});
}

/// Counts of what is left of a domain after the screen: means are over these tokens.
template <class Run, class Space>
const double* count_kept(Run& run, const screened_domain<Space>& screened, const double* counts) {
  if (screened.dropped == nullptr) return counts;
  double* const kept = run.template allocate<double>(token_counts::size);
  run.count(screened.domain, kept);
  return kept;
}

/// d_value = scale · weight: the gradient of a mean. The value is read so that NaN is counted.
template <scalar T>
struct mean_kernel {
  using scalar_type = T;
  static constexpr int inputs = 1, observed = 1, outputs = 1, sums = 1, ranges = 0;
  static constexpr int scales = 1, scaled_sums = 0;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    t.sum[0] = t.in[0];
    t.out[0] = t.scale[0];
  }
};

struct finish_mean {
  const double* sum;
  quotient per_token;  // 1 / over
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to = *sum * per_token.value(); }
};

/// constants: the slope of the variance per unit of distance, and the mean in two parts.
template <scalar T>
struct variance_constants {
  const double* figures;
  double ddof;
  double above;
  const double* above_at;
  double* variance;
  double* slope;
  T* mean;
  RLHF_HOST_DEVICE void operator()(index) const {
    const moments m{figures[0], figures[1], figures[2]};
    *variance = m.variance(ddof);
    const double up = above_at != nullptr ? *above_at : above;
    *slope = m.count > ddof ? 2 * up / (m.count - ddof) : 0;
    mean[0] = static_cast<T>(m.mean);
    mean[1] = static_cast<T>(m.mean - static_cast<double>(mean[0]));
  }
};

template <scalar T>
struct variance_kernel {
  using scalar_type = T;
  static constexpr int inputs = 1, observed = 0, outputs = 1, sums = 0, ranges = 0;
  static constexpr int scales = 1, scaled_sums = 0;
  const T* mean;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V centred = (t.in[0] - math::constant<V>(mean[0])) - math::constant<V>(mean[1]);
    t.out[0] = centred * t.scale[0];
  }
};

inline masked_mean_result read_masked_mean(const double* f) {
  masked_mean_result r;
  r.tokens = f[0];
  r.positions = f[1];
  r.value = {f[3], f[0]};
  r.nonfinite = f[4];
  r.mean = f[5];
  return r;
}

inline masked_moments_result read_masked_moments(const double* f) {
  using at = moments_figures<identity_series>;
  const double* const m = f + token_counts::size;
  masked_moments_result r;
  r.positions = f[1];
  r.moments = at::read(m, 0);
  r.min = m[at::low];
  r.max = m[at::high];
  r.nonfinite = m[at::nonfinite];
  return r;
}

inline masked_variance_result read_masked_variance(const double* f) {
  using at = moments_figures<identity_series>;
  const double* const m = f + token_counts::size;
  masked_variance_result r;
  r.positions = f[1];
  r.moments = at::read(m, 0);
  r.nonfinite = m[at::nonfinite];
  r.variance = m[at::size];
  return r;
}

template <class T, class Space>
void check_upstream_number(const char* function, const upstream_scale<T, Space>& upstream) {
  check_address(function, "upstream", upstream.device);
  if (upstream)
    fail_shape(function, "upstream", "a number or a device_scalar: the statistic is one number",
               upstream.shape());
}

}  // namespace detail

/// Mean of the numbers under a mask.
///
/// Shapes    value, mask, d_value: [batch, time], padded or packed, or all [batch]
/// Units     mask: a flag, or a weight >= 0; 0 = ignored
/// Requires  one shape
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  writes ∂mean/∂value = weight / over · upstream
/// Edges     masked positions are not read and get gradient 0; an empty mask gives mean 0 with
///           tokens 0; NaN or inf in a counted token reaches the mean, unless .nonfinite drops it:
///           then `over` counts what is left
/// Numerics  sums: fixed tree, in double
/// Cost      mask read once for the weights, then one pass; host: no allocation with a workspace
/// Source    the textbook definition
template <scalar T, executor Exec = serial>
result_of<Exec, masked_mean_result> masked_mean(
    const masked_values<T, space_of<Exec>>& batch,
    const masked_gradient<T, space_of<Exec>>& output = {}, const masked_mean_config& config = {},
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using K = detail::mean_kernel<T>;
  const char* const function = "masked_mean";
  const bool row = detail::one_row(batch);
  auto bind = detail::bind_values(function, batch);
  const auto& domain = bind.domain();
  const auto value = bind.token("value", detail::row_if(row, batch.value));
  const auto d_value = bind.written("d_value", detail::row_if(row, output.d_value));
  detail::check_upstream_number(function, output.upstream);
  detail::check_normaliser(function, config.over);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size + 1);
  run.count(domain, figures);
  detail::check_count(run, config.over, figures);
  const token_input<T> observed[] = {value};
  const auto screened = screen_nonfinite<T>(run, domain, observed, config.nonfinite);
  const double* const kept = detail::count_kept(run, screened, figures);
  const quotient per_token{.count = config.over.value(),
                           .counted = config.over.is_local() ? kept : config.over.device()};
  quotient slope = per_token;
  slope.upstream = output.upstream.number;
  slope.upstream_at = output.upstream.device;
  token_arguments<K, Space> a;
  a.domain = screened.domain;
  a.in[0] = value;
  a.out[0] = d_value;
  a.scale[0] = run.scale(slope);
  double* const sums = figures + token_counts::size;
  run.map_reduce(K{}, a, sums, 1, detail::finish_mean{sums, per_token, sums + sums_of<K>::size});
  if (screened.dropped != nullptr) {
    run.for_each(1, detail::add_dropped{screened.dropped, sums + sums_of<K>::nonfinite});
    run.for_each(1, detail::scale_by{kept, 1, nullptr, figures});
    run.for_each(1, detail::scale_by{kept + 1, 1, nullptr, figures + 1});
  }
  return run.template finish<masked_mean_result>(figures, &detail::read_masked_mean);
}

/// Count, mean, sum of squared distances and range of the numbers under a mask. Results of
/// micro-batches and ranks merge with `+`; whiten takes the merged moments.
///
/// Shapes    value, mask: [batch, time], padded or packed, or both [batch]
/// Units     mask: a flag, or a weight >= 0; 0 = ignored; count is the sum of the weights
/// Requires  one shape
/// Throws    contract_violation when a requirement is broken
/// Edges     masked positions are not read; nothing counted: all 0, min > max; equal numbers: mean
///           is that number and m2 is 0, to the bit; NaN or inf in a counted token reaches the
///           moments, unless .nonfinite drops it
/// Numerics  1,024 tokens at a time, measured from a number within a standard deviation of their
///           mean, merged in double: mean 1e6 with standard deviation 1 in float keeps the variance
///           to 1e-6 relative
/// Cost      mask read once for the weights, then one pass; host: no allocation with a workspace
/// Source    the textbook definition
template <scalar T, executor Exec = serial>
result_of<Exec, masked_moments_result> masked_moments(
    const masked_values<T, space_of<Exec>>& batch,
    const masked_moments_output<T, space_of<Exec>>& = {}, const masked_moments_config& config = {},
    const Exec& exec = {}) {
  using at = detail::moments_figures<detail::identity_series>;
  const char* const function = "masked_moments";
  const bool row = detail::one_row(batch);
  auto bind = detail::bind_values(function, batch);
  const auto value = bind.token("value", detail::row_if(row, batch.value));

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + at::size);
  run.count(bind.domain(), figures);
  const token_input<T> in[] = {value};
  const auto screened = screen_nonfinite<T>(run, bind.domain(), in, config.nonfinite);
  const double* const kept = detail::count_kept(run, screened, figures);
  double* const to = figures + token_counts::size;
  detail::gather_moments<T, true>(run, detail::identity_series{}, screened.domain, in, kept, to);
  if (screened.dropped != nullptr) {
    run.for_each(1, detail::add_dropped{screened.dropped, to + at::nonfinite});
    run.for_each(1, detail::scale_by{kept + 1, 1, nullptr, figures + 1});
  }
  return run.template finish<masked_moments_result>(figures, &detail::read_masked_moments);
}

/// Variance of the numbers under a mask, and its gradient.
///
///     variance = sum of weight·(value − mean)² / (count − ddof)
///
/// Shapes    value, mask, d_value: [batch, time], padded or packed, or all [batch]
/// Units     mask: a flag, or a weight >= 0; 0 = ignored; count is the sum of the weights
/// Requires  one shape; ddof >= 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  writes ∂variance/∂value = 2·weight·(value − mean) / (count − ddof) · upstream
/// Edges     masked positions are not read and get gradient 0; fewer tokens than ddof + 1: variance
///           0 and gradient 0; equal numbers: exactly 0
/// Numerics  as masked_moments
/// Cost      one pass, and a second where the gradient is wanted
/// Source    the textbook definition
template <scalar T, executor Exec = serial>
result_of<Exec, masked_variance_result> masked_variance(
    const masked_values<T, space_of<Exec>>& batch,
    const masked_gradient<T, space_of<Exec>>& output = {},
    const masked_variance_config& config = {}, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using K = detail::variance_kernel<T>;
  using at = detail::moments_figures<detail::identity_series>;
  const char* const function = "masked_variance";
  const bool row = detail::one_row(batch);
  auto bind = detail::bind_values(function, batch);
  const auto value = bind.token("value", detail::row_if(row, batch.value));
  const auto d_value = bind.written("d_value", detail::row_if(row, output.d_value));
  detail::check_upstream_number(function, output.upstream);
  expects(config.ddof >= 0 && config.ddof <= 1.7976931348623157e308, function, "ddof", ">= 0",
          config.ddof);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + at::size + 1);
  double* const slope = run.template allocate<double>(1);
  T* const mean = run.template allocate<T>(2);
  double* const unread = run.template allocate<double>(sums_of<K>::size);
  run.count(bind.domain(), figures);
  const token_input<T> in[] = {value};
  const auto screened = screen_nonfinite<T>(run, bind.domain(), in, config.nonfinite);
  const double* const kept = detail::count_kept(run, screened, figures);
  double* const to = figures + token_counts::size;
  detail::gather_moments<T, false>(
      run, detail::identity_series{}, screened.domain, in, kept, to,
      detail::variance_constants<T>{to, config.ddof, output.upstream.number, output.upstream.device,
                                    to + at::size, slope, mean});
  if (output.d_value) {
    token_arguments<K, Space> a;
    a.domain = screened.domain;
    a.in[0] = value;
    a.out[0] = d_value;
    a.scale[0].uniform = slope;
    run.map_reduce(K{mean}, a, unread);
  }
  if (screened.dropped != nullptr) {
    run.for_each(1, detail::add_dropped{screened.dropped, to + at::nonfinite});
    run.for_each(1, detail::scale_by{kept + 1, 1, nullptr, figures + 1});
  }
  return run.template finish<masked_variance_result>(figures, &detail::read_masked_variance);
}

}  // namespace rlhf::inline RLHF_COMPUTE
