#pragma once

#include <optional>

#include "rlhf/statistics/masked_mean.hpp"

namespace rlhf::inline v1 {

/// Where a small number keeps the division finite. Variance 0 needs none: see Edges of whiten.
enum class epsilon_mode : unsigned char {
  inside,  ///< 1 / sqrt(variance + epsilon)
  add,     ///< 1 / (sqrt(variance) + epsilon)
  floor    ///< 1 / sqrt(max(variance, epsilon))
};

struct whiten_config {
  bool shift_mean = true;  ///< the result has mean 0; false: it keeps its mean, and is scaled alone
  double ddof = 1;         ///< variance = m2 / (count − ddof)
  double epsilon = 1e-8;   ///< >= 0
  rlhf::epsilon_mode epsilon_mode = epsilon_mode::inside;
  /// Merged moments of all ranks (see masked_moments); left out: those of this call.
  std::optional<rlhf::moments> moments = std::nullopt;
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

template <scalar T, class Space = host_space>
struct whiten_output {
  named_only use_designators = named_only();
  output<T, Space> whitened = {};
};

template <scalar T, class Space = host_space>
struct whiten_backward_batch {
  named_only use_designators = named_only();
  view<const T, Space> value = {};       ///< what whiten was given
  view<const T, Space> d_whitened = {};  ///< gradient with respect to its result
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct whiten_backward_output {
  named_only use_designators = named_only();
  output<T, Space> d_value = {};
};

/// What was applied.
struct whiten_result {
  rlhf::moments moments;  ///< those used: of this call, or the given ones
  double mean = 0;        ///< moments.mean
  double variance = 0;    ///< moments.variance(ddof)
  double scale = 0;       ///< what (value − mean) was multiplied by; 0 for variance 0
  double tokens = 0;      ///< sum of the mask's weights
  double positions = 0;
  double nonfinite = 0;
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// The factor of (value − mean), and its derivative with respect to the variance.
struct whiten_scale {
  double scale;
  double slope;
};

RLHF_HOST_DEVICE inline whiten_scale scale_of(double variance, double epsilon, epsilon_mode mode) {
  if (!(variance > 0)) return {variance == 0 ? 0 : variance, 0};  // 0, or a NaN that must be seen
  switch (mode) {
    case epsilon_mode::add: {
      const double deviation = math::sqrt(variance);
      const double scale = 1 / (deviation + epsilon);
      return {scale, -scale * scale / (2 * deviation)};
    }
    case epsilon_mode::floor: {
      const bool held = variance < epsilon;
      const double scale = 1 / math::sqrt(held ? epsilon : variance);
      return {scale, held ? 0 : -scale * scale * scale / 2};
    }
    case epsilon_mode::inside:
      break;
  }
  const double scale = 1 / math::sqrt(variance + epsilon);
  return {scale, -scale * scale * scale / 2};
}

/// figures[0..2]: given moments.
struct store_moments {
  moments m;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { to[0] = m.count, to[1] = m.mean, to[2] = m.m2; }
};

/// constants: mean in two parts, scale, what is added back.
template <scalar T>
struct whiten_constants {
  const double* figures;
  double ddof, epsilon;
  epsilon_mode mode;
  bool shift_mean;
  double* variance_and_scale;
  T* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    const moments m{figures[0], figures[1], figures[2]};
    variance_and_scale[0] = m.variance(ddof);
    variance_and_scale[1] = scale_of(variance_and_scale[0], epsilon, mode).scale;
    to[0] = static_cast<T>(m.mean);
    to[1] = static_cast<T>(m.mean - static_cast<double>(to[0]));
    to[2] = static_cast<T>(variance_and_scale[1]);
    to[3] = shift_mean ? T(0) : to[0];
  }
};

/// The constants of whitening, in lanes.
template <lane V>
struct whiten_lanes {
  V mean, mean_rest, scale, back;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    // Two steps: the first is exact near the mean, so a mean of 1e6 costs no digit.
    const V centred = (t.in[0] - mean) - mean_rest;
    t.out[0] = math::fma(centred, scale, back);
  }
};

/// `Observed`: 1 to count non-finite numbers, 0 where the moments have done so.
template <scalar T, int Observed>
struct whiten_kernel {
  using scalar_type = T;
  static constexpr int inputs = 1, observed = Observed, outputs = 1, sums = 0, ranges = 0;
  static constexpr int scales = 0, scaled_sums = 0;
  const T* constant;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    in_lanes<std::remove_cvref_t<decltype(t.in[0])>>()(t);
  }
  /// For loops whose stores might otherwise change what `constant` points to.
  template <class V>
  RLHF_HOST_DEVICE RLHF_INLINE whiten_lanes<V> in_lanes() const {
    return {math::constant<V>(constant[0]), math::constant<V>(constant[1]),
            math::constant<V>(constant[2]), math::constant<V>(constant[3])};
  }
};

/// Sums of u and of u · (value − mean), both without the mask's weight: each result counts once.
template <scalar T>
struct whiten_products {
  using scalar_type = T;
  static constexpr int inputs = 2, observed = 2, outputs = 0, sums = 2, ranges = 0;
  static constexpr int scales = 0, scaled_sums = 2;
  const T* constant;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V centred = (t.in[0] - math::constant<V>(constant[0])) - math::constant<V>(constant[1]);
    t.sum[0] = t.in[1];
    t.sum[1] = t.in[1] * centred;
  }
};

