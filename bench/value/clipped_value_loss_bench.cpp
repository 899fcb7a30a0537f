#include "rlhf/value/clipped_value_loss.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: value, old_value, returns read: 12; d_value written: 4.
const registration lines = token_lines(
    {.family = "value", .name = "clipped_value_loss", .read = 12, .write = 4}, [](token_data& d) {
      const auto value = d.input("value", -1, 1);
      const auto old_value = d.input_near("old_value", value, 0.4f);
      const auto returns = d.input("returns", -1, 1);
      const auto d_value = d.output("d_value");
      return [=, mask = d.mask, layout = d.layout, n = d.counted()](const auto& exec) {
        return rlhf::clipped_value_loss<float>({.value = value,
                                                .old_value = old_value,
                                                .returns = returns,
                                                .mask = mask,
                                                .layout = layout},
                                               {.d_value = d_value},
                                               {.over = rlhf::aggregation::token_mean(n)}, exec);
      };
    });

}  // namespace
