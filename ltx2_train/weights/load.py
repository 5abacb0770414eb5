"""Files to modules: each part of a checkpoint, built on the meta device and filled from the file (see materialise)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..models.audio_vae import AudioVAE, AudioVAEConfig
from ..models.plain_text import PlainText
from ..models.text import TextConnectors
from ..models.transformer import LTXTransformer, TransformerConfig
from ..models.video_vae import VideoVAE, VideoVAEConfig
from ..models.vocoder import ExtendedVocoder, Vocoder, VocoderConfig, build_vocoder
from ..quant.settings import QuantSettings
from . import keys
from .expected import check_names
from .loftq import Loftq, read_companion
from .materialise import Arrival, Home, LoadProgress, OnLinear, Origin, materialise
from .probe import DIFFUSION_VAE, describe_checkpoint, model_family
from .published import published_config
from .quantize import eligible, quantizer, settle_storage
from .reader import TensorFile
from .stored import check_marks, stored_in


def load_transformer(
    path: Path | str,
    mode: str = "video",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
    on_linear: OnLinear | None = None,
    quant: QuantSettings | None = None,
    home: Home | None = None,
    loftq: Loftq | None = None,
    activations: Mapping[str, torch.Tensor] | None = None,
    on_built: Callable[[LTXTransformer], None] | None = None,
) -> LTXTransformer:
    """The frozen transformer for `mode` ("video", "audio" or "av"); tensors of an absent modality are not read.

    `quant`: the blocks' linears are stored as it says, and kept where the file is quantized already; None makes plain
    numbers of everything. Work is done on quant.device (auto: `device`), results lie on `home(module path)` (None:
    `device`). `loftq` says which linears get a LoRA and receives its beginning; `activations` are for quant.awq.
    `on_linear(path, linear)` may return a module that takes the place of a plain linear that has just arrived.
    `on_built` is given the model while it is still empty.

    Raises CheckpointError for a file that cannot be read, ConfigError where `quant` does not go with the file.
    """
    with TensorFile(path) as file:
        model = blueprint(file, mode)
        if on_built is not None:
            on_built(model)
        prefix = keys.transformer_prefix(file.tensors)
        prefix = keys.TRANSFORMER if prefix is None else prefix
        found = stored_in(file)
        check_marks(file, found.kinds)
        quantize = None
        if quant is not None:
            settings, _ = settle_storage(found, quant, file.path.name)
            quantize = quantizer(settings, device, dtype, loftq, activations)
            if quant.loftq and not settings.loftq and loftq is not None:
                read_companion(path, loftq)

        arrival = Arrival(
            dtype,
            device,
            on_progress,
            on_linear,
            keep=eligible if quant is not None else None,
            quantize=quantize,
            home=home,
        )
        materialise(model, Origin(file, prefix, "transformer", _owned(mode)), arrival)
    return model


def check_transformer(file: TensorFile, mode: str) -> None:
    """Raise CheckpointError, with all that is amiss, where the header of `file` lacks a weight that its transformer has
    in `mode`, or has one of another shape, or one too many."""
    prefix = keys.transformer_prefix(file.tensors) or ""
    check_names(file, prefix, "transformer", blueprint(file, mode).state_dict(), _owned(mode), stored_in(file))


def _owned(mode: str) -> Callable[[str], bool]:
    """Whether a name under the transformer's prefix is one of a transformer in `mode`."""
    return lambda name: "embeddings_connector." not in name and keys.in_mode(name, mode)


def blueprint(file: TensorFile, mode: str) -> LTXTransformer:
    """The transformer of `file` for `mode` on the meta device: all modules, no memory."""
    with _described(file, "transformer"), torch.device("meta"):
        return LTXTransformer(transformer_config(file), mode)


def published_blueprint(version: str, mode: str) -> LTXTransformer:
    """The same of the published full-size model of `version`."""
    with torch.device("meta"):
        return LTXTransformer(TransformerConfig.from_checkpoint(published_config(version)["transformer"]), mode)


def transformer_config(file: TensorFile) -> TransformerConfig:
    """Sizes and variant of the transformer in `file`, by its header alone."""
    prefix = keys.transformer_prefix(file.tensors) or ""
    names = {name[len(prefix) :] for name in file.tensors if name.startswith(prefix)}
    try:
        with _described(file, "transformer"):
            return TransformerConfig.from_checkpoint(section(file, "transformer"), names)
    except CheckpointError as error:
        raise CheckpointError(f"{file.path.name}: {error}") from None


def load_connectors(
    path: Path | str,
    mode: str = "video",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
) -> TextConnectors | PlainText:
    """The frozen text connectors of the streams that `mode` uses, or what stands for them where a model has none."""
    with TensorFile(path) as file:
        if not model_family(file).connectors:
            return PlainText(transformer_config(file).caption_channels)
        model, origin = _connectors(file, mode)
        materialise(model, origin, Arrival(dtype, device, on_progress))
    return model


def load_video_vae(
    path: Path | str,
    encoder: bool = True,
    decoder: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
) -> VideoVAE:
    """The frozen video VAE; a half that is not asked for is not read."""
    with TensorFile(path) as file:
        model, origin = _video_vae(file, encoder, decoder)
        materialise(model, origin, Arrival(dtype, device, on_progress))
    _require_spread(model, path, "video VAE")
    return model


def load_audio_vae(
    path: Path | str,
    encoder: bool = True,
    decoder: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
) -> AudioVAE:
    """The frozen audio VAE, in float32 unless told otherwise; a half that is not asked for is not read."""
    with TensorFile(path) as file:
        model, origin = _audio_vae(file, encoder, decoder)
        materialise(model, origin, Arrival(dtype, device, on_progress))
    _require_spread(model, path, "audio VAE")
    return model


