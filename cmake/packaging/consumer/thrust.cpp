// Thrust's device is the CPU here, so that it runs on every machine.
#define THRUST_DEVICE_SYSTEM THRUST_DEVICE_SYSTEM_CPP
#include <rlhf/backend/thrust.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>

#include <thrust/device_vector.h>

#include <cstddef>
#include <iterator>

#include "batch.hpp"

namespace {

template <class T>
thrust::device_vector<T> on_device(const T (&values)[3]) {
  return {std::begin(values), std::end(values)};
}

}  // namespace

int main() {
  const auto log_prob = on_device(log_prob_of), old_log_prob = on_device(old_log_prob_of),
             advantage = on_device(advantage_of);
  const auto ends = on_device(ends_of);
  thrust::device_vector<float> d_log_prob(3);
  const auto call = [&](const auto& exec) {
    return rlhf::clipped_surrogate_loss<float>(
        {.log_prob = log_prob,
         .old_log_prob = old_log_prob,
         .advantage = advantage,
         .layout = rlhf::packed(ends)},
        {.d_log_prob = d_log_prob},
        {.clip_low = 0.2, .clip_high = 0.28, .over = rlhf::aggregation::token_mean(rlhf::local)},
        exec);
  };
  thrust::device_vector<std::byte> memory(rlhf::device_workspace_bytes(call));
  const rlhf::thrust_device exec(thrust::raw_pointer_cast(memory.data()), memory.size());
  const double loss = call(exec).get().loss;
  return verdict("thrust", loss, d_log_prob[2]);
}
