"""Folders laid out for other programs: what they mean, and the dataset file that says the same.

10_fox/, 5_cat/             kohya's scripts: the number of repeats, then a name
NAME_start, NAME_end, NAME_audio, NAME.txt    fal's trainer: what is given, what comes of it, its sound, its caption
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..media.images import IMAGE_SUFFIXES
from ..media.sound_media import AUDIO_SUFFIXES
from ..media.video import VIDEO_SUFFIXES

_REPEATS = re.compile(r"(\d+)_(.+)")
_PART = re.compile(r"(?P<root>.+)_(?P<part>start|end|audio)", re.IGNORECASE)
_KINDS = {"video": VIDEO_SUFFIXES, "image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
LIST_NAME = "pairs.jsonl"


@dataclass
class FolderLayout:
    """A dataset file for a folder: its table, and the text of a list that goes beside it, if any."""

    words: str
    table: dict[str, Any]
    rows: list[dict[str, str]] = field(default_factory=list)

    def list_text(self) -> str:
        """The list, one object a line."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def folder_layout(folder: Path) -> FolderLayout | None:
    """What the layout of `folder` comes to, or None where it holds no media. Paths in it are absolute."""
    files = _files(folder)
    repeated = {
        sub: (int(found[1]), found[2], kind)
        for sub in sorted(path for path in folder.iterdir() if path.is_dir())
        if (found := _REPEATS.fullmatch(sub.name)) and (kind := _kind(_files(sub)))
    }
    if repeated:
        entries = [
            {f"{kind}_directory": str(sub.absolute()), "num_repeats": max(1, repeats)}
            for sub, (repeats, _, kind) in repeated.items()
        ]
        words = f"{len(repeated)} sub-folders as kohya's scripts want them, with their repeats in the name"
        return FolderLayout(words, {"datasets": entries})
    if rows := _pairs(files):
        words = f"{len(rows)} pairs as fal's trainer wants them: NAME_start is what is given, NAME_end what comes of it"
        return FolderLayout(words, {"datasets": [{"video_jsonl_file": LIST_NAME, "cache_directory": "cache"}]}, rows)
    kind = _kind(files)
    return (
        FolderLayout(f"a folder of {kind}s", {"datasets": [{f"{kind}_directory": str(folder.absolute())}]})
        if kind
        else None
    )


def explain_layout(folder: Path) -> str:
    """A sentence on a layout that is another program's; empty where it is none."""
    try:
        layout = folder_layout(folder)
    except OSError:  # no folder, or one that cannot be opened
        return ""
    if layout is None or ("num_repeats" not in layout.table["datasets"][0] and not layout.rows):
        return ""
    return f"It holds {layout.words}. `ltx2-train import {folder}` writes a dataset file for them."


def _pairs(files: list[Path]) -> list[dict[str, str]]:
    groups: dict[str, dict[str, Path]] = {}
    for path in files:
        if found := _PART.fullmatch(path.stem):
            groups.setdefault(found["root"], {})[found["part"].lower()] = path
    captions = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    rows = []
    for root, parts in sorted(groups.items()):
        if "end" not in parts or not ("start" in parts or "audio" in parts):
            continue
        row = {"video_path": str(parts["end"].absolute()), "caption": _caption(root, parts, captions)}
        if "start" in parts:
            row["control_path"] = str(parts["start"].absolute())
        if "audio" in parts:
            row["audio_path"] = str(parts["audio"].absolute())
        rows.append(row)
    return rows


def _caption(root: str, parts: Mapping[str, Path], captions: Mapping[str, Path]) -> str:
    for stem in (root, parts["end"].stem):
        if stem in captions:
            return captions[stem].read_text(encoding="utf-8-sig", errors="replace").strip()
    return ""


def _kind(files: list[Path]) -> str:
    """What most of the media among `files` are; empty where there are none."""
    counts = {kind: sum(path.suffix.lower() in endings for path in files) for kind, endings in _KINDS.items()}
    best = max(counts, key=lambda kind: counts[kind])
    return best if counts[best] else ""


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
