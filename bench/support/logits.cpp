#include "bench/support/logits.hpp"

namespace rlhf_bench {

std::vector<logit_case> cases_of(const logit_operation& operation, const settings& s,
                                 std::size_t element) {
  std::vector<logit_case> all{{64, 32000}, {512, 128256}};
  if (!s.quick) {
    all.insert(all.begin() + 1, {512, 32000});
    // The logits, their gradient, and the two sides of the copy.
    const double need = 4.0 * 2048 * 262144 * static_cast<double>(element);
    if (free_memory() > 1.5 * need)
      all.push_back({2048, 262144});
    else
      leave_out(std::string(operation.name) + " with 2048x262144 logits of " +
                    std::to_string(element) + " bytes",
                "it needs " + std::to_string(static_cast<int>(1.5 * need / (1 << 30))) +
                    " GiB of free memory");
  }
  if (pool::available()) {
    all.push_back({512, 32000, 2});
    if (!s.quick) all.push_back({512, 128256, 2});
  }
  return all;
}

}  // namespace rlhf_bench
