"""What surrounds a node while the core works in it, and what it hands on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from ...ltx2_train.errors import Stopped, TrainerError, refused_words
from ..needs import require_needs
from ..sent import titles, unknown
from ..words import in_graph, in_widget_words, speaking_as

TRAINS = "LTX2T_Train"  # how the ids of nodes that train begin
logger = logging.getLogger("ltx2_trainer")

_taken_back: set[str] = set()  # ids of prompts that a stop of another one has ended before they began


@contextlib.contextmanager
def training_job(node: str = "") -> Iterator[None]:
    """Run the core as ComfyUI needs it: with gradients, and with errors that say what to do instead of where.

    Errors speak of the widgets of `node`, the title of the one that runs, and of the other nodes of its prompt.
    Whichever of them runs first refuses what was sent to any under a name that it does not know.

    ComfyUI runs nodes in inference mode, whose tensors cannot be trained on, so that is left before anything is made.
    A requested stop ends the prompt as an interrupt, after the core has saved.
    """
    import torch

    prompt_id, prompt, by_page = _running_prompt()
    if prompt_id in _taken_back:
        _taken_back.discard(prompt_id)
        raise _interrupted()
    if text := unknown(prompt, by_page):
        raise RuntimeError(text)
    with torch.inference_mode(False), torch.enable_grad(), in_graph(titles(prompt)), speaking_as(node):
        try:
            require_needs()
            yield
        except Stopped as stop:
            logger.info("%s", stop)
            raise _interrupted() from None
        except TrainerError as error:
            raise RuntimeError(in_widget_words(str(error))) from None
        except OSError as error:
            if not error.filename:
                raise
            raise RuntimeError(refused_words(error)) from error


def _queue() -> Any:
    """ComfyUI's queue of prompts; None where there is no server."""
    from server import PromptServer

    return getattr(getattr(PromptServer, "instance", None), "prompt_queue", None)


def _running_prompt() -> tuple[str, dict[str, Any], bool]:
    """Id of the prompt that is run, what was sent, and whether the page sent it; empty where there is none."""
    running = getattr(_queue(), "currently_running", None) or {}
    for _, prompt_id, prompt, extra, *_ in running.values():  # one at a time
        return prompt_id, prompt, "workflow" in (extra.get("extra_pnginfo") or {})  # which the page sends along
    return "", {}, False


def _interrupted() -> BaseException:
    """Take the interrupt off ComfyUI's flag and return the exception that reports it."""
    import comfy.model_management as management

    try:
        management.throw_exception_if_processing_interrupted()
    except management.InterruptProcessingException as interrupt:
        return interrupt
    return management.InterruptProcessingException()


def take_back_presses(run_name: str) -> int:
    """Have what waits in ComfyUI's queue to train the run `run_name` again end as it begins; how many prompts that are.

    So one X ends a run, however often Run was pressed for it, and who waits for a prompt is told of its end.
    """

    def trains(prompt: dict[str, Any]) -> bool:
        nodes = [node for node in prompt.values() if str(node.get("class_type", "")).startswith(TRAINS)]
        return any(node.get("inputs", {}).get("run_name") == run_name for node in nodes)

    waiting = {item[1] for item in list(getattr(_queue(), "queue", ())) if trains(item[2])}
    _taken_back.update(waiting)
    return len(waiting)


def nothing(why: str) -> Any:
    """For an output that has nothing to give: a node that is connected to it is left out, with this sentence."""
    from comfy_execution.graph_utils import ExecutionBlocker

    return ExecutionBlocker(why)
