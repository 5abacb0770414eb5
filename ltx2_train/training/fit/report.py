"""The plan for people: a row for each size of card and one for this machine, as lines or as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config import RunConfig
from ...device import pick_device
from ...errors import ConfigError
from ...events import Events
from ..run_folder import recorded_run
from .choose import make_plan, shards_of, taken
from .estimate import between_cards
from .facts import Facts
from .machine import CARD_SIZES, GB, Machine, Rates, available_ram, card, this_machine
from .memory_plan import Choice, MemoryPlan, seconds
from .work import largest_workload, parse_workload

HEADS = ("memory", "card", "base", "swapped", "recomputed", "VRAM GB", "RAM GB", "disk GB", "a step")
USUAL_RAM = 64.0  # GB, where no machine is looked at


@dataclass(frozen=True)
class CardRow:
    """The plan for one size of card (`size` None: this machine); `problem` says why there is none."""

    size: int | None
    machine: Machine
    plan: MemoryPlan | None
    problem: str = ""
    chosen: bool = False

    def cells(self) -> list[str]:
        name = "this machine" if self.size is None else f"{self.size} GB"
        if self.plan is None:
            return [name, self.machine.name, "does not fit", *[""] * 6]
        choice, p, total = self.plan.choice, self.plan.prediction, self.plan.total
        swapped = f"{choice.blocks_to_swap} of {total}" if choice.blocks_to_swap else "0"
        swapped += " (file)" if choice.blocks_to_swap and choice.swap_from == "file" else ""
        again = f"{choice.recompute_blocks}{' + RAM' if choice.offload_activations else ''}"
        base = {"none": "as it is", "kept": "as it is"}.get(choice.format, choice.format)
        numbers = [f"{p.vram / GB:.1f}", f"{p.ram / GB:.0f}", f"{p.disk / GB:.1f}", seconds(p.seconds)]
        return [name, self.machine.name, base, swapped, again, *numbers]

    def to_json(self) -> dict[str, Any]:
        """Plain values; `plan` null where nothing fits, and `problem` then says why."""
        plan = None if self.plan is None else self.plan.to_json()
        what = "auto" if self.size is None else str(self.size)
        return {"fit": what, "card": self.machine.name, "chosen": self.chosen, "plan": plan, "problem": self.problem}


@dataclass(frozen=True)
class PlanReport:
    """All rows, for the batch and base that the sentences name."""

    rows: tuple[CardRow, ...]
    work: str
    source: str
    base: str
    rates: str
    processes: int = 1
    traffic: str = ""

    @property
    def chosen(self) -> CardRow:
        return next(row for row in self.rows if row.chosen)

    def text(self) -> str:
        """Lines for a terminal; the row that a run would take is marked by an arrow."""
        table = [list(HEADS), *(row.cells() for row in self.rows)]
        widths = [max(len(line[i]) for line in table) for i in range(len(HEADS))]
        marks = ["  ", *("> " if row.chosen else "  " for row in self.rows)]
        lines = [
            f"{mark}{'  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))}".rstrip()
            for mark, line in zip(marks, table, strict=True)
        ]
        head = [f"{self.base}; largest batch: {self.work} (from {self.source}).", self.rates]
        if self.processes > 1:
            head.append(f"{self.processes} processes share the batches of a step and the RAM; all numbers are of one.")
            head.append(self.traffic)
        head.append("")
        return "\n".join([*head, *lines, "", *self._words()])

    def _words(self) -> list[str]:
        row = self.chosen
        if row.plan is None:
            return [row.problem]
        return [row.plan.describe(), *row.plan.rejected]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "base": self.base,
            "batch": self.work,
            "source": self.source,
            "processes": self.processes,
            "rows": [row.to_json() for row in self.rows],
        }


def predict_run(
    run: RunConfig,
    bucket: str | None = None,
    batch: int = 1,
    published: str | None = None,
    ram: float | None = None,
    events: Events | None = None,
) -> PlanReport:
    """What each size of card and this machine would do with `run`; nothing is loaded.

    `bucket`: width x height x frames of `batch` clips instead of the largest batch of the dataset. `published`: the
    version of the published model, for which no file is needed. `ram`: GB to reckon with. Raises TrainerError.
    """
    mode = run.model.mode
    work = parse_workload(bucket, mode, run, batch) if bucket else largest_workload(run, events)
    if published:
        facts = Facts.published(published, run, work)
        nowhere = Machine("none", "", 0.0, (USUAL_RAM if ram is None else ram) * GB, math.inf, Rates(1e12, 1e11))
        return make_report(run, facts, nowhere.shared(run.train.processes))
    device = pick_device(run.model.device)
    facts = Facts.read(run, work, device.type)
    folder = (run.run.folder or Path("runs")) / run.run.name
    here = this_machine(device, folder)
    if ram is not None:
        here = replace(here, ram=min(ram * GB, available_ram()))
    here = here.shared(run.train.processes)
    goes_on = recorded_run(run.run)[1] is not None
    return make_report(run, facts, here, stored=MemoryPlan.load(folder) if goes_on else None)


def make_report(
    run: RunConfig, facts: Facts, here: Machine, sizes: Sequence[int] = CARD_SIZES, stored: MemoryPlan | None = None
) -> PlanReport:
    """Plans of `run` for each of `sizes` and, where memory.fit is auto or custom, for `here`; that of memory.fit is
    chosen.

    Cards that are not here get the rates of a usual card of their size. The RAM is that of `here`.
    """
    fit = run.memory.fit
    rows = []
    on_card = replace(facts, device_type="cuda")
    for size in sizes:
        chosen = fit == str(size)
        machine = card(size, here.ram, here.disk)
        if chosen and here.device_type == "cuda":  # what this run would get on the card at hand
            machine = here
        rows.append(_row(run, on_card, machine, size, stored, chosen))
    if here.device_type != "none":
        auto = fit in ("auto", "custom")
        rows.append(_row(run, facts, here, None, stored, auto or not any(row.chosen for row in rows)))
    elif not any(row.chosen for row in rows):
        rows[0] = replace(rows[0], chosen=True)
    return PlanReport(
        rows=tuple(rows),
        work=facts.work.describe(),
        source=facts.work.source,
        base=f"{facts.checkpoint or 'The base'}, mode {facts.work.mode}, {_trained(run)}",
        rates=_rates(here, facts),
        processes=run.train.processes,
        traffic=_traffic(run, facts, here),
    )


def _row(
    run: RunConfig, facts: Facts, machine: Machine, size: int | None, stored: MemoryPlan | None, chosen: bool
) -> CardRow:
    fit = str(size) if size is not None else ("custom" if run.memory.fit == "custom" else "auto")
    sized = run.model_copy(update={"memory": run.memory.model_copy(update={"fit": fit})})
    try:
        return CardRow(size, machine, make_plan(sized, facts, machine, stored), chosen=chosen)
    except ConfigError as error:
        return CardRow(size, machine, None, str(error), chosen)


def _trained(run: RunConfig) -> str:
    return "all weights trained" if run.train.what == "full" else f"LoRA of rank {run.lora.rank}"


def _rates(here: Machine, facts: Facts) -> str:
    text = "Predictions: rows of a size are for a usual card of that size, by its data sheet"
    if here.device_type == "none":
        return f"{text}, with {here.ram / GB:.0f} GB of RAM to use."
    text += f"; {here.ram / GB:.0f} GB of RAM can be used here."
    other = taken(here)
    return f"{text} {other}" if other else text


def _traffic(run: RunConfig, facts: Facts, here: Machine) -> str:
    """What the cards of a run with several send each other, and the rate that is taken for it; "" for one."""
    if run.train.processes == 1:
        return ""
    sent = between_cards(facts, Choice("none", shards=shards_of(run))).of_step(run.train.accumulation)
    rate = f", {here.rates.pinned / GB:.0f} GB/s here" if here.device_type == "cuda" else ""
    return (
        f"Each receives {sent / GB:.1f} GB a step from the others, reckoned at the rate of a card's link to RAM{rate}; "
        "cards that are linked by NVLink are faster."
    )
