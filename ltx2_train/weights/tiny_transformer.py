"""Weights by construction for the transformer of a tiny checkpoint: a base that is a weak denoiser, not noise.

Were the latents of a token normal with covariance U diag(L) U', the best velocity that the token alone can tell would
be, along each axis,

    v(x_t, s) = (s - (1 - s) L) / ((1 - s)^2 L + s^2) x_t

and that is what the base does, with the covariance of synthetic moving pictures. `patchify_proj` turns latents to
their axes and lays axes of like variance side by side; `proj_out` turns them back; in between, the last norm's scale
is the factor above, for which the timestep embedding is fitted by least squares. Its shift is the same embedding, so
each group of channels is made orthogonal to equal numbers and never sees it. A large constant in the channels that are
left keeps the norms from hiding how long a token is. Blocks add little to the stream, but their gates are open, so a
LoRA on them learns at once what the base does not know: neighbours, other channels, the clip at hand.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..models.adaln import AdaLN, sinusoid
from ..models.attention import Attention
from ..models.transformer import LTXTransformer

_OUT = 0.05  # size of what a branch of a block adds
_GATE = 1.0
_SHARPNESS = 1.3  # of attention
_LEAST = 0.02  # variance
_SIGMAS = torch.linspace(0, 1, 401)


def fill_transformer(model: LTXTransformer, video_covariance: Tensor, generator: torch.Generator) -> None:
    """Give every weight of `model`, built in float32 for all it has, a value."""
    sides = ("", "audio_") if model.has_audio else ("",)
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
            for prefix in sides:
                table = getattr(block, f"{prefix}scale_shift_table")
                for row in range(2, len(table), 3):
                    table[row] += _GATE
                ff = getattr(block, f"{prefix}ff")
                ff.net[2].weight.mul_(_OUT)
            for side in ("video", "audio") if model.has_audio else ():
                getattr(block, f"scale_shift_table_a2v_ca_{side}")[4] += _GATE
        _fill_ends(model, "", video_covariance, generator)
        if model.has_audio:
            _fill_ends(model, "audio_", torch.eye(model.config.audio_in_channels), generator)


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
    out = attention.to_out[0]
    assert isinstance(out, nn.Linear)
    out.weight.mul_(_OUT)
    if attention.gated:
        attention.to_gate_logits.weight.mul_(0.3)


def _fill_ends(model: LTXTransformer, prefix: str, covariance: Tensor, generator: torch.Generator) -> None:
    patchify, out = getattr(model, f"{prefix}patchify_proj"), getattr(model, f"{prefix}proj_out")
    width, channels = patchify.weight.shape
    variances, axes = torch.linalg.eigh(covariance)
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    groups = _groups(variances.clamp(min=_LEAST), width)
    code = torch.zeros(width, channels)
    factors = torch.zeros(width, len(_SIGMAS))
    constant = math.sqrt(2 * channels)
    energy = torch.stack([(1 - _SIGMAS).square() * variances.sum(), channels * _SIGMAS.square()]).sum(0)
    spread = torch.sqrt((energy + constant**2) / width)
    gain = float(spread.mean())
    place = taken = 0
    for size in groups:
        rows, members = slice(place, place + size + 1), slice(taken, taken + size)
        # orthonormal and orthogonal to equal numbers, which the shift of the last norm adds
        start = torch.randn(size + 1, size + 1, generator=generator)
        start[:, 0] = 1.0
        code[rows] = torch.linalg.qr(start).Q[:, 1:] @ axes[:, members].T
        variance = variances[members].clamp(min=_LEAST).mean()
        kept = (1 - _SIGMAS).square() * variance + _SIGMAS.square()
        factors[rows] = (_SIGMAS - (1 - _SIGMAS) * variance) / kept * spread / gain
        place, taken = place + size + 1, taken + size
    patchify.weight.copy_(code)
    patchify.bias.zero_()
    patchify.bias[place:] = constant / math.sqrt(width - place)
    patchify.bias[place::2] *= -1.0
    out.weight.copy_(code.T * gain)
    out.bias.zero_()

    embedder = getattr(model, f"{prefix}adaln_single").emb.timestep_embedder
    hidden = nn.functional.silu(embedder.linear_1(sinusoid(_SIGMAS * model.config.timestep_scale_multiplier)))
    inputs = torch.cat([hidden, torch.ones(len(_SIGMAS), 1)], dim=1).double()
    ridge = torch.eye(inputs.shape[1], dtype=torch.float64) * 1e-3
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ factors.T.double()).float()
    embedder.linear_2.weight.mul_(0.05).add_(solution[:-1].T)
    embedder.linear_2.bias.copy_(solution[-1])
    # the embedding is added to both rows: the scale is 1 + table + embedding
    getattr(model, f"{prefix}scale_shift_table")[1] -= 1.0


def _groups(variances: Tensor, width: int) -> list[int]:
    """Sizes of groups of channels with like variances; each needs a place of its own beside its channels'."""
    channels = len(variances)
    sizes, start = [], 0
    for index in range(1, channels):
        if variances[index] > 1.5 * variances[start] and len(sizes) < (width - channels) // 2:
            sizes.append(index - start)
            start = index
    return [*sizes, channels - start]


def _normal(like: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator) * deviation


def _scaled(like: Tensor, generator: torch.Generator) -> Tensor:
    return _normal(like, 1 / math.sqrt(like.shape[1]), generator)
