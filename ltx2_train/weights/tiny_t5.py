"""Writes a tiny random T5 encoder in the layouts in which people own the real one, both with the same numbers.

- one safetensors file as ComfyUI's, without a tokenizer; optionally in fp8, scaled or plainly cast. Beside it lies the
  folder t5_tokenizer with tokenizer.json, as ComfyUI brings one in its own tree;
- a folder as of PixArt's pipeline: text_encoder with config.json and two shards, tokenizer with spiece.model.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from .. import files
from .t5 import EMBEDDING, LAST_NORM, TABLE
from .tiny_gemma import SENTENCES

LAYERS, HEADS, HEAD_DIM, INTERMEDIATE, VOCABULARY, BUCKETS = 3, 4, 8, 48, 300, 32


def write_tiny_t5(
    folder: Path | str,
    *,
    hidden: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    fp8: Literal["", "scaled", "plain"] = "",
) -> tuple[Path, Path]:
    """Write `t5-tiny.safetensors` and the folder `t5-tiny` into `folder`; returns both paths.

    With `fp8` the folder holds the numbers that the file's are rounded to.
    """
    folder = Path(folder)
    single, pipeline = folder / "t5-tiny.safetensors", folder / "t5-tiny"
    proto = _train_pieces()
    stored, plain = _rounded(_tensors(hidden, seed, dtype), fp8)
    files.write_tensors(single, stored, {"format": "pt"})
    files.write_text(folder / "t5_tokenizer" / "tokenizer.json", _tokenizer_json(proto))
    plain["encoder.embed_tokens.weight"] = plain.pop(EMBEDDING)
    places = {name: f"model-{number % 2 + 1:05d}-of-00002.safetensors" for number, name in enumerate(plain)}
    for file in sorted(set(places.values())):
        shard = {name: tensor for name, tensor in plain.items() if places[name] == file}
        files.write_tensors(pipeline / "text_encoder" / file, shard, {"format": "pt"})
    files.write_json(pipeline / "text_encoder" / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    config = {
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": hidden, "d_kv": HEAD_DIM,
        "num_heads": HEADS, "d_ff": INTERMEDIATE, "num_layers": LAYERS, "vocab_size": VOCABULARY,
        "feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": BUCKETS,
        "relative_attention_max_distance": 128, "layer_norm_epsilon": 1e-6, "dropout_rate": 0.1,
    }  # fmt: skip
    files.write_json(pipeline / "text_encoder" / "config.json", config)
    files.write_bytes(pipeline / "tokenizer" / "spiece.model", proto)
    return single, pipeline


def _tensors(hidden: int, seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}

    def add(name: str, *shape: int, size: float | None = None) -> None:
        noise = torch.randn(shape, generator=generator)
        scale = 1 / math.sqrt(shape[-1]) if size is None else size
        tensors[name] = (1 + 0.2 * noise if len(shape) == 1 else scale * noise).to(dtype)

    inner = HEADS * HEAD_DIM
    add(EMBEDDING, VOCABULARY, hidden, size=2.0)
    add(TABLE, BUCKETS, HEADS, size=1.0)
    for number in range(LAYERS):
        prefix = f"encoder.block.{number}.layer."
        for name in "qkv":
            add(f"{prefix}0.SelfAttention.{name}.weight", inner, hidden)
        add(f"{prefix}0.SelfAttention.o.weight", hidden, inner)
        add(f"{prefix}0.layer_norm.weight", hidden)
        for name in ("wi_0", "wi_1"):
            add(f"{prefix}1.DenseReluDense.{name}.weight", INTERMEDIATE, hidden)
        add(f"{prefix}1.DenseReluDense.wo.weight", hidden, INTERMEDIATE)
        add(f"{prefix}1.layer_norm.weight", hidden)
    add(LAST_NORM, hidden)
    return tensors


def _rounded(tensors: Mapping[str, Tensor], fp8: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a file in `fp8` stores, and the numbers that are."""
    if not fp8:
        return dict(tensors), dict(tensors)
    stored, plain = {}, {}
    for name, tensor in tensors.items():
        linear = "SelfAttention." in name or "DenseReluDense." in name
        if fp8 == "plain":
            stored[name] = tensor.to(torch.float8_e4m3fn)
            plain[name] = stored[name].to(tensor.dtype)
        elif linear and name != TABLE:
            scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
            stored[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
            stored[name.removesuffix("weight") + "scale_weight"] = scale
            plain[name] = (stored[name].float() * scale).to(tensor.dtype)
        else:
            stored[name] = plain[name] = tensor
    if fp8 == "scaled":
        stored["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, plain


def _train_pieces() -> bytes:
    """The bytes of a sentencepiece model as T5's: unigram, its end token 1, no begin token."""
    import sentencepiece

    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=target,
        vocab_size=VOCABULARY - 28,  # there are always more embeddings than tokens
        hard_vocab_limit=False,
        model_type="unigram",
        normalization_rule_name="identity",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    return target.getvalue()


def _tokenizer_json(proto: bytes) -> str:
    """The sentencepiece model in the words of the tokenizers library."""
    import sentencepiece
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    scored = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(pieces.get_piece_size())]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]  # as sentencepiece does of itself
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<pad>", "</s>")])
    return tokenizer.to_str(pretty=False)
