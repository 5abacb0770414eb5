"""A checkpoint that is quantized once equals one that is quantized on every load."""

from __future__ import annotations

import json
from collections import namedtuple

import pytest
import torch
from quantized_layouts import as_bytes, block_linears, official_fp8, same_state, write
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError, ConfigError, RunError, Stopped
from ltx2_train.events import Events
from ltx2_train.quant.formats import FORMATS
from ltx2_train.quant.settings import QuantSettings
from ltx2_train.weights import keys, writer
from ltx2_train.weights.fingerprint import part_fingerprint
from ltx2_train.weights.load import load_connectors, load_transformer
from ltx2_train.weights.loftq import companion
from ltx2_train.weights.probe import probe
from ltx2_train.weights.quantize import check_quant
from ltx2_train.weights.quantized_file import quantize_checkpoint
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.stored import weight_shapes

ALL = sorted(FORMATS)
ON_CPU = {"device": "cpu"}


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """format -> quantized file, each written once."""
    folder, files = tmp_path_factory.mktemp("quantized"), {}

    def get(format):
        if format not in files:
            path = folder / f"tiny-{format}.safetensors"
            files[format] = quantize_checkpoint(tiny.checkpoint, path, QuantSettings(format=format, **ON_CPU))
        return files[format].path

    return get


@pytest.mark.parametrize("format", ALL)
@pytest.mark.parametrize("asked", ["auto", "the same"])
def test_a_file_and_quantizing_on_load_give_the_same_bytes(tiny, made, format, asked):
    dynamic = load_transformer(tiny.checkpoint, "av", torch.bfloat16, quant=QuantSettings(format=format))
    settings = QuantSettings(format=format if asked == "the same" else "auto")
    assert same_state(load_transformer(made(format), "av", torch.bfloat16, quant=settings), dynamic)


@pytest.mark.parametrize("format", ALL)
def test_the_file_is_known_and_everything_but_the_blocks_is_as_before(tiny, made, format):
    path = made(format)
    info, before = probe(path), probe(tiny.checkpoint)
    assert info.trainable
    assert info.quantized
    assert (info.quant_format, info.precision) == (format, format)
    assert info.parameters == before.parameters
    assert {name: part.parameters for name, part in info.parts.items()} == {
        name: part.parameters for name, part in before.parts.items()
    }
    assert format in info.fit["size"]
    stored, original = load_file(path), load_file(tiny.checkpoint)
    changed = {f"{layer}.weight" for layer in block_linears(original)}
    for name, tensor in original.items():
        assert (name in changed) or torch.equal(as_bytes(stored[name]), as_bytes(tensor)), name
    with TensorFile(path) as new, TensorFile(tiny.checkpoint) as old:
        assert old.metadata.items() <= new.metadata.items()
        assert new.metadata["quant_version"] == "1"
    assert path.stat().st_size < tiny.checkpoint.stat().st_size


@pytest.mark.parametrize("format", ["fp8", "int8_rotated", "nf4"])
def test_caches_of_the_original_stay_valid(tiny, made, format):
    for part in ("video_vae", "audio_vae", "text"):
        assert part_fingerprint(made(format), part) == part_fingerprint(tiny.checkpoint, part)
    assert part_fingerprint(made(format), "transformer") != part_fingerprint(tiny.checkpoint, "transformer")


