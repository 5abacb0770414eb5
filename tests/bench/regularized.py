"""Each option of training beside a step without any, in one process: seconds of a step, and the most live memory in it.

    python tests/bench/regularized.py --size small --steps 3          # regularizers
    python tests/bench/regularized.py --all --rounds 2                # and optimizers, kinds of LoRA, a mean, full

All options take their steps in turns, round after round; the fastest step of each counts. In the last round each row is
printed as soon as it is measured; before that, stderr says how far it is. The step is the real one, on one clip of
random numbers (--grid; 1x4x4 is a small one), all blocks recomputed. Live memory is what is taken above what was there
before the step. What stays between steps has a column of its own: what is trained besides the base, the state of the
optimizer, a mean. The clip is without sound; rows of mode av are compared with one of the same mode. Passes are those
of the largest batch, in steps without a gradient and with one, as the plan of memory counts them.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import common  # noqa: E402  # sets the threads before torch is imported
import torch  # noqa: E402

from ltx2_train.caching.dino import DINO_KEY, dino_path  # noqa: E402
from ltx2_train.config import make_run  # noqa: E402
from ltx2_train.events import Events  # noqa: E402
from ltx2_train.feed.batches import Batch  # noqa: E402
from ltx2_train.feed.loader import Sample  # noqa: E402
from ltx2_train.files import write_tensors  # noqa: E402
from ltx2_train.full.optimizer import WeightOptimizer  # noqa: E402
from ltx2_train.full.weights import TrainedSet, TrainedWeights  # noqa: E402
from ltx2_train.lora.inject import LoraSet, inject  # noqa: E402
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig  # noqa: E402
from ltx2_train.optim import WeightMean  # noqa: E402
from ltx2_train.shapes import LatentShape  # noqa: E402
from ltx2_train.training.contexts import ContextStore, streams_of  # noqa: E402
from ltx2_train.training.optimizing import make_optimizer  # noqa: E402
from ltx2_train.training.ready import make_ready  # noqa: E402
from ltx2_train.training.regularizers import Kit, Regularizers  # noqa: E402
from ltx2_train.training.regularizers.base import CostSizes  # noqa: E402
from ltx2_train.training.regularizers.together import costs  # noqa: E402
from ltx2_train.training.sound import RunSound  # noqa: E402
from ltx2_train.training.step import ready_step  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
AV = "av, none"


def options(depth: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """Name -> mode and settings of the regularizers."""
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
    found = {name: ("video", {"regularizers": settings} if settings else {}) for name, settings in video.items()}
    return {**found, AV: ("av", {}), "audio_dop": ("av", {"regularizers": {"audio_dop": {"weight": 0.5}}})}


def further(dtype: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """The same of all else that is trained with; "none" is AdamW with PyTorch's own choice of its kernels."""
    found: dict[str, dict[str, Any]] = {
        "adamw, a loop": {"optimizer": {"name": "adamw", "args": {"foreach": False, "fused": False}}},
        "adamw, foreach": {"optimizer": {"name": "adamw", "args": {"foreach": True}}},
        "adamw, fused": {"optimizer": {"name": "adamw", "args": {"fused": True}}},
    }
    for name in ("adamw8bit", "adamw_bf16", "prodigy", "muon", "came", "schedule_free", "adafactor"):
        found[name] = {"optimizer": {"name": name}}
    for name in ("lokr", "loha", "dora"):
        found[f"lora.algo {name}"] = {"lora": {"algo": name}}
    for name in ("dropout", "rank_dropout", "module_dropout"):
        found[f"lora.{name} 0.1"] = {"lora": {name: 0.1}}
    found["LoRA+"] = {"train": {"loraplus_ratio": 16}}
    found["ema"] = {"ema": {"decay": 0.999}}
    for name, more in {
        "full, adamw": {},
        "full, adafactor": {"optimizer": {"name": "adafactor"}},
        "full, adafactor, released": {"optimizer": {"name": "adafactor"}, "full": {"release_gradients": True}},
        "full, adafactor, float32 copies": {"optimizer": {"name": "adafactor"}, "full": {"master_weights": True}},
    }.items():
        if dtype == "bf16" or "copies" not in name:
            found[name] = {"train": {"what": "full", "clip_norm": 0}, **more}
    return {name: ("video", tables) for name, tables in found.items()}


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

    def __init__(
        self, args: argparse.Namespace, mode: str, tables: dict[str, Any], folder: Path, model: LTXTransformer
    ) -> None:
        given = {"optimizer": {"name": "adamw"}, "model": {"mode": mode, "precision": args.dtype}, **tables}
        self.run = make_run(given)
        self.whole = self.run.train.what == "full"
        self.model = copy.deepcopy(model) if self.whole else model
        self.loras: TrainedSet
        if self.whole:
            self.loras = TrainedWeights(self.model, self.run.full)
        else:
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
        more = self.regularizers.groups()
        self.optimizer = make_optimizer(self.run, self.loras, torch.device("cpu"), 100, Events(), more)[0]
        self.mean = WeightMean(self.loras.parameters(), self.run.ema.decay) if self.run.ema.decay else None

    def close(self) -> None:
        """Leave the model to the next one."""
        if isinstance(self.loras, LoraSet):
            self.loras.remove()
        self.contexts.close()

    def kept(self) -> float:
        """MB that stay between steps besides the base."""
        beside = list(self.regularizers.parameters())
        trained = sum(one.nbytes for one in (*(() if self.whole else self.loras.parameters()), *beside))
        state: dict[int, int] = {}
        held = self.optimizer.state_dict()["state"]
        for one in _tensors(held):
            state[one.data_ptr()] = one.nbytes
        mean = sum(one.numel() * 4 for one in self.loras.parameters()) if self.mean is not None else 0
        return (trained + sum(state.values()) + mean) / 2**20

    def step(self, number: int) -> None:
        streams = streams_of(self.run.model.mode)
        contexts = {one: self.contexts.batch([self.sample.text_path], one, "cpu") for one in streams}
        generator = torch.Generator().manual_seed(number)
        ready = make_ready(self.model, self.batch, contexts, self.run, "2.3", generator, self.sound, number)
        released = self.whole and self.run.full.release_gradients
        assert not released or isinstance(self.optimizer, WeightOptimizer)
        letting_go = self.optimizer.releasing() if isinstance(self.optimizer, WeightOptimizer) and released else None
        with self.loras.held(self.model.dtype), letting_go or contextlib.nullcontext():
            if not self.regularizers:
                ready_step(self.model, ready, self.run, self.sound).loss.mean().backward()
            else:
                ready = self.regularizers.drawn(ready, generator, number)
                for part in self.regularizers.parts(self.model, ready, self.sound):
                    part.loss.mean().backward()
        self.optimizer.step()
        if self.mean is not None:
            self.mean.update()
        self.regularizers.stepped(number + 1)
        self.optimizer.zero_grad(set_to_none=True)

    def seconds(self, steps: int) -> float:
        """Of the fastest step after the first."""
        times = []
        for number in range(steps + 1):
            begun = time.perf_counter()
            self.step(number)
            times.append(time.perf_counter() - begun)
        return min(times[1:])

    def live(self) -> float:
        """MB of live memory in a step."""
        return common.Bench._profiled(None, lambda step: self.step(step), 9)[1] / 2**20


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="small", choices=list(common.SIZES))
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--grid", default="4x8x8", help="latent frames, rows and columns of the clip")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="optimizers, kinds of LoRA, a mean and full, too")
    parser.add_argument("--rounds", type=int, default=1, help="so often each takes its steps, in turns")
    parser.add_argument("--only", nargs="*", help="these options alone, beside those without any")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    depth = common.SIZES[args.size]["layers"]
    assert depth > 2, "a route, and a teacher above the student, need more blocks"
    chosen = {**options(depth), **(further(args.dtype) if args.all else {})}
    if strangers := set(args.only or ()) - set(chosen):
        parser.error(f"--only: there is no {', '.join(sorted(strangers))}. There are: {', '.join(chosen)}.")
    chosen = {name: one for name, one in chosen.items() if not args.only or name in args.only or not one[1]}
    bases = {mode: model_of(args.size, mode, DTYPES[args.dtype]) for mode in {mode for mode, _ in chosen.values()}}
    seconds: dict[str, float] = {}
    first: dict[str, float] = {}  # live memory without any option, by the mode
    for number in range(args.rounds):
        last = number == args.rounds - 1
        if last:
            print("| option | s a step | ratio | live MB | ratio | kept MB | passes without, with gradient |")
            print("|---|---|---|---|---|---|---|", flush=True)
        for place, (name, (mode, tables)) in enumerate(chosen.items(), 1):
            with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
                row = Row(args, mode, tables, Path(folder), bases[mode])
                seconds[name] = min(seconds.get(name, float("inf")), row.seconds(args.steps))
                if last:
                    none = "none" if mode == "video" else AV  # stands before the others, so it is measured already
                    sizes = CostSizes(depth, common.dims(args.size)["dim"], 1, row.sample.shape.tokens, 2)
                    live, cost = row.live(), costs(row.run.regularizers, sizes)
                    share = live / first.setdefault(none, live)
                    print(
                        f"| {name} | {seconds[name]:.3f} | {seconds[name] / seconds[none]:.2f} | {live:.0f} | "
                        f"{share:.2f} | {row.kept():.1f} | {cost.forwards:+.2g}, {cost.steps:+.2g} |",
                        flush=True,
                    )
                row.close()
            how_far = f"round {number + 1} of {args.rounds}, {place} of {len(chosen)}"
            print(f"{how_far}: {name}, {seconds[name]:.3f} s a step", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
