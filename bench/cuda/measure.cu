#include "bench/cuda/measure.hpp"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>

namespace rlhf_bench {

void check(cudaError_t code, const char* doing) {
  if (code == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", doing, cudaGetErrorString(code));
  std::exit(1);
}

namespace {

constexpr unsigned threads = 256;

unsigned blocks_for(index n) {
  const index blocks = (n + threads - 1) / threads;
  return static_cast<unsigned>(std::min<index>(std::max<index>(blocks, 1), 1 << 16));
}

/// A number in [0, 1) for place k.
__device__ float random_at(std::uint64_t k, std::uint32_t seed) {
  std::uint64_t x = (k + 1) * 0x9e3779b97f4a7c15ull + seed * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<float>((x ^ (x >> 31)) >> 40) * 0x1p-24f;
}

template <class T, class F>
__global__ void fill(T* to, index n, F value) {
  const index stride = static_cast<index>(gridDim.x) * blockDim.x;
  for (index k = static_cast<index>(blockIdx.x) * blockDim.x + threadIdx.x; k < n; k += stride)
    to[k] = value(k);
}
template <class T, class F>
void run_fill(T* to, index n, const F& value) {
  if (n == 0) return;
  fill<<<blocks_for(n), threads>>>(to, n, value);
  check(cudaGetLastError(), "filling an input");
}

template <class T>
struct uniform_value {
  float low, high;
  std::uint32_t seed;
  __device__ T operator()(index k) const {
    return static_cast<T>(low + (high - low) * random_at(static_cast<std::uint64_t>(k), seed));
  }
};
struct hole_value {
  float share;
  std::uint32_t seed;
  __device__ std::uint8_t operator()(index k) const {
    return random_at(static_cast<std::uint64_t>(k), seed) < share ? 0 : 1;
  }
};
struct step_value {
  std::int32_t base, step;
  __device__ std::int32_t operator()(index k) const {
    return base + static_cast<std::int32_t>(k) * step;
  }
};
struct label_value {
  std::int32_t classes;
  std::uint32_t seed;
  __device__ std::int32_t operator()(index k) const {
    const float x = random_at(static_cast<std::uint64_t>(k), seed);
    return static_cast<std::int32_t>(x * static_cast<float>(classes));
  }
};

__global__ void copy_wide(uint4* to, const uint4* from, index n) {
  const index stride = static_cast<index>(gridDim.x) * blockDim.x;
  for (index k = static_cast<index>(blockIdx.x) * blockDim.x + threadIdx.x; k < n; k += stride)
    to[k] = from[k];
}

/// Reads everything; what it writes, it writes for one sum in 2^32.
__global__ void read_wide(unsigned* to, const uint4* from, index n) {
  const index stride = static_cast<index>(gridDim.x) * blockDim.x;
  unsigned sum = 0;
  for (index k = static_cast<index>(blockIdx.x) * blockDim.x + threadIdx.x; k < n; k += stride) {
    const uint4 x = from[k];
    sum += x.x ^ x.y ^ x.z ^ x.w;
  }
  if (sum == 0x9e3779b9u) *to = sum;
}

class events {
  cudaEvent_t begin_, end_;

 public:
  events() {
    check(cudaEventCreate(&begin_), "cudaEventCreate");
    check(cudaEventCreate(&end_), "cudaEventCreate");
  }
  ~events() {
    cudaEventDestroy(begin_);
    cudaEventDestroy(end_);
  }
  /// Microseconds of what `work` enqueues.
  template <class Work>
  double time(cudaStream_t stream, const Work& work) const {
    check(cudaEventRecord(begin_, stream), "cudaEventRecord");
    work();
    check(cudaEventRecord(end_, stream), "cudaEventRecord");
    check(cudaEventSynchronize(end_), "cudaEventSynchronize");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return 1e3 * static_cast<double>(ms);
  }
};

double median(std::vector<double> x) {
  const auto middle = x.begin() + static_cast<std::ptrdiff_t>(x.size() / 2);
  std::nth_element(x.begin(), middle, x.end());
  return *middle;
}

/// What `enqueue` leaves on a stream, ready to be launched again.
class graph {
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;

 public:
  template <class Enqueue>
  graph(cudaStream_t stream, const Enqueue& enqueue) {
    check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
    enqueue();
    check(cudaStreamEndCapture(stream, &graph_), "cudaStreamEndCapture");
    check(cudaGraphInstantiate(&ready_, graph_, 0), "cudaGraphInstantiate");
  }
  graph(const graph&) = delete;
  ~graph() {
    cudaGraphExecDestroy(ready_);
    cudaGraphDestroy(graph_);
  }
  int nodes() const {
    std::size_t n = 0;
    check(cudaGraphGetNodes(graph_, nullptr, &n), "cudaGraphGetNodes");
    return static_cast<int>(n);
  }
  void launch(cudaStream_t stream) const {
    check(cudaGraphLaunch(ready_, stream), "cudaGraphLaunch");
  }
};

/// The median over rounds of one launch of the graph, divided by its calls.
double timed(const graph& g, cudaStream_t stream, int calls, int rounds) {
  const events clock;
  for (int k = 0; k < 2; ++k) g.launch(stream);
  std::vector<double> us;
  for (int k = 0; k < rounds; ++k) us.push_back(clock.time(stream, [&] { g.launch(stream); }));
  return median(us) / calls;
}

double cache_bytes() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrL2CacheSize, device), "cudaDeviceGetAttribute");
  return bytes > 0 ? bytes : 64e6;
}

