"""Runs over HTTP, for the page and for programs without one. What is told comes from the folders of the runs, so it is
true after a reload, in a second browser, and after a restart of the server.

    GET  /ltx2_train/runs                    all runs, the newest first
    GET  /ltx2_train/runs/NAME               one run: status, steps, names of its LoRAs
    GET  /ltx2_train/runs/NAME/metrics       rows of its metrics; ?points=N, 500 where it is left out
    GET  /ltx2_train/runs/NAME/view          what the live view of a node shows of it
    GET  /ltx2_train/runs/NAME/loras         its LoRAs with their steps, and the address of each for /view
    GET  /ltx2_train/runs/NAME/samples       what it drew, with the address of each file for ComfyUI's /view
    POST /ltx2_train/runs/NAME/stop | save | sample | pause | go

Only names of runs in ComfyUI's output are known; anything else is 404. Paths of this machine are never sent.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from ... import ltx2_train as core
from ...ltx2_train.errors import TrainerError
from ..live import LiveView, json_safe
from .folders import runs_folder, stays_inside, view_address

PREFIX = "/ltx2_train/runs"
MOST_POINTS = 5000


def add_run_routes(routes: Any) -> None:
    """Serve the runs; `routes` is the table of ComfyUI's server, which checks where a POST comes from."""
    from aiohttp import web

    def answer(value: Any) -> web.Response:
        return web.json_response(json_safe(value))

    def run_of(request: web.Request) -> Path:
        name = request.match_info["name"]
        folder = runs_folder() / name
        if not stays_inside(name) or "/" in name or "\\" in name or core.run_facts(folder) is None:
            raise web.HTTPNotFound(text=f"There is no run {name!r}.")
        return folder

    @routes.get(PREFIX)
    async def runs(request: web.Request) -> web.Response:
        found = await asyncio.to_thread(core.list_runs, runs_folder())
        return answer([facts.table() for facts in found])

    @routes.get(PREFIX + "/{name}")
    async def run(request: web.Request) -> web.Response:
        facts = core.run_facts(run_of(request))
        return answer(None if facts is None else facts.table())

    @routes.get(PREFIX + "/{name}/metrics")
    async def metrics(request: web.Request) -> web.Response:
        folder, text = run_of(request), request.query.get("points", "500")
        if not text.isdecimal() or not 1 <= int(text) <= MOST_POINTS:
            raise web.HTTPBadRequest(text=f"points is {text!r}; give a number from 1 to {MOST_POINTS}.")
        return answer(await asyncio.to_thread(core.thinned_metrics, folder, int(text)))

    @routes.get(PREFIX + "/{name}/view")
    async def view(request: web.Request) -> web.Response:
        seen = await asyncio.to_thread(LiveView.of_run, run_of(request), view_address)
        return answer(None if seen is None else seen.payload())

    @routes.get(PREFIX + "/{name}/loras")
    async def loras(request: web.Request) -> web.Response:
        folder = run_of(request)
        saved = await asyncio.to_thread(core.list_loras, folder / "lora", folder.name)
        return answer([{"step": step, "name": path.name, "file": view_address(path)} for step, path in saved])

    @routes.get(PREFIX + "/{name}/samples")
    async def samples(request: web.Request) -> web.Response:
        return answer(await asyncio.to_thread(_samples, run_of(request)))

    @routes.post(PREFIX + "/{name}/{what}")
    async def ask(request: web.Request) -> web.Response:
        folder, what = run_of(request), request.match_info["what"]
        if what not in core.REQUESTS:
            raise web.HTTPNotFound(text=f"A run can be asked for {', '.join(core.REQUESTS)}.")
        try:
            core.ask_run(folder, what)
        except TrainerError:  # its text names the folder
            raise web.HTTPConflict(text=f"Nobody trains {folder.name} at the moment.") from None
        return answer({"asked": what})


def _samples(folder: Path) -> list[dict[str, Any]]:
    """The samples of a run with the addresses of their files; the first of each prompt and seed has its text too."""
    found, told = [], set()
    there = view_address(folder / "samples" / "any")  # hundreds lie there, and to resolve the path of each takes time

    def address(path: Path) -> dict[str, str] | None:
        return None if there is None else {**there, "filename": path.name}

    for sample in core.list_samples(folder):
        one = {"step": sample.step, "prompt": sample.prompt, "seed": sample.seed, "file": address(sample.path)}
        if (picture := sample.picture) is not None:
            one["picture"] = address(picture)
        if (sample.prompt, sample.seed) not in told:
            told.add((sample.prompt, sample.seed))
            one["text"] = core.prompt_of(sample.path)
        found.append(one)
    return found
