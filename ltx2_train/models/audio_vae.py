"""The audio VAE: log-mel pictures to 25 latents a second, and back.

    encode:  mel [B, 2, T, 64]  ->  latents [B, 8, ceil(T / 4), 16], normalised
    decode:  latents [B, 8, S, 16]  ->  mel [B, 2, 4 S - 3, 64]

A convolutional autoencoder over (time, frequency). Convolutions are causal in time: rows are added before the first one
only, so a latent depends on the past alone; frequency is padded on both sides. Two stride-2 steps on each side make the
factor 4. Upsampling doubles the rows and drops the first, which undoes the causal padding: S -> 2 S - 1, twice, is
4 S - 3. Norms are per-position RMS over channels with no weights.

The encoder yields mean and log-variance; the model was trained on the mean, so the second half is left alone. Latents
are normalised by mean and deviation of each of the 8 x 16 channel-bin pairs, taken from the checkpoint.

Module names are the checkpoint's, less the leading `audio_vae.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError
from ..shapes import AUDIO_LATENTS_PER_SECOND
from .mel import waveform_to_mel

TIME_FACTOR = 4
NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class AudioVAEConfig:
    """Sizes of the audio VAE; the defaults are those of LTX-2 and LTX-2.3."""

    channels: int = 128
    channel_multipliers: tuple[int, ...] = (1, 2, 4)
    blocks: int = 2
    latent_channels: int = 8
    mel_bins: int = 64
    in_channels: int = 2
    out_channels: int = 2
    double_z: bool = True
    mid_attention: bool = False
    sample_rate: int = 16000
    hop: int = 160
    n_fft: int = 1024

    @property
    def latent_bins(self) -> int:
        return self.mel_bins // TIME_FACTOR

    @property
    def latents_per_second(self) -> float:
        return self.sample_rate / self.hop / TIME_FACTOR

    @classmethod
    def from_checkpoint(cls, section: Mapping[str, Any] | None) -> AudioVAEConfig:
        """Reads the `audio_vae` section of a checkpoint's config; raises CheckpointError where it cannot be used."""
        section = _mapping(section, "audio_vae")
        params = _mapping(section.get("model"), "audio_vae.model").get("params")
        params = _mapping(params, "audio_vae.model.params")
        sizes = _mapping(params.get("ddconfig"), "audio_vae.model.params.ddconfig")
        preprocessing = section.get("preprocessing") or {}
        stft = preprocessing.get("stft") or {}
        bins = sizes.get("mel_bins") or (preprocessing.get("mel") or {}).get("n_mel_channels")
        needed = {name: sizes.get(name) for name in ("ch", "ch_mult", "num_res_blocks", "z_channels")}
        needed["mel_bins"] = bins
        missing = [name for name, value in needed.items() if value is None]
        if missing:
            raise CheckpointError(
                "The checkpoint's audio VAE cannot be built: its config lacks "
                f"{', '.join(missing)} in audio_vae.model.params.ddconfig. Use an original LTX-2 or LTX-2.3 checkpoint."
            )
        assert bins is not None  # it is one of `needed`
        _refuse(sizes, "norm_type", "pixel")
        _refuse(sizes, "causality_axis", "height")
        _refuse(sizes, "resamp_with_conv", True)
        levels = len(sizes["ch_mult"])
        if 2 ** (levels - 1) != TIME_FACTOR:
            raise CheckpointError(
                f"The checkpoint's audio VAE has {levels} levels (ch_mult {list(sizes['ch_mult'])}); this trainer "
                "knows those with three, which make one latent of four mel rows. Use an LTX-2 or LTX-2.3 checkpoint."
            )
        resolution = sizes.get("resolution", 256)
        attended = {resolution >> level for level in range(levels)} & set(sizes.get("attn_resolutions") or ())
        if attended:
            raise CheckpointError(
                f"The checkpoint's audio VAE attends at the resolutions {sorted(attended)} (attn_resolutions); this "
                "trainer knows those without. Use an LTX-2 or LTX-2.3 checkpoint."
            )
        config = cls(
            channels=sizes["ch"],
            channel_multipliers=tuple(sizes["ch_mult"]),
            blocks=sizes["num_res_blocks"],
            latent_channels=sizes["z_channels"],
            mel_bins=bins,
            in_channels=sizes.get("in_channels", 2),
            out_channels=sizes.get("out_ch", 2),
            double_z=sizes.get("double_z", True),
            # The original builds the attention unless the key says no.
            mid_attention=sizes.get("mid_block_add_attention", True),
            sample_rate=params.get("sampling_rate", 16000),
            hop=stft.get("hop_length", 160),
            n_fft=stft.get("filter_length", 1024),
        )
        if config.latents_per_second != AUDIO_LATENTS_PER_SECOND:
            raise CheckpointError(
                f"The checkpoint's audio VAE makes {config.latents_per_second:g} latents a second (sampling_rate "
                f"{config.sample_rate}, hop_length {config.hop}); LTX-2 has {AUDIO_LATENTS_PER_SECOND:g}. The file is "
                "damaged or was repacked with a wrong header. Use an original LTX-2 checkpoint."
            )
        return config


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise CheckpointError(
            f"The checkpoint's config has no section {name} (found {type(value).__name__}), so its audio VAE cannot be "
            "built. Use a complete LTX-2 or LTX-2.3 checkpoint, or train on video alone."
        )
    return value


