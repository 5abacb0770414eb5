"""What a slider is asked to learn, and the inputs that are refused."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from small_slider import TEXTS

from ltx2_train.caching.cache_file import write_cache
from ltx2_train.caching.recipe import CacheRecipe
from ltx2_train.config import load_run, make_run
from ltx2_train.config.importing import import_settings
from ltx2_train.config.slider import SliderTarget
from ltx2_train.errors import CacheError, ConfigError
from ltx2_train.events import Events
from ltx2_train.feed.batches import Batch
from ltx2_train.feed.loader import Sample
from ltx2_train.files import write_tensors
from ltx2_train.models.transformer import Output
from ltx2_train.shapes import LatentShape
from ltx2_train.training.contexts import ContextStore
from ltx2_train.training.loop import train
from ltx2_train.training.noised import Noised
from ltx2_train.training.ready import Group
from ltx2_train.training.slider import Slider, SliderSet, like
from ltx2_train.training.slider_data import _pairs, slider_settings, unused_by_slider

SHAPE = LatentShape(1, 2, 2)
TARGET = SliderTarget(positive="sharp", negative="blurry", target_class="a portrait", weight=3.0)


class Loras:
    """Strength times a learned velocity, as a LoRA adds it."""

    def __init__(self):
        self.strength, self.asked = 1.0, []
        self.learned = torch.zeros(1, 4, 128, requires_grad=True)

    def set_strength(self, strength):
        self.strength = strength

    @contextmanager
    def off(self):
        before, self.strength = self.strength, 0.0
        yield
        self.strength = before


class Model:
    """Answers with its context's first number per token, a pattern, and what the LoRA adds."""

    def __init__(self, loras):
        self.loras, self.shown, self.mode = loras, [], ""

    def __call__(self, video, audio):
        assert audio is None
        self.shown.append((self.loras.strength, float(video.context[0, 0, 0]), torch.is_grad_enabled(), video))
        answer = video.context[:, :1, :1] * PATTERN + self.loras.strength * self.loras.learned
        return Output(video=answer, audio=None)

    def eval(self):
        self.mode = "eval"

    def train(self):
        self.mode = "train"


PATTERN = torch.linspace(-1, 2, 4 * 128).view(1, 4, 128)
NUMBERS = {"sharp": 5.0, "blurry": 2.0, "a portrait": 1.0}


@pytest.fixture
def contexts(tmp_path):
    store = ContextStore(tmp_path / "contexts.bin", 1 << 20)
    for text, number in NUMBERS.items():
        store.add(text, "video", torch.full((3, 2), number))
    return store


def ready(sample, clean):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 128, generator=generator)
    video = Noised(clean, noise, torch.tensor([0.5]), torch.zeros(1, 3, 4))
    group = Group(1, video, None, {"video": torch.full((1, 3, 2), NUMBERS["a portrait"])})
    return SimpleNamespace(groups=(group,), batch=Batch(None, [sample], 25.0, 0, 0)), video


def test_both_halves_learn_the_direction_on_top_of_the_class_prompt(contexts, tmp_path):
    run = make_run({"slider": {"targets": [TARGET.model_dump()], "guidance": 2.0}})
    sample = Sample("t", SHAPE, 25.0, "", tmp_path / "x", tmp_path / "y")
    data = SliderSet((sample,), (), (1,), targets={"t": TARGET})
    assert not data.load_latents(sample).any()
    loras = Loras()
    model = Model(loras)
    batch, _ = ready(sample, torch.zeros(1, 4, 128))
    slider = Slider(run.slider, run, data, contexts)
    halves = []
    for terms in slider.parts(model, loras, batch):
        terms.loss.mean().backward()
        halves.append(
            (loras.strength, {name: float(term.values.detach()) for name, term in terms.terms.items()}, terms.loss)
        )
    frozen, learned = model.shown[:3], model.shown[3:]
    assert [(strength, text, grad) for strength, text, grad, _ in frozen] == [
        (0.0, 1.0, False), (0.0, 5.0, False), (0.0, 2.0, False)
    ]  # fmt: skip
    assert [(strength, text, grad) for strength, text, grad, _ in learned] == [(1.0, 1.0, True), (-1.0, 1.0, True)]
    assert all(torch.equal(one.latent, frozen[0][3].latent) for *_, one in model.shown), "one noise for all"
    assert (model.mode, loras.strength) == ("train", 1.0)
    # neutral = P, direction = 3 P, so the goals are +-: like(7 P, P) = P and like(-5 P, P) = the mirror of P
    mirror = 2 * PATTERN.mean() - PATTERN
    wanted = {"positive": 0.0, "negative": float((PATTERN - mirror).square().mean())}
    assert [(strength, *found) for strength, found, _ in halves] == [(1.0, "positive"), (-1.0, "negative")]
    for _, found, loss in halves:
        ((name, value),) = found.items()
        assert value == pytest.approx(wanted[name], abs=1e-5)
        assert float(loss.detach()) == pytest.approx(3 * wanted[name], abs=1e-5), "times the weight of the target"
    # the gradient of the negative half moves what strength -1 adds towards its goal
    grad = loras.learned.grad
    assert torch.allclose(grad, -3 * 2 * (PATTERN - mirror) / PATTERN.numel(), atol=1e-6)
    assert slider.about()["ss_slider_mode"] == "text"


