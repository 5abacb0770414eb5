"""What card.sh runs once the libraries are there: stage after stage, each with its share of the budget.

A stage is a process of its own, so that what it breaks ends nothing else. Lines of JSON that it prints are rows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
STEPS = ROOT / "tests" / "bench" / "gpu_steps.py"
CASES = (
    "bf16/video/512x512x121/given",
    "bf16/av/512x512x121/given",
    "bf16/av/512x512x121/given/keep",
    "bf16/av/512x512x121/given/compile",
    "bf16/av/512x512x121/given/swap47",
    "int8/av/512x512x121/given/swap47",
    "nf4/av/512x512x121/given",
    "bf16/av/512x512x49/given",
    "bf16/video/512x512x1",
)
MODULES = (
    "torch",
    "pydantic",
    "safetensors",
    "transformers",
    "tomli_w",
    "bitsandbytes",
    "av",
    "optimum.quanto",
    "pytest",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("card_results"))
    parser.add_argument("--budget", type=float, default=530.0, metavar="S", help="seconds for everything")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small model, to try this on a CPU")
    parser.add_argument("--only", action="append", default=[], metavar="STAGE", help="run this stage alone")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        for row in INNER[args.stage](args.device, args.small):
            print(json.dumps(row), flush=True)
        return
    begun = time.monotonic()
    results = Results(args.out)
    size = ["--small"] if args.small else []
    me = [sys.executable, str(HERE / "card.py"), "--device", args.device, *size, "--stage"]
    steps = [sys.executable, str(STEPS), "--device", args.device, *size]
    few = ["--steps", "1"] if args.small else ["--steps", "3"]
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not compile", str(HERE)]
    # name, command, seconds at most
    stages: list[tuple[str, list[str], float]] = [
        ("imports", [*me, "imports"], 40),
        ("tests", tests, 120),
        ("steps", [*steps, *few, "--budget", str(min(300.0, 0.57 * args.budget)), *CASES], 330),
        ("profile", [*steps, "--steps", "1", "--profile", "bf16/av/512x512x121/given"], 60),
        ("optimizers", [*me, "optimizers"], 40),
        ("gradients", [*me, "gradients"], 40),
        ("full", [*me, "full"], 40),
    ]
    for name, command, most in stages:
        if args.only and name not in args.only:
            continue
        left = args.budget - (time.monotonic() - begun)
        if left < 5:
            results.add({"stage": name, "left_out": "the budget is spent"})
            continue
        run_stage(name, command, min(most, left), results)
    print(f"{len(results.rows)} rows in {results.folder / 'rows.jsonl'} and {results.folder / 'table.md'}")


class Results:
    """Rows on disk: each as a line of rows.jsonl when it comes, all of them as a table."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows = folder, []
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "rows.jsonl").write_text("", encoding="utf-8")

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with open(self.folder / "rows.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        lines = ["| stage | what | numbers |", "|---|---|---|"]
        for one in self.rows:
            what = one.get("case") or one.get("what") or ""
            rest = {key: value for key, value in one.items() if key not in ("stage", "case", "what")}
            lines.append(f"| {one['stage']} | {what} | {json.dumps(rest)[1:-1].replace('|', '/')} |")
        (self.folder / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(lines[-1], flush=True)


def run_stage(name: str, command: list[str], most: float, results: Results) -> None:
    """Run a stage for at most `most` seconds; its rows are kept, whatever becomes of it."""
    begun, last = time.monotonic(), ""
    with open(results.folder / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"== {name}: {' '.join(command)}\n")
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        timer = threading.Timer(most, process.kill)
        timer.start()
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            last = line.strip() or last
            if line.startswith("{"):
                results.add({"stage": name, **json.loads(line)})
        code = process.wait()
        over = not timer.is_alive()
        timer.cancel()
    end: dict[str, Any] = {"stage": name, "what": "end", "seconds": round(time.monotonic() - begun, 1)}
    if over:
        end["error"] = f"ended after {most:.0f} s"
    elif code:
        end["error"] = f"exit code {code}: {last[:300]}"
    elif name == "tests":
        end["tests"] = last
    results.add(end)


def imports(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Which libraries are there, in which version, and what the card is."""
    import importlib

    for name in MODULES:
        row: dict[str, Any] = {"what": name}
        try:
            module = importlib.import_module(name)
            row["version"] = str(getattr(module, "__version__", "?"))
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        yield row
    import torch

    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        yield {"what": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "free": free, "total": total}


def optimizers(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """A step of each optimizer over the tensors of a LoRA of rank 32 in mode av."""
    import torch

    from ltx2_train.optim import OPTIMIZERS, OptimizerSettings, build_optimizer

    layers = 24 if small else 1152
    for name in ("adamw", "adamw8bit"):
        row: dict[str, Any] = {"what": name, "tensors": 2 * layers}
        try:
            halves = [torch.zeros(size, device=device) for size in ((32, 4096), (4096, 32)) for _ in range(layers)]
            parameters = [torch.nn.Parameter(half) for half in halves]
            optimizer, _ = build_optimizer(parameters, OptimizerSettings(name=name), 1e-4, device)
            prepare = OPTIMIZERS.get(name).prepare
            if prepare is not None:
                prepare(optimizer)
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            _wait(device)
            begun = time.perf_counter()
            for _ in range(3):
                optimizer.step()
            _wait(device)
            row["seconds"] = round((time.perf_counter() - begun) / 3, 5)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        yield row


def gradients(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Gradients of a LoRA over two layers at full width, in bf16 and over formats, against float32 on the device."""
    import torch

    sys.path.insert(0, str(STEPS.parent))
    from dataclasses import replace

    import gpu_steps

    from ltx2_train.lora.inject import inject
    from ltx2_train.lora.settings import LoraSettings
    from ltx2_train.models.positions import video_positions
    from ltx2_train.models.transformer import Modality

    config = replace(gpu_steps.config_of(small), num_layers=2)
    where = torch.device(device)
    reference: list[torch.Tensor] = []
    for format, dtype in (
        ("bf16", torch.float32),
        ("bf16", torch.bfloat16),
        ("fp8", torch.bfloat16),
        ("int8", torch.bfloat16),
    ):
        case = gpu_steps.Case.read(f"{format}/video/256x256x17")
        model, _ = gpu_steps.build(case, config, where)
        if dtype == torch.float32:
            model.float()
        loras = inject(model, LoraSettings(rank=32), torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in loras.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.01)
        shape = case.shape.latent()
        latent = torch.randn(1, shape.tokens, 128, generator=generator).to(where, dtype)
        context = torch.randn(1, 64, config.video.context_width, generator=generator).to(where, dtype)
        sigma = torch.full((1,), 0.6, device=where)
        out = model.train()(Modality(latent, sigma, None, video_positions(shape, 25.0, where), context), None)
        out.video.float().square().mean().backward()
        found = [parameter.grad.float() for parameter in loras.parameters() if parameter.grad is not None]
        if dtype == torch.float32:
            reference = found
        pairs = list(zip(found, reference, strict=True))
        error = sum(float((a - b).square().sum()) for a, b in pairs) / sum(float(b.square().sum()) for _, b in pairs)
        yield {"what": f"{format} in {str(dtype).partition('.')[2]}", "relative_error": round(error**0.5, 5)}


def full(device: str, small: bool) -> Iterator[dict[str, Any]]:
    """A real request for more memory than there is, and the notch that answers it."""
    import torch

    from ltx2_train.config import make_run
    from ltx2_train.events import Events
    from ltx2_train.training.fit import Facts, make_plan, parse_workload
    from ltx2_train.training.fit.machine import card
    from ltx2_train.training.fit.trial import OomGuard, guarded

    run = make_run({"optimizer": {"name": "adamw"}})
    plan = make_plan(run, Facts.published("2.3", run, parse_workload("256x256x9", "video")), card(24, 64e9, 1e12))
    attempts: list[int] = []

    def step() -> int:
        attempts.append(1)
        if len(attempts) == 1:
            torch.empty(1 << 50, dtype=torch.uint8, device=device)
        return len(attempts)

    guard = OomGuard(plan, lambda leaner: None, Events(), torch.device(device))
    taken = guarded(step, guard, "a step that is too large")
    works = float(torch.ones(8, device=device).sum()) == 8
    yield {"what": "out of memory", "attempts": taken, "notches": guard.plan.notches, "device_works": works}


def _wait(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


INNER: dict[str, Callable[[str, bool], Iterator[dict[str, Any]]]] = {
    "imports": imports,
    "optimizers": optimizers,
    "gradients": gradients,
    "full": full,
}

if __name__ == "__main__":
    main()
