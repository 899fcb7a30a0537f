#pragma once

#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/metric.hpp"

namespace rlhf::inline RLHF_COMPUTE::formula {

template <lane V>
struct value_terms {
  V loss;
  V d_value;
  V clipped;  // 1 where the clipped loss decides, else 0
};

/// (value − returns)² of one token.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE value_terms<V> squared_error(const V& value, const V& returns) {
  const V error = value - returns;
  return {.loss = error * error, .d_value = error + error, .clipped = math::constant<V>(0)};
}

/// The larger of (value − returns)² and (bounded − returns)², bounded being `value` kept within
/// `clip` of old_value. Inside the bounds they are one number, so the gradient flows.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE value_terms<V> clipped_squared_error(const V& value,
                                                                  const V& old_value,
                                                                  const V& returns, const V& clip) {
  const V zero = math::constant<V>(0);
  const V bounded = math::clamp(value, old_value - clip, old_value + clip);
  const V error = value - returns;
  const V bounded_error = bounded - returns;
  const V plain = error * error;
  const V alternative = bounded_error * bounded_error;
  const mask_of<V> clipped = alternative > plain;  // false for NaN: a NaN stays visible in the loss
  const V known = old_value - old_value;           // 0, or the NaN that a clamp does not show
  return {.loss = math::select(clipped, alternative, plain) + known,
          .d_value = math::select(clipped, zero, error + error),
          .clipped = math::select(clipped, math::constant<V>(1), zero)};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct value_batch {
  named_only use_designators = named_only();
  view<const T, Space> value = {};      ///< of the critic, differentiable
  view<const T, Space> old_value = {};  ///< when the batch was sampled; exactly when clip > 0
  view<const T, Space> returns = {};    ///< the target
  index_view<Space> group_id = {};      ///< for aggregation::group_mean_token_mean
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct value_output {
  named_only use_designators = named_only();
  output<T, Space> d_value = {};     ///< gradient of the loss
  output<T, Space> token_loss = {};  ///< of each token, unweighted, with the factor of `half`
  upstream_scale<T, Space> upstream = {};
};

struct clipped_value_config {
  double clip =
      0.2;  ///< how far value may leave old_value, > 0; 0 = no clip, the plain squared error
  bool half = true;  ///< a factor 1/2 in front, so that the unclipped slope is value − returns
  aggregation over;  ///< no default: the caller says what divides the loss
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

struct clipped_value_result {
  double loss = 0;                ///< the scalar whose gradient d_value holds
  metric clip_fraction;           ///< share of counted tokens whose clipped loss is the larger one
  metric clip_distance_fraction;  ///< share of counted tokens with |value − old_value| > clip
  metric value;
  metric returns;
  metric error;          ///< |value − returns|
  metric squared_error;  ///< (value − returns)², without clip and half
  metric returns_squared;
  double value_min = __builtin_inf();
  double value_max = -__builtin_inf();
  double tokens = 0;     ///< sum of the mask's weights
  double positions = 0;  ///< tokens whose weight is > 0
  double sequences = 0;  ///< sequences with such a token
  double nonfinite = 0;  ///< counted tokens with a NaN or an infinity among their inputs

  friend clipped_value_result operator+(const clipped_value_result& a,
                                        const clipped_value_result& b) {
    clipped_value_result r;
    r.loss = a.loss + b.loss;
    r.clip_fraction = a.clip_fraction + b.clip_fraction;
    r.clip_distance_fraction = a.clip_distance_fraction + b.clip_distance_fraction;
    r.value = a.value + b.value;
    r.returns = a.returns + b.returns;
    r.error = a.error + b.error;
    r.squared_error = a.squared_error + b.squared_error;
    r.returns_squared = a.returns_squared + b.returns_squared;
    r.value_min = a.value_min < b.value_min ? a.value_min : b.value_min;
    r.value_max = a.value_max > b.value_max ? a.value_max : b.value_max;
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

template <scalar T, bool Clipped>
struct value_kernel {
  using scalar_type = T;
  enum input { value, returns, old_value };
  static constexpr int observed = Clipped ? 3 : 2;
  static constexpr int coefficient_in = observed;
  static constexpr int upstream_in = observed + 1;
  static constexpr int inputs = observed + 2;
  enum out { d_value, token_loss };
  static constexpr int outputs = 2;
  enum factor { loss, gradient };
  static constexpr int scales = 2;
  static constexpr int scaled_sums = 1;
  enum metric_sum {
    value_sum = 1,
    returns_sum,
    error,
    squared_error,
    returns_squared,
    clipped,
    distant
  };
  static constexpr int sums = Clipped ? 8 : 6;
  static constexpr int ranges = 1;

  T clip;
  T in_front;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void operator()(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.in[0])>;
    const V zero = math::constant<V>(0);
    const V front = math::constant<V>(in_front);
    const V distance = t.in[value] - t.in[returns];
    formula::value_terms<V> terms;
    if constexpr (Clipped) {
      const V edge = math::constant<V>(clip);
      terms = formula::clipped_squared_error(t.in[value], t.in[old_value], t.in[returns], edge);
      t.sum[clipped] = terms.clipped;
      t.sum[distant] =
          math::select(math::abs(t.in[value] - t.in[old_value]) > edge, math::constant<V>(1), zero);
    } else {
      terms = formula::squared_error(t.in[value], t.in[returns]);
    }
    const V scaled = front * terms.loss;
    const V weight = t.in[coefficient_in];
    t.sum[0] = scaled * weight * t.scale[loss];
    t.sum[value_sum] = t.in[value];
    t.sum[returns_sum] = t.in[returns];
    t.sum[error] = math::abs(distance);
    t.sum[squared_error] = distance * distance;
    t.sum[returns_squared] = t.in[returns] * t.in[returns];
    t.range[0] = t.in[value];
    t.out[d_value] = front * terms.d_value * (weight * t.scale[gradient]) * t.in[upstream_in];
    t.out[token_loss] = scaled;
  }

  static clipped_value_result read(const double* figures) {
    const double* const sum = figures + token_counts::size;
    clipped_value_result r;
    r.tokens = figures[0];
    r.positions = figures[1];
    r.sequences = figures[2];
    r.loss = sum[0];
    r.value = {sum[value_sum], r.tokens};
    r.returns = {sum[returns_sum], r.tokens};
    r.error = {sum[error], r.tokens};
    r.squared_error = {sum[squared_error], r.tokens};
    r.returns_squared = {sum[returns_squared], r.tokens};
    r.clip_fraction.count = r.clip_distance_fraction.count = r.tokens;
    if constexpr (Clipped) {
      r.clip_fraction.sum = sum[clipped];
      r.clip_distance_fraction.sum = sum[distant];
    }
    r.value_min = sum[sums_of<value_kernel>::low];
    r.value_max = sum[sums_of<value_kernel>::high];
    r.nonfinite = sum[sums_of<value_kernel>::nonfinite];
    return r;
  }
};

}  // namespace detail

/// Clipped value loss of PPO, its gradient, and the metrics a trainer logs.
///
///     bounded = value kept within old_value ± clip
///     loss    = aggregate(1/2 · max((value − returns)², (bounded − returns)²))
///
/// With clip = 0 it is aggregate(1/2 · (value − returns)²) and old_value is left out.
///
/// Shapes    value, old_value, returns, mask, d_value, token_loss: [batch, time], padded or packed;
///           upstream: [batch, time] or [batch]; group_id: [batch]
/// Units     those of the reward; mask: a flag, or a weight >= 0; 0 = ignored
/// Requires  one shape; clip >= 0; old_value exactly when clip > 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  writes ∂loss/∂value = w·(value − returns) (twice that without .half), and 0 where the
///           clipped loss is the larger one; at a bound and where both are equal the gradient
///           flows; old_value and returns are constants
/// Edges     masked positions are not read (NaN there is harmless) and get gradient 0; an empty
///           mask gives loss 0; NaN or inf in a counted token reaches the loss, unless .nonfinite
///           drops it
/// Numerics  per token 4·2⁻²⁴ relative in float, given value − returns and bounded − returns; sums:
///           fixed tree, in double
/// Cost      mask read once for the weights, then one pass: 3 reads and 1 write per token;
///           host: no allocation with a workspace
/// Source    Schulman et al. 2017, the code of arXiv:1707.06347; Engstrom et al. 2020,
///           arXiv:2005.12729, section 3
/// Elsewhere TRL PPO, verl compute_value_loss, OpenRLHF ValueLoss, NeMo-RL MseValueLossFn; slime
///           and torchrl without the half, counting clip_distance_fraction
/// Example   examples/ppo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, clipped_value_result> clipped_value_loss(
    const value_batch<T, space_of<Exec>>& batch, const value_output<T, space_of<Exec>>& output,
    const clipped_value_config& config = detail::no_config<T, clipped_value_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "clipped_value_loss";
  expects(config.clip >= 0, function, "clip", "0 (none) or > 0", config.clip);
  const bool clips = config.clip > 0;
  token_binder<Space> bind(function, "value", batch.value, batch.layout, batch.mask);
  const auto value = bind.token("value", batch.value);
  if (!clips) bind.unused("old_value", bool(batch.old_value));
  const auto old_value = clips ? bind.token("old_value", batch.old_value) : token_input<T>{};
  const auto returns = bind.token("returns", batch.returns);
  const auto above = bind.upstream(output.upstream);
  const auto d_value = bind.written("d_value", output.d_value);
  const auto token_loss = bind.written("token_loss", output.token_loss);
  check_over(bind, config.over, batch.group_id);

  auto run = exec.begin(function);
  const auto& domain = bind.domain();
  const auto execute = [&]<bool Clipped>() -> result_of<Exec, clipped_value_result> {
    using K = detail::value_kernel<T, Clipped>;
    double* const figures = run.template allocate<double>(token_counts::size + sums_of<K>::size);
    double* const row_weight = detail::allocate_row_weight(run, domain.rows, config.over);
    run.count(domain, figures, row_weight);
    detail::check_count(run, config.over, figures);
    const token_input<T> observed[] = {value, returns, old_value};
    const auto screened = screen_nonfinite<T>(run, domain, observed, config.nonfinite);
    const auto scales = plan_loss<T>(run, domain, config.over, figures, row_weight, batch.group_id,
                                     output.upstream);
    token_arguments<K, Space> a;
    a.domain = screened.domain;
    a.in[K::value] = value;
    a.in[K::returns] = returns;
    if constexpr (Clipped) a.in[K::old_value] = old_value;
    a.in[K::coefficient_in] = scales.value.coefficient;
    a.in[K::upstream_in] = above;
    a.out[K::d_value] = d_value;
    a.out[K::token_loss] = token_loss;
    a.scale[K::loss] = scales.value.scale;
    a.scale[K::gradient] = scales.gradient;
    double* const sums = figures + token_counts::size;
    run.map_reduce(K{static_cast<T>(config.clip), config.half ? T(0.5) : T(1)}, a, sums);
    if (screened.dropped != nullptr)
      run.for_each(1, detail::add_dropped{screened.dropped, sums + sums_of<K>::nonfinite});
    return run.template finish<clipped_value_result>(figures, &K::read);
  };
  return clips ? execute.template operator()<true>() : execute.template operator()<false>();
}

}  // namespace rlhf::inline RLHF_COMPUTE