/// Copies of `bytes` read and written together, cold like the calls.
double copy_microseconds(cudaStream_t stream, double bytes, int sets, int rounds) {
  const auto half = static_cast<index>(bytes / 2) / 16 * 16;
  if (half == 0) return 0;
  const array<char> from(half * sets), to(half * sets);
  check(cudaMemsetAsync(from.data(), 1, static_cast<std::size_t>(from.size()), stream), "memset");
  const int calls = std::max(sets, 20);
  double best = INFINITY;
  for (const bool kernel : {false, true}) {
    const graph g(stream, [&] {
      for (int k = 0; k < calls; ++k) {
        char* const y = to.data() + k % sets * half;
        const char* const x = from.data() + k % sets * half;
        if (kernel)
          copy_wide<<<blocks_for(half / 16), threads, 0, stream>>>(
              reinterpret_cast<uint4*>(y), reinterpret_cast<const uint4*>(x), half / 16);
        else
          check(cudaMemcpyAsync(y, x, static_cast<std::size_t>(half), cudaMemcpyDeviceToDevice,
                                stream),
                "cudaMemcpyAsync");
      }
    });
    best = std::min(best, timed(g, stream, calls, rounds));
  }
  return best;
}

/// Reads of `bytes`, cold like the calls.
double read_microseconds(cudaStream_t stream, double bytes, int sets, int rounds) {
  const auto each = static_cast<index>(bytes) / 16 * 16;
  if (each == 0) return 0;
  const array<char> from(each * sets);
  const array<unsigned> to(1);
  check(cudaMemsetAsync(from.data(), 1, static_cast<std::size_t>(from.size()), stream), "memset");
  const int calls = std::max(sets, 20);
  const graph g(stream, [&] {
    for (int k = 0; k < calls; ++k)
      read_wide<<<blocks_for(each / 16), threads, 0, stream>>>(
          to.data(), reinterpret_cast<const uint4*>(from.data() + k % sets * each), each / 16);
  });
  return timed(g, stream, calls, rounds);
}

}  // namespace

void fill_uniform(float* to, index n, float low, float high, std::uint32_t seed) {
  run_fill(to, n, uniform_value<float>{low, high, seed});
}
void fill_uniform(rlhf::bfloat16* to, index n, float low, float high, std::uint32_t seed) {
  run_fill(to, n, uniform_value<rlhf::bfloat16>{low, high, seed});
}
void fill_holes(std::uint8_t* to, index n, float share, std::uint32_t seed) {
  run_fill(to, n, hole_value{share, seed});
}
void fill_steps(std::int32_t* to, index n, std::int32_t base, std::int32_t step) {
  run_fill(to, n, step_value{base, step});
}
void fill_labels(std::int32_t* to, index n, std::int32_t classes, std::uint32_t seed) {
  run_fill(to, n, label_value{classes, seed});
}

int table::sets_for(double bytes) {
  const double sets = std::ceil(2.2 * cache_bytes() / std::max(bytes, 1.0));
  return static_cast<int>(std::clamp(sets + 1, 2.0, 512.0));
}

void table::measure(line about, int sets, const operation& op) {
  const int rounds = quick_ ? 5 : 15;
  cudaStream_t stream = nullptr;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  {
    const std::size_t bytes = op.workspace_bytes(0);
    const array<unsigned char> memory(static_cast<index>(bytes));
    rlhf::cuda::stream on(stream, memory.data(), bytes);
    const auto call = [&](int set) {
      op.call(set, on);
      on.reset();
    };
    for (int k = 0; k < sets; ++k) call(k);  // loads the kernels; capture must not
    check(cudaStreamSynchronize(stream), "the first calls");

    about.launches = graph(stream, [&] { call(0); }).nodes();
    const int calls = std::max(sets, 20);
    about.cold_us = timed(graph(stream,
                                [&] {
                                  for (int k = 0; k < calls; ++k) call(k % sets);
                                }),
                          stream, calls, rounds);
    about.warm_us = timed(graph(stream,
                                [&] {
                                  for (int k = 0; k < 20; ++k) call(0);
                                }),
                          stream, 20, rounds);
    const events clock;
    std::vector<double> single;
    for (int k = 0; k < std::max(sets, 11); ++k) {
      check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
      single.push_back(clock.time(stream, [&] { call(k % sets); }));
    }
    about.single_us = median(single);
    const double moved = about.items * about.bytes_per_item;
    about.copy_us = about.reads_only ? read_microseconds(stream, moved, sets, rounds)
                                     : copy_microseconds(stream, moved, sets, rounds);
  }
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  std::printf("%-34s %-14s %9.2f %9.2f %9.2f %9.2f %8.3f %8s %5d\n", about.operation.c_str(),
              about.size.c_str(), about.cold_us, about.warm_us, about.single_us, about.copy_us,
              about.copy_us / about.cold_us,
              about.goal > 0      ? (">= " + std::to_string(about.goal).substr(0, 4)).c_str()
              : about.goal_us > 0 ? ("<= " + std::to_string(about.goal_us).substr(0, 3)).c_str()
                                  : "",
              about.launches);
  std::fflush(stdout);
  lines_.push_back(std::move(about));
}

}  // namespace rlhf_bench
