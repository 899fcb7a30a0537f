#include "rlhf/advantage/generalized_advantage_estimation.hpp"
#include "rlhf/policy/clipped_surrogate.hpp"
#include "rlhf/statistics/whiten.hpp"
#include "rlhf/value/clipped_value_loss.hpp"
#include "tests/thrust/batch.hpp"

// What only a GPU can show: a step that is captured and replayed, that allocates nothing, and that
// waits for nothing.

namespace thrust_test {

namespace {

void check(cudaError_t code) { REQUIRE(code == cudaSuccess); }

struct own_stream {
  cudaStream_t handle = nullptr;
  own_stream() { check(cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking)); }
  own_stream(const own_stream&) = delete;
  ~own_stream() { cudaStreamDestroy(handle); }
  void wait() const { check(cudaStreamSynchronize(handle)); }
};

template <class T>
void copy(thrust::device_vector<T>& to, const std::vector<T>& from, cudaStream_t stream) {
  check(cudaMemcpyAsync(thrust::raw_pointer_cast(to.data()), from.data(), from.size() * sizeof(T),
                        cudaMemcpyHostToDevice, stream));
}

/// Advantages, their whitening, the policy loss and the value loss of one batch.
struct ppo_step {
  static constexpr index rows = 37, columns = 501;
  rlhf::shape shape{rows, columns};
  thrust::device_vector<float> reward, value, log_prob, old_log_prob;
  thrust::device_vector<float> advantage, returns, whitened, d_log_prob, d_value;
  thrust::device_vector<std::int32_t> length;
  thrust::device_vector<double> tokens;
  thrust::device_vector<unsigned char> memory;

  static constexpr std::size_t n = static_cast<std::size_t>(rows * columns);

  ppo_step()
      : reward(n),
        value(n),
        log_prob(n),
        old_log_prob(n),
        advantage(n),
        returns(n),
        whitened(n),
        d_log_prob(n),
        d_value(n),
        length(static_cast<std::size_t>(rows)),
        tokens(1, 1.0),
        memory(std::size_t{1} << 24) {}

  void fill(std::uint64_t seed, cudaStream_t stream) {
    numbers random(seed);
    for (auto* x : {&reward, &value, &log_prob, &old_log_prob})
      copy(*x, random.many<float>(rows * columns, -2, 0), stream);
    std::vector<std::int32_t> l;
    double sum = 0;
    for (index i = 0; i < rows; ++i) {
      l.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
      sum += l.back();
    }
    copy(length, l, stream);
    copy(tokens, std::vector<double>{sum}, stream);
    check(cudaStreamSynchronize(stream));
  }

  template <class Each>
  void run(const rlhf::cuda::stream& on, const Each& each) {
    const auto layout = rlhf::lengths(length);
    const rlhf::device_scalar count(thrust::raw_pointer_cast(tokens.data()));
    each(rlhf::generalized_advantage_estimation<float>(
        {.reward = {reward, shape}, .value = {value, shape}, .layout = layout},
        {.advantage = {advantage, shape}, .returns = {returns, shape}}, {.gamma = 0.99}, on));
    each(rlhf::whiten<float>({.value = {advantage, shape}, .layout = layout},
                             {.whitened = {whitened, shape}}, {}, on));
    each(rlhf::clipped_surrogate_loss<float>({.log_prob = {log_prob, shape},
                                              .old_log_prob = {old_log_prob, shape},
                                              .advantage = {whitened, shape},
                                              .layout = layout},
                                             {.d_log_prob = {d_log_prob, shape}},
                                             {.over = rlhf::aggregation::token_mean(count)}, on));
    each(rlhf::clipped_value_loss<float>({.value = {value, shape},
                                          .old_value = {old_log_prob, shape},
                                          .returns = {returns, shape},
                                          .layout = layout},
                                         {.d_value = {d_value, shape}},
                                         {.over = rlhf::aggregation::token_mean(rlhf::local)}, on));
  }

  rlhf::cuda::stream executor(cudaStream_t stream) {
    return {stream, thrust::raw_pointer_cast(memory.data()), memory.size()};
  }

  void read(trace& to) const {
    for (const auto* x : {&advantage, &returns, &whitened, &d_log_prob, &d_value}) {
      const thrust::host_vector<float> host = *x;
      to.insert(to.end(), host.begin(), host.end());
    }
  }
};

struct held {
  const double* figures;
  index count;
};

/// Figures and tensors after the stream is done.
trace outcome(const ppo_step& step, const std::vector<held>& results, const own_stream& stream) {
  stream.wait();
  trace all;
  for (const held& r : results) {
    std::vector<double> figures(static_cast<std::size_t>(r.count));
    check(cudaMemcpy(figures.data(), r.figures, figures.size() * sizeof(double),
                     cudaMemcpyDeviceToHost));
    all.insert(all.end(), figures.begin(), figures.end());
  }
  step.read(all);
  return all;
}

/// Keeps the stream busy until `go` is set, or for some seconds.
__global__ void hold(const volatile int* go, long long cycles) {
  const long long begin = clock64();
  while (*go == 0 && clock64() - begin < cycles) {
  }
}

}  // namespace

