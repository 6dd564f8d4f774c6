"""The params file: every key is known and of the right type, or one line says which is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdnet.config import Config, config_hash, from_mapping, load_config, parse_config, to_mapping, to_yaml
from pdnet.errors import ConfigError

ROOT = Path(__file__).parents[1]
FILES = ("params.yaml", "configs/paper.yaml", "configs/realtime.yaml")


def leaves(mapping: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in mapping.items():
        if isinstance(value, dict):
            yield from leaves(value, *path, key)
        else:
            yield (*path, key), value


def changed(mapping: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A copy of the mapping with one leaf replaced."""
    first, *rest = path
    return mapping | {first: changed(mapping[first], tuple(rest), value) if rest else value}


def message(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, source="p.yaml")
    found = str(caught.value)
    assert "\n" not in found
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_key_of_the_files_arrives_in_the_configuration(name: str) -> None:
    resolved = to_mapping(load_config(ROOT / name))
    written = list(leaves(yaml.safe_load((ROOT / name).read_text())))
    assert len(written) > 20
    for path, value in written:
        found: Any = resolved
        for key in path:
            found = found[key]
        assert found == (float(value) if isinstance(found, float) else value), path


@pytest.mark.parametrize("name", FILES)
def test_yaml_round_trip(name: str) -> None:
    config = load_config(ROOT / name)
    assert parse_config(to_yaml(config)) == config


def test_round_trip_of_values_far_from_the_defaults() -> None:
    text = "seed: 7\ndevice: cpu\ntrain: {clip_grad_norm: 1.5, late_factor: 1.0e-7}\ndata: {videos: 'ä b/: x'}\n"
    config = parse_config(text)
    assert (config.train.clip_grad_norm, config.train.late_factor, config.data.videos) == (1.5, 1e-7, "ä b/: x")
    assert parse_config(to_yaml(config)) == config


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing yet\n")
    assert load_config(tmp_path / "empty.yaml") == Config()


def test_paper_profile_holds_the_figures_of_section_5_1() -> None:
    config = load_config(ROOT / "configs" / "paper.yaml")
    assert config.data.size == 480
    assert config.model.parts == 5
    assert config.model.backbone == "resnet50"
    assert config.model.assembly == "paper"
    assert config.model.references == 1
    assert config.model.ipda
    assert config.pretrain.weights == "imagenet"
    assert config.pretrain.epochs == 0
    assert config.losses.semantic_features == "imagenet"
    train = config.train
    assert train.epochs == 60
    assert train.batch_size == train.image_batch_size == 4
    assert train.video_steps_per_image == 2
    assert (train.image_backbone_lr, train.image_rest_lr) == (2.5e-4, 0.0)
    assert (train.video_backbone_lr, train.video_rest_lr) == (2.5e-5, 2.5e-3)
    assert (train.momentum, train.weight_decay) == (0.9, 5e-4)
    assert train.photometric == 0
    assert config.evaluation.threshold == 0.5


def test_defaults_of_the_dataclasses_are_the_paper_profile_too() -> None:
    ours, paper = to_mapping(Config()), to_mapping(load_config(ROOT / "configs" / "paper.yaml"))
    different = {path for (path, a), (_, b) in zip(leaves(ours), leaves(paper), strict=True) if a != b}
    assert different <= {("data", "images"), ("train", "workers")}  # places and processes, not the recipe


def test_the_realtime_profile_trains_as_the_paper_and_runs_at_a_smaller_size() -> None:
    realtime, paper = (to_mapping(load_config(ROOT / "configs" / f"{name}.yaml")) for name in ("realtime", "paper"))
    different = {path for (path, a), (_, b) in zip(leaves(realtime), leaves(paper), strict=True) if a != b}
    assert different == {("data", "size"), ("train", "size")}
    assert realtime["train"]["size"] == paper["data"]["size"]


def test_unknown_key_is_named_by_its_path_with_the_near_match() -> None:
    assert message("train: {epoch: 3}") == "p.yaml: unknown key 'train.epoch'; did you mean 'epochs'?"
    assert message("trian: {}") == "p.yaml: unknown key 'trian'; did you mean 'train'?"


