"""What a run costs beyond what was measured: ``python -m benchmarks.scale`` prints the tables of ``docs/scale.md``.

Every number follows from counted operations and bytes and from the rates of a machine, which are arguments. The last
table holds the same formulas, with the rates of the processor of ``benchmarks/RESULTS.md``, against what was measured
there: a rate is taken from one row, and the others are predicted.
"""

import argparse
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from dml.ranking.chunked import CHUNK_QUERIES, CHUNK_SCORES
from dml.search.kinds import HNSW, IVFPQ

RESULTS = Path(__file__).with_name("RESULTS.md")
FLOAT, LONG = 4, 8  # bytes
POSITIVES = 4  # relevant items of a query: a batch has 4 of each class
RELEVANT = 5  # the same, of a gallery
GALLERY_QUERIES = 512  # whose scores evaluation holds at a time
MOST_SCORES = 2**27  # of them
WORKSPACE = 40 * 2**20  # bytes that evaluation takes at any size: fitted to the rows of RESULTS.md
PROCESSES = (8, 64, 512)
GALLERIES = (10**6, 10**7, 10**8, 10**9)


@dataclass(frozen=True)
class Machine:
    """What one process of a run has, of an NVIDIA H100 SXM with one 400 Gb/s adapter.

    The defaults are those of NVIDIA's data sheet, dense; none was measured here.

    Args:
        float32: FLOP/s of products in float32, in which losses and evaluation are.
        half: FLOP/s of products in bfloat16, in which the backbone is.
        share: Of these rates that is reached; a guess.
        bandwidth: Bytes/s of its memory.
        link: Bytes/s from and to the processes of a node.
        network: Bytes/s from and to other nodes.
        per_node: Processes of a node.
        memory: Bytes.
    """

    float32: float = 67e12
    half: float = 989e12
    share: float = 0.4
    bandwidth: float = 3.35e12
    link: float = 450e9
    network: float = 50e9
    per_node: int = 8
    memory: float = 80e9

    def slowest_link(self, processes: int) -> float:
        """Bytes/s of a ring of processes."""
        return self.link if processes <= self.per_node else self.network


@dataclass(frozen=True)
class Backbone:
    """A network and what it costs for one image."""

    name: str
    parameters: int
    flops: int  # forward, a multiplication and an addition are two

    @classmethod
    def of_timm(cls, name: str, dim: int, image_size: int = 224) -> "Backbone":
        """Counted by torch, without an image or a weight."""
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            model = timm.create_model(name, pretrained=False, num_classes=dim)
            if hasattr(model, "set_input_size"):
                model.set_input_size(img_size=image_size)
            model(torch.empty(1, 3, image_size, image_size))
        return cls(name, sum(weight.numel() for weight in model.parameters()), counter.get_total_flops())


def step_bytes(batch: int, dim: int, parameters: int, processes: int) -> dict[str, float]:
    """Bytes that a process sends in a step, by rings: embeddings, gradients of the loss, gradients of the weights."""
    ring, embeddings = (processes - 1) / processes, FLOAT * batch * dim
    return {
        "gather": ring * (embeddings + 2 * LONG * batch),  # labels of one level and the index go with them
        # Those of queries and of the gallery are all-reduced, and the gather's own is a reduce-scatter.
        "loss": ring * (2 * 2 * embeddings + embeddings),
        "weights": 2 * ring * FLOAT * parameters,
    }


def loss_flops(batch: int, dim: int, processes: int = 1) -> float:
    """Of the three products of a process, which has its share of the queries."""
    return 3 * 2 * batch**2 * dim / processes


def loss_pairs(batch: int, positives: int = POSITIVES, processes: int = 1) -> float:
    """Pairs of a relevant item and an item of the gallery, each with a step and its slope."""
    return batch * positives * batch / processes


