#pragma once

#include "rlhf/backend/thrust/device_run.hpp"
#include "rlhf/backend/thrust/launch.hpp"
#include "rlhf/backend/thrust/pending.hpp"

namespace rlhf::inline v1::detail {

struct cuda_machine {
  cudaStream_t stream;
  void fetch(double* to, const double* from, index n) const {
    check_cuda(cudaMemcpyAsync(to, from, static_cast<std::size_t>(n) * sizeof(double),
                               cudaMemcpyDeviceToHost, stream),
               "copying a result");
    check_cuda(cudaStreamSynchronize(stream), "waiting for a result");
  }
};

}  // namespace rlhf::inline v1::detail

#if defined(__CUDACC__)

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

inline constexpr unsigned threads_per_block = 256;

template <class F>
__global__ void __launch_bounds__(threads_per_block, 1) run_each(index n, F f) {
  const index stride = static_cast<index>(gridDim.x) * threads_per_block;
  for (index i = static_cast<index>(blockIdx.x) * threads_per_block + threadIdx.x; i < n;
       i += stride)
    f(i);
}

/// See serial_lanes. Both halves of a warp may be at different things, so each names its own
/// threads.
class half_warp {
  int lane_;
  unsigned threads_;

  template <class X>
  __device__ X down(X x, int by) const {
    return __shfl_down_sync(threads_, x, static_cast<unsigned>(by), width);
  }
  template <class X>
  __device__ X from(X x, int l) const {
    return __shfl_sync(threads_, x, l, width);
  }

 public:
  static constexpr int width = static_cast<int>(virtual_lanes);

  __device__ half_warp()
      : lane_(static_cast<int>(threadIdx.x % width)), threads_(0xffffu << (threadIdx.x & 16u)) {}

  template <class X>
  struct each_lane {
    X value;
    __device__ X& operator[](int) { return value; }
  };

  template <class F>
  __device__ void each(const F& f) const {
    f(lane_);
  }
  template <class F>
  __device__ double sum(const F& f) const {
    auto x = static_cast<double>(f(lane_));
    for (int half = width / 2; half > 0; half /= 2) x += down(x, half);
    return from(x, 0);
  }
  template <class F>
  __device__ auto largest(const F& f) const {
    auto top = f(lane_);
    for (int half = width / 2; half > 0; half /= 2) {
      const auto x = down(top, half);
      top = x > top ? x : top;
    }
    return from(top, 0);
  }
  template <class F>
  __device__ index least(const F& f) const {
    auto r = static_cast<long long>(f(lane_));
    for (int half = width / 2; half > 0; half /= 2) {
      const auto x = down(r, half);
      r = x < r ? x : r;
    }
    return static_cast<index>(from(r, 0));
  }
  template <class F>
  __device__ auto merge(const F& f) const {
    auto r = f(lane_);
    using figures = decltype(r);
    for (int half = width / 2; half > 0; half /= 2) {
      for (int k = 0; k < figures::sums; ++k) r.sum[k] += down(r.sum[k], half);
      for (int k = 0; k < figures::ranges; ++k) {
        r.low[k] = lower(r.low[k], down(r.low[k], half));
        r.high[k] = higher(r.high[k], down(r.high[k], half));
      }
    }
    return r;
  }
  template <class F>
  __device__ void first(const F& f) const {
    if (lane_ == 0) f();
  }
  __device__ double share(double x) const { return from(x, 0); }
  template <class X>
  __device__ X at(each_lane<X>& x, int l) const {
    return from(x.value, l);
  }
  __device__ void sync() const { __syncwarp(threads_); }
};

template <class F>
__global__ void __launch_bounds__(threads_per_block, 1) run_lanes(index n, F f) {
  constexpr index width = virtual_lanes;
  const index stride = static_cast<index>(gridDim.x) * (threads_per_block / width);
  const half_warp lanes;
  for (index i = static_cast<index>(blockIdx.x) * (threads_per_block / width) + threadIdx.x / width;
       i < n; i += stride)
    f(lanes, i);
}

/// See serial_team.
template <int Width>
class block_team {
 public:
  static constexpr int width = Width;

  template <class X>
  struct own {
    X value;
    __device__ X& operator[](int) { return value; }
  };

