"""From a dataset file and its media to items: which, of what size, and what is left out.

It is long: all that a plan decides.
"""

from __future__ import annotations

import json
import types
from dataclasses import replace

import pytest
from media import grey_levels, moving_square, real_clip, truncate, write_captioned, write_image, write_video

from ltx2_train.dataset import plan as planning
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError, Stopped
from ltx2_train.events import Events


class Heard(Events):
    def __init__(self):
        self.messages = []

    def message(self, text, level="info"):
        self.messages.append((level, text))


def config(folder, *entries, **general):
    table = {"general": {"resolution": 64, **general}, "datasets": [dict(entry) for entry in entries]}
    return DatasetConfig.from_table(table, folder)


def one_video(folder, **options):
    return config(folder, {"video_directory": "clips", "cache_directory": "cache", **options})


def refused(plan):
    return {skip.path.name: skip.reason for skip in plan.skipped}


def test_windows_of_a_real_clip(tmp_path):
    clips = tmp_path / "clips"
    clips.mkdir()
    (clips / "bunny.mp4").write_bytes(real_clip("bigbuckbunny.mp4").read_bytes())
    (clips / "bunny.txt").write_text("a rabbit wakes up")
    plan = plan_dataset(one_video(tmp_path, resolution=[512, 288], target_frames=[49], frame_extraction="chunk"))
    assert [item.latent_path.name for item in plan.items] == [
        "bunny_00000-049_0512x0288_ltx2.safetensors",
        "bunny_00049-049_0512x0288_ltx2.safetensors",
    ]
    first = plan.items[0]
    assert first.latent_path.parent == tmp_path / "cache"
    assert first.picks == list(range(49))
    assert first.caption == "a rabbit wakes up"
    assert (first.shape.frames, first.shape.height, first.shape.width) == (7, 9, 16)
    assert first.source.text_path("full").name == "bunny_ltx2_te.safetensors"
    assert first.source.text_path("compact").name == "bunny_ltx2_te_compact.safetensors"


def test_images_are_named_after_their_own_size_and_have_one_frame(tmp_path):
    write_image(tmp_path / "a" / "pic.png", 120, 80, "a square")
    entry = {"image_directory": "a", "cache_directory": "c", "resolution": 256}
    plan = plan_dataset(config(tmp_path, entry, enable_bucket=True))
    (item,) = plan.items
    assert item.latent_path.name == "pic_0120x0080_ltx2.safetensors"
    assert (item.window.count, item.shape.frames) == (1, 1)
    assert item.width % 32 == item.height % 32 == 0
    assert item.width > item.height


def test_trigger_word_goes_into_the_caption(tmp_path):
    write_image(tmp_path / "a" / "pic.png", caption="a square")
    (item,) = plan_dataset(config(tmp_path, {"image_directory": "a", "trigger_word": "sks"})).items
    assert item.caption == "sks, a square"


def test_frame_rate_lines_reach_the_user(tmp_path):
    write_captioned(tmp_path / "clips" / "fast.mp4", grey_levels(40, step=5), fps=60)
    heard = Heard()
    (item,) = plan_dataset(one_video(tmp_path, target_frames=[9]), heard).items
    assert ("info", "Auto-detected source FPS: 60.00 for fast.mp4") in heard.messages
    assert ("info", "Resampling fast.mp4: 60.00 FPS -> 25.00 FPS") in heard.messages
    assert item.picks == [0, 2, 5, 7, 10, 12, 14, 17, 19]


