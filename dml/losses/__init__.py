"""One file per loss. All are called as ``loss(embeddings, labels, ref_emb=None, ref_labels=None)``."""

from dml.losses.base import RankLoss
from dml.losses.pair import PairLoss
from dml.losses.smooth_ap import SmoothAPLoss

__all__ = ["PairLoss", "RankLoss", "SmoothAPLoss"]
