"""Captions to text features: Gemma, its tokenizer and the text projection as one object.
The projection lies in the checkpoint; the single file of LTX-2.5's encoder brings its own.

A caption is stripped, begins with the begin token, has no end token and is cut at 1024 tokens. Captions of a batch
are padded at the end: Gemma attends backwards only, so padding behind a caption changes nothing in front of it, no
mask is needed, and short captions cost little. The result equals the published way (padding on the left up to 1024),
because features are taken over valid tokens only.

With `stream`, the weights stay in RAM and each layer is brought to the device while it works: any card can encode with
the bf16 file, and nothing is left on the card between calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..device import DTYPES, card_is_full
from ..errors import CheckpointError, ConfigError
from ..events import Events
from ..files import digest
from ..models.polled import polled
from ..models.text import FeatureExtractor, TextFeatures
from . import gemma4, t5
from .fingerprint import middles
from .gemma import Tokenizer, fingerprint_parts, load_gemma, load_tokenizer
from .gemma_bnb import bitsandbytes_linear, quantized_bytes
from .gemma_files import USABLE_GEMMA3, GemmaFiles, open_gemma
from .gemma_settings import GemmaSettings, told_precision
from .keys import TEXT_PROJECTION
from .load import transformer_config
from .materialise import Arrival, LoadProgress, OnLinear, Origin, materialise
from .probe import model_family
from .reader import TensorFile
from .stored import numbers_shape, stored_in, weight_shapes
from .t5 import is_t5
from .t5_encoder import T5Encoder, check_t5, t5_bytes, t5_fingerprint
from .text_layers import LayeredTextEncoder, check_finite, too_small, visit_device

_USABLE = {"Gemma 3": USABLE_GEMMA3, "Gemma 4": gemma4.USABLE_GEMMA4, "T5": t5.USABLE_T5}
_ACTIVATIONS = 3 << 29  # 1.5 GB: 1024 tokens x 188160 values as states and packed, and the largest layer at work


@dataclass(frozen=True)
class TextEncoderInfo:
    """What the headers of a text encoder and a checkpoint tell."""

    hidden: int
    layers: int
    columns: int
    version: str  # "2.0" or "2.3", by the projection, which 2.5 has as 2.3 does; of T5, which has none, "ltxv"
    nbytes: int  # of the encoder and the projection as stored


def projection_file(text_encoder: Path | str, checkpoint: Path | str) -> Path:
    """The file with the text projection: the text encoder where it brings one, else `checkpoint`."""
    text_encoder = Path(text_encoder)
    if text_encoder.is_file():
        with TensorFile(text_encoder) as file:
            if any(_is_projection(name) for name in file.tensors):
                return text_encoder
    return Path(checkpoint)


def check_family(text_encoder: Path | str, transformer: Path | str) -> None:
    """Raise CheckpointError where `transformer` was trained with another text encoder. Reads headers only."""
    with TensorFile(transformer) as model:
        if is_t5(text_encoder):
            _check_kind("T5", Path(text_encoder).name, model)
            return
        with open_gemma(text_encoder) as gemma:
            _check_family(gemma, model)


def check_text_encoder(
    text_encoder: Path | str,
    checkpoint: Path | str,
    transformer: Path | str | None = None,
    settings: GemmaSettings | None = None,
) -> TextEncoderInfo:
    """Whether `text_encoder` fits the text projection in `checkpoint`; reads headers only.

    `transformer`, where it lies elsewhere, is the file whose Gemma it has to be. Raises CheckpointError that states
    both sizes, or what is missing, and what to choose; ConfigError for a tokenizer that nothing would read.
    """
    if is_t5(text_encoder):
        with TensorFile(transformer or checkpoint) as model:
            _check_kind("T5", Path(text_encoder).name, model)
            width = transformer_config(model).caption_channels
            return TextEncoderInfo(*check_t5(text_encoder, settings, model, width))
    if settings is not None and settings.tokenizer is not None:
        raise ConfigError(
            f"gemma.tokenizer is set, and the text encoder {Path(text_encoder).name} brings its own: only T5, the text "
            "encoder of LTX-Video, needs it. Leave it out."
        )
    with (
        open_gemma(text_encoder) as gemma,
        TensorFile(checkpoint) as source,
        TensorFile(transformer or checkpoint) as model,
    ):
        _check_family(gemma, model)
        extractor, prefix = _projection(source)
        _check_fit(gemma, extractor, source)
        load_tokenizer(gemma)
        return TextEncoderInfo(
            hidden=gemma.shape.hidden,
            layers=gemma.shape.layers,
            columns=extractor.columns,
            version="2.3" if extractor.is_v23 else "2.0",
            nbytes=gemma.nbytes + sum(source.tensors[name].nbytes for name in source.tensors if _is_projection(name)),
        )


def text_fingerprint(text_encoder: Path | str, checkpoint: Path | str, settings: GemmaSettings | None = None) -> str:
    """Identifies the text path by its tensors, tokenizer and precision; copies of the files have the same.

    Loads no weights.
    """
    if is_t5(text_encoder):
        return t5_fingerprint(text_encoder, settings)
    with open_gemma(text_encoder) as gemma, TensorFile(checkpoint) as source:
        return _fingerprint(gemma, source, told_precision(settings))


def device_bytes(text_encoder: Path | str, settings: GemmaSettings, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that the text encoder in `dtype` takes on a device without its activations: "device" all of it, "layers"
    one layer. Reads headers only.
    """
    if is_t5(text_encoder):
        return t5_bytes(text_encoder, settings, dtype)
    with open_gemma(text_encoder) as gemma:
        return {"device": _held(gemma, settings, dtype), "layers": _held(gemma, settings, dtype, "layers.0.")}


