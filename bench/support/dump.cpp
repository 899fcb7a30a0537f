#include "bench/support/dump.hpp"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "bench/support/settings.hpp"

namespace rlhf_bench {
namespace {

nlohmann::json& lines() {
  static nlohmann::json all = nlohmann::json::array();
  return all;
}

std::ofstream open(const std::filesystem::path& path) {
  std::ofstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot write " + path.string());
  file.exceptions(std::ios::badbit | std::ios::failbit);
  return file;
}

}  // namespace

void dump(const std::string& line, const tensors& of, bool has_loss, double loss) {
  const std::filesystem::path folder = the_settings().dump;
  std::string stem = line;
  for (char& c : stem)
    if (c == '/') c = '.';
  nlohmann::json entry{{"name", line}, {"tensors", nlohmann::json::array()}};
  if (has_loss) entry["loss"] = loss;
  for (const tensor& t : of.all()) {
    const std::string name = stem + "." + t.name;
    std::filesystem::create_directories(folder);
    open(folder / name)
        .write(reinterpret_cast<const char*>(t.bytes.data()),
               static_cast<std::streamsize>(t.bytes.size()));
    entry["tensors"].push_back({{"name", t.name},
                                {"output", t.is_output},
                                {"type", t.type},
                                {"shape", t.shape},
                                {"stride", t.stride},
                                {"file", name}});
  }
  lines().push_back(std::move(entry));
}

void write_manifest() {
  const std::filesystem::path folder = the_settings().dump;
  std::filesystem::create_directories(folder);
  open(folder / "manifest.json") << nlohmann::json{{"schema", 1}, {"lines", lines()}}.dump(1);
}

}  // namespace rlhf_bench
