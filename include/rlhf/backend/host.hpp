#pragma once

#include "rlhf/backend/host/arena.hpp"
#include "rlhf/backend/host/count.hpp"
#include "rlhf/backend/host/group_reduce.hpp"
#include "rlhf/backend/host/map_reduce.hpp"
#include "rlhf/backend/host/map_tokens.hpp"
#include "rlhf/backend/host/moment_reduce.hpp"
#include "rlhf/backend/host/reverse_scan.hpp"
#include "rlhf/backend/host/row_panel.hpp"
#include "rlhf/backend/host/row_reduce.hpp"
#include "rlhf/math/pack.hpp"

namespace rlhf::inline RLHF_COMPUTE {

/// One call on the host: its scratch memory and the primitives. The same text runs on one thread
/// and on a pool: work is cut into units by sizes alone, so the bits do not depend on the pool.
template <class Exec>
class host_run {
  const Exec& exec_;
  detail::arena arena_;
  std::byte* panels_ = nullptr;  // memory that the passes of a call share
  index panels_bytes_ = 0;

  static constexpr index flushes_per_unit = 16;
  static constexpr index groups_per_thread = 16;  // with fewer, groups are cut: shares stay equal
  static constexpr index bytes_that_stay = index{16} << 20;  // larger outputs go past the caches
  static constexpr index few = 1024;  // below, waking a pool costs more than the loop

 public:
  using space = typename Exec::space;

  host_run(const Exec& exec, const char* function)
      : exec_(exec), arena_(function, exec.workspace, exec.bytes, Exec::dry) {}
  host_run(const host_run&) = delete;
  host_run& operator=(const host_run&) = delete;
  ~host_run() {
    if constexpr (Exec::dry) exec_.note(arena_.required());
  }

  const char* function() const { return arena_.function(); }

  /// Scratch of this call, in the executor's memory, 64-byte aligned.
  template <class X>
  X* allocate(index n) {
    return arena_.template allocate<X>(n);
  }

  /// f(i) for each i in [0, n), in any order. n = 1 is how scalars are computed where they live.
  template <class F>
  void for_each(index n, const F& f) {
    if (arena_.dry()) return;
    const index units = n < few ? 1 : 32 * exec_.concurrency();
    if (exec_.concurrency() > 1 && units > 1)
      exec_.parallel_for(units, [&](index u) {
        for (index i = u * n / units; i < (u + 1) * n / units; ++i) f(i);
      });
    else
      for (index i = 0; i < n; ++i) f(i);
  }

  /// A factor of all tokens, worked out once.
  row_scale scale(const quotient& q) {
    double* const to = allocate<double>(1);
    if (!arena_.dry()) *to = q.value();
    return {to, nullptr};
  }

  /// tokens, positions, sequences of a domain; row_weight[i], where wanted, is the sum of a row.
  void count(const token_domain<space>& domain, double* counts, double* row_weight = nullptr) {
    if (detail::is_column_major(domain.mask) && count_on_panels(domain, counts, row_weight)) return;
    const detail::count_units units(domain, exec_.concurrency());
    detail::row_count* const partial =
        units.size() > 1 ? allocate<detail::row_count>(units.size()) : nullptr;
    const bool weighs = units.size() > 1 && detail::counts_weights(domain);
    if (weighs && row_weight == nullptr) row_weight = allocate<double>(domain.rows);
    if (arena_.dry()) return;
    detail::row_count all;
    if (partial == nullptr) {
      all = detail::count_rows(domain, 0, domain.rows, row_weight);
    } else {
      exec_.parallel_for(units.size(),
                         [&](index u) { partial[u] = units.count(domain, u, row_weight); });
      all = units.merge(domain, partial, row_weight);
    }
    all.write(counts);
  }

  /// A contract violation that only the data can show: *count of it must be 0; below 0 it is not of
  /// things that are wrong, but a number that must not be 0.
  void refuse(const double* count, const char* argument, const char* expected) {
    if (arena_.dry() || *count == 0) return;
    if (*count < 0) detail::fail(function(), argument, expected, index{0});
    detail::fail_count(function(), argument, expected, *count);
  }

