"""Which device and which number format a run uses."""

from __future__ import annotations

import gc

import torch

from .errors import ConfigError, OutOfMemory, OutOfRam, TrainerError

# As the allocator of the processor says it, on Windows and elsewhere. It speaks of RAM, whatever device is at work.
_RAM_FULL = ("DefaultCPUAllocator", "not enough memory", "can't allocate memory", "Cannot allocate memory")
# In lower case: the allocator of a card, its driver, what is launched through it, and libraries that allocate
_CARD_FULL = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_alloc_failed")
OLDEST_TORCH = (2, 7)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# spelt either way, as here or as PyTorch does
DTYPE_NAMES = {**DTYPES, **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}}


def pick_device(name: str) -> torch.device:
    """The device called `name`; auto takes CUDA, then MPS, then the CPU.

    Raises ConfigError where it is not there, or torch is older than this program needs.
    """
    _require_torch()
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"model.device: {name!r} cannot be used: {_why_no_device(name)}.") from None
    return device


def _why_no_device(name: str) -> str:
    """Why there is no device of this name, and which there are."""
    devices = ["auto", "cpu"]
    if torch.backends.mps.is_available():
        devices.append("mps")
    if cards := torch.cuda.device_count() if torch.cuda.is_available() else 0:
        devices += ["cuda", *(f"cuda:{number}" for number in range(cards))] if cards > 1 else ["cuda"]
    why = "it is no device that this machine has"
    if name.startswith("cuda") and not cards:
        built = "finds no card, or no driver for it" if torch.version.cuda else "was built without CUDA"
        why = f"torch {torch.__version__} {built}"
    return f"{why}. Use {', '.join(devices)}"


def _require_torch() -> None:
    found = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if found < OLDEST_TORCH:
        needed = ".".join(map(str, OLDEST_TORCH))
        raise ConfigError(
            f"torch {needed} or newer is needed, and this is torch {torch.__version__}. Update it from where it came: "
            "with ComfyUI by ComfyUI's own update, else by the line for your card on the website of PyTorch."
        )


def release(device: torch.device) -> None:
    """Give memory of dropped models back to the system, so that the next one finds it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def wait(device: torch.device) -> None:
    """Return once all work that was given to `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_full(error: BaseException) -> bool:
    """Whether `error` means that memory ran out, on whichever device and whoever says so."""
    return card_is_full(error) or ram_is_full(error)


def card_is_full(error: BaseException) -> bool:
    """Whether `error` means that the memory of a card ran out, whoever says so."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and not ram_is_full(error) and any(text in words for text in _CARD_FULL)


def ram_is_full(error: BaseException) -> bool:
    """Whether `error` means that RAM ran out, which moving more of a card to RAM would only make worse."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _RAM_FULL)


def out_of_memory(error: BaseException, doing: str) -> OutOfMemory | None:
    """An error in the user's words where `error` means that the device is full, or the RAM."""
    if ram_is_full(error):
        return OutOfRam(
            f"The RAM of this machine ran out while {doing}. Close other programs, make the clips shorter "
            "(target_frames) or smaller (resolution) in the dataset, or set memory.swap_from to file, so that swapped "
            "blocks do not wait in RAM."
        )
    if is_full(error):
        return OutOfMemory(
            f"The device ran out of memory while {doing}. Make the clips shorter (target_frames) or smaller "
            "(resolution) in the dataset, switch memory.gradient_checkpointing on, lower lora.rank, or close what else "
            "uses the card."
        )
    return None


def why_it_failed(error: Exception, doing: str) -> str:
    """`error` for people, of something that a run can go on without: a full device in words, others with their kind."""
    reason = out_of_memory(error, doing) or error
    return str(reason) if isinstance(reason, TrainerError) else f"{type(reason).__name__}: {reason}"
