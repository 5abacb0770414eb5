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
from ltx2_train.placement import fit_for_sampling
from ltx2_train.training import peers
from ltx2_train.training.check_full import check_full, require_plain
from ltx2_train.training.checks import check_settings
from ltx2_train.training.fit.machine import Machine, Rates
from ltx2_train.training.peers import ALONE, Peers, check_sharded_batches, join_peers


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


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ({"quant": {"format": "fp8"}}, "quant.format is fp8"),
        ({"memory": {"blocks_to_swap": 2}}, "memory.blocks_to_swap is 2"),
        ({"memory": {"recompute_blocks": 1}}, "memory.recompute_blocks is 1"),
        ({"memory": {"gradient_checkpointing": False}}, "memory.gradient_checkpointing is off"),
        ({"regularizers": {"blank": {"weight": 1}}}, "regularizers are on"),
    ],
)
def test_what_does_not_go_with_blocks_that_are_shared_out_is_named(two, groups, word):
    groups = {**groups, "memory": {"shard": True, **groups.get("memory", {})}}
    with pytest.raises(ConfigError, match=f"memory.shard is on: {word}"):
        join_peers(run(**groups))


def test_sharing_out_needs_several_processes_plain_weights_and_batches_of_one_pass():
    alone = run(memory={"shard": True})
    with pytest.raises(ConfigError, match=r"memory\.shard .* train\.processes above 1"):
        alone.require_effect()
    shared = run(model={"mode": "av", "device": "cpu"}, memory={"shard": True}, train={"processes": 2})
    check_sharded_batches(shared, [1, 1])
    with pytest.raises(ConfigError, match="batch_size = 2: with sounds or references"):
        check_sharded_batches(shared, [1, 2])
    require_plain(shared, "base.safetensors", "none")
    with pytest.raises(ConfigError, match=r"memory.shard is on, and base.safetensors is fp8"):
        require_plain(shared, "base.safetensors", "fp8")
    assert not fit_for_sampling(alone, torch.device("cpu")).shard  # samples are drawn by one process


@pytest.mark.parametrize(
    ("groups", "word"),
    [
        ({"memory": {"shard": True}, "optimizer": {"name": "adafactor"}}, "Choose adamw or adamw_bf16, or switch"),
        ({"memory": {"shard": True}, "optimizer": {"name": "adamw8bit"}}, "more of a weight than one card holds"),
        ({"full": {"release_gradients": True}}, "release_gradients is on, and there are 2 processes"),
    ],
)
def test_full_fine_tuning_by_several_processes_names_what_it_cannot_do(groups, word):
    train = {"what": "full", "processes": 2, "clip_norm": 0}
    with pytest.raises(ConfigError, match=word):
        check_full(run(train=train, **groups))
    check_full(run(train=train, memory={"shard": True}, optimizer={"name": "adamw_bf16"}))
    check_full(run(train=train, optimizer={"name": "adafactor"}))  # each holds all, and all move it alike


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