def test_unknown_key_without_a_near_match_lists_the_known_ones() -> None:
    found = message("tracking: {zzz: 1}")
    assert found == "p.yaml: unknown key 'tracking.zzz'; known: experiment, licence, live, model"
    assert message("1: 2").startswith("p.yaml: unknown key '1'; known: data, device,")


@pytest.mark.parametrize(
    ("text", "found", "expected"),
    [
        ("train: {epochs: ten}", "train.epochs: found 'ten' (str)", "a whole number"),
        ("train: {epochs: 3.0}", "train.epochs: found 3.0 (float)", "a whole number"),
        ("train: {epochs: true}", "train.epochs: found True (bool)", "a whole number"),
        ("train: {momentum: true}", "train.momentum: found True (bool)", "a number"),
        ("train: {momentum: much}", "train.momentum: found 'much' (str)", "a number"),
        ("train: {momentum: [0.9]}", "train.momentum: found [0.9] (list)", "a number"),
        ("train: {momentum: .nan}", "train.momentum: found nan (float)", "a number"),
        ("train: {momentum: inf}", "train.momentum: found 'inf' (str)", "a number"),
        ("train: {momentum: null}", "train.momentum: found nothing", "a number"),
        ("train: {clip_grad_norm: none}", "train.clip_grad_norm: found 'none' (str)", "a number or null"),
        ("model: {ipda: 1}", "model.ipda: found 1 (int)", "true or false"),
        ("model: {backbone: vgg}", "model.backbone: found 'vgg' (str)", "one of resnet18, resnet34, resnet50"),
        ("model: {backbone: [resnet18]}", "model.backbone: found ['resnet18'] (list)", "one of resnet18, resnet34"),
        ("device: 0", "device: found 0 (int)", "text"),
        ("device: 2020-01-01", "device: found datetime.date(2020, 1, 1) (date)", "text"),
        ("train: 5", "train: found 5 (int)", "a mapping of keys"),
        ("train: [epochs]", "train: found ['epochs'] (list)", "a mapping of keys"),
        ("train:", "train: found nothing", "a mapping of keys"),
        ("seed: {value: 1}", "seed: found {'value': 1} (dict)", "a whole number"),
        ("- seed", "the file: found ['seed'] (list)", "a mapping of keys"),
        ("hello", "the file: found 'hello' (str)", "a mapping of keys"),
    ],
)
def test_wrong_type_says_what_was_found_and_expected(text: str, found: str, expected: str) -> None:
    assert message(text).startswith(f"p.yaml: {found}, expected {expected}")


def test_numbers_that_yaml_reads_as_text_are_numbers() -> None:
    assert isinstance(yaml.safe_load("1e-4"), str)  # why this test is here
    assert parse_config("train: {weight_decay: 1e-4}").train.weight_decay == 1e-4
    assert isinstance(parse_config("train: {weight_decay: 0}").train.weight_decay, float)
    assert parse_config("train: {clip_grad_norm: 1e1}").train.clip_grad_norm == 10
    assert parse_config("train: {clip_grad_norm: null}").train.clip_grad_norm is None


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("seed: -1", "seed"),
        ("data: {size: 16}", "data.size"),
        ("model: {parts: 0}", "model.parts"),
        ("model: {references: 0}", "model.references"),
        ("model: {width: -3}", "model.width"),
        ("losses: {area_weight: -1}", "losses.area_weight"),
        ("losses: {max_bce_weight: 0}", "losses.max_bce_weight"),
        ("validation: {keyframe_interval: 0}", "validation.keyframe_interval"),
        ("validation: {fps: 0}", "validation.fps"),
        ("validation: {max_empty_frames: 1}", "validation.max_empty_frames"),
        ("pretrain: {epochs: -1}", "pretrain.epochs"),
        ("pretrain: {batch_size: 0}", "pretrain.batch_size"),
        ("pretrain: {lr: -0.1}", "pretrain.lr"),
        ("pretrain: {warmup: 1.5}", "pretrain.warmup"),
        ("train: {epochs: 0}", "train.epochs"),
        ("train: {batch_size: 0}", "train.batch_size"),
        ("train: {image_batch_size: 0}", "train.image_batch_size"),
        ("train: {video_steps_per_image: 0}", "train.video_steps_per_image"),
        ("train: {video_rest_lr: -1.0e-3}", "train.video_rest_lr"),
        ("train: {momentum: 1.0}", "train.momentum"),
        ("train: {weight_decay: -1}", "train.weight_decay"),
        ("train: {clip_grad_norm: 0}", "train.clip_grad_norm"),
        ("train: {late_factor: -0.5}", "train.late_factor"),
        ("train: {workers: -1}", "train.workers"),
        ("train: {cache_mb: -1}", "train.cache_mb"),
        ("train: {photometric: 1.5}", "train.photometric"),
    ],
)
def test_a_value_out_of_range_names_its_key(text: str, key: str) -> None:
    found = message(text)
    assert found.startswith(f"p.yaml: {key}: ")
    assert "expected" in found


