"""How the command line lets the memory of a card grow."""

from __future__ import annotations

import os
import sys

import pytest

from ltx2_train import cli

NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
GROWS = "expandable_segments:True"


@pytest.mark.parametrize(
    ("platform", "torch", "given", "expected"),
    [
        ("linux", "2.11.0+cu128", {}, {NAMES[0]: GROWS}),
        ("linux", "2.8.0", {}, {NAMES[1]: GROWS}),
        ("linux", "2.11.0", {NAMES[1]: "max_split_size_mb:128"}, {NAMES[1]: "max_split_size_mb:128"}),
        ("win32", "2.11.0", {}, {}),
        ("linux", "local", {}, {}),
    ],
)
def test_segments_grow_on_linux_unless_the_user_says_otherwise(platform, torch, given, expected, monkeypatch, capsys):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **given})
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(cli, "version", lambda name: torch)
    assert cli.main([]) == 2  # prints its help
    assert {name: os.environ[name] for name in NAMES if name in os.environ} == expected
