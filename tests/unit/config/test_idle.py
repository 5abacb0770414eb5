"""Settings that would change nothing: each field says what it counts with, and what is set without it is refused.

It is long: there are many settings.
"""

import shutil

import pytest
from pydantic import BaseModel, Field

from ltx2_train.config import RunConfig, load_run, make_run
from ltx2_train.config.base_files import BaseFiles
from ltx2_train.config.describe import walk_settings
from ltx2_train.config.importing import import_settings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.entry import DatasetSettings
from ltx2_train.errors import ConfigError
from ltx2_train.events import Events
from ltx2_train.idle import counts_with, idle
from ltx2_train.training.checks import check_settings
from ltx2_train.training.held_out import require_validation

# Settings that have an effect whatever the others are, or none that another setting decides. A new setting is added
# here, or says in its field what it counts with.
ALWAYS = {
    "run.name", "run.folder", "run.if_exists", "run.export_folder", "model.checkpoint", "model.text_encoder",
    "model.text_projection", "model.video_vae", "model.audio_vae",
    "model.mode", "model.precision", "model.version", "model.device", "data.manifest",
    "data.prefetch", "cache.text_form", "cache.text_dtype", "cache.skip_existing", "cache.manifest",
    "train.what",
    "objective.sampling", "objective.min_timestep", "objective.max_timestep", "objective.buckets",
    "loss.type", "optimizer.name", "optimizer.args", "schedule.name", "train.epochs", "train.learning_rate",
    "train.lr_args", "train.changed_rate", "train.accumulation", "train.clip_norm",
    "train.seed", "train.caption_dropout", "train.save_every", "train.save_every_epochs",
    "train.keep_states", "train.state", "train.on_nan", "train.comment",
    "quant.format", "memory.fit", "memory.gradient_checkpointing", "memory.blocks_to_swap", 
    "memory.attention", "memory.compile", "memory.context_gb", "gemma.precision",
    "gemma.compute_dtype", "gemma.placement", "sample.every", "sample.every_epochs", "sample.prompts",
    "sample.frames", "sample.fps", "sample.steps", "sample.guidance", "sample.stg", "sample.seed",
    "sample.sigmas", "validation.every", "validation.every_epochs",
    "slider.config",
    "log.report_to", "train.processes",
}  # fmt: skip
# Checked or said in a place of its own, which knows more than the settings.
ELSEWHERE = {
    "video.generated", "video.conditions", "audio.generated", "audio.conditions",  # check_given.py
    "quant.loftq", "quant.awq",  # refused by their group
    "gemma.tokenizer",  # refused with the text encoder
    "quant.matmul", "train.steps",  # a message
    "sample.negative_prompt", "sample.rescale", "sample.include_reference",  # the prompts
}  # fmt: skip
ALWAYS_OF_A_DATASET = {
    "trigger_word",
    "caption_prefix", "caption_replace", "batch_size", "num_repeats", "cache_directory", "cache_only", "max_left_out",
    "image_directory", "image_jsonl_file", "video_directory", "video_jsonl_file", "audio_directory",
    "audio_jsonl_file", "dataset_file", "data_root", "preprocessed_data_root", "cache_files",
}  # fmt: skip


def test_every_setting_says_what_it_counts_with_or_always_counts():
    open_ones = {dotted for dotted, field in walk_settings() if not counts_with(field)}
    weights = {dotted for dotted in open_ones if dotted.startswith("regularizers.") and dotted.endswith(".weight")}
    assert open_ones - weights == ALWAYS | ELSEWHERE
    assert {name for name, field in DatasetSettings.model_fields.items() if not counts_with(field)} == (
        ALWAYS_OF_A_DATASET
    )


def test_defaults_are_never_refused():
    assert idle(RunConfig(), RunConfig()) == []
    check_settings(RunConfig())
    check_settings(make_run(RunConfig().model_dump(mode="json", exclude_none=True)))  # each at its default, said
    for key in ("image_directory", "video_directory", "audio_directory"):
        assert idle(DatasetSettings(**{key: "media"})) == []


