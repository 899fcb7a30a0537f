#pragma once

#include "rlhf/advantage/sample_statistics.hpp"

namespace rlhf::inline v1 {

/// What an advantage is measured in.
enum class group_scale : unsigned char {
  group_std,  ///< standard deviation of the sample's group (GRPO)
  none,       ///< reward itself (Dr. GRPO): hard and easy prompts weigh by their spread
  batch_std   ///< standard deviation of all rewards of the call (Lite PPO)
};

/// Whose mean and standard deviation a sample is compared with.
enum class group_statistics : unsigned char {
  all,           ///< the whole group, the sample itself among them
  leave_one_out  ///< the other samples; where they agree, the difference is not scaled
};

struct group_relative_advantage_config {
  rlhf::group_size group_size = {};  ///< group_size{8}: so many in a row; left out: by group_id
  group_scale scale = group_scale::group_std;
  group_statistics statistics = group_statistics::all;
  double epsilon = 1e-6;  ///< >= 0; it matters where rewards nearly agree
  rlhf::epsilon_mode epsilon_mode = rlhf::epsilon_mode::add;
  double ddof = 1;  ///< variance = m2 / (n − ddof), >= 0; 1 in every trainer, 0 in the paper
  single_group single = single_group::zero;
};

using group_relative_advantage_result = group_advantage_result;

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Moments of the rewards of a whole batch, group by group.
template <class T>
struct reward_figures {
  using partial = group_advantage_result;
  token_input<T> reward;
  RLHF_HOST_DEVICE partial operator()(const sample_group& group) const {
    return group_figures(rewards_of(reward, group), 1);
  }
};

template <class T>
struct group_relative_kernel {
  using partial = group_advantage_result;
  token_input<T> reward;
  token_output<T> advantage, baseline, deviation;
  group_scale scale;
  group_statistics statistics;
  double epsilon;
  epsilon_mode mode;
  double ddof;
  single_group single;
  const double* batch;  // figures of reward_figures; null unless the scale is the batch's

  RLHF_HOST_DEVICE partial operator()(const sample_group& group) const {
    const group_rewards r = rewards_of(reward, group);
    partial figures = group_figures(r, ddof);
    const bool alone = !(r.all.count > 1);
    const bool silent = r.equal() && !(alone && single == single_group::raw);
    double spread = 0;
    if (scale == group_scale::batch_std) {
      const moments whole{batch[0], batch[1], batch[2]};
      spread = batch[6] == batch[7] ? 0 : whole.variance(ddof);
    } else if (scale == group_scale::group_std) {
      spread = r.all.variance(ddof);
    }
    double factor = factor_of(spread);
    double mean = alone && single == single_group::raw ? 0 : r.all.mean;
    advantage_figures seen;
    for (index k = 0; k < group.size(); ++k) {
      const index i = group[k];
      const T given = reward.data[i * reward.per_row];
      if (math::is_nan(given)) {
        put(advantage, i, 0);
        put(baseline, i, 0);
        put(deviation, i, 0);
        continue;
      }
      const double x = static_cast<double>(given);
      if (statistics == group_statistics::leave_one_out && !alone) {
        const moments others = r.without(x);
        mean = others.mean;
        if (scale == group_scale::group_std) {
          spread = others.variance(ddof);
          factor = factor_of(spread);
        }
      }
      const double a = silent ? 0 : math::detail::rounded_product(x - mean, factor);
      put(advantage, i, a);
      put(baseline, i, mean);
      put(deviation, i, math::sqrt(spread));
      seen.add(a);
    }
    figures.advantage = seen.result();
    figures.advantages = {seen.low, seen.high};
    return figures;
  }

 private:
  RLHF_HOST_DEVICE double factor_of(double spread) const {
    return spread == 0 ? 1 : scale_of(spread, epsilon, mode).scale;
  }
};

}  // namespace detail

/// Group relative advantage of GRPO and its kin: a sample against the other answers to its prompt.
///
///     A_i = (R_i − mean of the group) / (standard deviation of the group + epsilon)
///
/// .scale = none leaves the division out (Dr. GRPO); batch_std divides by that of all rewards (Lite
/// PPO). .statistics = leave_one_out takes mean and deviation of the others alone.
///
/// Shapes    reward, group_id, advantage, baseline, deviation: [batch], one per sample; losses take
///           such an advantage for all tokens of a row
/// Units     reward: any; advantage: standard deviations, or the reward's unit with scale none
/// Requires  group_id, or a config with .group_size = group_size{n} and n dividing the batch; not
///           both; epsilon >= 0; ddof >= 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none flows through an estimator: its outputs are constants of the losses
/// Edges     a group of equal rewards (max == min) gets exactly 0 and counts as degenerate; a group
///           of one what .single says; a spread of 0, or of less than ddof + 1 samples, does not
///           divide; NaN is unscorable: outside all statistics, advantage 0, counted; an infinity
///           makes its group NaN and is counted
/// Numerics  statistics in double about the group's first reward: a reward of 1e6 with differences
///           of 1 loses nothing; one rounding at the end
/// Cost      three passes over a group, which stay in cache; groups that are not side by side are
///           sorted, O(n log n) in runs of equal ids; host: no allocation with a workspace
/// Source    Shao et al. 2024, arXiv:2402.03300; no scale: Liu et al. 2025, arXiv:2503.20783; batch
///           scale: Liu et al. 2025, arXiv:2508.08221
/// Elsewhere TRL GRPO (epsilon 1e-4), verl grpo, OpenRLHF group_norm (1e-9) and dr_grpo, slime
///           grpo, torchrl MCAdvantage (epsilon_mode::floor), NeMo-RL GRPO (leave_one_out)
/// Example   examples/grpo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, group_relative_advantage_result> group_relative_advantage(
    const group_advantage_batch<T, space_of<Exec>>& batch,
    const group_advantage_output<T, space_of<Exec>>& output,
    const group_relative_advantage_config& config = {}, const Exec& exec = {}) {
  const char* const function = "group_relative_advantage";
  expects(config.epsilon >= 0 && config.epsilon <= 1.7976931348623157e308, function, "epsilon",
          "a number that is finite and >= 0", config.epsilon);
  expects(config.ddof >= 0 && config.ddof <= 1.7976931348623157e308, function, "ddof",
          "a number that is finite and >= 0", config.ddof);
  detail::sample_binder<space_of<Exec>> bind(function, "reward", batch.reward);
  detail::group_relative_kernel<T> kernel{bind.read("reward", batch.reward),
                                          bind.written("advantage", output.advantage),
                                          bind.written("baseline", output.baseline),
                                          bind.written("deviation", output.deviation),
                                          config.scale,
                                          config.statistics,
                                          config.epsilon,
                                          config.epsilon_mode,
                                          config.ddof,
                                          config.single,
                                          nullptr};
  const auto groups = bind_groups(function, bind.samples(), config.group_size, batch.group_id);

  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(group_advantage_result::size);
  if (config.scale == group_scale::batch_std) {
    double* const whole = run.template allocate<double>(group_advantage_result::size);
    run.group_reduce(groups, detail::reward_figures<T>{kernel.reward}, whole);
    kernel.batch = whole;
  }
  run.group_reduce(groups, kernel, figures);
  return run.template finish<group_relative_advantage_result>(figures,
                                                              &group_advantage_result::read);
}

}  // namespace rlhf::inline RLHF_COMPUTE
