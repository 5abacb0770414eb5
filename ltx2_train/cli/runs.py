"""`ltx2-train runs` and `ltx2-train ask`: what runs there are, and what is asked of one that is being trained."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from ..errors import ConfigError
from .console import ConsoleEvents


def add_runs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both commands to the parser; `add` makes one."""
    runs = add("runs", _runs, "List the runs of a folder: how far each got, and its LoRAs.")
    runs.add_argument("folder", type=Path, metavar="RUNS", help="folder of runs, as run.folder of a run file")
    runs.add_argument("--json", action="store_true", help="print JSON")
    ask = add("ask", _ask, "Ask a run that is being trained, here or in ComfyUI, for something.")
    ask.add_argument("folder", type=Path, metavar="RUN", help="folder of the run")
    ask.add_argument("what", metavar="WHAT", help="save, sample; pause and go (on); stop saves and ends")


def _runs(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import list_runs

    if not args.folder.is_dir():
        raise ConfigError(f"{args.folder} is no folder. Name the folder of the runs, as run.folder of a run file.")
    runs = list_runs(args.folder)
    if args.json:
        print(json.dumps([facts.table() for facts in runs], indent=2))
        return 0
    for facts in runs:
        of = f" of {facts.total}" if facts.total else ""
        newest = f"  {facts.loras[-1][1]}" if facts.loras else ""
        print(f"{facts.name:24} {facts.status:12} step {facts.step}{of}{newest}")
    if not runs:
        print(f"There are no runs in {args.folder}.")
    return 0


def _ask(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import ask_run

    print(ask_run(args.folder, args.what))
    return 0
