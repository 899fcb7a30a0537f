#include "rlhf/value/explained_variance.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: value and returns read: 8; nothing is written.
const registration lines = token_lines(
    {.family = "value", .name = "explained_variance", .read = 8, .write = 0}, [](token_data& d) {
      const auto value = d.input("value", -1, 1);
      const auto returns = d.input("returns", -1, 1);
      return [=, mask = d.mask, layout = d.layout](const auto& exec) {
        return rlhf::explained_variance<float>(
            {.value = value, .returns = returns, .mask = mask, .layout = layout}, {}, {}, exec);
      };
    });

}  // namespace
