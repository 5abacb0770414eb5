"""`ltx2-train report`: a run as one web page."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .console import ConsoleEvents


def add_report(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser by `add(name, function, help)`."""
    command = add("report", _report, "Write a run as one web page: curves, samples by step and prompt, settings.")
    command.add_argument("folder", type=Path, metavar="RUN_FOLDER", help="folder of a run, finished or not")
    command.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: report.html in the folder)")


def _report(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import write_report

    page = write_report(args.folder, args.out, events)
    events.finish()
    print(page)
