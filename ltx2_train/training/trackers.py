"""Logs of a run beside its folder: what is told of steps, samples and LoRAs goes to TensorBoard, W&B and the hub.

A tracker sees what the host of the run sees, the rows of metrics.jsonl among it. One that fails is left out from then
on, with a message; the run goes on. Libraries and keys are looked for before anything big is loaded.
"""

from __future__ import annotations

import contextlib
import netrc
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from ..config import RunConfig
from ..errors import ConfigError
from ..events import Events, Passing, shielded
from ..files import digest
from ..lora.metadata import shortened, without_paths
from ..optional import why_missing

LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "hub": "huggingface_hub"}
PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "hub": "huggingface_hub"}
LAST_UPLOADS = 600.0  # seconds that the end of a run waits for
_SOUND, _PICTURES = {".wav", ".flac"}, {".png"}


class Tracker:
    """Receives what a run tells. All methods may raise; nothing of them ends the run."""

    def step(self, row: Mapping[str, Any]) -> None:
        """A step is done; `row` as in metrics.jsonl, with `total` and `eta`."""

    def sample(self, path: Path, info: Mapping[str, Any]) -> None:
        """A sample was written."""

    def lora(self, path: Path) -> None:
        """A LoRA was written, under a name with its step."""

    def close(self) -> None:
        """The run is over, for now."""


