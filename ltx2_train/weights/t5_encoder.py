"""Captions to T5's last states, which are the text that LTX-Video reads as it is: no projection, no connectors.

A caption passes alone, so nothing is padded and no mask is needed. All layers stay on the device, or each comes when
the captions of a group have reached it: from RAM, or straight from the file.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..device import DTYPES, card_is_full
from ..errors import CheckpointError, DataError
from ..events import Events
from ..files import digest
from ..models.t5 import T5Block, T5Norm, position_bias
from ..models.text import TextFeatures
from .gemma import matrix_rows, place_weight
from .gemma_bnb import bitsandbytes_linear, quantized_bytes
from .gemma_settings import GemmaSettings, told_precision
from .materialise import LoadProgress, OnLinear
from .reader import TensorFile
from .stored import numbers_shape
from .stored_numbers import read_numbers
from .t5 import (
    EMBEDDING,
    LAST_NORM,
    TABLE,
    USABLE_T5,
    T5Files,
    TokenizerBytes,
    find_tokenizer,
    load_t5_tokenizer,
    open_t5,
)
from .text_layers import check_finite, grouped, too_small

_BLOCK = "encoder.block.{}."
_ACTIVATIONS = 1 << 28  # bytes, of one caption


class T5Encoder:
    """Encodes captions; made by `T5Encoder.load`."""

    def __init__(
        self,
        path: Path | str,
        settings: GemmaSettings,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        with open_t5(path) as files:
            found = find_tokenizer(files, settings.tokenizer)
            self.tokenizer = load_t5_tokenizer(found, files.vocabulary)
            self.fingerprint = _fingerprint(files, found, settings)
        self.device = device
        self._path, self._dtype = path, dtype
        self._blocks: list[T5Block] | None = None  # each layer is read when its turn comes
        self._here = False  # whether all layers are on the device
        self._closed = False

    @classmethod
    def load(
        cls,
        path: Path | str,
        dtype: torch.dtype = torch.bfloat16,
        device: torch.device | str = "cpu",
        settings: GemmaSettings | None = None,
        on_progress: LoadProgress | None = None,
    ) -> T5Encoder:
        """T5 from a folder or a file, computing in `dtype` on `device`, kept as `settings` say.

        Raises CheckpointError before any weight is read where the file or its tokenizer will not do, OutOfMemory where
        the device is too small, ConfigError where `settings` need a package that is missing.
        """
        settings, device = settings or GemmaSettings(), torch.device(device)
        dtype = DTYPES.get(settings.compute_dtype, dtype)
        replace = bitsandbytes_linear(settings, dtype)
        encoder = cls(path, settings, dtype, device)
        with open_t5(path) as files:
            fits = device.type != "cuda" or _held(files, settings, dtype) + _ACTIVATIONS < _free(device)
            placement = settings.placement
            if placement == "auto":
                placement = "device" if fits or settings.precision != "stored" else "layers"
            if placement != "layers":
                encoder._here = placement == "device"
                home = device if placement == "device" else torch.device("cpu")
                with _told_where_full(device):
                    encoder._blocks = []
                    for number in range(files.config.layers):
                        encoder._blocks.append(_read_block(files, number, home, dtype, replace))
                        if on_progress is not None:
                            on_progress(number + 1, files.config.layers, f"layer {number + 1}")
        return encoder

    def groups(self, captions: Sequence[str]) -> list[list[str]]:
        """`captions` in parts that go through the layers together, each as large as RAM should hold."""
        if self._here:
            return [[caption] for caption in captions]
        with open_t5(self._path) as files:
            per_token = 4 * files.config.hidden
        return grouped(captions, lambda caption: len(self.tokenizer.ids(caption)) * per_token)

    def encode(self, captions: Sequence[str], batch_size: int = 1, events: Events | None = None) -> list[TextFeatures]:
        """The features of each caption, on the CPU in the encoder's dtype. `batch_size` does not count."""
        by_caption = dict(self.encode_each(captions, events))
        for features in by_caption.values():
            if isinstance(features, DataError):
                raise features
        return [found for caption in captions if isinstance(found := by_caption[caption], TextFeatures)]

    @torch.no_grad()
    def encode_each(
        self, captions: Sequence[str], events: Events | None = None
    ) -> Iterator[tuple[str, TextFeatures | DataError]]:
        """As `encode`, each different caption once; one that fails has its error and does not spoil the others."""
        if self._closed:
            raise RuntimeError("This text encoder has been closed.")
        for caption, state in self._states(list(dict.fromkeys(captions)), events or Events()).items():
            features = TextFeatures(state, state)
            try:
                check_finite(features, caption)
            except DataError as error:
                yield caption, error
            else:
                yield caption, features

    def close(self) -> None:
        """Free the weights; the object cannot encode any more."""
        self._blocks, self._closed = None, True
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> T5Encoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _states(self, captions: Sequence[str], events: Events) -> dict[str, Tensor]:
        """The last states [T, D] of each caption, on the CPU."""
        ids = {caption: self.tokenizer.ids(caption) for caption in captions}
        with open_t5(self._path) as files, _told_where_full(self.device):
            used = sorted({token for row in ids.values() for token in row})
            place = {token: index for index, token in enumerate(used)}
            rows = matrix_rows(files, EMBEDDING, used, plain=True).to(self._dtype).float()
            states = {text: rows[torch.tensor([place[token] for token in row])][None] for text, row in ids.items()}
            table = _numbers(files, TABLE, self.device, self._dtype)
            for number in range(files.config.layers):
                block = self._block(files, number)
                for caption, state in states.items():
                    events.check_stop()
                    out = block(state.to(self.device), position_bias(table, state.shape[1]))
                    states[caption] = out if self._here else out.cpu()
                del block
                if not self._here:
                    events.progress(number + 1, files.config.layers, f"layer {number + 1} of {files.config.layers}")
            norm = T5Norm(files.config.hidden)
            norm.weight = nn.Parameter(_numbers(files, LAST_NORM, self.device, self._dtype), requires_grad=False)
            return {caption: norm(state.to(self.device))[0].cpu() for caption, state in states.items()}

    def _block(self, files: T5Files, number: int) -> nn.Module:
        """Layer `number`, on the device."""
        if self._blocks is None:
            return _read_block(files, number, self.device, self._dtype)
        return self._blocks[number] if self._here else copy.deepcopy(self._blocks[number]).to(self.device)


