"""bench/plot and bench/peers.py on a small recorded run. What needs matplotlib or PyTorch is checked
where they are found, and named where they are not."""
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile

root = sys.argv[1]
bench = os.path.join(root, "bench")
sys.path.insert(0, bench)
failures = []


def check(condition, sentence):
    if not condition:
        failures.append(sentence)


RUN = {
    "context": {"date": "2026-01-02T03:04:05+00:00", "num_cpus": 2, "load_avg": [0.5, 1, 1],
                "cpu": "a processor", "compiler": "g++ 12", "flags": "-O3", "commit": "abc",
                "run": "quick"},
    "benchmarks": [
        {"name": "policy/clipped_surrogate/lengths/64x1024/1", "label": "rlhf", "real_time": 65536.0,
         "ratio": 4.25, "ns_per_token": 1.0, "goal": 1.1, "exp_ns": 0.31, "GBps": 16.0,
         "unsteady": 0.0, "run_type": "iteration"},
        {"name": "policy/clipped_surrogate/lengths/64x1024/1", "label": "torch",
         "real_time": 655360.0, "ratio": 42.5, "ns_per_token": 10.0, "GBps": 1.6, "unsteady": 1.0,
         "max_error": 2e-7, "run_type": "iteration"},
        {"name": "policy/clipped_surrogate/lengths/64x1024/1", "label": "rlhf", "real_time": 70000.0,
         "ratio": 5.0, "ns_per_token": 1.1, "run_type": "iteration"},  # slower: left out
        {"name": "policy/clipped_surrogate/mask/64x1024/1", "label": "rlhf", "real_time": 131072.0,
         "ratio": 6.0, "ns_per_token": 2.0, "goal": 1.35, "exp_ns": 0.62, "run_type": "iteration"},
        {"name": "policy/clipped_surrogate/lengths/64x1024/2", "label": "rlhf", "real_time": 50000.0,
         "ratio": 3.0, "ns_per_token": 0.8, "speedup": 1.25, "goal_speedup": 1.6, "exp_ns": 0.31,
         "exp_speedup": 1.9, "copy_speedup": 1.4, "run_type": "iteration"},
        {"name": "growth/clipped_surrogate/rows/2x2_to_4x2/1", "real_time": 9.0, "growth": 2.1,
         "low": 1.8, "high": 2.3, "run_type": "iteration"},
    ],
}

with tempfile.TemporaryDirectory() as folder:
    run = os.path.join(folder, "run.json")
    with open(run, "w", encoding="utf-8") as text:
        json.dump(RUN, text)
    plot = [sys.executable, "-B", os.path.join(bench, "plot"), run]

    table = os.path.join(folder, "table.md")
    subprocess.run([*plot, "--table", table], check=True, stdout=subprocess.DEVNULL)
    with open(table, encoding="utf-8") as text:
        rows = text.read().splitlines()
    check("| clipped_surrogate/lengths/64x1024/1 | rlhf | 4.25 | 1 | 1.1 | 0.31 |  |  |" in rows,
          "the table lacks our line")
    check("| clipped_surrogate/lengths/64x1024/1 | torch | 42.5 ~ | 10 |  |  |  | 2e-07 |" in rows,
          "the table lacks the other line, its error, or the mark of an unsteady copy")
    check("| clipped_surrogate/rows/2x2_to_4x2/1 | 2.1 | 1.8 | 2.3 |" in rows,
          "the table lacks the growth line")
    goals = [
        "| policy/clipped_surrogate/lengths/64x1024/1 | 1 | ns | 1.1 | 1 | 0.31 |  | met |",
        "| policy/clipped_surrogate/mask/64x1024/1 | 2 | ns | 1.35 | 1 | 0.62 |  | met, scaled |",
        "| policy/clipped_surrogate/lengths/64x1024/2 | 1.25 | speedup | 1.6 |  | 0.31 | 1.9, 1.4 | missed |",
        "| growth/clipped_surrogate/rows/2x2_to_4x2/1 | 2.1 | growth | 1.8 to 2.3 |  |  |  | met |"]
    for goal in goals:
        check(goal in rows, f"the table lacks the goal {goal}")
    check(len([r for r in rows if r.startswith("| clipped_surrogate/lengths/64x1024/1 | rlhf |")]) == 1, "of two runs of a line the slower stayed")

    if importlib.util.find_spec("matplotlib"):
        subprocess.run([*plot, "--out", folder], check=True, stdout=subprocess.DEVNULL)
        with open(os.path.join(folder, "policy.svg"), encoding="utf-8") as text:
            svg = text.read()
        for word in ("rlhf, lengths", "torch, lengths", "64x1024", "clipped surrogate"):
            check(word in svg, f"the drawing lacks `{word}`")
        check(not os.path.exists(os.path.join(folder, "growth.svg")), "growth has no ratio to draw")
    else:
        print("not checked: drawings (matplotlib was not found)")

