"""The example configurations of the official trainer, by what each of them asks for, load and train as they are."""

from pathlib import Path

import pytest

from ltx2_train.conditions.settings import AudioReference, FirstFrame, Mask, Prefix, Reference, SpatialCrop, Suffix
from ltx2_train.config import load_run
from ltx2_train.training.check_given import check_streams

MADE = {"is_generated": True}
GIVEN = {"is_generated": False}
# name: (picture, its condition, sound, its condition, what a sample is given, modality guidance of both)
EXAMPLES = {
    "t2v": (MADE, "", MADE, "", "", (3.0, 3.0)),
    "i2v": (MADE, "{type: first_frame, probability: 0.5}", MADE, "",
            "{type: first_frame, image_or_video: a.png}", (3.0, 3.0)),
    "video extend": (MADE, "{type: prefix, temporal_boundary: 8, probability: 1.0}", MADE, "",
                     "{type: prefix, video: a.mp4, num_frames: 57}", (3.0, 3.0)),
    "video suffix": (MADE, "{type: suffix, temporal_boundary: 8, probability: 1.0}", MADE, "",
                     "{type: suffix, video: a.mp4, num_frames: 64}", (3.0, 3.0)),
    "video inpainting": (MADE, "{type: mask, mask_dir: video_masks, probability: 1.0}", None, "",
                         "{type: mask, video: a.mp4, mask: b.mp4}", (1.0, 3.0)),
    "video outpainting": (MADE, "{type: spatial_crop, spatial_region: [0, 0, 288, 576], probability: 1.0}", None, "",
                          "{type: spatial_crop, video: a.mp4, spatial_region: [0, 0, 288, 576]}", (1.0, 3.0)),
    "v2v": (MADE, "{type: reference, latents_dir: reference_latents, probability: 1.0}", None, "",
            "{type: reference, video: a.mp4, include_in_output: true}", (1.0, 3.0)),
    "av2av": (MADE, "{type: reference, latents_dir: reference_latents, probability: 1.0}",
              MADE, "{type: reference, latents_dir: reference_audio_latents, probability: 1.0}",
              "{type: reference, video: a.mp4}, {type: reference, audio: a.wav}", (3.0, 3.0)),
    "a2v": (MADE, "", GIVEN, "", "{type: audio_to_video, audio: a.wav}", (3.0, 1.0)),
    "v2a": (GIVEN, "", MADE, "", "{type: video_to_audio, video: a.mp4}", (1.0, 3.0)),
    "t2a": (None, "", MADE, "", "", (3.0, 1.0)),
    "audio extend": (None, "", MADE, "{type: prefix, temporal_boundary: 8, probability: 1.0}",
                     "{type: prefix, audio: a.wav, duration: 1.0}", (3.0, 1.0)),
    "audio suffix": (None, "", MADE, "{type: suffix, temporal_boundary: 8, probability: 1.0}",
                     "{type: suffix, audio: a.wav, duration: 1.0}", (3.0, 1.0)),
    "audio inpainting": (None, "", MADE, "{type: mask, mask_dir: audio_masks, probability: 1.0}",
                         "{type: mask, audio: a.wav, mask: b.wav}", (3.0, 1.0)),
    "a2a": (None, "", MADE, "{type: reference, latents_dir: reference_audio_latents, probability: 1.0}",
            "{type: reference, audio: a.wav}", (3.0, 1.0)),
}  # fmt: skip
CLASSES = {
    "i2v": FirstFrame, "video extend": Prefix, "video suffix": Suffix, "video inpainting": Mask,
    "video outpainting": SpatialCrop, "v2v": Reference, "audio extend": Prefix, "audio suffix": Suffix,
    "audio inpainting": Mask, "a2a": AudioReference,
}  # fmt: skip


def stream(name: str, settings: dict | None, condition: str, folder: str) -> str:
    if settings is None:
        return ""
    made = str(settings["is_generated"]).lower()
    return f"  {name}: {{is_generated: {made}, latents_dir: {folder}, conditions: [{condition}]}}\n"


