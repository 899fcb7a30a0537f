#pragma once

#include <concepts>

namespace rlhf::inline v1 {

/// What losses and estimators compute in. Half types exist only as the storage of logits.
template <class T>
concept scalar = std::same_as<T, float> || std::same_as<T, double>;

/// Memory that the host's code may read.
struct host_space {};
/// Memory that belongs to the device of a stream.
struct device_space {};

/// A number that lives in the memory of the executor and may change between enqueue and run.
struct device_scalar {
  const double* value;
};

}  // namespace rlhf::inline v1
