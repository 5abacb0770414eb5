"""References with fewer frames a second than their clips."""

import pytest
from media import grey_levels, numbers, write_captioned, write_video

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.dataset.reference import frames_within, read_reference, reference_frames
from ltx2_train.events import Events


@pytest.mark.parametrize(("clip", "scale", "frames"), [(49, 1, 49), (49, 2, 25), (49, 3, 17), (49, 4, 9), (9, 16, 1)])
def test_a_reference_has_whole_latents_beside_its_clip(clip, scale, frames):
    assert frames_within(clip, scale) == frames
    assert reference_frames(frames, scale)[-1] < clip


def test_its_frames_are_the_first_and_then_every_so_many(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", grey_levels(25, 64, 64))
    write_video(tmp_path / "references" / "a.mp4", grey_levels(25, 64, 64))
    (tmp_path / "dataset.toml").write_text(
        '[[datasets]]\nvideo_directory = "clips"\nreference_directory = "references"\ncache_directory = "cache"\n'
        "resolution = [64, 64]\ntarget_frames = [17]\nreference_frames = 0\nreference_temporal_scale = 2\n"
    )
    write_video(tmp_path / "references" / "other.mp4", grey_levels(9, 64, 64))
    told = []
    events = Events()
    events.message = lambda text, level="info": told.append(text)
    plan = plan_dataset(DatasetConfig.read(tmp_path / "dataset.toml"), events)
    assert any("1 references in" in text and "have no medium of their name: other.mp4" in text for text in told)
    (item,) = plan.items
    assert item.references[0].frames == 9
    clip = read_reference(item, plan.settings_of(item))
    assert numbers(clip) == [0, 1, 3, 5, 7, 9, 11, 13, 15]
