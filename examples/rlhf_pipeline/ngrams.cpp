#include "rlhf_pipeline/ngrams.hpp"

#include <cmath>

namespace demo {

std::map<ngrams::ngram, int> ngrams::count(std::span<const token> reply) {
  std::map<ngram, int> counts;
  token before = vocabulary::start;
  for (const token t : reply) {
    if (t == vocabulary::end) break;
    ++counts[{t, alone}];
    ++counts[{before, t}];
    before = t;
  }
  return counts;
}

ngrams::ngrams(std::span<const tokens> replies, int least) {
  std::map<ngram, int> seen;
  for (const tokens& reply : replies)
    for (const auto& [gram, n] : count(reply)) ++seen[gram];
  for (const auto& [gram, n] : seen)
    if (n >= least) number_.emplace(gram, static_cast<int>(number_.size()));
}

ngrams::row ngrams::of(std::span<const token> reply) const {
  row result(size());
  for (const auto& [gram, n] : count(reply))
    if (const auto found = number_.find(gram); found != number_.end())
      result.insert(found->second) = std::sqrt(static_cast<float>(n));
  return result;
}

ngrams::rows ngrams::of(std::span<const tokens> replies) const {
  std::vector<Eigen::Triplet<float>> entries;
  for (std::size_t i = 0; i < replies.size(); ++i) {
    const row r = of(replies[i]);
    for (row::InnerIterator it(r); it; ++it)
      entries.emplace_back(static_cast<int>(i), static_cast<int>(it.index()), it.value());
  }
  rows result(static_cast<Eigen::Index>(replies.size()), size());
  result.setFromTriplets(entries.begin(), entries.end());
  return result;
}

}  // namespace demo