def test_a_pair_has_one_noise_and_each_half_its_own_latents(contexts, tmp_path):
    generator = torch.Generator().manual_seed(1)
    latents = {name: torch.randn(128, 1, 2, 2, generator=generator) for name in ("p", "n")}
    for name, value in latents.items():
        write_tensors(tmp_path / f"{name}.safetensors", {"latents_1x2x2_float32": value})
    positive, negative = tmp_path / "p.safetensors", tmp_path / "n.safetensors"
    run = make_run({"slider": {"mode": "reference"}})
    sample = Sample("t", SHAPE, 25.0, "", positive, tmp_path / "y")
    data = SliderSet((sample,), (), (1,), negatives={positive: negative})
    assert torch.equal(data.load_latents(sample), latents["p"])
    loras = Loras()
    model = Model(loras)
    tokens = {name: value.flatten(1).T[None] for name, value in latents.items()}
    batch, video = ready(sample, tokens["p"])
    for terms in Slider(run.slider, run, data, contexts).parts(model, loras, batch):
        ((name, term),) = terms.terms.items()
        own = tokens[name[0]]
        shown = model.shown[-1][3]
        assert torch.allclose(shown.latent, 0.5 * own + 0.5 * video.noise)
        wanted = (PATTERN - (video.noise - own)).square().mean()
        assert float(term.values.detach()) == pytest.approx(float(wanted), rel=1e-5)
    assert [strength for strength, *_ in model.shown] == [1.0, -1.0]


def test_the_goal_has_the_mean_and_the_spread_of_neutral():
    values, other = torch.randn(2, 5, 7) * 9 + 4, torch.randn(2, 5, 7) * 0.5 - 1
    made = like(values, other)
    for row in range(2):
        assert float(made[row].mean()) == pytest.approx(float(other[row].mean()), abs=1e-5)
        assert float(made[row].std()) == pytest.approx(float(other[row].std()), rel=1e-4)
    assert torch.isfinite(like(torch.zeros(1, 3, 3), other[:1, :3, :3])).all()


SEED = """\
mode = "text"
guidance_strength = 1.5
sample_slider_range = [-2.0, 0.0, 2.0]
[[targets]]
positive = "extremely detailed, sharp"
negative = "blurry"
target_class = ""
weight = 1.0
"""


def test_the_slider_file_of_the_community_trainer_is_read(tmp_path):
    (tmp_path / "theirs.toml").write_text(SEED)
    (tmp_path / "run.toml").write_text('[slider]\nconfig = "theirs.toml"\nguidance = 3.0\n')
    slider = load_run(tmp_path / "run.toml").slider.whole()
    assert (slider.guidance, slider.strengths) == (3.0, [-2.0, 0.0, 2.0]), "what the run says counts more"
    assert slider.targets == [SliderTarget(positive="extremely detailed, sharp", negative="blurry")]
    assert slider.texts() == ["", "extremely detailed, sharp", "blurry"]
    alone = load_run(tmp_path / "theirs.toml").slider
    assert (alone.guidance, alone.targets) == (1.5, slider.targets)
    made = import_settings(tmp_path / "theirs.toml")
    (run,) = made.write(tmp_path / "imported")
    assert load_run(run).slider.targets == slider.targets
    assert made.commands(run) == f"ltx2-train slider {run}"
    assert made.missing(run) == ["model.checkpoint is not set", "model.text_encoder is not set"]
    (tmp_path / "pairs.toml").write_text('mode = "reference"\npos_cache_dir = "p"\nneg_cache_dir = "n"\n')
    (tmp_path / "run.toml").write_text('[slider]\nconfig = "pairs.toml"\n')
    pairs = load_run(tmp_path / "run.toml").slider.whole()
    assert (pairs.mode, pairs.positive_caches, pairs.negative_caches) == ("reference", tmp_path / "p", tmp_path / "n")


