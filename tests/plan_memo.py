"""Each training step that a plan simulates is simulated once a session: hundreds of runs share a handful of sizes.

A simulation takes a second or more. What it depends on is the key here; settings that it does not read are left out by
name, so a new setting only costs a second time and never a wrong answer. Tests of the simulation itself call
`simulate.simulate`, which nothing is put before.

Whole runs of a tiny model fit every machine whatever is predicted, so there one simulation serves all sizes and
settings of a model, a mode and a precision; tests that are about the plan have the marker `exact_plan`.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import wraps
from typing import Any

GROUPS = {"run", "data", "cache", "sample", "gemma", "optimizer", "schedule"}
SETTINGS = {
    "model": {"checkpoint", "text_encoder", "text_checkpoint", "device", "version", "version_check"},
    "train": {
        "steps", "epochs", "learning_rate", "audio_learning_rate", "lr_args", "loraplus_ratio", "changed_rate",
        "accumulation", "caption_dropout", "caption_dropout_with", "norms_every", "save_every", "save_every_epochs",
        "processes", "seed", "keep_states", "keep_loras", "save_precision", "clip_norm", "state", "on_nan", "comment",
    },
    "memory": {
        "fit", "blocks_to_swap", "recompute_blocks", "gradient_checkpointing", "pinned", "swap_from", "swap_ahead",
        "offload_activations", "context_gb", "ff_chunk", "pinned_gb",
    },
}  # fmt: skip

_profiles: dict[tuple[str, ...], Any] = {}
_rough = False


def install(rough: bool) -> None:
    """Put the memo in front of the plan's simulation, once it has been imported.

    `rough`: until the next call, models that are alike are taken to need alike, whatever a run does with them.
    """
    global _rough
    _rough = rough
    for name, facts in list(sys.modules.items()):
        # the pack has the core under a name of its own
        if name.endswith("ltx2_train.training.fit.facts") and not hasattr(facts.simulate, "__wrapped__"):
            _remember(name, facts)


def _remember(home: str, facts: Any) -> None:
    real = facts.simulate

    @wraps(real)
    def simulate(config: Any, run: Any, work: Any, *rest: Any) -> Any:
        if _rough:
            key = (home, repr(config), run.model.mode, run.model.precision, repr(rest[2:3]))
        else:
            key = (
                home,
                repr(config),
                _relevant(run),
                repr(replace(work, captions=1, source="")),
                repr((*rest[:3], *rest[4:])),
            )
        if key not in _profiles:
            _profiles[key] = real(config, run, work, *rest)
        return _profiles[key]

    facts.simulate = simulate


def _relevant(run: Any) -> str:
    table = run.model_dump(mode="json", exclude=GROUPS)
    for group, names in SETTINGS.items():
        table[group] = {name: value for name, value in table[group].items() if name not in names}
    return json.dumps(table, sort_keys=True)
