"""`ltx2-train import`: a file of another program as run.toml and dataset.toml."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import ConsoleEvents


def add_import(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser by `add(name, function, help)`."""
    sub = add(
        "import",
        run_import,
        "Write run.toml and dataset.toml for a file of another program: a TOML or a saved command of the community "
        "trainer, the official trainer's YAML, SimpleTuner's JSON, a dataset file, or a folder of media.",
    )
    sub.add_argument("file", type=Path, metavar="FILE", help="file or folder to take over; it is kept as it is")
    sub.add_argument("--out", type=Path, metavar="DIR", help="folder for both files (default: NAME_ltx2 beside FILE)")
    sub.add_argument("--replace", action="store_true", help="write over files that are there")


def _refused(run: Path) -> list[str]:
    """What of the written files a run would refuse, as the settings of both show."""
    from .. import RunProblems, TrainerError, load_run

    config = load_run(run)
    if config.slider.wanted:  # which asks for other data
        return []
    try:
        RunProblems(config, run.with_name("dataset.toml"))
    except TrainerError as error:
        return [line.strip() for line in str(error).split("\n")]
    return []


def run_import(args: argparse.Namespace, events: ConsoleEvents) -> int:
    """Write the files and say what became of each setting; 1 where something has to be put right by hand."""
    from .. import import_settings

    imported = import_settings(args.file)
    paths = imported.write(args.out, args.replace)
    print(imported.summary())
    print("Written: " + ", ".join(str(path) for path in paths))
    run = imported.run_path(args.out)
    missing = imported.missing(run)
    if imported.data is not None and not imported.problems:
        missing += _refused(run)
    for line in missing:
        print(f"  {line}")
    if missing or imported.problems:
        data = f" and {run.with_name('dataset.toml')}" if any("datasets[" in line for line in missing) else ""
        print(f"Put that right in {run}{data}, then: {imported.commands(run)}")
        return 1
    if not imported.complete:
        data = run.with_name("dataset.toml") if imported.left_out else run
        print(f"That is left out of {data}. Where the run can do without it: {imported.commands(run)}")
        return 1
    print(f"Next: {imported.commands(run)}")
    return 0
