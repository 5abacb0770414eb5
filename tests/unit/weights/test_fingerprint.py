import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ltx2_train.errors import CheckpointError
from ltx2_train.lora.merge_recipe import _agreed_weights
from ltx2_train.weights import keys
from ltx2_train.weights.awq import load_activations, save_activations
from ltx2_train.weights.fingerprint import part_fingerprint, same_weights, video_encoder_fingerprint
from ltx2_train.weights.reader import TensorFile

PARTS = ("transformer", "video_vae", "audio_vae", "text")


@pytest.fixture(scope="module")
def contents(tiny):
    with TensorFile(tiny.checkpoint) as file:
        return load_file(tiny.checkpoint), dict(file.metadata)


def prints(path):
    return {part: part_fingerprint(path, part) for part in PARTS}


def changed(path, contents, edit):
    tensors = dict(contents[0])
    edit(tensors)
    save_file(tensors, path, metadata=contents[1])
    return prints(path)


def test_a_copy_has_the_same_fingerprints_whatever_its_name_and_header(tiny, contents, tmp_path):
    shutil.copy(tiny.checkpoint, tmp_path / "copy.safetensors")
    assert prints(tmp_path / "copy.safetensors") == prints(tiny.checkpoint)
    save_file(dict(reversed(contents[0].items())), tmp_path / "again.safetensors")
    assert prints(tmp_path / "again.safetensors") == prints(tiny.checkpoint)


def test_quantizing_the_transformer_changes_only_its_own(tiny, contents, tmp_path):
    def quantize(tensors):
        for name in [name for name in tensors if name.startswith(f"{keys.TRANSFORMER}transformer_blocks.1.attn1.to_")]:
            if name.endswith("weight"):
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)
                tensors[f"{name}_scale"] = torch.tensor(1.0)

    before, after = prints(tiny.checkpoint), changed(tmp_path / "q.safetensors", contents, quantize)
    assert {part for part in PARTS if before[part] != after[part]} == {"transformer"}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("vae.per_channel_statistics.std-of-means", "video_vae"),
        ("vae.decoder.conv_in.conv.bias", "video_vae"),
        ("audio_vae.per_channel_statistics.mean-of-means", "audio_vae"),
        ("text_embedding_projection.audio_aggregate_embed.bias", "text"),
    ],
)
def test_other_numbers_are_noticed_in_their_part(tiny, contents, tmp_path, name, part):
    def edit(tensors):
        tensors[name] = tensors[name] + 1

    before, after = prints(tiny.checkpoint), changed(tmp_path / "e.safetensors", contents, edit)
    assert {one for one in PARTS if before[one] != after[one]} == {part}


def test_the_versions_differ_in_every_part(tiny, tiny20):
    new, old = prints(tiny.checkpoint), prints(tiny20.checkpoint)
    assert all(new[part] != old[part] for part in PARTS)


def test_little_is_read(tiny, monkeypatch):
    sizes = []
    original = TensorFile.read_bytes

    def spy(self, *args):
        data = original(self, *args)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(TensorFile, "read_bytes", spy)
    part_fingerprint(tiny.checkpoint, "transformer")
    with TensorFile(tiny.checkpoint) as file:
        count = sum(keys.part_of(name) in keys.FINGERPRINTS["transformer"] for name in file.tensors)
    assert 0 < sum(sizes) <= 4 * 4096 + 1024 * count


def test_a_missing_part_is_named(contents, tmp_path):
    tensors = {name: tensor for name, tensor in contents[0].items() if not name.startswith("audio_vae.")}
    save_file(tensors, tmp_path / "x.safetensors", metadata=contents[1])
    with pytest.raises(CheckpointError, match="holds no audio vae"):
        part_fingerprint(tmp_path / "x.safetensors", "audio_vae")


@pytest.mark.parametrize("part", PARTS)
def test_each_tensor_of_a_part_counts(tiny, contents, tmp_path, part):
    """As in fine-tunes that leave most layers alone."""
    before = prints(tiny.checkpoint)
    owned = [n for n in contents[0] if keys.part_of(n) in keys.FINGERPRINTS[part] and n not in keys.UNUSED]
    for number, name in enumerate(owned[:: max(1, len(owned) // 6)]):
        path = tmp_path / f"{number}.safetensors"
        after = changed(path, contents, lambda tensors, name=name: tensors.update({name: tensors[name] + 1}))
        assert [one for one in PARTS if before[one] != after[one]] == [part], name
        assert not same_weights(before[part], after[part])


def test_what_older_versions_wrote_is_compared_as_far_as_it_goes(tiny, contents, tmp_path):
    now = part_fingerprint(tiny.checkpoint, "video_vae")
    assert same_weights(now[:16], now)
    assert same_weights(now, now)
    assert not same_weights(now[:16], video_encoder_fingerprint(tiny.checkpoint))
    save_activations(tmp_path / "awq.safetensors", {"a": torch.ones(2)}, {"checkpoint": now[:16], "mode": "av"})
    for checkpoint, mode, found in ((now, "av", True), (now, "video", False), (now[::-1], "av", False)):
        made_from = {"checkpoint": checkpoint, "mode": mode}
        assert (load_activations(tmp_path / "awq.safetensors", made_from) is not None) == found
    assert _agreed_weights([now[:16], "", now]) == now
    assert _agreed_weights([now, now[::-1]]) == ""
    assert not same_weights("", now)
    assert not same_weights(now, None)
