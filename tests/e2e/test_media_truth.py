"""A bench of made media with known truth: what training gets of each is right, or the file is refused by name."""

from __future__ import annotations

import collections
import random
from pathlib import Path

import av
import numpy as np
import pytest
from known_media import HEIGHT, WIDTH, beep, flashes, frame_of, is_wrong, make_clip, number_of

from ltx2_train.dataset.augment import read_clip
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError
from ltx2_train.media.frames import timeline
from ltx2_train.media.sound import prepare
from ltx2_train.media.sound_media import read_sound
from ltx2_train.media.video import probe_media, read_frames

FPS, COUNT, AT = 25, 49, 1.6
AV1 = {"preset": "8", "crf": "8"}
REORDERED = {"g": "24", "bf": "2", "preset": "veryfast", "crf": "12"}


def even(rate, seconds=3.0):
    return [index / rate for index in range(round(rate * seconds))]


def without(times, first, last):
    return [time for time in times if not first - 1e-9 <= time < last - 1e-9]


CLIPS = {
    "mp4 25": ("a.mp4", even(25), {"options": REORDERED}),
    "mkv 30": ("a.mkv", even(30), {"options": REORDERED, "rate": 30}),
    "mov 23.976": ("a.mov", even(24000 / 1001), {"options": REORDERED, "rate": 24}),
    "mp4 60": ("a.mp4", even(60), {"options": REORDERED, "rate": 60}),
    "mp4 12": ("a.mp4", even(12), {"options": REORDERED, "rate": 12}),
    "webm 25": ("a.webm", even(25), {"codec": "libvpx-vp9", "sound_codec": "libopus", "options": {"cpu-used": "8"}}),
    "avi 25": (
        "a.avi",
        even(25),
        {"codec": "mpeg4", "sound_codec": "pcm_s16le", "options": {"qmin": "2", "qmax": "4"}},
    ),
    "ts 25": ("a.ts", even(25), {"options": REORDERED}),
    "late mkv": ("a.mkv", even(25), {"options": REORDERED, "start": 10.0}),
    "lost frames, mp4": ("a.mp4", without(even(25), 0.4, 1.4), {"options": REORDERED}),
    "one lost frame, mkv": ("a.mkv", without(even(30), 0.5, 0.53), {"options": REORDERED, "rate": 30}),
    "lost frames, avi": (
        "a.avi",
        without(even(25), 0.4, 1.4),
        {"codec": "mpeg4", "sound_codec": "pcm_s16le", "options": {"qmin": "2", "qmax": "4"}},
    ),
    "held frames": ("a.mkv", [0.0, 0.04, 0.08, 0.6, 1.0, 1.2, AT, 1.64, 1.68, 2.4, 2.44, 2.9], {"options": REORDERED}),
    "1 a second": ("a.mp4", [0.0, 0.6, 1.6, 2.6], {"options": REORDERED, "rate": 1}),
    "30 then 24": ("a.mp4", even(30, 1.0) + [1 + time for time in even(24, 2.0)], {"options": REORDERED}),
}
# What decoders of many kinds and containers add.
MORE = {
    "hevc": ("a.mp4", even(25), {"codec": "libx265", "options": {"x265-params": "log-level=none"}}),
    "av1": ("a.mkv", even(25), {"codec": "libsvtav1", "sound_codec": "libopus", "options": AV1}),
    "av1, mp4": ("a.mp4", even(25), {"codec": "libsvtav1", "options": AV1}),
    "prores": ("a.mov", even(25), {"codec": "prores_ks", "pixel_format": "yuv422p10le", "sound_codec": "pcm_s16le"}),
    "mpeg2": ("a.mpg", even(25), {"codec": "mpeg2video", "sound_codec": "mp2", "options": {"bf": "2"}}),
    "flv": ("a.flv", even(25), {"options": REORDERED}),
    "vp8": ("a.webm", even(30), {"codec": "libvpx", "sound_codec": "libopus", "rate": 30}),
    "jitter": ("a.mp4", [time + 0.003 * (index % 3) for index, time in enumerate(even(30))], {"options": REORDERED}),
    "lost, vp9": (
        "a.webm",
        without(even(25), 0.4, 1.4),
        {"codec": "libvpx-vp9", "sound_codec": "libopus", "options": {"cpu-used": "8"}},
    ),
}


