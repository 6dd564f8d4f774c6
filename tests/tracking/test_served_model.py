"""The served model: the package's masks, from what a person would send, and a reason for what it refuses."""

from __future__ import annotations

import gc
import io
import itertools
import json
import re
import subprocess
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import mlflow.pyfunc
import numpy as np
import onnx
import onnx.checker
import onnx.parser
import pandas as pd
import psutil
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image
from tiny_profile import SIZE, decided_network

from pdnet.data import streams, transforms
from pdnet.data.io import read_image
from pdnet.errors import ExportError
from pdnet.export.onnx import Form, export_streaming
from pdnet.files import file_digest
from pdnet.inference.onnx_backend import OnnxModel, PairBackend, StreamingBackend
from pdnet.inference.session import PortraitSession
from pdnet.model import resize
from pdnet.tracking import served_model
from pdnet.tracking.pyfunc import LIBRARIES, SCRIPT, draw_portrait, save_served_model
from pdnet.tracking.store import open_store

Open = Callable[[np.ndarray], PortraitSession]


def write_release(folder: Path, *, references: int = 1, streaming: bool = True) -> Path:
    """What the served model needs of a release, with graphs of a few nodes that refer to N frames."""
    release = folder / "release"
    release.mkdir(parents=True)
    rng = np.random.default_rng(references)
    kernel, weights = (", ".join(map(str, rng.normal(0, 0.5, count))) for count in (27, references))
    constants = f"<float[1,3,3,3] kernel = {{{kernel}}}, float[1,{references},1,1,1] weights = {{{weights}}}>"
    several = f"float[batch,{references},3,{SIZE},{SIZE}]"
    image, out, frame = (f"float[batch,{axes},{SIZE},{SIZE}]" for axes in ("3", "1", "1,3"))
    seen = image if references == 1 else several
    segment = """
        weighed = Mul(references, weights)
        axes = Constant<value_ints=[1]>()
        sum = ReduceSum<keepdims=0>(weighed, axes)
        mine = Conv<pads=[1,1,1,1]>(target, kernel)
        theirs = Conv<pads=[2,2,2,2], dilations=[2,2]>(sum, kernel)
        logits = Sub(mine, theirs)
        probability = Sigmoid(logits)
    """
    graphs = {
        "pdnet.onnx": f"""
            pair ({image} target, {seen} reference) => ({out} probability) {constants} {{
                shape = Constant<value_ints=[-1,{references},3,{SIZE},{SIZE}]>()
                references = Reshape(reference, shape)
                {segment}
            }}"""
    }
    if streaming:
        own = f", {frame} own_key, {frame} own_value" if references > 1 else ""
        features = """
            axis = Constant<value_ints=[1]>()
            own_key = Unsqueeze(image, axis)
            own_value = Neg(own_key)
        """
        graphs["reference_encoder.onnx"] = f"""
            encoder ({image} image) => ({frame} key, {frame} value) {{
                {features}
                key = Identity(own_key)
                value = Identity(own_value)
            }}"""
        graphs["segmenter.onnx"] = f"""
            segmenter ({image} image, {several} key, {several} value) => ({out} probability{own}) {constants} {{
                {features}
                target = Identity(image)
                negative = Neg(value)
                references = Mean(key, negative)
                {segment}
            }}"""
    for name, text in graphs.items():
        model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 18]> {text}')
        model.metadata_props.add(key="references", value=str(references))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, release / name)
    (release / "params.yaml").write_text("evaluation: {threshold: 0.5}\n")
    return release


def write_real_release(folder: Path, form: Form) -> Path:
    """The same of a small PDNet of two references; an export takes seconds."""
    release = folder / "release"
    release.mkdir(parents=True)
    export_streaming(decided_network(references=2), release, form)
    (release / "params.yaml").write_text("evaluation: {threshold: 0.5}\n")
    return release


