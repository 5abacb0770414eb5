"""Datasets as people have them: rubbish among the media, odd names, captions of any encoding, caches that went bad.

It is long: one test a kind of rubbish.

Each is met as a user meets it, by the commands: what is said, the exit code, that the rest of the dataset is used, and
that nothing is written where nothing should be. Tests may run as root, so that no folder is made read-only by its mode.
"""

from __future__ import annotations

import codecs
import os
import shutil
import socket
import struct
import unicodedata
from pathlib import Path

import pytest
import torch
from media import moving_square, tone, write_image, write_sound, write_video
from safetensors.torch import load_file, save_file

from ltx2_train.cli import main
from ltx2_train.dataset.cache_names import audio_mask_cache_name, video_cache_name

LETTER = "\N{LATIN SMALL LETTER U WITH DIAERESIS}"
COMPOSED, APART = unicodedata.normalize("NFC", LETTER), unicodedata.normalize("NFD", LETTER)


@pytest.fixture
def work(run_file: Path) -> Path:
    """The folder of a run that goes on however much of its data is of no use."""
    dataset = run_file.parent / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("[general]\n", "[general]\nmax_left_out = 1\n"))
    return run_file.parent


def call(capsys, *arguments) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    code = main([str(argument) for argument in arguments])
    return code, "".join(capsys.readouterr())


def check(work, capsys):
    return call(capsys, "data", "check", work / "dataset.toml")


def build(work, capsys, *more):
    return call(capsys, "cache", "build", work / "run.toml", *more)


def train(work, capsys, *more, steps=1):
    return call(capsys, "train", work / "run.toml", "--set", f"train.steps={steps}", *more)


def clip(path: Path, caption: str | bytes = "a square moves", frames: int = 10, **more) -> Path:
    write_video(path, moving_square(frames, 64, 64), **more)
    data = caption.encode("utf-8") if isinstance(caption, str) else caption
    path.with_suffix(".txt").write_bytes(data)
    return path


def cached(work: Path) -> set[str]:
    return {path.name for path in (work / "cache").iterdir() if path.suffix == ".safetensors"}


