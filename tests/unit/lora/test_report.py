"""What is said of a LoRA file."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.lora.convert import convert_lora
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.report import inspect_lora
from ltx2_train.lora.resize import resize_lora
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
    for part in ("rank 3", "alpha 6", "ltx.safetensors (LTX-2.3)", "ohwx", "a2v", "float32"):
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


AT = "diffusion_model.transformer_blocks.{}.audio_attn1.to_q."
OTHER_KINDS = {
    "LoKr": ("lokr_w1", "lokr_t2", "lokr_w2_a", "lokr_w2_b"),
    "OFT": ("oft_blocks",),
    "full weights": ("diff",),
    "GLoRA": ("a1.weight", "a2.weight", "b1.weight", "b2.weight"),
}


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_other_kinds_are_described(tmp_path, kind):
    tensors = {AT.format(block) + ending: torch.ones(4, 4) for block in range(3) for ending in OTHER_KINDS[kind]}
    tensors[AT.format(0) + "alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "x.safetensors", {"ss_ltx_version": "2.3", "ss_sd_model_name": "ltx.safetensors"})
    report = inspect_lora(tmp_path / "x.safetensors")
    assert report.kind == kind
    assert (report.branches, report.norms, report.ranks) == ({"audio": 3}, {}, [])
    assert report.text().startswith(f"x.safetensors: {kind}, 3 layers, 0.0 MB, float32\n")
    assert "ltx.safetensors (LTX-2.3)" in report.text()
    assert any("can neither be drawn with nor started from" in problem for problem in report.problems)
    with pytest.raises(CheckpointError, match=rf"x.safetensors is no plain LoRA but {kind} \(3 layers\)"):
        load_lora_state(tmp_path / "x.safetensors")
    json.dumps(report.to_json(), allow_nan=False)


@pytest.mark.parametrize("algo", ["lokr", "loha"])
def test_kinds_that_can_be_trained_are_described_with_their_norms(make_set, tmp_path, algo):
    loras = make_set(trained=False, rank=1, algo=algo, target="v2v")
    with torch.no_grad():
        for parameter in loras.parameters():
            parameter.add_(0.3)
    save_lora(tmp_path / "x.safetensors", loras, {}, "fp32")
    report = inspect_lora(tmp_path / "x.safetensors")
    assert (report.kind, report.branches) == ({"lokr": "LoKr", "loha": "LoHa"}[algo], loras.branches())
    assert report.norms == pytest.approx(loras.norms(), rel=1e-4)
    assert report.problems == []


def test_dora_is_described_with_its_lora(tmp_path):
    at = "base_model.model.transformer_blocks.0.attn1.to_q."
    tensors = {f"{at}lora_A.weight": torch.ones(2, 3), f"{at}lora_B.weight": torch.ones(4, 2)}
    save_file(tensors | {f"{at}lora_magnitude_vector.default.weight": torch.ones(4)}, tmp_path / "x.safetensors")
    report = inspect_lora(tmp_path / "x.safetensors")
    assert (report.kind, report.ranks, report.branches) == ("DoRA", [2], {"video": 1})
    assert report.text().startswith("x.safetensors: DoRA, rank 2, 1 layer,")


def test_a_lora_of_another_model_is_called_so(tmp_path):
    at = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{}.weight"
    save_file({at.format("A"): torch.ones(2, 3), at.format("B"): torch.ones(4, 2)}, tmp_path / "x.safetensors")
    report = inspect_lora(tmp_path / "x.safetensors")
    assert report.problems == ["It changes a text encoder, not the transformer of LTX-2."]


def test_the_scale_of_the_metadata_counts_in_the_norm(tmp_path):
    tensors = {
        "transformer.transformer_blocks.0.attn1.to_q.lora_A.weight": torch.ones(4, 3),
        "transformer.transformer_blocks.0.attn1.to_q.lora_B.weight": torch.ones(5, 4),
    }
    table = {"transformer.r": 4, "transformer.lora_alpha": 16}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(table)})
    report = inspect_lora(tmp_path / "x.safetensors")
    assert report.norms["video"] == pytest.approx(4 * torch.full((5, 3), 4.0).norm().item())
    assert report.alpha == 16
    table["transformer.r"] = 8
    save_file(tensors, tmp_path / "y.safetensors", {"lora_adapter_metadata": json.dumps(table)})
    assert any("its scale is not known" in problem for problem in inspect_lora(tmp_path / "y.safetensors").problems)


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


def test_norms_per_block_and_what_it_is_given_are_said(make_set, tmp_path):
    loras = make_set(rank=3, target="v2v")
    settings = {"video": {"conditions": [{"type": "reference"}], "generated": True}, "audio": {"generated": False}}
    save_lora(tmp_path / "x.safetensors", loras, {"settings": settings, "reference_downscale_factor": 2}, "fp32")
    report = inspect_lora(tmp_path / "x.safetensors")
    for block in ("0", "1"):
        inside = [
            layer.delta() for path, layer in loras.layers.items() if path.startswith(f"transformer_blocks.{block}.")
        ]
        assert report.blocks[block] == pytest.approx(float(sum(d.square().sum() for d in inside) ** 0.5), rel=1e-4)
    assert report.conditions == {
        "reference_downscale_factor": "2",
        "video.conditions": [{"type": "reference"}],
        "audio.generated": False,
    }
    text = report.text()
    assert f"blocks    0: {report.blocks['0']:.3g}  1: " in text
    assert "reference_downscale_factor: 2" in text


LAYER = "diffusion_model.transformer_blocks.0.attn1.to_q"


def written_lora(path, dtype=torch.float32, scale=1.0, alpha=None, metadata=None):
    tensors = {
        f"{LAYER}.lora_A.weight": (torch.ones(2, 3) * scale).to(dtype),
        f"{LAYER}.lora_B.weight": (torch.ones(4, 2) * scale).to(dtype),
    }
    if alpha is not None:
        tensors[f"{LAYER}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path, metadata)
    return path


def test_two_alphas_are_both_named_and_the_keys_count(tmp_path):
    report = inspect_lora(written_lora(tmp_path / "a.safetensors", alpha=4.0, metadata={"ss_network_alpha": "16"}))
    assert "Its metadata say alpha 16, its .alpha keys 4; the keys count." in report.problems
    assert report.norms["video"] == pytest.approx(2 * (4 * 3 * 4) ** 0.5)  # alpha 4 / rank 2
    same = inspect_lora(written_lora(tmp_path / "b.safetensors", alpha=4.0, metadata={"ss_network_alpha": "4"}))
    assert same.problems == []


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_lora_in_8_bits_is_read_as_what_it_holds(tmp_path, dtype):
    path = written_lora(tmp_path / "a.safetensors", dtype, scale=0.5)
    assert inspect_lora(path).norms["video"] == pytest.approx((4 * 3 * 0.25) ** 0.5)
    assert float(load_lora_state(path).entries[LAYER.removeprefix("diffusion_model.")].up[0, 0]) == 0.5


def test_a_norm_that_is_no_number_is_a_problem(tmp_path):
    report = inspect_lora(written_lora(tmp_path / "a.safetensors", scale=1e20))
    assert any(problem.startswith("Its norm is too large") for problem in report.problems)


def test_a_lora_whose_alpha_is_zero_or_no_number_is_named_once(tmp_path):
    still = inspect_lora(written_lora(tmp_path / "a.safetensors", alpha=0.0))
    assert still.problems == ["Its alpha is 0: it does nothing."]
    broken = inspect_lora(written_lora(tmp_path / "b.safetensors", alpha=float("nan")))
    assert len(broken.problems) == 1
    assert "the alpha nan, which is no number" in broken.problems[0]


def test_keys_of_a_known_kind_are_called_by_it(tmp_path):
    save_file({f"{LAYER}.diff": torch.ones(4, 4)}, tmp_path / "a.safetensors")
    assert inspect_lora(tmp_path / "a.safetensors").problems == [
        f"1 keys are of full weights, {LAYER}.diff first: it can neither be drawn with nor started from."
    ]


def test_a_version_that_is_not_known_is_said_and_not_shown_as_one_of_ltx(tmp_path):
    report = inspect_lora(written_lora(tmp_path / "a.safetensors", metadata={"model_version": "9.9"}))
    assert report.version is None
    assert report.problems == ["Its metadata say version 9.9, which is no LTX that is known here."]


def test_layers_without_the_alpha_that_others_have_leave_a_doubt_that_is_said_by_name(tmp_path):
    def made(name, alpha):
        path = written_lora(tmp_path / name, alpha=alpha)
        tensors = load_file(path)
        other = LAYER.replace("to_q", "to_k")
        tensors |= {f"{other}.lora_{half}.weight": tensors[f"{LAYER}.lora_{half}.weight"] + 0 for half in "AB"}
        save_file(tensors, path)
        return path

    doubtful = made("a.safetensors", 4.0)
    said = "1 of its 2 layers have no .alpha, transformer_blocks.0.attn1.to_k first, and the others do"
    assert said in inspect_lora(doubtful).problems[0]
    with pytest.raises(ConfigError, match=said):
        load_lora_state(doubtful).match(["transformer_blocks.0.attn1.to_q"])
    for tool in (lambda out: convert_lora(doubtful, "official", out), lambda out: resize_lora(doubtful, out, rank=1)):
        with pytest.raises(ConfigError, match=said):
            tool(tmp_path / "out.safetensors")
    assert inspect_lora(made("b.safetensors", 2.0)).problems == [], "a scale of 1 is what no alpha means"


def test_layers_in_two_spellings_are_a_problem(tmp_path):
    pair = {"lora_A.weight": torch.ones(2, 4), "lora_B.weight": torch.ones(4, 2)}
    tensors = {f"diffusion_model.transformer_blocks.0.attn1.to_q.{key}": value for key, value in pair.items()}
    flat = {"lora_down.weight": pair["lora_A.weight"], "lora_up.weight": pair["lora_B.weight"]}
    tensors |= {f"lora_unet_transformer_blocks_0_attn1_to_q.{key}": value.clone() for key, value in flat.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    assert any("two spellings" in text for text in inspect_lora(tmp_path / "x.safetensors").problems)