def save_quietly(path: Path, release: Path) -> None:
    """Write the model as `pdnet register` does, with a store open; no file is made for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "sqlite://")
        with open_store():
            save_served_model(path, release)


def encode(frame: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, kind, **options)
    return buffer.getvalue()


def make_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    turn: Sequence[int] | None = None,
    **options: str,
) -> bytes:
    """Encode frames (H, W, 3); `turn` is (a, b, c, d) of the display matrix."""
    with av.open(path, "w", options=options) as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    data = path.read_bytes()
    if turn is not None:  # the matrix of the track, 36 bytes after 40 others of its header
        a, b, c, d = (value * 65536 for value in turn)
        at = data.index(b"tkhd") + 44
        data = data[:at] + np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes() + data[at + 36 :]
    return data


def decode(data: bytes) -> list[np.ndarray]:
    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def masks_of(answer: pd.DataFrame) -> list[np.ndarray]:
    images = [Image.open(io.BytesIO(png)) for png in answer["mask"]]
    assert {(image.format, image.mode) for image in images} == {("PNG", "L")}
    return [np.asarray(image) for image in images]


def session_masks(session: Open, frames: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What the package makes of the same frames."""
    opened = session(frames[0])
    return [(opened.step(frame).probability >= 0.5).astype(np.uint8) * np.uint8(255) for frame in frames]


class Served:
    """A saved model, the release it was made of, and the package's session of the same graphs."""

    def __init__(self, release: Path) -> None:
        self.release, self.folder = release, release.parent / "model"
        save_quietly(self.folder, release)
        self.model = mlflow.pyfunc.load_model(str(self.folder))
        self.session: Open
        if (release / "segmenter.onnx").exists():
            graphs = StreamingBackend(release)
            self.session = lambda frame: PortraitSession(graphs, reference=frame)
        else:
            pair = OnnxModel(release / "pdnet.onnx")
            self.session = lambda frame: PortraitSession(PairBackend(pair), reference=frame)

    def frames(self, cells: Sequence[Any], **params: Any) -> pd.DataFrame:
        return self.model.predict(pd.DataFrame({"frame": list(cells)}), params=params or None)

    def clips(self, *cells: Any, **params: Any) -> pd.DataFrame:
        return self.model.predict(pd.DataFrame({"clip": list(cells)}), params=params or None)


FORMS = {"PDNet": Form(SIZE, 18), "PDNet, frames of any size": Form(SIZE, 18, input="frames", any_size=True)}