def _refuse(sizes: Mapping[str, Any], name: str, known: Any) -> None:
    if sizes.get(name, known) != known:
        raise CheckpointError(
            f"The checkpoint's audio VAE has {name} = {sizes[name]!r}; this trainer knows {known!r} only. "
            "Use an LTX-2 or LTX-2.3 checkpoint."
        )


class CausalConv2d(nn.Module):
    """Stride-1 convolution over (time, frequency): all rows of padding come first, columns on both sides."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3) -> None:
        super().__init__()
        side = kernel // 2
        self.padding = (side, side, kernel - 1, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, self.padding))


class AudioDownsample(nn.Module):
    """Halves time and frequency, rounding time up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 2, 0)))


class AudioUpsample(nn.Module):
    """Doubles frequency, and time to 2 T - 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = CausalConv2d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x[:, :, 1:]


def channel_norm(x: Tensor) -> Tensor:
    """Divides each position by the RMS over its channels."""
    return x / torch.sqrt(x.square().mean(dim=1, keepdim=True) + NORM_EPSILON)


class AudioResBlock(nn.Module):
    """Two rounds of norm, SiLU and convolution, added to the input; 1 x 1 on the shortcut where the width changes."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = CausalConv2d(in_channels, out_channels)
        self.conv2 = CausalConv2d(out_channels, out_channels)
        self.nin_shortcut = CausalConv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(channel_norm(x)))
        h = self.conv2(F.silu(channel_norm(h)))
        return self.nin_shortcut(x) + h


class AudioAttention(nn.Module):
    """One-head attention over all positions; only in checkpoints whose config asks for it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = channel_norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, positions, C]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Middle(nn.Module):
    """The blocks at the lowest resolution."""

    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = AudioResBlock(channels, channels)
        self.attn_1 = AudioAttention(channels) if attention else nn.Identity()
        self.block_2 = AudioResBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """The blocks of one resolution and the step to the next, which is named `downsample` or `upsample`."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, step: str | None = None) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(AudioResBlock(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.step = step
        if step is not None:
            self.add_module(step, {"downsample": AudioDownsample, "upsample": AudioUpsample}[step](out_channels))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x if self.step is None else self.get_submodule(self.step)(x)


