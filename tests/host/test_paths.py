"""Paths and names that a caller of the API gives: none leads out of the folder it is for.

Two kinds of argument hold a path. A *name* (`folder`, `name`, `model`, `item`, ...) stands for something below one
folder and may not leave it. A *path* is a full path that a person at this machine writes; what is not full is a name
below the input folder.
"""

from __future__ import annotations

from pathlib import Path

import media
import pytest
import torch

NO_FOLDER = "(folder from the path below)"
CLIMBING = ["../outside", "clips/../../outside", "..\\outside", "..", "/outside", "\\\\host\\outside", "C:\\outside"]
RELATIVE = ["../outside", "clips/../../outside", "..\\outside", "..", "C:outside"]
SHAPE = {"width": 64, "height": 64, "frames": 9, "frame_extraction": "head", "buckets": False}
LOADERS = {
    "LoadTrainingClips": {"trigger_word": "", "fps": 25.0},
    "LoadTrainingAudio": {
        "speaker_word": "",
        "normalise": False,
        "cut_at_pauses": False,
        "min_seconds": 1.0,
        "max_seconds": 9.0,
    },
    "LoadTrainingPairs": {
        "reference_folder": "clips",
        "reference_path": "",
        "trigger_word": "",
        "fps": 25.0,
        "reference_frames": 1,
        "reference_downscale": 1,
    },
    "CutLongVideos": {"cut_at": "seconds", "seconds": 0.5, "min_seconds": 0.1, "max_seconds": 0.0, "name": "made"},
    "CaptionClips": {"model": "(none)", "whisper": "(none)", "speaker": "", "prompt": "", "overwrite": False},
}
# every argument of every node that holds a path or a name of a file or folder
KNOWN = {
    "LoadBaseModel": {"checkpoint", "text_encoder", "text_projection", "video_vae", "audio_vae"},
    "LoadTrainingClips": {"folder", "path", "caption_extension"},
    "LoadTrainingAudio": {"folder", "path", "caption_extension"},
    "LoadTrainingPairs": {
        "folder",
        "path",
        "reference_folder",
        "reference_path",
        "mask_folder",
        "mask_path",
        "caption_extension",
    },
    "AddReference": {"reference_folder", "reference_path"},
    "PrepareDataset": {"name"},
    "TrainLoRA": {"run_name"},
    "SampleLoRA": {"lora_path", "more_loras"},
    "KeepBranch": {"lora_path", "save_name"},
    "CheckDataset": set(),
    "CombineDatasets": set(),
    "DatasetFromLists": {"name"},
    "PreviewItem": {"item"},
    "CutLongVideos": {"folder", "path", "name"},
    "CaptionClips": {"folder", "path", "model", "whisper", "model_path", "whisper_path"},
    "MergeLoRA": {"lora_paths", "save_name"},
    "ConvertLoRA": {"lora_path", "save_name"},
    "TrainSlider": {"run_name"},
    # files that a person at this machine names, as the terminal takes them
    "DatasetFromFile": {"path"},
    "RunFromFile": {"path"},
    "RunMonitor": {"run_name"},
    "VideoConditions": set(),
    "AudioConditions": set(),
    "ConditionsRecipe": set(),
    "PickCheckpoints": {"run_name"},
    "CompareCheckpoints": {"more_loras"},
    "ResizeLoRA": {"lora_path", "save_name"},
    "ExtractLoRA": {"finetune", "base", "save_name"},
    "BakeLoRA": {"checkpoint", "lora_paths", "save_name"},
    "TrainingRecipe": set(),
    "SamplesRecipe": set(),
    "QuantizeCheckpoint": {"checkpoint", "save_name"},
}
# settings of option nodes that are a file or a folder of this machine
OPTION_PATHS = {"CachingOptions": {"dino_model"}, "SamplesOptions": {"upsampler"}}
# texts and choices that say nothing of files
WORDS = set(
    "precision version version_check device mode quantization text_encoder_precision text_encoder_placement "
    "trigger_word speaker_word audio_source audio_bucket_strategy bucket_strategy frame_extraction pad_short vae_dtype "
    "text_form sample_prompts if_exists target optimizer scheduler state save_precision negative_prompt comment "
    "audio_balance audio_supervision sample_audio swap_from attention_kernel low_precision_matmul memory "
    "offload_activations pinned prompt shift_tokens audio_file audio_format action branches goal captions batches "
    "cut_at speaker prefix method rank_mode dtype to positive negative target_class more_targets strengths sizes "
    "changes compile prompts seeds sigmas streams format block_size".split()
)


@pytest.fixture(autouse=True)
def inference_mode():
    with torch.inference_mode():
        yield


@pytest.fixture
def outside(comfy) -> Path:
    """A folder beside the input folder, full of media; nothing may be read from it or written into it by a name."""
    media.write_captioned(comfy.folder("input", "clips") / "a.mp4", media.moving_square(30, 64, 64), "a square")
    folder = comfy.folder("outside")
    media.write_captioned(folder / "a.mp4", media.moving_square(30, 64, 64), "a secret")
    media.write_sound(folder / "v.wav", media.tone(2.0), caption="a secret")
    return folder


