"""Gemma 3 as a Gemma3TextModel of transformers, Gemma 4 as our own, and their tokenizers.

Only the text tower is built. What no shape shows (rotary bases, window) comes from the folder's config.json, or is
Gemma-3-12B's, the one encoder that LTX-2 and LTX-2.3 were trained with.

Gemma 4 needs nothing of transformers, which builds it in its newest releases alone (models/gemma4.py).

The module is made on the meta device and filled tensor by tensor, so memory holds the model once. Non-persistent
buffers (rotary frequencies, the embedding's scale) have other names in every release of transformers: they are copied
from a two-layer twin that is built for real, whatever they are called. Quantized linears stay as they are stored and
are upcast one at a time where they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ..errors import CheckpointError
from ..files import digest
from ..models.gemma4 import Gemma4
from .encoder_files import SPIECE, EncoderFiles
from .gemma4 import Gemma4Shape
from .gemma_files import TOKENIZER, GemmaFiles, GemmaShape
from .load import LoadProgress, OnLinear
from .stored import FP8_TYPES, KEPT_FP8, numbers_shape
from .stored_numbers import read_numbers, read_scale, read_stored, refuse_unscaled

TOKEN_LIMIT = 1024  # the models were trained with captions cut here

_PATTERN = 6  # every sixth layer attends globally
_SCALAR = "layer_scalar"


def gemma_config(files: GemmaFiles) -> Any:
    """The Gemma3TextConfig of transformers. Written in the older words, which 4.57 and 5.x both read."""
    from transformers import Gemma3TextConfig

    shape, options = files.shape, files.options
    assert isinstance(shape, GemmaShape), files.family
    rope = options.get("rope_parameters") or {}  # 5.x groups the rotary values by kind of layer
    whole, local = rope.get("full_attention") or {}, rope.get("sliding_attention") or {}
    scaling = options.get("rope_scaling")
    if scaling is None and whole.get("rope_type", "default") != "default":
        scaling = {key: value for key, value in whole.items() if key != "rope_theta"}
    if scaling is None and not rope and "rope_scaling" not in options:
        scaling = {"rope_type": "linear", "factor": 8.0}
    pattern = int(options.get("sliding_window_pattern") or options.get("_sliding_window_pattern") or _PATTERN)
    kinds = options.get("layer_types") or [
        "full_attention" if (layer + 1) % pattern == 0 else "sliding_attention" for layer in range(shape.layers)
    ]
    # 5.x has no parameters of these names and takes them all the same
    rotary: dict[str, Any] = {
        "rope_theta": options.get("rope_theta") or whole.get("rope_theta") or 1_000_000.0,
        "rope_local_base_freq": options.get("rope_local_base_freq") or local.get("rope_theta") or 10_000.0,
        "rope_scaling": scaling,
    }
    return Gemma3TextConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        query_pre_attn_scalar=options.get("query_pre_attn_scalar") or shape.head_dim,
        rms_norm_eps=options.get("rms_norm_eps") or 1e-6,
        hidden_activation=options.get("hidden_activation") or "gelu_pytorch_tanh",
        max_position_embeddings=options.get("max_position_embeddings") or 131072,
        **rotary,
        sliding_window=options.get("sliding_window") or 1024,
        layer_types=list(kinds),
        use_cache=False,
    )


def load_gemma(
    files: GemmaFiles,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    on_progress: LoadProgress | None = None,
    on_linear: OnLinear | None = None,
) -> Any:
    """A frozen text model, a Gemma3TextModel or a Gemma4, that computes in `dtype` on `device`.

    `on_linear(path, linear)` may return a module that takes the place of a layer's linear that has just arrived;
    quantized weights are then turned into numbers first.
    """
    model = _empty(files, device)
    done, total = 0, files.nbytes
    for name in files.tensors:
        if name.endswith(_SCALAR):
            _place_scalar(model, files, name, name, device, dtype)
        if not name.endswith(".weight"):
            continue
        factor = embedding_factor(files, dtype)
        place_weight(model, files, name, name.removesuffix(".weight"), device, dtype, on_linear, factor)
        done += files.info(name).nbytes
        if on_progress is not None:
            on_progress(done, total, name)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"not filled: {left[:3]}"
    return model.requires_grad_(False).eval()


def place_weight(
    model: nn.Module,
    files: EncoderFiles,
    name: str,
    path: str,
    device: torch.device | str,
    dtype: torch.dtype,
    on_linear: OnLinear | None = None,
    factor: float = 1.0,
) -> None:
    """Read the tensor `name` into the module at `path` of `model`.

    What is stored quantized stays so, unless `on_linear` wants numbers. An embedding in fp8 is multiplied by `factor`.
    """
    owner, layer = model.get_submodule(path), name.removesuffix(".weight")
    kind = files.stored.kinds.get(layer)
    keep = kind is not None and torch.device(device).type != "mps"  # Apple's GPU knows no fp8
    if keep and on_linear is None and isinstance(owner, nn.Linear):
        shape = (owner.out_features, owner.in_features)
        linear = (
            Fp8Linear(*_fp8(files, name, device))
            if kind == KEPT_FP8
            else read_stored(files, layer, files.stored, None, dtype, device, shape)
        )
        model.set_submodule(path, linear)
    elif keep and isinstance(owner, nn.Embedding):
        weight, scale = _fp8(files, name, device)
        model.set_submodule(path, Fp8Embedding(weight, scale, factor, dtype))
    else:
        if kind in (None, KEPT_FP8):
            numbers = read_numbers(files, name, files.info(name)).to(device, dtype)
        else:
            shape = numbers_shape(name, files.info(name), files.stored)
            made = read_stored(files, layer, files.stored, None, dtype, "cpu", (shape[0], shape[1]))
            numbers = made.dequantize(dtype).to(device)
        owner.weight = nn.Parameter(numbers, requires_grad=False)
        replacement = on_linear(path, owner) if on_linear is not None and isinstance(owner, nn.Linear) else None
        if replacement is not None:
            model.set_submodule(path, replacement)


def embedding_factor(files: GemmaFiles, dtype: torch.dtype) -> float:
    """What Gemma multiplies its embeddings with, rounded to the weights' type as published."""
    return torch.tensor(files.shape.hidden**0.5).to(dtype).item()


