"""Video files frame by frame: read upright, each frame with its time; written with the source's times and sound."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from pdnet.data.io import UInt8Array
from pdnet.errors import DataError
from pdnet.files import atomic_path
from pdnet.inference.clip import Colours, Facts, Frame

# FFmpeg reads far more. The rest is left out because some of it follows references to other files and servers (HLS,
# concat) or is no recording (pictures, text).
_FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
_EXPECTED = "expected a video (MP4, MOV, WebM, MKV, AVI, MPEG) or a folder of frames"
#: YUV matrices by their numbers in H.273, those of swscale for them.
_MATRICES = {1: 1, 2: 5, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9}
_LIMITED_RANGE = 1
#: What Matroska and WebM start with, and what all of their frames stand in.
_EBML, _SEGMENT = bytes.fromhex("1A45DFA3"), bytes.fromhex("18538067")
#: What MP4 and MOV may start with; the size of an AVI that was never finished.
_BOXES, _UNKNOWN = (b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide"), 0xFFFFFFFF

logger = logging.getLogger("pdnet.inference")

Turn = tuple[float, float, float, float]


class Coding(NamedTuple):
    """How a kind of file is encoded."""

    codec: str
    pixels: str
    options: dict[str, str]


_H264 = Coding("libx264", "yuv420p", {"crf": "18", "preset": "veryfast"})
_VP9 = {"crf": "24", "b": "0", "deadline": "realtime", "cpu-used": "6", "row-mt": "1"}
#: Kinds of video files that can be written, by suffix.
CODINGS = {
    ".mp4": _H264,
    ".mov": _H264,
    ".mkv": _H264,
    ".webm": Coding("libvpx-vp9", "yuv420p", _VP9),
}
#: Those that keep transparency: for browsers, and for editing.
TRANSPARENT = {
    ".webm": Coding("libvpx-vp9", "yuva420p", {**_VP9, "auto-alt-ref": "0"}),
    ".mov": Coding("prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0"}),
}
#: What sound is encoded in where the source's cannot be copied.
_SOUND, _SOUND_RATE = {".webm": "libopus"}, 48000
_OTHER_SOUND = "aac"
#: What FFmpeg refuses when it writes the file's header, and not before.
_NOT_COPIED = {".mov": ("flac", "opus", "vorbis")}


class VideoReader:
    """A video file, open for reading; a context manager. Frames are decoded one by one and not kept.

    Args:
        path: the file.

    Raises:
        DataError: it is missing, no video, without frames, or cut off in a way that shows at once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts, self._turn = self._look()
        self._file = self._open()
        self.count: int | None = self._stream(self._file).frames or None
        #: streams of sound
        self.sounds: list[Stream] = list(self._file.streams.audio)

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def frames(self, sound: Callable[[Packet[Any]], None] | None = None) -> Iterator[Frame]:
        """Decode from the start; may be called once.

        Args:
            sound: takes the packets of the streams of sound as they come.

        Raises:
            DataError: the file is damaged or cut off, or a frame has another size than the first.
        """
        stream = self._stream(self._file)
        stream.thread_type = "AUTO"
        packets = self._file.demux(stream, *(self.sounds if sound else []))
        done, time = 0, -1
        while True:
            try:
                packet = next(packets, None)
                decoded = packet.decode() if packet is not None and packet.stream is stream else []
            except (av.FFmpegError, ValueError) as error:
                raise self._broken(done, _reason(error)) from None
            if packet is None:
                break
            if packet.stream is not stream:
                if sound is not None and packet.size:
                    sound(packet)
                continue
            for frame in decoded:
                assert isinstance(frame, av.VideoFrame)
                if frame.is_corrupt:
                    raise self._broken(done, "a damaged frame")
                image = upright(_pixels(frame), self._turn)
                self.facts.check(image, f"{self.path}: frame {done}")
                length = frame.duration or round(1 / (self.facts.rate * self.facts.time_base))
                # Not all files have times, and not all times go forward.
                time = time + length if frame.pts is None else frame.pts if done == 0 else max(frame.pts, time + 1)
                yield Frame(f"{done:05d}", image, time, frame.duration or 0)
                done += 1
        if not done:  # it was there a moment ago
            raise self._broken(done, "no frame")

    def _broken(self, done: int, reason: str) -> DataError:
        of = f" of {self.count}" if self.count else ""
        return DataError(f"{self.path}: damaged or cut off after {done}{of} frames ({reason}); expected a whole video")

    def _look(self) -> tuple[Facts, Turn]:
        """What the first frame tells."""
        with self._open() as file:
            stream = self._stream(file)
            # Of a file that breaks off between two frames, its index or its header alone tells.
            size = self.path.stat().st_size
            indexed = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
            if (end := max(indexed, declared_size(self.path))) > size:
                raise DataError(f"{self.path}: cut off: {size} bytes of at least {end}; expected a whole video")
            try:
                frame = next(file.decode(stream), None)
            except (av.FFmpegError, ValueError) as error:
                raise DataError(f"{self.path}: its first frame is damaged ({_reason(error)}); {_EXPECTED}") from None
            if frame is None:
                raise DataError(f"{self.path}: a video without frames ({size} bytes); expected at least one")
            turn = display_matrix(frame)
            turned = _is_turned(turn)
            height, width = (frame.width, frame.height) if turned else (frame.height, frame.width)
            aspect = stream.sample_aspect_ratio
            matrix = int(frame.colorspace)
            facts = Facts(
                height,
                width,
                rate=stream.average_rate or stream.guessed_rate or Fraction(25),
                time_base=stream.time_base or Fraction(1, 1000),
                aspect=1 / aspect if aspect and turned else aspect or None,
                colours=Colours(matrix, int(frame.color_primaries), int(frame.color_trc))
                if matrix in _MATRICES
                else Colours(),
            )
            return facts, turn

    def _open(self) -> InputContainer:
        try:
            return av.open(
                _plain(self.path), "r", container_options={"format_whitelist": _FORMATS}, metadata_errors="replace"
            )
        except (av.FFmpegError, ValueError):
            size = self.path.stat().st_size
            raise DataError(f"{self.path}: not a video that can be read ({size} bytes); {_EXPECTED}") from None

    def _stream(self, file: InputContainer) -> av.VideoStream:
        stream = file.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            kinds = ", ".join(sorted({each.type for each in file.streams})) or "nothing"
            raise DataError(f"{self.path}: holds no video that can be decoded, but {kinds}; {_EXPECTED}")
        return stream


