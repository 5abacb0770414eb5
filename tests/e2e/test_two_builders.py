"""Two programs that fill one cache folder at once, and one that is killed in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ltx2_train import build_caches, load_run
from ltx2_train.caching.cache_file import CacheFile
from ltx2_train.training.cache_status import status_of_caches

ROOT = Path(__file__).resolve().parents[2]

# Runs the command with encoders that write down what they were given, and are slow enough for two to meet.
PROGRAM = """
import os, sys, time
from pathlib import Path
from ltx2_train import files
from ltx2_train.cli import main
from ltx2_train.caching import encode
from ltx2_train.caching import encode_sound
from ltx2_train.weights.text_encoder import TextEncoder

log, mode, run, *more = sys.argv[1:]

def note(line):
    with open(log, "a") as file:
        file.write(line + "\\n")

def slow(module, name, key):
    real = getattr(module, name)
    def replaced(*arguments, **options):
        line = key(*arguments)
        if mode == "meet" and not replaced.met:
            replaced.met = True
            note(f"{name} begins")
            until = time.time() + 60
            while Path(log).read_text().count(f"{name} begins") < 2 and time.time() < until:
                time.sleep(0.02)
        note(line)
        time.sleep(0.1)
        return real(*arguments, **options)
    replaced.met = False
    setattr(module, name, replaced)

slow(encode.Latents, "make", lambda kind, job, *rest: f"latents {job.path.name}")
slow(encode_sound.SoundLatents, "make", lambda kind, job, *rest: f"sound {job.path.name}")
real_encode = TextEncoder.encode

def noted_encode(self, captions, *rest):
    for caption in captions:
        note(f"text {caption}")
    time.sleep(0.3)
    return real_encode(self, captions, *rest)

TextEncoder.encode = noted_encode
if mode.startswith("die"):
    left, real_replace = [int(mode[3:])], os.replace
    def dying(source, target):
        if str(target).endswith("_ltx2.safetensors"):
            left[0] -= 1
            if left[0] == 0:
                note("dies")
                os.kill(os.getpid(), 9)
        real_replace(source, target)
    os.replace = dying
if mode == "hang":
    def hanging(kind, job, *rest):
        note(f"hangs {job.path.name}")
        time.sleep(600)
    encode.Latents.make = hanging
sys.exit(main(["cache", "build", run, *more]))
"""


def start(log: Path, mode: str, run: Path, *more: str) -> subprocess.Popen:
    log.touch()
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(log), mode, str(run), *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


def wait_for(log: Path, text: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while text not in log.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def end(process: subprocess.Popen) -> tuple[str, str]:
    out, said = process.communicate(timeout=180)
    assert process.returncode == 0, out + said
    return out, said


def noted(log: Path, kind: str) -> list[str]:
    return sorted(line for line in log.read_text().splitlines() if line.startswith(kind + " "))


def count(out: str, kind: str, what: str) -> int:
    """The number before `what` in the line of the summary about `kind`; 0 where it does not say."""
    (line,) = [line for line in out.splitlines() if line.startswith(f"{kind}: ")]
    found = re.search(rf"(\d+) {what}(?=[, ]| \()", line)
    return int(found[1]) if found else 0


def hidden(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*"))


@pytest.fixture
def empty(sound_run_file: Path) -> Path:
    """A run of two clips, three windows each, with sound, and nothing cached."""
    work = sound_run_file.parent
    shutil.rmtree(work / "cache")
    shutil.copy(work / "clips" / "clip.mp4", work / "clips" / "other.mp4")
    (work / "clips" / "other.txt").write_text("another caption")
    return sound_run_file


def test_two_builds_at_once_make_each_cache_once_and_say_what_the_other_made(empty):
    log = empty.parent / "log"
    both = [start(log, "meet", empty, "--set", "sample.every=2") for _ in range(2)]
    outs = [end(process) for process in both]
    for kind, files in (("latents", 6), ("sound", 6)):
        lines = noted(log, kind)
        assert len(lines) == len(set(lines)) == files, lines
    captions = ["text a red ball bounces to a tune", "text another caption"]
    assert noted(log, "text") == sorted(["text ", *captions]), "captions, which are prompts too, and the empty one"
    for kind, files in (("latents", 6), ("sound", 6)):
        made = [count(out, kind, "made") for out, _ in outs]
        others = [count(out, kind, "made by another process") for out, _ in outs]
        assert sum(made) == files
        assert min(made) >= 1, "both have worked"
        assert [one + two for one, two in zip(made, others, strict=True)] == [files, files]
    assert sorted(count(out, "text", "made by another process") for out, _ in outs) == [0, 2]
    assert any("Waiting for process" in said for _, said in outs)
    assert hidden(empty.parent / "cache") == []
    status = status_of_caches(load_run(empty))
    assert status.complete
    assert status.of("orphaned") == []
    manifest = json.loads((empty.parent / "cache" / "dataset_manifest.json").read_text())
    assert len(manifest["datasets"][0]["cache_files"]) == 6
    index = json.loads((empty.parent / "cache" / "ltx2_media.json").read_text())
    assert len(index["media"]) == 2


def test_killed_between_writing_and_renaming_leaves_no_damaged_cache(empty):
    log, cache = empty.parent / "log", empty.parent / "cache"
    process = start(log, "die3", empty)
    process.communicate(timeout=180)
    assert process.returncode == -signal.SIGKILL
    whole = list(cache.glob("*_ltx2.safetensors"))
    assert len(whole) == 2
    assert all(CacheFile(path).latent_shape() for path in whole)
    assert any(name.endswith(".part") for name in hidden(cache)), "it was killed in the middle of a file"
    for path in cache.glob(".*.part"):
        os.utime(path, (1, 1))
    report = build_caches(load_run(empty))
    assert (report.kinds["latents"].made, report.kinds["latents"].kept) == (4, 2)
    assert hidden(cache) == []
    assert status_of_caches(load_run(empty)).complete


@pytest.mark.slow
def test_what_a_killed_build_had_claimed_is_made_by_the_one_that_waits_for_it(empty):
    log = empty.parent / "log"
    first = start(log, "hang", empty)
    wait_for(log, "hangs ", first)
    second = start(log, "", empty)
    until = time.monotonic() + 120
    lines = []
    while not any("Waiting for process" in line for line in lines):
        assert time.monotonic() < until
        lines.append(second.stderr.readline())
        assert lines[-1], lines
    (told,) = [line for line in lines if "Waiting" in line]
    assert f"process {first.pid} on " in told
    assert len(noted(log, "latents")) == 4, "all that the other does not hold: one at hand, one read ahead"
    status = status_of_caches(load_run(empty))
    assert status.of("orphaned") == [], "what is being made leaves its traces beside the caches"
    assert hidden(empty.parent / "cache") != []
    first.kill()
    first.communicate()
    out, _ = end(second)
    assert len(noted(log, "latents")) == len(set(noted(log, "latents"))) == 6
    assert count(out, "latents", "made") == 6
    assert hidden(empty.parent / "cache") == []
    assert status_of_caches(load_run(empty)).complete
