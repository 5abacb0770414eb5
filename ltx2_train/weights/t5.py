"""T5-XXL, the text encoder of LTX-Video, as people own it: one file of ComfyUI's, or a folder of Hugging Face; and its
tokenizer, which most of these files lack.

ComfyUI brings the tokenizer in its own folder, Hugging Face beside the weights. It is looked for where gemma.tokenizer
says, else in the file, else beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from ..families import FAMILIES
from ..files import digest, parse_json
from ..models.t5 import T5Config
from .encoder_files import SPIECE, EncoderFiles, folder_config, folder_tensors, stored_layers
from .reader import TensorFile
from .stored import numbers_shape

MARK = "encoder.block.0.layer.0.SelfAttention.q.weight"
EMBEDDING = "shared.weight"
TABLE = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
LAST_NORM = "encoder.final_layer_norm.weight"
USABLE_T5 = (
    "Choose t5xxl_fp16.safetensors or an fp8 version of it from ComfyUI's text_encoders folder, or the folder "
    "PixArt-alpha/PixArt-XL-2-1024-MS with its text_encoder and tokenizer."
)
TOKEN_LIMIT = FAMILIES["ltxv-2b"].caption_tokens  # LTX-Video was trained with captions cut here
_END = 1  # the token that every text ends with
_ALIASES = {"encoder.embed_tokens.weight": EMBEDDING}
_LINEARS = tuple(f"layer.0.SelfAttention.{x}" for x in "qkvo") + tuple(
    f"layer.1.DenseReluDense.{x}" for x in ("wi_0", "wi_1", "wo")
)
_NORMS = ("layer.0.layer_norm", "layer.1.layer_norm")
_BLOCK = re.compile(r"encoder\.block\.(\d+)\.")
_NAMES = ("spiece.model", "tokenizer.json")
_FOLDERS = ("", "tokenizer", "t5_tokenizer")


@dataclass(frozen=True)
class T5Files(EncoderFiles):
    """An opened T5; only headers have been read. Close it, or use it in a `with` block."""

    config: T5Config
    vocabulary: int


def is_t5(path: Path | str) -> bool:
    """Whether the file or folder at `path` is a T5. Reads headers only."""
    path = weights_folder(Path(path))
    if path.is_file():
        with TensorFile(path) as file:
            return any(name.endswith(MARK) for name in file.tensors)
    try:
        return parse_json((path / "config.json").read_bytes()).get("model_type") == "t5"
    except (OSError, ValueError, AttributeError):
        return False


def weights_folder(path: Path) -> Path:
    """`path`, or where the folder of a whole pipeline has its text encoder."""
    inner = path / "text_encoder"
    return inner if path.is_dir() and not (path / "config.json").is_file() and inner.is_dir() else path


def open_t5(path: Path | str) -> T5Files:
    """Read the headers of the folder or file at `path`. Raises CheckpointError where it is no usable T5-XXL encoder."""
    path = weights_folder(Path(path))
    if not path.exists():
        raise CheckpointError(f"The text encoder {path} does not exist. Check the path. {USABLE_T5}")
    if path.is_dir():
        folder_config(path, ("t5",), "T5 is needed for LTX-Video", USABLE_T5)
        found, everything = folder_tensors(path, USABLE_T5)
    else:
        found = (TensorFile(path),)
        everything = dict.fromkeys(found[0].tensors, found[0])
    try:
        return _opened(path, found, everything)
    except BaseException:
        for file in found:
            file.close()
        raise


def _opened(path: Path, opened: tuple[TensorFile, ...], everything: Mapping[str, TensorFile]) -> T5Files:
    prefix = next((name.removesuffix(MARK) for name in everything if name.endswith(MARK)), None)
    if prefix is None:
        raise CheckpointError(f"The text encoder {path.name} is not T5. {USABLE_T5}")
    tensors: dict[str, tuple[TensorFile, str]] = {}
    for name, file in everything.items():
        own = name.removeprefix(prefix)
        own = _ALIASES.get(own, own)
        if name.startswith(prefix) and (own == EMBEDDING or own.startswith(("encoder.block.", "encoder.final_"))):
            tensors[own] = file, name
    infos = {name: file.tensors[stored] for name, (file, stored) in tensors.items()}
    stored = stored_layers(path, prefix, infos, everything, USABLE_T5, EMBEDDING.removesuffix(".weight"))
    layers = 1 + max(int(match[1]) for match in map(_BLOCK.match, infos) if match)
    wanted = {EMBEDDING, TABLE, LAST_NORM} | {
        f"encoder.block.{layer}.{part}.weight" for layer in range(layers) for part in _LINEARS + _NORMS
    }
    if missing := sorted(wanted - infos.keys()):
        gate = any(".DenseReluDense.wi.weight" in name for name in infos)
        what = "of T5 1.0, which LTX-Video does not read" if gate else f"incomplete: {missing[0]} is missing"
        raise CheckpointError(f"The text encoder {path.name} is {what}. {USABLE_T5}")
    shapes = {name: numbers_shape(name, infos[name], stored) for name in wanted}
    (vocabulary, hidden), (buckets, heads) = shapes[EMBEDDING], shapes[TABLE]
    inner = shapes[MARK][0]
    intermediate = shapes["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"][0]
    expected = {"q": (inner, hidden), "k": (inner, hidden), "v": (inner, hidden), "o": (hidden, inner),
                "wi_0": (intermediate, hidden), "wi_1": (intermediate, hidden), "wo": (hidden, intermediate),
                "layer_norm": (hidden,)}  # fmt: skip
    for name in sorted(wanted - {EMBEDDING, TABLE, LAST_NORM}):
        if shapes[name] != expected[name.split(".")[-2]]:
            raise CheckpointError(
                f"The text encoder {path.name} is not a T5: {name} has the shape {list(shapes[name])}, "
                f"{list(expected[name.split('.')[-2]])} was expected. {USABLE_T5}"
            )
    config = T5Config(hidden, layers, heads, inner // heads, intermediate, buckets)
    return T5Files(path, opened, tensors, stored, config, vocabulary)


# --- tokenizer -------------------------------------------------------------------------------------------------------


class T5Tokenizer:
    """Text to ids: stripped, cut so that the end token is the last of at most TOKEN_LIMIT."""

    def __init__(self, split: Callable[[str], list[int]]) -> None:
        self._split = split

    def ids(self, text: str, limit: int = TOKEN_LIMIT) -> list[int]:
        """The ids of `text`, the end token at least."""
        return [*self._split(text.strip())[: limit - 1], _END]


@dataclass(frozen=True)
class TokenizerBytes:
    """A tokenizer as it was found: its bytes, what it is called, and whether it is sentencepiece's."""

    content: bytes
    name: str
    pieces: bool

    @property
    def digest(self) -> str:
        return digest(self.content)


