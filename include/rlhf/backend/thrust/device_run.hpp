#pragma once

#include "rlhf/backend/thrust/groups.hpp"
#include "rlhf/backend/thrust/logit_rows.hpp"
#include "rlhf/backend/thrust/memory.hpp"
#include "rlhf/backend/thrust/moment_pass.hpp"
#include "rlhf/backend/thrust/row_scan.hpp"
#include "rlhf/backend/thrust/token_pass.hpp"
#include "rlhf/primitive/executor.hpp"

namespace rlhf::inline RLHF_COMPUTE {

namespace detail {

/// Brings the figures of a call and the counts of its refusals together.
struct gather_result {
  const double* figures;
  index count;
  const double* refused[most_refusals];
  double* to;
  RLHF_HOST_DEVICE void operator()(index i) const {
    to[i] = i < count ? figures[i] : *refused[i - count];
  }
};

}  // namespace detail

/// One call on a device: every primitive enqueues, nothing waits, nothing is read by the host. The
/// executor's machine has
///
///     launch(n, f)         f(i) for each i in [0, n), in any order
///     launch_lanes(n, f)   f(lanes, i) for each i, by 16 threads together; see serial_lanes
///
/// and runs what it is given in order.
template <class Exec>
class device_run {
  const Exec& exec_;
  detail::device_arena arena_;

  struct refusal {
    const double* count;
    const char* argument;
    const char* expected;
  };
  refusal refusal_[detail::most_refusals];
  int refusals_ = 0;

  struct seen_domain {
    const void* indices;
    const void* mask;
  };
  seen_domain seen_[8];
  int seen_count_ = 0;

 public:
  using space = typename Exec::space;

  device_run(const Exec& exec, const char* function)
      : exec_(exec), arena_(function, exec.scratch(), exec.scratch_bytes(), Exec::dry) {}
  device_run(const device_run&) = delete;
  device_run& operator=(const device_run&) = delete;
  ~device_run() {
    if constexpr (Exec::dry) exec_.note(arena_.most());
  }

  const char* function() const { return arena_.function(); }

  template <class X>
  X* allocate(index n) {
    return arena_.template allocate<X>(n);
  }

  template <class F>
  void for_each(index n, const F& f) {
    if (arena_.dry() || n <= 0) return;
    exec_.launch(n, f);
  }

  void count(const token_domain<space>& domain, double* counts, double* row_weight = nullptr) {
    examine(domain);
    const auto mark = arena_.mark();
    auto* const rows = allocate<double>(3 * domain.rows);
    lanes(domain.rows, detail::count_lanes<space>{domain, rows, nullptr});
    if (row_weight != nullptr) for_each(domain.rows, detail::copy_row_weight{rows, row_weight});
    if (domain.mask.kind() == mask_kind::none || domain.mask.kind() == mask_kind::flag)
      fold_to(detail::figure_row{token_counts::size, 0}, rows, domain.rows, counts);
    else
      for_each(token_counts::size, detail::add_counts{rows, domain.rows, counts});
    arena_.release(mark);
  }

  /// A requirement that only the data can break: pending::get() throws if *count is not 0 then.
  void refuse(const double* count, const char* argument, const char* expected) {
    if (arena_.dry()) return;
    if (refusals_ == detail::most_refusals) [[unlikely]]
      detail::fail(function(), "run", "at most 16 requirements on data");
    refusal_[refusals_++] = {count, argument, expected};
  }

  template <class K>
  void map_reduce(const K& kernel, const token_arguments<K, space>& a, double* sums) {
    constexpr detail::figure_row row{K::sums + 1, K::ranges};
    examine(a.domain);
    const auto mark = arena_.mark();
    const auto done = pass(kernel, a, rows_per_group);
    if constexpr (writes_figures<K>) {
      const index numbers = done.map.groups * row.size();
      auto* const groups = allocate<double>(numbers);
      for_each(numbers, detail::gather_groups<space>{done.map, row.size(), row.size(), done.partial,
                                                     groups});
      fold_to(row, groups, done.map.groups, sums);
    }
    arena_.release(mark);
  }

