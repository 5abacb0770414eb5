"""Files of other programs as run files: taken over, accounted for line by line, and refused as a whole."""

import json
from pathlib import Path

import pytest

from ltx2_train.config import load_run, make_run
from ltx2_train.config.command_file import read_commands
from ltx2_train.config.importing import import_settings
from ltx2_train.config.lycoris import from_json
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.toml import parse_toml
from ltx2_train.training.check_given import check_streams

# the flags of a whole run as the community trainer's users have them in a script, in cmd.exe's way
COMMAND = """accelerate launch --num_cpu_threads_per_process 1 --mixed_precision bf16 ltx2_train_network.py ^
--mixed_precision bf16 ^
--dataset_config dataset.toml ^
--gemma_load_in_8bit ^
--gemma_root models/gemma ^
--separate_audio_buckets ^
--ltx2_checkpoint models/ltx-2.3.safetensors ^
--ltx_version 2.3 --ltx_version_check_mode error ^
--ltx2_mode av --fp8_base --fp8_scaled --blocks_to_swap 10 --sdpa --gradient_checkpointing ^
--learning_rate 1e-4 --network_module networks.lora_ltx2 --network_dim 32 --network_alpha 16 ^
--timestep_sampling shifted_logit_normal ^
--sample_at_first --sample_every_n_epochs 5 --sample_prompts prompts.txt --sample_with_offloading ^
--sample_tiled_vae --sample_vae_tile_size 512 --sample_vae_temporal_tile_size 48 ^
--sample_merge_audio --output_dir output --output_name fox
"""
DATASET = """[general]
resolution = [768, 512]
caption_extension = ".txt"
enable_bucket = true
cache_directory = "cache"
[[datasets]]
video_directory = "videos"
target_frames = [1, 17, 33, 49]
target_fps = 25
"""
OFFICIAL = """
model: {model_path: m.safetensors, text_encoder_path: gemma, training_mode: lora, load_checkpoint: null}
lora: {rank: 16, alpha: 8, dropout: 0.0, target_modules: [to_k, to_q]}
training_strategy:
  name: flexible
  video: {is_generated: true, latents_dir: latents, conditions: [{type: first_frame, probability: 0.2}]}
  audio: {is_generated: true, latents_dir: audio_latents}
optimization: {learning_rate: 2e-4, steps: 70, batch_size: 2, scheduler_type: linear, optimizer_type: adamw}
acceleration: {mixed_precision_mode: bf16, quantization: int8-quanto, load_text_encoder_in_8bit: true}
data: {preprocessed_data_root: encoded, num_dataloader_workers: 0}
validation:
  samples:
    - {prompt: a fox, conditions: [{type: first_frame, image_or_video: fox.png}], seed: 7, video_dims: [64, 32, 9]}
    - {prompt: a hare}
  video_dims: [576, 544, 49]
  interval: null
  guidance_scale: 4.0
  stg_blocks: [29]
  skip_initial_validation: true
checkpoints: {interval: 250, keep_last_n: -1, precision: bfloat16, no_resume: true, save_training_state: minimal}
hub: {push_to_hub: false, hub_model_id: null}
wandb: {enabled: false, tags: []}
flow_matching: {timestep_sampling_mode: shifted_logit_normal, timestep_sampling_params: {std: 0.9}}
seed: 3
output_dir: outputs/fox
"""
BACKENDS = [
    {
        "id": "clips", "type": "local", "dataset_type": "video", "instance_data_dir": "data/videos",
        "caption_strategy": "textfile", "resolution": 480, "repeats": 9,
        "video": {"num_frames": 49, "min_frames": 49, "frame_rate": 25, "bucket_strategy": "aspect_ratio"},
        "audio": {"auto_split": True, "sample_rate": 16000, "channels": 1, "duration_interval": 3.0},
    },
    {"id": "text", "type": "local", "dataset_type": "text_embeds", "default": True, "cache_dir": "cache/text"},
]  # fmt: skip
SIMPLETUNER = {
    "model_family": "ltxvideo2", "model_type": "lora", "pretrained_model_name_or_path": "m.safetensors",
    "data_backend_config": "config/data.json", "output_dir": "output/fox", "learning_rate": 6e-5,
    "max_train_steps": 200, "num_train_epochs": 0, "optimizer": "bnb-adamw8bit", "train_batch_size": 2,
    "base_model_precision": "int8-quanto",
    "lr_warmup_steps": 50, "validation_resolution": "768x512", "validation_prompt": "a fox", "report_to": "none",
    "vae_enable_tiling": True, "ramtorch_text_encoder": True, "validation_steps": 20, "seed": 42,
}  # fmt: skip


