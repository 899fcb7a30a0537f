#pragma once

#include <cstddef>

namespace rlhf_bench {

/// A fixed number of threads for rlhf::parallel: an arena of oneTBB behind a function pointer, so
/// that one file alone includes it.
class pool {
  void* arena_;
  std::ptrdiff_t threads_;
  using range = void (*)(const void* f, std::ptrdiff_t begin, std::ptrdiff_t end);
  void run(std::ptrdiff_t n, const void* f, range call) const;

 public:
  explicit pool(int threads);
  pool(const pool&) = delete;
  pool& operator=(const pool&) = delete;
  ~pool();

  /// Built with oneTBB?
  static bool available();

  std::ptrdiff_t concurrency() const { return threads_; }
  template <class F>
  void parallel_for(std::ptrdiff_t n, const F& f) const {
    run(n, &f, [](const void* p, std::ptrdiff_t begin, std::ptrdiff_t end) {
      const F& each = *static_cast<const F*>(p);
      for (std::ptrdiff_t i = begin; i < end; ++i) each(i);
    });
  }
};

}  // namespace rlhf_bench
