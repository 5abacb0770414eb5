"""Regularizers that look into the model or change what it is shown: the right gradient, wherever weights are kept."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from unit.training.regularized import Bench, make_batch
from unit.training.step_parts import SHAPE

from ltx2_train.caching.dino import DINO_KEY, dino_path
from ltx2_train.config import make_run
from ltx2_train.errors import ConfigError
from ltx2_train.feed.batches import GivenData
from ltx2_train.feed.loader import TrainingSet
from ltx2_train.files import write_tensors
from ltx2_train.models.routes import TokenRoute, draw_kept
from ltx2_train.models.transformer import Modality
from ltx2_train.offload.activations import ActivationStore
from ltx2_train.offload.blocks import BlockStreamer, spread
from ltx2_train.offload.host import HostBuffers
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.training.regularizers import rollout
from ltx2_train.training.regularizers.base import course
from ltx2_train.training.regularizers.checks import check_blocks, check_regularized, check_streamed
from ltx2_train.training.regularizers.crepa import _features
from ltx2_train.weights.load import load_transformer

BLOCKS = {"student_block": 1, "teacher_block": 2}
CREPA = {"crepa": {"weight": 0.5, **BLOCKS}}
FLOW = {
    "self_flow": {
        "weight": 0.5, **BLOCKS, "temporal": "hybrid", "temporal_weight": 0.2, "delta_weight": 0.1, "mask_ratio": 0.5,
        "granularity": "patch", "patch_radius": 1, "patch_match": "soft", "motion_weighting": "teacher_delta",
        "motion_strength": 0.5,
    }
}  # fmt: skip
TREAD = {"tread": {"weight": 1, "routes": ["1:-2:0.5"]}}
ROLLOUT = {"rollout": {"weight": 1, "steps": 2, "step_size": 0.1}}
LAYERS = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.2.attn1.to_q"]


@pytest.fixture(scope="module")
def model(tiny):
    return load_transformer(tiny.checkpoint, "video", torch.float32)


@pytest.fixture
def bench(model, tmp_path):
    made = []

    def make(settings, **more):
        made.append(Bench(model, tmp_path, settings, **more))
        made[-1].know("")
        return made[-1]

    yield make
    for one in made:
        one.close()


def slope_of(one, batch, weight):
    """The gradient of `weight`, and the slope of the loss along it."""
    weight.grad = None
    one.step(batch)
    slope, step = weight.grad.clone(), 1e-3
    way = slope / slope.norm()
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(sign * step * way)
        sides.append(one.loss(batch))
        with torch.no_grad():
            weight.sub_(sign * step * way)
    return float(slope.norm()), (sides[0] - sides[1]) / (2 * step)


@pytest.fixture
def with_features(tmp_path):
    """A batch whose clips have DINOv2 features of 3 x 3 patches."""
    batch = make_batch([0, 0])
    samples = [replace(one, latent_path=tmp_path / f"{one.key}_64x64_ltx2.safetensors") for one in batch.samples]
    frames = SHAPE.video().frames
    for number, sample in enumerate(samples):
        features = torch.randn(frames, 9, 16, generator=torch.Generator().manual_seed(number))
        write_tensors(dino_path(sample.latent_path), {DINO_KEY: features.half()}, {})
    return replace(batch, samples=samples)


def test_self_flow_has_the_right_gradient_in_the_lora_and_the_projector(bench):
    one, batch = bench(FLOW), make_batch([0, 0])
    for weight in (one.loras.layers["transformer_blocks.1.attn1.to_v"].lora_B, next(one.regularizers.parameters())):
        norm, slope = slope_of(one, batch, weight)
        assert norm > 1e-4
        assert slope == pytest.approx(norm, rel=0.03)
    terms = one.step(batch)
    assert set(terms) == {"video", "self_flow", "self_flow_frame", "self_flow_delta"}
    assert all(bool((terms[name].values.abs() <= 1).all()) for name in terms if name != "video")


MASKED = {"self_flow": {**FLOW["self_flow"], "mask_frames": True}}


@pytest.mark.parametrize("settings", [MASKED, CREPA, TREAD], ids=["self_flow", "crepa", "tread"])
def test_keyframe_slots_are_learned_beside_what_looks_at_frames(bench, settings):
    batch = make_batch([0, 0])
    keyframes = torch.randn(128, 2, SHAPE.height, SHAPE.width, generator=torch.Generator().manual_seed(3))
    one = bench(settings)
    terms = one.step(replace(batch, given=(GivenData(keyframes=keyframes),) * 2))
    without = one.step(batch)
    assert set(terms) == set(without)
    assert all(bool(torch.isfinite(term.values).all()) for term in terms.values())
    assert not torch.equal(terms["video"].values, without["video"].values)


def test_crepa_of_dino_has_the_right_gradient(bench, with_features):
    data = TrainingSet(tuple(with_features.samples), (), (2,))
    one = bench({"crepa": {"weight": 0.5, "mode": "dino", **BLOCKS}}, data=data)
    norm, slope = slope_of(one, with_features, one.loras.layers["transformer_blocks.0.attn1.to_v"].lora_B)
    assert slope == pytest.approx(norm, rel=0.03)
    assert all(
        float(one.loras.layers[f"transformer_blocks.{number}.attn1.to_v"].lora_B.grad.norm()) > 0 for number in (0, 1)
    )


def test_crepa_of_the_backbone_teaches_the_student_alone(bench):
    one, batch = bench({**CREPA, "blank": {"weight": 0.0}}), make_batch([0, 0])
    norm, slope = slope_of(one, batch, next(one.regularizers.parameters()))
    assert slope == pytest.approx(norm, rel=0.03)
    for parameter in one.loras.parameters():
        parameter.grad = None
    (part,) = one.parts(batch)
    part.terms["crepa"].values.sum().backward()
    later = [layer.lora_B.grad for path, layer in one.loras.layers.items() if path.startswith("transformer_blocks.2")]
    assert all(grad is None or float(grad.abs().max()) == 0 for grad in later)
    assert 0 < float(part.terms["crepa"].measured().mean()) < 2


def test_the_features_of_the_middle_frame_lie_on_the_grid_of_the_latents(tmp_path):
    path = tmp_path / "a_ltx2_dino.safetensors"
    frames, side = 17, 6
    rows = torch.arange(side, dtype=torch.float32)[:, None].expand(side, side)
    features = torch.stack([torch.stack([rows + 100 * t, rows.T + 100 * t], dim=-1) for t in range(frames)])
    write_tensors(path, {DINO_KEY: features.flatten(1, 2).half()}, {})
    found = _features(path, replace(SHAPE, frames=3, height=3, width=2)).view(3, 3, 2, 2).float()
    assert [round(float(found[f, ..., 0].mean())) for f in range(3)] == [2, 402, 1202]  # frames 0, 4, 12
    assert (found[0, :, 0, 0].diff() > 1.5).all()  # down the rows
    assert (found[0, 0, :, 1].diff() > 2.4).all()  # along the columns, of which there are fewer
    assert torch.allclose(found[0, :, 0, 0], found[0, :, 1, 0])


@pytest.mark.parametrize("settings", [FLOW, CREPA, TREAD, {**ROLLOUT, "blank": {"weight": 1}}])
@pytest.mark.parametrize("format", ["none", "int8"])
def test_streamed_recomputed_and_quantized_models_are_what_they_are_without(tiny, tmp_path, settings, format):
    quant = QuantSettings(format=format)

    def gradients(streamed):
        model = load_transformer(tiny.checkpoint, "video", torch.float32, quant=quant)
        one = Bench(model, tmp_path, settings)
        one.know("")
        streamer = None
        if streamed:
            streamer = BlockStreamer(
                model.transformer_blocks, spread(4, 3), "cpu", source=HostBuffers(False), poison=True
            )
            model.residence, model.activations = streamer, ActivationStore("cpu")
        else:
            model.set_recompute(0)
        terms = one.step(make_batch([0, 0]), held=streamed)
        if streamer is not None:
            streamer.close()
        return terms, one.gradients()

    (plain, expected), (terms, found) = gradients(False), gradients(True)
    for name in plain:
        assert torch.allclose(plain[name].values, terms[name].values, rtol=1e-5, atol=1e-6), name
    assert expected.keys() == found.keys()
    assert all(torch.allclose(expected[key], found[key], rtol=1e-3, atol=1e-6) for key in expected)


def inputs(model, tokens=8, count=2):
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(1, 3, tokens, 2, generator=generator)
    return Modality(
        latent=torch.randn(count, tokens, 128, generator=generator),
        sigma=torch.tensor([0.3, 0.7]),
        timesteps=None,
        positions=positions,
        context=torch.randn(count, 8, model.config.video.width, generator=generator),
        given=torch.arange(tokens).expand(count, -1) < 2,
        lead=2,
    )


def test_a_block_of_a_route_sees_the_kept_tokens_as_if_there_were_no_others(model):
    whole = inputs(model)
    kept = draw_kept(8, 1, 0.5, 2, torch.Generator().manual_seed(1))
    assert kept.shape == (2, 5)
    assert bool((kept.diff(dim=1) > 0).all())
    assert kept[:, 0].tolist() == [0, 0]
    with torch.no_grad():
        routed = model(whole, None, routes=[TokenRoute(0, 0, kept)], keep_hidden=["video.0"], last=0).hidden["video.0"]
        some = replace(
            whole,
            latent=whole.latent.gather(1, kept[..., None].expand(-1, -1, 128)),
            positions=whole.positions.expand(2, -1, -1, -1).gather(2, kept[:, None, :, None].expand(-1, 3, -1, 2)),
            given=whole.given.gather(1, kept),
            lead=None,
        )
        alone = model(some, None, keep_hidden=["video.0"], last=0).hidden["video.0"]
        before = model.patchify_proj(whole.latent)
        everything = TokenRoute(1, 2, torch.arange(8).expand(2, -1))
        plain, all_kept = model(whole, None), model(whole, None, routes=[everything])
    places = kept[..., None].expand(-1, -1, routed.shape[2])
    assert torch.allclose(routed.gather(1, places), alone, atol=1e-5)
    assert torch.equal(routed.scatter(1, places, 0.0), before.scatter(1, places, 0.0))
    assert torch.allclose(plain.video, all_kept.video, atol=1e-5)


def test_two_noise_levels_are_those_of_the_tokens(model):
    whole = replace(inputs(model), lead=None)
    masked = torch.tensor([[0, 0, 0, 1, 0, 1, 1, 0]] * 2, dtype=torch.bool)
    second = torch.tensor([0.9, 0.1])
    mixed = replace(whole, second=second, masked=masked)
    levels = torch.where(masked, second[:, None], whole.sigma[:, None]).masked_fill(whole.given, 0.0)
    assert torch.equal(mixed.token_timesteps, levels)
    with torch.no_grad():
        found = model(mixed, None).video
        expected = model(replace(whole, timesteps=levels, given=None), None).video
    assert torch.allclose(found, expected, atol=1e-5)


def test_tread_draws_other_tokens_each_step_and_leaves_some_steps_alone(bench):
    one, batch = bench({"tread": {"weight": 0.5, "routes": ["1:1:0.5", "2:2:0.25"]}}), make_batch([0, 0])
    (tread,) = one.regularizers.active
    (group,) = [part for part in _groups(one, batch)]
    drawn = [tread.draw(group, torch.Generator().manual_seed(seed), 0) for seed in range(40)]
    routed = [one for one in drawn if one]
    assert 10 < len(routed) < 30
    assert {tuple(one["0"].shape) for one in routed} == {(2, 4)}
    assert {tuple(one["1"].shape) for one in routed} == {(2, 2)}
    assert len({one["0"].numpy().tobytes() for one in routed}) > 5


def _groups(one, batch):
    one.parts(batch)
    from ltx2_train.training.ready import make_ready

    contexts = {"video": one.contexts.batch([sample.text_path for sample in batch.samples], "video", "cpu")}
    return make_ready(one.model, batch, contexts, one.run, "2.3", torch.Generator().manual_seed(1)).groups


def test_a_perfect_model_rolls_out_to_the_noise_there_was(bench):
    one, batch = bench({"rollout": {"weight": 1, "steps": 4}}), make_batch([0, 0])
    (group,) = _groups(one, batch)
    (active,) = one.regularizers.active
    drawn = active.draw(group, torch.Generator().manual_seed(0), 0)
    assert (drawn["video"].diff(dim=0) <= 0).all()
    assert torch.allclose(drawn["video"][-1], group.video.sigma)
    view = SimpleNamespace(group=replace(group, drawn={}), drawn=lambda name: drawn, notes={})
    perfect = group.video.noise - group.video.clean

    def predict(model, shown, options=None):
        return SimpleNamespace(video=perfect, audio=None)

    with patch.object(rollout, "answer_of", predict):
        shown = active.shown(view)
    assert torch.allclose(shown.video.noise, group.video.noise, atol=1e-4)
    some = {**drawn, "chosen": torch.tensor([False, True])}
    view = SimpleNamespace(group=group, drawn=lambda name: some, notes={})
    real = active.shown(view).video.noise
    assert torch.equal(real[0], group.video.noise[0])
    assert not torch.allclose(real[1], group.video.noise[1], atol=1e-3)
    assert active.facts(view)["rollout_drift"][0] == 0


@pytest.mark.parametrize("teacher", ["ema", "partial_ema"])
def test_a_mean_teaches_and_is_gone_on_with(bench, teacher, tmp_path):
    settings = {"self_flow": {"weight": 0.5, **BLOCKS, "teacher": teacher, "momentum": 0.5, "offload_teacher": True}}
    one, batch = bench(settings), make_batch([0, 0])
    (flow,) = one.regularizers.active
    before = {path: layer.lora_B.detach().clone() for path, layer in one.loras.layers.items()}
    first = one.step(batch)["self_flow"].values
    assert all(torch.equal(layer.lora_B, before[path]) for path, layer in one.loras.layers.items())
    with torch.no_grad():
        for layer in one.loras.layers.values():
            layer.lora_B.add_(0.2)
    one.regularizers.stepped(1)
    saved = one.regularizers.state_dict()
    path, layer = next((p, o) for p, o in one.loras.layers.items() if p.startswith("transformer_blocks.2"))
    mean = saved["self_flow"]["state"]["mean"]["mean"]
    assert any(torch.allclose(value, before[path] + 0.1) for value in mean if value.shape == layer.lora_B.shape)
    assert (len(mean) == 2 * len(one.loras.layers)) == (teacher == "ema")
    second = one.step(batch)["self_flow"].values.detach()
    assert not torch.equal(first.detach(), second)
    saved = {name: {"weights": {k: v.clone() for k, v in part["weights"].items()},
                    "state": {"mean": {"taken": 1, "mean": [v.clone() for v in part["state"]["mean"]["mean"]]}}}
             for name, part in saved.items()}  # fmt: skip
    one.regularizers.begin()
    with torch.no_grad():
        next(one.regularizers.parameters()).zero_()
    one.regularizers.load_state_dict(saved, None)
    assert torch.equal(one.step(batch)["self_flow"].values.detach(), second)


def test_the_weight_follows_its_course_and_its_limit(bench):
    assert [course("linear", 2, 6, step) for step in (0, 1, 2, 4, 6, 9)] == [0.5, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert course("cosine", 0, 10, 5) == pytest.approx(0.5)
    assert [course("constant", 4, 0, step) for step in (0, 3, 100)] == [0.25, 1.0, 1.0]
    assert course("linear", 0, 0, 50) == 1.0
    flow = {"self_flow": {"weight": 50, **BLOCKS, "max_loss": 0.25, "loss_type": "one_minus_cosine"}}
    term = bench(flow).step(make_batch([0, 0]))["self_flow"]
    assert float(term.weighted().detach().mean()) == pytest.approx(0.25, rel=1e-5)


def test_the_student_moves_within_its_range(bench):
    one = bench({"self_flow": {"weight": 0.5, "student_block": 1, "teacher_block": 3, "student_range": 1}})
    (flow,) = one.regularizers.active
    blocks = [flow._block(step) for step in range(30)]
    assert set(blocks) == {0, 1, 2}
    assert blocks == [flow._block(step) for step in range(30)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"crepa": {"weight": 1, "student_block": 2, "teacher_block": 2}}, "must lie above"),
        ({"crepa": {"weight": 1, "student_block": 1, "teacher_block": 9}}, "teacher_block is 9, and the model has the"),
        ({"self_flow": {"weight": 1, "student_ratio": 0.8, "teacher_ratio": 0.3}}, "must lie above"),
        ({"self_flow": {"weight": 1, **BLOCKS, "student_range": 1}}, "student_range is 1"),
        ({"self_flow": {"weight": 1, "student_block": 0, "teacher_block": 1, "teacher": "partial_ema"}}, "partial_ema"),
        ({"tread": {"weight": 1, "routes": ["1:-1:0.5"]}}, "the last must see every token"),
        ({"tread": {"weight": 1, "routes": ["2:1:0.5"]}}, "in this order"),
        ({"tread": {"weight": 1, "routes": ["0:1:0.5", "1:2:0.5"]}}, "overlap"),
        ({**TREAD, **CREPA}, "crepa.student_block: block 1 lies in a route"),
    ],
)
def test_blocks_that_cannot_be_are_refused_by_name(settings, words):
    with pytest.raises(ConfigError, match=words):
        check_blocks(make_run({"regularizers": settings}), 4, LAYERS)


def test_a_lora_above_the_student_is_refused():
    with pytest.raises(ConfigError, match="would train nothing"):
        check_blocks(make_run({"regularizers": CREPA}), 4, ["transformer_blocks.3.attn1.to_q"])


def test_routes_round_streamed_blocks_are_refused_before_and_after_the_plan():
    run = make_run({"regularizers": TREAD, "memory": {"blocks_to_swap": 2}})
    with pytest.raises(ConfigError, match="cover blocks that are streamed from RAM"):
        check_blocks(run, 4, LAYERS)
    with pytest.raises(ConfigError, match=r"streamed from RAM \(2 of 4\)"):
        check_streamed(make_run({"regularizers": TREAD}), [0, 2], 4)
    check_streamed(make_run({"regularizers": TREAD}), [0, 3], 4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": {"mode": "av"}, "regularizers": FLOW}, "self_flow.weight is 0.5, and model.mode is av"),
        ({"model": {"mode": "audio"}, "regularizers": CREPA}, "it works in video and av alone"),
        ({"regularizers": {**FLOW, **ROLLOUT}}, "both decide what the model is shown"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        check_regularized(make_run(settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tread": {"routes": ["1-2"]}}, "is not of the form"),
        ({"tread": {"weight": 2}}, "weight"),
        ({"self_flow": {"weight": 1, "temporal": "frame"}}, "does nothing while temporal_weight is 0"),
        ({"self_flow": {"weight": 1, "temporal_weight": 0.1}}, "has no use for it|does not use it"),
        ({"self_flow": {"temporal": "frame", "temporal_weight": 0.1}}, "switches all of Self-Flow off"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        make_run({"regularizers": settings})
