"""Names and help of nodes in the languages of ComfyUI's page: `python tests/locale_pages.py` in the top folder.

`locales/en` has a readable name for each widget. `locales/zh` and `locales/ja` have the nodes, widgets, outputs and
their help, put together from the schemas and from `tests/translations/*.json`: `names` for widgets, sockets and
categories, `texts` for sentences. What a text ends with in parentheses, such as "(pixels; 64 or more;
0 = not set)", is made of the setting's bounds, and translated by the rules below. A text that has no translation stays
in English.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import fake_comfy
import pytest

ROOT = Path(fake_comfy.ROOT)
TRANSLATIONS = ROOT / "tests" / "translations"
LANGUAGES = ("en", "zh", "ja")
NOTES = re.compile(r" \(([^()]*)\)$")
NOTE_RULES = {  # the English form of a note -> its form in each language
    "zh": [
        (r"(\S+) to (\S+)", r"\1 到 \2"),
        (r"(\S+) or more", r"\1 或更大"),
        (r"(\S+) = not set", r"\1 = 未设置"),
        (r"0 = off", "0 = 关闭"),
        (r"steps or share", "步数或比例"),
        (r"pixels", "像素"),
        (r"frames", "帧"),
        (r"latent frames", "潜帧"),
        (r"blocks", "块"),
        (r"tokens", "token"),
        (r"batches", "批次"),
        (r"latents", "潜变量"),
        (r"s", "秒"),
        (r"0 = no limit", "0 = 不限"),
        (r'"" = none', '"" = 无'),
        (r"0 = 1 second", "0 = 1 秒"),
        (r"commas between several", "多个用逗号分隔"),
        (r"of speech (\d+)", r"语音 \1"),
        (r"fps|dB|GB", r"\g<0>"),
    ],
    "ja": [
        (r"(\S+) to (\S+)", r"\1〜\2"),
        (r"(\S+) or more", r"\1以上"),
        (r"(\S+) = not set", r"\1 = 指定なし"),
        (r"0 = off", "0 = オフ"),
        (r"steps or share", "ステップ数または割合"),
        (r"pixels", "ピクセル"),
        (r"frames", "フレーム"),
        (r"latent frames", "潜在フレーム"),
        (r"blocks", "ブロック"),
        (r"tokens", "トークン"),
        (r"batches", "バッチ"),
        (r"latents", "潜在"),
        (r"s", "秒"),
        (r"0 = no limit", "0 = 制限なし"),
        (r'"" = none', '"" = なし'),
        (r"0 = 1 second", "0 = 1秒"),
        (r"commas between several", "複数はカンマ区切り"),
        (r"of speech (\d+)", r"話では\1"),
        (r"fps|dB|GB", r"\g<0>"),
    ],
}
AROUND = {"zh": ("（", "；", "）"), "ja": ("（", "、", "）")}
# numbered twins, such as lora_1 to lora_4, share one translation, where # stands for the number
TWIN = re.compile(r"(?<=_)\d\b")


class Words:
    """The words of a language. `missing` gathers the English of those that it lacks."""

    def __init__(self, language: str) -> None:
        self.language = language
        stored = {"names": {}, "texts": {}}
        if language != "en":
            stored = json.loads((TRANSLATIONS / f"{language}.json").read_text(encoding="utf-8"))
        self.names: dict[str, str] = stored["names"]
        self.texts: dict[str, str] = stored["texts"]
        self.used: set[str] = set()
        self.missing: list[str] = []

    def name(self, name: str) -> str | None:
        """What a widget or a socket is called."""
        if self.language == "en":
            return name.replace("_", " ")
        return self._find(self.names, name)

    def text(self, text: str | None) -> str | None:
        """A sentence; None where it stays in English."""
        if not text or self.language == "en":
            return None
        notes = NOTES.search(text)
        translated = notes and self._notes(notes[1])
        if notes and translated:
            base = self._find(self.texts, text[: notes.start()])
            return None if base is None else base + translated
        return self._find(self.texts, text)

    def _find(self, table: dict[str, str], english: str) -> str | None:
        number = TWIN.search(english)
        key = TWIN.sub("#", english)
        if key not in table:
            self.missing.append(key)
            return None
        self.used.add(key)
        return table[key].replace("#", number[0] if number else "#")

    def _notes(self, notes: str) -> str | None:
        """The notes in parentheses; None where the parentheses belong to the sentence."""
        translated = []
        for note in notes.split("; "):
            for english, other in NOTE_RULES[self.language]:
                match = re.fullmatch(english, note)
                if match:
                    translated.append(match.expand(other))
                    break
            else:
                return None
        before, between, behind = AROUND[self.language]
        return before + between.join(translated) + behind


def _shown_inputs(inputs: list[Any], prefix: str = "", choice: str = "") -> dict[str, tuple[str, str]]:
    """Key in the page of each input -> its name and its help. Those that come with a choice stand below its name, which
    theirs need not say again."""
    shown: dict[str, tuple[str, str]] = {}
    for one in inputs:
        words = (one.id.removeprefix(f"{choice}_"), one.options.get("tooltip", ""))
        assert shown.setdefault(prefix + one.id, words) == words, f"{prefix}{one.id}: the page knows one help of it"
        if one.io_type == "COMFY_DYNAMICCOMBO_V3":
            for option in one.options["options"]:
                for key, below in _shown_inputs(option.inputs, f"{prefix}{one.id}_", option.key).items():
                    assert shown.setdefault(key, below) == below, f"{key}: the page knows one help of it"
    return shown


def _entry(**words: str | None) -> dict[str, str]:
    return {key: word for key, word in words.items() if word is not None}


def node_words(nodes: Any, words: Words) -> dict[str, Any]:
    """`nodeDefs.json`: what the page shows of each node. Key: node id."""
    pages = {}
    for node in nodes:
        schema = node.define_schema()
        inputs = {
            key: _entry(name=words.name(name), tooltip=words.text(text))
            for key, (name, text) in _shown_inputs(schema.inputs).items()
        }
        outputs = {
            str(number): _entry(name=words.name(one.display_name or one.id), tooltip=words.text(one.tooltip))
            for number, one in enumerate(schema.outputs)
        }
        # where the page tells which node is at work, it knows names from here alone
        name = schema.display_name if words.language == "en" else words.text(schema.display_name)
        title = _entry(display_name=name, description=words.text(schema.description))
        pages[schema.node_id] = {**title, "inputs": inputs, "outputs": outputs}
    return pages


def files(nodes: Any) -> dict[str, Any]:
    """The files of `locales`, by their path below it."""
    made: dict[str, Any] = {}
    for language in LANGUAGES:
        words = Words(language)
        made[f"{language}/nodeDefs.json"] = node_words(nodes, words)
        if language != "en":
            categories = {part for node in nodes for part in node.define_schema().category.split("/")}
            made[f"{language}/main.json"] = {
                "nodeCategories": _entry(**{part: words.name(part) for part in sorted(categories)})
            }
        yet = sorted(set(words.missing))
        stale = sorted((words.names.keys() | words.texts.keys()) - words.used)
        made[f"{language}/missing"], made[f"{language}/stale"] = yet, stale
    return made


def text_of(page: Any) -> str:
    return json.dumps(page, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        fake_comfy.install(monkeypatch, Path(folder))
        made = files(fake_comfy.load_pack().nodes.NODES)
    for path, page in made.items():
        if path.endswith(".json"):
            file = ROOT / "locales" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text_of(page), encoding="utf-8")
        elif page:
            print(f"{path}: {len(page)}", *page, sep="\n  ")


if __name__ == "__main__":
    main()
