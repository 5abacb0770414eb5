from __future__ import annotations

import pytest

from ltx2_train.media.frames import Window, floor_targets, is_even, timeline, varies, windows


def times(count, fps):
    return [index / fps for index in range(count)]


@pytest.mark.parametrize(
    ("source", "target", "resampled"),
    [
        (23.976, 25, False),
        (24, 25, False),
        (25, 25, False),
        (26, 25, False),
        (29.97, 25, True),
        (30, 25, True),
        (59.94, 60, False),
        (60, 25, True),
        (12, 25, True),
        (23.976, 24, False),
        (29.97, 30, False),
    ],
)
def test_the_resample_rule(source, target, resampled):
    line = timeline("a.mp4", times(50, source), source, target)
    assert line.resampled is resampled
    if not resampled:
        assert line.picks == tuple(range(50))


def test_log_lines_are_those_of_the_guide():
    line = timeline("my_video.mp4", times(60, 60), 60, 25)
    assert line.notes == (
        "Auto-detected source FPS: 60.00 for my_video.mp4",
        "Resampling my_video.mp4: 60.00 FPS -> 25.00 FPS",
    )
    assert not any("Resampling" in note for note in timeline("a.mp4", times(60, 25), 25, 25).notes)


def test_fast_sources_drop_to_the_nearest_frames():
    line = timeline("a.mp4", times(60, 60), 60, 25)
    assert line.frames == 25
    assert line.picks[:6] == (0, 2, 5, 7, 10, 12)


def test_slow_sources_repeat_frames_and_keep_their_speed():
    line = timeline("a.mp4", times(24, 12), 12, 25)
    assert line.frames == 50, "two seconds stay two seconds"
    assert set(line.picks) == set(range(24)), "no frame is lost"
    # Output frame 25 is at one second, which is source frame 12.
    assert line.picks[25] == 12
    assert any("repeated" in note for note in line.notes)


def last_at_or_before(shown, second):
    return max(index for index, time in enumerate(shown) if time - shown[0] <= second + 1e-9)


def test_timestamps_choose_the_frames_of_a_varying_clip():
    shown = [0, 0.04, 0.08, 0.12, 0.52, 0.56, 0.60, 1.0, 1.04, 1.08]
    assert varies(shown)
    line = timeline("phone.mp4", shown, 10 / 1.12, 25)
    assert line.resampled
    assert line.picks == tuple(last_at_or_before(shown, k / 25) for k in range(28))
    assert line.picks[3:13] == (3,) * 10, "held until the next"
    assert "varying frame rate" in line.notes[1]


@pytest.mark.parametrize("rate", [1, 5, 12, 15])
def test_frames_of_a_slow_clip_are_held_until_the_next(rate):
    shown = [7.3 + time for time in times(20, rate)]
    line = timeline("screen.mp4", shown, rate, 25)
    assert line.picks == tuple(last_at_or_before(shown, k / 25 + 0.005) for k in range(line.frames))
    assert line.frames == 20 * 25 // rate
    assert line.held


@pytest.mark.parametrize("lost", [1, 3, 25])
@pytest.mark.parametrize("rate", [25, 30, 60, 24, 23.976])
def test_after_lost_frames_every_frame_comes_at_its_time(rate, lost):
    shown = [round(time, 3) for number, time in enumerate(times(200, rate)) if not 60 <= number < 60 + lost]
    assert not is_even(shown)
    line = timeline("lost.mkv", shown, rate, 25)
    for k, pick in enumerate(line.picks):
        assert shown[pick] <= k / 25 + 0.0051
        assert pick == len(shown) - 1 or shown[pick + 1] > k / 25
    assert line.frames == pytest.approx(200 / rate * 25, abs=1)
    assert f"lacks frames after {shown[59]:.2f} s" in line.notes[1]


