"""Still images -> upright 8-bit sRGB, whatever mode they are stored in; transparency is laid over black."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from .buckets import MIDDLE, cover
from .coded_colours import picture_remark
from .jpeg import SECOND
from .still import what_is_odd, why_damaged

IMAGE_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".avif", ".jxl"))
# Endings of pictures that are named where they lie among others, and not read.
UNREAD_PICTURES = {
    ".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".tif": "TIFF", ".tiff": "TIFF", ".apng": "moving PNG",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".psd": "Photoshop", ".exr": "OpenEXR", ".hdr": "Radiance",
    ".tga": "Targa", ".svg": "SVG", ".ico": "Windows icon", ".ppm": "PPM",
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"), "raw"),
}  # fmt: skip
OVER_BLACK = "has transparency; it is laid over black"
MAYBE_OVER_BLACK = "has a channel of transparency; what is transparent in it is laid over black"
TURNED_BY_XMP = (
    "is turned as its XMP says (tiff:Orientation) and its EXIF does not, which not every viewer does; save it upright"
)
NO_PROFILE = "has a colour profile that cannot be read; its colours are taken for sRGB"
ADOBE_RGB = "says Adobe RGB in its EXIF and carries no profile; its colours are taken for sRGB. Save it as sRGB"
PLAIN = "", "RGB", None  # a picture whose colours are sRGB
ORIENTATION_TAG = 0x0112
DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
MOVING_FORMATS = frozenset(("WEBP", "PNG", "GIF", "AVIF"))  # a JPEG of several pictures is a photo and its preview
# What Pillow alone does not read: name, package to install and its module.
PLUGINS = {"JPEG XL": ("pillow-jxl-plugin", "pillow_jxl"), "HEIC": ("pillow-heif", "pillow_heif")}
HEIC_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))
HDR_LEVELS = 32.0  # of floats; a picture whose white is 255 goes higher
COLOUR_STEPS = (0, 64, 128, 192, 255)  # of each channel; where a profile shows
SAME_COLOUR = 2  # levels of 255
RELATIVE, BLACK_POINT = 1, 0x2000  # intent and flag of littlecms, which older Pillow has no names for


@dataclass(frozen=True)
class ImageHeader:
    """What a picture is like: width and height as shown. `profile` names its colours where they are not sRGB."""

    width: int
    height: int
    mode: str
    has_alpha: bool
    profile: str = ""
    remarks: tuple[str, ...] = ()


def image_header(path: Path) -> ImageHeader:
    """What the picture `path` is like, from its header alone. Raises DataError."""
    with _opened(path) as image:
        width, height = image.size
        if image.getexif().get(ORIENTATION_TAG, 1) in (5, 6, 7, 8):
            width, height = height, width
        remarks = [TURNED_BY_XMP] if _is_turned_by_xmp(image) else []
        profile = _profile(image)
        if profile is None:
            remarks.append(NO_PROFILE)
        if profile == PLAIN and (remark := picture_remark(path)):
            remarks.append(remark)
        if profile == PLAIN and _is_adobe_rgb(image):
            remarks.append(ADOBE_RGB)
        gamma = image.info.get("gamma")
        if gamma and profile == PLAIN and "srgb" not in image.info and abs(gamma * 2.2 - 1) > 0.1:
            remarks.append(f"says a gamma of {gamma:g} (gAMA), which is not applied; save it as sRGB")
        return ImageHeader(width, height, image.mode, _has_alpha(image), profile[0] if profile else "", tuple(remarks))


def _is_adobe_rgb(image: Any) -> bool:
    """Whether EXIF tells of Adobe RGB, as cameras do without a profile: no sRGB (DCF 2.0), and R03 beside it."""
    if "exif" not in image.info:
        return False
    exif = image.getexif()
    return exif.get_ifd(0x8769).get(0xA001) == 0xFFFF and exif.get_ifd(0xA005).get(1) == "R03"


def _is_turned_by_xmp(image: Any) -> bool:
    from PIL import Image

    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or ""
    if "Orientation" not in (xmp.decode(errors="replace") if isinstance(xmp, bytes) else str(xmp)):
        return False
    turned = image.getexif().get(ORIENTATION_TAG, 1) != 1  # Pillow looks into both
    own = Image.Exif()
    own.load(image.info.get("exif") or b"")
    return turned and ORIENTATION_TAG not in own


def is_transparent(path: Path) -> bool:
    """Whether a part of the picture `path` is, which only its pixels tell; also where they cannot be read."""
    with contextlib.suppress(DataError), _opened(path) as image:
        return _has_alpha(image) and image.convert("RGBA").getchannel("A").getextrema()[0] < 255
    return True


def colours(header: ImageHeader) -> tuple[str, ...]:
    """What reading does for the colours of a picture, as `MediaInfo.reading` has it."""
    return (f"colours of {header.profile}",) if header.profile else ()


def read_image(path: Path, size: tuple[int, int] | None = None, centre: tuple[float, float] = MIDDLE) -> np.ndarray:
    """The picture as uint8 [H, W, 3]; with `size` (width, height) scaled to cover it and cropped around `centre`.

    Raises DataError.
    """
    picture = _decoded(path)
    return np.array(picture if size is None else _covering(picture, size, centre, None))


def glances(path: Path, *wanted: tuple[tuple[int, int], tuple[float, float]]) -> list[np.ndarray]:
    """As `read_image` for each (size, centre) that is `wanted`, from one decoding: fast and less smooth, for a look at
    many pictures. Raises DataError."""
    picture = _decoded(path, 4 * max(side for size, _ in wanted for side in size))
    return [np.array(_covering(picture, size, centre, 2.0)) for size, centre in wanted]


def _decoded(path: Path, least: int = 0) -> Any:
    """A picture in RGB; with `least`, a JPEG of twice as many pixels a side is decoded at a part of its size."""
    from PIL import ImageOps

    with _opened(path) as image:
        if damage := why_damaged(path):
            raise DataError(f"{path} is damaged: {damage}. Save it again from its source, or remove it.", path)
        if least:
            image.draft(None, (least, least))
        if image.mode == "F":
            _refuse_levels(path, np.asarray(image))
        return _to_rgb(ImageOps.exif_transpose(image), _profile(image))


def picture_doubts(path: Path) -> list[str]:
    """What a user should know of a picture beyond its header, all bytes of which are read. Raises DataError."""
    with _opened(path) as image:
        doubts, size = [what_is_odd(path)], image.size
        for number in range(1, getattr(image, "n_frames", 1) if image.format == "MPO" else 1):
            image.seek(number)
            if image.size == size:  # others are previews, depth and brightness
                doubts.append(SECOND)
    return [*dict.fromkeys(words for words in doubts if words)]


def _refuse_levels(path: Path, levels: np.ndarray) -> None:
    """Raise DataError where nobody can tell what the `levels` of a picture in floats look like."""
    if not np.isfinite(levels).all():
        raise DataError(f"{path} holds levels that are not numbers. Save it again, or remove it.", path)
    if 1.0 < (top := float(levels.max(initial=0))) < HDR_LEVELS:
        raise DataError(f"{path} is HDR: its levels go up to {top:.2f}. Save it with 8 or 16 bits.", path)


def fit_image(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3] scaled to cover `size` (width, height) and cropped around its middle, as `read_image` does."""
    from PIL import Image

    return np.array(_covering(Image.fromarray(picture), size, MIDDLE, None))


