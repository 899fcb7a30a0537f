#pragma once

#include <thrust/execution_policy.h>
#include <thrust/for_each.h>
#include <thrust/iterator/counting_iterator.h>

#include "rlhf/backend/thrust/device_run.hpp"
#include "rlhf/backend/thrust/pending.hpp"

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

template <class F>
struct on_serial_lanes {
  F f;
  RLHF_HOST_DEVICE void operator()(index i) const { f(serial_lanes{}, i); }
};

template <class F>
struct on_serial_team {
  F f;
  RLHF_HOST_DEVICE void operator()(index i) const {
    typename F::shared s;
    f(serial_team<F::threads>{}, s, i);
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

  thrust_device(void* workspace, std::size_t bytes) : device_workspace(workspace, bytes) {
    if (ticket() != nullptr) *ticket() = 0;
  }

  device_run<thrust_device> begin(const char* function) const { return {*this, function}; }
  machine handle() const { return {}; }
  template <class F>
  void launch(index n, const F& f) const {
    thrust::for_each_n(thrust::device, thrust::counting_iterator<index>(0), n, f);
  }
  template <class F>
  void launch_lanes(index n, const F& f) const {
    launch(n, detail::on_serial_lanes<F>{f});
  }
  template <class F>
  void launch_team(index n, const F& f) const {
    launch(n, detail::on_serial_team<F>{f});
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE
