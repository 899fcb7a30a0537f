#pragma once

// Every algorithm and what is under it, without a backend: include one of backend/ beside it.

#include "rlhf/presets.hpp"
#include "rlhf/version.hpp"

#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/policy/policy_loss.hpp"
#include "rlhf/policy/reinforce.hpp"
#include "rlhf/policy/sequence_clipped_surrogate.hpp"

#include "rlhf/value/clipped_value_loss.hpp"
#include "rlhf/value/explained_variance.hpp"

#include "rlhf/advantage/discounted_returns.hpp"
#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/advantage/group_relative_advantage.hpp"
#include "rlhf/advantage/leave_one_out_advantage.hpp"
#include "rlhf/advantage/sample_statistics.hpp"
#include "rlhf/advantage/time_steps.hpp"

#include "rlhf/preference/dpo.hpp"

#include "rlhf/reward/bradley_terry.hpp"
#include "rlhf/reward/ensemble.hpp"

#include "rlhf/kl/adaptive_kl_controller.hpp"
#include "rlhf/kl/kl_estimate.hpp"
#include "rlhf/kl/kl_estimator.hpp"
#include "rlhf/kl/kl_penalty.hpp"

#include "rlhf/distribution/cross_entropy.hpp"
#include "rlhf/distribution/policy_from_logits.hpp"
#include "rlhf/distribution/row_binder.hpp"
#include "rlhf/distribution/token_log_prob.hpp"

#include "rlhf/statistics/aggregation.hpp"
#include "rlhf/statistics/loss_scales.hpp"
#include "rlhf/statistics/masked_mean.hpp"
#include "rlhf/statistics/metric.hpp"
#include "rlhf/statistics/moments.hpp"
#include "rlhf/statistics/nonfinite.hpp"
#include "rlhf/statistics/pair_loss.hpp"
#include "rlhf/statistics/row.hpp"
#include "rlhf/statistics/whiten.hpp"

#include "rlhf/primitive/count.hpp"
#include "rlhf/primitive/executor.hpp"
#include "rlhf/primitive/group_reduce.hpp"
#include "rlhf/primitive/map_reduce.hpp"
#include "rlhf/primitive/moment_reduce.hpp"
#include "rlhf/primitive/reverse_scan.hpp"
#include "rlhf/primitive/row_reduce.hpp"
#include "rlhf/primitive/tokens.hpp"

#include "rlhf/tensor/check.hpp"
#include "rlhf/tensor/layout.hpp"
#include "rlhf/tensor/shape.hpp"
#include "rlhf/tensor/traits.hpp"
#include "rlhf/tensor/view.hpp"

#include "rlhf/math/dual.hpp"
#include "rlhf/math/exp.hpp"
#include "rlhf/math/kl.hpp"
#include "rlhf/math/lane.hpp"
#include "rlhf/math/log.hpp"
#include "rlhf/math/math.hpp"
#include "rlhf/math/pack.hpp"
#include "rlhf/math/polynomial.hpp"
#include "rlhf/math/sigmoid.hpp"
#include "rlhf/math/single.hpp"
#include "rlhf/math/storage.hpp"

#include "rlhf/core/config.hpp"
#include "rlhf/core/contract.hpp"
#include "rlhf/core/scalar.hpp"
