"""A step of several processes beside one of one, on a CPU: what training together costs a loop, in seconds a sample.

    python tests/bench/processes.py [--count 2] [--steps 12] [--rounds 2]

Each process takes one batch of a step and has one thread, so that all would take as long as one alone if nothing had to
be shared. What a step takes longer is the overhead: gradients that are averaged (gloo), blocks that are gathered where
they are shared out, words between the processes, and the wait for the slowest. It needs a core for each process. The
model is the tiny one of the demo; of a real one the work is larger and the rest is not. Least of all steps but the
first two, all cases in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = [sys.executable, "-m", "ltx2_train"]
WARM = 2  # steps that do not count


def call(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*PROGRAM, *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"ltx2-train {' '.join(words)} failed:\n{done.stderr[-2000:]}")


def least(folder: Path, name: str, steps: int, settings: list[str]) -> float:
    """Seconds of the fastest step of a run."""
    chosen = [f"run.name={name}", f"train.steps={steps}", "sample.every=0", "train.save_every=0", *settings]
    call("train", str(folder / "run.toml"), *(word for one in chosen for word in ("--set", one)))
    rows = [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    return min(row["seconds"] for row in rows[WARM:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("count", 2), ("steps", 12), ("rounds", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    if args.count < 2 or args.steps <= WARM or args.rounds < 1:
        parser.error(f"--count is 2 or more, --steps more than {WARM}, --rounds 1 or more.")
    several = f"{args.count} processes"
    cases = {
        "1 process": [],
        several: [f"train.processes={args.count}"],
        f"{several}, blocks shared out": [f"train.processes={args.count}", "memory.shard=true"],
    }
    found = dict.fromkeys(cases, float("inf"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "demo"
        call("demo", "--out", str(folder), "--steps", "2")
        for number in range(args.rounds):
            for place, (name, settings) in enumerate(cases.items()):
                found[name] = min(found[name], least(folder, f"r{number}_{place}", args.steps, settings))
                print(f"round {number + 1} of {args.rounds}: {name}, {found[name]:.3f} s", file=sys.stderr, flush=True)
    alone = found["1 process"]
    print("| | s a step | s a sample | a step beside one process |\n|---|---|---|---|")
    for name, settings in cases.items():
        samples = args.count if settings else 1
        print(f"| {name} | {found[name]:.3f} | {found[name] / samples:.3f} | {found[name] / alone:.2f} |")


if __name__ == "__main__":
    main()
