"""Writing files so that nobody ever reads half of one.

Each write goes to a temporary name in the same folder, is flushed to the disk, and then takes the real name in one
step. A process killed at any moment leaves the old file or the new one, and a hidden temporary one that the next
program to write into the folder clears away.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import RunError

TEMPORARY_SUFFIX = ".part"
CLOSED = "cannot be opened"  # begins what `below` says of a folder
ABANDONED = 3600.0  # seconds since its last change after which a temporary file belongs to nobody
QUIET = 60.0  # the same for one of the file that is to be written: nobody else writes it
WAITS = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between tries to replace a file that another program holds open

CHECK_SUMS = "crc32"  # entry of the metadata of a safetensors file, see `write_checked`

_TEMPORARY = re.compile(r"\..*[a-z0-9_]{8}\.part")  # as mkstemp makes them below
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")  # what newer versions of the library write first, beside the file
_LONGEST_PREFIX = 80  # bytes of the name that the temporary one repeats; a file system takes 255 in all
_LONGEST_HEADER = 100_000_000  # bytes; the library takes no longer one
# what systems, shares and archives keep beside the files of their users: deleted ones, thumbnails, halves of files
_OF_SYSTEMS = frozenset(("__macosx", "#recycle", "$recycle.bin", "@eadir", "system volume information", "lost+found"))
_NO_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}  # file systems without fsync
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_swept: set[Path] = set()


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on a clean exit it becomes `path`, on an error it is removed.

    Raises RunError where the folder cannot be written, the disk is full, or another program keeps hold of `path`.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.parent not in _swept:
            _swept.add(path.parent)
            sweep(path.parent, of=path.name)
        handle, name = tempfile.mkstemp(prefix=_temporary_prefix(path.name), suffix=TEMPORARY_SUFFIX, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush(temporary)
        with contextlib.suppress(OSError):  # some network drives have no modes
            os.chmod(temporary, 0o666 & ~_umask())
        _replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(f"Could not write {path}: {error.strerror or error}. {write_advice(error, path)}") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def is_hidden(path: Path, folder: Path) -> bool:
    """Whether something below `folder` is nothing of the user's: a name that begins with a dot, such as the
    "._clip.mp4" of a Mac, which has the ending of a medium; and what systems lay into folders and zip files."""
    return any(part.startswith(".") or part.casefold() in _OF_SYSTEMS for part in path.relative_to(folder).parts)


def below(folder: Path, recursive: bool) -> Iterator[tuple[Path, str]]:
    """Everything below `folder` that is not hidden, in a fixed order, with what is wrong with it in words that follow
    its name, or "". Links to folders are not followed; a folder that cannot be opened comes a second time."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"{CLOSED}: {error.strerror or error}"
        return
    for entry in entries:
        path = Path(entry.path)
        if is_hidden(path, folder):
            continue
        if entry.is_symlink():
            yield path, _bad_link(path)
            continue
        yield path, ""
        if recursive and entry.is_dir(follow_symlinks=False):
            yield from below(path, True)


def _bad_link(path: Path) -> str:
    try:
        os.stat(path)
    except OSError as error:
        return "is a link that leads to itself" if error.errno == errno.ELOOP else "is a link to a file that is gone"
    target = path.resolve()
    return "is a link to a folder that it lies in" if target.is_dir() and target in path.absolute().parents else ""


def sweep(folder: Path, older: float = ABANDONED, of: str = "") -> None:
    """Delete what killed processes left half written in `folder`: temporary files unchanged for `older` seconds, those
    of the library of safetensors too, and those `of` a file that is about to be written unchanged for a minute."""
    own = re.compile(rf"{re.escape(_temporary_prefix(of))}[a-z0-9_]{{8}}\.part") if of else None
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                least = QUIET if own is not None and own.fullmatch(entry.name) else older
                if time.time() - entry.stat().st_mtime >= least and _is_temporary(entry):
                    os.unlink(entry.path)


def _is_temporary(entry: os.DirEntry[str]) -> bool:
    """Whether a file is one that is written before it gets its name. Raises OSError."""
    if _TEMPORARY.fullmatch(entry.name):
        return True
    if not _OF_SAFETENSORS.fullmatch(entry.name):
        return False
    with open(entry.path, "rb") as file:  # other programs have such names too
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < _LONGEST_HEADER


def why_closed(folder: Path) -> str:
    """Why nothing can be written into `folder`, or it cannot be made, in words that follow its name; empty where it can
    as far as rights tell."""
    place = next((one for one in (folder, *folder.absolute().parents) if os.path.lexists(one)), folder)
    if os.access(place, os.W_OK | os.X_OK):
        return ""
    return "cannot be written" if place == folder else f"cannot be made, since {place} cannot be written"


