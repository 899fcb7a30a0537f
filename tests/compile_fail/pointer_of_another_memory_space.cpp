// expect: rlhf: the tensor is in another memory space than the executor
#include "rlhf/backend/host.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"

template <class Space>
struct pointer_to {
  float* to;
};
template <class Space>
struct rlhf::pointer_traits<pointer_to<Space>> {
  using element = float;
  using space = Space;
  static element* raw(const pointer_to<Space>& p) { return p.to; }
};

void wrong() {
  float log_prob[2][3] = {}, old_log_prob[2][3] = {}, advantage[2] = {}, d_log_prob[2][3] = {};
  const pointer_to<rlhf::host_space> host{&log_prob[0][0]};
  const pointer_to<rlhf::device_space> device{&log_prob[0][0]};
  static_cast<void>(device);
#if defined(RLHF_CONTROL)
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {host, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#else
  rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {device, {2, 3}}, .old_log_prob = old_log_prob, .advantage = advantage},
      {.d_log_prob = d_log_prob}, {.over = rlhf::aggregation::token_mean(rlhf::local)});
#endif
}
