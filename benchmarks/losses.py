"""Time and memory of the rank losses: ``python -m benchmarks.losses``.

For each loss and batch size: the time of forward and backward, the memory it adds at its peak, and two ratios that
compare on any machine, taken in one process by turns:

- to the floor, the three products ``B x B x D`` that any loss of the scores needs, and one pass of the loss's own step
  over the pairs of a relevant item and an item of the gallery;
- to the same loss of pytorch-metric-learning, where it has one.

Batches hold 4 images of each class, and the classes are in 12 super-classes, which count for the hierarchical losses.
"""

import argparse
import ctypes
import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path

import torch
from pytorch_metric_learning import losses as peers
from torch import Tensor, nn
from torch.nn.functional import normalize

from dml import losses
from dml.ranking import Sigmoid, Step

SAMPLES_PER_CLASS, SUPER_CLASSES = 4, 12
LOSSES: dict[str, nn.Module] = {
    name: getattr(losses, name)()
    for name in (
        "SmoothAPLoss",
        "SupAPLoss",
        "SmoothRecallLoss",
        "SupRecallLoss",
        "RecallAtKLoss",
        "BlackboxAPLoss",
        "BlackboxRecallLoss",
        "FastAPLoss",
        "QuantizedAPLoss",
        "TieAwareQuantizedAPLoss",
        "CalibrationLoss",
        "SmoothHAPLoss",
        "SupHAPLoss",
        "SmoothNDCGLoss",
        "SupNDCGLoss",
    )
}
PEERS: dict[str, nn.Module] = {
    "SmoothAPLoss": peers.SmoothAPLoss(),
    "FastAPLoss": peers.FastAPLoss(),
    "CalibrationLoss": peers.ContrastiveLoss(pos_margin=0.9, neg_margin=0.6),
}
HIERARCHICAL = ("SmoothHAPLoss", "SupHAPLoss", "SmoothNDCGLoss", "SupNDCGLoss")
HEADER = "| loss | B | ms | MiB added | x floor | floor ms | x faster than PML | PML ms |"


def main() -> None:
    """Parse the options, print the table."""
    parser = argparse.ArgumentParser(description="Time and memory of the rank losses.")
    parser.add_argument("--losses", nargs="+", default=list(LOSSES), choices=list(LOSSES), metavar="NAME")
    parser.add_argument("--batch", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--chunk_size", type=int, help="queries ranked at a time; by default the losses choose")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=2.0, help="seconds for the repeats of a cell")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds; a call expected to take longer is left out")
    parser.add_argument("--memory", type=float, default=16.0, help="GiB of host memory beyond which a call fails")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    resource.setrlimit(resource.RLIMIT_DATA, (int(arguments.memory * 2**30),) * 2)
    print(f"{_device_name(arguments.device)}, torch {torch.__version__}, {date.today()}, D = {arguments.dim}\n")
    print(HEADER, "|---" * (HEADER.count("|") - 1) + "|", sep="\n")
    for name in arguments.losses:
        loss = LOSSES[name]
        if arguments.chunk_size is not None:
            loss.chunk_size = arguments.chunk_size
        for row in rows(name, loss, arguments):
            print(row, flush=True)


def rows(name: str, loss: nn.Module, arguments: argparse.Namespace) -> Iterator[str]:
    """One line of the table for each batch size; what is expected to outlast the limit is left out."""
    power = 3 if name in HIERARCHICAL else 2  # of the batch size, that the time grows with
    expected, peer_expected = 0.0, 0.0
    previous = None
    for size in arguments.batch:
        times = (size / previous) ** power if previous else 0.0
        peer_times = (size / previous) ** 3 if previous else 0.0
        if expected * times > arguments.limit:
            yield f"| {name} | {size} | not run: over {arguments.limit:.0f} s | | | | | |"
            continue
        embeddings, labels = batch(size, arguments.dim, arguments.device)
        calls = [call(loss, embeddings, labels), products_of(embeddings)]
        peer = PEERS.get(name) if peer_expected * peer_times <= arguments.limit else None
        added = memory_added(calls[0], arguments.device)
        try:
            if peer is not None:
                calls.append(call(peer, embeddings, labels[:, 0]))
                calls[2]()
        except RuntimeError:  # out of memory
            peer, calls = None, calls[:2]
            peer_expected = float("inf")
        ours, bound, *theirs = by_turns(calls, arguments.device, arguments.budget)
        bound += step_pass(name, loss, size, arguments.device)
        previous, expected = size, ours
        peer_expected = theirs[0] if theirs else peer_expected
        of_peer = f"{theirs[0] / ours:.1f} | {theirs[0] * 1e3:.1f}" if theirs else "- | -"
        yield (
            f"| {name} | {size} | {ours * 1e3:.2f} | {added / 2**20:.0f} | {ours / bound:.2f} | {bound * 1e3:.2f} "
            f"| {of_peer} |"
        )


def batch(size: int, dim: int, device: str) -> tuple[Tensor, Tensor]:
    """Unit embeddings ``[B, D]`` around a centre for each class, and labels ``[B, 2]``."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(size) // SAMPLES_PER_CLASS
    centres = torch.randn(size // SAMPLES_PER_CLASS + 1, dim, generator=generator)
    embeddings = normalize(centres[classes] + torch.randn(size, dim, generator=generator), dim=1).to(device)
    return embeddings.requires_grad_(), torch.stack([classes, classes % SUPER_CLASSES], dim=1).to(device)


def call(loss: nn.Module, embeddings: Tensor, labels: Tensor) -> Callable[[], None]:
    """Forward and backward of a loss."""

    def forward_and_backward() -> None:
        embeddings.grad = None
        loss(embeddings, labels).backward()

    return forward_and_backward


def products_of(embeddings: Tensor) -> Callable[[], None]:
    """The three products; by blocks of queries, so that a floor has no more memory than the loss."""
    rows_of_scores = max(256, 2**24 // len(embeddings))
    fixed = embeddings.detach()

    def products() -> None:
        grad = torch.zeros_like(fixed)
        for queries in fixed.split(rows_of_scores):
            scores = queries @ fixed.T
            torch.mm(scores, fixed)
            grad.addmm_(scores.T, queries)

    return products


def step_pass(name: str, loss: nn.Module, size: int, device: str) -> float:
    """Seconds of one pass of the step over all pairs, from a block that stays in the cache."""
    step: Step = getattr(loss, "step", Sigmoid())
    block = torch.randn(64, 4096, device=device) * 0.05
    relevant = size / SUPER_CLASSES if name in HIERARCHICAL else SAMPLES_PER_CLASS
    seconds, *_ = by_turns([lambda: step(block)], device, budget=0.1)
    return seconds * size * relevant * size / block.numel()


def by_turns(calls: list[Callable[[], object]], device: str, budget: float) -> list[float]:
    """Median seconds of each call, taken in turns for as long as the budget lasts, three times at least."""
    seconds: list[list[float]] = [[] for _ in calls]
    for repeat in range(1000):
        for one, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            one()
            if device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        spent = sum(map(sum, seconds))
        if repeat >= 3 and spent > budget:
            break
    return [statistics.median(times[1:]) for times in seconds]  # the first is a warm-up


def memory_added(one: Callable[[], None], device: str) -> float:
    """Bytes that a call adds at its peak to what is there before."""
    gc.collect()
    if device != "cpu":
        one()  # what libraries allocate once
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        one()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before is not to be used again unseen
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    one()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) * 1024


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else f"CPU, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
