"""TensorBoard, Weights & Biases and the hub get what a run tells, and never end it."""

import shutil
import sys
import types
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from PIL import Image

from ltx2_train.cli.demo_media import draw_sound
from ltx2_train.config import make_run
from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.training import trackers
from ltx2_train.training.trackers import check_trackers, tracked

ROW = {"step": 3, "loss": 0.5, "loss_audio": None, "epoch": 1, "skipped": None, "total": 9, "eta": 1.0}


class Host(Events):
    def __init__(self):
        self.said, self.steps, self.files = [], [], []

    def message(self, text, level="info"):
        self.said.append((level, text))

    def step(self, metrics):
        self.steps.append(metrics["step"])

    def saved(self, kind, path):
        self.files.append(path.name)

    def warnings(self):
        return [text for level, text in self.said if level == "warning"]


def run_of(tmp_path, **tables):
    return make_run({"run": {"name": "fox"}, **tables})


def test_without_a_tracker_nothing_is_between_host_and_run(tmp_path):
    host = Host()
    with tracked(run_of(tmp_path), tmp_path, host) as events:
        assert events is host


def test_tensorboard_gets_every_number_and_hides_steps_that_are_taken_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, host = run_of(tmp_path, log={"report_to": "tensorboard"}), Host()
    check_trackers(run)
    for losses in ({1: 0.9, 2: 0.8, 3: 0.7}, {3: 0.6, 4: 0.5}):  # stopped after 2 states, and gone on
        with tracked(run, tmp_path / "fox", host) as events:
            for step, loss in losses.items():
                events.step({**ROW, "step": step, "loss": loss})
    found = EventAccumulator(str(tmp_path / "fox" / "tensorboard")).Reload()
    assert {(one.step, round(one.value, 3)) for one in found.Scalars("loss")} == {
        (1, 0.9),
        (2, 0.8),
        (3, 0.6),
        (4, 0.5),
    }
    assert set(found.Tags()["scalars"]) == {"loss", "epoch"}
    assert host.steps == [1, 2, 3, 3, 4]
    assert not host.warnings()


class FakeWandb(types.ModuleType):
    """What of the library is used, and what it was given."""

    def __init__(self, fails_at=None):
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace()
        self.given, self.logged, self.finished, self._fails_at = {}, [], 0, fails_at

    def init(self, **given):
        self.given = given
        return self

    def Settings(self, **given):  # the name of the library
        return given

    def define_metric(self, *_, **__):
        pass

    def log(self, row):
        if row.get("step") == self._fails_at:
            raise OSError("no way\nto the server")
        self.logged.append(row)

    def finish(self):
        self.finished += 1

    def Video(self, path, **_):
        return "video", Path(path).name

    def Audio(self, path, **_):
        return "audio", Path(path).name

    def Image(self, path, **_):
        return "image", Path(path).name


@pytest.fixture
def wandb(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))

    def install(**options):
        fake = FakeWandb(**options)
        monkeypatch.setitem(sys.modules, "wandb", fake)
        return fake

    return install


def test_wandb_without_a_key_stays_here_and_says_so(wandb, tmp_path, monkeypatch):
    fake, host = wandb(), Host()
    run = run_of(tmp_path, log={"report_to": "wandb"}, wandb={"project": "foxes", "tags": ["a"]})
    check_trackers(run)
    with tracked(run, tmp_path / "fox", host) as events:
        events.step(ROW)
        for name in ("step_000003_p01_s42.mp4", "step_000003_p02_s42.wav", "step_000003_p03_s42.png"):
            events.sample(tmp_path / name, {"prompt": "a fox", "step": 3})
    assert (fake.given["mode"], fake.given["project"], fake.given["name"]) == ("offline", "foxes", "fox")
    assert "no key" in host.warnings()[0]
    assert fake.logged[0] == {"loss": 0.5, "epoch": 1.0, "step": 3}
    assert [list(row.values())[0] for row in fake.logged[1:]] == [
        ("video", "step_000003_p01_s42.mp4"),
        ("audio", "step_000003_p02_s42.wav"),
        ("image", "step_000003_p03_s42.png"),
    ]
    assert fake.finished == 1
    assert str(tmp_path) not in str(fake.given["config"])

    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    with tracked(run, tmp_path / "fox", host):
        pass
    assert fake.given["mode"] is None
    monkeypatch.setenv("WANDB_MODE", "offline")  # as the person says
    assert len(host.warnings()) == 1


