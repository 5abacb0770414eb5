"""Files of other programs whose keys, values or sections have another form than theirs."""

import pytest
from unit.config.community_files import written

from ltx2_train.config.importing import import_settings
from ltx2_train.errors import ConfigError

YAML = "model:\n  model_path: m.safetensors\n  text_encoder_path: gemma\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("lora:\n  rank: 8\n  rank: 9\n", "rank stands twice in one section, in lines 5 and 6: 8 and 9"),
        ("a: &a {rank: 1}\nlora:\n  <<: *a\n  <<: *a\n", "<< stands twice in one section, in lines 6 and 7"),
        ("1: 2\ntrue: 3\n", "line 4: the key 1 is no name"),
        ("---\nlora:\n  rank: 3\n", "expected a single document"),
    ],
)
def test_yaml_of_which_something_would_be_lost_is_refused(tmp_path, more, words):
    with pytest.raises(ConfigError) as refused:
        import_settings(written(tmp_path, "run.yaml", YAML + more))
    assert words in str(refused.value)


def test_what_yaml_merges_counts_below_what_is_said(tmp_path):
    text = "x: &a {rank: 8, alpha: 4}\nlora: &b\n  <<: *a\n  rank: 16\nx2:\n  <<: *b\n  rank: 3\n"
    made = import_settings(written(tmp_path, "run.yaml", YAML + text))
    assert made.translation.tables["lora"] == {"rank": 16, "alpha": 4}
    assert [line.name for line in made.translation.of("unknown")] == ["x", "x2"]


def test_the_report_shows_values_as_they_count_here(tmp_path):
    text = "optimization:\n  steps: 1e3\n  learning_rate: '2e-4'\n  enable_gradient_checkpointing: 'false'\n"
    report = import_settings(written(tmp_path, "run.yaml", YAML + text)).summary()
    for line in (
        "optimization.steps 1000.0 -> train.steps = 1000",
        "optimization.learning_rate 0.0002 -> train.learning_rate = 0.0002",
        "optimization.enable_gradient_checkpointing false -> memory.gradient_checkpointing = false",
    ):
        assert f"  {line}\n" in report


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.json",
            {"__version": 6, "training_method": "LORA", "learning_rate": 3e-4, "lora_rank": 16},
            "of OneTrainer",
        ),
        ("a.json", {"LoRA_type": "Standard", "network_dim": 16, "learning_rate": 1e-4}, "the GUI of kohya's scripts"),
        ("a.json", {"job": "extension", "config": {}}, "a job of ai-toolkit"),
        ("a.yaml", "job: extension\nconfig: {}\n", "a job of ai-toolkit"),
        ("a.json", {"nodes": [], "links": []}, "a workflow of ComfyUI"),
        ("a.yaml", "compute_environment: LOCAL\nmixed_precision: bf16\n", "a configuration of accelerate"),
        ("a.toml", 'epochs = 1\n[adapter]\ntype = "lora"\n', "a file of diffusion-pipe"),
        ("a.toml", '[[directory]]\npath = "x"\n', "a dataset file of diffusion-pipe"),
    ],
)
def test_programs_that_are_not_read_are_called_by_their_names(tmp_path, name, text, words):
    with pytest.raises(ConfigError, match=f"{words}, which is not read"):
        import_settings(written(tmp_path, name, text))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"resolution": "big"}, "resolution needs a number, without quotes (given: 'big')"),
        ({"resolution": True}, "resolution needs a number, without quotes (given: True)"),
        ({"repeats": 2.5}, "repeats needs a whole number, without quotes (given: 2.5)"),
        ({"crop": "false"}, "crop needs true or false, without quotes (given: 'false')"),
        ({"disabled": "false"}, "disabled needs true or false, without quotes (given: 'false')"),
        ({"video": {"num_frames": "49.5"}}, "video.num_frames needs a whole number, without quotes (given: 49.5)"),
        ({"audio": False}, 'audio needs an object, as {"..": ..} (given: False)'),
    ],
)
def test_values_of_backends_of_another_type_are_refused(tmp_path, change, problem):
    backend = {"id": "a", "type": "local", "dataset_type": "video", "instance_data_dir": "v", **change}
    made = import_settings(written(tmp_path, "backends.json", [backend]))
    assert f"a: {problem}" in made.problems


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (
            "[extra]\na = 1\n",
            "extra: is no part of a dataset file, which has general, datasets and validation_datasets",
        ),
        ("[validation_datasets]\nvideo_directory = 'w'\n", "validation_datasets: needs a list of sections"),
    ],
)
def test_other_parts_of_a_dataset_file_are_named(tmp_path, more, problem):
    text = f"[general]\nresolution = [768, 512]\n[[datasets]]\nvideo_directory = 'v'\n{more}"
    made = import_settings(written(tmp_path, "dataset.toml", text))
    assert any(one.startswith(problem) for one in made.problems)
    assert made.dataset_toml(tmp_path)


def test_a_dataset_section_that_is_no_list_is_named(tmp_path):
    text = "[general]\nresolution = [768, 512]\n[datasets]\nvideo_directory = 'v'\n"
    made = import_settings(written(tmp_path, "dataset.toml", text))
    assert made.problems[0] == "datasets: needs a list of sections, [[datasets]] for each"
