"""Writing frames as an mp4 (H.264, plays everywhere) or, for a single frame, as a PNG."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic


def write_video(path: Path, frames: Iterable[np.ndarray], fps: float, info: dict[str, Any] | None = None) -> Path:
    """Write uint8 frames [H, W, 3] as mp4; `info` goes into its comment as JSON. Sizes are even (multiples of 32)."""
    import av

    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        container.metadata["comment"] = json.dumps(info or {}, ensure_ascii=False)
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "16", "preset": "veryfast"}
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        assert stream is not None, "no frames to write"
        container.mux(stream.encode())
    return path


def write_image(path: Path, frame: np.ndarray, info: dict[str, Any] | None = None) -> Path:
    """Write one uint8 frame [H, W, 3] as PNG with `info` as JSON in its text."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_itxt("comment", json.dumps(info or {}, ensure_ascii=False))
    with atomic(path) as temporary:
        Image.fromarray(frame).save(temporary, format="PNG", pnginfo=text)
    return path
