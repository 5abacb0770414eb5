"""The text encoder as an object: what fits, what it costs, what identifies it, how it stops."""

import shutil

import pytest
import torch
from quantized_layouts import as_mxfp8, as_nvfp4

from ltx2_train import files
from ltx2_train.errors import CheckpointError, DataError, OutOfMemory, Stopped
from ltx2_train.events import Events
from ltx2_train.models.text import FeatureExtractor
from ltx2_train.weights import text_encoder
from ltx2_train.weights.gemma import load_gemma
from ltx2_train.weights.gemma_files import open_gemma
from ltx2_train.weights.gemma_settings import GemmaSettings
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.text_encoder import TextEncoder, check_text_encoder, text_fingerprint
from ltx2_train.weights.tiny_gemma import write_tiny_gemma

COLUMNS = 7 * 32


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_gemma(tmp_path_factory.mktemp("gemma"))


def _checkpoint(path, audio_width=16, columns=COLUMNS, prefix="text_embedding_projection.", fp8=False, video_width=24):
    generator = torch.Generator().manual_seed(1)
    tensors = {"model.diffusion_model.patchify_proj.weight": torch.zeros(2, 2)}
    for name, value in FeatureExtractor(columns, video_width, audio_width).state_dict().items():
        tensor = torch.randn(value.shape, generator=generator) / columns**0.5
        if fp8 and tensor.ndim == 2:
            tensors[f"{prefix}{name}_scale"] = torch.tensor(0.01)
            tensor = (tensor / 0.01).to(torch.float8_e4m3fn)
        tensors[prefix + name] = tensor
    files.write_tensors(path, tensors)
    return path


@pytest.fixture
def checkpoint(tmp_path):
    return _checkpoint(tmp_path / "ltx.safetensors")


@pytest.fixture
def encoder(tiny, checkpoint):
    return TextEncoder.load(tiny[0], checkpoint, torch.float32)


def _change(path, change):
    with TensorFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    files.write_tensors(path, change(tensors))


def test_the_check_tells_version_and_size(tiny, tmp_path):
    old = _checkpoint(tmp_path / "old.safetensors", audio_width=None)
    new = _checkpoint(tmp_path / "new.safetensors")
    for path in tiny:
        info = check_text_encoder(path, old)
        assert (info.version, info.hidden, info.layers, info.columns) == ("2.0", 32, 6, COLUMNS)
        assert check_text_encoder(path, new).version == "2.3"
        assert 4 * COLUMNS * 24 < info.nbytes < path.stat().st_size + 1_000_000


def test_an_encoder_of_another_size_is_refused_with_both_numbers_and_no_weight_read(tiny, tmp_path, monkeypatch):
    checkpoint = _checkpoint(tmp_path / "ltx.safetensors", columns=49 * 8)

    def read(*_):
        raise AssertionError("a weight was read")

    monkeypatch.setattr(TensorFile, "read", read)
    for path in tiny:
        for attempt in (check_text_encoder, TextEncoder.load):
            with pytest.raises(CheckpointError, match=r"7 states of 32 values, 224 in all.*392.*Gemma 3 12B"):
                attempt(path, checkpoint)


def test_a_missing_tokenizer_is_found_by_the_check(tiny, checkpoint, tmp_path):
    path = shutil.copy(tiny[0], tmp_path / "bare.safetensors")
    _change(path, lambda tensors: {n: t for n, t in tensors.items() if n != "spiece_model"})
    with pytest.raises(CheckpointError, match="spiece_model"):
        check_text_encoder(path, checkpoint)


