// rlhf_bench_cuda [--quick] [--json FILE] [--commit NAME]: the bandwidth table of this machine's GPU.

#include <cstdio>
#include <cstring>
#include <ctime>

#include "bench/cuda/measure.hpp"

namespace {

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

rlhf_bench::circumstances look_around(const std::string& commit) {
  cudaDeviceProp chip;
  rlhf_bench::check(cudaGetDeviceProperties(&chip, 0), "cudaGetDeviceProperties");
  int driver = 0, runtime = 0;
  rlhf_bench::check(cudaDriverGetVersion(&driver), "cudaDriverGetVersion");
  rlhf_bench::check(cudaRuntimeGetVersion(&runtime), "cudaRuntimeGetVersion");
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof date, "%Y-%m-%d", std::localtime(&now));
  rlhf_bench::circumstances about;
  about.chip = chip.name;
  about.capability = std::to_string(chip.major) + "." + std::to_string(chip.minor);
  about.multiprocessors = chip.multiProcessorCount;
  about.memory_gib = static_cast<double>(chip.totalGlobalMem) / (1 << 30);
  about.cache_mib = static_cast<double>(chip.l2CacheSize) / (1 << 20);
  about.driver = version(driver);
  about.runtime = version(runtime);
  about.compiler = "nvcc " + std::to_string(__CUDACC_VER_MAJOR__) + "." +
                   std::to_string(__CUDACC_VER_MINOR__) + "." +
                   std::to_string(__CUDACC_VER_BUILD__);
  about.commit = commit;
  about.date = date;
  return about;
}

}  // namespace

int main(int count, char** word) {
  bool quick = false;
  std::string json, commit;
  for (int k = 1; k < count; ++k) {
    const bool more = k + 1 < count;
    if (std::strcmp(word[k], "--quick") == 0) {
      quick = true;
    } else if (std::strcmp(word[k], "--json") == 0 && more) {
      json = word[++k];
    } else if (std::strcmp(word[k], "--commit") == 0 && more) {
      commit = word[++k];
    } else {
      std::fprintf(stderr, "rlhf_bench_cuda [--quick] [--json FILE] [--commit NAME]\n");
      return 2;
    }
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "rlhf_bench_cuda: no GPU was found\n");
    return 1;
  }
  const auto about = look_around(commit);
  std::printf("%s, %d multiprocessors, %.0f MiB L2, CUDA %s, %s, %s\n", about.chip.c_str(),
              about.multiprocessors, about.cache_mib, about.runtime.c_str(), about.date.c_str(),
              about.commit.c_str());
  std::printf("%-34s %-14s %9s %9s %9s %9s %8s %8s %5s\n", "operation", "size", "cold us",
              "warm us", "single us", "copy us", "fraction", "goal", "nodes");
  rlhf_bench::table all(quick);
  rlhf_bench::token_losses(all);
  rlhf_bench::scans(all);
  rlhf_bench::logits(all);
  rlhf_bench::small_batches(all);
  std::printf("\n");
  rlhf_bench::print_goals(all.lines());
  if (!json.empty()) rlhf_bench::write_json(json, about, all.lines());
  return 0;
}
