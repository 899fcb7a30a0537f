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

namespace detail {

/// Stands for null, which would read as "not given", until a check names function and argument.
inline constexpr double no_address = 0;

inline void check_address(const char* function, const char* argument, const double* address) {
  expects(address != &no_address, function, argument, "an address in its device_scalar", "null");
}

}  // namespace detail

/// A number that lives in the memory of the executor and may change between enqueue and run.
struct device_scalar {
  const double* value;

  /// The address, which must not be null; the call it is given to checks that.
  constexpr const double* address() const { return value == nullptr ? &detail::no_address : value; }
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
