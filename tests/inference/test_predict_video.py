"""Videos in, videos out: upright, in time, with their sound; whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tiny_profile import decided_network

from pdnet.data.io import read_image
from pdnet.errors import DataError
from pdnet.inference import composite
from pdnet.inference.clip import Colours, Facts, Frame
from pdnet.inference.predict import predict
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.inference.video import VideoReader, declared_size, write_video
from pdnet.weights import save_model

SIZE = 65
EXPECTED = "expected a video (MP4, MOV, WebM, MKV, AVI, MPEG) or a folder of frames"
#: x' = a x + c y, y' = b x + d y: by how much a player turns and mirrors, and NumPy's way to do the same
TURNS = {
    "none": ((1, 0, 0, 1), lambda x: x),
    "right": ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
    "left": ((0, -1, 1, 0), np.rot90),
    "half": ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
    "mirrored": ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, decided_network(), {"size": SIZE})
    return path


@pytest.fixture(scope="module")
def drawn(portraits: Path) -> list[np.ndarray]:
    """Nine frames, 96 x 72."""
    return [read_image(path) for path in sorted((portraits / "Keyframes").rglob("*.jpg"))][::2]


def make_video(
    path: Path,
    frames: Sequence[np.ndarray],
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    times: Sequence[int] | None = None,
    time_base: Fraction = Fraction(1, 25),
    sound: str | None = None,
    turn: Sequence[int] | None = None,
    aspect: Fraction | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Encode frames (H, W, 3); with a tone, if `sound` names a codec; `turn` is (a, b, c, d) of the display matrix."""
    times = times or range(len(frames))
    with av.open(path, "w", options=options or {}) as file:
        stream = file.add_stream(codec, rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        tone = file.add_stream(sound, rate=48000, layout="mono") if sound else None
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, time_base
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
        if tone is not None:
            length = int(len(frames) / 25 * 48000)
            wave = (12000 * np.sin(np.arange(length) / 20)).astype(np.int16)[None]
            samples = av.AudioFrame.from_ndarray(wave, format="s16", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48000, 0, Fraction(1, 48000)
            resampler = av.AudioResampler(format=tone.format, layout="mono", rate=48000, frame_size=tone.frame_size)
            for part in [*resampler.resample(samples), *resampler.resample(None)]:
                file.mux(tone.encode(part))
            file.mux(tone.encode())
    if turn is not None:  # the matrix of the track, 36 bytes after 40 others of its header
        data = path.read_bytes()
        a, b, c, d = (value * 65536 for value in turn)
        at = data.index(b"tkhd") + 44
        path.write_bytes(data[:at] + np.array([a, b, 0, c, d, 0, 0, 0, 1 << 30], ">i4").tobytes() + data[at + 36 :])
    return path


def read(path: Path) -> tuple[Facts, list[Frame]]:
    with VideoReader(path) as video:
        return video.facts, list(video.frames())


def seconds(path: Path) -> np.ndarray:
    facts, frames = read(path)
    return np.array([float(frame.time * facts.time_base) for frame in frames])


def sound_of(path: Path) -> tuple[str, str, int, float] | None:
    """Codec, digest and number of the packets, and how much later than the picture the first comes."""
    with av.open(path) as file:
        if not file.streams.audio:
            return None
        packets = [packet for packet in file.demux(file.streams.audio[0]) if packet.size]
        digest = hashlib.md5(b"".join(bytes(packet) for packet in packets)).hexdigest()
        first = float(packets[0].pts * packets[0].time_base)
        return file.streams.audio[0].codec_context.name, digest, len(packets), round(first - seconds(path)[0], 2)


def expected_masks(frames: Sequence[np.ndarray], lag: int = 25, **architecture: int) -> list[np.ndarray]:
    backend = TorchBackend(decided_network(**architecture), size=SIZE)
    session = PortraitSession(backend, reference=frames[0], lag=lag)
    return [composite.mask(frame, session.step(frame)) for frame in frames]


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


# --- masks


@pytest.mark.parametrize("name", ["clip.avi", "clip.webm", "clip.mpg", "clip.bin"])
def test_a_mask_for_each_frame_of_a_video(name, drawn, model, tmp_path):
    kinds = {"clip.avi": "mpeg4", "clip.webm": "libvpx-vp9", "clip.mpg": "mpeg2video"}
    clip = make_video(tmp_path / name.replace("bin", "mov"), drawn, codec=kinds.get(name, "libx264"))
    clip = clip.rename(tmp_path / name)  # what is in a file counts, not its name
    done = predict(clip, tmp_path / "masks", model=model, device="cpu", precision="fp32")
    assert (done.frames, done.kind) == (9, "masks")
    found = masks_in(tmp_path / "masks")
    assert list(found) == [f"{index:05d}" for index in range(9)]
    wanted = expected_masks([frame.image for frame in read(clip)[1]])
    np.testing.assert_array_equal(list(found.values()), wanted)
    assert set(np.unique(wanted)) == {0, 255}


@pytest.mark.parametrize("turn", TURNS)
def test_a_video_is_read_as_a_player_shows_it(turn, drawn, model, tmp_path):
    matrix, turned = TURNS[turn]
    plain = make_video(tmp_path / "plain.mp4", drawn[:3], aspect=Fraction(4, 3))
    tagged = make_video(tmp_path / "tagged.mp4", drawn[:3], turn=matrix, aspect=Fraction(4, 3))
    (_, stored), (facts, shown) = read(plain), read(tagged)
    for before, after in zip(stored, shown, strict=True):
        np.testing.assert_array_equal(after.image, turned(before.image))
    assert (facts.height, facts.width) == shown[0].image.shape[:2]
    assert facts.aspect == (Fraction(3, 4) if turn in ("right", "left") else Fraction(4, 3))
    predict(tagged, tmp_path / "masks", model=model, device="cpu", precision="fp32")
    np.testing.assert_array_equal(
        list(masks_in(tmp_path / "masks").values()), expected_masks([frame.image for frame in shown])
    )
    predict(tagged, tmp_path / "out.mp4", model=model, device="cpu")
    after = read(tmp_path / "out.mp4")[0]
    assert (after.height, after.width, after.aspect) == (facts.height, facts.width, facts.aspect)
    with av.open(tmp_path / "out.mp4") as file:
        assert next(file.decode(video=0)).rotation == 0


def test_a_second_reference_is_25_frames_back(drawn, tmp_path):
    frames = [*drawn, *drawn[::-1], *drawn, *drawn[::-1]]
    clip = make_video(tmp_path / "clip.mp4", frames)
    save_model(tmp_path / "two.safetensors", decided_network(references=2), {"size": SIZE})
    predict(clip, tmp_path / "masks", model=tmp_path / "two.safetensors", device="cpu", precision="fp32")
    decoded = [frame.image for frame in read(clip)[1]]
    found = list(masks_in(tmp_path / "masks").values())
    np.testing.assert_array_equal(found, expected_masks(decoded, references=2))
    assert any((a != b).any() for a, b in zip(found, expected_masks(decoded, lag=5, references=2), strict=True))


# --- videos


@pytest.mark.parametrize("name", ["out.mp4", "out.MOV", "out.mkv", "out.webm"])
def test_a_video_shows_the_portrait_before_a_blur(name, drawn, model, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", drawn)
    done = predict(clip, tmp_path / name, model=model, device="cpu", precision="fp32")
    assert (done.frames, done.kind) == (9, "frames")
    frames = [frame.image for frame in read(clip)[1]]
    session = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=frames[0], lag=25)
    _, found = read(tmp_path / name)
    assert len(found) == 9
    for frame, after in zip(frames, found, strict=True):
        wanted = composite.blur(frame, session.step(frame)).astype(float)
        assert np.abs(after.image - wanted).mean() < 6  # what H.264 and VP9 lose
    np.testing.assert_allclose(seconds(tmp_path / name), seconds(clip), atol=0.0006)
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", name}


@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.webm"])
def test_frames_keep_their_times(name, drawn, model, tmp_path):
    times = [500, 501, 540, 600, 601, 615, 900, 1000]  # a late start, and gaps, in units of 1/600 s
    clip = make_video(tmp_path / "clip.mov", (drawn * 2)[:8], times=times, time_base=Fraction(1, 600))
    predict(clip, tmp_path / name, model=model, device="cpu")
    found = seconds(tmp_path / name)
    np.testing.assert_allclose(found, np.array(times) / 600, atol=0.0011)  # starts are whole milliseconds
    if name == "out.mp4":
        np.testing.assert_allclose(np.diff(found), np.diff(times) / 600, atol=1e-6)


@pytest.mark.parametrize(
    ("source", "sound", "name"),
    [
        ("clip.mp4", "aac", "out.mp4"),
        ("clip.mov", "pcm_s16le", "out.mov"),
        ("clip.avi", "mp3", "out.mp4"),
        ("clip.webm", "libopus", "out.webm"),
        ("clip.mp4", "aac", "out.mkv"),
    ],
)
def test_the_sound_is_copied(source, sound, name, drawn, model, tmp_path, caplog):
    kinds = {".avi": "mpeg4", ".webm": "libvpx-vp9"}
    clip = make_video(tmp_path / source, drawn, codec=kinds.get(Path(source).suffix, "libx264"), sound=sound)
    with caplog.at_level(logging.WARNING, logger="pdnet"):
        predict(clip, tmp_path / name, model=model, device="cpu")
    found = sound_of(tmp_path / name)
    assert found is not None
    assert found == sound_of(clip)
    assert not caplog.messages
    assert len(read(tmp_path / name)[1]) == 9


def samples_of(path: Path) -> np.ndarray:
    """The samples of a file's sound, mono, 48 kHz, with silence before the first."""
    with av.open(path) as file:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=48000)
        frames = [part for frame in file.decode(audio=0) for part in resampler.resample(frame)]
        before = round(float(frames[0].pts * frames[0].time_base) * 48000)
        return np.concatenate([np.zeros(max(before, 0)), *(frame.to_ndarray()[0] for frame in frames)])


@pytest.mark.parametrize(
    ("source", "sound", "name", "codec"),
    [
        ("clip.mp4", "aac", "out.webm", "opus"),
        ("clip.avi", "adpcm_ms", "out.mp4", "aac"),
        ("clip.webm", "libopus", "out.mov", "aac"),
        ("clip.mkv", "flac", "out.mov", "aac"),
    ],
)
def test_sound_that_a_file_does_not_take_is_encoded_anew(source, sound, name, codec, drawn, model, tmp_path, caplog):
    kinds = {".avi": "mpeg4", ".webm": "libvpx-vp9"}
    clip = make_video(tmp_path / source, drawn * 3, codec=kinds.get(Path(source).suffix, "libx264"), sound=sound)
    with caplog.at_level(logging.WARNING, logger="pdnet"):
        predict(clip, tmp_path / name, model=model, device="cpu")
    assert sound_of(tmp_path / name)[0] == codec
    assert not caplog.messages
    before, after = samples_of(clip), samples_of(tmp_path / name)
    assert len(after) == pytest.approx(len(before), abs=2048)  # a block of either coding
    shared = min(len(before), len(after)) - 2048
    # the same tone at the same time: in phase, and as loud
    level = np.dot(before[2048:shared], after[2048:shared]) / np.dot(before[2048:shared], before[2048:shared])
    assert level == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("shape", [(71, 96), (72, 95), (35, 51), (16, 16)])
@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_sides_of_any_length(name, shape, drawn, model, tmp_path):
    frames = [frame[: shape[0], : shape[1]] for frame in drawn[:3]]
    clip = make_video(tmp_path / "clip.avi", frames, codec="ffv1", pixels="bgr0")
    predict(clip, tmp_path / name, model=model, device="cpu")
    facts, found = read(tmp_path / name)
    even = tuple(side + side % 2 for side in shape) if name == "out.mp4" else shape
    assert (facts.height, facts.width) == even
    assert len(found) == 3


@pytest.mark.parametrize(("suffix", "codec"), [(".webm", "libvpx-vp9"), (".mov", "prores")])
def test_transparent_videos(suffix, codec, drawn, model, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", drawn[:4], sound=None)
    out = tmp_path / f"out{suffix}"
    predict(clip, out, model=model, device="cpu", precision="fp32", background="transparent")
    with av.open(out) as file:
        decoder = av.CodecContext.create(codec, "r")  # FFmpeg's own VP9 does not read transparency
        decoder.extradata = file.streams.video[0].codec_context.extradata
        packets = list(file.demux(video=0))
        found = [frame.to_ndarray(format="rgba") for packet in packets for frame in decoder.decode(packet)]
    frames = [frame.image for frame in read(clip)[1]]
    session = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=frames[0], lag=25)
    assert len(found) == 4
    for frame, after in zip(frames, found, strict=True):
        alpha = composite.transparent(frame, session.step(frame))[..., 3].astype(float)
        assert np.abs(after[..., 3] - alpha).mean() < 4
        assert alpha.min() < 30
        assert alpha.max() > 225


@pytest.mark.parametrize("matrix", [1, 2, 6, 9])
@pytest.mark.parametrize("name", ["out.mp4", "out.webm"])
def test_colours_stay_as_they_are(name, matrix, tmp_path):
    colours = np.array([[(30, 200, 90), (200, 30, 60), (120, 120, 120)], [(250, 250, 250), (10, 20, 220), (5, 5, 5)]])
    picture = colours.astype(np.uint8).repeat(32, axis=0).repeat(32, axis=1)
    facts = Facts(64, 96, Fraction(25), Fraction(1, 25), None, Colours(matrix, matrix, 2))
    with write_video(tmp_path / name, facts) as video:
        video.write(Frame("0", picture, 0, 1), picture)
    after, (frame,) = read(tmp_path / name)
    assert after.colours.matrix == matrix
    assert np.abs(frame.image[16::32, 16::32].astype(int) - colours).max() <= 5


def test_a_folder_becomes_a_video(portraits, model, tmp_path):
    folder = portraits / "Keyframes" / "480p" / "talk" / "c"
    done = predict(folder, tmp_path / "out.mp4", model=model, device="cpu", background="#102030")
    assert (done.frames, done.kind) == (6, "frames")
    np.testing.assert_allclose(seconds(tmp_path / "out.mp4"), np.arange(6) / 25)
    assert read(tmp_path / "out.mp4")[0].colours == Colours(1, 1, 1)


def test_a_folder_of_two_sizes_makes_no_video(drawn, model, tmp_path):
    (tmp_path / "frames").mkdir()
    Image.fromarray(drawn[0]).save(tmp_path / "frames" / "0.png")
    Image.fromarray(drawn[1][:50]).save(tmp_path / "frames" / "1.png")
    with pytest.raises(DataError, match=r"1: 96x50; expected 96x72, as the clip's first frame"):
        predict(tmp_path / "frames", tmp_path / "out.mp4", model=model, device="cpu")
    assert not (tmp_path / "out.mp4").exists()


def test_progress_says_how_fast_it_goes(drawn, model, tmp_path, caplog):
    clip = make_video(tmp_path / "clip.webm", drawn[:3], codec="libvpx-vp9")  # does not know its number of frames
    with caplog.at_level(logging.INFO, logger="pdnet.progress"):
        predict(clip, tmp_path / "out.mp4", model=model, device="cpu")
        predict(tmp_path / "out.mp4", tmp_path / "masks", model=model, device="cpu")
    told = [message.split() for message in caplog.messages if message.startswith("predict")]
    assert [words[1] for words in told] == ["1", "2", "3", "3/3", "1/3", "2/3", "3/3"]
    assert all(words[3] == "frames/s" and float(words[2]) > 0 for words in told)


# --- what is wrong


def fails(source: Path, out: Path, model: Path, **options: str) -> str:
    """The message of a failure that leaves what was there, and nothing else."""
    before = {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")}
    with pytest.raises(DataError) as caught:
        predict(source, out, model=model, device="cpu", **options)
    assert {path: path.stat().st_mtime_ns for path in out.parent.rglob("*")} == before
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("content", [b"", b"not a video\n" * 50, b"#EXTM3U\nfile:///etc/passwd\n", b"\0" * 5000])
def test_files_that_are_no_video(content, model, tmp_path):
    source = tmp_path / "clip.mp4"
    source.write_bytes(content)
    wanted = f"{source}: not a video that can be read ({len(content)} bytes); {EXPECTED}"
    assert fails(source, tmp_path / "out.mp4", model) == wanted


def test_pictures_and_sounds_are_no_video(drawn, model, tmp_path):
    Image.fromarray(drawn[0]).save(tmp_path / "frame.png")
    assert ": not a video that can be read (" in fails(tmp_path / "frame.png", tmp_path / "masks", model)
    with av.open(tmp_path / "tone.mp4", "w") as file:
        tone = file.add_stream("aac", rate=48000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 48000
        file.mux(tone.encode(samples))
        file.mux(tone.encode())
    wanted = f"{tmp_path / 'tone.mp4'}: holds no video that can be decoded, but audio; {EXPECTED}"
    assert fails(tmp_path / "tone.mp4", tmp_path / "masks", model) == wanted


def test_a_video_without_frames(drawn, model, tmp_path):
    # the header alone: a recording that was stopped before its first frame
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    clip = make_video(tmp_path / "clip.mp4", drawn[:3], options=fragments)
    data = clip.read_bytes()
    clip.write_bytes(data[: data.index(b"moof") - 4])
    message = fails(clip, tmp_path / "out.mp4", model)
    assert message.startswith(f"{clip}: ")
    assert "expected" in message


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.webm", "clip.avi"])
def test_videos_that_are_cut_off(name, share, model, tmp_path):
    # the index at the front, as of a download that breaks off; a recording of noise, so that its bytes are frames
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (72, 96, 3), np.uint8) for _ in range(12)]
    codec = {"clip.webm": "libvpx-vp9", "clip.avi": "mpeg4"}.get(name, "libx264")
    clip = make_video(tmp_path / name, frames, codec=codec, options={"movflags": "faststart"})
    data = clip.read_bytes()
    clip.write_bytes(data[: int(len(data) * share)])
    message = fails(clip, tmp_path / "out.mp4", model)
    assert message.startswith(f"{clip}: cut off: {int(len(data) * share)} bytes of at least ")
    assert message.endswith("; expected a whole video")


def test_a_recording_that_does_not_say_its_size(drawn, model, tmp_path):
    """As a browser records it: Matroska of unknown length, which is no sign of anything."""
    clip = make_video(tmp_path / "clip.webm", drawn, codec="libvpx-vp9", options={"live": "1"})
    assert declared_size(clip) == 0
    predict(clip, tmp_path / "out.mp4", model=model, device="cpu")
    assert len(read(tmp_path / "out.mp4")[1]) == len(drawn)


@pytest.mark.parametrize(
    "head", [b"", b"RIFF", bytes.fromhex("1A45DFA3"), bytes.fromhex("1A45DFA300"), bytes.fromhex("1A45DFA3A3") * 2]
)
def test_headers_that_say_no_size(head, tmp_path):
    (tmp_path / "clip.mkv").write_bytes(head)
    assert declared_size(tmp_path / "clip.mkv") in (0, 8)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_recordings_in_fragments_that_are_cut_off(share, model, tmp_path):
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 256, (72, 96, 3), np.uint8) for _ in range(12)]
    clip = make_video(tmp_path / "clip.mp4", frames, options={"movflags": "frag_every_frame+empty_moov"})
    data = clip.read_bytes()
    assert declared_size(clip) == len(data)
    clip.write_bytes(data[: int(len(data) * share)])
    assert ": cut off: " in fails(clip, tmp_path / "out.mp4", model)


