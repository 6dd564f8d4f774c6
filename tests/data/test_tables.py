"""A Parquet table is read with the columns that are needed, or refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pdnet.data.tables import read_table
from pdnet.errors import DataError

TABLE = pd.DataFrame({"step": [0, 1], "loss": [2.0, float("nan")], "phase": ["image", "video"]})


def error_of(path: Path, *columns: str) -> str:
    with pytest.raises(DataError) as caught:
        read_table(path, columns)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_of_a_table_is_read(tmp_path: Path) -> None:
    TABLE.to_parquet(tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet", ("loss", "step")).equals(TABLE)
    TABLE.iloc[:0].to_parquet(tmp_path / "t.parquet")
    assert len(read_table(tmp_path / "t.parquet", ("loss",))) == 0


def test_what_is_lacking_and_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    assert error_of(path) == f"{path}: no such file; expected a Parquet table"
    TABLE.to_parquet(path)
    assert error_of(path, "step", "seconds", "epoch") == (
        f"{path}: lacks the columns seconds, epoch; found step, loss, phase"
    )
    pd.DataFrame().to_parquet(path)
    assert error_of(path, "step") == f"{path}: lacks the columns step; found none"


def test_damage_anywhere_is_one_line_or_no_error(tmp_path: Path) -> None:
    """Damage comes up as errors of many classes, some of several lines."""
    path = tmp_path / "t.parquet"
    TABLE.to_parquet(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for attempt in range(150):
        content = bytearray(whole)
        for _ in range(3):
            content[rng.integers(len(content))] = rng.integers(256)
        path.write_bytes(content[: rng.integers(len(content))] if attempt % 5 == 0 else content)
        try:
            read_table(path, ())
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{path}: cannot be read as a Parquet table (")
            assert "\n" not in str(error)
    assert refused > 50
