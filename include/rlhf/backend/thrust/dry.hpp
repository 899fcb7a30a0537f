#pragma once

#include "rlhf/backend/thrust/device_run.hpp"

namespace rlhf::inline RLHF_COMPUTE {

/// Runs a call on device tensors without touching them and remembers the memory it asked for.
struct device_dry_run {
  using space = device_space;
  template <class R>
  using result = void;
  static constexpr bool dry = true;

  mutable std::size_t required = 0;

  device_run<device_dry_run> begin(const char* function) const { return {*this, function}; }
  static constexpr void* scratch() { return nullptr; }
  static constexpr std::size_t scratch_bytes() { return 0; }
  static constexpr double* next_result() { return nullptr; }
  static constexpr unsigned* ticket() { return nullptr; }
  template <class F>
  void launch(index, const F&) const {}
  template <class F>
  void launch_lanes(index, const F&) const {}
  template <class F>
  void launch_team(index, const F&) const {}
  void note(std::size_t bytes) const {
    if (bytes > required) required = bytes;
  }
};

/// The bytes of device memory that calls need, with `results` of them held at a time:
///     device_workspace_bytes(
///         [&](const auto& exec) { return dpo_loss<float>({...}, {...}, {...}, exec); })
template <class Call>
std::size_t device_workspace_bytes(const Call& call, index results = 1) {
  const device_dry_run exec;
  call(exec);
  return exec.required + static_cast<std::size_t>(results) * detail::result_bytes +
         detail::ticket_bytes + detail::device_alignment;
}

}  // namespace rlhf::inline RLHF_COMPUTE
