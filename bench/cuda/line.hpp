#pragma once

#include <string>
#include <vector>

namespace rlhf_bench {

/// One line of the table; measure.hpp says how its figures are taken.
struct line {
  std::string family, operation, size;
  double items = 0;           ///< tokens, logits, pairs or sequences
  double bytes_per_item = 0;  ///< the fewest that must move, read and written together
  double goal = 0;            ///< the fraction to reach; 0: none is set
  double goal_us = 0;         ///< the time to reach; 0: none is set
  int goal_launches = 0;      ///< how many kernels at most; 0: none is set
  bool reads_only = false;    ///< beside it stands a read of the same bytes, not a copy
  double cold_us = 0, warm_us = 0, single_us = 0, copy_us = 0;
  int launches = 0;

  double fraction() const { return copy_us / cold_us; }
};

/// What the table was taken on.
struct circumstances {
  std::string chip, capability, driver, runtime, compiler, commit, date;
  double memory_gib = 0, cache_mib = 0;
  int multiprocessors = 0;
};

/// Every figure that has a goal, and whether it is reached.
void print_goals(const std::vector<line>& lines);
void write_json(const std::string& file, const circumstances& about,
                const std::vector<line>& lines);

}  // namespace rlhf_bench