def yaml_of(name: str) -> str:
    video, of_video, audio, of_audio, sample, (seen, heard) = EXAMPLES[name]
    return (
        "model: {model_path: m.safetensors, text_encoder_path: gemma, training_mode: lora, load_checkpoint: null}\n"
        "lora: {rank: 32, alpha: 32, dropout: 0.0, target_modules: [to_k, to_q, to_v, to_out.0]}\n"
        "training_strategy:\n  name: flexible\n"
        + stream("video", video, of_video, "latents")
        + stream("audio", audio, of_audio, "audio_latents")
        + "optimization: {learning_rate: 1e-4, steps: 2000, batch_size: 1, gradient_accumulation_steps: 1,"
        " max_grad_norm: 1.0, optimizer_type: adamw, scheduler_type: linear, scheduler_params: {},"
        " enable_gradient_checkpointing: true}\n"
        "acceleration: {mixed_precision_mode: bf16, quantization: null, load_text_encoder_in_8bit: false,"
        " offload_optimizer_during_validation: false}\n"
        "data: {preprocessed_data_root: encoded, num_dataloader_workers: 2}\n"
        "validation:\n"
        f"  samples: [{{prompt: a woman types, conditions: [{sample}]}}]\n"
        "  negative_prompt: blurry\n  video_dims: [960, 544, 89]\n  frame_rate: 24.0\n  seed: 42\n"
        "  inference_steps: 30\n  interval: 100\n  video_cfg_scale: 3.0\n  audio_cfg_scale: 7.0\n"
        "  video_stg_scale: 1.0\n  audio_stg_scale: 0.5\n  stg_blocks: [28]\n  guidance_rescale: 0.7\n"
        f"  video_modality_guidance_scale: {seen}\n  audio_modality_guidance_scale: {heard}\n"
        f"  generate_audio: {str(audio is not None and audio is not GIVEN).lower()}\n"
        f"  generate_video: {str(video is MADE).lower()}\n  skip_initial_validation: false\n"
        "checkpoints: {interval: 250, keep_last_n: -1, precision: bfloat16}\n"
        "flow_matching: {timestep_sampling_mode: shifted_logit_normal, timestep_sampling_params: {}}\n"
        "hub: {push_to_hub: false, hub_model_id: null}\n"
        "wandb: {enabled: false, project: ltx-2-trainer, entity: null, tags: [ltx2], log_validation_videos: true}\n"
        "seed: 42\noutput_dir: outputs/my_lora\n"
    )


def load(tmp_path: Path, text: str):
    (tmp_path / "encoded" / "latents").mkdir(parents=True, exist_ok=True)
    (tmp_path / "run.yaml").write_text(text)
    return load_run(tmp_path / "run.yaml")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_of_the_official_trainer_trains_as_it_is(name, tmp_path):
    video, _, audio, _, sample, modality = EXAMPLES[name]
    run = load(tmp_path, yaml_of(name))
    check_streams(run)
    assert run.model.mode == ("av" if video and audio else "video" if video else "audio")
    assert (run.video.generated, run.audio.generated) == (video is not GIVEN, audio is not GIVEN)
    conditions = [*run.video.conditions, *run.audio.conditions]
    if name == "i2v":
        assert run.train.first_frame_probability == 0.5 or conditions == [FirstFrame(probability=0.5)]
    elif name in CLASSES:
        assert [type(one) for one in conditions] == [CLASSES[name]]
    elif name == "av2av":
        assert [type(one) for one in conditions] == [Reference, AudioReference]
    (prompt,) = run.sample.prompts
    assert bool(sample) == (isinstance(prompt, dict) or "--i" in prompt)
    drawn = run.sample
    assert (drawn.guidance, drawn.audio_guidance, drawn.stg, drawn.audio_stg) == (3.0, 7.0, 1.0, 0.5)
    assert (drawn.modality_guidance, drawn.audio_modality_guidance) == modality
    assert (drawn.rescale, drawn.stg_block, drawn.stg_blocks) == (0.7, 28, None)


def test_the_older_numbers_of_guidance_are_for_picture_and_sound(tmp_path):
    text = yaml_of("t2v")
    text = text.replace("video_cfg_scale: 3.0\n  audio_cfg_scale: 7.0", "guidance_scale: 4.0")
    text = text.replace("video_stg_scale: 1.0\n  audio_stg_scale: 0.5", "stg_scale: 1.0\n  stg_mode: stg_v")
    drawn = load(tmp_path, text.replace("[28]", "[28, 29]")).sample
    assert (drawn.guidance, drawn.audio_guidance, drawn.stg, drawn.audio_stg) == (4.0, None, 1.0, 0.0)
    assert (drawn.stg_block, drawn.stg_blocks) == (None, [28, 29])
