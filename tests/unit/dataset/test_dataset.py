from __future__ import annotations

import pytest

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError, DataError

GUIDE = """
[general]
resolution = [768, 512]
caption_extension = ".txt"
batch_size = 1
enable_bucket = true
cache_directory = "cache"
[[datasets]]
video_directory = "videos"
target_frames = [1, 17, 33, 49]
target_fps = 25 # optional, defaults to 25
"""


def write(folder, text):
    path = folder / "dataset.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_example_of_the_guide_is_read(tmp_path):
    (entry,) = DatasetConfig.read(write(tmp_path, GUIDE)).datasets
    assert entry.resolution == (768, 512)
    assert entry.target_frames == (1, 17, 33, 49)
    assert entry.target_fps == 25.0
    assert entry.enable_bucket
    assert entry.source == tmp_path / "videos"
    assert entry.caches == tmp_path / "cache"


def test_dataset_wins_over_general_and_general_over_default(tmp_path):
    text = """
    [general]
    batch_size = 4
    num_repeats = 3
    [[datasets]]
    image_directory = "a"
    batch_size = 1
    [[datasets]]
    video_directory = "b"
    [[validation_datasets]]
    video_directory = "c"
    num_repeats = 1
    """
    config = DatasetConfig.read(write(tmp_path, text))
    first, second = config.datasets
    assert (first.batch_size, first.num_repeats) == (1, 3)
    assert (second.batch_size, second.num_repeats, second.resolution) == (4, 3, (960, 544))
    assert (config.validation_datasets[0].batch_size, config.validation_datasets[0].num_repeats) == (4, 1)


def test_one_number_is_a_square_and_whole_numbers_are_floats(tmp_path):
    text = '[[datasets]]\nvideo_directory = "a"\nresolution = 512\nsource_fps = 30\nvideo_loss_weight = 2\n'
    (entry,) = DatasetConfig.read(write(tmp_path, text)).datasets
    assert entry.resolution == (512, 512)
    assert (entry.source_fps, entry.video_loss_weight) == (30.0, 2.0)


def test_written_text_reads_back_as_the_same_datasets(tmp_path):
    config = DatasetConfig.read(write(tmp_path, GUIDE))
    again = DatasetConfig.read(write(tmp_path / "..", config.to_toml()))
    assert again.datasets == config.datasets


def test_json_is_read_too(tmp_path):
    path = tmp_path / "dataset.json"
    path.write_text('{"datasets": [{"image_directory": "a", "resolution": 512}]}')
    assert DatasetConfig.read(path).datasets[0].kind == "image"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[[datasets]]\nvideo_directory = "a"\ntarget_frame = 9', ["datasets[0].target_frame", "target_frames"]),
        ('[general]\nresolutions = 5\n[[datasets]]\nvideo_directory = "a"', ["general.resolutions", "resolution"]),
        ('[[dataset]]\nvideo_directory = "a"', ["dataset", "datasets"]),
        ("[general]\nbatch_size = 1", ["datasets"]),
        ("[[datasets]]\nbatch_size = 1", ["datasets[0]", "names no media", "video_directory"]),
        ('[[datasets]]\nvideo_directory = "a"\nimage_directory = "b"', ["image_directory and video_directory"]),
        ('[[datasets]]\nvideo_directory = "a"\nresolution = [500, 512]', ["500x512", "[512, 512]", "enable_bucket"]),
        ('[[datasets]]\nvideo_directory = "a"\nresolution = 16\nenable_bucket = true', ["resolution", "32"]),
        ('[[datasets]]\nvideo_directory = "a"\nframe_extraction = "tail"', ["frame_extraction", "head"]),
        ('[[datasets]]\nvideo_directory = "a"\nfirst_frame_probability = 1.5', ["first_frame_probability"]),
        ('[[datasets]]\nvideo_directory = "a"\ntarget_frames = []', ["target_frames"]),
        ('[[datasets]]\nvideo_directory = "a"\nnum_repeats = 1000000000', ["num_repeats", "100000"]),
        ('[[datasets]]\nvideo_jsonl_file = "a.jsonl"', ["cache_directory", "datasets[0]"]),
        (
            '[general]\ncache_directory="c"\n[[datasets]]\nvideo_directory="a"\n[[validation_datasets]]\n'
            'video_directory="b"',
            ["validation_datasets[0]", "datasets[0]", "share the cache folder"],
        ),
        ('[[datasets]]\nvideo_directory="a"\n[[datasets]]\nvideo_directory="a"', ["share the cache folder"]),
        ('[[datasets]]\nvideo_directory = "C:\\clips"', ["not valid TOML", "single quotes"]),
    ],
)
def test_wrong_files_are_refused_in_words_that_help(tmp_path, text, words):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        DatasetConfig.read(path)
    for word in [*words, "dataset.toml"]:
        assert word in str(caught.value)