def self_flow(**settings):
    return {"regularizers": {"self_flow": {"weight": 0.1, **settings}}}


def named(keys):
    return [f"regularizers.self_flow.{key}" for key in keys.split()]


# tables, the settings of them without effect, and tables that give them one
AV = {"model": {"mode": "av"}}
CASES = [
    ({"audio": {"supervision": "warn"}}, ["audio.supervision"], AV),
    ({"audio": {"independent_timestep": True, "batch_probability": 0.5}}, [
        "audio.independent_timestep", "audio.batch_probability"], AV),
    ({"audio": {"bucket_interval": 3.0}}, ["audio.bucket_interval"], {"model": {"mode": "audio"}}),
    ({"model": {"mode": "av"}, "audio": {"silence_weight": 2}}, ["audio.silence_weight"], {
        "audio": {"silence_regularizer": True}}),
    ({"objective": {"sampling": "uniform", "shift": 2.0, "std": 2}}, ["objective.shift", "objective.std"], {
        "objective": {"sampling": "shifted_logit_normal"}}),
    ({"objective": {"uniform_prob": 1, "shift": 2.0, "std": 2}}, ["objective.shift", "objective.std"], {
        "objective": {"uniform_prob": 0.9}}),
    ({"model": {"mode": "audio"}, "audio": {"sequence_resolution": 96}, "objective": {"shift": 0}}, [
        "audio.sequence_resolution"], {"objective": {"shift": None}}),
    ({"objective": {"mode": "legacy", "uniform_prob": 0.3}}, ["objective.uniform_prob"], {
        "objective": {"mode": "stretched"}}),
    ({"schedule": {"name": "constant", "warmup": 10, "power": 2}}, ["schedule.warmup", "schedule.power"], {
        "schedule": {"name": "polynomial"}}),
    ({"schedule": {"cycles": 3}}, ["schedule.cycles"], {"schedule": {"name": "cosine_with_restarts"}}),
    ({"schedule": {"gamma": 0.5, "step_size": 5}}, ["schedule.step_size", "schedule.gamma"], {
        "schedule": {"name": "step"}}),
    ({"schedule": {"name": "constant_with_warmup", "min_lr_ratio": 0.1}}, ["schedule.min_lr_ratio"], {
        "schedule": {"name": "cosine"}}),
    ({"loss": {"huber_delta": 0.5}}, ["loss.huber_delta"], {"loss": {"type": "huber"}}),
    ({"loss": {"audio_weight": 0.5}}, ["loss.audio_weight"], AV),
    ({"model": {"mode": "av"}, "loss": {"balance": {"beta": 0.05}}}, ["loss.balance.beta"], {
        "loss": {"balance": {"mode": "inv_freq"}}}),
    ({"memory": {"gradient_checkpointing": False, "recompute_blocks": 3}}, ["memory.recompute_blocks"], {
        "memory": {"gradient_checkpointing": True}}),
    ({"memory": {"fit": "custom", "swap_ahead": 3, "pinned": True}}, ["memory.swap_ahead", "memory.pinned"], {
        "memory": {"blocks_to_swap": 2}}),
    ({"memory": {"split_attention_size": 64}}, ["memory.split_attention_size"], {
        "memory": {"split_attention": "query"}}),
    ({"sample": {"every": 0, "validation_clips": 2}}, ["sample.validation_clips"], {"sample": {"every": 5}}),
    ({"sample": {"stg": 0, "stg_block": 3}}, ["sample.stg_block"], {"sample": {"stg": 1}}),
    ({"sample": {"tiles": {"temporal_overlap": 40}}}, ["sample.tiles.temporal_overlap"], {
        "sample": {"tiles": {"temporal_tile": 64}}}),
    ({"validation": {"levels": 8}}, ["validation.levels"], {"validation": {"every": 5}}),
    ({"cache": {"tiles": {"spatial_overlap": 96}}}, ["cache.tiles.spatial_overlap"], {
        "cache": {"tiles": {"spatial_tile": 512}}}),
    ({"cache": {"dino": {"size": 224}}}, ["cache.dino.size"], {"cache": {"dino": {"model": "dino"}}}),
    ({"lora": {"target": "v2v", "include_patterns": [".*to_q"]}}, ["lora.target"], {
        "lora": {"include_patterns": []}}),
    ({"lora": {"exclude_patterns": [".*to_q"], "include_patterns": [".*to_k"]}}, ["lora.exclude_patterns"], {
        "lora": {"target_modules": ["to_v"]}}),
    ({"quant": {"format": "int8", "block_size": 64}}, ["quant.block_size"], {"quant": {"format": "nf4"}}),
    ({"quant": {"awq_alpha": 0.5, "loftq_iters": 4}}, ["quant.loftq_iters", "quant.awq_alpha"], None),
    ({"train": {"caption_dropout": 0, "caption_dropout_with": "zeros"}}, ["train.caption_dropout_with"], {
        "train": {"caption_dropout": 0.1}}),
    ({"train": {"audio_learning_rate": 1e-5}}, ["train.audio_learning_rate"], AV),
    ({"optimizer": {"weight_decay": 0.1, "eps": 1e-6, "args": {"weight_decay": 0.5, "eps": 1e-7}}}, [
        "optimizer.eps", "optimizer.weight_decay"], {
            "optimizer": {"args": {"weight_decay": 0.1, "eps": 1e-6}}}),
    ({"optimizer": {"betas": [0.8, 0.9], "args": {"betas": [0.9, 0.9]}}}, ["optimizer.betas"], {
        "optimizer": {"args": {"betas": [0.8, 0.9]}}}),
    (self_flow(student_ratio=0.4, student_block=3, teacher_ratio=0.8, teacher_block=5), named(
        "student_block teacher_block"), None),
    (self_flow(student_ratio=0, student_block=3), named("student_block"), None),
    (self_flow(dual_timestep=False, mask_ratio=0.3, mask_frames=True, masked_only=True),
        named("mask_ratio mask_frames masked_only"), self_flow(dual_timestep=True)),
    (self_flow(temporal_tau=2, neighbors=1, granularity="patch", patch_radius=1, patch_match="soft", delta_steps=2,
        motion_weighting="teacher_delta", motion_strength=1), named(
            "temporal_tau neighbors granularity patch_radius delta_steps motion_weighting motion_strength"), self_flow(
                temporal="hybrid", temporal_weight=0.1, delta_weight=0.1)),
    (self_flow(patch_match="soft", patch_temperature=1), named("patch_match patch_temperature"), None),
    (self_flow(schedule="cosine"), named("schedule"), self_flow(decay_steps=9)),
    (self_flow(decay_steps=9), named("decay_steps"), self_flow(schedule="cosine")),
    (self_flow(motion_weighting="teacher_delta"), named("motion_weighting"), None),
    (self_flow(momentum=0.5, update_every=2, offload_teacher=True), named("momentum update_every offload_teacher"),
        self_flow(teacher="ema")),
    ({"regularizers": {"crepa": {"weight": 1, "neighbors": 0, "tau": 2}}}, ["regularizers.crepa.tau"], {
        "regularizers": {"crepa": {"neighbors": 1}}}),
    ({"objective": {"sampling": "uniform", "shift": 0, "eps": 0, "uniform_prob": 0}}, [
        "objective.shift", "objective.eps", "objective.uniform_prob"], {
            "objective": {"sampling": "shifted_logit_normal"}}),
    ({"model": {"mode": "audio"}, "objective": {"shift": 1}, "audio": {"sequence_resolution": 0}}, [
        "audio.sequence_resolution"], {"objective": {"shift": None}}),
    ({**AV, "audio": {"supervision_warmup": 0, "supervision_min_ratio": 0}}, [
        "audio.supervision_warmup", "audio.supervision_min_ratio"], {"audio": {"supervision": "warn"}}),
    ({"cache": {"tiles": {"spatial_overlap": 0}}}, ["cache.tiles.spatial_overlap"], {
        "cache": {"tiles": {"spatial_tile": 512}}}),
    ({"optimizer": {"weight_decay": 0, "args": {"weight_decay": 0.5}}}, ["optimizer.weight_decay"], None),
    ({"model": {"mode": "audio"}, "sample": {"tiles": {"spatial_overlap": 32, "temporal_overlap": 8}}}, [
        "sample.tiles.spatial_overlap", "sample.tiles.temporal_overlap"], {
            **AV, "sample": {"tiles": {"temporal_tile": 64}}}),
    ({"slider": {"guidance": 3}}, ["slider.guidance"], {"slider": {"targets": [{"positive": "a"}]}}),
]  # fmt: skip


