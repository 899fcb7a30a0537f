#pragma once

#include <functional>
#include <string>
#include <vector>

namespace rlhf_bench {

/// What the command line asked for.
struct settings {
  bool quick = false;    ///< the sizes that have goals, and little time for each
  double seconds = 0.3;  ///< for each line, beside warm-up and copies; never fewer than 11 rounds
  std::string dump;      ///< a folder for inputs and outputs of every line; empty: none
};

/// A benchmark file hands its lines over here, and main() asks for them once the command line is
/// known.
using add_lines = std::function<void(const settings&)>;
inline std::vector<add_lines>& files() {
  static std::vector<add_lines> all;
  return all;
}
struct registration {
  explicit registration(add_lines lines) { files().push_back(std::move(lines)); }
};

const settings& the_settings();

/// Says once what this run leaves out, and why.
void leave_out(const std::string& what, const std::string& why);

/// Bytes that this machine can still give, 0 where it does not say.
double free_memory();

}  // namespace rlhf_bench
