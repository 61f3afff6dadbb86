"""MATLAB files that are the same each time."""

import io
from pathlib import Path
from typing import Any

from scipy.io import savemat


def save_mat(path: Path, content: dict[str, Any]) -> None:
    """Write a file of MATLAB 5 whose header, unlike scipy's, does not tell the time."""
    stream = io.BytesIO()
    savemat(stream, content)
    path.write_bytes(b"MATLAB 5.0 MAT-file".ljust(116) + stream.getvalue()[116:])