def written(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


@pytest.fixture
def command(tmp_path):
    written(tmp_path, "dataset.toml", DATASET)
    return written(tmp_path, "train.bat", COMMAND)


def test_a_saved_command_trains_as_it_is(command, tmp_path):
    run = load_run(command)
    assert (run.lora.rank, run.lora.effective_alpha, run.train.learning_rate) == (32, 16.0, 1e-4)
    assert (run.model.mode, run.model.version, run.quant.format, run.gemma.precision) == ("av", "2.3", "fp8", "8bit")
    assert run.model.checkpoint == tmp_path / "models" / "ltx-2.3.safetensors"
    assert run.data.config == tmp_path / "dataset.toml"
    assert (run.sample.every_epochs, run.sample.tiles.temporal_tile) == (5, 48)
    assert any("sample_with_offloading" in note for note in run.notes)


def test_what_a_file_leaves_open_is_as_the_other_program_has_it(command):
    run = load_run(command)
    assert (run.train.steps, run.schedule.name, run.schedule.warmup) == (1600, "constant", 0)
    assert (run.train.first_frame_probability, run.train.caption_dropout) == (0.1, 0.0)
    assert run.sample.every == 0  # samples were asked for by epochs alone
    assert any(note.startswith("Not given, so as the community trainer has it: ") for note in run.notes)
    assert load_run(command, ["train.steps=5", "network_dim=8"]).lora.rank == 8


def test_import_writes_files_that_read_back_as_the_same_run(command, tmp_path):
    made = import_settings(command)
    run_file, dataset_file = sorted(made.write(tmp_path / "out"), reverse=True)
    run, before = load_run(run_file), load_run(command)
    same = {"run", "lora", "objective", "optimizer", "schedule", "train", "quant", "memory", "gemma"}
    assert {group: getattr(run, group) for group in same - {"run"}} == {
        group: getattr(before, group) for group in same - {"run"}
    }
    assert run.model.checkpoint.resolve() == before.model.checkpoint.resolve()
    (entry,) = DatasetConfig.read(dataset_file).datasets
    assert entry.video_directory.resolve() == tmp_path / "videos"
    assert entry.caches.resolve() == tmp_path / "cache"
    assert made.complete


def test_every_name_of_the_source_stands_in_what_is_written(command, tmp_path):
    made = import_settings(command)
    text = made.run_toml(tmp_path)
    names = [name for program in read_commands(COMMAND)[0] for name, _ in program.flags]
    assert [name for name in names if name not in text] == []
    assert "rank = 32  # network_dim" in text
    assert 'format = "fp8"  # fp8_base, fp8_scaled' in text
    assert "#   sample_tiled_vae = true: samples are always decoded in tiles" in text
    assert "steps = 1600  # not given; this is what the community trainer takes" in text


def test_files_that_are_there_are_not_written_over(command, tmp_path):
    made = import_settings(command)
    made.write(tmp_path / "out")
    with pytest.raises(ConfigError, match="is there already"):
        made.write(tmp_path / "out")
    assert len(made.write(tmp_path / "out", replace=True)) == 2


def test_all_that_is_not_there_yet_is_told_at_once(tmp_path):
    path = written(
        tmp_path,
        "flags.toml",
        "network_dim = 8\nsample_two_stage = true\nxformers = true\nsave_state_to_huggingface = true\n"
        "learing_rate = 1e-4\nnf4_block_size = 33\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_run(path)
    text = str(caught.value)
    for words in (
        "sample_two_stage is not there yet",
        "xformers is not there yet",
        "save_state_to_huggingface",
        "learing_rate: unknown",
    ):
        assert words in text
    assert "did you mean" not in text.split("learing_rate")[0]
    assert "Did you mean learning_rate" in text
    assert "quant.block_size: must be one of 32, 64, 128, 256" in text
    assert "ltx2-train import flags.toml" in text


def test_import_leaves_out_what_is_not_there_yet_and_says_so(tmp_path):
    path = written(
        tmp_path, "flags.toml", 'network_dim = 8\nsample_two_stage = true\nnf4_block_size = 33\nmax_train_steps = "x"\n'
    )
    made = import_settings(path)
    assert not made.complete
    text = made.run_toml(tmp_path)
    assert "rank = 8" in text
    assert "#   sample_two_stage = true: " in text
    assert "#   nf4_block_size = 33: quant.block_size: must be one of 32" in text
    assert "#   max_train_steps = x: train.steps: needs a whole number" in text
    assert load_run(made.write(tmp_path / "out")[-1]).lora.rank == 8


@pytest.mark.parametrize(
    "text",
    [
        'network_dim = 16\nlearning_rate = 3e-4\nnetwork_module = "networks.lora_ltx2"\nsdpa = true\n',
        "[network]\nnetwork_dim = 16\n[whatever]\nlearning_rate = 3e-4\n",
        '[optimizer]\noptimizer_type = "AdamW8bit"\n[train]\nlearning_rate = 3e-4\n[lora]\nnetwork_dim = 16\n',
    ],
)
def test_a_toml_of_the_community_trainer_is_taken_as_it_is(tmp_path, text):
    run = load_run(written(tmp_path, "config.toml", text))
    assert (run.lora.rank, run.train.learning_rate) == (16, 3e-4)
    assert run.lora.effective_alpha == 1  # its default, which is no good one, but its


def test_a_run_file_of_our_own_keeps_our_defaults(tmp_path):
    run = load_run(written(tmp_path, "run.toml", "[lora]\nrank = 8\n[train]\nlearning_rate = 3e-4\nseed = 1\n"))
    assert (run.lora.effective_alpha, run.train.steps) == (8.0, 2000)
    run = load_run(written(tmp_path, "run.toml", "[train]\nlearning_rate = 3e-4\nseed = 1\n"))
    assert run.train.steps == 2000


def test_the_official_yaml_is_taken_as_it_is(tmp_path):
    (tmp_path / "encoded" / "latents").mkdir(parents=True)
    path = written(tmp_path, "fox.yaml", OFFICIAL.replace("batch_size: 2", "batch_size: 1"))
    assert load_run(path).data.config == tmp_path / "encoded"
    made = import_settings(written(tmp_path, "fox.yaml", OFFICIAL))
    assert made.complete
    dataset_file, run_file = made.write(tmp_path / "out")
    run = load_run(run_file)
    assert (run.run.name, run.model.mode, run.lora.rank, run.lora.alpha) == ("fox", "av", 16, 8.0)
    assert (run.train.steps, run.train.learning_rate, run.train.first_frame_probability) == (70, 2e-4, 0.2)
    assert (run.schedule.min_lr_ratio, run.schedule.warmup) == (0.1, 0)  # its line ends at a tenth
    assert (run.train.keep_loras, run.train.state, run.run.if_exists) == (0, "minimal", "new")
    assert (run.sample.every, run.sample.at_start, run.sample.stg_block) == (0, False, 29)
    assert run.sample.prompts == [f"a fox --w 64 --h 32 --f 9 --d 7 --i {tmp_path / 'fox.png'}", "a hare"]
    assert (run.objective.mode, run.objective.std, run.gemma.precision) == ("stretched", 0.9, "8bit")
    (entry,) = DatasetConfig.read(dataset_file).datasets
    assert entry.preprocessed_data_root.resolve() == tmp_path / "encoded"
    assert entry.batch_size == 2


def test_conditions_of_the_official_yaml_are_ours(tmp_path):
    text = OFFICIAL.replace(
        "{type: first_frame, probability: 0.2}",
        "{type: prefix, temporal_boundary: 2}, {type: reference, latents_dir: references, probability: 0.5}",
    ).replace("{is_generated: true, latents_dir: audio_latents}", "{is_generated: false, latents_dir: audio_latents}")
    text = text.replace("- {prompt: a hare}", "- {prompt: a hare, conditions: [{type: audio_to_video, audio: a.wav}]}")
    made = import_settings(written(tmp_path, "fox.yaml", text))
    run = load_run(made.write(tmp_path / "out")[-1])
    assert [type(one).__name__ for one in run.video.conditions] == ["Prefix", "Reference"]
    assert run.video.conditions[1].probability == 0.5
    assert (run.model.mode, run.audio.generated, run.train.first_frame_probability) == ("av", False, 0.0)
    assert run.sample.prompts[1] == {
        "prompt": "a hare",
        "conditions": [{"type": "audio_to_video", "audio": str(tmp_path / "a.wav")}],
    }
    assert [line.name for line in made.found.of("not yet")] == [
        "training_strategy.video.conditions.reference.latents_dir"
    ]


def test_several_references_of_the_official_yaml_follow_the_numbers_of_their_folders(tmp_path):
    text = OFFICIAL.replace(
        "{type: first_frame, probability: 0.2}",
        "{type: reference, latents_dir: reference_latents_2, probability: 0.5}, {type: first_frame}, "
        "{type: reference, latents_dir: reference_latents}",
    ).replace("batch_size: 2", "batch_size: 1")
    (tmp_path / "encoded" / "latents").mkdir(parents=True)
    run = load_run(written(tmp_path, "fox.yaml", text))
    assert [(one.type, one.probability) for one in run.video.conditions] == [("reference", 1.0), ("reference", 0.5)]


def test_reference_videos_of_the_older_yaml_belong_to_the_prompts_of_their_number(tmp_path):
    text = OFFICIAL[: OFFICIAL.index("validation:")] + (
        "validation:\n  prompts: [a fox, a hare]\n  images: [fox.png, null]\n  reference_videos: [a.mp4, b.mp4]\n"
        "  reference_downscale_factor: 2\n  include_reference_in_output: true\n"
    )
    run = load_run(import_settings(written(tmp_path, "fox.yaml", text)).write(tmp_path / "out")[-1])
    assert [prompt["prompt"] for prompt in run.sample.prompts] == ["a fox", "a hare"]
    assert run.sample.prompts[0]["conditions"] == [
        {"type": "first_frame", "image_or_video": str(tmp_path / "fox.png")},
        {"type": "reference", "video": str(tmp_path / "a.mp4"), "downscale_factor": 2},
    ]
    assert run.sample.include_reference


@pytest.mark.parametrize(
    ("stream", "condition", "expected"),
    [
        ("video", "type: prefix, temporal_boundary: 8", {"temporal_boundary": (8, 8)}),
        ("video", "type: suffix, temporal_boundary: 8", {"temporal_boundary": (8, 8)}),
        ("video", "type: spatial_crop, spatial_region: [0, 0, 288, 576]", {"spatial_region": (0, 0, 288, 576)}),
        ("video", "type: mask, mask_dir: video_masks", {}),
        ("video", "type: reference, latents_dir: reference_latents", {"temporal_scale_factor": None}),
        ("audio", "type: prefix, temporal_boundary: 25", {"temporal_boundary": (25, 25)}),
        ("audio", "type: suffix, temporal_boundary: 25", {"temporal_boundary": (25, 25)}),
        ("audio", "type: mask, mask_dir: audio_masks", {}),
        ("audio", "type: reference, latents_dir: reference_audio_latents", {"hide_text": False}),
    ],
)
def test_each_condition_of_the_official_yaml_trains_as_it_is(tmp_path, stream, condition, expected):
    conditions = f"conditions: [{{{condition}, probability: 0.5}}]"
    before = {"video": "conditions: [{type: first_frame, probability: 0.2}]", "audio": "latents_dir: audio_latents"}
    after = {"video": conditions, "audio": f"latents_dir: audio_latents, {conditions}"}
    text = OFFICIAL.replace(before[stream], after[stream]).replace("batch_size: 2", "batch_size: 1")
    (tmp_path / "encoded" / "latents").mkdir(parents=True)
    run = load_run(written(tmp_path, "fox.yaml", text))
    (one,) = getattr(run, stream).conditions
    assert one.probability == 0.5
    assert {name: getattr(one, name) for name in expected} == expected
    assert run.lora.target_modules == ["to_k", "to_q"], "its layers are named, and no condition chooses others"


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("{type: prefix}", "give either temporal_boundary or seconds"),
        ("{type: prefix, temporal_boundary: 0}", "a length above 0"),
        ("{type: mask, mask_dir: other}", r"mask\.mask_dir is not there yet: folders of latents under other names"),
        ("{type: reference, latents_dir: reference_latents, strength: 1}", r"strength: unknown setting"),
        ("{type: rotate}", "a condition of video is a table whose type is one of first_frame"),
        ("prefix", "needs a list of conditions, each with a type"),
    ],
)
def test_a_condition_that_is_none_is_refused_by_name(tmp_path, block, said):
    path = written(tmp_path, "fox.yaml", OFFICIAL.replace("{type: first_frame, probability: 0.2}", block))
    with pytest.raises(ConfigError, match=said):
        load_run(path)