def one_layer(files: GemmaFiles, number: int, device: torch.device | str, dtype: torch.dtype) -> nn.Module:
    """Layer `number` as a text model of its own, to be called with `inputs_embeds`.

    The last one ends with the final norm, the others with none, as the states of the whole model do.
    """
    model = _empty(files, device, number)
    prefix = f"layers.{number}."
    for name in files.tensors:
        if name == prefix + _SCALAR:
            _place_scalar(model, files, name, f"layers.0.{_SCALAR}", device, dtype)
        if name.startswith(prefix) and name.endswith(".weight"):
            place_weight(model, files, name, "layers.0." + name[len(prefix) :].removesuffix(".weight"), device, dtype)
    if number + 1 == files.shape.layers:
        place_weight(model, files, "norm.weight", "norm", device, dtype)
    else:
        model.add_module("norm", nn.Identity())
    return model.requires_grad_(False).eval()


def _place_scalar(
    model: nn.Module, files: GemmaFiles, name: str, path: str, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Read what Gemma 4 scales a layer with into the buffer at `path`."""
    owner = model.get_submodule(path.rpartition(".")[0])
    owner._buffers[_SCALAR] = files.read(name).to(device, dtype)


def embedding_rows(files: GemmaFiles, ids: list[int], dtype: torch.dtype) -> torch.Tensor:
    """The scaled embeddings [N, D] of `ids` on the CPU; only these rows are read."""
    return matrix_rows(files, "embed_tokens.weight", ids).to(dtype) * embedding_factor(files, dtype)


def matrix_rows(files: EncoderFiles, name: str, ids: list[int], plain: bool = False) -> torch.Tensor:
    """The rows `ids` [N, D] of the matrix `name`, with their scales where it is fp8; only they are read.

    `plain`: fp8 without a scale is known to be a cast, whatever its numbers.
    """
    info, layer = files.info(name), name.removesuffix(".weight")
    file, stored = files.tensors[name]
    width = info.nbytes // info.shape[0]
    raw = bytearray(b"".join(file.read_bytes(stored, row * width, width) for row in ids))
    rows = torch.frombuffer(raw, dtype=torch.uint8).view(info.torch_dtype).view(len(ids), info.shape[1])
    if info.dtype not in FP8_TYPES:
        return rows
    scale = read_scale(files, layer)
    if scale is None and not plain:
        refuse_unscaled(rows, layer, files.name)
    rows = rows.float()
    if scale is not None:
        rows = rows * (scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1, 1)[torch.tensor(ids)])
    return rows


class Fp8Linear(nn.Module):
    """A linear whose weight stays as stored; its scale (one, or one a row) multiplies the result."""

    weight: torch.Tensor
    scale: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x, self.weight.to(x.dtype))
        return y if self.scale is None else (y * self.scale).to(x.dtype)


class Fp8Embedding(nn.Module):
    """Gemma's embedding, scaled by the root of its width, with only the rows in use upcast."""

    weight: torch.Tensor
    scale: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, scale: torch.Tensor | None, factor: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)
        self.factor = factor
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        # indexing fp8 is not implemented everywhere; bytes are bytes
        rows = self.weight.view(torch.uint8)[ids].view(self.weight.dtype).float()
        if self.scale is not None:
            rows = rows * (self.scale if self.scale.numel() == 1 else self.scale[ids].unsqueeze(-1))
        return rows.to(self.dtype) * self.factor