def test_every_reason_to_leave_a_file_out_is_named(tmp_path):
    clips = tmp_path / "clips"
    write_captioned(clips / "good.mp4", moving_square(12, 64, 64))
    write_captioned(clips / "short.mp4", moving_square(3, 64, 64))
    write_video(clips / "silent.mp4", moving_square(12, 64, 64))
    write_captioned(clips / "blank.mp4", moving_square(12, 64, 64), caption="  ")
    truncate(write_captioned(clips / "cut.mp4", moving_square(60, 96, 64)))
    write_captioned(clips / "good.mkv", moving_square(12, 64, 64))
    heard = Heard()
    plan = plan_dataset(one_video(tmp_path, target_frames=[9]), heard)
    assert [item.source.path.name for item in plan.items] == ["good.mkv"]
    reasons = refused(plan)
    assert "too short: 3 frames" in reasons["short.mp4"]
    assert "the shortest of target_frames is 9" in reasons["short.mp4"]
    assert 'pad_short = "pad"' in reasons["short.mp4"]
    assert "silent.txt" in reasons["silent.mp4"]
    assert "empty caption" in reasons["blank.mp4"]
    assert "cut short" in reasons["cut.mp4"]
    assert "good.mkv" in reasons["good.mp4"]
    assert "rename" in reasons["good.mp4"]
    (told,) = [text for level, text in heard.messages if level == "warning" and "left out" in text]
    assert told.startswith("5 files are left out")
    assert [line.split(":")[0].strip() for line in told.splitlines()[1:]] == [skip.path.name for skip in plan.skipped]
    assert "short.mp4" in plan.summary()
    again = Heard()
    plan_dataset(one_video(tmp_path, target_frames=[9]), again, brief=True)
    (brief,) = [text for _, text in again.messages if "files are left out" in text]
    assert "short.mp4" in brief
    assert "too short" not in brief
    assert len(brief) < 200


def test_short_clips_are_padded_when_asked(tmp_path):
    write_captioned(tmp_path / "clips" / "short.mp4", moving_square(6, 64, 64))
    (item,) = plan_dataset(one_video(tmp_path, target_frames=[9], pad_short="pad")).items
    assert item.picks == [0, 1, 2, 3, 4, 5, 5, 5, 5]


def test_min_frames(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(20, 64, 64))
    write_captioned(tmp_path / "clips" / "b.mp4", moving_square(40, 64, 64))
    plan = plan_dataset(one_video(tmp_path, target_frames=[9], min_frames=30))
    assert [item.source.path.name for item in plan.items] == ["b.mp4"]
    assert "min_frames is 30" in refused(plan)["a.mp4"]


def test_targets_that_are_not_8n_plus_1_are_floored_aloud(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(30, 64, 64))
    heard = Heard()
    (item,) = plan_dataset(one_video(tmp_path, target_frames=[21]), heard).items
    assert item.window.count == 17
    assert any("21 is not 8n+1; 17" in text for level, text in heard.messages if level == "warning")


def test_lengths_that_no_clip_reaches_are_told(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(20, 64, 64))
    plan = plan_dataset(one_video(tmp_path, target_frames=[9, 33, 49]))
    told = [text for text in plan.warnings if "long enough" in text]
    assert told == [
        "datasets[0]: no clip is long enough for 33 and 49 of target_frames; the longest window has 9 frames."
    ]
    assert not [text for text in plan_dataset(one_video(tmp_path, target_frames=[9])).warnings if "long enough" in text]


def test_folders_of_pictures_have_no_rate_and_it_is_said(tmp_path):
    for number in range(20):
        write_image(tmp_path / "fr" / f"{number}.png", 64, 64, caption=None)
    (tmp_path / "l.jsonl").write_text('{"video_path": "fr", "caption": "x"}')
    entry = {"video_jsonl_file": "l.jsonl", "cache_directory": "c", "target_frames": [9]}
    told = [
        [text for text in plan_dataset(config(tmp_path, {**entry, **more})).warnings if "frame rate" in text]
        for more in ({}, {"source_fps": 30})
    ]
    assert told == [
        [
            "datasets[0]: 1 clips are folders of pictures, which have no frame rate, and are taken at 25 a second: fr. "
            "Set source_fps where that is not their own."
        ],
        [],
    ]


