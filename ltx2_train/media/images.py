"""Still images -> upright 8-bit RGB, whatever mode they are stored in; transparency is laid over black."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE, cover

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"))
ORIENTATION_TAG = 0x0112
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")


def image_header(path: Path) -> tuple[int, int, str, bool]:
    """Width and height as shown, mode, and whether there is transparency; read from the header alone."""
    with _opened(path) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8):
            width, height = height, width
        return width, height, image.mode, _has_alpha(image)


def read_image(path: Path, size: tuple[int, int] | None = None, centre: tuple[float, float] = MIDDLE) -> np.ndarray:
    """The picture as uint8 [H, W, 3]; with `size` (width, height) scaled to cover it and cropped around `centre`."""
    from PIL import Image, ImageOps

    with _opened(path) as image:
        picture = _to_rgb(ImageOps.exif_transpose(image))
        if size is not None and picture.size != tuple(size):
            scaled_w, scaled_h, left, top = cover(*picture.size, size, centre)
            picture = picture.resize((scaled_w, scaled_h), Image.Resampling.LANCZOS)
            picture = picture.crop((left, top, left + size[0], top + size[1]))
        return np.array(picture)


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _to_rgb(image: Any) -> Any:
    from PIL import Image

    if image.mode in DEEP_MODES:
        # convert() would clip 16 bits at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float32)
        if image.mode == "F":
            top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
        else:
            top = 65535.0 if values.max(initial=0) > 255 or image.mode != "I" else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
    if _has_alpha(image):
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError as error:
        raise DataError(f"{path} is too large to be opened safely: {error}. Make it smaller.", path) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}. The file is damaged or of another format; "
            "save it again or remove it.",
            path,
        ) from error
