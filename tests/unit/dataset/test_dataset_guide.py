"""The dataset files of the community trainer's guide, as written there, and what else may be brought along."""

from __future__ import annotations

import json

import pytest
from media import moving_square, tone, write_captioned, write_image, write_sound

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import ConfigError, DataError

GENERAL = """
[general]
resolution = [768, 512]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
"""
EXAMPLES = {
    "IC-LoRA": GENERAL
    + """
cache_directory = "cache"
reference_cache_directory = "cache_ref"

[[datasets]]
video_directory = "videos"
reference_directory = "references"
target_frames = [1, 17, 33]
""",
    "audio reference": GENERAL
    + """
cache_directory = "cache"
reference_audio_cache_directory = "cache_ref_audio"
separate_audio_buckets = true

[[datasets]]
video_directory = "videos"
reference_audio_directory = "reference_audio"
target_frames = [1, 17, 33]
""",
    "video": GENERAL
    + """
cache_directory = "cache"

[[datasets]]
video_directory = "videos"
target_frames = [1, 17, 33, 49]
target_fps = 25  # optional, defaults to 25
""",
    "no fps": """
[[datasets]]
video_directory = "videos"
target_frames = [1, 17, 33, 49]
# source_fps: auto-detected per video
# target_fps: defaults to 25
""",
    "60 fps": """
[[datasets]]
video_directory = "videos_60fps"
target_frames = [1, 17, 33, 49]
target_fps = 60
""",
    "source fps": """
[[datasets]]
video_directory = "videos"
target_frames = [1, 17, 33, 49]
source_fps = 30
""",
    "validation": GENERAL
    + """
# Training data
[[datasets]]
video_directory = "videos/train"
cache_directory = "cache/train"
target_frames = [1, 17, 33, 49]

# Validation data
[[validation_datasets]]
video_directory = "videos/val"
cache_directory = "cache/val"
target_frames = [1, 17, 33, 49]
""",
    "oversampling": """
[[datasets]]
video_directory = "audio_video_clips"
num_repeats = 5
""",
    "audio": """
[[datasets]]
audio_directory = "voices"
audio_bucket_strategy = "pad"
audio_bucket_interval = 2
batch_size = 1
num_repeats = 1
cache_directory = "cache"
""",
}


def read(folder, text):
    path = folder / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return DatasetConfig.read(path)


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_the_guide_loads(tmp_path, name):
    config = read(tmp_path, EXAMPLES[name])
    assert len(config.datasets) == 1
    assert config.notes == ()
    assert DatasetConfig.read(_saved(tmp_path, config)).datasets == config.datasets


def _saved(folder, config):
    path = folder / "again.toml"
    path.write_text(config.to_toml(), encoding="utf-8")
    return path


def test_defaults_are_those_of_the_guides_tables(tmp_path):
    (video,) = read(tmp_path, '[[datasets]]\nvideo_directory = "v"').datasets
    (sound,) = read(tmp_path, '[[datasets]]\naudio_directory = "a"').datasets
    assert (video.resolution, video.target_frames, video.frame_extraction) == ((960, 544), (1,), "head")
    assert (video.max_frames, video.source_fps, video.target_fps) == (129, None, 25.0)
    assert (video.batch_size, video.num_repeats) == (1, 1)
    assert not (video.enable_bucket)
    assert not (video.bucket_no_upscale)
    assert not (video.separate_audio_buckets)
    assert not (video.cache_only)
    assert (video.frame_stride, video.frame_sample) == (1, 1)
    assert (video.reference_frames, video.reference_downscale) == (1, 1)
    assert (sound.audio_bucket_strategy, sound.audio_bucket_interval) == ("pad", 2.0)
    assert (sound.audio_only_target_fps, sound.audio_only_sequence_resolution) == (25.0, 64)
    assert (sound.audio_only_target_resolution, sound.audio_video_latent_channels) == (None, None)
    assert (video.audio_source, video.audio_files_directory, video.audio_extension) == ("video", None, ".wav")
    assert (video.video_loss_weight, video.audio_loss_weight) == (None, None)
    # the community trainer has no default here, and needs one; .txt is what its guide has everywhere
    assert video.caption_extension == ".txt"


