"""One tree of settings: read, overridden, aliased, refused and written."""

from pathlib import Path

import pytest

from ltx2_train.config import aliases, describe_defaults, load_run, make_run, walk_settings
from ltx2_train.config.read import check_overrides, tomllib
from ltx2_train.errors import ConfigError


def test_paths_are_relative_to_the_run_file(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\ncheckpoint = "m/x.safetensors"\n[data]\nconfig = "d.toml"\n')
    run = load_run(tmp_path / "run.toml")
    assert run.model.checkpoint == tmp_path / "m" / "x.safetensors"
    assert run.data.config == tmp_path / "d.toml"
    assert run.run.folder == tmp_path / "runs"


def test_set_overrides_win_and_keep_their_type(tmp_path):
    (tmp_path / "run.toml").write_text("[train]\nsteps = 5\n")
    run = load_run(tmp_path / "run.toml", ["train.steps=7", "run.name=a b", "train.learning_rate=2e-4"])
    assert (run.train.steps, run.run.name, run.train.learning_rate) == (7, "a b", 2e-4)


@pytest.mark.parametrize("text", ["train={steps=3}", "loss.balance={}"])
def test_a_section_is_not_set_as_a_whole(text):
    with pytest.raises(ConfigError, match=r"is a section\. Give each of its settings: --set"):
        make_run({"train": {"save_every": 2}}, overrides=[text])


def test_a_setting_that_is_set_twice_is_named_with_both_values():
    check_overrides(["train.steps=7", "train.steps= 7", "lora.rank=8"])
    with pytest.raises(ConfigError, match=r"train\.steps is given twice, as 7 and as 8"):
        check_overrides(["train.steps=7", "max_train_steps=8"])  # another name of the same setting


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"train": {"stpes": 5}}, r"train\.stpes: unknown setting\. Did you mean steps"),
        ({"trian": {"steps": 5}}, "trian: unknown setting. Did you mean train"),
        ({"lora": {"rank": 0}}, r"lora\.rank"),
        ({"train": {"learning_rate": "fast"}}, r"train\.learning_rate.*fast"),
        ({"sample": {"tiles": {"spatial_tile": 100}}}, r"sample\.tiles"),
        ({"lora": 5}, r"lora must be a table"),
        ({"run": {"name": "a/b"}}, r"run\.name"),
    ],
)
def test_wrong_settings_name_their_path(table, says):
    with pytest.raises(ConfigError, match=says):
        make_run(table)


def test_whole_numbers_are_fine_for_floats():
    assert make_run({"sample": {"guidance": 3, "fps": 24}}).sample.fps == 24.0


def test_flags_of_the_community_trainer_are_understood():
    run = make_run(
        {
            "network_dim": 16,
            "train": {"max_train_steps": 700},
            "anything": {"ltx2_checkpoint": "a.safetensors", "mixed_precision": "no"},
        },
        "/base",
    )
    assert (run.lora.rank, run.train.steps, run.model.precision) == (16, 700, "fp32")
    assert run.model.checkpoint == Path("/base/a.safetensors")


@pytest.mark.parametrize(
    ("given", "mode"), [("v", "video"), ("av", "av"), ("va", "av"), ("a", "audio"), ("audio", "audio")]
)
def test_modes_go_by_their_short_names_too(given, mode):
    assert make_run({"ltx2_mode": given}).model.mode == mode


def test_flags_about_sound_are_understood():
    run = make_run(
        {
            "flags": {
                "audio_lr": 1e-5,
                "lr_args": ["audio_attn=1e-6", "video_to_audio=5e-6"],
                "caption_dropout_rate": 0.1,
                "audio_loss_balance_mode": "ema_mag",
                "independent_audio_timestep": True,
                "audio_silence_regularizer": True,
                "sample_merge_audio": False,
                "ltx2_audio_dtype": "fp32",
            }
        }
    )
    assert run.train.audio_learning_rate == 1e-5
    assert run.train.lr_args == {"audio_attn": 1e-6, "video_to_audio": 5e-6}
    assert run.train.caption_dropout == 0.1
    assert run.loss.balance.mode == "ema_mag"
    assert run.audio.independent_timestep
    assert run.audio.silence_regularizer
    assert run.sample.audio == "separate"
    assert run.cache.audio_latents_dtype == "fp32"


@pytest.mark.parametrize(
    ("rates", "says"), [(["audio_"], "pattern=rate"), ({"(": 1e-4}, "regular expression"), ({"a": 2.0}, "at most 1")]
)
def test_learning_rates_by_pattern_are_checked(rates, says):
    with pytest.raises(ConfigError, match=says):
        make_run({"train": {"lr_args": rates}})


def test_a_setting_given_under_two_names_is_refused():
    with pytest.raises(ConfigError, match="same setting"):
        make_run({"lora": {"rank": 8}, "network_dim": 16})


