import json
import os
import threading

import pytest
import torch
from safetensors.torch import save_file

from ltx2_train.errors import CheckpointError
from ltx2_train.weights.reader import TensorFile

TENSORS = {
    "bf16": torch.randn(3, 4).bfloat16(),
    "fp16": torch.randn(2, 5).half(),
    "fp32": torch.randn(7),
    "fp8": torch.randn(4, 4).to(torch.float8_e4m3fn),
    "fp8_wide": torch.randn(4).to(torch.float8_e5m2),
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "long": torch.arange(5),
    "bytes": torch.arange(9, dtype=torch.uint8),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "a.safetensors", metadata={"config": '{"transformer": {"x": 1}}', "note": "n"})
    return tmp_path / "a.safetensors"


def write(path, header, data=b"", length=None):
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin, end, shape=None, dtype="U8"):
    return {"dtype": dtype, "shape": shape or [end - begin], "data_offsets": [begin, end]}


@pytest.mark.parametrize("name", TENSORS)
def test_every_type_reads_back_bit_for_bit(path, name):
    with TensorFile(path) as file:
        got = file.read(name)
    assert got.dtype == TENSORS[name].dtype
    assert got.shape == TENSORS[name].shape
    assert torch.equal(got.float(), TENSORS[name].float())


def test_header_alone_is_read_until_a_tensor_is_asked_for(path):
    with TensorFile(path) as file:
        assert file.bytes_read == 0
        assert file.metadata["note"] == "n"
        assert file.config == {"transformer": {"x": 1}}
        assert file.tensors["bf16"].shape == (3, 4)
        file.read("fp32")
        assert file.bytes_read == 28


def test_dtype_is_cast_on_arrival(path):
    with TensorFile(path) as file:
        assert file.read("fp8", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_raw_bytes_stop_at_the_end_of_the_tensor(path):
    with TensorFile(path) as file:
        assert file.read_bytes("bytes", 6, 100) == bytes([6, 7, 8])
        assert file.read_bytes("bytes", 20, 4) == b""


def test_a_closed_reader_lets_go_and_opens_again(path):
    file = TensorFile(path)
    file.read("fp32")
    file.close()
    path.rename(path.with_name("b.safetensors")).rename(path)
    assert torch.equal(file.read("fp32"), TENSORS["fp32"])
    file.close()


def test_threads_share_one_reader(tmp_path):
    tensors = {str(index): torch.full((20_000,), float(index)) for index in range(16)}
    save_file(tensors, tmp_path / "t.safetensors")
    wrong = []
    with TensorFile(tmp_path / "t.safetensors") as file:

        def work(name):
            for _ in range(20):
                if not torch.equal(file.read(name), tensors[name]):
                    wrong.append(name)

        threads = [threading.Thread(target=work, args=(name,)) for name in tensors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_missing_tensor_is_named(path):
    with TensorFile(path) as file, pytest.raises(CheckpointError, match="no tensor named nope"):
        file.read("nope")


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_truncated_file_is_called_unfinished_with_its_size(path, keep):
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(CheckpointError, match="damaged or still downloading") as caught:
        TensorFile(path)
    assert f"{len(data[:keep]):,} bytes" in str(caught.value)


def test_a_file_that_shrinks_while_open_is_noticed(path):
    with TensorFile(path) as file:
        last = max(file.tensors, key=lambda name: file.tensors[name].offset)
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(CheckpointError, match="changed since it was opened"):
            file.read(last)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": entry(0, 4), "b": entry(2, 6)}, "overlaps"),
        ({"a": entry(0, 4, shape=[8])}, "has 4 bytes"),
        ({"a": entry(0, 4)}, "the last 4 bytes belong to no tensor"),
        ({"a": entry(4, 8)}, "4 bytes before a belong to no tensor"),
        ({"a": entry(4, 0, shape=[4])}, "out of range"),
        ({"a": {"dtype": "U8"}}, "not readable"),
        ({"a": entry(0, 4), "__metadata__": ["x"]}, "metadata"),
        ([1, 2], "not a table"),
    ],
)
def test_contradictory_headers_are_refused(tmp_path, header, reason):
    with pytest.raises(CheckpointError, match=reason):
        TensorFile(write(tmp_path / "x.safetensors", header, bytes(8)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b'{"a": {"dtype": "U8", "shape": [Infinity], "data_offsets": [0, 4]}}', "Infinity is no number"),
        (b'{"a": {"dtype": "U8", "shape": [1e999], "data_offsets": [0, 4]}}', "1e999 is no number"),
        (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', "NaN is no number"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deep"),
        (b'{"\xff\xff": 1}', "not UTF-8"),
    ],
)
def test_headers_that_are_no_plain_json_are_called_damaged(tmp_path, text, reason):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(8))
    with pytest.raises(CheckpointError, match=f"damaged or still downloading.*{reason}") as caught:
        TensorFile(path)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("config", ["[" * 100_000, '{"transformer": {"num_layers": 1e999}}'])
def test_a_config_that_is_no_plain_json_is_none(tmp_path, config):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"config": config})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert file.config is None


def test_an_unknown_type_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="a as F3_X"):
        TensorFile(write(tmp_path / "x.safetensors", {"a": entry(0, 4, dtype="F3_X")}, bytes(4)))


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
        (b"PK\x03\x04\x14\x00\x00\x08", "pickle"),
        (b"\x80\x02\x8a\nl\xfc\x9cF", "pickle"),
        (b"version https://git-lfs", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"RIFFsomething", "not a safetensors file"),
    ],
)
def test_other_formats_are_named(tmp_path, start, said):
    (tmp_path / "x.safetensors").write_bytes(start + bytes(100))
    with pytest.raises(CheckpointError, match=said):
        TensorFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("length", [0x3C, 0x0280, 0x213C])
def test_a_header_length_that_looks_like_another_format_is_still_a_length(tmp_path, length):
    text = json.dumps({"a": entry(0, 1)})
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + text.ljust(length).encode() + b"\x07")
    with TensorFile(path) as file:
        assert file.read("a").item() == 7


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="is not a file"):
        TensorFile(tmp_path / "x.safetensors")


def test_a_folder_and_a_missing_file_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="folder"):
        TensorFile(tmp_path)
    with pytest.raises(CheckpointError, match="Could not open"):
        TensorFile(tmp_path / "none.safetensors")


def test_an_unreadable_config_is_none(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "x.safetensors", metadata={"config": "{not json"})
    with TensorFile(tmp_path / "x.safetensors") as file:
        assert file.config is None