def test_a_first_frame_of_a_given_stream_is_not_dropped_without_a_word(tmp_path):
    text = OFFICIAL.replace("video: {is_generated: true", "video: {is_generated: false")
    run = load_run(written(tmp_path, "fox.yaml", text.replace("batch_size: 2", "batch_size: 1")))
    with pytest.raises(ConfigError, match="the whole video is given, and video.conditions of type first_frame"):
        check_streams(run)


def test_in_context_loras_of_the_community_trainer_are_conditions(tmp_path):
    run = load_run(written(tmp_path, "a.toml", 'network_dim = 8\nlora_target_preset = "v2v"\n'))
    assert [one.type for one in run.video.conditions] == ["reference"]
    flags = 'lora_target_preset = "audio_ref_only_ic"\nltx2_mode = "av"\naudio_ref_use_negative_positions = true\n'
    (sound,) = load_run(written(tmp_path, "b.toml", flags)).audio.conditions
    assert (sound.negative_positions, sound.hide_text) == (True, False)
    # a strategy alone leaves the layers as in every other run there
    assert load_run(written(tmp_path, "c.toml", 'network_dim = 8\nic_lora_strategy = "v2v"\n')).lora.target == "t2v"
    # in a file of our own it is the layers alone
    assert make_run({"lora_target_preset": "v2v"}).video.conditions == []


