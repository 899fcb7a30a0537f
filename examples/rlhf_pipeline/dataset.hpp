#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "rlhf_pipeline/preferences.hpp"
#include "rlhf_pipeline/vocabulary.hpp"

namespace demo {

/// A preference as tokens; both replies end with vocabulary::end.
struct token_pair {
  tokens prompt, chosen, rejected;
};

/// Pairs to learn from and pairs to judge by, as the models read them.
struct dataset {
  std::string source;
  bool generated = false;
  std::size_t skipped_lines = 0;
  std::vector<preference> heldout_text;
  vocabulary words;
  std::vector<token_pair> train, heldout;
};

/// Reads the files, or makes `generated_pairs` pairs where none is named. Without a file of
/// held-out pairs the last sixth is held out.
dataset load_dataset(const std::string& preferences, const std::string& heldout,
                     std::size_t generated_pairs, std::size_t vocabulary_size);

}  // namespace demo
