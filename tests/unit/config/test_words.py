"""What is wrong in a file is said in plain words: its place, what was given, what is meant, what to write instead."""

import os

import pytest

from ltx2_train.config import load_run, make_run
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.paths import from_folder, name_fault
from ltx2_train.toml import parse_toml

posix = pytest.mark.skipif(os.name == "nt", reason="paths of the other system")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[model]\ncheckpoint = "C:\\Users\\me\\a.safetensors"',
            r"""line 2: in "double quotes" a backslash begins an escape. Put the path into 'single quotes': """
            r"""checkpoint = 'C:\Users\me\a.safetensors'""",
        ),
        ("[train]\nsteps = 5\nseed = 1\nsteps = 6", "line 4: steps stands twice in [train] (first in line 2)"),
        ("[train]\nsteps = 5\n[run]\n[train]", "line 4: the section [train] stands in line 1 already"),
        ("[run]\nname = fox", 'line 2: name: text needs quotes: name = "fox"'),
        ("[memory]\ncompile = True", "line 2: compile: write true in small letters"),
        ("[train]\nepochs = None", "line 2: epochs: has no value. Leave the line out"),
        ("[train]\nlearning_rate = .5", "a number needs a digit before and behind its point"),
        ("[train]\nlearning_rate = 0,5", "a number has a point, not a comma: 0.5"),
        ('[run]\nname = "fox', "the text is not closed"),
        ("[train]\nsteps: 5", "line 2: steps: 5: no setting. A setting is written key = value"),
    ],
)
def test_toml_that_cannot_be_read_is_told_with_its_line_and_the_remedy(text, says):
    with pytest.raises(ConfigError) as caught:
        parse_toml(text, "run.toml")
    assert says in str(caught.value)
    assert str(caught.value).startswith("run.toml is not valid TOML")


def test_every_path_of_windows_in_double_quotes_is_told_at_once():
    text = '[model]\ncheckpoint = "C:\\Users\\a"\ntext_encoder = "D:\\models\\g"  # "C:\\x"\n# "C:\\Users"\n'
    with pytest.raises(ConfigError, match="in 2 places") as caught:
        parse_toml(text, "run.toml")
    assert "line 2" in str(caught.value)
    assert "text_encoder = 'D:\\models\\g'" in str(caught.value)


def test_sizes_of_samples_that_are_rounded_are_told(tmp_path):
    (tmp_path / "run.toml").write_text("[sample]\nwidth = 65\nheight = 64\nframes = 12\n")
    run = load_run(tmp_path / "run.toml", ["model.mode=av"])
    assert [note for note in run.notes if "sample." in note] == [
        "sample.width 65 is not a multiple of 32; 64 is used instead.",
        "sample.frames 12 is not 8n+1; 9 is used instead.",
    ]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"run": {"folder": "$HOME/x"}}, "run.folder: begins with $HOME, and variables of a shell are not filled in"),
        ({"run": {"folder": "${HOME}/x"}}, "begins with ${HOME}, and"),
        ({"run": {"folder": "%USERPROFILE%\\x"}}, "begins with %USERPROFILE%, and"),
        ({"run": {"name": "a/b"}}, "run.name: must not hold /; it becomes the name of a folder and of files"),
        ({"run": {"name": ""}}, "run.name: must not be empty"),
        ({"run": {"name": " fox"}}, "must not begin or end with a space or a dot"),
        ({"run": {"name": "CON"}}, "run.name: is a name that Windows keeps for a device"),
        ({"run": {"name": "nul.txt"}}, "keeps for a device"),
        ({"run": {"name": "lpt1"}}, "keeps for a device"),
        ({"run": {"name": "狐" * 79}}, "run.name: is too long: it takes 237 bytes in a file name, and at most 200 fit"),
        ({"run": {"name": "a" * 121}}, "run.name: has 121 characters; at most 120 are possible"),
        ({"run": {"name": 5}}, "run.name: needs text, in quotes"),
        ({"model": {"checkpoint": 5}}, "model.checkpoint: needs a path, in quotes (given: 5)"),
        ({"model": {"checkpoint": ""}}, "model.checkpoint: is empty; leave the line out where there is no path"),
        ({"run": {"folder": " "}}, "run.folder: is empty"),
        ({"sample": {"prompts": ""}}, "sample.prompts: is empty"),
        ({"data": {"config": "E:\new\train.toml"}}, r"'single quotes': 'E:\new\train.toml'"),
        ({"train": {"steps": "many"}}, "train.steps: needs a whole number (given: 'many')"),
        ({"train": {"steps": 1.5}}, "train.steps: needs a whole number"),
        ({"train": {"learning_rate": 2}}, "train.learning_rate: must be at most 1 (given: 2)"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate: needs a number (given: nan)"),
        ({"train": {"seed": -1}}, "train.seed: must be at least 0"),
        ({"memory": {"compile": "maybe"}}, "memory.compile: needs true or false"),
        ({"model": {"mode": "vidio"}}, "must be one of 'video', 'av', 'audio'; did you mean 'video'?"),
        ({"sample": {"tiles": 5}}, "sample.tiles: must be a table: [sample.tiles] with its settings below"),
        ({"lora": {"target_modules": "to_q"}}, "lora.target_modules: needs a list, [...]"),
        ({"optimizer": {"betas": [0.9, 0.99, 0.999]}}, "optimizer.betas: takes 2 values, not 3"),
        ({"sample": {"prompts": 5}}, "sample.prompts: needs a path, in quotes or needs a list"),
        ({"optimizer": {"args": 5}}, "optimizer.args: needs a table"),
    ],
)
def test_a_wrong_value_is_told_in_plain_words(table, says):
    with pytest.raises(ConfigError) as caught:
        make_run(table)
    assert says in str(caught.value)


