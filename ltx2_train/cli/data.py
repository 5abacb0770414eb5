"""`ltx2-train data`: look at a dataset, and make one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import CAPTION_FRAMES, GOALS, SPEAKER
from ..errors import ConfigError
from .console import ConsoleEvents
from .output import show_report


def add_data_commands(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the group `data` to the parser; `add` makes one subcommand."""
    about = "Check, preview, cut and caption the media of a dataset."
    data = commands.add_parser("data", help=about, description=about)
    data.set_defaults(group=data)
    tools = data.add_subparsers(title="commands", metavar="COMMAND")

    check = add("check", _check, "Find what is wrong with a dataset before it costs hours; 1 if something is.", tools)
    check.add_argument("file", type=Path, metavar="FILE.toml", help="dataset file")
    check.add_argument("--goal", choices=GOALS, help="what is trained: decides how many files are enough")
    check.add_argument("--run", type=Path, metavar="RUN.toml", help="also look whether this run could train on it")
    check.add_argument("--json", action="store_true", help="print JSON")

    show = add("preview", _preview, "Draw what the trainer sees: contact sheets, or one sample as a clip.", tools)
    show.add_argument("file", type=Path, metavar="FILE.toml", help="dataset file")
    show.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    show.add_argument("--item", metavar="NAME", help="one file of the dataset, or one of its caches")
    show.add_argument("--run", type=Path, metavar="RUN.toml", help="with --item: also decode its caches with this base")

    cut = add("cut", _cut, "Cut long videos and recordings into clips; the sources stay as they are.", tools)
    cut.add_argument("source", type=Path, metavar="FILE_OR_DIR", help="a video or a recording, or a folder of them")
    cut.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the clips; run again to go on")
    how = cut.add_mutually_exclusive_group(required=True)
    how.add_argument("--scenes", action="store_true", help="cut where the scene changes (needs PySceneDetect)")
    how.add_argument("--seconds", type=float, metavar="S", help="cut into pieces of S seconds")
    how.add_argument("--speech", action="store_true", help="cut recordings at pauses of speech, into wav files")
    cut.add_argument(
        "--min",
        type=float,
        metavar="S",
        help="leave out what is shorter (default: 1 second, or that of --seconds or --max if less; with --speech: 2)",
    )
    cut.add_argument(
        "--max", type=float, metavar="S", help="with --scenes: cut longer scenes into equal parts; with --speech: 12"
    )

    write = add("caption", _caption, "Write captions with local models; none that is there is changed.", tools)
    write.add_argument("folder", type=Path, metavar="DIR", help="folder of images, clips or sounds")
    write.add_argument("--model", type=Path, metavar="FOLDER", help="vision-language model: says what is seen")
    write.add_argument("--whisper", type=Path, metavar="FOLDER", help="Whisper model: says what is said")
    write.add_argument("--prompt", metavar="TEXT", help="what the model is asked (default: a paragraph for training)")
    write.add_argument("--prefix", default="", metavar="TEXT", help="put in front of each caption")
    write.add_argument(
        "--speaker", default=SPEAKER, metavar="NAME", help=f"who says what is heard (default: {SPEAKER})"
    )
    write.add_argument("--overwrite", action="store_true", help="write anew what is there")
    write.add_argument(
        "--frames",
        type=int,
        default=CAPTION_FRAMES,
        metavar="N",
        help=f"frames shown of each clip (default: {CAPTION_FRAMES})",
    )
    write.add_argument("--device", default="auto", metavar="NAME", help="where the models run: auto, cpu, cuda ...")


def _check(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import RunProblems, check_dataset, load_run

    problems = None if args.run is None else RunProblems(load_run(args.run), args.file)
    report = check_dataset(args.file, args.goal, events, problems)
    events.finish()
    show_report(report, args.json)
    return 0 if report.ok else 1


def _preview(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import load_run, preview_dataset

    run = load_run(args.run) if args.run else None
    made = preview_dataset(args.file, args.out, args.item, run, events)
    events.finish()
    for path in made.files:
        print(path)


def _cut(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import cut_recordings, cut_videos

    if args.speech:
        report = cut_recordings(args.source, args.out, shortest=args.min, longest=args.max, events=events)
        events.finish()
        print(report.text())
        return 1 if report.failed else 0
    report = cut_videos(args.source, args.out, seconds=args.seconds, shortest=args.min, longest=args.max, events=events)
    events.finish()
    print(report.text())
    return 1 if report.failed else 0


def _caption(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import caption_media

    for option, given, model in (
        ("--prompt", args.prompt is not None, "model"),
        ("--frames", args.frames != CAPTION_FRAMES, "model"),
        ("--speaker", args.speaker != SPEAKER, "whisper"),
    ):
        if given and getattr(args, model) is None:
            raise ConfigError(f"{option} counts with --{model} alone, which is not given. Add that, or leave this out.")
    report = caption_media(
        args.folder,
        args.model,
        whisper=args.whisper,
        prompt=args.prompt,
        prefix=args.prefix,
        speaker=args.speaker,
        overwrite=args.overwrite,
        frames=args.frames,
        device=args.device,
        events=events,
    )
    events.finish()
    print(report.text())
    return 1 if report.failed else 0
