import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError, OutOfMemory, Stopped
from ltx2_train.weights import keys
from ltx2_train.weights.load import (
    load_audio_vae,
    load_connectors,
    load_transformer,
    load_video_vae,
    load_vocoder,
)
from ltx2_train.weights.materialise import Arrival, Origin, materialise
from ltx2_train.weights.probe import probe
from ltx2_train.weights.reader import TensorFile

ROOT = Path(__file__).resolve().parents[3]


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 2, bias=False))
        self.scale = torch.nn.Parameter(torch.zeros(3))
        self.register_buffer("table", torch.zeros(5))


@pytest.fixture
def toy(tmp_path):
    tensors = {f"p.{name}": torch.randn(tensor.shape) for name, tensor in Toy().state_dict().items()}
    save_file(tensors, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors", tensors


def meta():
    with torch.device("meta"):
        return Toy()


@pytest.fixture(scope="module")
def contents(tiny):
    with TensorFile(tiny.checkpoint) as file:
        return load_file(tiny.checkpoint), dict(file.metadata)


def test_every_tensor_arrives_frozen_in_eval_mode_and_in_its_dtype(toy):
    path, tensors = toy
    module = meta()
    with TensorFile(path) as file:
        materialise(module, Origin(file, "p.", "toy"), Arrival(torch.bfloat16))
    assert not module.training
    for name, parameter in module.named_parameters():
        assert not parameter.requires_grad
        assert torch.equal(parameter, tensors[f"p.{name}"].bfloat16())
    assert torch.equal(module.table, tensors["p.table"])  # tables keep their precision


def test_progress_counts_bytes_and_may_stop(toy):
    path, tensors = toy
    seen = []
    with TensorFile(path) as file:
        materialise(
            meta(), Origin(file, "p.", "toy"), Arrival(torch.float32, on_progress=lambda *now: seen.append(now))
        )
        assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
        assert seen[-1][0] == seen[-1][1] == sum(tensor.nbytes for tensor in tensors.values())

        def stop(done, total, name):
            raise Stopped("enough")

        before = file.bytes_read
        with pytest.raises(Stopped):
            materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32, on_progress=stop))
        assert file.bytes_read - before < seen[-1][1] / 2


def test_a_linear_is_offered_once_it_is_complete_and_may_be_replaced(toy):
    path, tensors = toy
    module, offered = meta(), []

    def replace(name, linear):
        assert not any(parameter.is_meta for parameter in linear.parameters())
        offered.append(name)
        return torch.nn.Identity() if name == "body.1" else None

    with TensorFile(path) as file:
        materialise(module, Origin(file, "p.", "toy"), Arrival(torch.float32, on_linear=replace))
    assert sorted(offered) == ["body.0", "body.1"]
    assert isinstance(module.body[1], torch.nn.Identity)
    assert torch.equal(module.body[0].weight, tensors["p.body.0.weight"])


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("ending", [".weight_scale", ".scale_weight"])
def test_fp8_weights_are_multiplied_by_their_scale(tmp_path, rows, ending):
    weight = torch.randn(6, 4)
    scale = weight.abs().amax(1) / 448 if rows else weight.abs().max() / 448
    packed = (weight / (scale[:, None] if rows else scale)).to(torch.float8_e4m3fn)
    tensors = {f"p.{name}": torch.zeros(tensor.shape) for name, tensor in Toy().state_dict().items()}
    tensors |= {"p.body.0.weight": packed, f"p.body.0{ending}": scale, "p.body.0.input_scale": torch.tensor(9.0)}
    save_file(tensors, tmp_path / "f.safetensors")
    module = meta()
    with TensorFile(tmp_path / "f.safetensors") as file:
        materialise(module, Origin(file, "p.", "toy"), Arrival(torch.float32))
    assert torch.allclose(module.body[0].weight, weight, atol=float(weight.abs().max()) * 0.07)
    assert torch.equal(module.body[0].weight, packed.float() * (scale[:, None] if rows else scale))


