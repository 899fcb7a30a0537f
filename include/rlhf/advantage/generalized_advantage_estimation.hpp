#pragma once

#include "rlhf/advantage/time_steps.hpp"
#include "rlhf/primitive/count.hpp"
#include "rlhf/primitive/reverse_scan.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/nonfinite.hpp"

namespace rlhf::inline RLHF_COMPUTE::formula {

/// What one step brought beyond what the critic expected: r + gamma·V' − V.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE V temporal_difference(const V& reward, const V& value,
                                                   const V& next_value, const V& gamma) {
  return math::fma(gamma, next_value, reward) - value;
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct generalized_advantage_estimation_batch {
  named_only use_designators = named_only();
  view<const T, Space> reward = {};
  view<const T, Space> value = {};       ///< V of the state each token is sampled in
  view<const T, Space> next_value = {};  ///< V of the state after it; left out: the next token's
  view<const T, Space> bootstrap_value = {};  ///< [batch], V after the last token; left out: 0
  mask_view<Space> terminated = {};           ///< flags: the episode ends here, nothing follows
  mask_view<Space> truncated = {};            ///< flags: the episode is cut here, its value goes on
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct generalized_advantage_estimation_output {
  named_only use_designators = named_only();
  output<T, Space> advantage = {};
  output<T, Space> returns = {};  ///< advantage + value: what the critic learns
};

struct generalized_advantage_estimation_config {
  double gamma = 1;      ///< discount, in [0, 1]
  double lambda = 0.95;  ///< 0: one step, low variance; 1: returns − value, no bias; in [0, 1]
  hole_mode holes = hole_mode::skip;               ///< what a masked token between valid ones is
  hole_reward reward_at_hole = hole_reward::drop;  ///< what becomes of a reward that lies on one
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

/// Results of micro-batches and ranks add up.
struct generalized_advantage_estimation_result {
  moments advantage;  ///< over valid tokens; a weight > 0 is a flag here
  moments returns;
  double tokens = 0;     ///< sum of the mask's weights
  double positions = 0;  ///< valid tokens
  double sequences = 0;  ///< rows with a valid token
  double nonfinite = 0;  ///< valid tokens with a NaN or an infinity among their inputs

  friend generalized_advantage_estimation_result operator+(
      const generalized_advantage_estimation_result& a,
      const generalized_advantage_estimation_result& b) {
    return {a.advantage + b.advantage, a.returns + b.returns,     a.tokens + b.tokens,
            a.positions + b.positions, a.sequences + b.sequences, a.nonfinite + b.nonfinite};
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// A_t = delta_t + gamma·lambda·A_{t+1}, plain: no episode ends inside a row, no given next value.
template <scalar T>
struct advantage_scan {
  using scalar_type = T;
  enum input { reward, value };
  static constexpr int inputs = 2, outputs = 2, flags = 0, shifted = value;

  double decay;
  T gamma;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void step(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.b)>;
    t.b = formula::temporal_difference<V>(t.in[reward], t.in[value], t.next,
                                          math::constant<V>(gamma));
  }
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void emit(Token& t) const {
    t.out[0] = t.x;
    t.out[1] = t.x + t.in[value];
  }
  template <class Token>
  RLHF_HOST_DEVICE bool usable(const Token& t) const {
    return math::is_finite(t.in[reward]) && math::is_finite(t.in[value]);
  }
};

/// The same with ends of episodes and next values.
template <scalar T>
struct episode_advantage_scan {
  using scalar_type = T;
  enum input { reward, value, next_value };
  enum flag { terminated, truncated };
  static constexpr int inputs = 3, outputs = 2, flags = 2, shifted = value;

  double decay;
  T gamma;
  bool next_value_given;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void step(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.b)>;
    const V following = next_value_given ? t.in[next_value] : t.next;
    const V future = math::select(t.flag[terminated], math::constant<V>(0), following);
    t.b = formula::temporal_difference<V>(t.in[reward], t.in[value], future,
                                          math::constant<V>(gamma));
  }
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void emit(Token& t) const {
    t.out[0] = t.x;
    t.out[1] = t.x + t.in[value];
  }
  template <class Token>
  RLHF_HOST_DEVICE bool usable(const Token& t) const {
    return math::is_finite(t.in[reward]) && math::is_finite(t.in[value]) &&
           (!next_value_given || t.flag[terminated] || math::is_finite(t.in[next_value]));
  }
};

/// From the figures of count and of a scan with two outputs.
inline generalized_advantage_estimation_result read_advantages(const double* figures) {
  const double* const scan = figures + token_counts::size;
  generalized_advantage_estimation_result r;
  r.advantage = {scan[0], scan[2], scan[3]};
  r.returns = {scan[0], scan[4], scan[5]};
  r.tokens = figures[0];
  r.positions = figures[1];
  r.sequences = figures[2];
  r.nonfinite = scan[1];
  return r;
}

}  // namespace detail

/// Generalised advantage estimation: the advantage of each token and the return its critic learns.
///
///     delta_t = r_t + gamma·V_{t+1} − V_t         V_{t+1}: 0 where terminated
///     A_t     = delta_t + gamma·lambda·A_{t+1}    A_{t+1}: 0 where terminated or truncated
///     returns = A + V
///
/// t + 1 is the next valid token of the row. After the last one stand bootstrap_value, or
/// next_value where that is given, or nothing: a response is an episode that terminates with its
/// last token.
///
/// Shapes    reward, value, next_value, terminated, truncated, mask, advantage, returns:
///           [batch, time], padded or packed; bootstrap_value: [batch]
/// Units     reward and value in units of reward; mask: a flag, or a weight of which only > 0
///           counts
/// Requires  one shape; gamma and lambda in [0, 1]; terminated and truncated are flags; next_value
///           or bootstrap_value, not both; a truncated token has next_value, or is the row's last
///           and has bootstrap_value, or is terminated as well; hole_reward::to_previous not with
///           hole_mode::count, which gives holes a step of their own
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none flows through an estimator: its outputs are constants of the losses
/// Edges     masked positions are not read (but by hole_mode::count and hole_reward::to_previous)
///           and get +0; an empty row gives zeros; in every hole mode a row ends with its last
///           valid token; gamma·lambda = 0, or an episode's end, keeps a later NaN from earlier
///           tokens; one in an episode reaches all its earlier tokens, unless .nonfinite drops it,
///           and is counted
/// Numerics  float, gamma 0.999, lambda 1, 1 M tokens: error <= 2e-6 of max |A|; the bits of a row
///           depend on its valid tokens alone, whatever layout, batch or thread; moments in double
/// Cost      one pass: 2 reads and 2 writes per token, holes closed up in L1;
///           hole_reward::to_previous takes one array more; host: no allocation with a workspace
/// Source    Schulman et al. 2015, arXiv:1506.02438, eq. 16
/// Elsewhere verl compute_gae_advantage_return (skip), OpenRLHF get_advantages_and_returns (zero),
///           TRL PPO, slime vanilla_gae, torchtune estimate_advantages (count),
///           torchrl generalized_advantage_estimate (terminated, truncated, next_value)
/// Example   examples/ppo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, generalized_advantage_estimation_result> generalized_advantage_estimation(
    const generalized_advantage_estimation_batch<T, space_of<Exec>>& batch,
    const generalized_advantage_estimation_output<T, space_of<Exec>>& output,
    const generalized_advantage_estimation_config& config = {}, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "generalized_advantage_estimation";
  expects(config.gamma >= 0 && config.gamma <= 1, function, "gamma", "in [0, 1]", config.gamma);
  expects(config.lambda >= 0 && config.lambda <= 1, function, "lambda", "in [0, 1]", config.lambda);
  detail::check_holes(function, config.holes, config.reward_at_hole);
  token_binder<Space> bind(function, "reward", batch.reward, batch.layout, batch.mask);
  const auto reward = bind.token("reward", batch.reward);
  const auto value = bind.token("value", batch.value);
  if (batch.next_value) bind.unused("bootstrap_value", bool(batch.bootstrap_value));
  const auto steps = detail::bind_time_steps<T>(bind, batch, reward);
  const auto advantage = bind.written("advantage", output.advantage);
  const auto returns = bind.written("returns", output.returns);

  auto run = exec.begin(function);
  const token_input<T> observed[] = {reward, value, steps.next_value};
  const double decay = config.gamma * config.lambda;
  const T gamma = static_cast<T>(config.gamma);
  const double* const figures = detail::scan_time_steps(
      run, bind.domain(), steps, observed, config, detail::advantage_scan<T>{decay, gamma},
      detail::episode_advantage_scan<T>{decay, gamma, steps.has_next_value}, [&](auto& a) {
        a.in[1] = value;
        a.out[0] = advantage;
        a.out[1] = returns;
      });
  return run.template finish<generalized_advantage_estimation_result>(figures,
                                                                      &detail::read_advantages);
}

}  // namespace rlhf::inline RLHF_COMPUTE