def load_vocoder(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
) -> Vocoder | ExtendedVocoder:
    """The frozen vocoder, in float32 unless told otherwise."""
    with TensorFile(path) as file:
        model, origin = _vocoder(file)
        materialise(model, origin, Arrival(dtype, device, on_progress))
    return model


def complaints_of_parts(file: TensorFile, parts: Collection[str], mode: str) -> dict[str, str]:
    """What is amiss with the tensors of `parts`, as a probe names them, by the header of `file`; the transformer is not
    among them."""
    build: dict[str, Callable[[], tuple[nn.Module, Origin]]] = {
        "connectors": lambda: _connectors(file, mode),
        "video_vae_encoder": lambda: _video_vae(file, True, False),
        "video_vae_decoder": lambda: _video_vae(file, False, True),
        "audio_vae": lambda: _audio_vae(file, True, True),
        "vocoder": lambda: _vocoder(file),
    }
    found: dict[str, str] = {}
    for part in [part for part in build if part in parts]:
        try:
            model, origin = build[part]()
            check_names(file, origin.prefix, origin.what, model.state_dict(), origin.owned, stored_in(file))
        except CheckpointError as error:
            found[part] = str(error)
    return found


def _connectors(file: TensorFile, mode: str) -> tuple[TextConnectors, Origin]:
    """The connectors of `file`, without memory, and where their tensors are; the next ones likewise."""
    with _described(file, "transformer"), torch.device("meta"):
        names = [name for name in file.tensors if name.startswith(keys.CONNECTORS)]
        model = TextConnectors(section(file, "transformer"), mode, names=names)
    wanted = tuple(
        name[len(keys.TRANSFORMER) :]
        for name, stream in zip(keys.CONNECTORS, ("video", "audio"), strict=True)
        if mode in (stream, "av")
    )
    return model, Origin(file, keys.TRANSFORMER, "text connectors", lambda name: name.startswith(wanted))


def _video_vae(file: TensorFile, encoder: bool, decoder: bool) -> tuple[VideoVAE, Origin]:
    prefix = keys.video_vae_prefix(file.tensors)
    if prefix is None:
        raise CheckpointError(f"{file.path.name} holds no video VAE. Name a file that does as model.video_vae.")
    if decoder and prefix + keys.DIFFUSION_DECODER in file:
        raise CheckpointError(f"{file.path.name} {DIFFUSION_VAE}")
    names = [name for name in file.tensors if name.startswith(prefix)]
    with _described(file, "vae"), torch.device("meta"):
        config = VideoVAEConfig.from_checkpoint(section(file, "vae"), names, model_family(file).decoder_padding)
        model = VideoVAE(config, encoder=encoder, decoder=decoder)
    return model, Origin(file, prefix, "video VAE", _halves(encoder, decoder))


def _audio_vae(file: TensorFile, encoder: bool, decoder: bool) -> tuple[AudioVAE, Origin]:
    with _described(file, "audio_vae"), torch.device("meta"):
        config = AudioVAEConfig.from_checkpoint(section(file, "audio_vae"))
        model = AudioVAE(config, encoder=encoder, decoder=decoder)
    return model, Origin(file, keys.AUDIO_VAE, "audio VAE", _halves(encoder, decoder))


def _vocoder(file: TensorFile) -> tuple[Vocoder | ExtendedVocoder, Origin]:
    with _described(file, "vocoder"), torch.device("meta"):
        model = build_vocoder(VocoderConfig.from_checkpoint(section(file, "vocoder")))
    return model, Origin(file, keys.VOCODER, "vocoder")


@contextmanager
def _described(file: TensorFile, part: str) -> Iterator[None]:
    """While entered, the header of `file` says what is built; numbers of which nothing can be are told as that."""
    try:
        yield
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RuntimeError, AssertionError) as error:
        raise CheckpointError(
            f"{file.path.name}: the section {part} of its header configuration (metadata `config`) describes nothing "
            "that can be built: a number in it is missing, out of range or of another type. The file is damaged or "
            "was repacked with a wrong header. Use an original LTX-2 or LTX-2.3 checkpoint."
        ) from error


def section(file: TensorFile, name: str) -> Mapping[str, Any]:
    """Section `name` of the header's configuration.

    A repack without any configuration gets that of the published files, as long as it is a full-size model.
    Raises CheckpointError where there is none.
    """
    found = (file.config or {}).get(name)
    if isinstance(found, Mapping) and found:
        return found
    if not file.config:
        info = describe_checkpoint(file)
        if info.kind in ("ltx2", "ltxv") and info.trainable and info.version is not None:
            return published_config(info.version)[name]
        if info.problems:
            raise CheckpointError("\n".join(info.problems))
    raise CheckpointError(
        f"{file.path.name} has no section {name} in its header configuration (metadata `config`), so this part cannot "
        "be built. Use an original LTX-2 or LTX-2.3 checkpoint, or a repack that kept its header."
    )


def _require_spread(model: VideoVAE | AudioVAE, path: Path | str, what: str) -> None:
    """Raise CheckpointError where a deviation that latents are divided by is not above zero."""
    if not bool((model.per_channel_statistics.get_buffer("std-of-means") > 0).all()):
        raise CheckpointError(
            f"The {what} cannot be loaded from {Path(path).name}: its per_channel_statistics.std-of-means holds zeros "
            "or less. The file is damaged. Download it again."
        )


def _halves(encoder: bool, decoder: bool) -> Callable[[str], bool]:
    starts = (*(("encoder.",) if encoder else ()), *(("decoder.",) if decoder else ()))
    return lambda name: bool(starts) and name.startswith(starts)
