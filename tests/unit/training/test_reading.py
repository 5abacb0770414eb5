"""The numbers of a step are read once."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ltx2_train.training.reading import not_finite, read

COLUMNS = {"loss": [torch.tensor(0.1), torch.tensor(0.3)], "audio_weight": [0.7], "grad_norm": [torch.tensor(2.0)]}


class Reads(TorchDispatchMode):
    """Counts the numbers that are taken out of tensors one by one."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def test_the_columns_are_the_numbers_that_float_gives():
    with Reads() as reads:
        found = read(COLUMNS)
    assert reads.count == 0, "one copy of all of them, not one each"
    assert found == {"loss": [float(x) for x in COLUMNS["loss"]], "audio_weight": [0.7], "grad_norm": [2.0]}
    assert read({"x": [1.5]}) == {"x": [1.5]}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_found_on_the_device(bad):
    assert not_finite(COLUMNS, "loss", "grad_norm").item() == 0.0
    worse = {**COLUMNS, "loss": [torch.tensor(0.1), torch.tensor(bad)]}
    with Reads() as reads:
        found = not_finite(worse, "loss", "grad_norm")
    assert reads.count == 0
    assert found.item() == 1.0
    assert found.dtype == torch.float32
    assert not_finite(worse, "grad_norm").item() == 0.0
