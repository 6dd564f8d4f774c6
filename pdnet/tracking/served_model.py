"""The model that MLflow serves: encoded video in, masks out.

MLflow copies this file into every version of the registered model and runs it there ("models from code"), where
pdnet and torch are not installed: it imports neither, and repeats what it needs of `pdnet.data` and
`pdnet.inference`. The tests hold the two to the same masks.

A request is a table with one of two columns, in MLflow's JSON (binary values in base64) or Parquet:

- `frame`: encoded images (JPEG, PNG, WebP, BMP). The rows are the frames of one clip, in order.
- `clip`: encoded videos (MP4, MOV, WebM, MKV, AVI, MPEG). Each row is a clip.

The first frame of a clip is its reference. Called from Python, a cell of `frame` may also be a decoded frame,
(H, W, 3) uint8 RGB: `DataFrame({"frame": list(frames)})`.

The answer is a table with a row for each frame: `clip` (its row in the request; 0 for frames), `frame` (its position
in the clip) and `mask`, a grey PNG of the frame's size as a person sees it, with rotation applied: portrait 255, else
0. With the parameter `output` = "probability" the levels are round(255 p) instead.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import av
import mlflow.models
import numpy as np
import numpy.typing as npt
import onnxruntime
import pandas as pd
from av.video.frame import VideoFrame
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModel, PythonModelContext
from PIL import Image, ImageOps, UnidentifiedImageError

#: channel means and standard deviations of ImageNet, of RGB in 0..1, as `pdnet.data.transforms`
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
#: frames between the references of a network of several, as `pdnet.data.streams`
REFERENCE_LAG = 5

PAIR, ENCODER, SEGMENTER = "pdnet.onnx", "reference_encoder.onnx", "segmenter.onnx"
COLUMNS = ("frame", "clip")
OUTPUTS = ("mask", "probability")

# Pillow and FFmpeg read far more. The rest is left out because some of it follows references to other files and
# servers (HLS, concat), starts programs (EPS) or is no recording.
_IMAGES = ("JPEG", "PNG", "WEBP", "BMP")
_VIDEOS = "mov,matroska,webm,avi,mpegts,mpeg"
# Possessive: what one part has taken it does not give back, or a request of newlines would take quadratic time.
_BASE64 = re.compile(rb"[A-Za-z0-9+/\r\n]++=*+\s*+")
_BAND = 64  # rows that are enlarged at a time
_LONGEST_SIDE = 16_384  # of a frame; of one a pixel high, what is made on the way would be hundreds of times its size
_EXPECTED_IMAGE = "expected an encoded image (JPEG, PNG, WebP, BMP)"
_EXPECTED_VIDEO = "expected an encoded video (MP4, MOV, WebM, MKV, AVI, MPEG)"

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
NetworkInput = FloatArray | UInt8Array
Kept = tuple[NetworkInput, ...]
Turn = tuple[float, float, float, float]


class Network(Protocol):
    """The exported graphs, which segment a frame against what was kept of its reference frames.

    Attributes:
        size: side S of the square inputs.
        raw: whether images are (1, S, S, 3) uint8 instead of (1, 3, S, S) float32, normalised.
        references: N.
    """

    size: int
    raw: bool
    references: int

    def remember(self, image: NetworkInput) -> Kept:
        """What is kept of a clip's first frame."""

    def segment(self, image: NetworkInput, references: list[Kept]) -> tuple[FloatArray, Kept]:
        """An image and N references -> probability (S, S) in 0..1, and what is kept of this frame, if anything."""


class Streaming:
    """reference_encoder.onnx and segmenter.onnx: no frame is encoded twice. Features (1, 1, K, h*w, d) are kept."""

    def __init__(self, release: Path) -> None:
        self.encoder, self.segmenter = open_graph(release / ENCODER), open_graph(release / SEGMENTER)
        self.size, self.raw = image_of(self.segmenter, "image")
        made = {node.name for node in self.segmenter.get_outputs()}
        self.outputs = [name for name in ("probability", "own_key", "own_value") if name in made]
        self.references = int(self.segmenter.get_modelmeta().custom_metadata_map["references"])

    def remember(self, image: NetworkInput) -> Kept:
        """Key and value of the first frame."""
        return tuple(self.encoder.run(["key", "value"], {"image": image}))

    def segment(self, image: NetworkInput, references: list[Kept]) -> tuple[FloatArray, Kept]:
        """See `Network`; key and value of the frame itself come from networks of several references alone."""
        key, value = (np.concatenate(frames, axis=1) for frames in zip(*references, strict=True))
        probability, *own = self.segmenter.run(self.outputs, {"image": image, "key": key, "value": value})
        return probability[0, 0], tuple(own)