@pytest.fixture
def unchanged(comfy, outside):
    """Fails where anything was written but below output and input."""
    before = {path: path.stat().st_mtime_ns for path in comfy.base.rglob("*") if "output" not in path.parts}
    yield
    after = {path: path.stat().st_mtime_ns for path in comfy.base.rglob("*") if "output" not in path.parts}
    assert {path for path in after if path not in before or after[path] != before[path]} <= {comfy.base}


def given(nodes, node, **more):
    return getattr(nodes, node).execute(**{"folder": "clips", "path": "", **LOADERS[node], **more})


def load(nodes):
    return given(nodes, "LoadTrainingClips").args[0]


def from_lists(nodes, name):
    given = {"captions": ["x"], "batches": ["pictures"], "trigger_word": [""], "fps": [25.0]}
    return nodes.DatasetFromLists.execute(name=[name], images=[torch.zeros(1, 32, 32, 3)], **given)


def prepare(nodes, name):
    model = nodes.handles.BaseModel({"model": {}}, "")
    return nodes.PrepareDataset.execute(model=model, dataset=load(nodes), name=name, **SHAPE)


def test_no_argument_with_a_path_is_forgotten(nodes):
    of_options = (*nodes.option_nodes.OPTION_NODES, *nodes.option_choices.CHOICE_NODES)
    for node in of_options:
        form = nodes.options.FORMS.get(node.define_schema().node_id)
        forms = [form] if form else [node.REST, *(one for below in node.CHOICES.forms.values() for one in below)]
        shown = [(s, nodes.widgets.shown_field(form.kind, s)) for form in forms for s in form.settings]
        paths = {s.id for s, field in shown if nodes.widgets.is_path(field)}
        assert paths == OPTION_PATHS.get(node.__name__, set()), node.__name__
    for node in nodes.NODES:
        if node in of_options:
            continue
        texts = {shown.id for shown in node.define_schema().inputs if shown.io_type in ("STRING", "COMBO")}
        assert texts - WORDS == KNOWN[node.__name__], node.__name__


@pytest.mark.parametrize("name", CLIMBING)
@pytest.mark.parametrize("node", LOADERS)
def test_a_folder_that_climbs_out_is_refused(nodes, outside, unchanged, node, name):
    with pytest.raises(RuntimeError, match=r"^folder: .*leads out of ComfyUI's input folder"):
        given(nodes, node, folder=name)


@pytest.mark.parametrize("name", RELATIVE)
@pytest.mark.parametrize("node", LOADERS)
def test_a_path_that_is_not_full_stays_below_the_input_folder(nodes, outside, unchanged, node, name):
    with pytest.raises(RuntimeError, match=r"^path: .*leads out of ComfyUI's input folder"):
        given(nodes, node, folder=NO_FOLDER, path=name)


@pytest.mark.parametrize("name", CLIMBING)
def test_references_that_climb_out_are_refused(nodes, outside, unchanged, name):
    with pytest.raises(RuntimeError, match=r"^reference_folder: .*leads out"):
        given(nodes, "LoadTrainingPairs", reference_folder=name)
    with pytest.raises(RuntimeError, match=r"^reference_folder: .*leads out"):
        nodes.AddReference.execute(pairs=load(nodes), reference_folder=name, reference_path="", reference_frames=1)
    if not Path(name).is_absolute():
        with pytest.raises(RuntimeError, match=r"^reference_path: .*leads out"):
            given(nodes, "LoadTrainingPairs", reference_path=name)


@pytest.mark.parametrize("name", CLIMBING)
def test_masks_that_climb_out_are_refused(nodes, outside, unchanged, name):
    with pytest.raises(RuntimeError, match=r"^mask_folder: .*leads out"):
        given(nodes, "LoadTrainingPairs", mask_folder=name)
    if not Path(name).is_absolute():
        with pytest.raises(RuntimeError, match=r"^mask_path: .*leads out"):
            given(nodes, "LoadTrainingPairs", mask_path=name)


def test_a_full_path_and_one_below_the_input_folder_are_taken(nodes, outside):
    assert given(nodes, "LoadTrainingClips", path=str(outside)).args[1] == 1
    assert given(nodes, "LoadTrainingClips", folder=NO_FOLDER, path="clips").args[1] == 1


@pytest.mark.parametrize("node", ["LoadTrainingClips", "LoadTrainingAudio", "LoadTrainingPairs"])
@pytest.mark.parametrize("ending", ["/../../outside/a.txt", "../a.txt", "\\a.txt", "C:a"])
def test_the_ending_of_captions_is_no_path(nodes, outside, unchanged, node, ending):
    folder = {"path": str(outside)} if node == "LoadTrainingAudio" else {}
    with pytest.raises(RuntimeError, match="caption_extension"):
        given(nodes, node, caption_extension=ending, **folder)


