"""Lists as people write them: what is given in them is used, or named by its line; the other rows train."""

from __future__ import annotations

import json

import pytest
from media import write_image

from ltx2_train.dataset.dataset_file import DatasetConfig
from ltx2_train.dataset.plan import plan_dataset
from ltx2_train.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        write_image(tmp_path / "m" / f"{name}.png", 64, 64, caption=None)
    return tmp_path


def planned(folder, text, name="list.jsonl", **entry):
    (folder / name).write_text(text if isinstance(text, str) else "\n".join(json.dumps(row) for row in text))
    key = {"dataset_file": name} if name.startswith("d.") else {"image_jsonl_file": name}
    table = {"general": {"resolution": 64}, "datasets": [{"cache_directory": "cache", **key, **entry}]}
    return plan_dataset(DatasetConfig.from_table(table, folder))


def told(plan):
    return [(item.source.path.name, item.caption) for item in plan.items]


def reasons(plan):
    return [f"{skip.path.name}: {skip.reason}" for skip in plan.skipped]


GOOD = {"image_path": "m/a.png", "caption": "a fox"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image_path": 5, "caption": "x"}, "line 2: expected a path as image_path, got 5"),
        ({"image_path": ["m/b.png"], "caption": "x"}, "line 2: expected a path as image_path"),
        ({"image_path": "m/b.png", "caption": 7}, "line 2: the caption is not text but 7"),
        ({"image_path": "m/b.png", "caption": {"text": "x"}}, "line 2: the caption is not text"),
        (
            {"image_path": "m/b.png", "caption": "x", "mask_path": True},
            "line 2: expected a path as mask_path, got True",
        ),
        (
            {"image_path": "m/b.png", "caption": "x", "control_path": ["r.png"]},
            "line 2: expected a path as control_path",
        ),
        ({"caption": "x"}, 'line 2: expected {"image_path": ..., "caption": ...}'),
        ("x", "line 2: expected an object, got x"),
    ],
)
def test_a_wrong_row_costs_itself_alone(folder, row, words):
    plan = planned(folder, [GOOD, row, {"image_path": "m/c.png", "caption": "a bear"}])
    assert told(plan) == [("a.png", "a fox"), ("c.png", "a bear")]
    assert any(words in reason for reason in reasons(plan))


def test_a_line_that_is_no_json_costs_itself_alone(folder):
    plan = planned(folder, json.dumps(GOOD) + '\n{"image_path": "m/b.png"\n')
    assert told(plan) == [("a.png", "a fox")]
    assert "list.jsonl: line 2: not JSON" in reasons(plan)[0]


def test_columns_that_nobody_reads_are_named(folder):
    rows = [GOOD, {"image_path": "m/b.png", "caption": "a bear", "captions": "x", "weight": 2, "mask_pth": "k.png"}]
    warnings = planned(folder, rows).warnings
    assert (
        "datasets[0]: list.jsonl: the column 'captions' (first in line 2) is not used. Did you mean caption?"
        in warnings
    )
    assert any("'weight' (first in line 2) is not used" in text for text in warnings)
    assert any("Did you mean mask_path?" in text for text in warnings)


def test_a_column_is_named_where_another_is_used_in_its_place(folder):
    rows = [{"video": "m/a.png", "image": "m/b.png", "caption": "x"}]
    plan = planned(folder, json.dumps(rows), "d.json")
    assert told(plan) == [("a.png", "x")]
    assert any("'image' (first in entry 1) is not used" in text for text in plan.warnings)


def test_cells_of_a_column_without_a_name_are_told(folder):
    plan = planned(folder, "video,caption,\nm/a.png,a fox,mine\n", "d.csv")
    assert told(plan) == [("a.png", "a fox")]
    assert any(
        "the column '(number 3, without a name)' (first in line 2) is not used." in text for text in plan.warnings
    )
    quiet = planned(folder, "video,caption,\nm/a.png,a fox,\n", "d.csv").warnings
    assert not any("is not used" in text for text in quiet)


def test_of_several_captions_each_is_one_of_the_medium(folder):
    rows = [GOOD, {"image_path": "m/b.png", "caption": ["", "a bear", "a brown bear"]}]
    plan = planned(folder, rows)
    assert told(plan) == [("a.png", "a fox"), ("b.png", "a bear")]
    assert [item.source.others for item in plan.items] == [(), ("a brown bear",)]
    assert "datasets[0]: b.png: an empty one in its list of captions is left out." in plan.warnings


# --- CSV -------------------------------------------------------------------------------------------------------------


def test_a_caption_with_commas_needs_quotes(folder):
    text = "video,caption\nm/a.png,a fox, in the snow\nm/b.png,a bear\n"
    plan = planned(folder, text, "d.csv")
    assert told(plan) == [("b.png", "a bear")]
    assert "d.csv: line 2: it has 3 cells and the header 2; put a text with commas in quotes" in reasons(plan)[0]
    assert told(planned(folder, 'video,caption\nm/a.png,"a fox, in the snow"\n', "d.csv")) == [
        ("a.png", "a fox, in the snow")
    ]


