"""Weights by construction for the video VAE of a tiny checkpoint, so that a decoded clip resembles the encoded one.

A random VAE would make every demo a picture of noise, and training one takes minutes. But the layers can carry a plain
linear code: a latent stands for 8 frames of 32 x 32 pixels, which the encoder's own pooling reduces to 96 numbers, the
means of 3 colours x 2 times x 4 x 4 cells of 8 pixels. Written v, with mean m and the first 64 principal axes U over
synthetic moving pictures:

    latent = R U' (v - m)        R: 64 orthonormal columns in 128 channels
    v      = m + U R' latent     then spread over the pixels again, interpolated

R mixes, so that all channels have about the same variance and are correlated, as real latents are; there is something
to learn about them. What stands in the way of a linear code, and how it is passed:

 - residual blocks: their last convolution is nearly zero;
 - PixelNorm and SiLU before `conv_out`. Encoder: cells have a large constant added, around which SiLU is nearly
   straight; half of them are negated, so that brightness does not change the norm; the rest is a least-squares fit.
   Decoder: each colour travels as x and -x beside large constants, and silu(x) - silu(-x) = x exactly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from ..models.vae_layers import Conv3d, Downsample, Upsample
from ..models.video_vae import TIMESTEP_SCALE, VideoVAE

MODES = 64  # as wide as the decoder begins
_CELLS = 96
_FIRST_CELL = 32  # channels below hold what the pooling leaves
_OFFSET = 3.0
_CONSTANT = 16.0
_NOISE = 0.003
POWER = 0.5
_NEAR, _FAR = 0.75, 0.25  # linear interpolation halfway between cells


def fill_video_vae(vae: VideoVAE, generator: torch.Generator) -> Tensor:
    """Give every weight and the statistics of `vae` a value. `vae` is in float32 and has the blocks of `tiny`.

    Returns the covariance [128, 128] of normalised latents of moving pictures.
    """
    assert vae.encoder is not None
    assert vae.decoder is not None
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                # unit gain where a norm follows, next to nothing where the result is added to a signal
                fan_in = math.prod(parameter.shape[1:])
                gain = 1.0 if "conv1" in name else _NOISE
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * gain / math.sqrt(fan_in))
        if vae.decoder.conditioned:
            vae.decoder.timestep_scale_multiplier.fill_(TIMESTEP_SCALE)
        pictures = moving_pictures(48, generator)
        code, inverse, mean = _code(pictures, generator)
        latents = _fill_encoder(vae, pictures, code)
        _fill_decoder(vae, inverse, mean)
        return latents.T @ latents / len(latents)


def moving_pictures(count: int, generator: torch.Generator) -> Tensor:
    """Discs that move, hide one another and have power-law sizes: [count, 3, 8, 32, 32], a pixel being 4 x 4 real ones.

    Such "dead leaves" have the statistics of photographs in what matters here: edges, flat areas, all scales. One frame
    stands for two.
    """
    frames, side, discs = 8, 32, 60

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    grey = uniform(count, discs + 1) * 1.8 - 0.9
    chroma = torch.randn(count, discs + 1, 3, generator=generator) * 0.15
    colour = (grey[..., None] + chroma).clamp(-1, 1)
    radius = 2.0 * (1 - uniform(count, discs) * 0.99).pow(-0.6)
    start = uniform(count, discs, 2) * (side + 8) - 4
    velocity = torch.randn(count, discs, 2, generator=generator) * 0.7
    rows = torch.arange(side) + 0.5
    picture = colour[:, -1, :, None, None, None].expand(count, 3, frames, side, side).clone()
    time = torch.arange(frames)
    for disc in range(discs):
        centre = start[:, disc, None] + velocity[:, disc, None] * time[None, :, None]  # [count, frames, 2]
        vertical = (rows - centre[..., :1]).square()[..., :, None]
        horizontal = (rows - centre[..., 1:]).square()[..., None, :]
        inside = vertical + horizontal < radius[:, disc, None, None, None].square()
        picture = torch.where(inside[:, None], colour[:, disc, :, None, None, None], picture)
    return picture


def _code(pictures: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The linear code as a matrix [128, 96], its inverse on the axes kept, and the mean of the cells."""
    cells = _cells(pictures)
    mean = cells.mean(0)
    _, axes = torch.linalg.eigh((cells - mean).T @ (cells - mean))
    axes = axes.flip(1)[:, :MODES]
    # axes have no sign of their own; fix it, so that a seed means one file
    axes = axes * torch.sign(axes.gather(0, axes.abs().argmax(0, keepdim=True)))
    rotation = torch.linalg.qr(torch.randn(128, MODES, generator=generator)).Q
    return rotation @ axes.T, axes @ rotation.T, mean