  /// See primitive/map_reduce.hpp. Writes the figures in the order of sums_of<K>.
  template <class K>
  void map_reduce(const K& kernel, const token_arguments<K, space>& a, double* sums) {
    constexpr auto levels =
        detail::figure_tree::levels * static_cast<std::size_t>(sums_of<K>::size);
    double level[2 * levels];
    constexpr bool figures = K::sums + K::ranges + K::observed > 0;  // else it only writes
    reduce_tokens(detail::work_of<math::native_lane<typename K::scalar_type>>(kernel, a), figures,
                  level, level + levels, sums);
  }

  /// ... and then after(0) ... after(n - 1), which read the sums.
  template <class K, class After>
  void map_reduce(const K& kernel, const token_arguments<K, space>& a, double* sums, index n,
                  const After& after) {
    map_reduce(kernel, a, sums);
    for_each(n, after);
  }

  /// The same kernel with one set of sums for each row: to[i * K::sums + k]. Figures other than
  /// sums are left out; each row has the order of a group of its own.
  template <class K>
  void map_reduce_rows(const K& kernel, const token_arguments<K, space>& a, double* to) {
    const auto work = detail::work_of<math::native_lane<typename K::scalar_type>>(kernel, a);
    const auto row = [&](const auto& some, index i) {
      double figures[sums_of<K>::size];
      detail::figure_tree one(figures, K::sums + 1, K::ranges);
      some.reduce(some, i, i + 1, 0, unlimited, 1, one);
      for (int k = 0; k < K::sums; ++k) to[i * K::sums + k] = figures[k];
    };
    const detail::panel_plan plan = plan_panels(detail::views_of(work), 0);
    if (arena_.dry()) return;
    if (!plan) return exec_.parallel_for(a.domain.rows, [&](index i) { row(work, i); });
    work_on_panels(work, plan, plan.rows, [&](const auto& some, index from, index end) {
      for (index i = from; i < end; ++i) row(some, i);
    });
  }

  /// See primitive/moment_reduce.hpp. Writes the figures in the order of moments_of<K>.
  template <class K>
  void moment_reduce(const K& kernel, const token_arguments<K, space>& a, double* figures) {
    using V = math::native_lane<typename K::scalar_type>;
    using totals = detail::moment_totals<K>;
    const index rows = a.domain.rows;
    const index groups = (rows + rows_per_group - 1) / rows_per_group;
    const index threads = exec_.concurrency();
    const detail::panel_plan plan = plan_panels(detail::views_of(a), rows_per_group);
    const index units_per_group =
        threads > 1 && groups < groups_per_thread * threads && !plan ? units_of_group(a.domain) : 1;
    constexpr index per_unit = flushes_per_unit * steps_per_flush;
    totals* const partial = threads > 1 ? allocate<totals>(groups * units_per_group) : nullptr;
    if (arena_.dry()) return;
    const auto group_end = [&](index row) {
      return row + rows_per_group < rows ? row + rows_per_group : rows;
    };
    const auto unit = [&](index u) {
      const index row = u / units_per_group * rows_per_group;
      const index first = u % units_per_group * per_unit;
      return detail::moments_of_group<V>(kernel, a, row, group_end(row), first,
                                         units_per_group == 1 ? unlimited : first + per_unit);
    };
    detail::binary_tree<totals> all;
    if (plan)
      arguments_on_panels(a, plan, threads > 1 ? rows_per_group : rows,
                          [&](const auto& some, auto& panel, index from, index end) {
                            for (index row = from; row < end; row += rows_per_group) {
                              const totals one = detail::moments_of_group<V>(
                                  kernel, some, row, group_end(row), 0, unlimited, &panel);
                              if (partial != nullptr)
                                partial[row / rows_per_group] = one;
                              else
                                all.push(one);
                            }
                          });
    else if (partial != nullptr)
      exec_.parallel_for(groups * units_per_group, [&](index u) { partial[u] = unit(u); });
    for (index g = 0; g < groups; ++g) {
      if (plan && partial == nullptr) break;
      if (units_per_group == 1) {
        all.push(partial != nullptr ? partial[g] : unit(g));
        continue;
      }
      const index row = g * rows_per_group;
      const index steps = detail::group_steps(a.domain, row, group_end(row));
      detail::binary_tree<totals> group;
      for (index u = 0; u * per_unit < steps; ++u) group.push(partial[g * units_per_group + u]);
      all.push(group.finish());
    }
    all.finish().write(figures);
  }