def test_the_folders_of_references_are_where_the_guide_has_them(tmp_path):
    (entry,) = read(tmp_path, EXAMPLES["IC-LoRA"]).datasets
    assert entry.reference_directory == tmp_path / "references"
    assert entry.reference_caches() == tmp_path / "cache_ref"
    (entry,) = read(tmp_path, EXAMPLES["IC-LoRA"].replace('reference_cache_directory = "cache_ref"', "")).datasets
    assert entry.reference_caches() == tmp_path / "cache" / "reference"


def test_keys_of_other_models_and_old_names_load_with_a_note(tmp_path):
    text = """
[general]
fp_latent_window_size = 9
[[datasets]]
image_directory = "a"
flux_kontext_no_resize_control = true
fp_1f_clean_indices = [0]
multiple_target = false
control_directory = "c"
"""
    config = read(tmp_path, text)
    assert config.datasets[0].reference_directory == tmp_path / "c"
    assert len(config.notes) == 5
    told = "\n".join(config.notes)
    for word in ("general.fp_latent_window_size", "FramePack", "datasets[0].control_directory", "reference_directory"):
        assert word in told


def test_flags_that_mean_a_setting_of_the_dataset_are_known(tmp_path):
    text = '[[datasets]]\nvideo_directory = "a"\nltx2_audio_source = "audio_files"\nltx2_audio_ext = "flac"\n'
    (entry,) = read(tmp_path, text).datasets
    assert (entry.audio_source, entry.audio_extension) == ("audio_files", ".flac")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[datasets]]\nimage_directory="a"\nmultiple_target = true', ["datasets[0].multiple_target", "targets"]),
        ('[general]\nvideo_directory="a"\n[[datasets]]\nbatch_size=1', ["general.video_directory", "[[datasets]]"]),
        ('[[datasets]]\nvideo_directory="a"\nreference_frames=8', ["reference_frames", "8n+1", "1 is"]),
        (
            '[[datasets]]\nvideo_directory="a"\nreference_directory="b"\nreference_downscale=2\nresolution=[960,544]',
            ["960x544", "multiple of 64", "[960, 512]"],
        ),
        (
            '[[datasets]]\nvideo_directory="a"\nreference_directory="b"\nreference_downscale=2\n'
            'resolution_buckets="96x64x9"',
            ["resolution_buckets", "96x64x9", "64"],
        ),
        ('[[datasets]]\nvideo_directory="a"\ncontrol_directory="b"\nreference_directory="c"', ["same setting"]),
        ("[[datasets]]\ncache_only=true", ["cache_directory", "needs a folder"]),
        ('[[datasets]]\nvideo_directory="a"\ncache_files=["x"]', ["cache_files", "cache_only"]),
        ('[[datasets]]\ndataset_file="a.json"', ["cache_directory", "list"]),
        (
            '[[datasets]]\nvideo_directory="a"\nreference_directory="b"\ncache_directory="c"\n'
            'reference_cache_directory="c"',
            ["share the cache folder", "reference_cache_directory"],
        ),
        ('[[datasets]]\nvideo_directory="a"\ncolor_jitter=0.5', ["color_jitter", "0.3"]),
        ('[[datasets]]\nvideo_directory="a"\nreference_dir="b"', ["datasets[0].reference_dir", "reference_directory"]),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    for word in words:
        assert word in str(caught.value)


# --- lists -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(10, 64, 64))
    write_captioned(tmp_path / "clips" / "b.mp4", moving_square(10, 64, 64))
    write_image(tmp_path / "pics" / "p.png", caption=None)
    write_sound(tmp_path / "sounds" / "s.wav", tone(2))
    return tmp_path