@pytest.mark.slow
def test_the_real_library_keeps_numbers_films_sounds_and_pictures_here(tmp_path, monkeypatch, drawn_clip):
    """As above, with what is installed: an argument that it does not have would be a warning."""
    pytest.importorskip("wandb", reason="wandb is not among what tests install")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    run, host, folder = run_of(tmp_path, log={"report_to": "wandb"}), Host(), tmp_path / "fox"
    folder.mkdir()
    shutil.copyfile(drawn_clip, folder / "step_000003_p01_s42.mp4")
    draw_sound(folder / "step_000003_p02_s42.wav", 0.5)
    Image.new("RGB", (32, 32)).save(folder / "step_000003_p03_s42.png")
    check_trackers(run)
    with tracked(run, folder, host) as events:
        events.step(ROW)
        for path in sorted(folder.glob("step_*")):
            events.sample(path, {"prompt": "a fox", "step": 3})
    assert len(host.warnings()) == 1, host.warnings()  # that there is no key
    (log,) = (folder / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"loss" in log.read_bytes()
    kept = sorted(path.name.partition("_")[0] + path.suffix for path in log.parent.glob("files/media/*/samples/*"))
    assert kept == ["01.mp4", "02.wav", "03.png"]


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(wandb, tmp_path):
    fake, host = wandb(fails_at=4), Host()
    run = run_of(tmp_path, log={"report_to": "wandb"}, wandb={"log_validation_videos": False})
    with tracked(run, tmp_path / "fox", host) as events:
        for step in (3, 4, 5):
            events.step({**ROW, "step": step})
        events.sample(tmp_path / "x.mp4", {})
    assert host.steps == [3, 4, 5]
    assert [row["step"] for row in fake.logged] == [3]
    assert host.warnings()[1] == "wandb gets nothing more of this run, which goes on: OSError: no way"


def fake_api(monkeypatch):
    """The client of the installed library, whose methods refuse arguments that the real ones do not have; and the
    repositories and files that it was given."""
    import huggingface_hub

    api, repos, files = create_autospec(huggingface_hub.HfApi, instance=True), [], []

    def make(repo, **options):
        repos.append((repo, options["private"]))
        return huggingface_hub.RepoUrl(f"https://huggingface.co/me/{repo}")

    def upload(path_or_fileobj, path_in_repo, repo_id, **_):
        if "000002" in path_in_repo:
            raise ConnectionError("unplugged")
        files.append((repo_id, path_in_repo, Path(path_or_fileobj).name))

    api.create_repo.side_effect, api.upload_file.side_effect = make, upload
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_x")
    return api, repos, files


def test_a_name_that_no_repository_has_is_told_without_a_pattern(tmp_path):
    with pytest.raises(ConfigError, match="hub.repo: must be a name, or owner/name, of letters") as caught:
        run_of(tmp_path, hub={"push": True, "repo": "my foxes"})
    assert "pattern" not in str(caught.value)
    with pytest.raises(ConfigError, match="wandb.project: must not hold / :, which no project has"):
        run_of(tmp_path, log={"report_to": "wandb"}, wandb={"project": "a/b:c"})


def test_every_lora_goes_to_the_hub_and_what_fails_is_said(tmp_path, monkeypatch):
    (api, repos, files), host = fake_api(monkeypatch), Host()
    with pytest.raises(TypeError):  # or the test below would show nothing
        api.upload_file(path="x")
    run = run_of(tmp_path, hub={"push": True, "repo": "foxes", "path": "loras/"})
    check_trackers(run)
    with tracked(run, tmp_path / "fox", host) as events:
        for step in (1, 2, 3):
            events.saved("lora", tmp_path / f"fox_{step:06d}.safetensors")
        events.saved("state", tmp_path / "step_000003.safetensors")
    assert repos == [("foxes", True)]
    assert files == [
        ("me/foxes", f"loras/{name}", name) for name in ("fox_000001.safetensors", "fox_000003.safetensors")
    ]
    assert host.warnings() == [
        "fox_000002.safetensors was not uploaded to the Hugging Face hub, and stays here: ConnectionError: unplugged"
    ]
    assert len(host.files) == 4


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        (
            {"log": {"report_to": "wandb"}},
            "log.report_to = wandb needs wandb, which is not installed. Run: pip install",
        ),
        ({"hub": {"push": True}}, r"hub\.repo is empty"),
        ({"hub": {"push": True, "repo": "a/b"}}, "there is no token"),
        ({"hub": {"push": True, "repo": "a/b/c"}}, "hub.repo"),
    ],
)
def test_what_is_missing_is_said_before_training(tmp_path, monkeypatch, tables, says):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    monkeypatch.setattr(trackers, "why_missing", lambda name: "is not installed" if name == "wandb" else "")
    with pytest.raises(ConfigError, match=says):
        check_trackers(run_of(tmp_path, **tables))