@pytest.mark.parametrize("name", CLIMBING)
def test_what_is_written_cannot_leave_the_output_folder(nodes, comfy, outside, unchanged, name):
    with pytest.raises(RuntimeError, match="leads out"):
        given(nodes, "CutLongVideos", name=name)
    with pytest.raises(RuntimeError, match="cannot be a folder's name"):
        from_lists(nodes, name)
    with pytest.raises(RuntimeError, match="leads out"):
        prepare(nodes, name)
    assert not [path for path in comfy.folder("output").rglob("*") if path.is_file()]


def test_a_link_that_lies_among_clips_or_datasets_is_followed(nodes, comfy, outside, tmp_path_factory):
    # its owner has put it there, to keep what is made on another disk
    disks = {kind: tmp_path_factory.mktemp(kind) for kind in ("clips", "datasets")}
    for kind, disk in disks.items():
        link(comfy.folder("output", "ltx2_runs", kind) / "linked", disk)
    given(nodes, "CutLongVideos", name="linked")
    assert len(list(disks["clips"].glob("a_*.mp4"))) == 3
    assert from_lists(nodes, "linked").args[1] == 1
    assert list((disks["datasets"] / "media").glob("linked_0001.*"))


def test_a_lora_is_found_in_every_loras_folder_of_comfyui(nodes, comfy, tmp_path_factory):
    second = tmp_path_factory.mktemp("loras")
    comfy.more_folders["loras"] = [second]
    (second / "sub").mkdir()
    for place in (second / "sub" / "voice.safetensors", comfy.folder("output", "loras") / "looks.safetensors"):
        place.write_bytes(b"lora")
    assert nodes.lora_names.lora_named("sub/voice") == second / "sub" / "voice.safetensors"
    assert nodes.sample._lora(None, "sub/voice.safetensors") == second / "sub" / "voice.safetensors"
    assert nodes.lora_names.lora_named("looks") == comfy.folder("output", "loras") / "looks.safetensors"


def test_an_output_folder_on_another_disk_is_used_all_the_same(nodes, comfy, outside, tmp_path_factory):
    link(comfy.folder("output") / "ltx2_runs", disk := tmp_path_factory.mktemp("disk"))
    given(nodes, "CutLongVideos")
    assert len(list((disk / "clips" / "made").glob("a_*.mp4"))) == 3


def test_a_link_that_lies_in_the_input_folder_is_followed(nodes, comfy, outside):
    # its owner has put it there, and ComfyUI lists it
    link(comfy.folder("input") / "linked", outside)
    assert "linked" in nodes.host.input_folders()
    assert given(nodes, "LoadTrainingClips", folder="linked").args[1] == 1


@pytest.mark.parametrize("name", [*CLIMBING, "outside/a.mp4"])
def test_an_item_is_only_a_name(nodes, comfy, outside, unchanged, name):
    with pytest.raises(RuntimeError, match=r"No sample is called .* There are: a\.mp4"):
        nodes.PreviewItem.execute(item=name + "/other.mp4", decode=False, dataset=load(nodes), **SHAPE)


@pytest.mark.parametrize("name", CLIMBING)
def test_models_are_chosen_from_the_list(nodes, comfy, outside, name):
    (outside / "config.json").write_text('{"model_type": "whisper", "vision_config": {}, "architectures": ["For"]}')
    for widget in ("model", "whisper"):
        with pytest.raises(RuntimeError, match=f"^{widget}: .* choose one of the list"):
            given(nodes, "CaptionClips", **{widget: name})
        if not Path(name).is_absolute():
            with pytest.raises(RuntimeError, match=f"^{widget}_path: .* is no full path"):
                given(nodes, "CaptionClips", **{f"{widget}_path": name})
    for text_encoder in (name, "../../outside"):
        with pytest.raises(RuntimeError, match=r"not in ComfyUI's text_encoders folder"), nodes.host.training_job():
            nodes.host.text_encoder_path(text_encoder)


@pytest.mark.parametrize("name", RELATIVE)
def test_a_lora_is_a_name_in_its_folder_or_a_full_path(nodes, comfy, outside, name):
    with pytest.raises(RuntimeError, match="lora_path: .* leads out"):
        nodes.KeepBranch.execute(action="keep", branches="audio", lora_path=name, save_name="")
    with pytest.raises(RuntimeError, match="lora_path: .* leads out"), nodes.host.training_job():
        nodes.sample._lora(None, name)
    assert nodes.TrainLoRA.fingerprint_inputs(run_name=name) is None


def test_the_routes_take_the_name_of_a_run_at_most(nodes, comfy):
    nodes.host.add_routes()
    run = "/ltx2_train/runs/{name}"  # test_rest.py tries what is no such name
    parts = ("", "/metrics", "/view", "/loras", "/samples", "/{what}")
    assert set(comfy.routes) == {"/ltx2_train/live", "/ltx2_train/runs", *(run + part for part in parts)}


def link(place: Path, target: Path) -> None:
    try:
        place.symlink_to(target, target_is_directory=True)
    except OSError:
        pytest.skip("links cannot be made here")
