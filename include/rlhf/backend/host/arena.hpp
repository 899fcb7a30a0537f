#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

#include "rlhf/core/config.hpp"
#include "rlhf/core/contract.hpp"

namespace rlhf::inline v1::detail {

/// The scratch memory of one call: bumps through the caller's workspace, or, without one, through a
/// little memory of its own, and then takes blocks from the heap and frees them at the end. A dry
/// arena only adds up.
class arena {
  static constexpr std::size_t alignment = 64;
  static constexpr std::size_t largest = static_cast<std::size_t>(-1) / 4;
  struct block {
    block* next;
  };

  const char* function_;
  std::byte* base_;
  std::size_t capacity_;
  std::size_t given_;
  std::size_t used_ = 0;
  block* blocks_ = nullptr;
  bool dry_;
  static constexpr std::size_t little = 1024;  // the scalars of a small call: no heap for those
  std::size_t little_used_ = 0;
  alignas(alignment) std::byte little_[little];

 public:
  arena(const char* function, void* workspace, std::size_t bytes, bool dry)
      : function_(function),
        base_(static_cast<std::byte*>(workspace)),
        capacity_(bytes),
        given_(bytes),
        dry_(dry) {
    if (base_ != nullptr) {
      const std::size_t skew = (alignment - reinterpret_cast<std::uintptr_t>(base_)) % alignment;
      base_ += skew < capacity_ ? skew : capacity_;
      capacity_ -= skew < capacity_ ? skew : capacity_;
    }
  }
  arena(const arena&) = delete;
  arena& operator=(const arena&) = delete;
  ~arena() {
    while (blocks_ != nullptr) {
      block* const next = blocks_->next;
      ::operator delete(blocks_, std::align_val_t(alignment));
      blocks_ = next;
    }
  }

  bool dry() const { return dry_; }
  std::size_t used() const { return used_; }
  /// What a workspace of any alignment must hold for the same call.
  std::size_t required() const { return used_ == 0 ? 0 : used_ + alignment; }
  const char* function() const { return function_; }

  template <class T>
  T* allocate(index n) {
    return static_cast<T*>(take(static_cast<std::size_t>(n > 0 ? n : 1), sizeof(T)));
  }

 private:
  [[noreturn, gnu::noinline, gnu::cold]] void fail_capacity() const {
    sentence s;
    s.add("what workspace_bytes says, ").add(static_cast<index>(used_ + alignment));
    s.add(" bytes or more");
    fail(function_, "workspace", s.c_str(), static_cast<index>(given_));
  }
  RLHF_NOINLINE void* take(std::size_t n, std::size_t size) {
    std::size_t bytes = 0;
    if (__builtin_mul_overflow(n, size, &bytes) || bytes > largest - used_) [[unlikely]]
      fail(function_, "workspace", "a batch whose scratch memory fits the address space",
           "one that does not");
    bytes = (bytes + alignment - 1) / alignment * alignment;
    used_ += bytes;
    if (dry_) return reinterpret_cast<void*>(alignment);  // never read, fit for arithmetic
    if (base_ != nullptr) {
      if (used_ > capacity_) [[unlikely]]
        fail_capacity();
      return base_ + (used_ - bytes);
    }
    if (bytes <= little - little_used_) {
      little_used_ += bytes;
      return little_ + (little_used_ - bytes);
    }
    auto* const head =
        static_cast<block*>(::operator new(bytes + alignment, std::align_val_t(alignment)));
    head->next = blocks_;
    blocks_ = head;
    return reinterpret_cast<std::byte*>(head) + alignment;
  }
};

}  // namespace rlhf::inline v1::detail
