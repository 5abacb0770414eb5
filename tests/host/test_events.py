"""What the page hears of a job, and what the job hears of ComfyUI."""

from __future__ import annotations

import asyncio
import json
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_comfy import InterruptProcessingException
from PIL import Image

from ltx2_train.dataset.notes import DataNote


class Clock:
    """A clock that tests move by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def row(step, loss=1.0, seconds=0.5, **more):
    return {"step": step, "loss": loss, "seconds": seconds, "lr": 1e-4, **more}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def events(nodes, clock):
    return nodes.host.ComfyEvents("7", "my_lora", widget=True, clock=clock)


def test_json_safe_leaves_nothing_json_cannot_carry(nodes):
    value = {
        "nan": float("nan"),
        "inf": np.float64("inf"),
        "np": np.float32(0.5),
        "tensor": torch.tensor(2.0),
        "path": Path("a") / "b",
        "list": [1, (2, float("-inf"))],
        3: True,
    }
    safe = nodes.live.json_safe(value)
    assert json.loads(json.dumps(safe, allow_nan=False)) == safe
    assert safe["nan"] is safe["inf"] is safe["list"][1][1] is None
    assert (safe["np"], safe["tensor"], safe["3"]) == (0.5, 2.0, True)
    assert isinstance(safe["path"], str)


def test_at_most_two_messages_a_second_are_sent(events, comfy, clock):
    events.stage("train", 100)
    comfy.sent.clear()
    for step in range(1, 21):  # two seconds of ten steps each
        clock.now += 0.1
        events.step(row(step))
    assert 3 <= len(comfy.events("ltx2_train.step")) <= 4
    assert all(sid is None for _, _, sid in comfy.sent)


def test_a_loss_that_is_not_finite_is_sent_as_nothing(events, comfy, clock):
    events.stage("train", 10)
    clock.now += 1
    events.step(row(1, loss=float("nan")))
    shown = comfy.events("ltx2_train.step")[-1]
    assert shown["loss"] is None
    assert shown["curve"] == [[1, None, None]]


def test_the_view_has_pace_time_left_and_curve(events, comfy, clock):
    events.stage("train", 50)
    for step in range(1, 11):
        clock.now += 1
        events.step(row(step, loss=1 / step, seconds=2.0, total=50))
    shown = comfy.events("ltx2_train.step")[-1]
    assert (shown["step"], shown["done"], shown["total"]) == (10, 10, 50)
    assert shown["seconds_a_step"] == 2.0
    assert shown["seconds_left"] == 80.0
    assert [point[0] for point in shown["curve"]] == list(range(1, 11))
    assert comfy.progress[-1][:3] == ("7", 10.0, 50.0)
    events.stage("sample", 4)
    events.progress(1, 4)
    shown = events.shown()
    assert (shown["stage"], shown["done"], shown["total"], shown["seconds_left"]) == ("sample", 1, 4, 80.0)
    events.stage("train", 50)
    assert events.shown()["done"] == 10, "it goes on where it was"


def test_what_was_warned_of_stands_below_the_last_word(nodes, comfy):
    events = nodes.host.ComfyEvents("7")
    events.message("a note")
    for text in ("one", "two", "two", "three", "four", "five"):
        events.message(text, "warning")
    events.finish("finished", "4 made")
    lines = [line.strip() for line in comfy.texts[-1][1].splitlines()]
    assert lines == ["4 made", "... and 2 before, in the log", "three", "four", "five"]
    events.finish("failed", "no clips")
    assert comfy.texts[-1][1].strip() == "no clips"


def test_what_is_told_of_a_dataset_is_shown_whole_with_what_matters_first(nodes, comfy):
    events = nodes.host.ComfyEvents("7")
    events.message(DataNote("count", "Captions as they are read"))
    events.message("nothing of a dataset")
    for kind, text in (
        ("copy", "b is a copy"),
        ("caption", "c looks like a refusal"),
        ("count", "Of 4 files"),
        ("left out", "1 file is left out:\n  d.mp4: is empty"),
    ):
        events.message(DataNote(kind, text), "warning")
    events.message("audio is not trained", "warning")
    events.finish("finished", "4 made", of_dataset=True)
    told = ["c looks like a refusal", "b is a copy", "audio is not trained", "Captions as they are read", "Of 4 files"]
    lines = [line.strip() for line in comfy.texts[-1][1].splitlines()]
    assert lines == ["4 made", "1 file is left out:", "d.mp4: is empty", *told]
    assert events.with_told("4 made\nd.mp4: is empty").splitlines() == ["4 made", "d.mp4: is empty", *told]
    for number in range(40):
        events.message(DataNote("copy", f"copy {number}"), "warning")
    events.finish("finished", "4 made", of_dataset=True)
    lines = [line.strip() for line in comfy.texts[-1][1].splitlines()]
    assert lines[1:4] == ["1 file is left out:", "d.mp4: is empty", "c looks like a refusal"]
    assert lines[-1] == "... and 17 more, in the log"
    assert len(events.with_told("").splitlines()) == 46, "the summary has all of it"


def test_that_a_run_waits_is_shown_over_a_warning_until_its_next_step(events, comfy):
    events.stage("train", 10)
    events.message("Learning rates from here on: main 0.1.", "warning")
    events.message("Paused after step 3 of 10.")
    shown = comfy.events("ltx2_train.step")[-1]["message"]
    assert shown == "Paused after step 3 of 10.", "at once: the page offers to go on"
    events.step(row(4))
    assert events.shown()["message"] == "Learning rates from here on: main 0.1."
    events.message("Paused after step 4 of 10.")
    events.finish("stopped", "Stopped after step 4.")
    assert events.shown()["message"] == "Stopped after step 4."


def test_what_ends_without_a_word_is_not_taken_for_running(nodes, events, comfy, clock):
    events.stage("encode", 3)
    other = nodes.host.ComfyEvents("8", clock=clock)
    again = nodes.host.ComfyEvents("7", clock=clock)
    assert list(nodes.host.page._views)[-2:] == ["8", "7"], "the newest is the last"
    other.close()
    assert (other.shown()["state"], again.shown()["state"]) == ("stopped", "running")
    other.finish("failed", "no clips")
    assert other.shown()["state"] == "failed"


def test_a_long_run_keeps_its_whole_curve_in_few_points(nodes):
    view = nodes.live.LiveView("7")
    for step in range(1, 20_001):
        view.step(row(step))
    curve = view.curve()
    assert 60 <= len(curve) <= 120
    assert curve[0][0] < 600
    assert curve[-1][0] > 19_900
    assert len(json.dumps(view.payload())) < 20_000


def test_a_long_run_is_taken_up_from_the_rows_that_are_shown(nodes, tmp_path, monkeypatch):
    monkeypatch.setattr(nodes.live, "KEPT_ROWS", 16)
    rows = [row(step, loss=1 / step, **({"val_loss": 0.5} if step == 7 else {})) for step in range(1, 101)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    loaded, followed = nodes.live.LiveView("7"), nodes.live.LiveView("7")
    loaded.load(tmp_path)
    for one in rows:
        followed.step(one)
    assert loaded.curve() == followed.curve()
    assert [point[0] for point in loaded.curve()] == list(range(8, 101, 8))
    assert loaded.payload()["validation"] == [[7, 0.5]]
    assert len(nodes.live.core.read_rows(tmp_path / "metrics.jsonl", 8)) == 13, "no other line is read"


def test_steps_that_are_run_again_after_a_resume_replace_the_old_ones(nodes, tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row(step)) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    view = nodes.live.LiveView("7")
    view.load(tmp_path)
    view.step(row(4, loss=0.25))
    assert [point[:2] for point in view.curve()] == [[1, 1.0], [2, 1.0], [3, 1.0], [4, 0.25]]
    assert view.payload()["marks"] == {"save": [], "sample": [], "resume": [3]}


def test_the_view_has_the_validation_and_marks_of_what_happened(nodes, events, comfy, clock, tmp_path):
    events.stage("train", 50)
    for step in range(1, 11):
        clock.now += 1
        events.step(row(step, **({"val_loss": 2 / step} if step % 5 == 0 else {})))
        if step == 4:
            events.saved("state", tmp_path)
            events.saved("lora", tmp_path)
    events.sample(comfy.folder("output") / "step_000010_p01_s1.mp4", {"step": 10})
    shown = comfy.events("ltx2_train.step")[-1]
    assert shown["validation"] == [[5, 0.4], [10, 0.2]]
    assert shown["marks"] == {"save": [4], "sample": [10], "resume": []}
    view = events.view
    for step in range(11, 2000):
        view.mark("save", step)
        view.step(row(step, val_loss=1.0))
    assert len(view.payload()["marks"]["save"]) == 200
    assert len(view.payload()["validation"]) == 120, "the newest"


def test_a_sample_is_sent_with_the_address_the_page_loads_it_from(events, comfy):
    path = comfy.folder("output", "ltx2_runs", "my_lora", "samples") / "step_000002_p01_s42.png"
    Image.new("RGB", (32, 32), "red").save(path)
    events.sample(path, {"prompt": "a fox", "seed": 42, "step": 2})
    sent = comfy.events("ltx2_train.sample")[-1]
    expected = {"filename": path.name, "subfolder": "ltx2_runs/my_lora/samples", "type": "output"}
    assert sent["sample"]["file"] == expected
    assert comfy.events("ltx2_train.step")[-1]["sample"]["prompt"] == "a fox"


def test_a_client_without_our_page_gets_picture_and_text(events, comfy, clock):
    path = comfy.folder("output") / "sample.png"
    Image.new("RGB", (64, 32), "#ff0000").save(path)
    events.stage("train", 10)
    events.step(row(1))
    events.sample(path, {})
    clock.now += 10
    events.step(row(2))
    kind, picture, _ = comfy.progress[-1][3]
    assert kind == "JPEG"
    assert picture.getpixel((picture.width - 10, picture.height // 2)) == (255, 0, 0)
    assert comfy.texts[-1][1].startswith("train 2/10 | loss 1.0000 | 0.50 s/step")


def test_our_page_draws_for_itself(nodes, events, comfy, clock):
    nodes.host.add_routes()
    request = types.SimpleNamespace(query={"client": "tab"})
    asyncio.run(comfy.routes["/ltx2_train/live"](request))
    events.stage("train", 10)
    clock.now += 10
    events.step(row(1))
    assert comfy.texts == []
    assert all(image is None for *_, image in comfy.progress)
    assert comfy.events("ltx2_train.step")


def test_a_page_opened_in_the_middle_gets_the_whole_view(nodes, events, comfy, clock):
    nodes.host.add_routes()
    events.stage("train", 10)
    events.step(row(3, loss=float("inf")))
    response = asyncio.run(comfy.routes["/ltx2_train/live"](types.SimpleNamespace(query={})))
    view = json.loads(response.text)["7"]
    assert (view["title"], view["step"], view["loss"]) == ("my_lora", 3, None)


def test_an_interrupt_is_seen_but_left_for_the_end(events, comfy):
    assert events.should_stop() is False
    comfy.interrupted = True
    events.stage("train", 10)
    events.step(row(1))
    assert events.should_stop() is True
    assert events.should_stop() is True
    assert comfy.polls_that_consume == 0


def test_one_stop_is_one_of_all_presses_for_the_run(nodes, comfy, monkeypatch):
    import server

    def press(run, kind="LTX2T_TrainLoRA"):
        prompt = {"5": {"class_type": kind, "inputs": {"run_name": run}}, "6": {"class_type": "Other"}}
        return (0, f"{run} {kind}", prompt, {}, [])

    presses = [press("fox"), press("cat"), press("fox", "LTX2T_Monitor"), press("fox", "LTX2T_TrainSlider")]
    queue = types.SimpleNamespace(queue=list(presses), currently_running={})
    monkeypatch.setattr(server.PromptServer.instance, "prompt_queue", queue, raising=False)
    events = nodes.host.ComfyEvents("5", "fox", widget=True)
    nodes.train.tell_end(events, nodes.train.Stopped("Stopped after step 3."))
    assert events.view.payload()["state"] == "stopped"
    assert events.view.payload()["message"] == "Stopped after step 3. It was queued 2 times more; that is taken back."
    ended = []
    for _ in range(2):  # once each: the same prompt may be sent again
        for item in presses:
            queue.currently_running = {0: item}
            try:
                with nodes.host.training_job():
                    pass
            except InterruptProcessingException:
                ended.append(item)
    assert ended == [presses[0], presses[3]]
    nodes.train.tell_end(events, ValueError("no"))
    assert events.view.payload()["state"] == "failed"


def test_a_stop_is_reported_as_an_interrupt_after_the_core_has_saved(nodes, comfy):
    comfy.interrupted = True
    saved = []

    @nodes.host.training_job()
    def core():
        saved.append(comfy.polls_that_consume)
        raise nodes.model.core.Stopped("Stopped after step 3 of 9.")

    with pytest.raises(InterruptProcessingException):
        core()
    assert saved == [0]
    assert comfy.interrupted is False


def test_a_user_error_reaches_the_node_as_its_plain_sentence(nodes):
    with pytest.raises(RuntimeError) as caught, nodes.host.training_job():
        raise nodes.model.core.TrainerError("The folder is empty. Choose another.")
    assert str(caught.value) == "The folder is empty. Choose another."
    assert type(caught.value) is RuntimeError
    assert caught.value.__suppress_context__


def test_a_job_trains_although_nodes_run_in_inference_mode(nodes):
    with torch.inference_mode():
        with nodes.host.training_job():
            weight = torch.ones(2, requires_grad=True)
            (weight * 3).sum().backward()
        assert torch.is_inference_mode_enabled()
    assert weight.grad.tolist() == [3.0, 3.0]


def test_parts_of_work_are_shown_in_per_cent_with_the_count_in_words(events, comfy):
    events.stage("encode video", 1_000_000)
    events.progress(123_456, 1_000_000, "5/40 clip.mp4")
    assert (events.view.done, events.view.total) == (12, 100)
    assert events.view.status_line() == "encode video 12/100 | 5/40 clip.mp4"
    events.progress(1_000_000, 1_000_000, "40/40 clip.mp4")
    assert comfy.progress[-1][:3] == ("7", 100.0, 100.0)
