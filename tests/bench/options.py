"""Every memory and speed option, one at a time, beside both peers in one run: step time, live memory, loss.

    python tests/bench/options.py --size small --mode av --dtype bf16

Options that only move weights or activations about must give the first loss of the plain run to the last bit; the last
column says so. Ratios are to the better peer. Times need a quiet machine; live memory does not depend on it.
What is trained with (optimizers, kinds of LoRA, regularizers, a running mean, full fine-tuning) is in a table of its
own, beside a step without any, all taken in turns: --training, about five minutes; --regularizers are those alone, and
--grid is the size of their clip. See regularized.py.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PEERS = {"diffusers + peft": "peer_a_diffusers.py", "ltx-core + peft": "peer_b_ltxcore.py"}
OPTIONS = {
    "all exact options on": ["--swap", "LAST", "--act"],
    "plain": [],
    "nothing recomputed": ["--no-ckpt"],
    "half of the blocks recomputed": ["--keep", "HALF"],
    "text keys and values kept": ["--keep-text"],
    "half of the blocks swapped": ["--swap", "HALF"],
    "all but one swapped": ["--swap", "LAST"],
    "inputs of blocks in RAM": ["--act"],
    "feed-forward by 64 tokens": ["--ff-chunk", "64"],
    "compiled": ["--compile"],
    "fp8": ["--format", "fp8"],
    "int8": ["--format", "int8"],
    "int8, multiplied in 8 bits": ["--format", "int8", "--matmul"],
    "int8_rotated": ["--format", "int8_rotated"],
    "nf4": ["--format", "nf4"],
    "nf4, all but one swapped": ["--format", "nf4", "--swap", "LAST"],
}
MOVES_ONLY = {
    "plain", "nothing recomputed", "half of the blocks recomputed",
    "text keys and values kept", "half of the blocks swapped", "all but one swapped",
    "inputs of blocks in RAM", "all exact options on",
}  # fmt: skip


def run(script: str, arguments: list[str]) -> dict:
    done = subprocess.run([sys.executable, str(HERE / script), *arguments], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise SystemExit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small")
    parser.add_argument("--mode", default="av")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="*", help="these options alone, beside those without any")
    parser.add_argument("--no-peers", action="store_true", help="leave the peers out; ratios are to the plain run")
    parser.add_argument("--regularizers", action="store_true", help="the table of regularizers instead")
    parser.add_argument("--training", action="store_true", help="the table of all that is trained with instead")
    parser.add_argument("--rounds", type=int, default=1, help="so often is everything run, in turns")
    parser.add_argument("--grid", help="of these two: latent frames, rows and columns of the clip, 1x4x4 a small one")
    args = parser.parse_args()
    if args.grid and not (args.regularizers or args.training):
        parser.error("--grid is for --training and --regularizers; all else has the clip of common.py, as the peers.")
    if args.regularizers or args.training:
        given = ["--size", args.size, "--dtype", args.dtype, "--steps", str(2 if args.training else args.steps)]
        given += ["--rounds", str(max(2, args.rounds) if args.training else args.rounds)]
        given += [*(["--all"] if args.training else []), *(["--grid", args.grid] if args.grid else [])]
        given += ["--only", *args.only] if args.only else []
        raise SystemExit(subprocess.run([sys.executable, str(HERE / "regularized.py"), *given]).returncode)
    if strangers := set(args.only or ()) - set(OPTIONS):
        parser.error(f"--only: there is no {', '.join(sorted(strangers))}. There are: {', '.join(OPTIONS)}.")
    common = ["--size", args.size, "--mode", args.mode, "--dtype", args.dtype, "--steps", str(args.steps)]
    blocks = {"tiny": 2, "small": 4, "mid": 8}[args.size]
    words = {"HALF": str(blocks // 2), "LAST": str(blocks - 1)}
    names = [name for name in OPTIONS if not args.only or name in args.only or name == "plain"]
    todo = {} if args.no_peers else {name: (script, common) for name, script in PEERS.items()}
    todo |= {name: ("ours.py", [*common, *(words.get(w, w) for w in OPTIONS[name])]) for name in names}
    rows: dict[str, dict] = {}
    for _ in range(args.rounds):
        for name, (script, arguments) in todo.items():
            row = run(script, arguments)
            if name not in rows or row["min_step_s"] < rows[name]["min_step_s"]:
                rows[name] = row
            print(f"{len(rows)} of {len(todo)}: {name}, {row['min_step_s']:.3f} s a step", file=sys.stderr, flush=True)
    plain = rows["plain"]
    best = {
        key: min(row[key] for row in [rows[name] for name in PEERS if name in rows] or [plain])
        for key in ("min_step_s", "step_live_peak_mb")
    }
    print("| option | s a step | ratio | live MB | ratio | first loss | as plain |\n|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        same = "-"
        if name in MOVES_ONLY:
            same = (
                "equal" if (row["loss_first"], row["loss_last"]) == (plain["loss_first"], plain["loss_last"]) else "NO"
            )
        seconds, live = row["min_step_s"], row["step_live_peak_mb"]
        print(
            f"| {name} | {seconds:.3f} | {seconds / best['min_step_s']:.2f} | {live} | "
            f"{live / best['step_live_peak_mb']:.2f} | {row['loss_first']:.6f} | {same} |"
        )


if __name__ == "__main__":
    main()
