"""Whether a file holds the tensors that a module needs, said in full where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from ..errors import CheckpointError
from . import keys
from .probe import describe_checkpoint
from .reader import TensorFile
from .stored import StoredLinears

_LISTED = 10


def check_names(
    file: TensorFile,
    prefix: str,
    module: str,
    wanted: Mapping[str, torch.Tensor],
    owned: Callable[[str], bool] | None,
    stored: StoredLinears,
) -> None:
    """Compare `wanted` (names without `prefix`, tensors of the right shape) with the file; `module` is what is loaded.

    `owned` says which names under `prefix` must be among them. Raises CheckpointError with all that is amiss.
    """
    if text := stored.complaint(prefix + name.removesuffix(".weight") for name in wanted):
        raise CheckpointError(f"{file.path.name} stores the {module} as {text}")
    missing = [name for name in wanted if prefix + name not in file]
    misfits: list[str] = []
    whole: list[str] = []
    for name, tensor in wanted.items():
        info = file.tensors.get(prefix + name)
        packed = name.endswith(".weight") and prefix + name[: -len(".weight")] in stored.kinds
        if info is None or packed:
            continue
        if info.shape != tuple(tensor.shape):
            misfits.append(f"{name} is {list(info.shape)}, expected {list(tensor.shape)}")
        elif tensor.is_floating_point() and not info.torch_dtype.is_floating_point:
            whole.append(f"{name} is {info.dtype}, expected a float")
    extra = [
        name[len(prefix) :]
        for name in file.tensors
        if name.startswith(prefix)
        and name[len(prefix) :] not in wanted
        and name not in keys.UNUSED
        and not keys.is_quantization(name)
        and (owned is None or owned(name[len(prefix) :]))
    ]
    if not (missing or misfits or whole or extra):
        return
    lines = [f"The {module} cannot be loaded from {file.path.name}: its tensors are not those that are expected."]
    for title, names in (
        ("missing", missing),
        ("of another shape", misfits),
        ("of another type", whole),
        ("left over", extra),
    ):
        if names:
            more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
            lines.append(f"  {len(names)} {title}: {', '.join(names[:_LISTED])}{more}")
    lines.append(_likely_cause(file, len(missing) == len(wanted), module))
    raise CheckpointError("\n".join(lines))


def _likely_cause(file: TensorFile, nothing: bool, what: str) -> str:
    info = describe_checkpoint(file)
    if info.problems and info.kind != "part":
        return " ".join(info.problems)
    if nothing:
        return f"The file holds no {what}: it is a part of a checkpoint. Use the full single-file checkpoint."
    return (
        "The header configuration (metadata `config`) and the tensors do not belong together: the file is of another "
        "version, was repacked with a foreign header, or lacks a part. Use an original LTX-2 or LTX-2.3 checkpoint."
    )
