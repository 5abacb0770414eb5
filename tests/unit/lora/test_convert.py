"""Converting: the keys and the scale where each program looks for them, and the same change of weights."""

import json

import pytest
import torch
from lora_files import BLOCK, changes, metadata, pair, write_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.errors import ConfigError
from ltx2_train.lora.choices import KEY_FORMATS
from ltx2_train.lora.convert import LORA_FORMATS, convert_lora
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.known import known_layer
from ltx2_train.lora.merge import merge_loras
from ltx2_train.lora.names import in_diffusers, split_key
from ltx2_train.lora.report import inspect_lora
from ltx2_train.lora.resize import resize_lora

LAYERS = {
    f"{BLOCK}.attn1.to_out.0": pair(2, seed=1),
    f"{BLOCK}.audio_to_video_attn.to_k": pair(3, (6, 10), seed=2),
    "transformer_blocks.31.ff.net.0.proj": pair(2, (20, 10), seed=3),
    "patchify_proj": pair(2, (12, 4), seed=4),
    "av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1": pair(1, seed=5),
    "video_embeddings_connector.transformer_1d_blocks.1.attn1.to_q": pair(2, seed=6),
}
FIRST = f"{BLOCK}.attn1.to_out.0"
KEYS = {
    "comfyui": "diffusion_model.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
    "official": "diffusion_model.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
    "diffusers": "transformer.transformer_blocks.0.attn1.to_out.0.lora_A.weight",
    "community": "lora_unet_model_transformer_blocks_0_attn1_to_out_0.lora_down.weight",
    "diffsynth": "transformer_blocks.0.attn1.to_out.0.lora_A.default.weight",
}


@pytest.fixture
def ours(tmp_path):
    return write_lora(tmp_path / "ours.safetensors", LAYERS, {"alpha": "4", "trigger": "ann", "sshs_model_hash": "ab"})


def test_what_can_be_chosen_is_what_can_be_written():
    assert tuple(LORA_FORMATS) == KEY_FORMATS


