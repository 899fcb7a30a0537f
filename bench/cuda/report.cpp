#include <cstdio>
#include <cstdlib>
#include <fstream>

#include <nlohmann/json.hpp>

#include "bench/cuda/line.hpp"

namespace rlhf_bench {

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
