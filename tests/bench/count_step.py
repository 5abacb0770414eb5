"""Launches and bytes of a LoRA training step at full width, counted where tensors have sizes only, and their cost.

It is long: the counter and the prices of what it counts, read side by side.

    python tests/bench/count_step.py                                              # the standard cases, as a table
    python tests/bench/count_step.py --case bf16/av/512x512x121 --json
    python tests/bench/count_step.py --case int8/av/512x512x121/keep

A case is FORMAT/MODE/WIDTHxHEIGHTxFRAMES and any of: keep (nothing is recomputed), given (the first frame is given
clean), lean (a recomputed block makes its norms a third time, as where memory is short), bN (N clips a batch). The real
model, LoRA (rank 32 on the attentions) and backward pass run on the meta device with two and with four of the 48
blocks; what a block adds is the difference, so all 48 follow from it.

    launches    operations that start a kernel: all but views and empty tensors; compiled passes count as one
    gigabytes   what operations read and write, products of matrices and attention apart
    waits       places in a step at which the host waits for the card (tests/gpu_pretended counts them in a real run)

Seconds are modelled, not measured. A card is its dense bf16 rate and its memory bandwidth:

    seconds = products / rate + attention / (rate / 2) + thin products + bytes / bandwidth

Thin products (an inner or outer size of at most 64: the LoRA) take what their bytes take, or half the rate. Attention
counts the scores once more in backward. The floor is the arithmetic of the base alone at the full rate, with one whole
forward pass more where the case recomputes. Not in it: the optimizer, the time between launches.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[1])]

from ltx2_train.config import make_run  # noqa: E402
from ltx2_train.lora.held import Held  # noqa: E402
from ltx2_train.lora.layer import LoRALinear  # noqa: E402
from ltx2_train.models.norms import meta_is  # noqa: E402
from ltx2_train.models.positions import audio_positions, video_positions  # noqa: E402
from ltx2_train.models.transformer import Modality, TransformerConfig  # noqa: E402
from ltx2_train.objective.audio import audio_steps  # noqa: E402
from ltx2_train.quant import FORMATS, QuantLinear  # noqa: E402
from ltx2_train.quant.formats import add_format  # noqa: E402
from ltx2_train.quant.mxfp8 import KeptMxfp8  # noqa: E402
from ltx2_train.quant.nvfp4 import KeptNvfp4  # noqa: E402
from ltx2_train.quant.tiles import tiled_size  # noqa: E402
from ltx2_train.shapes import AudioLatentShape, LatentShape, VideoShape  # noqa: E402
from ltx2_train.sizes import meta_model  # noqa: E402
from ltx2_train.training.fit.simulate import context_widths  # noqa: E402
from ltx2_train.training.fit.speed import flops  # noqa: E402
from ltx2_train.training.fit.work import TEXT_TOKENS, Workload  # noqa: E402
from ltx2_train.weights.published import published_config  # noqa: E402

LAYERS = 48
CARDS = {"h200": (790e12, 4.3e12), "4090": (165e12, 0.94e12)}  # FLOP a second, bytes a second
THIN = 64
ATTENTION_BACKWARD = 2.5
STANDARD = (
    "bf16/video/512x512x121",
    "bf16/video/512x512x121/given",
    "bf16/av/512x512x121",
    "bf16/av/512x512x121/given",
    "bf16/av/512x512x121/keep",
    "bf16/av/512x512x49",
    "bf16/video/512x512x1",
    "bf16/video/512x512x1/b8",
    "fp8/av/512x512x121",
    "int8/av/512x512x121",
    "nf4/av/512x512x121",
    "nvfp4/av/512x512x121",
    "mxfp8/av/512x512x121",
)

_aten = torch.ops.aten
_GEMM = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.mm.out: (0, 1),
    _aten.mm.dtype: (0, 1),
    _aten._int_mm.default: (0, 1),
    _aten._scaled_mm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.addmm_.default: (1, 2),
    _aten.addmm.out: (1, 2),
    _aten.baddbmm.default: (1, 2),
}
_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu.default: (0, 1, 1.0),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward.default: (1, 2, ATTENTION_BACKWARD),
}
_FREE = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
    _aten.detach.default,
    _aten.alias.default,
    _aten._unsafe_view.default,
    _aten.lift_fresh.default,
}


@dataclass(frozen=True)
class Case:
    """One case, read from its name."""

    name: str
    format: str
    mode: str
    shape: LatentShape
    sound: int
    keep: bool = False
    given: bool = False
    lean: bool = False
    batch: int = 1

    @classmethod
    def read(cls, name: str) -> Case:
        form, mode, size, *options = name.split("/")
        width, height, frames = (int(part) for part in size.split("x"))
        case = cls(name, form, mode, VideoShape(frames, height, width).latent(), audio_steps(frames, 25.0))
        for option in options:
            if option in ("keep", "given", "lean"):
                case = replace(case, **{option: True})
            elif option.startswith("b") and option[1:].isdigit():
                case = replace(case, batch=int(option[1:]))
            else:
                raise SystemExit(f"{name}: {option} is not an option: keep, given, lean, bN")
        return case


@dataclass
class Tally:
    """Sums over a step; `products`, `attention` and `thin` in FLOP, `bytes` and `thin_bytes` in bytes."""

    launches: float = 0.0
    bytes: float = 0.0
    products: float = 0.0
    attention: float = 0.0
    thin: float = 0.0
    thin_bytes: float = 0.0
    places: dict[str, float] = field(default_factory=dict)

    def whole(self, more: Tally, few: int, many: int) -> Tally:
        """The tally of all blocks, from this one of `few` and `more` of `many`."""

        def at(a: float, b: float) -> float:
            return a + (b - a) / (many - few) * (LAYERS - few)

        names = ("launches", "bytes", "products", "attention", "thin", "thin_bytes")
        places = {k: at(self.places.get(k, 0.0), v) for k, v in more.places.items()}
        return Tally(*(at(getattr(self, name), getattr(more, name)) for name in names), places)

    def seconds(self, rate: float, bandwidth: float) -> float:
        """What a card of this rate and bandwidth needs."""
        thin = max(self.thin / (rate / 2), self.thin_bytes / bandwidth)
        return self.products / rate + self.attention / (rate / 2) + thin + self.bytes / bandwidth


class Counter(TorchDispatchMode):
    """While entered, adds up what is launched."""

    def __init__(self, by_place: bool = False) -> None:
        super().__init__()
        self.tally, self.muted, self.by_place = Tally(), False, by_place

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not self.muted and func not in _FREE and not getattr(func, "is_view", False):
            self._count(func, list(_tensors((args, kwargs))), list(_tensors(out)))
        return out

    def one(self, inputs: list[Tensor], outputs: list[Tensor], name: str = "compiled") -> None:
        """A single pass that reads and writes these once."""
        self.tally.launches += 1
        moved = sum(map(_size, inputs)) + sum(map(_size, outputs))
        self.tally.bytes += moved
        self._place(name, moved)

    def _count(self, func: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        tally = self.tally
        if func in _GEMM:
            first, second = (inputs[place] for place in _GEMM[func])
            work = 2.0 * first.numel() * second.shape[-1]
            tally.launches += 1
            if min(*first.shape[-2:], second.shape[-1]) <= THIN:
                tally.thin += work
                tally.thin_bytes += sum(map(_size, inputs)) + sum(map(_size, outputs))
            else:
                tally.products += work
        elif func in _ATTENTION:
            query, key, times = _ATTENTION[func]
            tally.launches += 1
            tally.attention += 4.0 * inputs[query].numel() * inputs[key].shape[-2] * times
        else:
            written = {id(tensor) for tensor in outputs}
            replaced = "copy_" in str(func) or "fill_" in str(func) or "zero_" in str(func) or ".out" in str(func)
            self.one([t for t in inputs if not (replaced and id(t) in written)], outputs, str(func))

    def _place(self, name: str, moved: float) -> None:
        if self.by_place:
            frame = sys._getframe(2)
            while frame is not None and "/ltx2_train/" not in frame.f_code.co_filename:
                frame = frame.f_back
            at = "-" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {name}"
            for key, value in ((f"bytes {at}", moved), (f"count {at}", 1.0)):
                self.tally.places[key] = self.tally.places.get(key, 0.0) + value


class OnePass:
    """Stands for compiled functions: each call is one launch that reads its inputs and writes its outputs."""

    failure = None

    def __init__(self, counter: Counter) -> None:
        self.counter = counter

    def __call__(self, body: Any, *arguments: Any) -> Any:
        self.counter.muted = True
        try:
            with torch.no_grad():
                out = body(*(a.detach() if isinstance(a, Tensor) else a for a in arguments))
        finally:
            self.counter.muted = False
        self.counter.one(list(_tensors(arguments)), list(_tensors(out)), body.__name__)
        return out


class _Nvfp4(KeptNvfp4):
    """What a file brings, of any size: nothing quantizes into it."""

    storage = replace(KeptNvfp4.storage, name="nvfp4", about="of files alone")

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: Any, compute_dtype: torch.dtype) -> Any:
        rows, width = weight.shape
        packed = torch.empty(rows, width // 2, dtype=torch.uint8, device="meta")
        scales = torch.empty(tiled_size(rows, width // 16), dtype=torch.float8_e4m3fn, device="meta")
        return cls(packed, scales, torch.empty(1, device="meta"), bias=bias, compute_dtype=compute_dtype)


class _Mxfp8(KeptMxfp8):
    """As `_Nvfp4`."""

    storage = replace(KeptMxfp8.storage, name="mxfp8", about="of files alone")

    @classmethod
    def quantize(cls, weight: Tensor, bias: Tensor | None, settings: Any, compute_dtype: torch.dtype) -> Any:
        rows, width = weight.shape
        stored = torch.empty(rows, width, dtype=torch.float8_e4m3fn, device="meta")
        exponents = torch.empty(tiled_size(rows, width // 32), dtype=torch.uint8, device="meta")
        return cls(stored, exponents, bias=bias, compute_dtype=compute_dtype)


OF_FILES = {"nvfp4": _Nvfp4, "mxfp8": _Mxfp8}  # formats that quant.format does not offer


def count(case: Case, compiled: bool, by_place: bool = False) -> Tally:
    """What one step of `case` launches, all blocks together."""
    few, many = 2, 4
    _counted(case, 1, compiled, by_place)  # what a process makes once, as tables are, is there from here on
    return _counted(case, few, compiled, by_place).whole(_counted(case, many, compiled, by_place), few, many)


def _counted(case: Case, blocks: int, compiled: bool, by_place: bool) -> Tally:
    config = TransformerConfig.from_checkpoint(published_config("2.3")["transformer"])
    format = "none" if case.format == "bf16" else case.format
    if format in OF_FILES and format not in FORMATS:
        add_format(OF_FILES[format])
    quant = {} if format == "none" or format in OF_FILES else {"quant": {"format": format}}
    run = make_run({"model": {"mode": case.mode}, "lora": {"rank": 32}, **quant})
    model, _ = meta_model(config, run, format, blocks)
    model.train()
    model.set_recompute(0 if case.keep else None)
    model.set_lean(case.lean)
    video, audio = modalities(case, config)
    counter = Counter(by_place)
    if compiled:
        passes = OnePass(counter)
        for module in (*model.transformer_blocks, *model._attentions("all")):
            module.fused = passes
        for module in model.modules():
            if isinstance(module, QuantLinear):
                module.unpacking = passes
    layers = [module for module in model.modules() if isinstance(module, LoRALinear)]
    held = Held(layers, torch.bfloat16)
    with meta_is("cuda"), counter, held.fresh():
        out = model(video, audio)
        predicted = [x for x in (out.video, out.audio) if x is not None]
        torch.stack([x.float().square().mean() for x in predicted]).sum().backward()
    return counter.tally


def modalities(case: Case, config: TransformerConfig) -> tuple[Modality | None, Modality | None]:
    """Inputs of the sizes of `case` on the meta device, in bf16."""
    widths = context_widths(config, case.mode)
    video = audio = None

    def made(tokens: int, positions: Tensor, width: int, lead: int) -> Modality:
        sigma = torch.empty(case.batch, device="meta")
        return Modality(
            latent=torch.empty(case.batch, tokens, 128, device="meta", dtype=torch.bfloat16),
            sigma=sigma,
            timesteps=None,
            positions=positions,
            context=torch.empty(case.batch, TEXT_TOKENS, width, device="meta", dtype=torch.bfloat16),
            given=torch.empty(case.batch, tokens, dtype=torch.bool, device="meta") if lead else None,
            lead=lead or None,
        )

    first = case.shape.height * case.shape.width
    if case.mode != "audio":
        video = made(
            case.shape.tokens, video_positions(case.shape, 25.0, "meta"), widths["video"], first if case.given else 0
        )
    if case.mode != "video":
        audio = made(case.sound, audio_positions(AudioLatentShape(case.sound), "meta"), widths["audio"], 0)
    return video, audio


def floor_flop(case: Case) -> float:
    """The arithmetic that cannot be left out, LoRA apart."""
    config = TransformerConfig.from_checkpoint(published_config("2.3")["transformer"])
    sound = 0 if case.mode == "video" else case.sound
    shape = None if case.mode == "audio" else case.shape
    work = Workload(case.mode, shape, sound, batch=case.batch)
    arithmetic = flops(config, work)
    return arithmetic.forward * (1 if case.keep else 2) + arithmetic.backward


def report(case: Case) -> dict[str, Any]:
    """The row of one case: counts of the eager step, and modelled seconds with their ratio to the floor."""
    tallies = {"eager": count(case, False), "compiled": count(case, True)}
    row: dict[str, Any] = {
        "case": case.name,
        "launches": round(tallies["eager"].launches),
        "launches.compiled": round(tallies["compiled"].launches),
        "gigabytes": round(tallies["eager"].bytes / 1e9, 1),
        "gigabytes.compiled": round(tallies["compiled"].bytes / 1e9, 1),
        "waits": waits(),
    }
    work = floor_flop(case)
    for card, (rate, bandwidth) in CARDS.items():
        for way, tally in tallies.items():
            seconds = tally.seconds(rate, bandwidth)
            row[f"{card}.{way}"] = round(seconds, 3)
            row[f"{card}.{way}.ratio"] = round(seconds / (work / rate), 2)
    return row


@cache
def waits() -> int | None:
    """Host waits of a step of a real run on a pretended card; None where that cannot be counted here."""
    try:
        from gpu_pretended.counting import waits_of_a_step
    except ImportError:
        return None
    return waits_of_a_step()


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _size(tensor: Tensor) -> int:
    """Bytes behind a tensor: one that is expanded over a dimension is read once."""
    number = 1
    for length, stride in zip(tensor.shape, tensor.stride(), strict=True):
        number *= length if stride else 1
    return number * tensor.element_size()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", action="append", default=[], metavar="NAME")
    parser.add_argument("--json", action="store_true", help="one JSON object a case instead of a table")
    parser.add_argument("--places", type=int, default=0, metavar="N", help="show the N lines that move most")
    parser.add_argument("--compiled", action="store_true", help="with --places: those of the compiled step")
    given = parser.parse_args()
    rows = []
    for name in given.case or STANDARD:
        case = Case.read(name)
        if given.places:
            places = count(case, given.compiled, by_place=True).places
            for kind, unit in (("bytes", 1e9), ("count", 1.0)):
                largest = sorted(((v, k) for k, v in places.items() if k.startswith(kind)), reverse=True)
                for value, place in largest[: given.places]:
                    print(f"{value / unit:10.1f}  {place}")
            continue
        row = report(case)
        rows.append(row)
        if given.json:
            print(json.dumps(row), flush=True)
    if rows and not given.json:
        keys = [key for key in rows[0] if key != "case"]
        print("| case | " + " | ".join(keys) + " |")
        print("|---" * (len(keys) + 1) + "|")
        for row in rows:
            print(f"| {row['case']} | " + " | ".join(str(row[key]) for key in keys) + " |")


if __name__ == "__main__":
    main()
