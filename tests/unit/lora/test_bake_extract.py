"""A LoRA into the weights of a checkpoint, and what a finetune changed out of them."""

import json

import pytest
import torch
from lora_files import changes, metadata, pair, write_lora
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.events import Events
from ltx2_train.files import write_tensors
from ltx2_train.lora.bake import bake_loras
from ltx2_train.lora.extract import extract_lora
from ltx2_train.lora.file import load_lora_state
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights.fingerprint import part_fingerprint
from ltx2_train.weights.load import load_transformer
from ltx2_train.weights.quantized_file import quantize_checkpoint
from ltx2_train.weights.reader import TensorFile

AT = "model.diffusion_model."
Q, OUT = "transformer_blocks.1.attn1.to_q", "transformer_blocks.2.audio_ff.net.2"
TEXT = "text_embedding_projection.video_aggregate_embed"


def weight(path, layer, prefix=AT):
    with TensorFile(path) as file:
        return file.read(f"{prefix}{layer}.weight")


@pytest.fixture
def loras(tiny, tmp_path):
    sizes = {layer: weight(tiny.checkpoint, layer).shape for layer in (Q, OUT)}
    text = weight(tiny.checkpoint, TEXT, "").shape
    first = {Q: pair(4, sizes[Q], 1), OUT: pair(4, sizes[OUT], 2), TEXT: pair(2, text, 5)}
    return [
        write_lora(tmp_path / "a.safetensors", first, {"trigger": "ann", "ss_ltx_version": "2.3"}),
        write_lora(tmp_path / "b.safetensors", {Q: pair(2, sizes[Q], 3)}, alphas={Q: 1}),
    ]


def test_baking_adds_each_lora_at_its_strength_and_touches_nothing_else(tiny, loras, tmp_path):
    out = tmp_path / "baked.safetensors"
    huge = write_lora(tmp_path / "huge.safetensors", {Q: tuple(half * 1e10 for half in pair(2, (160, 160)))})
    much = bake_loras(tiny.checkpoint, [huge], tmp_path / "much.safetensors")
    assert 0 < much.error["video"] < 0.01, "squares that float32 does not hold"
    made = bake_loras(tiny.checkpoint, loras, out, [0.5, 2.0])
    one, two = (changes(path) for path in loras)
    with TensorFile(tiny.checkpoint) as before, TensorFile(out) as after:
        assert before.tensors.keys() == after.tensors.keys()
        changed = {f"{AT}{Q}.weight": 0.5 * one[Q] + 2 * two[Q], f"{AT}{OUT}.weight": 0.5 * one[OUT]}
        changed[f"{TEXT}.weight"] = 0.5 * one[TEXT]
        for name, info in before.tensors.items():
            assert after.tensors[name].dtype == info.dtype
            if name in changed:
                wanted = (before.read(name).float() + changed[name]).to(info.torch_dtype)
                torch.testing.assert_close(after.read(name), wanted)
            else:
                assert after.read_bytes(name) == before.read_bytes(name)
        assert after.metadata["config"] == before.metadata["config"]
        told = json.loads(after.metadata["baked_loras"])
    assert [(entry["file"], entry["strength"]) for entry in told] == [("a.safetensors", 0.5), ("b.safetensors", 2.0)]
    assert sum(made.layers.values()) == 3
    assert 0 < made.error["all"] < 0.01  # what bf16 rounds away
    load_transformer(out, "av")


def test_only_the_transformer_of_a_baked_checkpoint_counts_as_another(tiny, loras, tmp_path):
    out = tmp_path / "baked.safetensors"
    bake_loras(tiny.checkpoint, loras[1:], out)
    assert part_fingerprint(out, "transformer") != part_fingerprint(tiny.checkpoint, "transformer")
    for part in ("video_vae", "audio_vae", "text"):
        assert part_fingerprint(out, part) == part_fingerprint(tiny.checkpoint, part)
    bake_loras(out, loras[1:], tmp_path / "twice.safetensors")
    with TensorFile(tmp_path / "twice.safetensors") as file:
        assert len(json.loads(file.metadata["baked_loras"])) == 2