@pytest.fixture(scope="module", params=["1 pair", "1 streaming", "2 pair", "2 streaming", *FORMS])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One and two references, the pair graph and those that stream; and a small PDNet in two forms."""
    folder = tmp_path_factory.mktemp("each")
    if request.param in FORMS:
        return Served(write_real_release(folder, FORMS[request.param]))
    references, graphs = request.param.split()
    return Served(write_release(folder, references=int(references), streaming=graphs == "streaming"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    return Served(write_release(tmp_path_factory.mktemp("served")))


@pytest.fixture(scope="module")
def drawn(portraits: Path) -> list[np.ndarray]:
    return [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][:8]


def test_the_masks_are_those_of_the_package(each: Served, drawn: list[np.ndarray]):
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, shape, np.uint8) for shape in ((72, 96, 3), (131, 50, 3), (SIZE, SIZE, 3), (1, 7, 3))]
    clip = [*drawn, *noise]
    answer = each.frames([encode(frame) for frame in clip])
    assert answer["clip"].tolist() == [0] * len(clip)
    assert answer["frame"].tolist() == list(range(len(clip)))
    found, wanted = masks_of(answer), session_masks(each.session, clip)
    assert [mask.shape for mask in found] == [frame.shape[:2] for frame in clip]
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert 0.02 < np.mean([mask.mean() / 255 for mask in found]) < 0.98
    # the second half against another reference is another clip
    again = masks_of(each.frames([encode(frame) for frame in clip[6:]]))
    assert any((ours != theirs).any() for ours, theirs in zip(again, found[6:], strict=True))


def test_the_probability_is_asked_for_by_a_parameter(served: Served, drawn: list[np.ndarray]):
    session = served.session(drawn[0])
    found = masks_of(served.frames([encode(frame) for frame in drawn], output="probability"))
    for frame, levels in zip(drawn, found, strict=True):
        np.testing.assert_allclose(levels, session.step(frame).probability * 255, rtol=0, atol=0.51)
    assert len(np.unique(found)) > 20


def test_decoded_frames_are_taken_from_python(served: Served, drawn: list[np.ndarray]):
    encoded = served.frames([encode(frame) for frame in drawn])
    pd.testing.assert_frame_equal(served.frames(drawn), encoded)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (5, 3), (72, 96), (65, 65), (65, 130), (480, 854), (1081, 719)])
def test_enlarging_is_torchs_within_rounding(size: tuple[int, int]):
    values = np.random.default_rng(1).random((65, 65)).astype(np.float32)
    wanted = resize(torch.from_numpy(values)[None, None], size)[0, 0].numpy()
    found = served_model.enlarge(values, *size)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=0, atol=2e-7)


def test_what_is_repeated_of_the_package_is_the_same():
    assert (served_model.MEAN, served_model.STD) == (transforms.MEAN, transforms.STD)
    assert served_model.REFERENCE_LAG == streams.REFERENCE_LAG


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_image_formats(served: Served, drawn: list[np.ndarray], kind: str, tmp_path: Path):
    cells = [encode(frame, kind) for frame in drawn[:3]]
    files = [tmp_path / f"{index}.{kind.lower()}" for index in range(3)]
    for path, cell in zip(files, cells, strict=True):
        path.write_bytes(cell)
    wanted = session_masks(served.session, [read_image(path) for path in files])
    for ours, theirs in zip(masks_of(served.frames(cells)), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "L and turned", "RGB and turned"])
def test_kinds_of_pixels_are_read_as_by_the_package(drawn: list[np.ndarray], mode: str, tmp_path: Path):
    image, options = Image.fromarray(drawn[2]), {}
    if mode.endswith("turned"):
        exif = Image.Exif()
        exif[0x0112] = 6
        mode, options = mode.split(maxsplit=1)[0], {"exif": exif}
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
    else:
        image = image.convert(mode)
    path = tmp_path / ("image.jpg" if mode == "CMYK" else "image.png")
    image.save(path, **options)
    found = served_model.read_frame(path.read_bytes(), "", 1 << 20)
    np.testing.assert_array_equal(found, read_image(path))
    assert found.shape == ((96, 72, 3) if options else (72, 96, 3))


def test_every_level_of_16_bits_is_read_as_by_the_package(tmp_path: Path):
    path = tmp_path / "image.png"
    Image.fromarray(np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)).save(path)
    found = served_model.read_frame(path.read_bytes(), "", 1 << 20)
    np.testing.assert_array_equal(found, read_image(path))
    assert len(np.unique(found)) == 256


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "libx264"),
        ("a.mov", "libx264"),
        ("a.mkv", "libx265"),
        ("a.webm", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.ts", "libx264"),
    ],
)
def test_videos(served: Served, drawn: list[np.ndarray], name: str, codec: str, tmp_path: Path):
    clip = make_video(tmp_path / name, drawn, codec=codec)
    other = make_video(tmp_path / f"other_{name}", drawn[::-1][:3], codec=codec)
    answer = served.clips(clip, other)
    assert answer["clip"].tolist() == [0] * 8 + [1] * 3
    assert answer["frame"].tolist() == [*range(8), *range(3)]
    wanted = session_masks(served.session, decode(clip)) + session_masks(served.session, decode(other))
    for ours, theirs in zip(masks_of(answer), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_title_that_is_no_utf8_does_no_harm(served: Served, drawn: list[np.ndarray], tmp_path: Path):
    clip = make_video(tmp_path / "a.mp4", drawn[:2])
    assert clip.count(b"Lavf") == 1
    assert len(served.clips(clip.replace(b"Lavf", b"\xe9\xff\xfe\xe8"))) == 2


@pytest.mark.parametrize(
    ("turn", "as_seen"),
    [
        ((1, 0, 0, 1), lambda frame: frame),
        ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),  # a telephone held upright
        ((-1, 0, 0, -1), lambda frame: np.rot90(frame, 2)),
        ((0, -1, 1, 0), lambda frame: np.rot90(frame, 1)),
        ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),  # its camera for selfies
        ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    ],
)
def test_a_turned_video_is_segmented_as_it_is_seen(
    served: Served, drawn: list[np.ndarray], tmp_path: Path, turn: tuple[int, ...], as_seen: Callable[..., np.ndarray]
):
    clip = make_video(tmp_path / "clip.mp4", drawn[:2], turn=turn)
    wanted = session_masks(served.session, [np.ascontiguousarray(as_seen(frame)) for frame in decode(clip)])
    for ours, theirs in zip(masks_of(served.clips(clip)), wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("quarters", [-2, -1, 0, 1, 2])
def test_the_angle_is_known_where_a_frame_carries_what_pyav_has_no_name_for(drawn: list[np.ndarray], quarters: int):
    class Frame:
        rotation = 90 * quarters

        @property
        def side_data(self) -> None:
            raise ValueError("31 is not a valid Type")

    turn = served_model.display_matrix(Frame())  # type: ignore[arg-type]
    np.testing.assert_array_equal(served_model.upright(drawn[0], turn), np.rot90(drawn[0], quarters))


def test_decoding_holds_no_frame(drawn: list[np.ndarray], tmp_path: Path):
    """A hundred frames of 6 MB each, without the garbage collector, which may come late."""
    large = [np.asarray(Image.fromarray(drawn[0]).resize((1920, 1080)))]
    clip = make_video(tmp_path / "a.mp4", large * 100, codec="mpeg4")
    gc.collect()
    gc.disable()
    try:
        grown = []
        for _ in served_model.read_clip(clip, "clip", 1 << 22):
            grown.append(psutil.Process().memory_info().rss / 2**20)
    finally:
        gc.enable()
    assert len(grown) == 100
    assert grown[-1] - grown[20] < 60


def test_a_clip_is_never_held_in_memory(served: Served, drawn: list[np.ndarray]):
    """Frames are asked for one by one, and none is there when the next is."""
    alive: list[Any] = []

    def clip() -> Iterator[np.ndarray]:
        import weakref

        for frame in drawn:
            assert all(reference() is None for reference in alive[:-1])
            copy = frame.copy()
            alive.append(weakref.ref(copy))
            yield copy

    model = served.model.unwrap_python_model()
    frames = clip()
    for count, _ in enumerate(model.segment(frames, "clip"), 1):
        assert len(alive) == count


# --- what is refused


@pytest.fixture
def refused(served: Served) -> Callable[..., str]:
    """The message of a refusal; an HTTP client gets it with status 400."""

    def ask(table: dict[str, Any], **params: Any) -> str:
        with pytest.raises(MlflowException) as caught:
            served.model.predict(pd.DataFrame(table), params=params or None)
        assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
        assert caught.value.get_http_status_code() == 400
        assert "\n" not in caught.value.message
        return str(caught.value.message)

    return ask


def test_exactly_one_column(refused: Callable[..., str]):
    expected = "expected one: `frame` (images of one clip) or `clip` (videos)"
    assert refused({"frame": [b"x"], "clip": [b"x"]}) == f"the table has both columns `frame` and `clip`; {expected}"
    neither = f"the table has neither a column `frame` nor a column `clip`; {expected}"
    assert refused({"image": [b"x"]}) == neither
    assert refused({}) == neither
    assert refused({"frame": pd.Series([], dtype="str")}) == "column `frame` has no rows; expected at least one"


def test_the_parameter(refused: Callable[..., str], drawn: list[np.ndarray]):
    message = refused({"frame": [encode(drawn[0])]}, output="rgba")
    assert message == "parameter `output` is 'rgba'; expected mask or probability"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        (b"", "row 1 of `frame`: empty; expected an encoded image (JPEG, PNG, WebP, BMP)"),
        (
            b"not a picture\n" * 9,
            "row 1 of `frame`: not an image (126 bytes); expected an encoded image (JPEG, PNG, We",
        ),
        (None, "row 1 of `frame`: NoneType; expected an encoded image"),
        ("/etc/passwd", "row 1 of `frame`: not an image ("),
        (["x"], "row 1 of `frame`: list; expected an encoded image"),
        (np.zeros((4, 5), np.uint8), "row 1 of `frame`: array (4, 5) of uint8; expected an encoded image"),
        (np.zeros((4, 5, 3), np.float32), "row 1 of `frame`: array (4, 5, 3) of float32; expected an encoded image"),
    ],
)
def test_cells_that_are_no_image(refused: Callable[..., str], drawn: list[np.ndarray], cell: object, message: str):
    assert refused({"frame": pd.Series([encode(drawn[0]), cell], dtype=object)}).startswith(message)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_a_truncated_image(refused: Callable[..., str], drawn: list[np.ndarray], kind: str):
    whole = encode(drawn[0], kind)
    message = refused({"frame": [encode(drawn[0]), whole[: len(whole) * 2 // 3]]})
    assert message.startswith(("row 1 of `frame`: damaged image (", "row 1 of `frame`: not an image ("))


def test_a_postscript_file_is_not_run(refused: Callable[..., str]):
    page = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert "not an image" in refused({"frame": [page]})


def test_a_huge_image_is_refused_before_it_is_decoded(refused: Callable[..., str]):
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    for width, height in ((9000, 9000), (60_000, 60_000)):
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
        message = refused({"frame": [bomb + chunk(b"IEND", b"")]})
        assert "9000x9000 pixels; expected at most 35,389,440 in all" in message or "exceeds limit" in message


@pytest.mark.parametrize("size", [(30_000, 1), (1, 16_385)])
def test_a_thin_image_is_refused(refused: Callable[..., str], size: tuple[int, int]):
    """Enlarging goes by way of an array as wide as the frame and as high as the network's output."""
    width, height = size
    message = refused({"frame": [encode(np.zeros((height, width, 3), np.uint8))]})
    assert message == f"row 0 of `frame`: {width}x{height} pixels; expected at most 16,384 a side"


