"""Writing frames as an mp4 (H.264 and AAC, plays everywhere) or, for a single frame, as a PNG."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..files import atomic
from ..media.convert import NARROW_RANGE
from .sound_file import audio_frames

AAC_BLOCK = 1024
AAC_BIT_RATE = 192_000
BT709 = 1  # the matrix, by its number in files


def write_video(
    path: Path,
    frames: Iterable[np.ndarray],
    fps: float,
    info: dict[str, Any] | None = None,
    sound: Tensor | None = None,
    rate: int = 0,
) -> Path:
    """Write uint8 frames [H, W, 3] as mp4; `info` goes into its comment as JSON. Sizes are even (multiples of 32).

    `sound` [2, N] in [-1, 1] at `rate` Hz becomes its sound track.
    """
    import av

    with atomic(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        container.metadata["comment"] = json.dumps(info or {}, ensure_ascii=False)
        stream = track = None
        waiting = iter(())
        for number, frame in enumerate(frames):
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                # what says no matrix is taken for BT.601 by FFmpeg, and for BT.709 by players where it is large
                stream.codec_context.colorspace, stream.codec_context.color_range = BT709, NARROW_RANGE
                # without mbtree, by which x264 writes small pictures in one way now and in another then
                stream.options = {"crf": "16", "preset": "veryfast", "x264-params": "mbtree=0"}
                if sound is not None:  # every stream is made before the first packet
                    track = container.add_stream("aac", rate=rate)
                    track.codec_context.layout = "stereo"
                    track.codec_context.bit_rate = AAC_BIT_RATE
                    waiting = audio_frames(sound.float().numpy(), rate, "fltp", AAC_BLOCK)
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            coded = picture.reformat(
                format="yuv420p", dst_colorspace="itu709", src_color_range="JPEG", dst_color_range="MPEG"
            )
            container.mux(stream.encode(coded))
            # the sound goes beside its picture, so that the file can be played while it is read
            for block in waiting:
                assert track is not None
                assert block.pts is not None
                container.mux(track.encode(block))
                if block.pts + AAC_BLOCK > (number + 1) / fps * rate:
                    break
        assert stream is not None, "no frames to write"
        if track is not None:
            for block in (*waiting, None):
                container.mux(track.encode(block))
        container.mux(stream.encode(None))
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
