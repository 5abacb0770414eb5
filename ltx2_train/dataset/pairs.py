"""Whether references and masks fit their clips, and what a user should know where they do not.

They are used all the same: held to the end, read from the beginning, cropped or stretched, as reference.py and the
encoding of masks say. Only a mask that lasts less than half as long as its clip, or more than twice as long, is that of
another clip, and an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import DataError
from ..media.buckets import cover
from ..media.frames import BY_TIME, PAD_LIMIT, is_even, unevenness
from ..media.images import MAYBE_OVER_BLACK, OVER_BLACK
from ..media.info import MediaInfo
from .augment import same_shape
from .items import Item, ReferenceMedia
from .notes import DataNote
from .reference import line_beside, reference_frames
from .sources import copies

NO_MATRIX = (
    "{}, of 1280 columns or 720 lines or more, say no colour matrix: BT.601 is taken, as FFmpeg and ComfyUI write it, "
    "and cameras and players take BT.709. Compare `ltx2-train data preview` with a player; if they differ, write the "
    "right one into a copy: `ffmpeg -i OLD -c copy -bsf:v h264_metadata=matrix_coefficients=1 NEW` (hevc_metadata for "
    "HEVC)"
)
SHORT_REFERENCE = "references are shorter than their clips; where they end, their last frame is held"
LONG_REFERENCE = "references are longer than their clips, and only their beginning is used"
OTHER_LENGTH = "references have another length than their clips, so that every window is shown their beginning"
OTHER_RATE = "references have another frame rate than their clips and as many frames, and go with them frame by frame"
ONE_FRAME = "references are videos of which one frame is shown, since reference_frames is not set; 0 shows all of them"
ITSELF = "references are copies of their clips, so that there is nothing to learn but to repeat them"
SOUND_ITSELF = "reference sounds are copies of what is trained, so that there is nothing to learn but to repeat it"
TWICE = "references are the same as another of their clips"
SOUND_TWICE = "reference sounds are the same as another of their clips"
LONG_CLIP = "clips are longer than max_frames ({}), and only their beginning is used"
LONG_VOICE = "reference sounds are longer than reference_audio_max_seconds ({:g}), and only their beginning is used"
OTHER_SHAPE = "references have another shape than their clips, and their middle is used"
SHORT_MASK = "masks are shorter than their clips; where they end, their last frame is held"
OTHER_MASK_RATE = "masks have another frame rate than their clips and as many frames, and go with them frame by frame"
ALPHA_MASK = "masks have transparency, which is black; how bright their picture is counts, so save the mask itself"
LONG_MASK = "masks are longer than their clips; what is behind the end is not used"
OTHER_SIZE = "masks have another size than their clips and are resized"
MUTE_MASK = "masks for sound belong to media without sound, and have no use"
MUTE_REFERENCE = "reference sounds belong to media without sound, and have no use"
UNHEARD = 'sounds are named by a list whose dataset has audio_source = "none", and are not used'
UNSEEN_MASK = "masks belong to recordings, which have no picture, and have no use"
UNSEEN_REFERENCE = "references belong to recordings, which have no picture, and have no use"
SHORT_SOUND_MASK = "masks for sound are shorter than their clips, and what is behind their end is generated"
LONG_SOUND_MASK = "masks for sound are longer than their clips; what is behind the end is not used"
LONG_SOUND = "sounds are longer than their clips; what is behind the end is not used"
AT_RATE = "sounds are nearest to the length of their clips at source_fps, and are heard as they are"
BY_FILE = "sounds are nearest to the length of their clips without source_fps, and change their speed with them"
SHORT_SOUND = "sounds are shorter than their clips, and what is behind their end is silence"
OTHER_SECONDS, OTHER_SHARE = 0.5, 0.1  # by which a sound of another take differs at least
CODED_SECONDS = 0.1  # by which an encoder may make a sound longer
NOTICED = 2  # frames; less comes of rounding
GROSS = 2.0
ROUNDING_SECONDS = 0.01
_FRAMES = {"reference_frames", "more_reference_frames"}


class Fit:
    """What does not fit, by what is said of it, each file once."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[Path, str]] = {}
        self._remarks: dict[str, None] = {}

    def sentences(self) -> list[DataNote]:
        """What a user should know: how many files, and their names."""
        found = [
            DataNote(
                "pair",
                f"{len(files)} {topic}",
                names=[" ".join(filter(None, (path.name, detail))) for path, detail in files.items()],
            )
            for topic, files in self._seen.items()
        ]
        return [*found, *(DataNote("pair", remark) for remark in self._remarks)]

    def references(self, item: Item) -> None:
        """Look at the references of `item`."""
        self._given_twice(TWICE, [one.path for one in item.references])
        for number, wanted in enumerate(item.references):
            if wanted.media is not None:
                self._reference(item, wanted, wanted.media, item.dataset.entry.frames_of(number))

    def _reference(self, item: Item, wanted: ReferenceMedia, media: MediaInfo, frames: int) -> None:
        own = item.source.media
        self._remarked("reference", media, media.remarks)
        self.colours("references", media)
        alike = (wanted.temporal_scale, wanted.width, wanted.height) == (1, item.width, item.height)
        if alike and (wanted.frames > 1 or item.window.count == 1) and same_file(media.path, own.path):
            self._note(ITSELF, media, "")
        if media.kind == "video" and not item.dataset.entry.model_fields_set & _FRAMES:
            self._note(ONE_FRAME, media, f"({media.frames} frames)")
        self._length(item, media, reference_frames(wanted.frames, wanted.temporal_scale), SHORT_REFERENCE)
        if wanted.frames > 1:
            self._paced(own, media, OTHER_RATE)
            self._uneven("reference", own, media)
        if not frames and media.kind == "video":
            self._longer(item, media, LONG_REFERENCE)
        if media.kind == "video" and item.window.start and not line_beside(item, media, item.dataset.entry)[1]:
            self._note(OTHER_LENGTH, media, f"({media.duration:.2f} s, not {own.duration:.2f} s)")
        if not same_shape(media, own.width, own.height):
            wide, high, _, _ = cover(media.width, media.height, (wanted.width, wanted.height))
            lost = 1 - wanted.width * wanted.height / (wide * high)
            self._note(OTHER_SHAPE, media, f"({media.width}x{media.height}, {lost:.0%} is cut away)")

    def mask(self, item: Item) -> None:
        """Look at the mask of `item`. Raises DataError where it must be that of another clip."""
        media, own = item.mask_media, item.source.media
        if media is None:
            return
        if OVER_BLACK in media.remarks:
            self._note(ALPHA_MASK, media, "")
        of_alpha = (OVER_BLACK, MAYBE_OVER_BLACK)
        self._remarked("mask", media, [remark for remark in media.remarks if remark not in of_alpha])
        if media.kind == "video" and own.kind == "video" and _gross(media, own):
            raise DataError(
                f"no mask: {media.path} lasts {media.duration:.2f} s, and the clip {own.duration:.2f} s. A mask is a "
                "picture, or a video as long as its clip.",
                media.path,
            )
        self._length(item, media, list(range(item.window.count)), SHORT_MASK, by_clock=True)
        self._paced(own, media, OTHER_MASK_RATE)
        self._uneven("mask", own, media)
        if media.kind == "video":
            self._longer(item, media, LONG_MASK)
        if (media.width, media.height) != (own.width, own.height):
            detail = f"is {media.width}x{media.height}, not {own.width}x{own.height}"
            self._note(OTHER_SIZE, media, detail)

    def reference_sounds(self, item: Item) -> None:
        """Look at the reference sounds of `item`."""
        self._given_twice(SOUND_TWICE, item.reference_audios)
        sound, most = item.sound, item.dataset.entry.reference_audio_max_seconds
        if sound is None or (most is not None and sound.start >= most):
            return  # a later part of a recording may well be shown how it begins
        for path in filter(None, item.reference_audios):
            if same_file(path, sound.path):
                self.useless(SOUND_ITSELF, [path])

    def _given_twice(self, topic: str, paths: Sequence[Path | None]) -> None:
        given = [path for path in paths if path is not None]
        self.useless(
            topic, [path for number, path in enumerate(given) if any(same_file(path, o) for o in given[:number])]
        )

    def colours(self, role: str, media: MediaInfo) -> None:
        """Take down where nothing says which colours `media`, one of the `role`, has."""
        if media.no_matrix:
            self._note(NO_MATRIX.format(role), media, "")

    def long_clip(self, clip: MediaInfo, most: int, seconds: float) -> None:
        """Take down that the last `seconds` of `clip` are behind the `most` frames that are used of it."""
        self._note(LONG_CLIP.format(most), clip, f"({seconds:.2f} s)")

    def voice(self, voice: MediaInfo, most: float | None) -> None:
        """Look at the reference sound `voice`, of which at most `most` seconds are used; None: all of it."""
        self._remarked("reference sound", voice, [one for one in voice.remarks if not one.startswith("lasts")])
        self._tracks("reference sound", voice)
        if most is not None and voice.duration > most + ROUNDING_SECONDS:
            self._note(LONG_VOICE.format(most), voice, f"({voice.duration:.2f} s)")

    def sound_mask(self, item: Item, mask: MediaInfo) -> None:
        """Look at the sound file `mask`, which masks the sound of `item`."""
        sound = item.sound
        assert sound is not None, item.key
        self._tracks("mask for sound", mask)
        start = sound.start - item.source.media.times[0] if sound.of_clip else sound.start
        short = start + sound.seconds - mask.duration
        if short >= NOTICED / item.fps:
            self._note(SHORT_SOUND_MASK, mask, f"({short:.2f} s)")
        longer = mask.duration - max(item.source.media.duration, start + sound.seconds)
        if longer >= max(NOTICED / item.fps, CODED_SECONDS):
            self._note(LONG_SOUND_MASK, mask, f"({longer:.2f} s)")

    def sound(self, clip: MediaInfo, sound: MediaInfo, at_rate: float | None) -> bool:
        """Look at the sound file `sound` of `clip`, which lasts `at_rate` seconds where its rate is the user's.

        Whether that is the length that counts: the nearer one to that of the sound does.
        """
        self._remarked("sound", sound, [one for one in sound.remarks if not one.startswith("lasts")])
        self._tracks("sound", sound)
        of_rate = at_rate is not None and abs(sound.duration - at_rate) < abs(sound.duration - clip.duration)
        seconds = at_rate if at_rate is not None and of_rate else clip.duration
        if at_rate is not None and abs(at_rate - clip.duration) > CODED_SECONDS:
            lengths = f"({sound.duration:.2f} s; the clip {at_rate:.2f} s at source_fps, {clip.duration:.2f} s without)"
            self._note(AT_RATE if of_rate else BY_FILE, sound, lengths)
        if abs(sound.duration - seconds) > max(OTHER_SECONDS, OTHER_SHARE * seconds):
            topic = LONG_SOUND if sound.duration > seconds else SHORT_SOUND
            self._note(topic, sound, f"({sound.duration:.2f} s, the clip {seconds:.2f} s)")
        return of_rate

    def useless(self, topic: str, paths: Iterable[Path | None]) -> None:
        """Take down that files which go with a medium have no use beside it, as `topic` says."""
        for path in filter(None, paths):
            self._seen.setdefault(topic, {}).setdefault(path, "")

    def _length(self, item: Item, media: MediaInfo, shown: list[int], topic: str, by_clock: bool = False) -> None:
        """DataNote it where `media` ends before what the clip itself has in its window; `shown` are frames of that."""
        if media.kind == "image":
            return
        picks, start = line_beside(item, media, item.dataset.entry, by_clock)
        own = item.source.timeline.frames - item.window.start  # behind that the clip is held as well
        last = max((frame for frame in shown if frame < max(1, own)), default=0)
        short = start + last - (len(picks) - 1)
        if short >= NOTICED:
            self._note(topic, media, f"({short / item.fps:.2f} s)")

    def _paced(self, own: MediaInfo, media: MediaInfo, topic: str) -> None:
        """DataNote it where `media` has the frames of the clip `own` at other times."""
        if own.kind == media.kind == "video" and own.frames == media.frames and own.fps and media.fps:
            if abs(media.duration - own.duration) * own.fps >= NOTICED:
                self._note(topic, media, f"({media.fps:.2f} fps, not {own.fps:.2f})")

    def _uneven(self, role: str, own: MediaInfo, media: MediaInfo) -> None:
        """Tell where frames of `media` were lost or held; one of as many as the clip `own` goes with it by number."""
        if media.kind == "video" and own.frames != media.frames and not is_even(media.times):
            self._remarked(role, media, [f"{unevenness(media.times)}; {BY_TIME}"])

    def _tracks(self, role: str, media: MediaInfo) -> None:
        if len(media.tracks) > 1:
            tracks = f"has {len(media.tracks)} sound tracks ({'; '.join(media.tracks)})"
            self._remarked(
                role, media, [f"{tracks}: the one that it prefers is used. Save the one that is meant alone"]
            )

    def _longer(self, item: Item, media: MediaInfo, topic: str) -> None:
        picks, _ = line_beside(item, media, item.dataset.entry)
        more = len(picks) - item.source.timeline.frames
        if more > PAD_LIMIT:
            self._note(topic, media, f"({more / item.fps:.2f} s)")

    def _remarked(self, role: str, media: MediaInfo, remarks: Iterable[str]) -> None:
        self._remarks.update({f"the {role} {media.path.name} {remark}": None for remark in remarks})

    def _note(self, topic: str, media: MediaInfo, detail: str) -> None:
        self._seen.setdefault(topic, {}).setdefault(media.path, detail)


def same_file(one: Path, other: Path) -> bool:
    """Whether both are one file, or copies."""
    return one == other or (one.is_file() and other.is_file() and one in copies([other, one]))


def _gross(media: MediaInfo, own: MediaInfo) -> bool:
    longer, shorter = max(media.duration, own.duration), min(media.duration, own.duration)
    return longer > GROSS * shorter and media.frames != own.frames