def test_nf4_files_are_those_of_the_community_trainer(tiny, made):
    stored = load_file(made("nf4"))
    with TensorFile(made("nf4")) as file:
        assert (file.metadata["nf4_quantized"], file.metadata["nf4_block_size"]) == ("true", "32")
    for layer in block_linears(load_file(tiny.checkpoint)):
        rows, width = (int(size) for size in stored[f"{layer}.nf4_shape"])
        assert stored[f"{layer}.nf4_shape"].dtype == torch.int64
        assert (stored[f"{layer}.weight"].dtype, stored[f"{layer}.weight"].shape) == (torch.uint8, (rows, width // 2))
        blocks = width // 32 if width % 32 == 0 else 1
        assert stored[f"{layer}.scale_weight"].shape == (rows, blocks, 1)
        assert stored[f"{layer}.scale_weight"].dtype == torch.bfloat16


def test_a_file_of_the_community_trainer_is_read_without_our_words(made, tmp_path):
    with TensorFile(made("nf4")) as file:
        metadata = {name: text for name, text in file.metadata.items() if not name.startswith("quant_")}
    save_file(load_file(made("nf4")), tmp_path / "x.safetensors", metadata=metadata)
    assert probe(tmp_path / "x.safetensors").quant_format == "nf4"
    settings = QuantSettings(format="nf4")
    ours = load_transformer(made("nf4"), "video", quant=settings)
    assert same_state(load_transformer(tmp_path / "x.safetensors", "video", quant=settings), ours)


@pytest.mark.parametrize("format", ALL)
def test_shapes_count_numbers_whatever_shares_a_byte(tiny, made, format):
    with TensorFile(tiny.checkpoint) as old, TensorFile(made(format)) as new:
        found, expected = weight_shapes(new), weight_shapes(old)
        assert expected == {name: info.shape for name, info in old.tensors.items()}
        assert expected.items() <= found.items()


@pytest.mark.parametrize("format", ["nf4", "int4", "fp8uz"])
def test_without_settings_it_becomes_numbers(tiny, made, format):
    quantized = load_transformer(made(format), "video", torch.float32, quant=QuantSettings())
    plain = load_transformer(made(format), "video", torch.float32)
    path = "transformer_blocks.1.ff.net.2"
    assert type(plain.get_submodule(path)) is torch.nn.Linear
    assert torch.equal(plain.get_submodule(path).weight, quantized.get_submodule(path).dequantize(torch.float32))
    load_connectors(made(format))


@pytest.mark.parametrize(
    ("format", "more", "words"),
    [
        ("nf4", {"format": "fp8"}, "is nf4 already and cannot be quantized again to fp8"),
        ("fp8", {"format": "nf4"}, "is fp8 already and cannot be quantized again to nf4"),
        ("int8", {"format": "int8_rotated"}, "is int8 already"),
        ("nf4", {"format": "nf4", "awq": True}, "quant.awq needs the full-precision weights"),
        ("nf4", {"format": "nf4", "block_size": 64}, "in blocks of 32, but quant.block_size is 64"),
    ],
)
def test_other_settings_are_refused_with_the_remedy(made, format, more, words):
    with pytest.raises(ConfigError, match=words):
        check_quant(made(format), QuantSettings(**more))
    with pytest.raises(ConfigError, match=words):
        load_transformer(made(format), quant=QuantSettings(**more))


def test_the_seeds_switch_goes_with_its_file(made):
    assert check_quant(made("nf4"), QuantSettings(nf4_base=True)) == "nf4"
    assert check_quant(made("fp8"), QuantSettings(fp8_base=True, fp8_scaled=True)) == "fp8"


def test_quantizing_twice_is_refused(tiny, made, tmp_path):
    fp8 = write(tmp_path / "fp8.safetensors", tiny.checkpoint, official_fp8)
    for source in (made("nf4"), made("fp8_cast"), fp8):
        with pytest.raises(CheckpointError, match="is quantized already"):
            quantize_checkpoint(source, tmp_path / "out.safetensors", QuantSettings(format="int8"))
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_requests_are_refused_before_anything_is_written(tiny, tmp_path):
    nf4 = {"format": "nf4"}
    out = tmp_path / "out.safetensors"
    for settings, rank, target, words in (
        ({}, None, out, "name a format"),
        (nf4 | {"awq": True}, None, out, "looks at batches"),
        (nf4 | {"loftq": True}, None, out, "made for one rank"),
        (nf4, 8, out, "A rank is for LoftQ alone"),
        (nf4, None, tmp_path / "out.bin", "must end in .safetensors"),
        (nf4, None, tiny.checkpoint, "is the original itself"),
        (nf4 | {"device": "cuda:99"}, None, out, r"quant\.device"),
    ):
        with pytest.raises(ConfigError, match=words):
            quantize_checkpoint(tiny.checkpoint, target, QuantSettings(**settings), rank)
    with pytest.raises(CheckpointError, match="is a text encoder"):
        quantize_checkpoint(tiny.text_encoder, out, QuantSettings(**nf4))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_and_during(tiny, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda path: usage(10, 5, 5))
    with pytest.raises(RunError, match="Free some space"):
        quantize_checkpoint(tiny.checkpoint, tmp_path / "out.safetensors", QuantSettings(format="nf4"))
    monkeypatch.undo()

    def refuse(self, name, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer.TensorWriter, "write_bytes", refuse)
    with pytest.raises(RunError, match="No space left"):
        quantize_checkpoint(tiny.checkpoint, tmp_path / "out.safetensors", QuantSettings(format="nf4"))
    assert list(tmp_path.iterdir()) == []


class Watch(Events):
    def __init__(self, stop_at=None):
        self.seen, self.stop_at = [], stop_at

    def progress(self, done, total, text=""):
        self.seen.append((done, total))

    def should_stop(self):
        return self.stop_at is not None and len(self.seen) >= self.stop_at


def test_progress_is_told_in_bytes_and_stopping_leaves_nothing(tiny, tmp_path):
    events = Watch()
    quantize_checkpoint(tiny.checkpoint, tmp_path / "a.safetensors", QuantSettings(format="int8"), events=events)
    done = [done for done, _ in events.seen]
    assert done == sorted(done)
    assert done[-1] == events.seen[-1][1]
    with pytest.raises(Stopped):
        quantize_checkpoint(tiny.checkpoint, tmp_path / "b.safetensors", QuantSettings(format="int8"), events=Watch(5))
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_transformer_alone_can_be_quantized(tiny, tmp_path):
    start = keys.TRANSFORMER
    tensors = {name[len(start) :]: one for name, one in load_file(tiny.checkpoint).items() if name.startswith(start)}
    with TensorFile(tiny.checkpoint) as file:
        save_file(tensors, tmp_path / "t.safetensors", metadata=file.metadata)
    settings = QuantSettings(format="nf4", block_size=64)
    made = quantize_checkpoint(tmp_path / "t.safetensors", tmp_path / "q.safetensors", settings)
    dynamic = load_transformer(tmp_path / "t.safetensors", "av", quant=settings)
    assert same_state(load_transformer(made.path, "av", quant=settings), dynamic)
    assert "linears in nf4" in made.summary()


def test_loftq_lies_beside_the_file(tiny, tmp_path):
    settings = QuantSettings(format="nf4", loftq=True)
    made = quantize_checkpoint(tiny.checkpoint, tmp_path / "q.safetensors", settings, rank=6)
    assert made.companion == companion(made.path, 6) == tmp_path / "q.loftq_r6.safetensors"
    with TensorFile(made.companion) as file:
        about = file.metadata
        assert {name: about[name] for name in ("loftq_rank", "loftq_iters", "nf4_block_size", "num_modules")} == {
            "loftq_rank": "6",
            "loftq_iters": "1",
            "nf4_block_size": "32",
            "num_modules": str(made.layers),
        }
        assert file.tensors["transformer_blocks.0.attn1.to_q.lora_A"].shape == (6, 160)
        assert file.tensors["transformer_blocks.0.attn1.to_q.lora_B"].shape == (160, 6)
    # the file itself is that of any rank, and of none
    plain = quantize_checkpoint(tiny.checkpoint, tmp_path / "p.safetensors", QuantSettings(format="nf4"))
    assert plain.path.read_bytes() == made.path.read_bytes()


def test_types_without_a_name_in_the_format_are_written_as_bytes(made):
    with TensorFile(made("fp8uz")) as file:
        assert json.loads(file.metadata["quant_types"]) == {"weight": "float8_e4m3fnuz"}
        name = next(name for name in file.tensors if name.endswith("transformer_blocks.0.attn1.to_q.weight"))
        assert file.tensors[name].dtype == "U8"
