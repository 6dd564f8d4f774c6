"""Tables that a step reads: Parquet with the columns it needs, or one clear error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pdnet.errors import DataError


def read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a Parquet table, all of it, that has `columns` among its own.

    Raises:
        DataError: the file is missing or damaged, or a column is not there.
    """
    try:
        table = pd.read_parquet(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a Parquet table") from None
    except Exception as error:  # damage comes up as pyarrow's, pandas', JSON's and Python's own errors
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a Parquet table ({reason})") from None
    if lacking := [column for column in columns if column not in table.columns]:
        found = ", ".join(map(str, table.columns)) or "none"
        raise DataError(f"{path}: lacks the columns {', '.join(lacking)}; found {found}")
    return table
