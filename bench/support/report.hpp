#pragma once

#include <benchmark/benchmark.h>

namespace rlhf_bench {

/// Google Benchmark's console report with our counters in our order, the ratio first.
class table : public benchmark::ConsoleReporter {
  bool begun_ = false;
  bool growth_ = false;

 public:
  using ConsoleReporter::ConsoleReporter;
  bool ReportContext(const Context& context) override;
  void ReportRuns(const std::vector<Run>& runs) override;

 protected:
  void PrintHeader(const Run& run) override;
  void PrintRunData(const Run& run) override;
};

/// Google Benchmark's JSON, with names that do not speak of iterations.
class json : public benchmark::JSONReporter {
 public:
  void ReportRuns(const std::vector<Run>& runs) override;
};

}  // namespace rlhf_bench
