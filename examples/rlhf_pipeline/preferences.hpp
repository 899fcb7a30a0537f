#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace demo {

/// One judgement of a person: of two replies to a prompt, the better and the worse.
struct preference {
  std::string prompt;  ///< the last turn of the human
  std::string chosen;
  std::string rejected;
};

/// A file that cannot be used; what() says why in a sentence for the user.
class unusable_file : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct preference_file {
  std::vector<preference> pairs;
  std::size_t skipped = 0;  ///< lines without a usable pair; each was reported with its number
};

/// Reads {"chosen": ..., "rejected": ...} lines, plain or gzipped. Both texts are dialogues of
/// "\n\nHuman: " and "\n\nAssistant: " turns that share everything up to the last reply.
preference_file read_preferences(const std::string& path);

/// Preferences whose right answer is known. Replies to requests for help with mischief are strung
/// together from stock sentences; every sentence has a worth, and the reply of higher total worth
/// is preferred with the probability of the Bradley-Terry model.
std::vector<preference> generate_preferences(std::size_t pairs, std::uint64_t seed);

/// The worth of a reply of `generate_preferences`, or of any text made of its words: high for a
/// short and kind refusal, low for help with mischief, for insults and for rambling.
double true_worth(const std::string& reply);

}  // namespace demo
