"""Merge LoRAs and Convert LoRA on the pretended ComfyUI: sockets, files, names, and what is refused."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from lora_files import changes, metadata, pair, write_lora
from safetensors.torch import save_file

Q, K = (f"transformer_blocks.0.attn1.to_{name}" for name in "qk")
AUDIO = "transformer_blocks.0.audio_attn1"
MERGE = {
    **{f"multiplier_{number}": 1.0 for number in range(1, 5)},
    "lora_paths": "",
    "method": "concat",
    "save_name": "",
}
CONVERT = {"to": "comfyui", "lora_path": "", "save_name": ""}


@pytest.fixture
def listed(comfy):
    """Two LoRAs in ComfyUI's loras folder, the second in the community trainer's keys and with an alpha."""
    folder = comfy.folder("models", "loras")
    write_lora(folder / "fox.safetensors", {Q: pair(2, seed=1), K: pair(2, seed=2)}, {"trigger": "fox"})
    flat = "lora_unet_model_transformer_blocks_0_attn1_to_q.{}"
    a, b = pair(3, seed=3)
    tensors = {flat.format("lora_down.weight"): a, flat.format("lora_up.weight"): b}
    save_file(tensors | {flat.format("alpha"): torch.tensor(1.5)}, folder / "my style.safetensors")
    return folder


@pytest.fixture(autouse=True)
def inference_mode():
    # as in ComfyUI, where nodes run in inference mode
    with torch.inference_mode():
        yield


def test_loras_of_sockets_and_of_files_become_one(nodes, comfy, listed):
    wired = nodes.wire.read_wire_lora(listed / "fox.safetensors")
    lines = "\nmy style | -0.5\n\n fox.safetensors \n"
    given = {**MERGE, "lora_2": wired, "multiplier_2": 2.0, "lora_paths": lines, "save_name": "both/of them"}
    lora, report, path = nodes.MergeLoRA.execute(**given).args
    assert path == str(listed / "both" / "of them.safetensors")
    fox, style = changes(listed / "fox.safetensors"), changes(listed / "my style.safetensors")
    merged = changes(path)
    torch.testing.assert_close(merged[Q], 3 * fox[Q] - 0.5 * style[Q])
    torch.testing.assert_close(merged[K], 3 * fox[K])
    assert report.startswith("of them.safetensors: 2 layers (2 video), ranks 4 to 7")
    assert set(lora) == {f"diffusion_model.{layer}.lora_{half}.weight" for layer in (Q, K) for half in "AB"}
    assert metadata(path)["trigger"] == "fox"


def test_a_file_that_is_none_of_safetensors_is_asked_to_be_a_lora(nodes, listed):
    (listed / "words.safetensors").write_text("not a LoRA, but words")
    for node, given in (
        (nodes.MergeLoRA, {**MERGE, "lora_paths": "fox\nwords"}),
        (nodes.ConvertLoRA, {**CONVERT, "lora_path": "words"}),
    ):
        with pytest.raises(RuntimeError, match=r"words.safetensors is not .* Choose a \.safetensors LoRA\.$"):
            node.execute(**given)


def test_without_a_name_it_lies_among_the_runs_and_every_recipe_has_a_file(nodes, comfy, listed):
    given = {**MERGE, "lora_paths": "fox\nmy style"}
    paths = [
        nodes.MergeLoRA.execute(**given, **more).args[2] for more in ({}, {}, {"dtype": "bf16"}, {"emit_alpha": True})
    ]
    paths.append(nodes.MergeLoRA.execute(**{**given, "method": "orthogonal"}, rank_mode="min", k_fraction=0.3).args[2])
    assert paths[0] == paths[1]
    assert len(set(paths)) == 4
    assert all(Path(path).is_relative_to(comfy.folder("output", "ltx2_runs")) for path in paths)
    assert metadata(paths[-1])["orthogonal_k_fraction"] == "0.3"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"there is 0: connect another one, or write its file into `lora_paths`"),
        ({"lora_paths": "fox"}, "there is 1: connect another one"),
        ({"lora_paths": "fox\nfox", "multiplier_3": 0.5}, "multiplier_3 is 0.5, and nothing is connected to `lora_3`"),
        ({"lora_paths": "fox\nfox | strong"}, "lora_paths: 'strong' is no number"),
        ({"lora_paths": "fox\nwolf"}, "lora_paths: there is no file wolf"),
        ({"lora_paths": "fox\n../../secret"}, "lora_paths: ../../secret leads out"),
        ({"lora_paths": "fox\nfox\nfox", "method": "orthogonal"}, "orthogonal merge takes two LoRAs, and 3"),
        ({"lora_paths": "fox\nmy style", "save_name": "../x"}, r"save_name: '\.\./x' cannot be a file name"),
        ({"lora_paths": "fox\nmy style", "save_name": "..."}, r"save_name: '\.\.\.' cannot be a file name"),
        ({"lora_paths": "fox\nmy style", "save_name": "fox"}, "written over itself"),
        ({"lora_paths": "fox\nmy style", "save_name": "there"}, "is there already and holds something else"),
    ],
)
def test_what_cannot_be_merged_is_told_plainly(nodes, listed, given, message):
    shutil.copy2(listed / "fox.safetensors", listed / "there.safetensors")
    before = {path: path.read_bytes() for path in listed.iterdir()}
    with pytest.raises(RuntimeError, match=message):
        nodes.MergeLoRA.execute(**MERGE | given)
    assert {path: path.read_bytes() for path in listed.iterdir()} == before


def test_a_file_that_changed_is_merged_and_converted_anew(nodes, listed):
    for node, given in (
        (nodes.MergeLoRA, {"lora_paths": "fox\nmy style | 2"}),
        (nodes.ConvertLoRA, {"lora_path": "fox"}),
        (nodes.SampleLoRA, {"more_loras": "fox | 0.5"}),
        (nodes.CompareCheckpoints, {"more_loras": "fox"}),
    ):
        before = node.fingerprint_inputs(**given)
        assert node.fingerprint_inputs(**given) == before
        write_lora(listed / "fox.safetensors", {Q: pair(5)})
        assert node.fingerprint_inputs(**given) != before
        assert math.isnan(node.fingerprint_inputs(**{key: "gone" for key in given}))
        write_lora(listed / "fox.safetensors", {Q: pair(2)})
    before = nodes.SampleLoRA.fingerprint_inputs(lora_path="fox")
    write_lora(listed / "fox.safetensors", {Q: pair(5)})
    assert nodes.SampleLoRA.fingerprint_inputs(lora_path="fox") != before
    beside_the_run = [nodes.SampleLoRA.fingerprint_inputs(lora_path="fox_000010") for _ in range(2)]
    assert beside_the_run[0] == beside_the_run[1], "it is not looked for at each press"
    assert nodes.ConvertLoRA.fingerprint_inputs(lora_path="") == nodes.ConvertLoRA.fingerprint_inputs(lora_path="")


def test_a_file_that_a_tool_wrote_and_that_is_gone_or_damaged_is_written_anew(nodes, comfy, listed):
    write_lora(listed / "fox.safetensors", {Q: pair(2, seed=1), f"{AUDIO}.to_q": pair(2, seed=2)})
    for node, given in (
        (nodes.MergeLoRA, {**MERGE, "lora_paths": "fox\nmy style"}),
        (nodes.ConvertLoRA, {**CONVERT, "lora_path": "fox", "to": "diffusers"}),
        (nodes.ResizeLoRA, {"rank": 1, "max_error": 0.0, "lora_path": "fox"}),
        (nodes.KeepBranch, {"action": "keep", "branches": "video", "lora_path": "fox"}),
    ):
        for name in ("made", ""):
            given = {**given, "save_name": name}
            before = node.fingerprint_inputs(**given)
            path = Path(node.execute(**given).args[2])
            whole = path.read_bytes()
            node.execute(**given)
            assert node.fingerprint_inputs(**given) == before, "a second press is answered from ComfyUI's cache"
            for harm in (path.unlink, lambda path=path: path.write_bytes(b"x" * 100)):
                harm()
                assert (after := node.fingerprint_inputs(**given)) != before
                assert node.fingerprint_inputs(**given) == after
                node.execute(**given)
                assert path.stat().st_size == len(whole)
                assert (before := node.fingerprint_inputs(**given)) == after
            shutil.copy2(listed / "my style.safetensors", path)
            assert node.fingerprint_inputs(**given) != before
            if name:
                with pytest.raises(RuntimeError, match="is there already and holds something else"):
                    node.execute(**given)
                path.unlink()
                continue
            node.execute(**given)  # nobody but the node names a file so
            assert path.stat().st_size == len(whole)


def test_what_was_asked_for_before_is_looked_at_too(nodes, listed):
    first, second = ({**CONVERT, "lora_path": "fox", "to": "diffusers", "save_name": name} for name in "ab")
    marks = []
    for given in (first, second):
        marks.append(nodes.ConvertLoRA.fingerprint_inputs(**given))
        nodes.ConvertLoRA.execute(**given)
    (listed / "a.safetensors").unlink()
    assert nodes.ConvertLoRA.fingerprint_inputs(**second) == marks[1]
    assert nodes.ConvertLoRA.fingerprint_inputs(**first) != marks[0]


def test_a_lora_of_another_trainer_is_converted_for_comfyui_and_back(nodes, listed):
    lora, report, path = nodes.ConvertLoRA.execute(**{**CONVERT, "lora_path": "my style", "save_name": "style"}).args
    assert path == str(listed / "style.safetensors")
    assert "from the keys of community to those of comfyui" in report
    assert set(lora) == {f"diffusion_model.{Q}.lora_{half}.weight" for half in "AB"}
    torch.testing.assert_close(changes(path)[Q], changes(listed / "my style.safetensors")[Q])

    nothing, _, other = nodes.ConvertLoRA.execute(**CONVERT | {"lora": lora, "to": "diffusers"}).args
    assert "ComfyUI does not load" in nothing.message
    assert "ltx2_runs" in other
    torch.testing.assert_close(changes(other)[Q], changes(path)[Q])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "connect `lora`, or write `lora_path`"),
        ({"lora_path": "nowhere"}, "lora_path: there is no file nowhere"),
        ({"lora_path": "fox", "save_name": "fox"}, "written over itself"),
    ],
)
def test_what_cannot_be_converted_is_told_plainly(nodes, listed, given, message):
    with pytest.raises(RuntimeError, match=message):
        nodes.ConvertLoRA.execute(**CONVERT | given)


def test_a_lora_that_is_connected_and_written_down_is_one_too_many(nodes, listed):
    wired = nodes.wire.read_wire_lora(listed / "fox.safetensors")
    with pytest.raises(RuntimeError, match="There are two LoRAs to convert: take the wire off `lora`, or empty"):
        nodes.ConvertLoRA.execute(**{**CONVERT, "lora_path": "my style"}, lora=wired)
    with pytest.raises(RuntimeError, match="There are two LoRAs to take apart"):
        nodes.KeepBranch.execute(action="keep", branches="video", lora_path="my style", save_name="", lora=wired)


def test_a_run_and_a_base_are_one_base_too_many(nodes):
    run = nodes.handles.FinishedRun(Path("fox"), Path("fox.safetensors"), 3, {})
    with pytest.raises(RuntimeError, match="`run` has its own base"):
        nodes.SampleLoRA.execute(
            prompt="a fox", run=run, model=nodes.handles.BaseModel({}, ""), **nodes.sample.FORM.defaults(visible=True)
        )


def test_a_lora_is_made_smaller_and_says_what_that_lost(nodes, comfy, listed):
    write_lora(listed / "faint.safetensors", {Q: (torch.eye(32, 48), torch.eye(48, 32))})
    given = {"rank": 1, "max_error": 0.0, "lora_path": "fox", "save_name": "small fox"}
    lora, report, path = nodes.ResizeLoRA.execute(**given).args
    assert path == str(listed / "small fox.safetensors")
    assert all(min(tensor.shape) == 1 for tensor in lora.values())
    assert "lost" in report
    nodes.ResizeLoRA.execute(**{**given, "lora_path": "faint", "save_name": ""})
    assert comfy.texts[-1][1].count("Give a higher rank") == 1, "it stands in the report already"
    by_error = nodes.ResizeLoRA.execute(**{**given, "rank": 0, "max_error": 0.9, "save_name": ""}).args
    assert "ltx2_runs" in by_error[2]
    for more, message in (
        ({"rank": 0}, "Say how small: a rank, the largest error, or both"),
        ({"rank": 9}, "has rank 2 already"),
        ({"lora_path": ""}, "There is no LoRA to resize"),
    ):
        with pytest.raises(RuntimeError, match=message):
            nodes.ResizeLoRA.execute(**given | more)


def test_loras_are_baked_into_a_checkpoint_and_taken_out_again(nodes, comfy, tiny):
    folder = comfy.folder("models", "checkpoints")
    (folder / "base.safetensors").symlink_to(tiny.checkpoint)
    wired = {Q: pair(2, size=(160, 160), seed=4)}
    write_lora(comfy.folder("models", "loras") / "fox.safetensors", wired)
    lora = nodes.wire.read_wire_lora(comfy.folder("models", "loras") / "fox.safetensors")
    bake = {"checkpoint": "base.safetensors", "strength": 0.5, "lora_paths": "", "save_name": "with fox"}
    before = nodes.BakeLoRA.fingerprint_inputs(**bake)
    report, path = nodes.BakeLoRA.execute(**bake, lora=lora).args
    assert path == str(folder / "with fox.safetensors")
    Path(path).write_bytes(Path(path).read_bytes()[:-9])
    assert nodes.BakeLoRA.fingerprint_inputs(**bake) != before
    nodes.BakeLoRA.execute(**bake, lora=lora)
    assert "fox" in report or "strength 0.5" in report
    taken, _, other = nodes.ExtractLoRA.execute(
        finetune="with fox.safetensors", base="base.safetensors", rank=2, save_name="", dtype="fp32"
    ).args
    assert len(taken) == 2
    torch.testing.assert_close(
        changes(other)[Q], 0.5 * changes(comfy.folder("models", "loras") / "fox.safetensors")[Q], rtol=0.05, atol=0.05
    )
    nodes.ExtractLoRA.execute(finetune="with fox.safetensors", base="base.safetensors", rank=2, save_name="")
    for more, message in (
        ({"lora": None}, "strength is 0.5, and it is that of `lora`, which is not connected"),
        ({"lora": None, "strength": 1.0}, "There is no LoRA to bake"),
        ({"save_name": ""}, "save_name is empty"),
        ({"save_name": "base"}, "written over itself"),
        ({}, "is there already"),
    ):
        with pytest.raises(RuntimeError, match=message):
            nodes.BakeLoRA.execute(**{**bake, "lora": lora, **more})


@pytest.mark.parametrize("loftq_rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_checkpoint_is_quantized_once_and_known_for_what_it_is(nodes, comfy, tiny, loftq_rank):
    folder = comfy.folder("models", "checkpoints")
    (folder / "base.safetensors").symlink_to(tiny.checkpoint)
    given = {"checkpoint": "base.safetensors", "format": "nf4", "save_name": "small"}
    before = nodes.QuantizeCheckpoint.fingerprint_inputs(**given)
    path = nodes.QuantizeCheckpoint.execute(**given).args[1]
    assert nodes.QuantizeCheckpoint.fingerprint_inputs(**given) == before
    Path(path).write_bytes(b"damaged")
    assert nodes.QuantizeCheckpoint.fingerprint_inputs(**given) != before
    report, path = nodes.QuantizeCheckpoint.execute(**given, loftq_rank=loftq_rank).args
    assert path == str(folder / "small.safetensors")
    assert "linears in nf4" in report
    assert nodes.model.core.probe(path).quant_format == "nf4"
    beside = [one.name for one in folder.iterdir() if one.name not in ("base.safetensors", "small.safetensors")]
    assert [name in report for name in beside] == [True] * bool(loftq_rank), "LoftQ's file"
    for more, message in (
        ({}, "is there already"),
        ({"save_name": " "}, "save_name is empty"),
        ({"save_name": "other", "format": "int8", "loftq_rank": 4}, "loftq_rank counts with nf4 alone"),
        ({"save_name": "other", "format": "int8", "block_size": "64"}, "block_size counts with nf4 alone"),
        ({"save_name": "other", "checkpoint": "small.safetensors"}, "is quantized already"),
    ):
        with pytest.raises(RuntimeError, match=message):
            nodes.QuantizeCheckpoint.execute(**{**given, **more})
    assert len(list(folder.iterdir())) == 2 + len(beside)
