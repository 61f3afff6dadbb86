from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest


@pytest.fixture(scope="session")
def real_data():
    """The real data sets, where they lie beside the checkout."""
    folder = Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}")
    return folder


class Judged(SimpleNamespace):
    """A dataset that is nothing but its judgements: rows of query, item and judgement."""

    def __init__(self, rows):
        super().__init__(root=Path(), index=pd.DataFrame(), levels=("landmark",), rows=rows)

    def judgements(self):
        return self.rows and pd.DataFrame(self.rows, columns=["query", "item", "judgement"])
