from __future__ import annotations

import codecs

import media
import pytest

from ltx2_train.dataset.captions import in_other_letters, read_caption, read_captions, rewrite, with_trigger
from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import ConfigError, DataError

TEXT = "a caf\u00e9 at night"


@pytest.mark.parametrize(
    "data",
    [
        TEXT.encode("utf-8"),
        codecs.BOM_UTF8 + TEXT.encode("utf-8"),
        codecs.BOM_UTF16_LE + TEXT.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"),
    ],
)
def test_unicode_is_read_without_a_warning(tmp_path, data):
    path = tmp_path / "a.txt"
    path.write_bytes(b"" + data)
    assert read_caption(path) == (TEXT, None)


def test_latin_1_is_read_with_a_warning(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT.encode("latin-1"))
    text, warning = read_caption(path)
    assert text == TEXT
    assert "a.txt" in warning
    assert "UTF-8" in warning


def test_white_space_and_line_breaks_become_single_spaces(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("  one\r\n two \n")
    assert read_caption(path)[0] == "one two"


def test_missing_caption(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt"):
        read_caption(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog runs", "sks, a dog runs"),
        ("a SKS, dog runs", "a SKS, dog runs"),
        ("a sksy dog", "sks, a sksy dog"),
    ],
)
def test_trigger_word_is_added_once(caption, expected):
    assert with_trigger(caption, "sks") == expected
    assert with_trigger(expected, "sks") == expected


def test_no_trigger_leaves_the_caption():
    assert with_trigger("a dog", "") == "a dog"


def test_a_comma_behind_the_trigger_is_one():
    assert with_trigger("a dog", "sks man, ") == "sks man, a dog"
    assert with_trigger("", "sks, ") == "sks"


@pytest.mark.parametrize(
    ("caption", "replace", "prefix", "trigger", "wanted"),
    [
        ("an automobile by a carpet", ["automobile => car"], "", "", "an car by a carpet"),
        ("a car on a carpet, car", ["car => auto"], "", "", "a auto on a carpet, auto"),
        ("very very red", ["very =>"], "", "", "red"),
        ("costs 5$ (about)", ["$ => \\1", "(about) => x"], "", "", "costs 5\\1 x"),
        ("a man", ["a man => ohwx"], "anime style.", "ohwx", "anime style. ohwx"),
        ("anime style. a man", [], "anime style.", "ohwx", "ohwx, anime style. a man"),
        ("", [], "only a prefix", "", "only a prefix"),
    ],
)
def test_captions_are_changed_without_their_files(caption, replace, prefix, trigger, wanted):
    assert rewrite(caption, replace, prefix, trigger) == wanted


def test_the_dataset_file_changes_captions(tmp_path):
    media.write_image(tmp_path / "a.png", caption="an automobile")
    table = {"image_directory": ".", "caption_prefix": "anime style.", "trigger_word": "ohwx"}
    for replace in ({"automobile": "car"}, ["automobile => car"], "automobile=>car"):
        given = {"general": {"caption_replace": replace}, "datasets": [table]}
        config = DatasetConfig.from_table(given, tmp_path)
        assert config.datasets[0].caption_replace == ("automobile => car",)
        assert plan_dataset(config).items[0].caption == "ohwx, anime style. an car"
    assert (tmp_path / "a.txt").read_text() == "an automobile"
    for wrong in ("automobile", "automobile => car => truck"):
        with pytest.raises(ConfigError, match="find => replace"):
            DatasetConfig.from_table({"datasets": [{**table, "caption_replace": [wrong]}]}, tmp_path)


@pytest.mark.parametrize(
    ("text", "caption"),
    [
        ('{"caption": "a fox"}', "a fox"),
        ('{"id": 5, "text": "a fox\\nin the snow", "tags": ["x"]}', "a fox in the snow"),
        ('{"caption": "", "prompt": "a fox"}', "a fox"),
        ('"a fox"', "a fox"),
        ('["a fox"]', "a fox"),
    ],
)
def test_a_caption_in_json(tmp_path, text, caption):
    (tmp_path / "a.json").write_text(text)
    assert read_caption(tmp_path / "a.json") == (caption, None)


def test_several_captions_in_json_and_by_line(tmp_path):
    (tmp_path / "a.json").write_text('{"caption": ["", "a fox", "a red fox", "a  fox"]}')
    assert read_captions(tmp_path / "a.json") == (["a fox", "a red fox"], None)
    assert read_caption(tmp_path / "a.json") == ("a fox", None)
    (tmp_path / "b.json").write_text('{"TEXT": "x", " Caption": "", "Prompt": "a fox", "prompt": "a hen"}')
    unused = set()
    assert read_captions(tmp_path / "b.json", unused=unused) == (["x"], None), "as with small letters"
    assert unused == {"not read of it: Prompt", "not read of it: prompt"}
    (tmp_path / "b.json").write_text('{"Prompt": "a fox", "prompt": "a hen"}')
    assert read_captions(tmp_path / "b.json") == (["a hen"], None)
    (tmp_path / "b.json").write_text('{"caption": ["a fox\\na dog", "a cat"]}')
    assert read_captions(tmp_path / "b.json") == (["a fox a dog", "a cat"], None)
    assert read_captions(tmp_path / "b.json", by_line=True) == (["a fox", "a dog", "a cat"], None)
    (tmp_path / "a.txt").write_text("a fox\r\n\n  a red fox \n")
    assert read_captions(tmp_path / "a.txt", by_line=True) == (["a fox", "a red fox"], None)
    assert read_captions(tmp_path / "a.txt") == (["a fox a red fox"], None)
    (tmp_path / "a.txt").write_bytes("a fox,\u2028red\x0b, \x85old\x0c\ra wolf\rtwo".encode())
    assert read_captions(tmp_path / "a.txt", by_line=True)[0] == ["a fox, red , old", "a wolf", "two"]


def test_each_caption_of_a_medium_is_changed_and_has_a_cache_of_its_own(tmp_path):
    media.write_image(tmp_path / "a.png", caption="a fox\na red ohwx")
    given = {"datasets": [{"image_directory": ".", "caption_lines": True, "trigger_word": "ohwx"}]}
    (item,) = plan_dataset(DatasetConfig.from_table(given, tmp_path)).items
    assert [one.caption for one in item.by_caption] == ["ohwx, a fox", "a red ohwx"]
    names = [one.source.text_path("compact").name for one in item.by_caption]
    assert names == ["a_ltx2_te_compact.safetensors", "a~caption2_ltx2_te_compact.safetensors"]
    assert len({one.latent_path for one in item.by_caption}) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"fps": 25, "size": 5}', "none of the keys caption, text, prompt, description, but fps, size"),
        ("a fox", "is not JSON"),
        ('{"caption": {"en": "a fox"}}', "where the caption should be"),
        ('{"caption": "half \\ud83d"}', "is not text"),
    ],
)
def test_json_without_a_caption_is_named(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=words):
        read_caption(tmp_path / "a.json")


