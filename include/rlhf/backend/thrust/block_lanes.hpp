#pragma once

#include <cstddef>
#include <cstdint>
#include <thread>

#include "rlhf/primitive/map_reduce.hpp"

#if defined(__CUDACC__)
#include <cuda_pipeline.h>

#include "rlhf/backend/thrust/launch.hpp"
#endif

// Work that a block of threads does together, with memory they share, in phases. In a phase no
// thread reads what another one writes; so the phases of a GPU can be run one thread after the
// other, and the CPU's tests run the very text of the kernels.

namespace rlhf::inline RLHF_COMPUTE::detail {

inline constexpr int most_block_threads = 256;
/// What one block may have: 227 KiB on sm_90, 163 KiB on sm_80, less elsewhere.
inline constexpr std::size_t most_shared_bytes = std::size_t{227} << 10;

struct block_shape {
  int threads;
  std::size_t shared_bytes;
};

/// Hands out shared memory, the same on host and device.
struct shared_plan {
  std::size_t used = 0;
  RLHF_HOST_DEVICE std::size_t take(index n, std::size_t size) {
    const std::size_t at = used;
    used += (static_cast<std::size_t>(n > 0 ? n : 1) * size + 15) / 16 * 16;
    return at;
  }
};

/// A block of threads, here one after the other. On a GPU the same interface is that of a block:
///
///     threads()        how many
///     each(f)          a phase: f(t) on thread t; it ends when all have come back
///     own<X>           an X per thread, x[t] on thread t, in registers from phase to phase
///     shared<X>(at)    an X at a byte of the shared memory, undefined at first
///     copy(to, from)   16 bytes into shared memory, both aligned; there after fetched()
///     fetched()        ends all copies
///
/// Between blocks, on one thread:
///
///     take(counter)         its number, which then is one more
///     publish(flag, value)  a flag, seen after all that the block has written in earlier phases
///     observe(flag)         what is published so far; then published(x) reads what was written
class serial_block {
  int threads_;
  std::byte* shared_;

 public:
  template <class X>
  struct own {
    X value[most_block_threads];
    RLHF_HOST_DEVICE X& operator[](int t) { return value[t]; }
  };

  RLHF_HOST_DEVICE serial_block(int threads, std::byte* shared)
      : threads_(threads), shared_(shared) {}
  RLHF_HOST_DEVICE int threads() const { return threads_; }
  template <class F>
  RLHF_HOST_DEVICE void each(const F& f) const {
    for (int t = 0; t < threads_; ++t) f(t);
  }
  template <class X>
  RLHF_HOST_DEVICE X* shared(std::size_t at) const {
    return reinterpret_cast<X*>(shared_ + at);
  }
  RLHF_HOST_DEVICE void copy(void* to, const void* from) const { __builtin_memcpy(to, from, 16); }
  RLHF_HOST_DEVICE void fetched() const {}
  static index take(index* counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_RELAXED); }
  static void publish(int* flag, int value) { __atomic_store_n(flag, value, __ATOMIC_RELEASE); }
  static int observe(const int* flag) {
    const int value = __atomic_load_n(flag, __ATOMIC_ACQUIRE);
    if (value == 0) std::this_thread::yield();  // to the thread that is waited for
    return value;
  }
  static double published(const double* x) { return *x; }
};

/// f(block, i) with shared memory of its own, filled with what no kernel may read.
template <class F, class Block = serial_block>
struct on_serial_block {
  F f;
  block_shape shape;
  void operator()(index i) const {
    alignas(16) std::byte shared[most_shared_bytes];
    __builtin_memset(shared, 0xff, shape.shared_bytes);
    f(Block(shape.threads, shared), i);
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#if defined(__CUDACC__)

namespace rlhf::inline RLHF_COMPUTE::detail {

/// See serial_block.
class cuda_block {
  std::byte* shared_;

 public:
  template <class X>
  struct own {
    X value;
    __device__ X& operator[](int) { return value; }
  };

  __device__ explicit cuda_block(std::byte* shared) : shared_(shared) {}
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  template <class F>
  __device__ void each(const F& f) const {
    f(static_cast<int>(threadIdx.x));
    __syncthreads();
  }
  template <class X>
  __device__ X* shared(std::size_t at) const {
    return reinterpret_cast<X*>(shared_ + at);
  }
  __device__ void copy(void* to, const void* from) const { __pipeline_memcpy_async(to, from, 16); }
  __device__ void fetched() const {
    __pipeline_commit();
    __pipeline_wait_prior(0);
    __syncthreads();
  }
  __device__ static index take(index* counter) {
    static_assert(sizeof(index) == sizeof(unsigned long long));
    return static_cast<index>(atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull));
  }
  __device__ static void publish(int* flag, int value) {
    __threadfence();
    atomicExch(flag, value);
  }
  __device__ static int observe(const int* flag) {
    const int value = *static_cast<const volatile int*>(flag);
    __threadfence();
    return value;
  }
  __device__ static double published(const double* x) { return __ldcg(x); }
};

/// How many threads a kernel may be launched with.
template <class F>
constexpr int most_threads_of() {
  if constexpr (requires { F::most_threads; })
    return F::most_threads;
  else
    return most_block_threads;
}

template <class F>
__global__ void __launch_bounds__(most_threads_of<F>(), least_blocks<F, 3>())
    run_blocks(index n, F f) {
  extern __shared__ __align__(16) unsigned char shared_of_block[];
  const cuda_block block(reinterpret_cast<std::byte*>(shared_of_block));
  for (index i = blockIdx.x; i < n; i += gridDim.x) {
    f(block, i);
    __syncthreads();
  }
}

template <class F>
void enqueue_blocks(index n, const block_shape& shape, const F& f, cudaStream_t stream) {
  const index most = (index{1} << 31) - 1;
  enqueue(&run_blocks<F>, n, f, static_cast<unsigned>(n < most ? n : most),
          static_cast<unsigned>(shape.threads), stream, shape.shared_bytes);
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#endif

namespace rlhf::inline RLHF_COMPUTE::detail {

/// f(block, i) for each i in [0, n), in any order, on the machine of an executor.
template <class Exec, class F>
void launch_blocks(const Exec& exec, index n, const block_shape& shape, const F& f) {
  if (n <= 0) return;
#if defined(__CUDACC__)
  if constexpr (requires { exec.handle().stream; }) {
    enqueue_blocks(n, shape, f, exec.handle().stream);
    return;
  } else
#endif
      if constexpr (requires { typename Exec::block; })  // a test's own
    exec.launch(n, on_serial_block<F, typename Exec::block>{f, shape});
  else
    exec.launch(n, on_serial_block<F>{f, shape});
}

/// What one block of the executor's device may share.
template <class Exec>
std::size_t shared_bytes_of([[maybe_unused]] const Exec& exec) {
#if defined(__CUDACC__)
  if constexpr (requires { exec.handle().stream; }) {
    int device = 0, bytes = 0;
    check_cuda(cudaGetDevice(&device), "asking for the device");
    check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "asking for shared memory");
    const auto all = static_cast<std::size_t>(bytes);
    return all < most_shared_bytes ? all : most_shared_bytes;
  }
#endif
  return most_shared_bytes;
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
