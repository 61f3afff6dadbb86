"""One file per dataset."""

from dml.data.datasets.glyphs import Glyphs
from dml.data.datasets.grocery import GroceryStore
from dml.data.datasets.omniglot import Omniglot
from dml.data.datasets.sop import StanfordOnlineProducts

__all__ = ["Glyphs", "GroceryStore", "Omniglot", "StanfordOnlineProducts"]
