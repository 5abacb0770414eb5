"""A picture as a frame of a compressed video has it: once through H.264, in memory."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..media.images import fit_image, read_image


def recompressed(path: Path, size: tuple[int, int], crf: int) -> np.ndarray:
    """The picture `path` as uint8 [1, H, W, 3] of `size` (width, height), compressed at its own size before."""
    picture = through_h264(read_image(path), crf)
    return fit_image(picture, size)[None]


def through_h264(picture: np.ndarray, crf: int) -> np.ndarray:
    """uint8 [H, W, 3] encoded at the constant rate factor `crf` and decoded; sides are cut to even ones.

    One of less than two pixels a side stays as it is.
    """
    import av

    height, width = (side // 2 * 2 for side in picture.shape[:2])
    if not (height and width and crf):
        return picture
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"crf": str(crf), "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    buffer.seek(0)
    with av.open(buffer) as container:
        return next(container.decode(video=0)).to_ndarray(format="rgb24")
