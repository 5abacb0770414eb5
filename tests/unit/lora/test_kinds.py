"""Every kind of change that can be trained: its formula, its gradients, its state, its file."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import linear

from ltx2_train.errors import ConfigError, RunError
from ltx2_train.lora.apply import apply_file
from ltx2_train.lora.branches import keep_branches
from ltx2_train.lora.factors import split
from ltx2_train.lora.file import load_lora_state, verify_saved
from ltx2_train.lora.inject import inject
from ltx2_train.lora.kinds import LORA_KINDS, check_kinds, idle_alphas, make_layer
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.lora.targets import branch_of
from ltx2_train.quant.formats import FORMATS
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.settings import parse

OUT, IN = 24, 12
ALGOS = list(LORA_KINDS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_base(dtype=torch.float32):
    torch.manual_seed(1)
    return nn.Linear(IN, OUT, dtype=dtype)


def int8_base(dtype=torch.float32):
    made = plain_base(dtype)
    return FORMATS.get("int8").quantize(made.weight.detach(), made.bias.detach(), QuantSettings(), dtype)


def layer_for(algo, base=None, moved=True, dtype=torch.float32, **settings):
    settings = LoraSettings(**{"algo": algo, "rank": 2, "alpha": 3.0, **settings})
    layer = make_layer(base or plain_base(dtype), settings.layer("x"), settings, dtype, generator())
    if moved:
        move(layer)
    return layer


def move(layer, seed=2):
    noise = generator(seed)
    with torch.no_grad():
        for parameter in layer.trained().values():
            parameter.add_(torch.randn(parameter.shape, generator=noise) * 0.3)


def reference(layer, weight):
    """W', from what stands in a file, by the formula; the length of columns is a constant for autograd."""
    parts = {name: tensor.to(weight.dtype) for name, tensor in layer.exported().items()}
    return by_formula(layer.algo, parts, weight)


def by_formula(algo, parts, weight):
    if algo == "lokr":
        w2 = parts["lokr_w2"] if "lokr_w2" in parts else parts["lokr_w2_a"] @ parts["lokr_w2_b"]
        return weight + torch.kron(parts["lokr_w1"], w2)
    if algo == "loha":
        return weight + (parts["hada_w1_a"] @ parts["hada_w1_b"]) * (parts["hada_w2_a"] @ parts["hada_w2_b"])
    changed = weight + parts["lora_B.weight"] @ parts["lora_A.weight"]
    if "dora_scale" in parts:
        changed = changed * parts["dora_scale"] / changed.detach().norm(dim=0, keepdim=True)
    return changed


def weight_of(base):
    return base.weight if type(base) is nn.Linear else base.dequantize(torch.float32)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_new_layer_is_its_base(algo):
    layer = layer_for(algo, moved=False)
    x = torch.randn(5, IN, generator=generator(7))
    assert torch.allclose(layer(x), layer.base(x), atol=1e-6)
    assert float(layer.squared_change()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("base", [plain_base, int8_base])
@pytest.mark.parametrize("settings", [{}, {"rank": 16}, {"factor": 2}, {"rslora": True}])
@pytest.mark.parametrize("algo", ALGOS)
def test_the_product_is_the_formula_at_any_strength(algo, settings, base):
    layer = layer_for(algo, base(), **settings)
    weight, bias, x = weight_of(layer.base), layer.base.bias, torch.randn(3, 5, IN, generator=generator(7))
    expected = linear(x, reference(layer, weight), bias)
    assert torch.allclose(layer(x), expected, atol=2e-4, rtol=1e-4)
    change = reference(layer, weight) - weight
    assert float(layer.squared_change()) == pytest.approx(float(change.square().sum()), rel=1e-3)
    layer.strength = 0.5
    assert torch.allclose(layer(x), linear(x, weight + 0.5 * change, bias), atol=2e-4, rtol=1e-4)
    layer.strength = 0.0
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("algo", ALGOS)
def test_gradients_are_those_of_the_formula(algo):
    layer = layer_for(algo)
    x = torch.randn(6, IN, generator=generator(7), requires_grad=True)
    wanted = torch.randn(6, OUT, generator=generator(8))
    names, parameters = zip(*layer.trained().items(), strict=True)
    found = torch.autograd.grad((layer(x) * wanted).sum(), [x, *parameters])

    again = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    parts = dict(zip(names, again, strict=True))
    if "A" in parts:
        scaled = {"lora_A.weight": parts["A"], "lora_B.weight": parts["B"] * layer.own_scale}
        if "magnitude" in parts:
            scaled["dora_scale"] = layer.base.weight.norm(dim=0, keepdim=True) + parts["magnitude"]
    else:
        scaled = {**parts, names[0]: parts[names[0]] * layer.own_scale}
    y = linear(x, by_formula(layer.algo, scaled, layer.base.weight), layer.base.bias)
    expected = torch.autograd.grad((y * wanted).sum(), [x, *again])
    for name, one, other in zip(("x", *names), found, expected, strict=True):
        assert torch.allclose(one, other, atol=2e-4, rtol=1e-3), name
    # what is recomputed without its value has the same gradients
    layer_x = torch.autograd.grad((layer.unread(x) * wanted).sum(), [x, *parameters])
    for name, one, other in zip(("x", *names), layer_x, found, strict=True):
        assert torch.allclose(one, other, atol=1e-5), name


@pytest.mark.parametrize("rank", [2, 16])
@pytest.mark.parametrize("algo", ["lokr", "loha"])
def test_gradients_are_finite_differences(algo, rank):
    layer = layer_for(algo, dtype=torch.float64, rank=rank)
    x = torch.randn(2, IN, generator=generator(7), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *layer.trained().values()))


