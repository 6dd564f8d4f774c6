"""What cameras, tools and accidents leave on disk: read rightly, or one clear line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from pdnet.data.io import find_images, is_binary, read_image, read_levels, read_mask, read_pair
from pdnet.errors import DataError

#: 6 x 4 pixels, every one of another colour, no channel and no direction like another
PICTURE = np.stack(
    [
        np.arange(24).reshape(4, 6) * 10,
        255 - np.arange(24).reshape(4, 6) * 7,
        np.arange(24).reshape(6, 4).T * 5 + 60,
    ],
    axis=-1,
).astype(np.uint8)
PORTRAIT = np.array([[0, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]], dtype=bool)


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def smooth(mode: str = "RGB") -> Image.Image:
    """A picture that JPEG keeps to a few levels."""
    y, x = np.mgrid[:48, :64]
    rgb = np.stack([3 * x + 20, 4 * y + 30, 2 * x + y + 40], axis=-1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def error_of(call: Any, *arguments: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp"])
def test_colour_images_are_read_as_they_are(tmp_path: Path, suffix: str) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    image = read_image(save(tmp_path / f"a.{suffix}", Image.fromarray(PICTURE), **options))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, PICTURE)


def test_grey_image_has_three_equal_channels(tmp_path: Path) -> None:
    grey = PICTURE[..., 0]
    image = read_image(save(tmp_path / "a.png", Image.fromarray(grey)))
    np.testing.assert_array_equal(image, np.stack([grey] * 3, axis=-1))


def test_palette_image_has_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 100, 50, 7, 8, 9])
    expected = [[[10, 20, 30], [200, 100, 50]], [[7, 8, 9], [200, 100, 50]]]
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", image)), expected)


@pytest.mark.parametrize("values", [[0, 257, 32896, 65535], [0, 100, 200, 255]])
def test_16_bit_grey_is_scaled_to_8_bits_however_dark(tmp_path: Path, values: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.uint16))
    read = read_image(save(tmp_path / "a.png", image))
    np.testing.assert_array_equal(read[0, :, 0], np.round(np.array(values) / 257))
    np.testing.assert_array_equal(read[..., 1], read[..., 0])


def test_cmyk_jpeg_shows_the_same_picture(tmp_path: Path) -> None:
    read = read_image(save(tmp_path / "a.jpg", smooth("CMYK"), quality=95))
    assert np.abs(read.astype(int) - np.asarray(smooth())).max() < 12


def test_alpha_is_dropped_and_colour_kept(tmp_path: Path) -> None:
    alpha = np.arange(24).reshape(4, 6, 1).astype(np.uint8) * 10
    rgba = Image.fromarray(np.concatenate([PICTURE, alpha], axis=-1))
    np.testing.assert_array_equal(read_image(save(tmp_path / "rgba.png", rgba)), PICTURE)
    grey_alpha = Image.fromarray(PICTURE[..., 0]).convert("LA")
    read = read_image(save(tmp_path / "la.png", grey_alpha))
    np.testing.assert_array_equal(read, np.stack([PICTURE[..., 0]] * 3, axis=-1))


@pytest.mark.parametrize(
    ("orientation", "stored"),
    [  # how a camera stores an upright picture under each value of the tag
        (1, PICTURE),
        (2, PICTURE[:, ::-1]),
        (3, PICTURE[::-1, ::-1]),
        (4, PICTURE[::-1]),
        (5, PICTURE.transpose(1, 0, 2)),
        (6, np.rot90(PICTURE, 1)),
        (7, PICTURE[::-1, ::-1].transpose(1, 0, 2)),
        (8, np.rot90(PICTURE, -1)),
    ],
)
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int, stored: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.png", Image.fromarray(np.ascontiguousarray(stored)), exif=exif)
    np.testing.assert_array_equal(read_image(path), PICTURE)


@pytest.mark.parametrize("values", [(0, 1), (0, 255), (0, 38), (0, 128)])
def test_grey_masks_with_any_portrait_value(tmp_path: Path, values: tuple[int, int]) -> None:
    levels = np.array(values, np.uint8)[PORTRAIT.astype(int)]
    path = save(tmp_path / "m.png", Image.fromarray(levels))
    mask = read_mask(path)
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, PORTRAIT)
    np.testing.assert_array_equal(read_levels(path), levels)


@pytest.mark.parametrize("index", [1, 38])
def test_palette_mask_goes_by_its_index_not_its_colour(tmp_path: Path, index: int) -> None:
    image = Image.fromarray(PORTRAIT.astype(np.uint8) * np.uint8(index), "P")
    image.putpalette([255, 255, 255] + [0, 0, 0] * 255)  # background white, portrait black
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", image)), PORTRAIT)


def test_one_bit_mask(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(PORTRAIT))
    assert Image.open(path).mode == "1"
    np.testing.assert_array_equal(read_mask(path), PORTRAIT)
    assert np.unique(read_levels(path)).tolist() == [0, 255]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_grey_mask_stored_in_colour(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PORTRAIT.astype(np.uint8) * np.uint8(255)).convert(mode)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "m.png", image)), PORTRAIT)


@pytest.mark.parametrize("value", [0, 255])
def test_mask_of_one_value(tmp_path: Path, value: int) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(np.full((3, 5), value, np.uint8)))
    np.testing.assert_array_equal(read_mask(path), np.full((3, 5), value > 0))


@pytest.mark.parametrize(
    ("values", "binary"),
    [([0, 0], True), ([7, 7], True), ([0, 38], True), ([255, 0], True), ([100, 200], False), ([0, 1, 255], False)],
)
def test_binary_is_zero_and_one_other_value(values: list[int], binary: bool) -> None:
    assert is_binary(np.array([values, values], np.uint8)) is binary


def test_mask_with_grey_edges_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    path = save(tmp_path / "m.png", Image.fromarray(np.array([[0, 128, 255]], np.uint8)))
    found = error_of(read_mask, path)
    assert found == f"{path}: not a binary mask: it holds 3 values (0, 128, 255), expected 0 and one other"
    many = save(tmp_path / "n.png", Image.fromarray(np.arange(100, dtype=np.uint8)[None]))
    assert "it holds 100 values (0, 1, 2, 3, 4, 5, ...)" in error_of(read_mask, many)
    two = save(tmp_path / "o.png", Image.fromarray(np.array([[100, 200]], np.uint8)))
    assert "it holds 2 values (100, 200)" in error_of(read_mask, two)


@pytest.mark.parametrize("mode", ["RGB", "LA", "I;16"])
def test_mask_of_another_kind_is_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(np.array([[0, 60000]], np.uint16)) if mode == "I;16" else smooth(mode)
    path = save(tmp_path / "m.png", image)
    assert error_of(read_mask, path) == f"{path}: a mask must be a grey or palette image, found mode {mode}"


def test_jpeg_named_png_and_png_named_jpg_are_read(tmp_path: Path) -> None:
    save(tmp_path / "a.png", smooth(), format="JPEG")
    save(tmp_path / "b.jpg", Image.fromarray(PICTURE), format="PNG")
    assert read_image(tmp_path / "a.png").shape == (48, 64, 3)
    np.testing.assert_array_equal(read_image(tmp_path / "b.jpg"), PICTURE)


@pytest.mark.parametrize("read", [read_image, read_mask, read_levels])
def test_files_that_are_no_images(tmp_path: Path, read: Any) -> None:
    path = save(tmp_path / "whole.jpg", smooth())
    whole = path.read_bytes()
    damaged = {
        "cut.jpg": (whole[: len(whole) // 2], "damaged image"),
        "head.jpg": (whole[:30], "damaged image"),
        "empty.jpg": (b"", "not an image that can be read (0 bytes)"),
        "text.jpg": (b"Dear diary, ", "not an image that can be read (12 bytes)"),
    }
    for name, (content, reason) in damaged.items():
        (tmp_path / name).write_bytes(content)
        assert error_of(read, tmp_path / name).startswith(f"{tmp_path / name}: {reason}")
    assert error_of(read, tmp_path / "gone.jpg") == f"{tmp_path / 'gone.jpg'}: no such file"
    assert error_of(read, tmp_path).startswith(f"{tmp_path}: ")


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken EXIF
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
def test_damage_anywhere_is_a_data_error_or_no_error(tmp_path: Path, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stream = io.BytesIO()
    smooth().save(stream, form, **({} if form == "BMP" else {"exif": exif}))
    whole = stream.getvalue()
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(60):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.integers(len(content) if attempt % 2 else 120)] = rng.integers(256)
        path = tmp_path / "a.img"
        path.write_bytes(content[: rng.integers(len(content))] if attempt % 3 == 0 else content)
        try:
            read_image(path)
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ")
    assert refused > 10


def test_pair_must_be_of_one_size(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", Image.fromarray(PICTURE))
    mask = save(tmp_path / "m.png", Image.fromarray(PORTRAIT))
    assert error_of(read_pair, image, mask) == f"{mask}: the mask is 6x3, expected 6x4, the size of {image}"
    fitting = save(tmp_path / "n.png", Image.fromarray(np.pad(PORTRAIT, ((0, 1), (0, 0)))))
    pixels, portrait = read_pair(image, fitting)
    assert pixels.shape[:2] == portrait.shape == (4, 6)


def test_find_images_lists_by_stem_in_order_of_name(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "c.jpeg", ".hidden.png", "notes.txt", "d.webp"):
        (tmp_path / name).write_bytes(b"")
    assert list(find_images(tmp_path)) == ["a", "b", "c", "d"]
    assert find_images(tmp_path)["a"] == tmp_path / "a.JPG"
    (tmp_path / "b.jpg").write_bytes(b"")
    assert error_of(find_images, tmp_path) == f"{tmp_path}: two images of one name: b.jpg and b.png"
    assert error_of(find_images, tmp_path / "gone") == f"{tmp_path / 'gone'}: no such folder"


def test_real_odd_images(shared: Path) -> None:
    folder = shared / "data" / "odd_images"
    wanted = read_image(folder / "real" / "astronaut.png").astype(int)
    for name in ("astronaut_cmyk.jpg", "astronaut_rgb16.png", "astronaut_exif6.jpg", "astronaut_progressive.jpg"):
        read = read_image(folder / "derived" / name)
        resized = np.asarray(Image.fromarray(wanted.astype(np.uint8)).resize(read.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(read.astype(int) - resized).mean() < 8, name
    assert read_image(folder / "derived" / "astronaut_png_bytes_named.jpg").ndim == 3
    for name in ("astronaut_gray_alpha.png", "astronaut_rgba.png", "astronaut_palette.png", "astronaut_gray.jpg"):
        read = read_image(folder / "derived" / name)
        resized = np.asarray(Image.fromarray(wanted.astype(np.uint8)).resize(read.shape[1::-1], Image.Resampling.BOX))
        assert np.abs(read.mean(axis=-1) - resized.mean(axis=-1)).mean() < 16, name
    assert read_image(folder / "derived" / "astronaut_1x1.png").shape == (1, 1, 3)
    assert {read_image(folder / "derived" / "astronaut_7x300.png").shape} <= {(7, 300, 3), (300, 7, 3)}
    sixteen = read_image(folder / "real" / "hopper_16bit.pgm")
    assert sixteen.min() < 30
    assert 200 < sixteen.max() <= 255
    for name in ("hopper_orientation_6.jpg", "hopper_orientation_8.jpg"):
        upright = np.asarray(ImageOps.exif_transpose(Image.open(folder / "real" / name)).convert("RGB"))
        np.testing.assert_array_equal(read_image(folder / "real" / name), upright)


@pytest.mark.parametrize(
    "name",
    ["derived/empty.jpg", "derived/text_named.jpg", "derived/astronaut_truncated.jpg", "real/truncated_jpeg.jpg",
     "real/truncated_end_chunk.png"],
)  # fmt: skip
def test_real_damaged_images(shared: Path, name: str) -> None:
    path = shared / "data" / "odd_images" / name
    assert error_of(read_image, path).startswith(f"{path}: ")
