"""The order of the packages: who may import whom, and which libraries are never imported by merely loading the pack."""

import ast
from functools import cache
from pathlib import Path

import pytest

import ltx2_train

ROOT = Path(__file__).resolve().parents[2]
# Lower rows first. In a row that is a list, each package may import those before it; in a set, none of the others.
ROWS: list[set[str] | list[str]] = [
    {"errors", "shapes", "version", "paths", "text_files"},
    {"registry", "events", "families", "files", "optional", "device", "toml", "idle"},
    {"settings", "locks", "threads", "foreign"},
    {"models", "quant", "offload", "objective", "optim", "media"},
    {"weights", "dataset"},
    ["lora", "full", "caching", "conditions"],
    ["feed", "workshop"],
    {"config"},
    ["sizes", "placement"],
    {"sampling"},
    {"training"},
    {""},  # ltx2_train/__init__.py, the public functions
    {"cli"},
    {"__main__"},
    {"nodes"},
]
# Where a package stands: a row, and a place in it that only the order of a list tells apart.
RANK_OF = {
    name: (row, place if isinstance(names, list) else 0)
    for row, names in enumerate(ROWS)
    for place, name in enumerate(names)
}
OPTIONAL = {
    "transformers",
    "av",
    "bitsandbytes",
    "sentencepiece",
    "matplotlib",
    "torchaudio",
    "scenedetect",
    "accelerate",
    "optimum",
}
COMFY = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "server", "nodes", "execution"}
COMFY_DOOR = "nodes/host/"
# Who takes from the core only what is public: names of ltx2_train, names in __all__ of a package, and these modules.
CALLERS = {"nodes", "cli"}
OPEN = {"errors", "events", "files", "settings"}


