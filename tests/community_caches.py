"""Caches as the community trainer writes them, made by hand by the description of its files."""

from __future__ import annotations

import torch
from safetensors.torch import save_file


def community(folder, dtype=torch.bfloat16, token="bfloat16", short="fp16", width=(4096, 2048)):
    """A window of a clip with sound, an image and a recording, by the description of that trainer's files."""
    folder.mkdir(parents=True)
    head = {"architecture": "ltx2_v1", "format_version": "1.0.1"}

    def save(name, tensors, **more):
        save_file(tensors, str(folder / name), metadata={**head, **more})

    save(
        "my_clip_00016-009_0064x0096_ltx2.safetensors",
        {f"latents_2x3x2_{token}": torch.ones(128, 2, 3, 2, dtype=dtype)},
        width="64", height="96", frame_count="9",
    )  # fmt: skip
    audio = {f"audio_latents_12x16x8_{short}": torch.ones(8, 12, 16, dtype=torch.float16)}
    audio["audio_lengths_int32"] = torch.tensor(9, dtype=torch.int32)
    save("my_clip_00016-009_0064x0096_ltx2_audio.safetensors", audio)
    save("p_0640x0480_ltx2.safetensors", {f"latents_1x2x2_{token}": torch.ones(128, 1, 2, 2, dtype=dtype)})
    virtual = {"latents_1x1x1_fp16": torch.zeros(128, 1, 1, 1, dtype=torch.float16)}
    for key, size in (("num_frames", 4), ("height", 2), ("width", 2)):
        virtual[f"ltx2_virtual_{key}_int32"] = torch.tensor(size, dtype=torch.int32)
    save("voice_0960x0544_ltx2.safetensors", virtual)
    save("voice_0960x0544_ltx2_audio.safetensors", audio)
    video, sound = (torch.randn(1024, size).to(dtype) for size in width)
    text = {
        f"video_prompt_embeds_{token}": video,
        f"audio_prompt_embeds_{token}": sound,
        "prompt_attention_mask": torch.ones(1024, dtype=torch.int64),
        f"text_{token}": torch.cat([video, sound], dim=-1),
        "text_mask": torch.ones(1024, dtype=torch.int64),
    }
    for stem in ("my_clip", "p", "voice"):
        save(f"{stem}_ltx2_te.safetensors", text, caption1=f"caption of {stem}")
    return video, sound
