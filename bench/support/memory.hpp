#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace rlhf_bench {

/// Bytes at a 64-byte boundary, not initialised.
class memory {
  struct release {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(64)); }
  };
  std::size_t size_ = 0;
  std::unique_ptr<std::byte, release> data_;

 public:
  memory() = default;
  explicit memory(std::size_t bytes)
      : size_(bytes),
        data_(
            static_cast<std::byte*>(::operator new(bytes == 0 ? 1 : bytes, std::align_val_t(64)))) {
  }
  std::byte* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
};

}  // namespace rlhf_bench