def merged(one, other):
    out = dict(one)
    for key, value in other.items():
        out[key] = merged(out.get(key, {}), value) if isinstance(value, dict) else value
    return out


@pytest.mark.parametrize(("tables", "names", "mend"), CASES)
def test_a_setting_without_effect_is_refused_by_name(tables, names, mend):
    run = make_run(tables)
    assert [one.setting for one in run.without_effect] == names
    with pytest.raises(ConfigError) as error:
        check_settings(run)
    assert all(f"{name} = " in str(error.value) for name in names), error.value
    if mend is not None:
        assert make_run(merged(tables, mend)).without_effect == []


def test_the_words_say_what_it_counts_with_and_what_is_there():
    (one,) = make_run({"loss": {"huber_delta": 0.5}}).without_effect
    assert str(one) == (
        "loss.huber_delta = 0.5 has no effect: it counts only with loss.type = huber, and loss.type is mse. Leave it "
        "out, or at its default (1)."
    )


def test_what_is_no_number_is_said_to_be_none():
    with pytest.raises(ConfigError, match=r"sample\.fps: needs a number \(given: nan\)"):
        make_run({"sample": {"fps": float("nan")}})


def test_what_asks_for_nothing_is_let_alone():
    tables = {"sample": {"audio": "off", "every": 0}, "train": {"prove_references": False}}
    check_settings(make_run(merged(tables, {"model": {"mode": "audio"}, "memory": {"fit": "custom", "pinned": False}})))
    nothing = {
        "lora": {"alpha": 0}, "loss": {"video_weight": 0}, "train": {"what": "full", "norms_every": 0},
        "schedule": {"name": "constant", "warmup": 0}, "sample": {"image_crf": 0}, "quant": {"awq_alpha": 0},
    }  # fmt: skip
    assert make_run(merged(nothing, {"model": {"mode": "audio"}, "cache": {"keyframe_slots": 0}})).without_effect == []