  template <class K>
  void map_reduce_rows(const K& kernel, const token_arguments<K, space>& a, double* to) {
    constexpr int size = K::sums + 1 + 2 * K::ranges;
    examine(a.domain);
    const auto mark = arena_.mark();
    const auto done = pass(kernel, a, 1);
    for_each(a.domain.rows * K::sums,
             detail::gather_groups<space>{done.map, size, K::sums, done.partial, to});
    arena_.release(mark);
  }

  template <class K>
  void moment_reduce(const K& kernel, const token_arguments<K, space>& a, double* figures) {
    constexpr int size = moments_of<K>::size;
    examine(a.domain);
    const auto mark = arena_.mark();
    auto map = detail::flush_map<space>::over(a.domain, rows_per_group);
    auto* const length = allocate<index>(a.domain.rows);
    auto* const before = allocate<index>(a.domain.rows);
    auto* const partial = allocate<double>(map.slots * size);
    auto* x = allocate<double>(map.groups * size);
    map.length = length;
    map.before = before;
    lanes(a.domain.rows, detail::count_lanes<space>{a.domain, nullptr, length});
    for_each(a.domain.rows, detail::steps_before<space>{map, before});
    if (map.groups > 0) {
      if (!arena_.dry())
        exec_.launch_lanes(map.slots, detail::moment_pass<K, space>{kernel, a, map, partial});
      index stride = 1;
      for (index n = map.longest(); n > 1; n = (n + detail::fold_width - 1) / detail::fold_width) {
        for_each(map.slots * (K::size + 1),
                 detail::fold_moment_flushes<K, space>{map, partial, stride});
        stride *= detail::fold_width;
      }
      for_each(map.groups * size,
               detail::gather_groups<space>{map, size, size, partial, x});
    }
    index n = map.groups;
    while (n > detail::fold_width) {
      const index blocks = (n + detail::fold_width - 1) / detail::fold_width;
      auto* const y = allocate<double>(blocks * size);
      for_each(blocks * (K::size + 1), detail::fold_moment_rows<K>{x, n, y});
      x = y;
      n = blocks;
    }
    for_each(K::size + 1, detail::fold_moment_rows<K>{x, n, figures});
    arena_.release(mark);
  }

  /// map_reduce for a kernel that only writes.
  template <class K>
  void map_tokens(const K& kernel, const token_arguments<K, space>& a) {
    map_reduce(kernel, a, nullptr);
  }

  template <class K>
  void reverse_scan(const K& kernel, const scan_arguments<K, space>& a, double* figures) {
    using T = typename K::scalar_type;
    using sums = detail::scan_sums<K::outputs>;
    using pass = detail::scan_pass<K, space>;
    examine(a.domain);
    const index rows = a.domain.rows;
    const bool masked = a.domain.mask.kind() != mask_kind::none;
    const bool skips = masked && a.holes == hole_mode::skip;
    const auto mark = arena_.mark();
    auto map = detail::scan_map<space>::over(a.domain);
    if (masked) {
      auto* const size = allocate<detail::scan_row_size>(rows);
      lanes(rows, detail::size_of_scan_rows<space>{a.domain, a.holes, size});
      map.size = size;
    }
    if (detail::scan_map<space>::plans(a.domain)) {
      using plan = detail::plan_scan<space>;
      auto* const planned = allocate<detail::scan_slot>(map.slots);
      blocks(map.groups, plan::shape, plan{map, planned});
      map.planned = planned;
    }
    auto* const partial = allocate<sums>(map.slots);
    double decay = 0;
    if constexpr (!detail::has_varying_decay<K>()) decay = kernel.decay;
    pass scan{kernel, a, detail::decay_powers<T>(decay), map, detail::scan_plan<K>::over(skips),
              partial, {}};
    // Long rows are shared out, unless where a piece ends only a walk along the row can tell.
    if (a.domain.columns > map.piece_steps && !skips) {
      scan.board.ticket = allocate<index>(1);
      scan.board.state = allocate<int>(map.slots);
      scan.board.link = allocate<detail::scan_link>(map.slots * detail::moment_piece_tiles);
      scan.board.first_x = allocate<double>(map.slots);
      for_each(map.slots + 1, detail::scan_board::clear{scan.board.ticket, scan.board.state});
    }
    blocks(map.slots, scan.plan.shape, scan);
    using segments = detail::fold_segments<K, space>;
    using few_segments = detail::fold_few_segments<K, space>;
    using groups = detail::fold_groups<K::outputs>;
    auto* from = allocate<sums>(map.groups);
    const few_segments fold{{kernel, a}, map, partial, from};
    if (few_segments::serve(map))
      blocks(fold.jobs(), few_segments::shape, fold);
    else
      blocks(map.groups, segments::shape, segments{{kernel, a}, map, partial, from});
    for (index n = map.groups; n >= 0;) {
      const index left = (n + groups::width - 1) / groups::width;
      auto* const to = left > 1 ? allocate<sums>(left) : nullptr;
      blocks(left > 1 ? left : 1, groups::shape, groups{from, n, to, left > 1 ? nullptr : figures});
      from = to;
      n = left > 1 ? left : -1;
    }
    arena_.release(mark);
  }

