"""What a plan is made from: the sizes of the model from its header, the settings, and the largest batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ...config import RunConfig
from ...config.base_files import require_family
from ...device import DTYPES
from ...families import FAMILIES, Family
from ...full.choose import chosen_weights
from ...lora.adapter import Adapter
from ...models.transformer import TransformerConfig
from ...optim import find_optimizer, state_bytes
from ...sizes import frozen_bytes, meta_model, names_of, stored_as
from ...weights.load import transformer_config
from ...weights.probe import model_family
from ...weights.published import published_config
from ...weights.reader import TensorFile
from ..contexts import streams_of
from ..regularizers.base import Cost
from ..regularizers.base import CostSizes as PassSizes
from ..regularizers.together import costs
from .simulate import StepProfile, context_widths, simulate
from .speed import Flops, flops, lora_passes
from .work import TEXT_TOKENS, Workload

OUT_CHANNELS = 128  # numbers of a token's prediction, of picture and sound alike
ROWS = 512  # of a weight on which the state of an optimizer is measured, where the weights are trained themselves
KEPT = "kept"  # the format of a file that is quantized already


@dataclass(frozen=True)
class BlockSizes:
    """Bytes of one block and of what is outside of the blocks in one format, and trained values and tensors of a block.

    Where the weights themselves are trained, the bytes are those that are not, and all are spread over the blocks.
    `outside_values` are those of `lora_values` that are no block's, `largest` is that of the largest tensor.
    """

    block: int
    outside: int
    lora_values: int
    lora_tensors: int = 0
    lora_of: dict[str, int] = field(default_factory=dict)
    outside_values: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Facts:
    """The model, the run and its largest batch. `stored_as`: how the file stores the linears of its blocks, or "".

    Simulations are kept, so asking again costs nothing.
    """

    config: TransformerConfig
    run: RunConfig
    work: Workload
    device_type: str = "cuda"
    stored_as: str = ""
    checkpoint: str = ""
    file_bytes: int = 0  # of the checkpoint
    _sizes: dict[str, BlockSizes] = field(default_factory=dict, repr=False, compare=False)
    _profiles: dict[tuple[str, int, bool], StepProfile] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, run: RunConfig, work: Workload, device_type: str) -> Facts:
        """From the header of the run's checkpoint; no weights are read. Raises CheckpointError, ConfigError."""
        path = run.need("model.checkpoint")
        with TensorFile(path) as file:
            config = transformer_config(file)
            stored, family = stored_as(file), model_family(file)
        require_family(run, family, Path(path).name)
        size = Path(path).stat().st_size
        return cls(config, run, _reading(work, family), device_type, stored, Path(path).name, size)

    @classmethod
    def published(cls, version: str, run: RunConfig, work: Workload) -> Facts:
        """Of the published full-size model of `version`, on a CUDA card."""
        config, family = TransformerConfig.from_checkpoint(published_config(version)["transformer"]), FAMILIES[version]
        require_family(run, family, family.checkpoint)
        return cls(config, run, _reading(work, family), "cuda", checkpoint=f"{family.name} as published")

    @property
    def total(self) -> int:
        """Number of blocks."""
        return self.config.num_layers

    def sizes(self, format: str) -> BlockSizes:
        """Bytes of weights in `format`."""
        if format not in self._sizes:
            self._sizes[format] = _sizes(self.config, self.run, self.stored_format(format))
        return self._sizes[format]

    def profile(self, format: str, ff_chunk: int = 0, lean: bool = False) -> StepProfile:
        """The simulated step."""
        key = (format, ff_chunk, lean)
        if key not in self._profiles:
            self._profiles[key] = simulate(
                self.config,
                self.run,
                self.work,
                self.stored_format(format),
                ff_chunk,
                self.device_type,
                next((known for (name, _, _), known in self._profiles.items() if name == format), None),
                lean,
            )
        return self._profiles[key]

    def stored_format(self, format: str) -> str:
        """`format`, or for "kept" the one that takes as much room as what the file has."""
        return self.stored_as if format == KEPT else format

    @cached_property
    def flops(self) -> Flops:
        passed = self.sizes("none").lora_of
        return flops(self.config, self.work, weights=passed) if self.full else flops(self.config, self.work, passed)

    @property
    def full(self) -> bool:
        """Whether the weights themselves are trained."""
        return self.run.train.what == "full"

    @property
    def value_bytes(self) -> int:
        """Of one trainable number with its copies: a LoRA is float32 and copied for products in fewer bits."""
        if self.full:
            return self.itemsize + (4 if self.run.full.master_weights else 0)
        return 4 + (0 if self.run.model.precision == "fp32" else 2)

    @property
    def gradient_bytes(self) -> int:
        """Of the gradient of one trainable number."""
        return self.itemsize if self.full else 4

    @property
    def lora_values(self) -> int:
        """Trainable numbers in all blocks."""
        return self.sizes("none").lora_values * self.total

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer state, and of a running mean, for one trainable number."""
        mean = 4 if self.run.ema.decay else 0
        rows = ROWS if self.full else self.run.lora.rank
        return mean + state_bytes(self.run.optimizer, self.device_type, rows)

    @property
    def update_seconds(self) -> float:
        """What a step of the optimizer costs on a card besides the bytes it moves."""
        name = self.run.optimizer.name
        each = 0.0 if name == "auto" else find_optimizer(name).tensor_seconds
        return each * self.sizes("none").lora_tensors * self.total

    @cached_property
    def regularizers(self) -> Cost:
        """What the regularizers of the run add to a micro-batch."""
        shape, work = self.work.shape, self.work
        sizes = PassSizes(
            depth=self.total,
            width=self.config.video.width,
            batch=work.batch,
            tokens=0 if shape is None else shape.tokens,
            itemsize=self.itemsize,
            outputs=work.batch * OUT_CHANNELS * ((0 if shape is None else shape.tokens) + work.sound),
        )
        return costs(self.run.regularizers, sizes)

    @property
    def text_kv_bytes(self) -> int:
        """Of the keys and values of the text of one block."""
        widths = {"video": self.config.video.width, "audio": self.config.audio.width}
        width = sum(widths[stream] for stream in streams_of(self.work.mode))
        return 2 * self.work.batch * self.work.text * width * self.itemsize

    @property
    def context_bytes(self) -> int:
        """Of the text contexts of one caption."""
        return self.work.text * sum(context_widths(self.config, self.work.mode).values()) * self.itemsize

    @property
    def itemsize(self) -> int:
        return DTYPES[self.run.model.precision].itemsize

    def with_run(self, run: RunConfig) -> Facts:
        """The same for other settings."""
        return replace(self, run=run, _sizes={}, _profiles={})


def _reading(work: Workload, family: Family) -> Workload:
    """`work` with captions as long as `family` reads them."""
    return work if family.caption_tokens == TEXT_TOKENS else replace(work, text=family.caption_tokens)


def _full_sizes(config: TransformerConfig, run: RunConfig) -> BlockSizes:
    model, _ = meta_model(config, run, "none", 1)
    (block,) = model.transformer_blocks
    total, shapes = config.num_layers, dict(model.named_parameters())
    inside = outside = tensors = largest = 0
    passes: list[tuple[str, int]] = []
    for name in chosen_weights(names_of(model, total), run.full):
        number = name.split(".")[1] if name.startswith("transformer_blocks.") else ""
        weight = shapes[name.replace(f".{number}.", ".0.", 1) if number else name]
        tensors, largest = tensors + 1, max(largest, weight.numel())
        if not number:
            outside += weight.numel()
            continue
        inside += weight.numel()
        if weight.ndim == 2 and name.endswith(".weight"):
            passes.append((name.split(".", 2)[2].removesuffix(".weight"), weight.numel()))
    size, item = sum(one.numel() for one in block.parameters()), DTYPES[run.model.precision].itemsize
    around = sum(one.numel() for one in model.parameters()) - size
    passed = {who: count // total for who, count in lora_passes(passes).items()}
    return BlockSizes(
        (size * total - inside) * item // total,
        (around - outside) * item,
        math.ceil((inside + outside) / total),
        math.ceil(tensors / total),
        passed,
        outside,
        largest,
    )


def _sizes(config: TransformerConfig, run: RunConfig, format: str) -> BlockSizes:
    if run.train.what == "full":
        return _full_sizes(config, run)
    model, values = meta_model(config, run, format, 1)
    (block,) = model.transformer_blocks
    inside, outside = frozen_bytes(model)
    layers = [(name, m) for name, m in block.named_modules() if isinstance(m, Adapter)]
    passes = lora_passes([(name, m.products()) for name, m in layers])
    return BlockSizes(inside, outside, values, sum(len(m.trained()) for _, m in layers), passes)