@contextlib.contextmanager
def write_video(
    path: Path, facts: Facts, *, transparent: bool = False, sounds: Sequence[Stream] = ()
) -> Iterator[VideoWriter]:
    """Open a video file for writing; it is there, whole, when the block ends well.

    Args:
        path: its suffix, one of `CODINGS`, says what is made.
        facts: of the pictures that will come, and their times.
        transparent: the pictures have an alpha channel; `path` is one of `TRANSPARENT`.
        sounds: streams of the source whose packets `VideoWriter.add_sound` will get: copied, encoded anew where this
            kind of file does not take them, left out with a warning where they cannot be decoded.

    Raises:
        DataError: the file cannot be written.
    """
    with atomic_path(path) as fresh:
        writer = VideoWriter(path, fresh, facts, transparent=transparent, sounds=sounds)
        try:
            yield writer
            writer.finish()
        finally:
            writer.close()


class VideoWriter:
    """What `write_video` yields.

    Sides of odd length get one more row or column for H.264, a copy of the last: it stores colours by pairs of pixels.
    """

    def __init__(self, path: Path, fresh: Path, facts: Facts, *, transparent: bool, sounds: Sequence[Stream]) -> None:
        self.path, self.facts, self.transparent = path, facts, transparent
        coding = (TRANSPARENT if transparent else CODINGS)[path.suffix.lower()]
        self._pad = (facts.height % 2, facts.width % 2) if coding is _H264 else (0, 0)
        with self._explained():
            self._file = av.open(_plain(fresh), "w")
            self._stream = self._add_stream(coding)
        self._copied: dict[int, Stream] = {}
        self._encoded: dict[int, av.AudioStream] = {}
        for sound in sounds:
            self._expect(sound)

    def _expect(self, sound: Stream) -> None:
        """Make a stream that takes the packets of another as they are, or else its samples."""
        codec, kind = sound.codec_context, self.path.suffix.lower()
        if codec is None or codec.codec.canonical_name not in _NOT_COPIED.get(kind, ()):
            with contextlib.suppress(ValueError, av.FFmpegError):
                self._copied[sound.index] = self._file.add_stream_from_template(sound)
                return
        if not isinstance(codec, av.AudioCodecContext):
            logger.warning("%s: sound of an unknown kind; it is left out", self.path)
            return
        layout = "mono" if codec.channels == 1 else "stereo"
        stream = self._file.add_stream(_SOUND.get(kind, _OTHER_SOUND), rate=_SOUND_RATE, layout=layout)
        assert isinstance(stream, av.AudioStream)
        self._encoded[sound.index] = stream

    def _add_stream(self, coding: Coding) -> av.VideoStream:
        facts = self.facts
        stream = self._file.add_stream(coding.codec, rate=facts.rate, options=dict(coding.options))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = facts.height + self._pad[0], facts.width + self._pad[1]
        stream.pix_fmt, stream.thread_type = coding.pixels, "AUTO"
        context = stream.codec_context
        context.time_base = stream.time_base = facts.time_base
        if facts.aspect:
            context.sample_aspect_ratio = facts.aspect
        context.colorspace, context.color_primaries, context.color_trc = facts.colours
        context.color_range = _LIMITED_RANGE
        return stream

    def write(self, frame: Frame, picture: UInt8Array) -> None:
        """Write what has been made of a frame: (H, W, 3) uint8 RGB, or (H, W, 4) RGBA.

        Raises:
            DataError: it has another size than the clip, or the file cannot be written.
        """
        self.facts.check(picture, f"{self.path}: frame {frame.name}")
        if any(self._pad):
            picture = np.pad(picture, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        with self._explained():
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgba" if self.transparent else "rgb24")
            made = made.reformat(
                format=self._stream.pix_fmt,
                dst_colorspace=_MATRICES[self.facts.colours.matrix],
                dst_color_range=_LIMITED_RANGE,
            )
            made.pts, made.time_base, made.duration = frame.time, self.facts.time_base, frame.duration
            self._file.mux(self._stream.encode(made))

    def add_sound(self, packet: Packet[Any]) -> None:
        """Take a packet of sound from the source.

        Raises:
            DataError: it has to be decoded and is damaged, or the file cannot be written.
        """
        index = packet.stream.index
        if index in self._encoded:
            try:
                decoded = packet.decode()
            except (av.FFmpegError, ValueError) as error:
                raise DataError(f"{self.path}: the source's sound is damaged ({_reason(error)})") from None
            with self._explained():
                for frame in decoded:
                    assert isinstance(frame, av.AudioFrame)
                    self._file.mux(self._encoded[index].encode(frame))
        elif index in self._copied:
            if packet.pts is None:
                packet.pts = packet.dts
            packet.stream = self._copied[index]
            with self._explained():
                self._file.mux(packet)

    def finish(self) -> None:
        """Write what the encoder still holds, and the file's end."""
        with self._explained():
            self._file.mux(self._stream.encode())
            for stream in self._encoded.values():
                self._file.mux(stream.encode())
            self._file.close()

    def close(self) -> None:
        """Let go of the file, finished or not."""
        with contextlib.suppress(av.FFmpegError, ValueError):
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (av.FFmpegError, ValueError) as error:
            raise DataError(f"{self.path}: cannot be written ({_reason(error)})") from None


def declared_size(path: Path) -> int:
    """How many bytes a video says it has: Matroska, WebM (RFC 8794, 6.1, 11.2), MP4, AVI; 0 where it does not say."""
    with path.open("rb") as file:
        head = file.read(4096)
        if head[4:8] in _BOXES:
            return _end_of_boxes(file, path.stat().st_size)
    if head[:4] == b"RIFF":
        riff = int.from_bytes(head[4:8], "little")
        return 0 if riff == _UNKNOWN else 8 + riff
    if head[:4] != _EBML:
        return 0
    size, body = _ebml_size(head, 4)
    segment = body + (size or 0)
    if size is None or head[segment : segment + 4] != _SEGMENT:
        return 0
    size, body = _ebml_size(head, segment + 4)
    return body + size if size is not None else 0


def _end_of_boxes(file: BinaryIO, length: int) -> int:
    """Where the last box of an MP4 or MOV ends (ISO/IEC 14496-12, 4.2), in the file or behind its end."""
    at = 0
    while at + 8 <= length:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if size < 8:  # 0: as far as the file goes
            break
        at += size
    return at


def _ebml_size(data: bytes, at: int) -> tuple[int | None, int]:
    """A size of one to eight bytes, and where it ends: bits after the first that is 1; all 1 stands for unknown."""
    length = 9 - data[at].bit_length() if at < len(data) else 9
    if length > 8 or at + length > len(data):
        return None, at
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(data[at : at + length], "big") & unknown
    return (None if size == unknown else size), at + length


def _plain(path: Path) -> str:
    """A path as FFmpeg takes it for one: `talk:1.mp4` would be the file 1.mp4 by the protocol `talk`."""
    return str(path.absolute())


def display_matrix(frame: av.VideoFrame) -> Turn:
    """How a player turns and mirrors a video: x' = a x + c y, y' = b x + d y as (a, b, c, d), in any unit.

    Asked of one frame alone: PyAV then keeps it until the next garbage collection, and a clip's frames fill memory.
    """
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # the frame carries data of a kind that PyAV has no name for; the angle it tells all the same
        cos, sin = math.cos(math.radians(frame.rotation)), math.sin(math.radians(frame.rotation))
        return cos, -sin, sin, cos
    if matrix is None:
        return 1, 0, 0, 1
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    return a, b, c, d


def upright(image: UInt8Array, turn: Turn) -> UInt8Array:
    """(H, W, 3) as a player shows it, which turns by quarters alone."""
    a, b, c, d = turn
    if _is_turned(turn):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _is_turned(turn: Turn) -> bool:
    """Whether height and width change places."""
    a, b, c, d = turn
    return abs(a) + abs(d) < abs(b) + abs(c)


def _pixels(frame: av.VideoFrame) -> UInt8Array:
    return frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def _reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())