  template <class K, storage L>
  void row_reduce(const K& kernel, const row_arguments<L, space>& a, double* sums) {
    constexpr detail::figure_row row{K::sums + 1, K::ranges};
    examine(a.domain);
    const token_domain<space>& domain = a.domain;
    const index slots =
        domain.kind == arrangement::packed ? domain.columns : domain.rows * domain.columns;
    const auto mark = arena_.mark();
    const bool all = domain.kind == arrangement::padded && domain.mask.kind() == mask_kind::none;
    index* rank = nullptr;
    index* first = nullptr;
    if (!all) {
      auto* const counts = allocate<double>(3 * domain.rows);
      first = allocate<index>(domain.rows + 1);
      rank = allocate<index>(slots);
      lanes(domain.rows, detail::count_lanes<space>{domain, counts, nullptr});
      blocks(1, detail::rank_of_rows::shape, detail::rank_of_rows{counts, domain.rows, first});
      blocks(domain.rows, detail::rank_of_tokens<space>::shape,
             detail::rank_of_tokens<space>{domain, first, slots, rank});
    }
    auto* const partial = allocate<double>(slots * row.size());
    using pass = detail::logit_pass<K, L, space>;
    if (!arena_.dry()) {
      const auto plan = detail::logit_plan::over(a.classes, slots, a.gradient.data != nullptr,
                                                 a.squares_wanted, a.mean_wanted, pass::bytes,
                                                 detail::shared_bytes_of(exec_));
      const pass each{kernel, a, rank, slots, partial, plan, 1 / a.temperature};
      blocks(each.jobs(), plan.shape, each);
    }
    fold_to(row, partial, slots, sums, first == nullptr ? nullptr : first + domain.rows);
    arena_.release(mark);
  }

  template <class K>
  void group_reduce(const sample_groups<space>& groups, const K& kernel, double* to) {
    using partial = typename K::partial;
    const auto mark = arena_.mark();
    detail::group_scratch scratch = {};
    if (groups.size == 0)
      for (index** part : {&scratch.start, &scratch.sorted, &scratch.spare, &scratch.group_start})
        *part = allocate<index>(groups.samples + 1);
    const index most = groups.size > 0 ? groups.samples / groups.size : groups.samples;
    const index units = (most + groups_per_unit - 1) / groups_per_unit;
    auto* const found = allocate<detail::found_groups>(1);
    auto* const each = allocate<partial>(most);
    auto* const unit = allocate<partial>(units);
    for_each(1, detail::find_all_groups<space>{groups, scratch, found});
    for_each(most, detail::run_group_kernel<K>{kernel, found, each});
    for_each(units, detail::add_group_unit<partial>{each, found, unit});
    for_each(1, detail::add_group_units<partial>{unit, found, to});
    arena_.release(mark);
  }

  template <class R>
  result_of<Exec, R> finish(const double* figures, R (*read)(const double*)) {
    if constexpr (!Exec::dry) {
      const index count = arena_.doubles_from(figures);
      if (count < 1 || count > detail::most_figures) [[unlikely]]
        detail::fail(function(), "run", "1 to 256 figures, allocated first", count);
      double* const to = exec_.take_result();
      detail::gather_result gather{figures, count, {}, to};
      result_of<Exec, R> r(exec_.handle(), function(), to, count, read);
      for (int k = 0; k < refusals_; ++k) {
        gather.refused[k] = refusal_[k].count;
        r.add_refusal(refusal_[k].argument, refusal_[k].expected);
      }
      exec_.launch(count + refusals_, gather);
      return r;
    }
  }