  /// ... and then after(0) ... after(n - 1), which read them.
  template <class K, class After>
  void moment_reduce(const K& kernel, const token_arguments<K, space>& a, double* figures, index n,
                     const After& after) {
    moment_reduce(kernel, a, figures);
    for_each(n, after);
  }

  /// map_reduce for a kernel that only writes, from the last token to the first: the end of what
  /// the pass before has read is still in cache.
  template <class K>
  void map_tokens(const K& kernel, const token_arguments<K, space>& a) {
    using T = typename K::scalar_type;
    using V = math::native_lane<T>;
    constexpr index tokens_per_unit = 32768;
    bool wanted = false;
    for (const auto& out : a.out) wanted = wanted || out.data != nullptr;
    if (!wanted) return;
    const detail::panel_plan plan = plan_panels(detail::views_of(a), 0);
    if (arena_.dry()) return;
    if (plan)
      return arguments_on_panels(a, plan, plan.rows,
                                 [&](const auto& some, auto& panel, index row, index row_end) {
                                   panel.enter(row);
                                   for (index i = row; i < row_end; ++i)
                                     detail::map_row<V>(kernel, some, i, false);
                                 });
    const index rows = a.domain.rows, columns = a.domain.columns;
    const bool packed = a.domain.kind == arrangement::packed;
    const index slots = packed ? columns : rows * columns;
    const bool streaming = slots * static_cast<index>(sizeof(T)) > bytes_that_stay;
    const bool touch = detail::rows_touch(a);
    if (touch && a.domain.kind == arrangement::padded) {
      const index units = (slots + tokens_per_unit - 1) / tokens_per_unit;
      exec_.parallel_for(units, [&](index u) {
        const index from = (units - 1 - u) * tokens_per_unit;
        const index left = slots - from;
        detail::map_range<V>(kernel, a, 0, from, left < tokens_per_unit ? left : tokens_per_unit,
                             streaming);
        if (streaming) detail::end_streaming();
      });
      return;
    }
    const index width = rows > 0 ? slots / rows + 1 : 1;
    const index each = width < tokens_per_unit ? tokens_per_unit / width : 1;  // rows per unit
    const index units = (rows + each - 1) / each;
    exec_.parallel_for(units, [&](index u) {
      const index from = (units - 1 - u) * each, end = from + each < rows ? from + each : rows;
      for (index i = from; i < end;) {
        index full = 0;
        while (touch && i + full < end && a.domain.length(i + full) == columns) ++full;
        if (full > 0)
          detail::map_range<V>(kernel, a, i, 0, full * columns, streaming);
        else
          detail::map_row<V>(kernel, a, i, streaming);
        i += full > 0 ? full : 1;
      }
      if (streaming) detail::end_streaming();
    });
  }

