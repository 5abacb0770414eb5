"""The vocoders: log-mel pictures to stereo sound.

2.0: HiFi-GAN, 24 kHz. 2.3: BigVGAN-v2 at 16 kHz, then a second, smaller one that adds what is above 8 kHz, 48 kHz.
Both are a stack of stages; a stage is a transposed convolution that raises the rate and halves the width, and then the
mean of three residual blocks with different kernels:

    mel [B, 2, T, 64] -> [B, 128, T], channel s * 64 + bin -> conv -> stages -> activation -> conv -> [B, 2, T * rates]

HiFi-GAN takes a leaky ReLU of slope 0.1 before each stage and, as the original does, of 0.01 at the end; BigVGAN has
anti-aliased SnakeBeta in the blocks and at the end. The first generator ends in tanh (2.0) or is cut to [-1, 1] (2.3).
ltx-core and ComfyUI make that cut before the bandwidth extension and so do we; diffusers, as its converter sets it up,
does not, and differs where the first wave leaves [-1, 1].

Vocoders run in float32. J. Kong et al., "HiFi-GAN", arXiv 2010.05646; S. Lee et al., "BigVGAN", arXiv 2206.04658.
Module names are the checkpoint's, less one leading `vocoder.`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from .bandwidth import CausalMel, sinc_upsample
from .snake import AntiAliasedSnake

MEL_CHANNELS = 128  # two sound channels of 64 bins
MEL_ROWS_PER_SECOND = 100
SLOPE = 0.1
LAST_SLOPE = 0.01

_WHAT_TO_DO = (
    "Use a complete LTX-2 or LTX-2.3 checkpoint; training itself needs no vocoder, only samples with sound do."
)


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of one generator; the defaults are LTX-2's."""

    width: int = 1024
    rates: tuple[int, ...] = (6, 5, 2, 2, 2)
    kernels: tuple[int, ...] = (16, 15, 8, 4, 4)
    block_kernels: tuple[int, ...] = (3, 7, 11)
    block_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    snake: bool = False
    end: str = "tanh"  # "tanh", "clamp" or "none"
    end_bias: bool = True

    @property
    def factor(self) -> int:
        return math.prod(self.rates)


@dataclass(frozen=True)
class ExtensionConfig:
    """The bandwidth extension of 2.3: its generator, and the spectrogram it reads."""

    generator: GeneratorConfig
    input_rate: int = 16000
    output_rate: int = 48000
    hop: int = 80
    n_fft: int = 512
    bins: int = 64

    @property
    def ratio(self) -> int:
        return self.output_rate // self.input_rate


@dataclass(frozen=True)
class VocoderConfig:
    """One generator (2.0), or one with a bandwidth extension behind it (2.3)."""

    generator: GeneratorConfig
    extension: ExtensionConfig | None = None
    sample_rate: int = 24000

    @classmethod
    def from_checkpoint(cls, section: Mapping[str, Any] | None) -> VocoderConfig:
        """Reads the `vocoder` section of a checkpoint's config; raises CheckpointError where it cannot be used."""
        if not isinstance(section, Mapping):
            raise CheckpointError(
                f"The checkpoint's config has no section vocoder (found {type(section).__name__}). {_WHAT_TO_DO}"
            )
        if "bwe" not in section:
            generator = _generator(section, "vocoder", snake=False)
            rate = section.get("output_sampling_rate") or MEL_ROWS_PER_SECOND * generator.factor
            return cls(generator, None, rate)
        generator = _generator(section.get("vocoder"), "vocoder.vocoder", snake=True)
        extension = _extension(section["bwe"])
        if MEL_ROWS_PER_SECOND * generator.factor != extension.input_rate:
            raise CheckpointError(
                f"The checkpoint's vocoder makes {MEL_ROWS_PER_SECOND * generator.factor} Hz and its bandwidth "
                f"extension reads {extension.input_rate} Hz. The file is damaged or of another family. {_WHAT_TO_DO}"
            )
        return cls(generator, extension, extension.output_rate)


