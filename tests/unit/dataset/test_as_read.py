"""Captions are shown as they will be read, and those that no rule foresees stand out."""

from ltx2_train.dataset.as_read import captions_as_read, quoted


def read(*captions):
    found = captions_as_read((f"{number}.mp4", text) for number, text in enumerate(captions, 1))
    assert found is not None
    return found


def test_a_few_captions_are_all_shown():
    assert read("a fox", "a fox", "a red hen").text().splitlines() == [
        "Captions as they are read (3; 2 to 3 words, 2 in the middle):",
        '  1.mp4: "a fox" (2 times)',
        '  3.mp4: "a red hen"',
    ]
    assert captions_as_read([("a.mp4", "")]) is None


def test_the_ends_the_repeated_and_the_odd_are_shown():
    plain = ["a fox runs", "a hen, and it sits", "un caf\u00e9 la nuit", "he says: \u201cstop\u201d", "a fox runs"]
    found = read(*plain, "a wolf<eos>", "12 ???? --", "\u043b\u0438\u0441 \u0438", "fox\u200bes")
    assert found.text().splitlines() == [
        "Captions as they are read (9; 1 to 5 words, 3 in the middle):",
        '  shortest, 9.mp4: "fox\\u200bes"',
        '  longest, 2.mp4: "a hen, and it sits"',
        '  2 times: "a fox runs"',
        '  unlike the others (few letters), 7.mp4: "12 ???? --"',
        '  unlike the others (few others have < >), 6.mp4: "a wolf<eos>"',
        '  unlike the others (few others have Cyrillic letters), 8.mp4: "\u043b\u0438\u0441 \u0438"',
    ]
    told = found.to_json()
    assert told["words"] == {"least": 1, "middle": 3, "most": 5}
    assert told["repeated"] == {"caption": "a fox runs", "times": 2}
    assert [one["medium"] for one in told["unlike_others"]] == ["7.mp4", "6.mp4", "8.mp4"]


def test_captions_of_one_kind_have_none_that_stands_out():
    assert read(*(f"{start} \u72d0\u72f8\u5728\u5954\u8dd1\uff0c\u5f88\u5feb" for start in "abcdef")).odd == []
    assert read("\u72d0\u72f8").words == (2, 2, 2)


def test_a_long_caption_is_shortened_in_its_middle():
    shown = quoted("begin " + "word " * 100 + "end")
    assert (shown[:7], shown[-4:], " ... " in shown) == ('"begin ', 'end"', True)
    assert len(shown) < 180
