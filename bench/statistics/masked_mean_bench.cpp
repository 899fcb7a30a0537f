#include "rlhf/statistics/masked_mean.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: value read: 4; nothing is written.
const registration lines = token_lines(
    {.family = "statistics", .name = "masked_mean", .read = 4, .write = 0}, [](token_data& d) {
      const auto value = d.input("value", -1, 1);
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::masked_mean<float>({.value = value, .mask = mask, .layout = layout}, {}, {},
                                        exec);
      };
    });

}  // namespace
