"""Train on a ComfyUI without a browser, with nothing but Python: send a workflow, follow the run, fetch what it made.

    python headless.py train api/01_first_lora.json --set folder=my_clips --set run_name=fox --set steps=1500
    python headless.py follow fox          how far it is, until it ends
    python headless.py save fox            save a LoRA now; also: sample, pause, go
    python headless.py stop fox            save, then stop; the same `train` again goes on
    python headless.py fetch fox           the newest LoRA and all samples into ./fox

The workflow is in API format, as those of the folder `api` or as ComfyUI exports it. `--server` says where ComfyUI is.
`--set NAME=VALUE` changes the widget NAME wherever a node shows it; `--set TrainLoRA.save_every=100` that of one kind
of node, advanced ones too. What nodes show at the end, such as the grid of a comparison, is fetched as well. Ctrl-C
saves and stops. Ends with 0 when all is finished, 3 when stopped, else 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

OURS = "LTX2T_"
ASK_SECONDS = 1.0
STOPPED = 3


class Refused(Exception):
    """What the server does not do, in its words."""


class Server:
    """ComfyUI at an address."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")

    def ask(self, path: str, body: Any = None) -> bytes:
        """The answer to a GET, or to a POST where there is a body. Raises Refused."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.read()
        except urllib.error.HTTPError as error:
            raise Refused(_reason(error.read().decode(errors="replace"))) from None
        except OSError as error:
            raise Refused(f"{self.address} does not answer: {error}. Is ComfyUI running there?") from None

    def get(self, path: str) -> Any:
        return json.loads(self.ask(path) or b"null")

    def run(self, name: str, what: str = "") -> Any:
        """What is told of the run `name`. Raises Refused where there is none."""
        return self.get(f"/ltx2_train/runs/{urllib.parse.quote(name, safe='')}{what}")

    def want(self, name: str, what: str) -> None:
        self.ask(f"/ltx2_train/runs/{urllib.parse.quote(name, safe='')}/{what}", {})

    def download(self, file: dict[str, str], folder: Path) -> Path:
        """A file of the output folder, into `folder`; one that is there in full is kept."""
        path = folder / file["filename"]
        with urllib.request.urlopen(f"{self.address}/view?{urllib.parse.urlencode(file)}", timeout=600) as answer:
            size = int(answer.headers.get("Content-Length") or -1)
            if not path.is_file() or path.stat().st_size != size:
                folder.mkdir(parents=True, exist_ok=True)
                part = path.with_name(f"{path.name}.part")
                with open(part, "wb") as out:
                    while block := answer.read(1 << 20):
                        out.write(block)
                part.replace(path)
        return path


def _reason(text: str) -> str:
    """The sentences in a refusal of /prompt; any other text as it is."""
    try:
        told = json.loads(text)
        said = [one["details"] or one["message"] for node in told["node_errors"].values() for one in node["errors"]]
        return "\n".join(said) or told["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return text


def changed(prompt: dict[str, Any], changes: list[str], server: Server) -> dict[str, Any]:
    """The workflow with its widgets set. Raises Refused where no node has one of that name."""
    for change in changes:
        name, sign, text = change.partition("=")
        kind, _, widget = name.rpartition(".")
        if kind and kind.removeprefix(OURS) not in {one["class_type"].removeprefix(OURS) for one in prompt.values()}:
            kind, widget = "", name  # a widget that comes with a choice has a dot of its own
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        hit = False
        for node in prompt.values():
            named = node["class_type"].removeprefix(OURS) == kind.removeprefix(OURS)
            if kind and not named:
                continue
            if widget in node["inputs"] or (kind and widget in _widgets(server, node["class_type"])):
                node["inputs"][widget] = text if isinstance(node["inputs"].get(widget), str) else value
                hit = True
        if not sign or not hit:
            raise Refused(f"--set {change}: no node of the workflow has a widget {widget!r}. Write NAME=VALUE.")
    return prompt


def _widgets(server: Server, kind: str) -> set[str]:
    inputs = server.get(f"/object_info/{kind}")[kind]["input"]
    return {name for group in ("required", "optional") for name in inputs.get(group, {})}


def train(server: Server, workflow: Path, changes: list[str], out: Path) -> int:
    """Send a workflow and stay with it until it ends."""
    try:
        prompt = json.loads(workflow.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Refused(f"{workflow} cannot be read: {error}") from None
    if not isinstance(prompt, dict) or not all(isinstance(n, dict) and "class_type" in n for n in prompt.values()):
        raise Refused(f"{workflow} is not in API format. Take its twin in the folder api, or export it as API.")
    prompt = changed(prompt, changes, server)
    number = str(uuid.uuid4())
    refused = json.loads(server.ask("/prompt", {"prompt": prompt, "prompt_id": number})).get("node_errors")
    if refused:  # the rest of the graph would run without them
        _leave(server, number)
        raise Refused(_reason(json.dumps({"node_errors": refused})))
    try:
        entry = _wait(server, number)
    except KeyboardInterrupt:
        print("Saving, then stopping; once more leaves it to itself.", flush=True)
        _leave(server, number)
        entry = _wait(server, number)
    names = [
        str(node["inputs"]["run_name"])
        for node in prompt.values()
        if "steps" in node["inputs"] and "run_name" in node["inputs"]
    ]
    for node in (entry or {}).get("outputs", {}).values():
        for told in node.get("ltx2_train", []):
            print(f"{told['run']}: step {told['step']}, {told['lora']}")
            names = [told["run"], *(name for name in names if name != told["run"])]
    for name in dict.fromkeys(names):
        try:
            fetch(server, name, out / name)
        except Refused as error:
            print(error)
    for file in _shown(entry):
        print(server.download(file, out / (names[0] if names else workflow.stem)))
    return _told(entry)


def _shown(entry: dict[str, Any] | None) -> list[dict[str, str]]:
    """The files that nodes of a prompt that has ended show: a comparison, a sample."""
    lists = [files for node in (entry or {}).get("outputs", {}).values() for files in node.values()]
    return [file for files in lists for file in files if isinstance(file, dict) and file.get("filename")]


def _leave(server: Server, number: str) -> None:
    """Take a prompt out of the queue, or have it save and stop where it is running."""
    server.ask("/queue", {"delete": [number]})
    server.ask("/interrupt", {"prompt_id": number})


def _wait(server: Server, number: str) -> dict[str, Any] | None:
    """Print how far a prompt is, until it has ended: its entry in the history, None where it was taken out."""
    said = ""
    while True:
        history = server.get(f"/history/{number}")
        if number in history:
            return history[number]
        queue = server.get("/queue")
        ahead = [one[1] for one in sorted(queue["queue_pending"])]
        if number in ahead:
            text = f"waiting behind {len(queue['queue_running']) + ahead.index(number)}"
        elif any(one[1] == number for one in queue["queue_running"]):
            views = [view for view in server.get("/ltx2_train/live").values() if view["state"] == "running"]
            text = _line(views[-1]) if views else "running"
        elif number not in server.get(f"/history/{number}"):
            return None
        else:
            continue
        if text != said:
            print(text, flush=True)
        said = text
        time.sleep(ASK_SECONDS)


def _line(view: dict[str, Any]) -> str:
    count = f" {view['done']}/{view['total']}" if view["total"] else ""
    trains = view["stage"] == "train"  # other stages count something else beside the newest loss
    loss = "" if not trains or view["loss"] is None else f", loss {view['loss']:.4f}"
    left = "" if not view["seconds_left"] else f", {view['seconds_left'] / 60:.0f} min left"
    return f"{view['title'] or ''} {view['stage']}{count}{loss}{left} {view['message']}".strip()


def _told(entry: dict[str, Any] | None) -> int:
    """Say how a prompt ended, and what this program ends with."""
    if entry is None:
        print("It was taken out of the queue.")
        return STOPPED
    for what, data in entry["status"]["messages"]:
        if what == "execution_error":
            print(data["exception_message"].strip(), file=sys.stderr)
            return 1
        if what == "execution_interrupted":
            print("Stopped. The same command again goes on.")
            return STOPPED
    return 0


def follow(server: Server, name: str) -> int:
    """Print how far a run is, whoever trains it, until it ends."""
    said = None
    while True:
        run = server.run(name)
        text = f"{run['name']}: {run['status']}, step {run['step']} of {run['total']}"
        if text != said:
            print(text, flush=True)
        said = text
        if run["status"] not in ("running", "paused"):
            return {"finished": 0, "stopped": STOPPED}.get(run["status"], 1)
        time.sleep(ASK_SECONDS)


def fetch(server: Server, name: str, folder: Path) -> int:
    """The newest LoRA of a run, and all that it drew."""
    loras, samples = server.run(name, "/loras"), server.run(name, "/samples")
    for one in [*loras[-1:], *samples]:
        if one["file"]:
            print(server.download(one["file"], folder))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "follow", "fetch", "stop", "save", "sample", "pause", "go"])
    parser.add_argument("of", help="a workflow in API format to train, else the name of a run")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="the address of ComfyUI")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a widget to change")
    parser.add_argument("--out", type=Path, default=Path(), help="where files are fetched to, a folder for each run")
    given = parser.parse_args()
    server = Server(given.server)
    try:
        if given.what == "train":
            return train(server, Path(given.of), given.set, given.out)
        if given.set:
            raise Refused("--set goes with train")
        if given.what == "follow":
            return follow(server, given.of)
        if given.what == "fetch":
            return fetch(server, given.of, given.out / given.of)
        server.want(given.of, given.what)
        return 0
    except Refused as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
