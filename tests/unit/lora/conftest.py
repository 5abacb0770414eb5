"""A model with the module names of the transformer and nothing inside."""

import pytest
import torch
from torch import nn

VIDEO, AUDIO, TEXT = 12, 6, 10


def layer_sizes(version="2.3", mode="av", blocks=2):
    """(in, out) of every linear, by dotted path."""
    attention = {  # query size, key and value size, inner size
        "attn1": (VIDEO, VIDEO, VIDEO),
        "attn2": (VIDEO, TEXT, VIDEO),
        "audio_attn1": (AUDIO, AUDIO, AUDIO),
        "audio_attn2": (AUDIO, TEXT, AUDIO),
        "audio_to_video_attn": (VIDEO, AUDIO, AUDIO),
        "video_to_audio_attn": (AUDIO, VIDEO, AUDIO),
    }
    if mode != "av":
        attention = {name: sizes for name, sizes in attention.items() if "_to_" not in name}
    hidden = {"ff": VIDEO, "audio_ff": AUDIO}
    if mode != "av":
        keep = {"video": lambda name: not name.startswith("audio"), "audio": lambda name: name.startswith("audio")}[
            mode
        ]
        attention = {name: sizes for name, sizes in attention.items() if keep(name)}
        hidden = {name: size for name, size in hidden.items() if keep(name)}
    sizes = {"patchify_proj": (4, VIDEO)}
    for block in range(blocks):
        at = f"transformer_blocks.{block}."
        for name, (query, context, inner) in attention.items():
            sizes[f"{at}{name}.to_q"] = (query, inner)
            sizes[f"{at}{name}.to_k"] = (context, inner)
            sizes[f"{at}{name}.to_v"] = (context, inner)
            sizes[f"{at}{name}.to_out.0"] = (inner, query)
            if version == "2.3":
                sizes[f"{at}{name}.to_gate_logits"] = (query, 2)
        for name, size in hidden.items():
            sizes[f"{at}{name}.net.0.proj"] = (size, 4 * size)
            sizes[f"{at}{name}.net.2"] = (4 * size, size)
    return sizes


def build(sizes, seed=0, linear=nn.Linear):
    torch.manual_seed(seed)
    model = nn.Module()
    for path, (inputs, outputs) in sizes.items():
        *parents, name = path.split(".")
        at = model
        for parent in parents:
            if not hasattr(at, parent):
                at.add_module(parent, nn.Module())
            at = getattr(at, parent)
        at.add_module(name, linear(inputs, outputs))
    return model.requires_grad_(False)


@pytest.fixture
def make_model():
    def make(version="2.3", mode="av", blocks=2, **options):
        return build(layer_sizes(version, mode, blocks), **options)

    return make


@pytest.fixture
def make_set(make_model):
    """A LoRA set whose B is not zero, on a model of its own."""
    from ltx2_train.lora.inject import inject
    from ltx2_train.lora.settings import LoraSettings

    def make(trained=True, seed=0, model=None, **settings):
        generator = torch.Generator().manual_seed(seed)
        loras = inject(model or make_model(), LoraSettings(**{"rank": 3, **settings}), generator)
        if trained:
            with torch.no_grad():
                for layer in loras.layers.values():
                    layer.lora_B.normal_(generator=generator)
        return loras

    return make


@pytest.fixture
def checkpoint():
    """Names and shapes as in the header of a checkpoint file."""
    return {
        f"model.diffusion_model.{path}.weight": (outputs, inputs) for path, (inputs, outputs) in layer_sizes().items()
    }
