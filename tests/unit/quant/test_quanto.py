"""int4 and int2: the library's numbers, our storage."""

from __future__ import annotations

import builtins

import pytest
import torch
from torch import nn

from ltx2_train.errors import ConfigError
from ltx2_train.quant import FORMATS, QuantSettings, quantize_linear
from ltx2_train.quant.quanto import _packed, _unpacked, group_size

SETTINGS = QuantSettings()


@pytest.mark.parametrize("bits", [4, 2])
def test_numbers_are_those_of_the_library(bits):
    from optimum.quanto import MaxOptimizer, qint2, qint4

    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    module = FORMATS.get(f"int{bits}").quantize(weight, None, SETTINGS, torch.float32)
    levels = {4: qint4, 2: qint2}[bits]
    scale, shift = MaxOptimizer()(weight, levels, 0, 128)
    index = torch.ops.quanto.quantize_affine(weight, bits, 0, 128, scale, shift)
    assert torch.equal(_unpacked(module.weight, bits).view(-1, 128), index)
    torch.testing.assert_close(module.dequantize(), (scale * index - shift).view(16, 256))
    assert module.group_size == 128


@pytest.mark.parametrize("bits", [4, 2])
def test_packing_goes_round_and_puts_the_first_value_highest(bits):
    index = torch.randint(2**bits, (5, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    packed = _packed(index, bits)
    assert packed.shape == (5, 24 * bits // 8)
    assert torch.equal(_unpacked(packed, bits), index)
    assert torch.equal(packed[:, 0] >> (8 - bits), index[:, 0])


def test_group_sizes():
    assert [group_size(width) for width in (4096, 192, 160, 96, 128, 40)] == [128, 96, 32, 32, 64, 40]


def test_sizes_it_cannot_do_are_refused():
    with pytest.raises(ConfigError, match=r"int2 packs 4 values .* 6 inputs"):
        quantize_linear(nn.Linear(6, 4), "int2", SETTINGS)


def test_a_missing_library_is_named_with_its_pip_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("optimum"):
            raise ImportError("No module named 'optimum'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match="pip install optimum-quanto"):
        quantize_linear(nn.Linear(8, 4), "int4", SETTINGS)