def test_a_folder_that_the_official_trainer_encoded_is_a_dataset(tmp_path):
    (tmp_path / "latents").mkdir()
    (entry,) = DatasetConfig.read(tmp_path).datasets
    assert entry.preprocessed_data_root == tmp_path
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="is a folder, not a dataset file"):
        DatasetConfig.read(tmp_path / "other")


def test_simpletuners_files_are_taken_as_they_are(tmp_path):
    (tmp_path / "data" / "videos").mkdir(parents=True)
    written(tmp_path, "config/data.json", BACKENDS)
    made = import_settings(written(tmp_path, "config/config.json", SIMPLETUNER))
    assert made.complete
    dataset_file, run_file = made.write(tmp_path / "out")
    run = load_run(run_file)
    assert (run.run.name, run.model.mode, run.optimizer.name) == ("fox", "av", "adamw8bit")
    assert (run.train.steps, run.train.epochs, run.schedule.warmup, run.lora.rank) == (200, None, 50, 16)
    assert (run.sample.width, run.sample.height, run.sample.prompts) == (768, 512, ["a fox"])
    assert (run.quant.format, run.gemma.placement, run.cache.tiles.spatial_tile) == ("int8", "layers", 512)
    (entry,) = DatasetConfig.read(dataset_file).datasets
    assert entry.video_directory.resolve() == tmp_path / "data" / "videos"  # seen from the top of its tree
    assert (entry.batch_size, entry.num_repeats, entry.target_frames) == (2, 10, (49,))