@pytest.mark.parametrize("other", ["./a/../cache", "link"])
def test_one_folder_of_caches_is_known_by_its_other_names(tmp_path, other):
    (tmp_path / "cache").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / "link").symlink_to("cache")
    folders = zip(("a", "b"), ("cache", other), strict=True)
    entries = [f'[[datasets]]\nvideo_directory = "{media}"\ncache_directory = "{cache}"' for media, cache in folders]
    with pytest.raises(ConfigError, match=r"datasets\[1\] and datasets\[0\] share the cache folder"):
        DatasetConfig.read(write(tmp_path, "\n".join(entries)))


@pytest.mark.parametrize("data", [b"\xff\x00\xfe", b"[" * 100_000, b'{"version": Infinity}'])
def test_a_manifest_of_other_bytes_is_refused(tmp_path, data):
    (tmp_path / "dataset_manifest.json").write_bytes(data)
    with pytest.raises(ConfigError, match=r"dataset_manifest\.json.*(not UTF-8|not valid JSON)"):
        DatasetConfig.read(tmp_path / "dataset_manifest.json")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        DatasetConfig.read(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('batch_size = "two"', "batch_size: needs a whole number, without quotes (given: 'two')"),
        ('batch_size = "2"', "needs a whole number, without quotes"),
        ("batch_size = true", "needs a whole number"),
        ("batch_size = 1.5", "needs a whole number"),
        ('target_fps = "25"', "needs a number, without quotes"),
        ('enable_bucket = "yes"', "needs true or false, without quotes"),
        ("resolution = [768]", "needs a list, as [768, 512], or one number for a square"),
        ("resolution = [768, 512, 49]", "needs a list, as [768, 512]"),
        ('resolution = "768x512"', "needs a list, as [768, 512]"),
        ("target_frames = { a = 1 }", "needs a list, as [1, 25, 49]"),
        ('cache_files = "a"', "needs a list"),
        ("resolution_buckets = [[768, 512, 49]]", 'needs a list, as ["768x512x49"]'),
        ("cache_directory = 5", "needs one path, in quotes"),
        ('cache_directory = ["a", "b"]', "needs one path"),
        ('cache_directory = ""', "leave the line out"),
        ("trigger_word = 1", "needs text, in quotes"),
        ("frame_extraction = 1", 'needs one of "head" or "chunk"'),
        ('caption_extension = "../../etc/passwd"', "and no path"),
        ('audio_extension = "."', "must be an ending"),
    ],
)
def test_values_of_a_wrong_type_are_told_in_the_words_of_the_file(tmp_path, line, words):
    for text in (f'[[datasets]]\nvideo_directory = "a"\n{line}', f"[[validation_datasets]]\n{line}"):
        with pytest.raises(ConfigError) as caught:
            DatasetConfig.read(write(tmp_path, text))
        assert words in str(caught.value)
        assert "datasets[0]" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[datasets]\nvideo_directory = "a"', "datasets: needs two pairs of brackets, [[datasets]]"),
        ('[[general]]\nresolution = 512\n[[datasets]]\nvideo_directory = "a"', "general: needs to be one section"),
        ('resolution = 512\n[[datasets]]\nvideo_directory = "a"', "resolution: stands before any section"),
        ("datasets = [1]", "datasets[0]: needs to be a section"),
        ('datasets = "a"', "datasets: needs to be sections"),
        ('[generals]\n[[datasets]]\nvideo_directory = "a"', "generals: unknown setting. Did you mean general?"),
        ('[train]\nsteps = 5\n[[datasets]]\nvideo_directory = "a"', "train: belongs to the run file"),
    ],
)
def test_sections_of_a_wrong_kind_are_told(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        DatasetConfig.read(write(tmp_path, text))
    assert words in str(caught.value)


def test_a_file_of_another_encoding_is_told(tmp_path):
    path = tmp_path / "dataset.toml"
    path.write_bytes(GUIDE.encode("utf-16-le"))
    with pytest.raises(ConfigError, match="Save it as UTF-8"):
        DatasetConfig.read(path)


def test_data_backends_of_simpletuner_are_read(tmp_path):
    path = tmp_path / "multidatabackend.json"
    path.write_text(
        '[{"id": "a", "type": "local", "dataset_type": "video", "instance_data_dir": "datasets/videos",'
        ' "caption_strategy": "textfile", "resolution": 512, "repeats": 9,'
        ' "video": {"num_frames": 49, "min_frames": 49, "frame_rate": 24, "bucket_strategy": "aspect_ratio"}},'
        ' {"id": "text", "dataset_type": "text_embeds", "default": true, "cache_dir": "cache/text"}]'
    )
    (entry,) = DatasetConfig.read(path).datasets
    assert entry.video_directory == tmp_path / "datasets" / "videos"
    assert (entry.resolution, entry.enable_bucket, entry.num_repeats) == ((512, 512), True, 10)
    assert (entry.target_frames, entry.min_frames, entry.target_fps) == ((49,), 49, 24.0)
