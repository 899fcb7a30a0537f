#pragma once

#include "rlhf/advantage/time_steps.hpp"
#include "rlhf/primitive/count.hpp"
#include "rlhf/primitive/reverse_scan.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/nonfinite.hpp"

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct discounted_returns_batch {
  named_only use_designators = named_only();
  view<const T, Space> reward = {};
  view<const T, Space> next_value = {};       ///< V of the state after a truncated token
  view<const T, Space> bootstrap_value = {};  ///< [batch], V after the last token; left out: 0
  mask_view<Space> terminated = {};           ///< flags: the episode ends here, nothing follows
  mask_view<Space> truncated = {};            ///< flags: the episode is cut here, its value goes on
  mask_view<Space> mask = {};
  sequence_layout<Space> layout = {};
};

template <scalar T, class Space = host_space>
struct discounted_returns_output {
  named_only use_designators = named_only();
  output<T, Space> returns = {};
};

struct discounted_returns_config {
  double gamma = 1;                                ///< discount, in [0, 1]
  hole_mode holes = hole_mode::skip;               ///< what a masked token between valid ones is
  hole_reward reward_at_hole = hole_reward::drop;  ///< what becomes of a reward that lies on one
  nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

/// Results of micro-batches and ranks add up.
struct discounted_returns_result {
  moments returns;       ///< over valid tokens; a weight > 0 is a flag here
  double tokens = 0;     ///< sum of the mask's weights
  double positions = 0;  ///< valid tokens
  double sequences = 0;  ///< rows with a valid token
  double nonfinite = 0;  ///< valid tokens with a NaN or an infinity among their inputs

  friend discounted_returns_result operator+(const discounted_returns_result& a,
                                             const discounted_returns_result& b) {
    return {a.returns + b.returns, a.tokens + b.tokens, a.positions + b.positions,
            a.sequences + b.sequences, a.nonfinite + b.nonfinite};
  }
};

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// G_t = r_t + gamma·G_{t+1}, plain: no episode ends inside a row.
template <scalar T>
struct return_scan {
  using scalar_type = T;
  static constexpr int inputs = 1, outputs = 1, flags = 0, shifted = -1;

  double decay;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void step(Token& t) const {
    t.b = t.in[0];
  }
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void emit(Token& t) const {
    t.out[0] = t.x;
  }
  template <class Token>
  RLHF_HOST_DEVICE bool usable(const Token& t) const {
    return math::is_finite(t.in[0]);
  }
};

/// The same with ends of episodes.
template <scalar T>
struct episode_return_scan {
  using scalar_type = T;
  enum input { reward, next_value };
  enum flag { terminated, truncated };
  static constexpr int inputs = 2, outputs = 1, flags = 2, shifted = next_value;

  double decay;
  T gamma;
  bool next_value_given;

  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void step(Token& t) const {
    using V = std::remove_cvref_t<decltype(t.b)>;
    const V zero = math::constant<V>(0);
    // Without next_value only a row's last token is cut, and t.next is its bootstrap value.
    const V beyond = next_value_given ? t.in[next_value] : t.next;
    const V future = math::select(t.flag[truncated], beyond, zero);
    t.b = math::fma(math::constant<V>(gamma), math::select(t.flag[terminated], zero, future),
                    t.in[reward]);
  }
  template <class Token>
  RLHF_HOST_DEVICE RLHF_INLINE void emit(Token& t) const {
    t.out[0] = t.x;
  }
  template <class Token>
  RLHF_HOST_DEVICE bool usable(const Token& t) const {
    return math::is_finite(t.in[reward]) &&
           (!next_value_given || t.flag[terminated] || !t.flag[truncated] ||
            math::is_finite(t.in[next_value]));
  }
};

/// From the figures of count and of a scan with one output.
inline discounted_returns_result read_returns(const double* figures) {
  const double* const scan = figures + token_counts::size;
  discounted_returns_result r;
  r.returns = {scan[0], scan[2], scan[3]};
  r.tokens = figures[0];
  r.positions = figures[1];
  r.sequences = figures[2];
  r.nonfinite = scan[1];
  return r;
}

}  // namespace detail

/// Discounted reward-to-go of each token, the Monte Carlo return.
///
///     G_t = r_t + gamma·G_{t+1}    0 after a terminated token, V after a truncated one
///
/// t + 1 is the next valid token of the row; after the last one stands bootstrap_value, or nothing.
///
/// Shapes    reward, next_value, terminated, truncated, mask, returns: [batch, time], padded or
///           packed; bootstrap_value: [batch]
/// Units     reward and values in units of reward; mask: a flag, or a weight of which only > 0
///           counts
/// Requires  one shape; gamma in [0, 1]; terminated and truncated are flags; next_value only with
///           truncated; a truncated token has next_value, or is the row's last and has
///           bootstrap_value, or is terminated as well; hole_reward::to_previous not with
///           hole_mode::count, which gives holes a step of their own
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none flows through an estimator: its outputs are constants of the losses
/// Edges     masked positions are not read (but by hole_mode::count and hole_reward::to_previous)
///           and get +0; an empty row gives zeros; in every hole mode a row ends with its last
///           valid token; gamma = 0, or an episode's end, keeps a later NaN from earlier tokens;
///           one in an episode reaches all its earlier tokens, unless .nonfinite drops it, and is
///           counted
/// Numerics  float, gamma 0.999, 1 M tokens: error <= 2e-6 of max |G|; the bits of a row depend on
///           its valid tokens alone, whatever layout, batch or thread; moments in double
/// Cost      one pass: 1 read and 1 write per token, holes closed up in L1;
///           hole_reward::to_previous takes one array more; host: no allocation with a workspace
/// Source    Williams 1992, doi:10.1007/BF00992696
/// Elsewhere rlax discounted_returns, torchrl reward2go, OpenRLHF get_cumulative_returns
///           (hole_mode::zero), slime chunked_discounted_returns, verl REINFORCE++ and ReMax
/// Example   examples/ppo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, discounted_returns_result> discounted_returns(
    const discounted_returns_batch<T, space_of<Exec>>& batch,
    const discounted_returns_output<T, space_of<Exec>>& output,
    const discounted_returns_config& config = {}, const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "discounted_returns";
  expects(config.gamma >= 0 && config.gamma <= 1, function, "gamma", "in [0, 1]", config.gamma);
  detail::check_holes(function, config.holes, config.reward_at_hole);
  token_binder<Space> bind(function, "reward", batch.reward, batch.layout, batch.mask);
  const auto reward = bind.token("reward", batch.reward);
  if (!batch.truncated) bind.unused("next_value", bool(batch.next_value));
  const auto steps = detail::bind_time_steps<T>(bind, batch, reward);
  const auto returns = bind.written("returns", output.returns);

  auto run = exec.begin(function);
  const token_input<T> observed[] = {reward};
  const double* const figures = detail::scan_time_steps(
      run, bind.domain(), steps, observed, config, detail::return_scan<T>{config.gamma},
      detail::episode_return_scan<T>{config.gamma, static_cast<T>(config.gamma),
                                     steps.has_next_value},
      [&](auto& a) {
        a.end = steps.bootstrap;
        a.out[0] = returns;
      });
  return run.template finish<discounted_returns_result>(figures, &detail::read_returns);
}

}  // namespace rlhf::inline RLHF_COMPUTE
