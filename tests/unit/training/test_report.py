"""The page of a run: everything in it, nothing from elsewhere, and no text of a user as markup."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest
import torch

from ltx2_train import write_report
from ltx2_train.cli import main
from ltx2_train.errors import RunError
from ltx2_train.events import Events
from ltx2_train.training import report


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [about for name, about in self.tags if name == tag]


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "fox"
    (folder / "samples").mkdir(parents=True)
    manifest = {"status": "finished", "step": 40, "total": 40, "versions": {"torch": "2.11.0 <b>"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = [{"step": 0, "val_loss": 0.9}]
    for step in range(1, 41):
        row = {"step": step, "loss": 1 / step, "lr": 1e-4, "grad_norm": 1.0, "seconds": 0.5}
        rows.append({**row, **({"val_loss": 0.8} if step % 20 == 0 else {})})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\nhalf a li")
    (folder / "run.toml").write_text('comment = "<script>alert(1)</script>"\n')
    for name in ("step_000020_p01_s42.mp4", "step_000020_p01_s42_ema.mp4", "step_000040_p02_s7.png", "notes.txt"):
        (folder / "samples" / name).write_bytes(b"media")
    return folder


def test_the_page_holds_curves_samples_and_settings(run_folder):
    path = write_report(run_folder)
    assert path == run_folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert "finished, 40 of 40 steps. A step took 0.50 s" in page.text
    curves = [about["points"].split() for about in page.all("polyline")]
    assert [len(points) for points in curves] == [40, 3, 40, 40], "training, validation, rate, norm"
    heads = re.findall(r"<th>(prompt[^<]*)</th>", text)
    assert heads == ["prompt 1, seed 42", "prompt 1, seed 42, EMA", "prompt 2, seed 7"]
    assert len(page.all("video")) == 2
    assert len(page.all("img")) == 1
    assert "<script>alert(1)</script>" in page.text, "as text"
    assert not page.all("script")
    assert "torch 2.11.0 <b>" in page.text
    assert report.versions()["torch"] == torch.__version__


def test_a_run_that_ends_leaves_its_page_and_says_what_it_could_not(run_folder, tmp_path):
    told = []

    class Host(Events):
        def message(self, text, level="info"):
            told.append((level, text))

    report.leave_report(run_folder, Host())
    assert (run_folder / "report.html").is_file()
    assert not told
    report.leave_report(tmp_path / "gone", Host())
    assert not (tmp_path / "gone").exists()
    (run_folder / "manifest.json").unlink()
    report.leave_report(run_folder, Host())
    assert [level for level, _ in told] == ["warning"]
    assert "report.html, was left out: " in told[0][1]


def test_the_oldest_of_very_many_samples_are_linked(run_folder, monkeypatch):
    monkeypatch.setattr(report, "ROOM", 12)  # of three samples of 5 bytes
    page = Page(write_report(run_folder).read_text(encoding="utf-8"))
    sources = [about["src"] for about in (*page.all("video"), *page.all("img"))]
    assert [source for source in sources if not source.startswith("data:")] == ["samples/step_000020_p01_s42.mp4"]


def test_nothing_comes_from_elsewhere_and_large_samples_are_linked(run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "LARGEST", 4)
    assert main(["report", str(run_folder)]) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "report.html")
    page = Page((run_folder / "report.html").read_text(encoding="utf-8"))
    assert page.all("img")[0]["src"] == "samples/step_000040_p02_s7.png"
    monkeypatch.setattr(report, "LARGEST", 100)
    page = Page(write_report(run_folder, tmp_path / "out.html").read_text(encoding="utf-8"))
    addresses = [value or "" for _, about in page.tags for name, value in about.items() if name in ("src", "href")]
    assert addresses
    assert all(address.startswith("data:") for address in addresses)


def test_a_page_takes_the_place_of_a_page_alone(run_folder, tmp_path):
    (lora := tmp_path / "a.safetensors").write_bytes(b"weights")
    with pytest.raises(RunError, match=r"a\.safetensors is there already and is no page"):
        write_report(run_folder, lora)
    assert lora.read_bytes() == b"weights"
    (tmp_path / "empty.html").touch()
    for name in ("empty.html", "new.html", "new.html"):
        assert write_report(run_folder, tmp_path / name).read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (None, "metrics.jsonl is missing, so the page has no curves."),
        (b"\xff\x00 not a row\n", "metrics.jsonl has no row that can be read, so the page has no curves."),
        (7, "metrics.jsonl has no row that can be read of step 7: the curves have a gap there."),
        ((7, 8), "metrics.jsonl has no row that can be read of 2 of 40 steps, from step 7 on: the curves"),
    ],
)
def test_what_the_folder_lacks_is_told_on_the_page_and_beside_it(run_folder, capsys, metrics, told):
    path = run_folder / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.unlink()
    if isinstance(metrics, bytes):
        path.write_bytes(metrics)
    elif metrics is not None:
        cut = metrics if isinstance(metrics, tuple) else (metrics,)
        path.write_text("".join("half\n" if step in cut else line for step, line in enumerate(lines)))
    (run_folder / "run.toml").unlink()
    assert main(["report", str(run_folder)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(run_folder / "report.html")
    page = Page((run_folder / "report.html").read_text()).text
    for text in (told, "run.toml is missing, so the page does not show the settings."):
        assert text in said.err
        assert text in page


def test_a_run_without_a_step_and_a_folder_that_is_none(tmp_path):
    with pytest.raises(RunError, match="no folder of a run"):
        write_report(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"status": "running", "step": 0}))
    (tmp_path / "run.toml").touch()
    assert "running, 0 of ? steps." in write_report(tmp_path).read_text(encoding="utf-8")
