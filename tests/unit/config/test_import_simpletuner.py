"""Files of SimpleTuner as run files and dataset files: what becomes of their settings."""

import pytest
from unit.config.community_files import written

from ltx2_train.config import load_run
from ltx2_train.config.importing import import_settings
from ltx2_train.dataset.dataset_file import DatasetConfig

BACKENDS = [
    {
        "id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "data/videos",
        "caption_strategy": "textfile", "resolution": 480, "repeats": 9,
        "video": {"num_frames": 49, "min_frames": 49, "frame_rate": 25, "bucket_strategy": "aspect_ratio"},
        "audio": {"auto_split": True, "sample_rate": 16000, "channels": 1, "duration_interval": 3.0},
    },
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]  # fmt: skip
SIMPLETUNER = {
    "model_family": "ltxvideo2", "model_type": "lora", "pretrained_model_name_or_path": "m.safetensors",
    "data_backend_config": "config/data.json", "output_dir": "output/fox", "learning_rate": 6e-5,
    "max_train_steps": 200, "num_train_epochs": 0, "optimizer": "bnb-adamw8bit", "train_batch_size": 2,
    "base_model_precision": "int8-quanto",
    "lr_warmup_steps": 50, "validation_resolution": "768x512", "validation_prompt": "a fox", "report_to": "none",
    "vae_enable_tiling": True, "ramtorch_text_encoder": True, "validation_steps": 20, "seed": 42,
}  # fmt: skip


def test_simpletuners_files_are_taken_as_they_are(tmp_path):
    (tmp_path / "data" / "videos").mkdir(parents=True)
    written(tmp_path, "config/data.json", BACKENDS)
    made = import_settings(written(tmp_path, "config/config.json", SIMPLETUNER))
    assert made.complete
    dataset_file, run_file = made.write(tmp_path / "out")
    run = load_run(run_file)
    assert (run.run.name, run.model.mode, run.optimizer.name) == ("fox", "av", "adamw8bit")
    assert (run.train.steps, run.train.epochs, run.schedule.warmup, run.lora.rank) == (200, None, 50, 16)
    assert (run.sample.width, run.sample.height, run.sample.prompts) == (768, 512, ["a fox"])
    assert (run.quant.format, run.gemma.placement, run.cache.tiles.spatial_tile) == ("int8", "layers", 512)
    (entry,) = DatasetConfig.read(dataset_file).datasets
    assert entry.video_directory.resolve() == tmp_path / "data" / "videos"  # seen from the top of its tree
    assert (entry.batch_size, entry.num_repeats, entry.target_frames) == (2, 10, (49,))
    assert entry.recursive  # as there


def test_an_audio_backend_makes_an_audio_run(tmp_path):
    backend = {
        "id": "a", "type": "local", "dataset_type": "audio", "instance_data_dir": "sounds",
        "audio": {"audio_only": True, "min_duration_seconds": 1, "max_duration_seconds": 30, "duration_interval": 3.0},
    }  # fmt: skip
    made = import_settings(written(tmp_path, "data.json", [backend]))
    assert made.translation.tables["model"]["mode"] == "audio"
    (entry,) = made.data["datasets"]
    assert (entry["audio_bucket_strategy"], entry["audio_bucket_interval"], entry["max_seconds"]) == (
        "truncate",
        3.0,
        30,
    )


def test_what_a_backend_leaves_out_is_what_simpletuner_takes_there(tmp_path):
    """Captions by lines, five seconds of a clip, a square cut: each with a note."""
    plain = {"id": "v", "dataset_type": "video", "instance_data_dir": "v", "resolution": 500, "crop": True}
    made = import_settings(written(tmp_path, "data.json", [plain]))
    (entry,) = made.data["datasets"]
    assert (entry["caption_lines"], entry["target_frames"]) == (True, [121])
    assert (entry["enable_bucket"], entry["resolution"]) == (False, 512)
    told = " ".join(made.data_notes)
    for key in (
        "disable_multiline_split",
        "video.num_frames",
        "crop_aspect",
        "crop_style",
        "audio",
        "caption_strategy",
    ):
        assert f"v: {key} is not given" in told
    said = {
        "caption_strategy": "textfile", "disable_multiline_split": True, "crop": False, "video": {"num_frames": 49},
        "audio": {"auto_split": True, "max_duration_seconds": 3}, "prepend_instance_prompt": True,
    }  # fmt: skip
    made = import_settings(written(tmp_path, "data.json", [{**plain, **said}]))
    (entry,) = made.data["datasets"]
    assert ("caption_lines" in entry, entry["target_frames"], entry["enable_bucket"]) == (False, [49], True)
    told = " ".join(made.data_notes)
    assert "is not given" not in told
    assert "audio.max_duration_seconds: without effect here" in told
    assert "prepend_instance_prompt has no effect" in told
    made = import_settings(written(tmp_path, "data.json", [plain, {**plain, "id": "e", "dataset_type": "eval"}]))
    assert any("[[validation_datasets]]" in one for one in made.problems)


@pytest.mark.parametrize(("strategy", "told"), [("aspect_ratio", True), ("resolution_frames", False)])
def test_an_interval_of_frames_counts_with_its_strategy_alone(tmp_path, strategy, told):
    video = {"num_frames": 49, "frame_interval": 8, "bucket_strategy": strategy}
    backend = {"id": "v", "type": "local", "dataset_type": "video", "instance_data_dir": "v", "video": video}
    made = import_settings(written(tmp_path, "data.json", [backend]))
    notes = [note for note in made.data_notes if "frame_interval" in note]
    assert ("frame_interval" in made.data["datasets"][0], bool(notes)) == (not told, told)