def round_of(positive, negative, weight=1.0):
    return {"positive": positive, "negative": negative, "weight": weight}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({}, "No slider is described"),
        ({"slider": {"mode": "reference", "positive_caches": "p"}}, "needs slider.positive_caches and slider.negative"),
        ({"slider": {**TEXTS, "positive_caches": "p"}}, "mode text has no use for slider.positive_caches"),
        ({"slider": TEXTS, "data": {"config": "d.toml"}}, "has no use for data.config"),
        ({"slider": TEXTS, "train": {"caption_dropout": 0.1}}, "has no use for train.caption_dropout"),
        ({"slider": TEXTS, "video": {"conditions": [{"type": "first_frame"}]}}, "has no use for video.conditions"),
        ({"slider": TEXTS, "model": {"mode": "av"}}, "model.mode is av. Set it to video"),
        (
            {"slider": {"targets": [{"positive": "a", "negative": " a"}]}},
            "number 1: positive and negative are both 'a'",
        ),
        (
            {"slider": {"targets": [{"positive": "a", "negative": "b"}, {"positive": "b", "negative": "a"}]}},
            "numbers 1 and 2: what they have as positive they have as negative",
        ),
        (
            {"slider": {"targets": [round_of(*pair) for pair in ("ab", "xy", "bc", "ca")]}},
            "numbers 1, 3 and 4: what they have as positive they have as negative",
        ),
        (
            {"slider": {"targets": [round_of("a", "b", 1), round_of("b", "a", 0.25), round_of("b", "a", 0.75)]}},
            "numbers 1, 2 and 3: what they have as positive they have as negative",
        ),
        ({"slider": {**TEXTS, "strengths": [float("nan")]}}, "a strength is nan; expected numbers from -100 to 100"),
        ({"slider": {**TEXTS, "strengths": [float("inf")]}}, "a strength is inf; expected"),
        ({"slider": {**TEXTS, "strengths": []}}, "slider.strengths"),
        ({"slider": {**TEXTS, "strengths": [1, 2, 1.0]}}, "1 is named twice"),
    ],
)
def test_what_a_slider_cannot_use_is_refused_by_name(tables, message):
    with pytest.raises(ConfigError, match=message):
        slider_settings(make_run(tables))


def test_targets_that_do_not_come_to_nothing_are_learned():
    pairs = ("ab", "bc", "ac")
    apart = [{**round_of("a", "b"), "target_class": "x"}, {**round_of("b", "a"), "target_class": "y"}]
    for targets in ([round_of(*pair) for pair in pairs], [round_of("a", "b"), round_of("b", "a", 0.5)], apart):
        slider_settings(make_run({"slider": {"targets": targets}}))


def test_settings_that_a_slider_has_no_use_for_are_named():
    def named(**tables):
        return [text.split()[0] for text in unused_by_slider(make_run({"slider": TEXTS, **tables}))]

    cache = {"text_form": "full", "latents_dtype": "fp32", "vae_dtype": "fp32"}
    assert named(cache=cache) == ["cache.latents_dtype", "cache.text_form"]
    strengths = {**TEXTS, "strengths": [0, 1]}
    assert named() == named(sample={"every": 0}) == named(slider=strengths) == []
    doubled = {**TEXTS, "targets": [*TEXTS["targets"], TEXTS["targets"][0]]}
    assert "given before" in unused_by_slider(make_run({"slider": doubled}))[0]
    assert named(slider=strengths, sample={"every": 0, "strength": 2}) == ["sample.strength", "slider.strengths"]


def test_a_slider_is_not_trained_as_another_lora():
    with pytest.raises(ConfigError, match="The run describes a slider, which `ltx2-train slider` trains"):
        train(make_run({"slider": TEXTS}))


def test_pairs_without_a_partner_are_named_and_no_pair_at_all_is_refused(tmp_path):
    folders = [tmp_path / name for name in ("more", "less")]
    for folder, names in zip(folders, (("a", "b"), ("a", "c")), strict=True):
        folder.mkdir()
        for name in names:
            latents = {"latents_1x2x2_float32": torch.full((128, 1, 2, 2), float(folder is folders[0]))}
            write_tensors(folder / f"{name}_0064x0064_ltx2.safetensors", latents)
    text = {"video_prompt_embeds_float32": torch.zeros(3, 8), "prompt_attention_mask": torch.ones(3, dtype=torch.int64)}
    write_tensors(folders[0] / "a_ltx2_te.safetensors", text, {"caption1": "a cat"})
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append(text)
    slider = paired(*folders)
    data = _pairs(slider, CacheRecipe(), events)
    assert [(sample.key, sample.caption) for sample in data.samples] == [("a_0064x0064", "a cat")]
    assert data.negatives == {folders[0] / "a_0064x0064_ltx2.safetensors": folders[1] / "a_0064x0064_ltx2.safetensors"}
    assert any("b_0064x0064 in more" in text for text in said)
    assert any("c_0064x0064 in less" in text for text in said)
    for folder in folders:
        write_tensors(folder / "odd_ltx2.safetensors", {"latents_1x2x2_float32": torch.zeros(128, 1, 2, 2)})
    with pytest.raises(CacheError, match=r"odd_ltx2.*not that of latents \(docs/dataset_file\.md lists the names\)"):
        _pairs(slider, CacheRecipe(), events)
    (folders[0] / "odd_ltx2.safetensors").unlink()
    for path in folders[1].glob("a*"):
        path.rename(path.with_name("z_0064x0064_ltx2.safetensors"))
    with pytest.raises(CacheError, match="there is no pair"):
        _pairs(slider, CacheRecipe(), events)


