"""The whole way in minutes: tiny model, one clip, caches, a stop half way, a resume, a LoRA, and samples to compare.

Everything goes through the same functions as a real run, with small numbers. What comes out is no art, since the model
is tiny and random; that the sample with the LoRA lies nearer to the clip than the one without shows that it learned.
"""

from __future__ import annotations

import math
import shutil
import time
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..config import load_run
from ..data.dataset import DatasetConfig
from ..data.loader import TrainingSet
from ..errors import DataError, RunError, Stopped, TrainerError
from ..events import Events
from ..files import atomic, write_text
from ..lora.report import inspect_lora
from ..sampling.sample import sample
from ..training.caches import build_caches
from ..training.loop import train
from ..training.metrics import read_rows
from ..training.run_folder import read_manifest
from ..training.setup import text_fingerprints
from ..weights.fingerprint import part_fingerprint
from ..weights.tiny import make_tiny

DEFAULT_STEPS = 240
WIDTH, HEIGHT, FRAMES, FPS = 256, 160, 25, 25
CAPTION = "A red ball bounces over a green meadow while a blue kite drifts across the sky."

RUN = """\
# Written by `ltx2-train demo`; train it again with: ltx2-train train {name}
[run]
name = "demo"

[model]
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"

[data]
config = "dataset.toml"

[cache]
vae_dtype = "fp32"
latents_dtype = "fp32"

[lora]
rank = 16
target = "v2v"

[train]
steps = {steps}
learning_rate = 2e-3
save_every = {half}
first_frame_probability = 0.1

[sample]
every = {half}
width = {width}
height = {height}
frames = {frames}
steps = 12
guidance = 1.0
stg = 0.0
"""

DATASET = """\
[general]
caption_extension = ".txt"
resolution = [{width}, {height}]
enable_bucket = false
target_fps = 25

[[datasets]]
video_directory = "clips"
cache_directory = "cache"
target_frames = [{frames}]
"""


class StopAfter(Events):
    """Passes everything on, and asks for a stop after `steps` steps, as a person would with Ctrl-C."""

    def __init__(self, events: Events, steps: int) -> None:
        self._events, self._steps, self._reached = events, steps, False
        for name in ("stage", "progress", "sample", "saved", "message", "make_room", "holding"):
            setattr(self, name, getattr(events, name))

    def step(self, metrics: dict) -> None:
        self._reached = metrics["step"] >= self._steps
        self._events.step(metrics)

    def should_stop(self) -> bool:
        return self._reached or self._events.should_stop()


