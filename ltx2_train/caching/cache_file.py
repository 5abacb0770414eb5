"""Cache files: names, keys, metadata, and whether one still fits what it was made from.

Names and keys are those of the community trainer, whose files can be read as well (theirs carry no fingerprints, so
only their shapes can be checked):

    {stem}_{start:05d}-{count:03d}_{W:04d}x{H:04d}_ltx2.safetensors   a window of a video, W x H as cached
    {stem}_{W:04d}x{H:04d}_ltx2.safetensors                           an image, W x H as in the file
        latents_{F}x{H}x{W}_{dtype}         [128, F, H, W] in latents, normalised
    {same base}_ltx2_audio.safetensors                                the sound of that window, or of a recording
        audio_latents_{T}x{bins}x{C}_{dtype} [C, T, bins], normalised      audio_lengths_int32 (steps that count)
    {same base}_ltx2_mask.safetensors                                 mask [F, H, W] in latents: 1 given, 0 generated
    {same base}_ltx2_audio_mask.safetensors                           mask [T] of the sound
    {same base}_ltx2_dino.safetensors                                 DINOv2 features of the frames (see dino)
    {stem}_ltx2_te.safetensors                                        text, after the connectors
        video_prompt_embeds_{dtype} [N, D]  audio_prompt_embeds_{dtype} [N, D']  prompt_attention_mask [N]
        text_{dtype} [N, D + D'], both once more, side by side                   text_mask [N]
    {stem}_ltx2_te_compact.safetensors                                text, before the connectors and without padding
        video_features_{dtype} [T, D]       audio_features_{dtype} [T, D'], absent where it is the same tensor

A mirrored copy has `~flip` behind its stem, and shares text and sound. References lie in a folder of their own, under
the name of the latents (or the sound) that they belong to.

Beside a recording without video there lies, for that trainer, a file of one zero latent with the size of an imagined
video (`ltx2_virtual_num_frames_int32`, `..._height_int32`, `..._width_int32`). A dtype in a key may be spelt both ways,
"float16" or "fp16"; sound is written with the short one.

What a file was made from is written as text into its metadata: `source` (size, time and hash of the medium),
`settings` (all that changes the content), `checkpoint` and `encoder` (fingerprints of weights), of latents also
`vae_encoder` (that of the encoder alone, by which versions with one encoder share them). A stale file is found by
comparing them, and the reason names what differs. `crc32` has a check sum of each tensor, which is compared whenever
the tensor is read; older files and those of others have none. `kept_as` is the name that a file was written under.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..dataset.cache_names import medium_of
from ..dataset.sources import source_change
from ..device import DTYPE_NAMES, DTYPES
from ..errors import CacheError, CheckpointError, DataError
from ..files import CHECK_SUMS, CLOSED, check_sum, digest, why_not_read, write_checked
from ..shapes import AudioLatentShape, LatentShape
from ..weights.fingerprint import plain_print, same_weights
from ..weights.reader import TensorFile
from .notes import damage, note_damage

CACHE_FORMAT = "1"
ARCHITECTURE = "ltx2_v1"  # as the community trainer calls it
MASK_KEY = "mask"
AUDIO_LENGTH_KEY = "audio_lengths_int32"
ENCODER_WEIGHTS = "vae_encoder"  # entry of the metadata of latents: what its video VAE is in any file and version
KEPT_AS = "kept_as"  # entry of the metadata: the name that the file was written under
_WITH_SUMS = frozenset((KEPT_AS, ENCODER_WEIGHTS))  # whatever has one of these was written with check sums
SILENCE = "silence"  # entry of the metadata of sound, "yes" or "no"
VIRTUAL_KEYS = ("ltx2_virtual_num_frames_int32", "ltx2_virtual_height_int32", "ltx2_virtual_width_int32")
MEND = "Run `ltx2-train cache build RUN.toml` (in ComfyUI: the Prepare Dataset node) to make it again."

# Settings that caches made before they existed do not name, and what they amount to there.
_BEFORE: dict[str, Any] = {
    "flip": False,
    "color_jitter": 0.0,
    "crop": "center",
    "reading": [],
    "held": False,
    "tracks": [],
    "surround": "weights add up to 1",
    "stretched": 1.0,
}

_LATENTS = re.compile(r"latents_(\d+)x(\d+)x(\d+)_(\w+)")
_AUDIO = re.compile(r"audio_latents_(\d+)x(\d+)x(\d+)_(\w+)")
_SHORT = {dtype: name for name, dtype in DTYPES.items()}


def dtype_token(dtype: torch.dtype) -> str:
    """How keys spell a dtype: torch's own name."""
    return str(dtype).removeprefix("torch.")