  /// See primitive/row_reduce.hpp. Writes the figures in the order of sums_of<K>.
  template <class K, storage L>
  void row_reduce(const K& kernel, const row_arguments<L, space>& a, double* sums) {
    using T = compute_of<L>;
    using V = math::native_lane<T>;
    using totals = detail::totals<K>;
    struct counted_row {
      bool counted;
      totals figures;
    };
    const index slots =
        a.domain.kind == arrangement::packed ? a.domain.columns : a.domain.rows * a.domain.columns;
    const index threads = exec_.concurrency();
    const index units = threads < slots ? threads : slots;
    const index tiles = detail::row_tiles(a.classes);
    T* e = nullptr;
    double* top = nullptr;
    if (a.gradient.data != nullptr) {
      if (!detail::waits_in_gradient(a)) e = allocate<T>(units * tiles * detail::row_tile);
      top = allocate<double>(units * tiles);
    }
    counted_row* const each = threads > 1 ? allocate<counted_row>(slots) : nullptr;
    if (arena_.dry()) return;
    detail::binary_tree<totals> all;
    const auto unit = [&](index u) {
      detail::row_scratch<T> scratch;
      if (e != nullptr) scratch.e = e + u * tiles * detail::row_tile;
      if (top != nullptr) scratch.top = top + u * tiles;
      detail::row_pass<V, L> pass(a.logits.step, a.classes, a.temperature, scratch);
      for (index k = u; k < slots; k += units) {
        totals figures;
        const bool counted = detail::run_row<V>(kernel, a, k, pass, figures);
        if (each != nullptr)
          each[k] = {counted, figures};
        else if (counted)
          all.push(figures);
      }
    };
    exec_.parallel_for(units, unit);
    if (each != nullptr)
      for (index k = 0; k < slots; ++k)
        if (each[k].counted) all.push(each[k].figures);
    all.finish().write(sums);
  }

  /// See primitive/reverse_scan.hpp. Writes the figures in the order of scan_figures<K>.
  template <class K>
  void reverse_scan(const K& kernel, scan_arguments<K, space> a, double* figures) {
    using T = typename K::scalar_type;
    using V = math::native_lane<T>;
    const index rows = a.domain.rows;
    const mask_view<space> mask = a.domain.mask;
    if (mask && (mask.kind() != mask_kind::flag || a.domain.mask_stride() != 1)) {
      const bool packed = a.domain.kind == arrangement::packed;
      const index columns = a.domain.columns;
      auto* const flags = allocate<std::uint8_t>(packed ? columns : rows * columns);
      flag_rows(a.domain, flags);
      a.domain.mask = mask_view<space>(flags, packed ? shape(columns) : shape(rows, columns));
    }
    double decay = 0;
    if constexpr (!detail::has_varying_decay<K>()) decay = kernel.decay;
    const detail::decay_powers<T> powers(decay);
    const detail::panel_plan plan = plan_panels(detail::views_of(a), 0);
    if (exec_.concurrency() > 1) {
      const detail::scan_share<V, K, space, Exec> share(*this, exec_, kernel, a, powers, plan);
      if (!arena_.dry()) share().write(figures);
    } else if (!arena_.dry()) {
      detail::binary_tree<detail::scan_sums<K::outputs>> all;
      using scan = detail::row_scan<V, K, space>;
      const auto take = [&](scan& rows_of) {
        for (index i = 0; i < rows; i += detail::moment_group_rows) all.push(rows_of.group(i));
      };
      if (!plan) {
        scan rows_of(kernel, a, powers);
        take(rows_of);
      } else {
        detail::arguments_on_panel<T, scan_arguments<K, space>>(a, plan, plan.memory)
            .run(rows, [&](const auto& some, auto& panel) {
              scan rows_of(kernel, some, powers, a, &panel);
              take(rows_of);
            });
      }
      all.finish().write(figures);
    }
  }