def test_an_avi_whose_length_was_never_filled_in(drawn, model, tmp_path):
    clip = make_video(tmp_path / "clip.avi", drawn, codec="mpeg4")
    data = clip.read_bytes()
    clip.write_bytes(data[:4] + b"\xff" * 4 + data[8:])
    predict(clip, tmp_path / "out.mp4", model=model, device="cpu")
    assert len(read(tmp_path / "out.mp4")[1]) == len(drawn)


@pytest.mark.parametrize("out", ["a:1.out.mp4", "masks:1"])
def test_names_with_colons(out, drawn, model, tmp_path, monkeypatch):
    """FFmpeg takes what stands before a colon for a protocol."""
    monkeypatch.chdir(tmp_path)
    clip = make_video(tmp_path / "talk:1.mp4", drawn[:3])
    predict(Path(clip.name), Path(out), model=model, device="cpu")
    assert Path(out).exists()


@pytest.mark.parametrize("lost", [50, 8000])
def test_videos_that_are_damaged(lost, model, tmp_path):
    rng = np.random.default_rng(0)
    clip = make_video(tmp_path / "clip.mp4", [rng.integers(0, 256, (72, 96, 3), np.uint8) for _ in range(12)])
    data = bytearray(clip.read_bytes())
    start, size = data.index(b"mdat"), len(data)
    middle = start + (size - start) // 2
    data[middle : middle + lost] = bytes(lost)
    clip.write_bytes(data)
    (tmp_path / "out.mp4").write_text("what was there")
    message = fails(clip, tmp_path / "out.mp4", model)
    assert message.startswith(f"{clip}: damaged or cut off after ")
    assert message.endswith("; expected a whole video")


