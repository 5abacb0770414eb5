"""What is in a LoRA file, for people and for programs."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .file import LoraFile, load_lora_state
from .inject import branch_norms
from .targets import branch_of, count_branches, dotted


@dataclass(frozen=True)
class LoraReport:
    """A LoRA file at a glance. `norms` are of the weight change at strength 1, per branch; `problems` are sentences."""

    file: str
    ranks: list[int]
    alpha: float | None
    modules: list[str]
    branches: dict[str, int]
    norms: dict[str, float]
    size: int
    dtypes: list[str]
    base: str | None
    base_fingerprint: str | None
    version: str | None
    trigger: str | None
    step: int | None
    metadata: dict[str, str]
    problems: list[str]

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None."""
        data = asdict(self)
        data["norms"] = {branch: norm if math.isfinite(norm) else None for branch, norm in self.norms.items()}
        return data

    def text(self) -> str:
        """A few lines for a terminal."""
        rank = "/".join(str(rank) for rank in self.ranks)
        alpha = "" if self.alpha is None else f", alpha {self.alpha:g}"
        base = [part for part in (self.base, self.version and f"(LTX {self.version})") if part]
        size = f"{len(self.modules)} layers, {self.size / 1e6:.1f} MB, {', '.join(self.dtypes)}"
        lines = [f"{self.file}: rank {rank}{alpha}, {size}", f"  base      {' '.join(base) or 'unknown'}"]
        if self.trigger:
            lines.append(f"  trigger   {self.trigger}")
        if self.step is not None:
            lines.append(f"  step      {self.step}")
        for branch, count in self.branches.items():
            lines.append(f"  {branch:<9} {count} layers, norm {self.norms.get(branch, 0.0):.4g}")
        lines += [f"  problem   {problem}" for problem in self.problems]
        return "\n".join(lines)


def inspect_lora(path: Path | str) -> LoraReport:
    """Read a LoRA file and say what is in it. Raises CheckpointError where it is no LoRA or damaged."""
    path = Path(path)
    file = load_lora_state(path)
    named = {dotted(name): name for name in file.entries}
    scaled = {
        path: (file.entries[name].down, file.entries[name].up * file.entries[name].scale)
        for path, name in named.items()
    }
    meta = file.metadata
    step = meta.get("step") or meta.get("ss_steps") or ""
    return LoraReport(
        file=path.name,
        ranks=file.ranks,
        alpha=file.alpha,
        modules=list(named),
        branches=count_branches(named),
        norms=branch_norms(scaled),
        size=path.stat().st_size,
        dtypes=sorted({str(entry.up.dtype).removeprefix("torch.") for entry in file.entries.values()}),
        base=meta.get("base") or meta.get("ss_sd_model_name"),
        base_fingerprint=meta.get("base_fingerprint"),
        version=meta.get("version") or meta.get("ss_ltx_version"),
        trigger=meta.get("trigger") or meta.get("modelspec.trigger_phrase"),
        step=int(step) if step.isdigit() else None,
        metadata=dict(meta),
        problems=_problems(file, list(named)),
    )


def _problems(file: LoraFile, modules: list[str]) -> list[str]:
    problems = []
    if not file.loads_in_comfyui:
        problems.append("ComfyUI does not load it: keys must begin with diffusion_model.")
    if file.unpaired:
        problems.append(f"{len(file.unpaired)} layers lack their other half, {file.unpaired[0]} first.")
    if file.other_keys:
        problems.append(f"{len(file.other_keys)} keys are not of a plain LoRA, {file.other_keys[0]} first.")
    bad = [
        name
        for name, entry in file.entries.items()
        if not (torch.isfinite(entry.down).all() and torch.isfinite(entry.up).all())
    ]
    if bad:
        problems.append(f"{len(bad)} layers hold numbers that are not finite, {bad[0]} first.")
    if not any(bool(entry.up.any()) for entry in file.entries.values()):
        problems.append("Every B is zero: it does nothing.")
    if len(file.ranks) > 1:
        problems.append(f"Its layers have different ranks: {', '.join(map(str, file.ranks))}.")
    if any(branch_of(module) == "other" for module in modules):
        count = sum(branch_of(module) == "other" for module in modules)
        problems.append(f"{count} layers lie outside the known parts of the transformer blocks.")
    return problems
