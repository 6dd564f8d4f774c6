"""A video or a folder of frames in; a video, masks or other pictures out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pdnet.data.io import IMAGE_SUFFIXES, UInt8Array, write_png
from pdnet.data.streams import REFERENCE_LAG
from pdnet.errors import ConfigError, DataError
from pdnet.files import atomic_folder
from pdnet.inference import composite
from pdnet.inference.backends import open_backend
from pdnet.inference.clip import FolderReader, Frame
from pdnet.inference.session import PortraitSession
from pdnet.progress import track_with_note

if TYPE_CHECKING:
    from pdnet.inference.video import VideoReader

#: Frames from a frame of a video to its second reference. Paper: 5.5, five annotated frames; every fifth of a video is
#: annotated (3.1). In a folder each frame counts as an annotated one.
VIDEO_LAG = 5 * REFERENCE_LAG

#: Suffixes of the videos that can be written, and of those that keep transparency.
_VIDEOS, _TRANSPARENT = (".mp4", ".mov", ".mkv", ".webm"), (".webm", ".mov")
# A folder of such a name would be a surprise.
_OTHER_FILES = (*IMAGE_SUFFIXES, ".avi", ".flv", ".gif", ".m4v", ".mpeg", ".mpg", ".ts", ".wmv", ".zip")

Write = Callable[[Frame, UInt8Array], None]


class Done(NamedTuple):
    """What `predict` has done.

    Attributes:
        frames: how many.
        kind: what was made of them: `masks`, `pictures` or `frames` of a video.
        fps: frames a second from file to file, without the opening of the model.
        backend: what ran the network.
    """

    frames: int
    kind: str
    fps: float
    backend: str


def predict(
    source: Path,
    out: Path,
    *,
    model: Path,
    backend: str = "auto",
    device: str = "auto",
    precision: str = "auto",
    compiled: bool = False,
    background: str | None = None,
    show: str | None = None,
) -> Done:
    """Segment the frames of one clip against the first, and write what is wanted of them.

    Args:
        source: a video, or a folder of images in order of name.
        out: a video, by its suffix, with the source's times and sound; else a folder, replaced whole, for PNG files
            named as the source's, or by the number of the frame. A video is made of a folder at `FOLDER_RATE`.
        model: model file, or folder of exported graphs.
        backend, device, precision, compiled: see `open_backend`.
        background: see `background_look`. Without it, and without `show`, a folder gets masks, as `pdnet score` reads
            them, and a video the portrait before a blur: the result of a portrait segmentation that can be judged by
            looking, and the use that most people make of one.
        show: `parts`, or None.

    Raises:
        DataError: the source is missing, empty, damaged or no video; `out` cannot be written, would replace the
            source, or cannot hold what is wanted.
        ConfigError: `background`, `show` or a backend's option is unknown.
        CheckpointError, ExportError, UnavailableError: see `open_backend`.
    """
    to_video = _check_out(source, out, transparent=background == "transparent")
    look = _look(background, show, to_video=to_video)
    with _open_source(source) as clip:
        opened = open_backend(model, name=backend, device=device, precision=precision, compiled=compiled)
        lag = REFERENCE_LAG if isinstance(clip, FolderReader) else VIDEO_LAG
        session: PortraitSession | None = None
        started = time.perf_counter()
        with _open_video(out, clip, look) if to_video else _open_folder(out, clip) as (frames, write):
            for frame, progress in track_with_note(frames, "predict", clip.count):
                session = session or PortraitSession(opened, reference=frame.image, lag=lag)
                write(frame, look(frame.image, session.step(frame.image)))
                progress.note = f"{(progress.done + 1) / (time.perf_counter() - started):.1f} frames/s"
        seconds = time.perf_counter() - started
    kind = "frames" if to_video else "masks" if look is composite.mask else "pictures"
    return Done(progress.done, kind, progress.done / seconds, opened.name)


def _check_out(source: Path, out: Path, *, transparent: bool) -> bool:
    """Whether `out` is to be a video."""
    suffix = out.suffix.lower()
    if out.resolve() == source.resolve():
        raise DataError(f"{out}: what is written would replace the source; expected another path")
    if suffix not in _VIDEOS:
        if suffix in _OTHER_FILES:
            raise DataError(f"{out}: cannot be written as {suffix}; expected {', '.join(_VIDEOS)}, or a folder")
        return False
    if transparent and suffix not in _TRANSPARENT:
        raise DataError(f"{out}: {suffix} keeps no transparency; expected {' or '.join(_TRANSPARENT)}, or a folder")
    if out.is_dir():
        raise DataError(f"{out}: a folder; expected the path of a video to write")
    return True


def _look(background: str | None, show: str | None, *, to_video: bool) -> composite.Look:
    if show is not None:
        if show != "parts" or background is not None:
            raise ConfigError(f"show: '{show}' with background '{background}', expected 'parts' alone")
        return composite.parts
    if background is not None:
        return composite.background_look(background)
    return composite.blur if to_video else composite.mask


@contextlib.contextmanager
def _open_source(source: Path) -> Iterator[FolderReader | VideoReader]:
    if source.is_dir():
        yield FolderReader(source)
        return
    if not source.exists():
        raise DataError(f"{source}: no such file or folder; expected a video or a folder of frames")
    from pdnet.inference.video import VideoReader

    with VideoReader(source) as video:
        yield video


@contextlib.contextmanager
def _open_folder(out: Path, clip: FolderReader | VideoReader) -> Iterator[tuple[Iterator[Frame], Write]]:
    """The frames, and what writes a PNG file for each."""
    with atomic_folder(out) as folder:
        yield clip.frames(), lambda frame, picture: write_png(picture, folder / f"{frame.name}.png")


@contextlib.contextmanager
def _open_video(
    out: Path, clip: FolderReader | VideoReader, look: composite.Look
) -> Iterator[tuple[Iterator[Frame], Write]]:
    """The frames, and what writes them to a video; the sound goes from one to the other as they are read."""
    from pdnet.inference.video import write_video

    transparent = look is composite.transparent
    if isinstance(clip, FolderReader):
        with write_video(out, clip.facts, transparent=transparent) as video:
            yield clip.frames(), video.write
    else:
        with write_video(out, clip.facts, transparent=transparent, sounds=clip.sounds) as video:
            yield clip.frames(video.add_sound), video.write
