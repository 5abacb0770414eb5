"""The whole way in minutes: tiny model, one file, caches, a stop half way, a resume, a LoRA, and samples to compare.

Everything goes through the same functions as a real run, with small numbers. What comes out is no art, since the model
is tiny and random; that the sample with the LoRA lies nearer to the clip than the one without shows that it learned.
Picture and sound are each judged by themselves.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from .. import (
    MEDIA_SUFFIXES,
    BaseFiles,
    CachesReport,
    RunConfig,
    RunResult,
    SampleFile,
    build_caches,
    inspect_lora,
    load_run,
    make_tiny,
    open_data,
    read_manifest,
    read_rows,
    sample,
    terms_of,
    train,
)
from ..errors import ConfigError, DataError, RunError, Stopped, TrainerError
from ..events import Events, Passing
from ..files import write_text
from .demo_media import FPS, draw_clip, draw_sound

__all__ = ["DEFAULT_STEPS", "draw_clip", "run_demo"]

DEFAULT_STEPS = 240  # from here on the demo fails where nothing was learned; fewer steps promise nothing
FEWEST_STEPS = 2  # it stops half way and goes on
WIDTH, HEIGHT, FRAMES = 256, 160, 25
FALL = {"video": 0.8, "av": 0.9, "audio": 0.9}  # both streams share one gradient norm, so each falls more slowly
SOUND_FRAMES = 49  # the sound of the demo without a picture is as long as these
CAPTION = "A red ball bounces over a green meadow while a blue kite drifts across the sky."
SOUND = " A music box plays a bright little tune."

RUN = """\
# Written by `ltx2-train demo`; train it again with: ltx2-train train {name}
[run]
name = "demo"

[model]
mode = "{mode}"
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
target = "full"

[train]
steps = {steps}
learning_rate = 2e-3
save_every = {half}
first_frame_probability = 0.1
caption_dropout = 0.0

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

SOUND_DATASET = """\
[general]
caption_extension = ".txt"

[[datasets]]
audio_directory = "clips"
cache_directory = "cache"
"""


class StopAfter(Passing):
    """Asks for a stop after `steps` steps, as a person would with Ctrl-C."""

    def __init__(self, events: Events, steps: int) -> None:
        super().__init__(events)
        self._steps, self._reached = steps, False

    def step(self, metrics: dict) -> None:
        self._reached = metrics["step"] >= self._steps
        super().step(metrics)

    def should_stop(self) -> bool:
        return self._reached or super().should_stop()


