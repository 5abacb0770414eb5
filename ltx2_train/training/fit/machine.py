"""What a machine has: free memory of the card and of the system, and how fast it multiplies, copies and sends.

Rates are measured once a process, in about a second. Where there is nothing to measure (a table for cards that are not
here) those of a usual card of that size stand in: data-sheet bf16 with float32 sums, of which CARD_SHARE is reached.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path

import torch

from ...device import wait
from ...events import Events
from ...optional import why_missing

GB = 10**9
GIB = 2**30
EVERYTHING = 1 << 50  # asks a host to give what it holds
CONTEXT = 0.5 * GB  # of a process that uses CUDA, before its first tensor: an assumption
# left free on the card, for the screen and what comes up later: the larger of these bytes and this share
RESERVE, RESERVE_SHARE = 0.3 * GB, 0.02
WINDOWS_RESERVE = 0.7 * GB  # there the driver moves memory to RAM, silently and slowly, before a card is full
WINDOWS_LOCKED = 0.4  # share of all RAM that Windows lets be locked, with some to spare
PLENTY = 0.6  # share of the free RAM that may be locked
RAM_RESERVE = 1.0 * GB
CARD_SIZES = (80, 48, 32, 24, 16, 12, 8)  # of memory.fit
SUSTAINED, TIMES = 0.1, 5  # seconds of products that tell a card's rate, and tries of everything that is measured
_USABLE = 0.975  # of what is printed on the box; the rest is the driver's
CARD_SHARE = 0.9


@dataclass(frozen=True)
class Rates:
    """FLOP/s of a matrix product, bytes/s of the card's memory, and bytes/s from pinned RAM, plain RAM and the disk."""

    matmul: float
    bandwidth: float
    pinned: float = 25e9
    pageable: float = 10e9
    disk: float = 2e9
    source: str = ""


@dataclass(frozen=True)
class Machine:
    """Bytes that may be used: `limit` of the device, `ram`, `disk`, and of `ram` what may be locked. `taken` is what
    others hold of the device, `held` what this process holds of it already."""

    device_type: str
    name: str
    limit: float
    ram: float
    disk: float
    rates: Rates
    taken: float = 0.0
    total: float = 0.0
    lockable: float = float("inf")
    held: float = 0.0

    def shared(self, processes: int) -> Machine:
        """What one of so many processes, each with a device of its own, may use of the RAM."""
        if processes == 1:
            return self
        ram, lockable = self.ram / processes, self.lockable / processes
        limit = ram if self.device_type == "cpu" else self.limit
        return replace(self, ram=ram, lockable=lockable, limit=limit)


# size in GB -> a usual card, TFLOP/s, GB/s of its memory, GB/s of its link
CARDS = {
    80: ("H100", 790, 3350, 52),
    48: ("L40S", 362, 864, 25),
    32: ("RTX 5090", 209.5, 1790, 52),
    24: ("RTX 4090", 165, 1008, 25),
    16: ("RTX 4080", 97.5, 717, 25),
    12: ("RTX 4070 Super", 71, 504, 25),
    8: ("RTX 4060", 30.2, 272, 12.5),
}


def card(size: int, ram: float, disk: float, free: float | None = None) -> Machine:
    """A machine with a usual card of `size` GB. `free`: what of it there is at most."""
    name, matmul, bandwidth, link = CARDS[size]
    rates = Rates(
        CARD_SHARE * matmul * 1e12, CARD_SHARE * bandwidth * 1e9, link * 1e9, 0.4 * link * 1e9, source="data sheet"
    )
    limit = size_limit(size)
    return Machine("cuda", name, limit if free is None else min(limit, free), ram, disk, rates, total=size * GIB)


def size_limit(size: int) -> float:
    """Bytes that tensors may fill on a card sold as `size` GB."""
    total = size * GIB * _USABLE
    return total - CONTEXT - reserve(total)


def reserve(total: float, asked: float | None = None) -> float:
    """Bytes of a card of `total` that no plan uses; `asked` is what a host leaves free, where it has a wish."""
    return max(WINDOWS_RESERVE if spills() else RESERVE, RESERVE_SHARE * total) if asked is None else asked


def spills() -> bool:
    """Whether the driver moves memory of the card to RAM instead of saying that the card is full: Windows, and Linux
    inside of it."""
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


def hold_to(machine: Machine, device: torch.device) -> None:
    """Where the driver spills, let this process take no more of the card than was planned with, so that too much is an
    error that a leaner plan answers. `lift_limit` ends it."""
    if device.type == "cuda" and spills() and machine.total > 0:
        share = (machine.held + machine.limit) / machine.total
        torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.05, share)), device)


