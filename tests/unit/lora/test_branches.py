"""A LoRA taken apart by branch: what stays is untouched, what goes is said."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.errors import CheckpointError, ConfigError
from ltx2_train.events import Events
from ltx2_train.lora.branches import drop_branches, keep_branches
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.fit import tell_changed
from ltx2_train.lora.report import inspect_lora
from ltx2_train.lora.resize import resize_lora
from ltx2_train.lora.save import save_lora

OF_A_BLOCK = {"video": 10, "audio": 10, "a2v": 4, "v2a": 4}  # linears that the preset v2v names


@pytest.fixture
def lora(make_set, tmp_path):
    path = tmp_path / "whole.safetensors"
    about = {"base": {"file": "base.safetensors", "version": "2.3"}, "step": 7, "trigger": "bunny"}
    save_lora(path, make_set(target="v2v"), about)
    return path


def stored(path):
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()


def test_a_lora_whose_bytes_were_changed_is_told_by_its_hash(lora, tmp_path):
    told = "Its bytes are not those that were written"
    assert not any(told in text for text in inspect_lora(lora).problems)
    data = bytearray(lora.read_bytes())
    data[-200:-100] = bytes(100)
    lora.write_bytes(data)
    assert any(text.startswith(told) for text in inspect_lora(lora).problems)
    heard = []
    events = Events()
    events.message = lambda text, level="info": heard.append((level, text))
    resize_lora(lora, tmp_path / "small.safetensors", 2, events=events)
    tell_changed(load_lora_state(lora), events)
    assert [level for level, text in heard if told in text] == ["warning"] * 2
    tensors, metadata = stored(lora)
    save_file(tensors, lora, metadata | {"ss_network_module": "networks.lora"})  # whose hash has another rule
    assert not any(told in text for text in inspect_lora(lora).problems)


@pytest.mark.parametrize(
    ("rewrite", "names", "stay"),
    [
        (keep_branches, ["audio"], {"audio"}),
        (keep_branches, ["audio", "v2a"], {"audio", "v2a"}),
        (keep_branches, ["cross"], {"a2v", "v2a"}),
        (drop_branches, ["video"], {"audio", "a2v", "v2a"}),
        (drop_branches, ["cross"], {"video", "audio"}),
    ],
)
def test_what_stays_is_bit_for_bit_what_it_was(lora, tmp_path, rewrite, names, stay):
    out = tmp_path / "new" / "part.safetensors"
    report = rewrite(lora, names, out)
    whole, _ = stored(lora)
    part, metadata = stored(out)
    assert part.keys() < whole.keys()
    assert all(torch.equal(tensor, whole[key]) and tensor.dtype == whole[key].dtype for key, tensor in part.items())
    looked = inspect_lora(out)
    assert looked.problems == []
    assert set(looked.branches) == stay
    assert report.kept == looked.branches == {name: 2 * count for name, count in OF_A_BLOCK.items() if name in stay}
    removed = {name: 2 * count for name, count in OF_A_BLOCK.items() if name not in stay}
    assert report.removed == removed == json.loads(metadata["branches_removed"])
    assert json.loads(metadata["layers"]) == looked.branches
    assert (looked.trigger, looked.step, looked.base) == ("bunny", 7, "base.safetensors")


def test_a_part_of_a_part_remembers_all_that_was_taken_out(lora, tmp_path):
    drop_branches(lora, ["video"], tmp_path / "a.safetensors")
    drop_branches(tmp_path / "a.safetensors", ["cross"], tmp_path / "b.safetensors")
    removed = json.loads(stored(tmp_path / "b.safetensors")[1]["branches_removed"])
    assert removed == {"video": 20, "a2v": 8, "v2a": 8}


def test_other_spellings_keep_their_keys_and_alphas_and_lose_stale_hashes(tmp_path):
    flat = "lora_unet_transformer_blocks_0_"
    tensors = {}
    for layer in ("attn1_to_q", "audio_attn1_to_q", "audio_ff_net_2", "audio_to_video_attn_to_k"):
        tensors[f"{flat}{layer}.lora_down.weight"] = torch.ones(2, 4)
        tensors[f"{flat}{layer}.lora_up.weight"] = torch.ones(4, 2)
        tensors[f"{flat}{layer}.alpha"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "in.safetensors", {"sshs_model_hash": "abc", "branches_removed": "not ours"})
    keep_branches(tmp_path / "in.safetensors", {"audio"}, tmp_path / "out.safetensors")
    part, metadata = stored(tmp_path / "out.safetensors")
    kept = [f"{flat}{layer}" for layer in ("audio_attn1_to_q", "audio_ff_net_2")]
    assert set(part) == {f"{name}.{end}" for name in kept for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert "sshs_model_hash" not in metadata
    assert json.loads(metadata["branches_removed"]) == {"video": 1, "a2v": 1}


def test_an_empty_result_is_refused_and_nothing_is_written(lora, tmp_path):
    out = tmp_path / "out.safetensors"
    with pytest.raises(ConfigError, match=r"nothing but video, audio, a2v, v2a.*20 video"):
        drop_branches(lora, ["video", "audio", "cross"], out)
    keep_branches(lora, ["video"], tmp_path / "video.safetensors")
    with pytest.raises(ConfigError, match="no layer of audio"):
        keep_branches(tmp_path / "video.safetensors", ["audio"], out)
    assert not out.exists()


def test_a_wrong_name_no_name_or_the_same_file_are_refused(lora, tmp_path):
    before = lora.read_bytes()
    with pytest.raises(ConfigError, match="'audo' is no branch.*Did you mean audio"):
        keep_branches(lora, ["audo"], tmp_path / "out.safetensors")
    with pytest.raises(ConfigError, match="No branch was named"):
        keep_branches(lora, [], tmp_path / "out.safetensors")
    with pytest.raises(ConfigError, match="written over itself"):
        keep_branches(lora, ["audio"], lora)
    assert lora.read_bytes() == before
    save_file({"x": torch.zeros(1)}, tmp_path / "no.safetensors")
    with pytest.raises(CheckpointError, match="not a LoRA"):
        keep_branches(tmp_path / "no.safetensors", ["audio"], tmp_path / "out.safetensors")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("voice.bin", "'voice.bin' must end in .safetensors"),
        (".safetensors", "must end in .safetensors"),
        ("NUL.safetensors", "'NUL.safetensors', is a name that Windows keeps for a device"),
        ("a\nb.safetensors", "must not hold line breaks"),
        ("x" * 240 + ".safetensors", "is too long: it takes 240 bytes"),
        ("there.safetensors", "is a folder. Name a file"),
    ],
)
def test_the_new_file_has_a_name_that_files_may_have(lora, tmp_path, name, words):
    (tmp_path / "there.safetensors").mkdir()
    with pytest.raises(ConfigError, match=words):
        keep_branches(lora, ["audio"], tmp_path / name)


def test_another_file_is_never_replaced(lora, tmp_path):
    out = tmp_path / "voice.safetensors"
    keep_branches(lora, ["audio"], out)
    keep_branches(lora, ["audio"], out)  # the same again is no other
    with pytest.raises(ConfigError, match="is there already and holds something else"):
        keep_branches(lora, ["video"], out)
    assert inspect_lora(out).branches == {"audio": 20}
    out.write_text("notes of mine")
    with pytest.raises(ConfigError, match="is there already"):
        drop_branches(lora, ["video"], out)
    assert out.read_text() == "notes of mine"
    assert main(["lora", "keep", str(lora), "--branch", "audio", "--out", str(out), "--replace"]) == 0
    assert inspect_lora(out).branches == {"audio": 20}


def test_the_same_run_written_on_another_day_gives_the_same_file(lora, tmp_path):
    tensors, about = stored(lora)
    for day, tool in ((1, keep_branches), (2, keep_branches), (1, resize_lora), (2, resize_lora)):
        save_file(tensors, lora, {**about, "modelspec.date": f"2026-01-0{day}", "ss_training_finished_at": str(day)})
        what = (
            (["audio"], tmp_path / "voice.safetensors")
            if tool is keep_branches
            else (tmp_path / "small.safetensors", 1)
        )
        tool(lora, *what)
    for name in ("voice", "small"):
        assert stored(tmp_path / f"{name}.safetensors")[1]["modelspec.date"] == "2026-01-02"


def test_the_command_line_keeps_and_drops(lora, tmp_path, capsys):
    out = tmp_path / "voice.safetensors"
    assert main(["lora", "keep", str(lora), "--branch", "audio", "--out", str(out)]) == 0
    assert "kept 20 audio; removed 20 video, 8 a2v, 8 v2a" in capsys.readouterr().out
    assert set(load_lora_state(out).describe().split(" (")[1].rstrip(")").split()) == {"20", "audio"}
    out = tmp_path / "plain.safetensors"
    options = ["--branch", "a2v", "--branch", "v2a", "--out", str(out)]
    assert main(["lora", "drop", str(lora), *options]) == 0
    assert inspect_lora(out).branches == {"video": 20, "audio": 20}
    assert main(["lora", "drop", str(lora), "--branch", "sound", "--out", str(out)]) == 2
    assert "no branch of a LoRA" in capsys.readouterr().err


def test_a_key_of_no_known_layer_is_named_where_it_is_left_out(lora, tmp_path):
    tensors, metadata = stored(lora)
    save_file({**tensors, "something.else": torch.ones(2)}, tmp_path / "more.safetensors", metadata)
    report = keep_branches(tmp_path / "more.safetensors", ["audio"], tmp_path / "voice.safetensors")
    assert report.other_keys == ("something.else",)
    assert "left out, of no known layer: something.else" in report.text()
    assert keep_branches(lora, ["audio"], tmp_path / "other.safetensors").other_keys == ()


def test_a_lora_that_does_nothing_is_named(lora, tmp_path):
    tensors, metadata = stored(lora)
    zeros = {name: tensor * ("lora_A" in name) for name, tensor in tensors.items()}
    save_file(zeros, tmp_path / "zero.safetensors", metadata)
    report = keep_branches(tmp_path / "zero.safetensors", ["audio"], tmp_path / "voice.safetensors")
    assert report.text().splitlines()[1] == "zero.safetensors does nothing: every B is zero."


def test_a_lora_whose_scale_is_not_known_is_refused_by_name(lora, tmp_path):
    tensors, metadata = stored(lora)
    first = next(name for name in tensors if ".attn1." in name).partition(".lora_")[0]
    save_file({**tensors, f"{first}.alpha": torch.tensor(1.0)}, tmp_path / "doubt.safetensors", metadata)
    for rewrite in (keep_branches, drop_branches):
        with pytest.raises(ConfigError, match=r"doubt\.safetensors cannot be used: .* have no \.alpha"):
            rewrite(tmp_path / "doubt.safetensors", ["audio"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_layer_that_lacks_its_other_half_is_refused_by_name(lora, tmp_path):
    tensors = load_file(lora)
    gone = next(name for name in tensors if name.endswith("lora_A.weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, tmp_path / "half.safetensors")
    layer = gone.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
    with pytest.raises(ConfigError, match=f"half.safetensors is no whole LoRA: {layer} lacks its other half"):
        keep_branches(tmp_path / "half.safetensors", ["video"], tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()


def test_the_scale_of_an_adapter_of_peft_goes_along_and_its_lack_is_told(tmp_path):
    """PEFT keeps alpha in a file beside its adapter, which is not beside what is kept of it."""
    tensors = {}
    for layer in ("attn1.to_q", "audio_attn1.to_q"):
        name = f"base_model.model.transformer_blocks.0.{layer}"
        tensors |= {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)}
    source = tmp_path / "adapter_model.safetensors"
    save_file(tensors, source)
    assert "Nothing says its alpha" in inspect_lora(source).text()
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 8}), encoding="utf-8")
    assert "Nothing says its alpha" not in inspect_lora(source).text()
    assert keep_branches(source, {"audio"}, tmp_path / "fox.safetensors").doubts == ()
    assert [entry.scale for entry in load_lora_state(tmp_path / "fox.safetensors").layers.values()] == [4.0]
    source.rename(tmp_path / "other.safetensors")
    assert "give it that name" in inspect_lora(tmp_path / "other.safetensors").text()