/// to[0] multiplies u, to[1] is the share of each token in the mean's gradient, to[2] multiplies
/// (value − mean).
template <scalar T>
struct whiten_slopes {
  const double* figures;
  const double* products;
  double ddof, epsilon;
  epsilon_mode mode;
  bool shift_mean, fixed;
  T* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    const moments m{figures[0], figures[1], figures[2]};
    const whiten_scale s = scale_of(m.variance(ddof), epsilon, mode);
    const bool varies = !fixed && m.count > 0;
    to[0] = static_cast<T>(s.scale);
    to[1] = static_cast<T>(varies ? ((shift_mean ? 0 : 1) - s.scale) * products[0] / m.count : 0);
    const double through = 2 * math::detail::rounded_product(s.slope, products[1]);
    to[2] = static_cast<T>(varies && m.count > ddof ? through / (m.count - ddof) : 0);
  }
};

template <scalar T>
struct whiten_backward_kernel {
  using scalar_type = T;
  static constexpr int inputs = 2, observed = 0, outputs = 1, sums = 0, ranges = 0;
  static constexpr int scales = 1, scaled_sums = 0;
  const T* constant;
  const T* slope;
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V centred = (t.in[0] - math::constant<V>(constant[0])) - math::constant<V>(constant[1]);
    const V through_moments = math::constant<V>(slope[1]) + math::constant<V>(slope[2]) * centred;
    t.out[0] = math::constant<V>(slope[0]) * t.in[1] + t.scale[0] * through_moments;
  }
};

struct store_one {
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const { *to = 1; }
};

/// figures: counts, moments_figures, variance, scale.
inline whiten_result read_whiten(const double* f) {
  using at = moments_figures<identity_series>;
  const double* const m = f + token_counts::size;
  whiten_result r;
  r.tokens = f[0];
  r.positions = f[1];
  r.moments = at::read(m, 0);
  r.mean = r.moments.mean;
  r.nonfinite = m[at::nonfinite];
  r.variance = m[at::size];
  r.scale = m[at::size + 1];
  return r;
}

inline void check_whiten(const char* function, const whiten_config& config) {
  constexpr double most = 1.7976931348623157e308;
  expects(config.ddof >= 0 && config.ddof <= most, function, "ddof", ">= 0", config.ddof);
  expects(config.epsilon >= 0 && config.epsilon <= most, function, "epsilon",
          "a number that is finite and >= 0", config.epsilon);
  if (!config.moments) return;
  expects(config.moments->count >= 0, function, "moments", "a count >= 0", config.moments->count);
  expects(config.moments->m2 >= 0, function, "moments", "m2 >= 0", config.moments->m2);
}