def test_a_rate_that_changes_on_the_way_is_followed():
    shown = times(90, 30) + [3 + time for time in times(120, 24)]
    line = timeline("mixed.mp4", shown, 26.25, 25)
    assert line.resampled
    assert line.picks[100] == 90 + 24
    assert line.frames == 200


@pytest.mark.parametrize("rate", [10, 23.976, 25, 29.97, 60, 240])
def test_rounded_timestamps_and_small_jitter_are_even(rate):
    assert is_even([round(time, 3) for time in times(500, rate)])
    assert is_even([time + 0.09 / rate * (index % 3 - 1) for index, time in enumerate(times(500, rate))])
    assert is_even([0.0, 0.5])
    assert not is_even([0.0, 0.04, 0.04, 0.08])


def test_source_fps_scales_a_clip_that_is_not_even():
    shown = [time for number, time in enumerate(times(100, 25)) if not 40 <= number < 50]
    line = timeline("lost.mp4", shown, 25, 25, source_fps=50)
    assert line.tempo == pytest.approx(2.0)
    assert line.frames == 50
    assert line.picks[:20] == tuple(range(0, 40, 2))
    assert line.picks[20:25] == (39,) * 5
    assert line.picks[25] == 40, "which was frame 50"


def test_varying_clip_is_resampled_even_near_the_target_rate():
    shown = [0.0]
    for index in range(49):
        shown.append(shown[-1] + (0.02 if index % 2 else 0.06))
    line = timeline("phone.mp4", shown, 25.0, 25)
    assert line.resampled


def test_jitter_and_a_single_gap_are_not_a_varying_rate():
    steady = [round(index / 23.976, 3) for index in range(100)]
    assert not varies(steady)
    assert not varies(steady[:50] + [t + 0.042 for t in steady[50:]])


def test_source_fps_overrides_timestamps():
    line = timeline("a.mp4", times(60, 25), 25, 25, source_fps=50)
    assert line.resampled
    assert line.frames == 30
    assert line.notes[0] == "Source FPS set to 50.00 for a.mp4"


def test_a_start_time_other_than_zero_does_not_matter():
    late = [t + 7.3 for t in times(60, 60)]
    assert timeline("a", late, 60, 25).picks == timeline("a", times(60, 60), 60, 25).picks


def test_a_single_frame():
    assert timeline("a", [0.0], 25, 25).picks == (0,)
    assert timeline("a", [0.0], 10, 25).picks == (0, 0)


def test_targets_are_floored_to_8n_plus_1_with_a_message():
    kept, notes = floor_targets([5, 1, 49, 50, 25])
    assert kept == (1, 49, 25)
    assert "target_frames 5 is not 8n+1; 1 is used instead." in notes
    assert len(notes) == 2


def test_head():
    assert windows(40, [1, 17, 33, 49], "head") == [Window(0, 1), Window(0, 17), Window(0, 33)]


def test_chunk_drops_the_tail():
    assert windows(40, [17], "chunk") == [Window(0, 17), Window(17, 17)]


def test_slide():
    assert windows(20, [9], "slide", stride=4) == [Window(0, 9), Window(4, 9), Window(8, 9)]


def test_uniform():
    assert windows(40, [9], "uniform", samples=3) == [Window(0, 9), Window(15, 9), Window(31, 9)]
    assert windows(40, [9], "uniform", samples=1) == [Window(0, 9)]
    assert windows(9, [9], "uniform", samples=4) == [Window(0, 9)], "no window twice"


def test_full():
    assert windows(40, [1], "full", max_frames=129) == [Window(0, 33)]
    assert windows(400, [1], "full", max_frames=100) == [Window(0, 97)]


def test_too_short():
    assert windows(16, [17], "head") == []
    assert windows(16, [17], "head", pad=True) == [Window(0, 17)]
    assert windows(8, [17], "head", pad=True) == [], "more than 8 frames are missing"
    assert windows(16, [9, 17], "head", pad=True) == [Window(0, 9)], "padding only where nothing else fits"


def test_window_token():
    assert Window(5, 49).token == "00005-049"
