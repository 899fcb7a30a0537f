#include "rlhf_pipeline/dataset.hpp"

#include <cstddef>
#include <iterator>

namespace demo {
namespace {

/// Both replies of the training pairs are counted: with one side left out its words would be
/// unknown, and unknown words would tell the sides apart.
vocabulary count_words(const std::vector<preference>& train, std::size_t size) {
  std::vector<std::string_view> texts;
  for (const preference& p : train) texts.insert(texts.end(), {p.prompt, p.chosen, p.rejected});
  return vocabulary(texts, size);
}

std::vector<token_pair> encode(const vocabulary& words, const std::vector<preference>& pairs) {
  const auto reply = [&](const std::string& text) {
    tokens t = words.encode(text);
    t.push_back(vocabulary::end);
    return t;
  };
  std::vector<token_pair> result;
  for (const preference& p : pairs)
    result.push_back({words.encode(p.prompt), reply(p.chosen), reply(p.rejected)});
  return result;
}

}  // namespace

dataset load_dataset(const std::string& preferences, const std::string& heldout,
                     std::size_t generated_pairs, std::size_t vocabulary_size) {
  const bool generated = preferences.empty();
  const std::string source = generated ? "generated" : preferences;
  std::size_t skipped = 0;
  const auto read = [&](const std::string& path) {
    preference_file file = read_preferences(path);
    skipped += file.skipped;
    return std::move(file.pairs);
  };

  std::vector<preference> train =
      generated ? generate_preferences(generated_pairs, 1) : read(preferences);
  std::vector<preference> held;
  if (!heldout.empty()) {
    held = read(heldout);
  } else {
    const auto sixth = train.end() - static_cast<std::ptrdiff_t>(train.size() / 6);
    held.assign(std::move_iterator(sixth), std::move_iterator(train.end()));
    train.erase(sixth, train.end());
  }
  if (train.size() < 2 || held.empty())
    throw unusable_file(source + ": too few usable pairs to learn from and to hold a sixth out");

  vocabulary words = count_words(train, vocabulary_size);
  std::vector<token_pair> train_tokens = encode(words, train);
  std::vector<token_pair> heldout_tokens = encode(words, held);
  return {.source = source,
          .generated = generated,
          .skipped_lines = skipped,
          .heldout_text = std::move(held),
          .words = std::move(words),
          .train = std::move(train_tokens),
          .heldout = std::move(heldout_tokens)};
}

}  // namespace demo