def planned(folder, **entry):
    table = {"general": {"resolution": 64, "target_frames": [9]}, "datasets": [{"cache_directory": "cache", **entry}]}
    return plan_dataset(DatasetConfig.from_table(table, folder))


def told(plan):
    return [(item.source.path.name, item.caption) for item in plan.items]


def test_the_official_trainers_json_with_its_columns(clips):
    rows = [
        {"caption": "first", "video": "clips/a.mp4", "reference_video": "pics/p.png", "video_mask": "pics/p.png"},
        {"caption": "second", "video": "clips/b.mp4", "reference_video": "clips/a.mp4"},
    ]
    (clips / "dataset.json").write_text(json.dumps(rows))
    plan = planned(clips, dataset_file="dataset.json")
    assert told(plan) == [("a.mp4", "first"), ("b.mp4", "second")]
    assert [item.references[0].path.name for item in plan.items] == ["p.png", "a.mp4"]
    assert [item.mask and item.mask.name for item in plan.items] == ["p.png", None]


def test_columns_may_have_names_of_their_own_and_be_lists(clips):
    (clips / "dataset.json").write_text(json.dumps({"text": ["one", "two"], "clip": ["clips/a.mp4", "pics/p.png"]}))
    plan = planned(clips, dataset_file="dataset.json", caption_column="text", video_column="clip")
    assert told(plan) == [("a.mp4", "one"), ("p.png", "two")]


@pytest.mark.parametrize("name", ["d.csv", "d.jsonl"])
def test_csv_and_json_lines(clips, name):
    text = 'caption,media_path\n"a, b",clips/a.mp4\nsound,sounds/s.wav\n'
    if name.endswith("jsonl"):
        text = '{"caption": "a, b", "media_path": "clips/a.mp4"}\n\n{"caption": "sound", "audio": "sounds/s.wav"}\n'
    (clips / name).write_text(text)
    plan = planned(clips, dataset_file=name)
    assert told(plan) == [("a.mp4", "a, b"), ("s.wav", "sound")]
    assert [item.kind for item in plan.items] == ["video", "audio"]


def test_two_text_files_line_by_line(clips):
    (clips / "videos.txt").write_text("clips/a.mp4\nclips/b.mp4\n")
    (clips / "prompts.txt").write_text("first\nsecond\n\n")
    assert told(planned(clips, data_root=".")) == [("a.mp4", "first"), ("b.mp4", "second")]
    (clips / "prompts.txt").write_text("first\n")
    with pytest.raises(DataError, match=r"videos\.txt has 2 lines and prompts\.txt has 1"):
        planned(clips, data_root=".")


@pytest.mark.parametrize(
    "line", ['trigger_word = "a\\u0000b"', 'caption_prefix = "\\u001b[1m"', 'caption_replace = ["a\\u0007 => b"]']
)
def test_control_characters_of_captions_are_refused(tmp_path, line):
    (tmp_path / "dataset.toml").write_text(f"[[datasets]]\nvideo_directory = 'clips'\n{line}\n")
    with pytest.raises(ConfigError, match=rf"{line.split()[0]}: holds a control character"):
        DatasetConfig.read(tmp_path / "dataset.toml")


