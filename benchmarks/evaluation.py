"""Time, memory and error of evaluation: ``python -m benchmarks.evaluation``.

``compare``: every measure of the whole gallery, in one process by turns with

- the floor, the product ``N x N x D`` in float32, a block of queries at a time into memory that is there, in the
  fastest of three sizes of blocks;
- pytorch-metric-learning's AccuracyCalculator, with as many neighbours as the largest class and with all of them;
- torchmetrics' RetrievalMAP, which takes a score and an index for each of the ``N (N - 1)`` pairs.

The error is the largest difference of a value of one of 256 queries from counting in float64.

``relevant``: ranks of queries with many relevant items, by counting and by sorting.

``stream``: Recall@k and AP of few queries against a gallery in a file, most of it distractors, in a process of its own.
"""

import argparse
import contextlib
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import numpy as np
import torch
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import FaissKNN
from torch import Tensor
from torch.nn.functional import normalize
from torchmetrics.retrieval import RetrievalMAP

from benchmarks.losses import by_turns, memory_added
from dml.metrics import RetrievalMetrics, Search
from dml.metrics.functional import per_query_metrics, retrieval_metrics
from dml.ranking import exact, ranks_of_pairs, score_blocks

PER_CLASS = 5


def main() -> None:
    """Parse the options, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["compare", "relevant", "stream"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[5000, 10000, 20000, 60000])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2, help="after a warm-up; the median is taken")
    parser.add_argument("--pairs", type=float, default=1e8, help="beyond which peers that hold all pairs are left out")
    parser.add_argument("--memory", type=float, default=12.0, help="GiB of host memory beyond which a call fails")
    parser.add_argument("--distractors", type=int, default=1_000_000)
    parser.add_argument("--distractor_dim", type=int, default=2048)
    parser.add_argument("--folder", help="where the file of distractors goes for as long as it is needed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"CPU, {arguments.threads} threads, torch {torch.__version__}, {date.today()}, D = {arguments.dim}\n")
    for name, table in (("compare", compare), ("relevant", many_relevant), ("stream", stream)):
        if arguments.what in (None, name):
            table(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """A row for each size and way to evaluate."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.memory * 2**30),) * 2)
    print("| N | | s | x product | MiB added | AP | largest error |", "|---" * 7 + "|", sep="\n")
    for size in arguments.sizes:
        embeddings, labels = gallery(size, arguments.dim)
        blocks = {f"product, {rows} queries a block": product(embeddings, rows) for rows in (128, 256, 512)}
        ways = {"dml, 9 measures": ours(embeddings, labels), **blocks, **peers(embeddings, labels, arguments.pairs)}
        measured = {name: found for name, way in ways.items() if (found := value_and_memory(way)) is not None}
        seconds = dict(zip(measured, timed([ways[name] for name in measured], arguments.turns), strict=True))
        floor = min(seconds[name] for name in blocks)
        for name in ways:
            if name not in measured:
                print(f"| {size} | {name} | out of memory | - | - | - | - |", flush=True)
                continue
            average_precision, added = measured[name]
            error = f"{largest_error(embeddings, labels):.1e}" if name.startswith("dml") else "-"
            cells = f"{seconds[name]:.2f} | {seconds[name] / floor:.2f} | {added / 2**20:.0f} | {average_precision}"
            print(f"| {size} | {name} | {cells} | {error} |", flush=True)


Way = Callable[[], dict[str, float] | None]


