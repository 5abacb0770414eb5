"""The seam to ComfyUI, and the only package that imports it.

Nodes get from here what they need of the host: the node API, its folders (`folders`), leaving inference mode and errors
as ComfyUI shows them (`jobs`), and `ComfyEvents`, through which the core reports progress (`page`), learns of an
interrupt, and shares the memory of the device with ComfyUI's own models (`memory`). Everything but the node API is
imported when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .folders import (
    checkpoint_names,
    checkpoint_path,
    checkpoints_folder,
    input_folder,
    input_folders,
    listed_model,
    lora_path,
    loras_folder,
    model_folders,
    no_output,
    output_folder,
    place_inside,
    runs_folder,
    stays_inside,
    t5_tokenizer,
    text_encoder_names,
    text_encoder_path,
    vae_names,
    vae_path,
)
from .jobs import nothing, take_back_presses, training_job
from .page import ComfyEvents, add_routes, preview, preview_all

if TYPE_CHECKING:  # Any to a type checker, so that it says the same with ComfyUI on the path and without

    def __getattr__(name: str) -> Any: ...
else:
    from comfy_api.latest import ComfyExtension, InputImpl, io

__all__ = [
    "ComfyEvents",
    "ComfyExtension",
    "InputImpl",
    "add_routes",
    "checkpoint_names",
    "checkpoint_path",
    "checkpoints_folder",
    "input_folder",
    "input_folders",
    "listed_model",
    "io",
    "lora_path",
    "loras_folder",
    "model_folders",
    "no_output",
    "nothing",
    "output_folder",
    "place_inside",
    "preview",
    "preview_all",
    "runs_folder",
    "stays_inside",
    "t5_tokenizer",
    "take_back_presses",
    "text_encoder_names",
    "text_encoder_path",
    "vae_names",
    "vae_path",
    "training_job",
]