def imports(tree):
    """(node, level, dotted module, at module level) of every import; `from . import a` counts as one of a."""
    inside = {
        id(n) for f in ast.walk(tree) if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef)) for n in ast.walk(f)
    }
    typing = {
        id(n)
        for i in ast.walk(tree)
        if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.dump(i.test)
        for n in ast.walk(i)
    }
    for node in ast.walk(tree):
        top = id(node) not in inside and id(node) not in typing
        if isinstance(node, ast.Import):
            yield from ((node, 0, alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node, node.level, node.module, top
        elif isinstance(node, ast.ImportFrom):
            yield from ((node, node.level, alias.name, top) for alias in node.names)


def violations(path, text):
    """Sentences on what the file at `path` (relative, with slashes) may not import."""
    parts = path.split("/")
    package = "nodes" if parts[0] == "nodes" else Path(parts[1]).stem.replace("__init__", "")
    found = [] if package in RANK_OF else [f"{path}: {package} is in no row of the table"]
    for node, level, module, top in imports(ast.parse(text)):
        first, at = module.split(".")[0], f"{path}:{node.lineno}: "
        if level == 0:
            if first in {"ltx2_train", "nodes"} or (first in COMFY and not path.startswith(COMFY_DOOR)):
                found.append(f"{at}{module} must not be imported here")
            elif first in OPTIONAL and top:
                found.append(f"{at}{first} must be imported where it is used")
            continue
        if package in CALLERS and (deep := _not_public(node, level, module, parts)):
            found.append(f"{at}{package} must not import {deep}, but public names of ltx2_train or of a package")
        target = [*parts[: len(parts) - level], *module.split("."), ""]
        other = "nodes" if target[0] == "nodes" else target[1]
        if other not in RANK_OF:  # a name from ltx2_train/__init__.py itself, or a module that is in no row
            other = "" if RANK_OF.get(package, (0, 0)) > RANK_OF[""] else other
        if other not in RANK_OF:
            found.append(f"{at}{module} is in no row of the table")
        elif other != package and RANK_OF[other] >= RANK_OF.get(package, (-1, 0)):
            found.append(f"{at}{package or 'ltx2_train'} must not import {other or 'ltx2_train'}")
    return found


def _not_public(node, level, module, parts):
    """What an import of a node or a command takes from inside the core; empty where all of it is public."""
    owner = [*parts[: len(parts) - level], *(node.module or "").split(".")]
    owner = [part for part in owner if part]
    names = [alias.name for alias in node.names] if node.module else [module]
    if owner[:1] != ["ltx2_train"] or owner[1:2] == ["cli"] or (len(owner) == 2 and owner[1] in OPEN):
        return ""
    known = public_names("/".join(owner[1:])) | (OPEN if len(owner) == 1 else set())
    return ", ".join(".".join([*owner[1:], name]) for name in names if name not in known)


@cache
def public_names(package):
    """Those in __all__ of a package of the core, "" for ltx2_train itself; none where it has no such list."""
    path = ROOT / "ltx2_train" / package / "__init__.py"
    if not package:
        return set(ltx2_train.__all__)
    body = ast.parse(path.read_text(encoding="utf-8")).body if path.is_file() else []
    lists = [one.value for one in body if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "__all__"]
    return {name for value in lists for name in ast.literal_eval(value)}


SOURCES = sorted(p.relative_to(ROOT).as_posix() for top in ("ltx2_train", "nodes") for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES)
def test_imports_follow_the_table(path):
    assert violations(path, (ROOT / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "text", "fault"),
    [
        ("ltx2_train/models/a.py", "from ..weights import reader", "models must not import weights"),
        ("ltx2_train/models/a.py", "from ..optim import x", "models must not import optim"),
        ("ltx2_train/errors.py", "from .files import x", "errors must not import files"),
        ("ltx2_train/lora/a.py", "import ltx2_train.errors", "must not be imported here"),
        ("nodes/a.py", "from ltx2_train import probe", "must not be imported here"),
        ("ltx2_train/feed/a.py", "import comfy.utils", "must not be imported here"),
        ("nodes/a.py", "import folder_paths", "must not be imported here"),
        ("nodes/hosted.py", "from server import PromptServer", "must not be imported here"),
        ("nodes/a.py", "from ..ltx2_train.training.loop import train", "must not import training.loop.train"),
        ("nodes/host/a.py", "from ...ltx2_train.models.blocks import x", "must not import models.blocks.x"),
        ("nodes/a.py", "def f():\n    from ..ltx2_train.lora import branches", "must not import lora.branches"),
        ("nodes/a.py", "from ..ltx2_train.device import pick_device", "must not import device.pick_device"),
        ("nodes/a.py", "from ..ltx2_train import probe, training", "nodes must not import training,"),
        ("nodes/a.py", "from ..ltx2_train.quant import formats", "must not import quant.formats"),
        ("ltx2_train/cli/a.py", "from ..training.metrics import terms_text", "must not import training.metrics"),
        ("ltx2_train/cli/a.py", "def f():\n    from ..config.read import load_run", "cli must not import config.read"),
        ("ltx2_train/cli/a.py", "from ..sampling import render", "cli must not import sampling.render"),
        ("ltx2_train/cli/__init__.py", "from .. import load_run, device", "cli must not import device,"),
        ("ltx2_train/optim/a.py", "import bitsandbytes", "where it is used"),
        ("ltx2_train/optim/a.py", "try:\n    import av\nexcept ImportError:\n    av = None", "where it is used"),
        ("ltx2_train/extra.py", "", "is in no row"),
        ("ltx2_train/training/a.py", "from ..surprise import x", "is in no row"),
        ("ltx2_train/training/a.py", "from ..cli import x", "training must not import cli"),
        ("ltx2_train/training/a.py", "from ...nodes import x", "training must not import nodes"),
    ],
)
def test_planted_faults_are_caught(path, text, fault):
    assert any(fault in sentence for sentence in violations(path, text))


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "ltx2_train/lora/a.py",
            "from ..models.blocks import x\nfrom .b import y\nfrom . import c\nfrom ..errors import z",
        ),
        ("ltx2_train/optim/a.py", "def f():\n    import bitsandbytes"),
        ("ltx2_train/conditions/a.py", "from ..caching.cache_file import x\nfrom ..lora.file import y"),
        ("ltx2_train/workshop/a.py", "from ..feed.loader import x"),
        ("ltx2_train/__init__.py", "from .training import train\nfrom .errors import x"),
        ("ltx2_train/cli/a.py", "from .. import train\nfrom ..config import load_run"),
        ("ltx2_train/cli/a.py", "from .b import x\nfrom . import c\nfrom ..errors import y"),
        ("ltx2_train/cli/a.py", "from ..files import atomic\nfrom ..training.fit import predict_run"),
        ("nodes/a.py", "from ..ltx2_train import probe\nfrom . import host\nfrom .host import io"),
        ("nodes/a.py", "from .. import ltx2_train as core\nfrom ..ltx2_train.errors import DataError"),
        ("nodes/a.py", "from ..ltx2_train.config import RunConfig\nfrom ..ltx2_train.files import digest"),
        ("nodes/host/folders.py", "import folder_paths\nfrom comfy_api.latest import io\nfrom ..live import x"),
        ("nodes/host/page.py", "from ...ltx2_train.events import Events\nfrom .folders import x"),
    ],
)
def test_what_is_allowed_passes(path, text):
    assert violations(path, text) == []


