#pragma once

#include <concepts>
#include <type_traits>

#include "rlhf/core/contract.hpp"

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

  /// The address, which must be one: null would read as "not given".
  constexpr const double* address() const {
    if (value == nullptr) [[unlikely]]
      detail::fail("device_scalar", "value", "an address, not null");
    return value;
  }
};

/// A factor of a config: a number, or a device_scalar that a controller may keep on the device.
struct coefficient {
  double value = 0;
  const double* device = nullptr;

  constexpr coefficient() = default;
  template <class N>
    requires std::is_arithmetic_v<N>
  constexpr coefficient(N n) : value(static_cast<double>(n)) {}
  constexpr coefficient(device_scalar s) : device(s.address()) {}
  constexpr bool given() const { return value != 0 || device != nullptr; }
};

}  // namespace rlhf::inline v1
