"""A run as one web page that needs nothing else: its curves, its samples by step and prompt, its settings and versions.

Samples are written into the page, but for large ones and the oldest of very many, which it links to. Nothing is loaded
from elsewhere, and what a settings file or a file name says is text, never markup.
"""

from __future__ import annotations

import base64
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch

from ..errors import RunError
from ..events import Events
from ..files import write_text
from ..version import VERSION
from .chart import CURVE_COLOURS
from .metrics import LOSS, VALIDATION, loss_column, read_rows, smooth, terms_of
from .run_folder import read_manifest

PAGE = "report.html"
LARGEST = 8 << 20  # bytes of a sample that is written into the page
ROOM = 64 << 20  # bytes of all samples that are
# modules whose version may matter, where the run has used them -> their packages
_PACKAGES = {"came_pytorch": "came-pytorch"} | {
    name: name
    for name in ("accelerate", "bitsandbytes", "prodigyopt", "safetensors", "schedulefree", "transformers", "triton")
}
POINTS = 800  # of a curve
WIDTH, HEIGHT, LEFT, BOTTOM = 900, 260, 70, 24  # of a chart and its margins, in pixels
_SAMPLE = re.compile(r"step_(\d+)_p(\d+)_s(\d+)(_ema)?(.*)\.(mp4|png|wav|flac)")
_TYPES = {"mp4": "video/mp4", "png": "image/png", "wav": "audio/wav", "flac": "audio/flac"}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 960px; padding: 0 1em; color: #222; }
table { border-collapse: collapse; } td, th { padding: 4px 8px; text-align: left; vertical-align: top; }
video, img { max-width: 320px; } pre { background: #f4f4f4; padding: 1em; overflow: auto; } svg { max-width: 100%; }
small { color: #666; }
"""

Points = list[tuple[float, float]]
_BEGINS = b"<!doctype html>"


def write_report(folder: Path | str, out: Path | str | None = None, events: Events | None = None) -> Path:
    """Write the page of the run in `folder` to `out`, PAGE in the folder if not given; returns its path.

    What the folder lacks of a run is said on the page, and `events` hear of it. Raises RunError where there is no run,
    or the file cannot be written.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise RunError(f"{folder} is no folder of a run: it has no manifest.json.")
    target = folder / PAGE if out is None else Path(out)
    if out is not None:
        _require_page(target)
    rows = read_rows(folder / "metrics.jsonl")
    lacking = _lacking(folder, int(manifest.get("step", 0)), rows)
    for text in lacking:
        (events or Events()).message(text, "warning")
    parts = [
        f"<h1>{escape(folder.absolute().name)}</h1>",
        f"<p>{escape(_standing(manifest, rows))}</p>",
        *(f"<p>{escape(text)}</p>" for text in lacking),
        *_charts(rows),
        _samples(folder / "samples", target.absolute().parent),
        *(_text(folder / name) for name in ("run.toml", "dataset.toml")),
        *_versions(manifest),
        f"<p><small>Written by ltx2_train {escape(VERSION)}.</small></p>",
    ]
    title = escape(folder.absolute().name)
    head = f'{_BEGINS.decode()}<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    write_text(target, f"{head}<body>{''.join(parts)}</body></html>\n")
    return target


def _require_page(target: Path) -> None:
    """Raise RunError where another kind of file stands at `target`."""
    try:
        with open(target, "rb") as file:
            begins = file.read(len(_BEGINS))
    except FileNotFoundError:
        return
    except OSError as error:
        raise RunError(f"--out: {target} cannot be written: {error.strerror or error}.") from None
    if begins and begins != _BEGINS:
        raise RunError(f"--out: {target} is there already and is no page. Name another file, or move it away.")


def leave_report(folder: Path, events: Events) -> None:
    """Write the page into the folder of a run that ends here, if it has taken a step; what fails is said."""
    if not (folder / "metrics.jsonl").is_file():
        return
    try:
        write_report(folder, events=events)
    except Exception as error:
        events.message(f"The page of the run, {PAGE}, was left out: {error}", "warning")


def versions() -> dict[str, str]:
    """The versions of the program and of what it works with in this process, by name; "card" is its name."""
    found = {"ltx2_train": VERSION, "python": platform.python_version(), "system": platform.platform()}
    found["torch"] = str(torch.__version__)
    for module, package in _PACKAGES.items():
        if sys.modules.get(module) is not None:
            try:
                found[package] = metadata.version(package)
            except metadata.PackageNotFoundError:
                continue
    if torch.cuda.is_initialized():
        found["card"] = torch.cuda.get_device_name()
    return found


def _versions(manifest: Mapping[str, Any]) -> list[str]:
    known = manifest.get("versions")
    if not isinstance(known, Mapping):  # of a run that was made before they were kept
        return []
    lines = "\n".join(f"{name} {version}" for name, version in known.items())
    return [f"<details><summary>Versions</summary><pre>{escape(lines)}</pre></details>"]


def _standing(manifest: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    text = f"{manifest.get('status', 'unknown')}, {manifest.get('step', 0)} of {manifest.get('total', '?')} steps."
    seconds = [row["seconds"] for row in rows if isinstance(row.get("seconds"), (int, float))]
    if seconds:
        text += f" A step took {sum(seconds) / len(seconds):.2f} s, all of them {sum(seconds) / 3600:.2f} h."
    return text


def _lacking(folder: Path, reached: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences on what the page of a run of `reached` steps cannot show."""
    lacking = []
    gone = sorted(set(range(1, reached + 1)) - {row["step"] for row in rows})
    metrics = folder / "metrics.jsonl"
    if len(gone) == reached > 0:
        why = "has no row that can be read" if metrics.is_file() else "is missing"
        lacking.append(f"{metrics} {why}, so the page has no curves.")
    elif gone:
        which = f"step {gone[0]}" if len(gone) == 1 else f"{len(gone)} of {reached} steps, from step {gone[0]} on"
        lacking.append(f"{metrics} has no row that can be read of {which}: the curves have a gap there.")
    if not (folder / "run.toml").is_file():
        lacking.append(f"{folder / 'run.toml'} is missing, so the page does not show the settings.")
    return lacking


def _charts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The losses with their validation, the learning rate and the norm of the gradient."""
    names = terms_of(rows)
    columns = {name: loss_column(name) for name in names} if len(names) > 1 else {"training": LOSS}
    curves = {name: _points(rows, column, smoothed=True) for name, column in columns.items()}
    for name, column in columns.items():
        validation = _points(rows, f"{VALIDATION}{column}")
        if validation:
            curves[f"{name} validation" if len(columns) > 1 else "validation"] = validation
    charts = [("Loss", curves)]
    for title, column in (("Learning rate", "lr"), ("Norm of the gradient", "grad_norm")):
        charts.append((title, {title.lower(): _points(rows, column, smoothed=column == "grad_norm")}))
    return [f"<h2>{title}</h2>{_chart(curves)}" for title, curves in charts if any(curves.values())]


def _points(rows: Sequence[Mapping[str, Any]], column: str, smoothed: bool = False) -> Points:
    """(step, value) of the rows that have one, evenly thinned."""
    found = [(row["step"], row[column]) for row in rows if isinstance(row.get(column), (int, float))]
    if smoothed:
        values = smooth([value for _, value in found])
        found = [(step, value) for (step, _), value in zip(found, values, strict=True) if value is not None]
    stride = -(-len(found) // POINTS) or 1
    return [(float(step), float(value)) for step, value in found[::-1][::stride][::-1]]


def _chart(curves: Mapping[str, Points]) -> str:
    every = [point for points in curves.values() for point in points]
    first, last = min(step for step, _ in every), max(step for step, _ in every)
    low, high = min(value for _, value in every), max(value for _, value in every)
    across, up = (WIDTH - LEFT) / ((last - first) or 1), (HEIGHT - BOTTOM - 10) / ((high - low) or 1)

    def place(step: float, value: float) -> str:
        return f"{LEFT + (step - first) * across:.1f},{HEIGHT - BOTTOM - (value - low) * up:.1f}"

    lines, legend = [], []
    for index, (name, points) in enumerate((name, points) for name, points in curves.items() if points):
        colour = CURVE_COLOURS[index % len(CURVE_COLOURS)][1]
        path = " ".join(place(*point) for point in points)
        lines.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{path}"/>')
        legend.append(f'<span style="color:{colour}">{escape(name)}</span>')
    for value, y in ((high, 14), (low, HEIGHT - BOTTOM)):
        lines.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end" font-size="12">{value:.4g}</text>')
    for step, anchor, x in ((first, "start", LEFT), (last, "end", WIDTH)):
        lines.append(f'<text x="{x}" y="{HEIGHT - 6}" text-anchor="{anchor}" font-size="12">step {step:g}</text>')
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}">{"".join(lines)}</svg><p>{" &middot; ".join(legend)}</p>'
    )


def _samples(folder: Path, beside: Path) -> str:
    """A table: a row for each step, a column for each prompt and seed."""
    cells: dict[int, dict[str, list[str]]] = {}
    paths = sorted(folder.glob("step_*"))
    inside = _inside(paths)
    for path in paths:
        found = _SAMPLE.fullmatch(path.name)
        if found is None:
            continue
        column = f"prompt {int(found[2])}, seed {found[3]}{', EMA' if found[4] else ''}"
        cells.setdefault(int(found[1]), {}).setdefault(column, []).append(
            _media(path, found[6], beside, path in inside)
        )
    if not cells:
        return ""
    columns = sorted({column for row in cells.values() for column in row})
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(
        f"<tr><th>{step}</th>{''.join(f'<td>{chr(10).join(row.get(column, []))}</td>' for column in columns)}</tr>"
        for step, row in sorted(cells.items())
    )
    return f"<h2>Samples</h2><table><tr><th>step</th>{head}</tr>{body}</table>"


def _inside(paths: Sequence[Path]) -> set[Path]:
    """Those of `paths`, the newest last, that are written into the page."""
    found, room = set(), ROOM
    for path in reversed(paths):
        size = path.stat().st_size
        if size <= min(LARGEST, room):
            room -= size
            found.add(path)
    return found


def _media(path: Path, ending: str, beside: Path, inside: bool) -> str:
    if inside:
        address = f"data:{_TYPES[ending]};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    else:
        near = path.absolute().is_relative_to(beside)
        where = path.absolute().relative_to(beside).as_posix() if near else path.absolute().as_posix()
        address = escape(quote(where), quote=True)
    if ending == "png":
        return f'<img src="{address}" alt="{escape(path.name, quote=True)}">'
    kind = "video" if ending == "mp4" else "audio"
    return f'<{kind} controls loop src="{address}"></{kind}>'


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    text = path.read_text(encoding="utf-8", errors="replace")
    return f"<details><summary>{escape(path.name)}</summary><pre>{escape(text)}</pre></details>"
