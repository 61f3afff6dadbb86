"""Every loss against what the published code itself answered; see ``tests/goldens/README.md``."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.losses import (
    CalibrationLoss,
    FastAPLoss,
    QuantizedAPLoss,
    RecallAtKLoss,
    SmoothAPLoss,
    SmoothHAPLoss,
    SmoothNDCGLoss,
    SupAPLoss,
    SupHAPLoss,
    SupNDCGLoss,
    SupRecallLoss,
    TieAwareQuantizedAPLoss,
)

GOLDENS = Path(__file__).parents[1] / "goldens"
FILES = sorted(path for path in GOLDENS.glob("*.npz") if path.stem != "retrieval_metrics")

# Left to compute the offset, the authors take its sigmoid in float32.
ROUNDED_OFFSET = torch.tensor(0.05 / 0.01).sigmoid().item() + 0.5
SETTINGS = {"sop": {"offset": 1.44}, "inat": {"offset": 1.0, "jump": 0.0}, "auto": {"offset": ROUNDED_OFFSET}}
BOUNDS = {"ap": SupAPLoss, "hap": SupHAPLoss, "ndcg": SupNDCGLoss, "recall": SupRecallLoss}
LOSSES = {
    "smooth_ap_tau0.01": (SmoothAPLoss, {"temperature": 0.01}),
    "smooth_ap_tau0.1": (SmoothAPLoss, {"temperature": 0.1}),
    "smooth_ap_suprank": (SmoothAPLoss, {"temperature": 0.01}),
    "smooth_hap": (SmoothHAPLoss, {"temperature": 0.01}),
    "smooth_ndcg": (SmoothNDCGLoss, {"temperature": 0.01}),
    "aploss_nq20_min-1": (QuantizedAPLoss, {"num_bins": 20, "min_score": -1.0}),
    "aploss_nq25_min0": (QuantizedAPLoss, {"num_bins": 25, "min_score": 0.0}),
    "softbin_ap": (QuantizedAPLoss, {}),
    "taploss_nq20_min-1": (TieAwareQuantizedAPLoss, {"num_bins": 20, "min_score": -1.0}),
    "taploss_nq25_min0": (TieAwareQuantizedAPLoss, {"num_bins": 25, "min_score": 0.0}),
    "fast_ap": (FastAPLoss, {}),
    "calibration": (CalibrationLoss, {}),
    "recall_at_k_patel": (RecallAtKLoss, {"include_self": True}),
} | {
    f"sup_{name}_{settings}": (loss, options) for name, loss in BOUNDS.items() for settings, options in SETTINGS.items()
}

# pytorch-metric-learning, which computes these, normalises embeddings by itself: its gradient has no radial component.
NORMALISED = ("calibration", "fast_ap")
# The score of a query with itself lies on the end of the bins, where it has a slope on one side only, and rounding
# decides on which. That moves the query along its own direction, which the normalisation before the loss takes out.
AT_THE_END_OF_THE_BINS = ("aploss", "taploss", "softbin_ap")
# The authors compute part of the ideal DCG in float32.
PARTLY_FLOAT32 = ("smooth_ndcg", "sup_ndcg")


def prefix(path):
    return path.name.split(".equal")[0].split(".unequal")[0]


def tolerance(path, dtype):
    if prefix(path).startswith(PARTLY_FLOAT32):
        return 1e-7
    return {"torch.float64": 1e-10, "torch.float32": 1e-5}[dtype.item()]


def tangential(gradient, embeddings):
    return gradient - (gradient * embeddings).sum(dim=1, keepdim=True) * embeddings


def assert_answers(loss, path, tolerance):
    golden = np.load(path)
    embeddings = torch.from_numpy(golden["embeddings"]).requires_grad_()
    given = normalize(embeddings, dim=1) if prefix(path) in NORMALISED else embeddings
    value = loss(given, torch.from_numpy(golden["labels"]))
    (gradient,) = torch.autograd.grad(value, embeddings)
    expected = torch.from_numpy(golden["grad"])
    if prefix(path).startswith(AT_THE_END_OF_THE_BINS):
        gradient, expected = (tangential(each, embeddings.detach()) for each in (gradient, expected))
    assert value.item() == pytest.approx(golden["value"].item(), rel=0, abs=tolerance)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance)
    assert expected.abs().max() > 100 * tolerance  # so there is something to compare


def test_every_golden_has_a_loss():
    assert len(FILES) == 69
    assert {prefix(path) for path in FILES} == set(LOSSES)


def test_every_golden_is_in_the_table():
    table = (GOLDENS / "README.md").read_text()
    assert [name for name in LOSSES if f"`{name}`" not in table] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("chunk_size", [None, 5])
def test_equals_what_published_code_answered(path, chunk_size):
    loss, options = LOSSES[prefix(path)]
    assert_answers(loss(**options, chunk_size=chunk_size), path, tolerance(path, np.load(path)["dtype"]))


@pytest.mark.parametrize("path", [path for path in FILES if "_auto" in path.stem], ids=lambda path: path.stem)
def test_default_offset_is_the_published_one_before_rounding(path):
    loss, _ = LOSSES[prefix(path)]
    assert_answers(loss(), path, max(1e-8, tolerance(path, np.load(path)["dtype"])))
