"""What is asked within a pass through the video VAE, encoding and decoding."""

from __future__ import annotations

import pytest
import torch
from video_vae_sizes import clip, tiny_vae

from ltx2_train.models.polled import polled


@pytest.mark.parametrize("way", ["encode", "decode"])
@torch.no_grad()
def test_each_layer_of_a_vae_is_asked_before(way):
    vae = tiny_vae()
    x = clip(9, 32, 32) if way == "encode" else vae.encode(clip(9, 32, 32))
    asked = []
    with polled(vae, lambda: asked.append(1)):
        getattr(vae, way)(x)
    convolutions = sum(isinstance(module, torch.nn.Conv3d) for module in getattr(vae, f"{way}r").modules())
    assert len(asked) > convolutions > 10

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), polled(vae, stop):
        getattr(vae, way)(x)
    assert not any(module._forward_pre_hooks for module in vae.modules())