@pytest.mark.parametrize(
    ("tables", "name"),
    [
        ({"sample": {"audio_format": "flac"}}, "sample.audio_format"),
        ({"slider": {"mode": "reference"}}, "slider.mode"),
        ({"sample": {"width": 64}, "model": {"mode": "audio"}}, "sample.width"),
        ({"cache": {"audio_vae_dtype": "bf16"}}, "cache.audio_vae_dtype"),
        ({"cache": {"preservation_prompts": ["woman"]}}, "cache.preservation_prompts"),
        ({"sample": {"identity_guidance": 3}}, "sample.identity_guidance"),
        ({"sample": {"strength": 0.5}, "train": {"what": "full"}}, "sample.strength"),
        ({"sample": {"image_crf": 10}, "model": {"mode": "audio"}}, "sample.image_crf"),
        ({"memory": {"ff_chunk": 8, "ff_chunk_target": "audio"}}, "memory.ff_chunk"),
        ({"memory": {"split_attention": "batch", "split_attention_target": "av_cross"}}, "memory.split_attention"),
        ({"memory": {"ff_chunk": 8, "ff_chunk_target": "video"}, "model": {"mode": "audio"}}, "memory.ff_chunk"),
        ({"data": {"config": "a.toml", "manifest": "b.json"}}, "data.config"),
        ({"cache": {"tiles": {"spatial_tile": 512}}, "model": {"mode": "audio"}}, "cache.tiles.spatial_tile"),
    ],
)
def test_how_a_thing_is_done_that_is_not_there_is_told_and_not_refused(tables, name):
    run = make_run(tables)
    check_settings(run)
    assert [one.setting for one in run.without_effect] == [name]