  template <class F>
  __device__ void each(const F& f) const {
    f(static_cast<int>(threadIdx.x));
  }
  __device__ void sync() const { __syncthreads(); }
  template <class M, class F, class S>
  __device__ void merge16(const M& m, const F& f, const S& store) const {
    const int t = static_cast<int>(threadIdx.x);
    double x = f(t);
    for (unsigned half = 8; half > 0; half /= 2)
      x = m(x, __shfl_down_sync(0xffffffffu, x, half, 16));
    if (t % 16 == 0) store(t, x);
  }
  __device__ bool arrive(unsigned* at, index n, bool& last) const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      last = static_cast<index>(atomicAdd(at, 1u)) + 1 == n;
      if (last) *at = 0;
      __threadfence();
    }
    __syncthreads();
    return last;
  }
  __device__ int next(int& n) const { return atomicAdd(&n, 1); }
  /// From where all blocks see it: what another has written may not be in this one's cache.
  template <class X>
  __device__ X fetch(const X* p) const {
    return __ldcg(p);
  }
};

template <class F>
__global__ void __launch_bounds__(F::threads, least_blocks<F, 1>()) run_team(index, F f) {
  __shared__ typename F::shared s;
  f(block_team<F::threads>(), s, static_cast<index>(blockIdx.x));
}

/// Blocks for n threads; a kernel walks on where there are more than fit one grid.
constexpr unsigned blocks_for(index n, index threads_each) {
  const index most = 1 << 20;
  const index per_block = threads_per_block / threads_each;
  const index blocks = (n + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < most ? blocks : most);
}
static_assert(blocks_for(1, 1) == 1 && blocks_for(256, 1) == 1 && blocks_for(257, 1) == 2);
static_assert(blocks_for(17, 16) == 2 && blocks_for(index{1} << 40, 1) == 1u << 20);

}  // namespace detail

namespace cuda {

/// What a call on a stream returns; see rlhf::pending.
template <class R>
using pending = rlhf::pending<R, detail::cuda_machine>;

/// A CUDA stream. A call checks shapes on the host, enqueues its kernels and returns a
/// cuda::pending: it waits for nothing, allocates nothing and reads nothing back, so it can be
/// captured in a graph. Normaliser, coefficient and upstream may be device_scalars.
///
///     const std::size_t bytes = rlhf::device_workspace_bytes(
///         [&](const auto& exec) { return dpo_loss<float>({...}, {...}, {...}, exec); });
///     rlhf::cuda::stream on{stream, workspace, bytes};   // workspace: device memory of the caller
///     auto call = dpo_loss<float>({...}, {...}, {...}, on);
///     const dpo_result r = call.get();                   // waits
///     on.reset();                                        // frees the memory of results
///
/// It serves one thread at a time, and the workspace one stream. Making one enqueues the clearing of
/// 256 bytes; captured calls may be replayed, since each kernel leaves them as it found them. Sums
/// have the order of the host.
class stream : public detail::device_workspace {
  cudaStream_t stream_;

 public:
  using space = device_space;
  using machine = detail::cuda_machine;
  template <class R>
  using result = pending<R>;
  static constexpr bool dry = false;

  stream(cudaStream_t stream, void* workspace, std::size_t bytes)
      : device_workspace(workspace, bytes), stream_(stream) {
    if (ticket() != nullptr)
      detail::check_cuda(cudaMemsetAsync(ticket(), 0, detail::ticket_bytes, stream),
                         "clearing the ticket of a workspace");
  }

  device_run<stream> begin(const char* function) const { return {*this, function}; }
  machine handle() const { return {stream_}; }
  template <class F>
  void launch(index n, const F& f) const {
    detail::enqueue(&detail::run_each<F>, n, f, detail::blocks_for(n, 1), detail::threads_per_block,
                    stream_);
  }
  template <class F>
  void launch_lanes(index n, const F& f) const {
    detail::enqueue(&detail::run_lanes<F>, n, f, detail::blocks_for(n, virtual_lanes),
                    detail::threads_per_block, stream_);
  }
  template <class F>
  void launch_team(index n, const F& f) const {
    if (n > 0x7fffffff) [[unlikely]]  // of 16,384 tokens and more each
      detail::fail("cuda::stream", "batch", "at most 2^31 - 1 units of work", n);
    detail::enqueue(&detail::run_team<F>, n, f, static_cast<unsigned>(n),
                    static_cast<unsigned>(F::threads), stream_);
  }
};

}  // namespace cuda

}  // namespace rlhf::inline RLHF_COMPUTE

#endif
