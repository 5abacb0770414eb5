"""What a weight file is, found in its header alone, in milliseconds, before anything is loaded.

Tensor names and shapes say what the file can do; its metadata says what it claims. Version, both ways:

    tensors    2.3 has `transformer_blocks.0.prompt_scale_shift_table`, 2.0 has not; 2.5 is 2.3 less the biases of `ff`
               and with `keyframes_abs_pos_embedding`; LTX-Video has no `audio_adaln_single`, and its width is its size
    metadata   config.transformer.cross_attention_adaln, else `model_version`

The tensors are believed; a contradiction is noted. What cannot be trained on is named, with what to use in its place.
The file is long since what is found and what is refused of it stand together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from ..errors import CheckpointError
from ..events import Events
from ..families import FAMILIES, Family, name_of
from ..models.config import is_ltx_video
from ..quant.formats import STORED
from ..settings import Reaction
from . import keys
from .info import PART_NAMES, CheckpointInfo, PartSize
from .reader import TensorFile, TensorInfo
from .stored import KEPT_CONVROT, StoredLinears, stored_in
from .twice import told_twice

WANTED = (
    "Use a full checkpoint of LTX-2 or LTX-2.3 (for example ltx-2.3-22b-dev.safetensors), the transformer of "
    "LTX-2.5 (ltx-2.5-22b-dev-transformer-bf16.safetensors), or LTX-Video (ltxv-2b-0.9.6-dev-04-25.safetensors)."
)
DIFFUSION_VAE = (
    "has the diffusion decoder, with which samples cannot be drawn here; it serves for caching. Set model.video_vae to "
    "ltx-2.5-video-vae-conv-bf16.safetensors, whose encoder is the same, or draw no samples."
)
_PLAIN = {"BF16": "bf16", "F16": "fp16", "F32": "fp32", "F8_E4M3": "fp8_e4m3", "F8_E5M2": "fp8_e5m2", "I8": "int8"}
# a repack without any metadata can be built from the published configuration if it has the published widths
_PUBLISHED_WIDTHS = (4096, 2048)
_WIDTH_13B = 4096


def probe(path: Path | str) -> CheckpointInfo:
    """Look at the header of `path`. Raises CheckpointError where the file is missing, damaged or not a weight file."""
    path = Path(path)
    if _is_gguf(path):
        return CheckpointInfo(
            path,
            "gguf",
            bytes=path.stat().st_size,
            precision="gguf",
            problems=[
                f"{path.name} is a GGUF file; its weights are packed for inference and cannot be trained on. "
                "Use the bf16 or fp8 .safetensors checkpoint."
            ],
        )
    with TensorFile(path) as file:
        return describe_checkpoint(file)


def describe_checkpoint(file: TensorFile) -> CheckpointInfo:
    """`probe` for a file that is open already."""
    path, tensors = file.path, file.tensors
    weights = {name: info for name, info in tensors.items() if not keys.is_quantization(name)}
    facts: dict[str, Any] = {
        "path": path,
        "bytes": file.size,
        "parameters": sum(info.elements for info in weights.values()),
        "model_version": file.metadata.get("model_version", ""),
        "distilled": _is_distilled(file),
    }
    parts = _parts(tensors)
    prefix = keys.transformer_prefix(tensors)
    inside = {} if prefix is None else _under(tensors, prefix)
    stored = stored_in(file)
    facts["quant_format"] = stored.format
    rotated = KEPT_CONVROT in stored.kinds.values()  # its bytes are those of any int8
    facts["precision"] = stored.format or ("int8_convrot" if rotated else _precision(inside or tensors))
    if stored.kinds and prefix is not None:
        facts["parameters"] += _packed_parameters(stored, tensors, parts)

    other = _other_kind(file, prefix, inside, parts)
    if other is not None:
        kind, family, sentence = other
        return CheckpointInfo(kind=kind, family=family, parts=parts, problems=[f"{path.name} {sentence}"], **facts)

    version = _version_of_tensors(inside)
    facts |= {
        "version": version,
        "parts": parts,
        "blocks": len({name.split(".")[1] for name in inside if name.startswith("transformer_blocks.")}),
    }
    if "transformer" not in parts:
        count = sum(info.elements for info in inside.values())
        parts["transformer"] = PartSize(len(inside), count, sum(info.nbytes for info in inside.values()))
    own = FAMILIES[version]
    missing = [part for part in own.needed if part not in parts]
    problems, warnings = _judge(file, own, inside, stored, facts["distilled"], parts)
    if missing and not set(missing) <= set(own.apart):
        return CheckpointInfo(
            kind="part",
            family="the transformer alone" if len(parts) == 1 else "",
            missing=missing,
            problems=[_lacking(path.name, missing, parts), *problems],
            **facts,
        )
    kind, family = ("ltxv", own.name) if own.vae == "ltxv" else ("ltx2", "LTX-2.5" if own.split else "LTX-2")
    return CheckpointInfo(kind=kind, family=family, missing=missing, problems=problems, warnings=warnings, **facts)


def _lacking(name: str, missing: Sequence[str], parts: Mapping[str, PartSize]) -> str:
    lacking = ", ".join(PART_NAMES[part] for part in missing)
    found = ", ".join(PART_NAMES[part] for part in parts if part in PART_NAMES)
    return f"{name} is only a part of a checkpoint: it has {found} but lacks {lacking}. {WANTED}"


def _name_others(name: str, family: Family, missing: Iterable[str]) -> str:
    """What to do about parts that lie in other files."""
    parts = [part for part in missing if part in family.apart]
    lacking = " and no ".join(PART_NAMES[part] for part in parts)
    named = ", and ".join("{} to {}".format(*family.apart[part]) for part in parts)
    why = f"{family.name} comes in several files. " if family.split else ""
    return f"{name} holds no {lacking}{':' if why else '.'} {why}Set {named}."


def require_trainable(
    path: Path | str,
    expected_version: str = "auto",
    check: str = "warn",
    events: Events | None = None,
    elsewhere: Collection[str] = (),
) -> CheckpointInfo:
    """Probe `path` and raise CheckpointError unless it can be trained on.

    `expected_version` is "auto" or a version; where the file is another, `check` says what happens: "off" nothing,
    "warn" a message, "error" a CheckpointError. Warnings go to `events`. Parts that are `elsewhere` may be missing.
    """
    assert check in get_args(Reaction), check
    events = events or Events()
    info = probe(path)
    absent = [part for part in info.missing if part not in elsewhere]
    problems = list(info.problems)
    if info.missing and not absent and "transformer" not in info.missing:
        problems = [text for text in problems if text != _lacking(info.path.name, info.missing, info.parts)]
    elif absent and not problems and info.version is not None:
        problems = [_name_others(info.path.name, FAMILIES[info.version], absent)]
    if problems:
        raise CheckpointError("\n".join(problems))
    require_version(info, expected_version, check, events)
    for text in info.warnings:
        events.message(text, "warning")
    return info


def require_version(info: CheckpointInfo, expected_version: str, check: str, events: Events) -> None:
    """Warn where the checkpoint `info` is not of `expected_version`, or raise CheckpointError, as `check` says: see
    require_trainable."""
    # nothing that holds for LTX-Video holds for LTX-2
    apart = expected_version != "auto" and (FAMILIES[expected_version].vae == "ltxv") != (info.kind == "ltxv")
    if expected_version != "auto" and expected_version != info.version and (check != "off" or apart):
        text = (
            f"{info.path.name} is {name_of(info.version or '')}, but model.version says {expected_version}. Set "
            f'model.version to "auto" or "{info.version}", or choose an {name_of(expected_version)} checkpoint.'
        )
        if check == "error" or apart:
            raise CheckpointError(text)
        its = f"{name_of(info.version or '')} with the defaults (noise levels, guidance) of {name_of(expected_version)}"
        events.message(f"{text} Going on as {its}.", "warning")


def _judge(
    file: TensorFile,
    family: Family,
    inside: Mapping[str, TensorInfo],
    stored: StoredLinears,
    distilled: bool,
    parts: Mapping[str, PartSize],
) -> tuple[list[str], list[str]]:
    name, problems, warnings = file.path.name, [], []
    version = family.version
    claimed = _version_of_metadata(file)
    if not (file.config or {}).get("transformer"):
        width = inside["patchify_proj.weight"].shape[0]
        if width in _PUBLISHED_WIDTHS:
            warnings.append(
                f"{name} has lost its header configuration (metadata `config`); that of the published {family.name} "
                "is used. ComfyUI may build it wrongly: prefer the original file."
            )
        else:
            problems.append(
                f"{name} has no header configuration (metadata `config`) and its width {width} is not that of a "
                f"published model, so it cannot be built. {WANTED}"
            )
    elif claimed is not None and claimed != version:
        problems.append(
            f"{name} contradicts itself: its metadata say {name_of(claimed)}, its tensors are those of {family.name}. "
            "It was repacked with the header of another file. Download the original."
        )
    if text := stored.complaint():
        problems.append(f"{name} is stored as {text}")
    if text := told_twice(file):
        problems.append(f"{name} {text}")
    if family.vae == "ltxv" and (text := _too_old(file)):
        problems.append(f"{name} {text} Use {family.checkpoint}.")
    if distilled and not family.trains_distilled:
        problems.append(
            f"{name} is a distilled {family.name}: it was made to draw in a few steps without guidance, and a LoRA "
            f"trained on it goes wrong. Train on the dev file, {family.checkpoint}; the LoRA works with both."
        )
    elif distilled:
        told = " (by its name; the header of the dev file is the same)" if version == "2.5" else ""
        warnings.append(
            f"{name} is a distilled model{told}. A LoRA trained on it tends to undo the distillation and fits the "
            "undistilled model badly. Train on the dev checkpoint and use the distilled one for sampling."
        )
    silent = [part for part in ("audio_vae", "vocoder") if part not in parts]
    if silent and not family.split and len(family.modes) > 1:  # where files are several, or there is no sound
        lacking = " and no ".join(PART_NAMES[part] for part in silent)
        warnings.append(f"{name} has no {lacking}: only video can be trained or sampled.")
    if "video_vae_decoder" not in parts and "video_vae_encoder" not in family.apart:
        warnings.append(f"{name} has no video VAE decoder: samples cannot be made during training.")
    return problems, warnings


def _other_kind(
    file: TensorFile, prefix: str | None, inside: Mapping[str, TensorInfo], parts: Mapping[str, PartSize]
) -> tuple[str, str, str] | None:
    """(kind, family, sentence after the file name) for everything that is not LTX-2 with a transformer; else None."""
    names = file.tensors
    if not names:
        return "unknown", "", f"holds no tensors. {WANTED}"
    marked = sum(any(mark in name for mark in keys.LORA_MARKS) for name in names)
    if marked * 4 >= len(names):
        return "lora", "a LoRA", f"is a LoRA, not a model: it only changes one. As the base: {_lower(WANTED)}"
    if prefix is not None:
        return None
    if all(any(mark in name for name in names) for mark in keys.DIFFUSERS_TRANSFORMER):
        return (
            "part",
            "a diffusers transformer",
            f"is the transformer of a diffusers folder, with other tensor names. {WANTED}",
        )
    if all(any(mark in name for name in names) for mark in keys.UPSAMPLER_MARKS):
        return "upsampler", "a latent upsampler", f"is a latent upsampler, not the model. {WANTED}"
    for family, mark in keys.TEXT_ENCODERS:
        if any(mark in name for name in names):
            return (
                "text_encoder",
                family,
                f"is a text encoder ({family}). Choose it as text encoder; as checkpoint: {_lower(WANTED)}",
            )
    for family, marks in keys.OTHER_FAMILIES:
        if all(any(mark in name for name in names) for mark in marks):
            return "other", family, f"is of another model family: {family}. {WANTED}"
    found = [PART_NAMES[part] for part in parts if part in PART_NAMES] or _bare_parts(names)
    if found:
        return "part", "", f"is only a part of a checkpoint: {', '.join(found)}, without the transformer. {WANTED}"
    first = ", ".join(list(names)[:3])
    return "unknown", "", f"is not a model this trainer knows (its tensors begin with {first}). {WANTED}"


def _bare_parts(names: Mapping[str, TensorInfo]) -> list[str]:
    """Parts in a file of their own, without their prefix."""
    parts = []
    if "per_channel_statistics.mean-of-means" in names:
        kernel = next((info.shape for name, info in names.items() if name.endswith("conv_in.conv.weight")), ())
        parts.append("audio VAE" if len(kernel) == 4 else "video VAE")
    if any("transformer_1d_blocks.0." in name for name in names):
        parts.append("text connectors")
    if any(name.endswith("aggregate_embed.weight") for name in names):
        parts.append("text projection")
    if "conv_pre.weight" in names or "vocoder.conv_pre.weight" in names:
        parts.append("vocoder")
    return parts


def _parts(tensors: Mapping[str, TensorInfo]) -> dict[str, PartSize]:
    counts: dict[str, list[int]] = {}
    root = keys.VIDEO_VAE if keys.video_vae_prefix(tensors) == "" else ""
    for name, info in tensors.items():
        part = keys.part_of(root + name)
        if part is None:
            continue
        entry = counts.setdefault(part, [0, 0, 0])
        entry[2] += info.nbytes
        if not keys.is_quantization(name):
            entry[0] += 1
            entry[1] += info.elements
    return {part: PartSize(*counts[part]) for part in keys.PARTS if part in counts}


def _under(tensors: Mapping[str, TensorInfo], prefix: str) -> dict[str, TensorInfo]:
    return {
        name[len(prefix) :]: info
        for name, info in tensors.items()
        if name.startswith(prefix) and not name.startswith(keys.CONNECTORS) and "embeddings_connector." not in name
    }


def _version_of_tensors(inside: Mapping[str, TensorInfo]) -> str:
    if is_ltx_video({}, inside):
        return "ltxv-13b" if inside["patchify_proj.weight"].shape[0] >= _WIDTH_13B else "ltxv-2b"
    if "transformer_blocks.0.prompt_scale_shift_table" not in inside:
        return "2.0"
    plain = "transformer_blocks.0.ff.net.0.proj.weight" in inside
    unbiased = plain and "transformer_blocks.0.ff.net.0.proj.bias" not in inside
    return "2.5" if unbiased or "keyframes_abs_pos_embedding" in inside else "2.3"


def _version_of_metadata(file: TensorFile) -> str | None:
    transformer = (file.config or {}).get("transformer")
    if isinstance(transformer, dict) and transformer.get("_class_name", "AVTransformer3DModel").startswith("AV"):
        if not transformer.get("cross_attention_adaln", False):
            return "2.0"
        newer = transformer.get("ff_bias") is False or transformer.get("use_keyframes_abs_pos_embedding")
        return "2.5" if newer else "2.3"
    stated = file.metadata.get("model_version", "")
    return next((version for version in ("2.5", "2.3", "2.0") if stated.startswith(version)), None)


def _too_old(file: TensorFile) -> str:
    """Why this LTX-Video is of a version whose VAE and positions are not those of 0.9.5 and later; or ""."""
    transformer = (file.config or {}).get("transformer") or {}
    prefix = keys.video_vae_prefix(file.tensors)
    older = prefix is not None and prefix + "encoder.down_blocks.1.conv.conv.bias" not in file
    if older or (transformer and not transformer.get("causal_temporal_positioning")):
        return "is LTX-Video 0.9.1 or older, which has another VAE and other positions and cannot be trained here."
    return ""


def model_family(file: TensorFile) -> Family:
    """What `file` is or is a part of; LTX-2.3 where nothing says so."""
    version = version_of(file)
    if version is None and keys.is_ltxv_vae(file.tensors):
        version = "ltxv-2b"
    return FAMILIES[version or "2.3"]


def version_of(file: TensorFile) -> str | None:
    """The version of LTX that `file` is, or is a part of; None where nothing says so."""
    prefix = keys.transformer_prefix(file.tensors)
    return _version_of_metadata(file) if prefix is None else _version_of_tensors(_under(file.tensors, prefix))


def _is_distilled(file: TensorFile) -> bool:
    # the configuration is long and none of its keys speaks of it; short texts are titles and notes
    texts = [text for key, text in file.metadata.items() if len(text) < 500 and "lora" not in key.lower()]
    return any("distill" in text.lower() for text in (file.path.name, *texts))


def _packed_parameters(found: StoredLinears, tensors: Mapping[str, TensorInfo], parts: dict[str, PartSize]) -> int:
    """How many more numbers than stored elements there are in packed weights; added to their parts too."""
    more: Counter[str] = Counter()
    for layer, kind in found.kinds.items():
        name = f"{layer}.weight"
        more[keys.part_of(name) or ""] += tensors[name].elements * (STORED.get(kind).storage.per_byte - 1)
    for name, count in more.items():
        if count and name in parts:
            part = parts[name]
            parts[name] = PartSize(part.tensors, part.parameters + count, part.bytes)
    return sum(more.values())


def _precision(tensors: Mapping[str, TensorInfo]) -> str:
    """How most bytes are stored; a quantized format wins from a tenth of the bytes on, since blocks are left out."""
    bytes_of: Counter[str] = Counter()
    scaled = False
    for name, info in tensors.items():
        if keys.is_quantization(name):
            continue
        kind = _PLAIN.get(info.dtype, info.dtype.lower())
        if name.endswith(".weight"):
            layer = name[: -len(".weight")]
            if info.dtype in ("U8", "F4") and f"{layer}.weight_scale_2" in tensors:
                kind = "nvfp4"
            elif f"{layer}.weight_scale" in tensors or f"{layer}.scale_weight" in tensors:
                scaled = True
                scale = tensors.get(f"{layer}.weight_scale")
                if info.dtype.startswith("F8") and scale is not None and scale.dtype in ("U8", "F8_E8M0"):
                    kind = "mxfp8"
            elif info.dtype in ("U8", "F4"):
                kind = "4-bit"
        bytes_of[kind] += info.nbytes
    total = sum(bytes_of.values())
    if not total:
        return ""
    small = [(count, kind) for kind, count in bytes_of.items() if kind not in ("bf16", "fp16", "fp32", "f64")]
    if small and max(small)[0] * 10 >= total:
        kind = max(small)[1]
        return f"{kind}_scaled" if scaled and kind in ("fp8_e4m3", "fp8_e5m2", "int8") else kind
    return max((count, kind) for kind, count in bytes_of.items())[1]


def _is_gguf(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"GGUF"
    except OSError:
        return False


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]
