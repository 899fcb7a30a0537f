#pragma once

#include "rlhf/primitive/tokens.hpp"

namespace rlhf::inline v1 {

/// What the mask and the layout alone say of a batch: the figures a normaliser may be.
struct token_counts {
  double tokens = 0;     ///< sum of weights
  double positions = 0;  ///< tokens with weight > 0
  double sequences = 0;  ///< rows with at least one such token
  static constexpr int size = 3;
};

}  // namespace rlhf::inline v1
