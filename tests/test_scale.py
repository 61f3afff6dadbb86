"""The cost model counts what the code does, and comes near what was measured."""

import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from torch import distributed

from benchmarks import scale
from dml.losses import SupAPLoss
from dml.ranking import shared_queries
from dml.search.kinds import HNSW, IVFPQ, Flat

ROOT = Path(__file__).parents[1]


@pytest.fixture
def one_process(tmp_path):
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_what_the_loss_exchanges(one_process, monkeypatch):
    exchanged = []
    monkeypatch.setattr(distributed, "all_reduce", lambda tensor: exchanged.append(tensor.numel()))
    batch, dim, processes = 16, 8, 4
    embeddings = torch.nn.functional.normalize(torch.randn(batch, dim), dim=1).requires_grad_()
    with shared_queries():
        SupAPLoss()(embeddings, torch.arange(batch) // 4)
    gathered = batch * dim  # what the reduce-scatter of the gather sends
    ring = (processes - 1) / processes
    sent = scale.step_bytes(batch, dim, 0, processes)["loss"]
    assert sent == pytest.approx(4 * ring * (2 * sum(exchanged) + gathered), rel=0.01)  # but for the loss itself


@pytest.mark.parametrize("kind", [Flat(), HNSW(), IVFPQ()], ids=["flat", "hnsw", "ivfpq"])
def test_an_index_is_as_large_as_counted(kind):
    embeddings = np.random.default_rng(0).standard_normal((4000, 64), np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    counted = scale.index_bytes(type(kind).__name__.lower(), *embeddings.shape)
    assert counted == pytest.approx(len(faiss.serialize_index(kind.build(embeddings, seed=0))), rel=0.03)


def test_an_unknown_kind_of_index():
    with pytest.raises(ValueError, match="kind is 'tree'; it must be flat, hnsw or ivfpq"):
        scale.index_bytes("tree", 10, 4)


def test_the_flops_of_a_network():
    backbone = scale.Backbone.of_timm("test_vit", dim=16, image_size=32)
    larger = scale.Backbone.of_timm("test_vit", dim=16, image_size=64)
    assert larger.flops > 3 * backbone.flops  # four times the tokens
    assert scale.backbone_flops(2, backbone, chunked=True) == 8 * backbone.flops


def test_predictions_are_near_what_was_measured():
    rows = [line.strip("| ").split(" | ") for line in scale.check_table(scale.RESULTS.read_text())][2:]
    of_rates = {what: float(ratio) for what, *_, ratio in rows if what.endswith("*")}
    assert list(of_rates.values()) == [1, 1]
    assert len(rows) == 20
    assert all(0.55 < float(ratio) < 1.4 for *_, ratio in rows), rows


def test_a_missing_row_is_named():
    with pytest.raises(ValueError, match=r"no row that starts with '20000 \| product"):
        list(scale.check_table("| N |"))


def test_the_page_has_the_tables_that_the_command_prints(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scale"])
    scale.main()
    page = (ROOT / "docs" / "scale.md").read_text()
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 50
    assert [line for line in printed if line not in page] == []
