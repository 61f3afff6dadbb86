"""Whether every image of a data set can be read, and is in one split only."""

import hashlib
from collections.abc import Sequence

import pandas as pd

from dml.data.dataset import RetrievalDataset
from dml.data.images import UnreadableImageError, decode_image
from dml.data.parallel import over_images

_COLUMNS = ["path", "split", "problem", "detail"]


def verify(datasets: Sequence[RetrievalDataset], *, num_workers: int, progress: bool = True) -> pd.DataFrame:
    """Decode every image, and compare the contents of different splits.

    Args:
        datasets: All splits of a data set. What has the same path in two of them is one image.
        num_workers: Processes to decode with.
        progress: Whether to show a progress bar.

    Returns:
        One row for each problem: columns ``path``, ``split``, ``problem`` (missing, unreadable or duplicate) and
        ``detail``: what the decoder says, or another image of the same content that is in another split.
    """
    rows = over_images(_open, datasets, num_workers=num_workers, message="opening images", progress=progress)
    found = pd.DataFrame(rows, columns=[*_COLUMNS, "digest"])
    readable = found["problem"] == ""
    return pd.concat([found[~readable], _duplicates(found[readable])], ignore_index=True)[_COLUMNS]


def _open(dataset: RetrievalDataset, row: int) -> tuple[str, str, str, str, str]:
    """Path, split, problem and detail of an image, and the digest of its content."""
    return str(dataset.index["path"][row]), dataset.split, *_opened(dataset, row)


def _opened(dataset: RetrievalDataset, row: int) -> tuple[str, str, str]:
    try:
        content = dataset.content(row)
        decode_image(content, dataset.channels, dataset.box(row))
    except FileNotFoundError:
        return "missing", "", ""
    except (OSError, UnreadableImageError) as error:
        return "unreadable", str(error), ""
    return "", "", hashlib.blake2b(content, digest_size=16).hexdigest()


def _duplicates(readable: pd.DataFrame) -> pd.DataFrame:
    """Images that another split has under another path; ``detail`` is the first of those."""
    found = []
    shared = readable.groupby("digest")["split"].transform("nunique") > 1
    for _, alike in readable[shared].groupby("digest"):
        for row in alike.to_dict("records"):
            other = alike[alike["split"] != row["split"]].iloc[0]
            found.append({**row, "problem": "duplicate", "detail": f"{other['path']} of {other['split']}"})
    return pd.DataFrame(found, columns=readable.columns)
