"""Captions as the text encoder will read them, in a few lines: a person sees at once what no rule foresees."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from .items import Item

SHOWN_LETTERS = 160  # of a caption
ALL_SHOWN = 4  # different captions, up to which each is shown
ODD_SHOWN = 3
FEW_LETTERS = 0.6  # share of what is no blank; signs and numbers are the rest
COMPARED = 5  # different captions, from which on one may be unlike the others
# what stands in any sentence, and is looked for in none
_USUAL = frozenset(
    ".,;:!?'\"()-\u2019\u2018\u201c\u201d\u2013\u2014\u2026\u00ab\u00bb\u3001\u3002\uff0c\uff1a\uff01\uff1f"
)
# a word, or a sign of a script without blanks
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


@dataclass(frozen=True)
class CaptionsAsRead:
    """All captions of a dataset as they are trained on, each with the name of its medium; at least one."""

    captions: tuple[tuple[str, str], ...]

    @cached_property
    def by_length(self) -> list[tuple[int, int, tuple[str, str]]]:
        """Words and letters of each caption, with it, the shortest first."""
        counted = [(len(_WORD.findall(one[1])), len(one[1]), one) for one in self.captions]
        return sorted(counted, key=lambda one: one[:2])

    @property
    def words(self) -> tuple[int, int, int]:
        """Words of the shortest, of the one in the middle and of the longest."""
        counts = [words for words, *_ in self.by_length]
        return counts[0], counts[(len(counts) - 1) // 2], counts[-1]

    @property
    def shortest(self) -> tuple[str, str]:
        return self.by_length[0][-1]

    @property
    def longest(self) -> tuple[str, str]:
        return self.by_length[-1][-1]

    @cached_property
    def repeated(self) -> tuple[str, int] | None:
        """The caption that most media have, and how many; None where each is another."""
        text, count = Counter(text for _, text in self.captions).most_common(1)[0]
        return (text, count) if count > 1 else None

    @cached_property
    def odd(self) -> list[tuple[str, str, str]]:
        """Name, caption and reason of those that look least like the others, the oddest first."""
        different = list({text: name for name, text in reversed(self.captions)}.items())[::-1]
        if len(different) < COMPARED:
            return []
        had = Counter(sign for text, _ in different for sign in _signs(text))
        seldom = {sign for sign, count in had.items() if count <= max(1, len(different) // 20)}
        found: list[tuple[float, str, str, str]] = []
        for text, name in different:
            share, signs = _share_of_letters(text), [sign for sign in _signs(text) if sign in seldom]
            if share < FEW_LETTERS:
                found.append((2 - share, name, text, "few letters"))
            elif signs:
                told = " ".join(shown_text(sign) for sign in signs[:5])
                found.append((len(signs) / (1 + len(signs)), name, text, f"few others have {told}"))
        found.sort(key=lambda one: -one[0])
        return [one[1:] for one in found[:ODD_SHOWN]]

    def text(self) -> str:
        """Some lines: how many and how long they are, and those at either end."""
        least, middle, most = self.words
        count, media = len(self.captions), len({name for name, _ in self.captions})
        several = f"{count} for {media} media" if count != media else str(count)
        between = f", {middle} in the middle" if count > 2 else ""
        length = f"{least} words" if least == most else f"{least} to {most} words{between}"
        lines = [f"Captions as they are read ({several}; {length}):"]
        different = {text: name for name, text in reversed(self.captions)}
        if len(different) <= ALL_SHOWN:
            times = Counter(text for _, text in self.captions)
            for text in reversed(different):
                again = f" ({times[text]} times)" if times[text] > 1 else ""
                lines.append(f"  {different[text]}: {quoted(text)}{again}")
            return "\n".join(lines)
        first = "  " if least == most else "  shortest, "
        lines.append(f"{first}{self.shortest[0]}: {quoted(self.shortest[1])}")
        if least != most:
            lines.append(f"  longest, {self.longest[0]}: {quoted(self.longest[1])}")
        if self.repeated is not None:
            lines.append(f"  {self.repeated[1]} times: {quoted(self.repeated[0])}")
        lines += [f"  unlike the others ({why}), {name}: {quoted(text)}" for name, text, why in self.odd]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain values, each caption in full."""
        return {
            "count": len(self.captions),
            "words": dict(zip(("least", "middle", "most"), self.words, strict=True)),
            "shortest": _named(*self.shortest),
            "longest": _named(*self.longest),
            "repeated": None if self.repeated is None else {"caption": self.repeated[0], "times": self.repeated[1]},
            "unlike_others": [{**_named(name, text), "why": why} for name, text, why in self.odd],
        }


def captions_of_items(items: Sequence[Item]) -> CaptionsAsRead | None:
    """The captions of the media of `items`, each once; None where there are no items."""
    media = list({item.text_key: item.source for item in items}.values())
    names = Counter(medium.path.name for medium in media)
    return captions_as_read(
        (name if names[name := medium.path.name] == 1 else f"{medium.path.parent.name}/{name}", one.caption)
        for medium in media
        for one in medium.each
    )


def captions_as_read(named: Iterable[tuple[str, str]]) -> CaptionsAsRead | None:
    """Those of `named`, name of the medium and caption, that say something; None where there is none."""
    captions = tuple((name, text) for name, text in named if text)
    return CaptionsAsRead(captions) if captions else None


def quoted(text: str) -> str:
    """`text` in quotes, with what cannot be seen written out, and shortened in its middle where it is long."""
    shown = shown_text(text)
    if len(shown) > SHOWN_LETTERS:
        shown = f"{shown[: SHOWN_LETTERS * 2 // 3]} ... {shown[-SHOWN_LETTERS // 3 :]}"
    return f'"{shown}"'


def shown_text(text: str) -> str:
    """`text` with what cannot be seen written out, as a zero-width blank is."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def _named(name: str, text: str) -> dict[str, str]:
    return {"medium": name, "caption": text}


def _share_of_letters(text: str) -> float:
    times = {one: count for one, count in Counter(text).items() if not one.isspace()}
    letters = sum(count for one, count in times.items() if unicodedata.category(one)[0] in "LM")
    return letters / max(1, sum(times.values()))


def _signs(text: str) -> list[str]:
    """The signs of `text`, each once: letters by what they are of, as all of a script are one; numbers are none."""
    return list(dict.fromkeys(sign for one in dict.fromkeys(text) if (sign := _sign(one))))


def _sign(letter: str) -> str:
    if letter.isspace() or letter.isdigit() or letter in _USUAL:
        return ""
    if not letter.isalpha():
        return "" if unicodedata.category(letter)[0] == "M" else letter
    plain = unicodedata.normalize("NFD", letter)[0]
    script = unicodedata.name(plain, "unknown").split()[0].split("-")[0]
    return letter if script == "LATIN" and not plain.isascii() else f"{script.capitalize()} letters"