def imported_modules(path, text):
    """Dotted names that the file at `path` takes in relatively, wherever it does; of a package, the parts named."""
    parts = path.removesuffix(".py").split("/")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*parts[: len(parts) - node.level], *(node.module or "").split(".")]
            base = [part for part in base if part]
            for alias in node.names:
                yield ".".join([*base, alias.name])
                yield ".".join(base)


def circles(sources):
    """Sets of modules that import each other, in a ring, of `sources` (path -> text)."""
    name_of = {path: path.removesuffix(".py").replace("/", ".").removesuffix(".__init__") for path in sources}
    known = set(name_of.values())
    graph = {
        name_of[path]: set(imported_modules(path, text)) & known - {name_of[path]} for path, text in sources.items()
    }
    # What imports nothing that is left, or is imported by nothing that is left, is in no ring.
    while graph:
        wanted = set().union(*graph.values())
        loose = {name for name, targets in graph.items() if not targets or name not in wanted}
        if not loose:
            break
        graph = {name: targets - loose for name, targets in graph.items() if name not in loose}
    return sorted(graph)


def test_the_tree_of_the_readme_has_every_package_in_this_order():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## Where things are")[1].split("```")[1]
    core = tree.split("ltx2_train/ ")[1].split("\nweb/")[0]
    lines = [line.strip().split("   ")[0].split() for line in core.splitlines()[1:]]
    named = [name.rstrip("/") for line in lines for name in line]
    assert sorted(named) == sorted(name for name in RANK_OF if name not in {"", "__main__", "nodes"})
    rows = [RANK_OF[name] for line in lines[1:] for name in [line[0].rstrip("/")]]
    assert rows == sorted(rows), "a package stands below those that it imports"


def test_no_circles():
    texts = {path: (ROOT / path).read_text(encoding="utf-8") for path in SOURCES}
    packages = {path: text for path, text in texts.items() if not path.endswith("__init__.py")}
    assert circles(packages) == []


def test_a_planted_circle_is_found():
    found = circles(
        {
            "ltx2_train/lora/a.py": "from .b import x",
            "ltx2_train/lora/b.py": "if TYPE_CHECKING:\n    from . import c",
            "ltx2_train/lora/c.py": "def f():\n    from ..lora.a import x",
            "ltx2_train/lora/d.py": "from .a import x",
        }
    )
    assert found == ["ltx2_train.lora.a", "ltx2_train.lora.b", "ltx2_train.lora.c"]
