"""Train LoRAs for LTX-2 and LTX-2.3. The names here are all that a node needs of the core.

They are imported when first used, so that a look at the settings or an error type does not load torch.
"""

from importlib import import_module
from typing import Any

from .version import VERSION as __version__

_HOME = {
    "BaseFiles": "config.base_files",
    "CAPTION_FRAMES": "workshop.choices",
    "CacheError": "errors",
    "CachesReport": "training.caches",
    "CaptionReport": "workshop.captioning",
    "CheckReport": "workshop.check_report",
    "CheckpointError": "errors",
    "CheckpointInfo": "weights.probe",
    "ConfigError": "errors",
    "CutReport": "workshop.cut",
    "DataError": "errors",
    "DatasetConfig": "dataset.dataset_file",
    "DatasetSettings": "dataset.dataset_file",
    "Events": "events",
    "GOALS": "workshop.choices",
    "LOSS": "training.metrics",
    "LoraMade": "lora.new_file",
    "LoraReport": "lora.report",
    "MEDIA_SUFFIXES": "dataset.scan",
    "OutOfMemory": "errors",
    "PreviewFiles": "sampling.preview",
    "RECIPES": "config.recipes",
    "REQUESTS": "training.requests",
    "RunConfig": "config",
    "RunError": "errors",
    "RunResult": "training.loop",
    "SPEAKER": "workshop.choices",
    "STREAMS": "training.metrics",
    "SampleFile": "sampling.render",
    "Stopped": "errors",
    "TinyFiles": "weights.tiny",
    "TrainerError": "errors",
    "TrainingSet": "feed.loader",
    "Imported": "config.importing",
    "ask_run": "training.requests",
    "bake_loras": "lora.bake",
    "build_caches": "training.caches",
    "caption_media": "workshop.captioning",
    "chart_image": "training.metrics",
    "check_base": "training.checks",
    "check_dataset": "workshop.check",
    "clean_row": "training.metrics",
    "condition_kinds": "conditions.settings",
    "convert_lora": "lora.convert",
    "cut_recordings": "workshop.cut_speech",
    "cut_videos": "workshop.cut",
    "draw_spectrogram": "sampling.spectrogram",
    "drop_branches": "lora.branches",
    "extract_lora": "lora.extract",
    "foresee": "training.checks",
    "import_settings": "config.importing",
    "inspect_lora": "lora.report",
    "keep_branches": "lora.branches",
    "list_loras": "training.lora_files",
    "list_runs": "training.runs",
    "list_samples": "training.runs",
    "load_run": "config",
    "loss_column": "training.metrics",
    "make_run": "config",
    "mean_of_loras": "lora.mean",
    "make_tiny": "weights.tiny",
    "merge_loras": "lora.merge",
    "preview_dataset": "sampling.preview",
    "probe": "weights.probe",
    "quantize_checkpoint": "weights.quantized_file",
    "read_manifest": "training.run_folder",
    "read_rows": "training.metrics",
    "read_sound": "media.sound_media",
    "resize_lora": "lora.resize",
    "sample": "sampling.sample",
    "run_facts": "training.runs",
    "smooth": "training.metrics",
    "terms_of": "training.metrics",
    "terms_text": "training.metrics",
    "thinned_metrics": "training.runs",
    "train": "training.loop",
    "train_slider": "training.slider_run",
    "write_image": "sampling.video_file",
    "write_report": "training.report",
    "write_sound": "sampling.sound_file",
    "write_video": "sampling.video_file",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
