#include "rlhf/statistics/whiten.hpp"

#include "bench/support/measure.hpp"
#include "rlhf/backend/host.hpp"

namespace {

// Bytes: two reads and one write.
void map_reduce_whiten(benchmark::State& state) {
  const std::ptrdiff_t rows = state.range(0), columns = state.range(1);
  const auto value = rlhf_bench::uniform(rows * columns, -1, 1);
  std::vector<float> whitened(value.size());
  const rlhf::shape shape(rows, columns);
  rlhf_bench::measure(state, static_cast<double>(rows * columns), 12, 0, [&] {
    rlhf::whiten<float>({.value = {value, shape}}, {.whitened = {whitened, shape}}, {});
  });
}
BENCHMARK(map_reduce_whiten)->Args({64, 1024})->Args({512, 2048})->UseManualTime();

}  // namespace
