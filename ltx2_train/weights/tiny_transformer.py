"""Weights by construction for the transformer of a tiny checkpoint: a base that is a weak denoiser, not noise.

Were latents normal with unit variance, the best velocity that a token alone can tell would be

    v(x_t, s) = (2 s - 1) / ((1 - s)^2 + s^2) x_t

and that is what the base does: `patchify_proj` and `proj_out` are an orthonormal matrix and its transpose, and the
timestep embedding, fitted by least squares, scales the last norm by that factor. A large constant direction, which
`proj_out` does not see, keeps the norms from hiding how long a token is. Blocks add little to the stream, but their
gates are open, so a LoRA on them learns at once what the base does not know: neighbours, other channels, the text.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..models.adaln import AdaLN, sinusoid
from ..models.attention import Attention
from ..models.transformer import LTXTransformer

_OUT = 0.2  # size of what a branch of a block adds
_GATE = 0.5
_SHARPNESS = 1.3  # of attention


def fill_transformer(model: LTXTransformer, generator: torch.Generator) -> None:
    """Give every weight of `model`, built for "av" in float32, a value."""
    with torch.no_grad():
        fill_linears(model, generator)
        for module in model.modules():
            if isinstance(module, Attention):
                _fill_attention(module, generator)
            elif isinstance(module, AdaLN):
                module.linear.weight.mul_(0.3)
        for name, parameter in model.named_parameters():
            if "table" in name:
                parameter.copy_(_normal(parameter, 0.05, generator))
        for block in model.transformer_blocks:
            for prefix in ("", "audio_"):
                table = getattr(block, f"{prefix}scale_shift_table")
                for row in range(2, len(table), 3):
                    table[row] += _GATE
                ff = getattr(block, f"{prefix}ff")
                ff.net[2].weight.mul_(_OUT)
            for side in ("video", "audio"):
                getattr(block, f"scale_shift_table_a2v_ca_{side}")[4] += _GATE
        for prefix in ("", "audio_"):
            _fill_ends(model, prefix, generator)


def fill_linears(module: nn.Module, generator: torch.Generator) -> None:
    """Every linear in `module` gets unit gain, every norm about 1, everything else unit variance."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + _normal(parameter, 0.05, generator))
            elif name.endswith(".bias"):
                parameter.copy_(_normal(parameter, 0.02, generator))
            elif name.endswith(".weight"):
                parameter.copy_(_normal(parameter, 1 / math.sqrt(math.prod(parameter.shape[1:])), generator))
            else:
                parameter.copy_(_normal(parameter, 1.0, generator))


def _fill_attention(attention: Attention, generator: torch.Generator) -> None:
    """Queries like keys, so that a token attends to itself and to what is near and alike."""
    if attention.to_q.weight.shape == attention.to_k.weight.shape:
        attention.to_q.weight.copy_(attention.to_k.weight + 0.3 * _scaled(attention.to_k.weight, generator))
    for norm in (attention.q_norm, attention.k_norm):
        norm.weight.mul_(_SHARPNESS)
    attention.to_out[0].weight.mul_(_OUT)
    if attention.gated:
        attention.to_gate_logits.weight.mul_(0.3)


def _fill_ends(model: LTXTransformer, prefix: str, generator: torch.Generator) -> None:
    patchify, out = getattr(model, f"{prefix}patchify_proj"), getattr(model, f"{prefix}proj_out")
    width, channels = patchify.weight.shape
    start = torch.randn(width, min(width, channels + 2), generator=generator)
    start[:, 0] = 1.0
    frame = torch.linalg.qr(start).Q
    # The norm before proj_out takes off the mean, so the code avoids that direction where there is room.
    free = width >= channels + 2
    code = frame[:, 1 : channels + 1] if free else frame
    constant = math.sqrt(2 * channels) if free else 0.0
    patchify.weight.copy_(code)
    patchify.bias.copy_(frame[:, -1] * constant)
    gain = math.sqrt((channels + constant**2) / width)
    out.weight.copy_(code.T * gain)
    out.bias.zero_()

    def factor(sigma: Tensor) -> Tensor:
        energy = (1 - sigma).square() + sigma.square()
        spread = torch.sqrt((channels * energy + constant**2) / width)
        return (2 * sigma - 1) / energy * spread / gain

    embedder = getattr(model, f"{prefix}adaln_single").emb.timestep_embedder
    sigma = torch.linspace(0, 1, 401)
    hidden = nn.functional.silu(embedder.linear_1(sinusoid(sigma * model.config.timestep_scale_multiplier)))
    inputs = torch.cat([hidden, torch.ones(len(sigma), 1)], dim=1).double()
    ridge = torch.eye(inputs.shape[1], dtype=torch.float64) * 1e-2
    row = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ factor(sigma).double()).float()
    embedder.linear_2.weight.mul_(0.05).add_(row[:-1])
    embedder.linear_2.bias.mul_(0.0).add_(row[-1])
    # the embedding is added to both rows: the scale is 1 + table + embedding
    getattr(model, f"{prefix}scale_shift_table")[1] -= 1.0


def _normal(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) * deviation


def _scaled(like: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(like, 1 / math.sqrt(like.shape[1]), generator)