def _covering(picture: Any, size: tuple[int, int], centre: tuple[float, float], gap: float | None) -> Any:
    from PIL import Image

    if picture.size == tuple(size):
        return picture
    width, height = picture.size
    scaled_w, scaled_h, left, top = cover(width, height, size, centre)
    picture = picture.resize((scaled_w, scaled_h), Image.Resampling.LANCZOS, reducing_gap=gap)
    return picture.crop((left, top, left + size[0], top + size[1]))


def _has_alpha(image: Any) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info


def _to_rgb(image: Any, profile: tuple[str, str, Any] | None) -> Any:
    from PIL import Image

    if image.mode in DEEP_MODES:
        # convert() would clip 16 bits at 255 instead of scaling them.
        values = np.asarray(image, dtype=np.float32)
        if image.mode == "F":
            top = 1.0 if values.max(initial=0) <= 1.0 else 255.0
        else:
            top = 65535.0 if values.max(initial=0) > 255 or image.mode != "I" else 255.0
        image = Image.fromarray(np.clip(values * (255.0 / top) + 0.5, 0, 255).astype(np.uint8))
    alpha = _has_alpha(image)
    if profile is not None and profile[0]:
        _, mode, transform = profile
        opacity = image.convert("RGBA").getchannel("A") if alpha else None
        image = transform.apply(image.convert(mode))
        if opacity is not None:
            image.putalpha(opacity)
    if alpha:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("RGB")