# --- tokenizer -------------------------------------------------------------------------------------------------------


class Tokenizer:
    """Text to ids: stripped, the begin token first, no end token, cut at TOKEN_LIMIT.

    A tokenizer.json, in a folder or packed, is read by the tokenizers library, everything else by sentencepiece; both
    give the same.
    """

    def __init__(self, split: Callable[[str], list[int]], begin: int) -> None:
        self._split = split
        self.begin = begin

    def ids(self, text: str, limit: int = TOKEN_LIMIT) -> list[int]:
        """The ids of `text`, at least one and at most `limit`."""
        return [self.begin, *self._split(text.strip())][:limit]


def load_tokenizer(files: GemmaFiles) -> Tokenizer:
    """The tokenizer that lies with the weights. Raises CheckpointError where there is none."""
    if not files.path.is_dir():
        packed = _packed_tokenizer(files)
        if packed is not None:
            return _fast(packed, f"{TOKENIZER} of {files.path.name}", files.usable)
        if SPIECE not in files.files[0]:
            raise CheckpointError(
                f"The text encoder file {files.path.name} has no tokenizer (the tensor {SPIECE} is missing, and so is "
                f"{TOKENIZER}). A single file must bring its own; a raw part of a Hugging Face download does not. "
                f"{files.usable}"
            )
        return _sentencepiece(files.files[0].read_bytes(SPIECE), files.path.name, files.usable)
    json = files.path / "tokenizer.json"
    if json.is_file():
        return _fast(json.read_bytes(), str(json), files.usable)
    if (files.path / "tokenizer.model").is_file():
        return _sentencepiece((files.path / "tokenizer.model").read_bytes(), "tokenizer.model", files.usable)
    raise CheckpointError(
        f"The text encoder folder {files.path} has neither tokenizer.json nor tokenizer.model. "
        "Download one of them from the same repository into the folder."
    )


def _packed_tokenizer(files: GemmaFiles) -> bytes | None:
    """The tokenizer.json in a single file: a tensor of bytes, of whichever type, or a text in the header."""
    file = files.files[0]
    if TOKENIZER in file:
        return file.read_bytes(TOKENIZER)
    return file.metadata[TOKENIZER].encode() if TOKENIZER in file.metadata else None


def _fast(json: bytes, name: str, usable: str) -> Tokenizer:
    from tokenizers import Tokenizer as Fast

    try:
        fast = Fast.from_str(json.decode())
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"{name} cannot be read: {error}. Download it again.") from None
    fast.no_truncation()
    fast.no_padding()
    begin = fast.token_to_id("<bos>")
    if begin is None:
        raise CheckpointError(f"{name} has no <bos> token: it is not Gemma's. {usable}")
    return Tokenizer(lambda text: fast.encode(text, add_special_tokens=False).ids, begin)


