#include "bench/support/report.hpp"

#include <algorithm>
#include <cstdio>
#include <ostream>
#include <string>
#include <vector>

namespace rlhf_bench {
namespace {

/// A column: its heading, and the counter it shows.
struct column {
  const char* heading;
  const char* counter;
  int width;
};
constexpr column of_ratios[] = {{"ratio", "ratio", 8},          {"goal", "goal_ratio", 6},
                                {"ns per", "ns_per_", 18},      {"goal", "goal", 7},
                                {"exp_ratio", "exp_ratio", 10}, {"speedup", "speedup", 8},
                                {"goal", "goal_speedup", 6},    {"exp's", "exp_speedup", 7},
                                {"copy's", "copy_speedup", 7},  {"GBps", "GBps", 8},
                                {"copy_ns", "copy_ns", 8},      {"exp_ns", "exp_ns", 8},
                                {"quartile", "quartile_ns", 9}, {"unsteady", "unsteady", 9}};
constexpr column of_growth[] = {{"growth", "growth", 8},
                                {"low", "low", 6},
                                {"high", "high", 6},
                                {"small us", "small_us", 11},
                                {"large us", "large_us", 11}};

bool is_growth(const benchmark::BenchmarkReporter::Run& run) {
  return run.counters.count("growth") != 0;
}

std::string text(double value) {
  char buffer[32];
  const char* const form = value >= 1000 || value == static_cast<int>(value) ? "%.0f"
                           : value >= 100                                    ? "%.1f"
                           : value >= 10                                     ? "%.2f"
                                                                             : "%.3f";
  std::snprintf(buffer, sizeof(buffer), form, value);
  return buffer;
}

std::string padded(const std::string& s, int width) {
  const auto n = static_cast<std::size_t>(width);
  return std::string(s.size() < n ? n - s.size() : 0, ' ') + s;
}

/// What stands under a column; nothing where the run lacks it.
std::string cell(const column& of, const benchmark::UserCounters& counters) {
  const std::string name = of.counter;
  for (const auto& [counter, value] : counters) {
    if (counter == name) {
      if (name == "unsteady") return value.value == 0 ? "" : "unsteady";
      return text(value.value);
    }
    if (name == "ns_per_" && counter.rfind(name, 0) == 0)
      return text(value.value) + " " + padded(counter.substr(name.size()), 8);
  }
  return "";
}

}  // namespace

bool table::ReportContext(const Context& context) {
  const bool go_on = ConsoleReporter::ReportContext(context);
  const std::size_t suffix = std::string("/iterations:1/manual_time").size();
  if (name_field_width_ > suffix) name_field_width_ -= suffix;
  return go_on;
}

void table::ReportRuns(const std::vector<Run>& runs) {
  for (const Run& run : runs) {
    if (!begun_ || (!run.error_occurred && is_growth(run) != growth_)) PrintHeader(run);
    PrintRunData(run);
  }
}

void table::PrintHeader(const Run& run) {
  begun_ = true;
  growth_ = is_growth(run);
  std::string line = "operation";
  line.resize(std::max(line.size(), name_field_width_), ' ');
  const auto add = [&](const auto& columns) {
    for (const column& c : columns) line += padded(c.heading, c.width);
  };
  if (growth_)
    add(of_growth);
  else
    add(of_ratios);
  GetOutputStream() << line << '\n' << std::string(line.size(), '-') << '\n';
}

void table::PrintRunData(const Run& run) {
  std::string line = run.run_name.function_name;
  if (!run.aggregate_name.empty()) line += "_" + run.aggregate_name;
  line.resize(std::max(line.size(), name_field_width_), ' ');
  const auto add = [&](const auto& columns) {
    for (const column& c : columns) line += padded(cell(c, run.counters), c.width);
  };
  if (run.error_occurred)
    line += "  " + run.error_message;
  else if (growth_)
    add(of_growth);
  else
    add(of_ratios);
  GetOutputStream() << line << std::endl;
}

void json::ReportRuns(const std::vector<Run>& runs) {
  std::vector<Run> named = runs;
  for (Run& run : named) run.run_name.iterations = run.run_name.time_type = "";
  JSONReporter::ReportRuns(named);
}

}  // namespace rlhf_bench