class Pair:
    """pdnet.onnx: encodes the references anew for each frame. Inputs are kept."""

    def __init__(self, release: Path) -> None:
        self.graph = open_graph(release / PAIR)
        shapes = {node.name: node.shape for node in self.graph.get_inputs()}
        self.size, self.raw = image_of(self.graph, "target")
        self.references = int(shapes["reference"][1]) if len(shapes["reference"]) == 5 else 1

    def remember(self, image: NetworkInput) -> Kept:
        """The frame itself."""
        return (image,)

    def segment(self, image: NetworkInput, references: list[Kept]) -> tuple[FloatArray, Kept]:
        """See `Network`."""
        images = [image for (image,) in references]
        reference = images[0] if self.references == 1 else np.stack(images, axis=1)  # (1, N, *image)
        (probability,) = self.graph.run(["probability"], {"target": image, "reference": reference})
        return probability[0, 0], (image,)


def image_of(graph: Any, name: str) -> tuple[int, bool]:
    """Side S of a graph's images, that of the training where any is taken, and whether they are uint8 (S, S, 3)."""
    (axes,) = (node.shape for node in graph.get_inputs() if node.name == name)
    side = axes[2] if isinstance(axes[2], int) else graph.get_modelmeta().custom_metadata_map["size"]
    return int(side), axes[-1] == 3


