"""Option nodes and files: no setting is out of reach, and what they are given is what the run gets."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import fake_comfy
import option_pages
import pytest
import torch


def options_of(nodes, name, before=None, **changed):
    """The output of an option node whose other widgets are left alone."""
    node = next(
        node for node in nodes.option_nodes.OPTION_NODES if node.define_schema().node_id == f"LTX2T_{name}Options"
    )
    form = nodes.options.FORMS[f"LTX2T_{name}Options"]
    return node.execute(**{**form.defaults(visible=True), **changed}, options=before).args[0]


def test_no_setting_is_out_of_reach(nodes):
    kinds = (nodes.train.RunConfig, nodes.data.DatasetSettings)
    known = {path for kind in kinds for path, _ in nodes.fields.leaves(kind)}
    other = nodes.option_nodes.ELSEWHERE
    files = {
        path
        for path, field in nodes.fields.leaves(nodes.data.DatasetSettings)
        if path in nodes.option_nodes.IN_A_FILE or nodes.widgets.is_path(field)
    }
    out_of_reach = known - nodes.widgets.SHOWN - set(other) - files
    assert not out_of_reach, (
        "add the table to a group of nodes/options.py, or say in nodes/option_nodes.py what says it"
    )
    assert set(other) <= known, "these settings are gone"
    assert not set(other) & nodes.widgets.SHOWN, "these settings are shown by a widget"


def test_no_setting_has_two_widgets_that_reach_one_run(nodes):
    shown = [s.path for form in nodes.options.FORMS.values() for s in form.settings]
    for node in nodes.option_choices.CHOICE_NODES:  # of the choices of a node one is made
        shown += [*node.CHOICES.paths, *(s.path for s in node.REST.settings)]
    assert len(shown) == len(set(shown))
    for form in (
        nodes.model.FORM,
        nodes.model.TEXT,
        nodes.data.CACHES,
        nodes.data.SHAPE,
        nodes.train.FORM,
        nodes.train.LATER,
    ):
        assert not {s.path for s in form.settings} & set(shown) - nodes.options.SHARED
    assert nodes.options.SHARED == {"optimizer.name", "optimizer.weight_decay"}, "two that differ are refused by name"


def test_each_page_of_help_says_what_the_settings_say(nodes):
    for node in (*nodes.option_nodes.OPTION_NODES, *nodes.option_choices.CHOICE_NODES):
        name = node.define_schema().node_id
        page = Path(fake_comfy.ROOT, "web", "docs", f"{name}.md").read_text(encoding="utf-8")
        assert page == option_pages.page(node), "run `python tests/option_pages.py`"


def test_what_is_left_alone_changes_nothing(nodes):
    chain = None
    for group in nodes.options.GROUPS:
        chain = options_of(nodes, group.name.replace(" ", ""), chain)
    assert chain.tables == {}


def test_a_chain_brings_every_group(nodes):
    chain = options_of(nodes, "Objective", options_of(nodes, "Loss", type="mae", balance_beta=0.1), std=1.5, shift=2.0)
    assert nodes.options.given(chain, "Train LoRA") == {
        "loss": {"type": "mae", "balance": {"beta": 0.1}},
        "objective": {"std": 1.5, "shift": 2.0},
    }


def test_an_upsampler_is_named_as_comfyui_lists_it(nodes, comfy):
    file = comfy.folder("models", "latent_upscale_models") / "x2.safetensors"
    file.touch()
    for given in ("x2.safetensors", str(file)):
        assert options_of(nodes, "Samples", upsampler=given).tables == {"sample": {"upsampler": str(file)}}
    with pytest.raises(RuntimeError, match=r"gone\.safetensors is not in ComfyUI's latent_upscale_models folder"):
        options_of(nodes, "Samples", upsampler="gone.safetensors")


def test_options_are_refused_where_they_have_no_effect(nodes):
    loss = options_of(nodes, "Loss", type="mae")
    with pytest.raises(nodes.options.ConfigError, match="Loss Options is connected to Prepare Dataset, but goes into"):
        nodes.options.given(loss, "Prepare Dataset")
    with pytest.raises(RuntimeError, match="Loss Options is in the chain twice"):
        options_of(nodes, "Loss", loss)


def stopped_before_training(monkeypatch, nodes):
    """The runs that the node hands to the core, which does nothing with them."""
    runs = []

    def train(run, events=None):
        runs.append(run)
        raise nodes.train.ConfigError("far enough")

    monkeypatch.setattr(nodes.train.core, "train", train)
    return runs


def train_node(nodes, **given):
    values = {**nodes.train.FORM.defaults(visible=True), "run_name": "fox", "sample_prompts": "", **given}
    prepared = nodes.handles.PreparedDataset(Path("dataset.toml"), {"data": {"config": "/clips/dataset.toml"}})
    return nodes.TrainLoRA.execute(prepared=prepared, **values)


def test_train_lora_uses_what_it_is_given(nodes, monkeypatch):
    runs = stopped_before_training(monkeypatch, nodes)
    chain = options_of(
        nodes, "Samples", options_of(nodes, "Objective", std=1.5), every_epochs=2, tiles_temporal_tile=32
    )
    with pytest.raises(RuntimeError, match="far enough"):
        train_node(nodes, options=chain)
    (run,) = runs
    assert (run.objective.std, run.sample.every_epochs, run.sample.tiles.temporal_tile) == (1.5, 2, 32)
    with pytest.raises(RuntimeError, match=r"min_timestep \(900\) is above"):
        train_node(nodes, options=options_of(nodes, "Objective", min_timestep=900.0, max_timestep=100.0))


def test_options_of_the_graph_are_checked_before_clips_are_encoded(nodes):
    objective = {"class_type": "LTX2T_ObjectiveOptions", "inputs": {"min_timestep": 900.0, "max_timestep": 100.0}}
    train = {"run_name": "fox", "prepared": ["3", 0], "options": ["7", 0]}
    prompt = {"4": {"class_type": "LTX2T_TrainLoRA", "inputs": train}, "7": objective}
    with pytest.raises(nodes.train.TrainerError, match="(?s)Train LoRA: .*min_timestep"):
        nodes.train.check_ahead(prompt, "3", {})


def test_clips_and_sizes_take_their_options(nodes, comfy):
    folder = comfy.folder("input", "fox")
    (folder / "a.mp4").write_bytes(b"")
    given = options_of(nodes, "Dataset", flip=True, caption_replace="automobile => car")
    dataset = nodes.LoadTrainingClips.execute(folder="fox", path="", trigger_word="", fps=25.0, options=given).args[0]
    assert dataset.entries[0]["flip"] is True
    values = {**nodes.data.SHAPE.defaults(visible=True), "sizes": "256x128x9\n128x128x17"}
    config = nodes.entries.dataset_config([dataset], nodes.data.size_settings(values), folder, "Prepare Dataset")
    assert config.datasets[0].resolution_buckets == ("256x128x9", "128x128x17")
    assert config.datasets[0].caption_replace == ("automobile => car",)


def test_a_dataset_file_is_used_as_it_is(nodes, comfy, monkeypatch, tmp_path):
    (tmp_path / "clips").mkdir()
    file = tmp_path / "dataset.toml"
    file.write_text(
        '[general]\nresolution = [64, 64]\n[[datasets]]\nvideo_directory = "clips"\ncache_directory = "c"\n'
    )
    seen = []
    report = SimpleNamespace(summary=lambda: "all kept", files=())
    monkeypatch.setattr(nodes.from_file.core, "build_caches", lambda run, events, trains: seen.append(run) or report)
    model = nodes.handles.BaseModel({"model": {"mode": "video"}}, "LTX 2.3")
    node = nodes.DatasetFromFile
    prepared, summary = node.execute(model=model, path=str(file), cache_only=False).args
    assert (summary, prepared.config, seen[0].data.config) == ("all kept", file, file)
    prepared, _ = node.execute(model=model, path=f'"{file}"', cache_only=True).args
    (entry,) = nodes.from_file.core.DatasetConfig.read(prepared.config).datasets
    assert (entry.cache_only, entry.cache_directory, entry.resolution) == (True, tmp_path / "c", (64, 64))
    for path, said in (
        ("", "no dataset file is given"),
        ("dataset.toml", "whole path"),
        (str(tmp_path / "x"), "no file"),
    ):
        with pytest.raises(RuntimeError, match=said):
            node.execute(model=model, path=path, cache_only=False)


def test_what_is_wrong_with_a_dataset_file_is_said_of_it_in_its_own_names(nodes, comfy, monkeypatch, tmp_path):
    file = tmp_path / "dataset.toml"
    file.write_text('[[datasets]]\nvideo_directory = "clips"\nsource_fps = 0\nbogus = 3\n')
    train = {"class_type": "LTX2T_TrainLoRA", "inputs": {"prepared": ["3", 0], "run_name": "r"}}
    prompt = {"3": {"class_type": "LTX2T_DatasetFromFile", "inputs": {}}, "4": train}
    monkeypatch.setattr(fake_comfy.ComfyNode, "hidden", SimpleNamespace(unique_id="3", prompt=prompt))
    model = nodes.handles.BaseModel({"model": {"mode": "video"}}, "LTX 2.3")
    with pytest.raises(RuntimeError, match=r"datasets\[0\]\.source_fps: must be above 0 \(given: 0\)") as said:
        nodes.DatasetFromFile.execute(model=model, path=str(file), cache_only=False)
    assert "Train LoRA" not in str(said.value)
    assert "audio_normalize, " in str(said.value)
    assert "Load Training" not in str(said.value)


def test_a_folder_of_the_official_trainer_is_taken_over_once_and_where_it_changed(nodes, comfy, monkeypatch, tmp_path):
    report = SimpleNamespace(summary=lambda: "all kept", files=())
    monkeypatch.setattr(nodes.from_file.core, "build_caches", lambda run, events, trains: report)
    at = tmp_path / "root" / ".precomputed"
    for name in ("latents", "conditions"):
        (at / name).mkdir(parents=True)
    text = {
        name: torch.ones(4, width) for name, width in (("video_prompt_embeds", 4096), ("audio_prompt_embeds", 2048))
    }

    def encode(name):
        torch.save({"latents": torch.ones(128, 2, 2, 2), "fps": 24.0}, at / "latents" / f"{name}.pt")
        torch.save(text, at / "conditions" / f"{name}.pt")

    encode("a")
    model = nodes.handles.BaseModel({"model": {"mode": "video"}}, "LTX 2.3")
    given = {"model": model, "path": str(tmp_path / "root"), "cache_only": False}
    prepared, summary = nodes.DatasetFromFile.execute(**given).args
    assert summary.startswith(f"1 samples imported into {tmp_path / 'root' / 'ltx2_caches'}, 0 left out")
    (entry,) = nodes.from_file.core.DatasetConfig.read(prepared.config).datasets
    assert entry.from_caches
    assert len(list(entry.caches.glob("a_*.safetensors"))) == 2, "latents and text"
    assert "imported" not in nodes.DatasetFromFile.execute(**given).args[1], "it is there"
    encode("b")
    assert "2 samples imported" in nodes.DatasetFromFile.execute(**given).args[1]
    assert "imported" not in nodes.DatasetFromFile.execute(**given | {"cache_only": True}).args[1]


def test_a_folder_of_the_official_trainer_is_prepared_whoever_trains_on_it(nodes, comfy, tiny, tmp_path):
    """Its caches do not say their captions; whether prompts are there, Train LoRA knows."""
    for name, table in (
        ("latents", {"latents": torch.randn(128, 2, 2, 2), "fps": 24.0}),
        ("conditions", {"prompt_embeds": torch.randn(16, 64), "prompt_attention_mask": torch.ones(16)}),
    ):
        (tmp_path / "root" / name).mkdir(parents=True)
        torch.save(table, tmp_path / "root" / name / "a.pt")
    for kind, file in (("checkpoints", tiny.checkpoint), ("text_encoders", tiny.text_encoder)):
        shutil.copy2(file, comfy.folder("models", kind) / "tiny.safetensors")
    base = {"checkpoint": "tiny.safetensors", "text_encoder": "tiny.safetensors", "precision": "fp32", "device": "cpu"}
    model = nodes.LoadBaseModel.execute(**base, mode="video").args[0]
    summary = nodes.DatasetFromFile.execute(model=model, path=str(tmp_path / "root"), cache_only=False).args[1]
    assert summary.startswith("1 samples imported")


def test_a_run_file_is_used_as_it_is(nodes, comfy, monkeypatch, tmp_path):
    file = tmp_path / "run.toml"
    file.write_text('[run]\nname = "fox"\n[data]\nconfig = "dataset.toml"\n[train]\nsteps = 5\n')
    seen = []

    def train(run, events):
        seen.append(run)
        raise nodes.from_file.ConfigError("far enough")

    monkeypatch.setattr(nodes.from_file.core, "build_caches", lambda run, events: None)
    monkeypatch.setattr(nodes.from_file.core, "train", train)
    with pytest.raises(RuntimeError, match="far enough"):
        nodes.RunFromFile.execute(path=str(file), changes="lora.rank = 3\n\ntrain.steps=7\n")
    (run,) = seen
    assert (run.lora.rank, run.train.steps, run.data.config) == (3, 7, tmp_path / "dataset.toml")
    assert run.run.export_folder == nodes.host.loras_folder()
    assert run.run.folder == tmp_path / "runs"
    with pytest.raises(RuntimeError, match=r"lora\.rnk"):
        nodes.RunFromFile.execute(path=str(file), changes="lora.rnk = 3")
