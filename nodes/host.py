"""The seam to ComfyUI, and the only module that imports it.

Nodes get from here what they need of the host: the node API, folders, leaving inference mode, errors as ComfyUI shows
them, and `ComfyEvents`, through which the core reports progress, learns of an interrupt, and shares the memory of the
device with ComfyUI's own models. Everything but the node API is imported when it is used.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import ComfyExtension, InputImpl, io

from ..ltx2_train.errors import ConfigError, Stopped, TrainerError
from ..ltx2_train.events import Events
from .live import LiveView, json_safe

__all__ = ["ComfyEvents", "ComfyExtension", "InputImpl", "io", "training_job"]

logger = logging.getLogger("ltx2_trainer")

EVENT_SECONDS = 0.5
PICTURE_SECONDS = 4.0

_views: dict[str, LiveView] = {}
_pages: set[str] = set()
_lock = threading.Lock()


# ---------------------------------------------------------------------------------------------------------- folders


def checkpoint_names() -> list[str]:
    """Names of the files in ComfyUI's checkpoints and diffusion_models folders."""
    return _names("checkpoints", "diffusion_models")


def checkpoint_path(name: str) -> Path:
    """The file behind a name of `checkpoint_names`. Raises TrainerError where it is gone."""
    return _found(name, "checkpoints", "diffusion_models")


def text_encoder_names() -> list[str]:
    """Files of ComfyUI's text_encoders folder, and its sub-folders that hold a Hugging Face model."""
    import folder_paths

    names = _names("text_encoders")
    for root in folder_paths.get_folder_paths("text_encoders"):
        for config in sorted(Path(root).glob("*/config.json")):
            if (name := config.parent.name) not in names:
                names.append(name)
    return names


def text_encoder_path(name: str) -> Path:
    """The file or folder behind a name of `text_encoder_names`. Raises TrainerError where it is gone."""
    import folder_paths

    for root in folder_paths.get_folder_paths("text_encoders") if stays_inside(name) else ():
        if (Path(root) / name / "config.json").is_file():
            return Path(root) / name
    return _found(name, "text_encoders")


def input_folders() -> list[str]:
    """Sub-folders of ComfyUI's input folder, two levels deep, with / between."""
    import folder_paths

    root = Path(folder_paths.get_input_directory())
    if not root.is_dir():
        return []
    found = [path for path in (*root.glob("*"), *root.glob("*/*")) if path.is_dir()]
    names = [path.relative_to(root).as_posix() for path in found]
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def input_folder(name: str, widget: str = "folder") -> Path:
    """The folder behind a name of `input_folders`. Raises TrainerError where the name leads out of the input folder.

    A link that lies in the input folder is followed: people keep large datasets on another disk.
    """
    import folder_paths

    if not stays_inside(name):
        raise TrainerError(f"{widget}: {name!r} leads out of ComfyUI's input folder. Choose a folder inside it.")
    return Path(folder_paths.get_input_directory()) / name


def stays_inside(name: str) -> bool:
    """Whether a name that came over the API names something below a folder, and not beside or above it."""
    parts = name.replace("\\", "/").split("/")
    return ".." not in parts and not name.startswith(("/", "\\", "~")) and ":" not in name


def place_inside(root: Path, name: str) -> Path:
    """`root`/`name`, to be written to. Raises ConfigError where that lies elsewhere: by dots, or through a link."""
    path = root / name
    if not stays_inside(name) or not path.resolve().is_relative_to(root.resolve()):
        raise ConfigError(f"name: {name!r} leads out of {root}, in which it is made. Use letters, digits, - and _.")
    return path


def model_folders() -> dict[str, Path]:
    """Folders in Hugging Face form in ComfyUI's models folder and its text_encoders and LLM folders, as LLM/name."""
    import folder_paths

    roots = [Path(folder_paths.models_dir), *Path(folder_paths.models_dir).glob("*/")]
    for kind in ("text_encoders", "LLM"):  # where extra_model_paths.yaml puts them
        with contextlib.suppress(KeyError):  # a kind that nobody registered
            roots += [Path(root) for root in folder_paths.get_folder_paths(kind)]
    found: dict[str, Path] = {}
    for config in (config for root in roots for config in sorted(root.glob("*/config.json"))):
        name = config.parent.name
        if config.parent.parent != roots[0]:
            name = f"{config.parent.parent.name}/{name}"
        found.setdefault(name, config.parent)
    return dict(sorted(found.items()))


