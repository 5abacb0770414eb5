"""Files of the official trainer and of LyCORIS as run files: what becomes of their settings."""

import json

import pytest
from unit.config.community_files import DATASET, written

from ltx2_train.cli import main
from ltx2_train.config import load_run, make_run
from ltx2_train.config.importing import import_settings
from ltx2_train.config.lycoris import from_json
from ltx2_train.config.translate import lines_in_words
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.errors import ConfigError
from ltx2_train.toml import parse_toml
from ltx2_train.training.check_given import check_streams

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
    assert [line.name for line in made.translation.of("not yet")] == [
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
    whole = {"algo": "lokr", "linear_dim": 8, "full_matrix": True, "bypass_mode": True, "use_scalar": False}
    (tmp_path / "lycoris.json").write_text(json.dumps(whole))
    assert from_json(tmp_path / "lycoris.json") == [("lora.algo", "lokr"), ("lora.rank", 1024)]
    for more, said in (
        ({"what": 1}, "what is not known"),
        ({"multiplier": 0.5}, "multiplier = 0.5 is not possible here, only 1"),
        ({"use_scalar": True}, "use_scalar = True is not possible"),
    ):
        (tmp_path / "lycoris.json").write_text(json.dumps({"algo": "lokr", **more}))
        with pytest.raises(ValueError, match=said):
            from_json(tmp_path / "lycoris.json")


def test_a_lycoris_file_lies_beside_its_command_and_its_layers_are_written_as_toml(tmp_path):
    written(tmp_path, "my_lycoris.toml", LYCORIS)
    written(tmp_path, "d.toml", DATASET)
    command = "python ltx2_train_network.py --ltx2_checkpoint m.safetensors --dataset_config d.toml"
    command += " --network_module lycoris.kohya --lycoris_config my_lycoris.toml"
    made = import_settings(written(tmp_path, "t.sh", command))
    assert made.problems == []
    lora = load_run(made.write(tmp_path / "out")[-1]).lora
    assert (lora.algo, lora.modules["*audio*"].rank) == ("lokr", 64)


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


def test_paths_of_the_official_yaml_that_are_not_there_are_named_and_its_folder_comes_first(tmp_path, capsys):
    for name in ("base.safetensors", "gemma.safetensors"):
        (tmp_path / name).write_text("")
    text = (
        "model: {model_path: base.safetensors, text_encoder_path: gemma.safetensors}\n"
        "data: {preprocessed_data_root: encoded}\n"
        'validation: {prompts: ["a", "b"], images: [null, "fox.png"], interval: 3}\n'
    )
    source = written(tmp_path, "fox.yaml", text)
    assert main(["import", str(source), "--out", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert f"datasets[0].preprocessed_data_root: {tmp_path / 'encoded'} does not exist" in out
    assert f"validation.images: {tmp_path / 'fox.png'} does not exist" in out
    (tmp_path / "encoded").mkdir()
    (tmp_path / "fox.png").write_text("")
    assert main(["import", str(source), "--out", str(tmp_path / "out"), "--replace"]) == 0
    out = capsys.readouterr().out
    assert f"Next: ltx2-train cache import {tmp_path / 'encoded'}; ltx2-train cache build" in out
    source = written(tmp_path, "fox.yaml", text + "nonsense: 1\n")
    assert main(["import", str(source), "--out", str(tmp_path / "out"), "--replace"]) == 1
    out = capsys.readouterr().out
    assert "Put that right" not in out
    assert "That is left out of" in out


def test_sizes_that_no_sample_can_have_and_images_of_no_prompt_are_told(tmp_path):
    text = (
        "model: {model_path: base.safetensors}\ndata: {preprocessed_data_root: encoded}\n"
        'validation: {prompts: ["a fox"], images: [a.png, b.png], video_dims: [130, 128, 10]}\n'
    )
    made = import_settings(written(tmp_path, "fox.yaml", text))
    out = made.write(tmp_path / "out")[-1].read_text()
    for note in ("sample.width 130 is not a multiple of 32; 128 is", "sample.frames 10 is not 8n+1; 9 is"):
        assert f"# {note} used instead.\n" in out
        assert note in made.summary()
    assert "validation.images: has 2 entries, and there are 1 validation.prompts" in made.summary()
    assert "a.png" not in out.split("# ---")[0]


def test_values_that_another_name_reads_share_what_becomes_of_it(tmp_path):
    def fates(text):
        return {
            line.name: (line.outcome, line.text) for line in import_settings(written(tmp_path, "a.yaml", text)).lines
        }

    used = fates(
        'validation: {prompts: ["a"], images: ["x.png"], reference_videos: ["r.mp4"]}\n'
        "optimization: {scheduler_params: {eta_min: 1e-5}, scheduler_type: cosine}\n"
    )
    assert {one for one, _ in used.values()} == {"taken"}
    lost = fates('validation: {prompts: ["a --w 64"], images: ["x.png"], reference_videos: ["r.mp4", "s.mp4"]}\n')
    assert lost["validation.images"] == ("not usable", "it goes with validation.prompts, which cannot be used")
    assert "has 2 entries, and there are 1 validation.prompts" in lost["validation.reference_videos"][1]
    alone = fates('validation: {images: ["x.png"]}\n')
    assert alone["validation.images"] == ("not usable", "it goes with validation.prompts, which is not given")
    run = load_run(written(tmp_path, "a.yaml", "optimization: {scheduler_params: {end_factor: 0.3}}\n"))
    assert (run.schedule.name, run.schedule.min_lr_ratio) == ("linear", 0.3)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("- {prompt: a hare}", "- {prompt: a hare, guidance_scale: 3}", "number 2 has guidance_scale; known are cond"),
        ("{type: first_frame, probability: 0.2}", "{type: first_frame, foo: 1}", "first_frame has foo; known are"),
    ],
)
def test_keys_of_samples_and_conditions_of_the_official_yaml_that_nothing_reads_are_refused(
    tmp_path, before, after, said
):
    assert before in OFFICIAL
    made = import_settings(written(tmp_path, "fox.yaml", OFFICIAL.replace(before, after)))
    assert any(said in line for line in lines_in_words(made.translation.of("not usable")))


def test_the_official_command_is_read_behind_its_launcher(tmp_path):
    written(tmp_path, "c.yaml", OFFICIAL)
    line = "sed -i 's/3/4/' c.yaml\naccelerate launch --num_processes 2 --config_file a.yaml scripts/train.py c.yaml"
    made = import_settings(written(tmp_path, "o.sh", line))
    told = " ".join(made.notes)
    assert "num_processes" in told
    assert "may write c.yaml" in told
    assert any(
        "skip_initial_validation true -> sample.at_start = false" in line for line in made.summary().splitlines()
    )
    assert "--config_file a.yaml of its launcher is not taken over" in told