def test_a_name_of_66_chinese_characters_fits():
    assert name_fault("狐" * 66) == ""


@posix
def test_a_path_with_a_drive_is_one_of_windows():
    with pytest.raises(ConfigError, match="model.checkpoint: is a path of Windows, which this system does not have"):
        make_run({"model": {"checkpoint": "C:\\models\\x.safetensors"}})


@posix
def test_backslashes_separate_folders_here_too(tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "x.safetensors").touch()
    (tmp_path / "odd\\name").touch()
    run = make_run({"model": {"checkpoint": "m\\x.safetensors"}, "run": {"folder": "..\\runs"}}, tmp_path)
    assert run.model.checkpoint == tmp_path / "m" / "x.safetensors"
    assert run.run.folder == tmp_path / ".." / "runs"
    assert from_folder(tmp_path, "odd\\name") == tmp_path / "odd\\name"


@pytest.mark.parametrize(
    ("given", "version"), [(2.3, "2.3"), (2.0, "2.0"), (2, "2.0"), ("2.3", "2.3"), ("auto", "auto")]
)
def test_versions_may_be_numbers(given, version):
    assert make_run({"model": {"version": given}}).model.version == version
    assert make_run({"ltx_version": given}).model.version == version


@pytest.mark.parametrize(
    ("flags", "group", "name", "value"),
    [
        ({"ltx2_audio_dtype": "float16"}, "cache", "audio_latents_dtype", "fp16"),
        ({"vae_dtype": "bfloat16"}, "cache", "vae_dtype", "bf16"),
        ({"save_precision": "float32"}, "train", "save_precision", "fp32"),
        ({"mixed_precision": "no"}, "model", "precision", "fp32"),
        ({"gemma_bnb_4bit_compute_dtype": "bfloat16"}, "gemma", "compute_dtype", "bf16"),
        ({"timestep_sampling": "sigma"}, "objective", "sampling", "shifted_logit_normal"),
        ({"optimizer_type": "torch.optim.AdamW"}, "optimizer", "name", "adamw"),
        ({"gemma_bnb_4bit_quant_type": "fp4"}, "gemma", "precision", "stored"),
        ({"gemma_bnb_4bit_quant_type": "fp4", "gemma_load_in_4bit": True}, "gemma", "precision", "fp4"),
        ({"sample_disable_audio": True}, "sample", "audio", "off"),
    ],
)
def test_values_of_other_programs_are_understood(flags, group, name, value):
    assert getattr(getattr(make_run(flags), group), name) == value


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("run.name=nan", "run.name", "nan"),
        ("run.name=123", "run.name", "123"),
        ("run.name=2024-01-01", "run.name", "2024-01-01"),
        ("model.version=2.3", "model.version", "2.3"),
        ("train.lr_args=audio_=1e-5", "train.lr_args", {"audio_": 1e-5}),
        ("network_dim=8", "lora.rank", 8),
        ('sample.prompts=["a fox"]', "sample.prompts", ["a fox"]),
    ],
)
def test_overrides_are_what_the_setting_wants(tmp_path, text, path, value):
    (tmp_path / "run.toml").write_text("[lora]\nrank = 4\n")
    group, key = path.split(".")
    assert getattr(getattr(load_run(tmp_path / "run.toml", [text]), group), key) == value