def runs_folder() -> Path:
    """Where the runs live: ltx2_runs in ComfyUI's output folder."""
    return output_folder() / "ltx2_runs"


def output_folder() -> Path:
    import folder_paths

    return Path(folder_paths.get_output_directory())


def loras_folder() -> Path:
    """A folder whose LoRA files ComfyUI lists: the first of its loras folders that can be written.

    `loras` in the output folder comes last; ComfyUI registers that one when it starts.
    """
    import folder_paths

    for root in folder_paths.get_folder_paths("loras"):
        path = Path(root)
        if path.is_dir() and os.access(path, os.W_OK):
            return path
    return output_folder() / "loras"


def view_address(path: Path) -> dict[str, str] | None:
    """How the page can fetch a file of the output folder: filename, subfolder, type; None for files elsewhere."""
    try:
        relative = path.resolve().relative_to(output_folder().resolve())
    except ValueError:
        return None
    folder = relative.parent.as_posix()
    return {"filename": relative.name, "subfolder": "" if folder == "." else folder, "type": "output"}


def read_lora(path: Path) -> dict[str, Any]:
    """A LoRA file as the nodes of ComfyUI pass it on: a table of CPU tensors."""
    from safetensors.torch import load_file

    # copies, since a tensor that is read in place keeps the file open, and Windows would refuse to write it again
    return {name: tensor.clone() for name, tensor in load_file(str(path)).items()}


def preview(path: Path, picture: Path | None = None) -> dict[str, Any]:
    """What a node returns so that the page shows a file of the output folder in it.

    `picture` is shown for a sound, which the page plays in nodes of its own only.
    """
    address = view_address(path)
    if address is None:
        return {}
    if path.suffix.lower() in (".wav", ".flac"):
        seen = None if picture is None else view_address(picture)
        return {"audio": [address], **({} if seen is None else {"images": [seen], "animated": (False,)})}
    return {"images": [address], "animated": (path.suffix.lower() != ".png",)}


def preview_all(pictures: Sequence[Path]) -> dict[str, Any]:
    """What a node returns so that the page shows several pictures of the output folder in it."""
    seen = [address for path in pictures if (address := view_address(path)) is not None]
    return {"images": seen, "animated": (False,)} if seen else {}


def nothing(why: str) -> Any:
    """For an output that has nothing to give: a node that is connected to it is left out, with this sentence."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(why)


def _names(*kinds: str) -> list[str]:
    import folder_paths

    names: list[str] = []
    for kind in kinds:
        names += [name for name in folder_paths.get_filename_list(kind) if name not in names]
    return names


def _found(name: str, *kinds: str) -> Path:
    import folder_paths

    for kind in kinds:
        path = folder_paths.get_full_path(kind, name)
        if path is not None:
            return Path(path)
    raise TrainerError(
        f"{name} is not in ComfyUI's {' or '.join(kinds)} folder any more. Put it back, or press R and choose another."
    )


# ------------------------------------------------------------------------------------------------------------- jobs


@contextlib.contextmanager
def training_job() -> Iterator[None]:
    """Run the core as ComfyUI needs it: with gradients, and with errors that say what to do instead of where.

    ComfyUI runs nodes in inference mode, whose tensors cannot be trained on, so that is left before anything is made.
    A requested stop ends the prompt as an interrupt, after the core has saved.
    """
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        try:
            yield
        except Stopped as stop:
            logger.info("%s", stop)
            raise _interrupted() from None
        except TrainerError as error:
            raise RuntimeError(str(error)) from None


def _interrupted() -> BaseException:
    """Take the interrupt off ComfyUI's flag and return the exception that reports it."""
    import comfy.model_management as management

    try:
        management.throw_exception_if_processing_interrupted()
    except management.InterruptProcessingException as interrupt:
        return interrupt
    return management.InterruptProcessingException()


