"""What is told about sound before and while a run trains."""

import dataclasses
from pathlib import Path

import pytest

from ltx2_train.errors import DataError
from ltx2_train.events import Events
from ltx2_train.feed.batches import BatchOrder
from ltx2_train.feed.loader import Sample
from ltx2_train.feed.samples import SoundBuckets
from ltx2_train.shapes import LatentShape
from ltx2_train.training import watch
from ltx2_train.training.watch import SoundWatch, describe_mix, require_heard, warn_of_captions


class Told(Events):
    def __init__(self):
        self.texts = {"info": [], "warning": []}

    def message(self, text, level="info"):
        self.texts[level].append(text)


class Loras:
    """Stands for a LoRA whose branches have these norms."""

    def __init__(self, **norms):
        self.values = norms

    def norms(self):
        return dict(self.values)


def clips(heard, silent, caption="{}"):
    return [
        Sample(str(i), LatentShape(2, 2, 2), 25.0, caption.format(i), Path(f"{i}"), Path(f"{i}.te"), audio_steps=steps)
        for i, steps in enumerate([25] * heard + [0] * silent)
    ]


def test_what_buckets_of_sound_cut_off_is_told():
    told, buckets = Told(), SoundBuckets("truncate", 1.0)
    samples = [dataclasses.replace(one, kind="audio", buckets=buckets, audio_steps=35) for one in clips(2, 0)]
    describe_mix(BatchOrder(samples, 1, 0), "audio", False, told)
    assert told.texts["info"][1] == (
        "audio_bucket_strategy = truncate leaves out the end of 2 of 2 samples, 0.8 s together."
    )


def test_the_mix_is_told_and_a_starving_one_warned_of():
    told = Told()
    describe_mix(BatchOrder(clips(5, 5), 1, 0), "av", False, told)
    assert "5 of 10 batches" in told.texts["info"][0]
    assert "5.0 s in all" in told.texts["info"][0]
    assert not told.texts["warning"]
    describe_mix(BatchOrder(clips(1, 60), 1, 0), "av", False, told)
    assert "num_repeats" in told.texts["warning"][0]
    assert "about 18 times" in told.texts["warning"][0]


def test_nothing_is_said_of_sound_in_video_mode():
    told = Told()
    describe_mix(BatchOrder(clips(1, 60), 1, 0), "video", False, told)
    require_heard(clips(0, 3), "video")
    assert told.texts == {"info": [], "warning": []}


def test_a_mix_without_any_sound_is_refused():
    with pytest.raises(DataError, match=r"not one of the 3 samples has sound"):
        require_heard(clips(0, 3), "av")


def test_sound_that_is_all_silence_is_refused_and_some_of_it_named():
    mute = [dataclasses.replace(one, key=f"datasets[0]/{one.key}.wav", silent=True) for one in clips(2, 0)]
    with pytest.raises(DataError, match=r"silence \(0\.wav, 1\.wav\).*set model\.mode to video"):
        require_heard([*mute, *clips(0, 3)], "av")
    require_heard(mute, "video")
    some = [mute[0], *clips(3, 0)[1:]]
    require_heard(some, "av")
    told = Told()
    describe_mix(BatchOrder(some, 1, 0), "av", False, told)
    assert "The sound of 1 of 3 samples is silence" in told.texts["warning"][0]
    assert "0.wav" in told.texts["warning"][0]


def test_one_caption_for_all_files_is_warned_of_but_not_for_windows_of_one():
    told = Told()
    warn_of_captions(clips(3, 0), told)
    warn_of_captions([clips(1, 0, "same")[0]] * 3, told)
    assert not told.texts["warning"]
    warn_of_captions(clips(3, 0, "same"), told)
    assert "'same'" in told.texts["warning"][0]


@pytest.mark.parametrize(("audio", "warned"), [(0.0, True), (1e-7, True), (0.02, False)])
def test_audio_layers_must_have_moved_after_a_hundred_steps_with_sound(audio, warned):
    told, loras = Told(), Loras(video=0.0, audio=0.0, v2a=0.0)
    watcher = SoundWatch(loras, "av", told)
    loras.values = {"video": 0.1, "audio": audio, "v2a": 0.0}
    for _ in range(watch.CHECK_AFTER - 1):
        watcher.step(heard=True)
    assert not told.texts["warning"]
    for _ in range(50):
        watcher.step(heard=True)
    assert len(told.texts["warning"]) == warned


def test_a_hundred_steps_without_any_sound_are_told_once():
    told = Told()
    watcher = SoundWatch(Loras(video=0.0, audio=0.0), "av", told)
    for _ in range(3 * watch.CHECK_AFTER):
        watcher.step(heard=False)
    assert len(told.texts["warning"]) == 1
    assert "None of the first 100 steps" in told.texts["warning"][0]


def test_counting_goes_on_after_a_resume():
    told, loras = Told(), Loras(video=0.0, audio=0.0)
    first = SoundWatch(loras, "av", told)
    for _ in range(60):
        first.step(heard=True)
    loras.values = {"video": 0.1, "audio": 0.1}
    second = SoundWatch(loras, "av", told)
    second.load_state_dict(first.state_dict())
    for _ in range(40):
        second.step(heard=True)
    assert not told.texts["warning"], "it is held against the start of the run, not of this process"


def test_a_lora_without_audio_layers_is_told_at_once():
    told = Told()
    SoundWatch(Loras(video=0.0), "av", told)
    assert "no audio layers" in told.texts["warning"][0]