def _generator(section: Any, name: str, *, snake: bool, last: bool = False) -> GeneratorConfig:
    """`last`: the extension's generator, which ends without an activation."""
    if not isinstance(section, Mapping):
        raise CheckpointError(f"The checkpoint's config has no section {name}. {_WHAT_TO_DO}")
    expected: dict[str, Any] = {"resblock": "AMP1" if snake else "1", "stereo": True}
    if snake:
        expected["activation"] = "snakebeta"
    for key, value in expected.items():
        if section.get(key) != value:
            raise CheckpointError(
                f"The checkpoint's config has {name}.{key} = {section.get(key)!r}; expected {value!r}. {_WHAT_TO_DO}"
            )
    default = GeneratorConfig()
    keys = {
        "upsample_initial_channel": default.width,
        "upsample_rates": default.rates,
        "upsample_kernel_sizes": default.kernels,
        "resblock_kernel_sizes": default.block_kernels,
        "resblock_dilation_sizes": default.block_dilations,
    }
    # LTX-2's own numbers are the original's defaults, so its file may leave them out; LTX-2.3's may not.
    missing = [key for key in keys if section.get(key) is None] if snake else []
    if missing:
        raise CheckpointError(f"The checkpoint's config lacks {', '.join(missing)} in {name}. {_WHAT_TO_DO}")
    width, rates, kernels, block_kernels, dilations = (
        fallback if section.get(key) is None else section[key] for key, fallback in keys.items()
    )
    if len(rates) != len(kernels) or len(block_kernels) != len(dilations) or width % 2 ** len(rates):
        raise CheckpointError(
            f"The sizes in the checkpoint's {name} do not fit together: upsample_rates {list(rates)} and "
            f"upsample_kernel_sizes {list(kernels)} are to be of one length, as are resblock_kernel_sizes "
            f"{list(block_kernels)} and resblock_dilation_sizes {[list(d) for d in dilations]}, and "
            f"upsample_initial_channel {width} is to be divisible by {2 ** len(rates)}. {_WHAT_TO_DO}"
        )
    end = "none" if last else "tanh" if section.get("use_tanh_at_final", True) else "clamp"
    return GeneratorConfig(
        width=width,
        rates=tuple(rates),
        kernels=tuple(kernels),
        block_kernels=tuple(block_kernels),
        block_dilations=tuple(tuple(d) for d in dilations),
        snake=snake,
        end=end,
        end_bias=section.get("use_bias_at_final", True),
    )


def _extension(section: Any) -> ExtensionConfig:
    generator = _generator(section, "vocoder.bwe", snake=True, last=True)
    names = ("input_sampling_rate", "output_sampling_rate", "hop_length", "n_fft", "num_mels")
    missing = [name for name in names if section.get(name) is None]
    if missing:
        raise CheckpointError(f"The checkpoint's config lacks {', '.join(missing)} in vocoder.bwe. {_WHAT_TO_DO}")
    extension = ExtensionConfig(generator, *(section[name] for name in names))
    needed = extension.hop * extension.output_rate / extension.input_rate
    if extension.output_rate % extension.input_rate or generator.factor != needed:
        raise CheckpointError(
            f"The checkpoint's bandwidth extension does not fit together: from {extension.input_rate} to "
            f"{extension.output_rate} Hz, a whole multiple, with {extension.hop} samples a row, its upsample_rates "
            f"{list(generator.rates)} are to multiply to {needed:g}. {_WHAT_TO_DO}"
        )
    return extension


def _block_convs(channels: int, kernel: int, dilations: tuple[int, ...]) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)
        for dilation in dilations
    )