def run_demo(
    out: Path, events: Events, media: Path | None = None, steps: int = DEFAULT_STEPS, mode: str = "video"
) -> str:
    """Run the demo of `mode` ("video", "av", "audio") into `out` and return its summary. Raises TrainerError."""
    started = time.monotonic()
    if steps < FEWEST_STEPS:
        raise ConfigError(
            f"--steps is {steps}; use {FEWEST_STEPS} or more, since the demo stops half way. From {DEFAULT_STEPS} on "
            "(the default) it also shows that the model learned."
        )
    if media is not None and not media.is_file():
        raise DataError(f"--media: {media} is not a file.", media)
    out = out.absolute()
    if read_manifest(out / "runs" / "demo") is not None:
        raise RunError(f"{out} holds a demo already. Choose another --out, or delete the folder.")
    clip = _prepare(out, events, media, steps, mode)
    config = load_run(out / "run.toml")
    events.check_stop()
    caches = build_caches(config, events)
    result = _train_twice(config, events, steps // 2)
    losses = _losses(result.folder / "metrics.jsonl", steps, mode)
    files = sample(config, result.lora, out / "samples", events, strengths=[0.0, 1.0])
    distances = _distances(config, files, events)
    if steps >= DEFAULT_STEPS:
        _require_nearer(distances, clip)
    for path in (result.folder / "metrics.jsonl", result.folder / "loss.png", result.lora):
        shutil.copyfile(path, out / path.name)
    lines = [
        *_made_lines(out, clip, caches, result, steps),
        *_learned_lines(out, clip, losses, files, distances, steps),
    ]
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return "\n".join(["", f"Done in {minutes} min {seconds} s. Everything is in {out}", *lines])


def _prepare(out: Path, events: Events, media: Path | None, steps: int, mode: str) -> Path:
    """Model, clip, dataset file and run file in `out`; returns the clip."""
    events.stage("make a tiny LTX-2.3 and a tiny Gemma")
    tiny = make_tiny(out / "model", version="2.3", events=events)
    clip = _take_clip(out / "clips", media, mode)
    paths = {"checkpoint": tiny.checkpoint.relative_to(out).as_posix(),
             "encoder": tiny.text_encoder.relative_to(out).as_posix()}  # fmt: skip
    sizes = {"width": WIDTH, "height": HEIGHT, "frames": SOUND_FRAMES if mode == "audio" else FRAMES}
    recording = mode == "audio" and clip.suffix.lower() not in MEDIA_SUFFIXES["video"]  # of a video, the sound is taken
    write_text(out / "dataset.toml", SOUND_DATASET if recording else DATASET.format(**sizes))
    write_text(out / "run.toml", RUN.format(name="run.toml", mode=mode, steps=steps, half=steps // 2, **paths, **sizes))
    return clip


def _train_twice(config: RunConfig, events: Events, half: int) -> RunResult:
    """Train with a stop after `half` of the steps, and go on to the end."""
    try:
        train(config, StopAfter(events, half))
        raise AssertionError("the demo did not stop half way")
    except Stopped as stop:
        if events.should_stop():
            raise
        events.message(f"{stop}")
    return train(config, events)


def _require_nearer(distances: Mapping[str, tuple[float, float]], clip: Path) -> None:
    """Raise TrainerError where a sample with the LoRA is not nearer to the clip than the one without."""
    for stream, (without, with_it) in distances.items():
        if with_it >= without:
            raise TrainerError(
                f"The demo failed: with the LoRA the {stream} of the sample is not nearer to {clip.name} "
                f"({without:.3f} -> {with_it:.3f})."
            )


def _made_lines(out: Path, clip: Path, caches: CachesReport, result: RunResult, steps: int) -> list[str]:
    """What there is now, and where."""
    report = inspect_lora(out / result.lora.name)
    made, half = caches.summary().splitlines(), steps // 2
    return [
        f"  trained on    {clip.relative_to(out)}",
        f"  caches        {made[0]}",
        *(f"                {line}" for line in made[1:]),
        f"  settings      run.toml, dataset.toml; resolved: {(result.folder / 'run.toml').relative_to(out)}",
        f"  training      {steps} steps, stopped after {half} and resumed at {half + 1}; metrics.jsonl, loss.png",
        f"  LoRA          {result.lora.name}: {len(report.modules)} modules, rank {'/'.join(map(str, report.ranks))}",
    ]


def _learned_lines(
    out: Path,
    clip: Path,
    losses: Mapping[str, tuple[float, float]],
    files: Sequence[SampleFile],
    distances: Mapping[str, tuple[float, float]],
    steps: int,
) -> list[str]:
    """What was learned, in numbers."""
    few = f"  {steps} steps are too few to learn from; {DEFAULT_STEPS} show that it does."
    return [
        *(
            f"  loss          {stream} {before:.3f} -> {after:.3f} (means of the first and last {_window(steps)} steps)"
            for stream, (before, after) in losses.items()
        ),
        *(f"  strength {file.info['strength']:g}    {file.path.relative_to(out)}" for file in files),
        f"  distance of the sample's latents to those of {clip.name} (mean square):",
        *(
            f"    {stream:<11} {without:.3f} without the LoRA, {with_it:.3f} with it, {1 - with_it / without:.0%} less"
            for stream, (without, with_it) in distances.items()
        ),
        *([] if steps >= DEFAULT_STEPS else [few]),
    ]


def _take_clip(folder: Path, media: Path | None, mode: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    caption = {"video": CAPTION, "av": CAPTION + SOUND, "audio": SOUND.strip()}[mode]
    if media is not None:
        clip, caption = folder / media.name, f"The {'sound' if mode == 'audio' else 'clip'} of the demo."
        shutil.copyfile(media, clip)
    elif mode == "audio":
        clip = draw_sound(folder / "tune.wav", SOUND_FRAMES / FPS)
    else:
        clip = draw_clip(folder / "clip.mp4")
    write_text(clip.with_suffix(".txt"), caption)
    return clip


def _window(steps: int) -> int:
    return max(5, steps // 10)


def _losses(path: Path, steps: int, mode: str) -> dict[str, tuple[float, float]]:
    """Mean loss of each stream at the start and at the end.

    Raises TrainerError where one did not clearly fall in as many steps as the demo takes by default.
    """
    rows = read_rows(path)
    if [row["step"] for row in rows] != list(range(1, steps + 1)):
        raise TrainerError("The demo failed: after the resume the steps are not one after the other in metrics.jsonl.")
    losses = {}
    for stream in terms_of(rows):
        values = [row[f"loss_{stream}"] for row in rows]
        before, after = _mean(values[: _window(steps)]), _mean(values[-_window(steps) :])
        if steps >= DEFAULT_STEPS and after > FALL[mode] * before:
            raise TrainerError(
                f"The demo failed: the {stream} loss did not clearly fall ({before:.3f} -> {after:.3f})."
            )
        losses[stream] = (before, after)
    return losses


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / max(1, len(known))


def _distances(config: RunConfig, files: Sequence[SampleFile], events: Events) -> dict[str, tuple[float, float]]:
    """Stream -> mean square distance of the sample's latents to the file's, without the LoRA and with it."""
    mode = config.model.mode
    data = open_data(config, BaseFiles.find(config, events).recipe(config), events)
    first = data.samples[0]
    wanted = {"video": data.load_latents(first)} if mode != "audio" else {}
    if mode != "video":
        wanted["audio"] = data.load_audio(first)
    distances = {}
    for stream, latents in wanted.items():
        both = (file.latents if stream == "video" else file.audio_latents for file in files)
        drawn = [one for one in both if one is not None]
        length = min(latents.shape[1], drawn[0].shape[1])  # both are [C, time, ...]
        distance = [float((one[:, :length].float() - latents[:, :length]).square().mean()) for one in drawn]
        distances[stream] = (distance[0], distance[1])
    return distances
