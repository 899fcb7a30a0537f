#include "rlhf_pipeline/report.hpp"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <csignal>
#include <stdexcept>
#include <string_view>

#include "rlhf_pipeline_assets.hpp"  // made by CMake: report.html and the chart script as strings

namespace demo {
namespace {

volatile std::sig_atomic_t interrupt_asked = 0;

void ask_for_interrupt(int) {
  interrupt_asked = 1;
  std::signal(SIGINT, SIG_DFL);
}

std::ofstream open(const std::filesystem::path& path) {
  std::ofstream file(path);
  if (!file) throw std::runtime_error(path.string() + ": cannot be written");
  return file;
}

/// Under its final name a file is always whole: it is written beside and then renamed.
void write_whole(const std::filesystem::path& path, std::string_view text) {
  std::filesystem::path draft = path;
  draft += ".part";
  {
    std::ofstream file = open(draft);
    file << text;
    file.flush();
    if (!file) throw std::runtime_error(draft.string() + ": cannot be written");
  }
  std::filesystem::rename(draft, path);
}

void replace(std::string& text, std::string_view place, std::string_view by) {
  const std::size_t at = text.find(place);
  if (at != std::string::npos) text.replace(at, place.size(), by);
}

/// JSON, whatever bytes a path may have brought in.
std::string text_of(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

/// JSON that may stand in a <script>: no reply can close the element.
std::string for_script(const json& value) {
  std::string text;
  for (const char c : text_of(value, -1))
    if (c == '<')
      text += "\\u003c";
    else
      text += c;
  return text;
}

}  // namespace

void catch_interrupts() { std::signal(SIGINT, ask_for_interrupt); }

void throw_if_interrupted() {
  if (interrupt_asked != 0) throw interrupted();
}

progress::progress(std::string stage, int steps) : stage_(std::move(stage)), steps_(steps) {}

void progress::step(const std::string& figures) {
  constexpr std::chrono::seconds pause(2);
  ++done_;
  const clock::time_point now = clock::now();
  if (done_ == 1 || done_ == steps_ || now - told_ >= pause) {
    told_ = now;
    const double seconds = std::chrono::duration<double>(now - began_).count();
    const double rate = done_ / std::max(seconds, 1e-9);
    spdlog::info("{:<13} {:>4}/{:<4} {:>6.1f}/s {:>3.0f} s left  {}", stage_, done_, steps_, rate,
                 (steps_ - done_) / rate, figures);
  }
  throw_if_interrupted();
}

run_files::run_files(const std::filesystem::path& folder) : folder_(folder) {
  std::filesystem::create_directories(folder);
  metrics_ = open(folder / "metrics.jsonl");
}

void run_files::record(const json& line) {
  lines_.push_back(line);
  metrics_ << line.dump() << '\n' << std::flush;
}

void run_files::finish(const json& summary, const json& samples) const {
  write_whole(folder_ / "summary.json", text_of(summary, 2) + "\n");

  std::string page(assets::report_html);
  replace(page, "/* chart style */", assets::uplot_css);
  replace(page, "/* chart script */", assets::uplot_js);
  replace(page, "/* data */ null",
          for_script({{"summary", summary}, {"metrics", lines_}, {"samples", samples}}));
  write_whole(folder_ / "report.html", page);
}

}  // namespace demo