def halves(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*.part")]


# --- what lies in a folder -------------------------------------------------------------------------------------------


def rubbish(clips: Path) -> None:
    (clips / "notes.docx").write_text("notes")
    (clips / "paper.pdf").write_bytes(b"%PDF-1.7")
    (clips / "all.zip").write_bytes(b"PK\x03\x04" + bytes(50))
    (clips / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (clips / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (clips / "._clip.mp4").write_bytes(b"\0\5\x16\7")
    clip(clips / ".trash" / "gone.mp4")
    clip(clips / "inner" / "more.mp4")
    os.mkfifo(clips / "pipe.mp4")
    (clips / "folder.mp4").mkdir()
    os.symlink(clips / "nowhere.mp4", clips / "link.mp4")
    os.symlink(clips / "loop.mp4", clips / "loop.mp4")
    os.symlink(clips, clips / "again")
    for name, data in (("empty", b""), ("text", b"some words\n" * 99), ("blob", os.urandom(5000))):
        (clips / f"{name}.mp4").write_bytes(data)
    write_image(clips / "picture.png", 64, 64, caption=None)
    (clips / "picture.png").rename(clips / "picture.mp4")
    write_sound(clips / "sound.wav", tone(0.5))
    (clips / "sound.wav").rename(clips / "sound.mp4")
    for name in ("empty", "text", "blob", "picture", "sound", "pipe", "folder", "link", "loop"):
        (clips / f"{name}.txt").write_text(name)


BAD = ("empty", "text", "blob", "picture", "sound", "pipe", "folder", "link", "loop")


def test_everything_that_is_no_medium_is_named_and_the_rest_is_used(work, capsys):
    rubbish(work / "clips")
    code, text = check(work, capsys)
    assert code == 1
    for name in BAD:
        assert f"{name}.mp4" in text
    for name in ("notes.docx", "paper.pdf", "all.zip", "inner"):
        assert name in text
    for name in ("DS_Store", "Thumbs", "._clip", ".trash"):
        assert name not in text
    before = cached(work)
    code, text = build(work, capsys)
    assert code == 0
    for name, why in (("empty", "0 bytes"), ("text", "cannot be read"), ("picture", "is a picture (png)"),
                      ("sound", "no video"), ("pipe", "a pipe"), ("folder", "is a folder"), ("link", "that is gone"),
                      ("loop", "leads to itself")):  # fmt: skip
        line = next(line for line in text.splitlines() if line.startswith(f"left out: {name}.mp4"))
        assert why in line
    assert cached(work) == before
    assert not halves(work)
    code, text = train(work, capsys)
    assert code == 0
    assert f"{len(BAD)} files are left out" in text


@pytest.mark.parametrize("command", ["check", "build"])
def test_a_folder_of_nothing_but_rubbish_is_an_error(work, capsys, command):
    shutil.rmtree(work / "clips")
    (work / "clips").mkdir()
    rubbish(work / "clips")
    code, text = check(work, capsys) if command == "check" else build(work, capsys)
    assert code == 1
    assert "Traceback" not in text
    for name in ("empty", "pipe", "link") if command == "check" else ("clips",):
        assert name in text


def test_hidden_files_alone_are_nothing(work, capsys):
    shutil.rmtree(work / "clips")
    (work / "clips").mkdir()
    (work / "clips" / "._clip.mp4").write_bytes(b"\0\5\x16\7")
    (work / "clips" / ".clip.txt").write_text("x")
    code, text = build(work, capsys)
    assert code == 1
    assert "no videos in" in text


def test_a_socket_and_what_sub_folders_hide_are_passed_over(work, capsys):
    place = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(work / "clips")  # the name of a socket may be short only
    try:
        place.bind("s.mp4")
    finally:
        os.chdir(here)
    (work / "clips" / "deep").mkdir()
    rubbish(work / "clips" / "deep")
    clip(work / "clips" / "deep" / "good.mp4", "good")
    dataset = work / "dataset.toml"
    dataset.write_text(dataset.read_text() + "recursive = true\n")
    code, text = build(work, capsys)
    place.close()
    assert code == 0
    assert "s.mp4: is not a file that can be read" in text
    assert {name.split("_00")[0] for name in cached(work) if "_00" in name} == {
        "clip",
        "deep__good",
        "deep__inner__more",
    }
    assert "again: is a link to a folder that it lies in" in check(work, capsys)[1]


# --- names -----------------------------------------------------------------------------------------------------------


def test_the_same_stem_twice_is_used_once(work, capsys):
    pairs = [("a.mp4", "a.mov"), ("b.mp4", "B.MKV"), (f"{COMPOSED}.mp4", f"{APART}.mkv")]
    for name in sum(pairs, ()):
        clip(work / "clips" / name)
    code, text = build(work, capsys)
    assert code == 0
    assert text.count("would share one cache; rename one") >= len(pairs)
    stems = {name.split("_00")[0] for name in cached(work) if "_00" in name}
    assert len(stems) == len(pairs) + 1
    assert "same-stem" in check(work, capsys)[1]
    assert train(work, capsys)[0] == 0


def test_pictures_of_the_same_stem(work, capsys):
    shutil.rmtree(work / "clips")
    for name in ("a.png", "a.jpg", "b.png"):
        write_image(work / "clips" / name, 64, 64, name)
    dataset = work / "dataset.toml"
    dataset.write_text(dataset.read_text().replace("video_directory", "image_directory"))
    code, text = build(work, capsys)
    assert code == 0
    assert "a.png: its name without the ending is that of a.jpg" in text


NAMES = [
    "with several words",
    'it\'s "quoted" & `ticked` $HOME %d {x}',
    f"b{COMPOSED}cher",
    f"b{APART}cher 2",
    "\N{CINEMA} \N{FOX FACE}",
    "\N{CJK UNIFIED IDEOGRAPH-72D0}" * 70,
    "\N{FOX FACE}" * 60,
    "n" * 200,
    "m" * 240,
    "dots.in.it.",
    "-dash",
    "#hash;semi,comma",
]


def test_names_of_every_kind_are_cached_and_trained(work, capsys, all_used):
    table = (work / "dataset.toml").read_text().replace("[general]\n", "[general]\nmask_directory = 'masks'\n")
    (work / "dataset.toml").write_text(table.replace("mask_directory = 'masks'\n", "") + 'mask_directory = "masks"\n')
    for index, name in enumerate(NAMES):
        clip(work / "clips" / f"{name}.mp4", f"clip {index}")
        write_image(work / "masks" / f"{name}.png", 64, 64, caption=None)
    code, text = build(work, capsys, "--set", "cache.text_form='full'")
    assert code == 0, text
    assert "left out" not in text
    names = cached(work)
    assert max(len(name.encode()) for name in names) <= 255
    stems = {name.split("_00000-")[0] for name in names if "_00000-" in name}
    assert len(stems) == len(NAMES) + 1
    assert "n" * 200 not in stems  # no name for its masks would fit
    code, text = train(work, capsys, "--set", "cache.text_form='full'")
    assert code == 0, text
    code, text = call(capsys, "cache", "status", work / "run.toml", "--set", "cache.text_form='full'")
    assert code == 0, text


@pytest.mark.parametrize("stem", ["x" * 250, "\N{FOX FACE}" * 62])
def test_the_longest_cache_name_fits(stem):
    from ltx2_train.media.names import cache_stem

    name = video_cache_name(cache_stem(stem) + "~flip", 123456, 1025, 8192, 8192)
    assert len(audio_mask_cache_name(name).encode()) <= 255
    assert cache_stem(stem) != cache_stem(stem + "2")
    assert cache_stem(cache_stem(stem)) == cache_stem(stem)


def test_a_caption_is_found_however_its_accents_are_put_together(work, capsys):
    clip(work / "clips" / f"f{COMPOSED}r.mp4")
    (work / "clips" / f"f{COMPOSED}r.txt").rename(work / "clips" / f"f{APART}r.TXT")
    code, text = build(work, capsys)
    assert code == 0
    assert "left out" not in text
    assert "other-file" not in check(work, capsys)[1]


def test_a_name_in_another_encoding_is_named(work, capsys):
    for ending in (b"mp4", b"txt"):
        shutil.copy(work / "clips" / f"clip.{ending.decode()}", os.fsencode(work / "clips") + b"/caf\xe9." + ending)
    code, text = build(work, capsys)
    assert code == 0
    assert "another encoding than UTF-8; rename it" in text
    assert check(work, capsys)[0] == 1
    assert train(work, capsys)[0] == 0


# --- captions --------------------------------------------------------------------------------------------------------

TEXT = f"a b{COMPOSED}cher \N{LEFT DOUBLE QUOTATION MARK}hallo\N{RIGHT DOUBLE QUOTATION MARK}"


def test_captions_in_other_encodings_are_read(work, capsys):
    from ltx2_train.caching.cache_file import CacheFile

    written = {
        "plain": TEXT.encode("utf-8"),
        "marked": codecs.BOM_UTF8 + TEXT.encode("utf-8"),
        "utf16": TEXT.encode("utf-16"),
        "big": codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
        "utf32": TEXT.encode("utf-32"),
        "windows": TEXT.encode("cp1252"),
    }
    for name, data in written.items():
        clip(work / "clips" / f"{name}.mp4", data)
    code, text = build(work, capsys)
    assert code == 0
    assert "windows.txt: the caption is not UTF-8 and was read as Latin-1" in text
    assert text.count("read as Latin-1") == 1
    for name in written:
        assert CacheFile(work / "cache" / f"{name}_ltx2_te_compact.safetensors").metadata["caption"] == TEXT


def test_what_is_no_text_is_no_caption(work, capsys):
    written = {
        "bytes": bytes(range(256)),
        "png": b"\x89PNG\r\n\x1a\n" + bytes(40),
        "unmarked": "no mark".encode("utf-16-le"),
        "half": b"\xff\xfe\x00",
    }
    for name, data in written.items():
        clip(work / "clips" / f"{name}.mp4", data)
    code, text = build(work, capsys)
    assert code == 0
    for name in written:
        assert f"left out: {name}.mp4: The caption {name}.txt is not text" in text
        assert not any(file.startswith(name) for file in cached(work))
    assert check(work, capsys)[0] == 1


def test_a_caption_of_megabytes_is_none(work, capsys):
    clip(work / "clips" / "odd.mp4", b"word " * 400_000)
    code, text = build(work, capsys)
    assert code == 0
    assert "2.0 MB; a caption is a paragraph" in text


# --- references and masks --------------------------------------------------------------------------------------------


def test_references_without_targets_and_targets_without_references(work, capsys, all_used):
    clip(work / "clips" / "lonely.mp4")
    for name in ("clip", "stranger"):
        write_image(work / "refs" / f"{name}.png", 64, 64, caption=None)
    with open(work / "dataset.toml", "a") as file:
        file.write('reference_directory = "refs"\n')
    code, text = check(work, capsys)
    assert code == 1
    assert "stranger.png: is a reference without a target" in text
    assert "lonely.mp4: no reference" in text
    code, text = build(work, capsys)
    assert code == 0
    assert "left out: lonely.mp4: no reference" in text
    assert train(work, capsys, "--set", "lora.target='v2v'")[0] == 0


@pytest.mark.parametrize("key", ["reference_directory", "mask_directory", "reference_audio_directory"])
def test_a_companion_that_cannot_be_read_costs_its_clip_alone(work, capsys, key, all_used):
    sounds = key == "reference_audio_directory"
    with open(work / "dataset.toml", "a") as file:
        file.write(f'{key} = "beside"\n')
    clip(work / "clips" / "bad.mp4", sound=tone(0.5))
    (work / "beside").mkdir()
    (work / "beside" / ("bad.wav" if sounds else "bad.png")).write_text("rubbish")
    if sounds:
        write_sound(work / "beside" / "clip.wav", tone(0.5))
    else:
        write_image(work / "beside" / "clip.png", 64, 64, caption=None)
    mode = ("--set", "model.mode='av'") if sounds else ()
    code, text = build(work, capsys, *mode)
    assert code == 0, text
    assert "bad.wav" in text if sounds else "bad.png" in text
    code, text = train(work, capsys, *mode)
    assert code == 0, text
    assert "bad.wav is missing in training" in text if sounds else "1 file is left out (bad.mp4)" in text


@pytest.mark.parametrize("key", ["mask_path", "reference_path", "reference_audio_path", "audio_mask_path"])
def test_a_list_that_names_what_is_not_there(work, capsys, key, all_used):
    import json

    rows = [
        {"video_path": "clips/clip.mp4", "caption": "x"},
        {"video_path": "clips/b.mp4", "caption": "y", key: "no.png"},
    ]
    if key == "reference_path":
        write_image(work / "refs" / "clip.png", 64, 64, caption=None)
        rows[0][key] = "refs/clip.png"
    clip(work / "clips" / "b.mp4")
    (work / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    table = (work / "dataset.toml").read_text().replace('video_directory = "clips"', 'video_jsonl_file = "list.jsonl"')
    (work / "dataset.toml").write_text(table)
    code, text = build(work, capsys)
    assert code == 0, text
    assert "no.png is not there" in text
    assert train(work, capsys)[0] == 0


def test_a_mask_of_another_size_is_resized_with_a_word(work, capsys, all_used):
    write_image(work / "masks" / "clip.png", 50, 30, caption=None)
    with open(work / "dataset.toml", "a") as file:
        file.write('mask_directory = "masks"\n')
    code, text = build(work, capsys)
    assert code == 0
    assert "1 masks have another size than their clips" in text
    assert "clip.png is 50x30" in text
    assert train(work, capsys)[0] == 0


# --- folders that cannot be written ----------------------------------------------------------------------------------


def test_nothing_is_written_beside_the_media(work, capsys):
    clip(work / "clips" / "b.mp4")
    before = {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [work / "clips", *(work / "clips").iterdir()]
    }
    assert check(work, capsys)[0] == 0
    assert build(work, capsys)[0] == 0
    assert train(work, capsys)[0] == 0
    after = {
        path: (path.stat().st_mtime_ns, path.stat().st_size) for path in [work / "clips", *(work / "clips").iterdir()]
    }
    assert after == before


def test_a_cache_folder_that_cannot_be_made_is_told_before_work(work, capsys):
    (work / "blocked").write_text("a file")
    table = (work / "dataset.toml").read_text().replace('"cache"', '"blocked/cache"')
    (work / "dataset.toml").write_text(table)
    code, text = build(work, capsys)
    assert code == 2
    assert "cache_directory" in text
    assert "encode" not in text


# --- caches that went bad --------------------------------------------------------------------------------------------


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-50])
    elif how == "header":
        path.write_bytes(struct.pack("<Q", 40) + b"\x00rubbish" * 30)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        from ltx2_train.caching.cache_file import CacheFile

        metadata, tensors = CacheFile(path).metadata, load_file(path)
        key = next(key for key, one in tensors.items() if one.is_floating_point())
        if how == "nan":
            tensors[key].view(-1)[-1] = torch.nan
        elif how == "key":
            tensors = {"something_else": tensors[key]}
        else:
            tensors[key] = tensors[key][..., :-1].contiguous()
        save_file(tensors, str(path), metadata=metadata)


# every kind of cache and of damage always, the other pairs with -m slow: a pair is two runs
SPOILED = [
    *(("_ltx2.safetensors", how) for how in ("truncated", "header", "empty", "nan", "key", "shape")),
    *(("_ltx2_te_compact.safetensors", how) for how in ("header", "nan", "key", "shape")),
    *(("_ltx2_audio.safetensors", how) for how in ("nan", "key", "shape")),
]
ALWAYS = {
    *(("_ltx2.safetensors", how) for how in ("truncated", "empty", "nan")),
    *(("_ltx2_te_compact.safetensors", how) for how in ("header", "key")),
    ("_ltx2_audio.safetensors", "shape"),
}


@pytest.mark.parametrize(
    ("suffix", "how"), [pytest.param(*pair, marks=() if pair in ALWAYS else pytest.mark.slow) for pair in SPOILED]
)
def test_a_cache_that_went_bad_is_named_by_training_and_mended_by_building(sound_run_file, capsys, suffix, how):
    work = sound_run_file.parent
    path = next(path for path in sorted((work / "cache").iterdir()) if path.name.endswith(suffix))
    spoil(path, how)
    code, text = train(work, capsys, steps=3)  # each of the three windows is read
    assert code == 1
    assert path.name in text
    assert "cache build" in text
    if how != "nan":  # that shows in the middle of a run, whose state is saved
        assert not list((work / "runs").rglob("*.safetensors"))
    code, text = call(capsys, "cache", "status", work / "run.toml")
    assert code == 1
    assert path.name in text
    code, text = build(work, capsys)
    assert code == 0
    assert "1 made (1 were stale)" in text
    assert train(work, capsys)[0] == 0
    assert call(capsys, "cache", "status", work / "run.toml")[0] == 0


# --- the dataset file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("data", "check"), ("cache", "build"), ("train",)])
def test_a_value_of_a_wrong_type_is_exit_code_2(work, capsys, command):
    table = (work / "dataset.toml").read_text().replace("[64, 64]", '"64x64"')
    (work / "dataset.toml").write_text(table)
    code, text = call(capsys, *command, work / ("dataset.toml" if command[0] == "data" else "run.toml"))
    assert code == 2
    assert "general.resolution: needs a list, as [768, 512], or one number for a square (given: '64x64')" in text
    assert not (work / "runs").exists()
