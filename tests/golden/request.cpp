#include <sstream>

#include "tests/golden/golden.hpp"

namespace golden {

namespace {

struct writer {
  std::ostringstream& to;

  void operator()(std::nullptr_t) const { to << "null"; }
  void operator()(bool x) const { to << (x ? "true" : "false"); }
  void operator()(double x) const { to << x; }
  void operator()(const std::string& x) const { to << x; }
  template <class X>
  void operator()(const std::vector<X>& x) const {
    to << "[";
    for (size_t i = 0; i < x.size(); ++i) to << (i > 0 ? ", " : "") << x[i];
    to << "]";
  }
  void operator()(const std::map<std::string, double>& x) const {
    to << "{";
    for (const auto& [name, value] : x) to << name << ": " << value << " ";
    to << "}";
  }
};

template <class X>
const X& as(const std::string& name, const parameter& p) {
  if (const X* x = std::get_if<X>(&p)) return *x;
  unknown_value(name, to_text(p));
}

}  // namespace

std::string to_text(const parameter& p) {
  std::ostringstream text;
  std::visit(writer{text}, p);
  return text.str();
}

void unknown_value(const std::string& name, const std::string& value) {
  throw unfit("param " + name + " has a value nobody knows: " + value);
}

const parameter* request::find(const std::string& name) const {
  seen_.insert(name);
  const auto at = case_.params.find(name);
  return at == case_.params.end() ? nullptr : &at->second;
}

bool request::has(const std::string& name) const {
  seen_.insert(name);
  return case_.inputs.contains(name);
}

const array& request::input(const std::string& name) const {
  seen_.insert(name);
  const auto at = case_.inputs.find(name);
  if (at == case_.inputs.end()) throw unfit("input " + name + " is missing");
  return at->second;
}

array request::input(const std::string& name, const array& otherwise) const {
  return has(name) ? input(name) : otherwise;
}

array request::cotangent(const std::string& output) const {
  const auto at = case_.cotangents.find(output);
  if (at != case_.cotangents.end()) return at->second;
  const auto value = case_.outputs.find(output);
  if (value == case_.outputs.end()) throw unfit("output " + output + " is missing");
  return zeros_like(value->second);
}

bool request::flag(const std::string& name, bool otherwise) const {
  const parameter* p = find(name);
  return p == nullptr ? otherwise : as<bool>(name, *p);
}

double request::number(const std::string& name, double otherwise) const {
  const parameter* p = find(name);
  return p == nullptr ? otherwise : as<double>(name, *p);
}

double request::number(const std::string& name) const {
  const parameter* p = find(name);
  if (p == nullptr) throw unfit("param " + name + " is missing");
  return as<double>(name, *p);
}

std::optional<double> request::maybe(const std::string& name,
                                     std::optional<double> otherwise) const {
  const parameter* p = find(name);
  if (p == nullptr) return otherwise;
  if (std::holds_alternative<std::nullptr_t>(*p)) return std::nullopt;
  return as<double>(name, *p);
}

std::string request::text(const std::string& name, const std::string& otherwise) const {
  const parameter* p = find(name);
  return p == nullptr ? otherwise : as<std::string>(name, *p);
}

std::vector<double> request::numbers(const std::string& name,
                                     const std::vector<double>& otherwise) const {
  const parameter* p = find(name);
  if (p == nullptr || std::holds_alternative<std::nullptr_t>(*p)) return otherwise;
  return as<std::vector<double>>(name, *p);
}

std::vector<std::string> request::texts(const std::string& name) const {
  const parameter* p = find(name);
  if (p == nullptr) throw unfit("param " + name + " is missing");
  return as<std::vector<std::string>>(name, *p);
}

std::map<std::string, double> request::table(const std::string& name) const {
  const parameter* p = find(name);
  if (p == nullptr) return {};
  return as<std::map<std::string, double>>(name, *p);
}

bool request::given(const std::string& name) const {
  const parameter* p = find(name);
  return p != nullptr && !std::holds_alternative<std::nullptr_t>(*p);
}

void request::ignore(std::initializer_list<const char*> names) const {
  for (const char* name : names) seen_.insert(name);
}

std::vector<std::string> request::unread() const {
  std::vector<std::string> names;
  for (const auto& [name, value] : case_.params)
    if (!seen_.contains(name)) names.push_back("param " + name);
  for (const auto& [name, value] : case_.inputs)
    if (!seen_.contains(name)) names.push_back("input " + name);
  return names;
}

}  // namespace golden
