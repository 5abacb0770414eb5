"""Compare reading a clip for training with the least that PyAV could do for the same frames, in one process.

Run: python tests/bench/decode.py [--clip FILE] [--frames 121] [--size 512 288] [--rounds 7]
Prints one JSON object: seconds of both (best and median), and `ratio`, the median over the rounds of ours / bare, each
pair timed back to back and in turns. `ratio_processor` compares processor time over all threads, which other work on
the machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import numpy as np  # noqa: E402

from ltx2_train.media.buckets import BucketSelector  # noqa: E402
from ltx2_train.media.video import probe_media, read_frames  # noqa: E402


def bare(path: Path, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Decode and swscale with one context, nothing else."""
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    reformatter = VideoReformatter()
    out = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for frame in container.decode(video=0):
            scaled = reformatter.reformat(
                frame, width=size[0], height=size[1], format="rgb24", interpolation=Interpolation.AREA
            )
            out.append(scaled.to_ndarray())
            if len(out) == frames:
                break
    return np.stack(out)


def ours(path: Path, frames: int, size: tuple[int, int]) -> np.ndarray:
    """Probe, bucket, decode, resize: what caching does for a clip before the VAE."""
    info = probe_media(path)
    bucket = BucketSelector(size, enabled=True).choose(info.width, info.height)
    return read_frames(info, range(frames), bucket)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--frames", type=int, default=121)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 288))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.clip is None:
        from media import real_clip

        options.clip = real_clip("bigbuckbunny.mp4")
    size = tuple(options.size)
    times: dict[str, list[float]] = {"ours": [], "bare": []}
    work: dict[str, list[float]] = {"ours": [], "bare": []}
    shapes = {}
    pair = [("ours", ours), ("bare", bare)]
    for _ in range(options.rounds):
        pair.reverse()
        for name, function in pair:
            start, used = time.perf_counter(), time.process_time()
            shapes[name] = function(options.clip, options.frames, size).shape
            times[name].append(time.perf_counter() - start)
            work[name].append(time.process_time() - used)
    best = {name: min(seconds) for name, seconds in times.items()}
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(
        json.dumps(
            {
                "clip": options.clip.name,
                "shapes": shapes,
                "best_seconds": best,
                "median_seconds": middle,
                "ratio": round(statistics.median(a / b for a, b in zip(*times.values(), strict=True)), 3),
                "ratio_processor": round(min(work["ours"]) / min(work["bare"]), 3),
            }
        )
    )


if __name__ == "__main__":
    main()
