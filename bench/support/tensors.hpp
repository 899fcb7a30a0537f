#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "bench/support/memory.hpp"
#include "rlhf/backend/host.hpp"

namespace rlhf_bench {

using rlhf::index;

/// Uniform numbers, the same on every machine.
class random_numbers {
  std::uint64_t state_ = 1;

 public:
  float operator()(float low, float high) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * static_cast<float>(state_ >> 40) * 0x1p-24f;
  }
};

template <class T>
constexpr const char* name_of_type() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  if constexpr (std::is_same_v<T, double>) return "float64";
  if constexpr (std::is_same_v<T, rlhf::bfloat16>) return "bfloat16";
  if constexpr (std::is_same_v<T, std::uint8_t>) return "uint8";
  if constexpr (std::is_same_v<T, std::int32_t>) return "int32";
  return "int64";
}

/// One input or output of a line.
struct tensor {
  std::string name;
  bool is_output;
  std::string type;
  std::size_t element;
  std::vector<index> shape, stride;
  memory bytes;

  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(bytes.data());
  }
};

/// The tensors of one line, by name, so that they can be written down beside the outputs.
class tensors {
  std::deque<tensor> all_;
  random_numbers random_;

 public:
  const std::deque<tensor>& all() const { return all_; }
  random_numbers& random() { return random_; }

  template <class T>
  T* add(const char* name, bool is_output, const std::vector<index>& shape,
         const std::vector<index>& stride = {}) {
    std::size_t n = 1;
    for (const index size : shape) n *= static_cast<std::size_t>(size);
    std::vector<index> dense(shape.size(), 1);
    for (std::size_t k = shape.size(); k-- > 1;) dense[k - 1] = dense[k] * shape[k];
    all_.push_back({name, is_output, name_of_type<T>(), sizeof(T), shape,
                    stride.empty() ? dense : stride, memory(n * sizeof(T))});
    T* const data = all_.back().template as<T>();
    for (std::size_t k = 0; k < n; ++k) data[k] = T{};  // the pages are there before a round
    return data;
  }
};

}  // namespace rlhf_bench