@pytest.mark.parametrize("kind", ["dropout", "rank_dropout", "module_dropout"])
@pytest.mark.parametrize("algo", ALGOS)
def test_dropout_is_the_same_until_backward_and_another_after_it(algo, kind):
    layer = layer_for(algo, **{kind: 0.5}).train()
    x = torch.randn(40, IN, generator=generator(7))
    drawn = []
    for _ in range(12):
        first, again = layer(x), layer(x)
        assert torch.equal(first, again)
        again.sum().backward()
        drawn.append(again.detach())
    assert layer.dropout_draws == 12
    assert len({float(one.sum()) for one in drawn}) > 1
    if kind == "module_dropout":
        kept = [not torch.allclose(one, drawn[0] * 0 + layer_without(layer, x), atol=1e-6) for one in drawn]
        assert any(kept)
        assert not all(kept)
    whole = layer.eval()(x)
    assert torch.allclose(whole, linear(x, reference(layer, layer.base.weight), layer.base.bias), atol=1e-4)


def layer_without(layer, x):
    """What is left where the whole change is dropped: of a DoRA its lengths are no part of that."""
    if layer.algo != "dora":
        return layer.base(x)
    with torch.no_grad():
        return layer.base(x * layer._factor())


@pytest.mark.parametrize("algo", ALGOS)
def test_a_state_restores_all_to_the_bit(make_model, algo):
    settings = LoraSettings(algo=algo, rank=2, dropout=0.1)
    first = inject(make_model(), settings, generator())
    first.measure(lambda block: torch.no_grad(), 0)
    for layer in first.layers.values():
        move(layer)
        layer.dropout_draws = 3
    state = {
        path: {name: value.clone() if torch.is_tensor(value) else value for name, value in one.items()}
        for path, one in first.state().items()
    }
    second = inject(make_model(), settings, generator())  # the seed of dropout is that of the run
    second.restore(state)
    for path, layer in second.layers.items():
        assert layer.dropout_draws == 3
        x = torch.randn(3, layer.in_features, generator=generator(7))
        assert torch.equal(layer(x), first.layers[path](x)), path
    other = inject(make_model(), LoraSettings(algo="loha" if algo != "loha" else "lokr", rank=2), generator())
    with pytest.raises(RunError, match=r"lora\.algo"):
        other.restore(state)


@pytest.mark.parametrize("algo", ALGOS)
def test_a_file_is_read_back_to_train_and_to_draw(make_model, tmp_path, checkpoint, algo):
    settings = LoraSettings(algo=algo, rank=2, alpha=3)
    made = inject(make_model(), settings, generator())
    for layer in made.layers.values():
        move(layer)
    save_lora(path := tmp_path / "one.safetensors", made, {}, "fp32")
    verify_saved(path, checkpoint, trained=True)
    file = load_lora_state(path)
    assert file.loads_in_comfyui

    again = inject(make_model(), settings, generator(9))
    assert not again.load(file).untouched
    drawn = apply_file(make_model(), file)
    assert not drawn.left_out
    for name, layer in made.layers.items():
        x = torch.randn(3, layer.in_features, generator=generator(7))
        for other in (again.layers[name], drawn.layers[name]):
            assert torch.allclose(other(x), layer(x), atol=1e-4), name

    another = "lora" if algo != "lora" else "lokr"
    if LORA_KINDS[another] is not LORA_KINDS[algo]:
        with pytest.raises(ConfigError, match=f"Set lora.algo to {made.layers[name].algo}"):
            inject(make_model(), LoraSettings(algo=another, rank=2), generator()).load(file)


