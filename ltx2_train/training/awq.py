"""AWQ on the run's own data: how strong the inputs of each layer are in its first batches, without quantization.

The model passes by once as it is, its blocks coming and going where the card is small. What was measured is kept in
the run folder, so that a run that goes on quantizes alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..config import RunConfig
from ..device import release
from ..events import Events
from ..feed.batches import Batches, load_batch
from ..placement import load_placed
from ..weights.awq import AWQ_FILE, collect_activations, load_activations, save_activations
from ..weights.quantize import quantized_paths
from .contexts import ContextStore, streams_of
from .fit import Facts, make_plan, this_machine
from .fit.work import largest_batch, of_batch
from .sound import RunSound
from .step import training_step

if TYPE_CHECKING:
    from .checks import Checked


def measured_activations(
    checked: Checked, config: RunConfig, contexts: ContextStore, sound: RunSound | None, events: Events
) -> Mapping[str, Tensor]:
    """mean |x| of the inputs of every linear that is quantized, by path; from the run folder where it is there."""
    path = checked.folder.path / AWQ_FILE
    made_from = {
        "checkpoint": checked.base["fingerprint"],
        "mode": config.model.mode,
        "batches": str(config.quant.awq_batches),
        "seed": str(config.train.seed),
    }
    if (activations := load_activations(path, made_from)) is not None:
        return activations
    plain = config.model_copy(
        update={"quant": config.quant.model_copy(update={"format": "none", "awq": False, "loftq": False})}
    )
    device = checked.device
    work = of_batch(largest_batch(checked.order, plain), plain)
    machine = this_machine(device, checked.folder.path).shared(plain.train.processes)
    plan = make_plan(plain, Facts.read(plain, work, device.type), machine)
    events.stage("load the transformer for AWQ")
    memory = plan.memory_settings(plain.memory)
    placed = load_placed(plain, memory, device, events, checked.folder.path)
    try:
        placed.work_as(memory)
        model, count = placed.model, config.quant.awq_batches

        def run_batches() -> None:
            batches = Batches(partial(load_batch, checked.data), checked.order, (0, 0), 0)
            events.stage("measure for AWQ", count)
            try:
                for number in range(count):
                    events.check_stop()
                    batch = next(batches)
                    keys = [sample.text_path for sample in batch.samples]
                    texts = {s: contexts.batch(keys, s, device) for s in streams_of(config.model.mode)}
                    generator = torch.Generator().manual_seed(config.train.seed + number)
                    training_step(model, batch, texts, plain, checked.version, generator, sound)
                    events.progress(number + 1, count)
            finally:
                batches.close()

        activations = collect_activations(model, run_batches, quantized_paths(model))
    finally:
        placed.close()
        del placed
        release(device)
    save_activations(path, activations, made_from)
    return activations
