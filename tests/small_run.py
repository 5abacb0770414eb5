"""The real loop, saves, states and run folder round a model of two linears, for what is tried a thousand times.

Steps take their gradients from their own number, so that a run that was stopped anywhere can be compared to the bit.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ltx2_train import Events, files, make_run
from ltx2_train.errors import RunError
from ltx2_train.lora.inject import inject
from ltx2_train.optim import WeightMean, build_optimizer, build_schedule
from ltx2_train.training import loop, saving, setup
from ltx2_train.training.checks import Checked
from ltx2_train.training.metrics import MetricsLog
from ltx2_train.training.peers import ALONE
from ltx2_train.training.run_folder import open_run, save_text

PREFIX = "model.diffusion_model."


class SmallRuns:
    """Runs called `name` in `folder`; `taken` are the steps that were trained, from 0, in order; `run` is the last."""

    def __init__(self, monkeypatch, folder: Path, name: str = "fox") -> None:
        self.folder, self.name = folder, name
        self.taken: list[int] = []
        self.run: Any = None
        self.unused: tuple[str, ...] = ()  # settings that a finished run is to find changed
        self.path = folder / "runs" / name
        monkeypatch.setattr(loop, "check", self._check)
        monkeypatch.setattr(loop, "load", self._load)
        monkeypatch.setattr(loop, "Batches", lambda *_: SimpleNamespace(close=lambda: None))
        monkeypatch.setattr(loop, "_micro_steps", self._micro_steps)
        # most of the time of a small run: the chart, and the disk that is waited for
        monkeypatch.setattr(saving, "draw_chart", lambda rows, path, title: files.write_bytes(path, b"a chart"))
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        monkeypatch.setattr(files, "WAITS", (0,) * len(files.WAITS))
        monkeypatch.setattr(saving, "WAITS", (0,) * len(saving.WAITS))

    def train(self, events: Events | None = None, steps: int = 4, export: Path | None = None, **train):
        run = {"name": self.name, "folder": str(self.folder / "runs")}
        if export is not None:
            run["export_folder"] = str(export)
        sample = {"every": 0, "at_start": False, **train.pop("sample", {})}
        more = {group: train.pop(group) for group in ("ema", "optimizer") if group in train}
        settings = {"steps": steps, "save_every": 2, "learning_rate": 1e-2, "save_precision": "fp32", **train}
        self.step_hook = settings.pop("step_hook", lambda step: None)
        lora = {"rank": 2, "target_modules": ["attn1.to_q", "attn1.to_v"]}
        tables = {"run": run, "train": settings, "sample": sample, "lora": lora, "optimizer": {"name": "adamw"}}
        return loop.train(make_run({**tables, **more}), events)

    def _check(self, config, events, peers):
        folder = open_run(config.run, {"lora.rank": str(config.lora.rank)}, events)
        prompts = ["a ball"] if config.sample.wanted else []
        checked = Checked(config, folder, None, None, None, None, prompts, None, "", config.train.steps)
        checked.unused = self.unused
        try:
            if checked.finished_lora() is None:
                folder.require_state()
            save_text(folder, "run.toml", config.to_toml())
        except BaseException:
            folder.close("failed")
            raise
        return checked

    def _load(self, checked, events):
        config, device = checked.config, torch.device("cpu")
        torch.manual_seed(0)
        model = nn.Module()
        model.transformer_blocks, model.dtype = nn.ModuleList([nn.Module()]), torch.float32
        attention = model.transformer_blocks[0].attn1 = nn.Module()
        attention.to_q, attention.to_v = nn.Linear(6, 4), nn.Linear(6, 4)
        loras = inject(model, config.lora, torch.Generator().manual_seed(1))
        groups = [{"params": list(loras.parameters()), "lr": config.train.learning_rate}]
        optimizer, _ = build_optimizer(groups, config.optimizer, config.train.learning_rate, device)
        shapes = {f"{PREFIX}{path}.weight": (4, 6) for path in loras.layers}
        run = SimpleNamespace(
            config=config, folder=checked.folder, device=device, model=model, loras=loras, optimizer=optimizer,
            schedule=build_schedule(optimizer, config.schedule, checked.total),
            scaler=torch.amp.GradScaler("cpu", enabled=False), data=SimpleNamespace(samples=[]), order=[],
            sound=None, slider=None, whole=False, product="LoRA", plan=None, regularizers=None,
            mean=WeightMean(loras.parameters(), config.ema.decay) if config.ema.decay else None,
            watch=SimpleNamespace(step=lambda heard: None), total=checked.total, step=0, place=(0, 0), log=None,
            prompts=checked.prompts, undrawn=False, checkpoint_shapes=shapes, base={}, trigger="",
            version="2.3", apply=None, saved=None, saved_step=0, unexported=False, peers=ALONE, parts={},
            rates=lambda: {"lr": optimizer.param_groups[0]["lr"]},
        )  # fmt: skip
        run.renderer = SimpleNamespace(draw=self._draw, events=events)
        run.close = lambda: run.log.close()
        setup._resume(run, events)
        run.log = MetricsLog(run.folder.metrics, run.step, events)
        self.run = run
        return run

    def _draw(self, prompts, name, info, failed):
        for index, _ in enumerate(prompts):
            try:  # as Renderer does, which says so
                files.write_bytes(name(index, SimpleNamespace(seed=1)).with_suffix(".png"), b"a picture")
            except RunError as error:
                failed.append(type(error))

    def _micro_steps(self, run, batches, events):
        if events.should_stop():
            raise loop.Stopped
        self.step_hook(run.step)
        self.taken.append(run.step)
        generator = torch.Generator().manual_seed(run.step)
        for parameter in run.loras.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        losses = {"loss": [1.0 / (run.step + 1)], "loss_video": [1.0]}
        return losses, [loop._Taken(["clip"], False)], (0, run.step + 1)