def _cells(pictures: Tensor) -> Tensor:
    """Means of 8 x 8 pixels x 4 frames, one row a latent: [N, colour * time * row * column]."""
    pooled = functional.avg_pool3d(pictures, 2)  # [N, 3, 4, 16, 16]
    x = pooled.unflatten(4, (4, 4)).unflatten(3, (4, 4)).unflatten(2, (2, 2))  # [N, c, T, t, Y, y, X, x]
    return x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(-1, _CELLS)


def _fill_encoder(vae: VideoVAE, pictures: Tensor, code: Tensor) -> Tensor:
    """Returns the normalised latents of `pictures`, one a row."""
    encoder = vae.encoder
    assert encoder is not None
    downs = [block for block in encoder.down_blocks if isinstance(block, Downsample)]
    first, second = downs[-2:]
    # The mean of each colour over a patch; pooling inside the blocks takes it to 8 x 8 pixels and two frames.
    for colour in range(3):
        encoder.conv_in.conv.weight[colour] = 0.0
        _now(encoder.conv_in)[colour, colour * 16 : colour * 16 + 16] = 1 / 16
    # Eight positions of each colour side by side in channels 8..31; 0..2 keep the means.
    for colour in range(3):
        _now(first.conv)[colour + 1, colour] = 1.0
    # Twelve channels (colour, row, column within 16 pixels), averaged over two times; then eight positions of each.
    for colour in range(3):
        for row in range(2):
            for column in range(2):
                out = _FIRST_CELL // 8 + colour * 4 + row * 2 + column
                for time in range(2):
                    source = 8 * (colour + 1) + time * 4 + row * 2 + column
                    _now(second.conv)[out, source] = 0.5 * (-1) ** (row + column)
                _bias(second.conv)[out] = _OFFSET
    features = _tail(pictures)
    targets = (_cells(pictures) - _cells(pictures).mean(0)) @ code.T
    inputs = torch.cat([features[:, _FIRST_CELL:], torch.ones(len(features), 1)], dim=1)
    solution = torch.linalg.lstsq(inputs.double(), targets.double()).solution.float()
    centre = _now(encoder.conv_out)
    centre[:128, _FIRST_CELL:] = solution[:-1].T
    centre[:128, :_FIRST_CELL] = 0.0
    _bias(encoder.conv_out)[:128] = solution[-1]
    # The file is bfloat16: measure what will be there.
    stored = centre[:128].bfloat16().float()
    latents = features @ stored.T + _bias(encoder.conv_out)[:128].bfloat16().float()
    vae.per_channel_statistics.get_buffer("mean-of-means").copy_(latents.mean(0))
    vae.per_channel_statistics.get_buffer("std-of-means").copy_(latents.std(0))
    return (latents - latents.mean(0)) / latents.std(0)


def _tail(pictures: Tensor) -> Tensor:
    """What `conv_out` of the encoder sees, one row a latent, were the small random weights zero."""
    fine = functional.avg_pool3d(pictures, (1, 2, 2))  # 8 pixels, two frames
    coarse = functional.avg_pool3d(fine, 2)
    count = len(fine)
    stage = torch.zeros(count, 128, *coarse.shape[2:])
    stage[:, :3] = coarse
    stage[:, 8:32] = _space_to_depth(fine)
    pooled = functional.avg_pool3d(stage, 2)
    positions = stage[:, 8:32].unflatten(1, (3, 2, 2, 2)).mean(2)  # over the two times: [N, c, y, x, ...]
    sign = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).view(1, 1, 2, 2, 1, 1, 1)
    cells = _space_to_depth((positions * sign).flatten(1, 3) + _OFFSET)
    pooled[:, _FIRST_CELL:] += cells
    normed = pooled * torch.rsqrt(pooled.square().mean(1, keepdim=True) + 1e-8)
    return functional.silu(normed).permute(0, 2, 3, 4, 1).reshape(-1, 128)


