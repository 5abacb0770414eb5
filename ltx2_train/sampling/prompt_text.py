"""Text features of sample prompts: from a small cache of their own, else by Gemma.

Prompts are cached by content, so reordering or editing a prompt file never mixes them up. Building the caches of a
dataset fills this one too, so that training need not load the text encoder at all.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path

import torch

from ..caching.cache_file import ARCHITECTURE, CACHE_FORMAT, KEPT_AS, CacheFile, write_cache
from ..caching.encode_text import Beside, each_features
from ..caching.text_file import compact_tensors, read_compact
from ..dataset.cache_names import COMPACT_SUFFIX
from ..device import DTYPES, release
from ..errors import CacheError, DataError, RunError
from ..events import Events
from ..files import digest
from ..models.text import TextFeatures
from ..weights.fingerprint import plain_print
from ..weights.gemma_settings import GemmaSettings
from ..weights.text_encoder import TextEncoder, device_bytes, text_fingerprint

ENCODER = "encoder"  # entry of the metadata: the fingerprint of what encoded it; older files do not say


def prompt_features(
    texts: Sequence[str],
    folder: Path,
    encoder: Path,
    projection: Path,
    device: torch.device,
    events: Events,
    settings: GemmaSettings | None = None,
) -> dict[str, TextFeatures]:
    """Features of each of `texts`, on the CPU; the text encoder is loaded only where one is not in `folder` yet.

    White space around a text means nothing, as in a caption.

    Raises DataError for a text whose features are not finite, when all others have been kept.
    """
    settings = settings or GemmaSettings()
    fingerprint = text_fingerprint(encoder, projection, settings)
    paths = _paths(texts, folder, fingerprint)
    features_of = {text: features for text, path in paths.items() if (features := _kept(path, fingerprint)) is not None}
    missing = [text for text in paths if text not in features_of]
    if missing:
        events.stage("load the text encoder")
        events.make_room(encoder_bytes(encoder, settings, device), device)
        dtype = encoder_dtype(device)
        gemma = TextEncoder.load(encoder, projection, dtype, device, events.check_stop, settings=settings)
        failed: list[DataError] = []
        try:
            events.stage("encode prompts", len(missing))
            for group in gemma.groups(missing):
                events.check_stop()
                for text, features in each_features(gemma, group, events):
                    if isinstance(features, DataError):
                        failed.append(features)
                        continue
                    features_of[text] = features
                    try:
                        _keep(paths[text], text, fingerprint, device, features)
                    except RunError as error:  # a prompt is worth more than its cache
                        events.message(f"The features of a prompt are not kept. {error}", "warning")
                    events.progress(sum(one in features_of for one in missing), len(missing), text[:60])
        finally:
            gemma.close()
            release(device)
        if failed:  # after the others have been kept
            raise failed[0]
    return {text: features_of[text] for text in texts}


def prompts_beside(texts: Sequence[str], folder: Path, fingerprint: str, device: torch.device) -> Beside:
    """Those of `texts` that `folder` lacks, for a text encoder that is open anyway; see encode_text."""
    paths = _paths(texts, folder, fingerprint)
    missing = [text for text in paths if _kept(paths[text], fingerprint) is None]
    return {text: functools.partial(_keep, paths[text], text, fingerprint, device) for text in missing}


def prompt_path(text: str, folder: Path, fingerprint: str) -> Path:
    """Where the features of `text` are kept in `folder`, made by the text encoder of that fingerprint."""
    return folder / f"prompt_{digest(text.strip(), plain_print(fingerprint))}{COMPACT_SUFFIX}"


def _paths(texts: Sequence[str], folder: Path, fingerprint: str) -> dict[str, Path]:
    return {text: prompt_path(text, folder, fingerprint) for text in texts}


def _kept(path: Path, fingerprint: str) -> TextFeatures | None:
    """What is in the file; None where it is missing, damaged, another one of this name, or of another encoder."""
    with contextlib.suppress(CacheError):
        file = CacheFile(path)
        file.require_name()
        if file.made_by(ENCODER, fingerprint):
            return read_compact(file)
    return None


def _keep(path: Path, text: str, fingerprint: str, device: torch.device, features: TextFeatures) -> None:
    metadata = {"format_version": CACHE_FORMAT, "architecture": ARCHITECTURE, "caption": text, KEPT_AS: path.name}
    metadata[ENCODER] = fingerprint
    write_cache(path, compact_tensors(features, encoder_dtype(device)), metadata)


def encoder_dtype(device: torch.device) -> torch.dtype:
    """bf16 where a card does the work; a CPU is faster and exacter in fp32."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def encoder_bytes(encoder: Path, settings: GemmaSettings, device: torch.device) -> int:
    """About what the weights of a text encoder take on `device` as `settings` have it."""
    needed = device_bytes(encoder, settings, DTYPES.get(settings.compute_dtype, encoder_dtype(device)))
    if settings.placement in ("stream", "layers"):
        return needed["layers"]
    if settings.placement == "auto" and settings.precision == "stored" and device.type == "cuda":
        # auto asks for all of it: what then is free decides. Only where it can never fit, nobody has to leave for it.
        whole = torch.cuda.get_device_properties(device).total_memory
        return needed["device" if needed["device"] < whole else "layers"]
    return needed["device"]