def test_a_checkpoint_without_text_projection_says_so(tiny, tmp_path):
    path = tmp_path / "transformer_only.safetensors"
    files.write_tensors(path, {"model.diffusion_model.patchify_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(CheckpointError, match="transformer_only.safetensors: The text projection is missing"):
        check_text_encoder(tiny[0], path)


def test_an_incomplete_text_projection_is_found_by_the_check(tiny, checkpoint):
    name = "text_embedding_projection.audio_aggregate_embed.bias"
    _change(checkpoint, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        check_text_encoder(tiny[0], checkpoint)


def test_a_projection_file_of_its_own_serves_too(tiny, encoder, tmp_path):
    bare = _checkpoint(tmp_path / "projection.safetensors", prefix="")
    (one,), (other,) = encoder.encode(["a fox"]), TextEncoder.load(tiny[0], bare, torch.float32).encode(["a fox"])
    assert torch.equal(one.video, other.video)


def test_an_fp8_projection_is_dequantized(tiny, encoder, tmp_path):
    path = _checkpoint(tmp_path / "fp8.safetensors", fp8=True)
    (one,), (other,) = encoder.encode(["a fox"]), TextEncoder.load(tiny[0], path, torch.float32).encode(["a fox"])
    assert ((one.video - other.video).norm() / one.video.norm()).item() < 0.05


@pytest.mark.parametrize(("stored", "loss"), [(as_nvfp4, 0.15), (as_mxfp8, 0.05)])
def test_a_projection_in_blocks_of_a_scale_is_read(tiny, tmp_path, stored, loss):
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("plain", "packed")}
    for path in paths.values():
        _checkpoint(path, audio_width=32, video_width=64)

    def pack(tensors):
        for layer in [name.removesuffix(".weight") for name in tensors if name.endswith("embed.weight")]:
            tensors |= stored(layer, tensors[f"{layer}.weight"])
        return tensors

    _change(paths["packed"], pack)
    assert check_text_encoder(tiny[0], paths["packed"]).columns == COLUMNS
    (one,), (other,) = (TextEncoder.load(tiny[0], path, torch.float32).encode(["a fox"]) for path in paths.values())
    for side in ("video", "audio"):
        assert (getattr(one, side) - getattr(other, side)).norm() < loss * getattr(one, side).norm()


@pytest.mark.parametrize("placement", ["device", "layers"])
@pytest.mark.parametrize("stored", [as_nvfp4, as_mxfp8, None])
def test_gemma_in_blocks_of_a_scale_encodes_as_its_numbers_do(tmp_path, checkpoint, stored, placement):
    """`stored` None: every other layer in NVFP4, as in ComfyUI's mixed file."""
    single, _ = write_tiny_gemma(tmp_path, intermediate=64, head_dim=32)
    plain = shutil.copy(single, tmp_path / "plain.safetensors")

    def pack(tensors):
        for count, layer in enumerate([name.removesuffix(".weight") for name in tensors if "_proj." in name]):
            if stored is not None or count % 2:
                tensors |= (stored or as_nvfp4)(layer, tensors[f"{layer}.weight"])
        return tensors

    _change(single, pack)
    with open_gemma(single) as opened:
        assert opened.stored.kinds
        model = load_gemma(opened, torch.float32, on_linear=lambda path, linear: None)
    numbers = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    _change(plain, lambda tensors: tensors | {name: numbers[name] for name in tensors if name in numbers})
    settings = GemmaSettings(placement=placement, compute_dtype="fp32")
    found = []
    for path in (single, plain):
        with TextEncoder.load(path, checkpoint, torch.float32, settings=settings) as encoder:
            found.append(encoder.encode(["a fox runs"])[0].video)
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


def test_a_projection_that_cannot_be_read_is_called_so(tiny, checkpoint):
    name = "text_embedding_projection.video_aggregate_embed.weight"
    _change(checkpoint, lambda tensors: tensors | {name: torch.zeros(24, COLUMNS // 2, dtype=torch.uint8)})
    with pytest.raises(CheckpointError, match=r"stores the text projection as 4-bit \(.*video_aggregate_embed\)"):
        check_text_encoder(tiny[0], checkpoint)


def test_features_come_in_the_order_of_the_captions_and_equal_ones_once(encoder, monkeypatch):
    captions = ["rain and thunder over the hills", "a", "rain and thunder over the hills", "a fox runs"]
    encoded = []
    original = encoder.hidden_states
    monkeypatch.setattr(encoder, "hidden_states", lambda ids: encoded.extend(ids) or original(ids))
    found = encoder.encode(captions, batch_size=2)
    assert len(encoded) == 3
    for caption, features in zip(captions, found, strict=True):
        assert features.tokens == len(encoder.tokenizer.ids(caption))
        torch.testing.assert_close(features.audio, encoder.encode([caption])[0].audio, rtol=1e-5, atol=1e-5)
        assert (features.video.shape[1], features.audio.shape[1]) == (24, 16)


def test_both_streams_of_the_older_version_are_one_tensor(tiny, tmp_path):
    old = _checkpoint(tmp_path / "old.safetensors", audio_width=None)
    (features,) = TextEncoder.load(tiny[0], old, torch.bfloat16).encode(["a fox"])
    assert features.shared
    assert features.to(dtype=torch.float32).shared
    assert features.video.dtype == torch.bfloat16
    assert features.video.device.type == "cpu"


def test_features_can_take_part_in_training(encoder):
    (features,) = encoder.encode(["a fox"])
    weight = torch.ones(24, requires_grad=True)
    (features.video * weight).sum().backward()
    assert weight.grad is not None


def test_progress_is_told_and_a_stop_is_heeded(encoder):
    class Recorder(Events):
        seen: list = []

        def progress(self, done, total, text=""):
            self.seen.append((done, total))

        def should_stop(self):
            return len(self.seen) == 2

    with pytest.raises(Stopped):
        encoder.encode(["a", "a fox", "a red fox"], events=Recorder())
    assert Recorder.seen == [(1, 3), (2, 3)]


def test_streaming_leaves_the_weights_where_they_were(tiny, checkpoint):
    encoder = TextEncoder.load(tiny[0], checkpoint, torch.float32, stream=True)
    before = {name: tensor.data_ptr() for name, tensor in encoder._gemma.named_parameters()}
    encoder.encode(["a fox", "rain"], batch_size=2)
    assert before == {name: tensor.data_ptr() for name, tensor in encoder._gemma.named_parameters()}


def test_numbers_that_are_none_are_an_error_that_names_the_caption(tiny, checkpoint, tmp_path):
    path = shutil.copy(tiny[0], tmp_path / "broken.safetensors")
    _change(path, lambda tensors: tensors | {"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(DataError, match="'a fox'"):
        TextEncoder.load(path, checkpoint, torch.float32).encode(["a fox"])


def test_a_closed_encoder_encodes_no_more(encoder):
    with encoder:
        encoder.encode(["a"])
    with pytest.raises(RuntimeError, match="closed"):
        encoder.encode(["a"])


def test_the_fingerprint_needs_no_weights_and_survives_a_copy(tiny, checkpoint, encoder, tmp_path):
    shutil.copy(tiny[0], tmp_path / "other name.safetensors")
    shutil.copy(checkpoint, tmp_path / "other checkpoint.safetensors")
    shutil.copytree(tiny[1], tmp_path / "other folder")
    expected = text_fingerprint(tiny[0], checkpoint)
    assert encoder.fingerprint == expected
    assert text_fingerprint(tmp_path / "other name.safetensors", tmp_path / "other checkpoint.safetensors") == expected
    assert text_fingerprint(tiny[1], checkpoint) == text_fingerprint(tmp_path / "other folder", checkpoint)


def test_the_fingerprint_ignores_the_transformer(tiny, checkpoint):
    expected = text_fingerprint(tiny[0], checkpoint)
    _change(checkpoint, lambda t: t | {"model.diffusion_model.patchify_proj.weight": torch.ones(9, 2)})
    assert text_fingerprint(tiny[0], checkpoint) == expected


@pytest.mark.parametrize(
    "name",
    [
        "model.norm.weight",
        "model.embed_tokens.weight",
        "model.layers.5.self_attn.q_proj.weight",
        "model.layers.1.self_attn.o_proj.weight",
        "model.layers.2.mlp.down_proj.weight",
        "spiece_model",
    ],
)
def test_the_fingerprint_sees_another_text_encoder(tiny, checkpoint, tmp_path, name):
    path = shutil.copy(tiny[0], tmp_path / "gemma.safetensors")
    _change(path, lambda tensors: tensors | {name: tensors[name] + 1})
    assert text_fingerprint(path, checkpoint) != text_fingerprint(tiny[0], checkpoint)


def test_the_fingerprint_sees_another_projection(tiny, checkpoint):
    before = text_fingerprint(tiny[0], checkpoint)
    name = "text_embedding_projection.audio_aggregate_embed.weight"
    _change(checkpoint, lambda tensors: tensors | {name: tensors[name] * 2})
    assert text_fingerprint(tiny[0], checkpoint) != before


def test_another_number_of_hidden_states_is_named(encoder, monkeypatch):
    class Short(torch.nn.Module):
        embed_tokens, layers = encoder._gemma.embed_tokens, encoder._gemma.layers

        def forward(self, **_):
            return type("Output", (), {"hidden_states": (torch.zeros(1, 2, 32),) * 6})

    monkeypatch.setattr(encoder, "_gemma", Short())
    with pytest.raises(CheckpointError, match="6 hidden states instead of 7"):
        encoder.encode(["a"])


def test_a_full_device_says_what_to_change(tiny, checkpoint, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(text_encoder, "load_gemma", full)
    with pytest.raises(OutOfMemory, match="fp8 text encoder"):
        TextEncoder.load(tiny[0], checkpoint)
