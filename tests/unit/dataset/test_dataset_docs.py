"""The pages on datasets say what the program does: the example loads and plans, no setting is missing or stale."""

from __future__ import annotations

import re
from pathlib import Path

from media import moving_square, tone, write_captioned, write_image, write_sound

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.entry import DatasetSettings
from ltx2_train.dataset.option_table import GROUPS, markdown
from ltx2_train.dataset.plan import plan_dataset

DOCS = Path(__file__).parents[3] / "docs"
PAGE = (DOCS / "dataset_file.md").read_text(encoding="utf-8")


def test_the_table_is_the_schema():
    assert markdown() in PAGE, (
        'docs/dataset_file.md: put in what `python -c "from ltx2_train.dataset.option_table ..."` says'
    )


def test_every_setting_is_in_one_group():
    names = [name for group in GROUPS.values() for name in group]
    assert sorted(names) == sorted(DatasetSettings.model_fields)


def test_every_setting_with_a_rule_of_its_own_is_explained():
    prose = PAGE[: PAGE.index("## All settings")]
    bound = {name for name in DatasetSettings.model_fields if f"`{name}" not in prose and f"{name} =" not in prose}
    assert bound <= {
        "speech_min_seconds", "speech_max_seconds", "speech_pause_seconds", "audio_extension", "audio_loss_weight",
        "video_loss_weight", "first_frame_probability", "audio_video_latent_channels", "reference_cache_directory",
        "reference_audio_cache_directory", "cache_files", "preprocessed_data_root", "batch_size",
    }  # fmt: skip


def test_no_word_of_settings_that_are_none():
    prose = PAGE[: PAGE.index("## All settings")]
    keys = {
        key
        for block in re.findall(r"```toml\n(.*?)```", prose, re.DOTALL)
        for key in re.findall(r"^(\w+) =", block, re.M)
    }
    assert keys <= set(DatasetSettings.model_fields)


def test_the_example_loads_and_plans(tmp_path):
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "dataset.toml").write_text(example, encoding="utf-8")
    for folder in ("clips", "held_back"):
        write_captioned(tmp_path / folder / "a.mp4", moving_square(60, 96, 64), folder)
    write_image(tmp_path / "pictures" / "p.png")
    write_sound(tmp_path / "voice" / "v.wav", tone(1.0), caption="a tone")
    config = DatasetConfig.read(tmp_path / "dataset.toml")
    assert config.notes == ()
    plan = plan_dataset(config)
    assert sorted((item.kind, item.window.count, item.validation) for item in plan.items) == [
        ("audio", 25, False),
        ("image", 1, False),
        ("video", 25, False),
        ("video", 25, False),
        ("video", 49, False),
        ("video", 49, False),
        ("video", 49, True),
    ]
    assert all("ohwx" in item.caption for item in plan.items)