def latent_key(shape: LatentShape, dtype: torch.dtype) -> str:
    """The key of latents of `shape`."""
    return f"latents_{shape.frames}x{shape.height}x{shape.width}_{dtype_token(dtype)}"


def audio_key(shape: AudioLatentShape, dtype: torch.dtype) -> str:
    """The key of sound latents of `shape`."""
    return f"audio_latents_{shape.steps}x{shape.bins}x{shape.channels}_{_SHORT[dtype]}"


# --- what a cache was made from --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fingerprints:
    """Short texts that stand for weights: the part of the checkpoint that was used, and the text encoder.

    An empty one is not known and therefore not compared.
    """

    checkpoint: str = ""
    encoder: str = ""


# --- writing ---------------------------------------------------------------------------------------------------------


def write_cache(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a cache with the check sums of its tensors. Raises RunError."""
    write_checked(path, tensors, metadata)


# --- reading ---------------------------------------------------------------------------------------------------------


class CacheFile:
    """An open cache: its metadata and keys; tensors are read when asked for. Raises CacheError where it is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CacheError(f"The cache {path} is missing. {MEND}", path)
        try:
            self._file = TensorFile(path)
        except CheckpointError as error:
            if reason := why_not_read(path):
                text = f"The cache {path} {CLOSED}: {reason}. Allow this user to read it, or delete it."
                raise CacheError(f"{text} {MEND}", path) from error
            raise self._damaged(error.reason or str(error)) from error
        self.metadata = self._file.metadata
        self.keys = list(self._file.tensors)

    def _damaged(self, reason: str) -> CacheError:
        return CacheError(f"The cache {self.path} is damaged: {reason.split('. ')[0]}. {MEND}", self.path)

    def find(self, prefix: str) -> str | None:
        """The key `prefix` + dtype, whichever dtype it is stored in and however that is spelt."""
        return next((key for key in self.keys if key.startswith(prefix) and key[len(prefix) :] in DTYPE_NAMES), None)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of the tensor `key`, from the header."""
        return tuple(self._file.tensors[key].shape)

    def latent_shape(self) -> LatentShape:
        """The size of the latents inside. Raises CacheError where there are none, or not of the size the key says."""
        for key in self.keys:
            found = _LATENTS.fullmatch(key)
            if found and found[4] in DTYPE_NAMES:
                frames, height, width = (int(part) for part in found.groups()[:3])
                shape = tuple(self._file.tensors[key].shape)
                if shape[1:] != (frames, height, width):
                    raise self._damaged(f"{key} has shape {list(shape)}")
                return LatentShape(frames, height, width, shape[0])
        raise self._damaged("it holds no latents")

    def latents(self) -> torch.Tensor:
        """[C, F, H, W] in float32."""
        shape = self.latent_shape()
        prefix = f"latents_{shape.frames}x{shape.height}x{shape.width}_"
        return self.tensor(next(key for key in self.keys if key.startswith(prefix)), torch.float32)

    def audio_shape(self) -> AudioLatentShape:
        """The size of the sound inside. Raises CacheError where there is none, or not of the size the key says."""
        key, shape = self._audio()
        if tuple(self._file.tensors[key].shape) != (shape.channels, shape.steps, shape.bins):
            raise self._damaged(f"{key} has shape {list(self._file.tensors[key].shape)}")
        return shape

    def audio_latents(self) -> torch.Tensor:
        """[C, T, bins] in float32, normalised."""
        self.audio_shape()
        return self.tensor(self._audio()[0], torch.float32)

    def audio_steps(self) -> int:
        """How many of the latents, from the first, are sound; the rest is padding. All where the file does not say."""
        steps = self.audio_shape().steps
        if AUDIO_LENGTH_KEY not in self.keys:
            return steps
        said = int(self.tensor(AUDIO_LENGTH_KEY).reshape(-1)[0])
        if not 0 < said <= steps:
            raise self._damaged(f"{AUDIO_LENGTH_KEY} is {said} for {steps} latents")
        return said

    def _audio(self) -> tuple[str, AudioLatentShape]:
        for key in self.keys:
            found = _AUDIO.fullmatch(key)
            if found and found[4] in DTYPE_NAMES:
                steps, bins, channels = (int(part) for part in found.groups()[:3])
                return key, AudioLatentShape(steps, channels, bins)
        raise self._damaged("it holds no sound")

    def mask(self) -> torch.Tensor:
        """The mask inside as bool, whatever numbers it is stored in: true above one half."""
        if MASK_KEY not in self.keys:
            raise self._damaged("it holds no mask")
        return self.tensor(MASK_KEY).float() > 0.5

    def tensor(self, key: str, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor `key`. Raises CacheError where it is damaged or holds NaN or infinities."""
        try:
            tensor = self._file.read(key)
        except CheckpointError as error:
            if not why_not_read(self.path):
                note_damage(self.path, "it cannot be read as a whole")
            raise self._damaged(error.reason or str(error)) from error
        finally:
            self._file.close()
        sums = self.record(CHECK_SUMS)
        if key not in sums and (sums or not _WITH_SUMS.isdisjoint(self.metadata)):
            note_damage(self.path, "another program has rewritten it")
            raise self._damaged(f"another program has rewritten it: {key} has lost its check sum")
        if key in sums and sums[key] != check_sum(tensor):
            note_damage(self.path, "its bytes are not those that were written")
            raise self._damaged(f"the bytes of {key} are not those that were written")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            note_damage(self.path, "it holds numbers that are not finite")
            raise self._damaged(f"{key} holds numbers that are not finite")
        return tensor if dtype is None else tensor.to(dtype)

    def require_name(self) -> None:
        """Raise CacheError where the file was written under another name. Older ones do not say."""
        if (name := self.metadata.get(KEPT_AS, self.path.name)) != self.path.name:
            raise self._damaged(f"it was written as {name}")

    @property
    def medium(self) -> str:
        """The stem of the medium that it was made for, by the name it was written under. Older ones do not say."""
        return medium_of(self.metadata.get(KEPT_AS, ""))

    def verify(self) -> None:
        """Read every tensor. Raises CacheError where one is damaged, which is noted beside the file."""
        for key in self.keys:
            self.tensor(key)

    @property
    def silent(self) -> bool:
        """Whether the sound inside is known to be silence. Files of others, and older ones, do not say."""
        return self.metadata.get(SILENCE) == "yes"

    @property
    def fingerprinted(self) -> bool:
        """Whether this program made the file, so that its origin can be checked."""
        return "settings" in self.metadata

    @property
    def mark(self) -> str:
        """What tells it from a file made of another source, with other settings or other weights; bytes do not count,
        which a card may round otherwise. "" for files of others, which say none of it."""
        said = [self.metadata.get(key, "") for key in ("source", "settings", "checkpoint")]
        return digest(*said) if self.fingerprinted else ""

    @property
    def origin(self) -> str:
        """The check sum of the medium that it was made from; "" for files that do not say."""
        return str(self.record("source").get("sha256", ""))

    def made_by(self, key: str, weights: str) -> bool:
        """Whether `weights`, a fingerprint, made a file whose name has it; an older one does not say so under `key`.
        A fingerprint "" is not compared."""
        return not weights or same_weights(self.metadata.get(key, plain_print(weights)), weights)

    def record(self, key: str) -> dict[str, Any]:
        """A table stored as JSON in the metadata; empty where absent or unreadable."""
        try:
            value = json.loads(self.metadata.get(key, "{}"))
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}