def test_a_row_with_too_few_cells_is_named(folder):
    plan = planned(folder, "video,caption\nm/a.png\nm/b.png,a bear\n", "d.csv")
    assert told(plan) == [("b.png", "a bear")]
    assert "line 2: it has 1 cells and the header 2" in reasons(plan)[0]


@pytest.mark.parametrize(
    "text",
    [
        'video,caption\nm/a.png,"a fox\nm/b.png,a bear\n',
        'video,caption\nm/a.png,"a fox\nm/b.png,a bear"\nm/c.png,a cat\n',
        'caption,video\n"a fox,m/a.png\n"a bear",m/b.png\n',
        'video,caption\nm/a.png,"a "red" fox"\nm/b.png,a bear\n',
    ],
)
def test_a_quote_that_is_never_closed_is_an_error(folder, text):
    with pytest.raises(DataError, match=r"d\.csv, line 2: (not CSV: .* A quote may be open|a quote is opened)"):
        planned(folder, text, "d.csv")


def test_a_caption_of_several_lines_is_one(folder):
    text = 'video,caption\r\nm/a.png,"a fox\r\nin the snow"\r\nm/b.png,a ""bear"\r\nm/c.png\r\n'
    plan = planned(folder, text, "d.csv")
    assert told(plan) == [("a.png", "a fox in the snow"), ("b.png", 'a ""bear"')]
    assert "line 5: it has 1 cells" in reasons(plan)[0]  # lines of the file are counted, not rows


def test_blanks_around_the_names_of_columns_do_not_count(folder):
    assert told(planned(folder, "video , caption\nm/a.png, a fox\n", "d.csv")) == [("a.png", "a fox")]
    assert told(planned(folder, json.dumps([{" video": "m/a.png", "caption ": "x"}]), "d.json")) == [("a.png", "x")]


def test_capitals_in_the_names_of_columns_do_not_count(folder):
    assert told(planned(folder, "VIDEO, Caption\nm/a.png,a fox\n", "d.csv")) == [("a.png", "a fox")]
    text = "File_Name,Text,Weight\nm/a.png,a fox,1\n"
    plan = planned(folder, text, "d.csv", video_column="file_name", caption_column="TEXT")
    assert told(plan) == [("a.png", "a fox")]
    assert any("the column 'Weight' (first in line 2) is not used." in text for text in plan.warnings)
    rows = [{"Image_Path": "m/a.png", "CAPTION": "a fox", "Control_Path_0": "m/b.png", "Reference_Path_2": "m/c.png"}]
    rows += [{**GOOD, "Caption": "a bear"}, {**GOOD, "Caption": ""}]
    plan = planned(folder, [*rows, {"image_path": "m/c.png", "caption": "a cat", "Reference_path": "m/b.png"}])
    assert [[one.path.name for one in item.references] for item in plan.items] == [["b.png", "c.png"]]
    assert "line 2: 'caption' and 'Caption' are one column, as capitals do not count; keep one" in reasons(plan)[0]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_a_list_with_a_byte_order_mark_is_read_by_it(folder, encoding):
    def write(name, text):
        mark = "\ufeff" if encoding.endswith("be") else ""
        (folder / name).write_bytes((mark + text).encode(encoding))

    write("d.csv", "video,caption\r\nm/a.png,un caf\u00e9\r\nm/b.png,\u72d0\r\n")
    write("l.jsonl", '{"image_path": "m/a.png", "caption": "un caf\u00e9"}\r\n')
    write("videos.txt", "m/a.png\r\n")
    write("prompts.txt", "un caf\u00e9\r\n")
    for entry, count in (({"dataset_file": "d.csv"}, 2), ({"image_jsonl_file": "l.jsonl"}, 1), ({"data_root": "."}, 1)):
        table = {"general": {"resolution": 64}, "datasets": [{"cache_directory": "cache", **entry}]}
        plan = plan_dataset(DatasetConfig.from_table(table, folder))
        assert told(plan) == [("a.png", "un caf\u00e9"), ("b.png", "\u72d0")][:count]


def test_a_list_whose_encoding_is_not_certain_is_refused(folder):
    for data, words in (
        ("video,caption\nm/a.png,a fox\n".encode("utf-16-le"), "begins as UTF-16 without a byte order mark does"),
        ("video,caption\nm/a.png,un caf\u00e9\n".encode("cp1252"), "is not UTF-8: "),
    ):
        (folder / "d.csv").write_bytes(data)
        table = {"general": {"resolution": 64}, "datasets": [{"cache_directory": "cache", "dataset_file": "d.csv"}]}
        with pytest.raises(DataError, match=rf"datasets\[0\]\.dataset_file: .*d\.csv {words}.*Save it as UTF-8\."):
            plan_dataset(DatasetConfig.from_table(table, folder))


