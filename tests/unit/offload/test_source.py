from __future__ import annotations

import copy
import json
import os

import pytest
import torch
from torch import nn

from ltx2_train import files
from ltx2_train.errors import RunError
from ltx2_train.offload.blocks import BlockStreamer
from ltx2_train.offload.host import HostBuffers, HostMemory
from ltx2_train.offload.source import FileBlocks


def make_block(seed, device=None):
    torch.manual_seed(seed)
    block = nn.Sequential(nn.Linear(30, 20), nn.Linear(20, 10, bias=False)).to(torch.bfloat16).requires_grad_(False)
    block.register_buffer("scale", torch.rand(3))
    return block if device is None else block.to(device)


def bytes_read(source, number, step):
    """The block in parts of `step` bytes."""
    size = source.size(number)
    parts = []
    for start in range(0, size, step):
        part = torch.zeros(min(step, size - start), dtype=torch.uint8)
        source.read_into(number, part, start)
        parts.append(part)
    return torch.cat(parts)


@pytest.mark.parametrize("kind", ["ram", "file"])
def test_a_block_reads_as_it_was_in_parts_of_any_size(kind, tmp_path):
    source = HostBuffers() if kind == "ram" else FileBlocks(tmp_path)
    expected = {n: {k: v.clone() for k, v in make_block(n).state_dict().items()} for n in (3, 7)}
    for number in (3, 7):
        source.add(number, make_block(number))
        assert number in source
    for number in (7, 3):
        block = make_block(0)
        layout = source.layout(number)
        whole = bytes_read(source, number, layout.size)
        assert torch.equal(bytes_read(source, number, 100), whole)
        for piece, value in zip(layout.pieces, layout.views(whole), strict=True):
            name = next(name for name, t in block.state_dict().items() if t.shape == piece.shape)
            assert torch.equal(value, expected[number][name])
    source.close()


def test_the_scratch_file_is_gone_with_close_and_never_has_a_name_that_stays(tmp_path):
    folder = tmp_path / "new" / "folder"
    block = make_block(0)
    file = FileBlocks(folder)
    file.add(0, block)
    assert block[0].weight.isnan().all()
    assert block[0].weight.shape == (20, 30)
    file.close()
    assert os.listdir(folder) == []
    with pytest.raises(RunError, match="scratch file"):
        bytes_read(file, 0, 100)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "taken").write_text("x")
    block = make_block(0)
    with FileBlocks(tmp_path / "taken") as file, pytest.raises(RunError, match=r"taken.*memory\.swap_from"):
        file.add(0, block)
    assert not block[0].weight.isnan().any()


