"""Opening a video, and decoding it with an ear for what goes wrong.

A decoder conceals damage: it hands out pictures all the same, flags some of them, and what is predicted from them is
wrong without a flag. So an error counts for every frame up to the next key frame.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError, DataError
from ..threads import heed
from . import jpeg

COVER = 0x400  # FFmpeg's AV_DISPOSITION_ATTACHED_PIC
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# FFmpeg's own decoder of VP9 notices next to nothing; this one does, and gives the same pictures.
WATCHFUL_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
WATCHFUL_FORMATS = frozenset(("yuv420p", None))
# A part of a file that was never written is a run of zeros. H.264 and HEVC never have more than three in a row; what
# others make of a plain picture has been seen to have 137. Zeros before a start code (0 0 1) and at the end pad.
ESCAPED = frozenset(("h264", "hevc"))
ENTROPY_CODED = frozenset(
    ("vp8", "vp9", "av1", "wmv1", "wmv2", "wmv3", "vc1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3")
)  # fmt: skip
HOLE = re.compile(rb"\0{64,}[^\0\x01]")
LONG_HOLE = re.compile(rb"\0{256,}[^\0\x01]")
STRICT = {"err_detect": "explode+crccheck+bitstream+buffer", "strict": "strict"}


OLDEST_AV = (17, 1)  # older ones, and the FFmpeg in them, read some ranges, channels and time stamps as others


@functools.cache
def require_av() -> None:
    """Raises ConfigError where PyAV is older than what reads all files rightly."""
    import av

    if tuple(int(part) for part in av.__version__.split(".")[:2]) < OLDEST_AV:
        needed = ".".join(map(str, OLDEST_AV))
        raise ConfigError(
            f"PyAV {needed} or newer is needed, and this is PyAV {av.__version__}, which reads some files wrongly. "
            f'Update it with `python -m pip install "av>={needed}"`, in ComfyUI with the Python that runs it.'
        )


@contextlib.contextmanager
def opened(path: Path, threads: bool = True) -> Iterator[tuple[Any, Any]]:
    """The container of `path` and its main video stream; FFmpeg's errors become DataError."""
    import av.error

    require_av()
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            stream = _main_stream(path, container)
            if stream.codec_context is None:
                raise DataError(f"{path} is in a codec that this FFmpeg cannot decode. Convert it to H.264.", path)
            stream.thread_type = "AUTO" if threads else "NONE"
            yield container, stream
    except av.error.FFmpegError as error:
        reason = error.strerror or str(error)
        raise DataError(
            f"{path} cannot be read: {reason}. The file is damaged, cut short or not a video; "
            "export it again or remove it.",
            path,
        ) from error


def is_cover(stream: Any) -> bool:
    """Whether a stream of a container is a picture that goes with its sound, as those of music files."""
    return bool(int(getattr(stream, "disposition", 0)) & COVER)


def _main_stream(path: Path, container: Any) -> Any:
    moving = [stream for stream in container.streams.video if not is_cover(stream)]
    if not moving:
        what = "has no video, only sound and its cover picture" if container.streams.video else "has no video stream"
        raise DataError(f"{path} {what}.", path)
    best = container.streams.best("video")
    return best if best in moving else moving[0]


def decoder_of(stream: Any, alpha: bool = False, options: dict[str, str] | None = None) -> Any:
    """What decodes `stream`, with `options` for its codec; `alpha`: its transparency as well."""
    import av

    context = stream.codec_context
    name = alpha_decoder(stream) if alpha else None
    if name is None and context.pix_fmt in WATCHFUL_FORMATS:
        name = WATCHFUL_DECODERS.get(context.name)
    if name is None or name not in av.codecs_available:
        decoder = context
    else:
        decoder = av.CodecContext.create(name, "r")
        decoder.extradata = context.extradata
        decoder.thread_type = context.thread_type
    if options:
        decoder.options = {**decoder.options, **options}
    return decoder