  /// See primitive/group_reduce.hpp. Writes the figures as K::partial does.
  template <class K>
  void group_reduce(const sample_groups<space>& groups, const K& kernel, double* to) {
    using partial = typename K::partial;
    detail::group_scratch scratch = {};
    if (groups.size == 0)
      for (index** part : {&scratch.start, &scratch.sorted, &scratch.spare, &scratch.group_start})
        *part = allocate<index>(groups.samples + 1);
    const index most = groups.size > 0 ? groups.samples / groups.size : groups.samples;
    const bool shared = exec_.concurrency() > 1;
    partial* const sums =
        shared ? allocate<partial>((most + groups_per_unit - 1) / groups_per_unit) : nullptr;
    if (arena_.dry()) return;
    const detail::found_groups found = detail::find_groups(groups, scratch);
    const auto unit = [&](index u) {
      partial sum;
      for (index g = u * groups_per_unit; g < found.groups && g < (u + 1) * groups_per_unit; ++g)
        sum = sum + kernel(found.at(g));
      return sum;
    };
    const index units = (found.groups + groups_per_unit - 1) / groups_per_unit;
    if (shared) exec_.parallel_for(units, [&](index u) { sums[u] = unit(u); });
    partial all;
    for (index u = 0; u < units; ++u) all = all + (shared ? sums[u] : unit(u));
    all.write(to);
  }

  /// Turns figures in the executor's memory into what the call returns.
  template <class R>
  result_of<Exec, R> finish(const double* figures, R (*read)(const double*)) {
    if constexpr (!Exec::dry) return read(figures);
  }

 private:
  static constexpr index unlimited = index{1} << 62;

  /// The same text for every kernel of one scalar. `level` and `spare` are memory for trees.
  template <class T>
  RLHF_NOINLINE void reduce_tokens(const detail::token_work<T>& work, bool wanted, double* level,
                                   double* spare, double* sums) {
    const token_domain<space>& domain = *work.domain;
    const index groups = (domain.rows + rows_per_group - 1) / rows_per_group;
    const index threads = exec_.concurrency();
    detail::figure_tree all(level, work.sums + 1, work.ranges);
    double* partial = nullptr;
    index units_per_group = 1;
    const detail::panel_plan plan = plan_panels(detail::views_of(work), rows_per_group);
    if (threads > 1) {
      if (groups < groups_per_thread * threads && !plan) units_per_group = units_of_group(domain);
      partial = allocate<double>(groups * units_per_group * all.size());
    }
    if (arena_.dry()) return;
    if (threads <= 1) {
      if (!plan)
        work.reduce(work, 0, groups, 0, unlimited, rows_per_group, all);
      else
        work_on_panels(work, plan, domain.rows, [&](const auto& some, index, index) {
          some.reduce(some, 0, groups, 0, unlimited, rows_per_group, all);
        });
    } else {
      constexpr index unit_steps = flushes_per_unit * steps_per_flush;
      const auto unit = [&](const detail::token_work<T>& some, index u) {
        const index g = u / units_per_group;
        const index first = u % units_per_group * unit_steps;
        const index last = units_per_group == 1 ? unlimited : first + unit_steps;
        detail::figure_tree one(partial + u * all.size(), work.sums + 1, work.ranges);
        some.reduce(some, g, g + 1, first, last, rows_per_group, one);
      };
      if (!plan)
        exec_.parallel_for(groups * units_per_group, [&](index u) { unit(work, u); });
      else
        work_on_panels(work, plan, rows_per_group, [&](const auto& some, index row, index) {
          unit(some, row / rows_per_group);
        });
      for (index g = 0; wanted && g < groups; ++g) {
        const index row = g * rows_per_group;
        const index end = row + rows_per_group < domain.rows ? row + rows_per_group : domain.rows;
        const index steps = units_per_group == 1 ? 1 : detail::group_steps(domain, row, end);
        detail::figure_tree group(spare, work.sums + 1, work.ranges);
        for (index u = 0; u * unit_steps < steps; ++u) {
          const double* const from = partial + (g * units_per_group + u) * all.size();
          for (int k = 0; k < all.size(); ++k) group.next()[k] = from[k];
          group.push();
        }
        group.finish(all.next());
        all.push();
      }
    }
    all.finish(sums);
  }