def test_all_that_is_wrong_in_a_run_file_is_told_at_once():
    flags = {"fps": 3, "sample_two_stage": True, "resume": "x"}
    with pytest.raises(ConfigError) as caught:
        make_run({"trian": {}, "lora": {"rnak": 4}, "train": {"steps": 0}, **flags})
    lines = str(caught.value).splitlines()
    assert lines[0] == "settings: these settings are not usable."
    assert [line.split(":")[0].split(" is ")[0].strip() for line in lines[1:]] == [
        "trian", "fps", "sample_two_stage", "resume", "lora.rnak", "train.steps"
    ]  # fmt: skip


def test_all_that_is_wrong_in_a_dataset_file_is_told_at_once(tmp_path):
    table = {
        "train": {"steps": 5},
        "general": {"video_directory": "x", "learning_rate": 1e-4},
        "datasets": [
            {"video_directory": "", "batch_size": "2", "resolutoin": 5},
            {"image_directory": "E:\new", "network_dim": 8, "shuffle_caption": True, "is_reg": True},
        ],
    }
    with pytest.raises(ConfigError) as caught:
        DatasetConfig.from_table(table, tmp_path, "dataset.toml")
    text = str(caught.value)
    for words in (
        "train: belongs to the run file, which names this one as data.config",
        "general.video_directory: this belongs to one dataset",
        "general.learning_rate: belongs to the run file, where it is train.learning_rate",
        "datasets[0].video_directory: is empty",
        "datasets[0].batch_size: needs a whole number, without quotes",
        "datasets[0].resolutoin: unknown setting. Did you mean resolution",
        "datasets[1].image_directory: holds a tab or a line break",
        "datasets[1].network_dim: belongs to the run file, where it is lora.rank",
        "datasets[1].shuffle_caption: is not read: captions are sentences",
        "datasets[1].is_reg: is not read",
    ):
        assert words in text


def test_kohyas_subsets_are_datasets(tmp_path):
    table = {
        "general": {"caption_extension": ".txt", "shuffle_caption": False, "keep_tokens": 1},
        "datasets": [
            {
                "resolution": 512,
                "batch_size": 2,
                "subsets": [{"image_dir": "a", "num_repeats": 10, "flip_aug": True}, {"image_dir": "b"}],
            }
        ],
    }
    config = DatasetConfig.from_table(table, tmp_path)
    first, second = config.datasets
    assert (first.image_directory, first.num_repeats, first.flip, first.batch_size) == (tmp_path / "a", 10, True, 2)
    assert (second.image_directory, second.resolution) == (tmp_path / "b", (512, 512))
    assert any("subsets" in note for note in config.notes)


def test_a_dataset_with_media_of_its_own_and_subsets_is_refused(tmp_path):
    entry = {"video_directory": "a", "subsets": [{"video_directory": "b"}]}
    with pytest.raises(ConfigError, match=r"video_directory: a dataset has it and subsets with media of their own"):
        DatasetConfig.from_table({"datasets": [entry]}, tmp_path)


def test_a_folder_for_kohyas_scripts_is_explained(tmp_path):
    from ltx2_train.dataset.scan import find_media

    (tmp_path / "train" / "10_fox").mkdir(parents=True)
    (tmp_path / "train" / "10_fox" / "a.png").touch()
    (entry,) = DatasetConfig.from_table({"datasets": [{"image_directory": "train"}]}, tmp_path).datasets
    with pytest.raises(Exception, match=r"as kohya's scripts want them.*ltx2-train import"):
        find_media("datasets[0]", entry)
