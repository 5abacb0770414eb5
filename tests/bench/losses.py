"""Losses of short runs of all three modes, to the last bit, for the proof that a change changes no arithmetic.

    python tests/bench/losses.py > before.txt      # on main
    python tests/bench/losses.py > after.txt       # with the change, on the same machine
    diff before.txt after.txt                      # prints nothing

Tiny checkpoint, drawn clip, caches, a dozen steps: everything a run passes through. A line holds mode, step and the
losses as hexadecimal floats; the last line of a mode is a checksum of the LoRA it ends with.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # sums of several threads have no fixed order
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

RUN = """\
[run]
name = "{mode}"
[model]
mode = "{mode}"
checkpoint = '{checkpoint}'
text_encoder = '{encoder}'
precision = "fp32"
device = "cpu"
[data]
config = "dataset.toml"
[cache]
vae_dtype = "fp32"
latents_dtype = "fp32"
[lora]
rank = 4
dropout = 0.1
[train]
steps = {steps}
learning_rate = 1e-3
accumulation = 2
save_every = 0
save_precision = "fp32"
caption_dropout = 0.2
[sample]
every = 0
"""

DATASET = """\
[general]
resolution = [64, 64]
target_frames = [9]
frame_extraction = "uniform"
frame_sample = 3
[[datasets]]
video_directory = "clips"
cache_directory = "cache"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--modes", nargs="+", choices=("video", "av", "audio"), default=["video", "av", "audio"])
    args = parser.parse_args()

    from safetensors import safe_open

    from ltx2_train import Events, build_caches, load_run, make_tiny, train
    from ltx2_train.cli.demo import draw_clip
    from ltx2_train.training.metrics import read_rows

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "clips").mkdir()
        draw_clip(folder / "clips" / "clip.mp4")
        (folder / "clips" / "clip.txt").write_text("a red ball bounces to a tune")
        (folder / "dataset.toml").write_text(DATASET)
        tiny = make_tiny(folder / "tiny", version="2.3")
        for mode in args.modes:
            file = folder / f"{mode}.toml"
            file.write_text(
                RUN.format(mode=mode, checkpoint=tiny.checkpoint, encoder=tiny.text_encoder, steps=args.steps)
            )
            run = load_run(file)
            build_caches(run, Events())
            result = train(run, Events())
            for row in read_rows(result.folder / "metrics.jsonl"):
                numbers = [row[key] for key in ("loss", "loss_video", "loss_audio", "grad_norm")]
                print(mode, row["step"], *("-" if value is None else float(value).hex() for value in numbers))
            digest = hashlib.sha256()
            with safe_open(result.lora, "pt") as lora:
                for key in sorted(lora.keys()):
                    digest.update(key.encode() + lora.get_tensor(key).numpy().tobytes())
            print(mode, "LoRA", digest.hexdigest()[:16])


if __name__ == "__main__":
    main()
