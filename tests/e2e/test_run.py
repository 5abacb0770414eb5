"""A run from caches to a LoRA: it learns, stops, goes on, and never loses what it has saved.

It is long: each way in which a run begins, ends, goes on and is refused, told by the same few helpers.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ltx2_train import (
    Events,
    Stopped,
    TrainerError,
    build_caches,
    foresee,
    inspect_lora,
    load_run,
    merge_loras,
    sample,
    train,
)
from ltx2_train.errors import CheckpointError, DataError, RunError
from ltx2_train.files import digest
from ltx2_train.lora.file import load_lora_state
from ltx2_train.objective.terms import Term
from ltx2_train.training import loop, metrics, saving, setup
from ltx2_train.training.metrics import read_rows, terms_text
from ltx2_train.training.run_folder import read_manifest
from ltx2_train.training.state import list_states, load_state

ROOT = Path(__file__).parents[2]


class StopAt(Events):
    """Asks for a stop once `step` steps are done, and keeps what it is told."""

    def __init__(self, step: int) -> None:
        self.at, self.done, self.messages = step, 0, []

    def step(self, metrics):
        json.dumps(metrics, allow_nan=False)
        self.done = metrics["step"]

    def message(self, text, level="info"):
        self.messages.append((level, text))

    def should_stop(self):
        return self.done >= self.at


def tensors(path: Path) -> dict[str, torch.Tensor]:
    entries = load_lora_state(path).entries
    return {f"{name}.{part}": getattr(entry, part) for name, entry in entries.items() for part in ("down", "up")}


def times(terms, factor: float):
    """What a step gives, with every loss times `factor`."""
    return replace(
        terms, terms={name: replace(term, values=term.values * factor) for name, term in terms.terms.items()}
    )


def equal(a: Path, b: Path) -> bool:
    first, second = tensors(a), tensors(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(run_file):
    more = ["train.save_precision=fp32", "lora.dropout=0.1", "train.accumulation=2"]
    whole = train(load_run(run_file, ["run.name=whole", *more]))
    with pytest.raises(Stopped, match="after step 3 of 6"):
        train(load_run(run_file, ["run.name=broken", *more]), StopAt(3))
    folder = run_file.parent / "runs" / "broken"
    assert read_manifest(folder)["status"] == "stopped"
    assert [step for step, _ in list_states(folder / "states")] == [3]
    broken = train(load_run(run_file, ["run.name=broken", *more]))
    assert equal(whole.lora, broken.lora)
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    losses = [row["loss"] for row in read_rows(whole.folder / "metrics.jsonl")]
    assert [row["loss"] for row in rows] == losses


def test_the_run_folder_holds_what_it_promises(run_file):
    result = train(load_run(run_file, ["train.save_every=2", "train.keep_states=2", "run.export_folder=exported"]))
    folder = result.folder
    for name in ("run.toml", "dataset.toml", "metrics.jsonl", "loss.png", "manifest.json", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert sorted(path.name for path in (folder / "lora").glob("*.safetensors")) == [
        "r.safetensors",
        "r_000002.safetensors",
        "r_000004.safetensors",
        "r_000006.safetensors",
    ]
    assert [step for step, _ in list_states(folder / "states")] == [4, 6]
    assert result.lora.name == "r.safetensors"
    exported = run_file.parent / "exported" / "r"
    for name in ("r.safetensors", "r_000006.safetensors"):
        assert (exported / name).read_bytes() == result.lora.read_bytes()
    assert inspect_lora(exported / "r_000002.safetensors").step == 2
    for name, step in (("r", 6), ("r_000006", 6), ("r_000002", 2)):
        assert json.loads((folder / "lora" / f"{name}.json").read_text())["step"] == step
    row = read_rows(folder / "metrics.jsonl")[0]
    assert {"step", "loss", "loss_video", "loss_audio", "lr", "grad_norm", "seconds"} <= row.keys()
    assert read_manifest(folder)["status"] == "finished"
    assert not (folder / "contexts.bin").exists()
    assert load_run(folder / "run.toml").lora == load_run(run_file).lora


def test_a_new_loss_term_is_one_entry(run_file, monkeypatch):
    """What the step adds to its table is learned, logged, told and kept beside the LoRA by its name."""
    plain = read_rows(train(load_run(run_file, ["run.name=plain"])).folder / "metrics.jsonl")
    real = loop.ready_step

    def step(*arguments, **options):
        terms = real(*arguments, **options)
        more = {**terms.terms, "anchor": Term(terms.terms["video"].values, 0.5)}
        return replace(terms, terms=more)

    monkeypatch.setattr(loop, "ready_step", step)
    result = train(load_run(run_file))
    rows = read_rows(result.folder / "metrics.jsonl")
    assert rows[0]["loss_anchor"] == rows[0]["loss_video"] == plain[0]["loss_video"]
    assert rows[0]["loss"] == pytest.approx(1.5 * plain[0]["loss"])
    assert rows[0]["grad_norm"] == pytest.approx(1.5 * plain[0]["grad_norm"])
    assert rows[-1]["loss_audio"] is None
    beside = json.loads(result.lora.with_suffix(".json").read_text())
    assert beside["loss_anchor"] == rows[-1]["loss_anchor"]
    assert "anchor" in terms_text(rows[-1])


def test_the_lora_says_what_it_is_and_no_path(run_file):
    result = train(load_run(run_file))
    report = inspect_lora(result.lora)
    assert report.version == "2.3"
    assert report.ranks == [4]
    assert report.step == 6
    assert not report.problems
    assert all(norm > 0 for norm in report.norms.values())
    assert str(run_file.parent) not in json.dumps(report.metadata)
    keys = report.metadata
    assert keys["ss_network_dim"] == "4"
    assert keys["base"].endswith(".safetensors")


def test_a_finished_run_is_not_trained_again_but_can_be_extended(run_file, monkeypatch):
    first = train(load_run(run_file))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "load", lambda *_: pytest.fail("a finished run must not load the model"))
        again = train(load_run(run_file))
    assert again.lora == first.lora
    assert "Raise train.steps" in again.summary
    whole = tensors(first.lora)
    for path in first.lora.parent.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:5000])  # a copy that broke off
    mended = tensors(train(load_run(run_file)).lora)
    assert all(torch.equal(mended[name], whole[name]) for name in whole)
    longer = train(load_run(run_file, ["train.steps=8"]))
    assert longer.step == 8
    assert [row["step"] for row in read_rows(longer.folder / "metrics.jsonl")] == list(range(1, 9))


def test_a_finished_run_tells_what_was_changed_since_and_keeps_the_record_of_its_steps(run_file):
    """Values that no step has used are not written down as if one had; where files lie is."""
    first = train(load_run(run_file, ["train.steps=2"]))
    recorded = (first.folder / "run.toml").read_text()
    base = load_run(run_file).model.checkpoint
    moved = run_file.parent / "moved.safetensors"
    moved.symlink_to(base)
    (dataset := run_file.parent / "dataset.toml").write_text(f"{dataset.read_text()}\nvideo_loss_weight = 0.5\n")
    events = StopAt(99)
    changes = ["loss.video_weight=0.5", "optimizer.weight_decay=0.3", "sample.strength=0.5"]
    train(load_run(run_file, ["train.steps=1", f"model.checkpoint={moved}", *changes]), events)
    names = "loss.video_weight, optimizer.weight_decay, sample.strength, datasets[0].video_loss_weight"
    told = f"{names} were changed since its last step and were not used."
    assert [text for level, text in events.messages if level == "warning" and told in text]
    assert (first.folder / "run.toml").read_text() == recorded.replace(str(base), str(moved))
    for path in first.lora.parent.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:5000])
    mended = train(load_run(run_file, ["train.steps=1", *changes, "train.comment=another"]), events)
    assert "another" not in json.dumps(inspect_lora(mended.lora).metadata), "it is of the steps that were taken"
    assert [text for level, text in events.messages if level == "warning" and "from the state of step 2" in text]
    events = StopAt(99)
    train(load_run(run_file, ["train.steps=3", *changes, "train.comment=another"]), events)
    assert load_run(first.folder / "run.toml").loss.video_weight == 0.5
    warned = [text for level, text in events.messages if level == "warning"]
    assert any("used from its next step on" in text and "train.comment" in text for text in warned)
    events = StopAt(99)
    train(load_run(run_file, ["train.steps=3", *changes, "train.comment=another"]), events)
    assert not [text for _, text in events.messages if "changed" in text]


def test_other_settings_under_the_same_name_are_refused_before_anything_is_loaded(run_file, monkeypatch):
    train(load_run(run_file))
    monkeypatch.setattr(loop, "load", lambda *_: pytest.fail("must not load"))
    with pytest.raises(RunError, match=r"lora\.rank: was 4, now 8"):
        train(load_run(run_file, ["lora.rank=8"]))


def test_numbers_of_the_optimizer_that_change_on_the_way_are_used_told_and_written(run_file):
    more = ["train.steps=2", "schedule.name=constant"]
    first = train(load_run(run_file, more))
    rows = read_rows(first.folder / "metrics.jsonl")
    assert [row["lr"] for row in rows] == [1e-3, 1e-3]
    events = StopAt(99)
    numbers = ["train.learning_rate=5e-4", "optimizer.weight_decay=5", "optimizer.betas=[0.5, 0.6]"]
    longer = train(load_run(run_file, [*more, *numbers, "train.steps=3"]), events)
    said = [text for _, text in events.messages if "until now" in text]
    assert [text.partition(" is ")[0] for text in said[1:]] == ["optimizer.betas", "optimizer.weight_decay"]
    assert "0.0005 (until now 0.001)" in said[0]
    assert read_rows(longer.folder / "metrics.jsonl")[-1]["lr"] == 5e-4
    group = load_state(list_states(longer.folder / "states")[-1][1])["optimizer"]["param_groups"][0]
    assert (group["weight_decay"], group["betas"], group["initial_lr"]) == (5.0, (0.5, 0.6), 5e-4)
    kept = load_run(longer.folder / "run.toml")
    assert (kept.optimizer.weight_decay, kept.optimizer.name) == (5.0, "adamw"), "auto is never written"
    metadata = inspect_lora(longer.lora).metadata
    assert (metadata["ss_optimizer"], metadata["ss_lr_warmup_steps"]) == ("adamw", "0")
    (clips,) = json.loads(metadata["ss_datasets"])
    assert clips["clips"] == sum(clips["sizes"].values()) > 0
    assert int(metadata["ss_training_started_at"]) <= int(metadata["ss_training_finished_at"])
    assert len(metadata["sshs_model_hash"]) == 64
    assert json.loads(metadata["settings"])["optimizer"]["weight_decay"] == 5.0


def test_a_row_tells_the_rate_that_its_step_used(run_file):
    result = train(load_run(run_file, ["train.steps=4", "schedule.warmup=0"]))
    rows = read_rows(result.folder / "metrics.jsonl")
    assert [row["lr"] for row in rows] == pytest.approx([1e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert json.loads(result.lora.with_suffix(".json").read_text())["lr"] == rows[-1]["lr"]


def rewrite_as_version_1(folder: Path, **changes: str) -> None:
    """Make the manifest what it was before records had a version, as far as a run with default settings goes."""
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["identity"]
    kept = ("model.checkpoint", "model.mode", "model.precision", "dataset", "lora.rank", "lora.alpha",
            "train.accumulation", "train.seed", "optimizer.name", "schedule.name")  # fmt: skip
    former = {name: f"{record[name]:g}" if isinstance(record[name], float) else str(record[name]) for name in kept}
    targets = digest("auto", "-", "-", "-")[:8]
    manifest["identity"] = {**former, "lora targets": targets, "train.learning_rate": "0.001", **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
def test_a_run_of_the_version_before_goes_on_with_what_auto_was_then(run_file, optimizer):
    """Begun where bitsandbytes was missing, or where CUDA was there; continued on a machine of the other kind."""
    first = train(load_run(run_file, [f"optimizer.name={optimizer}", "train.steps=2", "lora.rank=32"]))
    rewrite_as_version_1(first.folder, **{"optimizer.name": "auto"})
    events = StopAt(99)
    result = train(load_run(run_file, ["train.steps=3", "lora.rank=32"]), events)
    assert result.step == 3
    assert any(f"Optimizer {optimizer} (auto: the run began with it)" in text for _, text in events.messages)
    assert read_manifest(result.folder)["identity"]["optimizer.name"] == optimizer


def test_a_run_that_began_with_what_is_missing_now_says_so_before_anything_is_loaded(run_file, monkeypatch):
    train(load_run(run_file, ["optimizer.name=adamw8bit", "train.steps=1"]))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(loop, "load", lambda *_: pytest.fail("must not load"))
    with pytest.raises(RunError, match=r"began with adamw8bit.*pip install bitsandbytes"):
        train(load_run(run_file))


def test_a_renamed_checkpoint_goes_on(run_file, tiny):
    from ltx2_train.training.checks import check

    folder = check(load_run(run_file), Events()).folder
    folder.write_manifest("stopped", 1, state=0)
    folder.close()
    renamed = run_file.parent / "renamed.safetensors"
    renamed.symlink_to(tiny.checkpoint)
    check(load_run(run_file, [f"model.checkpoint={renamed}"]), Events()).folder.close()


@pytest.mark.parametrize(
    ("begun", "named"),
    [
        (["quant.format=nf4", "quant.loftq=true"], r"quant\.loftq: was on \(loftq_iters 2\), now off"),
        (["train.loraplus_ratio=16"], r"train\.loraplus_ratio: was on, now off"),
        (["quant.format=nf4", "quant.block_size=64"], r"quant\.block_size: was 64, now 32"),
    ],
)
def test_what_a_run_began_with_cannot_be_taken_back(run_file, begun, named):
    from ltx2_train.training.checks import check

    folder = check(load_run(run_file, begun), Events()).folder
    folder.write_manifest("stopped", 1)
    folder.close()
    with pytest.raises(RunError, match=named):
        check(load_run(run_file), Events())


def test_a_start_that_failed_before_its_first_step_holds_nobody_to_its_settings(run_file, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(setup, "_place_model", lambda *_: (_ for _ in ()).throw(CheckpointError("It does not fit.")))
        with pytest.raises(CheckpointError, match="does not fit"):
            train(load_run(run_file, ["quant.format=nf4", "lora.rank=3"]))
    plan, runs = next(run_file.parent.rglob("plan.json")), load_run(run_file, ["quant.format=none", "train.steps=1"])
    assert json.loads(plan.read_text())["choice"]["format"] == "nf4"
    foresee(runs)
    events = StopAt(99)
    assert train(runs, events).step == 1
    assert [text for _, text in events.messages if text.endswith("The run begins anew.")]
    assert json.loads(plan.read_text())["choice"]["format"] == "none"


def test_rates_that_name_no_layer_are_refused_before_anything_is_loaded(run_file, monkeypatch):
    monkeypatch.setattr(loop, "load", lambda *_: pytest.fail("must not load"))
    with pytest.raises(TrainerError, match=r"train\.lr_args: 'attn9' is found in no layer"):
        train(load_run(run_file, ["train.lr_args={attn9 = 1e-4}"]))
    with pytest.raises(TrainerError, match="has no argument 'amsgra'"):
        train(load_run(run_file, ["optimizer.args={amsgra = true}"]))


def test_data_that_nothing_uses_is_refused_before_its_caches_are_asked_for(run_file, monkeypatch):
    monkeypatch.setattr(loop, "load", lambda *_: pytest.fail("must not load"))
    dataset = run_file.parent / "dataset.toml"
    dataset.write_text(dataset.read_text() + 'reference_directory = "refs"\n')
    before = sorted(run_file.parent.rglob("*"))
    for work in (train, build_caches, foresee):
        with pytest.raises(TrainerError, match=r"datasets\[0\]\.reference_directory"):
            work(load_run(run_file))
    dataset.write_text(dataset.read_text().replace("reference_directory", "mask_directory"))
    for work in (build_caches, foresee):
        with pytest.raises(TrainerError, match=r"datasets\[0\]\.mask_directory: No condition uses masks"):
            work(load_run(run_file))
    assert sorted(run_file.parent.rglob("*")) == before, "nothing is encoded for nothing"
    uses = ["video.conditions=[{type = 'mask'}]"]
    foresee(load_run(run_file, uses))
    for work in (train, build_caches, foresee):
        with pytest.raises(TrainerError, match=r"Nothing would be learned: loss\.video_weight is 0 for every clip"):
            work(load_run(run_file, [*uses, "loss.video_weight=0"]))


def test_a_dataset_of_which_most_is_of_no_use_is_neither_encoded_nor_trained(run_file):
    for name in ("x", "y"):
        (run_file.parent / "clips" / f"{name}.mp4").write_bytes(b"no video at all" * 40)
        (run_file.parent / "clips" / f"{name}.txt").write_text("x")
    before = sorted(run_file.parent.rglob("*.safetensors"))
    for work in (build_caches, train):
        with pytest.raises(DataError, match=r"2 of 3 files cannot be used, and max_left_out is 0\.5"):
            work(load_run(run_file))
    assert sorted(run_file.parent.rglob("*.safetensors")) == before
    dataset = run_file.parent / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[general]\n", "[general]\nmax_left_out = 0.7\n"))
    assert train(load_run(run_file, ["train.steps=1"])).step == 1


@pytest.mark.slow
def test_memory_stays_flat_over_many_steps(run_file, monkeypatch):
    """What a run keeps does not grow with its steps, once the rows for its chart are as many as they may be."""

    class Watching(Events):
        def __init__(self) -> None:
            self.blocks: list[int] = []
            self.pages: list[int] = []

        def step(self, metrics):
            if metrics["step"] % 300 == 0:
                gc.collect()
                self.blocks.append(sys.getallocatedblocks())
                self.pages.append(int(Path("/proc/self/statm").read_text().split()[1]))

    events = Watching()
    monkeypatch.setattr(metrics, "KEPT_ROWS", 32)  # thinned again and again, as in a run of ten thousands of steps
    train(load_run(run_file, ["train.steps=1500", "train.norms_every=0", "lora.rank=1"]), events)
    assert events.blocks[-1] - events.blocks[0] < 400, (events.blocks, "an object for every third step")
    assert (events.pages[-1] - events.pages[0]) * os.sysconf("SC_PAGE_SIZE") < 4 << 20, events.pages


def test_a_kill_at_any_moment_leaves_a_run_that_goes_on(run_file):
    command = [sys.executable, "-m", "ltx2_train", "train", str(run_file), "--set", "train.save_every=1",
               "--set", "train.steps=400"]  # fmt: skip
    states = run_file.parent / "runs" / "r" / "states"
    seen = 0
    for _ in range(2):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            found = [step for step, _ in list_states(states)] if states.exists() else []
            if found and found[-1] >= seen + 3:
                break
            time.sleep(0.01)
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.wait()
        seen = list_states(states)[-1][0]
    result = train(load_run(run_file, ["train.save_every=1", f"train.steps={seen + 2}"]))
    assert [row["step"] for row in read_rows(result.folder / "metrics.jsonl")] == list(range(1, seen + 3))
    assert not list(result.folder.rglob("*.part"))


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
def test_ctrl_c_saves_and_exits_with_130(run_file):
    command = [sys.executable, "-m", "ltx2_train", "train", str(run_file), "--set", "train.steps=4000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    metrics = run_file.parent / "runs" / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(read_rows(metrics)) < 2:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Stopped after step" in errors
    assert list_states(metrics.parent / "states")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGHUP")
def test_a_terminal_that_goes_away_leaves_a_saved_state(run_file):
    def closed():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever started the tests
        os.close(1)

    command = [sys.executable, "-m", "ltx2_train", "train", str(run_file), "--set", "train.steps=4000"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=closed)
    assert process.stderr.readline()
    process.stderr.close()  # whoever read along is gone, in the middle of it
    metrics = run_file.parent / "runs" / "r" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(read_rows(metrics)) < 2 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGHUP)  # the shell sends one, and the system another
    assert process.wait(60) == 130
    assert list_states(metrics.parent / "states")[-1][0] == len(read_rows(metrics))
    assert json.loads((metrics.parent / "manifest.json").read_text())["status"] == "stopped"


def test_a_loss_that_is_not_finite_leaves_the_batch_out_and_names_it(run_file, monkeypatch):
    real = loop.ready_step

    def step(*arguments, **named):
        terms = real(*arguments, **named)
        step.calls += 1
        return times(terms, float("nan")) if step.calls == 3 else terms

    step.calls = 0
    monkeypatch.setattr(loop, "ready_step", step)
    events = StopAt(99)
    result = train(load_run(run_file), events)
    rows = read_rows(result.folder / "metrics.jsonl")
    assert [row["loss"] is None for row in rows] == [False, False, True, False, False, False]
    assert "clip" in rows[2]["skipped"][0]
    assert any("not finite" in text and "clip" in text for _, text in events.messages)
    assert all(torch.isfinite(tensor).all() for tensor in tensors(result.lora).values())


def test_five_bad_steps_in_a_row_end_the_run_with_its_state_saved(run_file, monkeypatch):
    real = loop.ready_step

    def step(*arguments, **named):
        return times(real(*arguments, **named), float("inf"))

    train(load_run(run_file, ["train.steps=2"]))
    monkeypatch.setattr(loop, "ready_step", step)
    with pytest.raises(TrainerError, match="not one of its steps was finite"):
        train(load_run(run_file, ["train.steps=2", "run.name=short"]))
    with pytest.raises(TrainerError, match="learning_rate"):
        train(load_run(run_file, ["train.steps=20"]))
    folder = run_file.parent / "runs" / "r"
    assert read_manifest(folder)["status"] == "failed"
    assert list_states(folder / "states")[-1][0] == 7


def test_a_full_disk_ends_the_run_plainly_and_keeps_the_last_state(run_file, monkeypatch):
    real = saving.save_state

    def full(path, content):
        if content["step"] == 4:
            from ltx2_train import files

            def no_space(*_, **__):
                raise OSError(28, "No space left on device")

            monkeypatch.setattr(files.os, "fsync", no_space)
        return real(path, content)

    monkeypatch.setattr(saving, "save_state", full)
    with pytest.raises(RunError, match="No space left"):
        train(load_run(run_file, ["train.save_every=2"]))
    monkeypatch.undo()
    folder = run_file.parent / "runs" / "r"
    assert [step for step, _ in list_states(folder / "states")] == [2]
    assert not list(folder.rglob("*.part"))
    assert train(load_run(run_file, ["train.save_every=2"])).step == 6


def test_a_damaged_state_and_one_of_another_run_are_passed_over(run_file):
    for name in "rq":
        with pytest.raises(Stopped):
            train(load_run(run_file, ["train.save_every=1", f"run.name={name}"]), StopAt(3))
    (_, older), (_, newest) = list_states(run_file.parent / "runs" / "r" / "states")[-2:]
    newest.write_bytes(newest.read_bytes()[:200])
    shutil.copy2(run_file.parent / "runs" / "q" / "states" / older.name, older)
    events = StopAt(99)
    result = train(load_run(run_file, ["train.save_every=1", "loss.type=mae"]), events)
    assert result.step == 6
    changed = "Changed since the run was last started, and used from its next step on: loss.type."
    assert changed in [text for _, text in events.messages]
    warned = [text for level, text in events.messages if level == "warning" and "An older state is taken" in text]
    assert ["is damaged" in text for text in warned] == [True, False]
    assert f"{older} is of another run" in warned[1]


def test_data_that_were_changed_between_two_starts_are_told(run_file):
    with pytest.raises(Stopped):
        train(load_run(run_file, ["train.save_every=1"]), StopAt(2))
    folder = run_file.parent / "runs" / "r"
    record = json.loads((folder / "data.json").read_text())
    written = (folder / "data.json").read_bytes()
    first = next(iter(record["captions"]))
    assert set(record["media"]) == set(record["captions"])
    (folder / "data.json").write_text(json.dumps({**record, "captions": {**record["captions"], first: "another"}}))
    events = StopAt(99)
    train(load_run(run_file, ["train.save_every=1"]), events)
    assert [text for _, text in events.messages if text.startswith("Changed since")] == [
        f"Changed since the run was last started, and used from its next step on: the captions of {first}."
    ]
    assert (folder / "data.json").read_bytes() == written
    (folder / "data.json").write_text(json.dumps({**record, "captions": {**record["captions"], first: "another"}}))
    train(load_run(run_file, ["train.save_every=1"]), events := StopAt(99))
    told = f"the captions of {first} were changed since its last step and were not used. Raise train.steps to go on"
    assert [told in text for _, text in events.messages if "nothing is trained" in text] == [True]


def test_training_can_start_from_a_lora_file(run_file):
    first = train(load_run(run_file, ["train.save_precision=fp32", "lora.alpha=2"]))
    second = train(
        load_run(
            run_file,
            [
                "run.name=s",
                f"lora.weights={first.lora}",
                "train.steps=1",
                "train.learning_rate=1e-12",
                "train.save_precision=fp32",
            ],
        )  # fmt: skip
    )
    before, after = load_lora_state(first.lora).entries, load_lora_state(second.lora).entries
    for name in before:
        assert torch.allclose(before[name].up @ before[name].down, after[name].up @ after[name].down, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("state", ["full", "minimal"])
def test_every_optimizer_and_kind_of_state_resumes(run_file, optimizer, state):
    more = [f"optimizer.name={optimizer}", f"train.state={state}", "lora.rank=32"]
    with pytest.raises(Stopped):
        train(load_run(run_file, more), StopAt(2))
    result = train(load_run(run_file, [*more, "train.steps=4"]))
    assert [row["step"] for row in read_rows(result.folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_steps_can_be_counted_in_epochs(run_file):
    result = train(load_run(run_file, ["train.epochs=2", "train.accumulation=2"]))
    assert result.total == 3  # three windows a pass, two a step
    assert [row["epoch"] for row in read_rows(result.folder / "metrics.jsonl")] == [0, 1, 2]
    # of steps in which several passes end, those that one of every so many ends in are due
    more = ["run.name=long", "train.epochs=5", "train.accumulation=5", "train.save_every_epochs=2"]
    folder = train(load_run(run_file, more)).folder
    assert [row["epoch"] for row in read_rows(folder / "metrics.jsonl")] == [1, 3, 5]
    saved = {path.name for path in (folder / "lora").glob("long_*.safetensors")}
    assert saved == {"long_000002.safetensors", "long_000003.safetensors"}


def test_samples_are_drawn_at_the_start_and_on_the_way(run_file):
    result = train(load_run(run_file, ["sample.every=3", "train.steps=4"]))
    names = sorted(path.name for path in (result.folder / "samples").iterdir())
    assert names == [f"step_{step:06d}_p01_s42.mp4" for step in (0, 3, 4)]


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder whose files are open")
def test_a_run_folder_that_is_deleted_meanwhile_is_an_error_and_the_lora_is_saved(run_file, tmp_path):
    run = load_run(run_file, [f"run.export_folder='{tmp_path / 'loras'}'"])
    folder = run_file.parent / "runs" / "r"

    class Deletes(Events):
        def step(self, metrics):
            if metrics["step"] == 2:
                shutil.rmtree(folder)

    with pytest.raises(RunError, match=r"was deleted or moved while the run was trained.*State and LoRA are saved"):
        train(run, Deletes())
    for lora in (folder / "lora/r_000006.safetensors", tmp_path / "loras/r/r_000006.safetensors"):
        assert load_lora_state(lora).entries
    assert read_manifest(folder)["status"] == "failed"
    assert train(run).step == 6, "its state is that of the last step"


def test_samples_whose_folder_is_deleted_meanwhile_are_not_called_drawn(run_file, tmp_path):
    class Deletes(Events):
        def progress(self, done, total, text=""):
            if text == "decoding" and done == 1:
                shutil.rmtree(tmp_path / "drawn")

    with pytest.raises(RunError, match=r"base_p01_s42\.mp4 was deleted or moved while samples were drawn"):
        sample(load_run(run_file), None, tmp_path / "drawn", Deletes(), prompts=["a ball", "a box"])
    assert [path.name for path in (tmp_path / "drawn").glob("*.mp4")] == ["base_p02_s42.mp4"]


def test_a_sample_that_fails_does_not_end_the_run(run_file, monkeypatch):
    from ltx2_train.sampling import render

    def broken(*_, **__):
        raise ValueError("no such luck")

    monkeypatch.setattr(render, "decode_frames", broken)
    events = StopAt(99)
    result = train(load_run(run_file, ["sample.every=6"]), events)
    assert result.step == 6
    assert any("no such luck" in text for level, text in events.messages if level == "warning")


def test_the_lora_changes_the_sample_and_strength_zero_does_not(run_file):
    run = load_run(run_file, ["train.steps=4", "train.learning_rate=1e-2"])
    lora = train(run).lora
    out = run_file.parent / "drawn"
    base = sample(run, None, out)
    # without a strength beside it that of the settings counts
    run_off = load_run(run_file, ["sample.strength=0"])
    files = [*sample(run_off, lora, out), *sample(run, lora, out)]
    assert [file.info["strength"] for file in files] == [0.0, 1.0]
    assert torch.equal(files[0].latents, base[0].latents)
    assert not torch.equal(files[1].latents, base[0].latents)
    assert files[1].path.exists()

    # another LoRA beside: at strength 0 nothing, alone as the one LoRA, together as both in one file
    events = StopAt(99)
    (over,) = sample(run, None, out, events, beside=[(lora, 1.0)])
    lost = [text for _, text in events.messages if "will be replaced" in text]
    assert [text.split(" already")[0] for text in lost] == [f"{base[0].path.name} is in {out}"]
    assert torch.allclose(over.latents, files[1].latents, atol=1e-5)
    (off,) = sample(run, None, out, beside=[(lora, 0.0)])
    assert torch.equal(off.latents, base[0].latents)
    twin = Path(shutil.copy2(lora, run_file.parent / "twin.safetensors"))
    both = merge_loras([lora, twin], run_file.parent / "both.safetensors", [1.0, 0.5]).path
    (merged,), (two,) = sample(run, both, out), sample(run, lora, out, beside=[(twin, 0.5)])
    assert torch.allclose(two.latents, merged.latents, atol=1e-4)
    assert two.info["beside"] == {twin.name: 0.5}


def test_an_image_can_be_the_first_frame(run_file):
    from PIL import Image

    Image.new("RGB", (80, 70), (200, 30, 30)).save(run_file.parent / "first frame.png")
    (run_file.parent / "prompts.txt").write_text("a ball --i first frame.png --d 5\n")
    files = sample(load_run(run_file, ["sample.prompts=prompts.txt"]), None, run_file.parent / "drawn")
    plain = sample(load_run(run_file, ["sample.seed=5"]), None, run_file.parent / "drawn", prompts=["a ball"])
    assert not torch.equal(files[0].latents[:, :1], plain[0].latents[:, :1])


def test_saves_and_samples_can_be_counted_in_epochs(run_file):
    more = ["train.steps=7", "train.save_every_epochs=1", "sample.every_epochs=2", "sample.at_start=false"]
    folder = train(load_run(run_file, more)).folder  # three windows a pass
    saved = sorted(path.name for path in (folder / "lora").glob("*.safetensors"))
    assert saved == ["r.safetensors", *(f"r_{step:06d}.safetensors" for step in (3, 6, 7))]
    drawn = sorted(path.name[:11] for path in (folder / "samples").glob("*.mp4"))
    assert drawn == ["step_000006", "step_000007"]


def test_text_in_the_full_form_trains_as_well(run_file):
    from ltx2_train import build_caches

    compact = train(load_run(run_file, ["run.name=compact"]))
    more = ["cache.text_form=full", "cache.text_dtype=fp32"]
    build_caches(load_run(run_file, more))
    assert (run_file.parent / "cache" / "clip_ltx2_te.safetensors").exists()
    full = train(load_run(run_file, [*more, "run.name=full"]))
    losses = [[row["loss"] for row in read_rows(run.folder / "metrics.jsonl")] for run in (full, compact)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)


def test_validation_clips_are_drawn_from_their_first_frame(run_file):
    from ltx2_train import build_caches

    dataset = run_file.parent / "dataset.toml"
    clips = run_file.parent / "held_out"
    clips.mkdir()
    for ending in ("mp4", "txt"):
        (clips / f"v.{ending}").write_bytes((run_file.parent / "clips" / f"clip.{ending}").read_bytes())
    dataset.write_text(
        dataset.read_text()
        + '\n[[validation_datasets]]\nvideo_directory = "held_out"\ncache_directory = "held_cache"\n'
    )
    run = load_run(run_file, ["sample.every=6", "sample.validation_clips=1", "sample.at_start=false"])
    build_caches(run)
    folder = train(run).folder
    assert len(list((folder / "samples").glob("step_000006_p*.mp4"))) == 2


def test_the_text_parts_may_lie_in_another_checkpoint(run_file, tiny):
    from safetensors.torch import load_file, save_file

    from ltx2_train.weights.reader import TensorFile

    bare = run_file.parent / "bare.safetensors"
    tensors = load_file(tiny.checkpoint)
    with TensorFile(tiny.checkpoint) as file:
        kept = {name: value for name, value in tensors.items() if "embeddings_connector" not in name
                and not name.startswith("text_embedding_projection")}  # fmt: skip
        save_file(kept, str(bare), file.metadata)
    with pytest.raises(TrainerError, match="text projection"):
        train(load_run(run_file, [f"model.checkpoint={bare}"]))
    assert train(load_run(run_file, [f"model.checkpoint={bare}", f"model.text_projection={tiny.checkpoint}"])).step == 6