def test_factors_of_another_size_are_refused_by_name(make_set, tmp_path):
    made = make_set(trained=False, algo="lokr", rank=1)
    save_lora(path := tmp_path / "one.safetensors", made, {}, "fp32")
    with pytest.raises(ConfigError, match=r"other factors for .*lora\.rank and lora\.factor"):
        make_set(trained=False, algo="lokr", rank=1, factor=2).load(load_lora_state(path))


def test_layers_of_several_kinds_stand_in_one_file(make_model, tmp_path, checkpoint):
    settings = LoraSettings(
        algo="lokr",
        rank=2,
        target="full",
        modules={"*audio*": {"algo": "lora", "rank": 3, "alpha": 6}, "*ff*": {"algo": "dora"}},
    )
    made = inject(make_model(), settings, generator())
    for layer in made.layers.values():
        move(layer)
    assert "LoKr (" in made.describe()
    save_lora(path := tmp_path / "one.safetensors", made, {}, "fp32")
    verify_saved(path, checkpoint, trained=True)
    audio = "transformer_blocks.0.audio_attn1.to_q"
    assert made.layers[audio].own_scale == 2
    keys = load_file(path)
    assert keys[f"diffusion_model.{audio}.lora_A.weight"].shape == (3, 6)
    assert "diffusion_model.transformer_blocks.0.attn1.to_q.lokr_w1" in keys
    keep_branches(path, ["audio"], tmp_path / "audio.safetensors")
    kept = load_lora_state(tmp_path / "audio.safetensors").layers
    assert kept.keys() == {name for name in made.layers if branch_of(name) == "audio"}
    keep_branches(path, ["video"], tmp_path / "video.safetensors")
    assert not load_lora_state(tmp_path / "video.safetensors").unpaired
    drawn = apply_file(make_model(), load_lora_state(path))
    x = torch.randn(3, 12, generator=generator(7))
    for name in ("transformer_blocks.1.attn1.to_q", "transformer_blocks.1.ff.net.0.proj"):
        assert torch.allclose(drawn.layers[name](x), made.layers[name](x), atol=1e-4)


def test_files_of_lycoris_count_by_their_alpha(tmp_path, make_model):
    name = "transformer_blocks.0.attn1.to_q"
    at, noise = f"lora_unet_{name.replace('.', '_')}", generator(3)
    parts = {
        "lokr_w1_a": torch.randn(3, 2, generator=noise),
        "lokr_w1_b": torch.randn(2, 3, generator=noise),
        "lokr_w2_a": torch.randn(4, 2, generator=noise),
        "lokr_w2_b": torch.randn(2, 4, generator=noise),
        "alpha": torch.tensor(1.0),
    }
    save_file({f"{at}.{part}": tensor for part, tensor in parts.items()}, path := tmp_path / "one.safetensors")
    layer = apply_file(make_model(), load_lora_state(path)).layers[name]
    change = 0.5 * torch.kron(parts["lokr_w1_a"] @ parts["lokr_w1_b"], parts["lokr_w2_a"] @ parts["lokr_w2_b"])
    x = torch.randn(3, 12, generator=noise)
    assert torch.allclose(layer(x) - layer.base(x), linear(x, change), atol=1e-4)


def test_a_dora_by_outputs_is_refused(tmp_path, make_model):
    at = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {f"{at}.lora_A.weight": torch.ones(2, 12), f"{at}.lora_B.weight": torch.ones(12, 2)}
    save_file({**tensors, f"{at}.dora_scale": torch.ones(12, 1)}, path := tmp_path / "one.safetensors")
    with pytest.raises(ConfigError, match="dora_scale cannot be used"):
        apply_file(make_model(), load_lora_state(path))


