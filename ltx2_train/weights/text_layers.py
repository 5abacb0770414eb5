"""The text encoder one layer at a time: each layer is read once, all captions pass it, then the next takes its place.

On the device there are one layer and the hidden states of a few captions; in RAM the states of all captions and the
text projection. So any card encodes with the bf16 file at full precision, and no machine ever holds Gemma. The features
are added up state by state (models/text.py), since 49 states of every caption would be far too much to keep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..device import card_is_full
from ..errors import DataError, OutOfMemory
from ..events import Events
from ..models.polled import polled
from ..models.text import FeatureExtractor, PartialFeatures, TextFeatures
from .gemma import Tokenizer, embedding_rows, one_layer
from .gemma_files import open_gemma

BATCH_TOKENS = 4096  # on the device at a time
GROUP_BYTES = 4 << 30  # RAM for the states and sums of the captions that go through together


class LayeredTextEncoder:
    """Encodes captions together; made by `TextEncoder.load` with gemma.placement = layers."""

    def __init__(
        self,
        path: Path | str,
        tokenizer: Tokenizer,
        extractor: FeatureExtractor,
        dtype: torch.dtype,
        device: torch.device,
        fingerprint: str,
    ) -> None:
        self.tokenizer, self.device, self.fingerprint = tokenizer, device, fingerprint
        self._path, self._dtype = path, dtype
        self._held: FeatureExtractor | None = extractor

    @property
    def _extractor(self) -> FeatureExtractor:
        if self._held is None:
            raise RuntimeError("This text encoder has been closed.")
        return self._held

    def groups(self, captions: Sequence[str]) -> list[list[str]]:
        """`captions` in parts that go through the layers together, each as large as RAM should hold."""
        with open_gemma(self._path) as files:
            per_token = files.shape.hidden * self._dtype.itemsize
        per_token += sum(4 * head.out_features for head in self._extractor.heads)
        return grouped(captions, lambda caption: len(self.tokenizer.ids(caption)) * per_token)

    def encode(self, captions: Sequence[str], batch_size: int = 1, events: Events | None = None) -> list[TextFeatures]:
        """The features of each caption, on the CPU. `batch_size` does not count: batches are as large as may be.

        Asks `events` whether to stop before each module of each layer. Raises OutOfMemory where one layer is too much.
        """
        by_caption = dict(self.encode_each(captions, events))
        for features in by_caption.values():
            if isinstance(features, DataError):
                raise features
        return [by_caption[caption] for caption in captions]  # type: ignore[misc]

    def encode_each(
        self, captions: Sequence[str], events: Events | None = None
    ) -> Iterator[tuple[str, TextFeatures | DataError]]:
        """As `encode`, each different caption once; one that fails has its error and does not spoil the others."""
        sums = self._sums(captions, events or Events())
        for caption in list(sums):
            features = sums.pop(caption).finish(self._dtype)
            try:
                check_finite(features, caption)
            except DataError as error:
                yield caption, error
            else:
                yield caption, features

    @torch.no_grad()
    def _sums(self, captions: Sequence[str], events: Events) -> dict[str, PartialFeatures]:
        ids = {caption: self.tokenizer.ids(caption) for caption in captions}
        sums = {caption: PartialFeatures(self._extractor) for caption in ids}
        batches = _batches(ids)
        with open_gemma(self._path) as files:
            used = sorted({token for row in ids.values() for token in row})
            place = {token: index for index, token in enumerate(used)}
            rows = embedding_rows(files, used, self._dtype)
            states = []
            for batch in batches:
                longest = max(len(ids[caption]) for caption in batch)
                index = [[place[t] for t in ids[c]] + [0] * (longest - len(ids[c])) for c in batch]
                states.append(rows[torch.tensor(index)])
            count = files.shape.layers + 1
            total = files.shape.layers * len(batches)
            events.stage(f"encode text layer by layer, {len(ids)} together", total)
            try:
                self._extractor.lay_by_state(count)
                take = self._taker(0, count, ids, sums)
                for batch, state in zip(batches, states, strict=True):
                    take(batch, state.to(self.device))
                for number in range(files.shape.layers):
                    layer = one_layer(files, number, self.device, self._dtype)
                    take = self._taker(number + 1, count, ids, sums)
                    for done, batch in enumerate(batches):
                        with polled(layer, events.check_stop):
                            states[done] = _pass(layer, batch, states[done], self.device, take)
                        events.progress(
                            number * len(batches) + done + 1, total, f"layer {number + 1} of {files.shape.layers}"
                        )
                    del layer, take
            except RuntimeError as error:
                if not card_is_full(error):
                    raise
                raise OutOfMemory(
                    f"One layer of the text encoder does not fit into the memory of {self.device}. Close what else "
                    "uses the card, or encode on the CPU (model.device = cpu)."
                ) from error
        return sums

    def close(self) -> None:
        """Free the text projection; the object cannot encode any more."""
        self._held = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def __enter__(self) -> LayeredTextEncoder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _taker(self, number: int, count: int, ids: dict[str, list[int]], sums: dict[str, PartialFeatures]) -> Take:
        """Adds state `number` of `count` to `sums`, from where it is on the device; each caption once."""
        slices = self._extractor.column_slices(number, count, self.device)
        taken: set[str] = set()

        def take(batch: Sequence[str], state: torch.Tensor) -> None:
            for row, caption in enumerate(batch):
                if caption not in taken:  # else it was before the device was full
                    sums[caption].add(state[row, : len(ids[caption])], slices)
                    taken.add(caption)

        return take


Take = Callable[[Sequence[str], torch.Tensor], None]
"""Called with captions and their states [B, T, D] on the device."""


def _pass(layer: Any, batch: Sequence[str], state: torch.Tensor, device: torch.device, take: Take) -> torch.Tensor:
    """`state` [B, T, D] of `batch` on the CPU after `layer`, once `take` had it on the device.

    In halves where the device is too full for all at once.
    """
    out = None
    try:
        out = layer(inputs_embeds=state.to(device), use_cache=False).last_hidden_state
        take(batch, out)
        return out.cpu()
    except RuntimeError as error:
        if not card_is_full(error) or len(state) == 1:
            raise
    # outside of the handler, whose traceback holds what the attempt has made
    del out
    half = len(state) // 2
    parts = ((batch[:half], state[:half]), (batch[half:], state[half:]))
    return torch.cat([_pass(layer, some, rows, device, take) for some, rows in parts])


def grouped(captions: Sequence[str], need: Callable[[str], int]) -> list[list[str]]:
    """`captions` in parts, in their order, of at most GROUP_BYTES each; `need` says how many bytes one takes."""
    groups: list[list[str]] = [[]]
    room = GROUP_BYTES
    for caption in captions:
        wanted = need(caption)
        if wanted > room and groups[-1]:
            groups.append([])
            room = GROUP_BYTES
        groups[-1].append(caption)
        room -= wanted
    return groups


def too_small(device: torch.device) -> OutOfMemory:
    """What is raised where a text encoder and `device` do not go together."""
    return OutOfMemory(
        f"The text encoder does not fit into the memory of {device}. Set gemma.placement to layers, which needs little "
        "and changes nothing, or gemma.precision to nf4; or choose an fp8 text encoder file, or encode on the CPU "
        "(model.device = cpu)."
    )


def visit_device(module: nn.Module, device: torch.device) -> None:
    """Have `module` on `device` while its forward runs; the original in RAM is kept and never copied back."""
    originals: list[tuple[torch.Tensor, torch.Tensor]] = []

    def bring(_: nn.Module, __: Any) -> None:
        for tensor in (*module.parameters(), *module.buffers()):
            originals.append((tensor, tensor.data))
            tensor.data = tensor.data.to(device, non_blocking=True)

    def release(*_: Any) -> None:
        for tensor, original in originals:
            tensor.data = original
        originals.clear()

    module.register_forward_pre_hook(bring)
    module.register_forward_hook(release, always_call=True)


def check_finite(features: TextFeatures, caption: str) -> None:
    """Raise DataError where `features` hold something else than numbers."""
    if all(torch.isfinite(part).all() for part in {features.video, features.audio}):
        return
    raise DataError(
        f"The text encoder gave values that are not numbers for the caption {caption[:80]!r}. Set gemma.compute_dtype "
        "to bf16 or fp32 instead of fp16, or download the text encoder again: the file may be damaged."
    )


def _batches(ids: dict[str, list[int]]) -> list[list[str]]:
    """Captions of like length together, of which padding and all fit into BATCH_TOKENS."""
    batches: list[list[str]] = []
    for caption in sorted(ids, key=lambda one: len(ids[one])):  # the longest of a batch comes last
        if batches and (len(batches[-1]) + 1) * len(ids[caption]) <= BATCH_TOKENS:
            batches[-1].append(caption)
        else:
            batches.append([caption])
    return batches