def test_a_truncated_video(served: Served, refused: Callable[..., str], drawn: list[np.ndarray], tmp_path: Path):
    frames = drawn * 4
    plain, ahead = make_video(tmp_path / "a.mp4", frames), make_video(tmp_path / "b.mp4", frames, movflags="faststart")
    assert "not a video that can be read" in refused({"clip": [plain[: len(plain) // 2]]})
    for share in (0.5, 0.8, 0.9, 0.99):  # the index is at the front and complete
        cut = ahead[: int(share * len(ahead))]
        assert f"row 0 of `clip`: cut off: {len(cut)} bytes of at least {len(ahead)}" == refused({"clip": [cut]})
    part = make_video(tmp_path / "d.avi", frames, codec="mpeg4")
    assert refused({"clip": [part[: len(part) * 9 // 10]]}) == "row 0 of `clip`: a damaged or cut-off video"
    # Matroska has no index: what is there is segmented, or there is a reason.
    clip = make_video(tmp_path / "c.webm", frames, codec="libvpx-vp9")
    answer = served.clips(clip[: len(clip) * 9 // 10])
    assert 20 < len(answer) < 32


def test_a_damaged_video(refused: Callable[..., str], drawn: list[np.ndarray], tmp_path: Path):
    clip = bytearray(make_video(tmp_path / "a.mp4", drawn * 4))
    middle = clip.index(b"mdat") + 2000
    clip[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    assert "damaged or cut" in refused({"clip": [bytes(clip)]})


@pytest.mark.parametrize(
    "cell",
    [
        b"",
        b"no video\n" * 100,
        b"ffconcat version 1.0\nfile secret.mp4\n",
        b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{}/secret.mp4\n#EXT-X-ENDLIST\n",
        b"\x00\x00\x00\x18ftypisom\x00\x00\x02\x00isomiso2",
    ],
)
def test_cells_that_are_no_video(
    refused: Callable[..., str], drawn: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cell: bytes
):
    """A list of other files is none either, wherever it leads."""
    make_video(tmp_path / "secret.mp4", drawn)
    monkeypatch.chdir(tmp_path)
    message = refused({"clip": [cell.replace(b"{}", str(tmp_path).encode())]})
    assert message.startswith("row 0 of `clip`: ")
    assert message.endswith(("expected an encoded video (MP4, MOV, WebM, MKV, AVI, MPEG)", "expected at least one"))


def test_an_image_is_no_clip_and_sound_neither(refused: Callable[..., str], drawn: list[np.ndarray], tmp_path: Path):
    assert "not a video" in refused({"clip": [encode(drawn[0])]})
    path = tmp_path / "sound.mp4"
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        for packet in [*stream.encode(sound), *stream.encode()]:
            container.mux(packet)
    assert "no video in the file that can be decoded" in refused({"clip": [path.read_bytes()]})


def test_limits_of_the_server(served: Served, drawn: list[np.ndarray], tmp_path: Path):
    """The operator's, set by SERVING_MODEL_CONFIG."""
    limited = mlflow.pyfunc.load_model(str(served.folder), model_config={"longest_clip": 5, "largest_frame": 3000})
    clip = make_video(tmp_path / "a.mp4", drawn)
    with pytest.raises(MlflowException, match=r"row 0 of `clip`: 96x72 pixels; expected at most 3,000 in all"):
        limited.predict(pd.DataFrame({"clip": [clip]}))
    with pytest.raises(MlflowException, match=r"row 0 of `frame`: 96x72 pixels; expected at most 3,000 in all"):
        limited.predict(pd.DataFrame({"frame": [encode(drawn[0])]}))
    short = mlflow.pyfunc.load_model(str(served.folder), model_config={"longest_clip": 5})
    with pytest.raises(MlflowException, match=r"row 0 of `clip`: more than 5 frames; expected a shorter clip"):
        short.predict(pd.DataFrame({"clip": [clip]}))
    assert len(short.predict(pd.DataFrame({"frame": drawn[:5]}))) == 5


def test_a_whole_request_is_limited_too(served: Served, drawn: list[np.ndarray], tmp_path: Path):
    limited = mlflow.pyfunc.load_model(str(served.folder), model_config={"longest_request": 10})
    eight, two = make_video(tmp_path / "a.mp4", drawn), make_video(tmp_path / "b.mp4", drawn[:2])
    too_long = r"the request has more than 10 frames in all; expected a shorter one$"
    assert len(limited.predict(pd.DataFrame({"clip": [eight, two]}))) == 10
    with pytest.raises(MlflowException, match=too_long):
        limited.predict(pd.DataFrame({"clip": [eight, two, two]}))
    # so many rows are refused before the first of them is looked at
    for column in ("clip", "frame"):
        with pytest.raises(MlflowException, match=too_long):
            limited.predict(pd.DataFrame({column: [b"no recording"] * 11}))
    answer = served.frames(drawn)
    size = sum(map(len, answer["mask"]))
    enough = mlflow.pyfunc.load_model(str(served.folder), model_config={"largest_answer": size})
    pd.testing.assert_frame_equal(enough.predict(pd.DataFrame({"frame": drawn})), answer)
    little = mlflow.pyfunc.load_model(str(served.folder), model_config={"largest_answer": size - 1})
    with pytest.raises(MlflowException, match=rf"the masks take more than {size - 1:,} bytes; expected a smaller"):
        little.predict(pd.DataFrame({"frame": drawn}))


def test_base64_is_told_by_the_same_pattern_as_ever():
    """Possessive parts, which need no second look, match what those that give back did: all short strings of a kind."""
    plain = re.compile(rb"[A-Za-z0-9+/\r\n]+=*\s*")
    for length in range(7):
        for letters in itertools.product(b"A\n= \t!", repeat=length):
            text = bytes(letters)
            assert (served_model._BASE64.fullmatch(text) is None) == (plain.fullmatch(text) is None), text


def test_a_cell_of_newlines_takes_time_in_proportion_to_its_length():
    """Eight times the length: eight times the time, and 64 times where each newline is looked at again for each."""

    def seconds(newlines: int) -> float:
        cell = b"A" + b"\n" * newlines + b"!"
        taken = []
        for _ in range(5):
            start = time.process_time()
            assert served_model._BASE64.fullmatch(cell) is None
            taken.append(time.process_time() - start)
        return min(taken)

    assert seconds(16_000) < 24 * max(seconds(2_000), 1e-6)


def test_enlarging_takes_no_second_array_of_the_frames_size():
    values = np.random.default_rng(2).random((65, 65)).astype(np.float32)
    tracemalloc.start()
    try:
        result = served_model.enlarge(values, 2000, 1500)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert result.nbytes < peak < 1.3 * result.nbytes


def test_a_video_may_grow_up_to_the_limit(served: Served, drawn: list[np.ndarray], tmp_path: Path):
    """A broadcast stream may change its size from one frame to the next."""
    large = [np.asarray(Image.fromarray(frame).resize((192, 144))) for frame in drawn]
    clip = make_video(tmp_path / "a.ts", drawn) + make_video(tmp_path / "b.ts", large)
    assert {mask.shape for mask in masks_of(served.clips(clip))} == {(72, 96), (144, 192)}
    limited = mlflow.pyfunc.load_model(str(served.folder), model_config={"largest_frame": 10_000})
    with pytest.raises(MlflowException, match=r"row 0 of `clip`: .*damaged or cut off after \d frames|pixels"):
        limited.predict(pd.DataFrame({"clip": [clip]}))


def test_whatever_bytes_are_wrong_the_answer_is_masks_or_a_reason(
    served: Served, drawn: list[np.ndarray], tmp_path: Path
):
    rng = np.random.default_rng(0)
    sources = {
        "frame": [encode(drawn[0], kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")],
        "clip": [
            make_video(tmp_path / "a.mp4", drawn[:4]),
            make_video(tmp_path / "b.webm", drawn[:4], codec="libvpx-vp9"),
        ],
    }
    refusals = 0
    for column, originals in sources.items():
        for original in originals:
            for _ in range(40):
                data = bytearray(original)
                for _ in range(int(rng.integers(1, 6))):
                    at = int(rng.integers(len(data)))
                    data[at : at + 4] = rng.bytes(4)
                try:
                    served.model.predict(pd.DataFrame({column: [bytes(data)]}))
                except MlflowException as error:
                    assert error.error_code == "INVALID_PARAMETER_VALUE"
                    refusals += 1
    assert refusals > 40


# --- what is written


def test_the_folder(served: Served):
    names = {path.relative_to(served.folder).as_posix() for path in served.folder.rglob("*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name}  # loading compiles the script
    ours = {f"artifacts/release/{path.name}" for path in served.release.iterdir()}
    assert names == ours | {
        "MLmodel",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "served_model.py",
        "serving_input_example.json",
    }
    for path in served.release.iterdir():
        assert file_digest(path) == file_digest(served.folder / "artifacts" / "release" / path.name)
    assert (served.folder / "served_model.py").read_bytes() == SCRIPT.read_bytes()
    requirements = (served.folder / "requirements.txt").read_text().split()
    assert {line.partition("==")[0] for line in requirements} == set(LIBRARIES)
    assert all("==" in line for line in requirements)
    for path in served.folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".txt") or path.name == "MLmodel":
            assert str(served.release.parent) not in path.read_text()
            assert str(SCRIPT.parent) not in path.read_text()


def test_the_signature_and_the_example(served: Served):
    signature = served.model.metadata.signature
    assert [(column.name, column.type.name, column.required) for column in signature.inputs.inputs] == [
        ("frame", "binary", False),
        ("clip", "binary", False),
    ]
    assert [(column.name, column.type.name) for column in signature.outputs.inputs] == [
        ("clip", "long"),
        ("frame", "long"),
        ("mask", "binary"),
    ]
    assert [(param.name, param.default) for param in signature.params.params] == [("output", "mask")]
    example = served.model.input_example
    assert example["frame"].tolist() == [draw_portrait()]
    answer = served.model.predict(example)
    assert masks_of(answer)[0].shape == (120, 160)
    assert {name: str(kind) for name, kind in answer.dtypes.items()} == {
        "clip": "int64",
        "frame": "int64",
        "mask": "object",
    }


@pytest.mark.parametrize(("threshold", "level"), [(0.0, 255), (1.01, 0)])
def test_the_threshold_is_the_releases(tmp_path: Path, drawn: list[np.ndarray], threshold: float, level: int):
    release = write_release(tmp_path)
    (release / "params.yaml").write_text(f"evaluation: {{threshold: {threshold}}}\n")
    assert (masks_of(Served(release).frames(drawn[:1]))[0] == level).all()


def test_the_threshold_itself_is_portrait(served: Served):
    probability = np.array([[0.5, np.nextafter(np.float32(0.5), np.float32(0))]], np.float32)
    png = served.model.unwrap_python_model().encode(probability, "mask")
    assert np.asarray(Image.open(io.BytesIO(png))).tolist() == [[255, 0]]


def test_saving_is_quiet_and_takes_nothing_from_the_working_folder(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "other"\nversion = "1"\n')
    (tmp_path / "uv.lock").write_text("version = 1\n")
    monkeypatch.chdir(tmp_path)
    save_quietly(tmp_path / "model", served.release)
    assert capfd.readouterr() == ("", "")
    assert not {"uv.lock", "pyproject.toml"} & {path.name for path in (tmp_path / "model").iterdir()}


def test_a_model_that_cannot_answer_is_not_written_without_a_word(tmp_path: Path):
    release = tmp_path / "release"
    release.mkdir()
    (release / "params.yaml").write_text("evaluation: {threshold: 0.5}\n")
    (release / "pdnet.onnx").write_bytes(b"no graph")
    with pytest.raises(ExportError, match="the model cannot be served: it fails on its own example"):
        save_quietly(tmp_path / "model", release)


def test_the_script_needs_neither_the_package_nor_torch(served: Served):
    """In a process that cannot import them, on what a server would be sent."""
    program = """
import json, sys
class Closed:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in ("pdnet", "torch", "torchvision", "onnx", "yaml.none"):
            raise ImportError(name)
sys.meta_path.insert(0, Closed())
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
print(json.dumps([len(model.predict(model.input_example)), sorted({"pdnet", "torch"} & set(sys.modules))]))
"""
    command = [sys.executable, "-c", program, str(served.folder)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, []]