def test_block_scales_are_refused(tmp_path):
    tensors = {f"p.{name}": torch.zeros(tensor.shape) for name, tensor in Toy().state_dict().items()}
    tensors |= {"p.body.0.weight": torch.zeros(6, 4).to(torch.float8_e4m3fn), "p.body.0.weight_scale": torch.ones(3)}
    save_file(tensors, tmp_path / "f.safetensors")
    with TensorFile(tmp_path / "f.safetensors") as file, pytest.raises(CheckpointError, match="3 scales for 6 rows"):
        materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))


def test_an_fp8_checkpoint_becomes_the_model_it_was_made_from(contents, tiny, tmp_path):
    tensors = dict(contents[0])
    for name, tensor in contents[0].items():
        if ".transformer_blocks." in name and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.float().abs().max() / 448
            tensors[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            tensors[f"{name}_scale"] = scale
            tensors[name.replace(".weight", ".input_scale")] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "fp8.safetensors", metadata=contents[1])
    assert probe(tmp_path / "fp8.safetensors").precision == "fp8_e4m3_scaled"
    packed = load_transformer(tmp_path / "fp8.safetensors", "av", torch.float32).state_dict()
    plain = load_transformer(tiny.checkpoint, "av", torch.float32).state_dict()
    for name, tensor in plain.items():
        assert (packed[name] - tensor).norm() <= 0.05 * tensor.norm(), name


def test_missing_extra_and_misshapen_tensors_are_listed(toy, tmp_path):
    path, tensors = toy
    del tensors["p.scale"]
    tensors["p.table"] = torch.zeros(7)
    tensors |= {f"p.more.{index}": torch.zeros(1) for index in range(12)}
    save_file(tensors, tmp_path / "bad.safetensors")
    with TensorFile(tmp_path / "bad.safetensors") as file, pytest.raises(CheckpointError) as caught:
        materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))
    text = str(caught.value)
    assert "1 missing: scale" in text
    assert "table is [7], expected [5]" in text
    assert "12 left over: " in text
    assert "and 2 more" in text


def test_whole_numbers_in_place_of_weights_are_named(toy, tmp_path):
    path, tensors = toy
    tensors["p.table"] = tensors["p.table"].to(torch.int16)
    save_file(tensors, tmp_path / "bad.safetensors")
    with TensorFile(tmp_path / "bad.safetensors") as file, pytest.raises(CheckpointError) as caught:
        materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))
    assert "1 of another type: table is I16, expected a float" in str(caught.value)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_named(toy, tmp_path, number):
    """A kernel may pass it over, and half of the model would be silent."""
    path, tensors = toy
    tensors["p.table"][1] = number
    save_file(tensors, tmp_path / "bad.safetensors")
    with TensorFile(tmp_path / "bad.safetensors") as file:
        with pytest.raises(
            CheckpointError, match=r"toy cannot be loaded from bad\.safetensors: p\.table holds numbers"
        ):
            materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))
    tensors["p.table"][:2] = torch.finfo(torch.float32).max
    save_file(tensors, tmp_path / "large.safetensors")
    with TensorFile(tmp_path / "large.safetensors") as file:
        materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))


@pytest.mark.parametrize(("load", "prefix"), [(load_video_vae, keys.VIDEO_VAE), (load_audio_vae, keys.AUDIO_VAE)])
def test_a_deviation_of_zero_is_refused(contents, tmp_path, load, prefix):
    tensors = dict(contents[0])
    name = f"{prefix}per_channel_statistics.std-of-means"
    tensors[name] = tensors[name].clone()
    tensors[name][3] = 0
    save_file(tensors, tmp_path / "x.safetensors", metadata=contents[1])
    with pytest.raises(CheckpointError, match="std-of-means holds zeros or less"):
        load(tmp_path / "x.safetensors", encoder=True, decoder=False)


