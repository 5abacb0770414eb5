"""What is written and not entered into its table does nothing, and nobody is told: here it is."""

from __future__ import annotations

import ast
import importlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import BaseModel
from unit.training.step_parts import losses, make_batch

from ltx2_train.caching.kind import CacheKind
from ltx2_train.caching.kinds import CACHE_KINDS
from ltx2_train.conditions.given import Target, tokens_of
from ltx2_train.conditions.settings import AudioCondition, Condition, VideoCondition
from ltx2_train.config.groups import RunConfig, SampleSettings
from ltx2_train.dataset.entry import DatasetSettings
from ltx2_train.lora.adapter import Adapter
from ltx2_train.lora.kinds import LORA_KINDS
from ltx2_train.lora.settings import LoraSettings
from ltx2_train.models.kernels import KERNELS
from ltx2_train.objective.flow import LossSettings
from ltx2_train.objective.regularizers import RegularizerSettings
from ltx2_train.offload.settings import MemorySettings
from ltx2_train.quant.base import QuantLinear
from ltx2_train.quant.formats import CLASSES
from ltx2_train.sampling.prompts import OPTIONS, Prompt
from ltx2_train.training.regularizers.base import Regularizer
from ltx2_train.training.regularizers.table import REGULARIZERS
from ltx2_train.weights.load import load_transformer

ROOT = Path(__file__).resolve().parents[2]
OF_THE_RUN = {"identity_guidance", "guidance_of_sound"}  # what all samples of a run share: no option of a prompt


def below(kind: type) -> list[type]:
    return [one for child in kind.__subclasses__() for one in (child, *below(child))]


def classes_of(kind: type, package: str) -> set[type]:
    """The classes of this kind that `package` defines for use, not as the base of others."""
    for path in (ROOT / "ltx2_train" / package.replace(".", "/")).glob("*.py"):
        if path.stem != "__init__":
            importlib.import_module(f"ltx2_train.{package}.{path.stem}")
    return {one for one in below(kind) if one.__module__.startswith(f"ltx2_train.{package}.")}


def members(union: Any) -> set[type]:
    """The classes of a union that is told apart by tags."""
    (tagged, *_) = get_args(union)
    return {get_args(one)[0] for one in get_args(tagged)}


@pytest.mark.parametrize(
    ("kind", "package", "table"),
    [
        (CacheKind, "caching", set(CACHE_KINDS)),
        (Regularizer, "training.regularizers", set(REGULARIZERS.values())),
        (QuantLinear, "quant", set(CLASSES)),
        (Condition, "conditions", members(VideoCondition) | members(AudioCondition)),
        (Adapter, "lora", set(LORA_KINDS.values())),
    ],
    ids=["caches", "regularizers", "formats", "conditions", "loras"],
)
def test_each_class_is_in_the_table_of_its_kind(kind, package, table):
    written = {
        one
        for one in classes_of(kind, package)
        if (kind is not Condition or "type" in vars(one)["__annotations__"])
        and (kind is not Adapter or "algo" in vars(one))
        and (kind is not Regularizer or "name" in vars(one))
    }
    assert {one.__name__ for one in written} == {one.__name__ for one in table}


SHOWN = {
    "first_frame": {},
    "prefix": {"temporal_boundary": 1},
    "suffix": {"temporal_boundary": 1},
    "spatial_crop": {"spatial_region": [0, 0, 32, 32]},
    "mask": {},
    "reference": None,  # stands in front of the target and gives nothing of it
}


def test_each_condition_gives_its_tokens():
    """One that is accepted and gives nothing would be given and ignored."""
    target, mask = Target(2, 2, 2, 25.0), torch.tensor([True, False] * 4)
    for union in (VideoCondition, AudioCondition):
        for one in members(union):
            (kind,) = get_args(one.model_fields["type"].annotation)
            assert kind in SHOWN, f"{kind}: say here how it is made, and in conditions/given.py what it gives"
            if SHOWN[kind] is None:
                continue
            tokens = tokens_of(one.model_validate({"type": kind, **SHOWN[kind]}), target, mask)
            assert 0 < int(tokens.sum()) < len(tokens), f"{kind} gives nothing, or all: see conditions/given.py"


