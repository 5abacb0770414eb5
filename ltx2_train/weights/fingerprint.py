"""A short text that says which weights a part of a checkpoint has, without reading them all.

Names, shapes and types of the part's tensors, every byte of its small statistics, the first bytes of a few tensors
spread evenly over the part, and bytes from the middle of each: a fine-tune may leave all but some layers as they were.
Independent of where the file lies, when it was written, the order of its tensors and of all other parts: a copy, or a
file with a quantized transformer, has the same VAE and text fingerprints.

The first 16 characters are all that older versions wrote, without the middles; `same_weights` compares by what both
have.

LTX-2.5 has its video VAE in a file of its own or in the checkpoint, and with one of two decoders; LTX-Video 2B and 13B
have the same one. What is cached depends on none of that, so there the encoder and the statistics count, by their names
without a prefix. Latents of the other versions carry this fingerprint beside their own: where the encoders are equal,
either serves the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import CheckpointError
from ..files import digest
from ..threads import heed
from . import keys
from .probe import model_family
from .reader import TensorFile

_SAMPLED = 4
_BYTES = 4096
_MIDDLE = 1024
_PLAIN = 16  # characters of a fingerprint without the middles
# metadata of a checkpoint with LoRAs in its weights: those that they change may lie between those that are looked at
BAKED = "baked_loras"


def part_fingerprint(path: Path | str, part: str) -> str:
    """The fingerprint of `part`: "transformer", "video_vae", "audio_vae" or "text".

    Raises CheckpointError where the file does not hold that part.
    """
    owners = keys.FINGERPRINTS[part]
    with TensorFile(path) as file:
        prefix = keys.transformer_prefix(file.tensors) if part == "transformer" else None
        if prefix is not None and prefix != keys.TRANSFORMER:
            names = sorted(file.tensors)
        else:
            names = sorted(name for name in file.tensors if keys.part_of(name) in owners and name not in keys.UNUSED)
        vae = keys.video_vae_prefix(file.tensors) if part == "video_vae" else None
        if vae is not None and (vae == "" or "video_vae_encoder" in model_family(file).apart):
            return _of_encoder(file, vae)
        pieces = _pieces(file, names, part)
        if part == "transformer" and BAKED in file.metadata:
            pieces.append(file.metadata[BAKED])
        return digest("1", *pieces) + middles({name: (file, name) for name in names})


def same_weights(one: str | None, other: str | None) -> bool:
    """Whether two fingerprints, of this version or an older one, stand for the same weights. None and "" never do."""
    if not one or not other:
        return False
    return one.startswith(other) or other.startswith(one)


def plain_print(fingerprint: str) -> str:
    """What older versions wrote as this fingerprint; what they kept under a name of it is called so still."""
    return fingerprint[:_PLAIN]


def middles(places: Mapping[str, tuple[TensorFile, str]]) -> str:
    """The digest of bytes from the middle of each tensor: its name -> its file, and what it is called there."""
    found = {}
    # as they lie, for disks that turn
    for name in sorted(places, key=lambda name: _lies(*places[name])):
        heed()
        file, stored = places[name]
        found[name] = file.read_bytes(stored, file.tensors[stored].nbytes // 2, _MIDDLE)
    return digest(*(piece for name in sorted(found) for piece in (name, found[name])))


def _lies(file: TensorFile, name: str) -> tuple[str, int]:
    return str(file.path), file.tensors[name].offset


def video_encoder_fingerprint(path: Path | str) -> str:
    """That of the video VAE's encoder and statistics alone, for the files of all versions alike.

    Raises CheckpointError where the file holds no video VAE.
    """
    with TensorFile(path) as file:
        vae = keys.video_vae_prefix(file.tensors)
        return _of_encoder(file, keys.VIDEO_VAE if vae is None else vae)


def _of_encoder(file: TensorFile, prefix: str) -> str:
    bare = [name[len(prefix) :] for name in file.tensors if name.startswith(prefix)]
    starts = ("encoder.", "per_channel_statistics.")
    names = sorted(prefix + n for n in bare if n.startswith(starts) and keys.VIDEO_VAE + n not in keys.UNUSED)
    return digest("2", *_pieces(file, names, "video_vae", prefix)) + middles(
        {name[len(prefix) :]: (file, name) for name in names}
    )


def _pieces(file: TensorFile, names: list[str], part: str, prefix: str = "") -> list[str | bytes]:
    """What is hashed of the tensors `names` of `part`, under their names without `prefix`."""
    if not names:
        raise CheckpointError(
            f"{file.path.name} holds no {part.replace('_', ' ')}. Use the full single-file checkpoint."
        )
    pieces: list[str | bytes] = []
    for name in names:
        info = file.tensors[name]
        pieces += [name[len(prefix) :], info.dtype, str(info.shape)]
    pieces += [file.read_bytes(name) for name in names if "per_channel_statistics." in name]
    pieces += [file.read_bytes(name, 0, _BYTES) for name in _spread(names)]
    return pieces


def _spread(names: list[str]) -> list[str]:
    count = min(_SAMPLED, len(names))
    return [names[index * (len(names) - 1) // max(1, count - 1)] for index in range(count)]
