"""One name means one thing, no function is longer than a page, and no program says the same list of words twice: held
over the whole program."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
from unit.test_layers import imported_modules

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 60  # lines of a function
# Names that stand in two modules on purpose, and why.
TWICE = {
    name: "models/fused.py holds the arithmetic that is compiled, models/norms.py the operation with its gradient"
    for name in ("gated_heads", "gated_sum", "modulated", "modulated_norm", "rotated_norm")
} | {
    name: "the type of a socket in nodes/handles.py is called as what it carries"
    for name in ("Prepared", "Run")
}  # fmt: skip
# Lists of words that stand in two modules on purpose, and why.
SAID_TWICE = {
    "auto bf16 fp16 fp32": "a setting has them as its type, the tools of LoRAs before pydantic is loaded",
    "batch off query": "offload/ and models/ know nothing of each other; one word more fails in the model",
}
# Functions that may be longer, and why.
LONG = {"define_schema": "a list of sockets and widgets, in the order in which the node shows them"}


@cache
def parsed(text):
    """The tree of a module, which every test here walks."""
    return ast.parse(text)


def defined(tree):
    """Names of the public classes, functions and types of a module; a TypeVar of one letter is no name."""
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            names = [node.name]
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [one.id for one in targets if isinstance(one, ast.Name) and one.id != one.id.upper()]
            names = [name for name in names if name[0].isupper()]
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def shared(sources):
    """Name -> the modules that define it, where these are several, of `sources` (path -> text)."""
    places = {}
    for path, text in sources.items():
        for name in defined(parsed(text)):
            places.setdefault(name, []).append(path)
    return {name: paths for name, paths in places.items() if len(paths) > 1}


def constants_apart(sources):
    """Name -> the modules whose constant of that name others import, where these are several."""
    imported = {name for path, text in sources.items() for name in imported_modules(path, text)}
    homes = {}
    for path, text in sources.items():
        module = path.removesuffix(".py").replace("/", ".")
        for node in parsed(text).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            for name in (one.id for one in targets if isinstance(one, ast.Name) and one.id.isupper()):
                if f"{module}.{name}" in imported:
                    homes.setdefault(name, []).append(module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def said_twice(sources):
    """Words -> the modules that list these very words, three or more, as a constant, a type or an argument."""
    places = {}
    for path, text in sources.items():
        for node in ast.walk(parsed(text)):
            listed = node.elts if isinstance(node, (ast.Tuple, ast.List, ast.Set)) else ()
            words = [one.value for one in listed if isinstance(one, ast.Constant) and isinstance(one.value, str)]
            if len(words) == len(listed) > 2:
                places.setdefault(frozenset(words), set()).add(path)
    return {" ".join(sorted(words)): sorted(paths) for words, paths in places.items() if len(paths) > 1}


def too_long(path, text):
    """Sentences on the functions of a module that are longer than a page."""
    for node in ast.walk(parsed(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name not in LONG:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > LONGEST:
                yield f"{path}: {node.name} has {lines} lines"


@pytest.fixture(scope="module")
def sources():
    paths = sorted(path for top in ("ltx2_train", "nodes") for path in (ROOT / top).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def test_one_name_means_one_thing(sources):
    found = shared(sources)
    assert {name: paths for name, paths in found.items() if name not in TWICE} == {}
    assert sorted(found) == sorted(TWICE), "a name that stands once again needs no reason"


def test_functions_can_be_read_aloud(sources):
    assert [one for path, text in sources.items() for one in too_long(path, text)] == []


def test_a_constant_that_others_import_has_one_home(sources):
    assert constants_apart(sources) == {}


def test_a_list_of_words_stands_once(sources):
    assert sorted(said_twice(sources)) == sorted(SAID_TWICE)


def test_planted_faults_are_caught():
    first = "class Part: ...\nT = TypeVar('T')\nSIZE = 1\ndef made(): ..."
    second = "def _made(): ...\nPart = tuple[int, int]\nT = TypeVar('T')\nSIZE = 2\nmade = 3"
    assert shared({"a.py": first, "b.py": second}) == {"Part": ["a.py", "b.py"]}
    assert shared({"a.py": first, "b.py": "async def made(): ..."}) == {"made": ["a.py", "b.py"]}
    used = {"a.py": "SIZE = 1", "b.py": "SIZE = 2", "c/d.py": "from ..a import SIZE", "c/e.py": "from ..f import SIZE"}
    assert constants_apart(used) == {}
    assert constants_apart({**used, "c/e.py": "from ..b import SIZE"}) == {"SIZE": ["a", "b"]}
    listed = {"a.py": "A: Literal['x', 'y', 'z']", "b.py": "B = ['z', 'y', 'x']", "c.py": "C = ('x', 'y')"}
    assert said_twice(listed) == {"x y z": ["a.py", "b.py"]}
    body = "def {}():\n" + "    pass\n" * LONGEST
    assert list(too_long("a.py", body.format("go"))) == [f"a.py: go has {LONGEST + 1} lines"]
    assert list(too_long("a.py", body.format("define_schema"))) == []