def why_not_read(path: Path) -> str:
    """What the system says where the file `path` may not be read; empty where it may."""
    try:
        with open(path, "rb"):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def entries(folder: Path) -> list[Path]:
    """What lies in `folder`, in the order of the names; nothing where it is not there. Raises OSError where it is
    closed to this user: to pattern matching such a folder is empty."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def copy_file(source: Path, target: Path) -> None:
    """Put the file `source` at `target` too, atomically: as a hard link where that works, else as a copy."""
    with atomic(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def remove(paths: Iterable[Path]) -> str:
    """Delete files as far as the system lets them go; says which stay and why, or nothing."""
    stay = []
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            stay.append(f"{path} could not be deleted: {error.strerror or error}.")
    return " ".join(stay[:1]) + (f" {len(stay) - 1} more stay as well." if len(stay) > 1 else "")


def require_there(paths: Iterable[Path], when: str, mend: str) -> None:
    """Raise RunError where any of `paths`, all of them files that were there, is not any more: it names them, says
    `when` they went, and how to `mend` it."""
    gone = [path for path in dict.fromkeys(paths) if not path.is_file()]
    if gone:
        more = f" and {len(gone) - 1} more were" if len(gone) > 1 else " was"
        raise RunError(
            f"{gone[0]}{more} deleted or moved {when}, or a disk that held {'them' if gone[1:] else 'it'} was taken "
            f"away. {mend}"
        )


def write_bytes(path: Path | str, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(data)


def write_texts(texts: Mapping[Path, str]) -> None:
    """Write all of `texts`, by path, or where one is refused none: what is there stays as it is. Raises RunError."""
    folders = list(dict.fromkeys(one for path in texts for one in path.absolute().parents if not one.exists()))
    before = {path: path.read_bytes() if path.is_file() else None for path in texts}
    try:
        with contextlib.ExitStack() as stack:
            for path, text in texts.items():
                temporary = stack.enter_context(atomic(path))
                temporary.write_bytes(text.encode("utf-8"))
                _flush(temporary)  # what the disk has no room for is known before the first takes its name
    except BaseException:
        for path, data in before.items():
            with contextlib.suppress(OSError, RunError):
                if data is None:
                    path.unlink()
                elif path.read_bytes() != data:
                    write_bytes(path, data)
        for folder in folders:
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as JSON atomically; NaN and infinities are refused, since other readers choke on them."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_checked(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """As `write_tensors`, with the check sum of each tensor in the metadata, by its name, as JSON."""
    kept = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    sums = {name: check_sum(tensor) for name, tensor in kept.items()}
    write_tensors(path, kept, {**metadata, CHECK_SUMS: json.dumps(sums)})


def check_sum(tensor: Any) -> str:
    """CRC-32 of the bytes of a tensor on the CPU, as hexadecimal."""
    import torch

    return f"{zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data):08x}"


def write_tensors(path: Path | str, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Tensors are made contiguous and moved to the CPU."""
    from safetensors.torch import save_file

    with atomic(path) as temporary:
        try:
            save_file(
                {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()},
                str(temporary),
                metadata=dict(metadata or {}),
            )
        except Exception as error:
            # safetensors wraps I/O failures in an exception of its own
            if isinstance(error, OSError):
                raise
            if (number := re.search(r"os error (\d+)", str(error))) or "I/O" in str(error):
                raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
            raise


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text that comes from outside.

    Raises ValueError for all that is not plain JSON: other bytes than UTF-8, NaN, Infinity and numbers as large, lists
    in lists without end, a name with two values. The library lets some of these through and fails on others in its own
    ways.
    """
    try:
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("lists or tables are nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):  # the last value would win without a word
        for name, value in pairs:
            if value != table[name]:
                raise ValueError(f"{name!r} stands twice in one table, as {value!r} and as {table[name]!r}; keep one")
    return table


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _no_number(text)


def with_ending(path: Path, ending: str) -> Path:
    """`path` with `ending` behind its name. Unlike with_suffix it leaves dots alone that are part of the name."""
    return path.with_name(path.name + ending)


def digest(*parts: str | bytes, length: int = 16) -> str:
    """A short hexadecimal SHA-256 over `parts`, each preceded by its length so that no two lists collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8") if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()[:length]


def _temporary_prefix(name: str) -> str:
    return f".{name.encode('utf-8', 'replace')[:_LONGEST_PREFIX].decode('utf-8', 'ignore')}."


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in _NO_FLUSH:
                raise


def _replace(temporary: Path, path: Path) -> None:
    """Give the temporary file its name; for a while where Windows refuses, since a program has the old file open."""
    for wait in (*WAITS, None):
        try:
            os.replace(temporary, path)
            return
        except PermissionError:
            if wait is None:
                raise
            time.sleep(wait)


def write_advice(error: OSError, path: Path) -> str:
    """What to do where the system refused to write `path`."""
    if error.errno in _FULL:
        return "Free some space, or choose a folder on another disk."
    if error.errno == errno.EISDIR:
        return "A folder lies where the file goes: move it away, or choose another name."
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return "A file lies where its folder goes: move it away, or choose another folder."
    if error.errno == errno.ENAMETOOLONG:
        return "Choose a shorter name."
    if isinstance(error, PermissionError) and path.is_file() and os.access(path.parent, os.W_OK):
        return "Another program may hold it open: close it there, or choose another name."
    return "See that its folder is there and can be written, or choose another."


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    # A rename is on disk only once its folder is; Windows neither needs nor allows this.
    if os.name == "posix":
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