/// The moments of the call or the given ones, in `figures`, behind the counts, and the constants
/// that follow from them.
template <scalar T, class Run, class Space>
void whiten_moments(Run& run, const screened_domain<Space>& screened, const token_input<T>& value,
                    const whiten_config& config, double* figures, T* constant) {
  using at = moments_figures<identity_series>;
  double* const to = figures + token_counts::size;
  const whiten_constants<T> constants{
      to,      config.ddof, config.epsilon, config.epsilon_mode, config.shift_mean, to + at::size,
      constant};
  if (config.moments) {
    run.for_each(1, store_moments{*config.moments, to});
    run.for_each(1, constants);
    return;
  }
  const double* const kept = count_kept(run, screened, figures);
  const token_input<T> in[] = {value};
  gather_moments<T, false>(run, identity_series{}, screened.domain, in, kept, to, constants);
}

}  // namespace detail

/// Centres and scales the numbers under a mask: mean 0 and variance 1 over the tokens that count.
///
///     whitened = (value − mean) · scale            scale = 1 / sqrt(variance + epsilon)
///     whitened = (value − mean) · scale + mean     with shift_mean = false
///
/// Under data parallelism give the merged moments of all ranks, else each rank has its own scale.
///
/// Shapes    value, mask, whitened: [batch, time], padded or packed, or all [batch]
/// Units     mask: a flag, or a weight >= 0; 0 = ignored; count is the sum of the weights
/// Requires  one shape; ddof >= 0; epsilon >= 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none is taken through advantages or rewards; whiten_backward is there where it is
///           wanted
/// Edges     masked positions are not read and get 0; equal numbers, a single one, and fewer than
///           ddof + 1 have variance 0 and give exactly 0 (their mean with shift_mean = false),
///           whatever epsilon is; an empty mask gives zeros; NaN or inf in a counted token makes
///           all of them NaN, unless .nonfinite drops it
/// Numerics  moments as masked_moments; (value − mean) without cancellation of the mean's own
///           rounding: mean 1e6 with standard deviation 1 keeps 1e-6
/// Cost      mask read once for the weights, then two passes over value and mask, one where the
///           moments are given; host: no allocation with a workspace
/// Source    the transform of Ziegler et al. 2019, arXiv:1909.08593 (code: lm-human-preferences)
/// Elsewhere TRL, verl masked_whiten, OpenRLHF masked_normalize (floor, ddof 0), slime
///           distributed_masked_whiten; torchtune whiten, whose shift_mean means the opposite
template <scalar T, executor Exec = serial>
result_of<Exec, whiten_result> whiten(const masked_values<T, space_of<Exec>>& batch,
                                      const whiten_output<T, space_of<Exec>>& output,
                                      const whiten_config& config = {}, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using K = detail::whiten_kernel<T, 0>;
  using Counting = detail::whiten_kernel<T, 1>;
  using at = detail::moments_figures<detail::identity_series>;
  const char* const function = "whiten";
  const bool row = detail::one_row(batch);
  auto bind = detail::bind_values(function, batch);
  const auto value = bind.token("value", detail::row_if(row, batch.value));
  const auto whitened = bind.written("whitened", detail::row_if(row, output.whitened));
  detail::check_whiten(function, config);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + at::size + 2);
  T* const constant = run.template allocate<T>(4);
  double* const sums = run.template allocate<double>(sums_of<Counting>::size);
  run.count(bind.domain(), figures);
  const token_input<T> observed[] = {value};
  const auto screened = screen_nonfinite<T>(run, bind.domain(), observed, config.nonfinite);
  detail::whiten_moments<T>(run, screened, value, config, figures, constant);
  double* const to = figures + token_counts::size;
  const auto apply = [&]<class Kernel>(const Kernel& kernel, const auto& pass) {
    token_arguments<Kernel, Space> a;
    a.domain = screened.domain;
    a.in[0] = value;
    a.out[0] = whitened;
    pass(kernel, a);
  };
  if (config.moments) {
    apply(Counting{constant}, [&](const auto& kernel, const auto& a) {
      run.map_reduce(
          kernel, a, sums, 1,
          detail::scale_by{sums + sums_of<Counting>::nonfinite, 1, nullptr, to + at::nonfinite});
    });
  } else {
    apply(K{constant}, [&](const auto& kernel, const auto& a) { run.map_tokens(kernel, a); });
  }
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, to + at::nonfinite});
  return run.template finish<whiten_result>(figures, &detail::read_whiten);
}

