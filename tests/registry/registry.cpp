#include "tests/registry/registry.hpp"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>
#include <set>

namespace {
std::size_t allocation_count = 0;
void* take(std::size_t bytes, std::size_t alignment) {
  ++allocation_count;
  void* p = nullptr;
  if (posix_memalign(&p, alignment < sizeof(void*) ? sizeof(void*) : alignment,
                     bytes > 0 ? bytes : 1) != 0)
    throw std::bad_alloc();
  return p;
}
// Inlined into its callers, g++ takes the free below for a mistake.
[[gnu::noinline]] void give_back(void* p) { std::free(p); }
}  // namespace

void* operator new(std::size_t n) { return take(n, alignof(std::max_align_t)); }
void* operator new[](std::size_t n) { return take(n, alignof(std::max_align_t)); }
void* operator new(std::size_t n, std::align_val_t a) {
  return take(n, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t n, std::align_val_t a) {
  return take(n, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { give_back(p); }
void operator delete[](void* p) noexcept { give_back(p); }
void operator delete(void* p, std::size_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t) noexcept { give_back(p); }
void operator delete(void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::align_val_t) noexcept { give_back(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { give_back(p); }

namespace rlhf_test {

std::size_t allocations_of_last_call = 0;
std::size_t allocations() { return allocation_count; }

std::vector<entry>& registry() {
  static std::vector<entry> all;
  return all;
}

problem draw(const entry& e, int variant, index rows, index columns, bool holes,
             random_numbers& random) {
  problem p;
  p.variant = variant;
  p.rows = rows;
  p.columns = e.tokens ? columns : 1;
  for (index i = 0; i < rows; ++i) {
    const index n = e.tokens ? (random.chance(0.3) ? p.columns : random.below(p.columns + 1)) : 1;
    p.length.push_back(n);
    for (index j = 0; j < p.columns; ++j)
      p.weight.push_back(j < n && !(e.masked && holes && random.chance(0.25)) ? 1 : 0);
  }
  for (const input_spec& s : e.inputs(variant)) {
    const index n = rows * p.width(s.size);
    auto& v = p.inputs[s.name];
    for (index k = 0; k < n; ++k) {
      if (s.kind == kind::number)
        v.push_back(random.uniform(s.low, s.high));
      else if (s.kind == kind::flag)
        v.push_back(random.chance(s.high) ? 1 : 0);
      else
        v.push_back(static_cast<double>(random.below(problem_classes)));
    }
  }
  if (e.shape_inputs) e.shape_inputs(p, random);
  // Exact in float, so that both scalars see the same numbers.
  for (auto& [name, v] : p.inputs)
    for (double& x : v) x = static_cast<double>(static_cast<float>(x));
  return p;
}

/// Labels and flags that are so, though numbers are not.
static bool is_row_major(form f, const input_spec& s) {
  return (f == form::strided && s.kind != kind::number) ||
         (f == form::column_major && s.kind == kind::label);
}

template <class T>
arguments<T> lay_out(const entry& e, const problem& p, form f, double fill) {
  arguments<T> a;
  a.p = &p;
  a.shape_of_memory = f;
  a.tokens = e.tokens;
  a.offsets.push_back(0);
  for (index i = 0; i < p.rows; ++i) {
    a.lengths32.push_back(static_cast<std::int32_t>(p.length[static_cast<std::size_t>(i)]));
    a.offsets.push_back(a.offsets.back() + p.length[static_cast<std::size_t>(i)]);
  }
  const auto elements = [&](extent size) {
    if (a.packed() && (size == extent::token || size == extent::logit))
      return a.packed_tokens() * (size == extent::logit ? problem_classes : 1);
    return p.rows * p.width(size) * a.step();
  };
  const auto fill_from = [&](auto& to, const std::vector<double>& from, extent size, auto unused) {
    using X = std::remove_cvref_t<decltype(to[0])>;
    to.assign(static_cast<std::size_t>(elements(size)), static_cast<X>(unused));
    const index width = p.width(size);
    for (index i = 0; i < p.rows; ++i)
      for (index c = 0; c < width; ++c)
        if (const index at = a.place(size, i, c); at >= 0)
          to[static_cast<std::size_t>(at)] =
              static_cast<X>(from[static_cast<std::size_t>(i * width + c)]);
  };
  for (const input_spec& s : e.inputs(p.variant)) {
    const auto found = p.inputs.find(s.name);
    if (found == p.inputs.end() || s.size == extent::none) continue;
    a.sizes[s.name] = s.size;
    if (s.kind == kind::number) {
      fill_from(a.memory[s.name], found->second, s.size, -77);
      continue;
    }
    const form kept = a.shape_of_memory;
    if (is_row_major(kept, s)) a.shape_of_memory = form::mask_u8;
    if (s.kind == kind::label)
      fill_from(a.labels[s.name], found->second, s.size, -77);
    else
      fill_from(a.flags[s.name], found->second, s.size, 77);
    a.shape_of_memory = kept;
  }
  for (const output_spec& s : e.outputs(p.variant)) {
    a.sizes[s.name] = s.size;
    a.written[s.name].assign(static_cast<std::size_t>(elements(s.size)), static_cast<T>(fill));
  }
  for (const auto& [name, v] : p.ids) a.ids[name].assign(v.begin(), v.end());
  for (index i = 0; i < p.rows; ++i) a.row_counts.push_back(p.counts_at(extent::row, i, 0) ? 1 : 0);
  if (!e.masked) return a;
  bool holes = false;
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.length[static_cast<std::size_t>(i)]; ++j)
      holes = holes || p.w(i, j) != 1;
  const bool weights = f == form::mask_float || f == form::mask_double;
  if (f == form::mask_u8 || a.time_major() || weights || holes) {
    const index n = a.packed() ? a.packed_tokens() : p.rows * p.columns;
    std::vector<double> w(static_cast<std::size_t>(n > 0 ? n : 1), 0.0);
    for (index i = 0; i < p.rows; ++i)
      for (index j = 0; j < p.columns; ++j) {
        const bool placed = a.packed() || (e.tokens && f == form::column_major);
        const index at = placed ? a.place(extent::token, i, j) : i * p.columns + j;
        if (at >= 0) w[static_cast<std::size_t>(at)] = p.w(i, j);
      }
    for (const double x : w) {
      if (f == form::mask_float)
        a.mask_float.push_back(static_cast<float>(x));
      else if (f == form::mask_double)
        a.mask_double.push_back(x);
      else
        a.mask_u8.push_back(x != 0 ? 1 : 0);
    }
  }
  return a;
}
template arguments<float> lay_out<float>(const entry&, const problem&, form, double);
template arguments<double> lay_out<double>(const entry&, const problem&, form, double);

template <class T>
std::vector<T> dense(const arguments<T>& a, const std::string& name) {
  const auto& m = a.written.at(name);
  const extent size = a.sizes.at(name);
  std::vector<T> v;
  for (index i = 0; i < a.p->rows; ++i)
    for (index c = 0; c < a.p->width(size); ++c) {
      const index at = a.place(size, i, c);
      v.push_back(at < 0 ? T(0) : m[static_cast<std::size_t>(at)]);
    }
  return v;
}
template std::vector<float> dense(const arguments<float>&, const std::string&);
template std::vector<double> dense(const arguments<double>&, const std::string&);

template <class T>
void poison(const entry& e, arguments<T>& a, T value) {
  const problem& p = *a.p;
  for (const input_spec& s : e.inputs(p.variant)) {
    if (s.size != extent::token && s.size != extent::logit) continue;
    const bool number = s.kind == kind::number;
    const form kept = a.shape_of_memory;
    if (is_row_major(kept, s)) a.shape_of_memory = form::mask_u8;
    for (index i = 0; i < p.rows; ++i)
      for (index c = 0; c < p.width(s.size); ++c) {
        const index at = a.place(s.size, i, c);
        if (at < 0 || p.counts_at(s.size, i, c)) continue;
        const auto k = static_cast<std::size_t>(at);
        if (const auto m = a.memory.find(s.name); number && m != a.memory.end())
          std::memcpy(&m->second[k], &value, sizeof value);
        if (const auto m = a.labels.find(s.name); m != a.labels.end())
          m->second[k] = std::numeric_limits<std::int64_t>::min() + static_cast<std::int64_t>(c);
        if (const auto m = a.flags.find(s.name); m != a.flags.end())
          m->second[k] = static_cast<std::uint8_t>(c % 2 == 0 ? 255 : 0);
      }
    a.shape_of_memory = kept;
  }
}
template void poison(const entry&, arguments<float>&, float);
template void poison(const entry&, arguments<double>&, double);

problem select_rows(const entry& e, const problem& p, const std::vector<index>& order) {
  problem q = p;
  q.rows = static_cast<index>(order.size());
  q.length.clear();
  q.weight.clear();
  for (auto& [name, v] : q.ids) v.clear();
  for (auto& [name, v] : q.inputs) v.clear();
  for (const index i : order) {
    const auto r = static_cast<std::size_t>(i);
    q.length.push_back(p.length[r]);
    for (index j = 0; j < p.columns; ++j) q.weight.push_back(p.w(i, j));
    for (const auto& [name, v] : p.ids) q.ids[name].push_back(v[r]);
    for (const input_spec& s : e.inputs(p.variant)) {
      const auto found = p.inputs.find(s.name);
      if (found == p.inputs.end()) continue;
      const index width = p.width(s.size);
      for (index c = 0; c < width; ++c)
        q.inputs[s.name].push_back(found->second[static_cast<std::size_t>(i * width + c)]);
    }
  }
  return q;
}

void give_counts(const entry& e, problem& p) {
  for (const auto& name : e.count_names) p.counts[name] = 64;
}

void add_figures(figures& sum, const figures& part) {
  for (const auto& [name, x] : part) {
    if (sum.count(name) == 0)
      sum[name] = x;
    else if (begins(name, "min:"))
      sum[name] = std::min(sum[name], x);
    else if (begins(name, "max:"))
      sum[name] = std::max(sum[name], x);
    else
      sum[name] += x;
  }
}

std::vector<form> forms_of(const entry& e) {
  if (!e.masked) return {form::mask_u8, form::strided};
  if (!e.tokens) return {form::mask_u8, form::mask_float, form::mask_double, form::strided};
  return {form::mask_u8, form::mask_float, form::mask_double, form::lengths,
          form::packed,  form::strided,    form::column_major};
}

std::vector<quad> aggregation_weights(const problem& p, rlhf::aggregation_mode mode,
                                      double horizon) {
  using rlhf::aggregation_mode;
  std::vector<quad> w(static_cast<std::size_t>(p.rows * p.columns), 0);
  std::vector<quad> n(static_cast<std::size_t>(p.rows), 0);
  std::map<index, quad> group;
  std::set<index> groups;
  quad tokens = 0, sequences = 0, turns = 0;
  const auto id = p.ids.find("group_id");
  for (index i = 0; i < p.rows; ++i) {
    const auto r = static_cast<std::size_t>(i);
    for (index j = 0; j < p.columns; ++j) {
      n[r] += p.w(i, j);
      if (p.w(i, j) > 0 && (j == 0 || !(p.w(i, j - 1) > 0))) turns += 1;
    }
    tokens += n[r];
    sequences += n[r] > 0 ? 1 : 0;
    if (id != p.ids.end()) group[id->second[r]] += n[r];
  }
  quad counted_groups = 0;
  for (const auto& [key, weight] : group) counted_groups += weight > 0 ? 1 : 0;
  const auto given = [&](const char* name, quad here) {
    const auto found = p.counts.find(name);
    return found == p.counts.end() ? here : static_cast<quad>(found->second);
  };
  for (index i = 0; i < p.rows; ++i)
    for (index j = 0; j < p.columns; ++j) {
      const auto r = static_cast<std::size_t>(i);
      quad& x = w[static_cast<std::size_t>(i * p.columns + j)];
      if (!(p.w(i, j) > 0)) continue;
      x = p.w(i, j);
      switch (mode) {
        case aggregation_mode::token_mean:
          x /= given("tokens", tokens);
          break;
        case aggregation_mode::token_sum:
        case aggregation_mode::none:
          break;
        case aggregation_mode::sequence_mean_token_sum:
          x /= given("sequences", sequences);
          break;
        case aggregation_mode::sequence_mean_token_sum_norm:
          x /= given("sequences", sequences) * static_cast<quad>(horizon);
          break;
        case aggregation_mode::sequence_mean_token_mean:
          x /= given("sequences", sequences) * n[r];
          break;
        case aggregation_mode::group_mean_token_mean:
          x /= given("groups", counted_groups) * group[id->second[r]];
          break;
        case aggregation_mode::turn_mean: {
          quad turn = 0;
          index begin = j, end = j;
          while (begin > 0 && p.w(i, begin - 1) > 0) --begin;
          while (end < p.columns && p.w(i, end) > 0) ++end;
          for (index k = begin; k < end; ++k) turn += p.w(i, k);
          x /= given("turns", turns) * turn;
          break;
        }
      }
    }
  return w;
}

}  // namespace rlhf_test