def check_t5(
    path: Path | str, settings: GemmaSettings | None, transformer: TensorFile, width: int
) -> tuple[int, int, int, str, int]:
    """What TextEncoderInfo says of the T5 at `path`. Reads headers only.

    Raises CheckpointError where it has no tokenizer, or no states of the `width` that `transformer` reads.
    """
    with open_t5(path) as files:
        if files.config.hidden != width:
            raise CheckpointError(
                f"The text encoder {files.name} does not fit {transformer.path.name}: its states are "
                f"{files.config.hidden} wide, and the transformer reads {width}. {USABLE_T5}"
            )
        found = find_tokenizer(files, None if settings is None else settings.tokenizer)
        load_t5_tokenizer(found, files.vocabulary)
        return width, files.config.layers, width, "ltxv", files.nbytes


def t5_fingerprint(path: Path | str, settings: GemmaSettings | None = None) -> str:
    """Identifies the encoder by its tensors, tokenizer and precision; copies of the files have the same."""
    settings = settings or GemmaSettings()
    with open_t5(path) as files:
        return _fingerprint(files, find_tokenizer(files, settings.tokenizer), settings)


def t5_bytes(path: Path | str, settings: GemmaSettings, dtype: torch.dtype) -> dict[str, int]:
    """Bytes that T5 takes on a device without its activations: "device" all of it, "layers" one layer."""
    with open_t5(path) as files:
        return {"device": _held(files, settings, dtype), "layers": _held(files, settings, dtype, _BLOCK.format(0))}


def _fingerprint(files: T5Files, tokenizer: TokenizerBytes, settings: GemmaSettings) -> str:
    parts: list[str | bytes] = ["t5 1", told_precision(settings), tokenizer.digest]
    for name in sorted(files.tensors):
        info = files.info(name)
        parts += [f"{name} {info.dtype} {list(info.shape)}", files.read_bytes(name, info.nbytes // 2, 4096)]
    return digest(*parts)


def _read_block(
    files: T5Files,
    number: int,
    device: torch.device | str,
    dtype: torch.dtype,
    on_linear: OnLinear | None = None,
) -> T5Block:
    """Layer `number` from its file."""
    prefix = _BLOCK.format(number)
    with torch.device("meta"):
        block = T5Block(files.config)
    for name in files.tensors:
        if name.startswith(prefix) and name.endswith(".weight") and name != TABLE:
            path = name[len(prefix) :].removesuffix(".weight")
            place_weight(block, files, name, path, device, dtype, on_linear)
    return block.requires_grad_(False).eval()


def _numbers(files: T5Files, name: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    return read_numbers(files, name, files.info(name)).to(device, dtype)


def _held(files: T5Files, settings: GemmaSettings, dtype: torch.dtype, prefix: str = "encoder.") -> int:
    """Bytes in memory of the tensors that begin with `prefix`."""
    total = 0
    for name in files.tensors:
        info = files.info(name)
        if not name.startswith(prefix):
            continue
        if settings.precision != "stored" and len(info.shape) == 2 and name != TABLE:
            total += quantized_bytes(settings, *numbers_shape(name, info, files.stored))
        else:
            total += info.nbytes if files.packed(name) else info.elements * dtype.itemsize
    return total


def _free(device: torch.device) -> int:
    # what torch keeps for itself without using it is free as well
    spare = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + spare


@contextlib.contextmanager
def _told_where_full(device: torch.device) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not card_is_full(error):
            raise
        raise too_small(device) from error