def alpha_decoder(stream: Any) -> str | None:
    """FFmpeg's own VP8 and VP9 decoders drop the alpha channel of WebM; this one keeps it. None where not needed."""
    import av

    name = ALPHA_DECODERS.get(stream.codec_context.name)
    tags = {key.lower(): value for key, value in stream.metadata.items()}
    return name if name in av.codecs_available and tags.get("alpha_mode") == "1" else None


class Alarm(Protocol):
    """Is told of each packet that cannot be decoded."""

    def failed(self, packet: Any) -> None: ...


class Watch:
    """Notes where decoding goes wrong, as far as it reaches frames from `wanted` to `last`.

    Places are timestamps, or the numbers of frames and packets where there are none. `at` is the first wrong one.
    """

    def __init__(self, wanted: int, last: int, stamped: bool) -> None:
        self.wanted, self.last, self.stamped = wanted, last, stamped
        self.at: int | None = None
        self._key: int | None = None  # the last at or before `wanted`
        self._behind: int | None = None  # the first behind `last`
        self._packets = self._frames = 0

    def packet(self, packet: Any) -> None:
        place = packet.pts if self.stamped else self._packets
        self._packets += 1
        if packet.is_keyframe and place is not None and place <= self.wanted:
            self._key, self.at = place, None  # what was wrong before reaches no further
        elif packet.is_keyframe and place is not None and place > self.last and self._behind is None:
            self._behind = place
        if packet.is_corrupt:
            self._note(place)

    def failed(self, packet: Any) -> None:
        """`packet` could not be decoded."""
        self._note(packet.pts if self.stamped else self._packets - 1)

    def frame(self, frame: Any) -> None:
        place = frame.pts if self.stamped else self._frames
        self._frames += 1
        if frame.is_corrupt:
            self._note(place)

    def _note(self, place: int | None) -> None:
        place = self.wanted if place is None else place
        # Frames shown before the first key frame lean on what is not there; nobody wants them.
        before = self._key is not None and place < self._key
        behind = self._behind is not None and place > self._behind
        if self.at is None and not before and not behind:
            self.at = place


def decoded(container: Any, stream: Any, decoder: Any, watch: Watch, before_key: int = 0) -> Iterator[Any]:
    """Frames in the order of presentation. What cannot be decoded is passed over, and `watch` told.

    The first packets, `before_key` of them, are not decoded.
    """
    for packet in packets_of(container, stream, before_key):
        if packet.size:
            watch.packet(packet)
        for frame in decode_packet(decoder, packet, watch):
            watch.frame(frame)
            yield frame


def packets_of(container: Any, stream: Any, before_key: int = 0) -> Iterator[Any]:
    """The packets of `stream` but its first `before_key`: some decoders make pictures of what lacks its key frame."""
    for packet in container.demux(stream):
        heed()
        if before_key and packet.size:
            before_key -= 1
        else:
            yield packet


def decode_packet(decoder: Any, packet: Any, watch: Alarm | None = None) -> list[Any]:
    """The frames that come out when `packet` goes in; none, and `watch` is told, where it cannot be decoded."""
    import av.error

    try:
        return decoder.decode(packet if packet.size else None)
    except av.error.EOFError:
        return []
    except av.error.FFmpegError:
        if watch is not None:
            watch.failed(packet)
        return []


def strictly_decoded(codec: str, data: bytes, strict: bool = True) -> bool:
    """Whether a picture that is coded in `data` alone is decoded, `strict`: without a complaint.

    What comes out is small, for nobody looks at it.
    """
    import av.error

    decoder: Any = av.CodecContext.create(codec, "r")
    decoder.options = {"lowres": "3", **(STRICT if strict else {})}
    try:
        frames = [*decoder.decode(av.Packet(data)), *decoder.decode(None)]
    except av.error.FFmpegError:
        return False
    return bool(frames) and not any(frame.is_corrupt for frame in frames)


def is_packet_damaged(packet: Any, codec: str) -> bool:
    """Whether a packet holds what its coding does not make: a run of zeros that was never written, wrong markers."""
    if codec == "mjpeg":
        return jpeg.is_broken(bytes(packet))
    if codec in ESCAPED:
        return HOLE.search(packet) is not None
    return codec in ENTROPY_CODED and LONG_HOLE.search(packet) is not None
