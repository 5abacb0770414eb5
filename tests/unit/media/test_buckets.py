from __future__ import annotations

import pytest

from ltx2_train.media.buckets import BucketSelector, ExplicitBuckets, bucket_sizes, cover, parse_bucket


def test_sizes_are_multiples_of_32_within_the_area_and_come_in_both_directions():
    sizes = bucket_sizes(960, 544)
    for w, h in sizes:
        assert w % 32 == h % 32 == 0
        assert w * h <= 960 * 544
        assert (h, w) in sizes
    # Worked by hand: the square's side is 722, so widths run from 352 to 736.
    assert (352, 1472) in sizes
    assert (736, 704) in sizes
    assert (320, 1632) not in sizes


@pytest.mark.parametrize(
    ("picture", "bucket"), [((1000, 1000), (512, 512)), ((1920, 1080), (672, 384)), ((1080, 1920), (384, 672))]
)
def test_nearest_aspect_is_chosen(picture, bucket):
    assert BucketSelector((512, 512), enabled=True).choose(*picture) == bucket


def test_without_buckets_everything_gets_the_resolution():
    assert BucketSelector((512, 288)).choose(100, 900) == (512, 288)


def test_no_upscale_keeps_small_pictures():
    selector = BucketSelector((512, 512), enabled=True, no_upscale=True)
    assert selector.choose(200, 150) == (192, 128)
    assert selector.choose(20, 150) == (32, 128)
    assert selector.choose(2000, 2000) == (512, 512)


@pytest.mark.parametrize("picture", [(1280, 720), (63, 47), (33, 500), (512, 512)])
def test_cover_leaves_no_gap_and_crops_around_the_centre(picture):
    w, h, left, top = cover(*picture, (512, 288))
    assert w >= 512
    assert h >= 288
    assert abs((w - 512) - 2 * left) <= 1
    assert abs((h - 288) - 2 * top) <= 1
    assert w == 512 or h == 288


@pytest.mark.parametrize(
    ("medium", "chosen"),
    [
        ((1280, 720, 130), (768, 448, 97)),  # the longest it fills, of the nearest shape
        ((720, 1280, 130), (448, 768, 97)),
        ((1280, 720, 60), (768, 512, 49)),
        ((1280, 720, 40), None),
        ((1000, 1000, 1), (448, 768, 1)),  # no size of one frame is listed: the nearest shape
    ],
)
def test_listed_sizes_are_chosen_by_length_then_shape(medium, chosen):
    sizes = tuple(parse_bucket(text) for text in ("768x448x97", "448x768x97", "768x512x49"))
    assert ExplicitBuckets(sizes).choose(*medium) == chosen


@pytest.mark.parametrize(
    ("text", "says"), [("768x512", "WIDTHxHEIGHTxFRAMES"), ("770x512x9", "multiples of 32"), ("768x512x50", "8n")]
)
def test_a_wrong_size_is_explained(text, says):
    with pytest.raises(ValueError, match=says):
        parse_bucket(text)
