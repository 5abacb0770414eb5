"""Train a run in one go and again with a stop half way; compare the two LoRAs bit by bit.

Run: python tests/bench/resume.py [--mode video|av|audio] [--steps 20]
Prints one JSON object. On a CPU `bit_equal` has to be true.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from ltx2_train import Events, Stopped, build_caches, load_run, make_tiny, train  # noqa: E402
from ltx2_train.cli.demo_media import draw_clip  # noqa: E402
from ltx2_train.lora.file import load_lora_state  # noqa: E402

RUN = """\
model = { checkpoint = '%s', text_encoder = '%s', precision = "fp32", device = "cpu", mode = "%s" }
data = { config = "dataset.toml" }
cache = { vae_dtype = "fp32", latents_dtype = "fp32" }
lora = { rank = 8, dropout = 0.1 }
train = { steps = %d, accumulation = 2, save_precision = "fp32", save_every = 0 }
sample = { every = 0 }
"""
DATASET = """\
[general]
resolution = [64, 64]
target_frames = [9]
frame_extraction = "chunk"
[[datasets]]
video_directory = "clips"
cache_directory = "cache"
"""


class StopAt(Events):
    def __init__(self, step: int) -> None:
        self.at, self.done = step, 0

    def step(self, metrics: dict) -> None:
        self.done = metrics["step"]

    def should_stop(self) -> bool:
        return self.done >= self.at


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["video", "av", "audio"], default="video")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = make_tiny(folder / "model")
        draw_clip(folder / "clips" / "clip.mp4")
        (folder / "clips" / "clip.txt").write_text("a red ball bounces")
        (folder / "dataset.toml").write_text(DATASET)
        (folder / "run.toml").write_text(RUN % (tiny.checkpoint, tiny.text_encoder, args.mode, args.steps))
        build_caches(load_run(folder / "run.toml"))
        whole = train(load_run(folder / "run.toml", ["run.name=whole"]))
        broken = load_run(folder / "run.toml", ["run.name=broken"])
        try:
            train(broken, StopAt(args.steps // 2))
        except Stopped:
            pass
        resumed = train(broken)
        first, second = load_lora_state(whole.lora).entries, load_lora_state(resumed.lora).entries
        equal = first.keys() == second.keys() and all(
            torch.equal(first[key].down, second[key].down) and torch.equal(first[key].up, second[key].up)
            for key in first
        )
        print(
            json.dumps(
                {
                    "mode": args.mode,
                    "steps": args.steps,
                    "stopped_after": args.steps // 2,
                    "layers": len(first),
                    "bit_equal": equal,
                }
            )  # fmt: skip
        )


if __name__ == "__main__":
    main()