@pytest.mark.parametrize("mode", ["video", "audio", "av"])
def test_a_mode_reads_its_own_tensors_and_no_others(tiny, monkeypatch, mode):
    read = []
    original = TensorFile.read

    def spy(self, name, *rest, **more):
        read.append(name)
        return original(self, name, *rest, **more)

    monkeypatch.setattr(TensorFile, "read", spy)
    load_transformer(tiny.checkpoint, mode)
    assert len(read) == len(set(read))
    heard = [name for name in read if ".audio_" in name or "a2v" in name or "v2a" in name or "video_to_audio" in name]
    seen = [name for name in read if name not in heard]
    assert bool(heard) == (mode != "video")
    assert bool(seen) == (mode != "audio")
    assert not any("embeddings_connector" in name for name in read)


def test_one_half_of_a_vae_reads_that_half(tiny, monkeypatch):
    read = []
    original = TensorFile.read
    monkeypatch.setattr(
        TensorFile, "read", lambda self, name, *rest, **more: read.append(name) or original(self, name, *rest, **more)
    )
    load_video_vae(tiny.checkpoint, decoder=False)
    load_audio_vae(tiny.checkpoint, encoder=False)
    parts = {name.split(".")[1] for name in read if name.startswith("vae.")}
    assert parts == {"encoder", "per_channel_statistics"}
    assert not any(name.startswith("audio_vae.encoder.") for name in read)


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_all_parts_of_both_versions_hold_the_numbers_of_the_file(request, version):
    path = request.getfixturevalue("tiny" if version == "2.3" else "tiny20").checkpoint
    stored = load_file(path)
    used = set()
    for prefix, module in (
        (keys.TRANSFORMER, load_transformer(path, "av", torch.float32)),
        (keys.TRANSFORMER, load_connectors(path, "av", torch.float32)),
        (keys.VIDEO_VAE, load_video_vae(path, dtype=torch.float32)),
        (keys.AUDIO_VAE, load_audio_vae(path)),
        (keys.VOCODER, load_vocoder(path)),
    ):
        for name, tensor in module.state_dict().items():
            assert torch.equal(tensor.float(), stored[prefix + name].float()), name
            used.add(prefix + name)
    assert {name for name in stored if name not in used} == {
        name for name in stored if name.startswith(keys.TEXT_PROJECTION)
    }


def test_the_transformer_loads_from_a_file_without_prefix(contents, tmp_path):
    start = keys.TRANSFORMER
    tensors = {name[len(start) :]: t for name, t in contents[0].items() if name.startswith(start)}
    save_file(tensors, tmp_path / "t.safetensors", metadata=contents[1])
    assert load_transformer(tmp_path / "t.safetensors").dtype == torch.bfloat16


def test_a_foreign_header_is_suspected(contents, tiny20, tmp_path):
    with TensorFile(tiny20.checkpoint) as file:
        config = file.metadata["config"]
    save_file(contents[0], tmp_path / "x.safetensors", metadata={"config": config})
    with pytest.raises(CheckpointError, match="repacked with the header of another file"):
        load_transformer(tmp_path / "x.safetensors")


