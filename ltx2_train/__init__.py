"""Train LoRAs for LTX-2 and LTX-2.3. The names here are all that a command line or a node needs.

They are imported when first used, so that a look at the settings or an error type does not load torch.
"""

from importlib import import_module
from typing import Any

from .version import VERSION as __version__

_HOME = {
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
    "Events": "events",
    "LoraReport": "lora.report",
    "OutOfMemory": "errors",
    "PreviewFiles": "sampling.preview",
    "RunConfig": "config",
    "RunError": "errors",
    "RunResult": "training.loop",
    "SampleFile": "sampling.render",
    "Stopped": "errors",
    "TinyFiles": "weights.tiny",
    "TrainerError": "errors",
    "build_caches": "training.caches",
    "caption_media": "workshop.captioning",
    "check_dataset": "workshop.check",
    "cut_videos": "workshop.cut",
    "inspect_lora": "lora.report",
    "load_run": "config",
    "make_run": "config",
    "make_tiny": "weights.tiny",
    "preview_dataset": "sampling.preview",
    "probe": "weights.probe",
    "quantize_checkpoint": "weights.quantized_file",
    "sample": "sampling.sample",
    "train": "training.loop",
}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
