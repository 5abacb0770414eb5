"""ARCHITECTURE.md names what is there: its paths, its tests, and a row for each kind of thing that is added."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.split("## Where to add things")[1].splitlines()
    if line.startswith("| ") and not line.startswith("| what")
]
PATHS = sorted(
    set(re.findall(r"`((?:\w+/)+[\w.]*|\w+\.(?:py|md))`", TEXT))
    | set(re.findall(r"(?<![\w/`])((?:\w+/)+\w+\.py)(?![\w`])", TEXT))
)
TESTS = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", TEXT)


def test_each_kind_of_thing_has_a_row():
    assert [row[0] for row in TABLE] == [
        "optimizer", "kind of LoRA", "schedule", "loss term", "regularizer", "condition", "storage format",
        "dataset field", "cache kind", "sample option", "setting", "attention kernel", "node", "workflow", "metric",
    ]  # fmt: skip
    assert all(len(row) == 4 and all(row) for row in TABLE)
    assert all("`tests/" in row[3] for row in TABLE)


@pytest.mark.parametrize("path", PATHS)
def test_each_path_is_there(path):
    assert (ROOT / path).exists() or (ROOT / "ltx2_train" / path).exists()


@pytest.mark.parametrize(("path", "name"), TESTS)
def test_each_test_is_there(path, name):
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8")


def test_a_long_file_says_why_it_is():
    for path in [path for top in ("ltx2_train", "nodes", "tests") for path in (ROOT / top).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        assert lines <= 400 or re.search(r"\blong\b", text.split('"""')[1]), f"{path.name} has {lines} lines: split it"


def test_no_package_is_a_corridor():
    """None has more than 15 % of the core; the plan of memory is a package of its own."""
    lines: dict[str, int] = {}
    for path in (ROOT / "ltx2_train").rglob("*.py"):
        package = path.parent.relative_to(ROOT).as_posix()
        lines[package] = lines.get(package, 0) + path.read_text(encoding="utf-8").count("\n")
    largest = max(lines, key=lambda name: lines[name])
    assert lines[largest] < 0.15 * sum(lines.values()), largest


def test_there_is_much_to_check():
    assert len(PATHS) > 30
    assert len(TESTS) > 6
