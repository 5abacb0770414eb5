"""Files of the community trainer as tests of importing write them."""

import json

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


def written(tmp_path, name, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def saved_command(folder):
    """A script with the command of a whole run, and the dataset file that it names."""
    written(folder, "dataset.toml", DATASET)
    return written(folder, "train.bat", COMMAND)