@pytest.mark.parametrize("to", LORA_FORMATS)
def test_there_and_back_again_is_bit_for_bit_the_same(ours, tmp_path, to):
    there, back = tmp_path / f"{to}.safetensors", tmp_path / "back.safetensors"
    made = convert_lora(ours, to, there)
    with safe_open(there, "pt") as file:
        assert KEYS[to] in file.keys()
    assert sum(made.layers.values()) == len(LAYERS)
    convert_lora(there, "comfyui", back)
    before, after = load_file(ours), load_file(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert metadata(back)["trigger"] == "ann"
    assert "sshs_model_hash" not in metadata(there)


def test_outside_of_the_blocks_diffusers_has_names_of_its_own(ours, tmp_path):
    convert_lora(ours, "diffusers", tmp_path / "d.safetensors")
    keys = set(load_file(tmp_path / "d.safetensors"))
    for name in (
        "transformer.proj_in",
        "transformer.av_cross_attn_video_a2v_gate.emb.timestep_embedder.linear_1",
        "connectors.video_connector.transformer_blocks.1.attn1.to_q",
    ):
        assert f"{name}.lora_B.weight" in keys
    assert not any("alpha" in key for key in keys), "diffusers refuses such keys"


MORE = ("text_embedding_projection.audio_aggregate_embed", "proj_out", "adaln_single.linear")


@pytest.mark.parametrize("name", [*LAYERS, *MORE])
def test_each_name_is_read_back_from_each_spelling(name):
    for kind in LORA_FORMATS.values():
        found = split_key(kind.spell(name) + kind.down)
        assert found.part == "down"
        assert known_layer(found.module) == name
    assert in_diffusers(name) != name


def test_alpha_is_multiplied_in_where_readers_ignore_it_and_kept_where_they_read_it(tmp_path):
    flat = "lora_unet_model_transformer_blocks_0_attn1_to_q"
    a, b = pair(4, seed=9)
    tensors = {f"{flat}.lora_down.weight": a, f"{flat}.lora_up.weight": b, f"{flat}.alpha": torch.tensor(1.0)}
    about = {"ss_network_alpha": "1", "ss_network_dim": "4", "ss_reference_downscale_factor": "2"}
    save_file(tensors, tmp_path / "theirs.safetensors", about)
    wanted = 0.25 * b @ a
    for to in LORA_FORMATS:
        out = tmp_path / f"{to}.safetensors"
        made = convert_lora(tmp_path / "theirs.safetensors", to, out)
        torch.testing.assert_close(changes(out)[f"{BLOCK}.attn1.to_q"], wanted)
        told, stored = metadata(out), load_file(out)
        if to == "community":
            assert torch.equal(stored[f"{flat}.lora_up.weight"], b)
            assert float(stored[f"{flat}.alpha"]) == 1.0
            assert told["ss_network_alpha"] == "1"
        else:
            assert not any(key.endswith(".alpha") for key in stored)
            assert any("multiplied into B of 1 layer" in note for note in made.notes)
            assert (told["alpha"], told["alpha_folded"]) == ("1", "true")
        assert told["reference_downscale_factor"] == told["ss_reference_downscale_factor"] == "2"
        assert (told["converted_from"], told["converted_to"]) == ("community", to)


def test_a_scale_of_the_metadata_is_multiplied_in_once(tmp_path):
    layer = f"{BLOCK}.attn1.to_q"
    a, b = pair(4)
    table = {"transformer.r": 4, "transformer.lora_alpha": 8}
    path = write_lora(
        tmp_path / "d.safetensors",
        {layer: (a, b)},
        {"lora_adapter_metadata": json.dumps(table)},
        "transformer.{}.lora_{}.weight",
    )
    convert_lora(path, "comfyui", tmp_path / "c.safetensors")
    assert "lora_adapter_metadata" not in metadata(tmp_path / "c.safetensors")
    torch.testing.assert_close(changes(tmp_path / "c.safetensors")[layer], 2 * b @ a)
    convert_lora(path, "community", tmp_path / "m.safetensors")
    torch.testing.assert_close(changes(tmp_path / "m.safetensors")[layer], 2 * b @ a)


def test_the_alpha_of_a_file_for_the_community_trainer_is_that_of_its_keys(ours, tmp_path):
    # trained with alpha 4, which is in B already: the keys say the rank
    convert_lora(ours, "community", tmp_path / "c.safetensors")
    told = metadata(tmp_path / "c.safetensors")
    assert "ss_network_alpha" not in told, "ranks differ, so no one number is true"
    entries = load_lora_state(tmp_path / "c.safetensors").entries
    assert all(entry.alpha == entry.rank for entry in entries.values())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("LoHa", "no plain LoRA but LoHa"),
        ("underscores", "attn1_strange is no layer that is known, and its name has underscores"),
        ("another model", "is of another model: blocks.0.x"),
        ("twice", "holds the layer .*to_q twice"),
    ],
)
def test_what_cannot_be_converted_is_refused_by_name(tmp_path, kind, message):
    path = tmp_path / "x.safetensors"
    one, other = pair(2), pair(2)
    if kind == "LoHa":
        save_file({f"diffusion_model.{BLOCK}.attn1.to_q.hada_w1_a": torch.ones(2, 2)}, path)
    elif kind == "underscores":
        known = f"{BLOCK}.attn1.to_q".replace(".", "_")
        names = {known: one, f"{BLOCK}.attn1.strange".replace(".", "_"): other}
        write_lora(path, names, spell="lora_unet_{}.lora_{}.weight")
    elif kind == "another model":
        write_lora(path, {"blocks.0.x": one})
    else:
        names = {f"{BLOCK}.attn1.to_q": one, f"{BLOCK}.attn1.to_q".replace(".", "_"): other}
        write_lora(path, names, spell="lora_unet_{}.lora_{}.weight")
    with pytest.raises(Exception, match=message):
        convert_lora(path, "comfyui", tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_dtype_can_be_asked_for_and_an_unknown_format_is_named(ours, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    assert main(["lora", "convert", str(ours), "--to", "diffusers", "--out", str(out), "--dtype", "bf16"]) == 0
    assert "from the keys of comfyui to those of diffusers" in capsys.readouterr().out
    assert {tensor.dtype for tensor in load_file(out).values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="'difusers' is no format of keys.*Did you mean diffusers"):
        convert_lora(ours, "difusers", tmp_path / "y.safetensors")


def test_what_rounding_takes_is_counted_and_a_layer_that_it_takes_whole_is_refused(tmp_path):
    a, b = pair(2)
    path = write_lora(tmp_path / "a.safetensors", {FIRST: (a, b * 1e-6)})
    out = tmp_path / "out.safetensors"
    made = convert_lora(path, "official", out, dtype="fp16")
    wanted, found = changes(path)[FIRST], changes(out)[FIRST]
    assert made.error["all"] == pytest.approx(float((found - wanted).norm() / wanted.norm()), rel=1e-3)
    assert made.error["all"] > 0.01
    assert convert_lora(path, "official", tmp_path / "same.safetensors").error == {}
    tiny = write_lora(tmp_path / "tiny.safetensors", {FIRST: (a, b * 1e-20)})
    told = rf"{FIRST}.* holds nothing but numbers that are too small for torch.float16.* Choose dtype bf16 or fp32"
    for number, tool in enumerate(
        (
            lambda out: convert_lora(tiny, "official", out, dtype="fp16"),
            lambda out: merge_loras([tiny, path], out, dtype="fp16"),
            lambda out: resize_lora(tiny, out, rank=1, dtype="fp16"),
        )
    ):
        with pytest.raises(ConfigError, match=told):
            tool(tmp_path / f"none{number}.safetensors")
        assert not (tmp_path / f"none{number}.safetensors").exists()


def test_layers_that_no_model_has_are_told(tmp_path):
    q = f"{BLOCK}.attn1.to_q"
    far = {q: pair(2), "transformer_blocks.99.attn1.to_q": pair(2)}
    odd = {q: pair(2), q.replace(".0.", ".1."): pair(2), f"{BLOCK}.attn1.to_k": pair(2, (12, 3))}
    wide = {q.replace(".0.", f".{block}."): pair(2, (12, 10 if block else 11)) for block in range(3)}
    blocks = "1 of 2 layers lie in blocks beyond the last, transformer_blocks.99.attn1.to_q first"
    for layers, said in (
        (far, f"{blocks}: every LTX has at most 48."),
        (odd, f"{BLOCK}.attn1.to_k is 12x3, where others have attn1 with inputs of 10: no model has both."),
        (wide, f"{q} is 12x11, where others have attn1.to_q of 12x10: no model has both."),
    ):
        path = write_lora(tmp_path / "x.safetensors", layers)
        assert said in inspect_lora(path).problems
        report = convert_lora(path, "official", tmp_path / "out.safetensors", replace=True)
        assert report.notes[0] == f"x.safetensors: {said}"


@pytest.mark.parametrize("idle", ["alpha", "B"])
def test_a_lora_that_does_nothing_is_named(tmp_path, idle):
    a, b = pair(2)
    path = write_lora(
        tmp_path / "a.safetensors", {FIRST: (a, b * (idle != "B"))}, alphas={FIRST: 0} if idle == "alpha" else {}
    )
    said = f"a.safetensors does nothing: {'its alpha is 0' if idle == 'alpha' else 'every B is zero'}."
    assert convert_lora(path, "official", tmp_path / "out.safetensors").notes[0] == said
    assert resize_lora(path, tmp_path / "small.safetensors", rank=1).notes[0] == said
    other = write_lora(tmp_path / "b.safetensors", {FIRST: (a, b)})
    assert merge_loras([path, other], tmp_path / "both.safetensors").notes == [said]
    with pytest.raises(ConfigError, match=r"The merged LoRA would do nothing.*a\.safetensors.*its multiplier is 0"):
        merge_loras([path, other], tmp_path / "none.safetensors", [1.0, 0.0])


def test_a_layer_that_no_ltx_has_is_told(tmp_path):
    path = tmp_path / "odd.safetensors"
    names = ("transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_q", "conditioner.embedders.0.proj")
    ends = ((".lora_A.weight", (2, 8)), (".lora_B.weight", (8, 2)))
    save_file({f"diffusion_model.{name}{end}": torch.ones(shape) for name in names for end, shape in ends}, path)
    made = convert_lora(path, "diffusers", tmp_path / "out.safetensors")
    assert f"{path.name}: {names[2]} is no layer of an LTX that is known here; it is kept." in made.notes


@pytest.mark.parametrize(
    "spell", ["text_encoders.gemma.model.layers.0.self_attn.q_proj", "lora_te_layers_0_mlp_up_proj"]
)
def test_layers_of_a_text_encoder_are_left_out_by_name(tmp_path, spell):
    layer, path = "transformer_blocks.0.attn1.to_q", tmp_path / "both.safetensors"
    a, b = torch.ones(2, 8), torch.ones(8, 2)
    halves = {
        f"{name}.lora_{half}.weight": part
        for name in (f"diffusion_model.{layer}", spell)
        for half, part in (("A", a), ("B", b.clone()))
    }
    save_file({key: value.clone() for key, value in halves.items()}, path)
    made = convert_lora(path, "diffusers", tmp_path / "out.safetensors")
    assert made.layers == {"video": 1}
    assert {key.rsplit(".lora", 1)[0] for key in load_file(made.path)} == {f"transformer.{layer}"}
    assert any("1 of 2 layers is of a" in note and spell in note for note in made.notes)
    assert any(f"left out is {spell}" in note for note in made.notes)
    told = inspect_lora(path).problems
    assert any(f"{spell} first: nothing here draws with that or trains it" in text for text in told)
