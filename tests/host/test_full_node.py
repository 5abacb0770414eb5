"""Train LoRA where the weights themselves are trained: where the checkpoint goes, and what the outputs say."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace


def options_of(nodes, name, before=None, **changed):
    """The output of an option node whose other widgets are left alone."""
    node_id = f"LTX2T_{name}Options"
    node = next(node for node in nodes.option_nodes.OPTION_NODES if node.define_schema().node_id == node_id)
    return node.execute(**{**nodes.options.FORMS[node_id].defaults(visible=True), **changed}, options=before).args[0]


def test_the_options_reach_the_run_and_its_checkpoint_comfyuis_folder(nodes):
    given = options_of(nodes, "Training", what="full")
    given = options_of(nodes, "FullFinetuning", given, include_patterns=r".*attn1\..*", release_gradients=True)
    tables = nodes.train.placed(nodes.train.further_settings(given, "Train LoRA"))
    assert tables["train"]["what"] == "full"
    assert tables["full"] == {"include_patterns": [r".*attn1\..*"], "release_gradients": True}
    assert Path(tables["run"]["export_folder"]).name == "checkpoints"
    assert nodes.train.placed({"train": {}}) == {"train": {}}


def test_the_outputs_say_where_the_checkpoint_lies_and_sample_with_it(nodes, tmp_path):
    made = tmp_path / "fox" / "checkpoints" / "fox_000010.safetensors"
    result = SimpleNamespace(folder=tmp_path / "fox", lora=made, step=10)
    tables = {"run": {"name": "fox"}, "train": {"what": "full"}, "model": {"checkpoint": "base.safetensors"}}
    config = nodes.train.RunConfig.model_validate(tables)
    lora, run, path = nodes.train.run_outputs(config, result, made, tables)
    assert type(lora).__name__ == "ExecutionBlocker"
    assert str(made) in lora.message
    assert path == str(made)
    assert run.lora is None
    assert run.tables["model"]["checkpoint"] == str(made)
    assert tables["model"]["checkpoint"] == "base.safetensors"
    assert nodes.sample._lora(run, "") is None
