import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.errors import CheckpointError
from ltx2_train.events import Events
from ltx2_train.weights import keys
from ltx2_train.weights.probe import probe, require_trainable
from ltx2_train.weights.published import published_config
from ltx2_train.weights.reader import TensorFile
from ltx2_train.weights.tiny import tiny_config
from ltx2_train.weights.whole import probe_whole

WIDTH = {"BF16": 2, "F32": 4, "F8_E4M3": 1, "U8": 1}


class Heard(Events):
    def __init__(self):
        self.texts = []

    def message(self, text, level="info"):
        self.texts.append((level, text))


@pytest.fixture(scope="module")
def contents(tiny):
    with TensorFile(tiny.checkpoint) as file:
        return load_file(tiny.checkpoint), dict(file.metadata)


def save(path, tensors, metadata=None):
    save_file(tensors, path, metadata=metadata)
    return path


def sparse(path, tensors, metadata=None):
    """A file of full size whose data are a hole: {name: (dtype, shape)}."""
    header, end = {"__metadata__": metadata or {}}, 0
    for name, (dtype, shape) in tensors.items():
        size = WIDTH[dtype] * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def full_size(dtype="BF16", version="2.3"):
    """Enough names of a published file for the probe, at their real shapes."""
    tensors = {f"{keys.TRANSFORMER}patchify_proj.weight": ("BF16", (4096, 128))}
    tensors[f"{keys.TRANSFORMER}audio_adaln_single.linear.weight"] = ("BF16", (18432, 2048))
    for block in range(48):
        start = f"{keys.TRANSFORMER}transformer_blocks.{block}."
        for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ff.net.0.proj"):
            tensors[f"{start}{name}.weight"] = (dtype, (16384 if "ff" in name else 4096, 4096))
            if dtype == "F8_E4M3":
                tensors[f"{start}{name}.weight_scale"] = ("F32", ())
        tensors[f"{start}ff.net.0.proj.bias"] = ("BF16", (16384,))
        if version == "2.3":
            tensors[f"{start}prompt_scale_shift_table"] = ("BF16", (2, 4096))
    tensors[f"{keys.CONNECTORS[0]}learnable_registers"] = ("BF16", (128, 4096))
    tensors["text_embedding_projection.video_aggregate_embed.weight"] = ("BF16", (4096, 188160))
    tensors["vae.encoder.conv_in.conv.weight"] = ("BF16", (128, 48, 3, 3, 3))
    tensors["vae.decoder.conv_in.conv.weight"] = ("BF16", (1024, 128, 3, 3, 3))
    tensors["audio_vae.encoder.conv_in.conv.weight"] = ("BF16", (128, 2, 3, 3))
    tensors["vocoder.vocoder.conv_pre.weight"] = ("BF16", (1536, 128, 7))
    return tensors


@pytest.mark.parametrize("version", ["2.0", "2.3"])
def test_a_full_checkpoint_is_recognised(request, version):
    tiny = request.getfixturevalue("tiny" if version == "2.3" else "tiny20")
    info = probe(tiny.checkpoint)
    assert (info.kind, info.version, info.trainable, info.distilled) == ("ltx2", version, True, False)
    assert info.warnings == []
    assert info.precision == "bf16"
    assert info.blocks == 4
    assert set(info.parts) == set(keys.PARTS)
    assert info.parameters == sum(part.parameters for part in info.parts.values())
    assert json.loads(json.dumps(info.to_json()))["version"] == version
    assert info.fit["training"] == "Can be trained on."


def test_a_file_of_forty_gigabytes_takes_under_a_second(tmp_path):
    path = sparse(tmp_path / "ltx-2.3-22b-dev.safetensors", full_size())
    started = time.perf_counter()
    info = probe(path)
    assert time.perf_counter() - started < 1
    assert (info.version, info.blocks, info.trainable) == ("2.3", 48, True)
    assert "lost its header configuration" in info.warnings[0]


def test_fp8_is_told_by_its_share_of_bytes(tmp_path):
    config = json.dumps(published_config("2.3"))
    info = probe(sparse(tmp_path / "dev-fp8.safetensors", full_size("F8_E4M3"), {"config": config}))
    assert info.precision == "fp8_e4m3_scaled"
    assert info.quantized
    assert info.trainable
    assert info.warnings == []


def test_nvfp4_is_refused_with_the_remedy(tmp_path):
    tensors = full_size("U8")
    for name in [name for name, (dtype, _) in tensors.items() if dtype == "U8"]:
        tensors[name.replace(".weight", ".weight_scale_2")] = ("F32", ())
    info = probe(sparse(tmp_path / "x.safetensors", tensors, {"config": json.dumps(published_config("2.3"))}))
    assert info.precision == "nvfp4"
    assert "Use the bf16 or fp8 checkpoint" in info.problems[0]


