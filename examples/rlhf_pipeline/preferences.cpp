#include "rlhf_pipeline/preferences.hpp"

#include <spdlog/spdlog.h>
#include <zlib.h>

#include <array>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string_view>

namespace demo {
namespace {

constexpr std::string_view human_turn = "\n\nHuman:";
constexpr std::string_view assistant_turn = "\n\nAssistant:";

std::string trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  if (first == std::string_view::npos) return {};
  return std::string(text.substr(first, text.find_last_not_of(" \t\r\n") - first + 1));
}

/// A dialogue cut before its last assistant turn.
struct dialogue {
  std::string_view before;
  std::string_view reply;
};

dialogue cut(std::string_view text) {
  const std::size_t at = text.rfind(assistant_turn);
  if (at == std::string_view::npos) throw std::runtime_error("a dialogue has no assistant turn");
  return {text.substr(0, at), text.substr(at + assistant_turn.size())};
}

/// The pair on a line; throws what is wrong with it. An empty reply is a reply.
preference parse(const std::string& line) {
  const auto row = nlohmann::json::parse(line);
  if (!row.is_object()) throw std::runtime_error("not a JSON object");
  for (const char* key : {"chosen", "rejected"})
    if (!row.contains(key) || !row[key].is_string())
      throw std::runtime_error("\"" + std::string(key) + "\" is missing or no text");
  const std::string chosen_text = row["chosen"];
  const std::string rejected_text = row["rejected"];
  const dialogue chosen = cut(chosen_text);
  const dialogue rejected = cut(rejected_text);
  const std::size_t asked = chosen.before.rfind(human_turn);
  if (asked == std::string_view::npos) throw std::runtime_error("a dialogue has no human turn");

  preference pair{.prompt = trimmed(chosen.before.substr(asked + human_turn.size())),
                  .chosen = trimmed(chosen.reply),
                  .rejected = trimmed(rejected.reply)};
  if (pair.chosen == pair.rejected) throw std::runtime_error("both replies are the same");
  return pair;
}

/// The whole of a file, gzipped or not: zlib reads both.
std::string read_file(const std::string& path) {
  const std::unique_ptr<gzFile_s, decltype(&gzclose)> file(gzopen(path.c_str(), "rb"), &gzclose);
  if (!file) throw unusable_file(path + ": cannot be opened");
  std::string text;
  std::array<char, 1 << 16> part{};
  int n = 0;
  while ((n = gzread(file.get(), part.data(), part.size())) > 0)
    text.append(part.data(), static_cast<std::size_t>(n));
  int code = Z_OK;
  const std::string_view why = gzerror(file.get(), &code);
  if (n < 0 || code != Z_OK) throw unusable_file(path + ": cannot be read: " + std::string(why));
  return text;
}

}  // namespace

preference_file read_preferences(const std::string& path) {
  preference_file result;
  std::istringstream lines(read_file(path));
  std::string line;
  std::size_t number = 0;
  while (std::getline(lines, line)) {
    ++number;
    if (trimmed(line).empty()) continue;
    try {
      result.pairs.push_back(parse(line));
    } catch (const std::exception& problem) {
      ++result.skipped;
      spdlog::warn("{}: line {} skipped: {}", path, number, problem.what());
    }
  }
  if (result.pairs.empty())
    throw unusable_file(path + ": no usable pair in " + std::to_string(number) + " lines");
  return result;
}

}  // namespace demo
