"""What a build of caches counts as made or kept is there at its end; what broke one cache is looked for in all."""

from __future__ import annotations

import os
import shutil

import pytest

from ltx2_train import CacheError, Events, RunError, build_caches, load_run, train
from ltx2_train.caching.cache_file import CacheFile


class At(Events):
    """Calls `act` as the stage `name` begins; keeps what it is told."""

    def __init__(self, name="", act=lambda: None):
        self.name, self.act, self.told = name, act, []

    def stage(self, name, total=None):
        if name == self.name:
            self.act()

    def message(self, text, level="info"):
        self.told.append(text)


def broken(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.unlink()
    path.write_bytes(data)


@pytest.mark.skipif(os.name == "nt", reason="Windows deletes no folder whose files are open")
def test_caches_that_go_while_others_are_made_are_told(run_file):
    run, folder = load_run(run_file), run_file.parent / "cache"
    text = next(folder.glob("*_te_compact.safetensors"))
    kept = sorted(path for path in folder.glob("clip_0*.safetensors"))
    text.unlink()
    with pytest.raises(RunError, match=f"{kept[0].name} was deleted or moved while the caches were built"):
        build_caches(run, At("encode text", kept[0].unlink))
    assert text.is_file(), "what was made stays"
    text.unlink()
    with pytest.raises(RunError, match="_ltx2.safetensors and 2 more were deleted or moved"):
        build_caches(run, At("encode text", lambda: shutil.rmtree(folder)))
    assert build_caches(run).kinds["latents"].made == 3


def test_what_broke_one_cache_is_looked_for_in_all_of_them(run_file):
    run = load_run(run_file)
    latents = sorted((run_file.parent / "cache").glob("clip_0*.safetensors"))
    for path in latents:
        broken(path)
    with pytest.raises(CacheError, match="is damaged"):
        train(run)
    heard = At()
    assert build_caches(run, heard).kinds["latents"].made == 3
    assert sum("is made again" in text for text in heard.told) == 3
    for path in latents:
        CacheFile(path).verify()
    build_caches(run, again := At())
    assert not any("is damaged" in text for text in again.told), "all are read this once"


def test_all_captions_that_cannot_be_read_are_named_at_once(run_file):
    clips = run_file.parent / "clips"
    shutil.copy2(clips / "clip.mp4", clips / "two.mp4")
    (clips / "two.txt").write_text("another ball")
    run = load_run(run_file)
    build_caches(run)
    texts = sorted((run_file.parent / "cache").glob("*_te_compact.safetensors"))
    for path in texts:
        broken(path)
    with pytest.raises(CacheError, match=f"2 captions cannot be trained on:\n.*{texts[0].name}.*\n.*{texts[1].name}"):
        train(run)
    assert build_caches(run).kinds["text"].made == 2
