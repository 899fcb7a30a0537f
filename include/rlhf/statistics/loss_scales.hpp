#pragma once

#include "rlhf/statistics/aggregation.hpp"

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// *to = *from · factor (· *factor_at).
struct scale_by {
  const double* from;
  double factor;
  const double* factor_at;
  double* to;
  RLHF_HOST_DEVICE void operator()(index) const {
    *to = *from * (factor_at != nullptr ? factor * *factor_at : factor);
  }
};

}  // namespace detail

/// The factors of a loss of one term: of its value, and, with the upstream number, of its gradient.
/// An upstream tensor is an input of the kernel.
template <class T>
struct loss_scales {
  aggregation_plan<T> value;
  row_scale gradient;
};

/// `weight` multiplies the loss of each token; `factor` the whole term.
template <class T, class Run, class Space>
RLHF_NOINLINE loss_scales<T> plan_loss(Run& run, const token_domain<Space>& domain,
                                       const aggregation& over, const double* counts,
                                       const double* row_weight, const index_view<Space>& group_id,
                                       const upstream_scale<T, Space>& upstream,
                                       const token_input<T>& weight = {nullptr, 0, 0, 0, T(1)},
                                       const coefficient& factor = 1) {
  loss_scales<T> s;
  s.value = plan_aggregation<T>(run, domain, over, counts, row_weight, group_id, weight,
                                factor.device != nullptr ? 1 : factor.value, factor.device);
  const bool number = !upstream && upstream.device == nullptr;
  quotient gradient = s.value.share;
  gradient.upstream = number ? upstream.number : 1;
  gradient.upstream_at = upstream.device;
  s.gradient = run.scale(gradient);
  s.gradient.per_row = s.value.scale.per_row;
  return s;
}

/// The checks of an aggregation and of the group ids that go with it.
template <class Space>
void check_over(const token_binder<Space>& bind, const aggregation& over,
                const index_view<Space>& group_id) {
  detail::check_aggregation(bind.function(), over);
  if (over.mode() == aggregation_mode::group_mean_token_mean)
    bind.row_ids("group_id", group_id);
  else
    bind.unused("group_id", bool(group_id));
}

}  // namespace rlhf::inline RLHF_COMPUTE
