"""Caching of latents beside the plain loop (decode, then encode, then write), with an encoder that waits like a GPU.

Run: python tests/bench/caching.py [--clips 16] [--frames 97] [--source 1280 720] [--size 512 288] [--rounds 3]
The stand-in for the VAE leaves the processor alone for exactly as long as decoding the clip at hand took; it is said to
be on the device "meta", so that bytes become pixels there and not on the processor, as with a card. Both ways read the
same drawn clips, in turns, and write the same caches. Prints a table and one JSON object: `ratio`, the median over the
rounds of plain / ours (2 is the most there can be), and `clips_in_ram`, the most decoded clips that were alive at any
moment, the one being decoded included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import threading
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from media import moving_square, write_video  # noqa: E402

from ltx2_train.caching import encode  # noqa: E402
from ltx2_train.caching.build import Openers, make_due  # noqa: E402
from ltx2_train.caching.kind import Bench, Job  # noqa: E402
from ltx2_train.caching.kinds import caches_due  # noqa: E402
from ltx2_train.caching.recipe import CacheRecipe  # noqa: E402
from ltx2_train.caching.settings import CacheSettings  # noqa: E402
from ltx2_train.dataset.dataset_file import DatasetConfig  # noqa: E402
from ltx2_train.dataset.plan import DatasetPlan, plan_dataset  # noqa: E402
from ltx2_train.events import Events  # noqa: E402

DEVICE = "meta"


class WaitingVAE(torch.nn.Module):
    """Gives latents of the right size, all zero, as long after it was asked as `seconds` says of that clip."""

    config = types.SimpleNamespace(latent_channels=128, encodes_in_pieces=False)

    def __init__(self, seconds: Iterator[float]) -> None:
        super().__init__()
        self.seconds = seconds

    def encode_piece(self, pixels: torch.Tensor, stream: object) -> torch.Tensor:
        time.sleep(next(self.seconds))
        _, _, frames, height, width = pixels.shape
        return torch.zeros(1, 128, (frames - 1) // 8 + 1, height // 32, width // 32)


class Counted:
    """Counts the decoded clips that are alive, by way of `Latents.read`."""

    def __init__(self) -> None:
        self.alive = self.most = 0
        self.seconds: list[float] = []
        self._lock = threading.Lock()
        self._read = encode.Latents.read

    def _change(self, by: int) -> None:
        with self._lock:
            self.alive += by
            self.most = max(self.most, self.alive)

    def read(self, kind: encode.Latents, job: Job, model: object):
        self._change(1)  # from the moment it is begun
        started = time.perf_counter()
        try:
            clip = self._read(kind, job, model)
        except BaseException:
            self._change(-1)
            raise
        self.seconds.append(time.perf_counter() - started)
        weakref.finalize(clip, self._change, -1)
        return clip

    def __enter__(self) -> Counted:
        encode.Latents.read = lambda kind, job, model: self.read(kind, job, model)  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        encode.Latents.read = self._read  # type: ignore[method-assign]


def plain(plan: DatasetPlan, vae: WaitingVAE, settings: CacheSettings) -> None:
    """One clip after the other, each decoded, encoded and written before the next is begun."""
    kind = encode.Latents(plan, CacheRecipe(settings, video_vae="vae"))
    for job in kind.jobs():
        kind.make(job, kind.read(job, vae), Bench(vae, DEVICE, Events()))


def ours(plan: DatasetPlan, vae: WaitingVAE, settings: CacheSettings) -> None:
    due = caches_due(plan, CacheRecipe(settings, video_vae="vae"))["latents"]
    report = make_due(due, Openers(video_vae=lambda: vae), device=DEVICE)
    assert report.made == len(plan.items), report.summary()


def draw(folder: Path, clips: int, frames: int, source: tuple[int, int], size: tuple[int, int]) -> DatasetPlan:
    """`clips` grainy clips of `frames` frames of the size `source`, cached at `size`."""
    drawn = moving_square(frames, *source)
    grain = np.random.default_rng(0).integers(0, 16, (8, *drawn.shape[1:]), dtype=np.uint8)
    for index, picture in enumerate(drawn):
        picture[:] = np.minimum(picture, 239) + grain[index % len(grain)]
    first = folder / "clips" / "clip0.mp4"
    write_video(first, drawn, options={"crf": "20", "preset": "ultrafast"})
    first.with_suffix(".txt").write_text("a square moves")
    for number in range(1, clips):
        for suffix in (".mp4", ".txt"):
            shutil.copy(first.with_suffix(suffix), folder / "clips" / f"clip{number}{suffix}")
    entry = {"video_directory": "clips", "cache_directory": "cache", "target_frames": [frames]}
    table = {"general": {"resolution": list(size)}, "datasets": [entry]}
    return plan_dataset(DatasetConfig.from_table(table, folder))


def measure(plan: DatasetPlan, rounds: int) -> dict:
    """Seconds of both ways in turns, their ratio, and the most clips in RAM of ours."""
    settings = CacheSettings(skip_existing=False)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    decoding: list[float] = []
    most = 0
    for _ in range(rounds):
        for name, way in (("plain", plain), ("ours", ours)):
            with Counted() as counted:
                started = time.perf_counter()
                way(plan, WaitingVAE(iter(counted.seconds)), settings)
                times[name].append(time.perf_counter() - started)
            decoding += counted.seconds
            if way is ours:
                most = max(most, counted.most)
    ratios = [slow / fast for slow, fast in zip(times["plain"], times["ours"], strict=True)]
    return {
        "clips": len(plan.items),
        "decode_seconds": round(statistics.median(decoding), 4),
        "plain_seconds": round(statistics.median(times["plain"]), 3),
        "ours_seconds": round(statistics.median(times["ours"]), 3),
        "ratio": round(statistics.median(ratios), 3),
        "clips_in_ram": most,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--frames", type=int, default=97)
    parser.add_argument("--source", type=int, nargs=2, default=(1280, 720))
    parser.add_argument("--size", type=int, nargs=2, default=(512, 288))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # what little is computed here must not fight with the decoder for the cores
    with tempfile.TemporaryDirectory() as folder:
        source, size = tuple(options.source), tuple(options.size)
        plan = draw(Path(folder), options.clips, options.frames, source, size)
        found = measure(plan, options.rounds)
    a_minute = {way: 60 * found["clips"] / found[f"{way}_seconds"] for way in ("plain", "ours")}
    print(f"{found['clips']} clips of {options.frames} frames at {options.size[0]}x{options.size[1]}, ", end="")
    print(f"decode = encode = {found['decode_seconds'] * 1000:.0f} ms a clip")
    print(f"{'':22}{'seconds':>9}{'clips/min':>11}")
    print(f"{'decode, then encode':22}{found['plain_seconds']:9.2f}{a_minute['plain']:11.1f}")
    print(f"{'decoded ahead':22}{found['ours_seconds']:9.2f}{a_minute['ours']:11.1f}")
    print(f"ratio {found['ratio']:.2f} (goal 1.7, at most 2); at most {found['clips_in_ram']} decoded clips in RAM")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