def test_a_caption_that_is_a_pointer_of_git_leaves_its_medium_out(tmp_path):
    media.write_image(tmp_path / "a.png", 64, 64, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")
    media.write_image(tmp_path / "b.png", 64, 64, "a wolf")
    config = DatasetConfig.from_table({"datasets": [{"image_directory": ".", "max_left_out": 1}]}, tmp_path)
    (skip,) = plan_dataset(config).skipped
    assert "The caption a.txt is a Git LFS pointer, not the text" in skip.reason


def test_the_lines_of_a_talk_with_a_captioner_are_told(tmp_path):
    unused = set()
    (tmp_path / "a.txt").write_text("system\nYou are helpful.\nuser\nDescribe.\nassistant\nA wolf howls.")
    read_captions(tmp_path / "a.txt", unused=unused)
    assert any("talk with a captioner" in text for text in unused)
    (tmp_path / "a.txt").write_text("a.png\tA wolf")
    read_captions(tmp_path / "a.txt", unused=unused)
    assert any("a list of files" in text for text in unused)
    (tmp_path / "a.txt").write_text("A model\nand a user of the system\nmeet.")
    unused.clear()
    read_captions(tmp_path / "a.txt", unused=unused)
    assert not unused


def test_what_a_rule_leaves_for_its_capitals_is_told_and_a_prefix_is_found_whatever_they_are(tmp_path):
    for name, text in (("a", "A man walks."), ("b", "There is a man.")):
        media.write_image(tmp_path / f"{name}.png", 64, 64)
        (tmp_path / f"{name}.txt").write_text(text)
    entry = {"image_directory": ".", "caption_replace": ["a man => ohwx"]}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path))
    assert any("'a man => ohwx' leaves 'A man' in 1 captions" in text and "a.png" in text for text in plan.warnings)
    assert in_other_letters("Anna Smith walks", "anna => Anna Smith") == ""
    assert rewrite("A video of a fox", prefix="a video of") == "A video of a fox"


