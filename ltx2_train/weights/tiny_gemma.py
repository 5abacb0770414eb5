"""Writes a tiny random Gemma 3 in the two layouts in which people own the real one.

 - one safetensors file as ComfyUI uses it: tensors named `model.*`, the sentencepiece model as the bytes of a uint8
   tensor `spiece_model`, nothing else; optionally the linears in scaled FP8;
 - a Hugging Face folder: config.json of Gemma3ForConditionalGeneration, two shards and their index with tensors named
   `language_model.model.*`, tokenizer.json and tokenizer.model.

Both hold the same numbers, so everything made from one must equal what is made from the other. Six layers by default:
the sixth is the first that attends globally, with its own rotary frequencies.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from .. import files
from .gemma_files import GemmaShape, layer_shapes

FP8_MARK = json.dumps({"format": "float8_e4m3fn"}).encode()

SENTENCES = (
    "A red fox runs through fresh snow at dawn, its breath visible in the cold air.",
    "The camera moves slowly past an old wooden boat while rain falls on the lake.",
    "A woman in a yellow coat plays the violin on a busy street; people stop and listen.",
    "Close-up of two hands shaping clay on a wheel, warm light, soft music in the background.",
    "Thunder rolls over the hills, then silence, then the first bird of the morning.",
    "A child laughs and throws 3 leaves into the wind, 24 frames per second, shot on film.",
    "Waves break against black rocks, the sound of the sea is loud and steady.",
)
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")  # ids 0 to 3, as in Gemma
BEGIN = _SPECIAL[2]


def write_tiny_gemma(
    folder: Path | str,
    *,
    hidden: int = 32,
    layers: int = 6,
    heads: int = 2,
    kv_heads: int = 1,
    head_dim: int = 16,
    intermediate: int = 48,
    vocabulary: int = 384,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    fp8: bool = False,
) -> tuple[Path, Path]:
    """Write `tiny_gemma.safetensors` and the folder `tiny_gemma` into `folder`; returns both paths.

    With `fp8` the single file keeps its linears in float8_e4m3fn with a scale each, and the folder the same values
    dequantized.
    """
    folder = Path(folder)
    single, hugging_face = folder / "tiny_gemma.safetensors", folder / "tiny_gemma"
    proto = train_tokenizer(vocabulary)
    shapes = {"embed_tokens.weight": (vocabulary, hidden), "norm.weight": (hidden,)}
    of_layer = layer_shapes(GemmaShape(vocabulary, hidden, layers, heads, kv_heads, head_dim, intermediate))
    for layer in range(layers):
        shapes |= {f"layers.{layer}.{part}.weight": shape for part, shape in of_layer.items()}
    generator = torch.Generator().manual_seed(seed)
    stored, plain = {}, {}
    for name, shape in shapes.items():
        # norms multiply by 1 + weight
        scale = 0.2 if len(shape) == 1 else 1.0 / math.sqrt(shape[1])
        tensor = (torch.randn(shape, generator=generator) * scale).to(dtype)
        if fp8 and "_proj." in name:
            quantized = _quantize(name, tensor)
            stored.update(quantized)
            plain[name] = (quantized[name].float() * quantized[f"{name}_scale"]).to(dtype)
        else:
            stored[name] = plain[name] = tensor
    files.write_tensors(
        single,
        {f"model.{name}": tensor for name, tensor in stored.items()}
        | {"spiece_model": torch.frombuffer(bytearray(proto), dtype=torch.uint8)},
    )
    text_config = {
        "model_type": "gemma3_text",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "query_pre_attn_scalar": head_dim,
        "vocab_size": vocabulary,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    _write_folder(hugging_face, plain, text_config, proto)
    return single, hugging_face


def train_tokenizer(vocabulary: int = 384) -> bytes:
    """The bytes of a sentencepiece model trained on a few sentences the way Gemma's is: BPE, bytes, no prefix."""
    import sentencepiece

    target = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=target,
        vocab_size=vocabulary,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece=_SPECIAL[0],
        eos_piece=_SPECIAL[1],
        bos_piece=_SPECIAL[2],
        unk_piece=_SPECIAL[3],
        num_threads=1,
        minloglevel=2,
    )
    return target.getvalue()


def _quantize(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max
    return {
        name: (tensor.float() / scale).to(torch.float8_e4m3fn),
        f"{name}_scale": scale,
        name.removesuffix("weight") + "comfy_quant": torch.frombuffer(bytearray(FP8_MARK), dtype=torch.uint8),
    }


def _write_folder(
    folder: Path, tensors: Mapping[str, torch.Tensor], text_config: Mapping[str, object], proto: bytes
) -> None:
    named = {f"language_model.model.{name}": tensor for name, tensor in tensors.items()}
    names = list(named)
    shards = {f"model-{i + 1:05d}-of-00002.safetensors": names[i::2] for i in range(2)}
    for shard, members in shards.items():
        files.write_tensors(folder / shard, {name: named[name] for name in members}, {"format": "pt"})
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    weight_map = {name: shard for shard, members in shards.items() for name in members}
    files.write_json(
        folder / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map}
    )
    files.write_json(
        folder / "config.json",
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "model_type": "gemma3",
            "text_config": dict(text_config),
            "vision_config": {
                "model_type": "siglip_vision_model", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
                "num_attention_heads": 1, "image_size": 14, "patch_size": 14,
            },
        },
    )  # fmt: skip
    files.write_bytes(folder / "tokenizer.model", proto)
    files.write_text(folder / "tokenizer.json", tokenizer_json(proto))
    files.write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer", "add_bos_token": True, "add_eos_token": False,
            "pad_token": _SPECIAL[0], "eos_token": _SPECIAL[1], "bos_token": _SPECIAL[2], "unk_token": _SPECIAL[3],
            "clean_up_tokenization_spaces": False, "model_max_length": 1024,
        },
    )  # fmt: skip


def tokenizer_json(proto: bytes, begin: bool = True) -> str:
    """The sentencepiece model in the words of the tokenizers library; `begin`: it puts the begin token in front."""
    import sentencepiece
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pieces = sentencepiece.SentencePieceProcessor(model_proto=proto)
    vocabulary = {pieces.id_to_piece(i): i for i in range(pieces.get_piece_size())}
    scores = {pieces.id_to_piece(i): pieces.get_score(i) for i in range(pieces.get_piece_size())}
    # sentencepiece joins the pair whose union scores best, so the merges are all splits in the order of the score
    merges = [
        (-scores[piece], vocabulary[piece[:cut]], vocabulary[piece[cut:]], piece[:cut], piece[cut:])
        for piece in vocabulary
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[merge[3:] for merge in sorted(merges)],
            unk_token=_SPECIAL[3],
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    if begin:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, 2)])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in _SPECIAL])
    return tokenizer.to_str(pretty=False)
