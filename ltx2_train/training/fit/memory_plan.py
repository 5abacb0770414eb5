"""A plan: how the base is stored, which blocks wait in RAM, what is recomputed; with what was predicted and why.

It is kept in the run folder as plan.json, so that a run that goes on stores its base as before. When memory runs out
in a run the plan gives a leaner one, in this order, each once:

    keep no text keys and values; no norms of recomputed blocks; recompute more blocks; inputs of blocks to RAM; swap
    more blocks, halving those that stay; all but one; smaller pieces of the feed-forward

The format of the base is never changed: the LoRA was trained on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...errors import RunError
from ...files import parse_json, write_json
from ...offload.blocks import slot_count, spread
from ...offload.settings import MemorySettings
from ...quant.settings import QuantSettings

PLAN_FILE = "plan.json"
VERSION = 1
CHUNKS = (1024, 256)  # tokens, after what the device chooses
KEEP_FEW = 8  # below so many blocks that are kept, or stay, all of them are given up at once


@dataclass(frozen=True)
class Choice:
    """The settings that a plan decides on. `format` "none": as model.precision says; "kept": as the file stores it."""

    format: str
    blocks_to_swap: int = 0
    recompute_blocks: int = 0
    offload_activations: bool = False
    pinned: bool = False
    swap_from: str = "ram"
    swap_ahead: int = 1
    keep_text_kv: bool = False
    ff_chunk: int = 0
    lean: bool = False  # recomputed blocks make their norms once more instead of keeping them for their gradient
    pinned_gb: float | None = None  # of the swapped blocks, where not all of them may be locked
    shards: int = 1  # cards that the blocks but the last are shared out over

    def streamed(self, total: int) -> list[int]:
        """Which blocks are swapped."""
        return spread(total, self.blocks_to_swap)

    @property
    def slots(self) -> int:
        """Swapped blocks that are on the device at a time."""
        return slot_count(self.blocks_to_swap, self.swap_ahead)

    def recomputed(self, total: int) -> frozenset[int]:
        """Which blocks are recomputed: those that are swapped, since they must be, and the first of the others.

        Late blocks are kept, because backward lets go of them first.
        """
        chosen = set(self.streamed(total))
        for number in range(total):
            if len(chosen) >= self.recompute_blocks:
                break
            chosen.add(number)
        return frozenset(chosen)

    def describe(self, total: int) -> str:
        """ "int8_rotated, 20 of 48 blocks swapped, all recomputed"."""
        words = [{"none": "not quantized", "kept": "quantized as the file is"}.get(self.format, self.format)]
        if self.blocks_to_swap:
            locked = "" if not self.pinned else "pinned " if self.pinned_gb is None else "partly pinned "
            where = "read from the file" if self.swap_from == "file" else f"in {locked}RAM"
            words.append(f"{self.blocks_to_swap} of {total} blocks {where}")
        elif self.shards > 1:
            words.append(f"blocks shared out over {self.shards} cards")
        else:
            words.append("all blocks on the device")
        if self.recompute_blocks >= total:
            words.append("all recomputed")
        else:
            words.append(f"{self.recompute_blocks} recomputed" if self.recompute_blocks else "none recomputed")
        if self.offload_activations:
            words.append("inputs of blocks in RAM")
        if self.ff_chunk:
            words.append(f"feed-forward by {self.ff_chunk} tokens")
        return ", ".join(words)


@dataclass(frozen=True)
class Prediction:
    """Bytes on the device, in RAM and on disk, and seconds of a step. `parts` adds up to `vram`. `validation` is the
    seconds of one measurement of the clips held out."""

    vram: float
    ram: float
    disk: float
    seconds: float
    parts: dict[str, float] = field(default_factory=dict)
    validation: float = 0.0


@dataclass(frozen=True)
class MemoryPlan:
    """The choice for a model of `total` blocks, what is predicted, and the sentences that say why.

    `limit` and `ram_limit` are what the device and the RAM may hold. `fixed` are settings that the user gave and that
    stay. `optimizer` is the one that is reckoned with, never `auto`. `predict` works a prediction out anew; a plan that
    was read from a file has none.
    """

    choice: Choice
    total: int
    prediction: Prediction
    limit: float = 0.0
    ram_limit: float = 0.0
    device_type: str = "cuda"
    reasons: tuple[str, ...] = ()
    rejected: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    notches: int = 0
    optimizer: str = ""
    predict: Callable[[Choice], Prediction] | None = field(default=None, repr=False, compare=False)

    @property
    def format(self) -> str:
        return self.choice.format

    @property
    def blocks_to_swap(self) -> int:
        return self.choice.blocks_to_swap

    @property
    def recompute_blocks(self) -> int:
        return self.choice.recompute_blocks

    @property
    def offload_activations(self) -> bool:
        return self.choice.offload_activations

    @property
    def pinned(self) -> bool:
        return self.choice.pinned

    @property
    def swap_from(self) -> str:
        return self.choice.swap_from

    @property
    def keep_text_kv(self) -> bool:
        return self.choice.keep_text_kv

    def streamed(self) -> list[int]:
        """Numbers of the blocks that are swapped, for the streamer."""
        return self.choice.streamed(self.total)

    def recomputed(self) -> frozenset[int]:
        """Numbers of the blocks that are recomputed, for `model.set_recompute`."""
        return self.choice.recomputed(self.total)

    def notch_down(self) -> MemoryPlan | None:
        """The next leaner plan with the same base; None where nothing is left to give up."""
        for changed in _leaner(self.choice, self.total, self.device_type):
            if not (set(changed) & set(self.fixed)):
                choice = replace(self.choice, **changed)
                prediction = self.prediction if self.predict is None else self.predict(choice)
                if self.predict is not None and prediction.ram > self.ram_limit and "swap_from" not in self.fixed:
                    choice = replace(choice, swap_from="file", pinned=False)
                    prediction = self.predict(choice)
                return replace(self, choice=choice, prediction=prediction, notches=self.notches + 1)
        return None

    def difference(self, other: MemoryPlan) -> str:
        """What changes from this plan to `other`, in words."""
        words = {
            "keep_text_kv": "text keys and values are not kept",
            "lean": "norms of recomputed blocks are not kept",
            "recompute_blocks": f"{other.recompute_blocks} instead of {self.recompute_blocks} blocks are recomputed",
            "offload_activations": "the inputs of blocks wait in RAM",
            "blocks_to_swap": f"{other.blocks_to_swap} instead of {self.blocks_to_swap} of {self.total} blocks are "
            "swapped",
            "ff_chunk": f"feed-forwards take {other.choice.ff_chunk} tokens at a time",
        }
        changed = [name for name in words if getattr(self.choice, name) != getattr(other.choice, name)]
        return "; ".join(words[name] for name in changed) or "nothing changes"

    def memory_settings(self, given: MemorySettings) -> MemorySettings:
        """`given` with every field that a plan decides on filled in; `fit` is custom then, so nothing is planned."""
        return given.model_copy(
            update={
                "fit": "custom",
                "gradient_checkpointing": self.recompute_blocks > 0,
                "recompute_blocks": self.recompute_blocks,
                "blocks_to_swap": self.blocks_to_swap,
                "swap_ahead": self.choice.swap_ahead,
                "swap_from": self.swap_from,
                "pinned": self.pinned,
                "pinned_gb": self.choice.pinned_gb,
                "offload_activations": self.offload_activations,
                "ff_chunk": self.choice.ff_chunk,
            }
        )

    def quant_settings(self, given: QuantSettings) -> QuantSettings:
        """`given` with the format of the plan; a file that is quantized already is left to the loader."""
        return given if self.format == "kept" else given.model_copy(update={"format": self.format})

    def describe(self) -> str:
        """A sentence for the user on what was chosen."""
        p = self.prediction
        text = f"Plan: {self.choice.describe(self.total)}; about {p.vram / 1e9:.1f} GB on the device"
        return f"{text}, {p.ram / 1e9:.0f} GB of RAM, {seconds(p.seconds)} a step. {' '.join(self.reasons)}".strip()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        value = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("predict", "choice", "prediction")
        }
        value |= {"choice": asdict(self.choice), "prediction": asdict(self.prediction)}
        return {"version": VERSION, **value}

    def save(self, folder: Path) -> Path:
        """Write plan.json into the run folder."""
        path = folder / PLAN_FILE
        write_json(path, self.to_json())
        return path

    @classmethod
    def load(cls, folder: Path) -> MemoryPlan | None:
        """The plan of the run folder, None where there is none. Raises RunError where it cannot be read."""
        path = folder / PLAN_FILE
        try:
            value = parse_json(path.read_text(encoding="utf-8"))
            if value.pop("version") != VERSION:
                raise RunError(
                    f"{path} was written by another version of this program. Delete it to plan anew, or choose "
                    "another run.name."
                )
            for name in ("reasons", "rejected", "fixed"):
                value[name] = tuple(value[name])
            value["choice"], value["prediction"] = Choice(**value["choice"]), Prediction(**value["prediction"])
            return cls(**value)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise RunError(f"{path} cannot be read ({error}). Delete it to plan anew.") from None


def _leaner(choice: Choice, total: int, device_type: str) -> list[dict[str, Any]]:
    """Changes that save memory, the cheapest first."""
    notches: list[dict[str, Any]] = []
    if choice.keep_text_kv:
        notches.append({"keep_text_kv": False})
    if not choice.lean and choice.recompute_blocks:
        notches.append({"lean": True})
    not_recomputed = total - choice.recompute_blocks
    if not_recomputed > 0:
        notches.append({"recompute_blocks": total - (not_recomputed // 2 if not_recomputed >= KEEP_FEW else 0)})
    if device_type == "cuda":
        if not choice.offload_activations and choice.recompute_blocks:
            notches.append({"offload_activations": True})
        stay = total - choice.blocks_to_swap
        if stay > 1:
            swap = total - (stay // 2 if stay >= KEEP_FEW else 1)
            notches.append({"blocks_to_swap": swap, "recompute_blocks": max(swap, choice.recompute_blocks)})
    chunks = [size for size in CHUNKS if choice.ff_chunk == 0 or size < choice.ff_chunk]
    if chunks:
        notches.append({"ff_chunk": chunks[0]})
    return notches


def seconds(value: float) -> str:
    """ "0.52 s" or "9.3 s" or "2 min"."""
    if value >= 120:
        return f"{value / 60:.0f} min"
    return f"{value:.2f} s" if value < 2 else f"{value:.1f} s"