def test_what_is_not_used_of_captions_is_told(tmp_path):
    for name in "ab":
        media.write_image(tmp_path / f"{name}.png", 64, 64)
        (tmp_path / f"{name}.json").write_text(
            '{"caption": ["a fox", "a fox", ""], "text": "a wolf", "tags": ["red"], "prompt": ""}'
        )
    entry = {"image_directory": ".", "caption_extension": ".json"}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path))
    assert [warning for warning in plan.warnings if "a.json" in warning] == [
        "datasets[0]: a.json, b.json: beside the caption these are not read: 'text', 'tags'.",
        "datasets[0]: a.json, b.json: a caption that stands in it more than once counts once.",
        "datasets[0]: a.json, b.json: an empty one in its list of captions is left out.",
    ]


def test_rules_that_change_what_an_earlier_one_put_in_are_told(tmp_path):
    media.write_image(tmp_path / "a.png", 64, 64, "a fox and a cat, automobile")
    entry = {"image_directory": ".", "caption_replace": ["fox => cat", "cat => dog", "automobile => car"]}
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [entry]}, tmp_path))
    (told,) = [warning for warning in plan.warnings if "caption_replace" in warning]
    assert told.startswith("datasets[0]: caption_replace: 'cat => dog' changes what 'fox => cat' has put in")


def test_captions_that_are_emptied_or_invisible_are_left_out_and_idle_replacements_told(tmp_path):
    for name, caption in (("plain", "a red fox"), ("emptied", "red"), ("invisible", "\u200b\ufeff \u2060")):
        media.write_image(tmp_path / "a" / f"{name}.png", 64, 64, caption)
    entry = {"image_directory": "a", "cache_directory": "c", "resolution": 64, "max_left_out": 1}
    replace = ["red =>", "Fox => cat", "fox => wolf"]
    plan = plan_dataset(DatasetConfig.from_table({"datasets": [{**entry, "caption_replace": replace}]}, tmp_path))
    assert [item.caption for item in plan.items] == ["a wolf"]
    assert {skip.path.name: skip.reason.split(";")[0] for skip in plan.skipped} == {
        "emptied.png": "empty caption: caption_replace takes all of it away",
        "invisible.png": "empty caption: write what is to be seen or heard into invisible.txt",
    }
    idle = [warning for warning in plan.warnings if "caption_replace" in warning]
    assert idle == [
        "datasets[0]: caption_replace: 'Fox => cat' finds nothing in any caption; case counts, and words are found "
        "whole."
    ]


@pytest.mark.parametrize("text", ['{"caption": ""}', '{"caption": null}', '{"text": [], "other": 1}'])
def test_a_json_caption_that_stands_there_empty_is_an_empty_caption(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert read_captions(tmp_path / "a.json") == ([""], None)


def test_a_second_mark_of_an_encoding_is_no_part_of_a_caption(tmp_path):
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 * 2 + b"a fox")
    assert read_caption(tmp_path / "a.txt") == ("a fox", None)


def test_what_keeps_a_caption_from_being_text_is_told(tmp_path):
    path = tmp_path / "a.txt"
    for text, words in (
        ("he says â€œrunsâ€\x9d", r"UTF-8 that was taken for another encoding and saved \(U\+009D"),
        ("a fox\x1a", r"holds a control character \(U\+001A\)"),
        ("a\0f\0", "is not text. Write it anew"),
    ):
        path.write_bytes(text.encode())
        with pytest.raises(DataError, match=words):
            read_caption(path)