class TensorBoard(Tracker):
    """Numbers as curves. A run that goes on hides the steps that it takes again."""

    def __init__(self, config: RunConfig, folder: Path, events: Events) -> None:
        from torch.utils.tensorboard import SummaryWriter

        at = folder / "tensorboard"
        self._open: Callable[..., Any] = SummaryWriter
        self._at, self._writer = str(at), None
        events.message(f"Numbers go to TensorBoard too: tensorboard --logdir {at}")

    def step(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            self._writer = self._open(self._at, purge_step=row["step"])
        for name, value in numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class WandB(Tracker):
    """Numbers, settings and samples; on this machine alone where there is no key."""

    def __init__(self, config: RunConfig, folder: Path, events: Events) -> None:
        import wandb

        self._wandb: Any = wandb
        self._media = config.wandb.log_validation_videos
        self._step = 0
        offline = "WANDB_MODE" not in os.environ and not wandb_key()
        self._run: Any = wandb.init(
            project=config.wandb.project,
            entity=config.wandb.entity or None,
            name=config.wandb.run_name or folder.name,
            tags=config.wandb.tags or None,
            id=digest(str(folder.resolve()))[:16],  # the same run when it goes on
            resume="allow",
            dir=str(folder),
            mode="offline" if offline else None,
            config=shortened(without_paths(config)),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
        self._run.define_metric("*", step_metric="step")
        if offline:
            events.message(
                f"Weights & Biases: there is no key (WANDB_API_KEY, or `wandb login`), so its log stays in "
                f"{folder / 'wandb'}; `wandb sync` uploads it.",
                "warning",
            )

    def step(self, row: Mapping[str, Any]) -> None:
        self._step = row["step"]
        self._run.log({**numbers(row), "step": row["step"]})

    def sample(self, path: Path, info: Mapping[str, Any]) -> None:
        if not self._media:
            return
        caption = str(info.get("prompt") or path.stem)
        end = path.suffix.lower()
        if end in _SOUND:
            media = self._wandb.Audio(str(path), caption=caption)
        elif end in _PICTURES:
            media = self._wandb.Image(str(path), caption=caption)
        else:
            media = self._wandb.Video(str(path), caption=caption, format=end.lstrip("."))
        name = path.stem.partition("_p")[2] or path.stem
        self._run.log({f"samples/{name}": media, "step": int(info.get("step") or self._step)})

    def close(self) -> None:
        self._run.finish()


class Hub(Tracker):
    """Uploads every LoRA in a thread of its own, one after another."""

    def __init__(self, config: RunConfig, folder: Path, events: Events) -> None:
        from huggingface_hub import HfApi

        self._api: Any = HfApi()
        self._settings, self._made = config.hub, ""
        self._events = events
        self._thread = ThreadPoolExecutor(1, "hub")
        self._waiting: list[tuple[str, Future[None]]] = []
        events.message(f"Every saved LoRA goes to the Hugging Face hub too: {config.hub.repo}")

    def step(self, row: Mapping[str, Any]) -> None:
        self._tell(done_alone=True)

    def lora(self, path: Path) -> None:
        self._waiting.append((path.name, self._thread.submit(self._upload, path)))

    def close(self) -> None:
        with contextlib.suppress(TimeoutError):
            for _, upload in self._waiting:
                with contextlib.suppress(Exception):
                    upload.result(LAST_UPLOADS)
        self._tell(done_alone=False)
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _upload(self, path: Path) -> None:
        if not self._made:
            made = self._api.create_repo(self._settings.repo, private=self._settings.private, exist_ok=True)
            self._made = made.repo_id
        folder = self._settings.path.strip("/")
        self._api.upload_file(
            path_or_fileobj=str(path),
            path_in_repo=f"{folder}/{path.name}" if folder else path.name,
            repo_id=self._made,
            commit_message=path.stem,
        )

    def _tell(self, done_alone: bool) -> None:
        for name, upload in list(self._waiting):
            if upload.done():
                error = upload.exception()
            elif done_alone:
                continue
            else:
                error = TimeoutError(f"it took longer than {LAST_UPLOADS:.0f} s")
            self._waiting.remove((name, upload))
            if error is not None:
                text = f"{name} was not uploaded to the Hugging Face hub, and stays here: {first_line(error)}"
                self._events.message(text, "warning")


TRACKERS: dict[str, Callable[[RunConfig, Path, Events], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "hub": Hub,
}


def wanted(config: RunConfig) -> tuple[str, ...]:
    """The names of the trackers that the settings ask for."""
    return (*config.log.wanted, *(("hub",) if config.hub.push else ()))


def check_trackers(config: RunConfig) -> None:
    """Raise ConfigError where a library, a repository or a token is missing."""
    for name in wanted(config):
        if why := why_missing(LIBRARIES[name]):
            setting = "hub.push" if name == "hub" else f"log.report_to = {config.log.report_to}"
            raise ConfigError(f"{setting} needs {PACKAGES[name]}, which {why}. Run: pip install {PACKAGES[name]}")
    if not config.hub.push:
        return
    if not config.hub.repo:
        raise ConfigError('hub.push is on and hub.repo is empty. Set it to the repository, "owner/name".')
    from huggingface_hub import get_token

    if not get_token():
        raise ConfigError(
            "hub.push is on, and there is no token of the Hugging Face hub. Run `hf auth login`, or set the variable "
            "HF_TOKEN to a token that may write."
        )


@contextlib.contextmanager
def tracked(config: RunConfig, folder: Path, events: Events) -> Iterator[Events]:
    """Events that tell the trackers of `config` too, while entered; `folder` is that of the run."""
    trackers: dict[str, Tracker] = {}
    for name in wanted(config):
        try:
            trackers[name] = TRACKERS[name](config, folder, events)
        except Exception as error:
            say_given_up(name, error, events)
    if not trackers:
        yield events
        return
    telling = shielded(_Tracked(events, trackers))
    try:
        yield telling
    finally:
        for name, tracker in trackers.items():
            try:
                tracker.close()
            except Exception as error:
                say_given_up(name, error, events)


class _Tracked(Passing):
    def __init__(self, host: Events, trackers: dict[str, Tracker]) -> None:
        super().__init__(host)
        self._trackers = trackers

    def step(self, metrics: dict[str, Any]) -> None:
        super().step(metrics)
        self._each(lambda tracker: tracker.step(metrics))

    def sample(self, path: Path, info: dict[str, Any]) -> None:
        super().sample(path, info)
        self._each(lambda tracker: tracker.sample(path, info))

    def saved(self, kind: str, path: Path) -> None:
        super().saved(kind, path)
        if kind == "lora":
            self._each(lambda tracker: tracker.lora(path))

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                tell(tracker)
            except Exception as error:
                del self._trackers[name]
                say_given_up(name, error, self._host)
                with contextlib.suppress(Exception):
                    tracker.close()


def numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a row of the metrics that make a curve."""
    kept = ((name, value) for name, value in row.items() if name not in ("step", "total", "eta"))
    return {
        name: float(value) for name, value in kept if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def wandb_key() -> str:
    """The key of Weights & Biases, from the environment or the file that `wandb login` writes; or ""."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, netrc.NetrcParseError):
        return ""
    return found[2] or "" if found else ""


def say_given_up(name: str, error: BaseException, events: Events) -> None:
    """Say that a tracker is given up."""
    events.message(f"{PACKAGES[name]} gets nothing more of this run, which goes on: {first_line(error)}", "warning")


def first_line(error: BaseException) -> str:
    """What went wrong, in a line."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
