"""A LoRA file of ours, read by the loaders of ltx-core and of diffusers, changes every weight as it does here."""

import pytest
import torch
from parity.oracles_transformer import Diffusers, assert_close, build, distance, inputs
from safetensors.torch import load_file

from ltx2_train.lora.apply import apply_file
from ltx2_train.lora.file import load_lora_state
from ltx2_train.lora.inject import inject
from ltx2_train.lora.save import save_lora
from ltx2_train.lora.settings import LoraSettings

pytest.importorskip("ltx_core")
pytest.importorskip("diffusers")
pytest.importorskip("peft")


@pytest.fixture(params=["2.0", "2.3"])
def saved(request, tmp_path):
    """(version, the LoRA in our model, its file); alpha is not the rank, and every linear of a block has a layer."""
    generator = torch.Generator().manual_seed(0)
    loras = inject(build(request.param), LoraSettings(rank=3, alpha=6, include_patterns=[".*"]), generator)
    with torch.no_grad():
        for layer in loras.layers.values():
            layer.lora_B.normal_(generator=generator)
    save_lora(tmp_path / "lora.safetensors", loras, {"settings": {"a": 1}, "step": 5}, "fp32")
    return request.param, loras, tmp_path / "lora.safetensors"


def test_ltx_core_fuses_the_same_change(saved):
    from ltx_core.loader import apply_loras
    from ltx_core.loader.primitives import LoraStateDictWithStrength, StateDict
    from ltx_core.loader.sd_ops import LTXV_LORA_COMFY_RENAMING_MAP
    from ltx_core.loader.sft_loader import SafetensorsStateDictLoader

    version, loras, path = saved
    lora = SafetensorsStateDictLoader().load(str(path), LTXV_LORA_COMFY_RENAMING_MAP, torch.device("cpu"))
    # it fuses into bf16 only; into zeros, so that nothing but the change is rounded
    zeros = {
        name: torch.zeros_like(tensor, dtype=torch.bfloat16) for name, tensor in build(version).state_dict().items()
    }
    base = StateDict(zeros, torch.device("cpu"), 0, {torch.bfloat16})
    after = apply_loras(base, [LoraStateDictWithStrength(lora, 0.5)]).sd
    changed = {name.removesuffix(".weight") for name, tensor in after.items() if tensor.any()}
    assert changed == set(loras.layers)
    for name, layer in loras.layers.items():
        assert torch.allclose(after[f"{name}.weight"].float(), 0.5 * layer.delta(), rtol=1e-2, atol=1e-2), name


def test_diffusers_loads_the_same_change(saved):
    from diffusers import LTX2Pipeline

    version, loras, path = saved
    oracle = Diffusers(build(version))
    state = LTX2Pipeline.lora_state_dict(load_file(path))
    oracle.net.load_lora_adapter(state, prefix="transformer")
    layers = {name: module for name, module in oracle.net.named_modules() if hasattr(module, "get_delta_weight")}
    assert set(layers) == {oracle.name_of(name) for name in loras.layers}
    for name, layer in loras.layers.items():
        module = layers[oracle.name_of(name)]
        (adapter,) = module.active_adapters
        assert torch.allclose(module.get_delta_weight(adapter), layer.delta(), atol=1e-5), name


@pytest.fixture(params=["2.0", "2.3"])
def theirs(request, tmp_path):
    """(our model, diffusers', the LoRA that diffusers saved of every linear); ranks and alphas differ by layer."""
    from diffusers import LTX2Pipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    oracle = Diffusers(build(request.param))
    linears = [name for name, module in oracle.net.named_modules() if isinstance(module, torch.nn.Linear)]
    patterns = {"rank_pattern": {r"0\.attn1\.to_k": 2, "time_embed.linear": 5}, "alpha_pattern": {"ff.net.2": 3}}
    torch.manual_seed(0)
    oracle.net.add_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=linears, init_lora_weights=False, **patterns))
    LTX2Pipeline.save_lora_weights(
        tmp_path, get_peft_model_state_dict(oracle.net), **_collate_lora_metadata({"transformer": oracle.net})
    )
    return build(request.param), oracle, tmp_path / "pytorch_lora_weights.safetensors"


def test_every_layer_of_a_file_of_diffusers_is_placed_at_its_scale(theirs):
    model, oracle, path = theirs
    modules = {name: module for name, module in oracle.net.named_modules() if hasattr(module, "get_delta_weight")}
    applied = apply_file(model, load_lora_state(path))
    assert applied.left_out == []
    assert {oracle.name_of(name) for name in applied.layers} == set(modules)
    for name, layer in applied.layers.items():
        assert torch.allclose(layer.delta(), modules[oracle.name_of(name)].get_delta_weight("default"), atol=1e-5), name


def test_a_file_of_diffusers_changes_the_output_as_its_changes_in_the_weights_do(theirs):
    model, oracle, path = theirs
    version = "2.3" if model.config.is_v23 else "2.0"
    changed = build(version)
    for name, module in changed.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data += oracle.net.get_submodule(oracle.name_of(name)).get_delta_weight("default")
    given = inputs(version)
    plain = model(given.video, given.audio)
    apply_file(model, load_lora_state(path))
    ours, expected = model(given.video, given.audio), changed(given.video, given.audio)
    for side in ("video", "audio"):
        assert_close(getattr(ours, side), getattr(expected, side), 1e-4, side)
        assert distance(getattr(plain, side), getattr(expected, side)) > 0.01, side
