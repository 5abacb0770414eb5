"""What the core says, in the words of the page: settings under the names of the widgets that show them."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import re
from collections.abc import Callable, Collection, Iterator

_PAIRS, _MORE = "Load Training Pairs", "Add Reference"
_FOLDERS = {
    "reference_directory": f"reference_folder of {_PAIRS}",
    "reference_audio_directory": f"reference_folder of {_PAIRS}",
    "more_reference_directories": f"reference_folder of {_MORE}",
    "more_reference_audio_directories": f"reference_folder of {_MORE}",
    "mask_directory": f"mask_folder of {_PAIRS}",
    "audio_mask_directory": f"mask_folder of {_PAIRS}",
}
_DATA = "|".join(_FOLDERS)
_HELD_OUT = "`validation` of Prepare Dataset ([[validation_datasets]] of a dataset file)"
# whole phrases of the core that speak of files which a graph has not
_PHRASES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (
        re.compile(r'add \[\[(video|audio)\.conditions\]\] with type = "(\w+)" to the run'),
        lambda found: f"connect {found[1].capitalize()} Conditions, set to {found[2]}, to `conditions` of Train LoRA",
    ),
    (
        re.compile(r"Add another \[\[(video|audio)\.conditions\]\]"),
        lambda found: (
            f"Connect another {found[1].capitalize()} Conditions, set to reference, to `conditions` of Train LoRA"
        ),
    ),
    (
        re.compile(r"\b(video|audio)\.conditions\b"),
        lambda found: _giver(found[1]),
    ),
    (
        re.compile(r"\bvideo\.generated and audio\.generated are both false(.*)\. Set one of them to true"),
        lambda found: f"All of the picture and all of the sound are given{found[1]}. Give one of them in part or not",
    ),
    (
        re.compile(r"\bset (video|audio)\.generated to true|(?<=\bor )set it to true"),
        lambda found: f"do not give all of {'the ' + found[1] if found[1] else 'it'}",
    ),
    (
        re.compile(r"\b(video|audio)\.generated (?:is false|= false|is off)"),
        lambda found: f"all of the {found[1]} is given",
    ),
    (
        re.compile(r"\b(video|audio)\.generated is set\b"),
        lambda found: f"{_giver(found[1])} gives all of the {found[1]}",
    ),
    (re.compile(r"\btake (video|audio)\.generated out"), lambda found: f"take {_giver(found[1])} out"),
    (re.compile(r"\bmemory\.pinned to false"), lambda _: "memory.pinned to off"),
    # where a node writes is its own choice
    (
        re.compile(r"--out: (.+?) (is a file, not a folder|cannot be made, since .+? is a file)\. Name [\w ]+\."),
        lambda found: f"The folder {found[1]} {found[2]}. Move that file away.",
    ),
    (re.compile(r" Choose another folder \(--out\) to keep what is there\."), lambda _: ""),
    (re.compile(r"\bno LoRA is given \(--lora\)"), lambda _: "no LoRA is connected or named in lora_path"),
    (re.compile(r"\bset validation\.every(?:_epochs)? to 0"), lambda _: "bypass Validation Options"),
    (
        re.compile(r"\boptimizer\.name = (\w+(?:\.\w+)+)"),
        lambda found: f"class_name of Optimizer Options = {found[1]}",
    ),
    (re.compile(r"\blora\.modules\.(?=\S)"), lambda _: "modules of LoRA Options, "),
    (re.compile(r"`ltx2-train data caption`"), lambda _: "Caption Clips"),
    (re.compile(r"`ltx2-train data cut[^`]*`"), lambda _: "Cut Long Videos"),
)
# the same of a dataset, which a graph may have in a file for all that: then they stay
_DATASET_PHRASES: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], str]], ...] = (
    (re.compile(rf"(?:\w*datasets\[\d+\]\.)({_DATA})\b"), lambda found: _FOLDERS[found[1]]),
    (
        re.compile(rf"\b({_DATA}) in the dataset file"),
        lambda found: f"{_FOLDERS[found[1]]} ({found[1]} of a dataset file)",
    ),
    (
        re.compile(r"the dataset file has no \[\[validation_datasets\]\] to (draw|measure on)\. Add some"),
        lambda found: f"there are no clips to {found[1]}. Connect some to {_HELD_OUT}",
    ),
    (re.compile(r"\[\[validation_datasets\]\](?! of a dataset)"), lambda found: _HELD_OUT),
    (
        re.compile(r"\bname each folder in a dataset of its own that says so"),
        lambda _: "load each folder by a node of its own, with that many repeats",
    ),
    (re.compile(r"\bUse num_repeats to\b"), lambda _: "Set repeats of the node that loads it to"),
    (re.compile(r"\b(none of the|or of) \[\[datasets\]\]"), lambda found: f"{found[1]} datasets that are trained on"),
    (re.compile(r"\b(?:validation_)?datasets\[\d+\](?:\.(?=[a-z])|: )"), lambda _: ""),
)
_OF_FILES = {"Run from File"}  # nodes whose settings stand in a file, under their own names
_DATASET_FILE = "Dataset from File"
_shown: dict[str, dict[str, str]] = {}  # dotted path of a setting -> node that shows it -> name of the widget
_node: contextvars.ContextVar[str] = contextvars.ContextVar("node", default="")
_graph: contextvars.ContextVar[Collection[str]] = contextvars.ContextVar("graph", default=())


def note_widget(node: str, path: str, widget: str) -> None:
    """Note that `node` shows the setting at `path` as `widget`."""
    _shown.setdefault(path, {})[node] = widget
    _pattern.cache_clear()


@contextlib.contextmanager
def speaking_as(node: str) -> Iterator[None]:
    """Inside, `in_widget_words` speaks of the widgets of `node`."""
    token = _node.set(node)
    try:
        yield
    finally:
        _node.reset(token)


@contextlib.contextmanager
def in_graph(titles: Collection[str]) -> Iterator[None]:
    """Inside, a setting that several nodes show is that of those with these titles, where one has it; of a dataset one
    that no loader among them has goes by its own name."""
    token = _graph.set(titles)
    try:
        yield
    finally:
        _graph.reset(token)


def in_widget_words(text: str) -> str:
    """`text` with each setting called as its widget; of another node, with the name of the node."""
    if _node.get() in _OF_FILES:
        return text
    for phrase, said in _PHRASES if _is_in_file() else (*_PHRASES, *_DATASET_PHRASES):
        text = phrase.sub(said, text)
    return _pattern().sub(_widget, text)


def _giver(stream: str) -> str:
    """The node that says what `stream` is given: its own, or the recipe where that alone is in the graph."""
    title, graph = f"{stream.capitalize()} Conditions", _graph.get()
    return "Conditions Recipe" if title not in graph and "Conditions Recipe" in graph else title


def _is_in_file() -> bool:
    """Whether the dataset is that of a file, which has the settings under their own names: it is the node for one that
    speaks, or the graph has no other."""
    graph = _graph.get()
    loaders = _shown.get("num_repeats", {})
    return _node.get() == _DATASET_FILE or (_DATASET_FILE in graph and not any(title in graph for title in loaders))


def _widget(found: re.Match[str]) -> str:
    path, place, in_file = found["path"], found["place"], found["file"] or ""
    nodes, node, of_dataset = _shown[path], _node.get(), "." not in path
    if of_dataset and _is_in_file():
        return found[0]
    number = f" (number {int(place) + 1})" if place else ""
    if node in nodes:
        return nodes[node] + number + in_file
    if any(shown.get(node) == path for shown in _shown.values()):  # its own widget
        return path + number + in_file
    there = [title for title in nodes if title in _graph.get()]
    if not there and of_dataset and _graph.get():  # a loader that is not there is of no use, options can be connected
        there = [title for title in nodes if title.endswith(" Options")]
        if not there:
            return path + number + in_file
    there = there or list(nodes)[:1]
    return " or ".join(f"{nodes[title]} of {title}" for title in there) + number  # no file holds what a node says


@functools.cache
def _pattern() -> re.Pattern[str]:
    """A setting, which number of its values where one is told, and whether it is said to be in a dataset file."""
    # longer paths first; a path that goes on is another setting, and one with its node behind it is a widget already
    paths = "|".join(re.escape(path) for path in sorted(_shown, key=len, reverse=True))
    titles = "|".join(re.escape(node) for node in {node for nodes in _shown.values() for node in nodes})
    there = rf"(?<![\w.])(?P<path>{paths})(?!\w|\.\w| of (?:{titles}))"
    return re.compile(
        there + r"(?:\[(?P<place>\d+)\])?(?P<file> (?:in|of) the dataset(?: file)?\b)?" if paths else r"(?!)"
    )