def paired(positive, negative):
    tables = {"mode": "reference", "positive_caches": positive, "negative_caches": negative}
    return make_run({"slider": tables}).slider


def write_side(folder, value, shape=(1, 2, 2), names=("a", "b"), **more):
    """Latents of `value` and captions, of which `a` has two."""
    for name in names:
        key = f"latents_{shape[0]}x{shape[1]}x{shape[2]}_float32"
        write_cache(folder / f"{name}_0064x0064_ltx2.safetensors", {key: torch.full((128, *shape), value), **more}, {})
        text = {
            "video_prompt_embeds_float32": torch.zeros(3, 8),
            "prompt_attention_mask": torch.ones(3, dtype=torch.int64),
        }
        write_tensors(folder / f"{name}_ltx2_te.safetensors", text, {"caption": name, "captions": "2"})
        write_tensors(folder / f"{name}~caption2_ltx2_te.safetensors", text, {"caption": f"{name} again"})
    return folder


def test_pairs_whose_sides_are_the_same_are_refused_or_named(tmp_path):
    side = write_side(tmp_path / "one", 1.0)
    with pytest.raises(CacheError, match=r"positive_caches and slider\.negative_caches are both .*one"):
        _pairs(paired(side, tmp_path / "one" / ".." / "one"), CacheRecipe(), Events())
    other = write_side(tmp_path / "other", 1.0)
    with pytest.raises(CacheError, match="hold the same latents, so there is nothing to tell apart"):
        _pairs(paired(side, other), CacheRecipe(), Events())
    for path in other.glob("*0064*"):  # as another program writes them, without check sums
        write_tensors(path, {"latents_1x2x2_float32": torch.ones(128, 1, 2, 2)})
    with pytest.raises(CacheError, match="hold the same latents"):
        _pairs(paired(side, other), CacheRecipe(), Events())
    write_side(other, 2.0, names=("b",))
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append((level, text))
    assert len(_pairs(paired(side, other), CacheRecipe(), events).samples) == 2
    assert said == [("warning", "Pairs of which both sides are the same, and teach nothing: a_0064x0064.")]


def test_all_captions_of_a_pair_are_learned_and_what_has_no_use_is_named(tmp_path):
    positive, negative = write_side(tmp_path / "p", 1.0), write_side(tmp_path / "n", 2.0)
    mask = {"mask": torch.ones(1, 2, 2, dtype=torch.uint8)}
    write_cache(positive / "b_0064x0064_ltx2_mask.safetensors", mask, {})
    write_cache(negative / "reference" / "a_0064x0064_ltx2.safetensors", {"latents_1x2x2_float32": torch.ones(2)}, {})
    said = []
    events = Events()
    events.message = lambda text, level="info": said.append(text)
    data = _pairs(paired(positive, negative), CacheRecipe(), events)
    assert [sample.captions for sample in data.samples] == [("a", "a again"), ("b", "b again")]
    assert said == [
        "Masks lie beside the latents, and a slider has no use for them: b_0064x0064.",
        "References lie beside the latents, and a slider has no use for them: a_0064x0064.",
    ]
    (positive / "b~caption2_ltx2_te.safetensors").unlink()
    with pytest.raises(CacheError, match="There is no text cache for caption 2 of b in"):
        _pairs(paired(positive, negative), CacheRecipe(), Events())


def test_files_that_are_no_latents_of_pictures_are_called_what_they_are(tmp_path):
    positive = write_side(tmp_path / "p", 1.0)
    with pytest.raises(CacheError, match="is of two sizes: 64x64 with 1 frames and 64x64 with 9 frames"):
        _pairs(paired(positive, write_side(tmp_path / "long", 2.0, (2, 2, 2))), CacheRecipe(), Events())
    sound = write_side(tmp_path / "sound", 2.0, ltx2_virtual_num_frames_int32=torch.tensor(9))
    with pytest.raises(CacheError, match="it is the empty picture beside a sound"):
        _pairs(paired(positive, sound), CacheRecipe(), Events())
    for path in sound.glob("*0064*"):
        write_cache(path, {"other": torch.zeros(1)}, {"settings": "{}", "format_version": "1", "checkpoint": "x"})
    with pytest.raises(CacheError, match="it holds no latents"):
        _pairs(paired(positive, sound), CacheRecipe(video_vae="y"), Events())
