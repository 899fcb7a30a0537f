#pragma once

#include <string>

#include "bench/support/tensors.hpp"

namespace rlhf_bench {

/// Writes the tensors of one line as raw files, and remembers them for the manifest.
void dump(const std::string& line, const tensors& of, bool has_loss, double loss);

/// DIR/manifest.json: {"schema": 1, "lines": [{"name", "loss", "tensors": [{"name", "output",
/// "type", "shape", "stride", "file"}]}]}
void write_manifest();

}  // namespace rlhf_bench
