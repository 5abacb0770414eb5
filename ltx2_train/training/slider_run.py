"""Training a slider: the loop of any run, on prompts alone or on pairs of latents."""

from __future__ import annotations

from ..conditions.trained import Trained
from ..config import DrawSettings, RunConfig
from ..errors import ConfigError
from ..events import Events, shielded
from ..feed.batches import BatchOrder
from ..sampling.ahead import training_prompts
from ..sampling.idle_options import odd_prompt
from ..sampling.prompts import require_drawable
from ..sampling.sample import prompt_folder
from .checks import Checked, check_model, check_settings, open_checked, tell_unused_options
from .loop import RunResult, train_checked
from .slider_data import open_slider, slider_settings, unused_by_slider


def train_slider(config: RunConfig, events: Events | None = None) -> RunResult:
    """Train, or go on training, the slider that `config.slider` describes.

    Raises Stopped once everything is saved when the user asked to stop, and TrainerError for what the user can mend.
    """
    events = shielded(events)
    check_settings(config)
    return train_checked(check_slider(config, events), events)


def check_slider(config: RunConfig, events: Events) -> Checked:
    """Find everything that can be wrong before a big file is read, and open the run folder."""
    events.stage("check")
    if config.train.what == "full":
        raise ConfigError("train.what is full, and a slider is a LoRA. Set train.what to lora.")
    for note in config.notes:
        events.message(note)
    config, slider = slider_settings(config)
    for text in unused_by_slider(config):
        events.message(text, "warning")
    for text in filter(None, slider.texts()):
        if odd := odd_prompt(f"slider.targets: {text[:60]!r}", text):
            events.message(odd, "warning")
    model = check_model(config, events)
    config, files = model[:2]
    data = open_slider(config, slider, files, prompt_folder(config), events)
    order = BatchOrder(data.samples, data.batch_sizes, config.train.seed, None, config.train.batches_a_step)
    prompts = training_prompts(config, data, files.version)
    require_drawable(prompts, config.model.mode, Trained())
    tell_unused_options(config, DrawSettings.of(config.sample, files.version), prompts, events)
    return open_checked(model, data, order, prompts, events, texts=slider.texts())
