"""The files of a run's base, found good from headers alone: what checks, caching and sampling all begin with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..caching.cache_file import Fingerprints
from ..caching.dino_model import DinoModel
from ..caching.recipe import CacheRecipe, text_widths
from ..errors import CheckpointError, ConfigError
from ..events import Events
from ..families import FAMILIES, Family, name_of
from ..weights import keys
from ..weights.fingerprint import part_fingerprint, video_encoder_fingerprint
from ..weights.info import CheckpointInfo
from ..weights.probe import DIFFUSION_VAE, probe, require_trainable, version_of
from ..weights.reader import TensorFile
from ..weights.text_encoder import check_family, check_text_encoder, projection_file, text_fingerprint
from ..weights.unfinished import unfinished
from .groups import RunConfig

# the part of a file without which a model.video_vae or model.audio_vae is none
_NEEDED = {"video_vae": "video_vae_encoder", "audio_vae": "audio_vae"}


@dataclass(frozen=True)
class BaseFiles:
    """`projection` has the text projection and `connectors` the connectors, most often the checkpoint itself, as has
    what `video_vae` and `audio_vae` name. `info` is that of the checkpoint with the parts of all files."""

    checkpoint: Path
    encoder: Path
    projection: Path
    connectors: Path
    video_vae: Path
    audio_vae: Path
    info: CheckpointInfo
    version: str

    @classmethod
    def find(cls, run: RunConfig, events: Events) -> BaseFiles:
        """Check the files that `run` names against each other. Raises ConfigError and CheckpointError in seconds."""
        checkpoint, encoder = run.need("model.checkpoint"), run.need("model.text_encoder")
        other = None if run.model.text_projection is None else run.need("model.text_projection")
        projection = other or projection_file(encoder, checkpoint)
        version = probe(checkpoint).version
        family = FAMILIES[version] if version is not None else None
        if family is not None:
            require_family(run, family, checkpoint.name)
        elsewhere = {"connectors", "text_projection"} if other is not None else set()
        if projection != checkpoint:
            elsewhere.add("text_projection")
        if other is not None and other.samefile(checkpoint) and projection_file(encoder, checkpoint) == checkpoint:
            events.message(_instead("text_projection", other, checkpoint))
        if run.model.video_vae is not None or run.model.mode == "audio":
            elsewhere.add("video_vae_encoder")
        if family is not None and (family.split or not family.connectors):
            check_family(encoder, checkpoint)  # another one would else be said to lack the projection
        info = require_trainable(checkpoint, run.model.version, run.model.version_check, events, elsewhere)
        check_text_encoder(encoder, projection, checkpoint, run.gemma)
        assert info.version is not None, "a checkpoint that can be trained on has a version"
        others = {part: _part(run, part, info) for part in ("video_vae", "audio_vae")}
        for part, (path, _) in others.items():
            if getattr(run.model, part) is not None and _NEEDED[part] in info.parts:
                events.message(_instead(part, path, checkpoint))
        parts = dict(info.parts)
        for _, found in others.values():
            parts |= found.parts
        version = info.version if run.model.version == "auto" else run.model.version
        for path in dict.fromkeys((checkpoint, encoder, projection, *(path for path, _ in others.values()))):
            if remark := unfinished(path):
                events.message(remark, "warning")
        return cls(
            checkpoint,
            encoder,
            projection,
            other or checkpoint,
            others["video_vae"][0],
            others["audio_vae"][0],
            replace(info, parts=parts, missing=[]),
            version,
        )

    def recipe(self, run: RunConfig, dino: bool = True) -> CacheRecipe:
        """What the caches of `run` are made with. Raises ConfigError where, with `dino`, its model will not do."""
        mode = run.model.mode
        return CacheRecipe(
            run.cache,
            mode,
            part_fingerprint(self.video_vae, "video_vae") if mode != "audio" else "",
            part_fingerprint(self.audio_vae, "audio_vae") if mode != "video" else "",
            Fingerprints(
                part_fingerprint(self.projection, "text") if FAMILIES[self.version].connectors else "",
                text_fingerprint(self.encoder, self.projection, run.gemma),
            ),
            DinoModel.find(run.cache.dino) if dino and mode != "audio" else None,
            text_widths(self.projection, self.encoder),
            video_encoder_fingerprint(self.video_vae) if mode != "audio" else "",
        )

    def require_decoder(self, mode: str) -> None:
        """Raise CheckpointError where samples of `mode` are to be drawn and the video VAE cannot decode."""
        if mode != "audio" and _only_encodes(self.video_vae):
            raise CheckpointError(f"{self.video_vae.name} {DIFFUSION_VAE}")


def require_mode(run: RunConfig, family: Family, name: str) -> None:
    """Raise ConfigError where the checkpoint `name` of `family` has not what model.mode asks for."""
    if run.model.mode not in family.modes:
        raise ConfigError(
            f"model.mode is {run.model.mode}, and {name} is {family.name}, which has no sound. Set model.mode to "
            f"{' or '.join(family.modes)}, or choose an LTX-2 checkpoint."
        )


def require_family(run: RunConfig, family: Family, name: str) -> None:
    """Raise ConfigError where `run` asks of the checkpoint `name` what its family has not."""
    require_mode(run, family, name)
    for group in ("cache", "sample"):
        if getattr(run, group).keyframe_slots and not family.keyframe_slots:
            raise ConfigError(
                f"{group}.keyframe_slots is {getattr(run, group).keyframe_slots}, and {name} is {family.name}, which "
                "knows no keyframe slots: they came with LTX-2.5. Set it to 0, or choose an LTX-2.5 checkpoint."
            )
    if run.sample.upsampler is not None and not family.two_stages:
        raise ConfigError(
            f"sample.upsampler is set, and {name} is {family.name}, whose own second stage is another one: "
            "samples of it are drawn in one stage. Leave it out, or choose an LTX-2 checkpoint."
        )
    if family.connectors:
        return
    for setting in ("text_projection", "audio_vae"):
        if getattr(run.model, setting) is not None:
            raise ConfigError(f"model.{setting} is set, and {name} is {family.name}, which has none. Leave it out.")
    if run.cache.text_form == "full":
        raise ConfigError(
            f"cache.text_form is full, and {name} is {family.name}, which has no text connectors whose results "
            "could be kept. Set cache.text_form to compact."
        )


def fitting_files(part: str, checkpoint: Path, files: Sequence[Path]) -> list[Path]:
    """Those of `files` that have the `part` ("video_vae" or "audio_vae") which `checkpoint` lacks, those that draw
    samples first; none where it lacks nothing. Reads headers."""
    base = probe(checkpoint)
    if base.version is None or _NEEDED[part] in base.parts:
        return []
    fitting: list[Path] = []
    for path in files:
        try:
            _, info = _part_in(path, part, base)
        except CheckpointError:
            continue
        if part == "video_vae" or "vocoder" in info.parts:
            fitting.append(path)
    # a part by itself before a checkpoint with all parts
    return sorted(fitting, key=lambda path: (_only_encodes(path), "transformer" in probe(path).parts))


def _only_encodes(path: Path) -> bool:
    """Whether the video VAE in `path` has the decoder that draws nothing here."""
    with TensorFile(path) as file:
        prefix = keys.video_vae_prefix(file.tensors)
        return prefix is not None and prefix + keys.DIFFUSION_DECODER in file


def _instead(part: str, path: Path, checkpoint: Path) -> str:
    """A sentence where the setting of `part` names a file and the checkpoint has one as well."""
    if path.samefile(checkpoint):
        return f"model.{part} has no effect: it names the checkpoint, whose own would be taken anyway. Leave it out."
    return f"model.{part}: that of {path.name} is used, and not that of {checkpoint.name}."


def _part(run: RunConfig, part: str, base: CheckpointInfo) -> tuple[Path, CheckpointInfo]:
    """The file that has `part` ("video_vae" or "audio_vae"), and what it is: that of the setting, else the checkpoint.

    Raises CheckpointError where the file of the setting holds no such part, or one of another version.
    """
    if getattr(run.model, part) is None:
        return base.path, base
    return _part_in(run.need(f"model.{part}"), part, base)


def _part_in(path: Path, part: str, base: CheckpointInfo) -> tuple[Path, CheckpointInfo]:
    """`path` and what it has of `part`. Raises CheckpointError where that is nothing, or of another version."""
    setting = f"model.{part}"
    with TensorFile(path) as file:
        version = version_of(file) or ("ltxv-2b" if keys.is_ltxv_vae(file.tensors) else None)
    info = probe(path)
    name = {"video_vae": "video VAE", "audio_vae": "audio VAE"}[part]
    own = FAMILIES[base.version or "2.3"]
    like = own if setting in (named for named, _ in own.apart.values()) else FAMILIES["2.5"]
    usual = next(file for named, file in like.apart.values() if named == setting)
    if _NEEDED[part] not in info.parts:
        raise CheckpointError(f"{setting}: {path.name} holds no {name}. For {like.name} choose {usual}.")
    if version is not None and FAMILIES[version].vae != own.vae:
        raise CheckpointError(
            f"{setting}: {path.name} belongs to {name_of(version)}, but {base.path.name} is {own.name}. Choose the "
            f"{name} of the same model{f', {usual}' if own.apart else ''}."
        )
    starts = {"video_vae": ("video_vae",), "audio_vae": ("audio_vae", "vocoder")}[part]
    return path, replace(info, parts={key: value for key, value in info.parts.items() if key.startswith(starts)})