def test_a_video_set_without_target_frames_warns(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    heard = Heard()
    plan_dataset(one_video(tmp_path), heard)
    assert any("target_frames is not set" in text for _, text in heard.messages)


def test_sub_folders_do_not_collide(tmp_path):
    write_captioned(tmp_path / "clips" / "one" / "a.mp4", moving_square(9, 64, 64), caption="first")
    write_captioned(tmp_path / "clips" / "two" / "a.mp4", moving_square(9, 64, 64), caption="second")
    plan = plan_dataset(one_video(tmp_path, target_frames=[9], recursive=True))
    assert [item.caption for item in plan.items] == ["first", "second"]
    assert len({item.latent_path for item in plan.items}) == 2
    assert plan.items[0].source.stem == "one__a"


def test_names_of_caches_of_other_media_are_left_out(tmp_path):
    for name in ("a", "a~flip", "a~caption2", "a~captioned", "b~flipped"):
        write_image(tmp_path / "clips" / f"{name}.png", 64, 64, name)
    table = {"datasets": [{"image_directory": "clips", "resolution": 64, "flip": True}]}
    plan = plan_dataset(DatasetConfig.from_table(table, tmp_path))
    assert [item.source.stem for item in plan.items if not item.flipped] == ["a", "a~captioned", "b~flipped"]
    assert refused(plan) == {
        "a~flip.png": "its name ends in ~flip, as the caches of a mirrored copy; rename it",
        "a~caption2.png": "its name ends in ~caption2, as the caches of a further caption; rename it",
    }


def test_what_a_mac_leaves_in_a_zip_is_no_medium(tmp_path):
    write_captioned(tmp_path / "clips" / "one" / "a.mp4", moving_square(9, 64, 64))
    for place in ("clips/__MACOSX/one", "clips/one", "references/__MACOSX", "references"):
        for name in ("._a.mp4", "._a.txt", "._lone.png", ".DS_Store"):
            path = tmp_path / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"\x00\x05\x16\x07\x00")
    write_image(tmp_path / "references" / "a.png", 64, 64)
    write_image(tmp_path / "clips" / "__MACOSX" / "strange.png", 64, 64)
    for name in ("#recycle", "@eaDir", "$RECYCLE.BIN"):
        write_captioned(tmp_path / "clips" / name / "b.mp4", moving_square(9, 64, 64))
    heard = Heard()
    entry = {"video_directory": "clips", "recursive": True, "reference_directory": "references"}
    plan = plan_dataset(config(tmp_path, {**entry, "cache_directory": "cache", "target_frames": [9]}), heard)
    assert [item.source.path.name for item in plan.items] == ["a.mp4"]
    assert not plan.skipped
    assert not [text for _, text in heard.messages if "._" in text or "__MACOSX" in text]
    with pytest.raises(DataError, match="no images in") as caught:
        plan_dataset(config(tmp_path, {"image_directory": "clips", "cache_directory": "cache", "resolution": 64}))
    assert "__MACOSX" not in str(caught.value)


