"""RAM that is locked only as far as it may be."""

from __future__ import annotations

import pytest
from torch import nn

from ltx2_train.offload import host
from ltx2_train.offload.host import HostBuffers


def test_blocks_are_locked_as_long_as_there_is_room_for_them(monkeypatch):
    monkeypatch.setattr(host, "_lock", lambda pointer, length: None)
    monkeypatch.setattr(host, "_unlock", lambda pointer, memory: None)
    blocks = [nn.Linear(64, 64, bias=False).requires_grad_(False) for _ in range(4)]
    size = 64 * 64 * 4
    for most, locked in ((float("inf"), 4), (2.5 * size, 2), (0, 0)):
        buffers = HostBuffers(True, most)
        for number, block in enumerate(blocks):
            buffers.add(number, block)
        assert [buffers.direct(number) is not None for number in range(4)] == [number < locked for number in range(4)]
        assert buffers.locked_bytes == pytest.approx(locked * size, abs=4 * 4096)
        assert buffers.notes == [], "what may not be locked was not refused"
        buffers.close()
