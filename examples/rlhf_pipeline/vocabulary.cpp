#include "rlhf_pipeline/vocabulary.hpp"

#include <algorithm>
#include <cctype>

namespace demo {
namespace {

constexpr std::string_view marks = ".,!?;:";

bool is_word_character(char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0; }

/// Length of a typographic apostrophe (U+2019) or a plain one at the front of the text, else 0.
std::size_t apostrophe(std::string_view text) {
  if (text.starts_with("\xE2\x80\x99")) return 3;
  return text.starts_with('\'') ? 1 : 0;
}

}  // namespace

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  const auto finish = [&] {
    if (!word.empty()) words.push_back(std::move(word));
    word.clear();
  };
  for (std::size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const std::size_t quote = apostrophe(text.substr(i));
    if (is_word_character(c)) {
      word += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    } else if (quote != 0 && !word.empty() && i + quote < text.size() &&
               is_word_character(text[i + quote])) {
      word += '\'';  // inside a word: don't
      i += quote - 1;
    } else {
      finish();
      if (marks.find(c) != std::string_view::npos) words.emplace_back(1, c);
    }
  }
  finish();
  return words;
}

vocabulary::vocabulary(const std::vector<std::string_view>& texts, std::size_t size) {
  std::unordered_map<std::string, int> counts;
  for (const std::string_view text : texts)
    for (std::string& word : split_words(text)) ++counts[std::move(word)];

  std::vector<std::pair<std::string, int>> ranked(counts.begin(), counts.end());
  std::sort(ranked.begin(), ranked.end(), [](const auto& a, const auto& b) {
    return a.second != b.second ? a.second > b.second : a.first < b.first;
  });
  words_ = {"<end>", "<start>", "<unknown>"};
  for (const auto& [word, count] : ranked) {
    if (words_.size() >= size) break;
    number_.emplace(word, static_cast<token>(words_.size()));
    words_.push_back(word);
  }
}

tokens vocabulary::encode(std::string_view text) const {
  tokens result;
  for (const std::string& word : split_words(text)) {
    const auto found = number_.find(word);
    result.push_back(found == number_.end() ? unknown : found->second);
  }
  return result;
}

std::string vocabulary::decode(std::span<const token> reply) const {
  std::string text;
  for (const token t : reply) {
    if (t == end) break;
    const std::string& word = words_[static_cast<std::size_t>(t)];
    if (!text.empty() && marks.find(word[0]) == std::string_view::npos) text += ' ';
    text += t == unknown ? "_" : word;
  }
  return text;
}

}  // namespace demo
