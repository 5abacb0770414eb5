"""What Sample LoRA is given by wire - pictures, masks and sounds of other nodes - as files and conditions of a prompt.

A file is named by what is in it, so the same picture is written, and encoded, once.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .. import ltx2_train as core
from ..ltx2_train.errors import ConfigError
from . import host, tensors
from .host import io

FRAMES = "Several are frames at the frame rate of the sample."


def given_inputs() -> list[Any]:
    """The sockets, all of them optional."""
    return [
        io.Image.Input("first_frame", optional=True, tooltip="The picture that the video begins with."),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip=f"Reference of an IC-LoRA, shown as the LoRA was trained. {FRAMES}",
        ),
        io.Audio.Input("reference_audio", optional=True, tooltip="Reference sound, such as a voice to copy."),
        io.Image.Input(
            "given_frames",
            optional=True,
            tooltip="Pictures that are given: where `given_mask` is white, or, without a mask, all of them, so that "
            f"only their sound is made. {FRAMES}",
        ),
        io.Mask.Input(
            "given_mask",
            optional=True,
            tooltip="What of `given_frames` is kept: white stays, black is made. Masks of ComfyUI's inpainting are the "
            "other way round; InvertMask turns them.",
        ),
        io.Audio.Input(
            "given_audio", optional=True, tooltip="A sound that is given whole, so that only its picture is made."
        ),
        io.Image.Input(
            "reference_2",
            optional=True,
            tooltip="The second reference of a LoRA that was trained with several; further ones by --v behind the "
            "prompt.",
        ),
        io.Audio.Input("reference_audio_2", optional=True, tooltip="The second reference sound, likewise."),
    ]


def conditions(wires: Mapping[str, Any], told: tensors.Changes | None = None) -> list[dict[str, Any]]:
    """The tables of a prompt file that say the same as `wires`, sockets by name; what is changed of them is `told`.

    Raises ConfigError, and DataError where a picture or a sound is none.
    """
    told = told or tensors.Changes()
    connected = {name: value for name, value in wires.items() if value is not None}
    tables: list[dict[str, Any]] = []
    if "first_frame" in connected:
        if len(connected["first_frame"]) > 1:
            raise ConfigError(
                f"`first_frame` takes one picture, and {len(connected['first_frame'])} are connected. Choose one with "
                "ImageFromBatch, or connect them to `reference` or `given_frames`."
            )
        tables.append(
            {"type": "first_frame", "image_or_video": _pictures(connected["first_frame"], "first_frame", told)}
        )
    for first in ("reference", "reference_audio"):
        for name in (first, f"{first}_2"):
            if name not in connected:
                continue
            if name != first and first not in connected:
                raise ConfigError(f"`{name}` is connected without `{first}`. Connect the first one there.")
            made = (
                {"video": _pictures(connected[name], name, told)}
                if first == "reference"
                else {"audio": _sound(connected[name], name, told)}
            )
            tables.append({"type": "reference", **made})
    if "given_mask" in connected:
        if "given_frames" not in connected:
            raise ConfigError("`given_mask` is connected without `given_frames`. Connect the pictures that it is of.")
        frames = _pictures(connected["given_frames"], "given_frames", told)
        mask = _pictures(connected["given_mask"][..., None], "given_mask", told)
        tables.append({"type": "mask", "video": frames, "mask": mask})
    elif "given_frames" in connected:
        tables.append({"type": "video_to_audio", "video": _pictures(connected["given_frames"], "given_frames", told)})
    if "given_audio" in connected:
        heard = _sound(connected["given_audio"], "given_audio", told)
        tables.append({"type": "audio_to_video", "audio": heard})
    return tables


def _folder() -> Path:
    return host.output_folder() / "ltx2_samples" / "given"


def _pictures(batch: Any, socket: str, told: tensors.Changes) -> str:
    """A picture as PNG, several as a folder of frames; `batch` is [N, H, W, C] in [0, 1]."""
    one = batch.ndim < 4 or len(batch) == 1
    frames = tensors.pictures(
        batch, lambda number: f"`{socket}`" if one else f"picture {number + 1} of `{socket}`", told
    )
    name = hashlib.sha256(frames.tobytes() + str(frames.shape).encode()).hexdigest()[:16]
    if len(frames) == 1:
        path = _folder() / f"{name}.png"
        return str(path if path.is_file() else core.write_image(path, frames[0]))
    path = _folder() / name
    if not path.is_dir():
        _folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_folder(), prefix=".writing") as temporary:
            made = Path(temporary) / name
            made.mkdir()
            for number, frame in enumerate(frames):
                core.write_image(made / f"{number:05d}.png", frame)
            made.rename(path)
    return str(path)


def _sound(audio: Mapping[str, Any], socket: str, told: tensors.Changes) -> str:
    """A sound as WAV; its `waveform` is [1, C, N] in [-1, 1]."""
    waves, rate = list(tensors.sounds(audio, lambda _: f"`{socket}`", told)), int(audio["sample_rate"])
    if len(waves) > 1:
        raise ConfigError(f"`{socket}` takes one sound, and {len(waves)} are connected.")
    stereo = waves[0]
    name = hashlib.sha256(stereo.contiguous().numpy().tobytes() + str(rate).encode()).hexdigest()[:16]
    path = _folder() / f"{name}.wav"
    return str(path if path.is_file() else core.write_sound(path, stereo, rate))