def test_an_empty_caption_names_its_column(folder):
    with pytest.raises(DataError, match='into the column "caption" of the list'):
        planned(folder, "video,text\nm/a.png,a fox\n", "d.csv")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,caption\nm/a.png,a fox\n", "line 2: expected .* set video_column"),
        ("video;caption\nm/a.png;a fox\n", "parted by semicolons"),
        ("video,caption,caption\nm/a.png,a,b\n", "two columns are called caption"),
        ("video,Caption, caption \nm/a.png,a,b\n", "two columns are one, as capitals do not count: Caption, caption."),
    ],
)
def test_a_header_that_cannot_be_is_named(folder, text, words):
    with pytest.raises(DataError, match=words):
        planned(folder, text, "d.csv")


# --- paths and stems -------------------------------------------------------------------------------------------------


def test_media_of_one_name_in_different_folders_all_train(folder):
    for number in ("001", "002", "003"):
        write_image(folder / number / "video.png", 64, 64, caption=None)
    rows = [{"image_path": f"{number}/video.png", "caption": number} for number in ("001", "002", "003", "002")]
    plan = planned(folder, rows)
    assert [(item.source.stem, item.caption) for item in plan.items] == [
        ("video", "001"),  # as it always was
        ("002__video", "002"),
        ("003__video", "003"),
    ]
    assert reasons(plan) == ["video.png: is listed twice, and the first row counts; num_repeats repeats a dataset"]
    assert len({item.latent_path for item in plan.items}) == 3


def test_a_longer_name_is_never_that_of_another_medium(folder):
    for path in ("x/001/video.png", "y/001/video.png", "001/video.png", "001__video.png", "001/video.jpg"):
        write_image(folder / path, 64, 64, caption=None)
    names = ["001__video.png", "x/001/video.png", "y/001/video.png", "001/video.png", "001/video.jpg"]
    plan = planned(folder, [{"image_path": name, "caption": name} for name in names])
    assert [item.caption for item in plan.items] == names
    assert len({item.source.stem for item in plan.items}) == len(names)


@pytest.mark.parametrize(
    ("name", "said"), [("~a.png", "~a.png"), ("sub/d.png", ".\\sub\\d.png"), ("~/e.png", "~/e.png")]
)
def test_odd_names_are_found(folder, name, said):
    write_image(folder / name, 64, 64, caption=None)
    (item,) = planned(folder, [{"image_path": said, "caption": "x"}]).items
    assert item.source.path.resolve() == (folder / name).resolve()


def test_a_name_that_is_no_home_is_named(folder):
    plan = planned(folder, [GOOD, {"image_path": "~nobody.here.png", "caption": "x"}])
    assert "~nobody.here.png does not exist" in reasons(plan)[0]


def test_a_caption_without_a_path_is_named(folder):
    (folder / "videos.txt").write_text("m/a.png\n\nm/b.png\n")
    (folder / "prompts.txt").write_text("a fox\na lost bear\na cat\n")
    table = {"general": {"resolution": 64}, "datasets": [{"data_root": ".", "cache_directory": "cache"}]}
    plan = plan_dataset(DatasetConfig.from_table(table, folder))
    assert told(plan) == [("a.png", "a fox"), ("b.png", "a cat")]
    assert reasons(plan) == ["videos.txt: line 2: it is empty, and prompts.txt has a caption for it"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("list.jsonl", "Write one JSON object a line"),
        ("d.csv", "Write the names of its columns, and one medium a line"),
        ("d.json", "Write a list of JSON objects"),
    ],
)
def test_an_empty_list_says_what_its_kind_should_hold(folder, name, words):
    with pytest.raises(DataError, match=f"is empty. {words}"):
        planned(folder, "", name)


def test_a_column_of_another_kind_of_list_or_a_setting_gets_no_wrong_hint(folder):
    row = {**GOOD, "num_repeats": 3, "video_path": "m/b.png", "captoin": "x"}
    hints = [warning.partition("is not used.")[2].strip() for warning in planned(folder, [row]).warnings]
    assert hints == ["It is a setting of the dataset.", "", "Did you mean caption?"]
    rows = json.dumps([{"video": "m/a.png", "text": "x", "caption": "y"}])
    hints = [
        one.partition("is not used.")[2].strip()
        for one in planned(folder, rows, "d.json", caption_column="text").warnings
    ]
    assert hints[-1] == "caption_column names 'text'."


def test_columns_that_mean_the_same_and_those_of_each_kind_of_list_are_told_by_their_names(folder):
    text = "video,media_path,caption,mask\nm/a.png,m/b.png,a fox,x\n,m/c.png,a bear,x\n"
    plan = planned(folder, text, "d.csv")
    assert [item.source.path.name for item in plan.items] == ["a.png", "c.png"]
    said = [warning.partition(" column ")[2] for warning in plan.warnings]
    assert "'mask' (first in line 2) is not used. Did you mean video_mask?" in said
    assert "'media_path' is not used where another of its meaning is filled in as well (first in line 2)." in said
