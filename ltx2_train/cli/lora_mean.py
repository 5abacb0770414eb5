"""`ltx2-train lora ema`: the mean of LoRAs that a run has saved."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .console import ConsoleEvents


def add_ema(add: Callable[..., argparse.ArgumentParser], tools: Any) -> None:
    """Add the command to the group `lora`."""
    command = add("ema", _ema, "Write the mean of LoRAs that one run saved, weighted towards the last.", tools)
    command.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="LoRAs of one run, or the folder of the run for all of them"
    )
    command.add_argument(
        "--decay",
        type=float,
        default=0.999,
        metavar="D",
        help="what each step further back counts; 0.999 halves in 700 steps (default: %(default)s)",
    )
    command.add_argument("--rank", type=int, metavar="R", help="rank of the new file (default: that of the others)")
    command.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write")


def _ema(args: argparse.Namespace, events: ConsoleEvents) -> None:
    from .. import list_loras, mean_of_loras

    files: list[Path] = []
    for given in args.files:
        if not given.is_dir():
            files.append(given)
            continue
        run = given.parent if given.name == "lora" else given
        found = [path for _, path in list_loras(run / "lora", run.absolute().name)]
        if not found:
            raise ConfigError(
                f"{given} is no folder of a run: no LoRA named {run.name}_STEP.safetensors is in its lora."
            )
        files += found
    print(mean_of_loras(files, args.out, args.decay, args.rank).text())
