"""Tables of users become settings, or are refused by the path of what is wrong."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from ltx2_train.config import RunConfig
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.settings import Settings, parse


class Group(Settings):
    rank: int = Field(default=4, ge=1)
    rate: float | None = None
    on: bool = False
    either: bool | int = 0
    choice: Literal["auto", True] = "auto"
    lengths: tuple[int, ...] = ()


@pytest.mark.parametrize("key", ["rank", "rate", "lengths"])
@pytest.mark.parametrize("value", [True, False])
def test_true_is_no_number(key, value):
    given = [9, value] if key == "lengths" else value
    with pytest.raises(ConfigError, match=rf"{key}.*: needs a (whole )?number \(given: {value}\)"):
        parse(Group, {key: given}, "run.toml")


def test_true_stays_where_it_is_meant():
    group = parse(Group, {"on": True, "either": True, "choice": True, "rate": 1}, "run.toml")
    assert (group.on, group.either, group.choice, group.rate) == (True, True, True, 1.0)


@pytest.mark.parametrize(
    "table", [{"lora": {"rank": True}}, {"train": {"steps": True}}, {"sample": {"tiles": {"spatial_overlap": True}}}]
)
def test_true_is_no_number_anywhere_in_a_run_file(table):
    with pytest.raises(ConfigError, match="needs a (whole )?number"):
        parse(RunConfig, {"run": {"name": "r"}, "model": {"checkpoint": "c"}, **table}, "run.toml")


def test_true_is_no_number_in_a_dataset_file(tmp_path):
    with pytest.raises(ConfigError, match="batch_size: needs a whole number"):
        DatasetConfig.from_table({"datasets": [{"video_directory": "v", "batch_size": True}]}, tmp_path)