def test_the_tensors_are_believed_and_a_contradiction_is_named(contents, tmp_path):
    tensors, metadata = contents
    config = json.loads(metadata["config"])
    del config["transformer"]["cross_attention_adaln"]
    info = probe(save(tmp_path / "x.safetensors", tensors, {"config": json.dumps(config)}))
    assert info.version == "2.3"
    assert "its metadata say LTX-2.0, its tensors are those of LTX-2.3" in info.problems[0]


def test_a_small_model_without_configuration_is_refused(contents, tmp_path):
    info = probe(save(tmp_path / "x.safetensors", contents[0]))
    assert "no header configuration" in info.problems[0]


@pytest.mark.parametrize("where", ["name", "metadata"])
def test_distilled_is_a_warning(contents, tmp_path, where):
    tensors, metadata = contents
    name = "ltx-2.3-22b-distilled.safetensors" if where == "name" else "x.safetensors"
    more = {} if where == "name" else {"modelspec.title": "LTX-2.3 Distilled"}
    heard = Heard()
    info = require_trainable(save(tmp_path / name, tensors, metadata | more), events=heard)
    assert info.distilled
    assert info.trainable
    assert heard.texts[0][0] == "warning"
    assert "dev checkpoint" in heard.texts[0][1]


def test_missing_audio_is_a_warning(contents, tmp_path):
    tensors = {name: t for name, t in contents[0].items() if not name.startswith(("audio_vae.", "vocoder."))}
    info = probe(save(tmp_path / "x.safetensors", tensors, contents[1]))
    assert info.trainable
    assert "no audio VAE and no vocoder" in info.warnings[0]


def blank(*names):
    return {name: torch.zeros(2, 2) for name in names}


