// CUDA: the same call on the caller's stream, in the caller's memory, and in a graph.

//! [include]
#include <rlhf/backend/thrust.hpp>
#include <rlhf/policy/clipped_surrogate.hpp>
//! [include]

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace {

void check(cudaError_t code) {
  if (code == cudaSuccess) return;
  std::printf("CUDA: %s\n", cudaGetErrorString(code));
  std::exit(1);
}

template <class T>
T* on_device(const std::vector<T>& x) {
  void* memory = nullptr;
  check(cudaMalloc(&memory, x.size() * sizeof(T)));
  check(cudaMemcpy(memory, x.data(), x.size() * sizeof(T), cudaMemcpyHostToDevice));
  return static_cast<T*>(memory);
}

bool close(double a, double b) { return std::fabs(a - b) <= 1e-5 * (1 + std::fabs(b)); }

}  // namespace

int main() {
  const std::vector<float> host_log_prob = {-1.0f, -0.7f, -2.0f, -0.9f, -1.1f, 0.0f};
  const std::vector<float> host_old_log_prob = {-1.2f, -1.1f, -2.0f, -0.5f, -1.0f, 0.0f};
  const std::vector<float> host_advantage = {1.0f, -0.5f};
  const std::vector<std::int32_t> host_length = {3, 2};
  const rlhf::shape tokens(2, 3);

  // The referee: the same call on the host.
  std::vector<float> host_d_log_prob(6);
  const auto expected = rlhf::clipped_surrogate_loss<float>(
      {.log_prob = {host_log_prob, tokens},
       .old_log_prob = {host_old_log_prob, tokens},
       .advantage = host_advantage,
       .layout = rlhf::lengths(host_length)},
      {.d_log_prob = {host_d_log_prob, tokens}}, {.over = rlhf::aggregation::token_mean(5)});

  const float* const log_prob = on_device(host_log_prob);
  const float* const old_log_prob = on_device(host_old_log_prob);
  const float* const advantage = on_device(host_advantage);
  const std::int32_t* const length = on_device(host_length);
  float* const d_log_prob = on_device(std::vector<float>(6));
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));

  //! [call]
  // Written once, for whatever executor it is given: a dry one says how much memory it needs.
  double* const token_count = on_device(std::vector<double>{5});
  const auto step = [&](const auto& exec) {
    return rlhf::clipped_surrogate_loss<float>(
        {.log_prob = {log_prob, tokens},  // device pointers, with their shape
         .old_log_prob = {old_log_prob, tokens},
         .advantage = {advantage, {2}},
         .layout = rlhf::lengths<rlhf::device_space>(length, {2})},
        {.d_log_prob = {d_log_prob, tokens}},
        {.over = rlhf::aggregation::token_mean(rlhf::device_scalar{token_count})}, exec);
  };
  const std::size_t bytes = rlhf::device_workspace_bytes(step);
  void* workspace = nullptr;
  check(cudaMalloc(&workspace, bytes));

  rlhf::cuda::stream on{stream, workspace, bytes};
  const auto pending = step(on);                     // enqueues and returns
  const rlhf::policy_result result = pending.get();  // waits for the stream
  on.reset();                                        // the memory of results is free again
  //! [call]

  //! [sums]
  // Before get(): the figures on the device, for collectives and kernels of your own.
  const auto next = step(on);
  const double* const figures = next.device_sums();
  std::vector<double> copy(static_cast<std::size_t>(next.size()));
  check(cudaMemcpyAsync(copy.data(), figures, copy.size() * sizeof(double), cudaMemcpyDeviceToHost,
                        stream));
  check(cudaStreamSynchronize(stream));
  const rlhf::policy_result again = next.read(copy.data());
  on.reset();
  //! [sums]

  //! [graph]
  // Nothing in a call waits, allocates or reads back, so a step can be captured. What changes from
  // step to step lies on the device: the tensors, and the count that divides the loss.
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  const auto captured = step(on);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiateWithFlags(&executable, graph, 0));

  const double half_as_many = 2.5;
  check(cudaMemcpyAsync(token_count, &half_as_many, sizeof half_as_many, cudaMemcpyHostToDevice,
                        stream));
  check(cudaGraphLaunch(executable, stream));
  const rlhf::policy_result replayed = captured.get();
  //! [graph]

  std::vector<float> gradient(6);
  check(cudaMemcpy(gradient.data(), d_log_prob, 6 * sizeof(float), cudaMemcpyDeviceToHost));
  bool right = close(result.loss, expected.loss) && again.loss == result.loss &&
               close(replayed.loss, 2 * expected.loss);
  for (std::size_t k = 0; k < 6; ++k)
    right = right &&
            close(static_cast<double>(gradient[k]), 2 * static_cast<double>(host_d_log_prob[k]));
  std::printf("loss %.4f  replayed with half the count %.4f: %s\n", result.loss, replayed.loss,
              right ? "as on the host" : "NOT as on the host");
  return right ? 0 : 1;
}
