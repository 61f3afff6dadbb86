"""One file per loss. All are called as ``loss(embeddings, labels, ref_emb=None, ref_labels=None)``."""

from dml.losses.base import RankLoss
from dml.losses.blackbox_ap import BlackboxAPLoss
from dml.losses.blackbox_recall import BlackboxRecallLoss
from dml.losses.calibration import CalibrationLoss
from dml.losses.csl import CSLLoss
from dml.losses.fast_ap import FastAPLoss
from dml.losses.norm_softmax import NormSoftmaxLoss
from dml.losses.pair import PairLoss
from dml.losses.quantized_ap import QuantizedAPLoss
from dml.losses.recall_at_k import RecallAtKLoss
from dml.losses.simix import SiMix
from dml.losses.smooth_ap import SmoothAPLoss
from dml.losses.smooth_hap import SmoothHAPLoss
from dml.losses.smooth_ndcg import SmoothNDCGLoss
from dml.losses.smooth_recall import SmoothRecallLoss
from dml.losses.sup_ap import SupAPLoss
from dml.losses.sup_hap import SupHAPLoss
from dml.losses.sup_ndcg import SupNDCGLoss
from dml.losses.sup_recall import SupRecallLoss
from dml.losses.tie_aware_quantized_ap import TieAwareQuantizedAPLoss
from dml.losses.weighted_sum import WeightedSum

__all__ = [
    "BlackboxAPLoss",
    "BlackboxRecallLoss",
    "CSLLoss",
    "CalibrationLoss",
    "FastAPLoss",
    "NormSoftmaxLoss",
    "PairLoss",
    "QuantizedAPLoss",
    "RankLoss",
    "RecallAtKLoss",
    "SiMix",
    "SmoothAPLoss",
    "SmoothHAPLoss",
    "SmoothNDCGLoss",
    "SmoothRecallLoss",
    "SupAPLoss",
    "SupHAPLoss",
    "SupNDCGLoss",
    "SupRecallLoss",
    "TieAwareQuantizedAPLoss",
    "WeightedSum",
]
