"""A folder of frames becomes a folder of masks, whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_profile import decided_network

from pdnet.data.io import read_image
from pdnet.errors import CheckpointError, ConfigError, DataError
from pdnet.inference.predict import predict
from pdnet.inference.session import PortraitSession
from pdnet.inference.torch_backend import TorchBackend
from pdnet.weights import save_model

SIZE = 97  # of the model file; not that of any params file


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, decided_network(), {"size": SIZE})
    return path


@pytest.fixture
def frames(portraits: Path, tmp_path: Path) -> Path:
    """Six frames that may be changed."""
    return Path(shutil.copytree(portraits / "Keyframes" / "480p" / "talk" / "c", tmp_path / "frames"))


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted(folder.glob("*.png"))}


def test_a_mask_a_frame_as_a_session_has_them(frames, model, tmp_path):
    done = predict(frames, tmp_path / "masks", model=model, device="cpu", precision="fp32")
    assert done.fps > 0
    assert (done.frames, done.kind, done.backend) == (6, "masks", "torch, fp32")
    found = masks_in(tmp_path / "masks")
    paths = sorted(frames.iterdir())
    assert list(found) == [path.stem for path in paths]
    session = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=read_image(paths[0]))
    for path in paths:
        wanted = session.step(read_image(path)).probability >= 0.5
        assert found[path.stem].dtype == np.uint8
        np.testing.assert_array_equal(found[path.stem], wanted * np.uint8(255))
    assert {0, 255} == set(np.unique(list(found.values())))
    written = {path.name for path in (tmp_path / "masks").iterdir()} - {f"{stem}.png" for stem in found}
    assert written == {".pdnet"}


def test_the_first_name_is_the_reference_and_kinds_and_sizes_may_mix(frames, model, tmp_path):
    first = Image.open(frames / "00000.jpg")
    first.save(frames / "00000.png")  # the same picture without the losses of JPEG
    (frames / "00000.jpg").unlink()
    Image.open(frames / "00025.jpg").resize((50, 120)).convert("L").save(frames / "00025.bmp")
    (frames / "00025.jpg").unlink()
    (frames / "notes.txt").write_text("not a frame")
    predict(frames, tmp_path / "masks", model=model, device="cpu", precision="fp32")
    found = masks_in(tmp_path / "masks")
    assert [mask.shape for mask in found.values()] == [(72, 96)] * 5 + [(120, 50)]
    session = PortraitSession(TorchBackend(decided_network(), size=SIZE), reference=np.asarray(first.convert("RGB")))
    wanted = session.step(read_image(frames / "00020.jpg")).probability >= 0.5
    np.testing.assert_array_equal(found["00020"] > 0, wanted)


def test_a_second_run_replaces_the_folder(frames, model, tmp_path):
    predict(frames, tmp_path / "masks", model=model, device="cpu")
    before = masks_in(tmp_path / "masks")
    (frames / "00010.jpg").unlink()
    predict(frames, tmp_path / "masks", model=model, device="cpu")
    after = masks_in(tmp_path / "masks")
    assert set(before) - set(after) == {"00010"}
    for stem, mask in after.items():
        np.testing.assert_array_equal(mask, before[stem])


def test_a_damaged_frame_leaves_the_old_masks(frames, model, tmp_path):
    predict(frames, tmp_path / "masks", model=model, device="cpu")
    before = masks_in(tmp_path / "masks")
    damaged = frames / "00015.jpg"
    damaged.write_bytes(damaged.read_bytes()[:700])
    with pytest.raises(DataError) as caught:
        predict(frames, tmp_path / "masks", model=model, device="cpu")
    assert str(caught.value).startswith(f"{damaged}: damaged image")
    after = masks_in(tmp_path / "masks")
    assert list(after) == list(before)
    assert all((after[stem] == before[stem]).all() for stem in before)
    assert {path.name for path in tmp_path.iterdir()} == {"frames", "masks"}


def test_frames_are_never_the_target(frames, model, tmp_path):
    before = sorted(path.name for path in frames.iterdir())
    (tmp_path / "link").symlink_to(frames, target_is_directory=True)
    for out in (frames, tmp_path / "link", frames.parent):
        with pytest.raises(DataError) as caught:
            predict(frames, out, model=model, device="cpu")
        assert str(caught.value).startswith(f"{out}: ")
    assert sorted(path.name for path in frames.iterdir()) == before


@pytest.mark.parametrize("kind", ["missing", "file", "empty"])
def test_no_folder_of_frames(model, tmp_path, kind):
    frames = tmp_path / "frames"
    if kind == "file":
        frames.write_text("")
    elif kind == "empty":
        frames.mkdir()
    with pytest.raises(DataError) as caught:
        predict(frames, tmp_path / "masks", model=model, device="cpu")
    message = {
        "missing": "no such file or folder; expected a video or a folder of frames",
        "file": "not a video that can be read (0 bytes); expected a video (MP4, MOV, WebM, MKV, AVI, MPEG) or a folder "
        "of frames",
        "empty": "no images",
    }[kind]
    assert str(caught.value) == f"{frames}: {message}"
    assert not (tmp_path / "masks").exists()


def test_no_model(frames, tmp_path):
    for content in (None, b"", b"weights" * 100):
        model = tmp_path / "model.safetensors"
        if content is not None:
            model.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            predict(frames, tmp_path / "masks", model=model, device="cpu")
        assert str(caught.value).startswith(f"{model}: ")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "masks").exists()


def test_a_model_file_that_does_not_say_its_input_size(frames, tmp_path):
    model = tmp_path / "model.safetensors"
    save_model(model, decided_network())
    with pytest.raises(CheckpointError) as caught:
        predict(frames, tmp_path / "masks", model=model, device="cpu")
    assert str(caught.value) == f"{model}: does not say the size of the network's input; expected the fact 'size'"


@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "cpu:x", ""])
def test_no_device(frames, model, tmp_path, device):
    with pytest.raises(ConfigError) as caught:
        predict(frames, tmp_path / "masks", model=model, device=device)
    assert str(caught.value) == f"device: '{device}', expected auto, cpu, cuda or cuda:<index>"


def test_a_backend_that_does_not_fit_the_model(frames, model, tmp_path):
    with pytest.raises(DataError, match="onnxruntime"):
        predict(frames, tmp_path / "masks", model=model, backend="onnxruntime", device="cpu")
    with pytest.raises(ConfigError):
        predict(frames, tmp_path / "masks", model=model, backend="caffe", device="cpu")
    assert not (tmp_path / "masks").exists()


def test_a_second_reference_is_five_files_back(portraits, frames, tmp_path):
    for index in range(3):
        shutil.copy(portraits / "Keyframes" / "480p" / "talk" / "a" / f"{5 * index:05d}.jpg", frames / f"9{index}.jpg")
    model = tmp_path / "two.safetensors"
    save_model(model, decided_network(references=2), {"size": SIZE})
    predict(frames, tmp_path / "masks", model=model, device="cpu", precision="fp32")
    backend = TorchBackend(decided_network(references=2), size=SIZE)
    pictures = [read_image(path) for path in sorted(frames.iterdir())]
    found = list(masks_in(tmp_path / "masks").values())
    masks = {}
    for lag in (5, 25):
        session = PortraitSession(backend, reference=pictures[0], lag=lag)
        masks[lag] = [(session.step(picture).probability >= 0.5) * np.uint8(255) for picture in pictures]
    np.testing.assert_array_equal(found, masks[5])
    assert any((near != far).any() for near, far in zip(masks[5], masks[25], strict=True))


def test_pictures_instead_of_masks(frames, model, tmp_path):
    done = predict(frames, tmp_path / "out", model=model, device="cpu", background="transparent")
    assert (done.frames, done.kind) == (6, "pictures")
    assert {picture.shape for picture in masks_in(tmp_path / "out").values()} == {(72, 96, 4)}
    predict(frames, tmp_path / "out", model=model, device="cpu", show="parts")
    assert {picture.shape for picture in masks_in(tmp_path / "out").values()} == {(72, 96, 3)}


def test_a_network_without_parts_cannot_show_them(frames, tmp_path):
    model = tmp_path / "model.safetensors"
    save_model(model, decided_network(ipda=False), {"size": SIZE})
    with pytest.raises(DataError, match="show: the model gives no parts"):
        predict(frames, tmp_path / "out", model=model, device="cpu", show="parts")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["masks.png", "clip.avi", "clip.GIF"])
def test_files_that_cannot_be_written(frames, model, tmp_path, name):
    with pytest.raises(DataError) as caught:
        predict(frames, tmp_path / name, model=model, device="cpu")
    assert str(caught.value).startswith(
        f"{tmp_path / name}: cannot be written as {Path(name).suffix.lower()}; expected"
    )