def test_an_audio_backend_makes_an_audio_run(tmp_path):
    backend = {
        "id": "a", "type": "local", "dataset_type": "audio", "instance_data_dir": "sounds",
        "audio": {"audio_only": True, "min_duration_seconds": 1, "max_duration_seconds": 30, "duration_interval": 3.0},
    }  # fmt: skip
    made = import_settings(written(tmp_path, "data.json", [backend]))
    assert made.found.tables["model"]["mode"] == "audio"
    (entry,) = made.data["datasets"]
    assert (entry["audio_bucket_strategy"], entry["audio_bucket_interval"], entry["max_seconds"]) == (
        "truncate",
        3.0,
        30,
    )


def test_flags_of_the_cache_commands_go_into_the_dataset_file(tmp_path):
    written(tmp_path, "dataset.toml", DATASET)
    path = written(
        tmp_path,
        "run.sh",
        "python ltx2_cache_latents.py --dataset_config dataset.toml \\\n  --ltx2_audio_source audio_files "
        "--ltx2_audio_dir sounds --reference_downscale 1 --vae_chunk_size 16\n"
        'MODEL="m.safetensors"\naccelerate launch ltx2_train_network.py --dataset_config dataset.toml '
        "--ltx2_checkpoint $MODEL --gemma_root $GEMMA\n",
    )
    made = import_settings(path)
    assert made.problems == ["$GEMMA: the script uses it and does not set it; write its value"]
    assert made.data["general"]["audio_source"] == "audio_files"
    assert made.found.tables["model"]["checkpoint"] == "m.safetensors"
    assert made.found.tables["cache"]["tiles"]["chunk_size"] == 16
    with pytest.raises(ConfigError, match="ltx2_audio_source belongs to the dataset file"):
        load_run(path)


def test_other_commands_of_a_script_are_answered_with_ours(tmp_path):
    path = written(
        tmp_path,
        "q.sh",
        "python ltx2_quantize_model.py --input_model a.safetensors --output_model b.safetensors "
        "--loftq_init --network_dim 32",
    )
    found = {line.name: line.text for line in import_settings(path).found.of("other command")}
    assert found["ltx2_quantize_model --loftq_init"] == "ltx2-train quantize --loftq"


@pytest.mark.parametrize(
    ("line", "flags"),
    [
        (r'python x.py --a "C:\my data\b.toml" --c', [("a", r"C:\my data\b.toml"), ("c", True)]),
        ("python x.py --lr_args a=1 b=2 --no-deep --n=-3", [("lr_args", ["a=1", "b=2"]), ("deep", False), ("n", "-3")]),
        ("$env:DIR = 'd'\npython x.py `\n  --a $env:DIR/b", [("a", "d/b")]),
        ('set DIR=d e\npython x.py --a "%DIR%" ^\n\n--b 1', [("a", "d e"), ("b", "1")]),
        ("# --x 1\npython x.py ... (other training args) --a 1  # no more", [("a", "1")]),
    ],
)
def test_commands_are_read_as_their_shells_do(line, flags):
    (command,), _, missing = read_commands(line)
    assert (command.program, command.flags, missing) == ("x", flags, [])


