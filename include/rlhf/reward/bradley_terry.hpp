#pragma once

#include "rlhf/math/sigmoid.hpp"
#include "rlhf/statistics/pair_loss.hpp"

namespace rlhf::inline RLHF_COMPUTE::formula {

template <lane V>
struct bradley_terry_terms {
  V loss;
  V d_chosen_reward;
  V d_rejected_reward;
};

/// −log P(chosen beats rejected) of one pair, P = sigmoid(chosen − rejected − margin).
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE bradley_terry_terms<V> bradley_terry(const V& chosen_reward,
                                                                  const V& rejected_reward,
                                                                  const V& margin) {
  const V z = (chosen_reward - rejected_reward) - margin;
  const auto of = math::logistic(z);
  const V slope = of.sigmoid_of_minus;
  return {.loss = of.softplus_of_minus, .d_chosen_reward = -slope, .d_rejected_reward = slope};
}

/// The same against a target: the chosen answer is better with probability `target`.
/// target·softplus(−z) + (1 − target)·softplus(z), as a sum of terms that are all >= 0.
template <lane V>
RLHF_HOST_DEVICE RLHF_INLINE bradley_terry_terms<V> bradley_terry_soft(const V& chosen_reward,
                                                                       const V& rejected_reward,
                                                                       const V& margin,
                                                                       const V& target) {
  const V zero = math::constant<V>(0);
  const V z = (chosen_reward - rejected_reward) - margin;
  const V other = math::constant<V>(1) - target;
  const V shared = math::softplus(-math::abs(z));
  const V as_loss = target * math::select(z < zero, -z, zero);
  const V as_win = other * math::select(z > zero, z, zero);
  const V slope = target * math::sigmoid(-z) - other * math::sigmoid(z);
  return {
      .loss = shared + (as_loss + as_win), .d_chosen_reward = -slope, .d_rejected_reward = slope};
}

}  // namespace rlhf::inline RLHF_COMPUTE::formula

namespace rlhf::inline v1 {

template <scalar T, class Space = host_space>
struct bradley_terry_batch {
  named_only use_designators = named_only();
  view<const T, Space> chosen_reward = {};
  view<const T, Space> rejected_reward = {};
  view<const T, Space> margin = {};  ///< chosen must win by this much; left out: 0
  view<const T, Space> target = {};  ///< P(chosen is better), 0 to 1; 0.5 for a tie; left out: 1
  mask_view<Space> weight = {};      ///< a flag, or a weight >= 0; 0 = ignored
};

template <scalar T, class Space = host_space>
struct bradley_terry_output {
  named_only use_designators = named_only();
  output<T, Space> d_chosen_reward = {};
  output<T, Space> d_rejected_reward = {};
  output<T, Space> pair_loss = {};         ///< of each pair, unweighted
  upstream_scale<T, Space> upstream = {};  ///< a number, a device_scalar, or one number per pair
};

struct bradley_terry_config {
  double label_smoothing = 0;  ///< share of labels taken to be wrong, 0 to 0.5
  double centering = 0;        ///< + centering · (chosen + rejected)², >= 0; 0.01 is typical
  reduction over;              ///< no default: the caller says what divides the loss
  rlhf::nonfinite_policy nonfinite = nonfinite_policy::propagate;
};

using bradley_terry_result = pair_result;

}  // namespace rlhf::inline v1

namespace rlhf::inline RLHF_COMPUTE {

/// The formula with its constants: what pair_loss runs.
template <scalar T>
struct bradley_terry_term {
  static constexpr bool rewards_are_scores = true;

  T smoothing, kept, centering;
  bool soft;

  bradley_terry_term(const char* function, double label_smoothing, double centering_coefficient,
                     bool with_target) {
    expects(label_smoothing >= 0 && label_smoothing <= 0.5, function, "label_smoothing", "0 to 0.5",
            label_smoothing);
    expects(centering_coefficient >= 0 && centering_coefficient <= 1.7976931348623157e308, function,
            "centering", "a number that is finite and >= 0", centering_coefficient);
    smoothing = static_cast<T>(label_smoothing);
    kept = static_cast<T>(1 - 2 * label_smoothing);
    centering = static_cast<T>(centering_coefficient);
    soft = with_target || label_smoothing > 0;
  }

