from pathlib import Path
from types import SimpleNamespace

import pandas as pd


class Judged(SimpleNamespace):
    """A dataset that is nothing but its judgements: rows of query, item and judgement."""

    def __init__(self, rows):
        super().__init__(root=Path(), index=pd.DataFrame(), levels=("landmark",), rows=rows)

    def judgements(self):
        return self.rows and pd.DataFrame(self.rows, columns=["query", "item", "judgement"])
