"""Build the caches of a dataset: latents, then captions, one big model on the device at a time."""

from __future__ import annotations

import torch

from ..config import RunConfig
from ..data.dataset import DatasetConfig
from ..data.encode import CacheReport, encode_latents, encode_text
from ..data.plan import plan_dataset
from ..device import DTYPES, pick_device
from ..errors import CheckpointError
from ..events import Events
from ..weights.fingerprint import part_fingerprint
from ..weights.load import load_connectors, load_video_vae
from ..weights.probe import require_trainable
from ..weights.text_encoder import TextEncoder, check_text_encoder, text_fingerprint


def build_caches(run: RunConfig, events: Events | None = None) -> CacheReport:
    """Encode what is missing or stale of the dataset of `run`. Raises TrainerError; finished items are always kept."""
    events = events or Events()
    checkpoint, encoder = run.need("model.checkpoint"), run.need("model.text_encoder")
    projection = run.model.text_projection or checkpoint
    info = require_trainable(checkpoint, run.model.version, run.model.version_check, events)
    if "video_vae" not in info.parts:
        raise CheckpointError(f"{checkpoint.name} holds no video VAE (vae.*). Choose the full checkpoint file.")
    check_text_encoder(encoder, projection)
    dataset = DatasetConfig.read(run.need("data.config"))
    device = pick_device(run.model.device)
    plan = plan_dataset(dataset, events)
    dtype = DTYPES[run.cache.vae_dtype]

    def open_vae():
        events.make_room(4 * 2**30, device)
        return load_video_vae(checkpoint, encoder=True, decoder=False, dtype=dtype, device=device)

    def open_encoder():
        events.make_room(encoder.stat().st_size if encoder.is_file() else 26 * 2**30, device)
        return TextEncoder.load(encoder, projection, torch.bfloat16 if device.type != "cpu" else torch.float32, device)

    def open_connectors():
        return load_connectors(projection, "av", torch.float32 if device.type == "cpu" else torch.bfloat16, device)

    latents = encode_latents(plan, open_vae, part_fingerprint(checkpoint, "video_vae"), run.cache, events, device)
    text = encode_text(plan, open_encoder, text_fingerprint(encoder, projection), run.cache, events, open_connectors)
    return latents.joined(text)