BLOCK = "transformer_blocks.0.attn1.to_q"
CASES = {
    "lora": (blank(f"diffusion_model.{BLOCK}.lora_A.weight", f"diffusion_model.{BLOCK}.lora_B.weight"), "is a LoRA"),
    "lora2": (blank("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", "lora_unet_x.alpha"), "is a LoRA"),
    "upsampler": (blank("initial_conv.weight", "post_upsample_res_blocks.0.conv1.weight"), "latent upsampler"),
    "text_encoder": (blank("model.layers.0.self_attn.q_norm.weight"), "text encoder .Gemma 3."),
    "other": (blank("blocks.0.self_attn.norm_q.weight", "patch_embedding.weight"), "Wan video"),
    "other2": (blank("double_blocks.0.img_attn.norm.query_norm.scale", "single_blocks.0.linear1.weight"), "Flux"),
    "other3": (blank("model.diffusion_model.input_blocks.0.0.weight"), "Stable Diffusion"),
    "part": (blank("vae.encoder.conv_in.conv.weight"), "only a part"),
    "part2": (blank("per_channel_statistics.mean-of-means", "decoder.conv_in.conv.weight"), "video VAE"),
    "part3": (blank("proj_in.weight", "time_embed.emb.timestep_embedder.linear_1.weight"), "diffusers"),
    "unknown": (blank("something.else"), "not a model this trainer knows"),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_wrong_base_is_named_and_refused(tmp_path, kind):
    tensors, said = CASES[kind]
    path = save(tmp_path / "x.safetensors", tensors)
    assert probe(path).kind == kind.rstrip("23")
    with pytest.raises(CheckpointError, match=said) as caught:
        require_trainable(path)
    assert "LTX-2.3" in str(caught.value)


def test_a_gguf_file_is_named(tmp_path):
    path = tmp_path / "ltx-Q4.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    assert probe(path).kind == "gguf"
    with pytest.raises(CheckpointError, match="GGUF.*cannot be trained on"):
        require_trainable(path)


@pytest.mark.parametrize("prefix", [keys.TRANSFORMER, "diffusion_model.", ""])
def test_the_transformer_alone_is_a_part(contents, tmp_path, prefix):
    start = keys.TRANSFORMER
    tensors = {
        prefix + name[len(start) :]: tensor
        for name, tensor in contents[0].items()
        if name.startswith(start) and not name.startswith(keys.CONNECTORS)
    }
    info = probe(save(tmp_path / "x.safetensors", tensors, contents[1]))
    assert (info.kind, info.version) == ("part", "2.3")
    assert "lacks text connectors" in info.problems[0]
    assert "video VAE encoder" in info.problems[0]


@pytest.mark.parametrize("second", ["diffusion_model.", ""])
def test_a_weight_under_two_names_is_refused_unless_both_are_equal(contents, tmp_path, second):
    tensors, metadata = contents
    name = "transformer_blocks.0.attn1.to_q.weight"
    for change in (0, 1):
        path = save(
            tmp_path / f"twice_{change}.safetensors",
            {**tensors, second + name: tensors[keys.TRANSFORMER + name].clone() + change},
            metadata,
        )
        told = "".join(probe(path).problems)
        assert (
            f"has one weight twice, with other numbers: {keys.TRANSFORMER}{name} and {second}{name}." in told
        ) is bool(change)


def test_tensors_of_2_5_under_the_header_of_2_3_are_a_contradiction(contents, tmp_path):
    tensors = {name: t for name, t in contents[0].items() if not (".ff.net." in name and name.endswith("bias"))}
    info = probe(save(tmp_path / "x.safetensors", tensors, contents[1]))
    assert info.version == "2.5"
    assert "its metadata say LTX-2.3, its tensors are those of LTX-2.5" in info.problems[0]


@pytest.mark.parametrize("check", ["off", "warn", "error"])
def test_another_version_than_expected(tiny, check):
    heard = Heard()
    if check == "error":
        with pytest.raises(
            CheckpointError, match='is LTX-2.3, but model.version says 2.0. Set model.version to "auto"'
        ):
            require_trainable(tiny.checkpoint, "2.0", check, heard)
    else:
        assert require_trainable(tiny.checkpoint, "2.0", check, heard).version == "2.3"
    assert [level for level, _ in heard.texts] == (["warning"] if check == "warn" else [])


def test_tiny_configuration_differs_from_the_published_one_in_sizes_only():
    tiny, published = tiny_config("2.3")["transformer"], published_config("2.3")["transformer"]
    assert {key for key in published if tiny[key] != published[key]} <= {
        "num_layers",
        "num_attention_heads",
        "attention_head_dim",
        "cross_attention_dim",
        "audio_num_attention_heads",
        "audio_attention_head_dim",
        "audio_cross_attention_dim",
        "caption_channels",
        "connector_num_layers",
        "connector_num_attention_heads",
        "connector_attention_head_dim",
        "audio_connector_num_attention_heads",
        "audio_connector_attention_head_dim",
    }


def test_a_weight_that_a_block_lacks_or_has_too_much_is_named(tiny, contents, tmp_path):
    tensors, metadata = contents
    assert probe_whole(tiny.checkpoint).trainable
    gone = f"{keys.TRANSFORMER}transformer_blocks.3.attn1.to_q.weight"
    less = save(tmp_path / "less.safetensors", {k: v for k, v in tensors.items() if k != gone}, metadata)
    assert "1 missing: transformer_blocks.3.attn1.to_q.weight" in probe_whole(less).fit["training"]
    extra = f"{keys.TRANSFORMER}transformer_blocks.9.attn1.to_q.weight"
    more = save(tmp_path / "more.safetensors", {**tensors, extra: torch.ones(160, 160)}, metadata)
    assert "1 left over: transformer_blocks.9.attn1.to_q.weight" in probe_whole(more).fit["training"]
    sound = f"{keys.TRANSFORMER}transformer_blocks.3.audio_attn1.to_q.weight"
    silent = probe_whole(
        save(tmp_path / "silent.safetensors", {k: v for k, v in tensors.items() if k != sound}, metadata)
    )
    assert silent.trainable
    assert "Only model.mode = video" in silent.warnings[-1]
    assert sound.removeprefix(keys.TRANSFORMER) in silent.warnings[-1]
    assert main(["probe", str(less)]) == 1


@pytest.mark.parametrize(
    ("gone", "where", "words"),
    [
        ("vae.encoder.conv_in.conv.weight", "training", "The video VAE cannot be loaded"),
        (f"{keys.TRANSFORMER}video_embeddings_connector.learnable_registers", "training", "The text connectors cannot"),
        ("vae.decoder.conv_in.conv.weight", "note", "No pictures can be drawn with it. The video VAE cannot be loaded"),
        ("audio_vae.encoder.conv_in.conv.weight", "note", "Only model.mode = video can be trained or drawn."),
        ("vocoder.vocoder.conv_pre.weight", "note", "No sound can be drawn with it. The vocoder cannot be loaded"),
    ],
)
def test_what_another_part_lacks_is_named(contents, tmp_path, gone, where, words):
    tensors, metadata = contents
    assert gone in tensors
    less = save(tmp_path / "less.safetensors", {k: v for k, v in tensors.items() if k != gone}, metadata)
    found = probe_whole(less)
    assert words in found.fit[where]
    assert found.trainable == (where == "note")
