#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace demo {

using token = std::int32_t;
using tokens = std::vector<token>;

/// The words of a text in lower case, punctuation marks as words of their own.
std::vector<std::string> split_words(std::string_view text);

/// The most frequent words, numbered; all others share one number.
class vocabulary {
 public:
  static constexpr token end = 0;      ///< ends a reply
  static constexpr token start = 1;    ///< stands before a reply
  static constexpr token unknown = 2;  ///< a word that was not counted often enough

  /// Counts the words of all texts; `size` includes the three tokens above.
  vocabulary(const std::vector<std::string_view>& texts, std::size_t size);

  int size() const { return static_cast<int>(words_.size()); }
  tokens encode(std::string_view text) const;
  std::string decode(std::span<const token> reply) const;

 private:
  std::vector<std::string> words_;
  std::unordered_map<std::string, token> number_;
};

}  // namespace demo