def planned(folder, **entry):
    given = {"video_directory": "m", "cache_directory": "k", "target_frames": [COUNT], **entry}
    return plan_dataset(DatasetConfig.from_table({"general": {"resolution": [192, 128]}, "datasets": [given]}, folder))


def tried(tmp_path, name, times, more):
    """Assert that a clip gives the right frames, and flash and beep at their time: a frame and 10 ms."""
    if more.get("codec", "libx264") not in av.codecs_available:
        pytest.skip(f"this FFmpeg has no {more['codec']}")
    make_clip(tmp_path / "m" / name, times, at=AT, **more)
    (item,) = planned(tmp_path).items
    line = item.source.timeline
    config = item.dataset.entry
    clip = read_clip(item, config)
    sound = item.sound
    wave = prepare(read_sound(sound.path, sound.start, sound.seconds, sound.of_clip, sound.tracks), sound.length, 16000)
    flash = float(np.flatnonzero(flashes(clip))[0]) / FPS
    heard = beep(wave.samples, 16000)
    assert heard is not None
    numbers = [number_of(picture) for picture in clip]
    assert numbers == list(item.picks), "each frame is the one that was meant"
    if line.held:
        for k, number in enumerate(numbers):
            assert times[number] <= k / FPS + 0.0061, "no frame before its time"
            assert number + 1 == len(times) or times[number + 1] > k / FPS - 1e-6, "no frame after its time"
    scale = 1.0 if line.resampled else line.source_fps / FPS
    seen = next(time for time in times if time >= AT - 1e-6)  # a frame shows it only when it comes
    # Sound that is stretched moves by pieces of some milliseconds.
    most = 0.010 if abs(sound.length - sound.seconds) < 1e-3 else 0.040
    assert abs(heard - AT * scale) <= most
    assert abs(flash - seen * scale) <= 1 / FPS + 1e-6
    assert abs((flash - seen * scale) - (heard - AT * scale)) <= 1 / FPS + 0.010


@pytest.mark.parametrize("case", CLIPS)
def test_flash_and_beep_come_at_their_time_and_together(tmp_path, case):
    tried(tmp_path, *CLIPS[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE)
def test_flash_and_beep_of_more_kinds(tmp_path, case):
    tried(tmp_path, *MORE[case])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["lost frames, mp4", "mp4 25", "mkv 30", "held frames"])
def test_every_window_has_its_own_frames_and_sound(tmp_path, case):
    name, times, more = CLIPS[case]
    make_clip(tmp_path / "m" / name, times, at=AT, **more)
    for item in planned(tmp_path, target_frames=[17], frame_extraction="slide", frame_stride=7).items:
        clip = read_clip(item, item.dataset.entry)
        assert [number_of(picture) for picture in clip] == list(item.picks)
        sound = item.sound
        heard = beep(read_sound(sound.path, sound.start, sound.seconds, sound.of_clip).samples, 48000)
        expected = AT - item.window.start / FPS
        if 0.05 < expected < 17 / FPS - 0.05:
            assert heard == pytest.approx(expected, abs=0.010)


# --- damage ----------------------------------------------------------------------------------------------------------

