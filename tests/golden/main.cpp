#include <algorithm>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <iostream>

#include "tests/golden/golden.hpp"

namespace golden {

template <class T>
std::unique_ptr<place<T>> make_host_place();
#if RLHF_TEST_EIGEN
template <class T>
std::unique_ptr<place<T>> make_eigen_place();
#endif
#if RLHF_TEST_XTENSOR
template <class T>
std::unique_ptr<place<T>> make_xtensor_place();
#endif

std::vector<std::string> backends() {
  std::vector<std::string> names{"host"};
#if RLHF_TEST_EIGEN
  names.push_back("eigen");
#endif
#if RLHF_TEST_XTENSOR
  names.push_back("xtensor");
#endif
  return names;
}

template <class T>
std::unique_ptr<place<T>> make_place([[maybe_unused]] std::string_view backend) {
#if RLHF_TEST_EIGEN
  if (backend == "eigen") return make_eigen_place<T>();
#endif
#if RLHF_TEST_XTENSOR
  if (backend == "xtensor") return make_xtensor_place<T>();
#endif
  return make_host_place<T>();
}

namespace {

std::map<std::string, adapter> all_adapters() {
  std::map<std::string, adapter> all;
  for (const auto table :
       {statistics_adapters(), kl_adapters(), advantage_adapters(), group_adapters(),
        policy_adapters(), trl_policy_adapters(), value_adapters(), preference_adapters(),
        reward_adapters(), distribution_adapters()})
    for (const adapter& a : table)
      if (!all.emplace(a.function, a).second)
        throw std::logic_error(std::string("two adapters for ") + a.function);
  return all;
}

/// What a computation in float may differ by: 32 ulp, and the digits that an exponential loses.
double float_tolerance(double exponent) { return 32 * 0x1p-24 * (1 + exponent); }

bool is_log_prob(const std::string& name) {
  return name.find("logp") != std::string::npos || name.find("log_prob") != std::string::npos ||
         name.find("logprob") != std::string::npos;
}

/// The largest |log ratio| of a case: between any two of its log-probabilities of one shape, and
/// between the entries of a row of logits.
double largest_exponent(const test_case& c) {
  double most = 0;
  for (const auto& [name, a] : c.inputs) {
    if (name.find("logits") != std::string::npos && a.rank() >= 2) {
      const index n = a.shape.back();
      for (index i = 0; i < a.size(); i += n) {
        const auto [low, high] = std::minmax_element(a.data.begin() + i, a.data.begin() + i + n);
        if (std::isfinite(*high - *low)) most = std::max(most, *high - *low);
      }
    }
    if (!is_log_prob(name)) continue;
    for (const auto& [other, b] : c.inputs) {
      if (!is_log_prob(other) || a.shape != b.shape) continue;
      for (index i = 0; i < a.size(); ++i)
        if (std::isfinite(a[i] - b[i])) most = std::max(most, std::abs(a[i] - b[i]));
    }
  }
  return most;
}

struct comparison {
  bool in_double;
  double exponent, magnitude, rtol, atol;
};

/// The first difference, or nothing.
std::string difference(const std::string& name, const answer::entry* got, const array& want,
                       const comparison& how) {
  if (got == nullptr) return name + " is not compared";
  if (got->value.shape != want.shape && got->value.size() != want.size())
    return name + " has another shape";
  double rtol = std::max({how.rtol, got->rtol, 1e-10});
  double atol = std::max({how.atol, got->atol, 1e-12});
  if (!how.in_double) {
    const double tolerance = std::max(float_tolerance(how.exponent), rtol);
    // A lone number is a sum whose terms may have cancelled.
    const double most = std::max(largest(want), how.magnitude);
    const double scale = want.size() == 1 ? std::max(most, 1.0) : most;
    atol += tolerance * scale;
    rtol = 0;
  }
  for (index i = 0; i < want.size(); ++i) {
    if (got->where && (*got->where)[i] == 0) continue;
    const double a = got->value[i], b = want[i];
    const bool same = std::isfinite(b) ? std::abs(a - b) <= atol + rtol * std::abs(b)
                                       : (std::isnan(b) ? std::isnan(a) : a == b);
    if (same) continue;
    char text[160];
    std::snprintf(text, sizeof text, "[%td]: %.17g instead of %.17g, off by %.3g, allowed %.3g", i,
                  a, b, std::abs(a - b), atol + rtol * std::abs(b));
    return name + text;
  }
  return "";
}

std::vector<std::string> differences(const test_case& c, const answer& got, bool in_double) {
  const comparison how{in_double, std::max(largest_exponent(c), got.exponent()), got.magnitude(),
                       got.rtol(), got.atol()};
  std::vector<std::string> found;
  const auto compare = [&](const std::string& prefix, const auto& wanted, const auto& answers) {
    for (const auto& [name, want] : wanted) {
      const auto at = answers.find(name);
      const answer::entry* const entry = at == answers.end() ? nullptr : &at->second;
      if (auto text = difference(prefix + name, entry, want, how); !text.empty())
        found.push_back(std::move(text));
    }
  };
  compare("", c.outputs, got.outputs());
  compare("d loss / d ", c.grads, got.grads());
  return found;
}

template <class T>
std::vector<std::string> run(const test_case& c, adapter_call<T> call, const std::string& backend) {
  try {
    const request asked(c);
    const auto on = make_place<T>(backend);
    answer got;
    call(asked, *on, got);
    auto found = differences(c, got, std::is_same_v<T, double>);
    for (const std::string& name : asked.unread())
      found.push_back(name + " is unknown: no adapter looks at it");
    return found;
  } catch (const std::exception& e) {
    return {e.what()};
  }
}

std::string describe(const test_case& c) {
  std::string text = c.function + " " + std::to_string(c.number) + " (";
  const char* comma = "";
  for (const auto& [name, value] : c.params) {
    text += comma + name + " = " + to_text(value);
    comma = ", ";
  }
  return text + ")";
}

struct tally {
  long passed = 0, failed = 0;
  std::map<std::string, std::map<std::string, long>> excluded;  // reason, function
};

void check(const test_case& c, const std::map<std::string, adapter>& adapters, bool verbose,
           tally& counts) {
  if (const char* reason = excluded(c)) {
    ++counts.excluded[reason][c.function];
    return;
  }
  const auto at = adapters.find(c.function);
  std::vector<std::string> found;
  if (at == adapters.end()) {
    found.push_back("no adapter and no rule knows this function");
  } else {
    for (const std::string& backend : backends()) {
      const auto note = [&](const char* type, const std::vector<std::string>& texts) {
        for (const auto& text : texts) found.push_back(backend + " " + type + ": " + text);
      };
      note("double", run<double>(c, at->second.in_double, backend));
      note("float", run<float>(c, at->second.in_float, backend));
    }
  }
  ++(found.empty() ? counts.passed : counts.failed);
  if (!found.empty()) {
    std::cout << "FAILED " << describe(c) << "\n";
    for (const auto& text : found) std::cout << "    " << text << "\n";
  } else if (verbose) {
    std::cout << "passed " << describe(c) << "\n";
  }
}

void report(const tally& counts) {
  if (!counts.excluded.empty()) {
    std::cout << "\nexcluded  reason\n";
    for (const auto& [reason, functions] : counts.excluded) {
      long n = 0;
      for (const auto& [name, k] : functions) n += k;
      std::printf("%8ld  %s\n", n, reason.c_str());
      std::fflush(stdout);
      for (const auto& [name, k] : functions) {
        std::printf("          %6ld %s\n", k, name.c_str());
        std::fflush(stdout);
      }
    }
    std::cout << "\n";
  }
  std::cout << counts.passed << " passed, " << counts.failed << " failed" << std::endl;
}

}  // namespace
}  // namespace golden