def run_demo(out: Path, events: Events, media: Path | None = None, steps: int = DEFAULT_STEPS) -> str:
    """Run the demo into `out` and return its summary. Raises TrainerError."""
    started = time.monotonic()
    if steps < 20:
        raise TrainerError(f"--steps {steps} is too few for the loss to fall; use 20 or more.")
    if media is not None and not media.is_file():
        raise DataError(f"--media: {media} is not a file.", media)
    out = out.absolute()
    if read_manifest(out / "runs" / "demo") is not None:
        raise RunError(f"{out} holds a demo already. Choose another --out, or delete the folder.")

    events.stage("make a tiny LTX-2.3 and a tiny Gemma")
    tiny = make_tiny(out / "model", version="2.3", events=events)
    clip = _take_clip(out / "clips", media)
    half = steps // 2
    paths = {"checkpoint": tiny.checkpoint.relative_to(out).as_posix(),
             "encoder": tiny.text_encoder.relative_to(out).as_posix()}  # fmt: skip
    sizes = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES}
    write_text(out / "dataset.toml", DATASET.format(**sizes))
    write_text(out / "run.toml", RUN.format(name="run.toml", steps=steps, half=half, **paths, **sizes))
    config = load_run(out / "run.toml")
    events.check_stop()

    caches = build_caches(config, events)
    try:
        train(config, StopAfter(events, half))
        raise AssertionError("the demo did not stop half way")
    except Stopped as stop:
        if events.should_stop():
            raise
        events.message(f"{stop}")
    result = train(config, events)

    rows = read_rows(result.folder / "metrics.jsonl")
    numbers = [row["step"] for row in rows]
    if numbers != list(range(1, steps + 1)):
        raise TrainerError("The demo failed: after the resume the steps are not one after the other in metrics.jsonl.")
    window = max(5, steps // 10)
    before, after = _mean(rows[:window]), _mean(rows[-window:])
    if after > 0.8 * before:
        raise TrainerError(f"The demo failed: the loss did not clearly fall ({before:.3f} -> {after:.3f}).")

    files = sample(config, result.lora, out / "samples", events, strengths=[0.0, 1.0])
    distance = _distances(config, files, events)
    if distance[1] >= distance[0]:
        raise TrainerError(
            "The demo failed: with the LoRA the sample is not nearer to the clip "
            f"({distance[0]:.3f} -> {distance[1]:.3f})."
        )
    for name in ("metrics.jsonl", "loss.png"):
        shutil.copyfile(result.folder / name, out / name)
    lora = out / result.lora.name
    shutil.copyfile(result.lora, lora)
    report = inspect_lora(lora)
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return "\n".join(
        [
            "",
            f"Done in {minutes} min {seconds} s. Everything is in {out}",
            f"  clip          {clip.relative_to(out)}",
            f"  caches        {caches.summary()}",
            f"  settings      run.toml, dataset.toml; resolved: {(result.folder / 'run.toml').relative_to(out)}",
            f"  training      {steps} steps, stopped after {half} and resumed at {half + 1}",
            f"  loss          {before:.3f} -> {after:.3f} (means of the first and last {window} steps); "
            "metrics.jsonl, loss.png",
            f"  LoRA          {lora.name}: {len(report.modules)} modules, rank {'/'.join(map(str, report.ranks))}",
            *(f"  strength {file.info['strength']:g}    {file.path.relative_to(out)}" for file in files),
            "  distance of the sample's latents to the clip's (mean square): "
            f"{distance[0]:.3f} without the LoRA, {distance[1]:.3f} with it, {1 - distance[1] / distance[0]:.0%} less",
        ]
    )


def draw_clip(path: Path, frames: int = 40, width: int = 320, height: int = 200) -> Path:
    """Draw a clip with motion and a tone, as mp4 (H.264 and AAC)."""
    import av

    rate = 48000
    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.options = {"crf": "14"}
        sound = container.add_stream("aac", rate=rate)
        rows, columns = np.mgrid[0:height, 0:width]
        for index in range(frames):
            picture = av.VideoFrame.from_ndarray(_picture(index / FPS, rows, columns), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode())
        times = np.arange(int(rate * frames / FPS)) / rate
        wave = (0.3 * np.sin(2 * math.pi * 440 * times)).astype(np.float32)
        for start in range(0, len(wave), 1024):
            block = av.AudioFrame.from_ndarray(wave[None, start : start + 1024], format="fltp", layout="mono")
            block.sample_rate, block.pts, block.time_base = rate, start, Fraction(1, rate)
            container.mux(sound.encode(block))
        container.mux(sound.encode())
    return path


def _picture(t: float, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    height, width = rows.shape
    picture = np.empty((height, width, 3), np.uint8)
    picture[:] = (120, 190, 235)
    picture[rows > height * 0.6] = (70, 150, 60)
    kite_x, kite_y = width * (0.15 + 0.35 * t), height * (0.22 + 0.06 * math.sin(5 * t))
    kite = abs(columns - kite_x) / 22 + abs(rows - kite_y) / 16 < 1
    picture[kite] = (30, 50, 200)
    ball_x, ball_y = width * (0.85 - 0.4 * t), height * (0.75 - 0.4 * abs(math.sin(4 * t)))
    picture[(columns - ball_x) ** 2 + (rows - ball_y) ** 2 < 26**2] = (215, 40, 40)
    return picture


def _take_clip(folder: Path, media: Path | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if media is None:
        clip = draw_clip(folder / "clip.mp4")
    else:
        clip = folder / media.name
        shutil.copyfile(media, clip)
    write_text(clip.with_suffix(".txt"), CAPTION if media is None else "The clip of the demo.")
    return clip


def _mean(rows: list[dict]) -> float:
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    return sum(losses) / max(1, len(losses))


def _distances(config, files, events: Events) -> dict[float, float]:
    """Strength -> mean square distance between the sample's latents and the clip's, over the same prompt and seed."""
    checkpoint, encoder = config.need("model.checkpoint"), config.need("model.text_encoder")
    data = TrainingSet.open(
        DatasetConfig.read(config.need("data.config")),
        part_fingerprint(checkpoint, "video_vae"),
        text_fingerprints(encoder, checkpoint),
        config.cache,
        events,
    )
    clip = data.load_latents(data.samples[0]).float()
    return {file.info["strength"]: float((file.latents.float() - clip).square().mean()) for file in files}