def test_a_caption_of_a_list_with_a_control_character_is_left_out(clips):
    lines = [{"video_path": "clips/a.mp4", "caption": "a\x1bb"}, {"video_path": "clips/b.mp4", "caption": "a hen"}]
    (clips / "list.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    table = {"datasets": [{"video_jsonl_file": "list.jsonl", "cache_directory": "k", "resolution": 64}]}
    plan = plan_dataset(DatasetConfig.from_table(table, clips))
    assert [skip.reason for skip in plan.skipped] == ["its caption holds a control character ('\\x1b'); take it out"]


def test_jsonl_names_control_images_and_folders_of_frames(clips):
    for index, picture in enumerate(moving_square(12, 80, 64)):
        from PIL import Image

        (clips / "frames.v1").mkdir(exist_ok=True)
        Image.fromarray(picture).save(clips / "frames.v1" / f"{index:03}.png")
    rows = [
        {"video_path": "frames.v1", "caption": "frames", "control_path": "pics/p.png"},
        {"video_path": "clips/b.mp4", "caption": "no control"},
    ]
    (clips / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = planned(clips, video_jsonl_file="list.jsonl")
    (item,) = plan.items
    assert (item.source.stem, item.source.media.frames, item.fps, item.picks) == ("frames.v1", 12, 25.0, [*range(9)])
    assert item.references[0].path.name == "p.png"
    assert "no reference" in plan.skipped[0].reason
    with pytest.raises(DataError, match=r"frames\.v1: too short: 6 frames at 25 fps"):
        planned(clips, video_jsonl_file="list.jsonl", source_fps=50)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("d.json", "{", "not JSON"),
        ("d.json", "[1]", "list of objects"),
        ("d.json", '{"caption": ["a"], "video": []}', r"\[0, 1\] rows"),
        ("d.json", '[{"caption": "a"}]', "entry 1: expected"),
        ("d.jsonl", '{"video": "a.mp4", "caption": 5}', "line 1: the caption is not text"),
        ("d.csv", "caption,clip\na,b", "line 2: expected"),
    ],
)
def test_lists_that_make_no_sense_are_named_with_the_line(clips, name, text, words):
    (clips / name).write_text(text)
    with pytest.raises(DataError, match=words):
        planned(clips, dataset_file=name)


def test_a_caption_may_hold_any_line_separator_of_unicode(clips):
    row = json.dumps({"video": "clips/a.mp4", "caption": "one\u2028two\x85three"}, ensure_ascii=False)
    (clips / "d.jsonl").write_text(row + "\r\n", encoding="utf-8", newline="")
    assert told(planned(clips, dataset_file="d.jsonl")) == [("a.mp4", "one two three")]


def test_rows_that_no_file_can_have_are_named(clips):
    (clips / "d.jsonl").write_text('{"video": "a.mp4", "caption": "half \\ud83d"}')
    with pytest.raises(DataError, match=r"line 1: it holds half a character"):
        planned(clips, dataset_file="d.jsonl")
    rows = [{"video": "x" * 5000 + ".mp4", "caption": "long"}, {"video": "clips/a.mp4", "caption": "good"}]
    rows.append({"video": "clips/a.mp4", "caption": "again"})
    (clips / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = planned(clips, dataset_file="d.jsonl")
    assert told(plan) == [("a.mp4", "good")]
    assert ["listed twice" in skip.reason for skip in plan.skipped].count(True) == 1
    assert any("does not exist" in skip.reason for skip in plan.skipped)
    (clips / "d.csv").write_text("video,caption\nclips/a.mp4," + "x" * 200_000 + "\n")
    with pytest.raises(DataError, match="not CSV"):
        planned(clips, dataset_file="d.csv")


@pytest.mark.parametrize("column", ["../secret.txt", "/etc/hostname", "link.txt"])
def test_columns_of_a_folder_do_not_lead_out_of_it(clips, column):
    (clips / "secret.txt").write_text("password\n")
    root = clips / "root"
    root.mkdir()
    (root / "videos.txt").write_text("../clips/a.mp4\n")
    (root / "prompts.txt").write_text("first\n")
    (root / "link.txt").symlink_to(clips / "secret.txt")
    for key in ("video_column", "caption_column"):
        with pytest.raises(DataError, match=f"{key}: .* is not in ") as caught:
            planned(clips, data_root="root", **{key: column})
        assert "password" not in str(caught.value)
    assert told(planned(clips, data_root="root")) == [("a.mp4", "first")]