def test_sizes_split_as_lycoris_splits_them():
    # what LyCORIS documents for its own factorization
    assert [split(size, -1) for size in (127, 128, 250, 360, 512, 1024)] == [
        (1, 127),
        (8, 16),
        (10, 25),
        (18, 20),
        (16, 32),
        (32, 32),
    ]
    assert [split(250, factor) for factor in (2, 4, 8, 16)] == [(2, 125), (2, 125), (5, 50), (10, 25)]
    assert [split(4096, factor) for factor in (8, 16)] == [(8, 512), (16, 256)]


def test_noise_has_the_statistics_of_the_base():
    base = nn.Linear(256, 256)
    with torch.no_grad():
        base.weight.normal_(0.5, 2.0)
    layer = layer_for("lokr", base, moved=False, rank=64, lokr_norm=0.01)
    assert layer.measures
    layer.measure(generator(3))
    parts = layer.exported()
    assert torch.equal(parts["lokr_w1"], torch.ones(16, 16))
    assert float(parts["lokr_w2"].mean()) == pytest.approx(0.005, abs=0.004)
    assert float(parts["lokr_w2"].std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"algo": "lora", "factor": 4}, r"lora\.factor is 4"),
        ({"algo": "loha", "lokr_norm": 1e-3}, r"lora\.lokr_norm"),
        ({"algo": "lokr", "rank": 1, "lokr_norm": 1e-3, "factor": 2}, r"lora\.rank to 7 or more"),
        ({"modules": {"*attn9*": {"rank": 4}}}, r"lora\.modules: '\*attn9\*' names none"),
        ({"modules": {"*attn1*": {"factor": 4}}}, r"'\*attn1\*' has factor = 4, which LoKr alone has.*is lora"),
        ({"algo": "lokr", "modules": {"*": {"algo": "loha", "factor": 4}}}, r"'\*' has factor = 4.*is loha"),
        ({"modules": {"*attn1*": {"rank": 4}, "*to_q": {"rank": 8}}}, r"'\*attn1\*' decides nothing"),
    ],
)
def test_what_a_kind_does_not_have_is_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        check_kinds(LoraSettings(**settings), {"transformer_blocks.0.attn1.to_q": (24, 24)})


@pytest.mark.parametrize("settings", [{"algo": "lokr"}, {"modules": {"*": {"algo": "lokr", "factor": 4}}}])
def test_a_module_may_have_a_factor_where_its_layers_are_lokr(settings):
    given = {"modules": {"*attn1*": {"factor": 4}}, **settings}
    check_kinds(LoraSettings(**given), {"transformer_blocks.0.attn1.to_q": (24, 24)})


@pytest.mark.parametrize("algo", ALGOS)
def test_the_base_is_left_when_the_lora_is_off(make_set, algo):
    loras = make_set(trained=False, algo=algo)
    for layer in loras.layers.values():
        move(layer)
    path, layer = next(iter(loras.layers.items()))
    x = torch.randn(3, layer.in_features)
    changed = layer(x)
    with loras.off():
        assert torch.equal(loras.model.get_submodule(path)(x), layer.base(x))
    assert torch.equal(layer(x), changed)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"algo": "lokr", "rank": 8, "alpha": 4}, ["lora.alpha (4) does not count"]),
        ({"algo": "lokr", "rank": 8, "rslora": True}, ["lora.rslora (on) does not count"]),
        ({"algo": "lokr", "rank": 1, "alpha": 4, "rslora": True}, []),
        ({"algo": "lokr", "rank": 8}, []),
        ({"algo": "lora", "rank": 8, "alpha": 4}, []),
        (
            {"rank": 8, "alpha": 4, "modules": {"b.*": {"algo": "lokr", "alpha": 2}}},
            ["lora.modules.'b.*'.alpha (2) does not count"],
        ),
    ],
)
def test_an_alpha_that_no_layer_counts_is_named(settings, said):
    found = idle_alphas(LoraSettings(**settings), {"a.to_q": (12, 12), "b.to_q": (12, 12)})
    assert [text.partition(":")[0] for text in found] == said


@pytest.mark.parametrize("table", [{"algo": "lokr", "factor": 0}, {"modules": {"*": {"algo": "lokr", "factor": 0}}}])
def test_a_factor_of_0_is_refused_by_name(table):
    with pytest.raises(ConfigError, match="factor.*0 is no size of a factor; -1 sets no limit"):
        parse(LoraSettings, table, "run.toml")