def open_network(release: Path) -> Network:
    """The graphs that stream where the release has them: networks without IPDA have the pair graph alone."""
    return Streaming(release) if (release / SEGMENTER).exists() else Pair(release)


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """Open an ONNX file on the CPU."""
    options = onnxruntime.SessionOptions()
    threads = (os.environ.get("OMP_NUM_THREADS") or "0").partition(",")[0]  # 0: one a core
    options.intra_op_num_threads = int(threads)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class ServedModel(PythonModel):
    """PDNet behind MLflow's interface; one instance answers the requests of several threads."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the network.

        The model's configuration holds `threshold` (portrait from this probability on), `largest_frame` (pixels),
        `longest_clip` (frames), `longest_request` (frames of all its clips) and `largest_answer` (bytes of all its
        masks); SERVING_MODEL_CONFIG, a JSON object in a server's environment, overrides them.
        """
        self.network = open_network(Path(context.artifacts["release"]))
        config = context.model_config
        self.threshold = float(config["threshold"])
        self.largest_frame, self.longest_clip = int(config["largest_frame"]), int(config["longest_clip"])
        self.longest_request, self.largest_answer = int(config["longest_request"]), int(config["largest_answer"])

    def predict(  # type: ignore[override]  # MLflow leaves out the context where it is not asked for
        self, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Segment the clips of one request.

        Raises:
            MlflowException: the request is none that can be answered; the server's answer is 400 with the reason.
        """
        output = (params or {}).get("output", OUTPUTS[0])
        if output not in OUTPUTS:
            raise refusal(f"parameter `output` is {output!r}; expected {' or '.join(OUTPUTS)}")
        column = find_column(model_input)
        cells = list(model_input[column])
        if len(cells) > self.longest_request:  # a clip has a frame or more
            raise self.too_long()
        if column == "frame":
            frames = (read_frame(cell, f"row {row} of `frame`", self.largest_frame) for row, cell in enumerate(cells))
            clips = [self.segment(frames, "`frame`")]
        else:
            clips = [
                self.segment(read_clip(cell, f"row {row} of `clip`", self.largest_frame), f"row {row} of `clip`")
                for row, cell in enumerate(cells)
            ]
        rows: list[tuple[int, int, bytes]] = []
        size = 0
        for clip, probabilities in enumerate(clips):
            for position, probability in enumerate(probabilities):
                if len(rows) == self.longest_request:
                    raise self.too_long()
                mask = self.encode(probability, output)
                if (size := size + len(mask)) > self.largest_answer:
                    raise refusal(f"the masks take more than {self.largest_answer:,} bytes; expected a smaller request")
                rows.append((clip, position, mask))
        return pd.DataFrame(rows, columns=["clip", "frame", "mask"]).astype({"clip": "int64", "frame": "int64"})

    def too_long(self) -> MlflowException:
        """The refusal of a request with too many frames."""
        return refusal(f"the request has more than {self.longest_request:,} frames in all; expected a shorter one")

    def segment(self, frames: Iterable[UInt8Array], where: str) -> Iterator[FloatArray]:
        """The probability of portrait, (H, W) in 0..1, for each (H, W, 3) uint8 RGB frame of one clip.

        Frames come one by one, and none is kept: a clip's length costs time, not memory.
        """
        lags = [REFERENCE_LAG * n for n in range(1, self.network.references)]
        past: deque[Kept] = deque(maxlen=max(lags, default=0))
        first: Kept | None = None
        for position, frame in enumerate(frames):
            if position == self.longest_clip:
                raise refusal(f"{where}: more than {self.longest_clip:,} frames; expected a shorter clip")
            image = to_input(frame, self.network.size, raw=self.network.raw)
            if first is None:
                first = self.network.remember(image)
            # No reference lies before the first frame.
            references = [first, *(past[-lag] if lag <= len(past) else first for lag in lags)]
            probability, kept = self.network.segment(image, references)
            past.append(kept)
            yield enlarge(probability, *frame.shape[:2])

    def encode(self, probability: FloatArray, output: str) -> bytes:
        """(H, W) in 0..1 -> grey PNG."""
        if output == "mask":
            levels = np.multiply(probability >= self.threshold, 255, dtype=np.uint8)
        else:
            scaled = probability * np.float32(255)
            levels = np.rint(scaled, out=scaled).clip(0, 255, out=scaled).astype(np.uint8)
        png = io.BytesIO()
        Image.fromarray(levels).save(png, "PNG")
        return png.getvalue()


def refusal(reason: str) -> MlflowException:
    """The error that reaches an HTTP client as status 400."""
    error: MlflowException = MlflowException.invalid_parameter_value(reason)
    return error


def find_column(table: pd.DataFrame) -> str:
    """Which of the two columns a request has.

    Raises:
        MlflowException: it has both or neither, or no rows.
    """
    found = [column for column in COLUMNS if column in table.columns]
    if len(found) != 1:
        has = "both columns `frame` and `clip`" if found else "neither a column `frame` nor a column `clip`"
        raise refusal(f"the table has {has}; expected one: `frame` (images of one clip) or `clip` (videos)")
    if table.empty:
        raise refusal(f"column `{found[0]}` has no rows; expected at least one")
    return found[0]


def read_frame(cell: object, where: str, largest: int) -> UInt8Array:
    """Decode an image: (H, W, 3) uint8 RGB, EXIF rotation applied. Decoded frames pass.

    Raises:
        MlflowException: it is no image, damaged, or has more than `largest` pixels, or a side that is too long.
    """
    if isinstance(cell, np.ndarray) and cell.dtype == np.uint8 and cell.ndim == 3 and cell.shape[2] == 3 and cell.size:
        return cell
    data = _to_bytes(cell, where, _EXPECTED_IMAGE)
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGES) as image:
            _check_size(image.width, image.height, largest, where)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return np.asarray(to_rgb(image))
    except UnidentifiedImageError:
        raise refusal(f"{where}: not an image ({len(data)} bytes); {_EXPECTED_IMAGE}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise refusal(f"{where}: damaged image ({_one_line(error)})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any Pillow mode to RGB; 16-bit grey is scaled (Pillow's own conversion clips it)."""
    if image.mode.startswith("I") or image.mode == "F":
        values = np.array(image, dtype=np.float32)  # exact up to 2**24, and no level is close to a half
        peak = 65535 if image.mode.startswith("I;16") or values.max(initial=0) > 255 else 255
        values *= np.float32(255 / peak)
        image = Image.fromarray(np.round(values, out=values).clip(0, 255, out=values).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def read_clip(cell: object, where: str, largest: int) -> Iterator[UInt8Array]:
    """Decode a video frame by frame: (H, W, 3) uint8 RGB, rotation and mirroring applied.

    Raises:
        MlflowException: it is no video, has no frames, is damaged or cut off, or has more than `largest` pixels a
            frame.
    """
    data = _to_bytes(cell, where, _EXPECTED_VIDEO)
    frames = 0
    try:
        for frame in _decode(data, where, largest):
            yield frame
            frames += 1
    except (av.FFmpegError, ValueError) as error:
        if frames:
            raise refusal(f"{where}: damaged or cut off after {frames} frames ({_one_line(error)})") from None
        raise refusal(f"{where}: not a video that can be read ({len(data)} bytes); {_EXPECTED_VIDEO}") from None
    if not frames:
        raise refusal(f"{where}: a video without frames ({len(data)} bytes); expected at least one")


def _decode(data: bytes, where: str, largest: int) -> Iterator[UInt8Array]:
    options = {"format_whitelist": _VIDEOS}
    with av.open(io.BytesIO(data), "r", container_options=options, metadata_errors="replace") as file:
        stream = file.streams.best("video")
        if not isinstance(stream, av.VideoStream) or stream.codec_context is None:
            raise refusal(f"{where}: no video in the file that can be decoded; {_EXPECTED_VIDEO}")
        _check_size(stream.codec_context.width, stream.codec_context.height, largest, where)
        stream.codec_context.options = {"max_pixels": str(largest)}  # a frame may have another size than the stream
        # Of an MP4 or MOV that breaks off between two frames, its index alone tells.
        if (end := max((entry.pos + entry.size for entry in stream.index_entries), default=0)) > len(data):
            raise refusal(f"{where}: cut off: {len(data)} bytes of at least {end}")
        turn: Turn | None = None
        for frame in file.decode(stream):
            if frame.is_corrupt:
                raise refusal(f"{where}: a damaged or cut-off video")
            _check_size(frame.width, frame.height, largest, where)
            turn = turn or display_matrix(frame)
            yield upright(frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False), turn)


def display_matrix(frame: VideoFrame) -> Turn:
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
    if abs(a) + abs(d) < abs(b) + abs(c):
        image = image.transpose(1, 0, 2)
        a, d = c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def to_input(frame: UInt8Array, size: int, *, raw: bool) -> NetworkInput:
    """(H, W, 3) uint8 RGB -> (1, 3, size, size), normalised; or (1, size, size, 3) uint8, `raw`."""
    small = np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
    if raw:
        return small[None]
    scaled = (small.astype(np.float32) - np.float32(255) * np.array(MEAN, np.float32)) / (
        np.float32(255) * np.array(STD, np.float32)
    )
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))[None]