def _profile(image: Any) -> tuple[str, str, Any] | None:
    """Name, mode and transform of the colours of a picture; ("", ...) where they are sRGB, None: nobody can tell."""
    data = image.info.get("icc_profile")
    return _transform(data, image.mode) if data else PLAIN


@functools.lru_cache(maxsize=64)
def _transform(data: bytes, mode: str) -> tuple[str, str, Any] | None:
    """What `_profile` tells, of a profile and a mode; the same few profiles come with thousands of pictures."""
    from PIL import Image

    try:
        from PIL import ImageCms
    except ImportError:
        return None
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        described: Any = profile.profile  # Pillow's annotation forgets what it made of the file
        space = described.xcolor_space.strip()
        source = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
        if source is None or (source == "CMYK") != (mode == "CMYK"):
            return None
        if source == "L" and not mode.startswith(("1", "L", "I", "F")):  # it would take the colours away
            return None
        name = ImageCms.getProfileDescription(profile).strip() or space
        srgb = ImageCms.createProfile("sRGB")
        build: Any = ImageCms.buildTransform  # annotated with the names that older Pillow lacks
        transform = build(profile, srgb, source, "RGB", RELATIVE, BLACK_POINT)
        if source == "CMYK":
            return name, source, transform
        levels = np.array(COLOUR_STEPS, np.uint8)
        grid = levels[None] if source == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        plain = Image.fromarray(grid)
        apart = np.asarray(transform.apply(plain), int) - np.asarray(plain.convert("RGB"), int)
    except (ImageCms.PyCMSError, ImportError, OSError, ValueError, TypeError):
        return None
    # sRGB has many names and makers; what changes nothing is that, and pictures stay as they are to the last bit.
    return (name, source, transform) if np.abs(apart).max() > SAME_COLOUR else ("", source, None)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from PIL import Image

    kind = _foreign_kind(path)
    if kind:
        _load_plugin(kind)
    try:
        with Image.open(path) as image:
            pictures = getattr(image, "n_frames", 1) if image.format in MOVING_FORMATS else 1
            if pictures > 1:
                raise DataError(
                    f"{path} is an animation of {pictures} pictures, of which one would be used. Save it as a video "
                    "(for video_directory), or save the one picture that is meant.",
                    path,
                )
            yield image
    except Image.DecompressionBombError as error:
        reason = str(error).rstrip(".")
        raise DataError(f"{path} is too large to be opened safely: {reason}. Make it smaller.", path) from error
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(_unreadable(path, kind, error), path) from error


def _unreadable(path: Path, kind: str, error: Exception) -> str:
    if kind:
        package = PLUGINS[kind][0]
        return (
            f"{path} is a {kind} picture, which Pillow cannot read. Save it as PNG or JPEG, or install what reads it: "
            f"pip install {package}."
        )
    return (
        f"{path} cannot be read as an image: {error}. The file is damaged or of another format; "
        "save it again or remove it."
    )


def _foreign_kind(path: Path) -> str:
    """What a picture that Pillow alone does not read is, by its first bytes; "" where it is none of these."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return ""
    if head.startswith(b"\xff\x0a") or head == b"\0\0\0\x0cJXL \r\n\x87\n":
        return "JPEG XL"
    return "HEIC" if head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS else ""


@functools.cache
def _load_plugin(kind: str) -> None:
    with contextlib.suppress(ImportError):
        plugin = importlib.import_module(PLUGINS[kind][1])
        if hasattr(plugin, "register_heif_opener"):
            plugin.register_heif_opener()
