"""Build the caches of a dataset: latents, then captions and sample prompts, one big model on the device at a time."""

from __future__ import annotations

from dataclasses import dataclass

from ..config import RunConfig
from ..data.dataset import DatasetConfig
from ..data.encode import CacheReport, encode_latents, encode_text
from ..data.plan import plan_dataset
from ..device import DTYPES, pick_device
from ..errors import CheckpointError
from ..events import Events
from ..models.text import TextConnectors
from ..models.video_vae import VideoVAE
from ..sampling.prompt_text import encoder_bytes, encoder_dtype, prompt_features
from ..sampling.prompts import prompt_texts, read_prompts
from ..sampling.sample import prompt_folder
from ..weights.fingerprint import part_fingerprint
from ..weights.load import load_connectors, load_video_vae
from ..weights.probe import require_trainable
from ..weights.text_encoder import TextEncoder, check_text_encoder
from .setup import text_fingerprints


@dataclass(frozen=True)
class CachesReport:
    """What was made of latents and captions, and what was left out and why."""

    latents: CacheReport
    text: CacheReport
    left_out: list[str]

    def summary(self) -> str:
        """Some lines for people."""
        return "\n".join(
            [self.latents.summary(), self.text.summary(), *(f"left out: {line}" for line in self.left_out)]
        )


def build_caches(run: RunConfig, events: Events | None = None) -> CachesReport:
    """Encode what is missing or stale of the dataset of `run`. Raises TrainerError; finished items are always kept."""
    events = events or Events()
    events.stage("check")
    checkpoint, encoder = run.need("model.checkpoint"), run.need("model.text_encoder")
    projection = run.model.text_projection or checkpoint
    info = require_trainable(checkpoint, run.model.version, run.model.version_check, events)
    if "video_vae_encoder" not in info.parts:
        raise CheckpointError(f"{checkpoint.name} holds no video VAE (vae.encoder). Choose the full checkpoint file.")
    check_text_encoder(encoder, projection)
    dataset = DatasetConfig.read(run.need("data.config"))
    device = pick_device(run.model.device)
    plan = plan_dataset(dataset, events)

    def open_vae() -> VideoVAE:
        events.make_room(2 * sum(part.bytes for name, part in info.parts.items() if "video_vae" in name), device)
        return load_video_vae(checkpoint, decoder=False, dtype=DTYPES[run.cache.vae_dtype], device=device)

    def open_encoder() -> TextEncoder:
        events.make_room(encoder_bytes(encoder), device)
        return TextEncoder.load(encoder, projection, encoder_dtype(device), device)

    def open_connectors() -> TextConnectors:
        return load_connectors(projection, "av", encoder_dtype(device), device)

    latents = encode_latents(plan, open_vae, part_fingerprint(checkpoint, "video_vae"), run.cache, events, device)
    text = encode_text(
        plan, open_encoder, text_fingerprints(encoder, projection), run.cache, events, open_connectors, device
    )
    if run.sample.every:
        captions = list(dict.fromkeys(item.caption for item in plan.items))[:2]
        prompts = read_prompts(run.sample, captions)
        prompt_features(prompt_texts(prompts), prompt_folder(run), encoder, projection, device, events)
    return CachesReport(latents, text, [f"{skipped.path.name}: {skipped.reason}" for skipped in plan.skipped])