  /// count(), where it can, for a mask that is column-major.
  RLHF_RARE bool count_on_panels(const token_domain<space>& domain, double* counts,
                                 double* row_weight) {
    const detail::panel_plan plan = plan_panels(detail::panel_views<float>{&domain}, 0);
    if (!plan) return false;
    const index rows = domain.rows;
    auto* const partial = allocate<detail::row_count>((rows + plan.rows - 1) / plan.rows);
    const bool weighs = detail::counts_weights(domain);
    if (weighs && row_weight == nullptr) row_weight = allocate<double>(rows);
    if (arena_.dry()) return true;
    detail::on_panels(
        exec_, plan, rows, plan.rows,
        [&](std::byte* memory) { return detail::domain_on_panel(domain, plan, memory); },
        [&](auto& on, index row, index row_end) {
          partial[row / plan.rows] =
              detail::count_rows(on.at(row, row_end), row, row_end, row_weight);
        });
    detail::row_count all;
    for (index row = 0; row < rows; row += plan.rows) all.add(partial[row / plan.rows]);
    // Weights have the order of their rows.
    if (weighs) all.weight = 0;
    for (index i = 0; weighs && i < rows; ++i) all.weight += row_weight[i];
    all.write(counts);
    return true;
  }

  /// How a walk takes column-major tensors, and memory for it; units are of so many rows, or, where
  /// that is 0, of a panel each.
  template <class T>
  detail::panel_plan plan_panels(const detail::panel_views<T>& views, index unit_rows) {
    return detail::worth_panels(*views.domain) ? make_panels(views, unit_rows)
                                               : detail::panel_plan{};
  }
  template <class T>
  RLHF_RARE detail::panel_plan make_panels(const detail::panel_views<T>& views, index unit_rows) {
    const index threads = exec_.concurrency();
    detail::panel_plan plan = detail::row_panel<T>::plan(views, unit_rows > 0 ? 1 : threads);
    if (!plan) return plan;
    const index rows = views.domain->rows;
    const index each = unit_rows > 0 ? unit_rows : plan.rows;
    const index units = (rows + each - 1) / each;
    // A group of rows is one unit then: where there are few, a gathered walk on all threads wins.
    if (threads > 8 * units) return {};
    const index bytes = plan.bytes * (threads < units ? threads : units);
    if (bytes > panels_bytes_) {
      panels_ = allocate<std::byte>(bytes);
      panels_bytes_ = bytes;
    }
    plan.memory = panels_;
    return plan;
  }

  /// f(work, first row, end) for units of `each` rows.
  template <class T, class F>
  void work_on_panels(const detail::token_work<T>& work, const detail::panel_plan& plan, index each,
                      const F& f) {
    detail::on_panels(
        exec_, plan, work.domain->rows, each,
        [&](std::byte* memory) { return detail::work_on_panel<T>(work, plan, memory); },
        [&](detail::work_on_panel<T>& on, index row, index row_end) {
          on.run(row_end, [&](const auto& some) { f(some, row, row_end); });
        });
  }

  /// f(arguments, panel, first row, end) for units of `each` rows.
  template <class K, class F>
  void arguments_on_panels(const token_arguments<K, space>& a, const detail::panel_plan& plan,
                           index each, const F& f) {
    using on_panel = detail::arguments_on_panel<typename K::scalar_type, token_arguments<K, space>>;
    detail::on_panels(
        exec_, plan, a.domain.rows, each,
        [&](std::byte* memory) { return on_panel(a, plan, memory); },
        [&](on_panel& on, index row, index row_end) {
          on.run(row_end, [&](const auto& some, auto& panel) { f(some, panel, row, row_end); });
        });
  }

  /// The flags of a mask that is not read as it is, row by row.
  RLHF_NOINLINE void flag_rows(const token_domain<space>& domain, std::uint8_t* flags) {
    const detail::panel_plan plan = plan_panels(detail::panel_views<float>{&domain}, 0);
    if (!plan) return for_each(domain.rows, detail::flag_row<space>{domain, flags});
    if (arena_.dry()) return;
    detail::on_panels(
        exec_, plan, domain.rows, plan.rows,
        [&](std::byte* memory) { return detail::domain_on_panel(domain, plan, memory); },
        [&](auto& on, index row, index row_end) {
          const detail::flag_row<space> to{on.at(row, row_end), flags};
          for (index i = row; i < row_end; ++i) to(i);
        });
  }

  /// Units that hold any group of such a batch: from extents alone, so that scratch memory does not
  /// depend on lengths or masks.
  static index units_of_group(const token_domain<space>& domain) {
    const index rows = domain.rows < rows_per_group ? domain.rows : rows_per_group;
    const index most = domain.kind == arrangement::packed
                           ? rows + domain.columns / virtual_lanes + 1
                           : rows * detail::steps_of(domain.columns);
    const index per_unit = flushes_per_unit * steps_per_flush;
    return most > per_unit ? (most + per_unit - 1) / per_unit : 1;
  }
};

/// One thread of the host. With a workspace no call allocates; without one scratch memory comes
/// from the heap.
struct serial {
  using space = host_space;
  template <class R>
  using result = R;
  static constexpr bool dry = false;

  void* workspace = nullptr;
  std::size_t bytes = 0;

  host_run<serial> begin(const char* function) const { return {*this, function}; }
  static constexpr index concurrency() { return 1; }
  template <class F>
  void parallel_for(index n, const F& f) const {
    for (index i = 0; i < n; ++i) f(i);
  }
};

namespace detail {

/// What a loop does, without its type: the loop of a pool is compiled once for all of them.
struct loop_body {
  const void* function;
  void (*call)(const void* function, index i);
  void operator()(index i) const { call(function, i); }

  template <class F>
  static loop_body of(const F& f) {
    return {&f, [](const void* body, index i) { (*static_cast<const F*>(body))(i); }};
  }
};

}  // namespace detail

/// What `parallel` borrows: pool.parallel_for(n, f) calls f(i) for each i in [0, n) and returns
/// when all are done; pool.concurrency() is how many may run at once.
template <class P>
concept thread_pool = requires(const P& pool, index n) {
  pool.parallel_for(n, [](index) {});
  { pool.concurrency() } -> std::convertible_to<index>;
};

/// The threads of a pool that the caller owns. Same bits as `serial`.
template <thread_pool Pool>
struct parallel {
  using space = host_space;
  template <class R>
  using result = R;
  static constexpr bool dry = false;

  const Pool& pool;
  void* workspace = nullptr;
  std::size_t bytes = 0;

  host_run<parallel> begin(const char* function) const { return {*this, function}; }
  index concurrency() const {
    const auto n = static_cast<index>(pool.concurrency());
    return n > 1 ? n : 1;  // "unknown" is 0 in some pools
  }
  template <class F>
  void parallel_for(index n, const F& f) const {
    pool.parallel_for(n, detail::loop_body::of(f));
  }
};
template <class Pool>
parallel(const Pool&) -> parallel<Pool>;
template <class Pool>
parallel(const Pool&, void*, std::size_t) -> parallel<Pool>;

/// Runs a call without touching a tensor and remembers the scratch memory it asked for.
struct dry_run {
  using space = host_space;
  template <class R>
  using result = void;
  static constexpr bool dry = true;

  void* workspace = nullptr;
  std::size_t bytes = 0;
  index threads = 1;
  mutable std::size_t required = 0;

  host_run<dry_run> begin(const char* function) const { return {*this, function}; }
  index concurrency() const { return threads > 1 ? threads : 1; }
  template <class F>
  void parallel_for(index, const F&) const {}
  void note(std::size_t n) const {
    if (n > required) required = n;
  }
};

/// The bytes of workspace that a call needs on the host:
///     workspace_bytes([&](const auto& exec) { return dpo_loss<float>({...}, {...}, {...}, exec); })
/// Each call needs this much by itself; a workspace serves one call at a time. `threads` is the
/// concurrency of the pool the call will run on.
template <class Call>
std::size_t workspace_bytes(const Call& call, index threads = 1) {
  dry_run exec;
  exec.threads = threads;
  call(exec);
  return exec.required;
}

}  // namespace rlhf::inline RLHF_COMPUTE
