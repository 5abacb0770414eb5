"""Local models that say what is seen in pictures and what is said in a sound, through transformers.

Any folder in the format of Hugging Face will do whose class the Auto classes know; nothing is ever downloaded and no
code from a model folder is run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..dataset.captions import NOT_TEXT
from ..device import card_is_full, release
from ..errors import CheckpointError, ConfigError, OutOfMemory
from ..events import Events
from ..weights.reader import TensorFile

THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
WEIGHTS = ("*.safetensors", "*.bin")


class Describer:
    """A vision-language model: pictures and a question -> text."""

    processor: Any  # both are of a class that the folder names; None after `close`
    model: Any

    def __init__(self, folder: Path, device: torch.device, events: Events) -> None:
        from transformers import AutoModelForImageTextToText

        self.device, self.events = device, events
        self.processor, self.model = _load("--model", folder, AutoModelForImageTextToText, device, events)
        if not getattr(self.processor, "chat_template", None):
            raise ConfigError(
                f"--model: {folder} has no chat template, so it cannot be asked anything. Use an instruct (chat) model."
            )

    def __call__(self, pictures: np.ndarray, prompt: str, longest: int) -> str:
        """What is seen in uint8 [F, H, W, 3], in at most `longest` tokens. Raises Stopped, OutOfMemory."""
        from PIL import Image

        content: list[dict[str, Any]] = [{"type": "image", "image": Image.fromarray(picture)} for picture in pictures]
        content.append({"type": "text", "text": prompt})
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        told = _generate(self.model, inputs, self.device, self.events, max_new_tokens=longest, do_sample=False)
        told = told[:, inputs["input_ids"].shape[1] :]
        return clean(self.processor.batch_decode(told, skip_special_tokens=True)[0])

    def close(self) -> None:
        self.model = self.processor = None
        release(self.device)


class Listener:
    """A speech model such as Whisper: up to 30 seconds of sound -> the words."""

    processor: Any  # as above
    model: Any

    def __init__(self, folder: Path, device: torch.device, events: Events) -> None:
        from transformers import AutoModelForSpeechSeq2Seq

        self.device, self.events = device, events
        self.processor, self.model = _load("--whisper", folder, AutoModelForSpeechSeq2Seq, device, events)
        self.rate = int(self.processor.feature_extractor.sampling_rate)

    def __call__(self, samples: np.ndarray) -> str:
        """What is said in float32 [N] at `rate`. Raises Stopped, OutOfMemory."""
        inputs = self.processor(samples, sampling_rate=self.rate, return_tensors="pt")
        said = _generate(self.model, inputs, self.device, self.events)
        return clean(self.processor.batch_decode(said, skip_special_tokens=True)[0])

    def close(self) -> None:
        self.model = self.processor = None
        release(self.device)


def clean(text: str) -> str:
    """One line, without what a model thought before it answered and without what no caption may hold."""
    return " ".join(NOT_TEXT.sub(" ", THOUGHTS.sub(" ", text)).split())


def _load(key: str, folder: Path, kind: Any, device: torch.device, events: Events) -> tuple[Any, Any]:
    from safetensors import SafetensorError
    from transformers import AutoProcessor

    if not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "is not a folder"
        raise ConfigError(
            f"{key}: {folder} {what}. Name the folder of a model in the format of Hugging Face, with its config.json, "
            "weights and processor files."
        )
    events.make_room(sum(file.stat().st_size for pattern in WEIGHTS for file in folder.glob(pattern)), device)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
        model, report = kind.from_pretrained(folder, local_files_only=True, dtype=dtype, output_loading_info=True)
        if lacking := sorted(report["missing_keys"]):
            raise ConfigError(
                f"{key}: {folder} lacks {len(lacking)} weights of its model, the first is {lacking[0]}; it would write "
                "by random numbers in their place. Download the model again."
            )
        return processor, model.to(device).eval()
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        _refuse_damaged(key, folder)
        if card_is_full(error):
            raise OutOfMemory(
                f"{key}: {folder} does not fit on {device}. Use a smaller model, or --device cpu."
            ) from error
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{key}: {folder} cannot be loaded with {kind.__name__}: {reason}. Is it the right kind of model, whole, "
            "and known to the installed transformers?"
        ) from error


def _refuse_damaged(key: str, folder: Path) -> None:
    """Raise ConfigError where a file of weights is cut short, or none."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            TensorFile(file, "model")
        except CheckpointError as error:
            raise ConfigError(f"{key}: {error}") from None


def _generate(model: Any, inputs: Any, device: torch.device, events: Events, **more: Any) -> torch.Tensor:
    """Token numbers [1, T]; a request to stop is heard at each token."""

    def asked(tokens: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full((tokens.shape[0],), events.should_stop(), dtype=torch.bool, device=tokens.device)

    moved = {
        key: value.to(device, model.dtype) if value.is_floating_point() else value.to(device)
        for key, value in inputs.items()
        if isinstance(value, torch.Tensor) and _takes(model, key)
    }
    try:
        with torch.inference_mode():
            tokens = model.generate(**moved, stopping_criteria=_criteria(asked), **more)
    except RuntimeError as error:
        if not card_is_full(error):
            raise
        raise OutOfMemory(
            f"The memory of {device} is full. Lower --frames, use a smaller model, or close what else uses the card."
        ) from error
    events.check_stop()
    return tokens


def _takes(model: Any, key: str) -> bool:
    """Whether a model takes an input by this name; tokenizers give kinds of tokens to models that know none, which
    transformers 4 refuses."""
    return key != "token_type_ids" or key in inspect.signature(model.forward).parameters


def _criteria(asked: Any) -> Sequence[Any]:
    from transformers import StoppingCriteriaList

    return StoppingCriteriaList([asked])