def test_a_file_without_the_part_says_so(contents, tmp_path):
    tensors = {name: tensor for name, tensor in contents[0].items() if name.startswith("vae.")}
    save_file(tensors, tmp_path / "x.safetensors", metadata=contents[1])
    with pytest.raises(CheckpointError, match="holds no transformer"):
        load_transformer(tmp_path / "x.safetensors")
    config = json.loads(contents[1]["config"])
    del config["vocoder"]
    save_file(tensors, tmp_path / "y.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match="no section vocoder"):
        load_vocoder(tmp_path / "y.safetensors")


@pytest.mark.parametrize(
    ("load", "path", "value", "words"),
    [
        (load_transformer, "transformer.out_channels", 0, "out_channels = 0; expected a number above 0"),
        (load_transformer, "transformer.norm_eps", "x", "norm_eps = 'x'; expected a number above 0"),
        (load_transformer, "transformer.timestep_scale_multiplier", -1, "timestep_scale_multiplier = -1; .* have 1000"),
        (load_transformer, "transformer.positional_embedding_theta", 9000, "theta = 9000; .* have 10000"),
        (load_connectors, "transformer.connector_num_attention_heads", 0, "section transformer of its header"),
        (load_connectors, "transformer.connector_num_learnable_registers", -1, "section transformer of its header"),
        (load_connectors, "transformer.connector_attention_head_dim", "x", "section transformer of its header"),
        (load_video_vae, "vae.patch_size", 0, "The video VAE's encoder scales time"),
        (load_video_vae, "vae.latent_channels", "x", "section vae of its header"),
        (load_audio_vae, "audio_vae.preprocessing.stft.hop_length", 0, "section audio_vae of its header"),
        (load_audio_vae, "audio_vae.model.params.sampling_rate", 32000, "50 latents a second .* LTX-2 has 25"),
        (load_vocoder, "vocoder.vocoder.upsample_initial_channel", "x", "section vocoder of its header"),
    ],
)
def test_numbers_of_a_header_that_describe_nothing_are_told(contents, tmp_path, load, path, value, words):
    config = json.loads(contents[1]["config"])
    *parents, last = path.split(".")
    table = config
    for parent in parents:
        table = table[parent]
    assert last in table or last.startswith(("norm_eps", "sampling_rate")), path
    table[last] = value
    save_file(contents[0], tmp_path / "x.safetensors", metadata={**contents[1], "config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path / "x.safetensors")


def test_a_lora_is_named_when_it_is_loaded_as_a_model(tmp_path):
    name = "diffusion_model.transformer_blocks.0.attn1.to_q"
    tensors = {f"{name}.lora_A.weight": torch.zeros(4, 16), f"{name}.lora_B.weight": torch.zeros(16, 4)}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="is a LoRA"):
        load_transformer(tmp_path / "lora.safetensors")


def test_old_statistics_and_scales_are_no_surplus(contents, tmp_path):
    tensors = dict(contents[0])
    tensors["vae.per_channel_statistics.mean-of-stds"] = torch.zeros(128)
    tensors[f"{keys.TRANSFORMER}transformer_blocks.0.attn1.to_q.input_scale"] = torch.tensor(1.0)
    save_file(tensors, tmp_path / "x.safetensors", metadata=contents[1])
    load_video_vae(tmp_path / "x.safetensors")
    load_transformer(tmp_path / "x.safetensors")


def test_out_of_memory_says_how_far_it_came(toy, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(TensorFile, "read", full)
    with TensorFile(toy[0]) as file, pytest.raises(OutOfMemory, match="while the toy was loaded"):
        materialise(meta(), Origin(file, "p.", "toy"), Arrival(torch.float32))


PEAK = """
import sys, torch
sys.path.insert(0, sys.argv[2])
from ltx2_train.weights.materialise import Arrival, Origin, materialise
from ltx2_train.weights.probe import probe
from ltx2_train.weights.reader import TensorFile

def resident(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

with torch.device("meta"):
    module = torch.nn.Sequential(*[torch.nn.Linear(1024, 2048, bias=False) for _ in range(40)])
with TensorFile(sys.argv[1]) as file:
    before = resident("VmRSS")
    materialise(module, Origin(file, "", "toy"), Arrival(torch.float32))
print((resident("VmHWM") - before) / sum(p.nbytes for p in module.parameters()))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_ram_never_holds_the_model_twice(tmp_path):
    tensors = {f"{index}.weight": torch.zeros(2048, 1024) + index for index in range(40)}
    save_file(tensors, tmp_path / "big.safetensors")
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "big.safetensors"), str(ROOT)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 0.9 < float(run.stdout) < 1.25
