"""Latents of pictures: clips and images, and the references of clips, through the video VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..dataset.augment import read_clip
from ..dataset.cache_names import LATENT_SUFFIX
from ..dataset.dataset_file import DatasetSettings
from ..dataset.entry import REFERENCE_FOLDER, numbered_folder
from ..dataset.plan import DatasetPlan, Item
from ..dataset.reference import read_reference
from ..device import DTYPES
from ..errors import DataError, OutOfMemory
from ..models.tiling import TileSettings, encode_tiled
from ..shapes import VIDEO_CHANNELS, LatentShape
from .cache_file import CacheFile, latent_key, sizes_text
from .kind import Bench, CacheKind, CacheMade, Job, header_bytes
from .recipe import CacheRecipe
from .settings import CacheSettings

if TYPE_CHECKING:
    from ..models.video_vae import ClipMemory, VideoVAE

CARD_CHUNK = 16  # frames at a time


class Latents(CacheKind[np.ndarray]):
    """Of the clips and images themselves. What is read are pixels, uint8 [F, H, W, 3]."""

    name = "latents"
    stage = "encode video"
    suffix = LATENT_SUFFIX
    modes = frozenset(("video", "av"))
    model = "video_vae"
    part = "VAE"

    @property
    def weights(self) -> str:
        return self.recipe.video_vae

    @property
    def encoder(self) -> str:
        return self.recipe.video_encoder

    def of(self, item: Item) -> Job | None:
        if item.kind == "audio":
            return None
        return Job(self, item, item.source.path, item.latent_path, self.made_from(item))

    def made_from(self, item: Item) -> dict[str, Any]:
        shape, entry, settings = self.shape(item), self.plan.settings_of(item), self.recipe.settings
        origin: dict[str, Any] = {
            "resolution": f"{item.width}x{item.height}",
            "vae_dtype": settings.vae_dtype,
            "latents_dtype": settings.latents_dtype,
        }
        if item.source.media.kind == "video":
            origin |= {"window": item.window.token, "target_fps": entry.target_fps, "source_fps": entry.source_fps}
            origin["crop"] = entry.crop
        origin |= {"flip": item.flipped, "color_jitter": entry.color_jitter, "reading": list(item.source.reading)}
        return origin | tile_settings(settings) | {"latents": [shape.frames, shape.height, shape.width]}

    def shape(self, item: Item) -> LatentShape:
        """Of the latents that belong to `item`."""
        return item.shape

    def stale(self, file: CacheFile, job: Job) -> str | None:
        file.latent_shape()
        return super().stale(file, job)

    def foreign(self, file: CacheFile, job: Job) -> str | None:
        stored, needed = file.latent_shape(), self.shape(job.item)
        sizes = [(shape.frames, shape.height, shape.width) for shape in (stored, needed)]
        if sizes[0] == sizes[1]:
            return None
        return f"its latents are {sizes_text(sizes[0])}, {sizes_text(sizes[1])} are needed"

    def size(self, job: Job) -> int:
        values = self.shape(job.item).tokens * VIDEO_CHANNELS
        return values * DTYPES[self.recipe.settings.latents_dtype].itemsize + header_bytes(job.made_from)

    def weight(self, job: Job) -> float:
        video = self.shape(job.item).video()
        return video.frames * video.width * video.height

    def read(self, job: Job, model: VideoVAE | None) -> np.ndarray:
        return read_clip(job.item, self.plan.settings_of(job.item))

    def make(self, job: Job, was_read: np.ndarray, bench: Bench) -> CacheMade:
        settings, shape = self.recipe.settings, self.shape(job.item)
        frames, height, width, _ = was_read.shape
        latents = encode_clip(was_read, bench.model, settings, bench.device)[0].to(DTYPES[settings.latents_dtype])
        require_numbers(latents, job.source, settings)
        assert tuple(latents.shape[1:]) == (shape.frames, shape.height, shape.width), latents.shape
        said = {"frame_count": str(frames), "width": str(width), "height": str(height), "fps": repr(job.item.fps)}
        return CacheMade(self.write(job, {latent_key(shape, latents.dtype): latents}, **said))

    def verdict(self, jobs: Sequence[Job], lost: set[Path]) -> str | None:
        own = [job for job in jobs if job.kind is self]
        return "Not one clip could be encoded." if own and all(job.path in lost for job in own) else None

    def too_large(self, job: Job) -> OutOfMemory:
        video, tiles = self.shape(job.item).video(), self.recipe.settings.tiles
        if tiles.chunk_size is None:
            advice = "Set cache.tiles.chunk_size = 8"
        elif tiles.spatial_tile is None:
            advice = "Set cache.tiles.spatial_tile = 512"
        else:
            advice = "Make cache.tiles.spatial_tile or cache.tiles.chunk_size smaller"
        return OutOfMemory(
            f"The device ran out of memory while the VAE encoded {job.source.name} "
            f"({video.width}x{video.height}, {video.frames} frames). {advice}, or lower resolution or "
            f"{self.length_setting} in the dataset. Finished items are kept."
        )

    @property
    def length_setting(self) -> str:
        """The dataset's setting that says how many frames there are."""
        return "target_frames"


