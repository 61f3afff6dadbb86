"""What the classes of a test got, from the file of its queries."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dml.compare.logs import CLASSES, empty


def read_classes(run: str, file: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Sums and numbers for each class and measure, and what the file says of the test.

    Args:
        run: Name of the run.
        file: Of :class:`~dml.callbacks.WritePerQuery`.

    Raises:
        ValueError: If it cannot be read, or is another file.
    """
    try:
        schema = pq.read_schema(file)
        attributes = json.loads((schema.metadata or {}).get(b"PANDAS_ATTRS", b"{}"))
        measures, level = attributes.get("measures", []), attributes.get("level")
        if level not in schema.names:
            raise ValueError(f"it has no column {level!r}")
        table = pq.read_table(file, columns=[level, *measures])
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[:1]
        raise ValueError(f"{file} cannot be read as queries of a test: {' '.join(reason)}") from error
    if not measures:
        return empty(CLASSES), attributes
    labels, codes = np.unique(table[level].to_numpy(), return_inverse=True)
    values = np.stack([table[measure].to_numpy().astype(np.float64) for measure in measures])
    has = ~np.isnan(values)
    counts = np.stack([np.bincount(codes[there], minlength=len(labels)) for there in has])
    pairs = zip(values, has, strict=True)
    sums = np.stack([np.bincount(codes[there], value[there], len(labels)) for value, there in pairs])
    measure, row = np.nonzero(counts)
    names = np.array([f"test/{name}" for name in measures], dtype=object)
    columns = {"run": run, "measure": names[measure], "label": labels[row], "sum": sums[measure, row]}
    return pd.DataFrame({**columns, "count": counts[measure, row]}), attributes
