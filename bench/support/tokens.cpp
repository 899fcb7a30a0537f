#include "bench/support/tokens.hpp"

namespace rlhf_bench {

const char* name_of(token_layout layout) {
  switch (layout) {
    case token_layout::dense:
      return "dense";
    case token_layout::lengths:
      return "lengths";
    case token_layout::mask:
      return "mask";
    case token_layout::padded:
      return "padded";
    case token_layout::packed:
      return "packed";
    case token_layout::column_major:
      return "column_major";
  }
  return "";
}

namespace {

std::string size_name(const token_case& c) {
  return std::to_string(c.rows) + "x" + std::to_string(c.columns);
}

}  // namespace

std::string token_case::name() const {
  return std::string(name_of(layout)) + "/" + size_name(*this) + "/" + std::to_string(threads);
}

token_data::token_data(const token_case& of) : of_(of) {
  const index rows = of.rows, columns = of.columns;
  const bool ragged = of.layout == token_layout::padded || of.layout == token_layout::packed;
  const auto length = [&](index) {
    const float share = ragged ? store.random()(0.2f, 1.0f) : 1.0f;
    const auto n = static_cast<index>(share * static_cast<float>(columns));
    return n < columns ? n : columns;
  };
  switch (of.layout) {
    case token_layout::dense:
      tokens_ = rows * columns;
      break;
    case token_layout::mask: {
      auto* const flags = store.add<std::uint8_t>("mask", false, {rows, columns});
      for (index k = 0; k < rows * columns; ++k) {
        flags[k] = store.random()(0, 1) < 0.2f ? 0 : 1;
        counted_ += flags[k];
      }
      mask = {flags, rlhf::shape(rows, columns)};
      tokens_ = rows * columns;
      break;
    }
    case token_layout::packed: {
      auto* const offset = store.add<std::int64_t>("cu_seqlens", false, {rows + 1});
      for (index i = 0; i < rows; ++i) offset[i + 1] = offset[i] + length(i);
      layout = rlhf::packed(offset, rlhf::shape(rows + 1));
      tokens_ = offset[rows];
      break;
    }
    case token_layout::lengths:
    case token_layout::padded:
    case token_layout::column_major: {
      auto* const lengths = store.add<std::int32_t>("length", false, {rows});
      for (index i = 0; i < rows; ++i) {
        lengths[i] = static_cast<std::int32_t>(length(i));
        tokens_ += lengths[i];
      }
      layout = rlhf::lengths(lengths, rlhf::shape(rows));
      break;
    }
  }
  if (of.layout != token_layout::mask) counted_ = tokens_;
}

double token_data::slots() const {
  return of_.layout == token_layout::packed ? tokens()
                                            : static_cast<double>(of_.rows * of_.columns);
}

rlhf::view<float> token_data::add(const char* name, bool is_output) {
  const index rows = of_.rows, columns = of_.columns;
  switch (of_.layout) {
    case token_layout::packed:
      return {store.add<float>(name, is_output, {tokens_}), tokens_};
    case token_layout::column_major:
      return {store.add<float>(name, is_output, {rows, columns}, {1, rows}),
              rlhf::shape(rows, columns), rlhf::shape(index{1}, rows)};
    default:
      return {store.add<float>(name, is_output, {rows, columns}), rlhf::shape(rows, columns)};
  }
}

rlhf::view<const float> token_data::input(const char* name, float low, float high) {
  const rlhf::view<float> v = add(name, false);
  const auto n = static_cast<index>(slots());
  for (index k = 0; k < n; ++k) v.data()[k] = store.random()(low, high);
  return v;
}

rlhf::view<const float> token_data::input_near(const char* name,
                                               const rlhf::view<const float>& other, float spread) {
  const rlhf::view<float> v = add(name, false);
  const auto n = static_cast<index>(slots());
  for (index k = 0; k < n; ++k) v.data()[k] = other.data()[k] + store.random()(-spread, spread);
  return v;
}

rlhf::view<const float> token_data::row_input(const char* name, float low, float high) {
  float* const data = store.add<float>(name, false, {of_.rows});
  for (index i = 0; i < of_.rows; ++i) data[i] = store.random()(low, high);
  return {data, of_.rows};
}

std::vector<token_case> cases_of(const token_operation& operation, const settings& s) {
  using enum token_layout;
  struct size {
    index rows, columns;
  };
  std::vector<size> sizes, others, shared;  // with goals; layouts without; on two threads
  const auto add = [](std::vector<size>& to, std::initializer_list<size> more) {
    for (const size& z : more) to.push_back(z);
  };
  if (!s.quick) add(sizes, {{8, 512}, {64, 1000}, {512, 2049}});
  add(sizes, {{64, 1024}, {512, 2048}, {2048, 2048}});
  add(others, {{512, 2048}});
  add(shared, {{512, 2048}, {2048, 2048}});
  if (operation.scan) {
    add(sizes, {{65536, 16}, {1, 1048576}});
    add(shared, {{1, 1048576}});
  }
  if (!s.quick) {
    add(sizes, {{2048, 8192}});
    if (operation.scan) add(sizes, {{16384, 64}, {16, 262144}});
    add(others, {{64, 1024}, {2048, 2048}});
    add(shared, {{2048, 8192}});
  }
  std::vector<token_case> all;
  for (const size& z : sizes)
    for (const token_layout layout : {lengths, mask}) all.push_back({layout, z.rows, z.columns});
  for (const token_layout layout : {dense, padded, packed, column_major})
    for (const size& z : others) all.push_back({layout, z.rows, z.columns});
  if (pool::available()) {
    for (const size& z : shared) all.push_back({lengths, z.rows, z.columns, 2});
    if (operation.scan) all.push_back({mask, 1, 1048576, 2});
    if (!s.quick)
      for (const token_layout layout : {mask, dense, padded, packed, column_major})
        all.push_back({layout, 512, 2048, 2});
  }
  return all;
}

work work_of(const token_operation& operation, const token_case& of, const token_data& data) {
  const target goal = of.threads == 1 ? operation.goal(of) : target{};
  const double flags = of.layout == token_layout::mask ? 1 : 0;
  return {.item = "token",
          .items = data.tokens() * operation.answers,
          .bytes = data.tokens() * operation.read + data.slots() * (operation.write + flags),
          .goal = goal.ns,
          .goal_ratio = goal.ratio,
          .goal_speedup = of.rows == 1                      ? 1.3
                          : of.rows * of.columns >= 1 << 20 ? 1.6
                                                            : 0,
          .threads = of.threads};
}

std::vector<growth_case> growth_cases(const token_operation& operation) {
  if (!operation.growth) return {};
  std::vector<growth_case> all;
  const auto add = [&](const char* what, const token_case& small, const token_case& large,
                       double low, double high) {
    all.push_back({std::string(what) + "/" + size_name(small) + "_to_" + size_name(large) + "/1",
                   small, large, low, high});
  };
  using enum token_layout;
  const token_case base{lengths, 2048, 2048};
  add("rows", base, {lengths, 4096, 2048}, 1.8, 2.3);
  add("columns", base, {lengths, 2048, 4096}, 1.8, 2.3);
  add("one_row", {lengths, 512, 2048}, {lengths, 1, 1048576}, 0, 1.3);
  return all;
}

}  // namespace rlhf_bench
