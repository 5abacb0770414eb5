"""What a plan is made from: the sizes of the model from its header, the settings, and the largest batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from ...config import RunConfig
from ...config.base_files import require_mode
from ...device import DTYPES
from ...families import FAMILIES, Family
from ...lora.adapter import Adapter
from ...models.transformer import TransformerConfig
from ...optim import find_optimizer, state_bytes
from ...sizes import frozen_bytes, meta_model, stored_as
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
KEPT = "kept"  # the format of a file that is quantized already


@dataclass(frozen=True)
class BlockSizes:
    """Bytes of one block and of what is outside of the blocks in one format, and LoRA values and tensors of a block."""

    block: int
    outside: int
    lora_values: int
    lora_tensors: int = 0
    lora_of: dict[str, int] = field(default_factory=dict)


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
    _sizes: dict[str, BlockSizes] = field(default_factory=dict, repr=False, compare=False)
    _profiles: dict[tuple[str, int, bool], StepProfile] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, run: RunConfig, work: Workload, device_type: str) -> Facts:
        """From the header of the run's checkpoint; no weights are read. Raises CheckpointError, ConfigError."""
        path = run.need("model.checkpoint")
        with TensorFile(path) as file:
            config = transformer_config(file)
            stored, family = stored_as(file), model_family(file)
        require_mode(run, family, Path(path).name)
        return cls(config, run, _reading(work, family), device_type, stored, Path(path).name)

    @classmethod
    def published(cls, version: str, run: RunConfig, work: Workload) -> Facts:
        """Of the published full-size model of `version`, on a CUDA card."""
        config, family = TransformerConfig.from_checkpoint(published_config(version)["transformer"]), FAMILIES[version]
        require_mode(run, family, family.checkpoint)
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
        return flops(self.config, self.work, self.sizes("none").lora_of)

    @property
    def lora_values(self) -> int:
        """Trainable numbers in all blocks."""
        return self.sizes("none").lora_values * self.total

    @property
    def state_bytes(self) -> float:
        """Bytes of optimizer state, and of a running mean, for one trainable number."""
        mean = 4 if self.run.ema.decay else 0
        return mean + state_bytes(self.run.optimizer, self.device_type, self.run.lora.rank)

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


def _sizes(config: TransformerConfig, run: RunConfig, format: str) -> BlockSizes:
    model, values = meta_model(config, run, format, 1)
    (block,) = model.transformer_blocks
    inside, outside = frozen_bytes(model)
    layers = [(name, m) for name, m in block.named_modules() if isinstance(m, Adapter)]
    passes = lora_passes([(name, m.products()) for name, m in layers])
    return BlockSizes(inside, outside, values, sum(len(m.trained()) for _, m in layers), passes)
