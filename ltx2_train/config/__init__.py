"""The settings of a run: one tree, read from TOML, from `--set` and from nodes alike.

Each group is owned by the component that reads it; this package nests them (groups.py), reads them (read.py) and
shows them (describe.py).
"""

from .describe import aliases, describe_defaults, walk_settings
from .drawn import DrawSettings
from .groups import MemorySettings, ModelSettings, RunConfig, RunSettings
from .read import load_run, make_run, read_toml
from .sample import SampleSettings
from .train import TrainSettings

__all__ = [
    "DrawSettings",
    "MemorySettings",
    "ModelSettings",
    "RunConfig",
    "RunSettings",
    "SampleSettings",
    "TrainSettings",
    "aliases",
    "describe_defaults",
    "load_run",
    "make_run",
    "read_toml",
    "walk_settings",
]
