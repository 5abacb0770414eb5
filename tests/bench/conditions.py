"""What conditions cost: a step with references beside the longer clip of as many tokens, and a step without any.

    python tests/bench/conditions.py            # about three minutes on two cores

The step is the real one, on one clip of random numbers (--grid). The arms take turns, so that whatever else the machine
does hits all of them; a ratio is the median over rounds of an arm beside the one that it is held against in the same
round. "Again" is the same step a second time: what it differs by is noise. Multiplications are counted, and do not
depend on the machine. The last lines say what the masks of a stream of 8,000 tokens take.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")
sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[2])]

import common  # noqa: E402  # sets the threads before torch is imported
import torch  # noqa: E402
from regularized import DTYPES, model_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from ltx2_train.conditions.reference import audio_lead  # noqa: E402
from ltx2_train.conditions.settings import AudioReference  # noqa: E402
from ltx2_train.conditions.stream import as_modality  # noqa: E402
from ltx2_train.config import make_run  # noqa: E402
from ltx2_train.feed.batches import Batch, GivenData  # noqa: E402
from ltx2_train.feed.loader import Sample  # noqa: E402
from ltx2_train.lora.inject import inject  # noqa: E402
from ltx2_train.models.positions import audio_positions  # noqa: E402
from ltx2_train.shapes import AudioLatentShape, LatentShape  # noqa: E402
from ltx2_train.training.step import training_step  # noqa: E402

REFERENCE = {"type": "reference"}
PLAIN, LONGER = "no conditions", "a clip twice as long, no conditions"
MASKED = 8000  # tokens


@dataclass
class Arm:
    """One kind of step. `frames` are those of the clip, `references` those of each reference, in latents."""

    frames: int
    conditions: list[dict[str, Any]] = field(default_factory=list)
    references: tuple[int, ...] = ()
    beside: str = PLAIN
    seconds: list[float] = field(default_factory=list)
    multiplications: int = 0


def arms(frames: int) -> dict[str, Arm]:
    half = frames // 2
    return {
        PLAIN: Arm(frames),
        "no conditions, again": Arm(frames),
        "a reference is asked for, and the clip has none": Arm(frames, [REFERENCE]),
        "the first half is given": Arm(frames, [{"type": "prefix", "temporal_boundary": half}]),
        LONGER: Arm(2 * frames, beside=LONGER),
        "a reference as long as the clip": Arm(frames, [REFERENCE], (frames,), LONGER),
        "two references, each half as long": Arm(frames, [REFERENCE] * 2, (half, half), LONGER),
    }


class Steps:
    """The model that all arms share, and a step of each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.grid = LatentShape(*map(int, args.grid.split("x")))
        self.model = model_of(args.size, "video", DTYPES[args.dtype])
        self.loras = inject(self.model, make_run({"lora": {"rank": common.RANK}}).lora, _generator(0))
        self.model.train()
        width = common.dims(args.size)["dim"]
        self.text = torch.randn(1, common.TEXT_TOKENS, width, generator=_generator(1)).to(self.model.dtype)

    def step(self, arm: Arm, number: int) -> float:
        """Seconds of step `number` of `arm`, forward and backward."""
        run = make_run(
            {
                "model": {"mode": "video"},
                "train": {"first_frame_probability": 0.0},
                "video": {"conditions": arm.conditions},
            }
        )
        shown = tuple(self._latents(frames, 2 + place)[0] for place, frames in enumerate(arm.references))
        shape = replace(self.grid, frames=arm.frames)
        sample = Sample("clip", shape, common.FPS, "", Path("clip"), Path("text"))
        given = (GivenData(shown),) if shown else ()
        batch = Batch(self._latents(arm.frames, 1), [sample], common.FPS, 0, 0, given=given)
        begun = time.perf_counter()
        with self.loras.held(self.model.dtype):
            terms = training_step(self.model, batch, {"video": self.text}, run, "2.3", _generator(number), turn=number)
            terms.loss.mean().backward()
        seconds = time.perf_counter() - begun
        for parameter in self.loras.parameters():
            parameter.grad = None
        return seconds

    def _latents(self, frames: int, seed: int) -> torch.Tensor:
        return torch.randn(1, 128, frames, self.grid.height, self.grid.width, generator=_generator(seed))

    def count(self, arm: Arm) -> int:
        """Multiplications and additions of a step."""
        with FlopCounterMode(display=False) as counter:
            self.step(arm, 0)
        return counter.get_total_flops()


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def masks() -> tuple[int, int]:
    """Bytes of all masks of a padded sound of 8,000 tokens with a hidden voice, and of one square mask of floats."""
    voice = audio_lead(torch.zeros(8, 50, 16), AudioReference(hide_from_video=True, hide_text=True))
    learned = torch.arange(MASKED)[None] < MASKED - 5
    stream = as_modality(
        torch.zeros(1, MASKED, 128),
        torch.ones(1),
        audio_positions(AudioLatentShape(MASKED)),
        torch.zeros(1, 4, 8),
        given=torch.arange(MASKED)[None] < 100,
        learned=learned,
        reference=voice,
    )
    stored = [one for one in (stream.attention_mask, stream.given, stream.timesteps) if one is not None]
    return sum(one.numel() * one.element_size() for one in stored), 4 * MASKED**2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", default="tiny", choices=list(common.SIZES))
    parser.add_argument("--dtype", default="fp32", choices=list(DTYPES))
    parser.add_argument("--grid", default="4x16x16", help="latent frames, rows and columns of the clip")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=180.0, help="no round begins after that")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    torch.set_num_threads(2)
    begun = time.perf_counter()
    steps = Steps(args)
    found = arms(steps.grid.frames)
    for arm in found.values():
        arm.multiplications = steps.count(arm)
        steps.step(arm, 0)
    for number in range(1, args.rounds + 1):
        if time.perf_counter() - begun > args.seconds:
            break
        for arm in list(found.values())[:: 1 if number % 2 else -1]:
            arm.seconds.append(steps.step(arm, number))
    frame = steps.grid.height * steps.grid.width
    print(f"{len(found[PLAIN].seconds)} rounds of {args.size} {args.dtype}, {args.grid} latents")
    print("| step | tokens | GFLOP | ms | beside | time | multiplications |")
    print("|---|---|---|---|---|---|---|")
    for name, arm in found.items():
        other = found[arm.beside]
        ratio = statistics.median(a / b for a, b in zip(arm.seconds, other.seconds, strict=True))
        tokens = frame * (arm.frames + sum(arm.references))
        print(
            f"| {name} | {tokens:,} | {arm.multiplications / 1e9:.1f} | {1000 * statistics.median(arm.seconds):.0f} | "
            f"{arm.beside} | {ratio:.3f} | {arm.multiplications / other.multiplications:.3f} |"
        )
    stored, square = masks()
    print(f"masks of {MASKED:,} tokens: {stored / 1e3:.0f} KB in rows; a square of floats takes {square / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
