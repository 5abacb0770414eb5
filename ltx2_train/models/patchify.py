"""Latents <-> tokens. The patch size is one: a token is one latent cell.

Video latents [B, C, F, H, W] become [B, F*H*W, C], frames outermost. Audio latents [B, C, T, bins] become
[B, T, C*bins] with the channel as the outer index of the feature.
"""

from __future__ import annotations

from torch import Tensor

from ..shapes import AudioLatentShape, LatentShape


def video_tokens(latents: Tensor) -> Tensor:
    """[B, C, F, H, W] -> [B, F*H*W, C]."""
    return latents.flatten(2).transpose(1, 2)


def video_grid(tokens: Tensor, shape: LatentShape) -> Tensor:
    """[B, F*H*W, C] -> [B, C, F, H, W]."""
    return tokens.transpose(1, 2).unflatten(2, (shape.frames, shape.height, shape.width))


def audio_tokens(latents: Tensor) -> Tensor:
    """[B, C, T, bins] -> [B, T, C*bins]."""
    return latents.transpose(1, 2).flatten(2)


def audio_grid(tokens: Tensor, shape: AudioLatentShape) -> Tensor:
    """[B, T, C*bins] -> [B, C, T, bins]."""
    return tokens.unflatten(2, (shape.channels, shape.bins)).transpose(1, 2)
