"""A LoRA file of ours, read by the loaders of ltx-core and of diffusers, changes every weight as it does here."""

import pytest
import torch
from parity.oracles_transformer import Diffusers, build
from safetensors.torch import load_file

from ltx2_train.lora.inject import LoraSettings, inject
from ltx2_train.lora.save import save_lora

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