HURT = {
    "a.mp4": {"options": REORDERED},
    "b.mkv": {"options": REORDERED},
    "c.avi": {"codec": "mpeg4", "options": {"g": "24", "qmin": "2", "qmax": "5"}},
    "d.webm": {"codec": "libvpx-vp9", "options": {"g": "24", "cpu-used": "8", "deadline": "realtime"}},
    "e.mp4": {"codec": "libx265", "options": {"x265-params": "keyint=24:log-level=none"}},
    "f.webm": {"codec": "libvpx", "options": {"g": "24"}},
    # with the tables of the standard, as cameras write it
    "g.avi": {"codec": "mjpeg", "pixel_format": "yuvj420p", "options": {"huffman": "default"}},
    "h.flv": {"options": REORDERED},
    "i.mkv": {"codec": "libsvtav1", "options": {**AV1, "g": "24"}},
    "j.ts": {"options": REORDERED},
}
KINDS = ("hole of 512", "hole of 4096", "cut short", "bytes lost")


def damaged(data: bytes, kind: str, drawn: random.Random) -> bytes:
    hurt = bytearray(data)
    at = int(len(hurt) * drawn.uniform(0.05, 0.95))
    if kind == "cut short":
        return bytes(hurt[:at])
    if kind == "bytes lost":
        return bytes(hurt[:at] + hurt[at + 512 :])
    count = int(kind.split()[-1])
    hurt[at : at + count] = bytes(len(hurt[at : at + count]))
    return bytes(hurt)


def judged(path: Path) -> tuple[str, bool]:
    """Green, amber or red; and whether a frame that would be trained on is wrong."""
    try:
        info = probe_media(path)
    except DataError:
        return "red", False
    line = timeline(path.name, info.times, info.fps or FPS, FPS)
    level = "red" if info.damage else "amber" if info.remarks or len(line.notes) > 1 else "green"
    wrong = False
    for first in range(0, line.frames, 10):
        rows = range(first, min(first + 10, line.frames))
        if any(begin <= line.picks[row] < end for row in rows for begin, end in info.damage):
            continue
        try:
            clip = read_frames(info, [line.picks[row] for row in rows])
        except DataError:
            level = "red"
            continue
        numbers = [round((info.times[line.picks[row]] - info.times[0]) * FPS) for row in rows]
        wrong |= any(is_wrong(picture, number) for picture, number in zip(clip, numbers, strict=True))
    return level, wrong


@pytest.mark.slow
def test_of_200_damaged_copies_none_is_green_with_a_wrong_frame(tmp_path):
    levels: collections.Counter = collections.Counter()
    bad = []
    for name, more in HURT.items():
        whole = make_clip(tmp_path / name, even(25), **more)
        assert judged(whole) == ("green", False), name
        data = whole.read_bytes()
        for kind in KINDS:
            drawn = random.Random(name + kind)
            for turn in range(5):
                path = tmp_path / f"hurt{whole.suffix}"
                path.write_bytes(damaged(data, kind, drawn))
                level, wrong = judged(path)
                levels[level, wrong] += 1
                if level == "green" and wrong:
                    bad.append((name, kind, turn))
    print(dict(levels))
    assert not bad
    assert sum(levels.values()) == 200


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
def test_other_bytes_in_a_matroska_with_check_sums_are_seen(tmp_path, codec):
    whole = make_clip(tmp_path / "a.mkv", even(25), codec=codec, options={"g": "24"})
    data, drawn = whole.read_bytes(), random.Random(codec)
    assert judged(whole) == ("green", False)
    for _ in range(5):
        at = drawn.randrange(len(data) // 8, len(data) * 7 // 8)
        path = tmp_path / "hurt.mkv"
        path.write_bytes(data[:at] + drawn.randbytes(16) + data[at + 16 :])
        assert judged(path) == ("red", False), at


def test_pictures_of_the_bench_tell_their_numbers():
    assert [number_of(frame_of(number)) for number in (0, 1, 500, 1023)] == [0, 1, 500, 1023]
    assert number_of(np.full((HEIGHT, WIDTH, 3), 128, np.uint8)) == -1
    assert is_wrong(frame_of(7), 8)
    assert not is_wrong(frame_of(7), 7)