class TextEncoder:
    """Encodes captions; made by `TextEncoder.load`."""

    def __init__(
        self,
        gemma: nn.Module,
        tokenizer: Tokenizer,
        extractor: FeatureExtractor,
        device: torch.device,
        fingerprint: str,
        stream: bool = False,
    ) -> None:
        self.tokenizer = tokenizer
        self.fingerprint = fingerprint
        self.device = device
        self.stream = stream
        self._gemma: Any = gemma
        self._extractor: FeatureExtractor | None = extractor
        if stream:
            for module in (*self._gemma.layers, self._gemma.norm, extractor):
                visit_device(module, device)

    @classmethod
    def load(
        cls,
        text_encoder: Path | str,
        checkpoint: Path | str,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        on_progress: LoadProgress | None = None,
        on_linear: OnLinear | None = None,
        *,
        stream: bool | None = None,
        settings: GemmaSettings | None = None,
    ) -> TextEncoder | LayeredTextEncoder | T5Encoder:
        """Gemma from a folder or a file, the text projection from `checkpoint`, computing in `dtype` on `device`.
        A T5 is a T5Encoder, and needs no projection.

        `on_linear(path, linear)` may return another module for a linear of Gemma. `stream` keeps the weights in RAM and
        brings one layer at a time; None does so where a CUDA device has too little free memory. `settings` decide
        instead of both, and may give a LayeredTextEncoder. Raises CheckpointError before any weight is read where the
        files do not fit each other or the tokenizer is missing, OutOfMemory where the device is too small, ConfigError
        where `settings` need a package that is missing.
        """
        device = torch.device(device)
        if is_t5(text_encoder):
            return T5Encoder.load(text_encoder, dtype, device, settings, on_progress)
        placement, precision = "device", "stored"
        if settings is not None:
            dtype = DTYPES.get(settings.compute_dtype, dtype)
            on_linear, precision = bitsandbytes_linear(settings, dtype), told_precision(settings)
            placement = _placement(settings, text_encoder, checkpoint, dtype, device)
            stream = placement == "stream"
        try:
            with open_gemma(text_encoder) as files, TensorFile(checkpoint) as source:
                extractor, prefix = _projection(source)
                _check_fit(files, extractor, source)
                tokenizer = load_tokenizer(files)
                fingerprint = _fingerprint(files, source, precision)
                origin = Origin(source, prefix, "text projection", _is_projection)
                if placement == "layers":
                    materialise(extractor, origin, Arrival(dtype, "cpu", on_progress))
                    return LayeredTextEncoder(text_encoder, tokenizer, extractor, dtype, device, fingerprint)
                if stream is None:
                    stream = on_linear is None and not _fits(files, extractor, dtype, device)
                home = torch.device("cpu") if stream else device
                materialise(extractor, origin, Arrival(dtype, home, on_progress))
                gemma = load_gemma(files, dtype, home, on_progress, on_linear)
        except RuntimeError as error:
            if not card_is_full(error):
                raise
            raise too_small(device) from error
        if stream:
            for name, buffer in gemma.named_buffers():
                if not name.startswith(("layers.", "embed_tokens.")):
                    buffer.data = buffer.data.to(device)  # the rotary frequencies: a few kilobytes
        return cls(gemma, tokenizer, extractor, device, fingerprint, stream)

    def groups(self, captions: Sequence[str]) -> list[list[str]]:
        """`captions` in parts to encode one after the other."""
        return [[caption] for caption in captions]

    @torch.no_grad()
    def encode(self, captions: Sequence[str], batch_size: int = 1, events: Events | None = None) -> list[TextFeatures]:
        """The features of each caption, on the CPU in the encoder's dtype; equal captions are computed once.

        Captions of like length share a batch. Asks `events` whether to stop before each module of each layer.
        """
        if self._gemma is None or self._extractor is None:
            raise RuntimeError("This text encoder has been closed.")
        events = events or Events()
        ids = {caption: self.tokenizer.ids(caption) for caption in captions}
        order = sorted(ids, key=lambda caption: len(ids[caption]))
        done: dict[str, TextFeatures] = {}
        for start in range(0, len(order), max(1, batch_size)):
            batch = order[start : start + max(1, batch_size)]
            try:
                with polled(self._gemma, events.check_stop):  # one caption takes seconds where layers are streamed
                    of_batch = self._features([ids[caption] for caption in batch])
            except RuntimeError as error:
                if not card_is_full(error):
                    raise
                raise too_small(self.device) from error
            for caption, features in zip(batch, of_batch, strict=True):
                check_finite(features, caption)
                done[caption] = features.to("cpu")
            events.progress(len(done), len(order), batch[-1][:60])
        return [done[caption] for caption in captions]

    def hidden_states(self, ids: Sequence[Sequence[int]]) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        """All hidden states of `ids`, padded at the end, and the mask [B, T] of valid tokens.

        They are the embeddings and the output of every layer, the last one after the final norm.
        """
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[*row, *[0] * (longest - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=self.device)
        embed = self._gemma.embed_tokens
        # streamed: two gigabytes of embeddings stay where they are, only the rows in use travel
        embedded = embed(padded if self.stream else padded.to(self.device)).to(self.device)
        states = self._gemma(inputs_embeds=embedded, output_hidden_states=True, use_cache=False).hidden_states
        count = len(self._gemma.layers) + 1
        if states is None or len(states) != count:
            import transformers

            raise CheckpointError(
                f"transformers {transformers.__version__} returned {len(states or ())} hidden states instead of "
                f"{count}. Install transformers 4.57 or a released 5.x."
            )
        return states, mask

    def close(self) -> None:
        """Free the weights; the object cannot encode any more."""
        self._gemma = None
        self._extractor = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> TextEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _features(self, ids: Sequence[Sequence[int]]) -> list[TextFeatures]:
        states, mask = self.hidden_states(ids)
        assert self._extractor is not None
        return self._extractor(states, mask)


# --- whether the parts belong together --------------------------------------------------------------------------------


def _is_projection(name: str) -> bool:
    return "aggregate_embed." in name


def _projection(source: TensorFile) -> tuple[FeatureExtractor, str]:
    """An empty extractor that fits the checkpoint's tensors, and what stands before its names in the file."""
    names = [name for name in source.tensors if _is_projection(name)]
    if complaint := stored_in(source).complaint(name.removesuffix(".weight") for name in names):
        raise CheckpointError(f"{source.path.name} stores the text projection as {complaint}")
    before, projection, _ = names[0].rpartition(TEXT_PROJECTION) if names else ("", "", "")
    prefix = before + projection
    known = weight_shapes(source)
    shapes = {name[len(prefix) :]: known[name] for name in names if name.startswith(prefix)}
    with torch.device("meta"):
        try:
            extractor = FeatureExtractor.from_shapes(shapes)
        except CheckpointError as error:
            raise CheckpointError(f"{source.path.name}: {error}") from None
    missing = [prefix + name for name, _ in extractor.named_parameters() if name not in shapes]
    if missing:
        raise CheckpointError(
            f"{source.path.name} has an incomplete text projection: {missing[0]} is missing. Download the checkpoint "
            "again, or name another one for the text projection."
        )
    return extractor, prefix


def _check_family(gemma: GemmaFiles, transformer: TensorFile) -> None:
    """Raise CheckpointError where the transformer was trained with another Gemma, or with none."""
    _check_kind(gemma.family, gemma.path.name, transformer)
    if gemma.family == "Gemma 4":
        gemma4.check_version(gemma.path.name, gemma.version, transformer)


def _check_kind(kind: str, name: str, transformer: TensorFile) -> None:
    """Raise CheckpointError where the text encoder `name` is of a `kind` that the transformer was not trained with."""
    base = model_family(transformer)
    if base.text_encoder == kind:
        return
    own = " of its own" if base.text_encoder == "Gemma 4" else ""
    belongs = {"Gemma 4": ", which belongs to LTX-2.5", "T5": ", which belongs to LTX-Video"}.get(kind, "")
    raise CheckpointError(
        f"The text encoder {name} is {kind}{belongs}; {transformer.path.name} is {base.name}, which was trained with "
        f"{'a ' if own else ''}{base.text_encoder}{own}. {_USABLE[base.text_encoder]}"
    )


def _check_fit(gemma: GemmaFiles, extractor: FeatureExtractor, source: TensorFile) -> None:
    shape = gemma.shape
    if shape.columns == extractor.columns:
        return
    raise CheckpointError(
        f"The text encoder {gemma.path.name} does not fit {source.path.name}: it gives {shape.layers + 1} states of "
        f"{shape.hidden} values, {shape.columns} in all, and the checkpoint's text projection takes "
        f"{extractor.columns}. The published model needs {gemma.family} 12B (49 x 3840 = 188160). {gemma.usable}"
    )


def _fingerprint(gemma: GemmaFiles, source: TensorFile, precision: str = "stored") -> str:
    extractor, prefix = _projection(source)
    parts: list[str | bytes] = ["text encoder 1", *fingerprint_parts(gemma)]
    if precision != "stored":
        parts.append(precision)
    for name in sorted(name for name, _ in extractor.named_parameters()):
        info = source.tensors[prefix + name]
        parts += [f"{name} {info.dtype} {list(info.shape)}", source.read_bytes(prefix + name, info.nbytes // 2, 4096)]
    return digest(*parts) + middles(gemma.tensors)


# --- device ----------------------------------------------------------------------------------------------------------


def _fits(files: GemmaFiles, extractor: FeatureExtractor, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether the weights and the activations of one caption fit into what is free on `device`."""
    if device.type != "cuda":
        return True
    weights = _held(files, GemmaSettings(), dtype)
    weights += sum(parameter.numel() for parameter in extractor.parameters()) * dtype.itemsize
    # what torch keeps for itself without using it is free as well
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return weights + _ACTIVATIONS < torch.cuda.mem_get_info(device)[0] + spare


def _held(files: GemmaFiles, settings: GemmaSettings, dtype: torch.dtype, prefix: str = "") -> int:
    """Bytes in memory of the tensors that begin with `prefix`."""
    total = 0
    for name in files.tensors:
        info = files.info(name)
        if not name.startswith(prefix):
            continue
        if settings.precision != "stored" and name.endswith("_proj.weight"):
            total += quantized_bytes(settings, *numbers_shape(name, info, files.stored))
        else:
            total += info.nbytes if files.packed(name) else info.elements * dtype.itemsize
    return total


def _placement(
    settings: GemmaSettings, text_encoder: Path | str, checkpoint: Path | str, dtype: torch.dtype, device: torch.device
) -> str:
    """gemma.placement with auto decided by what is free; quantized it is always on the device."""
    if settings.precision != "stored":
        return "device"
    if settings.placement != "auto":
        return settings.placement
    with open_gemma(text_encoder) as files, TensorFile(checkpoint) as source:
        return "device" if _fits(files, _projection(source)[0], dtype, device) else "layers"
