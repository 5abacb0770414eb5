#!/usr/bin/env python3
# ruff: noqa
"""Run the same LoRA step on two peers and on this project, turn by turn, and print the ratios.

    python tests/bench/compare.py --ours tests/bench/ours.py --size small --mode av --dtype bf16 --rounds 2

Peers: A = diffusers + peft, B = ltx-core + peft (both from PyPI; needs torch, diffusers, peft, ltx-core, einops).
`ours.py` is the project's own script with the same command line: it builds its model with the sizes of `common.SIZES`,
fills it through `Bench.fill` / `Bench.fill_lora` (canonical names = the original checkpoint's), and calls `Bench.run`.
Equal work shows as an equal first loss; a ratio counts only where the losses agree.
Exit status 0 unless a run failed or the losses differ; it never judges a ratio.
"""

import argparse, json, os, subprocess, sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = ("median_step_s", "cpu_s_per_step", "peak_rss_mb", "step_live_peak_mb")


def run(script, a):
    cmd = [sys.executable, str(script), "--size", a.size, "--mode", a.mode, "--dtype", a.dtype, "--steps", str(a.steps)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([str(HERE), os.getcwd(), os.environ.get("PYTHONPATH", "")]))
    p = subprocess.run(cmd, capture_output=True, text=True, env=env)
    if p.returncode:
        sys.exit(f"{script}: exit {p.returncode}\n{p.stderr[-2000:]}")
    return json.loads([x for x in p.stdout.splitlines() if x.startswith("{")][-1])


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--ours", type=Path)
    ap.add_argument("--size", default="tiny")
    ap.add_argument("--mode", default="av")
    ap.add_argument("--dtype", default="bf16")
    ap.add_argument("--steps", type=int, default=5)
    ap.add_argument("--rounds", type=int, default=3)
    a = ap.parse_args()
    scripts = {"A": HERE / "peer_a_diffusers.py", "B": HERE / "peer_b_ltxcore.py"}
    if a.ours:
        scripts["ours"] = a.ours.resolve()
    got = {k: [] for k in scripts}
    for _ in range(a.rounds):
        for k, s in scripts.items():
            got[k].append(run(s, a))
    # the least of the rounds: a neighbour on a shared machine only ever adds time
    med = {k: {f: min(r[f] for r in v if r.get(f) is not None) for f in FIGURES} for k, v in got.items()}
    print(f"size {a.size}  mode {a.mode}  dtype {a.dtype}  rounds {a.rounds}")
    for k, m in med.items():
        print(
            f"{k:5s} step {m['median_step_s']:.3f} s  cpu {m['cpu_s_per_step']:.3f} s  RSS {m['peak_rss_mb']:.0f} MB  live {m['step_live_peak_mb']:.0f} MB  loss {got[k][0]['loss_first']:.6f}"
        )
    if a.ours:
        best = {f: min(med["A"][f], med["B"][f]) for f in med["A"]}
        ratios = {f: round(med["ours"][f] / best[f], 3) for f in best}
        diff = abs(got["ours"][0]["loss_first"] - got["A"][0]["loss_first"]) / abs(got["A"][0]["loss_first"])
        print(json.dumps({"ratio_to_best_peer": ratios, "loss_rel_diff": diff}))
        if diff > (2e-5 if a.dtype == "fp32" else 2e-3):
            sys.exit("the first losses differ: not the same work")


if __name__ == "__main__":
    main()