@pytest.mark.parametrize(
    "text",
    ["train: {epochs: 3", "a: b: c", "\tseed: 0", "seed: 2020-99-99", "seed: \x00", "? [a]\n: 1", "seed: &x [*y]"],
)
def test_not_yaml(text: str) -> None:
    assert message(text).startswith("p.yaml: not YAML")


def test_not_yaml_names_the_line() -> None:
    assert message("seed: 0\ndevice: auto\ntrain: {epochs: 3\nmodel: {}\n").startswith("p.yaml: not YAML at line 4: ")


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("seed: 1\ndevice: cpu\nseed: 2\n", "seed", (3, 1)),
        ("train:\n  epochs: 3\n  batch_size: 2\n  'epochs': 4\n", "epochs", (4, 2)),
        ("train: {epochs: 3}\nmodel: {}\ntrain: {batch_size: 2}\n", "train", (3, 1)),
        ("model: {parts: 3, parts: 3}\n", "parts", (1, 1)),
    ],
)
def test_a_key_that_is_there_twice_is_refused(text: str, key: str, lines: tuple[int, int]) -> None:
    assert message(text) == f"p.yaml: line {lines[0]}: the key '{key}' is in line {lines[1]} already"


def test_the_same_key_of_two_mappings_is_no_double() -> None:
    config = parse_config("pretrain: &rate {epochs: 2, batch_size: 4}\ntrain: {<<: *rate, epochs: 3}\n")
    assert (config.pretrain.epochs, config.train.epochs, config.train.batch_size) == (2, 3, 4)


@pytest.mark.parametrize("kind", ["missing", "folder", "binary"])
def test_a_file_that_cannot_be_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "params.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x80")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_hash_changes_with_every_leaf_but_where_a_model_is_recorded() -> None:
    base = to_mapping(Config())
    hashes = {config_hash(Config())}
    others: dict[tuple[str, ...], Any] = {
        ("device",): "cpu",
        ("validation", "collection"): "warning",
        ("losses", "branches"): "released",
        ("train", "optimizer"): "adamw",
        ("train", "size"): 64,
        ("pretrain", "size"): 64,
        ("model", "backbone"): "resnet18",
        ("model", "assembly"): "residual",
        ("model", "attention_scale"): "sqrt_dim",
        ("train", "precision"): "fp32",
        ("train", "clip_grad_norm"): 1.0,
        ("evaluation", "protocol"): "all-frames",
        ("export", "tensorrt_precision"): "tf32",
        ("export", "input"): "frames",
        ("export", "precisions"): ["fp16"],
    }
    paths = [path for path, _ in leaves(base)]
    for path, value in leaves(base):
        if path in others:
            other = others[path]
        elif isinstance(value, bool):
            other = not value
        elif isinstance(value, str):
            other = value + "x"
        else:
            other = value + 1 if isinstance(value, int) else value + 0.25 if value < 0.5 else value / 2
        hashes.add(config_hash(from_mapping(Config, changed(base, path, other), source="test")))
    assert len(hashes) == sum(path[0] != "tracking" for path in paths) + 1
    assert config_hash(parse_config(to_yaml(Config()))) == config_hash(Config())


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().train.epochs = 3  # type: ignore[misc]
