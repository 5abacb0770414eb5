"""Caches as the program wrote them before kinds of cache were classes, from a description: names, keys, metadata.

Nothing here asks the program for a name or a key, so that a change of either is noticed.
"""

from __future__ import annotations

import hashlib
import json

import torch
from safetensors.torch import save_file

HEAD = {"format_version": "1", "architecture": "ltx2_v1"}
VIDEO_VAE, AUDIO_VAE, TEXT, ENCODER, DINO = "1" * 16, "2" * 16, "3" * 16, "4" * 16, "6" * 16


def made_of(path):
    """What a cache says of its medium."""
    stat = path.stat()
    sha = hashlib.sha256(path.read_bytes()).hexdigest()
    return json.dumps({"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha})


def _save(path, tensors, source=None, settings=None, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {**HEAD, **more}
    if source is not None:
        metadata["source"] = made_of(source)
    metadata["settings"] = json.dumps(settings)
    save_file(tensors, str(path), metadata=metadata)


def write_old_caches(media, cache, form="compact"):
    """Of clip.mp4 (17 frames of 25 fps, 64 x 64, with sound), hum.wav (2 s) and still.png (64 x 64) in `media`, and
    what goes with them."""
    clip, base = media / "clips" / "clip.mp4", "clip_00000-017_0064x0064_ltx2"
    tiles = {"spatial_tile": None, "temporal_tile": None}
    window = {"window": "00000-017", "target_fps": 25.0, "source_fps": None, "crop": "center"}
    stored = {"vae_dtype": "bf16", "latents_dtype": "bf16"}
    made_from = {"resolution": "64x64", **stored, **window, "flip": False, "color_jitter": 0.0, **tiles}
    size = {"frame_count": "17", "width": "64", "height": "64", "fps": "25.0"}
    latents = {"latents_3x2x2_bfloat16": torch.full((128, 3, 2, 2), 0.5, dtype=torch.bfloat16)}
    path, made_from = cache / f"{base}.safetensors", {**made_from, "latents": [3, 2, 2]}
    _save(path, latents, clip, made_from, checkpoint=VIDEO_VAE, **size)
    _dino(cache / f"{base}_dino.safetensors", clip, 17, window)

    still, pictures = media / "pictures" / "still.png", cache.with_name("cache_of_pictures")
    tensors = {"latents_1x2x2_bfloat16": torch.full((128, 1, 2, 2), 0.75, dtype=torch.bfloat16)}
    path = pictures / "still_0064x0064_ltx2.safetensors"
    made_from = {"resolution": "64x64", **stored, "flip": False, "color_jitter": 0.0, **tiles, "latents": [1, 2, 2]}
    size = {"frame_count": "1", "width": "64", "height": "64", "fps": "1.0"}
    _save(path, tensors, still, made_from, checkpoint=VIDEO_VAE, **size)
    _dino(pictures / "still_0064x0064_ltx2_dino.safetensors", still, 1, {})
    _text(pictures, "still", "a still", form)

    reference = {"reference_file": "clip.png", "reference_frames": 1, "resolution": "64x64", **stored}
    reference |= {"target_fps": 25.0, "flip": False, "window": "00000-017", "source_fps": None, "crop": "center"}
    tensors = {"latents_1x2x2_bfloat16": torch.full((128, 1, 2, 2), 0.25, dtype=torch.bfloat16)}
    path, made_from = cache / "reference" / f"{base}.safetensors", {**reference, **tiles, "latents": [1, 2, 2]}
    size = {"frame_count": "1", "width": "64", "height": "64", "fps": "25.0"}
    _save(path, tensors, media / "references" / "clip.png", made_from, checkpoint=VIDEO_VAE, **size)

    mask = {"mask_file": "clip.png", "resolution": "64x64", "target_fps": 25.0, "flip": False, "window": "00000-017"}
    mask |= {"source_fps": None, "crop": "center", "latents": [3, 2, 2]}
    tensors = {"mask": torch.ones(3, 2, 2, dtype=torch.uint8)}
    _save(cache / f"{base}_mask.safetensors", tensors, media / "masks" / "clip.png", mask)

    precision = {"audio_normalize": False, "audio_vae_dtype": "fp32", "audio_latents_dtype": "fp16"}
    sound = {"sound_file": "clip.mp4", "sound_window": [0.0, 0.68], "sound_length": 0.68, **precision}
    path = cache / f"{base}_audio.safetensors"
    _save(path, _sound(17, 0.5), clip, sound, checkpoint=AUDIO_VAE, duration_seconds="0.68")

    tensors = {"mask": torch.tensor([0] * 16 + [1], dtype=torch.uint8)}
    made_from = {"mask_file": "clip.json", "sound_window": [0.0, 0.68], "steps": 17}
    _save(cache / f"{base}_audio_mask.safetensors", tensors, media / "sound_masks" / "clip.json", made_from)

    made_from = {"reference_file": "clip.wav", "reference_audio_max_seconds": None, **precision}
    path, source = cache / "reference_audio" / f"{base}_audio.safetensors", media / "voices" / "clip.wav"
    _save(path, _sound(25, 0.25), source, made_from, checkpoint=AUDIO_VAE, duration_seconds="1.0")
    _text(cache, "clip", "a square moves", form)

    hum, other = media / "sounds" / "hum.wav", cache.with_name("cache_of_sounds")
    made_from = {"sound_file": "hum.wav", "sound_window": [0.0, 2.0], "sound_length": 2.0, **precision}
    said = {"checkpoint": AUDIO_VAE, "duration_seconds": "2.0"}
    _save(other / "hum_0064x0064_ltx2_audio.safetensors", _sound(50, 0.75), hum, made_from, **said)
    imagined = {"latents_1x1x1_float16": torch.zeros(128, 1, 1, 1, dtype=torch.float16)}
    for key, number in (("num_frames", 7), ("height", 2), ("width", 2)):
        imagined[f"ltx2_virtual_{key}_int32"] = torch.tensor(number, dtype=torch.int32)
    size = {"frame_count": "49", "width": "64", "height": "64", "fps": "25.0"}
    _save(other / "hum_0064x0064_ltx2.safetensors", imagined, hum, made_from, **said, **size)
    _text(other, "hum", "a hum", form)


def write_old_manifest(folder):
    """`dataset_manifest.json` beside the caches of clips and sounds."""
    clips = {"target_frames": [17], "resolution": [64, 64], "cache_only": True, "cache_directory": "cache"}
    clips |= {"cache_files": ["clip_00000-017_0064x0064_ltx2.safetensors"], "num_repeats": 2}
    clips |= {"reference_cache_directory": "cache/reference"}
    clips |= {"reference_audio_cache_directory": "cache/reference_audio"}
    sounds = {"cache_only": True, "cache_directory": "cache_of_sounds"}
    sounds |= {"resolution": [64, 64], "cache_files": ["hum_0064x0064_ltx2.safetensors"]}
    table = {"format": "ltx2_train_dataset_manifest", "version": 1, "dataset_config": "dataset.toml"}
    path = folder / "dataset_manifest.json"
    path.write_text(json.dumps({**table, "datasets": [clips, sounds]}))
    return path


def write_old_note(notes, name, reason, about):
    """A line of `notes`: ltx2_failed.json or ltx2_damaged.json."""
    stat = about.stat()
    notes.write_text(json.dumps({name: {"reason": reason, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}}))


def write_old_prompt(folder, prompt, fingerprint):
    """The features of a prompt that is drawn, as a text encoder of `fingerprint` gave them."""
    sha = hashlib.sha256()
    for part in (prompt.encode(), fingerprint.encode()):
        sha.update(len(part).to_bytes(8, "little") + part)
    tensors = {"video_features_float32": torch.full((4, 24), 0.5), "audio_features_float32": torch.full((4, 16), 0.25)}
    path = folder / f"prompt_{sha.hexdigest()[:16]}_ltx2_te_compact.safetensors"
    save_file(tensors, str(path), metadata={**HEAD, "caption": prompt})
    return path


def _dino(path, source, frames, window):
    tensors = {"dino_features": torch.full((frames, 9, 32), 0.5, dtype=torch.float16)}
    made_from = {"resolution": "64x64", **window, "flip": False, "color_jitter": 0.0, "dino_size": 42}
    size = {"dino_model": "tiny", "dino_dim": "32", "num_frames": str(frames), "num_patches": "9"}
    _save(path, tensors, source, made_from, checkpoint=DINO, **size)


def _sound(steps, value):
    return {
        f"audio_latents_{steps}x16x8_fp16": torch.full((8, steps, 16), value, dtype=torch.float16),
        "audio_lengths_int32": torch.tensor(steps, dtype=torch.int32),
    }


def _text(cache, stem, caption, form):
    if form == "compact":
        name, tensors = f"{stem}_ltx2_te_compact.safetensors", {
            "video_features_bfloat16": torch.ones(4, 24, dtype=torch.bfloat16),
            "audio_features_bfloat16": torch.ones(4, 16, dtype=torch.bfloat16),
        }  # fmt: skip
    else:
        name, tensors = f"{stem}_ltx2_te.safetensors", {
            "video_prompt_embeds_bfloat16": torch.ones(128, 24, dtype=torch.bfloat16),
            "audio_prompt_embeds_bfloat16": torch.ones(128, 16, dtype=torch.bfloat16),
            "prompt_attention_mask": torch.ones(128, dtype=torch.int64),
        }  # fmt: skip
    settings = {"text_form": form, "text_dtype": "bf16"}
    _save(cache / name, tensors, None, settings, caption=caption, caption1=caption, checkpoint=TEXT, encoder=ENCODER)