TEST_CASE("cuda: a captured step gives the bits of the calls, as often as it is replayed") {
  own_stream stream;
  ppo_step step;
  const auto on = step.executor(stream.handle);
  std::vector<held> results;
  const auto keep = [&](const auto& pending) {
    results.push_back({pending.device_sums(), pending.size()});
  };
  trace direct[2];
  for (int k = 0; k < 2; ++k) {
    results.clear();
    step.fill(static_cast<std::uint64_t>(k + 5), stream.handle);
    auto again = step.executor(stream.handle);
    step.run(again, keep);
    direct[k] = outcome(step, results, stream);
  }
  CHECK(difference(direct[0], direct[1], 0) != "");

  // A call that allocated, waited or read back would break the capture.
  results.clear();
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal));
  step.run(on, keep);
  check(cudaStreamEndCapture(stream.handle, &graph));
  check(cudaGraphInstantiate(&replay, graph, 0));
  for (const int k : {0, 1, 0}) {
    step.fill(static_cast<std::uint64_t>(k + 5), stream.handle);
    check(cudaGraphLaunch(replay, stream.handle));
    CHECK(difference(outcome(step, results, stream), direct[k], 0) == "");
  }
  // Each kernel leaves the count of finished teams as it found it.
  unsigned ticket = 7;
  check(cudaMemcpy(&ticket, on.ticket(), sizeof ticket, cudaMemcpyDeviceToHost));
  CHECK(ticket == 0);
  check(cudaGraphExecDestroy(replay));
  check(cudaGraphDestroy(graph));
}

TEST_CASE("cuda: a loss over lengths with a known normaliser is one kernel of a graph") {
  own_stream stream;
  ppo_step step;
  step.fill(5, stream.handle);
  const auto on = step.executor(stream.handle);
  const auto call = [&] {
    return rlhf::clipped_surrogate_loss<float>({.log_prob = {step.log_prob, step.shape},
                                                .old_log_prob = {step.old_log_prob, step.shape},
                                                .advantage = {step.reward, step.shape},
                                                .layout = rlhf::lengths(step.length)},
                                               {.d_log_prob = {step.d_log_prob, step.shape}},
                                               {.over = rlhf::aggregation::token_mean(1000)}, on);
  };
  call().get();  // kernels are loaded by their first launch, which no capture allows
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream.handle, cudaStreamCaptureModeGlobal));
  const auto pending = call();
  check(cudaStreamEndCapture(stream.handle, &graph));
  std::size_t nodes = 0;
  check(cudaGraphGetNodes(graph, nullptr, &nodes));
  CHECK(nodes == 1);
  check(cudaGraphDestroy(graph));
  CHECK(pending.size() > 0);
}

TEST_CASE("cuda: calls return while the stream is busy, and take no memory") {
  if (is_left_out(5000)) return;  // a watching tool may wait and allocate by itself
  own_stream stream;
  ppo_step step;
  step.fill(5, stream.handle);
  int* go = nullptr;
  check(cudaHostAlloc(reinterpret_cast<void**>(&go), sizeof(int), cudaHostAllocMapped));
  const volatile int* on_device = nullptr;
  int* mapped = nullptr;
  check(cudaHostGetDevicePointer(reinterpret_cast<void**>(&mapped), go, 0));
  on_device = mapped;
  *go = 1;
  {
    auto warm = step.executor(stream.handle);  // kernels are loaded by their first launch
    step.run(warm, [](const auto& pending) { pending.get(); });
    hold<<<1, 1, 0, stream.handle>>>(on_device, 1);
    stream.wait();
  }
  *go = 0;
  std::size_t before = 0, after = 0, total = 0;
  check(cudaMemGetInfo(&before, &total));
  hold<<<1, 1, 0, stream.handle>>>(on_device, 20'000'000'000LL);
  check(cudaGetLastError());
  const auto on = step.executor(stream.handle);
  int calls = 0;
  step.run(on, [&](const auto&) { ++calls; });
  CHECK(calls == 4);
  CHECK(cudaStreamQuery(stream.handle) == cudaErrorNotReady);
  check(cudaMemGetInfo(&after, &total));
  CHECK(before == after);
  *const_cast<volatile int*>(go) = 1;
  stream.wait();
  check(cudaFreeHost(go));
}

}  // namespace thrust_test