class ComfyEvents(Events):
    """Shows on one node what the core does, and tells the core what ComfyUI wants.

    `widget` says that the page draws a live view in this node; a client that has not opened our page gets pictures
    and text instead. At most two messages a second are sent.
    """

    def __init__(self, node: str | None, title: str = "", widget: bool = False, clock: Any = time.monotonic) -> None:
        self.view = LiveView(str(node or ""), title, clock)
        self._widget = widget
        self._clock = clock
        self._sent = self._pictured = -math.inf
        self._handles: dict[int, Any] = {}
        if node is not None:
            with _lock:
                _views[self.view.node] = self.view

    # What the core tells.

    def stage(self, name: str, total: int | None = None) -> None:
        logger.info("%s%s", name, f" ({total})" if total else "")
        self.view.begin(name, total)
        self._show(now=True)

    def progress(self, done: int, total: int, text: str = "") -> None:
        self.view.progress(done, total, text)
        self._show(now=done >= total)

    def step(self, metrics: dict[str, Any]) -> None:
        self.view.step(metrics)
        self._show()

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        self.view.sample_file = path
        self.view.sample = {**info, "file": view_address(path)}
        logger.info("sample: %s", path)
        self._pictured = -math.inf
        if self._widget:
            about = {"node": self.view.node, "title": self.view.title, "sample": self.view.sample}
            self._send("ltx2_train.sample", about)
        self._show(now=True)

    def saved(self, kind: str, path: Path) -> None:
        logger.info("saved %s: %s", kind, path)

    def message(self, text: str, level: str = "info") -> None:
        logger.log(logging.WARNING if level == "warning" else logging.INFO, "%s", text)
        self.view.say(text, level == "warning")
        self._show(now=level == "warning")

    def finish(self, state: str, text: str) -> None:
        """The last word: `state` is finished, stopped or failed."""
        self.view.state, self.view.message = state, text
        self.view.sample_file = None
        self._show(now=True, last=text)

    def shown(self) -> dict[str, Any]:
        """The view as it stands, for what a node leaves on the page."""
        return json_safe(self.view.payload())

    # What the core asks.

    def should_stop(self) -> bool:
        import comfy.model_management as management

        # The flag is only looked at: consuming it is left to training_job, once everything is saved.
        return bool(management.processing_interrupted())

    def make_room(self, needed: int, device: Any) -> None:
        import comfy.model_management as management

        device = _device(device)
        if device.type == "cpu":
            return
        ours = [entry for entry in management.current_loaded_models if entry.model in self._handles.values()]
        management.free_memory(needed + management.minimum_inference_memory(), device, keep_loaded=ours)
        management.soft_empty_cache()

    def holding(self, owner: Any, needed: int, device: Any) -> None:
        import comfy.model_management as management

        device = _device(device)
        handle = self._handles.get(id(owner))
        if needed <= 0 or device.type == "cpu":
            if handle is not None:
                del self._handles[id(owner)]
                _forget(handle)
            return
        if handle is None:
            handle = self._handles[id(owner)] = _handle(owner, needed, device)
        handle.hold(needed, device)
        management.load_models_gpu([handle], force_full_load=True)

    def close(self) -> None:
        """Take what is still registered off ComfyUI's list and give the memory back."""
        for handle in list(self._handles.values()):
            _forget(handle)
        if self._handles:
            import comfy.model_management as management

            self._handles.clear()
            management.soft_empty_cache()

    # Sending.

    def _show(self, now: bool = False, last: str = "") -> None:
        moment = self._clock()
        if not self.view.node or (not now and moment - self._sent < EVENT_SECONDS):
            return
        self._sent = moment
        self.view.memory = device_memory()
        page = self._widget and _page_is_open()
        picture = None
        if not page and self._widget and moment - self._pictured >= PICTURE_SECONDS:
            self._pictured = moment
            picture = self.view.picture()
        _progress(self.view.node, self.view.done, self.view.total, picture)
        if not page:
            _text(self.view.node, last or self.view.status_line())
        if self._widget:
            self._send("ltx2_train.step", self.view.payload())

    def _send(self, event: str, data: Mapping[str, Any]) -> None:
        if self.view.node and (server := _server()) is not None:
            server.send_sync(event, json_safe(data), None)  # to every page: a reloaded one has another id


