"""Which of the LoRAs that a run has saved are meant: the newest, some spread over the run, by step or by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from .lora_files import list_loras, lora_name


def pick_loras(
    folder: Path, *, newest: int = 0, spread: int = 0, steps: Sequence[int] = (), numbers: Sequence[int] = ()
) -> dict[str, Path]:
    """The chosen LoRAs of the run in `folder` by their labels, such as "fox step 250", oldest first.

    `newest`: so many of the last ones. `spread`: so many, evenly over the run, the first and the last among them.
    `steps`: those after so many steps. `numbers`: 1 is the first save, -1 the last. What is chosen twice is there once;
    where nothing is asked for, all are. Raises ConfigError where the run has no LoRA, or not the one that is named.
    """
    name = folder.name
    saved = dict(list_loras(folder / "lora", name))  # of two after one step, the later
    if not saved:
        plain = folder / "lora" / lora_name(name)
        if any((folder / "checkpoints").glob("*.safetensors")):
            raise ConfigError(
                f"The run {name} trains the weights themselves (train.what = full): it has checkpoints, in "
                f"{folder / 'checkpoints'}, and no LoRA. Load one of them as the base, or choose another run."
            )
        if not plain.is_file():
            raise ConfigError(f"The run {name} has no LoRA yet. Train it to its first save, or choose another run.")
        return {name: plain}
    known = list(saved)
    chosen: set[int] = set()
    if newest:
        chosen |= set(known[-newest:])
    if spread:
        last = len(known) - 1
        chosen |= {known[round(at * last / max(1, spread - 1))] for at in range(spread)} if spread > 1 else {known[-1]}
    for step in steps:
        if step not in saved:
            raise ConfigError(f"The run {name} has no LoRA of step {step}. It has those of {_listed(known)}.")
        chosen.add(step)
    for number in numbers:
        if not 1 <= abs(number) <= len(known):
            raise ConfigError(
                f"The run {name} has no LoRA number {number}: it has {len(known)}. Count them from 1, or from -1, the "
                "last, backwards."
            )
        chosen.add(known[number - 1 if number > 0 else number])
    return {f"{name} step {step}": saved[step] for step in known if step in chosen or not chosen}


def _listed(steps: Sequence[int]) -> str:
    shown = [str(step) for step in steps]
    if len(shown) > 8:
        shown = [*shown[:4], "...", *shown[-3:]]
    return ", ".join(shown)
