#pragma once

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace demo {

using json = nlohmann::ordered_json;

/// Thrown between two steps after Ctrl-C, so that what is known by then still gets written.
struct interrupted {};

/// Makes Ctrl-C end the run after the step at hand; a second one ends it at once.
void catch_interrupts();
void throw_if_interrupted();

/// Lines on the terminal: stage, step, rate, time left and the figures at hand.
class progress {
 public:
  progress(std::string stage, int steps);

  /// Says that one more step is done; throws `interrupted` after Ctrl-C.
  void step(const std::string& figures);

 private:
  using clock = std::chrono::steady_clock;
  std::string stage_;
  int steps_, done_ = 0;
  clock::time_point began_ = clock::now(), told_ = began_;
};

/// The three files of a run: metrics.jsonl grows line by line, summary.json and report.html are
/// written by `finish`.
class run_files {
 public:
  explicit run_files(const std::filesystem::path& folder);

  /// Adds a line to metrics.jsonl, readable from now on.
  void record(const json& line);

  /// `samples`: replies before and after, for the report alone.
  void finish(const json& summary, const json& samples) const;

 private:
  std::filesystem::path folder_;
  std::ofstream metrics_;
  std::vector<json> lines_;
};

}  // namespace demo