# --- stale or not ----------------------------------------------------------------------------------------------------


def stale_weights(file: CacheFile, part: str = "", weights: str = "", encoder: str = "") -> str | None:
    """Why a cache of ours is of another format or other weights, or None. `weights` "" are not compared.

    `encoder` is what the encoder among them is, whatever file and version of the model it comes from.
    """
    version = file.metadata.get("format_version")
    if version != CACHE_FORMAT:
        return f"it is of cache format {version}, this program writes {CACHE_FORMAT}"
    stored = file.metadata.get("checkpoint")
    if weights and not same_weights(stored, weights):
        encoders = (stored, file.metadata.get(ENCODER_WEIGHTS))
        if not any(same_weights(encoder, one) for one in encoders):
            return f"it was made with another {part}"
    return None


def stale_made(
    file: CacheFile, source: Path, settings: Mapping[str, Any], part: str = "", weights: str = "", encoder: str = ""
) -> str | None:
    """Why a cache of ours must be made again, or None, where it was made from `source`; see `stale_weights`."""
    return (
        damage(file.path)
        or stale_weights(file, part, weights, encoder)
        or source_change(file.record("source"), source)
        or difference(file.record("settings"), settings)
    )


def difference(stored: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Which settings are not as they were when a cache was made, in a few words; None where all are."""
    changed = [key for key in now if stored.get(key, _BEFORE.get(key)) != json.loads(json.dumps(now[key]))]
    if not changed:
        return None
    key = changed[0]
    more = f" and {', '.join(changed[1:])}" if len(changed) > 1 else ""
    return f"{key} changed ({stored.get(key)} -> {now[key]}){more}"


def sizes_text(sizes: Sequence[int]) -> str:
    """Sizes for people: "2x16x30"."""
    return "x".join(str(size) for size in sizes)


def without_mend(error: DataError) -> str:
    """The text of `error` where it is said once for all how to mend it."""
    return str(error).replace(MEND, "").strip()
