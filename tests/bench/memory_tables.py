"""Make the tables of docs/memory.md again: each block that begins with "$ ltx2-train plan" is what that command prints.

    python tests/bench/memory_tables.py

Below the tables of each command stand the bytes that a step moves besides products of large matrices, as counted for
the plan: they are what the seconds follow from.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
PAGE = ROOT / "docs" / "memory.md"
BLOCK = re.compile(r"```\n\$ ltx2-train (plan [^\n]*)\n.*?```\n", re.S)
COUNTED = re.compile(r"<!-- counted -->\n.*?<!-- end -->\n", re.S)


def printed(line: str) -> str:
    """What the command says, without what belongs to this machine."""
    from ltx2_train.cli import main

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        main(shlex.split(line))
    return f"```\n$ ltx2-train {line}\n{out.getvalue().rstrip()}\n```\n"


def counted() -> str:
    """Gigabytes that a step moves and operations that it launches, forward and backward, by mode."""
    from ltx2_train.config import make_run
    from ltx2_train.training.fit import Facts, parse_workload

    lines = ["| 512x512x121 | blocks recomputed | GB moved | operations | TFLOP |", "|---|---|---|---|---|"]
    for mode in ("video", "av"):
        facts = Facts.published("2.3", make_run({"model": {"mode": mode}}), parse_workload("512x512x121", mode))
        for again in (0, facts.total):
            profile = facts.profile("none")
            moved, launched = sum(profile.traffic(facts.total, again)), sum(profile.operations(facts.total, again))
            flop = facts.flops.total(again / facts.total) / 1e12
            lines.append(f"| {mode} | {again} | {moved / 1e9:.0f} | {launched} | {flop:.0f} |")
    return "<!-- counted -->\n" + "\n".join(lines) + "\n<!-- end -->\n"


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    text = BLOCK.sub(lambda found: printed(found[1]), text)
    text = COUNTED.sub(lambda _: counted(), text)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