def test_folders_of_other_programs_become_datasets(tmp_path):
    for name in ("10_fox/a.png", "3_hare/b.mp4"):
        written(tmp_path, f"train/{name}", "")
    made = import_settings(tmp_path / "train")
    first, second = made.data["datasets"]
    assert (Path(first["image_directory"]).name, first["num_repeats"]) == ("10_fox", 10)
    assert (Path(second["video_directory"]).name, second["num_repeats"]) == ("3_hare", 3)
    for name in ("a_start.mp4", "a_end.mp4", "a_audio.wav", "b.mp4"):
        written(tmp_path, f"pairs/{name}", "")
    written(tmp_path, "pairs/a.txt", "it turns")
    made = import_settings(tmp_path / "pairs")
    (row,) = [json.loads(line) for line in made.lists["pairs.jsonl"].splitlines()]
    assert Path(row["video_path"]).name == "a_end.mp4"
    assert Path(row["control_path"]).name == "a_start.mp4"
    assert (Path(row["audio_path"]).name, row["caption"]) == ("a_audio.wav", "it turns")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("d.toml", DATASET, "is a dataset file"),
        ("x.json", '{"a": 1}', "is not SimpleTuner's config.json"),
        ("x.yaml", "job: extension\nconfig: {}\n", "ai-toolkit"),
        ("x.yaml", "a: [", "is not valid YAML"),
        ("x.sh", "echo hello\n", "no command with flags"),
        ("x.safetensors", "", "ends in none of"),
    ],
)
def test_files_that_are_no_run_files_say_what_they_are(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says):
        load_run(written(tmp_path, name, text))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"resume": "x-state"}, "resume is replaced: start the same run again"),
        ({"network_module": "networks.oft"}, "network_module is not there yet: networks other than"),
        ({"optimizer_type": "Lion"}, "optimizer_type is not there yet"),
        ({"network_args": ["algo=lokr", "x"]}, "network_args: 'x' is not of the form key=value"),
        ({"datasets": []}, "datasets: belongs to the dataset file"),
        ({"lora": {"resolution": 5}}, "lora.resolution: unknown setting"),
        ({"resolution": 512}, "resolution: unknown setting. It belongs to the dataset file"),
        ({"network": {"network_dim": 8, "foo": 1}}, r"network\.foo: unknown setting"),
    ],
)
def test_names_that_cannot_be_taken_over_are_refused_by_name(flags, says):
    with pytest.raises(ConfigError, match=says):
        make_run(flags)


@pytest.mark.parametrize(
    "flags",
    [
        {"validate_every_n_steps": 0, "crepa": False, "huggingface_repo_id": "", "sample_two_stage": False},
        {"network_args": ["include_patterns=['.*to_k$']", "loraplus_lr_ratio=4"]},
        {"network_module": "networks.lora_ltx2", "save_state": True, "autoresume": True},
    ],
)
def test_what_is_off_is_no_matter(flags):
    make_run(flags)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("w.yaml", "model: 5\nlora: [1]\noptimization: {scheduler_type: step, steps: x}\nvalidation: {samples: 5}"),
        ("b.json", [{"instance_data_dir": 5, "dataset_type": "video", "video": 7, "repeats": "x"}]),
        (
            "o.sh",
            "python ltx2_train_network.py --network_args x --lr_args --optimizer_args weight_decay=0.1 --network_dim",
        ),
    ],
)
def test_values_that_make_no_sense_are_named_and_left_out(tmp_path, name, text):
    made = import_settings(written(tmp_path, name, text))
    assert not made.complete
    run = load_run(made.write(tmp_path / "out")[-1])
    assert run.optimizer.args in ({}, {"weight_decay": 0.1})


LYCORIS = """
[network]
base_algo = "lokr"
base_factor = 16
[network.modules."*audio*"]
algo = "lora"
dim = 64
alpha = 32
[network.init]
lokr_norm = 1e-3
"""


def test_networks_of_lycoris_are_taken_over(tmp_path):
    file = written(tmp_path, "my_lycoris.toml", LYCORIS)
    module = {"network_module": "lycoris.kohya"}
    audio = {"algo": "lora", "rank": 64, "alpha": 32}
    for flags in ({**module, "lycoris_config": str(file)}, parse_toml(LYCORIS, "run.toml")):
        lora = make_run(flags).lora
        assert (lora.algo, lora.factor, lora.lokr_norm) == ("lokr", 16, 1e-3)
        assert lora.modules["*audio*"].model_dump(exclude_none=True) == audio
    over = ["algo=loha", "modules.*audio*.dim=16", "init.lokr_norm=0.01"]
    lora = make_run({**module, "lycoris_config": str(file), "network_args": over}).lora
    assert (lora.algo, lora.factor, lora.lokr_norm, lora.modules["*audio*"].rank) == ("loha", 16, 0.01, 16)
    assert make_run({**module, "network_args": ["algo=locon", "conv_dim=8", "conv_alpha=4"]}).lora.algo == "locon"
    with pytest.raises(ConfigError, match=r"lycoris_config: .*none\.toml is no file"):
        make_run({**module, "lycoris_config": str(tmp_path / "none.toml")})
    with pytest.raises(ConfigError, match="network_args.algo is not there yet"):
        make_run({**module, "network_args": ["algo=oft"]})