@pytest.mark.parametrize(("names", "said"), [
    (("a.txt", "a.TXT"), "a.TXT and a.txt"),
    (("A.txt", "A.TXT"), "A.TXT and A.txt"),
    (("a.txt",), ""), (("a.TXT",), ""), (("A.txt",), ""), (("a.txt", "A.txt"), ""),
])  # fmt: skip
def test_two_files_that_could_be_the_caption_are_refused_by_name(tmp_path, names, said):
    write_video(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    for name in names:
        (tmp_path / "clips" / name).write_text(name)
    if len(list((tmp_path / "clips").glob("*.[tT]*"))) < len(names):
        pytest.skip("this file system does not tell the two apart")
    write_captioned(tmp_path / "clips" / "other.mp4", moving_square(9, 64, 64))
    plan = plan_dataset(one_video(tmp_path, target_frames=[9]))
    reason = f"two files could be its caption: {said}; keep one of them"
    assert refused(plan) == ({"a.mp4": reason} if said else {})
    assert [item.caption for item in plan.items][: -1 or None] == ([] if said else [names[0]])


def test_jsonl_lists_are_read_relative_to_themselves(tmp_path):
    write_video(tmp_path / "media" / "a.mp4", moving_square(9, 64, 64))
    rows = [{"video_path": "a.mp4", "caption": "listed", "other": 1}, {"video_path": "gone.mp4", "caption": "x"}]
    (tmp_path / "media" / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    entry = {"video_jsonl_file": "media/list.jsonl", "cache_directory": "c", "target_frames": [9]}
    plan = plan_dataset(config(tmp_path, entry))
    assert [item.caption for item in plan.items] == ["listed"]
    assert "does not exist" in refused(plan)["gone.mp4"]


def test_a_broken_line_of_a_list_is_numbered(tmp_path):
    (tmp_path / "list.jsonl").write_text('{"image_path": "a.png", "caption": "x"}\n{"image_path": 5}\n')
    entry = {"image_jsonl_file": "list.jsonl", "cache_directory": "c"}
    with pytest.raises(DataError, match="line 2"):
        plan_dataset(config(tmp_path, entry))


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="does not exist") as caught:
        plan_dataset(one_video(tmp_path))
    assert "datasets[0].video_directory" in str(caught.value)


def test_empty_folder_says_what_is_there(tmp_path):
    (tmp_path / "clips").mkdir()
    with pytest.raises(DataError, match="holds nothing"):
        plan_dataset(one_video(tmp_path))
    (tmp_path / "clips" / "notes.txt").touch()
    with pytest.raises(DataError, match=r"1 \.txt"):
        plan_dataset(one_video(tmp_path))


def test_images_in_a_video_set_are_pointed_out(tmp_path):
    write_image(tmp_path / "clips" / "a.png")
    with pytest.raises(DataError, match="use image_directory"):
        plan_dataset(one_video(tmp_path))


def test_the_wrong_level_is_pointed_out(tmp_path):
    write_captioned(tmp_path / "clips" / "inner" / "a.mp4", moving_square(9, 64, 64))
    with pytest.raises(DataError, match="sub-folder inner") as caught:
        plan_dataset(one_video(tmp_path))
    assert "recursive = true" in str(caught.value)


def test_no_captions_at_all(tmp_path):
    write_video(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    write_video(tmp_path / "clips" / "b.mp4", moving_square(9, 64, 64))
    with pytest.raises(DataError, match="not one caption") as caught:
        plan_dataset(one_video(tmp_path))
    assert "a.txt" in str(caught.value)
    assert "caption_extension" in str(caught.value)


def test_a_file_that_cannot_be_read_is_left_out_for_that_before_its_caption(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    for name, data in (("b.mp4", b""), ("c.mp4", b""), ("d.mp4", (tmp_path / "clips" / "a.mp4").read_bytes())):
        (tmp_path / "clips" / name).write_bytes(data)
    (tmp_path / "clips" / "c.txt").write_text(" ")
    reasons = {skip.path.name: skip.reason for skip in plan_dataset(one_video(tmp_path)).skipped}
    assert reasons["b.mp4"].startswith(f"{tmp_path / 'clips' / 'b.mp4'} is empty")
    assert reasons["c.mp4"].startswith(f"{tmp_path / 'clips' / 'c.mp4'} is empty")
    assert reasons["d.mp4"] == "no caption: d.txt is not there"


def test_nothing_left_lists_the_reasons(tmp_path):
    write_captioned(tmp_path / "clips" / "a.mp4", moving_square(3, 64, 64))
    with pytest.raises(DataError, match=r"^None of the 1 videos in clips can be used\.\n  a\.mp4: too short") as said:
        plan_dataset(one_video(tmp_path, target_frames=[49]))
    where = f"(datasets[0].video_directory: {tmp_path / 'clips'})"
    assert str(said.value).endswith(where), "a page shows the first lines alone"


def test_too_many_files_of_no_use_are_an_error_that_names_them(tmp_path):
    for index in range(8):
        write_image(tmp_path / "many" / f"{index}.png", caption="x" if index < 3 else None)
        write_image(tmp_path / "more" / f"{index}.png", caption="x" if index < 4 else None)
    (tmp_path / "many" / "6.txt").mkdir()
    one = {"image_directory": "many", "cache_directory": "k1"}
    two = {"image_directory": "more", "cache_directory": "k2"}
    plan_dataset(config(tmp_path, two)).require_enough()
    plan = plan_dataset(config(tmp_path, two, one))
    with pytest.raises(
        DataError, match=r"(?s)^datasets\[1\]: 5 of 8 files cannot be used, and max_left_out is 0\.5"
    ) as said:
        plan.require_enough()
    assert "  6.png: no caption: 6.txt is a folder, not a file" in str(said.value)
    assert "  7.png: no caption: 7.txt is not there" in str(said.value)
    assert "raise max_left_out" in str(said.value)
    plan_dataset(config(tmp_path, two, one, max_left_out=0.7)).require_enough()
    lost = plan_dataset(config(tmp_path, two))
    with pytest.raises(DataError, match="5 of 8"):
        lost.require_enough({tmp_path / "more" / "0.png": "damaged"})
    with pytest.raises(DataError, match="max_left_out is 0"):
        plan_dataset(config(tmp_path, two, max_left_out=0)).require_enough()


def test_the_kinds_of_media_of_one_folder_are_counted_together(tmp_path):
    for index in range(3):
        write_captioned(tmp_path / "all" / f"{index}.mp4", moving_square(9, 64, 64))
    write_image(tmp_path / "all" / "broken.png", caption="x").write_bytes(b"")
    images = {"image_directory": "all", "cache_directory": "k1"}
    clips = {"video_directory": "all", "cache_directory": "k2", "target_frames": [9]}
    plan = plan_dataset(config(tmp_path, images, clips))
    plan.require_enough()
    assert [skip.path.name for skip in plan.skipped] == ["broken.png"]
    for index in range(3):
        write_image(tmp_path / "all" / f"broken{index}.png", caption="x").write_bytes(b"")
    with pytest.raises(DataError, match=r"^datasets\[1\]: 4 of 7 files cannot be used"):
        plan_dataset(config(tmp_path, clips, images)).require_enough()
    (tmp_path / "all" / "0.txt").unlink()
    with pytest.raises(DataError, match=r"^datasets\[0\] and datasets\[1\]: 5 of 7 files cannot be used"):
        plan_dataset(config(tmp_path, clips, images)).require_enough()
    with pytest.raises(DataError, match="None of the 4 images"):  # each with a share of its own
        plan_dataset(config(tmp_path, {**images, "max_left_out": 1.0}, clips))
    with pytest.raises(DataError, match="None of the 4 images"):
        plan_dataset(config(tmp_path, images))


def test_rows_of_a_list_that_cannot_be_used_count_one_by_one(tmp_path):
    write_image(tmp_path / "a.png", caption=None)
    rows = ['{"image_path": "a.png", "caption": "x"}', *['{"image_path": 5}'] * 3]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    plan = plan_dataset(config(tmp_path, {"image_jsonl_file": "list.jsonl", "cache_directory": "k"}))
    with pytest.raises(DataError, match="3 of 4 files"):
        plan.require_enough()


def test_long_caption_endings(tmp_path):
    write_video(tmp_path / "clips" / "a.mp4", moving_square(9, 64, 64))
    (tmp_path / "clips" / "a.target.txt").write_text("long")
    (item,) = plan_dataset(one_video(tmp_path, target_frames=[9], caption_extension="target.txt")).items
    assert item.caption == "long"


def test_validation_items_are_marked(tmp_path):
    write_image(tmp_path / "a" / "x.png")
    write_image(tmp_path / "b" / "x.png")
    table = {"general": {"resolution": 64}, "datasets": [{"image_directory": "a"}]}
    table["validation_datasets"] = [{"image_directory": "b"}]
    plan = plan_dataset(DatasetConfig.from_table(table, tmp_path))
    assert [item.validation for item in plan.items] == [False, True]
    assert len({item.key for item in plan.items}) == 2


def test_stop_is_heard(tmp_path):
    write_image(tmp_path / "a" / "x.png")
    events = Events()
    events.should_stop = lambda: True
    with pytest.raises(Stopped):
        plan_dataset(config(tmp_path, {"image_directory": "a"}), events)


def test_interlaced_and_hdr_videos_are_mentioned(tmp_path, monkeypatch):
    from ltx2_train.media import probe as media

    hdr = {"format": types.SimpleNamespace(name="yuv420p"), "color_trc": 16}
    remarks = media._remarks(types.SimpleNamespace(**hdr, interlaced_frame=True, side_data={}))
    assert len(remarks) == 2
    monkeypatch.setattr(media, "_remarks", lambda frame: remarks)
    write_captioned(tmp_path / "clips" / "tv.mp4", moving_square(9, 64, 64))
    plan = plan_dataset(one_video(tmp_path, target_frames=[9]))
    assert any(text.startswith("tv.mp4 is HDR") for text in plan.warnings)
    assert any(text.startswith("tv.mp4 is interlaced") for text in plan.warnings)


def test_transparency_is_mentioned(tmp_path):
    from PIL import Image

    for name, opacity in (("x", 254), ("opaque", 255)):
        write_image(tmp_path / "a" / f"{name}.png", caption=name)
        picture = Image.open(tmp_path / "a" / f"{name}.png").convert("RGBA")
        picture.putpixel((3, 5), (0, 0, 0, opacity))
        picture.save(tmp_path / "a" / f"{name}.png")
    heard = Heard()
    plan_dataset(config(tmp_path, {"image_directory": "a"}), heard)
    assert [text.split()[0] for _, text in heard.messages if "over black" in text] == ["x.png"]


def test_shortest_and_longest_seconds(tmp_path):
    for name, frames in (("a", 10), ("b", 25), ("c", 50)):
        write_captioned(tmp_path / "clips" / f"{name}.mp4", moving_square(frames, 64, 64))
    plan = plan_dataset(one_video(tmp_path, target_frames=[9], min_seconds=1, max_seconds=1.5))
    assert [item.source.path.name for item in plan.items] == ["b.mp4"]
    assert "too short: 0.40 s" in refused(plan)["a.mp4"]
    assert "too long: 2.00 s" in refused(plan)["c.mp4"]


def test_copies_are_mentioned(tmp_path):
    write_image(tmp_path / "a" / "one.png")
    write_image(tmp_path / "a" / "other.png", 90, 60)
    (tmp_path / "a" / "two.png").write_bytes((tmp_path / "a" / "one.png").read_bytes())
    (tmp_path / "a" / "two.txt").write_text("the same")
    plan = plan_dataset(config(tmp_path, {"image_directory": "a"}))
    assert len(plan.items) == 3
    (warning,) = plan.warnings
    assert "two.png is a copy of one.png" in warning


def test_a_video_in_a_list_of_images_is_pointed_out(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(9, 64, 64))
    write_image(tmp_path / "b.png")
    rows = [{"image_path": name, "caption": "x"} for name in ("a.mp4", "b.png")]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    plan = plan_dataset(config(tmp_path, {"image_jsonl_file": "list.jsonl", "cache_directory": "c"}))
    assert [item.source.path.name for item in plan.items] == ["b.png"]
    assert "video_jsonl_file" in refused(plan)["a.mp4"]


def test_listed_sizes_decide_size_and_length(tmp_path):
    clips = tmp_path / "clips"
    for name, frames in (("long", 60), ("short", 20), ("tiny", 5)):
        write_video(clips / f"{name}.mp4", moving_square(frames, 128, 96))
        (clips / f"{name}.txt").write_text(name)
    plan = plan_dataset(one_video(tmp_path, resolution_buckets="96x64x49;64x64x17"))
    assert sorted((item.source.stem, item.width, item.height, item.window.count) for item in plan.items) == [
        ("long", 96, 64, 49),
        ("short", 64, 64, 17),
    ]
    assert "resolution_buckets is 17" in refused(plan)["tiny.mp4"]


class Looked(tuple):
    """Times that count how often one of them is looked at."""

    looks = 0

    def __getitem__(self, place):
        found = super().__getitem__(place)
        Looked.looks += len(found) if isinstance(place, slice) else 1
        return found

    def __iter__(self):
        Looked.looks += len(self)
        return super().__iter__()


@pytest.mark.parametrize(
    ("extraction", "count"),
    [({"frame_extraction": "slide", "frame_stride": 1}, 7_952), ({"frame_extraction": "chunk"}, 163)],
)
def test_a_long_clip_is_planned_without_going_through_it_for_each_window(tmp_path, monkeypatch, extraction, count):
    write_captioned(tmp_path / "clips" / "long.mp4", moving_square(9, 64, 64))
    frames = 8_000
    known = planning.probe_media(tmp_path / "clips" / "long.mp4")
    times = Looked(number / 25 for number in range(frames))
    long = replace(known, frames=frames, duration=frames / 25, times=times, stamps=tuple(range(frames)), whole=False)
    monkeypatch.setattr(planning, "_look_at", lambda path, index: long)
    monkeypatch.setattr(Looked, "looks", 0)
    assert len(plan_dataset(one_video(tmp_path, target_frames=[49], **extraction)).items) == count
    assert Looked.looks < 50 * frames


def test_full_lengths_can_be_rounded_to_an_interval(tmp_path):
    clips = tmp_path / "clips"
    for frames in (46, 50, 60):
        write_video(clips / f"{frames}.mp4", moving_square(frames, 128, 96))
        (clips / f"{frames}.txt").write_text("x")
    plan = plan_dataset(one_video(tmp_path, frame_extraction="full", frame_interval=24))
    assert sorted(item.window.count for item in plan.items) == [25, 49, 49]
