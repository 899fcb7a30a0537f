#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <nlohmann/json.hpp>

#include "bench/cuda/line.hpp"

namespace rlhf_bench {

namespace {

/// Says on a line whether a goal is reached.
bool is_reached(const line& l, const char* figure, double value, const char* relation, double goal,
                bool reached) {
  std::printf("%-7s %-34s %-14s %-11s %9.3f %s %.2f\n", reached ? "reached" : "MISSED",
              l.operation.c_str(), l.size.c_str(), figure, value, relation, goal);
  return reached;
}

}  // namespace

void print_goals(const std::vector<line>& lines) {
  int goals = 0, reached = 0;
  const auto count = [&](bool is) {
    ++goals;
    reached += is ? 1 : 0;
  };
  for (const line& l : lines) {
    if (l.goal > 0)
      count(is_reached(l, l.reads_only ? "of a read" : "of a copy", l.fraction(), ">=", l.goal,
                       l.fraction() >= l.goal));
    if (l.goal_us > 0)
      count(is_reached(l, "cold us", l.cold_us, "<=", l.goal_us, l.cold_us <= l.goal_us));
    if (l.goal_launches > 0)
      count(is_reached(l, "launches", l.launches, "<=", l.goal_launches,
                       l.launches <= l.goal_launches));
  }
  std::printf("%d of %d goals reached\n", reached, goals);
}

void write_json(const std::string& file, const circumstances& about,
                const std::vector<line>& lines) {
  nlohmann::ordered_json all;
  all["context"] = {{"chip", about.chip},
                    {"compute_capability", about.capability},
                    {"multiprocessors", about.multiprocessors},
                    {"memory_gib", about.memory_gib},
                    {"l2_cache_mib", about.cache_mib},
                    {"driver", about.driver},
                    {"cuda_runtime", about.runtime},
                    {"compiler", about.compiler},
                    {"commit", about.commit},
                    {"date", about.date}};
  for (const line& l : lines) {
    nlohmann::ordered_json one = {{"family", l.family},
                                  {"op", l.operation},
                                  {"size", l.size},
                                  {"items", l.items},
                                  {"bytes_min", l.items * l.bytes_per_item},
                                  {"us", l.cold_us},
                                  {"warm_us", l.warm_us},
                                  {"single_us", l.single_us},
                                  {l.reads_only ? "read_us" : "copy_us", l.copy_us},
                                  {"fraction", l.fraction()},
                                  {"ns_per_item", l.cold_us * 1e3 / l.items},
                                  {"GBps", l.items * l.bytes_per_item / l.cold_us * 1e-3},
                                  {"launches", l.launches}};
    if (l.goal > 0) one["goal_fraction"] = l.goal;
    if (l.goal_us > 0) one["goal_us"] = l.goal_us;
    if (l.goal_launches > 0) one["goal_launches"] = l.goal_launches;
    all["lines"].push_back(one);
  }
  std::ofstream to(file);
  to << all.dump(1) << '\n';
  if (!to.flush()) {
    std::fprintf(stderr, "could not write %s\n", file.c_str());
    std::exit(1);
  }
}

}  // namespace rlhf_bench
