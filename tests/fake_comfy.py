"""A small ComfyUI for tests: the part of its API that nodes/host uses, and nothing more.

`install` puts the modules into sys.modules for one test, `load_pack` imports the folder as ComfyUI does: under a name
made from its path. What the pack sent and asked is kept on the `FakeComfy` that `install` returns.
"""

from __future__ import annotations

import enum
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent


class InterruptProcessingException(BaseException):
    """As in ComfyUI: not an Exception, so that nodes do not swallow it."""


@dataclass
class FakeComfy:
    """The state of the pretended host."""

    base: Path
    interrupted: bool = False
    polls_that_consume: int = 0
    sent: list[tuple[str, Any, Any]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    progress: list[tuple[str, float, float, Any]] = field(default_factory=list)
    client_id: str | None = "tab"
    routes: dict[str, Callable[..., Any]] = field(default_factory=dict)
    more_folders: dict[str, list[Path]] = field(default_factory=dict)  # as extra_model_paths.yaml adds them
    card_bytes: int = 16 * 2**30
    loaded: list[Any] = field(default_factory=list)
    emptied: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def folder(self, *parts: str) -> Path:
        path = self.base.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    def events(self, name: str) -> list[Any]:
        return [data for event, data, _ in self.sent if event == name]


# --------------------------------------------------------------------------------------------------- comfy_api.latest


class _Input:
    io_type = ""

    def __init__(self, id: str, display_name: str | None = None, optional: bool = False, **options: Any) -> None:
        self.id, self.display_name, self.optional = id, display_name, optional
        self.options = _Choices(options) if self.io_type == "COMFY_DYNAMICCOMBO_V3" else options

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["options"][name]
        except KeyError:
            raise AttributeError(name) from None


class _Option:
    """One choice of a dynamic combo, with the inputs that come with it."""

    def __init__(self, key: str, inputs: list[_Input]) -> None:
        self.key, self.inputs = key, inputs


class _Choices(dict):
    """The options of a dynamic combo, which goes over its choices as ComfyUI's list of them does."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self["options"])


class _Output:
    def __init__(
        self,
        id: str | None = None,
        display_name: str | None = None,
        tooltip: str | None = None,
        is_output_list: bool = False,
    ) -> None:
        self.id, self.display_name, self.tooltip, self.is_output_list = id, display_name, tooltip, is_output_list


def _kind(io_type: str) -> Any:
    return type(
        io_type,
        (),
        {
            "io_type": io_type,
            "Input": type("Input", (_Input,), {"io_type": io_type}),
            "Output": type("Output", (_Output,), {"io_type": io_type}),
        },
    )


@dataclass
class Schema:
    node_id: str
    display_name: str = ""
    category: str = ""
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    inputs: list[_Input] = field(default_factory=list)
    outputs: list[_Output] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)
    is_output_node: bool = False
    not_idempotent: bool = False
    is_input_list: bool = False


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None) -> None:
        self.args, self.ui = args, ui


class ComfyNode:
    hidden = types.SimpleNamespace(unique_id="7", prompt=None)

    @classmethod
    def GET_SCHEMA(cls) -> Schema:
        return cls.define_schema()  # type: ignore[attr-defined]


class ControlAfterGenerate(str, enum.Enum):
    fixed = "fixed"
    randomize = "randomize"


class Hidden(str, enum.Enum):
    unique_id = "UNIQUE_ID"
    prompt = "PROMPT"


def _io() -> types.SimpleNamespace:
    dynamic = _kind("COMFY_DYNAMICCOMBO_V3")
    dynamic.Option = _Option
    names = {"Int": "INT", "Float": "FLOAT", "String": "STRING", "Boolean": "BOOLEAN", "Combo": "COMBO"}
    names |= {"Video": "VIDEO", "Audio": "AUDIO", "LoraModel": "LORA_MODEL", "Image": "IMAGE", "Mask": "MASK"}
    return types.SimpleNamespace(
        **{name: _kind(io_type) for name, io_type in names.items()},
        DynamicCombo=dynamic,
        Custom=_kind,
        Schema=Schema,
        NodeOutput=NodeOutput,
        ComfyNode=ComfyNode,
        ControlAfterGenerate=ControlAfterGenerate,
        Hidden=Hidden,
    )


class ExecutionBlocker:
    def __init__(self, message: str) -> None:
        self.message = message


class VideoFromFile:
    """A VIDEO that is a file, or a part of one, with the names that ComfyUI gives what it keeps."""

    def __init__(self, file: Any, *, start_time: float = 0, duration: float = 0) -> None:
        self.file, self.__start_time, self.__duration = file, start_time, duration

    def get_stream_source(self) -> Any:
        if not isinstance(self.file, str):
            self.file.seek(0)
        return self.file

    def get_container_format(self) -> str:
        import av

        with av.open(self.get_stream_source()) as container:
            return container.format.name


# ---------------------------------------------------------------------------------------------------- the other modules


class LoadedModel:
    def __init__(self, model: Any) -> None:
        self.model, self.device, self.model_finalizer = model, model.load_device, None


class ModelPatcher:
    def __init__(self, model: Any, load_device: Any, offload_device: Any, size: int = 0) -> None:
        self.model, self.load_device, self.offload_device, self.size = model, load_device, offload_device, size


def install_api(monkeypatch: Any) -> None:
    """Put the node API alone into sys.modules until the test ends."""
    _module(monkeypatch, "comfy_api")
    _module(
        monkeypatch,
        "comfy_api.latest",
        io=_io(),
        ui=types.SimpleNamespace(),
        ComfyExtension=object,
        InputImpl=types.SimpleNamespace(VideoFromFile=VideoFromFile),
    )


def install(monkeypatch: Any, base: Path) -> FakeComfy:
    """Put the pretended ComfyUI into sys.modules until the test ends."""
    fake = FakeComfy(base)

    def module(name: str, **content: Any) -> types.ModuleType:
        return _module(monkeypatch, name, **content)

    install_api(monkeypatch)
    module("folder_paths", **_folder_paths(fake))
    module("comfy").__path__ = []  # type: ignore[attr-defined]
    sys.modules["comfy"].model_management = module("comfy.model_management", **_management(fake))  # type: ignore
    module("comfy.model_patcher", ModelPatcher=ModelPatcher)
    module("comfy_execution").__path__ = []  # type: ignore[attr-defined]
    registry = types.SimpleNamespace(
        update_progress=lambda node, value, total, image=None: fake.progress.append((node, value, total, image))
    )
    module("comfy_execution.progress", get_progress_state=lambda: registry)
    module("comfy_execution.graph_utils", ExecutionBlocker=ExecutionBlocker)
    module("server", PromptServer=types.SimpleNamespace(instance=_Server(fake)))
    return fake


def _module(monkeypatch: Any, name: str, **content: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    made.__dict__.update(content)
    monkeypatch.setitem(sys.modules, name, made)
    return made


def load_pack(name: str = "custom_nodes_x_ltx2_trainer") -> types.ModuleType:
    """Import the folder under a made-up name, as ComfyUI does; the name keeps it apart from `ltx2_train` in tests."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None
    assert spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    sys.modules[name] = pack
    spec.loader.exec_module(pack)
    return pack


def unload_pack(name: str = "custom_nodes_x_ltx2_trainer") -> None:
    for loaded in [key for key in sys.modules if key == name or key.startswith(name + ".")]:
        del sys.modules[loaded]


class _Server:
    def __init__(self, fake: FakeComfy) -> None:
        self._fake = fake
        self.routes = types.SimpleNamespace(get=self._route, post=self._route)
        self.add_on_prompt_handler = lambda handler: None

    @property
    def client_id(self) -> str | None:
        return self._fake.client_id

    def send_sync(self, event: str, data: Any, sid: str | None = None) -> None:
        import json

        json.dumps(data, allow_nan=False)  # the real server ends where this fails
        self._fake.sent.append((event, data, sid))

    def send_progress_text(self, text: str, node_id: str, sid: str | None = None) -> None:
        self._fake.texts.append((node_id, text))

    def _route(self, path: str) -> Callable[[Any], Any]:
        def keep(handler: Any) -> Any:
            self._fake.routes[path] = handler
            return handler

        return keep


def _folder_paths(fake: FakeComfy) -> dict[str, Any]:
    def files(kind: str) -> Iterator[str]:
        for path in sorted(fake.folder("models", kind).rglob("*.safetensors")):
            yield path.relative_to(fake.folder("models", kind)).as_posix()

    def full(kind: str, name: str) -> str | None:
        path = fake.folder("models", kind) / name
        return str(path) if path.is_file() else None

    return {
        "models_dir": str(fake.folder("models")),
        "get_input_directory": lambda: str(fake.folder("input")),
        "get_output_directory": lambda: str(fake.folder("output")),
        "get_folder_paths": lambda kind: [str(fake.folder("models", kind)), *map(str, fake.more_folders.get(kind, ()))],
        "get_filename_list": lambda kind: list(files(kind)),
        "get_full_path": full,
    }


def _management(fake: FakeComfy) -> dict[str, Any]:
    def free(device: Any) -> int:
        return fake.card_bytes - sum(entry.model.loaded_size() for entry in fake.loaded if entry.device == device)

    def free_memory(needed: float, device: Any, keep_loaded: Any = ()) -> list[Any]:
        gone = []
        for entry in list(fake.loaded):
            if entry in keep_loaded or entry.device != device or free(device) >= needed:
                continue
            if entry.model.partially_unload(entry.model.offload_device, needed - free(device)) == 0:
                entry.model.detach()
            fake.loaded.remove(entry)
            gone.append(entry)
        return gone

    def load_models_gpu(models: list[Any], memory_required: int = 0, force_full_load: bool = False) -> None:
        for model in models:
            entry = next((entry for entry in fake.loaded if entry.model is model), None)
            if entry is not None:
                fake.loaded.remove(entry)
            entry = entry or LoadedModel(model)
            free_memory(model.model_size() - model.loaded_size(), entry.device)
            model.partially_load(entry.device, 0)
            fake.loaded.insert(0, entry)

    def throw() -> None:
        if fake.interrupted:
            fake.interrupted = False
            fake.polls_that_consume += 1
            raise InterruptProcessingException

    def empty() -> None:
        fake.emptied += 1

    return {
        "InterruptProcessingException": InterruptProcessingException,
        "processing_interrupted": lambda: fake.interrupted,
        "throw_exception_if_processing_interrupted": throw,
        "current_loaded_models": fake.loaded,
        "free_memory": free_memory,
        "load_models_gpu": load_models_gpu,
        "minimum_inference_memory": lambda: 2**30,
        "get_torch_device": lambda: fake.device,
        "soft_empty_cache": empty,
    }
