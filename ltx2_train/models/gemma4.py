"""The text tower of Gemma 4, the text encoder of LTX-2.5: embeddings, layers and a final norm.

Where it departs from Gemma 3: norms multiply by w, not 1 + w; attention has the scale 1; values are normalised as keys
are, without a weight; full layers have wider heads, take the raw keys for values, and rotate the first quarter of a
head only; and each layer ends by scaling the whole stream by one number, `layer_scalar`.

Nothing here needs transformers, whose releases differ in whether and how they build this model.

Shape letters: B batch, T tokens, D width, H heads, G heads of keys and values, C channels of a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclass(frozen=True)
class LayerShape:
    """One layer: what it sees, its heads, and how much of a head is rotated with which base."""

    kind: str
    heads: int
    kv_heads: int
    head_dim: int
    theta: float
    rotated: float = 1.0  # share of the frequencies
    own_values: bool = True  # False: the raw keys are the values


@dataclass(frozen=True)
class Gemma4Config:
    """Sizes of the tower, and what no shape shows."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: tuple[LayerShape, ...]
    window: int = 1024
    eps: float = 1e-6


class States(NamedTuple):
    """`hidden_states`: the embeddings and the output of every layer, the last one after the final norm, [B, T, D]."""

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None = None


class Norm(nn.Module):
    """RMS norm in float32; without a weight where `width` is None."""

    def __init__(self, width: int | None, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = None if width is None else nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return (normal if self.weight is None else normal * self.weight.float()).to(x.dtype)


class ScaledEmbedding(nn.Embedding):
    """Rows scaled by the root of their width, rounded to the weights' type as published."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * torch.tensor(self.embedding_dim**0.5).to(self.weight.dtype)


class CausalAttention(nn.Module):
    """Causal self-attention of one layer."""

    def __init__(self, shape: LayerShape, config: Gemma4Config) -> None:
        super().__init__()
        self.shape, self.window = shape, config.window if shape.kind == SLIDING else None
        width, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.q_proj = nn.Linear(config.hidden, width, bias=False)
        self.k_proj = nn.Linear(config.hidden, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden, keys, bias=False) if shape.own_values else None
        self.o_proj = nn.Linear(width, config.hidden, bias=False)
        self.q_norm, self.k_norm = Norm(shape.head_dim, config.eps), Norm(shape.head_dim, config.eps)
        self.v_norm = Norm(None, config.eps)

    def forward(self, x: Tensor) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (-1, self.shape.head_dim))  # [B, T, H, C]

        raw = heads(self.k_proj(x))
        values = raw if self.v_proj is None else heads(self.v_proj(x))
        angles = _angles(x.shape[1], self.shape, x.device)
        q = _rotated(self.q_norm(heads(self.q_proj(x))), angles).transpose(1, 2)
        k = _rotated(self.k_norm(raw), angles).transpose(1, 2)
        v = self.v_norm(values).transpose(1, 2)
        repeats = self.shape.heads // self.shape.kv_heads
        k, v = (y.repeat_interleave(repeats, dim=1) for y in (k, v))
        mask = _window_mask(x.shape[1], self.window, x.device)
        out = scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=1.0)
        return self.o_proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Gated GELU (tanh form)."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One layer: attention and feed-forward, each between two norms, then the scale of the whole stream."""

    layer_scalar: Tensor

    def __init__(self, shape: LayerShape, config: Gemma4Config) -> None:
        super().__init__()
        self.self_attn = CausalAttention(shape, config)
        self.mlp = Mlp(config.hidden, config.intermediate)
        self.input_layernorm = Norm(config.hidden, config.eps)
        self.post_attention_layernorm = Norm(config.hidden, config.eps)
        self.pre_feedforward_layernorm = Norm(config.hidden, config.eps)
        self.post_feedforward_layernorm = Norm(config.hidden, config.eps)
        self.register_buffer("layer_scalar", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x)))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        return x * self.layer_scalar.to(x.dtype)


class Gemma4(nn.Module):
    """The tower. It answers in the words of transformers' text models, so that callers need not know which it is."""

    def __init__(self, config: Gemma4Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens: nn.Module = ScaledEmbedding(config.vocabulary, config.hidden)
        self.layers = nn.ModuleList(Layer(shape, config) for shape in config.layers)
        self.norm: nn.Module = Norm(config.hidden, config.eps)

    def forward(self, inputs_embeds: Tensor, output_hidden_states: bool = False, use_cache: bool = False) -> States:
        """States of captions [B, T, D] padded at the end, if at all; `use_cache` does nothing, as nothing is cached."""
        x, states = inputs_embeds, [inputs_embeds]
        for layer in self.layers:
            x = layer(x)
            if output_hidden_states:
                states.append(x)
        x = self.norm(x)
        return States(x, (*states[:-1], x) if output_hidden_states else None)


def _angles(tokens: int, shape: LayerShape, device: torch.device) -> Tensor:
    """[T, C / 2] in float32: the exponent runs over the whole head, also where only a part of it is rotated."""
    half = shape.head_dim // 2
    count = int(shape.rotated * half)
    exponents = torch.arange(0, 2 * count, 2, device=device, dtype=torch.float32) / shape.head_dim
    frequencies = torch.zeros(half, device=device)
    frequencies[:count] = 1.0 / shape.theta**exponents
    return torch.arange(tokens, device=device, dtype=torch.float32)[:, None] * frequencies


def _rotated(x: Tensor, angles: Tensor) -> Tensor:
    """x [B, T, H, C], its first half paired with its second."""
    cos, sin = angles.cos()[:, None].to(x.dtype), angles.sin()[:, None].to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def _window_mask(tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys [T, T] each query sees; None where that is all before it."""
    if window is None or tokens <= window:
        return None
    place = torch.arange(tokens, device=device)
    distance = place[:, None] - place[None]
    return (distance >= 0) & (distance < window)