def test_the_defaults_shown_are_the_defaults():
    assert make_run(tomllib.loads(describe_defaults())) == make_run({})


def test_every_setting_has_help():
    assert [dotted for dotted, field in walk_settings() if not field.description] == []


def test_aliases_point_at_settings_and_are_unique():
    known = {dotted for dotted, _ in walk_settings()}
    switches = {"quant", "memory", "gemma"}  # groups that turn some switches of other trainers into their own words
    strange = {name: path for name, path in aliases().items() if path not in known}
    assert all(path == f"{path.split('.')[0]}.{name}" for name, path in strange.items())
    assert {path.split(".")[0] for path in strange.values()} == switches


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        ({"fp8_base": True, "fp8_scaled": True}, "quant.format", "fp8"),
        ({"fp8_base": True}, "quant.format", "fp8_cast"),
        ({"nf4_base": True, "loftq_init": True}, "quant.format", "nf4"),
        ({"quantization": "int8-quanto"}, "quant.format", "int8"),
        ({"flash_attn": True}, "memory.attention", "flash2"),
        ({"sdpa": True}, "memory.attention", "sdpa"),
        ({"split_attn_target": "none"}, "memory.split_attention", "off"),
        ({"gemma_load_in_8bit": True}, "gemma.precision", "8bit"),
        ({"gemma_load_in_4bit": True, "gemma_bnb_4bit_quant_type": "fp4"}, "gemma.precision", "fp4"),
        ({"gemma_bnb_4bit_disable_double_quant": True}, "gemma.double_quant", False),
    ],
)
def test_switches_of_other_trainers_are_understood(flags, setting, value):
    group, name = setting.split(".")
    assert getattr(getattr(make_run(flags), group), name) == value


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"nf4_base": True, "fp8_base": True}, "exclude each other"),
        ({"fp8_scaled": True}, "needs fp8_base"),
        ({"loftq_init": True}, 'set quant.format to "nf4"'),
        ({"quant": {"format": "fp8"}, "nf4_base": True}, "same setting"),
        ({"gemma_load_in_8bit": True, "gemma_load_in_4bit": True}, "exclude each other"),
        ({"nf4_base": True, "loftq_init": True, "awq_calibration": True}, "in two ways"),
    ],
)
def test_switches_that_contradict_are_refused(flags, reason):
    with pytest.raises(ConfigError, match=reason):
        make_run(flags)


def test_the_written_tree_reads_back_equal(tmp_path):
    run = make_run({"lora": {"rank": 8}, "model": {"checkpoint": "x.safetensors"}}, tmp_path)
    assert make_run(tomllib.loads(run.to_toml()), "/elsewhere") == run


def test_tiles_of_samples_that_are_not_named_stay_and_off_is_written(tmp_path):
    tiles = make_run({"sample": {"tiles": {"chunk_size": 16, "spatial_overlap": 32}}}).sample.tiles
    assert (tiles.chunk_size, tiles.spatial_tile, tiles.spatial_overlap) == (16, 512, 32)
    off = make_run({}, overrides=["sample.tiles.spatial_tile=0"])
    assert (off.sample.tiles.spatial_tile, off.sample.tiles.chunk_size) == (None, 32)
    (tmp_path / "run.toml").write_text(off.to_toml())
    assert load_run(tmp_path / "run.toml").sample == off.sample


def test_broken_toml_names_the_file(tmp_path):
    (tmp_path / "run.toml").write_text('[model]\ncheckpoint = "C:\\models\\x"\n')
    with pytest.raises(ConfigError, match=r"run\.toml.*backslash"):
        load_run(tmp_path / "run.toml")


def test_a_path_that_is_not_there_names_the_setting(tmp_path):
    run = make_run({"model": {"checkpoint": "nowhere.safetensors"}}, tmp_path)
    with pytest.raises(ConfigError, match=r"model\.checkpoint.*does not exist"):
        run.need("model.checkpoint")
    with pytest.raises(ConfigError, match=r"model\.text_encoder is not set"):
        run.need("model.text_encoder")


def test_the_names_in_lora_metadata_are_settings():
    from ltx2_train.lora.metadata import SS_NAMES

    assert set(SS_NAMES.values()) <= {dotted for dotted, _ in walk_settings()}


@pytest.mark.parametrize(
    "name", ["lora.target_modules", "lora.include_patterns", "full.exclude_patterns", "wandb.tags"]
)
def test_an_empty_text_in_a_list_is_refused(name):
    """As a pattern it would be found in the name of every layer."""
    group, key = name.split(".")
    with pytest.raises(ConfigError, match=f"{name}: holds an empty text. Take it out"):
        make_run({group: {key: ["attn", ""]}})
    assert make_run({"cache": {"preservation_prompts": ["", "woman"]}}).cache.preservation_prompts == ("", "woman")