class AudioEncoder(nn.Module):
    """mel [B, 2, T, 64] -> moments [B, 16, ceil(T / 4), 16]: 8 means, then 8 log-variances."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = CausalConv2d(config.in_channels, config.channels)
        self.down = nn.ModuleList(
            Level(before, width, config.blocks, "downsample" if i < last else None)
            for i, (before, width) in enumerate(zip([config.channels, *widths[:-1]], widths, strict=True))
        )
        self.mid = Middle(widths[-1], config.mid_attention)
        self.conv_out = CausalConv2d(widths[-1], config.latent_channels * (2 if config.double_z else 1))

    def forward(self, mel: Tensor) -> Tensor:
        x = self.conv_in(mel)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(channel_norm(self.mid(x))))


class AudioDecoder(nn.Module):
    """latents [B, 8, S, 16], not normalised -> mel [B, 2, 4 S - 3, 64]."""

    def __init__(self, config: AudioVAEConfig) -> None:
        super().__init__()
        widths = [config.channels * m for m in config.channel_multipliers]
        self.conv_in = CausalConv2d(config.latent_channels, widths[-1])
        self.mid = Middle(widths[-1], config.mid_attention)
        # Stored from the highest resolution to the lowest and run the other way round.
        self.up = nn.ModuleList(
            Level(before, width, config.blocks + 1, "upsample" if i > 0 else None)
            for i, (before, width) in enumerate(zip([*widths[1:], widths[-1]], widths, strict=True))
        )
        self.conv_out = CausalConv2d(widths[0], config.out_channels)

    def forward(self, latents: Tensor) -> Tensor:
        x = self.mid(self.conv_in(latents))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(channel_norm(x)))


class ChannelStatistics(nn.Module):
    """Mean and deviation of each latent channel-bin pair, index channel * bins + bin."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.register_buffer("std-of-means", torch.ones(length))
        self.register_buffer("mean-of-means", torch.zeros(length))

    def _tables(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, x.shape[1], 1, x.shape[3])
        std, mean = self.get_buffer("std-of-means"), self.get_buffer("mean-of-means")
        return std.to(x).reshape(shape), mean.to(x).reshape(shape)

    def normalize(self, x: Tensor) -> Tensor:
        std, mean = self._tables(x)
        return (x - mean) / std

    def denormalize(self, x: Tensor) -> Tensor:
        std, mean = self._tables(x)
        return x * std + mean


def past_rows(config: AudioVAEConfig) -> int:
    """How many rows of mel before its own a latent can depend on; unlimited where the encoder attends."""
    assert not config.mid_attention, "attention sees all of it"
    rows, step = 2, 1  # a convolution reaches two rows back, at the step between rows of its level
    for level in range(len(config.channel_multipliers)):
        rows += 4 * step * config.blocks
        if level < len(config.channel_multipliers) - 1:
            rows += 2 * step
            step *= 2
    return rows + (2 * 4 + 2) * step


class AudioVAE(nn.Module):
    """Encoder, decoder and statistics under the checkpoint's names; either side may be left out.

    Meant for float32, as in the official preprocessing: the mel front end always is, the rest follows its weights.
    """

    def __init__(self, config: AudioVAEConfig, *, encoder: bool = True, decoder: bool = True) -> None:
        super().__init__()
        self.config = config
        if encoder:
            self.encoder = AudioEncoder(config)
        if decoder:
            self.decoder = AudioDecoder(config)
        self.per_channel_statistics = ChannelStatistics(config.latent_channels * config.latent_bins)

    def waveform_to_mel(self, waveform: Tensor, sample_rate: int) -> Tensor:
        """waveform [B, 1 or 2, N] at any rate -> mel [B, 2, T, bins], float32; raises DataError."""
        c = self.config
        return waveform_to_mel(
            waveform, sample_rate, sample_rate=c.sample_rate, n_fft=c.n_fft, hop=c.hop, bins=c.mel_bins
        )

    def encode(self, mel: Tensor) -> Tensor:
        """mel [B, 2, T, 64] -> normalised latents [B, 8, ceil(T / 4), 16]."""
        moments = self.encoder(mel.to(self.encoder.conv_in.conv.weight.dtype))
        return self.per_channel_statistics.normalize(moments[:, : self.config.latent_channels])

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, 8, S, 16] -> mel [B, 2, 4 S - 3, 64]."""
        latents = latents.to(self.decoder.conv_in.conv.weight.dtype)
        return self.decoder(self.per_channel_statistics.denormalize(latents))
