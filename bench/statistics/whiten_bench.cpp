#include "rlhf/statistics/whiten.hpp"

#include "bench/support/tokens.hpp"

namespace {

using namespace rlhf_bench;

// Bytes: value read twice, for its moments and to be scaled: 8; whitened written: 4.
const registration lines =
    token_lines({.family = "statistics",
                 .name = "whiten",
                 .read = 8,
                 .write = 4,
                 .goal =
                     [](const token_case& of) {
                       return target{.ratio = of.layout == token_layout::lengths ? 1.2 : 0};
                     },
                 .growth = true},
                [](token_data& d) {
                  const auto value = d.input("value", -1, 1);
                  const auto whitened = d.output("whitened");
                  return [=, mask = d.mask, layout = d.layout](const auto& exec) {
                    return rlhf::whiten<float>({.value = value, .mask = mask, .layout = layout},
                                               {.whitened = whitened}, {}, exec);
                  };
                });

}  // namespace