def require_numbers(latents: torch.Tensor, source: Path, settings: CacheSettings) -> None:
    """Raise DataError where `latents`, encoded from `source`, are not finite."""
    if not bool(torch.isfinite(latents).all()):
        raise DataError(
            f"{source}: {no_numbers('video VAE', settings.vae_dtype, settings.latents_dtype, 'vae_dtype')}", source
        )


def no_numbers(model: str, dtype: str, stored: str, setting: str) -> str:
    """What is said where `model` gave no numbers, in `dtype`, of the setting of that name, and `stored` as that."""
    advice = {f"cache.{setting}": "fp32"} if dtype != "fp32" else {}
    if stored == "fp16":
        advice[f"cache.{setting.replace('vae_dtype', 'latents_dtype')}"] = "bf16"
    wanted = ", ".join(f'{name} = "{value}"' for name, value in advice.items())
    return (
        f"the {model} gave numbers that are not finite in {dtype}, stored as {stored}. "
        f"{f'Set {wanted}.' if wanted else f'Is it the {model} of this model?'}"
    )


def encode_clip(clip: np.ndarray, vae: VideoVAE, settings: CacheSettings, device: torch.device | str) -> torch.Tensor:
    """Latents [1, 128, F, H, W] of `clip`, uint8 [frames, H, W, 3], by the `vae` that is on `device`."""
    takes_bytes: Any = _FromBytes(vae, DTYPES[settings.vae_dtype], device)
    return encode_tiled(takes_bytes, as_bytes(clip), tiles_on(device, settings.tiles, vae))


