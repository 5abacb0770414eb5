"""The five nodes one after the other on the pretended ComfyUI: a clip becomes a LoRA becomes a video.

It is long: one chain, looked at after each of its nodes.
"""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import fake_comfy
import pytest
import torch
from fake_comfy import InterruptProcessingException
from safetensors.torch import save_file

from ltx2_train import DatasetConfig
from ltx2_train.weights.tiny import make_tiny

SIZE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}
RUN = {
    "steps": 3,
    "rank": 2,
    "learning_rate": 1e-3,
    "train_seed": 7,
    "sample_every": 0,
    "sample_prompts": "a ball",
    "if_exists": "continue",
}
SMALL = {"sample_width": 64, "sample_height": 64, "sample_frames": 9, "sample_steps": 2, "sample_guidance": 1.0}
DRAW = {"strength": 1.0, "width": 64, "height": 64, "frames": 9, "steps": 2, "guidance": 1.0, "seed": 3}


@pytest.fixture(scope="module")
def comfy(tmp_path_factory, tiny, drawn_clip: Path):
    """One pretended ComfyUI for the whole file, so that the caches are made once; each test has a run of its own."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        fake = fake_comfy.install(monkeypatch, tmp_path_factory.mktemp("comfy"))
        folder = fake.folder("input", "ball")
        shutil.copy2(drawn_clip, folder / "clip.mp4")
        (folder / "clip.txt").write_text("a red ball bounces")
        link(tiny.checkpoint, fake.folder("models", "checkpoints") / "tiny.safetensors")
        link(tiny.text_encoder, fake.folder("models", "text_encoders") / "gemma.safetensors")
        yield fake


@pytest.fixture
def chain(nodes, comfy):
    """Runs the chain up to a node and gives that node's outputs."""
    comfy.sent.clear()

    class Chain:
        runs = comfy.folder("output", "ltx2_runs")

        def base(self, checkpoint="tiny.safetensors", **more):
            return nodes.LoadBaseModel.execute(
                checkpoint=checkpoint, text_encoder="gemma.safetensors", precision="fp32", device="cpu", **more
            ).args

        def clips(self, **more):
            given = {"folder": "ball", "path": "", "trigger_word": "ohwx", "fps": 25.0, **more}
            return nodes.LoadTrainingClips.execute(**given).args

        def prepared(self, **more):
            return nodes.PrepareDataset.execute(model=self.base()[0], dataset=self.clips()[0], **{**SIZE, **more}).args

        def trained(self, run_name, **more):
            settings = {**RUN, **SMALL, "run_name": run_name, **more}
            return nodes.TrainLoRA.execute(prepared=self.prepared()[0], **settings)

    # as in ComfyUI, where nodes run in inference mode
    with torch.inference_mode():
        yield Chain()


