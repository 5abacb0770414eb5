"""The latent upsampler: a clip's latents with twice as many rows and columns, and as many frames.

It works on latents as the video VAE makes them, before they are normalised. Residual blocks stand before and after the
step to twice the size, which spreads four channels over two by two cells. Published files are of two makes, whose step
has another name: `upsampler.0` of LTX-2.3, `upsampler.conv` of LTX-2 (made for any ratio of whole numbers; of two to
one nothing else of it counts).

Legend: B batch, C channels, W inner width, F frames, Y and X rows and columns of the grid.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32
FACTOR = 2


class UpsamplerBlock(nn.Module):
    """Two convolutions, a norm behind each, around a shortcut. [B,W,F,Y,X] -> the same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1)
        self.norm1 = nn.GroupNorm(GROUPS, width)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(GROUPS, width)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(inner)) + x)


class LatentUpsampler(nn.Module):
    """[B,C,F,Y,X] -> [B,C,F,2Y,2X]; `rational` is the make of LTX-2."""

    def __init__(self, channels: int, width: int, blocks: int, rational: bool = False) -> None:
        super().__init__()
        self.initial_conv = nn.Conv3d(channels, width, 3, padding=1)
        self.initial_norm = nn.GroupNorm(GROUPS, width)
        self.res_blocks = nn.ModuleList(UpsamplerBlock(width) for _ in range(blocks))
        step = nn.Conv2d(width, FACTOR**2 * width, 3, padding=1)
        self.upsampler: nn.Module = nn.ModuleDict({"conv": step}) if rational else nn.Sequential(step)
        self.post_upsample_res_blocks = nn.ModuleList(UpsamplerBlock(width) for _ in range(blocks))
        self.final_conv = nn.Conv3d(width, channels, 3, padding=1)

    def forward(self, latents: Tensor) -> Tensor:
        x = F.silu(self.initial_norm(self.initial_conv(latents)))
        for block in self.res_blocks:
            x = block(x)
        x = self._twice(x)
        for block in self.post_upsample_res_blocks:
            x = block(x)
        return self.final_conv(x)

    def _twice(self, x: Tensor) -> Tensor:
        """Frame by frame, [B,W,F,Y,X] -> [B,W,F,2Y,2X]."""
        (step,) = self.upsampler.children()
        frames = x.transpose(1, 2).flatten(0, 1)
        larger = F.pixel_shuffle(step(frames), FACTOR)
        return larger.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
