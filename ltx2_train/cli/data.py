"""`ltx2-train data`: look at a dataset, and make one."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .console import ConsoleEvents

GOALS = ("character", "style", "motion", "voice", "edit")


def add_data_commands(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the group `data` to the parser; `add` makes one subcommand."""
    about = "Check, preview, cut and caption the media of a dataset."
    data = commands.add_parser("data", help=about, description=about)
    data.set_defaults(group=data)
    tools = data.add_subparsers(title="commands", metavar="COMMAND")

    check = add("check", _check, "Find what is wrong with a dataset before it costs hours; 1 if something is.", tools)
    check.add_argument("file", type=Path, metavar="FILE.toml", help="dataset file")
    check.add_argument("--goal", choices=GOALS, help="what is trained: decides how many files are enough")
    check.add_argument("--json", action="store_true", help="print JSON")

    show = add("preview", _preview, "Draw what the trainer sees: contact sheets, or one sample as a clip.", tools)
    show.add_argument("file", type=Path, metavar="FILE.toml", help="dataset file")
    show.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    show.add_argument("--item", metavar="NAME", help="one file of the dataset, or one of its caches")
    show.add_argument("--run", type=Path, metavar="RUN.toml", help="with --item: also decode its caches with this base")


def _check(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from ..data.check import check_dataset

    report = check_dataset(args.file, args.goal, events)
    events.finish()
    print(json.dumps(report.to_json(), indent=1, ensure_ascii=False) if args.json else report.text())
    return 0 if report.ok else 1


def _preview(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from ..config import load_run
    from ..sampling.preview import preview_dataset

    run = load_run(args.run) if args.run else None
    made = preview_dataset(args.file, args.out, args.item, run, events)
    events.finish()
    for path in made.files:
        print(path)