def test_a_lycoris_file_of_simpletuner_is_taken_over(tmp_path):
    preset = {"target_module": ["Attention", "FeedForward"], "module_algo_map": {"FeedForward": {"factor": 8}}}
    table = {
        "algo": "lokr",
        "multiplier": 1.0,
        "linear_dim": 10000,
        "linear_alpha": 1,
        "factor": 16,
        "apply_preset": preset,
    }
    (tmp_path / "lycoris.json").write_text(json.dumps(table))
    settings = from_json(tmp_path / "lycoris.json")
    assert settings == [
        ("lora.algo", "lokr"),
        ("lora.rank", 1024),
        ("lora.alpha", 1),
        ("lora.factor", 16),
        ("lora.target", "v2v"),
        ("lora.modules", {"*ff*": {"factor": 8}}),
    ]
    (tmp_path / "lycoris.json").write_text(json.dumps({"algo": "lokr", "what": 1}))
    with pytest.raises(ValueError, match="what is not known"):
        from_json(tmp_path / "lycoris.json")


def test_regularizers_are_taken_over():
    flags = {
        "blank_preservation": True, "blank_preservation_args": ["multiplier=0.5"],
        "dop": True, "dop_args": ["class=a woman", "multiplier=0.3"],
        "prior_divergence": True,
        "audio_dop": False, "audio_dop_args": ["multiplier=0.5"],
        "crepa": True, "crepa_args": "mode=backbone student_block_idx=8 lambda_crepa=0.2 normalize=false".split(),
        "self_flow": True,
        "self_flow_args": "teacher_mode=ema student_block_ratio=0.3 temporal_mode=frame lambda_temporal=0.1".split(),
    }  # fmt: skip
    made = make_run(flags).regularizers
    assert made.wanted == ["blank", "dop", "prior_divergence", "crepa", "self_flow"]
    assert (made.blank.weight, made.dop.weight, made.dop.class_prompt) == (0.5, 0.3, "a woman")
    assert (made.prior_divergence.weight, made.crepa.weight, made.self_flow.weight) == (0.1, 0.2, 0.1)
    assert (made.crepa.student_block, made.crepa.normalize) == (8, False)
    flow = made.self_flow
    assert (flow.teacher, flow.student_ratio, flow.temporal, flow.temporal_weight) == ("ema", 0.3, "frame", 0.1)
    assert make_run({"crepa_args": ["tau=2"]}).regularizers.crepa.tau == 1.0  # without its switch it is not used


def test_regularizers_of_simpletuner_are_taken_over(tmp_path):
    settings = {
        "model_family": "ltxvideo2", "crepa_enabled": True, "crepa_lambda": 0.3, "crepa_block_index": 8,
        "tread_config": {"routes": [{"selection_ratio": 0.4, "start_layer_idx": 2, "end_layer_idx": -2}]},
        "scheduled_sampling_max_step_offset": 5, "scheduled_sampling_probability": 0.5,
    }  # fmt: skip
    path = written(tmp_path, "config.json", json.dumps(settings))
    made = load_run(import_settings(path).write(tmp_path / "out")[-1]).regularizers
    assert made.wanted == ["crepa", "tread", "rollout"]
    assert (made.crepa.mode, made.crepa.weight, made.crepa.student_block) == ("dino", 0.3, 8)
    assert (made.tread.weight, made.tread.routes) == (1.0, ["2:-2:0.6"])
    assert (made.rollout.weight, made.rollout.steps) == (0.5, 5)


TRAIN = "python ltx2_train_network.py --ltx2_checkpoint m.safetensors --gemma_root gemma --dataset_config d.toml"


def test_two_training_commands_are_two_runs(tmp_path):
    path = written(tmp_path, "two.sh", f"{TRAIN} --output_name one\n\n{TRAIN} --output_name two\n")
    for read in (import_settings, load_run):
        with pytest.raises(ConfigError, match=r"two\.sh holds 2 training commands .* a file of its own"):
            read(path)
    both = written(tmp_path, "both.sh", f"{TRAIN} --network_dim 4 && {TRAIN} --network_dim 8\n")
    with pytest.raises(ConfigError, match="2 training commands"):
        import_settings(both)
    other = written(tmp_path, "simple.sh", "simpletuner train --lora_rank=4\nsimpletuner train --lora_rank=8\n")
    with pytest.raises(ConfigError, match="2 training commands"):
        import_settings(other)
    yaml = written(tmp_path, "official.sh", "python scripts/train.py a.yaml\npython scripts/train.py b.yaml\n")
    with pytest.raises(ConfigError, match=r"train a\.yaml, train b\.yaml"):
        import_settings(yaml)