def settings_of(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path, name) of every setting in `kind` and the groups below it."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name, name


@pytest.mark.parametrize("kind", [RunConfig, DatasetSettings])
def test_each_setting_is_read(kind):
    """As an attribute, or by its name in a text. The flag that the community trainer has for it does not count, nor
    what another setting counts with."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "ltx2_train").rglob("*.py")]
    code = re.sub(r'"community": "\w+"|"counts_with": (\[[^\]]*\]|"[^"]*")', "", "".join(texts))
    read = set(re.findall(r"(?:\.|\"|')([a-z]\w*)", code))
    assert [path for path, name in settings_of(kind) if name not in read] == []


def test_each_regularizer_has_settings_of_its_name():
    assert set(REGULARIZERS) == set(RegularizerSettings.model_fields)
    for name, settings in RegularizerSettings():
        assert settings.weight == 0, name


def test_each_attention_kernel_can_be_asked_for():
    assert set(get_args(MemorySettings.model_fields["attention"].annotation)) == {"sdpa", *KERNELS}


def test_each_number_of_a_prompt_has_an_option():
    of_prompt = {one.name for one in fields(Prompt)} & set(SampleSettings.model_fields)
    assert of_prompt - OF_THE_RUN <= {option.setting for option in OPTIONS}


def test_each_node_is_listed():
    listed = (ROOT / "nodes" / "__init__.py").read_text(encoding="utf-8")
    tables = {node.id for node in ast.walk(ast.parse(listed)) if isinstance(node, ast.Name)}
    for path in (ROOT / "nodes").glob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            methods = {one.name for one in getattr(node, "body", []) if isinstance(one, ast.FunctionDef)}
            if isinstance(node, ast.ClassDef) and "define_schema" in methods:
                assert node.name in tables, f"{path.name}: {node.name} is not in NODES of nodes/__init__.py"


WEIGHT = "_weight"


def test_each_weight_of_the_loss_has_its_term(tiny):
    """A term and its weight bear one name: loss.video_weight is the factor on the term "video"."""
    named = {name.removesuffix(WEIGHT) for name in LossSettings.model_fields if name.endswith(WEIGHT)}
    model = load_transformer(tiny.checkpoint, "av", torch.float32)
    terms = losses({"av": model}, make_batch([6]), loss={f"{name}{WEIGHT}": 1.0 for name in named}).terms
    assert set(terms) == named, "the entries of `terms` in training/step.py are not the weights of LossSettings"


def unused(sources: Mapping[str, str]) -> list[str]:
    """ "path: name" of each function and class at the top of a module that no other line of `sources` speaks of."""
    words = Counter(word for text in sources.values() for word in re.findall(r"\w+", text))
    defined = re.compile(r"^(?:def|class) (?!__)(\w+)", re.M)
    return [f"{path}: {name}" for path, text in sources.items() for name in defined.findall(text) if words[name] < 2]


def test_what_is_written_is_used():
    """A loss that no step reads, a cache that nobody opens: forgotten where it should have been entered."""
    paths = [path for top in ("ltx2_train", "nodes") for path in (ROOT / top).rglob("*.py")]
    sources = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    assert unused(sources) == [], "see the table of ARCHITECTURE.md for the line that was forgotten"


def test_a_loss_term_without_its_entry_is_named():
    """As sharpness would be, written into the objective and not entered into the terms of the step."""
    sources = {
        "ltx2_train/objective/sharpness.py": "def sharpness(prediction):\n    return _of(prediction)\n",
        "ltx2_train/training/step.py": "def step():\n    terms = {}\n\nstep()\n",
    }
    assert unused(sources) == ["ltx2_train/objective/sharpness.py: sharpness"]
    sources["ltx2_train/training/step.py"] += "terms['sharpness'] = Term(sharpness(out))\n"
    assert unused(sources) == []


def test_each_kind_of_lora_can_be_asked_for():
    assert set(get_args(LoraSettings.model_fields["algo"].annotation)) == set(LORA_KINDS)