@pytest.mark.parametrize(
    ("layers", "strengths", "message"),
    [
        (
            {"transformer_blocks.9.attn1.to_q": (160, 160)},
            [1],
            r"changes .*9.attn1.to_q, which .* lacks\. Choose the checkpoint it was trained on\.$",
        ),
        ({Q: (10, 12)}, [1], "is for another model: .* is 10x12 there and 160x160"),
        ({Q: (160, 160)}, [1, 2], "2 strengths were given for 1"),
        ({Q: (160, 160)}, [float("inf")], "no number from -100 to 100"),
        ({Q: (160, 160)}, [0.0], "would stay as it is"),
        ({Q: (160, 160)}, [1e-30], r"would stay as it is: every change of x\.safetensors is too small"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tiny, tmp_path, layers, strengths, message):
    path = write_lora(tmp_path / "x.safetensors", {layer: pair(2, size) for layer, size in layers.items()})
    with pytest.raises(ConfigError, match=message):
        bake_loras(tiny.checkpoint, [path], tmp_path / "out.safetensors", strengths)
    assert not (tmp_path / "out.safetensors").exists()


def test_what_would_change_nothing_or_is_no_number_is_neither_baked_nor_extracted(tiny, tmp_path):
    out = tmp_path / "out.safetensors"
    down, up = pair(2, (160, 160))
    path = write_lora(tmp_path / "x.safetensors", {Q: (down, 0 * up)})
    with pytest.raises(ConfigError, match=r"x\.safetensors does nothing: every B is zero"):
        bake_loras(tiny.checkpoint, [path], out)
    without = write_lora(tmp_path / "y.safetensors", {Q: (down, up)}, alphas={Q: 0})
    with pytest.raises(ConfigError, match=r"y\.safetensors does nothing: its alpha is 0"):
        bake_loras(tiny.checkpoint, [without], out)
    with pytest.raises(ConfigError, match="is named as finetune and as base"):
        extract_lora(tiny.checkpoint, tiny.checkpoint, out)
    tensors = load_file(tiny.checkpoint)
    tensors[f"model.diffusion_model.{Q}.weight"][0, 0] = float("nan")
    with TensorFile(tiny.checkpoint) as file:
        save_file(tensors, tmp_path / "bad.safetensors", file.metadata)
    for pair_ in ((tmp_path / "bad.safetensors", tiny.checkpoint), (tiny.checkpoint, tmp_path / "bad.safetensors")):
        with pytest.raises(CheckpointError, match=rf"{Q} of bad.safetensors holds numbers that are not finite"):
            extract_lora(*pair_, out)
    assert not out.exists()


def test_a_change_of_which_rounding_takes_most_is_told_with_advice(tiny, tmp_path):
    down, up = pair(2, (160, 160))
    path = write_lora(tmp_path / "small.safetensors", {Q: (down, up * 1e-5)})
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append((level, text))
    made = bake_loras(tiny.checkpoint, [path], tmp_path / "out.safetensors", events=events)
    assert made.error["all"] > 0.5
    assert said[-1][0] == "warning"
    assert "Bake it at a higher strength, or load the LoRA beside" in said[-1][1]
    two = [path, write_lora(tmp_path / "other.safetensors", {Q: (down, up)})]
    with pytest.raises(ConfigError, match=r"The strength of other\.safetensors is 0"):
        bake_loras(tiny.checkpoint, two, tmp_path / "none.safetensors", [1.0, 0.0])


def test_numbers_that_are_not_finite_are_never_baked(tiny, loras, tmp_path):
    broken = {name: torch.full_like(tensor, 3e38) for name, tensor in load_file(loras[0]).items()}
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(ConfigError, match=r"not finite, with broken\.safetensors in it"):
        bake_loras(tiny.checkpoint, [tmp_path / "broken.safetensors"], tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("out*"))


def test_a_quantized_checkpoint_is_refused_by_name(tiny, loras, tmp_path):
    small = tmp_path / "nf4.safetensors"
    quantize_checkpoint(tiny.checkpoint, small, QuantSettings(format="nf4", device="cpu"))
    with pytest.raises(CheckpointError, match=r"nf4.safetensors is quantized .* quantize the result"):
        bake_loras(small, loras, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match=r"nf4.safetensors is quantized .* Use the bf16"):
        extract_lora(small, tiny.checkpoint, tmp_path / "out.safetensors")


def test_a_lora_of_another_version_is_named(tiny, tmp_path):
    path = write_lora(tmp_path / "old.safetensors", {Q: pair(2, (160, 160))}, {"ss_ltx_version": "2.0"})
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append(text)
    bake_loras(tiny.checkpoint, [path], tmp_path / "out.safetensors", events=events)
    assert any("old.safetensors is a LoRA of LTX-2.0, and the base is LTX-2.3" in text for text in said)


def test_what_was_baked_in_is_extracted_again(tiny, tmp_path):
    source = tmp_path / "base.safetensors"
    with TensorFile(tiny.checkpoint) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        about = file.metadata
    for layer in (Q, OUT):
        tensors[f"{AT}{layer}.weight"] = tensors[f"{AT}{layer}.weight"].float()  # rounds nothing away
    write_tensors(source, tensors, about)
    layers = {layer: pair(3, tensors[f"{AT}{layer}.weight"].shape, seed) for seed, layer in enumerate((Q, OUT))}
    lora = write_lora(tmp_path / "lora.safetensors", layers)
    bake_loras(source, [lora], tmp_path / "tuned.safetensors")
    made = extract_lora(tmp_path / "tuned.safetensors", source, tmp_path / "out.safetensors", rank=3, dtype="fp32")
    wanted, found = changes(lora), changes(tmp_path / "out.safetensors")
    assert set(found) == {Q, OUT}
    for layer in wanted:
        torch.testing.assert_close(found[layer], wanted[layer], rtol=1e-3, atol=1e-3)
    assert made.error["all"] < 1e-3
    assert load_lora_state(tmp_path / "out.safetensors").loads_in_comfyui
    told = metadata(tmp_path / "out.safetensors")
    assert (told["base"], told["version"], told["extracted_from"]) == ("base.safetensors", "2.3", "tuned.safetensors")

    less = extract_lora(tmp_path / "tuned.safetensors", source, tmp_path / "less.safetensors", rank=1, dtype="fp32")
    cut = changes(tmp_path / "less.safetensors")
    squares = {layer: float((wanted[layer] - cut[layer]).square().sum()) for layer in wanted}
    whole = sum(float(change.square().sum()) for change in wanted.values())
    assert less.error["all"] == pytest.approx((sum(squares.values()) / whole) ** 0.5, rel=1e-3)


def test_what_a_lora_cannot_hold_is_counted(tiny, tmp_path):
    with TensorFile(tiny.checkpoint) as file:
        tensors = {name: file.read(name) for name in file.tensors}
        about = file.metadata
    before = tensors[f"{AT}{Q}.weight"]
    tensors[f"{AT}{Q}.weight"] = before + 1
    tensors[f"{AT}{Q}.bias"] = tensors[f"{AT}{Q}.bias"] + 1
    write_tensors(tmp_path / "tuned.safetensors", tensors, about)
    made = extract_lora(tmp_path / "tuned.safetensors", tiny.checkpoint, tmp_path / "out.safetensors")
    assert made.layers == {"video": 1}
    said = f"A LoRA cannot hold what differs besides: 1 biases, norms and tables of the transformer, {AT}{Q}.bias first"
    assert made.notes == [f"{said}."]
    statistics = "vae.per_channel_statistics.mean-of-means"
    tensors[f"{AT}{Q}.weight"] = before
    write_tensors(tmp_path / "beside.safetensors", tensors | {statistics: tensors[statistics] + 1}, about)
    more = rf"nothing to extract\. {said}; 1 tensors of other parts .*, {statistics} first\."
    with pytest.raises(ConfigError, match=more):
        extract_lora(tmp_path / "beside.safetensors", tiny.checkpoint, tmp_path / "none.safetensors")
    (tmp_path / "copy.safetensors").write_bytes(tiny.checkpoint.read_bytes())
    with pytest.raises(ConfigError, match=r"have the same weights .* nothing to extract\.$"):
        extract_lora(tmp_path / "copy.safetensors", tiny.checkpoint, tmp_path / "none.safetensors")


def test_two_versions_are_no_finetune_and_its_base(tiny, tiny20, tmp_path):
    with pytest.raises(ConfigError, match="different (models|versions)"):
        extract_lora(tiny.checkpoint, tiny20.checkpoint, tmp_path / "out.safetensors")
    with TensorFile(tiny.checkpoint) as file:
        tensors, about = {name: file.read(name) for name in file.tensors}, file.metadata
    more = "transformer_blocks.9.attn1.to_q.weight"
    write_tensors(tmp_path / "more.safetensors", tensors | {AT + more: torch.ones(160, 160)}, about)
    bare = {name.removeprefix(AT): tensor for name, tensor in tensors.items()}
    bare[f"{Q}.weight"] = bare[f"{Q}.weight"] + 1
    write_tensors(tmp_path / "bare.safetensors", bare, about)
    assert extract_lora(tmp_path / "bare.safetensors", tiny.checkpoint, tmp_path / "b.safetensors").layers == {
        "video": 1
    }
    said = rf"lacks {more}, which more\.safetensors has"
    with pytest.raises(ConfigError, match=said):
        extract_lora(tmp_path / "more.safetensors", tiny.checkpoint, tmp_path / "out.safetensors")
    with pytest.raises(CheckpointError, match="holds no transformer"):
        extract_lora(tiny.text_encoder, tiny.checkpoint, tmp_path / "out.safetensors")


def test_the_command_line_bakes_and_extracts(tiny, loras, tmp_path, capsys):
    baked, out = tmp_path / "baked.safetensors", tmp_path / "out.safetensors"
    base = str(tiny.checkpoint)
    assert main(["lora", "bake", base, str(loras[1]), "--strength", "2", "--out", str(baked)]) == 0
    assert "b.safetensors at strength 2" in capsys.readouterr().out
    assert main(["lora", "bake", base, str(loras[0]), "--out", str(baked)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["lora", "extract", str(baked), "--base", base, "--rank", "2", "--out", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == {"video": 1}
    with safe_open(out, "pt") as file:
        assert file.get_tensor(f"diffusion_model.{Q}.lora_A.weight").shape == (2, 160)