def enlarge(values: FloatArray, height: int, width: int) -> FloatArray:
    """Resize (h, w) bilinearly to (height, width), corners aligned, as torch does it."""
    if values.shape == (height, width):
        return values
    left, right, x = _neighbours(values.shape[1], width)
    columns = values[:, left] * (1 - x) + values[:, right] * x  # (h, width)
    top, bottom, y = _neighbours(values.shape[0], height)
    result = np.empty((height, width), np.float32)  # the only array of the frame's size
    for start in range(0, height, _BAND):
        band = slice(start, start + _BAND)
        result[band] = columns[top[band]] * (1 - y[band])[:, None] + columns[bottom[band]] * y[band, None]
    return result


def _neighbours(before: int, after: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], FloatArray]:
    """For each of `after` positions on an axis of `before`: the neighbours, and the weight of the second, 0..1."""
    scale = np.float32(before - 1) / np.float32(after - 1) if after > 1 else np.float32(0)
    at = np.arange(after, dtype=np.float32) * scale
    first = np.minimum(at.astype(np.intp), before - 1)
    return first, np.minimum(first + 1, before - 1), np.clip(at - first.astype(np.float32), 0, 1)


def _to_bytes(cell: object, where: str, expected: str) -> bytes:
    """The content of a cell. MLflow decodes base64 in the formats of a table, and not in `inputs` and `instances`."""
    content = cell.encode() if isinstance(cell, str) else cell
    if not isinstance(content, (bytes, bytearray, memoryview)):
        found = f"array {cell.shape} of {cell.dtype}" if isinstance(cell, np.ndarray) else type(cell).__name__
        raise refusal(f"{where}: {found}; {expected}")
    data = bytes(content)
    if _BASE64.fullmatch(data):  # no image or video consists of these characters alone
        with contextlib.suppress(binascii.Error):
            data = base64.decodebytes(data)
    if not data:
        raise refusal(f"{where}: empty; {expected}")
    return data


def _check_size(width: int, height: int, largest: int, where: str) -> None:
    if width * height > largest:
        raise refusal(f"{where}: {width}x{height} pixels; expected at most {largest:,} in all")
    if max(width, height) > _LONGEST_SIDE:
        raise refusal(f"{where}: {width}x{height} pixels; expected at most {_LONGEST_SIDE:,} a side")


def _one_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


mlflow.models.set_model(ServedModel())
