"""`ltx2-train lora`: look at LoRA files, take them apart, put them together, and write them otherwise."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import FILE_DTYPES, KEY_FORMATS
from .console import ConsoleEvents
from .lora_mean import add_ema
from .output import show_report

_LONG_DTYPES = ("bfloat16", "float16", "float32")  # those of FILE_DTYPES, as PyTorch calls them


def add_lora(commands: Any, add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the group `lora` to the parser; `add` makes one subcommand."""
    about = "Look at LoRA files, take them apart, merge, convert and resize them."
    group = commands.add_parser("lora", help=about, description=about)
    group.set_defaults(group=group)
    tools = group.add_subparsers(title="commands", metavar="COMMAND")
    _add_inspect(add, tools)
    _add_branches(add, tools)
    add_ema(add, tools)
    _add_merge(add, tools)
    _add_convert(add, tools)
    _add_resize(add, tools)
    _add_extract(add, tools)
    _add_bake(add, tools)


def _add_inspect(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    look = add(
        "inspect",
        _inspect,
        "Print what a LoRA holds: kind, rank, layers, norms per branch and block, metadata.",
        tools,
    )
    look.add_argument("file", type=Path, metavar="FILE")
    look.add_argument("--json", action="store_true", help="print JSON")


def _add_branches(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    for name, what in (
        ("keep", "Write a LoRA with only some branches of another: --branch audio keeps the voice."),
        ("drop", "Write a LoRA without some branches of another: --branch video takes the looks away."),
    ):
        part = add(name, _branches, what, tools)
        part.set_defaults(action=name)
        part.add_argument("file", type=Path, metavar="FILE")
        part.add_argument(
            "--branch",
            action="append",
            required=True,
            metavar="NAME",
            help="video, audio, a2v (video that listens), v2a (sound that looks), cross (both); may be repeated",
        )
        part.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")
        part.add_argument("--replace", action="store_true", help="write over a file that is there")


def _add_merge(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    join = add("merge", _merge, "Write several LoRAs as one, each times its multiplier.", tools)
    join.add_argument("files", type=Path, nargs="+", metavar="FILE", help="LoRAs in any spelling, of any ranks")
    join.add_argument(
        "--multiplier", type=float, nargs="+", default=[1.0], metavar="X", help="one for all, or one a file in order"
    )
    join.add_argument(
        "--method",
        default="concat",
        metavar="NAME",
        help="concat = the exact sum, ranks add up (the default); orthogonal = two LoRAs, each without the main "
        "directions of the other",
    )
    join.add_argument(
        "--k-fraction",
        type=float,
        default=0.5,
        metavar="X",
        help="orthogonal: share of the directions of one LoRA that is taken out of the other (default: 0.5)",
    )
    join.add_argument(
        "--rank-mode", default="sum", metavar="NAME", help="orthogonal: rank of a layer: sum (the default), max or min"
    )
    join.add_argument("--emit-alpha", action="store_true", help="write .alpha keys too, each the rank of its layer")
    _add_output(join, dtype="auto", device=True)


def _add_convert(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    turn = add("convert", _convert, "Write a LoRA in the keys of another program.", tools)
    turn.add_argument("file", type=Path, metavar="FILE", help="LoRA in any spelling")
    turn.add_argument("--to", required=True, choices=KEY_FORMATS, help="whose keys")
    _add_output(turn, dtype="auto")


def _add_resize(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    size = add("resize", _resize, "Write a LoRA at a lower rank and say how much is lost.", tools)
    size.add_argument("file", type=Path, metavar="FILE")
    size.add_argument("--rank", type=int, metavar="N", help="highest rank of a layer")
    size.add_argument(
        "--max-error", type=float, metavar="X", help="lowest rank of each layer that loses at most this share"
    )
    _add_output(size, dtype="auto", device=True)


def _add_extract(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    take = add("extract", _extract, "Write what a full finetune changed as a LoRA.", tools)
    take.add_argument("checkpoint", type=Path, metavar="FINETUNE", help="finetuned checkpoint, not quantized")
    take.add_argument("--base", type=Path, required=True, metavar="FILE", help="checkpoint it began with")
    take.add_argument("--rank", type=int, default=32, metavar="N", help="rank of each layer (default: 32)")
    _add_output(take, dtype="bf16", device=True)


def _add_bake(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    burn = add("bake", _bake, "Write a checkpoint with LoRAs merged into its weights.", tools)
    burn.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="bf16 checkpoint; it is kept")
    burn.add_argument("files", type=Path, nargs="+", metavar="LORA")
    burn.add_argument(
        "--strength", type=float, nargs="+", default=[1.0], metavar="X", help="one for all, or one a LoRA in order"
    )
    _add_output(burn, device=True)


def _add_output(sub: argparse.ArgumentParser, dtype: str = "", device: bool = False) -> None:
    sub.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write (.safetensors)")
    if dtype:
        sub.add_argument(
            "--dtype",
            choices=(*FILE_DTYPES, *_LONG_DTYPES),
            default=dtype,
            help=f"numbers of the file (default: {dtype})",
        )
    if device:
        sub.add_argument("--device", default="auto", metavar="NAME", help="where to work: auto, cpu, cuda ...")
    sub.add_argument("--replace", action="store_true", help="write over a file that is there")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _inspect(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import inspect_lora

    show_report(inspect_lora(args.file), args.json)


def _branches(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import drop_branches, keep_branches

    rewrite = {"keep": keep_branches, "drop": drop_branches}[args.action]
    print(rewrite(args.file, args.branch, args.out, args.replace).text())


def _merge(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import merge_loras

    report = merge_loras(
        args.files,
        args.out,
        args.multiplier,
        args.method,
        args.k_fraction,
        args.rank_mode,
        args.dtype,
        args.emit_alpha,
        args.replace,
        args.device,
        events,
    )
    events.finish()
    show_report(report, args.json)


def _convert(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import convert_lora

    made = convert_lora(args.file, args.to, args.out, args.dtype, args.replace, events)
    events.finish()
    show_report(made, args.json)


def _resize(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import resize_lora

    made = resize_lora(args.file, args.out, args.rank, args.max_error, args.dtype, args.replace, args.device, events)
    events.finish()
    show_report(made, args.json)


def _extract(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import extract_lora

    made = extract_lora(args.checkpoint, args.base, args.out, args.rank, args.dtype, args.replace, args.device, events)
    events.finish()
    show_report(made, args.json)


def _bake(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import bake_loras

    made = bake_loras(args.checkpoint, args.files, args.out, args.strength, args.replace, args.device, events)
    events.finish()
    show_report(made, args.json)