SWITCHES = [
    ("ema.sample", {"ema": {"decay": 0.9}}),
    ("validation.at_start", {"validation": {"every": 5}}),
    ("sample.validation_first_frame", {"sample": {"validation_clips": 1}}),
    ("sample.spectrogram", {"model": {"mode": "av"}}),
    ("gemma.double_quant", {"gemma": {"precision": "nf4"}}),
    ("train.prove_references", {"video": {"conditions": [{"type": "reference"}]}}),
    ("train.prove_references", {"model": {"mode": "av"}, "audio": {"generated": False}}),
]


@pytest.mark.parametrize(("name", "mend"), SWITCHES)
def test_a_switch_that_is_on_by_itself_is_told_where_it_is_switched_off_and_counts_with_nothing(name, mend):
    group, key = name.split(".")
    run = make_run({group: {key: False}})
    check_settings(run)
    assert [str(one).partition(" has")[0] for one in run.without_effect] == [f"{name} = false"]
    assert make_run(merged({group: {key: False}}, mend)).without_effect == []


def test_a_switch_of_what_is_not_drawn_is_told():
    for tables, name in (({**AV, "sample": {"audio": "off", "spectrogram": False}}, "sample.spectrogram"),
                         ({"ema": {"decay": 0.9, "sample": False}, "sample": {"every": 0}}, "ema.sample")):  # fmt: skip
        assert [one.setting for one in make_run(tables).without_effect] == [name]


def test_a_switch_is_told_where_the_command_line_switches_it_on_for_nothing():
    tables = {"sample": {"every": 0}}
    assert make_run({"sample": {"every": 0, "at_start": True}}).without_effect == []  # a file may have all defaults
    assert make_run({"sample": {"every": 0, "at_start": False}}).without_effect == []  # which is what happens
    for flag in ("sample.at_start=true", "sample_at_first=true"):
        run = make_run(tables, overrides=[flag])
        assert [one.setting for one in run.without_effect] == ["sample.at_start"]
        check_settings(run)
    assert make_run({"sample": {"every_epochs": 1}}, overrides=["sample.at_start=true"]).without_effect == []


def test_conditions_are_joined_and_negated():
    class Inner(BaseModel):
        kind: str = "a"
        size: int = Field(default=1, json_schema_extra={"counts_with": [".kind = b | c", "not top"]})

    class Tree(BaseModel):
        top: str = ""
        inner: Inner = Inner()
        either: int = Field(default=0, json_schema_extra={"counts_with": "top or inner.kind != a -- with a top"})

    def names(**values):
        return [one.setting for one in idle(Tree(**values), Tree())]

    assert names(inner=Inner(size=2)) == ["inner.size"]
    assert names(inner=Inner(size=2, kind="c")) == []
    assert names(inner=Inner(size=2, kind="c"), top="x") == ["inner.size"]
    assert names(either=1) == ["either"]
    assert names(either=1, top="x") == names(either=1, inner=Inner(kind="b")) == []
    assert counts_with(Inner.model_fields["size"], "inner.") == "with inner.kind = b or c, and without top"
    assert counts_with(Tree.model_fields["either"]) == "with a top"


