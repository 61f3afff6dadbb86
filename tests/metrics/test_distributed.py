"""Every metric on two processes, whose sampler pads with a repeated image, gives what it gives on one."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler

from dml.metrics import LandmarkMetrics, ReidentificationMetrics, RetrievalMetrics, TemplateMetrics
from tests.metrics.conftest import Judged
from tests.metrics.test_verification import benchmark


def evaluate(processes, rank):
    """Of each metric, the values on this process."""
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


def run(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(evaluate(2, rank), folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")
def test_two_processes_agree_with_one(tmp_path):
    torch.multiprocessing.spawn(run, args=(tmp_path,), nprocs=2)
    expected = evaluate(1, 0)
    assert len(expected) == 7 + 4 + 12 + 11
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(expected, abs=1e-6)
