#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "rlhf/core/contract.hpp"

namespace rlhf::inline v1::detail {

inline constexpr index most_figures = 256;
inline constexpr int most_refusals = 16;
inline constexpr std::size_t device_alignment = 256;
inline constexpr std::size_t ticket_bytes = device_alignment;
inline constexpr std::size_t result_bytes = 2304;  // figures and refusals, rounded up
static_assert(result_bytes % device_alignment == 0);
static_assert((most_figures + most_refusals) * sizeof(double) <= result_bytes);

/// The memory of an executor whose calls return before they have run. In front lies the count of
/// teams that have finished, 0 between kernels. Scratch of a call grows from there and is free for
/// the next call, because one stream runs them in order; results grow from the back and stay until
/// reset().
class device_workspace {
  std::byte* base_ = nullptr;
  std::size_t bytes_ = 0;
  mutable std::size_t results_ = 0;

 public:
  device_workspace() = default;
  device_workspace(void* workspace, std::size_t bytes) {
    if (workspace == nullptr) return;
    const auto skew = static_cast<std::size_t>(
        (device_alignment - reinterpret_cast<std::uintptr_t>(workspace) % device_alignment) %
        device_alignment);
    if (skew >= bytes) return;
    base_ = static_cast<std::byte*>(workspace) + skew;
    bytes_ = (bytes - skew) / device_alignment * device_alignment;
    if (bytes_ < ticket_bytes) base_ = nullptr, bytes_ = 0;
  }

  unsigned* ticket() const { return reinterpret_cast<unsigned*>(base_); }
  void* scratch() const { return base_ == nullptr ? nullptr : base_ + ticket_bytes; }
  /// What is left beside the results that are held and that of the call that asks.
  std::size_t scratch_bytes() const {
    const std::size_t held = results_ + result_bytes + ticket_bytes;
    return held < bytes_ ? bytes_ - held : 0;
  }
  /// Where the result of the next call will lie; null where there is no room for one.
  double* next_result() const {
    return results_ + result_bytes + ticket_bytes <= bytes_
               ? reinterpret_cast<double*>(base_ + (bytes_ - results_ - result_bytes))
               : nullptr;
  }
  double* take_result() const {
    results_ += result_bytes;
    return reinterpret_cast<double*>(base_ + (bytes_ - results_));
  }
  /// Frees the memory of all results; call it when none of them is wanted any more.
  void reset() { results_ = 0; }
};

/// The scratch of one call. The figures of its result, which are allocated first, lie where the
/// result is read from. A dry run hands out addresses that no one may follow, so that it takes the
/// same turns as the call.
class device_arena {
  const char* function_;
  std::byte* base_;
  std::size_t capacity_;
  std::size_t used_ = 0;
  std::size_t most_ = 0;
  bool dry_;
  double* result_;
  index figures_ = 0;

  // Where an allocation ends, for the few that may hold figures.
  struct block {
    const void* begin;
    const void* end;
  };
  block block_[64];
  int blocks_ = 0;

 public:
  device_arena(const char* function, void* workspace, std::size_t bytes, bool dry, double* result)
      : function_(function),
        base_(dry ? reinterpret_cast<std::byte*>(device_alignment)
                  : static_cast<std::byte*>(workspace)),
        capacity_(dry ? ~std::size_t{0} / 2 : bytes),
        dry_(dry),
        result_(dry ? reinterpret_cast<double*>(std::uintptr_t{1} << 60) : result) {}
  device_arena(const device_arena&) = delete;
  device_arena& operator=(const device_arena&) = delete;

  bool dry() const { return dry_; }
  const char* function() const { return function_; }
  std::size_t most() const { return most_; }
  std::size_t mark() const { return used_; }
  void release(std::size_t mark) {
    used_ = mark;
    while (blocks_ > 0 && block_[blocks_ - 1].begin >= base_ + mark) --blocks_;
  }
  bool holds(const void* p) const {
    return base_ != nullptr && p >= base_ && p < base_ + capacity_;
  }

  template <class T>
  T* allocate(index n) {
    if constexpr (std::is_same_v<T, double>)
      if (figures_ == 0 && used_ == 0 && n >= 1 && n <= most_figures && result_ != nullptr) {
        figures_ = n;
        return result_;
      }
    const auto bytes =
        (static_cast<std::size_t>(n > 0 ? n : 1) * sizeof(T) + device_alignment - 1) /
        device_alignment * device_alignment;
    used_ += bytes;
    if (used_ > most_) most_ = used_;
    if (used_ > capacity_ || base_ == nullptr) [[unlikely]] {
      sentence s;
      s.add("memory of the device, at least ")
          .add(static_cast<index>(used_ + result_bytes + ticket_bytes))
          .add(" bytes that no earlier result holds");
      fail(function_, "workspace", s.c_str(),
           static_cast<index>(capacity_ + result_bytes + ticket_bytes));
    }
    auto* const p = reinterpret_cast<T*>(base_ + (used_ - bytes));
    if (blocks_ < 64) block_[blocks_++] = {p, p + (n > 0 ? n : 1)};
    return p;
  }

  /// The figures of the result, and their number; 0 where they lie elsewhere.
  double* result() const { return result_; }
  index figures() const { return figures_; }

  /// How many doubles there are from `figures` to the end of its allocation.
  index doubles_from(const double* figures) const {
    if (figures_ > 0 && figures >= result_ && figures < result_ + figures_)
      return result_ + figures_ - figures;
    for (int k = 0; k < blocks_; ++k)
      if (figures >= block_[k].begin && figures < block_[k].end)
        return static_cast<const double*>(block_[k].end) - figures;
    return 0;
  }
};

}  // namespace rlhf::inline v1::detail