 private:
  template <class F>
  void lanes(index n, const F& f) {
    if (arena_.dry() || n <= 0) return;
    exec_.launch_lanes(n, detail::merged_lanes<F>{f});
  }

  template <class F>
  void blocks(index n, const detail::block_shape& shape, const F& f) {
    if (!arena_.dry()) detail::launch_blocks(exec_, n, shape, f);
  }

  /// Lengths, offsets and weights lie where the host cannot read them: counts what is wrong, once
  /// for each domain of the call. What is wrong is a row of length 0 to every primitive.
  void examine(const token_domain<space>& domain) {
    const bool weighted =
        domain.mask.kind() == mask_kind::weight32 || domain.mask.kind() == mask_kind::weight64;
    const bool given = weighted && !arena_.holds(domain.mask.data());
    if (domain.kind == arrangement::padded && !given) return;
    const seen_domain now{domain.indices.data(), given ? domain.mask.data() : nullptr};
    for (int k = 0; k < seen_count_; ++k)
      if (seen_[k].indices == now.indices && (seen_[k].mask == now.mask || !given)) return;
    if (seen_count_ < 8) seen_[seen_count_++] = now;
    auto* const bad = allocate<double>(2);
    const auto mark = arena_.mark();
    const index n = domain.rows > 0 ? domain.rows : 1;
    auto* const rows = allocate<double>(2 * n);
    lanes(n, detail::examine_lanes<space>{domain, rows});
    fold_to(detail::figure_row{2, 0}, rows, n, bad);
    arena_.release(mark);
    if (domain.kind == arrangement::lengths)
      refuse(bad, "layout: lengths", "0 <= length <= columns");
    if (domain.kind == arrangement::packed)
      refuse(bad, "layout: packed(cu_seqlens)",
             "offsets that begin with 0, do not decrease and end with the number of tokens");
    if (given) refuse(bad + 1, "mask", "weights of 0, or from 1e-30 to 1e30");
  }

  /// The tree over n rows of figures, in rounds of 64, into `to`. Where only the device knows how
  /// many there are, n is the most there may be and *rows their number.
  void fold_to(const detail::figure_row& row, const double* x, index n, double* to,
               const index* rows = nullptr) {
    const auto mark = arena_.mark();
    index shrunk = 1;
    while (n > detail::fold_width) {
      const index blocks = (n + detail::fold_width - 1) / detail::fold_width;
      auto* const y = allocate<double>(blocks * row.size());
      for_each(blocks * row.size(), detail::fold_rows{row, x, n, y, rows, shrunk});
      x = y;
      n = blocks;
      shrunk *= detail::fold_width;
    }
    for_each(row.size(), detail::fold_rows{row, x, n, to, rows, shrunk});
    arena_.release(mark);
  }

  template <class K>
  static constexpr bool writes_figures = K::sums + K::ranges + K::observed > 0;

  struct passed {
    detail::flush_map<space> map;
    const double* partial;
  };

  /// Runs the kernel over the tokens; the figures of group g end in its first slot.
  template <class K>
  passed pass(const K& kernel, const token_arguments<K, space>& a, index group_rows) {
    constexpr detail::figure_row row{K::sums + 1, K::ranges};
    auto map = detail::flush_map<space>::over(a.domain, group_rows);
    auto* const length = allocate<index>(a.domain.rows);
    auto* const before = allocate<index>(a.domain.rows);
    double* partial = nullptr;
    if constexpr (writes_figures<K>) partial = allocate<double>(map.slots * row.size());
    map.length = length;
    map.before = before;
    lanes(a.domain.rows, detail::count_lanes<space>{a.domain, nullptr, length});
    for_each(a.domain.rows, detail::steps_before<space>{map, before});
    if (map.groups > 0) {
      lanes(map.slots, detail::token_pass<K, space>{kernel, a, map, partial});
      index stride = 1;
      for (index n = partial != nullptr ? map.longest() : 0; n > 1;
           n = (n + detail::fold_width - 1) / detail::fold_width) {
        for_each(map.slots * row.size(), detail::fold_flushes<space>{map, row, partial, stride});
        stride *= detail::fold_width;
      }
    }
    return {map, partial};
  }
};

}  // namespace rlhf::inline RLHF_COMPUTE