class LeakyBlock(nn.Module):
    """HiFi-GAN: pairs of a dilated and a plain convolution, each after a leaky ReLU, each pair added to its input."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = _block_convs(channels, kernel, dilations)
        self.convs2 = _block_convs(channels, kernel, (1,) * len(dilations))

    def forward(self, x: Tensor) -> Tensor:
        for dilated, plain in zip(self.convs1, self.convs2, strict=True):
            x = x + plain(F.leaky_relu(dilated(F.leaky_relu(x, SLOPE)), SLOPE))
        return x


class SnakeBlock(nn.Module):
    """BigVGAN: the same pairs with an anti-aliased SnakeBeta of its own before each convolution."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.convs1 = _block_convs(channels, kernel, dilations)
        self.convs2 = _block_convs(channels, kernel, (1,) * len(dilations))
        self.acts1 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)
        self.acts2 = nn.ModuleList(AntiAliasedSnake(channels) for _ in dilations)

    def forward(self, x: Tensor) -> Tensor:
        for before, dilated, between, plain in zip(self.acts1, self.convs1, self.acts2, self.convs2, strict=True):
            x = x + plain(between(dilated(before(x))))
        return x


class Generator(nn.Module):
    """mel [B, 2, T, 64] -> waveform [B, 2, T * factor]."""

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config = config
        widths = [config.width >> stage for stage in range(len(config.rates) + 1)]
        block = SnakeBlock if config.snake else LeakyBlock
        self.conv_pre = nn.Conv1d(MEL_CHANNELS, config.width, 7, padding=3)
        self.ups = nn.ModuleList(
            nn.ConvTranspose1d(before, after, kernel, rate, padding=(kernel - rate) // 2)
            for before, after, kernel, rate in zip(widths[:-1], widths[1:], config.kernels, config.rates, strict=True)
        )
        self.resblocks = nn.ModuleList(
            block(width, kernel, dilations)
            for width in widths[1:]
            for kernel, dilations in zip(config.block_kernels, config.block_dilations, strict=True)
        )
        self.act_post = AntiAliasedSnake(widths[-1]) if config.snake else nn.LeakyReLU(LAST_SLOPE)
        self.conv_post = nn.Conv1d(widths[-1], 2, 7, padding=3, bias=config.end_bias)

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_pre(mel.transpose(2, 3).flatten(1, 2).to(self.conv_pre.weight.dtype))
        side_by_side = len(self.config.block_kernels)
        for stage, up in enumerate(self.ups):
            x = up(x if self.config.snake else F.leaky_relu(x, SLOPE))
            blocks = self.resblocks[stage * side_by_side : (stage + 1) * side_by_side]
            x = sum(block(x) for block in blocks) / side_by_side
            assert isinstance(x, Tensor)
        x = self.conv_post(self.act_post(x))
        if self.config.end == "tanh":
            return torch.tanh(x)
        return x.clamp(-1.0, 1.0) if self.config.end == "clamp" else x


class Vocoder(Generator):
    """The vocoder of 2.0: one generator. Input [B, 2, T, 64], output [B, 2, N] at `sample_rate` Hz."""

    def __init__(self, config: VocoderConfig) -> None:
        assert config.extension is None
        super().__init__(config.generator)
        self.sample_rate = config.sample_rate


class ExtendedVocoder(nn.Module):
    """The vocoder of 2.3: a generator and its bandwidth extension, with the same input and output as `Vocoder`."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        extension = config.extension
        assert extension is not None
        self.extension = extension
        self.sample_rate = config.sample_rate
        self.vocoder = Generator(config.generator)
        self.bwe_generator = Generator(extension.generator)
        self.mel_stft = CausalMel(extension.n_fft, extension.hop, extension.bins, extension.input_rate)

    def forward(self, mel: Tensor) -> Tensor:
        low = self.vocoder(mel)
        length = low.shape[-1] * self.extension.ratio
        low = F.pad(low, (0, -low.shape[-1] % self.extension.hop))  # whole rows of the spectrogram
        added = self.bwe_generator(self.mel_stft(low))
        return (added + sinc_upsample(low, self.extension.ratio)).clamp(-1.0, 1.0)[..., :length]


def build_vocoder(config: VocoderConfig) -> Vocoder | ExtendedVocoder:
    """The vocoder of either version."""
    return Vocoder(config) if config.extension is None else ExtendedVocoder(config)
