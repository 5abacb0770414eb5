"""Each regularizer beside a step without any, in one process: seconds of a step, and the most live memory in it.

    python tests/bench/regularized.py --size small --steps 3

The step is the real one, on one clip of random numbers (--grid), all blocks recomputed. Live memory is what is taken
above what was there before the step; what is trained beside the LoRA comes on top, and is in a column of its own. The
clip is without sound; rows of mode av are compared with one of the same mode. Passes are those of the largest batch, in
steps without a gradient and with one, as the plan of memory counts them.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import common  # noqa: E402  # sets the threads before torch is imported
import torch  # noqa: E402

from ltx2_train.caching.dino import DINO_KEY, dino_path  # noqa: E402
from ltx2_train.config import make_run  # noqa: E402
from ltx2_train.feed.batches import Batch  # noqa: E402
from ltx2_train.feed.loader import Sample  # noqa: E402
from ltx2_train.files import write_tensors  # noqa: E402
from ltx2_train.lora.inject import inject  # noqa: E402
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig  # noqa: E402
from ltx2_train.shapes import LatentShape  # noqa: E402
from ltx2_train.training.contexts import ContextStore, streams_of  # noqa: E402
from ltx2_train.training.ready import make_ready  # noqa: E402
from ltx2_train.training.regularizers import Kit, Regularizers  # noqa: E402
from ltx2_train.training.regularizers.base import CostSizes  # noqa: E402
from ltx2_train.training.regularizers.together import costs  # noqa: E402
from ltx2_train.training.sound import RunSound  # noqa: E402
from ltx2_train.training.step import ready_step  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
AV = "av, none"


def options(depth: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> mode and settings."""
    blocks = {"student_block": depth // 3, "teacher_block": depth - 2}
    flow = {"weight": 0.1, **blocks}
    video: dict[str, dict[str, Any]] = {
        "none": {},
        "blank": {"blank": {"weight": 1}},
        "dop": {"dop": {"weight": 1, "class_prompt": "a cat"}},
        "blank, dop at the same prompt": {"blank": {"weight": 1}, "dop": {"weight": 1}},
        "prior_divergence": {"prior_divergence": {"weight": 0.1}},
        "crepa backbone": {"crepa": {"weight": 0.1, **blocks}},
        "crepa dino": {"crepa": {"weight": 0.1, "mode": "dino", **blocks}},
        "self_flow": {"self_flow": flow},
        "self_flow, mean teaches": {"self_flow": {**flow, "teacher": "ema"}},
        "self_flow, hybrid by patches": {
            "self_flow": {**flow, "temporal": "hybrid", "temporal_weight": 0.1, "delta_weight": 0.1,
                          "granularity": "patch", "patch_radius": 1}
        },
        "tread, half of the tokens": {"tread": {"weight": 1, "routes": [f"1:{depth - 2}:0.5"]}},
        "rollout, one step": {"rollout": {"weight": 1, "steps": 1}},
    }  # fmt: skip
    found = {name: ("video", settings) for name, settings in video.items()}
    return {**found, AV: ("av", {}), "audio_dop": ("av", {"audio_dop": {"weight": 0.5}})}


def model_of(size: str, mode: str, dtype: torch.dtype) -> LTXTransformer:
    c = common.dims(size)
    config = TransformerConfig(
        num_layers=c["layers"],
        num_attention_heads=c["heads"],
        attention_head_dim=c["head_dim"],
        cross_attention_dim=c["dim"],
        audio_num_attention_heads=c["heads"],
        audio_attention_head_dim=c["audio_head_dim"],
        audio_cross_attention_dim=c["audio_dim"],
    )
    model = LTXTransformer(config, mode).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        scale = 1 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.02
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.to(dtype)


class Row:
    """One option at work."""

    def __init__(self, args: argparse.Namespace, mode: str, settings: dict[str, Any], folder: Path) -> None:
        self.run = make_run({"model": {"mode": mode}, "regularizers": settings, "lora": {"rank": common.RANK}})
        self.model = model_of(args.size, mode, DTYPES[args.dtype])
        self.loras = inject(self.model, self.run.lora, torch.Generator().manual_seed(0))
        self.model.train()
        generator = torch.Generator().manual_seed(1)
        shape = LatentShape(*map(int, args.grid.split("x")))
        path = folder / "clip_ltx2.safetensors"
        self.sample = Sample("clip", shape, common.FPS, "", path, Path("text"))
        features = torch.zeros(shape.video(common.FPS).frames, 37 * 37, 768, dtype=torch.float16)
        write_tensors(dino_path(path), {DINO_KEY: features}, {})
        latents = torch.randn(1, 128, shape.frames, shape.height, shape.width, generator=generator)
        self.batch = Batch(latents, [self.sample], common.FPS, 0, 0)
        self.contexts = ContextStore(folder / "contexts.bin", 1 << 32)
        c = common.dims(args.size)
        for key in (self.sample.text_path, "", "a cat"):
            for stream in streams_of(mode):
                width = c["dim"] if stream == "video" else c["audio_dim"]
                context = torch.randn(common.TEXT_TOKENS, width, generator=generator)
                self.contexts.add(key, stream, context.to(self.model.dtype))
        self.sound = None if mode == "video" else RunSound(self.run)
        self.regularizers = Regularizers(
            Kit(
                run=self.run,
                model=self.model,
                loras=self.loras,
                contexts=self.contexts,
                data=SimpleNamespace(samples=[self.sample]),  # type: ignore[arg-type]
                device=torch.device("cpu"),
                total=100,
                version="2.3",
                silence=torch.randn(8, 200, 16, generator=generator),
            )
        )
        moved = [*self.loras.parameters(), *self.regularizers.parameters()]
        self.beside = sum(parameter.numel() for parameter in self.regularizers.parameters())
        self.optimizer = torch.optim.AdamW(moved, lr=1e-4)

    def step(self, number: int) -> None:
        streams = streams_of(self.run.model.mode)
        contexts = {one: self.contexts.batch([self.sample.text_path], one, "cpu") for one in streams}
        generator = torch.Generator().manual_seed(number)
        ready = make_ready(self.model, self.batch, contexts, self.run, "2.3", generator, self.sound, number)
        with self.loras.held(self.model.dtype):
            if not self.regularizers:
                ready_step(self.model, ready, self.run, self.sound).loss.mean().backward()
            else:
                ready = self.regularizers.drawn(ready, generator, number)
                for part in self.regularizers.parts(self.model, ready, self.sound):
                    part.loss.mean().backward()
        self.optimizer.step()
        self.regularizers.stepped(number + 1)
        self.optimizer.zero_grad(set_to_none=True)

    def measured(self, steps: int) -> tuple[float, float]:
        """Seconds of the fastest step, and MB of live memory."""
        times = []
        for number in range(steps + 1):
            begun = time.perf_counter()
            self.step(number)
            times.append(time.perf_counter() - begun)
        _, live = common.Bench._profiled(None, lambda step: self.step(step), steps + 1)
        return min(times[1:]), live / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=list(common.SIZES))
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--grid", default="4x8x8", help="latent frames, rows and columns of the clip")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="these options alone, beside those without any")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    depth = common.SIZES[args.size]["layers"]
    print("| option | s a step | ratio | live MB | ratio | trained beside | passes without, with gradient |")
    print("|---|---|---|---|---|---|---|")
    plain: dict[str, tuple[float, float]] = {}
    assert depth > 2, "a route, and a teacher above the student, need more blocks"
    for name, (mode, settings) in options(depth).items():
        if args.only and name not in args.only and settings:
            continue
        with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
            row = Row(args, mode, settings, Path(folder))
            seconds, live = row.measured(args.steps)
        if not settings:
            plain[mode] = seconds, live
        c, shape = common.dims(args.size), row.sample.shape
        cost = costs(row.run.regularizers, CostSizes(depth, c["dim"], 1, shape.tokens, 2))
        base = plain[mode]
        print(
            f"| {name} | {seconds:.2f} | {seconds / base[0]:.2f} | {live:.0f} | {live / base[1]:.2f} | "
            f"{row.beside:,} | {cost.forwards:+.2g}, {cost.steps:+.2g} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
