"""DINOv2 features of training clips: their files.

    {same base as the latents}_ltx2_dino.safetensors
        dino_features                       [T, P, D] float16: T frames of the window, P patches row by row, D values
        metadata: dino_model, dino_dim, num_frames, num_patches (and what ours were made from, see caches)

That is the community trainer's format. Every frame is resized to a square, whatever its shape (bilinear), normalised
with mean and deviation of ImageNet, and each patch has its token of the last layer after the final norm; class token
and registers are left out. So P is (size / patch) squared, and patch p lies in row p // sqrt(P).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..dataset.cache_names import LATENT_SUFFIX
from ..errors import CacheError
from .cache_file import CacheFile

DINO_SUFFIX = "_ltx2_dino.safetensors"
DINO_KEY = "dino_features"
MODEL_SETTING = "cache.dino.model"


def dino_path(latent_path: Path) -> Path:
    """Where the features of the clip with these latents belong."""
    return latent_path.with_name(latent_path.name.removesuffix(LATENT_SUFFIX) + DINO_SUFFIX)


def dino_shape(file: CacheFile) -> tuple[int, int, int]:
    """(T, P, D) of the features in `file`, from its header. Raises CacheError where there are none."""
    if DINO_KEY not in file.keys:
        raise _damaged(file.path, f"it holds no {DINO_KEY}")
    shape = file.shape(DINO_KEY)
    if len(shape) != 3 or 0 in shape or math.isqrt(shape[1]) ** 2 != shape[1]:
        raise _damaged(file.path, f"{DINO_KEY} has shape {list(shape)}, not frames, patches of a square, values")
    return shape


def read_dino(
    path: Path, frames: Sequence[int] | None = None, opened: Callable[[Path], CacheFile] = CacheFile
) -> torch.Tensor:
    """The features [T, P, D] in float32, of the given `frames` alone where they are named; `opened` opens the file.

    Raises CacheError where the file is missing, damaged or holds numbers that are not finite.
    """
    if not path.is_file():
        raise CacheError(
            f"The DINOv2 features {path} are missing. Set {MODEL_SETTING} to the folder of a DINOv2 model and run "
            "`ltx2-train cache build RUN.toml` (in ComfyUI: the Prepare Dataset node).",
            path,
        )
    file = opened(path)
    dino_shape(file)
    features = file.tensor(DINO_KEY)
    return (features if frames is None else features[list(frames)]).float()


def _damaged(path: Path, reason: str) -> CacheError:
    return CacheError(f"The DINOv2 features {path} are damaged: {reason}. Delete the file and build it again.", path)
