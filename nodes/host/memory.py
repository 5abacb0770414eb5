"""Sharing the memory of the device with ComfyUI's own models.

What the core holds stands on ComfyUI's list of loaded models, so that its bytes are counted, and ComfyUI can ask for
them back.
"""

from __future__ import annotations

import inspect
from typing import Any


def device_memory() -> dict[str, int]:
    """Bytes in use and in all on the device ComfyUI works with; empty on the CPU."""
    import comfy.model_management as management

    device = management.get_torch_device()
    if getattr(device, "type", "cpu") != "cuda":
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {"used": total - free, "total": total}


class DeviceShare:
    """The trainer's part of ComfyUI's list of loaded models, owner by owner."""

    def __init__(self) -> None:
        self._handles: dict[int, Any] = {}
        self._locked = 0

    def make_room(self, needed: int, device: Any, ram: int = 0) -> None:
        """Have ComfyUI unload models of its own until `needed` bytes and what inference takes are free on `device`, and
        give back RAM that it has locked or keeps for later until `ram` bytes are free, where it can."""
        import comfy.model_management as management

        device = _device(device)
        if device.type == "cpu":
            return
        ours = [entry for entry in management.current_loaded_models if entry.model in self._handles.values()]
        known = inspect.signature(management.free_memory).parameters
        more = {name: ram for name in ("pins_required", "ram_required") if ram and name in known}
        management.free_memory(needed + management.minimum_inference_memory(), device, keep_loaded=ours, **more)
        management.soft_empty_cache()

    def hold(self, owner: Any, needed: int, device: Any) -> None:
        """`owner` (anything with `to(device)`) keeps `needed` bytes on `device`; 0 bytes: it no longer does."""
        import comfy.model_management as management

        device = _device(device)
        handle = self._handles.get(id(owner))
        if needed <= 0 or device.type == "cpu":
            if handle is not None:
                del self._handles[id(owner)]
                _forget(handle)
            return
        if handle is None:
            handle = self._handles[id(owner)] = _handle(owner, needed, device)
        handle.hold(needed, device)
        management.load_models_gpu([handle], force_full_load=True)

    def kept_free(self, device: Any) -> int | None:
        """What ComfyUI leaves free on `device` for other programs, `--reserve-vram` included."""
        import comfy.model_management as management

        told = getattr(management, "extra_reserved_memory", None)
        return None if told is None or _device(device).type == "cpu" else int(told())

    def may_lock(self) -> int | None:
        """What is left of the RAM that ComfyUI lets be locked; None where it sets no limit."""
        import comfy.model_management as management

        most = getattr(management, "MAX_PINNED_MEMORY", -1)
        return max(0, int(most - management.TOTAL_PINNED_MEMORY) + self._locked) if most > 0 else None

    def lock(self, nbytes: int) -> None:
        """The trainer holds `nbytes` of locked RAM in all; ComfyUI counts them with its own."""
        import comfy.model_management as management

        if hasattr(management, "TOTAL_PINNED_MEMORY"):
            management.TOTAL_PINNED_MEMORY += nbytes - self._locked
            self._locked = nbytes

    def close(self) -> None:
        """Take all that is left off the list."""
        if self._locked:
            self.lock(0)
        for handle in list(self._handles.values()):
            _forget(handle)
        if self._handles:
            import comfy.model_management as management

            self._handles.clear()
            management.soft_empty_cache()


def _device(device: Any) -> Any:
    import torch

    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # ComfyUI compares devices with their index
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return device


def _handle(owner: Any, needed: int, device: Any) -> Any:
    """`owner` as a model of ComfyUI's: its bytes are counted, and ComfyUI can ask for them back."""
    import torch
    from comfy.model_patcher import ModelPatcher

    class Holder(torch.nn.Module):
        """Stands for the trainer on ComfyUI's list, which writes attributes on the module it manages."""

        def __init__(self) -> None:
            super().__init__()
            self.device = device

    class Handle(ModelPatcher):
        held = 0

        def hold(self, size: int, where: Any) -> None:
            self.held = self.size = size
            self.load_device = where
            self.model.device = where

        def model_size(self) -> int:
            return self.size

        def loaded_size(self) -> int:
            return self.held

        def model_mmap_residency(self, free: bool = False) -> tuple[int, int]:
            return 0, 0

        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            if self.held == 0:
                owner.to(device_to)
                self.held, self.model.device = self.size, device_to
                return self.size
            return 0

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
            return 0  # all or nothing: ComfyUI calls detach next

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all and self.held:  # without it, the model is only taken off the list to be put back in front
                owner.to(self.offload_device)
                self.held, self.model.device = 0, self.offload_device
            return self.model

        def __del__(self) -> None:
            pass  # the base class would move weights here; the trainer frees its own

    return Handle(Holder(), device, torch.device("cpu"), size=needed)


def _forget(handle: Any) -> None:
    import comfy.model_management as management

    models = management.current_loaded_models
    for index in range(len(models) - 1, -1, -1):
        if models[index].model is handle:
            entry = models.pop(index)
            if entry.model_finalizer is not None:
                entry.model_finalizer.detach()
