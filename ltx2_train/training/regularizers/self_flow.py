"""Self-Flow: tokens of two noise levels, and a block that learns to say what a deeper block of a teacher says.

Two levels t and s are drawn from the distribution of the training; a share of the tokens gets s, the others t. The
student sees this mixture, and learns its velocity as always. The teacher (the model without the LoRA, or with a running
mean of it) sees every token at min(t, s). With h the student's block, P a projector that is trained beside the LoRA
and y the teacher's block:

    self_flow         cos(P h, y), mean over the tokens
    self_flow_frame   cos(h_f, y_{f + d}), frames with those beside them
    self_flow_delta   cos(h_{f + k} - h_f, y_{f + k} - y_f), what changes with what changes

Each counts as -cos or 1 - cos. Self-Flow: arXiv:2603.06507; the two terms over time are the community trainer's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...models.transformer import Output
from ...objective.alignment import (
    Matching,
    motion_of,
    motion_weights,
    of_changes,
    places,
    products,
    with_neighbors,
)
from ...objective.self_flow import SelfFlowSettings
from ...objective.sigmas import sample_sigmas
from ...optim import WeightMean
from ..noised import Noised
from ..ready import Group
from .base import Cost, CostSizes, Kit, Regularizer, Value, View, answer_of, course, undisturbed
from .projector import Projector


class SelfFlow(Regularizer):
    """A block learns from a deeper block of a teacher that sees less noise."""

    name = "self_flow"
    asks_the_base = True

    def __init__(self, settings: SelfFlowSettings, kit: Kit) -> None:
        super().__init__(settings, kit)
        self._student, self._teacher = blocks_of(settings, kit.depth)
        width = kit.model.config.video.width
        self.projector = Projector(width, settings.projector_width * width, width, "silu", kit.run.train.seed)
        self.projector = self.projector.to(kit.device)
        self.trained = self.projector
        self._mean: WeightMean | None = None
        if settings.teacher != "base":
            parameters = [
                half
                for path, layer in kit.lora.layers.items()
                if settings.teacher == "ema" or path.startswith(f"transformer_blocks.{self._teacher}.")
                for half in layer.trained().values()
            ]
            where = torch.device("cpu") if settings.offload_teacher else None
            self._mean = WeightMean(parameters, settings.momentum, where, warm=False)

    @property
    def rate(self) -> float:
        own = self.settings.projector_learning_rate
        return self.kit.run.train.learning_rate if own is None else own

    @classmethod
    def cost(cls, settings: SelfFlowSettings, sizes: CostSizes) -> Cost:
        teacher, inner = blocks_of(settings, sizes.depth)[1], settings.projector_width * sizes.width
        compared = sizes.batch * sizes.tokens * sizes.width
        # the student's block and the gradient to it, what the teacher says, the inside of the projector, and both sides
        # in float32 as they are, normalised, and as a product
        held = compared * (4 * sizes.itemsize + 5 * 4) + 2 * sizes.batch * sizes.tokens * inner * sizes.itemsize
        return Cost(forwards=(teacher + 1) / sizes.depth, bytes=held, trained=2 * inner * sizes.width)

    def draw(self, group: Group, generator: torch.Generator, step: int) -> dict[str, Tensor]:
        """The second noise level [count], and which tokens have it, bool [count, T]."""
        video = group.video
        if video is None or not self.settings.dual_timestep:
            return {}
        count, tokens = video.clean.shape[:2]
        run = self.kit.run
        second = sample_sigmas(run.objective, count, tokens - video.slots, self.kit.version, generator)
        frames = tokens // video.first  # a slot is one, too
        units = frames if self.settings.mask_frames else tokens
        number = round(self.settings.mask_ratio * units)
        number = max(number, 1) if self.settings.mask_ratio else 0
        masked = torch.rand(count, units, generator=generator).argsort(dim=1) < number
        return {"second": second, "masked": masked.repeat_interleave(tokens // units, dim=1)}

    def shown(self, view: View) -> Group:
        video, drawn = view.group.video, view.drawn(self.name)
        if video is None or not drawn:
            return view.group
        mixed = replace(video, second=drawn["second"], masked=drawn["masked"])
        if not self.settings.tokenwise_timestep:
            mixed = replace(mixed, told=mixed.levels.mean(dim=1))
        return replace(view.group, video=mixed)

    def keeps(self, view: View) -> tuple[str, ...]:
        return () if view.group.video is None else (f"video.{self._block(view.step)}",)

    def prepare(self, view: View, options: Mapping[str, Any]) -> None:
        video = view.group.video
        if video is None:
            return
        name = f"video.{self._teacher}"
        asked = {"keep_hidden": [name], "last": self._teacher}
        group = replace(view.group, video=_less_noisy(video))
        loras, model = self.kit.lora, self.kit.model
        if self._mean is None:
            with loras.off():
                out = answer_of(model, group, asked)
        else:
            with undisturbed(model), loras.unheld(), self._mean.shown():
                out = answer_of(model, group, asked)
        says = out.hidden[name][:, -video.clean.shape[1] :]
        view.notes[self.name] = says.cpu() if self.settings.offload_features else says

    def terms(self, view: View, out: Output) -> dict[str, Value]:
        video, settings = view.group.video, self.settings
        if video is None:
            return {}
        student = out.hidden[f"video.{self._block(view.step)}"][:, -video.clean.shape[1] :]
        teacher = view.notes.pop(self.name).to(student.device)
        agreement = products(self.projector(student).float(), teacher.float())  # [B, T]
        if settings.masked_only and video.masked is not None:
            counted = video.masked.float()
            agreement = (agreement * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1.0)
        else:
            agreement = agreement.mean(dim=1)
        found = {self.name: (agreement, settings.weight)}
        shape = view.group.samples[0].shape
        if settings.temporal != "off" and shape.frames > 1:
            mean = settings.granularity == "frame"
            ours, its = (places(x[:, : shape.tokens], shape.frames, mean) for x in (student, teacher))
            strength = settings.motion_strength if settings.motion_weighting == "teacher_delta" else 0.0
            if settings.temporal_weight:
                match = Matching(settings.patch_radius, shape.width, settings.patch_match, settings.patch_temperature)
                weights = motion_weights(motion_of(its), strength) if strength else None
                frame = with_neighbors(
                    ours, its, settings.temporal_tau, settings.neighbors, own=False, weights=weights, matching=match
                )
                found[f"{self.name}_frame"] = (frame, settings.temporal_weight)
            if settings.delta_weight:
                delta = of_changes(ours, its, settings.temporal_tau, settings.delta_steps, strength)
                found[f"{self.name}_delta"] = (delta, settings.delta_weight)
        return self._weighted(found, view.step)

    def facts(self, view: View) -> dict[str, Tensor]:
        video = view.group.video
        return {} if video is None or video.second is None else {"sigma_second": video.second}

    def begin(self) -> None:
        if self._mean is not None:
            self._mean.begin()

    def stepped(self, step: int) -> None:
        if self._mean is not None and step % self.settings.update_every == 0:
            self._mean.update()

    def state(self) -> dict[str, Any]:
        return {} if self._mean is None else {"mean": self._mean.state_dict()}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self._mean is not None:
            self._mean.load_state_dict(state["mean"])

    def _block(self, step: int) -> int:
        """The student's block in this step."""
        around = self.settings.student_range
        if not around:
            return self._student
        generator = torch.Generator().manual_seed((self.kit.run.train.seed + 0x9E3779B97F4A7C15 * (step + 1)) % 2**63)
        return self._student + int(torch.randint(-around, around + 1, (), generator=generator))

    def _weighted(self, found: Mapping[str, tuple[Tensor, float]], step: int) -> dict[str, Value]:
        """The terms with their weights of this step, together no larger than `max_loss`."""
        settings = self.settings
        factor = course(settings.schedule, settings.warmup_steps, settings.decay_steps, step)
        above = 1.0 if settings.loss_type == "one_minus_cosine" else 0.0
        values = {name: above - agreement for name, (agreement, _) in found.items()}
        weights = {name: factor * weight for name, (_, weight) in found.items()}
        if not settings.max_loss:
            return {name: Value(values[name], weights[name]) for name in found}
        total = torch.stack([values[name].detach() * weights[name] for name in found]).sum(dim=0).mean()
        scale = (settings.max_loss / total.abs().clamp(min=1e-12)).clamp(max=1.0)
        return {name: Value(values[name], (scale * weights[name]).expand_as(values[name])) for name in found}


def _less_noisy(video: Noised) -> Noised:
    """All tokens at the lower of the two levels."""
    if video.second is None:
        return video
    return replace(video, sigma=torch.minimum(video.sigma, video.second), second=None, masked=None, told=None)


def blocks_of(settings: SelfFlowSettings, depth: int) -> tuple[int, int]:
    """The blocks of student and teacher in a model of `depth` blocks."""
    student, teacher = settings.student_block, settings.teacher_block
    if settings.student_ratio is not None:
        student = math.floor(settings.student_ratio * depth)
    if settings.teacher_ratio is not None:
        teacher = min(math.ceil(settings.teacher_ratio * depth), depth - 1)
    return student, teacher
