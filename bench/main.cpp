// rlhf_bench: every algorithm beside a copy of the same bytes. --help lists the options; `./dev
// bench` builds and runs it.

#include <benchmark/benchmark.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <fstream>
#include <iostream>
#include <regex>
#include <set>
#include <string>

#include "bench/support/dump.hpp"
#include "bench/support/line.hpp"
#include "bench/support/report.hpp"
#include "bench/support/settings.hpp"
#include "rlhf/version.hpp"

#if !defined(RLHF_BENCH_FLAGS)
#define RLHF_BENCH_FLAGS "not known"
#endif

namespace rlhf_bench {
namespace {

settings& chosen() {
  static settings s;
  return s;
}

/// The value of the first line of a file of /proc that begins with a key.
std::string line_of(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto colon = line.find(':');
    if (line.rfind(key, 0) != 0 || colon == std::string::npos) continue;
    const auto begin = line.find_first_not_of(" \t", colon + 1);
    return begin == std::string::npos ? "" : line.substr(begin);
  }
  return "";
}

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#else
  return "g++ " __VERSION__;
#endif
}

void describe_machine() {
  const std::string cpu = line_of("/proc/cpuinfo", "model name");
  benchmark::AddCustomContext("cpu", cpu.empty() ? "not known" : cpu);
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("flags", RLHF_BENCH_FLAGS);
  benchmark::AddCustomContext(
      "lanes", std::to_string(rlhf::math::width<rlhf::math::native_lane<float>>) + " floats");
  benchmark::AddCustomContext("version", std::to_string(RLHF_VERSION_MAJOR) + "." +
                                             std::to_string(RLHF_VERSION_MINOR) + "." +
                                             std::to_string(RLHF_VERSION_PATCH));
  benchmark::AddCustomContext("run", chosen().quick ? "quick" : "full");
}

}  // namespace

const settings& the_settings() { return chosen(); }

void leave_out(const std::string& what, const std::string& why) {
  static std::set<std::string> said;
  if (said.insert(what).second) std::cerr << "SKIPPED: " << what << " (" << why << ")\n";
}

double free_memory() {
  const std::string kib = line_of("/proc/meminfo", "MemAvailable");
  return kib.empty() ? 0 : 1024 * std::stod(kib);
}

namespace {

struct line {
  std::string name;
  std::function<void(benchmark::State&)> run;
};
std::vector<line>& all_lines() {
  static std::vector<line> all;
  return all;
}

/// Families in alphabetical order, growth behind them; those whose name matches. A name here is what
/// the table prints; Google Benchmark would match it with a suffix.
std::size_t register_lines(const std::string& filter, bool only_list) {
  const bool unwanted = !filter.empty() && filter[0] == '-';
  const std::regex wanted(unwanted ? filter.substr(1) : filter);
  auto& all = all_lines();
  for (const add_lines& file : files()) file(chosen());
  const auto place = [](const line& l) {
    const std::string family = l.name.substr(0, l.name.find('/'));
    return std::pair(family == "growth", family);
  };
  std::stable_sort(all.begin(), all.end(),
                   [&](const line& a, const line& b) { return place(a) < place(b); });
  // A line times its own rounds, so one iteration is the whole of it.
  std::size_t count = 0;
  for (const line& l : all) {
    if (!filter.empty() && std::regex_search(l.name, wanted) == unwanted) continue;
    ++count;
    if (only_list)
      std::cout << l.name << "\n";
    else
      benchmark::RegisterBenchmark(l.name.c_str(), l.run)->Iterations(1)->UseManualTime();
  }
  return count;
}

}  // namespace

void add_line(const std::string& name, std::function<void(benchmark::State&)> run) {
  all_lines().push_back({name, std::move(run)});
}

}  // namespace rlhf_bench

int main(int argc, char** argv) try {
  using namespace rlhf_bench;
  settings& s = chosen();
  std::string json_file, filter;
  bool only_list = false;
  CLI::App app(
      "Measures every algorithm beside a copy of the same bytes in the same process.\n"
      "Further options go to Google Benchmark: --benchmark_repetitions=N, "
      "--benchmark_context=KEY=VALUE, ...");
  app.allow_extras();
  app.add_flag("--quick", s.quick, "the sizes that have goals, and little time for each");
  auto* const seconds =
      app.add_option("--seconds", s.seconds, "time for each line; never fewer than 11 rounds")
          ->check(CLI::PositiveNumber);
  app.add_option("--json", json_file, "write the figures to this file");
  app.add_option("--dump", s.dump, "write inputs and outputs of every line to this folder");
  app.add_option("--benchmark_filter", filter, "only lines that match; -REGEX: only the others");
  app.add_flag("--benchmark_list_tests", only_list, "print the names of the lines and stop");
  CLI11_PARSE(app, argc, argv);
  if (s.quick && seconds->count() == 0) s.seconds = 0.08;

  std::vector<std::string> rest = app.remaining();
  rest.insert(rest.begin(), "rlhf_bench");
  for (const std::string& option : rest)
    if (option.rfind("--benchmark_min_time", 0) == 0 || option.rfind("--benchmark_out", 0) == 0 ||
        option.rfind("--benchmark_format", 0) == 0) {
      std::cerr << "rlhf_bench: instead of " << option << " say --seconds N or --json FILE\n";
      return 1;
    }
  if (!json_file.empty()) {
    if (!std::ofstream(json_file, std::ios::app)) {
      std::cerr << "rlhf_bench: cannot write " << json_file << "\n";
      return 1;
    }
    rest.push_back("--benchmark_out=" + json_file);
    rest.push_back("--benchmark_out_format=json");
  }
  std::vector<char*> arguments;
  for (std::string& option : rest) arguments.push_back(option.data());
  int count = static_cast<int>(arguments.size());
  benchmark::Initialize(&count, arguments.data());
  if (benchmark::ReportUnrecognizedArguments(count, arguments.data())) return 1;

  if (!pool::available()) leave_out("lines on two threads", "built without oneTBB");
  if (register_lines(filter, only_list) == 0) {
    std::cerr << "rlhf_bench: no line matches " << filter << "\n";
    return 1;
  }
  if (only_list) return 0;
  describe_machine();
  table on_screen(benchmark::ConsoleReporter::OO_Tabular);
  json to_file;
  if (json_file.empty())
    benchmark::RunSpecifiedBenchmarks(&on_screen);
  else
    benchmark::RunSpecifiedBenchmarks(&on_screen, &to_file);
  if (!s.dump.empty()) write_manifest();
  return 0;
} catch (const std::exception& e) {
  std::cerr << "rlhf_bench: " << e.what() << "\n";
  return 1;
}
