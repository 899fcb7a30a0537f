#pragma once

#include <thrust/device_ptr.h>
#include <thrust/device_vector.h>
#include <thrust/host_vector.h>

#include "rlhf/tensor/layout.hpp"

namespace rlhf::inline v1 {

/// thrust::device_vector: rank 1, or with its shape behind it, {vector, {rows, columns}}. Its memory
/// is the device's even where Thrust's device is the CPU. A thrust::host_vector is a plain range of
/// the host.
template <class T, class Allocator>
struct tensor_traits<thrust::device_vector<T, Allocator>> {
  static constexpr bool owns = true;
  template <class Y>
  static auto raw(Y& x) {
    return detail::contiguous<std::remove_pointer_t<decltype(thrust::raw_pointer_cast(x.data()))>,
                              device_space>(thrust::raw_pointer_cast(x.data()), x.size());
  }
};

/// thrust::device_ptr with its shape: {pointer, {rows, columns}}.
template <class T>
struct pointer_traits<thrust::device_ptr<T>> {
  using element = T;
  using space = device_space;
  static T* raw(const thrust::device_ptr<T>& p) { return thrust::raw_pointer_cast(p); }
};

}  // namespace rlhf::inline v1