COMMUNITY = """ltx2_checkpoint = "base.safetensors"
gemma_root = "gemma"
dataset_config = "data.toml"
network_dim = 16
lr_scheduler = "cosine"
lr_scheduler_power = 2.0
huber_delta = 0.3
"""


def test_files_of_other_programs_are_taken_with_a_note(tmp_path):
    (tmp_path / "theirs.toml").write_text(COMMUNITY)
    run = load_run(tmp_path / "theirs.toml")
    check_settings(run)
    assert any(note.startswith("loss.huber_delta = 0.3 has no effect") for note in run.notes)
    assert any(note.startswith("schedule.power = 2 has no effect") for note in run.notes)


def test_an_imported_file_leaves_them_out_and_says_so(tmp_path):
    (tmp_path / "theirs.toml").write_text(COMMUNITY)
    (tmp_path / "data.toml").write_text(
        '[[datasets]]\nvideo_directory = "clips"\ntarget_frames = [25]\nframe_sample = 4\nmax_frames = 97\n'
    )
    made = import_settings(tmp_path / "theirs.toml")
    made.write(tmp_path / "out")
    text = (tmp_path / "out" / "run.toml").read_text()
    assert "# --- No effect here" in text
    assert "huber_delta = 0.3: as loss.huber_delta it counts only with loss.type = huber" in text
    check_settings(load_run(tmp_path / "out" / "run.toml"))
    dataset = (tmp_path / "out" / "dataset.toml").read_text()
    assert "# datasets[0].frame_sample has no effect: it counts only with frame_extraction = uniform" in dataset
    assert DatasetConfig.read(tmp_path / "out" / "dataset.toml").datasets[0].frame_sample == 1


VIDEOS, IMAGES, SOUNDS = ({"video_directory": "v"}, {"image_directory": "i"}, {"audio_directory": "a"})
ENTRIES = [
    ({**VIDEOS, "audio_files_directory": "sounds"}, ["audio_files_directory"], {"audio_source": "audio_files"}),
    ({**VIDEOS, "frame_sample": 4}, ["frame_sample"], {"frame_extraction": "uniform"}),
    ({**VIDEOS, "frame_stride": 4, "target_frames": [9]}, ["frame_stride"], {"frame_extraction": "slide"}),
    ({**VIDEOS, "max_frames": 97, "frame_interval": 8}, ["max_frames", "frame_interval"], {
        "frame_extraction": "full"}),
    ({**VIDEOS, "frame_extraction": "full", "target_frames": [9]}, ["target_frames"], {"frame_extraction": "head"}),
    ({**VIDEOS, "resolution_buckets": ["64x64x9"], "target_frames": [9]}, ["target_frames"], {
        "resolution_buckets": []}),
    ({**VIDEOS, "reference_frames": 9}, ["reference_frames"], {"reference_directory": "r"}),
    ({**VIDEOS, "audio_source": "none", "audio_track": 2, "audio_normalize": True}, [
        "audio_track", "audio_normalize"], {"audio_source": "video"}),
    ({**VIDEOS, "speech_segments": True}, ["speech_segments"], None),
    ({**VIDEOS, "bucket_no_upscale": True}, ["bucket_no_upscale"], {"enable_bucket": True}),
    ({**VIDEOS, "caption_column": "text"}, ["caption_column"], None),
    ({**IMAGES, "target_frames": [25], "min_frames": 5}, ["target_frames", "min_frames"], None),
    ({**IMAGES, "audio_mask_directory": "m"}, ["audio_mask_directory"], None),
    ({**SOUNDS, "reference_directory": "r"}, ["reference_directory"], None),
    ({**SOUNDS, "flip": True}, ["flip"], None),
    ({**SOUNDS, "speech_max_seconds": 20}, ["speech_max_seconds"], {"speech_segments": True}),
    ({**SOUNDS, "speech_segments": True, "max_seconds": 20}, ["max_seconds"], {"speech_segments": False}),
    ({"video_jsonl_file": "l.jsonl", "cache_directory": "c", "recursive": True}, ["recursive"], None),
    ({"video_jsonl_file": "l.jsonl", "cache_directory": "c", "speech_segments": True}, ["speech_segments"], None),
    ({"image_jsonl_file": "l.jsonl", "cache_directory": "c", "audio_normalize": True, "audio_track": 2}, [
        "audio_normalize", "audio_track"], None),
    ({"audio_jsonl_file": "l.jsonl", "cache_directory": "c", "reference_frames": 9}, ["reference_frames"], None),
    ({**VIDEOS, "audio_source": "none", "audio_only_sequence_resolution": 96}, [
        "audio_only_sequence_resolution"], {"audio_source": "video"}),
    ({**VIDEOS, "reference_cache_directory": "c"}, ["reference_cache_directory"], {"reference_directory": "r"}),
    ({**SOUNDS, "reference_audio_cache_directory": "c"}, ["reference_audio_cache_directory"], {
        "reference_audio_directory": "r"}),
    ({**SOUNDS, "target_fps": 30}, ["target_fps"], None),
    ({**VIDEOS, "resolution_buckets": ["64x64x9"], "pad_short": "pad"}, ["pad_short"], {"resolution_buckets": []}),
    ({**VIDEOS, "resolution_buckets": ["64x64x9"], "frame_extraction": "full", "max_frames": 97}, [
        "frame_extraction", "max_frames"], {"resolution_buckets": []}),
    ({**IMAGES, "resolution_buckets": ["64x64x9"], "resolution": [64, 64], "enable_bucket": True}, [
        "resolution", "enable_bucket"], {"resolution_buckets": []}),
]  # fmt: skip


