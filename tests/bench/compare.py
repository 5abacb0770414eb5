"""Run the same LoRA step on two peers and on this project, a step of each in turns, and print the ratios.

    python tests/bench/compare.py --ours tests/bench/ours.py --size small --mode av --dtype bf16 --steps 7

Peers: A = diffusers + peft, B = ltx-core + peft (both from PyPI; needs torch, diffusers, peft, ltx-core, einops).
`ours.py` is the project's own script with the same command line: it builds its model with the sizes of `common.SIZES`,
fills it through `Bench.fill` / `Bench.fill_lora` (canonical names = the original checkpoint's), and calls `Bench.run`.
All stay in memory at once, and while one takes a step the others wait: what a neighbour on the machine takes falls on
all of them alike. The first two steps are warm-up; of the others the median and the least are printed.
Equal work shows as an equal first loss; a ratio counts only where the losses agree.
Exit status 0 unless a run failed or the losses differ; it never judges a ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FIGURES = ("median_step_s", "min_step_s", "cpu_s_per_step", "peak_rss_mb", "step_live_peak_mb")


class Runner:
    """One script, which does what comes next, and no more, each time it is told to go on."""

    def __init__(self, script: Path, arguments: list[str]) -> None:
        self.script, self.errors = script, tempfile.TemporaryFile("w+")
        paths = [str(HERE), os.getcwd(), os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, str(script), *arguments, "--in-turns"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(paths)),
        )  # fmt: skip
        self.row: dict[str, Any] | None = self._until_its_turn()

    def go_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        self.row = self._until_its_turn()

    def _until_its_turn(self) -> dict[str, Any] | None:
        """None where it waits, its figures where it is done."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            if line == "waiting\n":
                return None
        self.errors.seek(0)
        sys.exit(f"{self.script}: exit {self._process.wait()}\n{self.errors.read()[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ours", type=Path)
    parser.add_argument("--also", action="append", default=[], help='ours once more with these options: --also="--act"')
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--mode", default="av")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--steps", type=int, default=7)
    args = parser.parse_args()
    if args.also and not args.ours:
        parser.error("--also is this project once more: give --ours with it")
    scripts = {"A": HERE / "peer_a_diffusers.py", "B": HERE / "peer_b_ltxcore.py"}
    if args.ours:
        scripts["ours"] = args.ours.resolve()
    common = ["--size", args.size, "--mode", args.mode, "--dtype", args.dtype, "--steps", str(args.steps)]
    runners = {name: Runner(script, common) for name, script in scripts.items()}
    if args.ours:
        runners |= {also: Runner(args.ours.resolve(), [*common, *also.split()]) for also in args.also}
    while any(runner.row is None for runner in runners.values()):
        for runner in runners.values():
            if runner.row is None:
                runner.go_on()
    rows = {name: runner.row for name, runner in runners.items() if runner.row is not None}
    print(f"size {args.size}  mode {args.mode}  dtype {args.dtype}  steps {args.steps}")
    for name, row in rows.items():
        print(
            f"{name:5s} step: median {row['median_step_s']:.3f} s, least {row['min_step_s']:.3f} s, "
            f"of the processor {row['cpu_s_per_step']:.3f} s  RSS {row['peak_rss_mb']:.0f} MB  "
            f"live {row['step_live_peak_mb']:.1f} MB  loss {row['loss_first']:.6f}"
        )
    if args.ours:
        differences = {name: _compared(name, rows) for name in ("ours", *args.also)}
        if differences["ours"] > (2e-5 if args.dtype == "fp32" else 2e-3):  # an option may change a loss, as formats do
            sys.exit("the first losses differ: not the same work")


def _compared(name: str, rows: dict[str, dict[str, Any]]) -> float:
    """Print the ratios of one run to the better peer, and how far its first loss is from theirs, which is returned."""
    row, peer = rows[name], rows["A"]
    ratios = {key: round(row[key] / min(rows["A"][key], rows["B"][key]), 3) for key in FIGURES}
    difference = abs(row["loss_first"] - peer["loss_first"]) / abs(peer["loss_first"])
    print(json.dumps({"run": name, "ratio_to_best_peer": ratios, "loss_rel_diff": difference}))
    return difference


if __name__ == "__main__":
    main()
