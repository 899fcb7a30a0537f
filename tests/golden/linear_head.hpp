#pragma once

#include <optional>

#include "tests/golden/array.hpp"

namespace golden {

/// The linear head of sources that start at hidden states: plain products of matrices in front of
/// the library's calls, and their gradients behind them.
struct linear_head {
  array input, weight;  // [rows, time, width], [classes, width]
  std::optional<array> bias;

  struct gradient {
    array input, weight, bias;
  };

  array logits() const {
    const index tokens = input.shape[0] * input.shape[1], width = weight.columns();
    array z = array::filled({input.shape[0], input.shape[1], weight.rows()}, 0);
    for (index t = 0; t < tokens; ++t)
      for (index v = 0; v < weight.rows(); ++v) {
        double x = bias ? (*bias)[v] : 0;
        for (index k = 0; k < width; ++k) x += input[t * width + k] * weight(v, k);
        z[t * weight.rows() + v] = x;
      }
    return z;
  }

  gradient slopes(const array& d_logits) const {
    const index classes = weight.rows(), width = weight.columns();
    gradient g{zeros_like(input), zeros_like(weight), array::filled({classes}, 0)};
    for (index t = 0; t < d_logits.size() / classes; ++t)
      for (index v = 0; v < classes; ++v) {
        const double d = d_logits[t * classes + v];
        g.bias[v] += d;
        for (index k = 0; k < width; ++k) {
          g.weight(v, k) += d * input[t * width + k];
          g.input[t * width + k] += d * weight(v, k);
        }
      }
    return g;
  }
};

}  // namespace golden
