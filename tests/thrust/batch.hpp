#pragma once

#include <limits>

#include "tests/thrust/place.hpp"

namespace thrust_test {

enum class arranged { padded, lengths, packed, flags, weights };

inline constexpr arranged arrangements[] = {arranged::padded, arranged::lengths, arranged::packed,
                                            arranged::flags, arranged::weights};
struct extents {
  index rows, columns;
};
/// Less than a group, more than one, one long row, rows without steps, rows of one.
inline constexpr extents sizes[] = {{3, 7}, {130, 40}, {2, 9000}, {5, 0}, {0, 4}, {70, 1}};

/// A batch of tokens in one arrangement: log-probabilities a and b, close to each other, more
/// numbers per token and per row, rare flags. What is masked is NaN in `a`.
template <class T>
struct batch_of {
  arranged how;
  index rows;
  rlhf::shape shape;
  std::vector<T> a, b, c, d, row;
  std::vector<std::int32_t> length;
  std::vector<std::int64_t> offset;
  std::vector<std::uint8_t> flag, rare, rarer;
  std::vector<float> weight;
  std::vector<std::int32_t> group;

  batch_of(arranged arrangement, index sequences, index columns, std::uint64_t seed)
      : how(arrangement), rows(sequences) {
    numbers random(seed);
    index n = rows * columns;
    offset.push_back(0);
    for (index i = 0; i < rows; ++i) {
      length.push_back(static_cast<std::int32_t>(random.below(columns + 1)));
      offset.push_back(offset.back() + length.back());
      group.push_back(static_cast<std::int32_t>(random.below(5) * 7 - 3));
    }
    if (how == arranged::packed) n = static_cast<index>(offset.back());
    shape = how == arranged::packed ? rlhf::shape(n) : rlhf::shape(rows, columns);
    a = random.many<T>(n, -6, 0);
    b = random.many<T>(n, -6, 0);
    for (std::size_t k = 0; k < b.size(); ++k)
      if (k % 3 != 0) b[k] = a[k] + (b[k] + T(3)) / T(10);
    c = random.many<T>(n, -6, 0);
    d = random.many<T>(n, -3, 3);
    row = random.many<T>(rows, -3, 3);
    for (index k = 0; k < n; ++k) {
      const bool counts = random.below(4) != 0;
      flag.push_back(counts ? 1 : 0);
      weight.push_back(counts ? static_cast<float>(random.uniform(0, 2)) : 0.0f);
      rare.push_back(random.below(40) == 0 ? 1 : 0);
      rarer.push_back(random.below(90) == 0 ? 1 : 0);
    }
  }
  /// NaN where nothing may be read.
  void poison() {
    if (how != arranged::flags && how != arranged::weights) return;
    for (std::size_t k = 0; k < a.size(); ++k)
      if (flag[k] == 0) a[k] = std::numeric_limits<T>::quiet_NaN();
  }

  template <class Place>
  struct given {
    tensor<Place, T> a, b, c, d, row;
    typename Place::template vector<std::int32_t> length;
    typename Place::template vector<std::int64_t> offset;
    tensor<Place, std::uint8_t> flag, rare, rarer;
    tensor<Place, float> weight;
    typename Place::template vector<std::int32_t> group;
    rlhf::sequence_layout<typename Place::space> layout;
    rlhf::mask_view<typename Place::space> mask;

    explicit given(const batch_of& p)
        : a(p.a, p.shape),
          b(p.b, p.shape),
          c(p.c, p.shape),
          d(p.d, p.shape),
          row(p.row, rlhf::shape(p.rows)),
          length(p.length.begin(), p.length.end()),
          offset(p.offset.begin(), p.offset.end()),
          flag(p.flag, p.shape),
          rare(p.rare, p.shape),
          rarer(p.rarer, p.shape),
          weight(p.weight, p.shape),
          group(p.group.begin(), p.group.end()) {
      if (p.how == arranged::lengths) layout = rlhf::lengths(length);
      if (p.how == arranged::packed) layout = rlhf::packed(offset);
      if (p.how == arranged::flags) mask = flag.mask();
      if (p.how == arranged::weights) mask = weight.mask();
    }
    given(const given&) = delete;
  };
};

}  // namespace thrust_test