@pytest.mark.parametrize(("entry", "names", "mend"), ENTRIES)
def test_a_setting_of_a_dataset_without_effect_is_refused_by_name(tmp_path, entry, names, mend):
    with pytest.raises(ConfigError) as error:
        DatasetConfig.from_table({"datasets": [entry]}, tmp_path)
    found = [line.split(" = ")[0].strip() for line in str(error.value).splitlines()[1:]]
    assert sorted(found) == sorted(f"datasets[0].{name}" for name in names)
    if mend is not None:
        assert DatasetConfig.from_table({"datasets": [{**entry, **mend}]}, tmp_path).datasets


def test_what_says_how_batches_are_made_has_no_use_where_clips_are_measured(tmp_path):
    table = {"general": {"batch_size": 2}, "datasets": [VIDEOS | {"cache_directory": "c"}]}
    table["validation_datasets"] = [IMAGES | {"cache_directory": "d", "num_repeats": 5, "batch_size": 4}]
    assert DatasetConfig.from_table(table, tmp_path).notes == (
        "validation_datasets[0]: batch_size, num_repeats have no effect, since clips are measured one by one, each "
        "once.",
    )


def test_general_is_for_all_datasets(tmp_path):
    table = {"general": {"target_frames": [25], "frame_sample": 3}, "datasets": [IMAGES, VIDEOS]}
    config = DatasetConfig.from_table(table, tmp_path)
    assert config.datasets[1].target_frames == (25,)
    assert [note.partition(" has no effect")[0] for note in config.notes] == ["general.frame_sample = 3"]
    # what is written out is read back, though nothing is shared in it
    (tmp_path / "all.toml").write_text(config.to_toml())
    again = DatasetConfig.read(tmp_path / "all.toml")
    assert again.datasets[1].target_frames == (25,)
    with pytest.raises(ConfigError, match=r"general\.audio_files_directory = .* has no effect"):
        DatasetConfig.from_table({"general": {"audio_files_directory": "sounds"}, "datasets": [VIDEOS]}, tmp_path)


