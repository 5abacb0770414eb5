"""A real ComfyUI in a process of its own, with this pack in it, and the few calls a test makes to it.

The tree is the one COMFYUI_PATH names, the page that of COMFY_FRONT_END_ROOT (the folder `static` of another
comfyui-frontend-package) where it is set. Everything the server reads and writes lies in a base folder of the test.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACK = "ltx2_trainer"


def why_not() -> str:
    """Why no server can be started here; empty where one can."""
    tree = os.environ.get("COMFYUI_PATH")
    if not tree:
        return "COMFYUI_PATH does not name a ComfyUI work tree"
    if not (Path(tree) / "main.py").is_file():
        return f"COMFYUI_PATH is {tree}, which holds no main.py"
    return ""


class ComfyServer:
    """Starts on entering, ends on leaving; `base` holds models, input, output."""

    def __init__(self, base: Path) -> None:
        self.base = base
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = base / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        models = ("models/checkpoints", "models/text_encoders", "models/loras")
        for folder in ("custom_nodes", "input", "output", "user/default", *models):
            (self.base / folder).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK
        if not link.exists():
            try:
                link.symlink_to(ROOT, target_is_directory=True)
            except OSError:  # Windows without the right to make links
                shutil.copytree(ROOT, link, ignore=shutil.ignore_patterns(".git", "tests", "__pycache__"))
        settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.Persist": False}
        (self.base / "user/default/comfy.settings.json").write_text(json.dumps(settings))
        main = Path(os.environ["COMFYUI_PATH"]) / "main.py"
        command = [sys.executable, str(main), "--cpu", "--listen", "127.0.0.1", "--port", str(self.port)]
        command += ["--base-directory", str(self.base), "--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        if page := os.environ.get("COMFY_FRONT_END_ROOT"):
            command += ["--front-end-root", page]
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(command, cwd=main.parent, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.wait(lambda: self._answers(), 120, "the server to answer")
        except BaseException:  # nobody else would end it
            self.kill()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def kill(self) -> None:
        """End it as a crash does, without a word to anyone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            data = answer.read()
        return json.loads(data) if data else None

    def post(self, path: str, body: Any) -> Any:
        """The answer; of a refused request the body of the refusal with its `status`."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
            return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            return {"status": error.code, **json.loads(error.read() or b"{}")}

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt in API format; its id."""
        answer = self.post("/prompt", {"prompt": prompt})
        assert "prompt_id" in answer, answer
        assert not answer["node_errors"], answer
        return answer["prompt_id"]

    def history(self, prompt_id: str, seconds: float = 300) -> dict[str, Any]:
        """The entry of a prompt, once it has ended."""
        self.wait(lambda: prompt_id in self.get(f"/history/{prompt_id}"), seconds, f"prompt {prompt_id}")
        return self.get(f"/history/{prompt_id}")[prompt_id]

    def run(self, prompt: dict[str, Any], seconds: float = 300) -> dict[str, Any]:
        """Queue a prompt and wait; fails with the server's words where it did not succeed."""
        entry = self.history(self.queue(prompt), seconds)
        assert entry["status"]["status_str"] == "success", (error_of(entry), self.tail())
        return entry

    def wait(self, ready: Callable[[], Any], seconds: float, what: str) -> Any:
        """Ask until `ready` answers something true; that answer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self._process is not None and self._process.poll() is not None:
                raise AssertionError(f"The server ended with {self._process.returncode}.\n{self.tail()}")
            if answer := ready():
                return answer
            time.sleep(0.1)
        raise AssertionError(f"Waited {seconds} s for {what}.\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def _answers(self) -> bool:
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True


def messages_of(entry: dict[str, Any]) -> list[str]:
    """Names of what happened to a prompt, in order."""
    return [name for name, _ in entry["status"]["messages"]]


def executed_nodes(entry: dict[str, Any]) -> set[str]:
    """Ids of the nodes that were not answered from the cache."""
    cached = next((data["nodes"] for name, data in entry["status"]["messages"] if name == "execution_cached"), [])
    return set(entry["prompt"][2]) - set(cached)


def error_of(entry: dict[str, Any]) -> str:
    """What the node that failed said."""
    for name, data in entry["status"]["messages"]:
        if name == "execution_error":
            return data["exception_message"].strip()
    return ""