def lift_limit(device: torch.device) -> None:
    """The whole card again."""
    if device.type == "cuda" and spills():
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def this_machine(device: torch.device, folder: Path, events: Events | None = None) -> Machine:
    """The machine at hand; `events` is asked what the host leaves free of the card, and of RAM that may be locked."""
    events = events or Events()
    ram = max(0.0, available_ram() - RAM_RESERVE)
    lockable = PLENTY * ram
    if spills():
        lockable = min(lockable, WINDOWS_LOCKED * total_ram())
    if (left := events.may_lock()) is not None:
        lockable = min(lockable, left)
    disk = free_disk(folder)
    rates = measure(device)
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - held
        taken = total - free - CONTEXT
        name = torch.cuda.get_device_name(device)
        limit = free - reserve(total, events.kept_free(device))
        return Machine("cuda", name, limit, ram, disk, rates, max(0.0, taken), total, lockable, held)
    return Machine(device.type, device.type, ram, ram, disk, rates, total=ram, lockable=lockable)


@lru_cache(maxsize=8)
def measure(device: torch.device) -> Rates:
    """Rates of this machine, measured with short runs."""
    cuda = device.type == "cuda"
    size, dtype = (4096, torch.bfloat16) if cuda else (768, torch.float32)
    matmul = 2 * size**3 / _seconds(partial(torch.mm, *_factors(size, device, dtype)), device, SUSTAINED if cuda else 0)
    source = torch.ones((256 if cuda else 32) << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    bandwidth = 2 * source.numel() / _seconds(lambda: target.copy_(source), device)
    if not cuda:
        return Rates(matmul, bandwidth, bandwidth, bandwidth, source="measured")
    found = []
    for pinned in (True, False):
        host = torch.ones(128 << 20, dtype=torch.uint8, pin_memory=pinned)
        part = target[: host.numel()]
        found.append(host.numel() / _seconds(lambda h=host, p=part: p.copy_(h, non_blocking=True), device))
    return Rates(matmul, bandwidth, found[0], found[1], source="measured")


def _factors(size: int, device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Two matrices of random numbers: a card multiplies ones with less current, so faster than what a run has."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return a, b


def _seconds(run: Callable[[], object], device: torch.device, sustained: float = 0.0) -> float:
    """The quickest of some runs, after one that warms up; with `sustained` the mean over runs of so many seconds
    together, since a card lowers its clock after the first milliseconds."""
    best = float("inf")
    for _ in range(TIMES + 1):
        best = min(best, _timed(run, device, 1))
    if best < sustained:
        best = _timed(run, device, math.ceil(sustained / best))
    return max(best, 1e-9)


def _timed(run: Callable[[], object], device: torch.device, times: int) -> float:
    wait(device)
    begun = time.perf_counter()
    for _ in range(times):
        run()
    wait(device)
    return (time.perf_counter() - begun) / times


def available_ram() -> float:
    """Bytes of RAM that can be had without pushing others out; the limit of a container counts."""
    return min(_system_ram(), _container_ram())


def _system_ram() -> float:
    if sys.platform == "linux":
        try:
            for line in Path("/proc/meminfo").read_text().splitlines():
                if line.startswith("MemAvailable:"):
                    return 1024.0 * int(line.split()[1])
        except (OSError, ValueError, IndexError):
            pass
    if sys.platform == "win32":
        return _windows_ram()
    if not why_missing("psutil"):
        import psutil

        return float(psutil.virtual_memory().available)
    try:  # macOS tells no free memory without a library: three quarters of all of it
        return 0.75 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")


def _windows_ram(field: str = "free") -> float:
    class Status(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ulong), ("load", ctypes.c_ulong)] + [
            (name, ctypes.c_ulonglong)
            for name in ("total", "free", "total_page", "free_page", "total_virtual", "free_virtual", "extended")
        ]

    status = Status(length=ctypes.sizeof(Status))
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined]
        return float("inf")
    return float(getattr(status, field))


def total_ram() -> float:
    """Bytes of RAM that are built in; infinity where that is not known."""
    if sys.platform == "win32":
        return _windows_ram("total")
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")


def _container_ram(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """What the control groups of this process leave, its own and those round it; infinity where none has a limit."""
    left = float("inf")
    for folder in _cgroups(groups, own):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            try:
                most, now = ((folder / name).read_text().strip() for name in (limit, used))
                if most != "max" and float(most) < 1 << 60:
                    left = min(left, max(0.0, float(most) - float(now) + _cgroup_cache(folder)))
            except (OSError, ValueError):
                continue
    return left


def _cgroups(groups: Path, own: Path) -> list[Path]:
    """Folders of this process's control groups of memory, of both versions; in a container its own is the root."""
    folders = [groups, groups / "memory"]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("", "memory") or "memory" in kinds.split(","):
                root = groups / "memory" if kinds else groups
                parts = [part for part in path.split("/") if part and part != ".."]
                folders += [root.joinpath(*parts[:count]) for count in range(1, len(parts) + 1)]
    return folders


def _cgroup_cache(folder: Path) -> float:
    """Bytes of files kept in memory, which give way."""
    for line in (folder / "memory.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name in ("inactive_file", "total_inactive_file"):
            return float(value)
    return 0.0


def free_disk(folder: Path) -> float:
    """Free bytes where `folder` is or will be."""
    folder = folder.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return float("inf")
