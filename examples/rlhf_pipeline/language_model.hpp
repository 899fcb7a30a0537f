#pragma once

#include <Eigen/Core>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "rlhf_pipeline/vocabulary.hpp"

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

  context_network(const sizes& s, std::uint64_t seed);

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

  void step(column& parameters, column& gradient, double rate, double largest_norm = 1);

 private:
  column mean_, square_;
  int steps_ = 0;
};

}  // namespace demo