  template <lane V>
  RLHF_HOST_DEVICE RLHF_INLINE pair_terms<V> operator()(const scored_pair<V>& p) const {
    formula::bradley_terry_terms<V> b =
        soft ? formula::bradley_terry_soft(
                   p.chosen, p.rejected, p.margin,
                   math::constant<V>(kept) * p.target + math::constant<V>(smoothing))
             : formula::bradley_terry(p.chosen, p.rejected, p.margin);
    if (centering > 0) {
      const V sum = p.chosen + p.rejected;
      const V pull = math::constant<V>(centering) * sum;
      b.loss = b.loss + pull * sum;
      b.d_chosen_reward = b.d_chosen_reward + (pull + pull);
      b.d_rejected_reward = b.d_rejected_reward + (pull + pull);
    }
    return {b.loss, b.d_chosen_reward, b.d_rejected_reward, p.chosen, p.rejected};
  }
};

/// Bradley-Terry loss of a reward model, its gradient, and the metrics a trainer logs.
///
///     z    = chosen_reward − rejected_reward − margin
///     t    = target, smoothed: t (1 − 2 label_smoothing) + label_smoothing
///     loss = reduce(t·softplus(−z) + (1 − t)·softplus(z) + centering·(chosen + rejected)²)
///
/// Shapes    every tensor: [pairs], any stride
/// Units     rewards: any scale, in log-odds; weight: a flag, or a weight >= 0; 0 = ignored
/// Requires  one length; label_smoothing in [0, 0.5]; centering >= 0
/// Throws    contract_violation when a requirement is broken; nothing has been written by then
/// Gradient  without centering d_chosen_reward = −d_rejected_reward = w·(sigmoid(z) − t), exactly
///           opposite (w: weight / over); centering adds 2w·centering·(chosen + rejected) to both;
///           margin, target and weight are constants
/// Edges     ignored pairs are not read (NaN there is harmless) and get gradient 0; no pair gives
///           loss 0; equal rewards count as ties, not as accurate; z = ±1e4 is finite, in loss and
///           gradient; a target outside [0, 1] is not refused and leaves the loss unbounded below;
///           NaN or inf in a counted pair reaches the loss, unless .nonfinite drops it
/// Numerics  per pair <= 2 ULP in the loss and <= 1.3 ULP in the gradient, given z; no
///           log(sigmoid(z)), no 1 − sigmoid(z); sums: fixed tree, in double
/// Cost      one pass: 2 reads and 2 writes per pair; host: no allocation with a workspace
/// Source    Ouyang et al. 2022, arXiv:2203.02155, eq. 1; margin: Touvron et al. 2023,
///           arXiv:2307.09288, eq. 2; centering: Eisenstein et al. 2023, arXiv:2312.09244
/// Elsewhere TRL RewardTrainer, OpenRLHF PairWiseLoss (LogExpLoss is the same with margin 0),
///           NeMo-RL PreferenceLossFn
/// Example   examples/reward_model.cpp
template <scalar T, executor Exec = serial>
result_of<Exec, bradley_terry_result> bradley_terry_loss(
    const bradley_terry_batch<T, space_of<Exec>>& batch,
    const bradley_terry_output<T, space_of<Exec>>& output,
    const bradley_terry_config& config = detail::no_config<T, bradley_terry_config>::value,
    const Exec& exec = {}) {
  using Space = space_of<Exec>;
  const char* const function = "bradley_terry_loss";
  const bradley_terry_term<T> term(function, config.label_smoothing, config.centering,
                                   bool(batch.target));
  pair_binder<Space> bind(function, "chosen_reward", batch.chosen_reward, batch.weight);
  pair_arguments<T, Space> pairs;
  pairs.chosen = bind.pair("chosen_reward", batch.chosen_reward);
  pairs.rejected = bind.pair("rejected_reward", batch.rejected_reward);
  pairs.margin = bind.pair("margin", batch.margin, T(0));
  pairs.target = bind.pair("target", batch.target, T(1));
  bind.upstream(pairs, output.upstream);
  pairs.d_chosen = bind.written("d_chosen_reward", output.d_chosen_reward);
  pairs.d_rejected = bind.written("d_rejected_reward", output.d_rejected_reward);
  pairs.pair_loss = bind.written("pair_loss", output.pair_loss);
  pairs.domain = bind.domain();
  detail::check_normaliser(function, config.over.by());

  auto run = exec.begin(function);
  const double* const figures =
      reduce_pairs<T>(run, term, pairs, {.over = config.over, .nonfinite = config.nonfinite});
  return run.template finish<bradley_terry_result>(figures, &read_pairs<T, bradley_terry_term<T>>);
}

}  // namespace rlhf::inline RLHF_COMPUTE
