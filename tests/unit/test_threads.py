"""Threads that end with whoever waits for them, and the loops over media that hear of it."""

from __future__ import annotations

import threading
import time

import media
import pytest

from ltx2_train import threads
from ltx2_train.dataset.sources import content_hash
from ltx2_train.errors import Stopped
from ltx2_train.events import Events
from ltx2_train.media.frame_folder import probe_frame_folder, read_frame_folder
from ltx2_train.media.intact import look_through
from ltx2_train.media.sound_media import probe_sound, read_sound
from ltx2_train.media.video import probe_media, read_frames
from ltx2_train.threads import Threads, heed, heeding


class StopAfter(Events):
    """Asks for a stop once `begun` is set."""

    def __init__(self):
        self.begun = threading.Event()

    def should_stop(self):
        return self.begun.is_set()


@pytest.mark.parametrize("wait", ["result", "map"])
def test_work_without_an_end_ends_with_whoever_waits_for_it(wait):
    events, told = StopAfter(), []

    def endless(_):
        try:
            while True:
                events.begun.set()
                heed()
                time.sleep(0.005)
        except Stopped:
            told.append("in the thread")
            raise

    waits = {
        "result": lambda pool: pool.result(pool.submit(endless, 0)),
        "map": lambda pool: list(pool.map(endless, range(3))),
    }
    with pytest.raises(Stopped), Threads(1, "test", events) as pool:
        waits[wait](pool)
    assert told == ["in the thread"], "the others never began"
    assert not [one for one in threading.enumerate() if one.name.startswith("test")]


def test_a_thread_that_reads_itself_ends_too_and_only_while_it_heeds():
    events = StopAfter()
    with heeding(events):
        heed()
        events.begun.set()
        with pytest.raises(Stopped):
            heed()
    heed()


def test_what_a_thread_gives_or_raises_comes_in_order():
    with Threads(3, "test", Events()) as pool:
        assert list(pool.map(lambda number: number * 2, range(9))) == list(range(0, 18, 2))
        with pytest.raises(ZeroDivisionError):
            pool.result(pool.submit(lambda: 1 // 0))
    heed()  # nothing to hear here


def test_every_loop_over_a_medium_hears_that_nobody_waits(tmp_path, monkeypatch):
    clip = media.write_video(tmp_path / "a.mp4", media.moving_square(9, 32, 32), sound=media.tone(0.4))
    (tmp_path / "frames").mkdir()
    for number in range(3):
        media.write_image(tmp_path / f"frames/{number}.png", 32, 32, None)
    info, folder = probe_media(clip), probe_frame_folder(tmp_path / "frames")
    loops = [
        lambda: probe_media(clip),
        lambda: look_through(clip, False, True),
        lambda: read_frames(info),
        lambda: probe_sound(clip),
        lambda: read_sound(clip),
        lambda: read_frame_folder(folder, [0, 1]),
        lambda: content_hash.__wrapped__(clip, 0, 0),
    ]
    for loop in loops:
        loop()
    pool = Threads(1, "test", Events())
    pool.__exit__()
    monkeypatch.setattr(threads._here, "ask", pool._ask, raising=False)
    for loop in loops:
        with pytest.raises(Stopped):
            loop()
