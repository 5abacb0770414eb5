"""A look at a weight file that holds its header against the model it describes, weight by weight."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..errors import CheckpointError
from ..families import FAMILIES
from .info import CheckpointInfo
from .load import check_transformer
from .probe import probe
from .reader import TensorFile


def probe_whole(path: Path | str) -> CheckpointInfo:
    """As `probe`, with what the transformer lacks, or has too much or in another shape, among its problems.

    The modules of the transformer are built without memory for it, which takes a second where `probe` takes none.
    """
    info = probe(path)
    if info.version is None or info.problems:
        return info
    amiss: dict[str, str] = {}
    with TensorFile(path) as file:
        modes = FAMILIES[info.version].modes
        for mode in [mode for mode in ("av", "video") if mode in modes]:
            try:
                check_transformer(file, mode)
                break
            except CheckpointError as error:
                amiss[mode] = str(error)
        else:
            return replace(info, problems=[amiss["video"]])
    if not amiss:
        return info
    return replace(info, warnings=[*info.warnings, f"Only model.mode = video can be trained or drawn. {amiss['av']}"])
