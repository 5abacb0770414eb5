"""`ltx2-train cache ...`: build, status, clean, import."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from .console import ConsoleEvents
from .output import show_report


def add_commands(commands, add: Callable[..., argparse.ArgumentParser], add_run_file: Callable) -> None:
    """Add `cache` and what is below it to the parser; `add` and `add_run_file` are those of the whole program."""
    about = "Encode a dataset ahead of training, and look after what was encoded."
    cache = commands.add_parser("cache", help=about, description=about)
    cache.set_defaults(group=cache)
    actions = cache.add_subparsers(title="commands", metavar="COMMAND")
    add_run_file(add("build", _build, "Encode the clips and captions of a run; what is fresh is kept.", actions))
    status = add("status", _status, "Say what is cached, missing, stale and why, or of no use any more.", actions)
    add_run_file(status)
    status.add_argument("--json", action="store_true", help="print JSON")
    status.add_argument(
        "--verify", action="store_true", help="read all of each file and of its medium, not headers alone"
    )
    clean = add("clean", _clean, "List the caches that nothing uses any more; --yes deletes them.", actions)
    add_run_file(clean)
    clean.add_argument("--stale", action="store_true", help="those that no longer fit as well")
    clean.add_argument("--yes", action="store_true", help="delete what is listed")
    take = add("import", _import, "Take over a folder that the official trainer has encoded.", actions)
    take.add_argument("folder", type=Path, metavar="DIR", help="its preprocessed_data_root (latents, conditions, ...)")
    take.add_argument("--out", type=Path, metavar="DIR", help="cache folder to write (default: ltx2_caches in it)")


def _build(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import build_caches, load_run

    report = build_caches(load_run(args.run, args.set), events)
    events.finish()
    print(report.summary())


def _status(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import load_run, status_of_caches

    status = status_of_caches(load_run(args.run, args.set), events, args.verify)
    events.finish()
    show_report(status, args.json)
    return 0 if status.complete else 1


def _clean(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import load_run, remove_caches, status_of_caches

    status = status_of_caches(load_run(args.run, args.set), events)
    events.finish()
    rows = status.of("orphaned") + (status.of("stale") if args.stale else [])
    for row in rows:
        print(f"{row.bytes / 1e6:9.1f} MB  {row.path}  ({row.why})")
    if not rows:
        print("Nothing to clean.")
    elif args.yes:
        print(f"{len(rows)} files deleted, {remove_caches(rows) / 1e6:.1f} MB free again.")
    else:
        total = sum(row.bytes for row in rows) / 1e6
        print(f"{len(rows)} files, {total:.1f} MB. Nothing was deleted; add --yes to delete them.")


def _import(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import import_official

    report = import_official(args.folder, args.out, events)
    events.finish()
    print(report.text())
