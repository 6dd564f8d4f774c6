"""Which clips and stills a folder holds, from its names alone."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from pdnet.data.index import FRAME_COLUMNS, STILL_COLUMNS, index_clips, index_stills
from pdnet.errors import DataError


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def mvps(root: Path, *, train: str = "talk/a\n", val: str = "dance/b\n", frames: int = 3) -> Path:
    """An MVPS layout of empty files: the index reads names, not pixels."""
    (root / "ImageSets").mkdir(parents=True)
    (root / "ImageSets" / "train.txt").write_text(train)
    (root / "ImageSets" / "val.txt").write_text(val)
    for clip in ("talk/a", "dance/b"):
        for number in range(frames):
            touch(root / "Keyframes" / "480p" / clip / f"{5 * number:05d}.jpg")
            touch(root / "Annotations" / "480p" / clip / f"{5 * number:05d}.png")
    return root


def stills(root: Path, names: Iterable[str] = "abc", folders: tuple[str, str] = ("Images", "Labels")) -> Path:
    for name in names:
        touch(root / folders[0] / f"{name}.jpg", root / folders[1] / f"{name}.png")
    return root


def clips_error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        index_clips(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def stills_error(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        index_stills(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_frames_in_order_of_list_and_name(tmp_path: Path) -> None:
    root = mvps(tmp_path, train="talk/a\n\n", val="\ufeffdance/b\r\n")
    table = index_clips(root)
    assert tuple(table.columns) == FRAME_COLUMNS
    assert table["split"].tolist() == ["train"] * 3 + ["val"] * 3
    assert table["clip"].tolist() == ["talk/a"] * 3 + ["dance/b"] * 3
    assert table["scenario"].tolist() == ["talk"] * 3 + ["dance"] * 3
    assert table["frame"].tolist() == ["00000", "00005", "00010"] * 2
    assert table["position"].tolist() == [0, 1, 2] * 2
    for row in table.itertuples():
        assert row.image == str(root / "Keyframes" / "480p" / row.clip / f"{row.frame}.jpg")
        assert row.mask == str(root / "Annotations" / "480p" / row.clip / f"{row.frame}.png")


def test_splits_and_resolution_can_be_chosen(tmp_path: Path) -> None:
    root = mvps(tmp_path)
    assert set(index_clips(root, splits=("val",))["clip"]) == {"dance/b"}
    (root / "Keyframes" / "480p").rename(root / "Keyframes" / "720p")
    (root / "Annotations" / "480p").rename(root / "Annotations" / "720p")
    assert len(index_clips(root, resolution="720p")) == 6
    assert clips_error(root) == f"{root / 'Keyframes' / '480p' / 'talk' / 'a'}: no such folder"


def test_an_empty_list_is_an_empty_table(tmp_path: Path) -> None:
    table = index_clips(mvps(tmp_path, train="", val=""))
    assert len(table) == 0
    assert tuple(table.columns) == FRAME_COLUMNS


def test_missing_root_and_lists(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert clips_error(gone) == f"{gone}: no such folder; expected a data set in the MVPS layout"
    root = mvps(tmp_path / "set")
    (root / "ImageSets" / "val.txt").unlink()
    assert clips_error(root) == f"{root / 'ImageSets' / 'val.txt'}: no such file"
    (root / "ImageSets" / "val.txt").write_bytes(b"\xff\xfe\xff")
    assert clips_error(root).startswith(f"{root / 'ImageSets' / 'val.txt'}: cannot be read as text (")


def test_missing_clip_frames_and_masks(tmp_path: Path) -> None:
    root = mvps(tmp_path / "set", val="dance/c\n")
    assert clips_error(root) == f"{root / 'Keyframes' / '480p' / 'dance' / 'c'}: no such folder"
    (root / "ImageSets" / "val.txt").write_text("dance/b\n")
    masks = root / "Annotations" / "480p" / "dance" / "b"
    (masks / "00005.png").unlink()
    assert clips_error(root) == f"{masks}: 1 of 3 images have no mask, first: 00005"
    touch(masks / "00005.png", masks / "00007.png")
    assert clips_error(root) == f"{masks}: 1 of 4 masks have no image, first: 00007"
    for path in (root / "Keyframes" / "480p" / "dance" / "b").iterdir():
        path.unlink()
    assert clips_error(root) == f"{root / 'Keyframes' / '480p' / 'dance' / 'b'}: no images"


def test_half_pairs_are_listed_where_that_is_asked_for(tmp_path: Path) -> None:
    root = mvps(tmp_path, train="talk/a\ntalk/half\n")
    images, masks = (root / kind / "480p" / "talk" for kind in ("Keyframes", "Annotations"))
    (images / "a" / "00005.jpg").unlink()
    (masks / "a" / "00010.png").unlink()
    touch(images / "half" / "00000.png")  # no folder of masks at all
    table = index_clips(root, complete=False)
    assert table["frame"].tolist() == ["00000", "00005", "00010", "00000", "00000", "00005", "00010"]
    assert table["position"].tolist() == [0, 1, 2, 0, 0, 1, 2]
    missing = [path for path in [*table["image"], *table["mask"]] if not Path(path).is_file()]
    assert missing == [
        str(images / "a" / "00005.jpg"),
        str(masks / "a" / "00010.png"),
        str(masks / "half" / "00000.png"),
    ]
    (root / "ImageSets" / "train.txt").write_text("talk/a\n")
    touch(images / "a" / "00005.jpg", masks / "a" / "00010.png")
    assert index_clips(root, complete=False).equals(index_clips(root))


def test_clips_without_any_file_are_all_named(tmp_path: Path) -> None:
    root = mvps(tmp_path, train="talk/a\ntalk/gone\n", val="dance/b\ndance/bare\ntalk/gone\n")
    for kind in ("Keyframes", "Annotations"):
        (root / kind / "480p" / "dance" / "bare").mkdir()
    with pytest.raises(DataError) as caught:
        index_clips(root, complete=False)
    folders = f"{root / 'Keyframes' / '480p'} nor {root / 'Annotations' / '480p'}"
    assert str(caught.value) == f"{root / 'ImageSets'}: names clips without a file in {folders}: talk/gone, dance/bare"


@pytest.mark.parametrize("clip", ["../x", "talk/..", "../../etc", "/etc", "a", "a/b/c", "/talk/a"])
def test_a_clip_outside_the_layout_is_refused(tmp_path: Path, clip: str) -> None:
    root = mvps(tmp_path / "set", train=f"talk/a\n{clip}\n")
    assert clips_error(root) == f"{root / 'ImageSets' / 'train.txt'}: '{clip}' is not <scenario>/<clip>"


@pytest.mark.parametrize("folders", [("Images", "Labels"), ("images", "masks"), ("Images", "masks"), ("img", "mask")])
def test_stills_of_either_layout_are_paired_by_stem(tmp_path: Path, folders: tuple[str, str]) -> None:
    table = index_stills(stills(tmp_path, "bca", folders))
    assert tuple(table.columns) == STILL_COLUMNS
    assert table["name"].tolist() == ["a", "b", "c"]
    assert table["image"].tolist() == [str(tmp_path / folders[0] / f"{name}.jpg") for name in "abc"]
    assert table["mask"].tolist() == [str(tmp_path / folders[1] / f"{name}.png") for name in "abc"]


def test_a_list_chooses_stills_and_may_carry_suffixes(tmp_path: Path) -> None:
    root = stills(tmp_path, "abcd")
    (root / "train.txt").write_text("c\na.png\n\nImages/d.jpg\n")
    assert index_stills(root)["name"].tolist() == ["c", "a", "d"]
    (root / "train.txt").write_text("c\nz\ny\n")
    assert stills_error(root) == (f"{root / 'train.txt'}: 2 of 3 names have no image in {root / 'Images'}, first: z")


def test_a_list_may_name_stems_with_dots(tmp_path: Path) -> None:
    root = stills(tmp_path, ["a", "a.b", "c.png", "c"])
    (root / "train.txt").write_text("a.b\nImages/a.b.jpg\nc.png\nc.jpg\n")
    assert index_stills(root)["name"].tolist() == ["a.b", "a.b", "c.png", "c"]
    (root / "train.txt").write_text("a\na.x\n")
    assert stills_error(root).endswith(f"names have no image in {root / 'Images'}, first: a.x")


def test_half_pairs_of_stills_are_listed_where_that_is_asked_for(tmp_path: Path) -> None:
    root = stills(tmp_path)
    (root / "Images" / "a.jpg").unlink()
    (root / "Labels" / "c.png").unlink()
    table = index_stills(root, complete=False)
    assert table["name"].tolist() == ["a", "b", "c"]
    missing = [path for path in [*table["image"], *table["mask"]] if not Path(path).is_file()]
    assert missing == [str(root / "Images" / "a.jpg"), str(root / "Labels" / "c.png")]
    (root / "train.txt").write_text("b\nz\n")
    table = index_stills(root, complete=False)
    assert table["name"].tolist() == ["b", "z"]
    assert (table["image"][1], table["mask"][1]) == (str(root / "Images" / "z.jpg"), str(root / "Labels" / "z.png"))


def test_half_pairs_are_refused(tmp_path: Path) -> None:
    root = stills(tmp_path)
    (root / "Labels" / "b.png").unlink()
    assert stills_error(root) == f"{root / 'Labels'}: 1 of 3 images have no mask, first: b"
    touch(root / "Labels" / "b.png", root / "Labels" / "z.png")
    assert stills_error(root) == f"{root / 'Labels'}: 1 of 4 masks have no image, first: z"
    (root / "train.txt").write_text("a\n")  # a chosen subset: the rest is no business of ours
    assert index_stills(root)["name"].tolist() == ["a"]
    (root / "Labels" / "a.png").unlink()
    assert stills_error(root) == f"{root / 'Labels'}: 1 of 1 images have no mask, first: a"


def test_missing_still_folders(tmp_path: Path) -> None:
    assert stills_error(tmp_path / "gone").startswith(f"{tmp_path / 'gone'}: no such folder; expected an image set")
    (tmp_path / "Images").mkdir()
    assert stills_error(tmp_path).startswith(f"{tmp_path}: none of the folders Labels, ")
    (tmp_path / "Labels").mkdir()
    assert stills_error(tmp_path) == f"{tmp_path / 'Images'}: no images"


def test_real_sets(shared: Path) -> None:
    data = shared / "data"
    real = index_stills(data / "portraits" / "EG1800")
    assert len(real) == 1270
    assert real["name"].is_unique
    people = index_clips(data / "portraits" / "DAVIS_people")
    assert people.groupby("split")["clip"].nunique().to_dict() == {"train": 6, "val": 1}
    assert set(people["scenario"]) == {"outdoor_activity"}
    one = index_clips(data / "MVPS_layout")  # its train.txt is empty
    assert one["frame"].tolist() == [f"{number:05d}" for number in range(0, 70, 5)]
    assert set(one["split"]) == {"val"}
    for table in (real, people, one):
        assert all(Path(path).is_file() for path in [*table["image"], *table["mask"]])
