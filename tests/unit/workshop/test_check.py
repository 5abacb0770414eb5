"""Every rule of the check on a file made for it.

It is long: the check has many rules.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import types
import wave
from pathlib import Path

import media
import numpy as np
import pytest
from PIL import Image

from ltx2_train.cli import main
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import ConfigError, DataError
from ltx2_train.events import Events
from ltx2_train.workshop.check import check_dataset
from ltx2_train.workshop.check_report import CheckReport, Finding, listed
from ltx2_train.workshop.check_rules import names_speaker, size_finding, speaks
from ltx2_train.workshop.sheet import contact_sheets

GENERAL = "[general]\nresolution = [96, 64]\ntarget_frames = [9, 17]\n"


def clip(path, caption="a square moves", frames=20, shift=0, size=(96, 64), **more):
    pixels = np.roll(media.moving_square(frames, *size), shift, axis=1)
    media.write_video(path, pixels, **more)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


@pytest.fixture
def good(tmp_path):
    """Six clips that differ; `check(extra)` checks the folder."""
    folder = tmp_path / "clips"
    for index, word in enumerate(("red", "blue", "green", "slow", "fast", "tiny")):
        clip(folder / f"{word}.mp4", f"a {word} square {word * 3} crosses the {index} field", 50, 5 * index)
    return folder


def check(folder, more="", general=GENERAL, goal=None, source=None):
    file = folder.parent / "ds.toml"
    key = f'video_directory = "{folder.name}"' if source is None else source
    file.write_text(f'{general}[[datasets]]\n{key}\ncache_directory = "cache"\n{more}\n', encoding="utf-8")
    return check_dataset(file, goal)


def rules(report, path=None):
    return {(finding.level, finding.rule) for finding in report.findings if path is None or finding.path == path}


def test_good_clips_are_green(good):
    report = check(good, general="[general]\nresolution=[96, 64]\ntarget_frames=[49, 33]\ntarget_fps = 15\n")
    report = check(good, general="[general]\nresolution=[96, 64]\ntarget_frames=[49, 9]\n")
    assert report.ok
    assert report.counts() == {"green": 6, "amber": 0, "red": 0}
    assert {rule for _, rule in rules(report)} == {"clip-length"}
    assert report.files[0].lost_clip == pytest.approx(1 / 50)
    assert report.files[0].lost_frame == 0


@pytest.mark.parametrize(
    ("make", "rule", "level"),
    [
        (lambda f: (f / "bad.mp4").write_text("no video" * 50), "unreadable", "red"),
        (lambda f: (f / "bad.mp4").write_bytes(b""), "unreadable", "red"),
        (lambda f: media.truncate(clip(f / "bad.mp4", frames=60)), "unreadable", "red"),
        (lambda f: clip(f / "bad.mp4", frames=5), "too-short", "red"),
        (lambda f: clip(f / "bad.mp4", None), "no-caption", "red"),
        (lambda f: clip(f / "bad.mp4", "  "), "no-caption", "red"),
        (lambda f: clip(f / "bad.mp4", "long " * 201), "long-caption", "amber"),
        (lambda f: clip(f / "bad.mp4", size=(64, 160)), "odd-size", "amber"),
        (lambda f: clip(f / "bad.mp4", size=(48, 32)), "odd-size", "amber"),
        (lambda f: clip(f / "bad.mp4", sound=np.zeros((1, 40000), np.float32)), "silent", "amber"),
        (lambda f: clip(f / "bad.mp4", sound=np.sign(media.tone(0.8))), "clipped", "amber"),
        (lambda f: clip(f / "bad.mp4", 'a man says: "hello"', sound=media.tone(0.8)), "speaker", "amber"),
        (lambda f: clip(f / "bad.mp4", times=[0.02 * k * k for k in range(20)]), "fps-mix", "amber"),
    ],
)  # fmt: skip
def test_a_rule_finds_its_file(good, make, rule, level):
    make(good)
    bad = good / "bad.mp4"
    if not bad.with_suffix(".txt").exists() and rule != "no-caption":
        bad.with_suffix(".txt").write_text("something else entirely")
    report = check(good)
    assert (level, rule) in rules(report, bad), report.text()
    assert report.ok == (level != "red")
    assert next(file for file in report.files if file.path == bad).level == level
    assert not any(rule == found for _, found in rules(report, good / "red.mp4"))


def test_captions_are_shown_as_they_will_be_read(good):
    report = check(good, "trigger_word = 'ohwx'")
    assert report.captions is not None
    assert report.captions.shortest[1].startswith("ohwx, ")
    assert report.captions.text() in report.text()
    assert report.to_json()["captions"]["count"] == len(report.files)


@pytest.mark.parametrize(
    ("edges", "told"),
    [
        ((6, 0), "has black bars at the top and the bottom ("),
        ((0, 8), "has black bars at the sides ("),
        ((0, 0), ""),
        ((24, 40), ""),  # a small thing before a black wall
    ],
)
def test_black_bars_are_told(good, edges, told):
    high, wide = edges
    frames = np.zeros((33, 64, 96, 3), np.uint8)
    frames[:, high : 64 - high or 64, wide : 96 - wide or 96] = media.moving_square(33, 96 - 2 * wide, 64 - 2 * high)
    if edges == (24, 40):
        frames[:, 24:40, 40:47], frames[:, 24:40, 49:56] = 0, 0
        frames[:, 30:34, 44:52] = 200
    media.write_captioned(good / "bars.mp4", frames, caption="bars")
    found = [one.reason for one in check(good).findings if one.rule == "bars"]
    assert [reason.startswith(told) for reason in found] == [True] * bool(told)


def test_black_bars_of_a_clip_that_fades_in_are_told(good):
    frames = np.zeros((33, 64, 96, 3), np.uint8)
    frames[:, 8:56] = media.moving_square(33, 96, 48) * np.linspace(0, 4, 33).clip(0, 1)[:, None, None, None]
    media.write_captioned(good / "fade.mp4", frames, caption="fade")
    media.write_captioned(good / "night.mp4", frames // 8, caption="night")
    found = [one for one in check(good).findings if one.rule == "bars"]
    assert [(one.path.name, one.reason[:41]) for one in found] == [
        ("fade.mp4", "has black bars at the top and the bottom ")
    ]


def test_a_clip_that_stands_still_or_stutters_is_told(good):
    moving = media.moving_square(20, 96, 64)
    media.write_captioned(good / "held.mp4", np.concatenate([moving, *[moving[-1:]] * 20]), caption="held")
    clip(good / "slow_rate.mp4", "few frames a second", 20, fps=10)
    found = check(good, 'frame_extraction = "chunk"', GENERAL.replace("[9, 17]", "[9]")).findings
    told = [(one.path.name, one.reason) for one in found if one.path and one.rule in ("still", "fps-mix")]
    assert told == [
        ("held.mp4", "stands still from 1.1 to 1.4 s, which is a window of its own"),
        ("slow_rate.mp4", "has 10 frames a second, each shown 2.5 times"),
    ]


def test_copies_and_clips_that_begin_alike(good):
    shutil.copy2(good / "red.mp4", good / "zcopy.mp4")
    (good / "zcopy.txt").write_text("again")
    alike = clip(good / "zlike.mp4", "longer", 50, options={"crf": "12"})
    report = check(good)
    assert [(f.path.name, f.reason) for f in report.findings if f.rule == "duplicate"] == [
        ("zcopy.mp4", "is a copy of red.mp4"),
        (alike.name, "begins with the same picture as red.mp4"),
    ]


def test_what_is_beside_the_media(good):
    clip(good / "red.mkv", "same stem")
    (good / "notes.docx").write_text("x")
    (good / "lonely.txt").write_text("no medium")
    media.write_image(good / "pic.png")
    clip(good / "sub" / "more.mp4")
    (good / "red.txt").write_bytes("ein Käfer läuft über das rote Feld".encode("latin-1"))
    report = check(good)
    assert ("red", "same-stem") in rules(report, good / "red.mp4")
    for name in ("notes.docx", "lonely.txt", "pic.png"):
        assert ("amber", "other-file") in rules(report, good / name)
    assert ("amber", "sub-folder") in rules(report, good / "sub")
    assert ("amber", "encoding") in rules(report, good / "red.mkv")
    assert not report.of(good / "pic.txt")


def test_what_a_list_uses_is_not_called_unused_and_nothing_is_told_twice(tmp_path):
    folder = tmp_path / "d"
    clip(folder / "a.mp4", None)
    for name in ("still.png", "more/b.png"):
        media.write_image(folder / name)
        (folder / name).with_suffix(".txt").write_text("a still")
    (folder / "clips.jsonl").write_text('{"video_path": "a.mp4", "caption": "a square"}\n')
    (folder / "notes.docx").write_text("x")
    listed = '[[datasets]]\nvideo_jsonl_file = "d/clips.jsonl"\ncache_directory = "c1"\n'
    images = '[[datasets]]\nimage_directory = "d"\ncache_directory = "c{}"\n'
    (tmp_path / "ds.toml").write_text(GENERAL + listed + images.format(2) + images.format(3))
    report = check_dataset(tmp_path / "ds.toml")
    told = [(one.rule, one.path.name) for one in report.findings if one.rule in ("other-file", "sub-folder")]
    assert sorted(told) == [("other-file", "notes.docx"), ("sub-folder", "more")]


def test_lists_and_sub_folders_at_any_depth_are_told(good):
    clip(good / "day" / "cam" / "more.mp4")
    for name in ("stills/a.png", "masks/red.png"):
        media.write_image(good / name)
    (good / "dataset.json").write_text("[]")
    (good / "metadata.csv").write_text("file_name,text\n")
    report = check(good, 'mask_directory = "clips/masks"')
    for name in ("day", "stills"):
        assert rules(report, good / name) == {("amber", "sub-folder")}
    for name in ("dataset.json", "metadata.csv"):
        assert rules(report, good / name) == {("amber", "other-file")}
    assert not report.of(good / "masks")


@pytest.mark.parametrize(
    ("place", "why"), [("taken", "is a file, not a folder"), ("taken/k", "cannot be made, since .* is a file")]
)
def test_a_file_in_place_of_a_folder_of_caches_is_named_before_a_medium_is_read(tmp_path, place, why):
    (tmp_path / "taken").write_text("a file")
    table = {"datasets": [{"video_directory": "clips", "cache_directory": place}]}
    config = DatasetConfig.from_table(table, tmp_path)
    with pytest.raises(ConfigError, match=rf"datasets\[0\]\.cache_directory: .*{why}"):
        plan_dataset(config)
    (finding,) = (one for one in check_dataset(config).findings if one.rule == "settings")
    assert finding.level == "red"
    assert finding.reason.startswith("cache_directory: ")


def test_a_folder_that_cannot_be_opened_is_red_and_a_link_to_one_told(good, monkeypatch):
    closed, far = good / "closed", good.parent / "far"
    clip(closed / "one.mp4")
    clip(far / "two.mp4")
    os.symlink(far, good / "far")
    opened = os.scandir

    def scandir(path):  # who runs tests may be allowed everything
        if Path(path) == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = check(good, "recursive = true")
    assert rules(report, closed) == {("red", "unreadable")}
    assert rules(report, good / "far") == {("amber", "sub-folder")}
    assert not [f for f in report.findings if f.path is None and "link" in f.reason]
    plan = plan_dataset(DatasetConfig.read(good.parent / "ds.toml"))
    assert [skip.path for skip in plan.skipped] == [closed]
    assert any("far is a link to a folder, which is not followed" in note for note in plan.warnings)


def test_links_that_lead_nowhere_do_not_hang(good):
    os.symlink(good / "loop.mp4", good / "loop.mp4")
    os.symlink(good / "gone.mp4", good / "link.mp4")
    os.symlink(good, good / "again")
    report = check(good, "recursive = true")
    assert {finding.path.name for finding in report.findings if finding.rule == "link"} == {
        "loop.mp4",
        "link.mp4",
        "again",
    }
    assert ("red", "link") in rules(report, good / "loop.mp4")


def test_what_is_said_of_all_clips_together(good):
    for path in good.glob("*.txt"):
        path.write_text("ohwx, a square")
    clip(good / "other.mp4", "ohwx a square", 60, 31, fps=50)
    clip(good / "heard.mp4", "ohwx, A Square", 20, 37, sound=media.tone(0.8))
    report = check(good, 'trigger_word = "ohwx"', GENERAL.replace("[9, 17]", "[9]"), goal="motion")
    found = rules(report)
    assert {("amber", name) for name in ("captions-alike", "fps-mix", "one-length", "no-sound", "too-few")} <= found
    assert "20 to 50 clips" in report.text()
    assert ("amber", "too-few") not in rules(check(good, goal="style"))


def test_sides_that_are_not_multiples_of_32_are_told_with_the_loss(tmp_path):
    clip(tmp_path / "clips" / "odd.mp4", size=(100, 76))
    report = check(tmp_path / "clips")
    (finding,) = [finding for finding in report.findings if finding.rule == "odd-size"]
    assert "not multiples of 32" in finding.reason
    assert report.files[0].lost_frame == pytest.approx(1 - 96 * 64 / (96 * 73), abs=0.01)


def test_references_without_targets_and_the_reverse(tmp_path):
    for name in ("a", "b"):
        clip(tmp_path / "clips" / f"{name}.mp4", f"clip {name}", sound=media.tone(0.8), shift=ord(name) % 7)
    for name in ("b", "c"):
        media.write_sound(tmp_path / "refs" / f"{name}.wav", media.tone(1, 600))
    report = check(tmp_path / "clips", 'reference_audio_directory = "refs"')
    assert [finding.path.name for finding in report.findings if finding.rule == "reference"] == ["a.mp4", "c.wav"]
    missing = check(tmp_path / "clips", 'reference_audio_directory = "nowhere"')
    assert ("red", "reference") in rules(missing)
    media.write_sound(tmp_path / "refs" / "a.wav", media.tone(0.02))
    short = check(tmp_path / "clips", 'reference_audio_directory = "refs"')
    assert "its reference sound a.wav lasts 0.02 s, in which little can be heard" in [
        one.reason for one in short.findings
    ]


def test_what_is_used_of_a_reference_sound_is_judged(tmp_path):
    rng = np.random.default_rng(0)
    own, other = (np.convolve(rng.normal(0, 0.5, 48000), np.ones(40) / 40, "same")[None] for _ in range(2))
    own, other = own.astype(np.float32), other.astype(np.float32)
    clip(tmp_path / "clips" / "a.mp4", "clip a", sound=own)

    def told(voice, more=""):
        media.write_sound(tmp_path / "refs" / "a.wav", voice)
        report = check(tmp_path / "clips", f'reference_audio_directory = "refs"\n{more}')
        return [one.reason for one in report.findings if one.rule == "reference"]

    assert told(other) == []
    same = ["its reference sound a.wav is its own sound, so that there is nothing to learn but to repeat it"]
    assert told(own) == same, "though it lies in the clip coded"
    assert told(np.roll(own, 1000)) == same
    assert told(own[:, 24000:]) == [], "of another part of it"
    cut = "reference_audio_max_seconds = 0.1"
    assert told(other, cut) == [
        "its reference sound a.wav lasts 1.00 s, of which 0.10 s are used, in which little can be heard"
    ]
    late = np.concatenate([np.zeros((1, 24000), np.float32), other], axis=1)
    assert told(late) == []
    assert told(late, "reference_audio_max_seconds = 0.5") == ["its reference sound a.wav is silence"]
    media.write_sound(tmp_path / "refs" / "a.wav", other)
    data = bytearray((tmp_path / "refs" / "a.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = (int.from_bytes(data[at : at + 4], "little") // 2).to_bytes(4, "little")
    (tmp_path / "refs" / "a.wav").write_bytes(data)
    report = check(tmp_path / "clips", 'reference_audio_directory = "refs"')
    assert any("the reference sound a.wav says that its sound ends at byte" in one.reason for one in report.findings)


def test_a_target_without_its_reference_is_left_out(tmp_path):
    for name in ("a", "b"):
        clip(tmp_path / "clips" / f"{name}.mp4", f"clip {name}", shift=ord(name) % 7)
    media.write_image(tmp_path / "refs" / "a.png", caption=None)
    report = check(tmp_path / "clips", 'reference_directory = "refs"')
    assert rules(report, tmp_path / "clips" / "b.mp4") == {("red", "reference")}
    assert not rules(report, tmp_path / "clips" / "a.mp4")


def test_a_file_of_two_datasets_is_told_as_that(tmp_path):
    clip(tmp_path / "clips" / "a.mp4")
    again = '[[datasets]]\nvideo_directory = "clips"\ncache_directory = "other"\nresolution = [64, 64]'
    report = check(tmp_path / "clips", again)
    assert [(f.dataset, f.reason) for f in report.findings if f.rule == "duplicate"] == [
        ("datasets[1]", "is in datasets[0], too, and counts in both")
    ]


def test_media_for_validation_that_are_trained_on_are_told(good):
    held = '[[validation_datasets]]\nvideo_directory = "clips"\ncache_directory = "held"'
    report = check(good, more=held)
    reason = "is trained on as well, so a run that validates refuses it"
    assert {one.path for one in report.findings if one.reason == reason} == set(good.glob("*.mp4"))


def test_general_settings_that_no_dataset_takes_up_are_told(tmp_path):
    media.write_image(tmp_path / "clips" / "a.png", 96, 64, "a red square")
    report = check(
        tmp_path / "clips",
        general='[general]\nresolution = [96, 64]\ncrop = "motion"\n',
        source='image_directory = "clips"',
    )
    assert [one.reason for one in report.findings if "general.crop" in one.reason]


def test_recordings_and_pictures(tmp_path):
    media.write_sound(tmp_path / "voice" / "a.wav", media.tone(3), caption='anna says: "one"')
    media.write_sound(tmp_path / "voice" / "b.wav", np.zeros((1, 48000), np.float32), caption="silence")
    report = check(tmp_path / "voice", source='audio_directory = "voice"', goal="voice")
    assert ("amber", "silent") in rules(report, tmp_path / "voice" / "b.wav")
    assert "20 to 30 clips" in report.text()
    media.write_sound(tmp_path / "voice" / "c.wav", media.tone(0.05), caption="a click")
    loud = check(tmp_path / "voice", "audio_normalize = true", source='audio_directory = "voice"', goal="voice")
    assert ("amber", "too-short") in rules(loud, tmp_path / "voice" / "c.wav")
    assert rules(loud, tmp_path / "voice" / "a.wav") == rules(report, tmp_path / "voice" / "a.wav")
    assert "its sound is silence, and audio_normalize leaves it as it is" in loud.text()
    media.write_image(tmp_path / "pics" / "a.png", 96, 64)
    assert check(tmp_path / "pics", source='image_directory = "pics"').files[0].lost_clip is None


def test_what_is_said_of_a_dataset_names_it_where_there_are_several(tmp_path):
    clip(tmp_path / "clips" / "a.mp4")
    unset, words = "[general]\nresolution = [96, 64]\n", "target_frames is not set, so one frame of each video is used"
    assert f"AMBER  settings         {words}" in check(tmp_path / "clips", general=unset).text()
    key = "no_resize_control"
    held = f'[[validation_datasets]]\nvideo_directory = "clips"\ncache_directory = "held"\n{key} = true'
    told = []
    events = Events()
    events.message = lambda text, level="info": told.append(text)
    check(tmp_path / "clips", general=unset, more=held)
    report = check_dataset(tmp_path / "ds.toml", events=events)
    assert f"AMBER  settings         validation_datasets[0]: {words}" in report.text()
    assert f"AMBER  settings         datasets[0]: {words}" in report.text()
    assert told == [f"validation_datasets[0].{key} has no effect: references always take the size of their clip."]


def test_a_clip_of_unknown_colours_costs_itself_alone(tmp_path):
    clip(tmp_path / "clips" / "good.mp4")
    clip(tmp_path / "clips" / "odd.mp4", options={"x264-params": "colormatrix=YCgCo"})
    report = check(tmp_path / "clips")
    (finding,) = report.of(tmp_path / "clips" / "odd.mp4")
    assert (finding.level, finding.rule) == ("red", "unreadable")
    assert "its colours cannot be converted" in finding.reason
    assert report.counts()["red"] == 1


def test_sound_that_the_mix_to_stereo_loses_is_told(tmp_path):
    tone, quiet = media.tone(1)[0], np.zeros(48000, np.float32)
    folder = tmp_path / "voice"
    media.write_sound(folder / "lfe.wav", np.stack([quiet, quiet, quiet, tone, quiet, quiet]), caption="a voice")
    media.write_sound(folder / "film.wav", np.stack([quiet, quiet, tone, quiet, quiet, quiet]), caption="a voice")
    report = check(folder, source='audio_directory = "voice"')
    assert {("amber", "silent"), ("amber", "mix")} <= rules(report, folder / "lfe.wav")
    assert ("amber", "mix") not in rules(report, folder / "film.wav")


def test_channels_without_an_order_are_told(tmp_path):
    def recorded(path):
        path.parent.mkdir(exist_ok=True)
        with wave.open(str(path), "wb") as file:  # which writes no mask of channels
            file.setnchannels(3), file.setsampwidth(2), file.setframerate(48000)
            file.writeframes((np.repeat(media.tone(1), 3, axis=0)[:3].T * 32767).astype(np.int16).tobytes())
        path.with_suffix(".txt").write_text("a voice")

    recorded(tmp_path / "voice" / "field.wav")
    (found,) = [one for one in check(tmp_path / "voice", source='audio_directory = "voice"').findings if one.path]
    told = "does not say which of its 3 channels is which; they are mixed as 2.1 (FL, FR, LFE), without LFE"
    assert (found.rule, found.level, found.reason.startswith(told)) == ("mix", "amber", True)
    clip(tmp_path / "clips" / "field.mp4", frames=20)
    report = check(tmp_path / "clips", 'audio_source = "audio_files"\naudio_files_directory = "voice"')
    assert [one for one in report.findings if one.reason.startswith(f"the sound field.wav {told}")]


def test_advice_on_a_short_clip_names_the_setting_that_it_is_too_short_for(good):
    clip(good / "short.mp4", frames=8)
    for more, name in (("", "target_frames"), ("min_frames = 9", "min_frames"), ("min_seconds = 0.5", "min_seconds")):
        (found,) = [one for one in check(good, more).findings if one.rule == "too-short"]
        assert found.remedy == f"Use a longer one, or lower {name}."


def test_a_picture_that_is_transparent_all_over_is_told_for_that_alone(tmp_path):
    path = media.write_image(tmp_path / "pictures" / "a.png")
    picture = Image.open(path).convert("RGBA")
    picture.putalpha(0)
    picture.save(path)
    report = check(tmp_path / "pictures", source='image_directory = "pictures"')
    assert [one.reason for one in report.of(path) if one.rule == "picture"] == [
        "has transparency; it is laid over black"
    ]


def test_a_sound_beside_a_clip_that_is_cut_is_told_as_such(tmp_path):
    clip(tmp_path / "clips" / "a.mp4", frames=50)
    path = media.write_sound(tmp_path / "sounds" / "a.wav", media.tone(2), codec="pcm_s16le")
    media.truncate(path, 0.4)
    report = check(
        tmp_path / "clips",
        'audio_source = "audio_files"\naudio_files_directory = "sounds"',
        GENERAL.replace("[9, 17]", "[49]"),
    )
    assert any("is cut short" in one.reason for one in report.of(tmp_path / "clips" / "a.mp4"))
    assert {("amber", "short-sound"), ("amber", "unreadable")} <= rules(report, tmp_path / "clips" / "a.mp4")


def test_a_medium_of_a_kind_that_is_not_read_counts_as_red(good):
    (good / "old.wmv").write_bytes(b"x")
    (good / "stray.tiff").write_bytes(b"x")
    report = check(good)
    assert {file.path.name: file.level for file in report.files if "." in file.path.name}["old.wmv"] == "red"
    assert "1 red" in report.text().splitlines()[0]
    assert "stray.tiff" not in {file.path.name for file in report.files}


def test_where_nothing_is_left_each_file_has_its_reason(tmp_path):
    clip(tmp_path / "clips" / "short.mp4", frames=3)
    clip(tmp_path / "clips" / "mute.mp4", None)
    (tmp_path / "clips" / "bad.mp4").write_text("x")
    (tmp_path / "clips" / "bad.txt").write_text("x")
    report = check(tmp_path / "clips")
    assert {(f.path.name, f.rule) for f in report.findings if f.path} == {
        ("short.mp4", "too-short"),
        ("mute.mp4", "no-caption"),
        ("bad.mp4", "unreadable"),
    }
    assert [file.level for file in report.files] == ["red"] * 3
    two = 'video_directory = "nowhere"\ncache_directory = "one"\n[[datasets]]\nvideo_directory = "clips"'
    second = [f.reason for f in check(tmp_path / "clips", source=two).findings if f.dataset == "datasets[1]"]
    assert any("can be used" in reason for reason in second)
    assert not any("datasets[0]" in reason for reason in second)
    empty = check(tmp_path / "nowhere")
    assert [(f.level, f.rule, f.path) for f in empty.findings] == [("red", "nothing-left", None)]


def test_each_of_many_files_keeps_its_own_reason_where_none_is_left(tmp_path):
    for number in range(6):
        clip(tmp_path / "clips" / f"{number}.mp4", frames=9)
    report = check(tmp_path / "clips", source='video_directory = "clips"\nmin_seconds = 100')
    assert [f.rule for f in report.findings if f.path] == ["too-short"] * 6


def test_more_left_out_than_the_dataset_allows_is_red_of_the_whole(tmp_path):
    clip(tmp_path / "clips" / "good.mp4")
    for name in ("one", "two"):
        clip(tmp_path / "clips" / f"{name}.mp4", None)
    whole = [f for f in check(tmp_path / "clips").findings if f.path is None and f.level == "red"]
    assert [(f.rule, f.reason) for f in whole] == [("left-out", "2 of 3 files cannot be used, and max_left_out is 0.5")]
    allowed = check(tmp_path / "clips", source='video_directory = "clips"\nmax_left_out = 0.7')
    assert "left-out" not in {f.rule for f in allowed.findings}


def test_kinds_of_one_folder_are_counted_as_a_run_does(tmp_path):
    for index in range(4):
        media.write_image(tmp_path / "all" / f"{index}.png", caption=f"picture {index}")
    broken = clip(tmp_path / "all" / "broken.mp4")
    broken.write_bytes(b"")
    source = 'image_directory = "all"\ncache_directory = "k"\n[[datasets]]\nvideo_directory = "all"'
    found = {(f.level, f.rule) for f in check(tmp_path / "all", source=source).findings if f.level == "red"}
    assert found == {("red", "unreadable")}, "one of five"
    for index in range(4):
        shutil.copy(broken, tmp_path / "all" / f"more{index}.mp4")
        (tmp_path / "all" / f"more{index}.txt").write_text("a clip")
    report = check(tmp_path / "all", source=source)
    assert [f.reason for f in report.findings if f.rule == "left-out"] == [
        "5 of 9 files cannot be used, and max_left_out is 0.5"
    ]


def test_the_command_says_it_and_its_code(good, capsys):
    check(good)
    file = str(good.parent / "ds.toml")
    assert main(["data", "check", file]) == 0
    assert "AMBER" in capsys.readouterr().out
    clip(good / "bad.mp4", None)
    assert main(["data", "check", file, "--json", "--goal", "edit"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["level"] == "red"
    assert {"level", "rule", "path", "reason", "remedy", "dataset"} <= set(told["findings"][0])
    assert told["files"][-1]["sizes"] == ["96x64x9", "96x64x17"]
    assert main(["data", "check", str(good / "none.toml")]) == 1
    (good.parent / "wrong.toml").write_text("[[datasets]]\nno_such_key = 'x'")
    assert main(["data", "check", str(good.parent / "wrong.toml")]) == 2


def test_a_wrong_goal_or_file_is_an_error(good):
    with pytest.raises(ConfigError, match="character, style"):
        check(good, goal="fame")
    with pytest.raises(DataError):
        check_dataset(good.parent / "none.toml")


@pytest.mark.parametrize(
    ("goal", "least"), [(None, 5), ("style", 5), ("character", 15), ("motion", 20), ("voice", 20), ("edit", 100)]
)
def test_each_goal_has_a_number_of_files(goal, least):
    (finding,) = size_finding("datasets", least - 1, goal, voices_only=False)
    assert (finding.level, finding.rule) == ("amber", "too-few")
    assert size_finding("datasets", least, goal, voices_only=False) == []
    assert "20 to 30 clips or recordings" in size_finding("datasets", 5, None, voices_only=True)[0].reason


def test_samples_under_2_and_over_8_seconds_are_told(tmp_path):
    clip(tmp_path / "clips" / "short.mp4", frames=20)
    clip(tmp_path / "clips" / "long.mp4", "another", frames=210, shift=9)
    report = check(tmp_path / "clips", general="[general]\nresolution = [96, 64]\ntarget_frames = [17, 57, 209]\n")
    (finding,) = [finding for finding in report.findings if finding.rule == "clip-length"]
    assert "2 shorter than 2 s and 1 longer than 8 s" in finding.reason
    clip(tmp_path / "two" / "a.mp4", frames=50)
    report = check(tmp_path / "two", general="[general]\nresolution = [96, 64]\ntarget_frames = [49]\n")
    assert "clip-length" not in {finding.rule for finding in report.findings}


def test_a_recording_that_is_damaged_is_red(tmp_path):
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice" / "a.wav").write_bytes(b"rubbish" * 20)
    (tmp_path / "voice" / "a.txt").write_text("x")
    report = check(tmp_path / "voice", source='audio_directory = "voice"')
    assert ("red", "unreadable") in rules(report, tmp_path / "voice" / "a.wav")


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ('anna says: "hi"', True),
        ('A woman in a hat, Anna Smith, says "good morning"', True),
        ('Anna: "hi there"', True),
        ("\u201cHello\u201d, whispers Bert", True),
        ('a man says: "hi there"', False),
        ('she slowly whispers: "come"', False),
        ('A man in a coat says, "I am here"', False),
        ('the camera pans; ohwx smiles. "Good day"', True),
    ],
)
def test_who_speaks(caption, named):
    assert speaks(caption)
    assert names_speaker(caption, "ohwx") == named


def test_captions_without_speech_need_no_name():
    assert not speaks("a man walks through a market")


def test_of_one_rule_each_remedy_is_shown(good):
    for index in range(7):
        clip(good / f"tiny_{index}.mp4", f"a tiny square {index}", size=(48, 16))
    text = check(good).text()
    assert "cropped away" in text
    assert "enlarged" in text


def test_advice_is_not_what_is_set_already(good):
    clip(good / "bad.mp4", "tall", size=(64, 160))

    def remedy(more):
        return next(finding.remedy for finding in check(good, more).findings if "cropped away" in finding.reason)

    assert "enable_bucket = true" in remedy("")
    assert "enable_bucket" not in remedy('resolution_buckets = ["96x64x9"]')
    assert "resolution_buckets" in remedy('resolution_buckets = ["96x64x9"]')
    wide = check(good, "enable_bucket = true").findings
    assert not [finding for finding in wide if "enable_bucket" in finding.remedy]


def test_silent_clips_get_the_advice_that_fits_the_settings(good):
    clip(good / "loud.mp4", "heard", sound=media.tone(0.8))

    def advice(more):
        return next(finding.remedy for finding in check(good, more).findings if finding.rule == "no-sound")

    assert "model.mode = av" in advice("")
    assert "separate_audio_buckets" not in advice("")
    assert "separate_audio_buckets = true" in advice("batch_size = 2")
    assert "separate_audio_buckets" not in advice("batch_size = 2\nseparate_audio_buckets = true")


def test_progress_and_counts_speak_of_what_they_mean(good):
    stages = []

    class Heard(Events):
        def stage(self, name, total=None):
            stages.append(name)

    other = good.parent / "other"
    clip(other / "one.mp4", "a lone square")
    file = good.parent / "two.toml"
    file.write_text(
        f'{GENERAL}[[datasets]]\nvideo_directory = "clips"\ncache_directory = "a"\n'
        '[[datasets]]\nvideo_directory = "other"\ncache_directory = "b"\n'
    )
    report = check_dataset(file, events=Heard())
    assert [name for name in stages if name.startswith("read")] == ["read clips", "read other"]
    whole = sum(finding.path is None for finding in report.findings)
    assert f", {whole} on the whole, " in report.text().splitlines()[0]


class Stages(Events):
    def __init__(self):
        self.stages, self.done = [], []

    def stage(self, name, total=None):
        self.stages.append((name, total))

    def progress(self, done, total, text=""):
        self.done.append((done, total))


def test_pictures_that_begin_alike_are_found_among_many_of_one_brightness():
    from ltx2_train.workshop.check_rules import _look_alikes

    rng = np.random.default_rng(0)
    frames = [rng.permutation(np.arange(768) % 200).reshape(16, 16, 3).astype(np.float32) for _ in range(1200)]
    frames[1100], frames[1101] = frames[700] + 1, frames[701] + 2  # the latter is another picture
    frames[3] = frames[5] = np.full((16, 16, 3), 99.5, np.float32)
    heard = Stages()
    facts = [("datasets[0]", types.SimpleNamespace(path=k, first_frame=frame)) for k, frame in enumerate(frames)]
    assert [(fact.path, other) for _, fact, other in _look_alikes(facts, heard)] == [(1100, 700)]
    assert heard.stages == [("compare first frames", 1198)]
    assert heard.done[-1] == (1198, 1198)


def test_captions_and_names_of_any_kind_are_drawn(tmp_path):
    from ltx2_train.media.font import load_font
    from ltx2_train.workshop.sheet import LONGEST_LINE, _card, _fitted, _wrapped

    folder = tmp_path / "pics"
    media.write_image(folder / "two\nlines.png", caption="x" * 50_000)
    media.write_image(folder / "b.png", caption="long words " * 5000)
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "pics", "cache_directory": "k"}]}
    config = DatasetConfig.from_table(table, tmp_path)
    (page,) = contact_sheets(plan_dataset(config).items, config, check_dataset(config), tmp_path / "out")
    assert page.stat().st_size > 0
    _, pen = _card("green")
    for text, width in (("x" * 50_000, 200), ("abc def", 20), ("i" * LONGEST_LINE, 150)):
        line = _fitted(pen, text, load_font(12), width)
        assert line.endswith("...")
        assert pen.textlength(line, font=load_font(12)) <= width
        assert pen.textlength(text[: len(line) - 2] + "...", font=load_font(12)) > width, "as much as fits"
    assert _fitted(pen, "abc", load_font(12), 200) == "abc"
    assert _wrapped(pen, "one two three " * 20, 60, 2)[1].endswith("...")
    assert _wrapped(pen, "one two", 200, 2) == ["one two"]


def test_the_check_hears_what_a_build_would_say(tmp_path):
    clip(tmp_path / "clips" / "early.mp4", frames=50, sound=media.tone(0.7))
    report = check(tmp_path / "clips", general="[general]\nresolution=[96, 64]\ntarget_frames=[49]\n")
    (finding,) = [finding for finding in report.findings if finding.rule == "short-sound"]
    assert "lacks 1.2" in finding.reason
    path = media.write_sound(tmp_path / "voice" / "cut.wav", media.tone(3), codec="pcm_s16le", caption="x")
    media.truncate(path, 0.6)
    report = check(tmp_path / "voice", source='audio_directory = "voice"')
    assert report.level == "red"
    assert any("cut short: it has" in finding.reason for finding in report.findings)


def test_a_sound_that_a_list_names_and_that_is_not_there_is_named(tmp_path):
    for name in "ab":
        clip(tmp_path / "m" / f"{name}.mp4", None, 9, sound=media.tone(0.4))
    rows = [{"video_path": f"m/{name}.mp4", "caption": f"a square {name}"} for name in "ab"]
    rows[0]["audio_path"] = "gone.wav"
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = check(tmp_path / "m", source='video_jsonl_file = "list.jsonl"')
    (found,) = [finding for finding in report.findings if finding.rule == "sound-gone"]
    assert (found.level, found.path.name) == ("amber", "a.mp4")
    assert "gone.wav is not there; correct its audio_path" in found.reason
    assert not [finding for finding in report.findings if "gone.wav" in finding.reason and finding is not found]
    plan = plan_dataset(DatasetConfig.read(tmp_path / "ds.toml"))
    assert any("a.mp4 trains without its sound" in warning for warning in plan.warnings)


def test_a_damaged_ogg_is_red(tmp_path):
    path = media.write_sound(tmp_path / "m" / "a.opus", media.tone(2.0), codec="libopus", caption="a tone sounds")
    media.write_sound(tmp_path / "m" / "b.opus", media.tone(2.0, 300), codec="libopus", caption="a low tone sounds")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(bytes(data))
    report = check(tmp_path / "m", source='audio_directory = "m"')
    assert ("red", "damaged") in rules(report, path)


def test_masks_of_sound_that_make_no_sense_are_red_by_name(tmp_path):
    folder, masks = tmp_path / "m", tmp_path / "masks"
    masks.mkdir()
    written = {
        "good": "[[0, 0.2]]",
        "wide": "[[0, 0.2]]",
        "unmarked": "[[0, 0.2]]",
        "nan": "[[0, NaN]]",
        "table": "{}",
        "null": "null",
        "empty": "",
        "trailing": "[[0, 0.2]] x",
        "backward": "[[1, 0]]",
        "words": '[["0", "1"]]',
        "truth": "[[true, 2]]",
    }
    for hz, name in enumerate([*written, "numbers", "cut"], 3):
        sound = media.tone(0.5, 100 * hz, 16000)
        media.write_sound(folder / f"{name}.wav", sound, 16000, caption=f"a tone of {name}")
    for name, text in written.items():
        (masks / f"{name}.json").write_text(text, {"wide": "utf-16", "unmarked": "utf-16-le"}.get(name))
    loud = np.ones((1, 8000), np.float32)
    loud[0, 7000] = np.nan
    media.write_sound(masks / "numbers.wav", loud, 16000)
    media.truncate(media.write_sound(masks / "cut.wav", np.ones((1, 8000), np.float32), 16000), 0.5)
    report = check(folder, 'audio_mask_directory = "masks"', source='audio_directory = "m"')
    red = {finding.path.stem: finding.reason for finding in report.findings if finding.level == "red" and finding.path}
    assert set(red) == {*written, "numbers", "cut"} - {"good", "wide"}
    assert "begins as UTF-16 without a byte order mark" in red["unmarked"]
    assert all("mask" in reason for reason in red.values())
    assert "is cut short" in red["cut"]
    assert "not numbers" in red["numbers"]


def test_masks_are_judged_by_all_windows(tmp_path):
    folder, masks = tmp_path / "m", tmp_path / "masks"
    later = np.zeros((50, 64, 64, 3), np.uint8)
    later[17:34] = 255  # all of the second of two windows
    spans = {"first": [[0, 0.6]], "second": [[0.7, 1.0]], "none": [], "all": [[0.68, 1.36]]}
    for number, (name, span) in enumerate(spans.items()):
        clip = media.moving_square(50, 64, 64)[:, ::-1] if number else media.moving_square(50, 64, 64)
        media.write_video(folder / f"{name}.mp4", clip, sound=media.tone(2.0, 300 + 100 * number))
        (folder / f"{name}.txt").write_text(f"a {name} clip")
        picture = {"second": later // 2 * (np.arange(64) < 32)[:, None] * 2, "all": later}.get(name, later * 0)
        media.write_video(masks / f"{name}.mp4", picture)
        (masks / f"{name}.json").write_text(json.dumps(span))
    general = "[general]\nresolution = [64, 64]\ntarget_frames = [17]\nframe_extraction = 'chunk'\n"
    report = check(folder, 'mask_directory = "masks"\naudio_mask_directory = "masks"', general)
    said = {(finding.path.stem, finding.reason) for finding in report.findings if finding.rule == "reference"}
    assert said == {
        ("first", "its mask is black all over: nothing is given"),
        ("none", "its mask is black all over: nothing is given"),
        ("none", "the mask of its sound gives nothing: level 1 is given, or a span in seconds"),
        (
            "all",
            "its mask is white all over in 1 of its 2 windows: everything is given, and nothing is left to make",
        ),
        ("all", "the mask of its sound gives all of it in 1 of its 2 windows, and nothing is left to make"),
    }
    assert {finding.path.stem for finding in report.findings if finding.level == "red"} == {"all"}
    media.write_video(masks / "none.mp4", np.full_like(later, 1))
    report = check(folder, 'mask_directory = "masks"', general)
    told = [found.reason for found in report.findings if found.rule == "reference" and found.path.stem == "none"]
    assert told == [
        "its mask is darker than one half nearly everywhere, and its levels reach 1 of 255: nothing is given"
    ]
    media.write_video(masks / "none.mp4", np.full_like(later, 1) * np.array([250, 0, 0], np.uint8))
    report = check(folder, 'mask_directory = "masks"', general)
    told = [found.reason for found in report.findings if found.rule == "reference" and found.path.stem == "none"]
    assert any(text.startswith("its mask is coloured, and its brightness stays below one half") for text in told)


def test_findings_that_say_the_same_are_grouped_and_no_reason_is_hidden():
    names = [Path(f"{letter}.mp4") for letter in "abcdefg"]
    found = [
        Finding("amber", "reference", "datasets[0]", f"its reference sound {path.stem}.wav lasts 0.{at} s", path=path)
        for at, path in enumerate(names)
    ]
    found.append(Finding("amber", "reference", "datasets[0]", "its mask is black all over: nothing", path=names[0]))
    lines = CheckReport("x", (), tuple(found)).text().splitlines()[1:]
    assert [line.split("reference ", 1)[1].strip() for line in lines] == [
        *(f"{path.name}: its reference sound {path.stem}.wav lasts 0.{at} s." for at, path in enumerate(names[:5])),
        "and 2 more: f.mp4, g.mp4",
        "a.mp4: its mask is black all over: nothing.",
    ]
    assert listed([f"{number:03}.mp4" for number in range(99)]).endswith("043.mp4 and 55 more")


def test_what_does_not_fit_is_told_with_all_names(tmp_path):
    for number in range(7):
        clip(tmp_path / "clips" / f"{number}.mp4", f"clip {number}", shift=number)
        media.write_image(tmp_path / "masks" / f"{number}.png", 64, 64, caption=None)
    report = check(tmp_path / "clips", 'mask_directory = "masks"')
    told = [one.reason for one in report.findings if "masks have another size" in one.reason]
    assert len(told) == 1
    assert told[0].startswith("7 masks have another size than their clips and are resized: 0.png is 64x64")
    assert "6.png" in told[0]