def _sentencepiece(proto: bytes, name: str, usable: str) -> Tokenizer:
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    except RuntimeError as error:
        raise CheckpointError(f"The tokenizer in {name} cannot be read: {error}. Download the file again.") from None
    if pieces.bos_id() < 0:
        raise CheckpointError(f"The tokenizer in {name} has no begin token: it is not Gemma's. {usable}")
    return Tokenizer(pieces.encode, pieces.bos_id())


def tokenizer_digest(files: GemmaFiles) -> str:
    """Identifies the tokenizer by its bytes."""
    if not files.path.is_dir():
        packed = _packed_tokenizer(files)
        if packed is not None:
            return digest(packed)
        return digest(files.files[0].read_bytes(SPIECE)) if SPIECE in files.files[0] else ""
    present = [files.path / name for name in ("tokenizer.json", "tokenizer.model")]
    return next((digest(file.read_bytes()) for file in present if file.is_file()), "")


# --- the module, empty ----------------------------------------------------------------------------------------------


def _empty(files: GemmaFiles, device: torch.device | str, number: int | None = None) -> Any:
    """The model of `files` on the meta device; with `number` that layer alone, whose embedding stays unfilled."""
    if isinstance(files.shape, Gemma4Shape):
        config = files.shape.config
        if number is not None:
            config = replace(config, vocabulary=8, layers=(config.layers[number],))
        with torch.device("meta"):
            return Gemma4(config)
    from transformers import Gemma3TextModel

    config = own = gemma_config(files)
    if number is not None:
        values = config.to_dict()
        values.update(num_hidden_layers=1, layer_types=[config.layer_types[number]], vocab_size=8)
        own = type(config).from_dict(values)
    with torch.device("meta"):
        model = Gemma3TextModel(own)
    _copy_buffers(model, config, Gemma3TextModel, device)
    return model


def _copy_buffers(model: nn.Module, config: Any, kind: type[nn.Module], device: torch.device | str) -> None:
    """Give `model` the non-persistent buffers of a small twin with the same width and rotary values."""
    values = config.to_dict()
    values.update(
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
        vocab_size=8,
        intermediate_size=8,
        num_attention_heads=1,
        num_key_value_heads=1,
    )
    with torch.random.fork_rng(devices=[]):  # its random weights must not move the caller's random numbers
        twin = kind(type(config).from_dict(values))
    for name, buffer in twin.named_buffers():
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner)._buffers[leaf] = buffer.to(device)


def _fp8(files: EncoderFiles, name: str, device: torch.device | str) -> tuple[torch.Tensor, torch.Tensor | None]:
    """An fp8 weight as it is stored, and its scale: a scalar, one value a row, or None where it is a plain cast."""
    weight, scale = files.read(name, device), read_scale(files, name.removesuffix(".weight"), device)
    if scale is None:
        refuse_unscaled(weight, name.removesuffix(".weight"), files.name)
        return weight, None
    return weight, scale.reshape(()) if scale.numel() == 1 else scale.reshape(-1)


def fingerprint_parts(files: GemmaFiles) -> Iterator[str | bytes]:
    """What tells one text tower from another: names, shapes and types of its tensors, and the bytes of a few."""
    for name in sorted(files.tensors):
        info = files.info(name)
        yield f"{name} {info.dtype} {list(info.shape)}"
    middle, last = files.shape.layers // 2, files.shape.layers - 1
    for name in ("norm.weight", *(f"layers.{i}.input_layernorm.weight" for i in (0, middle, last))):
        file, stored = files.tensors[name]
        yield file.read_bytes(stored, 0, 65536)
    for name in ("embed_tokens.weight", *(f"layers.{i}.self_attn.q_proj.weight" for i in (0, middle, last))):
        file, stored = files.tensors[name]
        size = files.info(name).nbytes
        yield file.read_bytes(stored, size // 2, 4096)
    yield tokenizer_digest(files)
