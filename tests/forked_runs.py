"""Runs of several processes, forked from one that has imported everything and computed nothing: `forked_runs.py JOBS`.

JOBS is a JSON list of jobs, which are done one after the other: {"file", "settings", "count", "ask", "kill"}. `ask` is
what the first process asks of its run after a step, by the step; `kill` the step after which it kills the last one.
Each job prints a line of JSON: the exit code of each process, 0 done, 130 stopped, 1 an error, and the error's words.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import sys
import tempfile
from pathlib import Path

import accelerate  # noqa: F401
import torch._dynamo  # noqa: F401

from ltx2_train import Events, ask_run, load_run, train
from ltx2_train.errors import Stopped, TrainerError
from ltx2_train.training.fit import facts


class Meddling(Events):
    def __init__(self, folder: Path, job: dict, pids: Path) -> None:
        self._folder, self._job, self._pids = folder, job, pids

    def step(self, metrics: dict) -> None:
        if what := self._job.get("ask", {}).get(str(metrics["step"])):
            ask_run(self._folder, what)
        if metrics["step"] == self._job.get("kill"):
            os.kill(int(self._pids.read_text().split()[-1]), signal.SIGKILL)


def one_process(job: dict, pids: Path, said: Path) -> int:
    try:
        run = load_run(job["file"], job["settings"])
        train(run, Meddling(run.run.folder / run.run.name, job, pids))
    except Stopped:
        return 130
    except TrainerError as error:
        said.write_text(str(error))
        return 1
    return 0


def remembered(path: Path) -> None:
    """One simulated step serves the plans of all processes, which are of one model: it is most of their work."""
    simulate = facts.simulate

    def once(*arguments):
        if not path.exists():
            profile = simulate(*arguments)
            path.with_suffix(f".{os.getpid()}").write_bytes(pickle.dumps(profile))
            path.with_suffix(f".{os.getpid()}").rename(path)
        return pickle.loads(path.read_bytes())

    facts.simulate = once


def several(job: dict, folder: Path) -> dict:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    pids, count, children = folder / "pids", job["count"], []
    ready, go = os.pipe()
    for rank in range(count):
        child = os.fork()
        if child == 0:
            os.read(ready, 1)  # all are there
            if count > 1:
                names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
            os._exit(one_process(job, pids, folder / f"said_{rank}"))
        children.append(child)
    pids.write_text(" ".join(map(str, children)))
    os.write(go, b"." * count)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [path.read_text() if (path := folder / f"said_{rank}").exists() else "" for rank in range(count)]
    return {"codes": codes, "said": said}


if __name__ == "__main__":
    remembered(Path(sys.argv[1]).with_suffix(".profile"))
    for one in json.loads(Path(sys.argv[1]).read_text()):
        with tempfile.TemporaryDirectory() as scratch:
            print(json.dumps(several(one, Path(scratch))), flush=True)
