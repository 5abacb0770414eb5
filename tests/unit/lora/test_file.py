"""LoRA files: what is written, what is read, what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.lora.file import load_lora_header, load_lora_state, verify_saved
from ltx2_train.lora.places import doubts_of
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.settings import Settings

ABOUT = {
    "base": {"file": "ltx-2.3-dev.safetensors", "fingerprint": "0123abcd", "version": "2.3"},
    "step": 250,
    "name": "my_lora",
    "trigger": "ohwx cat",
}


def deltas(loras):
    return {path: loras.scale * (layer.lora_B @ layer.lora_A).detach() for path, layer in loras.layers.items()}


def close(one, two, tolerance):
    return all(torch.allclose(one[path], two[path], atol=tolerance, rtol=tolerance) for path in one)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-5), ("bf16", 5e-2), ("fp16", 1e-2)])
def test_keys_are_the_checkpoints_and_alpha_is_folded_into_b(make_set, tmp_path, dtype, tolerance):
    loras = make_set(rank=3, alpha=12)
    save_lora(tmp_path / "x.safetensors", loras, ABOUT, dtype)
    tensors = load_file(tmp_path / "x.safetensors")
    assert set(tensors) == {f"diffusion_model.{p}.lora_{m}.weight" for p in loras.layers for m in "AB"}
    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    assert {tensor.dtype for tensor in tensors.values()} == {wanted}
    as_others_read = {
        p: tensors[f"diffusion_model.{p}.lora_B.weight"].float() @ tensors[f"diffusion_model.{p}.lora_A.weight"].float()
        for p in loras.layers
    }
    assert close(deltas(loras), as_others_read, 10 * tolerance)


def test_training_goes_on_from_the_same_file_with_its_alpha(make_set, tmp_path):
    loras = make_set(rank=3, alpha=12)
    save_lora(tmp_path / "x.safetensors", loras, ABOUT, "fp32")
    file = load_lora_state(tmp_path / "x.safetensors")
    assert (file.ranks, file.alpha) == ([3], 12.0)
    again = make_set(trained=False, seed=5, rank=3, alpha=12)
    result = again.load(file)
    assert (len(result.filled), result.untouched, result.unknown) == (len(loras.layers), [], [])
    for path, layer in again.layers.items():
        assert torch.equal(layer.lora_A, loras.layers[path].lora_A)
        assert torch.allclose(layer.lora_B, loras.layers[path].lora_B, rtol=1e-6)


def test_another_alpha_here_gives_the_same_change_of_the_model(make_set, tmp_path):
    loras = make_set(rank=3, alpha=12)
    save_lora(tmp_path / "x.safetensors", loras, ABOUT, "fp32")
    again = make_set(trained=False, rank=3, alpha=1)
    again.load(load_lora_state(tmp_path / "x.safetensors"))
    assert close(deltas(loras), deltas(again), 1e-4)


@pytest.mark.parametrize(
    "spelling",
    [
        "diffusion_model.{dotted}.lora_down.weight",
        "lora_unet_{flat}.lora_down.weight",
        "lora_unet_model_{flat}.lora_down.weight",
        "transformer.{dotted}.lora_down.weight",
        "base_model.model.{dotted}.lora_down.weight",
        "transformer.base_model.model.diffusion_model.{dotted}.lora_down.weight",
        "base_model.model.transformer.{dotted}.lora_down.my_style.weight",
    ],
)
def test_down_up_and_alpha_keys_are_read_in_every_spelling(make_set, tmp_path, spelling):
    loras = make_set(rank=4, alpha=4)
    tensors = {}
    for path, layer in loras.layers.items():
        key = spelling.format(dotted=path, flat=path.replace(".", "_"))
        tensors[key] = layer.lora_A.detach().clone()
        tensors[key.replace("down", "up")] = layer.lora_B.detach().clone()
        tensors[key[: key.index(".lora_down")] + ".alpha"] = torch.tensor(2.0)
    save_file(tensors, tmp_path / "x.safetensors")
    again = make_set(trained=False, rank=4, alpha=8)
    again.load(load_lora_state(tmp_path / "x.safetensors"))
    halved = {path: delta / 2 for path, delta in deltas(loras).items()}
    assert close(halved, deltas(again), 1e-5)


def test_another_rank_is_refused_with_both_ranks(make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(rank=3), ABOUT)
    with pytest.raises(ConfigError, match="rank 3, but lora.rank is 8. Set lora.rank to 3"):
        make_set(rank=8).load(load_lora_state(tmp_path / "x.safetensors"))


def ranked(make_set, path, ranks=(2, 4)):
    """A LoRA whose layers take turns in having one of `ranks`, at `path`; and the changes it stands for."""
    loras = make_set(rank=max(ranks))
    tensors, changes = {}, {}
    for number, (name, layer) in enumerate(loras.layers.items()):
        rank = ranks[number % len(ranks)]
        a, b = layer.lora_A.detach()[:rank].clone(), layer.lora_B.detach()[:, :rank].clone()
        tensors |= {f"diffusion_model.{name}.lora_A.weight": a, f"diffusion_model.{name}.lora_B.weight": b}
        changes[name] = b @ a
    save_file(tensors, path)
    return changes


@pytest.mark.parametrize("rank", [4, 7])
def test_a_lora_with_a_rank_per_layer_is_filled_up(make_set, tmp_path, rank):
    changes = ranked(make_set, tmp_path / "x.safetensors")
    again = make_set(trained=False, seed=5, rank=rank)
    again.load(load_lora_state(tmp_path / "x.safetensors"))
    assert close(changes, deltas(again), 1e-5)
    for layer in again.layers.values():  # what is added can learn: A is not zero there, only B
        assert layer.lora_A.abs().sum(dim=1).min() > 0


@pytest.mark.parametrize("rank", [2, 3])
def test_a_lora_with_a_rank_per_layer_that_does_not_fit_names_the_one_rank_that_does(make_set, tmp_path, rank):
    ranked(make_set, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match=f"ranks from 2 to 4, but lora.rank is {rank}. Set lora.rank to 4: "):
        make_set(rank=rank).load(load_lora_state(tmp_path / "x.safetensors"))


def test_a_video_lora_starts_an_audio_video_run(make_set, make_model, tmp_path):
    video = make_set(model=make_model(mode="video"))
    save_lora(tmp_path / "x.safetensors", video, ABOUT, "fp32")
    both = make_set(trained=False)
    result = both.load(load_lora_state(tmp_path / "x.safetensors"))
    assert set(result.filled) == set(video.layers)
    assert result.untouched
    assert all("audio" in path for path in result.untouched)


def test_a_lora_without_a_common_layer_is_refused(make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(target="audio"), ABOUT)
    with pytest.raises(ConfigError, match="no layer in common.*20 audio, 8 v2a"):
        make_set(include_patterns=[r".*\.ff\..*"]).load(load_lora_state(tmp_path / "x.safetensors"))


def test_a_lora_of_another_size_is_refused(make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(), ABOUT)
    tensors = load_file(tmp_path / "x.safetensors")
    key = next(iter(tensors)).replace("lora_B", "lora_A")
    save_file({**tensors, key: torch.zeros(3, 99)}, tmp_path / "y.safetensors")
    with pytest.raises(ConfigError, match="another model"):
        make_set().load(load_lora_state(tmp_path / "y.safetensors"))


@pytest.mark.parametrize("ending", ["dora_scale", "diff", "lora_A.weight"])
def test_more_or_less_than_a_plain_lora_is_no_start(make_set, tmp_path, ending):
    save_lora(tmp_path / "x.safetensors", make_set(), ABOUT)
    extra = {f"diffusion_model.transformer_blocks.0.attn1.to_gate_logits.{ending}": torch.ones(3, 2)}
    save_file({**load_file(tmp_path / "x.safetensors"), **extra}, tmp_path / "y.safetensors")
    with pytest.raises(ConfigError, match="not a plain LoRA.*to_gate_logits"):
        make_set().load(load_lora_state(tmp_path / "y.safetensors"))


SCALES = {"r": 4, "lora_alpha": 16, "rank_pattern": {}, "alpha_pattern": {r"attn2\.to_q": 2, "1.ff.net.2": 8}}


@pytest.mark.parametrize("place", ["prefixed", "nested", "bare", "peft"])
@pytest.mark.parametrize("rslora", [False, True])
def test_the_alpha_of_peft_scales(make_set, tmp_path, place, rslora):
    loras, path = make_set(rank=4, target="v2v"), tmp_path / "adapter_model.safetensors"
    values = SCALES | {"use_rslora": rslora}
    table = {
        "prefixed": {f"transformer.{name}": value for name, value in values.items()} | {"text_encoder.r": 9},
        "nested": {"transformer": values},
    }.get(place, values)
    tensors = {}
    for name, layer in loras.layers.items():
        tensors[f"transformer.{name}.lora_A.weight"] = layer.lora_A.detach().clone()
        tensors[f"transformer.{name}.lora_B.weight"] = layer.lora_B.detach().clone()
    if place == "peft":
        (tmp_path / "adapter_config.json").write_text(json.dumps(table))
    save_file(tensors, path, None if place == "peft" else {"lora_adapter_metadata": json.dumps(table)})
    file = load_lora_state(path)
    alphas = {name: 2 if ".attn2.to_q" in name else 8 if name.endswith("1.ff.net.2") else 16 for name in loras.layers}
    assert {name: file.entries[name].alpha for name in alphas} == alphas
    again = make_set(trained=False, rank=4, target="v2v")
    again.load(file)
    divisor = 2 if rslora else 4
    expected = {name: delta * alphas[name] / divisor for name, delta in deltas(loras).items()}
    assert close(expected, deltas(again), 1e-5)


@pytest.mark.parametrize(("rslora", "alpha", "told"), [(False, 8, "4"), (False, 1, ""), (True, 1, "0.707107")])
def test_an_alpha_key_counts_before_the_metadata_and_another_scale_there_is_told(tmp_path, rslora, alpha, told):
    tensors = {
        "transformer.x.lora_A.weight": torch.ones(2, 3),
        "transformer.x.lora_B.weight": torch.ones(4, 2),
        "transformer.x.alpha": torch.tensor(1.0),
    }
    table = {"transformer.r": 2, "transformer.lora_alpha": alpha, "transformer.use_rslora": rslora}
    save_file(tensors, tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(table)})
    file = load_lora_state(tmp_path / "x.safetensors")
    assert file.entries["x"].scale == 0.5
    words = f"x has a scale of 0.5 by its key, and {told} by the metadata. The keys count"
    assert [words in text for text in doubts_of(file)] == ([True] if told else [])


def test_a_scale_that_is_not_certain_is_refused(make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(rank=3), ABOUT)
    tensors = load_file(tmp_path / "x.safetensors")
    for name, text in (("rank", json.dumps({"r": 8, "lora_alpha": 8})), ("depth", "[" * 9999)):
        save_file(tensors, tmp_path / f"{name}.safetensors", {"lora_adapter_metadata": text})
    with pytest.raises(ConfigError, match="has rank 8 and alpha 8, but its weights have rank 3, so its scale"):
        make_set(rank=3).load(load_lora_state(tmp_path / "rank.safetensors"))
    with pytest.raises(CheckpointError, match="lora_adapter_metadata of depth.safetensors cannot be read, so"):
        load_lora_state(tmp_path / "depth.safetensors")


@pytest.mark.parametrize(
    "second", ["transformer.{}", "lora_unet_{}", "diffusion_model.{}.lora_A.other", "diffusion_model.{}.lora_A.default"]
)
def test_a_layer_that_stands_twice_is_refused(make_set, tmp_path, second):
    loras = make_set()
    save_lora(tmp_path / "x.safetensors", loras, ABOUT)
    tensors = load_file(tmp_path / "x.safetensors")
    name = next(iter(loras.layers))
    spelled = second.format(name.replace(".", "_") if "unet" in second else name)
    for half in "AB":
        key = f"{spelled}.lora_A".replace(".lora_A.lora_A", ".lora_A") if spelled.count("lora_A") == 0 else spelled
        tensors[f"{key}.weight".replace("lora_A", f"lora_{half}")] = torch.ones(3, 3)
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises((CheckpointError, ConfigError), match=f"holds the layer {name} twice"):
        make_set().load(load_lora_state(tmp_path / "y.safetensors"))


def test_quantized_loras_are_refused(tmp_path):
    tensors = {
        "diffusion_model.x.lora_A.weight": torch.ones(2, 3, dtype=torch.int8),
        "diffusion_model.x.lora_B.weight": torch.ones(4, 2, dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="stores x as I8. Quantized LoRAs"):
        load_lora_state(tmp_path / "x.safetensors")


def test_the_header_alone_has_shapes_and_alphas(make_set, tmp_path):
    save_lora(tmp_path / "x.safetensors", make_set(rank=3), ABOUT)
    tensors = load_file(tmp_path / "x.safetensors")
    name = next(iter(tensors)).rpartition(".lora_")[0]
    save_file(tensors | {f"{name}.alpha": torch.tensor(6.0)}, tmp_path / "y.safetensors")
    header, whole = load_lora_header(tmp_path / "y.safetensors"), load_lora_state(tmp_path / "y.safetensors")
    for path, entry in header.entries.items():
        assert entry.down.is_meta
        assert (entry.size, entry.rank, entry.scale) == tuple(
            getattr(whole.entries[path], what) for what in ("size", "rank", "scale")
        )
    assert 2.0 in {entry.scale for entry in header.entries.values()}


def test_metadata_is_strings_without_any_path(make_set, tmp_path):
    class Inner(Settings):
        rank: int = 3
        weights: Path | None = tmp_path / "start.safetensors"

    class Tree(Settings):
        lora: Inner = Inner()
        folder: str = str(tmp_path)

    about = {**ABOUT, "settings": Tree(), "base": {**ABOUT["base"], "file": f"C:\\models\\{ABOUT['base']['file']}"}}
    save_lora(tmp_path / "x.safetensors", make_set(rank=3, alpha=6), {**about, "reference_downscale_factor": 2})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        text = file.metadata()
    assert all(isinstance(value, str) for value in text.values())
    expected = {
        "rank": "3",
        "alpha": "6",
        "base": "ltx-2.3-dev.safetensors",
        "base_fingerprint": "0123abcd",
        "version": "2.3",
        "trigger": "ohwx cat",
        "format_version": "1",
        "ss_network_dim": "3",
        "ss_network_alpha": "6",
        "ss_output_name": "my_lora",
        "ss_steps": "250",
        "reference_downscale_factor": "2",
        "modelspec.title": "my_lora",
    }
    assert {key: text.get(key) for key in expected} == expected
    assert json.loads(text["settings"])["lora"] == {"rank": 3, "weights": "start.safetensors"}
    assert str(tmp_path) not in json.dumps(text)
    assert "models" not in text["base"]


def test_settings_reach_their_community_names(make_set, tmp_path):
    class Tree(Settings):
        lora: LoraSettings = LoraSettings(rank=3, dropout=0.1, target="v2v")

    save_lora(tmp_path / "x.safetensors", make_set(), {**ABOUT, "settings": Tree()})
    text = load_lora_state(tmp_path / "x.safetensors").metadata
    assert text["ss_lora_target_preset"] == "v2v"
    assert text["ss_network_dropout"] == "0.1"


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", ""])
def test_a_saved_lora_is_held_against_the_checkpoint(make_set, tmp_path, checkpoint, prefix):
    save_lora(tmp_path / "x.safetensors", make_set(), ABOUT)
    names = {name.replace("model.diffusion_model.", prefix): shape for name, shape in checkpoint.items()}
    verify_saved(tmp_path / "x.safetensors", names, trained=True)


def break_name(tensors):
    key = "diffusion_model.transformer_blocks.0.attn1.to_q.lora_{}.weight"
    for half in "AB":
        tensors[key.format(half).replace("attn1", "attn9")] = tensors.pop(key.format(half))


def break_prefix(tensors):
    for key in list(tensors):
        tensors[key.replace("diffusion_model.", "transformer.")] = tensors.pop(key)


def break_pair(tensors):
    del tensors["diffusion_model.transformer_blocks.0.attn1.to_q.lora_B.weight"]


def break_shape(tensors):
    tensors["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"] = torch.zeros(3, 5)


def break_number(tensors):
    tensors["diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight"][0, 0] = float("nan")


def break_training(tensors):
    for key in tensors:
        if "lora_B" in key:
            tensors[key].zero_()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (break_name, "attn9.to_q is not a layer of the checkpoint"),
        (break_prefix, "do not begin with diffusion_model"),
        (break_pair, "lacks its other half"),
        (break_shape, "12x5, in the checkpoint 12x12"),
        (break_number, "not finite"),
        (break_training, "every B is zero"),
    ],
)
def test_each_way_a_saved_lora_can_be_wrong_is_named(make_set, tmp_path, checkpoint, damage, text):
    save_lora(tmp_path / "x.safetensors", make_set(), ABOUT)
    tensors = load_file(tmp_path / "x.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "y.safetensors")
    with pytest.raises(CheckpointError, match=text):
        verify_saved(tmp_path / "y.safetensors", checkpoint, trained=True)


def test_an_untrained_lora_may_be_all_zero(make_set, tmp_path, checkpoint):
    save_lora(tmp_path / "x.safetensors", make_set(trained=False), ABOUT)
    verify_saved(tmp_path / "x.safetensors", checkpoint, trained=False)


def test_files_that_are_no_lora_are_refused(tmp_path):
    save_file({"model.diffusion_model.proj_out.weight": torch.zeros(2, 2)}, tmp_path / "x.safetensors")
    save_file({"tensor": torch.zeros(2)}, tmp_path / "state.safetensors", {"tree": "{}"})
    with pytest.raises(CheckpointError, match="state.safetensors is the state of a run, which goes on from it"):
        load_lora_state(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="is not a LoRA"):
        load_lora_state(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CheckpointError):
        load_lora_state(tmp_path / "y.safetensors")
