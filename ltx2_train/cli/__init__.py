"""The `ltx2-train` command: each subcommand is a thin call of a public function.

Exit codes: 0 done, 1 error, 2 wrong usage or settings, 130 stopped by the user with everything saved.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import MODES
from ..errors import ConfigError, Stopped, TrainerError, refused_words
from . import cache
from .compare import add_beside, add_compare
from .console import ConsoleEvents, duration
from .data import add_data_commands
from .imports import add_import
from .lora import add_lora
from .output import lasting_output, show_report
from .plan import add_plan
from .processes import process_number, run_in_processes
from .quantize import add_quantize
from .report import add_report
from .runs import add_runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    _set_allocator()
    with lasting_output() as out:
        code = _run(argv)
        out.flush()
        if out.lost is not None and code == 0:
            print(f"error: The output could not be written: {out.lost.strerror}.", file=sys.stderr)
            code = 1
    return code


def _set_allocator() -> None:
    """Let the memory of a card grow in place, which leaves no holes. Read when a card is first used; what the user set
    stands. Windows has no such memory, and inside ComfyUI it is ComfyUI that decides."""
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")  # that of torch 2.9 and later, that of all before
    if sys.platform == "linux" and not any(name in os.environ for name in names):
        try:
            major, minor = (int(part) for part in version("torch").split(".")[:2])
        except (PackageNotFoundError, ValueError):
            return
        os.environ[names[0] if (major, minor) >= (2, 9) else names[1]] = "expandable_segments:True"


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if not hasattr(args, "call"):
        (args.group if hasattr(args, "group") else parser).print_help(sys.stderr)
        return 2
    rank = process_number()
    who = f"process {rank}: " if rank else ""
    events = ConsoleEvents() if rank == 0 else ConsoleEvents(open(os.devnull, "w"))
    try:
        events.catch_interrupt()
    except ValueError:  # not in the main thread, where a test may be
        pass
    try:
        if getattr(args, "set", None):
            from .. import check_overrides

            check_overrides(args.set)
        return args.call(args, events) or 0
    except Stopped as stop:
        events.finish()
        if rank == 0:
            print(stop, file=sys.stderr)
        return 130
    except KeyboardInterrupt:
        events.finish()
        if rank == 0:
            print("Left at once. The next run goes on from the last saved state.", file=sys.stderr)
        return 130
    except TrainerError as error:
        events.finish()
        if args.debug:
            traceback.print_exc()
        print(f"{who}error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except Exception as error:
        events.finish()
        if args.debug:
            traceback.print_exc()
        if isinstance(error, OSError) and error.filename:
            print(f"{who}error: {refused_words(error)}", file=sys.stderr)
            return 1
        print(f"{who}error: {type(error).__name__}: {error}\nRun again with --debug for the details.", file=sys.stderr)
        return 1
    finally:
        events.finish()


class _Given(argparse.Action):
    """Keeps what an option is given. The values of one that takes several add up, however often it is named; one that
    takes a single value is refused where it is given two."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        named = vars(namespace).setdefault("named_options", set())
        before = getattr(namespace, self.dest)
        if option_string and self.dest in named:
            if self.nargs == "+":
                values = [*before, *values]
            elif values != before:
                parser.error(f"{option_string} is given twice, as {before} and as {values}. Give it once.")
        named.add(self.dest)
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Looks at every option of every command for what is given twice, or is empty."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.register("action", None, _Given)
        self.register("action", "store", _Given)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As usual. An empty text, such as a variable of the shell that is not set, is refused by its option: a path
        would be the folder at hand, and other options would be as if left out."""
        option = "An argument"
        for text in sys.argv[1:] if args is None else args:
            if text.startswith("--"):
                option, sign, value = text.partition("=")
                text = value if sign else text
            if option != "--prefix" and not text.strip():
                self.error(f"{option} is empty. Give it a value, or leave it out.")
        return super().parse_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ltx2-train",
        description="Train LoRAs for LTX-2, LTX-2.3, LTX-2.5 and LTX-Video.",
        epilog="Start with: ltx2-train demo --out demo",
    )
    common = _Parser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    def add(name: str, call: Callable, text: str, to=commands, **more) -> argparse.ArgumentParser:
        sub = to.add_parser(name, help=text, description=text, parents=[common], **more)
        sub.set_defaults(call=call)
        return sub

    def add_run_file(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("run", type=Path, metavar="RUN.toml", help="run file; `config --defaults` prints one")
        sub.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="SECTION.KEY=VALUE",
            help="override a setting, for example --set train.steps=500; may be repeated",
        )

    _add_demo(add)
    check = add("probe", _probe, "Say what a weight file is, and whether it can be trained on.")
    check.add_argument("file", type=Path, metavar="FILE")
    check.add_argument("--json", action="store_true", help="print JSON")
    add_import(add)
    add_quantize(add)
    add_plan(add)
    cache.add_commands(commands, add, add_run_file)
    train = add("train", _train, "Train the LoRA that a run file describes, or go on where it stopped.")
    add_run_file(train)
    train.add_argument(
        "--processes", type=int, metavar="N", help="train.processes: train with N processes, one a card (default: 1)"
    )
    add_runs(add)
    add_run_file(add("slider", _slider, "Train a slider from pairs of prompts, or from pairs of cached latents."))
    _add_sample(add, add_run_file)
    add_compare(add, add_run_file)
    add_lora(commands, add)
    add_report(add)
    add_data_commands(commands, add)
    _add_tiny(add)
    _add_config(add)
    return parser


def _add_demo(add: Callable[..., argparse.ArgumentParser]) -> None:
    demo = add("demo", _demo, "Train a tiny model on one file, from nothing to a LoRA and samples, in minutes.")
    demo.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for everything the demo leaves")
    demo.add_argument(
        "--mode",
        choices=MODES,
        default="video",
        help="what is trained: video (the default), av = video with its sound, audio = sound alone",
    )
    demo.add_argument(
        "--media", type=Path, metavar="FILE", help="a clip of yours, or a sound with --mode audio; drawn if not given"
    )
    demo.add_argument("--steps", type=int, metavar="N", help="training steps (default: 240)")


def _add_sample(add: Callable[..., argparse.ArgumentParser], add_run_file: Callable[..., None]) -> None:
    draw = add("sample", _sample, "Draw samples with a LoRA.")
    add_run_file(draw)
    draw.add_argument("--lora", type=Path, metavar="FILE", help="LoRA file; the base alone if not given")
    draw.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the samples")
    draw.add_argument("--prompt", action="append", metavar="TEXT", help="prompt with options (--w --h --f ...)")
    draw.add_argument(
        "--strength",
        type=float,
        action="append",
        metavar="X",
        help="strength of the LoRA (default: sample.strength); may be repeated",
    )
    add_beside(draw)


def _add_tiny(add: Callable[..., argparse.ArgumentParser]) -> None:
    small = add("tiny", _tiny, "Write a tiny checkpoint and text encoder in the real file formats.")
    small.add_argument("--version", default="2.3", metavar="VERSION", help="model version (default: 2.3)")
    small.add_argument("--out", type=Path, required=True, metavar="DIR")
    small.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")


def _add_config(add: Callable[..., argparse.ArgumentParser]) -> None:
    config = add("config", _config, "Print settings.")
    choice = config.add_mutually_exclusive_group(required=True)
    choice.add_argument("--defaults", action="store_true", help="the whole tree with help, as a TOML file")
    choice.add_argument("--run", type=Path, metavar="RUN.toml", help="the resolved settings of a run file")
    choice.add_argument(
        "--reference", action="store_true", help="every setting as a page of Markdown (docs/settings.md)"
    )
    choice.add_argument(
        "--recipe",
        metavar="NAME",
        help="a run file for a task beside a plain LoRA (IC-LoRA, image to video, voices ...) or for LTX-Video; `list` "
        "names them",
    )
    choice.add_argument("--names", action="store_true", help="what becomes of the names of other programs, as Markdown")


def _demo(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .demo import DEFAULT_STEPS, run_demo

    report = run_demo(
        args.out, events, media=args.media, steps=DEFAULT_STEPS if args.steps is None else args.steps, mode=args.mode
    )
    events.finish()
    print(report)


def _probe(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import probe_whole

    info = probe_whole(args.file)
    show_report(info, args.json)
    return 0 if info.trainable else 1


def _train(args: argparse.Namespace, events: ConsoleEvents) -> int:
    from .. import check_overrides, check_processes, load_run, started_processes, train

    overrides = [*args.set, *([] if args.processes is None else [f"train.processes={args.processes}"])]
    check_overrides(overrides)
    run = load_run(args.run, overrides)
    count = run.train.processes
    if count > 1 and started_processes() == 1:
        check_processes(run, count)
        settings = [part for override in overrides for part in ("--set", override)]
        return run_in_processes(["train", str(args.run), *settings, *(["--debug"] if args.debug else [])], count)
    result = train(run, events)
    events.finish()
    if process_number() == 0:
        print(result.summary)
    return 0


def _slider(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import load_run, train_slider

    result = train_slider(load_run(args.run, args.set), events)
    events.finish()
    print(result.summary)


def _sample(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import load_run, sample

    files = sample(
        load_run(args.run, args.set),
        args.lora,
        args.out,
        events,
        prompts=args.prompt,
        strengths=args.strength or (),
        beside=args.beside,
    )
    events.finish()
    for file in files:
        print(file.path)


def _tiny(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import make_tiny

    files = make_tiny(args.out, version=args.version, seed=args.seed, events=events)
    events.finish()
    print(f"checkpoint    {files.checkpoint}\ntext encoder  {files.text_encoder}\nits folder    {files.gemma_folder}")
    others = (("video VAE", files.video_vae), ("audio VAE", files.audio_vae), ("all in one", files.whole))
    for words, path in (*others, ("upsampler", files.upsampler)):
        if path is not None:
            print(f"{words:<12}  {path}")


def _config(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import describe_defaults, load_run, names_tables, recipe_list, recipe_text, settings_page

    if args.reference or args.names:
        print((settings_page() if args.reference else names_tables()).rstrip())
        return
    if args.recipe is not None:
        print((recipe_list() if args.recipe == "list" else recipe_text(args.recipe)).rstrip())
        return
    print((describe_defaults() if args.defaults else load_run(args.run).to_toml()).rstrip())


__all__ = ["ConsoleEvents", "duration", "main"]