int main(int argc, char** argv) {
  std::string folder, only;
  bool verbose = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--only" && i + 1 < argc)
      only = argv[++i];
    else if (word == "--verbose")
      verbose = true;
    else if (folder.empty() && !word.starts_with("-"))
      folder = word;
    else
      folder.clear(), i = argc;
  }
  if (folder.empty()) {
    std::cerr << "usage: rlhf_golden FOLDER [--only NAME] [--verbose]\n"
                 "compares this library with the recorded numbers in FOLDER/*.json\n";
    return 2;
  }

  std::error_code error;
  std::vector<std::filesystem::path> files;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error))
    if (entry.path().extension() == ".json") files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  if (error || files.empty()) {
    std::cerr << "rlhf_golden: no *.json in " << folder << "\n";
    return 2;
  }

  const auto adapters = golden::all_adapters();
  golden::tally counts;
  for (const auto& file : files) {
    if (!only.empty() && file.stem().string().find(only) == std::string::npos) continue;
    try {
      for (const auto& c : golden::read_cases(file.string()))
        golden::check(c, adapters, verbose, counts);
    } catch (const std::exception& e) {
      std::cout << "FAILED " << file.filename().string() << ": " << e.what() << "\n";
      ++counts.failed;
    }
  }
  std::cout << "\nbackends:";
  for (const auto& name : golden::backends()) std::cout << " " << name;
  std::cout << "; double and float\n";
  golden::report(counts);
  return counts.failed == 0 ? 0 : 1;
}