def gallery(size: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit embeddings ``[N, D]`` and labels ``[N]``, in no order."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(size // PER_CLASS, (size,), generator=generator)
    centres = torch.randn(size // PER_CLASS, dim, generator=generator)
    return normalize(centres[labels] + 3 * torch.randn(size, dim, generator=generator), dim=1), labels


def ours(embeddings: Tensor, labels: Tensor) -> Way:
    """Every measure, by the metric that a run logs."""
    index = torch.arange(len(labels))

    def evaluate() -> dict[str, float]:
        metrics = RetrievalMetrics(recall_at=(1, 10, 100, 1000), also=("MRR", "nDCG"))
        metrics.update(embeddings, labels, index)
        return {name: float(value) for name, value in metrics.compute().items()}

    return evaluate


def product(embeddings: Tensor, rows: int) -> Way:
    """All scores and nothing else."""
    scores = embeddings.new_empty(rows, len(embeddings))

    def multiply() -> None:
        for queries in embeddings.split(rows):
            torch.mm(queries, embeddings.T, out=scores[: len(queries)])

    return multiply


def peers(embeddings: Tensor, labels: Tensor, most_pairs: float) -> dict[str, Way]:
    """What other libraries offer; those that hold all pairs, up to so many."""
    included = ("mean_average_precision", "mean_average_precision_at_r", "r_precision", "precision_at_1")

    def calculate(neighbours: str | None) -> Way:
        calculator = AccuracyCalculator(include=included, k=neighbours, device=torch.device("cpu"), knn_func=FaissKNN())

        def evaluate() -> dict[str, float]:
            values = calculator.get_accuracy(embeddings, labels)
            return {"AP": values["mean_average_precision"]}

        return evaluate

    def torchmetrics() -> dict[str, float]:
        scores = embeddings @ embeddings.T
        others = ~torch.eye(len(scores), dtype=torch.bool)
        query = torch.arange(len(scores))[:, None].expand_as(scores)
        metric = RetrievalMAP(empty_target_action="skip")
        metric.update(scores[others], (labels[:, None] == labels)[others], indexes=query[others])
        return {"AP": float(metric.compute())}

    some: dict[str, Way] = {"PML, R neighbours": calculate("max_bin_count")}
    if len(labels) ** 2 > most_pairs:
        return some
    return {**some, "PML, all neighbours": calculate(None), "torchmetrics": torchmetrics}


def value_and_memory(way: Way) -> tuple[str, float] | None:
    """AP and the bytes that it takes, or None where there is not memory enough. It is the warm-up as well."""
    values: list[dict[str, float] | None] = []
    try:
        added = memory_added(lambda: values.append(way()), "cpu")
    except (RuntimeError, MemoryError):
        return None
    return (f"{values[0]['AP']:.4f}" if values[0] else "-"), added


def timed(ways: list[Way], turns: int) -> list[float]:
    """Median seconds of each, by turns."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(turns):
        for way, times in zip(ways, seconds, strict=True):
            start = time.perf_counter()
            way()
            times.append(time.perf_counter() - start)
    return [statistics.median(times) for times in seconds]


def largest_error(embeddings: Tensor, labels: Tensor) -> float:
    """Of AP, mAP@R, R-precision and Recall@1 of 256 queries."""
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:256]
    values = per_query_metrics(
        embeddings[chosen], labels[chosen], embeddings, labels, index=chosen, ref_index=torch.arange(len(labels))
    )
    scores = embeddings[chosen].double() @ embeddings.double().T
    worst = 0.0
    for row, query in enumerate(chosen.tolist()):
        others = torch.arange(len(labels)) != query
        ranked = (labels[others] == labels[query])[scores[row][others].argsort(descending=True)]
        places = ranked.nonzero().squeeze(1).double() + 1
        if len(places) == 0:
            continue
        number = torch.arange(1, len(places) + 1, dtype=torch.float64)
        within = places <= len(places)
        expected = {
            "AP": (number / places).mean(),
            "mAP@R": (number / places * within).sum() / len(places),
            "RP": within.double().mean(),
            "R@1": (places[0] == 1).double(),
        }
        worst = max(worst, *(float((values[name][row] - value).abs()) for name, value in expected.items()))
    return worst


def many_relevant(arguments: argparse.Namespace) -> None:
    """A row for each number of relevant items."""
    size = max(arguments.sizes)
    embeddings, _ = gallery(size, arguments.dim)
    blocks = [scores.clone() for _, scores in score_blocks(embeddings[:128], [embeddings])]
    floor, *_ = by_turns([lambda: list(score_blocks(embeddings[:128], [embeddings]))], "cpu", 1.0)
    print(f"\nN = {size}, ms a query; the product takes {floor / 128 * 1e3:.2f}\n")
    print("| relevant items | by counting | by sorting | as chosen |", "|---" * 4 + "|", sep="\n")
    generator, chosen = torch.Generator().manual_seed(0), exact._MANY_RELEVANT  # what is measured
    for number in (4, 16, 24, 32, 64, 256, 1024, 10_000):
        number = min(number, size // 2)
        item = torch.rand(128, size, generator=generator).topk(number, dim=1).indices.sort(dim=1).values.flatten()
        query = torch.arange(128).repeat_interleave(number)
        cells = []
        for threshold in (size + 1, 1, chosen):
            exact._MANY_RELEVANT = threshold
            if threshold > size and number > 1024:
                cells.append("not run")
                continue
            spent, *_ = by_turns([lambda q=query, i=item: ranks_of_pairs(blocks[0], q, i)], "cpu", 1.0)
            cells.append(f"{spent / 128 * 1e3:.3f}")
        exact._MANY_RELEVANT = chosen
        print(f"| {number} | {' | '.join(cells)} |", flush=True)


def stream(arguments: argparse.Namespace) -> None:
    """One row; the file is made here, read there."""
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "distractors.npy"
        shape = arguments.distractors, arguments.distractor_dim
        rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
        generator = torch.Generator().manual_seed(0)
        for start in range(0, len(rows), 16384):
            block = torch.randn(len(rows[start : start + 16384]), shape[1], generator=generator)
            rows[start : start + 16384] = normalize(block, dim=1).numpy()
        del rows
        code = f"from benchmarks.evaluation import evaluate_stream; evaluate_stream({str(path)!r}, {arguments.threads})"
        subprocess.run([sys.executable, "-c", code], check=True)


def evaluate_stream(path: str, threads: int) -> None:
    """Evaluate 70 queries and 5,000 other images with the distractors of a file; print the row."""
    torch.set_num_threads(threads)
    rows = np.load(path, mmap_mode="r")
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(5000) % 500
    centres = torch.randn(500, rows.shape[1], generator=generator)
    items = normalize(centres[labels] + 3 * torch.randn(5000, rows.shape[1], generator=generator), dim=1)
    start = time.perf_counter()
    with _watched() as anonymous:
        values = retrieval_metrics(
            items[:70], labels[:70], items[70:], labels[70:], recall_at=[1, 10], search=Search(distractors=path)
        )
    spent = time.perf_counter() - start
    print(
        "\n| distractors | D | GiB of the file | s | GiB of memory beside the file | AP |", "|---" * 6 + "|", sep="\n"
    )
    size, memory = Path(path).stat().st_size / 2**30, max(anonymous) / 2**30
    print(f"| {len(rows)} | {rows.shape[1]} | {size:.2f} | {spent:.1f} | {memory:.2f} | {values['AP']:.4f} |")


@contextlib.contextmanager
def _watched() -> Iterator[list[int]]:
    """Note the memory of the process that is not of a file, again and again."""
    anonymous: list[int] = []
    done = threading.Event()

    def note() -> None:
        while not done.wait(0.01):
            status = Path("/proc/self/status").read_text()
            anonymous.append(int(status.split("RssAnon:")[1].split()[0]) * 1024)

    thread = threading.Thread(target=note)
    thread.start()
    try:
        yield anonymous
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    logging.getLogger("PML").setLevel(logging.ERROR)
    main()
