#include "rlhf_pipeline/preferences.hpp"

#include <spdlog/spdlog.h>
#include <zlib.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
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

/// The pair on a line; nothing where there is no difference to learn from. Throws on a bad line.
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
  if (pair.chosen.empty() || pair.rejected.empty()) throw std::runtime_error("a reply is empty");
  return pair;
}

/// Lines of a file, gzipped or not: zlib reads both.
class line_reader {
  using handle = std::unique_ptr<gzFile_s, decltype(&gzclose)>;
  std::string path_;
  handle file_;

 public:
  explicit line_reader(const std::string& path)
      : path_(path), file_(gzopen(path.c_str(), "rb"), &gzclose) {
    if (!file_) throw unusable_file(path + ": cannot be opened");
  }

  std::optional<std::string> next() {
    std::string line;
    char part[1 << 16];
    while (gzgets(file_.get(), part, sizeof part) != nullptr) {
      line += part;
      if (line.back() == '\n') return line;
    }
    int code = Z_OK;
    const char* why = gzerror(file_.get(), &code);
    if (code != Z_OK && code != Z_STREAM_END) throw unusable_file(path_ + ": " + why);
    if (line.empty()) return std::nullopt;
    return line;
  }
};

}  // namespace

preference_file read_preferences(const std::string& path) {
  preference_file result;
  line_reader lines(path);
  std::size_t number = 0;
  while (const std::optional<std::string> line = lines.next()) {
    ++number;
    if (trimmed(*line).empty()) continue;
    try {
      result.pairs.push_back(parse(*line));
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
