#pragma once

#include <vector>

/// What one unit computed, and how wide its packs are.
struct unit_result {
  int pack_bytes;
  double loss;
  std::vector<float> d_log_prob;
};

using unit = unit_result(const std::vector<float>& log_prob, const std::vector<float>& old_log_prob,
                         const std::vector<float>& advantage);

unit unit_default, unit_scalar, unit_strict, unit_avx2;
