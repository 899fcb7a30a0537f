#pragma once

#include "rlhf/backend/thrust/memory.hpp"

namespace rlhf::inline v1 {

/// The result of a call that may still run. Machine::fetch copies numbers to the host, waiting for
/// what is enqueued before them.
///
///     auto call = dpo_loss<float>({...}, {...}, {...}, on);   // enqueues and returns
///     const dpo_result r = call.get();                        // waits
///
/// The figures lie in the executor's workspace until it is reset, so get() comes before that.
template <class R, class Machine>
class pending {
 public:
  /// A requirement that only the data could break: its count stands behind the figures.
  struct refusal {
    const char* argument;
    const char* expected;
  };

 private:
  Machine machine_;
  const char* function_;
  const double* figures_;
  index count_;
  R (*read_)(const double*);
  int refusals_;
  refusal refusal_[detail::most_refusals];

  /// A count below 0 says that a number of the call is 0.
  [[noreturn]] void throw_refusal(const refusal& r, double count) const {
    if (count < 0) detail::fail(function_, r.argument, r.expected, index{0});
    detail::fail_count(function_, r.argument, r.expected, count);
  }

 public:
  pending(const Machine& machine, const char* function, const double* figures, index count,
          R (*reader)(const double*))
      : machine_(machine),
        function_(function),
        figures_(figures),
        count_(count),
        read_(reader),
        refusals_(0) {}

  void add_refusal(const char* argument, const char* expected) {
    refusal_[refusals_++] = {argument, expected};
  }

  /// Waits for the call. Throws what the call would have thrown had the host been able to read its
  /// inputs: contract_violation for odd lengths, offsets, labels, weights and counts.
  R get() const {
    double figures[detail::most_figures + detail::most_refusals];
    machine_.fetch(figures, figures_, count_ + refusals_);
    for (int k = 0; k < refusals_; ++k)
      if (figures[count_ + k] != 0) [[unlikely]]
        throw_refusal(refusal_[k], figures[count_ + k]);
    return read_(figures);
  }

  /// The figures in device memory, before they become an R: what collectives add up over ranks and
  /// kernels of the caller read. Their order is that of the algorithm's read function.
  const double* device_sums() const { return figures_; }
  index size() const { return count_; }
  /// R from figures that the caller has copied, after a collective for instance.
  R read(const double* figures) const { return read_(figures); }
};

}  // namespace rlhf::inline v1