def find_tokenizer(files: T5Files, given: Path | None) -> TokenizerBytes:
    """The tokenizer at `given` (gemma.tokenizer), or where it usually lies. Raises CheckpointError where it is not."""
    if given is not None:
        places = [given] if given.is_file() else [given / folder / name for folder in _FOLDERS for name in _NAMES]
        file = next((place for place in places if place.is_file()), None)
        if file is None:
            raise CheckpointError(
                f"gemma.tokenizer: {given} is no tokenizer and has none inside. Expected T5's spiece.model or "
                "tokenizer.json, or the folder of one."
            )
        return _read(file)
    if files.path.is_file() and SPIECE in files.files[0]:
        return TokenizerBytes(files.files[0].read_bytes(SPIECE), f"{SPIECE} of {files.path.name}", True)
    whole = files.path.is_dir()
    home = files.path if whole else files.path.parent
    places = [one / folder / name for one in (home, home.parent)[: 1 + whole] for folder in _FOLDERS for name in _NAMES]
    if not whole:
        places.remove(home / "tokenizer.json")  # it may be that of another encoder in the same folder
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise CheckpointError(
            f"The text encoder {files.path.name} has no tokenizer, as ComfyUI's files of T5 never do. Set "
            "gemma.tokenizer to the folder comfy/text_encoders/t5_tokenizer of ComfyUI, or to spiece.model of "
            f"google/t5-v1_1-xxl; or lay spiece.model into {home.name}."
        )
    return _read(file)


def _read(path: Path) -> TokenizerBytes:
    return TokenizerBytes(path.read_bytes(), path.name, path.suffix != ".json")


def load_t5_tokenizer(found: TokenizerBytes, vocabulary: int) -> T5Tokenizer:
    """The tokenizer of an encoder with so many embeddings. Raises CheckpointError where it is not T5's."""
    size, end, split = _pieces(found) if found.pieces else _fast(found)
    if end != _END or size > vocabulary:
        raise CheckpointError(
            f"The tokenizer {found.name} is not T5's: its end token is {end}, expected {_END}, and it has {size} "
            f"tokens for {vocabulary} embeddings. Set gemma.tokenizer to the folder comfy/text_encoders/t5_tokenizer "
            "of ComfyUI, or to spiece.model of google/t5-v1_1-xxl."
        )
    return T5Tokenizer(split)


def _pieces(found: TokenizerBytes) -> tuple[int, int, Callable[[str], list[int]]]:
    import sentencepiece

    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=found.content)
    except RuntimeError as error:
        raise CheckpointError(f"The tokenizer {found.name} cannot be read: {error}. Download it again.") from None
    return pieces.get_piece_size(), pieces.eos_id(), pieces.encode


def _fast(found: TokenizerBytes) -> tuple[int, int, Callable[[str], list[int]]]:
    from tokenizers import Tokenizer as Fast

    try:
        fast = Fast.from_str(found.content.decode())
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(f"The tokenizer {found.name} cannot be read: {error}. Download it again.") from None
    fast.no_truncation()
    fast.no_padding()
    end = fast.token_to_id("</s>")

    def split(text: str) -> list[int]:
        return fast.encode(text, add_special_tokens=False).ids

    return fast.get_vocab_size(), -1 if end is None else end, split
