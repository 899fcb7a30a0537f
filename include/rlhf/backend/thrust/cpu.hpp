#pragma once

#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>

#include "rlhf/backend/thrust/device_run.hpp"
#include "rlhf/backend/thrust/pending.hpp"

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// 16 threads of a device, one after the other.
template <class F>
struct each_of_16 {
  F f;
  RLHF_HOST_DEVICE void operator()(index i) const {
    using figures = typename F::figures;
    figures lane[virtual_lanes];
    for (int l = 0; l < virtual_lanes; ++l) lane[l] = f.lane(i, l);
    for (int half = static_cast<int>(virtual_lanes) / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) {
        for (int k = 0; k < figures::sums; ++k) lane[l].sum[k] += lane[l + half].sum[k];
        for (int k = 0; k < figures::ranges; ++k) {
          lane[l].low[k] = lower(lane[l].low[k], lane[l + half].low[k]);
          lane[l].high[k] = higher(lane[l].high[k], lane[l + half].high[k]);
        }
      }
    f.store(i, lane[0]);
  }
};

struct thrust_machine {
  void fetch(double* to, const double* from, index n) const {
    for (index k = 0; k < n; ++k) to[k] = from[k];
  }
};

}  // namespace detail

/// Thrust's device where that is the CPU (THRUST_DEVICE_SYSTEM CPP, OMP or TBB): the code of
/// cuda::stream without a GPU, for tests and for trying out a trainer. Calls return pending results
/// that are ready at once. For speed on a CPU take serial or parallel{pool}.
class thrust_device : public detail::device_workspace {
 public:
  using space = device_space;
  using machine = detail::thrust_machine;
  template <class R>
  using result = pending<R, machine>;
  static constexpr bool dry = false;

  thrust_device(void* workspace, std::size_t bytes) : device_workspace(workspace, bytes) {}

  device_run<thrust_device> begin(const char* function) const { return {*this, function}; }
  machine handle() const { return {}; }
  template <class F>
  void launch(index n, const F& f) const {
    thrust::for_each_n(thrust::device, thrust::counting_iterator<index>(0), n, f);
  }
  template <class F>
  void launch_lanes(index n, const F& f) const {
    launch(n, detail::each_of_16<F>{f});
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE
