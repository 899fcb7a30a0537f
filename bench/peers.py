#!/usr/bin/env python3
"""Runs other projects' formulas on the inputs of our benchmarks, beside ours.

`./dev peers` builds rlhf_bench, finds PyTorch, and calls this. For each line rlhf_bench measures
ours and writes down its inputs and outputs; then each formula runs on those inputs. What it returns
is compared with ours first, and a formula that disagrees is not timed. The figures have the schema
of `rlhf_bench --json`; "label" says whose they are.
"""
import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

LINES = {
    "policy/clipped_surrogate": ("token", ["lengths", "mask"]),
    "value/clipped_value_loss": ("token", ["lengths"]),
    "advantage/generalized_advantage_estimation": ("token", ["lengths", "mask"]),
    "advantage/discounted_returns": ("token", ["lengths"]),
    "advantage/group_relative_advantage": ("sample", ["group_size"]),
    "kl/kl_estimate": ("token", ["lengths"]),
    "statistics/whiten": ("token", ["lengths", "mask"]),
    "reward/bradley_terry": ("sample", ["pairs"]),
    "preference/dpo": ("sample", ["pairs"]),
    "distribution/token_log_prob": ("logit", ["float32"]),
    "distribution/token_log_prob_entropy": ("logit", ["float32"]),
    "distribution/token_log_prob_forward_backward": ("logit", ["float32"]),
    "distribution/cross_entropy": ("logit", ["float32"]),
}
SIZES = {"token": ["64x1024", "512x2048"],
         "sample": ["8", "256", "512", "65536"],
         "logit": ["64x32000", "512x128256"]}
TOLERANCE = 2e-5  # of the largest element; both sides compute in float
LEAST_ROUNDS = 11


def arguments():
    a = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--bench", required=True, help="the program rlhf_bench")
    a.add_argument("--peers", metavar="DIR",
                   help="a folder of clones or installed packages: verl, trl, openrlhf, ...")
    a.add_argument("--json", metavar="FILE", help="write the figures to this file")
    a.add_argument("--filter", default="", metavar="REGEX", help="only lines that match")
    a.add_argument("--threads", type=int, default=1, choices=[1, 2])
    a.add_argument("--seconds", type=float, default=0.3, help="time for each of our lines")
    a.add_argument("--limit", type=float, default=5, metavar="SECONDS",
                   help="a formula that needs more than this for its rounds stops after three")
    a.add_argument("--commit", default="not known", help=argparse.SUPPRESS)
    return a.parse_args()


def wanted(options):
    """The names of our lines, as a regular expression for rlhf_bench."""
    names = [f"{operation}/{variant}/{size}/{options.threads}"
             for operation, (kind, variants) in LINES.items()
             for variant in variants for size in SIZES[kind]]
    names = [n for n in names if re.search(options.filter, n)]
    if not names:
        sys.exit(f"peers: no line matches {options.filter}")
    return "^(" + "|".join(names) + ")$"


def measure_ours(options, folder):
    file = os.path.join(folder, "ours.json")
    command = [options.bench, "--json", file, "--dump", folder, "--seconds", str(options.seconds),
               "--benchmark_filter=" + wanted(options),
               "--benchmark_context=commit=" + options.commit]
    if options.threads == 1:
        command.insert(1, "--quick")  # full runs add sizes that are not compared here
    subprocess.run(command, check=True)
    with open(file, encoding="utf-8") as text:
        ours = json.load(text)
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as text:
        return ours, json.load(text)["lines"]


def load(line, folder):
    """A Case of one line of the manifest."""
    import numpy
    import torch
    from formulas import Case
    sides = {False: {}, True: {}}
    for t in line["tensors"]:
        data = numpy.fromfile(os.path.join(folder, t["file"]), dtype=t["type"])
        sides[t["output"]][t["name"]] = torch.from_numpy(data).as_strided(t["shape"], t["stride"])
    return Case(line["name"], sides[False], sides[True], line.get("loss"))


def largest_error(case, theirs):
    """The largest difference between ours and theirs, relative to their largest element.

    Places that a mask leaves out are not compared: there ours are 0 and theirs are anything. Nor
    are tokens that lie on a clip's bound.
    """
    import torch
    from formulas import decided
    places = decided(case)
    if "mask" in case.inputs:
        counted = case.inputs["mask"] != 0
        places = counted if places is None else counted & places
    worst = 0.0
    compared = 0
    for name, other in theirs.items():
        other = other.detach()
        if name == "loss":
            if case.loss is None:
                continue
            mine = torch.tensor(case.loss)
        elif name in case.outputs:
            mine = case.outputs[name]
            if places is not None and mine.shape == places.shape:
                mine, other = mine[places], other[places]
        else:
            continue
        compared += 1
        scale = float(other.double().abs().max())
        error = float((mine.double() - other.double()).abs().max()) / (scale or 1.0)
        worst = max(worst, error if math.isfinite(error) else math.inf)
    if compared == 0:
        raise ValueError(f"{case.name}: nothing to compare")
    return worst


def clock(threads):
    return time.thread_time if threads == 1 else time.perf_counter


def rounds_of(call, now, limit):
    """Seconds of each of at least eleven rounds; of three, where those take longer than `limit`."""
    call()
    repeats = 1
    begin = now()
    call()
    once = now() - begin
    if once < 2e-4:
        repeats = math.ceil(2e-4 / max(once, 1e-7))
    rounds = []
    while len(rounds) < LEAST_ROUNDS:
        begin = now()
        for _ in range(repeats):
            call()
        rounds.append((now() - begin) / repeats)
        if len(rounds) >= 3 and sum(rounds) * repeats > limit:
            break
    return sorted(rounds)


def copy_seconds(size, now):
    import numpy
    source = numpy.ones(max(1, int(size / 2)), dtype=numpy.uint8)
    target = numpy.zeros_like(source)
    return rounds_of(lambda: numpy.copyto(target, source), now, 1)[0]


def time_formula(call, ours, options):
    """The counters of one formula: those of ours that make sense, from this process."""
    now = clock(options.threads)
    size = ours["GBps"] * ours["real_time"]  # bytes: GB/s times ns
    item = next(k for k in ours if k.startswith("ns_per_"))
    items = ours["real_time"] / ours[item]
    before = copy_seconds(size, now)
    rounds = rounds_of(call, now, options.limit)
    after = copy_seconds(size, now)
    copy = min(before, after)
    return {"real_time": rounds[0] * 1e9, "cpu_time": rounds[0] * 1e9, "time_unit": "ns",
            "ratio": rounds[0] / copy, item: rounds[0] * 1e9 / items,
            "GBps": size / rounds[0] * 1e-9, "copy_ns": copy * 1e9 / items,
            "quartile_ns": rounds[len(rounds) // 4] * 1e9 / items, "rounds": len(rounds),
            "unsteady": float(abs(before - after) > 0.1 * copy)}


def find_projects(folder):
    """Formulas of every project, and why the others are absent."""
    from formulas import eager
    from formulas.projects import PROJECTS, Absent
    found = [(eager.NAME, eager.FORMULAS.get)]
    for project in PROJECTS:
        if folder is None:
            print(f"{project.NAME}: absent (no --peers)")
            continue
        try:
            p = project(folder)
        except Absent as why:
            print(f"{project.NAME}: absent ({why})")
            continue
        found.append((project.NAME, lambda operation, p=p: getattr(p, operation, None)))
    return found


def main():
    options = arguments()
    try:
        import numpy  # noqa: F401
        import torch
    except ImportError as why:
        sys.exit(f"peers: {why}; `./dev peers` installs it")
    torch.set_num_threads(options.threads)
    if options.peers is not None and not os.path.isdir(options.peers):
        sys.exit(f"peers: no folder {options.peers}")
    projects = find_projects(options.peers)
    disagreed = 0
    with tempfile.TemporaryDirectory(prefix="rlhf_peers_") as folder:
        ours, lines = measure_ours(options, folder)
        figures = {b["name"]: b for b in ours["benchmarks"]}
        result = {"context": {**ours["context"], "torch": torch.__version__}, "benchmarks": []}
        print(f"\n{'line':64s} {'whose':10s} {'ratio':>9s} {'ns':>11s} {'x ours':>8s}  max error")
        for line in lines:
            mine = figures[line["name"]]
            item = next(k for k in mine if k.startswith("ns_per_"))
            result["benchmarks"].append(mine)
            print(f"{line['name']:64s} {'rlhf':10s} {mine['ratio']:9.2f} {mine[item]:11.3f}")
            case = load(line, folder)
            for name, find in projects:
                formula = find(case.operation)
                call = formula(case) if formula else None
                if call is None:
                    continue
                head = f"{'':64s} {name:10s} "
                try:
                    outputs = call()
                except Exception as why:  # a release may need what others did not
                    print(f"{head}failed: {type(why).__name__}: {why}: not timed")
                    continue
                error = largest_error(case, outputs)
                if not error <= TOLERANCE:
                    disagreed += 1
                    print(f"{head}disagrees with ours by {error:.1e} of the largest element: "
                          "not timed")
                    continue
                theirs = time_formula(call, mine, options)
                print(f"{head}{theirs['ratio']:9.2f} {theirs[item]:11.3f} "
                      f"{theirs['real_time'] / mine['real_time']:8.1f}  {error:.1e}")
                result["benchmarks"].append(
                    {"name": mine["name"], "run_name": mine["name"], "run_type": "iteration",
                     "label": name, "max_error": error, "threads": 1,
                     "iterations": theirs["rounds"], **theirs})
    if options.json:
        with open(options.json, "w", encoding="utf-8") as text:
            json.dump(result, text, indent=1)
            text.write("\n")
    return 1 if disagreed else 0


if __name__ == "__main__":
    sys.exit(main())
