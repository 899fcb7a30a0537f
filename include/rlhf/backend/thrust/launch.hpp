#pragma once

#include <cuda_runtime_api.h>

#include <stdexcept>

#include "rlhf/core/contract.hpp"

namespace rlhf::inline v1 {

/// A failure of the CUDA runtime, thrown by the host call that saw it.
class cuda_error : public std::runtime_error {
  cudaError_t code_;

 public:
  cuda_error(cudaError_t code, const char* message) : std::runtime_error(message), code_(code) {}
  cudaError_t code() const { return code_; }
};

namespace detail {

inline void check_cuda(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) [[likely]]
    return;
  sentence s;
  s.add("CUDA: ").add(doing).add(": ").add(cudaGetErrorString(code));
#if defined(__cpp_exceptions) || defined(_CPPUNWIND)
  throw cuda_error(code, s.c_str());
#else
  report(s.c_str());
#endif
}

}  // namespace detail

}  // namespace rlhf::inline v1

#if defined(__CUDACC__)

namespace rlhf::inline RLHF_COMPUTE::detail {

/// How many blocks of a kernel a processor is to hold, which bounds the registers of a thread. Left
/// to itself the compiler spills some for the sake of more blocks.
template <class F, unsigned Otherwise>
constexpr unsigned least_blocks() {
  if constexpr (requires { F::least_blocks; })
    return F::least_blocks;
  else
    return Otherwise;
}

template <class F>
void enqueue(void (*kernel)(index, F), index n, const F& f, unsigned blocks, unsigned threads,
             cudaStream_t stream, std::size_t shared_bytes = 0) {
  const auto* const entry = reinterpret_cast<const void*>(kernel);
  if (shared_bytes > (std::size_t{48} << 10))
    check_cuda(cudaFuncSetAttribute(entry, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(shared_bytes)),
               "asking for shared memory");
  index count = n;
  F functor = f;
  void* arguments[] = {&count, &functor};
  check_cuda(cudaLaunchKernel(entry, dim3(blocks), dim3(threads), arguments, shared_bytes, stream),
             "launching a kernel");
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail

#endif
