"""The page speaks the languages that `locales` says it does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import locale_pages
import pytest

LOCALES = locale_pages.ROOT / "locales"


@pytest.fixture
def made(nodes) -> dict[str, object]:
    return locale_pages.files(nodes.NODES)


def test_the_files_follow_from_the_nodes(made) -> None:
    pages = {path: page for path, page in made.items() if path.endswith(".json")}
    assert {str(path.relative_to(LOCALES)) for path in LOCALES.rglob("*.json")} == set(pages)
    for path, page in pages.items():
        stored = (LOCALES / path).read_text(encoding="utf-8")
        assert stored == locale_pages.text_of(page), "run `python tests/locale_pages.py`"


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_a_translation_belongs_to_a_text_of_today(made, language: str) -> None:
    assert made[f"{language}/stale"] == [], f"take these out of tests/translations/{language}.json"


@pytest.mark.parametrize("language", ["zh", "ja"])
def test_nearly_every_text_is_translated(made, language: str) -> None:
    words = json.loads((locale_pages.TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))
    translated = len(words["names"]) + len(words["texts"])
    missing = made[f"{language}/missing"]
    assert len(missing) <= 0.05 * translated, missing


def test_no_text_holds_a_sign_that_the_page_gives_a_meaning() -> None:
    """The page takes | for a plural, @ for a link and braces for a name to fill in."""
    for path in Path(LOCALES).rglob("*.json"):
        texts = re.findall(r'": "((?:[^"\\]|\\.)*)"', path.read_text(encoding="utf-8"))
        assert texts
        assert not [text for text in texts if set(text) & set("|@{}")]


def test_bounds_and_units_are_translated_by_rule() -> None:
    words = locale_pages.Words("zh")
    words.texts = {"Width (of a tile).": "宽（块）。", "Width.": "宽。"}
    assert words.text("Width. (pixels; 64 or more; 0 = not set)") == "宽。（像素；64 或更大；0 = 未设置）"
    assert words.text("Width (of a tile).") == "宽（块）。"
    assert words.text("Width. (furlongs; 1 to 2)") is None  # a unit without a rule is not half translated
    assert words.missing == ["Width. (furlongs; 1 to 2)"]


def test_numbered_twins_share_a_translation() -> None:
    words = locale_pages.Words("ja")
    words.names = {"lora_#": "LoRA #"}
    assert [words.name("lora_1"), words.name("lora_4")] == ["LoRA 1", "LoRA 4"]
