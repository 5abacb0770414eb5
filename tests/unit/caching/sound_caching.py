"""Caching of sound with an encoder that keeps what it hears."""

from __future__ import annotations

import types

import torch
from fill_caches import encode_sound as fill_sound
from media import moving_square, tone, write_image, write_sound, write_video

from ltx2_train.caching.settings import CacheSettings
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.events import Events
from ltx2_train.models.mel import waveform_to_mel

HOP = 160


class HearingVAE(torch.nn.Module):
    """Keeps the waveforms it is given; its latents are the mel spectrogram, averaged over 4 x 4."""

    config = types.SimpleNamespace(sample_rate=16000, n_fft=1024, hop=HOP)

    def __init__(self):
        super().__init__()
        self.heard, self.closed = [], False

    def waveform_to_mel(self, waveform, sample_rate):
        self.heard.append(waveform[0].numpy())
        return waveform_to_mel(waveform, sample_rate)

    def encode(self, mel):
        rows = torch.nn.functional.pad(mel, (0, 0, 3, 0), mode="replicate")
        return torch.nn.functional.avg_pool2d(rows, 4, ceil_mode=False).repeat(1, 4, 1, 1)

    def close(self):
        self.closed = True


class Heard(Events):
    def __init__(self, stop_after=None):
        self.messages, self.done, self.stop_after = [], 0, stop_after

    def message(self, text, level="info"):
        self.messages.append((level, text))

    def progress(self, done, total, text=""):
        self.done += "audio" in text

    def should_stop(self):
        return self.stop_after is not None and self.done >= self.stop_after


def plan_of(folder, *entries, **general):
    table = {"general": {"resolution": 64, "target_frames": [17], **general}, "datasets": list(entries)}
    return plan_dataset(DatasetConfig.from_table(table, folder))


def encode(plan, fingerprint="audio-1", events=None, vae=None, **settings):
    opened = []

    def opener():
        opened.append(vae or HearingVAE())
        return opened[-1]

    report = fill_sound(plan, opener, fingerprint, CacheSettings(**settings), events)
    return report, opened


def clip(path, fps=25, frames=25, wave=None, rate=48000, codec="aac"):
    write_video(path, moving_square(frames, 64, 48), fps, sound=wave, sound_rate=rate, sound_codec=codec)
    path.with_suffix(".txt").write_text("a square moves")
    return path


def mixed_folder(tmp_path):
    """A clip with sound, a silent one, a picture and a recording."""
    clip(tmp_path / "v" / "loud.mp4", wave=tone(1.0))
    clip(tmp_path / "v" / "mute.mp4")
    write_image(tmp_path / "i" / "p.png")
    write_sound(tmp_path / "a" / "hum.wav", tone(2.0, 220, 44100), 44100, caption="a hum")
    entries = [
        {"video_directory": "v", "cache_directory": "kv"},
        {"image_directory": "i", "cache_directory": "ki"},
        {"audio_directory": "a", "cache_directory": "ka"},
    ]
    return lambda **general: plan_of(tmp_path, *entries, **general)