def link(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def test_the_base_is_described_and_nothing_is_loaded(chain):
    (model,) = chain.base()
    assert repr(model).startswith("<LTX-2.3")
    assert set(model.tables["model"]) >= {"checkpoint", "text_encoder", "precision"}


def test_ltx_video_reads_with_comfyuis_t5_tokenizer(nodes, comfy, monkeypatch, tmp_path, tmp_path_factory):
    tiny = make_tiny(tmp_path_factory.mktemp("ltxv"), "ltxv-2b")  # its files stay in the folder of all these tests
    models, tree = comfy.folder("models"), tmp_path / "ComfyUI" / "comfy" / "text_encoders" / "t5_tokenizer"
    (tree.parent).mkdir(parents=True)
    shutil.copytree(tiny.text_encoder.parent / "t5_tokenizer", tree)
    monkeypatch.setattr(sys.modules["folder_paths"], "base_path", str(tmp_path / "ComfyUI"), raising=False)
    link(tiny.checkpoint, models / "checkpoints" / "ltxv.safetensors")
    link(tiny.text_encoder, models / "text_encoders" / "t5.safetensors")
    shutil.copytree(tiny.gemma_folder, models / "text_encoders" / "pixart")
    chosen = {"checkpoint": "ltxv.safetensors", "device": "cpu", "precision": "fp32"}
    (model,) = nodes.LoadBaseModel.execute(text_encoder="t5.safetensors", **chosen).args
    assert repr(model).startswith("<LTX-Video 2B")
    assert model.tables["gemma"]["tokenizer"] == str(tree)
    assert "pixart" in nodes.host.text_encoder_names()
    (model,) = nodes.LoadBaseModel.execute(text_encoder="pixart", **chosen).args
    assert "tokenizer" not in model.tables.get("gemma", {}), "its own"
    with pytest.raises(RuntimeError, match="LTX-Video 2B, which has no sound"):
        nodes.LoadBaseModel.execute(text_encoder="pixart", mode="av", **chosen)


def test_a_file_that_is_no_base_is_refused_in_plain_words(comfy, chain):
    models = comfy.folder("models")
    link(models / "text_encoders" / "gemma.safetensors", models / "checkpoints" / "wrong.safetensors")
    with pytest.raises(RuntimeError, match="wrong.safetensors"):
        chain.base("wrong.safetensors")


@pytest.mark.parametrize("given", [{"text_encoder_placement": "layers"}, {"text_encoder_precision": "8bit"}])
def test_the_text_encoder_in_little_memory_makes_the_captions(nodes, chain, given):
    (model,) = chain.base(**given)
    (key, value) = next(iter(given.items()))
    assert model.tables["gemma"][key.removeprefix("text_encoder_")] == value
    made = nodes.PrepareDataset.execute(model=model, dataset=chain.clips()[0], **SIZE, name=value)
    assert "text: 1 made" in made.args[1]


def test_a_text_encoder_that_contradicts_itself_is_refused_at_once(chain):
    with pytest.raises(RuntimeError, match="exclude each other"):
        chain.base(text_encoder_placement="layers", text_encoder_precision="nf4")


def test_clips_are_counted_and_a_wrong_folder_says_what_to_do(chain, comfy):
    clips = comfy.folder("input", "ball")
    dataset, count = chain.clips()
    assert (count, repr(dataset)) == (1, "<1 clips in ball>")
    assert chain.clips(folder="(folder from the path below)", path=f'"{clips}"')[1] == 1
    with pytest.raises(RuntimeError, match="Its sub-folders do: choose one of them"):
        chain.clips(folder="", path=str(comfy.folder("input")))
    with pytest.raises(RuntimeError, match="does not exist"):
        chain.clips(path=str(clips / "nowhere"))
    with pytest.raises(RuntimeError, match="No folder is chosen"):
        chain.clips(folder="(folder from the path below)")


def test_a_changed_caption_or_a_new_clip_is_noticed(nodes, comfy, drawn_clip):
    clips = comfy.folder("input", "changing")
    shutil.copy2(drawn_clip, clips / "clip.mp4")
    (clips / "clip.txt").write_text("a red ball")

    def mark():
        return nodes.LoadTrainingClips.fingerprint_inputs(folder="changing", path="")

    before = mark()
    assert mark() == before
    (clips / "clip.txt").write_text("a blue ball bounces twice")
    changed = mark()
    assert changed != before
    shutil.copy2(clips / "clip.mp4", clips / "another.mp4")
    assert mark() not in (before, changed)
    assert math.isnan(nodes.LoadTrainingClips.fingerprint_inputs(folder="changing", path=None)), "it comes over a wire"
    missing = nodes.LoadTrainingClips.fingerprint_inputs(folder="gone", path="")
    assert math.isnan(missing)


def test_preparing_twice_keeps_the_caches(comfy, chain):
    clips = comfy.folder("input", "ball")
    prepared, summary = chain.prepared(name="twice")
    assert "1 made" in summary
    assert prepared.config.is_relative_to(comfy.folder("output", "ltx2_runs", "datasets"))
    assert sorted(path.name for path in clips.iterdir()) == ["clip.mp4", "clip.txt"], "media are only read"
    again, summary = chain.prepared(name="twice")
    assert again == prepared
    assert "0 made" in summary
    assert "1 kept" in summary


def test_deleted_caches_are_noticed(nodes, chain):
    mark = nodes.PrepareDataset.fingerprint_inputs()
    prepared, _ = chain.prepared(name="twice")
    assert nodes.PrepareDataset.fingerprint_inputs() == mark
    prepared.config.unlink()
    assert nodes.PrepareDataset.fingerprint_inputs() != mark


def test_a_run_leaves_a_lora_where_comfyui_lists_it(chain, comfy):
    lora, run, path = chain.trained("first", sample_every=3).args
    assert all(not tensor.is_cuda and not tensor.requires_grad for tensor in lora.values())
    assert all(name.startswith("diffusion_model.") for name in lora)
    assert (run.step, repr(run)) == (3, "<run first, step 3>")
    assert Path(path).is_file()
    listed = [file.name for file in comfy.folder("models", "loras").rglob("*.safetensors")]
    assert Path(path).name in listed
    shown = comfy.events("ltx2_train.step")
    assert shown[-1]["state"] == "finished"
    assert [point[0] for point in shown[-1]["curve"]] == [1, 2, 3]
    sample = comfy.events("ltx2_train.sample")[-1]["sample"]
    assert sample["file"]["subfolder"] == "ltx2_runs/first/samples"
    assert (comfy.folder("output") / sample["file"]["subfolder"] / sample["file"]["filename"]).is_file()


def test_a_stop_saves_and_the_next_press_goes_on(nodes, comfy, chain, monkeypatch):
    plain = nodes.host.ComfyEvents.step

    def stopping(self, metrics):
        plain(self, metrics)
        comfy.interrupted = metrics["step"] == 2

    monkeypatch.setattr(nodes.host.ComfyEvents, "step", stopping)
    with pytest.raises(InterruptProcessingException):
        chain.trained("stopped", steps=4)
    monkeypatch.setattr(nodes.host.ComfyEvents, "step", plain)
    manifest = json.loads((comfy.folder("output", "ltx2_runs", "stopped") / "manifest.json").read_text())
    assert (manifest["status"], manifest["step"]) == ("stopped", 2)
    assert nodes.host.page._views["7"].payload()["state"] == "stopped"

    result = chain.trained("stopped", steps=4)
    assert result.args[1].step == 4
    rows = (comfy.folder("output", "ltx2_runs", "stopped") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3, 4]
    (told,) = result.ui["ltx2_train"]
    assert [point[0] for point in told["curve"]] == [1, 2, 3, 4]
    assert (told["run"], told["step"], told["lora"]) == ("stopped", 4, result.args[1].lora.name)


def test_a_cache_that_was_cut_or_deleted_is_made_by_the_next_press(nodes, chain):
    def mark():
        return nodes.PrepareDataset.fingerprint_inputs(name="cut")

    before = mark()
    prepared = chain.prepared(name="cut")[0]
    assert mark() == before, "a second press is answered from ComfyUI's cache"
    caches = sorted(DatasetConfig.read(prepared.config).datasets[0].caches.glob("*.safetensors"))
    assert len(caches) > 1
    for path, spoil in ((caches[0], lambda p: p.write_bytes(p.read_bytes()[:500])), (caches[-1], Path.unlink)):
        whole = path.stat().st_size
        spoil(path)
        assert mark() != before
        chain.prepared(name="cut")
        assert path.stat().st_size == whole
        before = mark()


def test_a_finished_run_is_left_alone_until_its_folder_changes(nodes, chain):
    def mark():
        return nodes.TrainLoRA.fingerprint_inputs(run_name="done")

    before = mark()
    first = chain.trained("done").args
    assert mark() == before, "a second press is answered from ComfyUI's cache"
    state = sorted((path.name, path.stat().st_mtime_ns) for path in first[1].folder.rglob("*.safetensors"))
    again = chain.trained("done")
    assert again.args[1].step == again.ui["ltx2_train"][0]["step"] == 3
    assert sorted((path.name, path.stat().st_mtime_ns) for path in first[1].folder.rglob("*.safetensors")) == state
    assert "were asked for" not in again.ui["ltx2_train"][0]["message"]
    told = chain.trained("done", steps=2).ui["ltx2_train"][0]["message"]
    assert "It has 3 steps: 2 were asked for, and the others are not taken back." in told
    shutil.rmtree(first[1].folder)
    assert mark() != before


def test_a_lora_that_was_damaged_is_written_anew_by_the_next_press(nodes, comfy, chain):
    def mark():
        return nodes.TrainLoRA.fingerprint_inputs(run_name="hurt")

    run = chain.trained("hurt", steps=1).args[1]
    before = mark()
    whole = run.lora.read_bytes()
    run.lora.write_bytes(whole[:999])
    for look in (
        lambda: nodes.SampleLoRA.execute(prompt="a ball", run=run, **DRAW),
        lambda: nodes.PickCheckpoints.execute(run=run, run_name=nodes.pick.CONNECTED, pick={"pick": nodes.pick.NEWEST}),
    ):
        with pytest.raises(RuntimeError, match=r"hurt_000001\.safetensors is damaged\. Press Run again in"):
            look()
    assert mark() != before, "ComfyUI's cache is not asked"
    told = chain.trained("hurt", steps=1, comment="fine").ui["ltx2_train"][0]["message"]
    assert run.lora.stat().st_size == len(whole)
    assert "The LoRA of hurt is damaged or missing, and is written anew from the state of step 1." in told
    assert "comment was changed since its last step and was not used" in told
    for name in ("hurt", "hurt_000001"):
        chain.trained("hurt", steps=1)
        before = mark()
        (copy := comfy.folder("models", "loras") / "hurt" / f"{name}.safetensors").unlink()
        assert mark() != before
        chain.trained("hurt", steps=1)
        assert copy.is_file()


def test_a_copy_that_cannot_be_written_is_told_in_the_last_word(nodes, comfy, chain):
    (place := comfy.folder("models", "loras") / "blocked").write_text("a file in place of the folder")
    before = nodes.TrainLoRA.fingerprint_inputs(run_name="blocked")
    lora, run, path = (result := chain.trained("blocked", steps=1)).args
    told = result.ui["ltx2_train"][0]["message"]
    assert told.startswith(f"{run.folder / 'lora' / 'blocked.safetensors'} is not in ComfyUI's folders, see below.")
    assert "The copy in ComfyUI's folder was left out" in told
    assert Path(path).is_file()
    assert lora
    place.unlink()
    assert nodes.TrainLoRA.fingerprint_inputs(run_name="blocked") != before, "the next press tries again"
    told = chain.trained("blocked", steps=1).ui["ltx2_train"][0]["message"]
    assert told.startswith("blocked_000001.safetensors is in ComfyUI's loras folder.")
    assert (place / "blocked_000001.safetensors").is_file()


def test_what_was_changed_of_a_run_that_goes_on_stands_in_its_node(chain):
    chain.trained("changed", steps=1)
    told = chain.trained("changed", steps=2, learning_rate=5e-4, caption_dropout=0.5).ui["ltx2_train"][0]["message"]
    assert "used from its next step on: caption_dropout." in told
    assert "Learning rates from here on: main 0.0005 (until now 0.001)." in told


def test_a_longer_run_leaves_the_finished_lora_as_it_is(comfy, chain):
    first = chain.trained("kept", steps=2).args[1]
    assert first.lora.name == "kept_000002.safetensors"
    before = first.lora.read_bytes()
    second = chain.trained("kept", steps=3).args
    assert Path(second[2]).name == "kept_000003.safetensors"
    assert first.lora.read_bytes() == before
    listed = comfy.folder("models", "loras") / "kept"
    assert (listed / "kept_000002.safetensors").read_bytes() == before
    assert (listed / "kept.safetensors").read_bytes() == Path(second[2]).read_bytes() != before
    assert "kept_000003.safetensors is in ComfyUI's loras folder" in comfy.events("ltx2_train.step")[-1]["message"]


def test_other_settings_under_the_same_name_are_refused(chain):
    chain.trained("other", steps=1)
    with pytest.raises(RuntimeError, match="rank: was 2, now 4"):
        chain.trained("other", steps=1, rank=4)


def test_a_lora_on_the_wire_is_started_from(chain):
    lora = chain.trained("given", steps=1, train_seed=99).args[0]
    continued = chain.trained("started", start_lora=lora, steps=1).args[0]
    fresh = chain.trained("fresh", steps=1).args[0]
    name = next(key for key in lora if key.endswith("lora_A.weight"))
    near = (continued[name].float() - lora[name].float()).abs().mean()
    assert near < (fresh[name].float() - lora[name].float()).abs().mean() / 5


def test_what_does_not_fit_of_a_lora_reaches_the_node(nodes, chain, monkeypatch, tmp_path):
    def save(name, layer, metadata=None):
        pair = {f"{layer}.lora_{half}.weight": torch.ones(shape) for half, shape in (("A", (2, 160)), ("B", (160, 2)))}
        save_file(pair, tmp_path / name, metadata)
        return str(tmp_path / name)

    def stop(*_, **__):
        raise ValueError("far enough")

    drawing = importlib.import_module(f"{nodes.sample.core.__name__}.sampling.studio")
    monkeypatch.setattr(drawing, "prompt_features", stop)
    base = chain.base()[0]
    words = save("words.safetensors", "text_encoder.layers.0.mlp.up_proj")
    with pytest.raises(RuntimeError, match="It is a LoRA of a text encoder"):
        nodes.SampleLoRA.execute(prompt="a ball", model=base, lora_path=words, **DRAW)
    old = save("old.safetensors", "diffusion_model.transformer_blocks.0.attn1.to_q", {"ss_ltx_version": "2.0"})
    monkeypatch.setattr(nodes.SampleLoRA, "hidden", SimpleNamespace(unique_id="5"))
    with pytest.raises((RuntimeError, ValueError), match="far enough"):
        nodes.SampleLoRA.execute(prompt="a ball", model=base, lora_path=old, **DRAW)
    shown = nodes.host.page._views["5"].payload()
    assert "old.safetensors is a LoRA of LTX-2.0, and the base is LTX-2.3" in json.dumps(shown, default=str)


def test_the_lora_draws_a_video_and_strength_zero_is_the_base(nodes, chain, monkeypatch):
    run = chain.trained("drawn", learning_rate=0.05).args[1]
    latents = {}
    plain = nodes.sample.core.sample

    def kept(*args, **options):
        files = plain(*args, **options)
        latents[len(latents)] = files[0].latents
        return files

    monkeypatch.setattr(nodes.sample.core, "sample", kept)
    before = nodes.SampleLoRA.fingerprint_inputs(prompt="a ball", run=None, **DRAW)
    result = nodes.SampleLoRA.execute(prompt="a ball", run=run, **DRAW)
    video, path, audio = result.args
    assert nodes.SampleLoRA.fingerprint_inputs(prompt="a ball", run=None, **DRAW) == before
    assert "no sound" in audio.message
    assert video.file == path
    assert result.ui["images"][0] == {"filename": Path(path).name, "subfolder": "ltx2_samples/drawn", "type": "output"}
    other = nodes.SampleLoRA.execute(prompt="a ball", run=run, **{**DRAW, "strength": 0.0}).args[1]
    assert other != path
    assert Path(path).is_file(), "a later sample leaves the file of an earlier one alone"
    Path(other).write_bytes(b"damaged")
    assert nodes.SampleLoRA.fingerprint_inputs(prompt="a ball", run=None, **DRAW) != before, "it is drawn anew"
    nodes.SampleLoRA.execute(prompt="a ball", model=chain.base()[0], **DRAW)
    # a busy CPU sums in another order now and then, hence not bit by bit
    torch.testing.assert_close(latents[2], latents[1], rtol=0, atol=1e-4)
    assert (latents[0] - latents[1]).abs().mean() > 1e-3


def test_what_a_mask_gives_is_in_the_sample_whatever_the_seed(nodes, chain, monkeypatch):
    drawn, plain = [], nodes.sample.core.sample

    def kept(*args, **options):
        files = plain(*args, **options)
        drawn.append(files[0].latents)
        return files

    monkeypatch.setattr(nodes.sample.core, "sample", kept)
    left = torch.zeros(1, 64, 64)
    left[:, :, :32] = 1
    given = {"given_frames": torch.rand(9, 64, 64, 3), "given_mask": left}
    for seed in (1, 2):
        nodes.SampleLoRA.execute(prompt="a ball", model=chain.base()[0], **{**DRAW, "seed": seed}, **given)
    one, two = drawn
    assert torch.allclose(one[..., 0], two[..., 0], atol=1e-5)
    assert (one[..., 1] - two[..., 1]).abs().mean() > 1e-2


def test_sampling_without_anything_to_sample_with_says_so(nodes):
    with pytest.raises(RuntimeError, match="connect `run`"):
        nodes.SampleLoRA.execute(prompt="a ball", **DRAW)


def test_what_cannot_be_drawn_is_refused_when_the_prompt_is_sent(nodes, comfy, monkeypatch):
    for node, module, widget in (
        (nodes.SampleLoRA, nodes.sample, "prompt"),
        (nodes.CompareCheckpoints, nodes.compare, "prompts"),
    ):
        assert "Write what" in node.validate_inputs(**{widget: " \n"})
        for known in ("a ball", None):  # None comes over a wire
            assert node.validate_inputs(**{widget: known}) is True
        (comfy.folder("output") / "in_the_way").write_text("a file")
        monkeypatch.setattr(module, "FOLDER", "in_the_way")
        assert "in_the_way is a file" in node.validate_inputs(**{widget: "a ball"})


@pytest.fixture
def pressed(nodes, chain, monkeypatch):
    """Runs Prepare Dataset as a press on Run does: with the Train LoRA that follows it in the prompt."""

    def press(**widgets):
        train = {"class_type": "LTX2T_TrainLoRA", "inputs": {"prepared": ["3", 0], **RUN, **SMALL, **widgets}}
        other = {"class_type": "LTX2T_TrainLoRA", "inputs": {"prepared": ["8", 0], "run_name": "a/b"}}
        hidden = SimpleNamespace(unique_id="3", prompt={"3": {"class_type": "X", "inputs": {}}, "4": train, "9": other})
        monkeypatch.setattr(fake_comfy.ComfyNode, "hidden", hidden)
        monkeypatch.setattr(nodes.data.core, "build_caches", lambda *_, **more: pytest.fail("encoding began"))
        return chain.prepared(name="ahead")

    return press


@pytest.mark.parametrize(
    ("widgets", "message"),
    [
        ({"run_name": "a/b"}, r"^Train LoRA: .*\n  run_name: "),
        ({"run_name": ""}, r"^Train LoRA: .*\n  run_name: "),
        ({"learning_rate": float("nan")}, r"\n  learning_rate: "),
        ({"sample_prompts": "a ball --q 3", "sample_every": 2}, r"^Train LoRA: sample_prompts, line 1: --q"),
        (
            {"rank": 4},
            r"(?s)^Train LoRA: .*\n  rank: was 2, now 4\n.*choose another run_name, or set if_exists to 'new'",
        ),
        (
            {"train_seed": 8, "scheduler": "cosine"},
            r"(?s)train_seed: was 7, now 8\n.*scheduler: was linear, now cosine",
        ),
        ({"if_exists": "error"}, r"exists in .* and if_exists is 'error'"),
    ],
)
def test_what_train_lora_would_refuse_is_refused_before_anything_is_encoded(chain, pressed, widgets, message):
    if not (chain.runs / "ahead").exists():
        chain.trained("ahead")
    with pytest.raises(RuntimeError, match=message):
        pressed(**{"run_name": "ahead", **widgets})


def test_what_comes_over_a_wire_is_not_judged_ahead(chain, pressed):
    if not (chain.runs / "ahead").exists():
        chain.trained("ahead")
    for widgets in (
        {"rank": ["5", 0]},
        {"rank": 4, "run_name": ["5", 0]},
        {"steps": 5},
        {"if_exists": "new", "rank": 4},
    ):
        with pytest.raises(pytest.fail.Exception, match="encoding began"):
            pressed(**{"run_name": "ahead", **widgets})


@pytest.mark.parametrize("name", ["a/b", "", "x" * 200])
def test_a_name_that_cannot_be_used_is_refused_when_the_prompt_is_sent(nodes, name):
    assert str(nodes.TrainLoRA.validate_inputs(run_name=name)).startswith("Train LoRA: ")
    assert "run_name" in nodes.TrainLoRA.validate_inputs(run_name=name)
    assert nodes.TrainLoRA.validate_inputs(run_name="fox") is True
    assert nodes.TrainLoRA.validate_inputs(run_name=None) is True, "it comes over a wire"


def test_a_distilled_base_is_told_where_it_is_chosen(comfy, chain):
    link(
        comfy.folder("models", "checkpoints") / "tiny.safetensors",
        comfy.folder("models", "checkpoints") / "tiny-distilled.safetensors",
    )
    chain.base("tiny-distilled.safetensors")
    assert "is a distilled model" in comfy.texts[-1][1]
    chain.base()
    assert "distilled" not in comfy.texts[-1][1]


def test_settings_are_called_as_their_widgets(nodes):
    words = nodes.words
    with words.speaking_as("Train LoRA"):
        assert words.in_widget_words("lora.rank: was 2. Raise train.steps.") == "rank: was 2. Raise steps."
        assert words.in_widget_words("model.mode is av") == "mode of Load LTX-2 Base Model is av"
        said = words.in_widget_words("Use num_repeats to repeat a clip.")
        assert said == "Set repeats of the node that loads it to repeat a clip.", "one of several nodes, none named"
        assert words.in_widget_words("train.steps_done of rank, run.name.x") == "train.steps_done of rank, run.name.x"
        for text, said in (
            ("optimizer.betas[1]: needs a value", "betas of Optimizer Options (number 2): needs a value"),
            ("train.steps[0] is", "steps (number 1) is"),
            ("set validation.every_epochs to 0.", "bypass Validation Options."),
            ("optimizer.name = foo.Bar needs", "class_name of Optimizer Options = foo.Bar needs"),
            (
                "video.generated is false, so x. Take it out, or set video.generated to true.",
                "all of the video is given, so x. Take it out, or do not give all of the video.",
            ),
            ("Add clips with sound, or set it to true.", "Add clips with sound, or do not give all of it."),
            ("Set memory.pinned to false,", "Set pinned to off,"),
            ("optimizer.name = muon needs", "optimizer = muon needs"),
            (
                "--out: /a/b cannot be made, since /a is a file. Name a folder for the clips.",
                "The folder /a/b cannot be made, since /a is a file. Move that file away.",
            ),
            ("lora.modules.*.attn1.rank: needs", "modules of LoRA Options, *.attn1.rank: needs"),
            ("datasets[0].caption_replace: 'a' is", "caption_replace of Dataset Options: 'a' is"),
            ("datasets[0]: m2.mp4 is a copy", "m2.mp4 is a copy"),
            ("Set caption_prefix in the dataset file, or", "Set caption_prefix of Dataset Options, or"),
        ):
            assert words.in_widget_words(text) == said
    with words.speaking_as("Check Dataset"):
        assert words.in_widget_words("Set enable_bucket = true") == "Set buckets = true"
        assert words.in_widget_words("the shortest of target_frames is 49") == "the shortest of frames is 49"
        assert words.in_widget_words("a higher resolution") == "a higher resolution"
        told = words.in_widget_words("Lower speech_min_seconds.")
        assert told == "Lower min_seconds of Load Training Audio.", "a node's own min_seconds is another setting"
        assert words.in_widget_words(told) == told


def test_what_the_requirements_name_and_is_missing_is_told_with_the_line_that_installs_it(nodes, tmp_path, monkeypatch):
    needs = nodes.needs
    assert needs.unmet() == ""
    file = tmp_path / "requirements.txt"
    file.write_text('no-such-thing>=1.0  # of the user\ntorch>=999\nnot-here; python_version < "3"\n')
    text = needs.unmet(file)
    assert "no-such-thing is missing" in text
    assert f"torch is {torch.__version__.split('+')[0]}" in text
    assert "not-here" not in text
    assert text.endswith(f'-m pip install -r "{file}"')
    monkeypatch.setattr(needs, "unmet", lambda: text)
    with pytest.raises(RuntimeError, match="no-such-thing is missing"):
        nodes.CombineDatasets.execute(dataset_1=None, share_1=1, share_2=1, share_3=1, share_4=1)