/// The vector-Jacobian product of whiten, with its config: from the gradient with respect to the
/// whitened numbers to that with respect to the numbers.
///
///     y = (v − mean)·s,  c = v − mean,  n = count:
///     d_value = s·(u − weight·sum(u)/n) + weight·c · ds/dvariance · 2·sum(u c)/(n − ddof)
///
/// Shapes    value, d_whitened, mask, d_value: [batch, time], padded or packed, or all [batch]
/// Requires  one shape; the config of the forward call
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  of value alone; given moments are constants, then d_value = s·u
/// Edges     masked positions get gradient 0, and their d_whitened is not read; variance 0: s = 0,
///           so the gradient is 0 (with shift_mean = false: that of the mean)
/// Numerics  as whiten; sums of products: fixed tree, in double
/// Cost      three passes over value and mask, two where the moments are given
/// Source    derived by hand; tests hold it against differences
template <scalar T, executor Exec = serial>
result_of<Exec, whiten_result> whiten_backward(
    const whiten_backward_batch<T, space_of<Exec>>& batch,
    const whiten_backward_output<T, space_of<Exec>>& output, const whiten_config& config = {},
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  using P = detail::whiten_products<T>;
  using K = detail::whiten_backward_kernel<T>;
  using at = detail::moments_figures<detail::identity_series>;
  const char* const function = "whiten_backward";
  const masked_values<T, Space> values{
      .value = batch.value, .mask = batch.mask, .layout = batch.layout};
  const bool row = detail::one_row(values);
  auto bind = detail::bind_values(function, values);
  const auto value = bind.token("value", detail::row_if(row, batch.value));
  const auto u = bind.token("d_whitened", detail::row_if(row, batch.d_whitened));
  const auto d_value = bind.written("d_value", detail::row_if(row, output.d_value));
  detail::check_whiten(function, config);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(token_counts::size + at::size + 2);
  T* const constant = run.template allocate<T>(4);
  T* const slope = run.template allocate<T>(3);
  double* const products = run.template allocate<double>(sums_of<P>::size);
  double* const unread = run.template allocate<double>(sums_of<K>::size);
  double* const one = run.template allocate<double>(1);
  run.count(bind.domain(), figures);
  const token_input<T> observed[] = {value};
  const auto screened = screen_nonfinite<T>(run, bind.domain(), observed, config.nonfinite);
  detail::whiten_moments<T>(run, screened, value, config, figures, constant);
  double* const to = figures + token_counts::size;
  token_arguments<P, Space> first;
  token_arguments<K, Space> second;
  first.domain = second.domain = screened.domain;
  first.in[0] = second.in[0] = value;
  first.in[1] = second.in[1] = u;
  second.out[0] = d_value;
  run.map_reduce(
      P{constant}, first, products, 1,
      detail::whiten_slopes<T>{to, products, config.ddof, config.epsilon, config.epsilon_mode,
                               config.shift_mean, config.moments.has_value(), slope});
  run.for_each(1, detail::store_one{one});
  second.scale[0].uniform = one;
  run.map_reduce(K{constant, slope}, second, unread);
  run.for_each(1,
               detail::scale_by{products + sums_of<P>::nonfinite, 1, nullptr, to + at::nonfinite});
  if (screened.dropped != nullptr)
    run.for_each(1, detail::add_dropped{screened.dropped, to + at::nonfinite});
  return run.template finish<whiten_result>(figures, &detail::read_whiten);
}

}  // namespace rlhf::inline RLHF_COMPUTE