# The lines peers.py asks for are lines that rlhf_bench has: each operation is named in a file.
import peers  # noqa: E402

named = set()
for at, _, files in os.walk(bench):
    for file in files:
        if file.endswith("_bench.cpp"):
            with open(os.path.join(at, file), encoding="utf-8") as text:
                named |= {"/".join(m) for m in re.findall(
                    r'\.family = "(\w+)",\s*\.name = "(\w+)"', text.read())}
for operation in peers.LINES:
    check(operation in named, f"peers.py asks for {operation}, which no benchmark has")

headers = {f[:-4] for room in ("policy", "value", "advantage", "kl", "reward", "preference",
                               "distribution")
           for f in os.listdir(os.path.join(root, "include/rlhf", room)) if f.endswith(".hpp")}
benched = {f[:-len("_bench.cpp")] for _, _, files in os.walk(bench) for f in files}
# Shared parts of algorithms, and controllers, which are a few operations on one number.
parts = {"kl_estimator", "adaptive_kl_controller", "sample_statistics", "time_steps", "row_binder"}
for name in sorted(headers - benched - parts):
    check(False, f"{name} has no benchmark")

calls = []
rounds = peers.rounds_of(lambda: calls.append(1), iter(range(10**9)).__next__, 1e9)
check(len(rounds) == peers.LEAST_ROUNDS and len(calls) == peers.LEAST_ROUNDS + 2,
      "a formula does not get its eleven rounds after a warm-up")
rounds = peers.rounds_of(lambda: None, iter(range(10**9)).__next__, 1)
check(len(rounds) == 3, "a slow formula does not stop after three rounds")

if importlib.util.find_spec("torch") and importlib.util.find_spec("numpy"):
    import torch
    from formulas import Case, eager

    def case(operation, inputs, outputs, loss=None):
        return Case(f"room/{operation}/mask/1x3/1", inputs, outputs, loss)

    # gamma 0.99, lambda 0.95; a hole in the middle: A_2 = 1 - 0.5, A_0 = 1 + 0.99 * 0.5 - 0.5 +
    # 0.99 * 0.95 * 0.5.
    last, first = 0.5, 1 + 0.99 * 0.5 - 0.5 + 0.99 * 0.95 * 0.5
    c = case("generalized_advantage_estimation",
             {"mask": torch.tensor([[1, 0, 1]], dtype=torch.uint8),
              "reward": torch.tensor([[1.0, 9.0, 1.0]]), "value": torch.tensor([[0.5, 7.0, 0.5]])},
             {"advantage": torch.tensor([[first, 0.0, last]])})
    theirs = eager.generalized_advantage_estimation(c)()
    check(peers.largest_error(c, theirs) < 1e-6, "GAE over a hole differs from arithmetic")
    c.outputs["advantage"][0, 2] = 0.6
    check(math.isclose(peers.largest_error(c, theirs), 0.1 / first, rel_tol=1e-4),
          "a wrong advantage goes unseen")
    c.outputs["advantage"][0, 2] = math.nan
    check(peers.largest_error(c, theirs) == math.inf, "a NaN goes unseen")
    c.outputs["advantage"] = torch.tensor([[first, 5.0, last]])
    check(peers.largest_error(c, theirs) < 1e-6, "a masked place is compared")
else:
    print("not checked: formulas (PyTorch was not found)")

for sentence in failures:
    print(sentence)
sys.exit(1 if failures else 0)