def device_memory() -> dict[str, int]:
    """Bytes in use and in all on the device ComfyUI works with; empty on the CPU."""
    import comfy.model_management as management

    device = management.get_torch_device()
    if getattr(device, "type", "cpu") != "cuda":
        return {}
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return {"used": total - free, "total": total}


# ------------------------------------------------------------------------------------------------------- the server


def add_routes() -> None:
    """Serve the live views, so that a page opened in the middle of a run shows it at once."""
    server = _server()
    if server is None:
        return
    from aiohttp import web

    @server.routes.get("/ltx2_train/live")
    async def live(request: web.Request) -> web.Response:
        if client := request.query.get("client"):
            _pages.add(client)
        with _lock:
            views = list(_views.values())
        return web.json_response({view.node: json_safe(view.payload()) for view in views})


def _server() -> Any:
    try:
        from server import PromptServer
    except ImportError:
        return None
    return getattr(PromptServer, "instance", None)


def _page_is_open() -> bool:
    server = _server()
    return server is not None and getattr(server, "client_id", None) in _pages


def _progress(node: str, done: int, total: int | None, picture: Any) -> None:
    # Not comfy.utils.ProgressBar: it raises on an interrupt and clears the flag, before the core could save.
    from comfy_execution.progress import get_progress_state

    image = None if picture is None else ("JPEG", picture, None)
    get_progress_state().update_progress(node, float(done), float(total or 1), image)


def _text(node: str, text: str) -> None:
    if (server := _server()) is not None:
        server.send_progress_text(_harmless(text), node)


def _harmless(text: str) -> str:
    """`text` as the page can show it, which takes it for HTML: a caption or the name of a file must not be run.

    Nodes 2.0 takes it for Markdown, where a line ends after two spaces only.
    """
    return text.replace("<", "\u2039").replace(">", "\u203a").replace("[[", "[ [").replace("\n", "  \n")


# ------------------------------------------------------------------------------------------------------ the memory


def _device(device: Any) -> Any:
    import torch

    device = torch.device(device)
    if device.type == "cuda" and device.index is None:  # ComfyUI compares devices with their index
        device = torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_available() else 0)
    return device


def _handle(owner: Any, needed: int, device: Any) -> Any:
    """`owner` as a model of ComfyUI's: its bytes are counted, and ComfyUI can ask for them back."""
    import torch
    from comfy.model_patcher import ModelPatcher

    class Holder(torch.nn.Module):
        """Stands for the trainer on ComfyUI's list, which writes attributes on the module it manages."""

        def __init__(self) -> None:
            super().__init__()
            self.device = device

    class Handle(ModelPatcher):
        held = 0

        def hold(self, size: int, where: Any) -> None:
            self.held = self.size = size
            self.load_device = where
            self.model.device = where

        def model_size(self) -> int:
            return self.size

        def loaded_size(self) -> int:
            return self.held

        def model_mmap_residency(self, free: bool = False) -> tuple[int, int]:
            return 0, 0

        def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> int:
            if self.held == 0:
                owner.to(device_to)
                self.held, self.model.device = self.size, device_to
                return self.size
            return 0

        def partially_unload(self, device_to: Any, memory_to_free: float = 0, force_patch_weights: bool = False) -> int:
            return 0  # all or nothing: ComfyUI calls detach next

        def detach(self, unpatch_all: bool = True) -> Any:
            if unpatch_all and self.held:  # without it, the model is only taken off the list to be put back in front
                owner.to(self.offload_device)
                self.held, self.model.device = 0, self.offload_device
            return self.model

        def __del__(self) -> None:
            pass  # the base class would move weights here; the trainer frees its own

    return Handle(Holder(), device, torch.device("cpu"), size=needed)


def _forget(handle: Any) -> None:
    import comfy.model_management as management

    models = management.current_loaded_models
    for index in range(len(models) - 1, -1, -1):
        if models[index].model is handle:
            entry = models.pop(index)
            if entry.model_finalizer is not None:
                entry.model_finalizer.detach()
