#pragma once

#include <Eigen/SparseCore>
#include <map>
#include <span>
#include <utility>
#include <vector>

#include "rlhf_pipeline/vocabulary.hpp"

namespace demo {

/// Replies as counts of their words and of their pairs of neighbouring words, the counts
/// square-rooted: what the reward models are linear in.
class ngrams {
 public:
  using row = Eigen::SparseVector<float>;
  using rows = Eigen::SparseMatrix<float, Eigen::RowMajor>;

  /// Knows the n-grams that occur in at least `least` of the replies.
  ngrams(std::span<const tokens> replies, int least);

  Eigen::Index size() const { return static_cast<Eigen::Index>(number_.size()); }
  row of(std::span<const token> reply) const;
  rows of(std::span<const tokens> replies) const;

 private:
  using ngram = std::pair<token, token>;  // a single word is {word, alone}
  static constexpr token alone = -1;
  static std::map<ngram, int> count(std::span<const token> reply);

  std::map<ngram, int> number_;
};

}  // namespace demo
