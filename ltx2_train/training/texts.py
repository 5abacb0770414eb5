"""From captions and prompts to the contexts that the transformer reads, before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..caching.cache_file import MEND, without_mend
from ..caching.notes import note_damage
from ..dataset.notes import SHOWN_AT_MOST
from ..device import DTYPES, release
from ..errors import CacheError
from ..events import Events
from ..feed.loader import FullText
from ..models.plain_text import PlainText
from ..models.polled import polled
from ..models.text import TextConnectors, TextFeatures
from ..sampling.prompt_text import prompt_features
from ..sampling.sample import prompt_folder
from ..weights.load import load_connectors
from .checks import Checked, needed_texts
from .contexts import ContextStore, streams_of
from .held_out import validation_clips


def prepare_texts(checked: Checked, events: Events) -> ContextStore:
    """Run the connectors over every caption and prompt, once; the text encoder where a prompt is not cached yet."""
    config, device, data = checked.config, checked.device, checked.data
    own = "" if checked.peers.first else f"_{checked.peers.rank}"
    contexts = ContextStore(checked.folder.path / f"contexts{own}.bin", int(config.memory.context_gb * 2**30))
    dtype, streams = DTYPES[config.model.precision], streams_of(config.model.mode)
    texts = list(dict.fromkeys([*needed_texts(config, checked.prompts), *checked.texts]))
    folder = prompt_folder(config) if texts else checked.folder.path
    prompts = prompt_features(
        texts, folder, checked.files.encoder, checked.files.projection, device, events, config.gemma
    )
    every = (*data.samples, *validation_clips(config, data))
    samples = {path: sample.told(number) for sample in every for number, path in enumerate(sample.text_paths)}
    total = len(samples) + len(prompts)
    events.stage("prepare captions", total)
    connectors = load_connectors(checked.files.connectors, config.model.mode, dtype, device, events.check_stop)

    damaged: list[CacheError] = []
    for done, key in enumerate([*samples, *prompts]):
        events.check_stop()
        try:
            text = data.load_text(samples[key]) if isinstance(key, Path) else prompts[key]
            _check_width(text, connectors, key)
        except CacheError as error:
            damaged.append(error)
            continue
        if isinstance(text, FullText):
            of_stream = {"video": text.video_context, "audio": text.audio_context}
        else:
            with torch.no_grad(), polled(connectors, events.check_stop):
                pair = connectors([text.to(device, dtype)])
            of_stream = {
                stream: None if one is None else one[0] for stream, one in zip(("video", "audio"), pair, strict=True)
            }
        for stream in streams:
            context = of_stream[stream]
            if context is None:
                there = " and ".join(name for name, tensor in of_stream.items() if tensor is not None)
                raise CacheError(
                    f"{key} holds the caption for {there} alone, and model.mode is {config.model.mode}. {MEND}",
                    key,
                )
            contexts.add(key, stream, context.to(dtype))
        events.progress(done + 1, total)
    _require_whole(damaged)
    del connectors
    release(device)
    return contexts


def _require_whole(damaged: Sequence[CacheError]) -> None:
    """Raise CacheError with all that is wrong with the captions, if anything is."""
    if len(damaged) == 1:
        raise damaged[0]
    if damaged:
        lines = [f"  {without_mend(error)}" for error in damaged[:SHOWN_AT_MOST]]
        lines += [f"  and {len(damaged) - SHOWN_AT_MOST} more"] if len(damaged) > SHOWN_AT_MOST else []
        first = f"{len(damaged)} captions cannot be trained on:"
        raise CacheError("\n".join([first, *lines, MEND]), damaged[0].path)


def _check_width(text: TextFeatures | FullText, connectors: TextConnectors | PlainText, key: Path | str) -> None:
    """Raises CacheError for text of another model version; the next build makes its cache again."""
    video, audio = (text.video_context, text.audio_context) if isinstance(text, FullText) else (text.video, text.audio)
    reason = None
    if isinstance(connectors, PlainText) and (isinstance(text, FullText) or not text.shared):
        reason = "it holds text of LTX-2, made by another text encoder"
    for stream, given in (("video", video), ("audio", audio)):
        width = connectors.widths.get(stream)
        if given is not None and width not in (None, given.shape[-1]):
            reason = f"its text is {given.shape[-1]} wide and not {width}, that of another model version"
    if reason is not None:
        if isinstance(key, Path):
            note_damage(key, reason)
        raise CacheError(f"{key} does not fit the checkpoint: {reason}. {MEND}", key)
