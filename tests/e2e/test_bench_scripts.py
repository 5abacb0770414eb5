"""The script that measures cards runs from end to end where there is none: a lent card leaves no time to mend it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[1] / "bench"


@pytest.mark.slow
def test_every_case_for_a_card_runs_small_on_a_cpu():
    script = [sys.executable, str(BENCH / "gpu_steps.py")]
    cases = subprocess.run([*script, "--list"], capture_output=True, text=True, check=True).stdout.split()
    assert len(cases) > 10
    done = subprocess.run([*script, "--small", "--device", "cpu", "--steps", "1"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert '"error"' not in done.stdout, done.stdout
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ") and "/" in line.split("|")[1]]
    assert [row.split("|")[1].strip() for row in rows if "s a step" not in row] == cases


@pytest.mark.slow
def test_the_counter_of_a_step_gives_every_number_it_promises():
    script = [sys.executable, str(BENCH / "count_step.py"), "--case", "bf16/video/512x512x1", "--json"]
    row = json.loads(subprocess.run(script, capture_output=True, text=True, check=True).stdout)
    assert row["launches"] > row["launches.compiled"] > 1_000
    assert row["gigabytes"] > row["gigabytes.compiled"] > 0
    for card in ("h200", "4090"):
        for way in ("eager", "compiled"):
            assert row[f"{card}.{way}.ratio"] > 1, "the floor is below what is counted"
    assert row["h200.eager"] < row["4090.eager"]


@pytest.mark.slow
def test_the_ten_minutes_on_a_card_run_small_on_a_cpu(tmp_path):
    command = [str(BENCH.parent / "gpu" / "card.sh"), "--small", "--device", "cpu", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert not [row for row in rows if "error" in row], rows
    stages = ["imports", "tests", "steps", "profile", "optimizers", "gradients", "full"]
    assert [row["stage"] for row in rows if row.get("what") == "end"] == stages
    steps = [row for row in rows if row["stage"] == "steps" and "case" in row]
    assert len(steps) == 9
    assert all(row["seconds"] > 0 for row in steps)
    assert [row["notches"] for row in rows if row.get("what") == "out of memory"] == [1]
    errors = {row["what"]: row["relative_error"] for row in rows if "relative_error" in row}
    assert errors["bf16 in float32"] == 0
    assert 0 < errors["bf16 in bfloat16"] < 0.1
    assert (tmp_path / "table.md").read_text().count("\n") == len(rows) + 2