def test_a_full_disk_leaves_the_block_whole(tmp_path, monkeypatch):
    file, block = FileBlocks(tmp_path), make_block(0)
    expected = block[0].weight.clone()
    file.add(1, make_block(1))
    real, count = file._scratch, []

    class Full:
        def write(self, data):
            count.append(len(data))
            if len(count) > 2:
                raise OSError(28, "No space left on device")
            return real.write(data[: len(data) // 2] if len(count) == 1 else data)  # short once

        def __getattr__(self, name):
            return getattr(real, name)

    file._scratch = Full()
    with pytest.raises(RunError, match="No space left"):
        file.add(0, block)
    assert torch.equal(block[0].weight, expected)
    assert 0 not in file
    file._scratch = real
    file.add(0, block)
    layout = file.layout(0)
    assert torch.equal(layout.views(bytes_read(file, 0, layout.size))[0], expected)


def offsets_of(path):
    """Byte offsets of the tensors of a safetensors file, by name."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {k: 8 + length + v["data_offsets"][0] for k, v in header.items() if k != "__metadata__"}


def ranges_of(path):
    """Byte ranges of the tensors of a safetensors file, by the block that is the first part of the name."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, value in header.items():
        if name != "__metadata__":
            first, last = value["data_offsets"]
            found.setdefault(int(name.split(".")[0]), []).append((8 + length + first, last - first))
    return lambda number: found.get(number, ())


def write_blocks(path, blocks):
    files.write_tensors(path, {f"{n}.{k}": v for n, b in enumerate(blocks) for k, v in b.state_dict().items()})


def test_what_the_checkpoint_has_is_read_from_there_and_only_the_rest_is_written(tmp_path):
    path, whole = tmp_path / "model.safetensors", [make_block(number) for number in range(3)]
    write_blocks(path, whole)
    blocks = [make_block(number) for number in range(3)]
    blocks[1].scale *= 2  # made while loading
    with FileBlocks(tmp_path, path, ranges_of(path)) as source:
        streamer = BlockStreamer(blocks, [0, 1], "cpu", source=source, poison=True)
        assert source.scratch_bytes == 3 * 4  # the scale of block 1
        assert blocks[0][0].weight.isnan().all()
        for number in (0, 1, 0):
            with streamer.visiting(number, False):
                for name in ("0.weight", "0.bias", "1.weight"):
                    assert torch.equal(blocks[number].get_parameter(name), whole[number].get_parameter(name))
                assert torch.equal(blocks[number].scale, whole[number].scale * (2 if number == 1 else 1))
        size = source.size(1)
        assert torch.equal(bytes_read(source, 1, 70), bytes_read(source, 1, size))
        streamer.close()


def test_a_tensor_that_differs_in_its_last_byte_is_not_taken_for_the_one_in_the_checkpoint(tmp_path):
    path = tmp_path / "model.safetensors"
    big = nn.Linear(300, 200, bias=False).to(torch.bfloat16).requires_grad_(False)
    write_blocks(path, [big])
    other = copy.deepcopy(big)
    other.weight[-1, -1] += 1
    with FileBlocks(tmp_path, path, ranges_of(path)) as source:
        source.add(0, other)
        assert source.scratch_bytes == 300 * 200 * 2


@pytest.mark.parametrize("same", [True, False], ids=["in place", "renamed over"])
def test_a_checkpoint_that_is_written_to_is_refused_and_one_that_was_replaced_is_read_on(tmp_path, same):
    path = tmp_path / "model.safetensors"
    write_blocks(path, [make_block(0)])
    source = FileBlocks(tmp_path, path, ranges_of(path))
    source.add(0, make_block(0))
    expected = bytes_read(source, 0, source.size(0))
    if same:
        with open(path, "r+b") as file:
            file.seek(path.stat().st_size - 10)
            file.write(b"x")
        os.utime(path, ns=(1, 1))
        with pytest.raises(RunError, match="model.safetensors was written to"):
            bytes_read(source, 0, source.size(0))
    else:
        write_blocks(tmp_path / "new", [make_block(1)])
        os.replace(tmp_path / "new", path)
        assert torch.equal(bytes_read(source, 0, source.size(0)), expected)
    source.close()


def test_a_checkpoint_that_is_missing_is_an_error_in_words(tmp_path):
    with pytest.raises(RunError, match="none"):
        FileBlocks(tmp_path, tmp_path / "none")


def test_ram_that_cannot_be_locked_is_ordinary_ram_with_a_sentence(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory = HostMemory(100, pinned=True)
    assert not memory.pinned
    assert "memory.pinned" in memory.note
    assert memory.bytes.numel() == 100
    memory.unlock()
    source = HostBuffers(pinned=True)
    for number in range(3):
        source.add(number, make_block(number))
    assert len(source.notes) == 1
    assert source.direct(0) is None


def test_locked_ram_has_whole_pages_and_is_unlocked_once(monkeypatch):
    locked, unlocked = [], []

    class Runtime:
        def cudaHostRegister(self, pointer, length, flags):
            locked.append((pointer, length))
            return 0

        def cudaHostUnregister(self, pointer):
            unlocked.append(pointer)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    memory = HostMemory(5000, pinned=True)
    assert (memory.pinned, memory.note) == (True, None)
    pointer, length = locked[0]
    assert (pointer % 4096, length) == (0, 8192)
    assert memory.bytes.data_ptr() == pointer
    storage = memory.bytes.untyped_storage()
    assert storage.data_ptr() <= pointer
    assert pointer + length <= storage.data_ptr() + storage.nbytes()
    memory.unlock()
    memory.unlock()
    assert unlocked == [pointer]
    other = HostMemory(10, pinned=True)
    del other
    assert len(unlocked) == 2
