"""Which saves of a run are meant."""

import pytest

from ltx2_train.errors import ConfigError
from ltx2_train.training.pick import pick_loras


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "fox"
    (folder / "lora").mkdir(parents=True)
    for step in range(10, 110, 10):
        (folder / "lora" / f"fox_{step:06d}.safetensors").touch()
    (folder / "lora" / "fox.safetensors").touch()
    return folder


def steps(found):
    return [int(label.split()[-1]) for label in found]


def test_checkpoints_are_picked_by_age_spread_step_and_number(folder):
    assert steps(pick_loras(folder, newest=2)) == [90, 100]
    assert steps(pick_loras(folder, spread=4)) == [10, 40, 70, 100]
    assert steps(pick_loras(folder, spread=1)) == [100]
    assert steps(pick_loras(folder, steps=[50, 20])) == [20, 50]
    assert steps(pick_loras(folder, numbers=[1, -1, 2])) == [10, 20, 100]
    assert steps(pick_loras(folder, newest=1, steps=[100])) == [100], "chosen twice, there once"
    assert len(pick_loras(folder)) == 10
    assert pick_loras(folder, steps=[20])["fox step 20"].name == "fox_000020.safetensors"


def test_what_the_run_lacks_is_refused_by_name(folder):
    with pytest.raises(ConfigError, match="no LoRA of step 15. It has those of 10, 20, 30, 40, ..., 80, 90, 100"):
        pick_loras(folder, steps=[15])
    with pytest.raises(ConfigError, match="no LoRA number 11: it has 10"):
        pick_loras(folder, numbers=[11])
    with pytest.raises(ConfigError, match="no LoRA number 0"):
        pick_loras(folder, numbers=[0])
    for path in (folder / "lora").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="no LoRA yet"):
        pick_loras(folder)
    (folder / "lora" / "fox.safetensors").touch()
    assert list(pick_loras(folder)) == ["fox"], "a run of an early version"
