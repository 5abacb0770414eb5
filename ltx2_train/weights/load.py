"""Files to modules: build on the meta device, then let each tensor arrive once.

A module built on the meta device has shapes and no memory. Each tensor is read, sent to its device, cast there and put
in place before the next one is read, in the order of the file. So RAM and device memory hold the model and one tensor.

Linears are quantized as soon as their last tensor is there, on a device of their own choice, and then laid where they
belong; so a model whose blocks live in RAM never passes through the card as a whole. Linears that a file brings
quantized are kept as they are. All other tensors of quantized files are turned back into numbers, w = q * scale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError, OutOfMemory
from ..models.audio_vae import AudioVAE, AudioVAEConfig
from ..models.text import TextConnectors
from ..models.transformer import LTXTransformer, TransformerConfig
from ..models.video_vae import VideoVAE, VideoVAEConfig
from ..models.vocoder import ExtendedVocoder, Vocoder, VocoderConfig, build_vocoder
from ..quant.base import QuantLinear
from ..quant.settings import QuantSettings
from . import keys
from .expected import check_names
from .loftq import Loftq, read_companion
from .probe import describe
from .published import published_config
from .quantize import Quantizer, eligible, quantizer, settle
from .reader import TensorFile
from .stored import USABLE, StoredLinears, check_marks, find_stored, read_stored

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, name; may raise Stopped
OnLinear = Callable[[str, nn.Linear], "nn.Module | None"]
Home = Callable[[str], "torch.device | str"]  # module path -> where its finished tensors shall lie

_SCALES = (".weight_scale", ".scale_weight")
_QUANTIZED = ("F8_E4M3", "F8_E5M2", "I8")


def load_transformer(
    path: Path | str,
    mode: str = "video",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
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
        found = find_stored(file.tensors, file.metadata)
        check_marks(file, found.kinds)
        quantize = None
        if quant is not None:
            settings, _ = settle(found, quant, file.path.name)
            quantize = quantizer(settings, device, dtype, loftq, activations)
            if quant.loftq and not settings.loftq and loftq is not None:
                read_companion(path, loftq)

        def owned(name: str) -> bool:
            return "embeddings_connector." not in name and keys.in_mode(name, mode)

        materialise(
            model, file, prefix, "transformer", dtype, device, owned, on_progress, on_linear,
            found=found, keep=eligible if quant is not None else None, quantize=quantize, home=home,
        )  # fmt: skip
    return model


def blueprint(file: TensorFile, mode: str) -> LTXTransformer:
    """The transformer of `file` for `mode` on the meta device: all modules, no memory."""
    config = TransformerConfig.from_checkpoint(section(file, "transformer"))
    with torch.device("meta"):
        return LTXTransformer(config, mode)


def load_connectors(
    path: Path | str,
    mode: str = "video",
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> TextConnectors:
    """The frozen text connectors of the streams that `mode` uses."""
    with TensorFile(path) as file:
        with torch.device("meta"):
            model = TextConnectors(section(file, "transformer"), mode)
        wanted = tuple(
            name[len(keys.TRANSFORMER) :]
            for name, stream in zip(keys.CONNECTORS, ("video", "audio"), strict=True)
            if mode in (stream, "av")
        )
        materialise(
            model,
            file,
            keys.TRANSFORMER,
            "text connectors",
            dtype,
            device,
            lambda name: name.startswith(wanted),
            on_progress,
        )
    return model


def load_video_vae(
    path: Path | str,
    encoder: bool = True,
    decoder: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> VideoVAE:
    """The frozen video VAE; a half that is not asked for is not read."""
    with TensorFile(path) as file:
        names = [name for name in file.tensors if name.startswith(keys.VIDEO_VAE)]
        config = VideoVAEConfig.from_checkpoint(section(file, "vae"), names)
        with torch.device("meta"):
            model = VideoVAE(config, encoder=encoder, decoder=decoder)
        materialise(model, file, keys.VIDEO_VAE, "video VAE", dtype, device, _halves(encoder, decoder), on_progress)
    return model


def load_audio_vae(
    path: Path | str,
    encoder: bool = True,
    decoder: bool = True,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> AudioVAE:
    """The frozen audio VAE, in float32 unless told otherwise; a half that is not asked for is not read."""
    with TensorFile(path) as file:
        config = AudioVAEConfig.from_checkpoint(section(file, "audio_vae"))
        with torch.device("meta"):
            model = AudioVAE(config, encoder=encoder, decoder=decoder)
        materialise(model, file, keys.AUDIO_VAE, "audio VAE", dtype, device, _halves(encoder, decoder), on_progress)
    return model


def load_vocoder(
    path: Path | str,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
) -> Vocoder | ExtendedVocoder:
    """The frozen vocoder, in float32 unless told otherwise."""
    with TensorFile(path) as file:
        config = VocoderConfig.from_checkpoint(section(file, "vocoder"))
        with torch.device("meta"):
            model = build_vocoder(config)
        materialise(model, file, keys.VOCODER, "vocoder", dtype, device, None, on_progress)
    return model


def section(file: TensorFile, name: str) -> Mapping[str, Any]:
    """Section `name` of the header's configuration.

    A repack without any configuration gets that of the published files, as long as it is a full-size LTX-2.
    Raises CheckpointError where there is none.
    """
    found = (file.config or {}).get(name)
    if isinstance(found, Mapping) and found:
        return found
    if not file.config:
        info = describe(file)
        if info.kind == "ltx2" and info.trainable and info.version is not None:
            return published_config(info.version)[name]
        if info.problems:
            raise CheckpointError("\n".join(info.problems))
    raise CheckpointError(
        f"{file.path.name} has no section {name} in its header configuration (metadata `config`), so this part cannot "
        "be built. Use an original LTX-2 or LTX-2.3 checkpoint, or a repack that kept its header."
    )


def materialise(
    module: nn.Module,
    file: TensorFile,
    prefix: str,
    what: str,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    owned: Callable[[str], bool] | None = None,
    on_progress: Progress | None = None,
    on_linear: OnLinear | None = None,
    *,
    found: StoredLinears | None = None,
    keep: Callable[[str], bool] | None = None,
    quantize: Quantizer | None = None,
    home: Home | None = None,
) -> None:
    """Fill `module`, built on the meta device, with the tensors `prefix + its own names`; freeze it, set it to eval.

    Parameters become `dtype`; buffers are tables and keep the precision they are stored in. `owned(name without
    prefix)` says which tensors under `prefix` must find a place. `keep(path)`: a linear that the file stores quantized
    stays so. `quantize` takes the plain linears it wants from its own device, in the dtype of the file. Everything
    ends on `home(path)`, or `device`.

    Raises CheckpointError where a tensor is missing, left over or of another shape, OutOfMemory where the device is
    full.
    """
    device = torch.device(device)
    found = find_stored(file.tensors, file.metadata) if found is None else found
    wanted = module.state_dict()
    check_names(file, prefix, what, wanted, owned, found)
    parameters = {name for name, _ in module.named_parameters()}
    order = sorted(wanted, key=lambda name: file.tensors[prefix + name].offset)
    total = sum(file.tensors[prefix + name].nbytes for name in order)
    waiting = _waiting(wanted) if on_linear or quantize else {}
    stored: set[str] = set()
    done = 0
    try:
        for name in order:
            path = name.rpartition(".")[0]
            lies = torch.device(home(path)) if home is not None else device
            if path in stored:
                pass  # came together with the other tensors of its layer
            elif prefix + path in found.kinds:
                _take_stored(module, file, prefix, path, found, dtype, lies, keep is not None and keep(path))
                stored.add(path)
            else:
                layer = module.get_submodule(path)
                taken = quantize is not None and isinstance(layer, nn.Linear) and quantize.wants(path)
                as_stored = name not in parameters or (taken and name.endswith(".weight"))
                arrived = _arrive(file, prefix + name, quantize.device if taken else lies, None if as_stored else dtype)
                _place(module, name, arrived, name in parameters)
                del arrived
                if waiting:
                    _offer(module, path, waiting, quantize if taken else on_linear, lies)
            done += file.tensors[prefix + name].nbytes
            if on_progress is not None:
                on_progress(done, total, name)
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(
            f"{device} ran out of memory while the {what} was loaded ({done / 1e9:.1f} of {total / 1e9:.1f} GB). "
            "Choose a smaller quantization, let more blocks stay in RAM, or close what else uses the device."
        ) from error
    _check_full(module)
    module.requires_grad_(False).eval()


def _check_full(module: nn.Module) -> None:
    left = [name for name, tensor in (*module.named_parameters(), *module.named_buffers()) if tensor.is_meta]
    assert not left, f"computed buffers were lost on the meta device: {left}"


def _take_stored(
    module: nn.Module,
    file: TensorFile,
    prefix: str,
    path: str,
    found: StoredLinears,
    dtype: torch.dtype,
    device: torch.device,
    keep: bool,
) -> None:
    """The quantized linear `path` of the file: itself where `keep`, else as numbers in `dtype`."""
    layer = module.get_submodule(path)
    name = f"{prefix}{path}.bias"
    bias = _arrive(file, name, device, dtype) if layer.bias is not None else None
    shape = (layer.out_features, layer.in_features)
    made = read_stored(file, prefix + path, found, bias, dtype, device, shape)
    if (made.out_features, made.in_features) != shape:
        raise CheckpointError(
            f"{file.path.name} stores {path} as {made.out_features}x{made.in_features}, expected "
            f"{shape[0]}x{shape[1]}. Its header belongs to another file. {USABLE}"
        )
    if keep:
        _set(module, path, made)
        return
    _place(module, f"{path}.weight", made.dequantize(dtype), True)
    if bias is not None:
        _place(module, f"{path}.bias", bias, True)


def _arrive(file: TensorFile, name: str, device: torch.device, dtype: torch.dtype | None) -> torch.Tensor:
    info = file.tensors[name]
    tensor = file.read(name, device)
    if info.dtype in _QUANTIZED:
        layer = name[: -len(".weight")] if name.endswith(".weight") else name
        scale = next((layer + ending for ending in _SCALES if layer + ending in file), None)
        tensor = tensor.float()
        if scale is not None:
            factor = file.read(scale, device).float()
            if factor.numel() not in (1, tensor.shape[0]):
                raise CheckpointError(
                    f"{file.path.name} stores {name} with {factor.numel()} scales for {tensor.shape[0]} rows, a block "
                    "format this program cannot read. Use the bf16 checkpoint, or fp8 with one scale a tensor."
                )
            rows = factor.numel() > 1
            tensor = tensor.mul_(factor.reshape(-1, *[1] * (tensor.ndim - 1)) if rows else factor.reshape(()))
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def _place(module: nn.Module, name: str, tensor: torch.Tensor, parameter: bool) -> None:
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if parameter:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _waiting(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        path = name.rpartition(".")[0]
        counts[path] = counts.get(path, 0) + 1
    return counts


def _offer(
    module: nn.Module, path: str, waiting: dict[str, int], on_linear: OnLinear | None, lies: torch.device
) -> None:
    waiting[path] -= 1
    layer = module.get_submodule(path)
    if on_linear is None or waiting[path] or not isinstance(layer, nn.Linear):
        return
    replacement = on_linear(path, layer)
    if replacement is not None:
        _set(module, path, replacement.to(lies) if isinstance(replacement, QuantLinear) else replacement)


def _set(module: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, leaf = path.rpartition(".")
    setattr(module.get_submodule(parent), leaf, layer)


def _halves(encoder: bool, decoder: bool) -> Callable[[str], bool]:
    starts = (*(("encoder.",) if encoder else ()), *(("decoder.",) if decoder else ()))
    return lambda name: bool(starts) and name.startswith(starts)