def _space_to_depth(x: Tensor) -> Tensor:
    x = x.unflatten(4, (-1, 2)).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [N, C, T, t, Y, y, X, x]
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _fill_decoder(vae: VideoVAE, to_cells: Tensor, mean: Tensor) -> None:
    """`to_cells` [96, 128] turns a latent into cells; it is applied in two factors, since the first is MODES wide."""
    decoder = vae.decoder
    assert decoder is not None
    left, values, right = torch.linalg.svd(to_cells, full_matrices=False)
    decoder.conv_in.conv.weight.zero_()
    _now(decoder.conv_in)[:] = right[:MODES] * values[:MODES, None].sqrt()
    cells = left[:, :MODES] * values[:MODES].sqrt()
    ups = [block for block in decoder.up_blocks if isinstance(block, Upsample)]

    # 32 -> 16 pixels, 8 -> 4 frames: channel (colour, row, column) at each of eight positions
    for colour in range(3):
        for row in range(2):
            for column in range(2):
                channel = colour * 4 + row * 2 + column
                for position in range(8):
                    time, down, right_ = position // 4, position // 2 % 2, position % 2
                    cell = ((colour * 2 + time) * 4 + 2 * down + row) * 4 + 2 * right_ + column
                    _now(ups[0].conv)[channel * 8 + position] = cells[cell]
                    _bias(ups[0].conv)[channel * 8 + position] = mean[cell]
    # 16 -> 8 pixels, 4 -> 2 frames: the cells take their places
    for colour in range(3):
        for position in range(8):
            taps = _taps(time=position // 4)
            source = colour * 4 + position % 4
            ups[1].conv.conv.weight[colour * 8 + position] = 0.0
            ups[1].conv.conv.weight[colour * 8 + position, source] = taps
    if len(ups) == 4:  # 2 -> 1 frames by itself
        for colour in range(3):
            for position in range(2):
                ups[2].conv.conv.weight[colour * 2 + position] = 0.0
                ups[2].conv.conv.weight[colour * 2 + position, colour] = _taps(time=position)
    last = ups[-1]
    cells_out = math.prod(last.stride)
    for colour in range(3):
        for position in range(cells_out):
            time = position // 4 if last.stride[0] == 2 else None
            taps = _taps(time=time, row=position // 2 % 2, column=position % 2)
            for negated in range(2):
                out = (2 * colour + negated) * cells_out + position
                last.conv.conv.weight[out] = 0.0
                last.conv.conv.weight[out, colour] = -taps if negated else taps
    last.conv.conv.weight[6 * cells_out :] = 0.0
    _bias(last.conv)[6 * cells_out :] = _CONSTANT
    for up in ups:
        if up.residual:
            _cancel_skip(up)
    # 8 channels of which two are constant: the norm divides by about this
    norm = math.sqrt((2 * _CONSTANT**2 + 2 * 3 * 0.3) / 8)
    weight = decoder.conv_out.conv.weight
    weight.zero_()
    for colour in range(3):
        for column in range(4):
            for row in range(4):
                taps = _within(row)[:, None] * _within(column)[None, :] * norm
                out = colour * 16 + column * 4 + row
                weight[out, 2 * colour, 1] = taps
                weight[out, 2 * colour + 1, 1] = -taps


def _cancel_skip(up: Upsample) -> None:
    """Subtract in the convolution what the residual path adds."""
    cells = math.prod(up.stride)
    groups = up.conv.conv.in_channels // cells
    for channel in range(up.conv.conv.out_channels // cells):
        for position in range(cells):
            _now(up.conv)[channel * cells + position, channel % groups * cells + position] -= 1.0


def _now(layer: Conv3d) -> Tensor:
    """The taps of a convolution that look at the same place and time: [out, in], a view."""
    return layer.conv.weight[:, :, 2 if layer.causal else 1, 1, 1]


def _bias(layer: Conv3d) -> Tensor:
    """The bias of a convolution [out], itself."""
    assert layer.conv.bias is not None
    return layer.conv.bias


def _taps(time: int | None = None, row: int | None = None, column: int | None = None) -> Tensor:
    """A 3x3x3 kernel that interpolates towards the first (0) or second (1) half of a cell on each axis."""
    axes = []
    for half in (time, row, column):
        axis = torch.tensor([0.0, 1.0, 0.0])
        if half is not None:
            axis = torch.tensor([_FAR, _NEAR, 0.0] if half == 0 else [0.0, _NEAR, _FAR])
        axes.append(axis)
    return axes[0][:, None, None] * axes[1][None, :, None] * axes[2][None, None, :]


def _within(index: int) -> Tensor:
    """Weights of the previous, same and next 4-pixel cell for pixel `index` of four."""
    offset = (index - 1.5) / 4
    return torch.tensor([max(0.0, -offset), 1 - abs(offset), max(0.0, offset)])