def test_a_dataset_of_caches_keeps_what_they_were_made_with(tmp_path):
    entry = {**VIDEOS, "cache_only": True, "cache_directory": "c", "max_frames": 97}
    assert DatasetConfig.from_table({"datasets": [entry]}, tmp_path).datasets[0].max_frames == 97


def test_samples_of_validation_clips_need_some(tmp_path):
    config = DatasetConfig.from_table({"datasets": [VIDEOS]}, tmp_path)
    with pytest.raises(ConfigError, match=r"sample\.validation_clips is 2, and the dataset file has no"):
        require_validation(make_run({"sample": {"validation_clips": 2}}), config)


BROUGHT_ALONG = """
[[datasets]]
video_directory = "v"
frame_extraction = "head"
frame_sample = 4
{more}
"""


def test_a_dataset_file_of_another_program_may_carry_settings_without_effect(tmp_path):
    path = tmp_path / "dataset.toml"
    path.write_text(BROUGHT_ALONG.format(more=""))
    with pytest.raises(ConfigError, match=r"datasets\[0\]\.frame_sample = 4 has no effect"):
        DatasetConfig.read(path)
    config = DatasetConfig.read(path, foreign=True)
    assert config.datasets[0].frame_sample == DatasetSettings.model_fields["frame_sample"].default
    assert [note for note in config.notes if note.startswith("datasets[0].frame_sample has no effect: it counts only")]
    # by a name of its own it is seen to be another program's
    path.write_text(BROUGHT_ALONG.format(more="no_resize_control = true"))
    assert any("frame_sample has no effect" in note for note in DatasetConfig.read(path).notes)
    path.write_text("network_dim = 16\nlearning_rate = 3e-4\ndataset_config = 'd.toml'\n")
    assert load_run(path).foreign
    assert not make_run({}).foreign


def test_the_record_of_a_run_trains_on_whatever_it_says_of_settings_without_effect(tmp_path):
    folder = tmp_path / "runs" / "fox"
    (folder / "states").mkdir(parents=True)
    (folder / "run.toml").write_text("[loss]\nhuber_delta = 0.5\n")
    (folder / "dataset.toml").write_text(BROUGHT_ALONG.format(more=""))
    with pytest.raises(ConfigError, match=r"loss\.huber_delta = 0\.5 has no effect"):
        load_run(folder / "run.toml").require_effect()
    (folder / "manifest.json").write_text("{}")
    run = load_run(folder / "run.toml")
    run.require_effect()
    assert any("loss.huber_delta = 0.5 has no effect" in note for note in run.notes)
    assert any("frame_sample has no effect" in note for note in DatasetConfig.read(folder / "dataset.toml").notes)
    with pytest.raises(ConfigError, match=r"loss\.huber_delta = 0\.3 has no effect"):
        load_run(folder / "run.toml", ["loss.huber_delta=0.3"]).require_effect()


def test_a_vae_beside_that_of_the_checkpoint_is_said(run_file, tmp_path):
    class Told(Events):
        def message(self, text, level="info"):
            said.append(text)

    said = []
    run = load_run(run_file)
    other = tmp_path / "other.safetensors"
    shutil.copy(run.need("model.checkpoint"), other)
    for path, words in (
        (other, f"model.video_vae: that of other.safetensors is used, and not that of {run.model.checkpoint.name}."),
        (run.model.checkpoint, "model.video_vae has no effect: it names the checkpoint"),
    ):
        BaseFiles.find(load_run(run_file, [f"model.video_vae={path}"]), Told())
        assert any(words in text for text in said)
    BaseFiles.find(load_run(run_file, [f"model.text_projection={run.model.checkpoint}"]), Told())
    assert said[-1].startswith("model.text_projection has no effect: it names the checkpoint")
    said.clear()
    BaseFiles.find(run, Told())
    assert not [text for text in said if "video_vae" in text]