class References(Latents):
    """Of the pictures that samples are shown: of each its reference `number`, counted from 0."""

    def __init__(self, plan: DatasetPlan, recipe: CacheRecipe, number: int = 0) -> None:
        super().__init__(plan, recipe)
        self.number = number

    @classmethod
    def each(cls, plan: DatasetPlan, recipe: CacheRecipe) -> list[CacheKind[Any]]:
        most = max((len(item.references) for item in plan.items), default=0)
        return [cls(plan, recipe, number) for number in range(max(1, most))]

    def of(self, item: Item) -> Job | None:
        if item.kind == "audio" or self.number >= len(item.references):
            return None
        path = item.reference_path(self.number)
        return Job(self, item, item.references[self.number].path, path, self.made_from(item))

    def made_from(self, item: Item) -> dict[str, Any]:
        reference, shape, settings = item.references[self.number], self.shape(item), self.recipe.settings
        origin = {
            "reference_file": reference.path.name,
            "reference_frames": reference.frames,
            "resolution": f"{reference.width}x{reference.height}",
            "vae_dtype": settings.vae_dtype,
            "latents_dtype": settings.latents_dtype,
            **companion_settings(item, self.plan.settings_of(item)),
        }
        if reference.temporal_scale != 1:  # caches from before it was a setting say nothing of it
            origin["reference_temporal_scale"] = reference.temporal_scale
        return origin | tile_settings(settings) | {"latents": [shape.frames, shape.height, shape.width]}

    def shape(self, item: Item) -> LatentShape:
        return item.references[self.number].shape

    def read(self, job: Job, model: VideoVAE | None) -> np.ndarray:
        return read_reference(job.item, self.plan.settings_of(job.item), self.number)

    def failure_name(self, job: Job) -> str:
        folder = numbered_folder(Path(REFERENCE_FOLDER), self.number)
        return f"{folder}/{job.path.name}"  # its own name is that of its clip's latents

    def verdict(self, jobs: Sequence[Job], lost: set[Path]) -> str | None:
        return None

    @property
    def length_setting(self) -> str:
        return "more_reference_frames" if self.number else "reference_frames"


def tiles_on(device: torch.device | str, tiles: TileSettings, vae: VideoVAE) -> TileSettings:
    """`tiles`, with the chunks that are usual on a card where the settings leave them open.

    A whole clip of 121 frames takes 5 to 10 GB there and in chunks a fourth of it, with the same result.
    """
    if torch.device(device).type == "cpu" or tiles.chunk_size is not None or not vae.config.encodes_in_pieces:
        return tiles
    return tiles.model_copy(update={"chunk_size": CARD_CHUNK})


def tile_settings(settings: CacheSettings) -> dict[str, Any]:
    """The tiles, as far as the result depends on them; on chunk_size it does not."""
    made: dict[str, Any] = {}
    tiles = settings.tiles
    for axis in ("spatial", "temporal"):
        size = getattr(tiles, f"{axis}_tile")
        made[f"{axis}_tile"] = None if size is None else [size, getattr(tiles, f"{axis}_overlap")]
    return made


def companion_settings(item: Item, entry: DatasetSettings) -> dict[str, Any]:
    """What decides which part of a companion goes with `item`."""
    made: dict[str, Any] = {"target_fps": entry.target_fps, "flip": item.flipped, "held": item.source.timeline.held}
    if item.source.media.kind == "video":
        made |= {"window": item.window.token, "source_fps": entry.source_fps, "crop": entry.crop}
    return made


def as_bytes(clip: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] seen as [1, 3, F, H, W]; nothing is copied."""
    return torch.from_numpy(clip).permute(3, 0, 1, 2)[None]


def to_pixels(clip: np.ndarray | torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """uint8 [F, H, W, 3], or as `as_bytes` has it, to [1, 3, F, H, W] in [-1, 1]; rounded once, from float32."""
    levels = as_bytes(clip) if isinstance(clip, np.ndarray) else clip
    pixels = torch.empty(levels.shape, dtype=dtype, device=levels.device)
    for index in range(levels.shape[2]):
        # turned while they are bytes, of which fewer have to be moved
        pixels[:, :, index] = levels[:, :, index].contiguous().float().div_(127.5).sub_(1.0)
    return pixels


class _FromBytes:
    """A VAE for `encode_tiled` that is given bytes and makes pixels of them a piece at a time, on its own device.

    On a card that takes no time; on the processor it would take as long as decoding half a clip, and more memory.
    """

    def __init__(self, vae: VideoVAE, dtype: torch.dtype, device: torch.device | str) -> None:
        self.config = vae.config
        self._vae, self._dtype, self._device = vae, dtype, device

    def encode_piece(self, piece: torch.Tensor, stream: ClipMemory) -> torch.Tensor:
        return self._vae.encode_piece(to_pixels(piece.to(self._device), self._dtype), stream)
