"""What several processes share, and what is refused before they begin."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from ltx2_train import check_processes, make_run, started_processes
from ltx2_train.cli import main
from ltx2_train.errors import ConfigError
from ltx2_train.feed.batches import Batches, BatchOrder
from ltx2_train.training import peers
from ltx2_train.training.checks import check_settings
from ltx2_train.training.fit.machine import Machine, Rates
from ltx2_train.training.peers import ALONE, Peers, join_peers


@pytest.fixture
def two(monkeypatch):
    """This is the second of two processes, as accelerate launch says it."""
    for name, value in {"WORLD_SIZE": 2, "LOCAL_RANK": 1, "RANK": 1}.items():
        monkeypatch.setenv(name, str(value))


def run(**groups):
    return make_run({"model": {"device": "cpu"}, **groups})


def test_the_batches_are_split_without_repeats():
    sample = SimpleNamespace(
        kind="video", dataset=0, shape=(1, 2, 2), fps=25.0, reference_paths=(), audio_steps=0, repeats=1,
        buckets=SimpleNamespace(separate=False),
    )  # fmt: skip
    order = BatchOrder([sample] * 7, 2, seed=3, accumulation=3)

    def taken(count, *share):
        batches = Batches(lambda samples, epoch, index: (epoch, index), order, (0, 3), 0, *share)
        return [next(batches) for _ in range(count)]

    whole = taken(12)
    thirds = [taken(4, (number, 3)) for number in range(3)]
    assert [one for row in zip(*thirds, strict=True) for one in row] == whole
    assert len(set(whole)) == 12


def test_one_process_shares_nothing():
    assert join_peers(run()) is ALONE
    assert ALONE.gather(3) == [3]
    assert ALONE.told(4) == 4
    assert ALONE.lead(lambda: 5) == 5
    assert ALONE.first
    assert not ALONE.several


def test_several_are_refused_where_one_is_at_work(two, monkeypatch):
    assert started_processes() == 2
    with pytest.raises(ConfigError, match="one of 2 processes .* only `ltx2-train train`"):
        check_settings(run())
    monkeypatch.delenv("LOCAL_RANK")
    check_settings(run())  # a cluster may set the number for a single process
    for more in ({}, {"slider": {"config": "slider.toml"}}):
        with pytest.raises(ConfigError, match="train.processes is 2, and (this is one|a slider is trained by one)"):
            check_settings(run(train={"processes": 2}, **more))


def test_what_several_processes_cannot_train_is_refused_before_they_meet(two, monkeypatch):
    with pytest.raises(ConfigError, match="train.processes is 3, and 2 processes were started"):
        join_peers(run(train={"processes": 3}))
    balanced = run(model={"mode": "av", "device": "cpu"}, loss={"balance": {"mode": "inv_freq"}})
    with pytest.raises(ConfigError, match="loss.balance.mode is inv_freq"):
        join_peers(balanced)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="2 processes on this machine and 1 card"):
        check_processes(run(model={"device": "cuda"}), 2)
    with pytest.raises(ConfigError, match="model.device is cuda:1, one card"):
        check_processes(run(model={"device": "cuda:1"}), 2)
    monkeypatch.setattr(peers, "why_missing", lambda name: "is not installed")
    with pytest.raises(ConfigError, match="accelerate, which is not installed: pip install accelerate"):
        join_peers(run())


def test_the_terminal_starts_none_that_cannot_work(tmp_path, capsys):
    (tmp_path / "run.toml").write_text('[model]\nmode = "av"\ndevice = "cpu"\n[loss.balance]\nmode = "ema_mag"\n')
    assert main(["train", str(tmp_path / "run.toml"), "--processes", "2"]) == 2
    assert "loss.balance.mode is ema_mag" in capsys.readouterr().err
    twice = ["train", str(tmp_path / "run.toml"), "--processes", "2", "--set", "train.processes=3"]
    assert main(twice) == 2
    assert "train.processes" in capsys.readouterr().err


def test_a_step_counts_the_batches_of_all(two):
    assert run(train={"accumulation": 3, "processes": 2}).train.batches_a_step == 6
    machine = Machine("cpu", "", 8.0, 8.0, 1.0, Rates(1, 1), lockable=4.0)
    half = machine.shared(2)
    assert (half.ram, half.limit, half.lockable) == (4.0, 4.0, 2.0)
    card = Machine("cuda", "", 24.0, 8.0, 1.0, Rates(1, 1), lockable=math.inf).shared(4)
    assert (card.ram, card.limit) == (2.0, 24.0)
    assert machine.shared(1) is machine


def test_gradients_travel_in_pieces_of_one_dtype(monkeypatch):
    monkeypatch.setattr(peers, "PIECE", 40)
    tensors = [torch.full((3, 2), 1.0), torch.full((2,), 2.0), torch.full((9, 2), 3.0), torch.zeros(4).bfloat16()]
    pieces = list(peers._pieces(tensors))
    assert [[one.numel() for one in piece] for piece in pieces] == [[6, 2], [18], [4]]
    peers._put(pieces[0], torch.arange(8.0))
    torch.testing.assert_close(tensors[0], torch.arange(6.0).view(3, 2))
    torch.testing.assert_close(tensors[1], torch.tensor([6.0, 7.0]))
    assert Peers.count == 1
