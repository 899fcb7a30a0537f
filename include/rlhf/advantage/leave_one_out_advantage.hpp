#pragma once

#include "rlhf/advantage/sample_statistics.hpp"

namespace rlhf::inline v1 {

struct leave_one_out_advantage_config {
  rlhf::group_size group_size = {};  ///< group_size{8}: so many in a row; left out: by group_id
  single_group single = single_group::zero;
};

using leave_one_out_advantage_result = group_advantage_result;

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

template <class T>
struct leave_one_out_kernel {
  using partial = group_advantage_result;
  token_input<T> reward;
  token_output<T> advantage, baseline;
  single_group single;

  RLHF_HOST_DEVICE partial operator()(const sample_group& group) const {
    const group_rewards r = rewards_of(reward, group);
    partial figures = group_figures(r, 1);
    const double n = r.all.count;
    const bool alone = !(n > 1);
    const bool raw = alone && single == single_group::raw;
    const double factor = alone ? 1 : n / (n - 1);
    advantage_figures seen;
    for (index k = 0; k < group.size(); ++k) {
      const index i = group[k];
      const T given = reward.data[i * reward.per_row];
      if (math::is_nan(given)) {
        put(advantage, i, 0);
        put(baseline, i, 0);
        continue;
      }
      const double x = static_cast<double>(given);
      const double centred = math::detail::rounded_product(x - r.all.mean, factor);
      const double a = raw ? x : r.equal() ? 0 : centred;
      put(advantage, i, a);
      put(baseline, i, raw ? 0 : x - a);
      seen.add(a);
    }
    figures.advantage = seen.result();
    figures.advantages = {seen.low, seen.high};
    return figures;
  }
};

}  // namespace detail

/// Leave-one-out advantage of RLOO: a sample against the mean of the other answers to its prompt.
///
///     A_i = R_i − mean of R_j, j != i  =  n/(n − 1) · (R_i − mean of the group)
///
/// Shapes    reward, group_id, advantage, baseline: [batch], one per sample; losses take such an
///           advantage for all tokens of a row
/// Units     those of reward
/// Requires  group_id, or a config with .group_size = group_size{n} and n dividing the batch; not
///           both; deviation left out, as nothing is divided
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  none flows through an estimator: its outputs are constants of the losses
/// Edges     a group of equal rewards (max == min) gets exactly 0 and counts as degenerate; a group
///           of one what .single says; NaN is unscorable: outside all statistics, advantage 0,
///           counted; an infinity makes its group NaN and is counted
/// Numerics  mean in double about the group's first reward; one rounding at the end
/// Cost      three passes over a group, which stay in cache; groups that are not side by side are
///           sorted, O(n log n) in runs of equal ids; host: no allocation with a workspace
/// Source    Ahmadian et al. 2024, arXiv:2402.14740; Kool et al. 2019
/// Elsewhere TRL RLOO, verl rloo (groups of one: raw) and rloo_vectorized (zero), OpenRLHF rloo,
///           NeMo-RL GRPO with normalize_rewards off
/// Example   examples/grpo_step.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, leave_one_out_advantage_result> leave_one_out_advantage(
    const group_advantage_batch<T, space_of<Exec>>& batch,
    const group_advantage_output<T, space_of<Exec>>& output,
    const leave_one_out_advantage_config& config = {}, const Exec& exec = {}) {
  const char* const function = "leave_one_out_advantage";
  detail::sample_binder<space_of<Exec>> bind(function, "reward", batch.reward);
  if (output.deviation) [[unlikely]]
    detail::fail(function, "deviation", "to be left out: this call does not use it", "one");
  const detail::leave_one_out_kernel<T> kernel{
      bind.read("reward", batch.reward), bind.written("advantage", output.advantage),
      bind.written("baseline", output.baseline), config.single};
  const auto groups = bind_groups(function, bind.samples(), config.group_size, batch.group_id);
  auto run = exec.begin(function);
  double* const figures = run.template allocate<double>(group_advantage_result::size);
  run.group_reduce(groups, kernel, figures);
  return run.template finish<leave_one_out_advantage_result>(figures,
                                                             &group_advantage_result::read);
}

}  // namespace rlhf::inline RLHF_COMPUTE
