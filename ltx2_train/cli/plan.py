"""`ltx2-train plan`: what each size of card gets, and what this machine would do, before anything is loaded."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .output import show

if TYPE_CHECKING:
    from ..config import RunConfig
    from .console import ConsoleEvents

FITS = ("auto", "custom", "80", "48", "32", "24", "16", "12", "8")


def add_plan(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to the parser by `add(name, function, help)`."""
    sub = add("plan", run_plan, "Predict VRAM, RAM, disk and seconds a step of a run, for each size of card.")
    sub.add_argument("run", type=Path, nargs="?", metavar="RUN.toml", help="run file; not needed with --published")
    sub.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a setting")
    sub.add_argument("--fit", choices=FITS, help="memory.fit: plan for a card of so many GB")
    sub.add_argument("--bucket", metavar="WxHxF", help="size of the clips, instead of the largest of the dataset")
    sub.add_argument("--batch", type=int, default=1, metavar="N", help="with --bucket: clips at a time (default: 1)")
    sub.add_argument("--published", choices=["2.0", "2.3"], help="plan for the published model; no file is needed")
    sub.add_argument("--mode", choices=["video", "av", "audio"], help="model.mode")
    sub.add_argument("--ram", type=float, metavar="GB", help="RAM to reckon with (default: what is free here)")
    sub.add_argument("--json", action="store_true", help="print JSON")


def run_plan(args: argparse.Namespace, events: ConsoleEvents) -> int:
    """Print the plan; 0 where the run fits, 1 where it does not."""
    from ..config import load_run
    from ..device import pick_device
    from ..training.fit import (
        Facts,
        Machine,
        MemoryPlan,
        Rates,
        available_ram,
        largest_workload,
        make_report,
        parse_bucket,
        this_machine,
    )

    if args.run is None and args.published is None:
        raise ConfigError("plan needs a run file, or --published 2.3 with --bucket 512x512x121.")
    if args.batch != 1 and args.bucket is None:
        raise ConfigError(
            f"--batch {args.batch} counts with --bucket alone; a run file's dataset has its own batch_size."
        )
    if args.batch < 1:
        raise ConfigError(f"--batch is {args.batch}; it is the number of clips at a time, at least 1.")
    overrides = [*args.set, *_overrides(args)]
    run = load_run(args.run, overrides) if args.run is not None else _without_file(overrides)
    if args.bucket is None and args.run is None:
        raise ConfigError("--published needs --bucket, for example --bucket 512x512x121.")
    mode = run.model.mode
    work = parse_bucket(args.bucket, mode, run, args.batch) if args.bucket else largest_workload(run, events)
    events.finish()
    stored = None
    if args.published:
        ram = 64.0 if args.ram is None else args.ram
        facts = Facts.published(args.published, run, work)
        here = Machine("none", "", 0.0, ram * 1e9, float("inf"), Rates(1e12, 1e11))
    else:
        device = pick_device(run.model.device)
        facts = Facts.read(run, work, device.type)
        folder = (run.run.folder or Path("runs")) / run.run.name
        here = this_machine(device, folder)
        if args.ram is not None:
            here = replace(here, ram=min(args.ram * 1e9, available_ram()))
        if run.run.if_exists == "continue":
            stored = MemoryPlan.load(folder)
    report = make_report(run, facts, here, stored=stored)
    show(report, args.json)
    return 0 if report.chosen.plan is not None else 1


def _overrides(args: argparse.Namespace) -> list[str]:
    given = []
    if args.fit is not None:
        given.append(f'memory.fit="{args.fit}"')
    if args.mode is not None:
        given.append(f'model.mode="{args.mode}"')
    return given


def _without_file(overrides: list[str]) -> RunConfig:
    """The defaults with `overrides`."""
    from ..config import load_run

    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "run.toml").write_text("", encoding="utf-8")
        return load_run(Path(folder) / "run.toml", overrides)
