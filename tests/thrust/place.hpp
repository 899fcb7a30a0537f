#pragma once

// One body of calls, two places: tensors of the host with `serial`, and Thrust's device with the
// executor that belongs to it. What both leave behind is compared.

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>
#include <type_traits>
#include <vector>

#include <doctest/doctest.h>
#include <thrust/device_vector.h>
#include <thrust/host_vector.h>

#include "rlhf/backend/thrust.hpp"

namespace thrust_test {

using index = rlhf::index;

/// Everything a call has written and returned, as numbers that can be compared.
using trace = std::vector<double>;

/// Numbers for tests: from integers, so that every compiler makes the same ones.
class numbers {
  std::uint64_t state_;

 public:
  explicit numbers(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  std::uint64_t bits() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return state_;
  }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(bits() >> 40) * 0x1p-24;
  }
  index below(index n) { return static_cast<index>(bits() % static_cast<std::uint64_t>(n)); }
  template <class T>
  std::vector<T> many(index n, double low, double high) {
    std::vector<T> x(static_cast<std::size_t>(n));
    for (T& value : x) value = static_cast<T>(uniform(low, high));
    return x;
  }
};

/// Under a tool that watches every access (RLHF_REDUCED_TESTS=1) large sizes are left out.
inline bool is_left_out(index tokens) {
  static const bool reduced = std::getenv("RLHF_REDUCED_TESTS") != nullptr;
  return reduced && tokens > 4000;
}

struct host_place {
  using space = rlhf::host_space;
  static constexpr bool on_device = false;
  template <class T>
  using vector = thrust::host_vector<T>;

  rlhf::serial exec;

  template <class R>
  static R get(const R& r) {
    return r;
  }
  void done() {}
};

/// Memory in which what no one wrote is NaN. In lines, because Thrust fills it element by element.
struct memory_line {
  std::uint64_t word[8];
};
inline thrust::device_vector<memory_line> nan_memory(std::size_t bytes) {
  memory_line line;
  std::memset(&line, 0xff, sizeof line);
  return thrust::device_vector<memory_line>((bytes + sizeof line - 1) / sizeof line, line);
}

#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_CUDA
using device_executor = rlhf::cuda::stream;
inline device_executor device_executor_on(void* memory, std::size_t bytes) {
  return {nullptr, memory, bytes};
}
#else
using device_executor = rlhf::thrust_device;
inline device_executor device_executor_on(void* memory, std::size_t bytes) {
  return {memory, bytes};
}
#endif

struct device_place {
  using space = rlhf::device_space;
  static constexpr bool on_device = true;
  template <class T>
  using vector = thrust::device_vector<T>;

  thrust::device_vector<memory_line> memory;
  device_executor exec;

  explicit device_place(std::size_t bytes = std::size_t{1} << 24)
      : memory(nan_memory(bytes)),
        exec(device_executor_on(thrust::raw_pointer_cast(memory.data()), bytes)) {}

  template <class P>
  static auto get(const P& pending) {
    return pending.get();
  }
  void done() { exec.reset(); }
};

/// A tensor of a place: {x.data, x.shape} is how it is given to a call.
template <class Place, class T>
struct tensor {
  typename Place::template vector<T> data;
  rlhf::shape shape;

  tensor(const std::vector<T>& values, const rlhf::shape& s)
      : data(values.begin(), values.end()), shape(s) {}
  tensor(T fill, const rlhf::shape& s) : shape(s) {
    index n = 1;
    for (int k = 0; k < s.rank; ++k) n *= s.size[k];
    data.assign(static_cast<std::size_t>(n), fill);
  }
  rlhf::view<T, typename Place::space> view() { return {data, shape}; }
  rlhf::mask_view<typename Place::space> mask() { return {data, shape}; }
  void read(trace& to) const {
    const thrust::host_vector<T> copy = data;
    for (const T& x : copy) {
      if constexpr (sizeof(T) == 2)
        to.push_back(static_cast<double>(static_cast<float>(x)));
      else
        to.push_back(static_cast<double>(x));
    }
  }
};

/// Results are made of doubles alone.
template <class R>
void read_result(const R& r, trace& to) {
  static_assert(std::is_trivially_copyable_v<R> && sizeof(R) % sizeof(double) == 0);
  double figures[sizeof(R) / sizeof(double)];
  std::memcpy(figures, &r, sizeof r);
  to.insert(to.end(), std::begin(figures), std::end(figures));
}

/// A number in the memory of a place.
template <class Place>
struct number {
  typename Place::template vector<double> data;
  explicit number(double x) : data(1, x) {}
  rlhf::device_scalar at() {
    const double* const p = thrust::raw_pointer_cast(data.data());
    return rlhf::device_scalar{p};
  }
};

inline bool same_bits(double a, double b) {
  return (a != a && b != b) || std::memcmp(&a, &b, sizeof a) == 0;
}

/// The largest of some numbers on either side: what rounding is measured by.
inline double scale_around(const trace& x, std::size_t at) {
  constexpr std::size_t reach = 16;
  double scale = 0;
  for (std::size_t k = at > reach ? at - reach : 0; k < x.size() && k <= at + reach; ++k)
    if (std::isfinite(x[k]) && std::fabs(x[k]) > scale) scale = std::fabs(x[k]);
  return scale;
}

/// Where the traces differ first; empty where they do not. `tolerance` 0 asks for the same bits.
inline std::string difference(const trace& a, const trace& b, double tolerance) {
  if (a.size() != b.size())
    return "sizes " + std::to_string(a.size()) + ", " + std::to_string(b.size());
  for (std::size_t k = 0; k < a.size(); ++k) {
    if (same_bits(a[k], b[k])) continue;
    if (tolerance > 0 && std::fabs(a[k] - b[k]) <= tolerance * scale_around(a, k)) continue;
    return "number " + std::to_string(k) + " of " + std::to_string(a.size()) + ": " +
           std::to_string(a[k]) + " and " + std::to_string(b[k]) + ", apart by " +
           std::to_string((a[k] - b[k]) * 1e9) + "e-9";
  }
  return "";
}

/// The CPU has the same bits, and in strict mode a GPU. Else it fuses a·b + c where a CPU may not.
template <class T>
double tolerance() {
#if THRUST_DEVICE_SYSTEM == THRUST_DEVICE_SYSTEM_CUDA && !defined(RLHF_STRICT)
  return sizeof(T) == sizeof(double) ? 1e-12 : 2e-5;
#else
  return 0;
#endif
}

/// Runs `body(place, trace)` in both places and compares.
template <class T, class Body>
void compare(const Body& body) {
  trace host, device;
  host_place at_home;
  body(at_home, host);
  device_place away;
  body(away, device);
  CHECK(host.size() > 0);
  CHECK(difference(host, device, tolerance<T>()) == "");
}

}  // namespace thrust_test
