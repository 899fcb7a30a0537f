#pragma once

#include <Eigen/Core>
#include <array>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "rlhf_pipeline/vocabulary.hpp"
#include "rlhf_pipeline/workers.hpp"

namespace demo {

using index = Eigen::Index;
using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using column = Eigen::ArrayXf;  ///< one number per token, per reply or per parameter

/// A prompt and a reply. The reply's last token is vocabulary::end unless it was cut short.
struct exchange {
  tokens prompt;
  tokens reply;

  bool ended() const { return !reply.empty() && reply.back() == vocabulary::end; }
};

/// Replies one after the other, as the losses and the model read them: one row per token, and
/// reply i in the rows [offsets[i], offsets[i + 1]).
struct packed_replies {
  std::vector<const exchange*> sources;
  tokens label;
  std::vector<std::int64_t> offsets = {0};

  packed_replies() = default;
  explicit packed_replies(std::span<const exchange> exchanges);
  explicit packed_replies(std::vector<const exchange*> exchanges);

  index count() const { return static_cast<index>(sources.size()); }
  index rows() const { return static_cast<index>(label.size()); }
  index first_row(index reply) const {
    return static_cast<index>(offsets[static_cast<std::size_t>(reply)]);
  }
  /// The replies [first, last), packed anew.
  packed_replies part(index first, index last) const;
};

/// The replies one worker takes.
struct shard {
  std::size_t worker;
  packed_replies replies;
  index first_row;  ///< of them, in the batch

  /// Their rows of numbers that belong to the batch.
  auto of(const column& x) const { return x.segment(first_row, replies.rows()); }
  auto of(column& x) const { return x.segment(first_row, replies.rows()); }
};

/// Shares the replies [first, last) of a batch among the workers: work(shard).
template <class Work>
void in_shards(const packed_replies& batch, index first, index last, const Work& work) {
  run_workers([&](int k) {
    const index begin = first + share_begin(last - first, k);
    const index end = first + share_begin(last - first, k + 1);
    work(shard{static_cast<std::size_t>(k), batch.part(begin, end), batch.first_row(begin)});
  });
}
template <class Work>
void in_shards(const packed_replies& batch, const Work& work) {
  in_shards(batch, 0, batch.count(), work);
}

/// A small network over words. To predict a token it reads the four tokens before it, the mean of
/// the prompt and the mean of the reply so far, all as embeddings; one layer of tanh units follows,
/// and a linear layer of outputs: a logit per word for a language model, one number for a critic.
class context_network {
 public:
  static constexpr index window = 4;

  struct sizes {
    index vocabulary, embedding, hidden, outputs;
    index inputs() const { return (window + 2) * embedding; }
    index parameters() const {
      return vocabulary * embedding + inputs() * hidden + hidden + hidden * outputs + outputs;
    }
  };

  /// What a forward pass leaves for the backward pass.
  struct activations {
    matrix input, hidden, output;
  };

  context_network(const sizes& s, std::mt19937_64& random);

  const sizes& shape() const { return sizes_; }

  /// Fills output with one row per token of the replies.
  void forward(const packed_replies& replies, activations& a) const;

  /// Adds to the gradient, given d_output. `a` is what forward left.
  void backward(const packed_replies& replies, const activations& a, const matrix& d_output,
                column& d_parameters) const;

  /// Draws a reply to each prompt, token by token, from the distribution of the outputs.
  std::vector<exchange> sample(std::span<const tokens* const> prompts, index longest,
                               std::mt19937_64& random) const;

  column parameters;

 private:
  /// Views of the parts of one long vector: parameters or their gradient.
  template <class Vector>
  struct parts;

  void hidden_and_output(activations& a) const;

  sizes sizes_;
};

/// Adam (Kingma and Ba 2015) with the gradient's norm bounded.
class adam {
 public:
  explicit adam(index parameters)
      : mean_(column::Zero(parameters)), square_(column::Zero(parameters)) {}

  void step(column& parameters, column gradient, double rate, double largest_norm = 1);

 private:
  column mean_, square_;
  int steps_ = 0;
};

/// A network that learns: what each worker needs for its share of a batch, and the optimiser.
struct learner {
  struct worker {
    context_network::activations a;
    matrix d_output;
    column gradient;
  };

  explicit learner(const context_network& start)
      : network(start), optimiser(start.parameters.size()) {}

  /// Forward; d_output has the shape of the output from here on.
  worker& forward(const shard& s);
  /// From d_output to the gradient.
  void backward(const shard& s);
  /// Adds the workers' gradients up and takes a step.
  void step(double rate);

  context_network network;
  adam optimiser;
  std::array<worker, worker_count> workers;
};

}  // namespace demo
