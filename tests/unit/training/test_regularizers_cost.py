"""What regularizers take is in the plan: bytes against what a real step holds, passes against what is asked."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from unit.training.regularized import Bench

from ltx2_train.config import make_run
from ltx2_train.feed.batches import Batch
from ltx2_train.feed.loader import Sample
from ltx2_train.models.transformer import LTXTransformer, TransformerConfig
from ltx2_train.shapes import LatentShape
from ltx2_train.training.fit.estimate import device_parts, predict
from ltx2_train.training.fit.facts import Facts
from ltx2_train.training.fit.machine import Machine, Rates
from ltx2_train.training.fit.memory_plan import Choice
from ltx2_train.training.fit.tracker import LiveBytes
from ltx2_train.training.fit.work import Workload
from ltx2_train.training.regularizers.base import Cost, CostSizes
from ltx2_train.training.regularizers.together import costs

CONFIG = TransformerConfig(
    num_layers=4,
    num_attention_heads=4,
    attention_head_dim=32,
    cross_attention_dim=128,
    audio_num_attention_heads=4,
    audio_attention_head_dim=16,
    audio_cross_attention_dim=64,
)
SHAPE = LatentShape(3, 8, 8)
BLOCKS = {"student_block": 1, "teacher_block": 2}
SIZES = CostSizes(depth=4, width=128, batch=1, tokens=SHAPE.tokens, itemsize=4, outputs=128 * SHAPE.tokens)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = LTXTransformer(CONFIG, "video").requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.05)
    return model


def taken(model, folder, settings):
    """Peak bytes of a step, its passes (with gradient or not, and how many blocks), and the numbers of the LoRA."""
    one = Bench(model, folder, settings)
    for text in ("", "a cat"):
        one.know(text)
    sample = Sample("clip", SHAPE, 25.0, "", Path("clip"), Path("clip"))
    batch = Batch(torch.randn(1, 128, SHAPE.frames, SHAPE.height, SHAPE.width), [sample], 25.0, 0, 0)
    one.know(sample.text_path)
    passes, real = [], LTXTransformer.forward

    def counted(self, *args, **options):
        passes.append((torch.is_grad_enabled(), options.get("last", 3) + 1))
        return real(self, *args, **options)

    tracker = LiveBytes("cpu")
    with patch.object(LTXTransformer, "forward", counted), tracker:
        one.step(batch)
    numbers = sum(parameter.numel() for parameter in one.loras.parameters())
    one.close()
    return tracker.peak, passes, numbers


def test_the_plan_counts_what_a_step_with_them_takes(model, tmp_path):
    plain, _, lora = taken(model, tmp_path, {})
    for settings in (
        {"blank": {"weight": 1}, "dop": {"weight": 1}},
        {"prior_divergence": {"weight": 1}},
        {"crepa": {"weight": 1, **BLOCKS}},
        {"self_flow": {"weight": 1, **BLOCKS}},
    ):
        peak, passes, _ = taken(model, tmp_path, settings)
        cost = costs(make_run({"regularizers": settings}).regularizers, SIZES)
        assert cost.forwards == pytest.approx(sum(blocks for gradient, blocks in passes if not gradient) / 4)
        assert cost.steps == sum(gradient for gradient, _ in passes) - 1
        # gradients are part of the step; a second backward pass finds those of the first
        predicted = plain + cost.bytes + 4 * cost.trained + (4 * lora if cost.steps else 0)
        assert 0.99 * plain <= peak <= 1.03 * predicted, settings


def test_a_plan_holds_and_times_them():
    work = Workload("video", SHAPE, 0, text=64)
    machine = Machine("cuda", "a card", 1e10, 1e10, 1e10, Rates(matmul=1e13, bandwidth=1e12))
    choice = Choice("none", recompute_blocks=4)
    plain = Facts(CONFIG, make_run({}), work)
    crepa = Facts(CONFIG, make_run({"regularizers": {"crepa": {"weight": 1, **BLOCKS}}}), work)
    blank = Facts(CONFIG, make_run({"regularizers": {"blank": {"weight": 1}}}), work)
    assert "regularizers" not in device_parts(plain, choice)
    held = device_parts(crepa, choice)["regularizers"]
    assert held > crepa.regularizers.trained * (8 + crepa.state_bytes)
    seconds = [predict(facts, choice, machine).seconds for facts in (plain, blank)]
    assert 2 * seconds[0] < seconds[1] < 3 * seconds[0]
    tread = make_run({"regularizers": {"tread": {"weight": 0.5, "routes": ["1:2:0.5"]}}}).regularizers
    assert costs(tread, SIZES).steps == pytest.approx(-0.125)  # half of the steps, of the blocks and of the tokens
    assert Cost(1, 2, 3, 4) + Cost(1, 0, 1, 0) == Cost(2, 2, 4, 4)
