"""Every metric on several processes gives what it gives on one, bit for bit if it is a metric of retrieval."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from dml.metrics import (
    GoogleLandmarkMetrics,
    HierarchicalMetrics,
    LandmarkMetrics,
    ReidentificationMetrics,
    RetrievalMetrics,
    Search,
    TemplateMetrics,
)
from tests.metrics.conftest import Judged
from tests.metrics.test_verification import benchmark

SIZE = 1301  # of three blocks of queries: of four processes, one has none
ALSO = ("MRR", "nDCG", "P@3", "found@5", "mAP@5", "nDCG@10")


def padded(processes, rank):
    """Of each metric, the values on this process, whose sampler pads with a repeated image."""
    dataset, embeddings = benchmark()
    embeddings = embeddings[: len(embeddings) - (len(embeddings) + 1) % 2]  # an odd number: the last batch is padded
    subject = torch.tensor(dataset.index["subject"].to_numpy())[: len(embeddings)]
    rows = torch.tensor(list(DistributedSampler(range(len(embeddings)), processes, rank, shuffle=False)))
    words = np.random.default_rng(0).choice(["easy", "hard", "junk"], (9, 20))
    judged = Judged([(query, 20 + item, words[query, item]) for query in range(9) for item in range(20)])
    values = {}
    for metrics in (RetrievalMetrics(), ReidentificationMetrics(), LandmarkMetrics(), TemplateMetrics()):
        metrics.begin(judged if isinstance(metrics, LandmarkMetrics) else dataset)
        for part in rows.split(10):
            metrics.update(embeddings[part], subject[part], part)
        values |= {name: value.item() for name, value in metrics.compute().items()}
    return values


def batch():
    """Coarse embeddings, whose scores tie often; two levels of labels, some of a single image; indices in no order."""
    generator = torch.Generator().manual_seed(0)
    fine = torch.randint(60, (SIZE,), generator=generator)
    fine[:4] = torch.arange(100, 104)
    embeddings = (torch.randn(104, 6, generator=generator)[fine] + torch.randn(SIZE, 6, generator=generator)).round()
    labels = torch.stack([fine, torch.where(fine < 102, fine % 4, fine)], dim=1)
    return embeddings / 8, labels, torch.randperm(5 * SIZE, generator=generator)[:SIZE]


def judgements(words, index):
    rng = np.random.default_rng(0)
    queries, items = rng.choice(index, 40, replace=False), rng.choice(index, 90, replace=False)
    return Judged([(query, item, rng.choice(words)) for query in queries for item in rng.choice(items, 15, False)])


def uneven(processes, rank):
    """Of each metric, the values, those of each query, and how many have none; the first process has most images."""
    embeddings, labels, index = batch()
    cuts = [SIZE // (2 * processes) * place + 100 for place in range(processes - 1)]
    rows = torch.tensor_split(torch.arange(SIZE), cuts)[rank]
    kinds = {
        f"retrieval {ties}": RetrievalMetrics((1, 5), 0, 100, ALSO, Search(ties=ties))
        for ties in ("pessimistic", "optimistic", "expected")
    }
    kinds["hierarchical"] = HierarchicalMetrics((1, 5), 50, only=True)
    kinds["hierarchical expected"] = HierarchicalMetrics((1,), 100, search=Search(ties="expected"))
    kinds["on the host"] = RetrievalMetrics(block_size=7, search=Search(keep_on="cpu"))
    kinds["re-identification"] = ReidentificationMetrics(num_draws=3, block_size=100)
    kinds["landmarks"] = LandmarkMetrics(block_size=100)
    kinds["Google landmarks"] = GoogleLandmarkMetrics(block_size=100)
    results = {}
    for name, metrics in kinds.items():
        if "landmarks" in name:
            metrics.begin(judgements(metrics.words, index.numpy()))
        for part in rows.split(37):
            is_query, is_gallery = index[part] % 7 > 0, index[part] % 11 > 0
            metrics.update(embeddings[part], labels[part], index[part], is_query, is_gallery)
        results[name] = metrics.compute(), metrics.last_per_query, metrics.num_unanswerable
    return results


def run(rank, processes, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=processes)
    torch.set_num_threads(1)
    torch.save((padded(processes, rank), uneven(processes, rank)), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_agree_with_one(tmp_path, processes):
    # What takes the time is to import torch and all that is built on it: once, rather than in each process.
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    torch.multiprocessing.start_processes(run, (processes, tmp_path), processes, start_method="forkserver")
    expected, expected_bits = padded(1, 0), uneven(1, 0)
    assert len(expected) == 7 + 4 + 12 + 11
    assert expected_bits["retrieval pessimistic"][2] > 0
    for rank in range(processes):
        values, bits = torch.load(tmp_path / f"{rank}.pt")
        assert values == pytest.approx(expected, abs=1e-6)
        for name, wanted in expected_bits.items():
            torch.testing.assert_close(
                bits[name], wanted, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )
