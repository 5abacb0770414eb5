"""A run folder as the program wrote it before a run's record had a version, from a description.

Nothing here asks the program how it writes a run, so that a change of any of its files is noticed. The run took two
steps in the mode av on the clip of `sound_run_file`, with a LoRA of rank 1 on two layers. Its optimizer was `auto`,
which on a CPU meant adamw.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

STEPS = 2
LAYERS = {"transformer_blocks.0.attn1.to_q": (160, 160), "transformer_blocks.0.audio_attn1.to_q": (144, 144)}
NUMBERS = {
    "lr": 0.0, "name": "main", "betas": {"__tuple__": [0.9, 0.999]}, "eps": 1e-08, "weight_decay": 0.01,
    "amsgrad": False, "maximize": False, "foreach": None, "capturable": False, "differentiable": False, "fused": None,
    "decoupled_weight_decay": True, "initial_lr": 1e-3, "params": [0, 1, 2, 3],
}  # fmt: skip
SCHEDULE = {
    "base_lrs": [1e-3], "last_epoch": 2, "_step_count": 3, "_is_initial": False, "_get_lr_called_within_step": False,
    "_last_lr": [0.0], "lr_lambdas": [None],
}  # fmt: skip
SOUND = {
    "balance": {"frequency": 1.0, "video": 0.0, "audio": 0.0, "seen": 0},
    "monitor": {"batches": 2, "with_sound": 2},
    "watch": {"steps": 2, "heard": 2, "done": False, "first": {"video": 0.0, "audio": 0.0}},
}
SETTINGS = """\
[lora]
rank = 1
target_modules = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.0.audio_attn1.to_q"]
"""


def write_old_run(folder: Path, checkpoint: str, fingerprint: str) -> dict[str, torch.Tensor]:
    """The run `folder`, trained over `checkpoint`, a file name, of `fingerprint`. Returns its LoRA."""
    record = {
        "model.checkpoint": f"{checkpoint} ({fingerprint[:8]})",
        "model.mode": "av",
        "model.precision": "fp32",
        "dataset": "3 clips (f8bf82c5)",
        "lora.rank": "1",
        "lora.alpha": "1",
        "lora targets": "e854aee4",
        "train.learning_rate": "0.001",
        "train.accumulation": "1",
        "train.seed": "42",
        "optimizer.name": "auto",
        "schedule.name": "linear",
        "audio.independent_timestep": "False",
        "loss.balance.mode": "none",
        "batches of sound": "bf9c470d",
    }
    manifest = {"format": 1, "name": folder.name, "identity": record, "status": "finished", "step": STEPS}
    manifest |= {"updated": "2026-06-01T08:00:10+0000", "created": "2026-06-01T08:00:00+0000", "total": STEPS}
    manifest |= {"lora": f"{folder.name}.safetensors", "loss": 3.25}
    for name in ("states", "samples", "lora"):
        (folder / name).mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [_row(step) for step in range(1, STEPS + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tensors = _state()
    save_file(
        tensors,
        str(folder / "states" / f"state_{STEPS:08d}.safetensors"),
        {"format": "ltx2_train_state_1", "tree": json.dumps(_tree(tensors))},
    )
    halves = {
        f"diffusion_model.{layer}.lora_{half}.weight": tensors[f"lora.{layer}.{half}"].bfloat16()
        for layer in LAYERS
        for half in "AB"
    }
    head = {"format_version": "1", "program": "ltx2_train 0.1.0", "name": folder.name, "version": "2.3", "rank": "1"}
    head |= {"alpha": "1", "alpha_folded": "true", "base": checkpoint, "base_fingerprint": fingerprint}
    save_file(halves, str(folder / "lora" / f"{folder.name}.safetensors"), {**head, "step": str(STEPS)})
    return {name: tensor for name, tensor in tensors.items() if name.startswith("lora.")}


def write_old_plan(folder: Path) -> None:
    """The plan of memory that the run `folder` was trained by, on a card."""
    choice = {"format": "int8_rotated", "blocks_to_swap": 20, "recompute_blocks": 48, "offload_activations": True}
    choice |= {"pinned": True, "swap_from": "ram", "swap_ahead": 1, "keep_text_kv": False, "ff_chunk": 1024}
    prediction = {"vram": 2.2e10, "ram": 1.5e10, "disk": 0.0, "seconds": 9.5, "parts": {"weights": 1.2e10}}
    plan = {"version": 1, "total": 48, "limit": 2.3e10, "ram_limit": 5e10, "device_type": "cuda", "notches": 1}
    plan |= {"reasons": ["It fits."], "rejected": [], "fixed": ["ff_chunk"]}
    (folder / "plan.json").write_text(json.dumps({**plan, "choice": choice, "prediction": prediction}))


def _row(step: int) -> dict[str, object]:
    losses = {"loss_video": 1.25, "loss_audio": 2.0, "loss": 3.25, "sigma": 0.75, "sigma_audio": 0.75}
    rates = {"audio_weight": 1.0, "lr": 1e-3 / step, "lr_audio": 1e-3 / step, "grad_norm": 1e-3}
    return {"step": step, **losses, **rates, "seconds": 0.5, "epoch": 0, "skipped": None}


def _state() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tensors = {"random.cpu": torch.Generator().manual_seed(2).get_state()}
    halves = [(layer, half) for layer in LAYERS for half in "AB"]
    for number, (layer, half) in enumerate(halves):
        out, width = LAYERS[layer]
        shape = (1, width) if half == "A" else (out, 1)
        tensors[f"lora.{layer}.{half}"] = 0.05 * torch.randn(shape, generator=generator)
        tensors[f"optimizer.state.{number}.step"] = torch.tensor(float(STEPS))
        tensors[f"optimizer.state.{number}.exp_avg"] = 1e-5 * torch.randn(shape, generator=generator)
        tensors[f"optimizer.state.{number}.exp_avg_sq"] = torch.full(shape, 1e-10)
    return tensors


def _tree(tensors: dict[str, torch.Tensor]) -> dict[str, object]:
    def stored(name: str) -> dict[str, str]:
        assert name in tensors, name
        return {"__tensor__": name}

    loras = {layer: {half: stored(f"lora.{layer}.{half}") for half in "AB"} | {"dropout_draws": 0} for layer in LAYERS}
    kept = ("step", "exp_avg", "exp_avg_sq")
    moments = [[number, {key: stored(f"optimizer.state.{number}.{key}") for key in kept}] for number in range(4)]
    return {
        "step": STEPS,
        "place": [0, 2],
        "lora": loras,
        "optimizer": {"state": {"__pairs__": moments}, "param_groups": [NUMBERS]},
        "scaler": {},
        "schedule": SCHEDULE,
        "random": {"cpu": stored("random.cpu")},
        "sound": SOUND,
    }
