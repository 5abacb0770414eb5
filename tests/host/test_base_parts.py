"""Load LTX-2 Base Model on files that lie apart: what its lists name, and what it finds where they name nothing."""

from __future__ import annotations

import shutil

import pytest
from fake_comfy import FakeComfy

FILES = {"precision": "fp32", "device": "cpu"}


@pytest.fixture
def load(nodes, comfy: FakeComfy, tiny25, tiny):
    """Lays the files of LTX-2.5 and an LTX-2.3 into ComfyUI's folders; loads, and gives the settings of the base."""
    places = {
        "diffusion_models": [tiny25.checkpoint],
        "checkpoints": [tiny.checkpoint, tiny25.whole],
        "text_encoders": [tiny25.text_encoder, tiny.text_encoder],
        "vae": [tiny25.diffusion_vae, tiny25.video_vae, tiny25.audio_vae],
    }
    for folder, files in places.items():
        comfy.folder("models", folder).mkdir(parents=True, exist_ok=True)
        for file in files:
            shutil.copy2(file, comfy.folder("models", folder) / file.name)

    def load(**given):
        given = {"checkpoint": tiny25.checkpoint.name, "text_encoder": tiny25.text_encoder.name, **given}
        return nodes.LoadBaseModel.execute(**FILES, **given).args[0].tables["model"]

    return load


def test_parts_that_the_transformer_lacks_are_found_and_those_that_are_named_are_taken(load, tiny25):
    found = load(mode="av")
    assert found["video_vae"].endswith(tiny25.video_vae.name)  # the one that draws
    assert found["audio_vae"].endswith(tiny25.audio_vae.name)
    assert load(mode="av", video_vae=tiny25.whole.name)["video_vae"].endswith(tiny25.whole.name)
    with pytest.raises(RuntimeError, match=r"diffusion decoder.*ltx-2\.5-video-vae-conv"):
        load(mode="av", video_vae=tiny25.diffusion_vae.name)
    assert "audio_vae" not in load(mode="video")
    assert "video_vae" not in load(mode="audio")


def test_a_part_of_another_version_is_neither_found_nor_taken(load, comfy, tiny25, tiny):
    with pytest.raises(RuntimeError, match=r"model\.video_vae: ltx-2\.3-tiny.* belongs to LTX-2\.3"):
        load(mode="av", video_vae=tiny.checkpoint.name)
    for name in (tiny25.video_vae.name, tiny25.diffusion_vae.name):
        (comfy.folder("models", "vae") / name).unlink()
    (comfy.folder("models", "checkpoints") / tiny25.whole.name).unlink()
    with pytest.raises(RuntimeError, match=r"holds no video VAE encoder.*ltx-2\.5-video-vae-conv"):
        load(mode="av")


def test_a_checkpoint_that_has_all_is_left_alone(load, tiny):
    found = load(checkpoint=tiny.checkpoint.name, text_encoder=tiny.text_encoder.name, mode="av")
    assert not {"video_vae", "audio_vae"} & set(found)
