"""A run as it lies in a folder: settings, curve, LoRAs and samples, without training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from lora_files import pair, write_lora

Q = "transformer_blocks.0.attn1.to_q"
STEPS = (10, 20, 30)


def write_run(folder: Path, tiny: Any, clip: Path) -> Path:
    """The run `folder` of three saves and samples of two prompts, on a tiny base with sound; returns the folder."""
    for name in ("lora", "samples"):
        (folder / name).mkdir(parents=True)
    base = f"checkpoint = '{tiny.checkpoint}'\ntext_encoder = '{tiny.text_encoder}'\nprecision = 'fp32'\nmode = 'av'\n"
    text = f"[run]\nname = '{folder.name}'\n[model]\n{base}device = 'cpu'\n[sample]\nstg = 0.0\n"
    (folder / "run.toml").write_text(text)
    manifest = {"format": 1, "name": folder.name, "status": "finished", "step": 30, "total": 30, "resumes": [20]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "updated": "2026"}))
    rows = [
        {"step": step, "loss": 1 / step, **({"val_loss": 0.3 + 1 / step} if step % 5 == 0 else {})}
        for step in range(1, STEPS[-1] + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for step in STEPS:
        write_lora(folder / "lora" / f"{folder.name}_{step:06d}.safetensors", {Q: pair(2, (160, 160), step)})
    for step in (0, *STEPS):
        for prompt in (1, 2):
            shutil.copy2(clip, folder / "samples" / f"step_{step:06d}_p{prompt:02d}_s7.mp4")
    return folder
