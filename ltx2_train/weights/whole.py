"""A look at a weight file that holds its header against the model it describes, weight by weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from ..families import FAMILIES
from .info import CheckpointInfo
from .load import check_transformer, complaints_of_parts
from .probe import probe
from .reader import TensorFile

# what cannot be done where a part is amiss without which training goes on
_LOST = {
    "video_vae_encoder": "Nothing can be encoded with it.",
    "video_vae_decoder": "No pictures can be drawn with it.",
    "audio_vae": "Only model.mode = video can be trained or drawn.",
    "vocoder": "No sound can be drawn with it.",
}


def probe_whole(path: Path | str) -> CheckpointInfo:
    """As `probe`, with what its parts lack, or have too much or in another shape, among its problems and warnings.

    The modules are built without memory for that, which takes a second where `probe` takes none.
    """
    info = probe(path)
    if info.version is None or info.problems:
        return info
    family, amiss = FAMILIES[info.version], dict[str, str]()
    with TensorFile(path) as file:
        for mode in [mode for mode in ("av", "video") if mode in family.modes]:
            try:
                check_transformer(file, mode)
                break
            except CheckpointError as error:
                amiss[mode] = str(error)
        else:
            return replace(info, problems=[amiss["video"]])
        found = complaints_of_parts(file, info.parts, mode)
    needed = [text for part, text in found.items() if part in family.needed]
    warnings = [f"Only model.mode = video can be trained or drawn. {amiss['av']}"] if amiss else []
    warnings += [f"{_LOST[part]} {text}" for part, text in found.items() if part not in family.needed]
    return replace(info, problems=needed, warnings=[*info.warnings, *warnings])
