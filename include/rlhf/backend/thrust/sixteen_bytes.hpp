#pragma once

#include <cstdint>

#include "rlhf/core/config.hpp"

#if defined(__CUDACC__)
#include <cuda_runtime_api.h>
#endif

namespace rlhf::inline RLHF_COMPUTE::detail {

/// As many neighbours as 16 bytes hold, read or written at once where they lie so.
template <class X>
struct sixteen_bytes {
  static constexpr int count = static_cast<int>(16 / sizeof(X));
  X part[16 / sizeof(X)];
};

RLHF_HOST_DEVICE inline bool on_16_bytes(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}

template <class X>
RLHF_HOST_DEVICE RLHF_INLINE sixteen_bytes<X> load_16_bytes(const X* from) {
  sixteen_bytes<X> r;
#if defined(__CUDA_ARCH__)
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  __builtin_memcpy(&r, &words, 16);
#else
  __builtin_memcpy(static_cast<void*>(&r), from, 16);
#endif
  return r;
}
template <class X>
RLHF_HOST_DEVICE RLHF_INLINE void store_16_bytes(X* to, const sixteen_bytes<X>& x) {
#if defined(__CUDA_ARCH__)
  uint4 words;
  __builtin_memcpy(&words, &x, 16);
  *reinterpret_cast<uint4*>(to) = words;
#else
  __builtin_memcpy(static_cast<void*>(to), &x, 16);
#endif
}

}  // namespace rlhf::inline RLHF_COMPUTE::detail
