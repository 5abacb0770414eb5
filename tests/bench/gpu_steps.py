"""Seconds a step and peak memory of LoRA training on a full-size random LTX-2.3, case by case, against the floor.

    python tests/bench/gpu_steps.py                                   # the standard cases, under ten minutes
    python tests/bench/gpu_steps.py bf16/av/512x512x121 int8/av/512x512x121/swap47
    python tests/bench/gpu_steps.py --list
    python tests/bench/gpu_steps.py --budget 300                      # no case is begun that would take longer
    python tests/bench/gpu_steps.py --profile bf16/av/512x512x121     # one step by kinds of kernels
    python tests/bench/gpu_steps.py --small --device cpu              # all of them, small, to try the script

A case is FORMAT/MODE/WIDTHxHEIGHTxFRAMES and any of: swapN (N blocks stream from RAM), keep (nothing is recomputed),
compile, pageable (streamed blocks are not pinned), act (inputs of blocks wait in RAM), given (the first frame is given
clean). No weights are read: every
tensor is drawn on the device, quantized there, and blocks that stream go to RAM, as in loading. A step is forward,
loss, backward, clipping and AdamW of a rank-32 LoRA. The floor is the arithmetic of the step over the matmul rate that
this very card shows at the start. Beside the seconds of a step stand those after which all of it was launched (`host`)
and those of the card (`card`): where host and seconds are alike, the thread that launches is the brake. One line of
JSON a case as soon as it is known, then a table.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


from ltx2_train.lora.inject import inject
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.models.positions import audio_positions, video_positions
from ltx2_train.models.transformer import LTXTransformer, Modality, TransformerConfig
from ltx2_train.offload.activations import ActivationStore
from ltx2_train.offload.blocks import BlockStreamer, spread
from ltx2_train.quant.formats import quantize_linear
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.shapes import AudioLatentShape, VideoShape
from ltx2_train.training.fit.speed import flops, lora_passes
from ltx2_train.training.fit.work import Workload
from ltx2_train.weights.published import published_config

TEXT_TOKENS = 1024
PUBLISHED_LAYERS = 48
STANDARD = (
    "bf16/video/512x512x121/keep",
    "bf16/video/512x512x121",
    "bf16/video/512x512x121/compile",
    "bf16/video/512x512x49",
    "bf16/av/512x512x121",
    "bf16/av/512x512x121/compile",
    "bf16/av/768x512x121",
    "bf16/av/512x512x121/swap24",
    "bf16/av/512x512x121/swap47",
    "fp8/av/512x512x121",
    "fp8/av/512x512x121/swap47",
    "int8/av/512x512x121",
    "int8/av/512x512x121/swap47",
    "nf4/av/512x512x121",
    "nf4/av/512x512x121/swap47",
    "nf4/av/512x512x121/swap47/act",
)


@dataclass(frozen=True)
class Case:
    """One case, read from its name."""

    name: str
    format: str
    mode: str
    shape: VideoShape
    swap: int = 0
    keep: bool = False
    compile: bool = False
    pinned: bool = True
    act: bool = False
    given: bool = False

    @classmethod
    def read(cls, name: str) -> Case:
        form, mode, size, *options = name.split("/")
        width, height, frames = (int(part) for part in size.split("x"))
        found: dict = {}
        for option in options:
            if option.startswith("swap"):
                found["swap"] = int(option[4:])
            elif option == "pageable":
                found["pinned"] = False
            elif option in ("keep", "compile", "act", "given"):
                found[option] = True
            else:
                raise SystemExit(f"{name}: {option} is not an option: swapN, keep, compile, pageable, act, given")
        return cls(name, form, mode, VideoShape(frames, height, width), **found)

    def shrunk(self, layers: int) -> Case:
        """The same case for a model of so many layers: a quarter of each side and length, as large a share swapped."""
        frames, height, width = self.shape.frames, self.shape.height, self.shape.width
        shape = VideoShape((frames - 1) // 32 * 8 + 1, height // 128 * 32, width // 128 * 32)
        return replace(self, shape=shape, swap=min(layers - 1, round(self.swap * layers / PUBLISHED_LAYERS)))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP a second of a large product, the best of some."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=dtype)
    b = torch.randn(side, side, device=device, dtype=dtype)
    best = 1e9
    for _ in range(8):
        synchronize(device)
        begun = time.perf_counter()
        for _ in range(4):
            a @ b
        synchronize(device)
        best = min(best, (time.perf_counter() - begun) / 4)
    return 2 * side**3 / best


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def config_of(small: bool) -> TransformerConfig:
    values = published_config("2.3")["transformer"]
    if small:
        values |= {
            "num_layers": 4,
            "num_attention_heads": 4,
            "attention_head_dim": 32,
            "cross_attention_dim": 128,
            "audio_num_attention_heads": 4,
            "audio_attention_head_dim": 16,
            "audio_cross_attention_dim": 64,
        }
    return TransformerConfig.from_checkpoint(values)


def build(case: Case, config: TransformerConfig, device: torch.device) -> tuple[LTXTransformer, set[int]]:
    """The model with random weights: quantized on arrival, streamed blocks in RAM."""
    with torch.device("meta"):
        model = LTXTransformer(config, case.mode)
    streamed = set(spread(config.num_layers, case.swap)) if case.swap else set()
    settings = QuantSettings() if case.format == "bf16" else QuantSettings(format=case.format)
    torch.manual_seed(0)

    def fill(module: torch.nn.Module, format: str, where: torch.device) -> None:
        for path, inner in list(module.named_modules()):
            for name, tensor in list(inner._parameters.items()):
                if tensor is None:
                    continue
                scale = tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.02
                value = torch.randn(tensor.shape, device=device, dtype=torch.bfloat16).mul_(scale)
                if path.endswith(("q_norm", "k_norm")):
                    value += 1
                inner._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
            if isinstance(inner, torch.nn.Linear) and format != "bf16" and not path.endswith("to_gate_logits"):
                parent, _, leaf = path.rpartition(".")
                setattr(module.get_submodule(parent), leaf, quantize_linear(inner, format, settings))
        module.to(where)

    for number, block in enumerate(model.transformer_blocks):
        fill(block, case.format, torch.device("cpu") if number in streamed else device)
    for name, child in model.named_children():
        if name != "transformer_blocks":
            fill(child, "bf16", device)
    for name, tensor in list(model._parameters.items()):
        value = torch.randn(tensor.shape, device=device, dtype=torch.bfloat16).mul_(0.02)
        model._parameters[name] = torch.nn.Parameter(value, requires_grad=False)
    return model.requires_grad_(False).eval(), streamed


def measure(
    case: Case, config: TransformerConfig, device: torch.device, steps: int, rate: float, profiled: bool = False
) -> dict:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    begun = time.perf_counter()
    model, streamed = build(case, config, device)
    loras = inject(model, LoraSettings(rank=32), torch.Generator().manual_seed(0))
    streamer = None
    if streamed:
        streamer = BlockStreamer(model.transformer_blocks, sorted(streamed), device, pinned=case.pinned)
        model.residence = streamer
    if case.act:
        model.activations = ActivationStore(device, pinned=case.pinned)
    model.set_recompute(0 if case.keep else None)
    note = model.set_compile(True) if case.compile else None
    built = time.perf_counter() - begun
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    optimizer = torch.optim.AdamW(list(loras.parameters()), lr=1e-4, fused=device.type == "cuda")
    latent = case.shape.latent()
    sounds = AudioLatentShape(case.shape.frames)  # 25 steps a second, as frames
    generator = torch.Generator(device).manual_seed(1)

    def draw(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    video_context = draw(1, TEXT_TOKENS, config.video.context_width)
    audio_context = draw(1, TEXT_TOKENS, config.audio.context_width)
    where_video = video_positions(latent, 25.0, device)
    where_audio = audio_positions(sounds, device)

    lead = latent.height * latent.width if case.given else 0
    given = (torch.arange(latent.tokens, device=device) < lead)[None] if lead else None

    def step() -> torch.Tensor:
        sigma = torch.full((1,), 0.6, device=device)
        noisy, target = draw(1, latent.tokens, 128), draw(1, latent.tokens, 128, dtype=torch.float32)
        video = Modality(noisy, sigma, None, where_video, video_context, given=given, lead=lead or None)
        audio = None
        if case.mode == "av":
            heard = draw(1, sounds.steps, 128)
            audio = Modality(heard, sigma, None, where_audio, audio_context)
        out = model(video, audio)
        loss = (out.video.float() - target).square().mean()
        if out.audio is not None:
            loss = loss + out.audio.float().square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(loras.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    model.train()
    times, launched, on_card = [], [], []
    loss = torch.zeros(())
    for number in range(2 + steps):
        synchronize(device)
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
        begun = time.perf_counter()
        for mark in marks[:1]:
            mark.record()
        loss = step()
        for mark in marks[1:]:
            mark.record()
        host = time.perf_counter() - begun
        synchronize(device)
        if number >= 2:
            times.append(time.perf_counter() - begun)
            launched.append(host)
            on_card += [marks[0].elapsed_time(marks[1]) / 1e3] if marks else []
    kinds = by_kind(step, device) if profiled else {}
    work = Workload(case.mode, latent, sounds.steps if case.mode == "av" else 0, text=TEXT_TOKENS)
    first = "transformer_blocks.0."
    sizes = [(n, m.lora_A.numel() + m.lora_B.numel()) for n, m in loras.layers.items()]
    sizes = [(n[len(first) :], size) for n, size in sizes if n.startswith(first)]
    operations = flops(config, work, lora_passes(sizes)).total(recomputed=0.0 if case.keep else 1.0)
    seconds = statistics.median(times)
    row = {
        "case": case.name,
        "seconds": round(seconds, 4),
        "floor": round(operations / rate, 4),
        "ratio": round(seconds * rate / operations, 2),
        "tflop": round(operations / 1e12, 1),
        "host": round(statistics.median(launched), 4),
        "card": round(statistics.median(on_card), 4) if on_card else None,
        "loss": loss.item(),
        "built_s": round(built, 1),
    }
    if device.type == "cuda":
        row["peak_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
        row["reserved_gb"] = round(torch.cuda.max_memory_reserved(device) / 1e9, 2)
    if streamer is not None:
        row["copies"], row["gb_copied_a_step"] = streamer.copies, round(streamer.bytes_copied / 1e9 / (2 + steps), 2)
        streamer.close()
    if note:
        row["note"] = note
    if kinds:
        row["kinds"] = kinds
    return row


# kinds of kernels, by what their names hold; the first that fits counts
KINDS = {
    "attention": ("flash", "fmha", "attention", "cudnn_generated"),
    "products": ("gemm", "cutlass", "nvjet", "mm", "cublas"),
    "copies": ("memcpy", "memset", "copy"),
    "norms": ("norm", "reduce"),
    "optimizer": ("adam", "multi_tensor"),
    "quantized": ("dequant", "int8", "fp8", "bitsandbytes", "kgemm"),
    "pointwise": ("elementwise", "vectorized", "add", "mul", "cat", "index", "fill"),
}


def by_kind(step: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of one step by kinds of kernels (on a processor: of operations), most first."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        kinds = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as found:
        step()
        synchronize(device)
    sums: dict[str, float] = {}
    for event in found.key_averages():
        taken = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        name = event.key.lower()
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "others")
        sums[kind] = sums.get(kind, 0.0) + taken / 1e6
    return {kind: round(value, 4) for kind, value in sorted(sums.items(), key=lambda pair: -pair[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--list", action="store_true", help="print the standard cases")
    parser.add_argument("--steps", type=int, default=5, help="timed steps a case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model, to try the script on a CPU")
    parser.add_argument("--out", type=Path, help="file for the rows as JSON")
    parser.add_argument("--budget", type=float, metavar="S", help="begin no case that would end after so many seconds")
    parser.add_argument("--profile", action="store_true", help="a step of each case by kinds of kernels")
    args = parser.parse_args()
    if args.list:
        print("\n".join(STANDARD))
        return
    cases = [Case.read(name) for name in args.cases or STANDARD]
    device = torch.device(args.device)
    if device.type == "cuda":
        print(
            torch.cuda.get_device_name(device), f"{torch.cuda.get_device_properties(device).total_memory / 1e9:.0f} GB"
        )
    rate, config = matmul_rate(device, torch.bfloat16), config_of(args.small)
    print(f"torch {torch.__version__}, matmul {rate / 1e12:.1f} TFLOP/s", flush=True)
    rows = []
    started, longest = time.monotonic(), 0.0
    for case in cases:
        begun = time.monotonic()
        if args.budget is not None and begun - started + longest > args.budget:
            print(json.dumps({"case": case.name, "left_out": f"{args.budget:g} s are spent"}), flush=True)
            continue
        shown = case.shrunk(config.num_layers) if args.small else case
        try:
            row = measure(shown, config, device, args.steps, rate, args.profile)
        except torch.OutOfMemoryError:
            row = {"case": case.name, "error": "out of memory"}
        except Exception as error:  # what is left of a rented card's time belongs to the other cases
            row = {"case": case.name, "error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
        gc.collect()
        longest = max(longest, time.monotonic() - begun)
        rows.append(row)
        print(json.dumps(row), flush=True)
    if args.out is not None:
        args.out.write_text(json.dumps({"rate": rate, "rows": rows}, indent=1), encoding="utf-8")
    print("\n| case | s a step | floor | ratio | peak GB |\n|---|---|---|---|---|")
    for row in rows:
        numbers = [row.get(key, row.get("error", "-")) for key in ("seconds", "floor", "ratio", "peak_gb")]
        print(f"| {row['case']} | {' | '.join(str(number) for number in numbers)} |")


if __name__ == "__main__":
    main()