def loss_bytes(batch: int, dim: int) -> float:
    """That a step of the loss adds: five times the embeddings, and a chunk of scores four times."""
    chunk = max(CHUNK_QUERIES, CHUNK_SCORES // batch)
    return 5 * FLOAT * batch * dim + 4 * FLOAT * min(chunk, batch) * batch


def backbone_flops(images: float, backbone: Backbone, *, chunked: bool) -> float:
    """Forward, and backward at twice that; the forward of chunks is taken twice."""
    return (4 if chunked else 3) * images * backbone.flops


def evaluation_flops(queries: int, items: int, dim: int, processes: int = 1) -> float:
    """Of the product of all queries with the gallery; processes divide the queries."""
    return 2 * queries * items * dim / processes


def evaluation_bytes(items: int, dim: int, processes: int = 1) -> float:
    """What evaluation adds to the embeddings of a process: a copy, on several processes that of all and one in order.

    Then a block of scores, and some workspace.
    """
    copies = 1 if processes == 1 else 2
    block = min(GALLERY_QUERIES * items, max(MOST_SCORES, items))
    return copies * FLOAT * items * dim + FLOAT * block + WORKSPACE


def index_bytes(kind: str, items: int, dim: int) -> float:
    """Of an index with the defaults of ``dml index``.

    Raises:
        ValueError: If ``kind`` is none of flat, hnsw and ivfpq.
    """
    vectors = float(FLOAT * items * dim)
    if kind == "flat":
        return vectors
    if kind == "hnsw":
        m = HNSW().m
        upper = m * 4 / (m - 1)  # a node is in the next layer with probability 1 / m, with m links there
        return vectors + items * (2 * m * 4 + upper + LONG + 4)
    if kind == "ivfpq":
        chosen = IVFPQ().completed(items, dim)
        codes = items * (float(chosen.m or 0) * chosen.bits / 8 + LONG)
        return codes + FLOAT * dim * (float(chosen.nlist or 0) + 2**chosen.bits)
    raise ValueError(f"kind is {kind!r}; it must be flat, hnsw or ivfpq")


def communication_table(machine: Machine, dim: int, backbone: Backbone) -> Iterator[str]:
    """What a process sends, and how long its slowest link takes for it."""
    yield from _head("B", "processes", "MB gather", "MB loss", "MB weights", "ms")
    for batch in (4096, 65536):
        for processes in PROCESSES:
            sent = step_bytes(batch, dim, backbone.parameters, processes)
            cells = [f"{value / 1e6:.0f}" for value in sent.values()]
            milliseconds = sum(sent.values()) / machine.slowest_link(processes) * 1e3
            yield _row(f"{batch:,}", processes, *cells, _two(milliseconds))


def training_table(machine: Machine, dim: int, backbones: list[Backbone]) -> Iterator[str]:
    """Time of the loss and of the backbones, in chunks, and the memory that the loss adds."""
    names = [f"ms {backbone.name}" for backbone in backbones]
    yield from _head("B", "processes", "ms loss", *names, "MB loss")
    for batch in (4096, 16384, 65536):
        for processes in PROCESSES:
            loss = loss_flops(batch, dim, processes) / (machine.float32 * machine.share)
            loss += loss_pairs(batch, processes=processes) * FLOAT / machine.bandwidth
            flops = [backbone_flops(batch / processes, backbone, chunked=True) for backbone in backbones]
            of_backbones = [_two(each / (machine.half * machine.share) * 1e3) for each in flops]
            size = f"{loss_bytes(batch, dim) / 1e6:.0f}"
            yield _row(f"{batch:,}", processes, _two(loss * 1e3), *of_backbones, size)


def evaluation_table(machine: Machine, dim: int) -> Iterator[str]:
    """Time of the products, and what a process that holds the whole gallery adds to it."""
    times = [f"s, {processes} processes" for processes in PROCESSES]
    yield from _head("queries", "gallery", "FLOP", *times, "GB a process", "fits")
    for items in GALLERIES:
        for queries in sorted({10**4, min(items, 10**6)}):
            rate = machine.float32 * machine.share
            seconds = [_two(evaluation_flops(queries, items, dim, processes) / rate) for processes in PROCESSES]
            held = evaluation_bytes(items, dim, PROCESSES[0])
            fits = "yes" if held <= machine.memory else "no"
            flops = f"{evaluation_flops(queries, items, dim):.1e}"
            yield _row(f"{queries:,}", f"{items:,}", flops, *seconds, _two(held / 1e9), fits)


def index_table(dim: int) -> Iterator[str]:
    """Size of an index, as a whole and in shards of equal size."""
    shards = [f"GB a shard of {processes}" for processes in PROCESSES]
    yield from _head("gallery", "kind", "GB", *shards, "bytes an image")
    for items in GALLERIES:
        for kind in ("flat", "hnsw", "ivfpq"):
            size = index_bytes(kind, items, dim)
            parts = [_two(index_bytes(kind, items // processes, dim) / 1e9) for processes in PROCESSES]
            yield _row(f"{items:,}", kind, _two(size / 1e9), *parts, f"{size / items:.0f}")


def check_table(text: str, dim: int = 512) -> Iterator[str]:
    """Predicted against measured, on the processor of the results; rows marked * gave a rate."""
    yield from _head("what", "predicted", "measured", "predicted / measured")
    product = float(_cells(text, "20000 | product, 512 queries a block")[2])
    rate = evaluation_flops(20000, 20000, dim) / product
    counting = (float(_cells(text, "20000 | dml, 9 measures")[2]) - product) / (20000**2 * RELEVANT)
    step = (_milliseconds(text, 4096) / 1e3 - loss_flops(4096, dim) / rate) / loss_pairs(4096)
    for size in (5000, 10000, 20000, 60000):
        _, _, seconds, _, mebibytes, *_ = _cells(text, f"{size} | dml, 9 measures")
        taken = evaluation_flops(size, size, dim) / rate + counting * size**2 * RELEVANT
        yield _check(f"evaluation, N = {size:,}, s{' *' * (size == 20000)}", taken, float(seconds))
        yield _check(f"evaluation, N = {size:,}, MiB", evaluation_bytes(size, dim) / 2**20, float(mebibytes))
    for batch in (1024, 2048, 4096, 8192, 16384):
        taken = loss_flops(batch, dim) / rate + step * loss_pairs(batch)
        mark = " *" * (batch == 4096)
        yield _check(f"SmoothAPLoss, B = {batch:,}, ms{mark}", taken * 1e3, _milliseconds(text, batch))
        added = float(_cells(text, f"SupAPLoss | {batch}")[3])
        yield _check(f"SupAPLoss, B = {batch:,}, MiB", loss_bytes(batch, dim) / 2**20, added)
    for name in ("resnet18", "vit_tiny_patch16_224"):
        backbone = Backbone.of_timm(name, dim, image_size=112)
        images = rate / backbone_flops(1, backbone, chunked=False)
        yield _check(f"{name}, 112 px, images/s", images, float(_cells(text, f"{name} | 256 | 64")[5]))


def main() -> None:
    """Parse the options, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(Machine):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_base_patch16_224"])
    arguments = parser.parse_args()
    machine = Machine(**{field.name: getattr(arguments, field.name) for field in fields(Machine)})
    backbones = [Backbone.of_timm(name, arguments.dim) for name in arguments.models]
    tables = {
        f"Sent by a process in a step, {backbones[0].name}": communication_table(machine, arguments.dim, backbones[0]),
        "Loss and backbone in a step": training_table(machine, arguments.dim, backbones),
        "Evaluation": evaluation_table(machine, arguments.dim),
        "Index": index_table(arguments.dim),
        "Against what was measured": check_table(RESULTS.read_text()),
    }
    for title, table in tables.items():
        print(f"{title}\n", *table, "", sep="\n")


def _head(*names: str) -> Iterator[str]:
    yield _row(*names)
    yield "|---" * len(names) + "|"


def _row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _check(what: str, predicted: float, measured: float) -> str:
    return _row(what, _two(predicted), f"{measured:g}", f"{predicted / measured:.2f}")


def _two(value: float) -> str:
    """Two significant digits, without an exponent."""
    if value == 0:
        return "0"
    return f"{value:,.{max(0, 1 - math.floor(math.log10(abs(value))))}f}"


def _cells(text: str, start: str) -> list[str]:
    """Cells of the row of a table that starts so.

    Raises:
        ValueError: If there is no such row.
    """
    found = re.search(rf"^\| {re.escape(start)} \|.*$", text, flags=re.MULTILINE)
    if found is None:
        raise ValueError(f"{RESULTS} has no row that starts with {start!r}")
    return [cell.strip() for cell in found[0].strip("|").split("|")]


def _milliseconds(text: str, batch: int) -> float:
    return float(_cells(text, f"SmoothAPLoss | {batch}")[2])


if __name__ == "__main__":
    main()
