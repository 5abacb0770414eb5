"""The encoder of T5 v1.1 (XXL), whose last states are the text that LTX-Video reads.

Module names are those of the published files after `encoder.block.N.`. What is unusual: scores are not scaled,
positions enter as a bias that all layers share, attention looks both ways, and no linear has a bias of its own. The
stream between the layers is float32 whatever the weights are, since it grows beyond what fp16 can hold.

T5: Raffel et al. 2020, arXiv:1910.10683.

Shape letters: B batch, T tokens, D width, H heads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

_FAR = 128  # tokens; beyond it all distances are one
_EPSILON = 1e-6


@dataclass(frozen=True)
class T5Config:
    """Sizes of the encoder."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    buckets: int


class T5Norm(nn.Module):
    """RMS norm of the float32 stream; what comes out has the type of the weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        normal = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + _EPSILON)
        return (normal * self.weight.float()).to(self.weight.dtype)


class _Attention(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.heads, inner = config.heads, config.heads * config.head_dim
        for name in ("q", "k", "v"):
            setattr(self, name, nn.Linear(config.hidden, inner, bias=False))
        self.o = nn.Linear(inner, config.hidden, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (getattr(self, name)(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for name in ("q", "k", "v"))
        out = scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype), scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.wi_1 = nn.Linear(config.hidden, config.intermediate, bias=False)
        self.wo = nn.Linear(config.intermediate, config.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class _SelfAttention(nn.Module):
    """The level of names between a layer and its attention."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.SelfAttention = _Attention(config)
        self.layer_norm = T5Norm(config.hidden)


class _Dense(nn.Module):
    """The level of names between a layer and its feed-forward."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = _FeedForward(config)
        self.layer_norm = T5Norm(config.hidden)


class T5Block(nn.Module):
    """One layer, without the table of the position bias, which in the files is a part of the first one."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.layer = nn.ModuleList([_SelfAttention(config), _Dense(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """The stream [B, T, D] in float32; `bias` as `position_bias` gives it."""
        attention, dense = self.layer[0], self.layer[1]
        assert isinstance(attention, _SelfAttention)
        assert isinstance(dense, _Dense)
        x = x + attention.SelfAttention(attention.layer_norm(x), bias).float()
        return x + dense.DenseReluDense(dense.layer_norm(x)).float()


def position_bias(table: Tensor, length: int) -> Tensor:
    """What is added to the scores of `length` tokens, [1, H, T, T] in float32; `table` is [buckets, H]."""
    place = torch.arange(length, device=table.device)
    return table.float()[_bucket(place[None, :] - place[:, None], table.shape[0])].permute(2, 0, 1).unsqueeze(0)


def _bucket(distance: Tensor, buckets: int) -> Tensor:
    """Half of the buckets look back and half ahead; of each half one half is for single distances, the other for
    distances whose logarithms lie evenly up to _FAR."""
    half = buckets // 2
    single = half // 2
    far = distance.abs()
    wide = single + (far.clamp(min=1).float() / single).log() / math.log(_FAR / single) * (half - single)
    within = torch.where(far < single, far, wide.long().clamp(max=half - 1))
    return within + half * (distance > 0)
