"""Stand-ins for the VAE, the text encoder and the connectors, whose answers can be told from what they are given."""

from __future__ import annotations

import types

import torch
from torch.nn import functional

from ltx2_train.models.text import TextFeatures


class PoolingVAE(torch.nn.Module):
    """Averages 8 frames (the first alone) x 32 x 32 pixels, and repeats the colours up to 128 channels."""

    config = types.SimpleNamespace(latent_channels=128, encodes_in_pieces=True)

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.closed = False

    def encode_piece(self, pixels, stream):
        self.calls += 1
        pixels = pixels.float()
        first = functional.avg_pool3d(pixels[:, :, :1], (1, 32, 32))
        rest = functional.avg_pool3d(pixels[:, :, 1:], (8, 32, 32)) if pixels.shape[2] > 1 else first[:, :, :0]
        return torch.cat([first, rest], dim=2).repeat(1, 43, 1, 1, 1)[:, :128]

    def close(self):
        self.closed = True


class CountingEncoder:
    """Features that depend on the caption; both streams are one tensor where `shared`."""

    def __init__(self, shared=False):
        self.captions, self.closed, self.shared = [], False, shared

    def encode(self, captions):
        self.captions += captions
        made = []
        for caption in captions:
            generator = torch.Generator().manual_seed(len(caption))
            video = torch.randn(len(caption.split()) + 1, 24, generator=generator)
            made.append(TextFeatures(video, video if self.shared else video[:, :16] * 2))
        return made

    def close(self):
        self.closed = True


class Connectors(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, features):
        (one,) = features
        pad = 128 - one.tokens
        return functional.pad(one.video, (0, 0, 0, pad))[None], functional.pad(one.audio, (0, 0, 0, pad))[None]