def peak_mib(source: Path, out: Path, model: Path) -> float:
    """The most memory of a `pdnet predict` of its own."""
    program = (
        "import sys; from pdnet.cli import main; assert main(sys.argv[1:]) == 0\n"
        "print(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])"
    )
    arguments = ["predict", source, "-o", out, "--model", model, "--device", "cpu"]
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) / 1024


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells how much memory a process had")
@pytest.mark.parametrize("out", ["out.mp4", "masks"])
def test_memory_does_not_grow_with_the_length(out, drawn, model, tmp_path):
    frames = [np.kron(frame, np.ones((5, 5, 1), np.uint8)) for frame in drawn]  # 480 x 360, 0.5 MiB each
    short, long = (make_video(tmp_path / f"{n}.mp4", frames * n, sound="aac") for n in (4, 50))
    peaks = [peak_mib(each, tmp_path / each.stem / out, model) for each in (short, long)]
    assert peaks[1] - peaks[0] < 60, f"{peaks} MiB, where 414 more frames are 205 MiB"


def test_where_nothing_is_written(drawn, model, tmp_path):
    clip = make_video(tmp_path / "clip.mp4", drawn[:2])
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "file").write_text("")
    out = tmp_path / "out.mkv"
    kept = f"{out}: .mkv keeps no transparency; expected .webm or .mov, or a folder"
    assert fails(clip, out, model, background="transparent") == kept
    wanted = f"{clip}: what is written would replace the source; expected another path"
    assert fails(clip, clip, model) == wanted
    wanted = f"{tmp_path / 'folder.mp4'}: a folder; expected the path of a video to write"
    assert fails(clip, tmp_path / "folder.mp4", model) == wanted
    assert ": cannot be written (" in fails(clip, tmp_path / "file" / "out.mp4", model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").write_text("")
    assert ": holds other files; expected " in fails(clip, tmp_path / "full", model)


def test_real_videos(shared, model, tmp_path):
    folder = shared / "data" / "videos" / "odd"
    for name in ("squat_rotate_tag.mp4", "juggle_vfr.mp4", "iphone_rotate_tag_no_person.mov", "juggle_one_frame.mp4"):
        predict(folder / name, tmp_path / "out.mp4", model=model, device="cpu")
        before, after = read(folder / name), read(tmp_path / "out.mp4")
        assert len(before[1]) == len(after[1])
        np.testing.assert_allclose(seconds(tmp_path / "out.mp4"), seconds(folder / name), atol=1e-6)
        assert after[1][0].image.shape == before[1][0].image.shape
        assert sound_of(tmp_path / "out.mp4") == sound_of(folder / name)
    (tmp_path / "out.mp4").unlink()
    for name in ("juggle_truncated_midstream.mp4", "juggle_truncated_no_moov.mp4", "audio_only.mp4", "empty.mp4"):
        assert fails(folder / name, tmp_path / "out.mp4", model).startswith(f"{folder / name}: ")
