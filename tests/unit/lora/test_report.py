"""What is said of a LoRA file."""

import json

import pytest
import torch
from safetensors.torch import save_file

from ltx2_train.lora.report import inspect_lora
from ltx2_train.lora.save import save_lora


def test_report_names_rank_base_and_norm_of_each_branch(make_set, tmp_path):
    loras = make_set(rank=3, alpha=6, target="full")
    about = {"base": {"file": "ltx.safetensors", "fingerprint": "ab", "version": "2.3"}, "step": 7, "trigger": "ohwx"}
    save_lora(tmp_path / "x.safetensors", loras, about, "fp32")
    report = inspect_lora(tmp_path / "x.safetensors")
    assert (report.ranks, report.alpha, report.step, report.version) == ([3], 6.0, 7, "2.3")
    assert set(report.modules) == set(loras.layers)
    assert report.branches == loras.branches()
    assert report.norms == pytest.approx(loras.norms(), rel=1e-4)
    assert report.problems == []
    assert json.loads(json.dumps(report.to_json(), allow_nan=False))["base"] == "ltx.safetensors"
    text = report.text()
    for part in ("rank 3", "alpha 6", "ltx.safetensors (LTX 2.3)", "ohwx", "a2v", "float32"):
        assert part in text


def test_flat_names_are_counted_by_branch_and_flagged_where_comfyui_ignores_them(tmp_path):
    name = "lora_unet_model_transformer_blocks_0_audio_to_video_attn_to_out_0"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 3),
        f"{name}.lora_up.weight": torch.ones(4, 2),
        f"{name}.alpha": torch.tensor(1.0),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    report = inspect_lora(tmp_path / "x.safetensors")
    assert report.branches == {"a2v": 1}
    assert report.norms["a2v"] == pytest.approx(0.5 * torch.full((4, 3), 2.0).norm().item())
    assert any("ComfyUI does not load it" in problem for problem in report.problems)


def test_faults_are_named(tmp_path):
    at = "diffusion_model.transformer_blocks.0.attn1.{}.lora_{}.weight"
    tensors = {
        at.format("to_q", "A"): torch.full((2, 3), float("nan")),
        at.format("to_q", "B"): torch.zeros(4, 2),
        at.format("to_k", "A"): torch.ones(5, 3),
        at.format("to_k", "B"): torch.zeros(4, 5),
        at.format("to_v", "A"): torch.ones(5, 3),
        "diffusion_model.transformer_blocks.0.attn1.to_q.dora_scale": torch.ones(1),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    report = inspect_lora(tmp_path / "x.safetensors")
    text = " ".join(report.problems)
    for part in ("not finite", "Every B is zero", "different ranks: 2, 5", "other half", "dora_scale"):
        assert part in text
    json.dumps(report.to_json(), allow_nan=False)