@pytest.mark.parametrize(
    "text",
    [
        'ARGS=(--network_dim 4\n  # a note\n  --output_name "a fox"\n\n)\nARGS+=(--seed 7)\n'
        + TRAIN
        + ' "${ARGS[@]}" "$@"\n',
        f"$more = @(\n  '--network_dim', '4',\n  \"--output_name\", \"a fox\",\n  '--seed', '7'\n)\n& {TRAIN} @more\n",
        f'NAME="a fox"\nCUDA_VISIBLE_DEVICES=0 X=1 {TRAIN} --network_dim 4 --output_name "$NAME" --seed ${{SEED:-7}} '
        "2>&1 | tee --append log.txt\n",
    ],
    ids=["bash array", "PowerShell array", "variables for one command"],
)
def test_arguments_from_arrays_and_variables_are_not_lost(tmp_path, text):
    run = load_run(written(tmp_path, "run.sh" if "$more" not in text else "run.ps1", text))
    assert (run.lora.rank, run.run.name, run.train.seed) == (4, "a fox", 7)


@pytest.mark.parametrize("value", ["$(nproc)", "$1", '"${LIST[@]}"', "${DIR%/}", "$NOTHING"])
def test_what_a_shell_works_out_is_named(tmp_path, value):
    made = import_settings(written(tmp_path, "run.sh", f"{TRAIN} --output_name {value}\n"))
    assert any(value.strip('"') in problem and "write its value" in problem for problem in made.problems)


def test_a_flag_that_is_given_twice_is_named_with_both_values(tmp_path):
    made = import_settings(written(tmp_path, "run.sh", f"{TRAIN} --network_dim 4 --network_dim 8\n"))
    assert made.problems[0] == ("network_dim: ltx2_train_network gives it twice, as 4 and as 8; keep one of them")
    with pytest.raises(ConfigError, match="gives it twice, as 4 and as 8"):
        load_run(tmp_path / "run.sh")
    same = written(tmp_path, "same.sh", f"{TRAIN} --network_dim 4 --network_dim 4\n")
    assert load_run(same).lora.rank == 4


def test_commands_that_say_different_things_are_told(tmp_path):
    caches = "python ltx2_cache_latents.py --dataset_config {} --vae_dtype fp16\n"
    text = caches.format("d.toml") + f"{TRAIN} --vae_dtype bf16 --config_file more.toml --network_dim 4\n"
    written(tmp_path, "more.toml", "network_dim = 8\nseed = 3\n")
    run = load_run(written(tmp_path, "run.sh", text))
    assert (run.cache.vae_dtype, run.lora.rank, run.train.seed) == ("bf16", 4, 3)
    assert "vae_dtype = bf16 of ltx2_train_network counts, not fp16 of ltx2_cache_latents" in run.notes
    assert "network_dim = 4 of the command counts, not 8 of its config_file" in run.notes
    two = import_settings(written(tmp_path, "caches.sh", caches.format("a.toml") + caches.format("b.toml")))
    assert any("says a.toml, ltx2_cache_latents says b.toml" in problem for problem in two.problems)


def test_settings_of_a_dataset_without_a_dataset_file_are_not_dropped(tmp_path):
    path = written(
        tmp_path,
        "config.json",
        '{"model_family": "ltxvideo2", "train_batch_size": 4, "resolution": 512, "lora_rank": 8}',
    )
    made = import_settings(path)
    assert any(problem.startswith("train_batch_size: put `batch_size = 4` into") for problem in made.problems)
    assert any(problem.startswith("resolution: put `resolution = ") for problem in made.problems)
    assert not made.complete


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        (
            "a.json",
            '{"model_family": "ltxvideo2", "lora_rank": 4, "lora_rank": 8}',
            "'lora_rank' stands twice .* 4 and as 8",
        ),
        (
            "a.yaml",
            "model: {model_path: m}\nlora:\n  rank: 4\n  alpha: 4\n  rank: 8\n",
            "rank stands twice .* lines 3 and 5: 4 and 8",
        ),
        ("a.toml", "network_dim = 4\nnetwork_dim = 8\n", "network_dim stands twice"),
        (
            "b.json",
            '{"datasets": [{"video_directory": "a", "video_directory": "b"}]}',
            "'video_directory' stands twice",
        ),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, name, text, says):
    with pytest.raises(ConfigError, match=says):
        import_settings(written(tmp_path, name, text))
