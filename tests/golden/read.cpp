// The one unit that parses JSON: nlohmann's header is slow to compile.

#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/golden/golden.hpp"

namespace golden {
namespace {

using nlohmann::json;

double to_number(const json& j) {
  if (j.is_number()) return j.get<double>();
  if (j.is_boolean()) return j.get<bool>() ? 1 : 0;
  const auto text = j.get<std::string>();
  if (text == "NaN") return nan;
  if (text == "Infinity") return infinity;
  if (text == "-Infinity") return -infinity;
  throw unfit("\"" + text + "\" is not a number");
}

parameter to_parameter(const json& j) {
  if (j.is_null()) return nullptr;
  if (j.is_boolean()) return j.get<bool>();
  if (j.is_number()) return j.get<double>();
  if (j.is_string()) return j.get<std::string>();
  if (j.is_object()) {
    std::map<std::string, double> table;
    for (const auto& [name, value] : j.items())
      if (!value.is_null()) table[name] = to_number(value);
    return table;
  }
  if (!j.empty() && j.front().is_string()) return j.get<std::vector<std::string>>();
  std::vector<double> numbers;
  for (const json& x : j) numbers.push_back(to_number(x));
  return numbers;
}

array to_array(const json& j) {
  const auto type = j.at("dtype").get<std::string>();
  if (type != "float64" && type != "int64" && type != "bool")
    throw unfit("unknown dtype \"" + type + "\"");
  std::vector<double> numbers;
  for (const json& x : j.at("data")) numbers.push_back(to_number(x));
  return {j.at("shape").get<std::vector<index>>(), std::move(numbers)};
}

std::map<std::string, array> to_arrays(const json& c, const char* name) {
  std::map<std::string, array> arrays;
  if (c.contains(name))
    for (const auto& [key, value] : c.at(name).items()) arrays.emplace(key, to_array(value));
  return arrays;
}

}  // namespace

std::vector<test_case> read_cases(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw unfit("cannot be read");
  const json document = json::parse(file);
  if (document.at("schema") != 1) throw unfit("unknown schema " + document.at("schema").dump());
  std::vector<test_case> cases;
  for (const json& c : document.at("cases")) {
    test_case t;
    t.function = document.at("name").get<std::string>();
    t.number = c.at("index").get<long>();
    for (const auto& [name, value] : c.at("params").items()) t.params[name] = to_parameter(value);
    t.inputs = to_arrays(c, "inputs");
    t.outputs = to_arrays(c, "outputs");
    t.grads = to_arrays(c, "grads");
    t.cotangents = to_arrays(c, "cotangents");
    if (c.contains("raises")) t.raises = c.at("raises").dump();
    if (c.contains("backward_raises")) t.backward_raises = c.at("backward_raises").dump();
    cases.push_back(std::move(t));
  }
  return cases;
}

}  // namespace golden
