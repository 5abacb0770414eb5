"""What a check says about a dataset as a whole. Rules of thumb are advice, with the numbers that people report."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..dataset.dataset_file import DatasetSettings
from ..dataset.plan import seen_in_training
from ..dataset.sources import copies
from ..events import Events
from .check_files import FileFacts, lost_frame
from .check_report import Finding

# files at least, and what is told: experience with LoRAs of this family
ENOUGH: dict[str, tuple[int, str]] = {
    "style": (5, "a style needs 5 to 10 images or clips, 20 to 50 are better"),
    "character": (15, "a character needs 15 to 30 clips in different poses, 50 to 100 are better"),
    "motion": (20, "a motion needs 20 to 50 clips of different timing, 100 and more are better"),
    "voice": (20, "a voice needs 20 to 30 clips or recordings of about 5 s; 10 were too few"),
    "edit": (100, "pairs need 100 and more, 500 are better"),
}
SHORT_SECONDS, LONG_SECONDS = 2.0, 8.0
ALIKE_SHARE = 0.5
ALIKE_WORDS = 0.9  # of the words of two captions in common
PLAIN = 3.0  # levels of 255
SAME_LEVEL, SAME_AT_MOST = 1.5, 12.0
FEW = 4  # below this, nothing is said about variety
COMPARED = 200
COMPARED_AT_ONCE = 512  # pictures, each with all the others of its brightness
SPEECH_VERBS = "says|said|saying|speaks|asks|asked|answers|replies|shouts|whispers|tells|exclaims|sings|narrates"
QUOTE = re.compile(r'"[^"]{2,}"|\u201c[^\u201d]{2,}\u201d|\u00ab[^\u00bb]{2,}\u00bb')
SPOKEN = re.compile(rf"\b(?:{SPEECH_VERBS})\b", re.IGNORECASE)
LABEL = re.compile(r"\b[\w-]{2,}\s*:\s*$")
NAMELESS = frozenset(
    "a an the he she it they someone somebody who man woman person people boy girl child voice speaker narrator and "
    "then while as also".split()
)


def dataset_findings(
    dataset: str, entry: DatasetSettings, facts: Sequence[FileFacts], goal: str | None
) -> list[Finding]:
    """Findings that need all files of one dataset."""
    findings: list[Finding] = []

    def say(rule: str, reason: str, remedy: str, path: Path | None = None) -> None:
        findings.append(Finding("amber", rule, dataset, reason, remedy, path))

    _alike(facts, entry, say)
    _rates(facts, say)
    _lengths(facts, say)
    _sides(facts, say)
    _sound(facts, entry, say)
    _speakers(facts, entry, say)
    return findings


def size_finding(dataset: str, count: int, goal: str | None, voices_only: bool) -> list[Finding]:
    """Advice where there are fewer files than the goal needs."""
    least, told = ENOUGH[goal or ("voice" if voices_only else "style")]
    if not 0 < count < least:
        return []
    return [Finding("amber", "too-few", dataset, f"{count} files: {told}", "Add more, as different as they can be.")]


def duplicate_findings(facts: Sequence[tuple[str, FileFacts]], events: Events) -> list[Finding]:
    """Files that are copies of others, or begin with the same picture."""
    findings: list[Finding] = []
    of = copies(fact.path for _, fact in facts if not fact.path.is_dir())  # a folder of frames is no file
    first: dict[Path, str] = {}
    again: set[int] = set()  # files that another dataset has as well
    for number, (dataset, fact) in enumerate(facts):
        if (other := first.setdefault(fact.path, dataset)) != dataset:
            again.add(number)
            reason = f"is in {other}, too, and counts in both"
            remedy = "Leave it where it is meant to be seen at several sizes or lengths."
            findings.append(Finding("amber", "duplicate", dataset, reason, remedy, fact.path))
        elif (original := of.get(fact.path)) is not None:
            remedy = "Remove one; num_repeats repeats a dataset."
            findings.append(Finding("amber", "duplicate", dataset, f"is a copy of {original.name}", remedy, fact.path))
    rest = [pair for number, pair in enumerate(facts) if number not in again and pair[1].path not in of]
    for dataset, fact, other in _look_alikes(rest, events):
        reason = f"begins with the same picture as {other.name}"
        findings.append(Finding("amber", "duplicate", dataset, reason, "Keep the better one.", fact.path))
    return findings


def validation_findings(validation: Sequence[tuple[str, FileFacts]], trained: Collection[Path]) -> Iterator[Finding]:
    """Files of datasets for validation that are trained on as well, or copies of such."""
    seen = seen_in_training({fact.path for _, fact in validation}, trained)
    for dataset, fact in validation:
        if (other := seen.get(fact.path)) is not None:
            what = "is" if other == fact.path else f"is a copy of {other.parent.name}/{other.name}, which is"
            reason = f"{what} trained on as well, so a run that validates refuses it"
            yield Finding("amber", "duplicate", dataset, reason, "Take it out of one of the two.", fact.path)


def _look_alikes(facts: Sequence[tuple[str, FileFacts]], events: Events) -> list[tuple[str, FileFacts, Path]]:
    """Dataset, file and the earlier file whose first frame it has, however encoded; plain colours say nothing."""
    pictures = [(place, fact.first_frame) for place, (_, fact) in enumerate(facts) if fact.first_frame is not None]
    pictures = [(place, frame) for place, frame in pictures if frame.std(axis=(0, 1)).max() > PLAIN]
    pictures.sort(key=lambda picture: float(picture[1].mean()))
    if len(pictures) < 2:
        return []
    table = np.stack([frame.ravel() for _, frame in pictures]).astype(np.float32)
    means = table.mean(axis=1)
    table -= table.mean(axis=0)  # so that sums of squares keep their last digits
    squares = np.square(table).sum(axis=1)
    # Frames that differ by d at most, and by a on average, have a sum of squared differences below d * a * count.
    limit = 1.01 * SAME_AT_MOST * SAME_LEVEL * table.shape[1]
    same: dict[int, int] = {}
    events.stage("compare first frames", len(pictures))
    for first in range(0, len(pictures), COMPARED_AT_ONCE):
        events.check_stop()
        last = min(first + COMPARED_AT_ONCE, len(pictures))
        # pictures of another brightness are not compared
        begin = int(np.searchsorted(means, means[first] - SAME_LEVEL))
        apart = squares[first:last, None] + squares[begin:last] - 2 * table[first:last] @ table[begin:last].T
        for row, near in enumerate(apart <= limit, first):
            for other in np.flatnonzero(near[: row - begin]) + begin:
                difference = np.abs(table[row] - table[other])
                if difference.mean() < SAME_LEVEL and difference.max() < SAME_AT_MOST:
                    earlier, later = sorted((pictures[row][0], pictures[other][0]))
                    same[later] = min(earlier, same.get(later, earlier))
                    break
        events.progress(last, len(pictures))
    return [(*facts[later], facts[earlier][1].path) for later, earlier in sorted(same.items())]


Say = Callable[..., None]


def _alike(facts: Sequence[FileFacts], entry: DatasetSettings, say: Say) -> None:
    if len(facts) < FEW:
        return
    trigger = set(_words(entry.trigger_word))
    bags = [frozenset(_words(fact.items[0].caption)) - trigger for fact in facts]
    common, count = Counter(bags).most_common(1)[0]
    if count >= max(FEW, ALIKE_SHARE * len(bags)):
        say("captions-alike", f"{count} of {len(bags)} captions say the same", "Say in each what is different in it.")
        return
    some = bags[:: max(1, len(bags) // COMPARED)]
    near = [len(common & bag) / max(1, len(common | bag)) for bag in some]
    if sum(near) / len(near) >= ALIKE_WORDS:
        say("captions-alike", "all captions use nearly the same words", "Say in each what is different in it.")


def _rates(facts: Sequence[FileFacts], say: Say) -> None:
    videos = [fact for fact in facts if fact.items[0].kind == "video"]
    rates = Counter(math.ceil(round(fact.media.fps or 0, 3)) for fact in videos)
    changed = sum(fact.items[0].source.timeline.resampled for fact in videos)
    if len(rates) > 1:
        told = ", ".join(f"{count} at {rate}" for rate, count in rates.most_common())
        say(
            "fps-mix",
            f"frame rates differ ({told} fps); {changed} of {len(videos)} clips are resampled to "
            f"{videos[0].items[0].fps:g}",
            "Choose target_fps as most clips have it, or export them at one rate.",
        )


def _lengths(facts: Sequence[FileFacts], say: Say) -> None:
    items = [item for fact in facts for item in fact.items if item.kind == "video"]
    if not items:
        return
    lengths = {item.window.count for item in items}
    if len(lengths) == 1 and len(items) >= FEW and lengths != {1}:
        say(
            "one-length",
            f"every sample has {lengths.copy().pop()} frames; what is drawn longer tends to slow motion",
            "Add lengths to target_frames, for example the half and the double.",
        )
    seconds = [round(item.window.count / item.fps, 1) for item in items]  # 49 frames at 25 a second are two
    short = sum(second < SHORT_SECONDS for second in seconds)
    long = sum(second > LONG_SECONDS for second in seconds)
    if short or long:
        parts = [f"{short} shorter than {SHORT_SECONDS:g} s"] if short else []
        parts += [f"{long} longer than {LONG_SECONDS:g} s"] if long else []
        say("clip-length", f"of {len(items)} samples {' and '.join(parts)}", "2 to 8 s work best; see target_frames.")


def _sides(facts: Sequence[FileFacts], say: Say) -> None:
    pictured = [fact for fact in facts if fact.items[0].kind != "audio"]
    odd = [fact for fact in pictured if fact.media.width % 32 or fact.media.height % 32]
    if odd:
        most = max(lost_frame(fact.items[0]) for fact in odd)
        if most > 0.005:
            say(
                "odd-size",
                f"{len(odd)} of {len(pictured)} files have sides that are not multiples of 32; up to {most:.0%} of the "
                "picture is cropped",
                "See the preview; crop them to multiples of 32 where the edge matters.",
            )


def _sound(facts: Sequence[FileFacts], entry: DatasetSettings, say: Say) -> None:
    videos = [fact for fact in facts if fact.items[0].kind == "video"]
    mute = [fact for fact in videos if fact.items[0].sound is None]
    if entry.audio_source != "none" and 0 < len(mute) < len(videos):
        say(
            "no-sound",
            f"{len(mute)} of {len(videos)} clips have no sound: {', '.join(fact.path.name for fact in mute[:5])}",
            _of_silent_clips(entry),
        )


def _of_silent_clips(entry: DatasetSettings) -> str:
    text = "Where sound is trained (model.mode = av), they train the picture only."
    if entry.batch_size > 1 and not entry.separate_audio_buckets:
        return f"{text} Set separate_audio_buckets = true, so that no batch mixes them with clips that have sound."
    return text


def _speakers(facts: Sequence[FileFacts], entry: DatasetSettings, say: Say) -> None:
    for fact in facts:
        caption = fact.items[0].caption
        if fact.items[0].sound is not None and speaks(caption) and not names_speaker(caption, entry.trigger_word):
            say(
                "speaker",
                "its caption quotes speech but does not name who speaks",
                'Write the same word for each speaker, as `anna says: "..."`, or voices merge.',
                fact.path,
            )


def speaks(caption: str) -> bool:
    """Whether a caption quotes speech."""
    return bool(QUOTE.search(caption) or re.search(rf"\b(?:{SPEECH_VERBS})\s*:", caption, re.IGNORECASE))


def names_speaker(caption: str, trigger: str) -> bool:
    """Whether somebody is named who speaks: the trigger word, `NAME: "..."`, or a name before the verb of speech."""
    if trigger.strip() and set(_words(trigger)) <= set(_words(caption)):
        return True
    for quote in QUOTE.finditer(caption):
        before = caption[: quote.start()].rstrip()
        label = LABEL.search(before)
        if label and not SPOKEN.match(label.group()) and label.group().rstrip(": ").lower() not in NAMELESS:
            return True
    for verb in SPOKEN.finditer(caption):
        before = re.findall(r"[\w'-]+|[.!?]", caption[: verb.start()])
        if before and _is_name(before):
            return True
        after = re.match(r"\s+([\w'-]+)", caption[verb.end() :])
        if after and after[1][:1].isupper() and after[1].lower() not in NAMELESS:
            return True
    return False


def _is_name(before: Sequence[str]) -> bool:
    """Whether the words before a verb of speech hold a name: capitals within a sentence, or a made-up single word."""
    near = list(before[-4:])
    for index, word in enumerate(near):
        begins = index + len(before) - len(near) == 0 or before[index + len(before) - len(near) - 1] in ".!?"
        if word[:1].isupper() and word.lower() not in NAMELESS and (not begins or word == near[-1]):
            return True
    alone = near[-1].lower() not in NAMELESS and (len(before) == 1 or before[-2] in ".!?,")
    return alone and near[-1][:1].isalpha() and not near[-1].lower().endswith("ly")


def _words(text: str) -> Iterable[str]:
    return re.findall(r"[\w'-]+", text.casefold())
