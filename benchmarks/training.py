"""Time and memory of training steps on large batches: ``python -m benchmarks.training [step memory epoch references]``.

- step: a batch that fits, by turns: bare forward and backward of timm's model on the whole batch, the plain step of
  RetrievalModule, and the step in chunks. A step in chunks computes each image's embedding twice, forward being about a
  third of a step: 4/3 of its time is the floor.
- memory: the peak that a step in chunks of a batch of thousands adds, against that of a step of one chunk and the batch
  of uint8 images, each in a process of its own on a CPU.
- epoch: images a second of a whole epoch of ``Trainer.fit``, against the slower of the loader alone and the step alone.
- references: a step of SupAP against a memory of tens of thousands of embeddings.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from pytorch_lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.loading import IMAGES_PER_CLASS, draw
from benchmarks.losses import by_turns, memory_added
from dml.data import RetrievalDataModule
from dml.data.datasets import ImageFolderDataset
from dml.losses import SupAPLoss
from dml.memory import CrossBatchMemory
from dml.models import TimmEmbedder
from dml.module import RetrievalModule

PARTS = ("step", "memory", "epoch", "references")


def main() -> None:
    """Measure what is asked for, and print a table for each in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0] if __doc__ else None)
    parser.add_argument("parts", nargs="*", default=[], choices=[*PARTS, []], help="What to measure; all by default.")
    parser.add_argument("--models", nargs="+", default=["resnet18", "vit_tiny_patch16_224"])
    parser.add_argument("--image_size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=256, help="Of the steps that are compared.")
    parser.add_argument("--chunk_size", type=int, default=64)
    parser.add_argument("--large_batch", type=int, default=4096, help="Of the step whose memory is measured.")
    parser.add_argument("--precision", default="32", choices=["32", "bf16"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--images", type=int, default=2048, help="Of the data set whose epochs are measured.")
    parser.add_argument("--workers", type=int, default=1, help="That load it.")
    parser.add_argument("--memory_sizes", type=int, nargs="+", default=[0, 4096, 16384, 60000])
    parser.add_argument("--peak_of", type=int, help=argparse.SUPPRESS)  # a batch size: what a fresh process measures
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of is not None:
        print(peak(arguments.models[0], arguments.peak_of, arguments))
        return
    device = torch.cuda.get_device_name() if arguments.device != "cpu" else f"CPU, {arguments.threads} threads"
    print(f"{device}, torch {torch.__version__}, {arguments.precision}, {arguments.image_size} px")
    parts = {"step": steps, "memory": memory, "epoch": epochs, "references": references}
    for part in arguments.parts or PARTS:
        print()
        parts[part](arguments)


class Step:
    """A training step on images that are drawn once: embed, rank, differentiate.

    Args:
        model: A name of timm.
        size: Of the batch.
        chunk_size: Of the embedder.
        arguments: Of the command line.
    """

    def __init__(self, model: str, size: int, chunk_size: int | None, arguments: argparse.Namespace) -> None:
        self.embedder = embedder(model, chunk_size, arguments).to(arguments.device)
        self.loss = SupAPLoss()
        self.optimizer = torch.optim.AdamW(self.embedder.parameters())
        self.images = torch.randint(0, 256, shape(size, arguments), dtype=torch.uint8, device=arguments.device)
        self.labels = (torch.arange(size, device=arguments.device) // IMAGES_PER_CLASS).unsqueeze(1)
        self.autocast = functools.partial(
            torch.autocast, arguments.device, torch.bfloat16, enabled=arguments.precision == "bf16"
        )

    def __call__(self) -> None:
        self.embedder.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss(self.embedder(self.images), self.labels)
        loss.backward()


class BareStep:
    """Forward and backward of timm's model, with as many outputs as embeddings have columns; no loss to speak of."""

    def __init__(self, model: str, step: Step, arguments: argparse.Namespace) -> None:
        sized = {"img_size": arguments.image_size} if "vit" in model else {}
        self.model: nn.Module = timm.create_model(model, num_classes=512, **sized)
        self.model.to(arguments.device, memory_format=torch.channels_last)
        for layer in self.model.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.eval()
        self.step = step

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        images = (self.step.images.float() / 255 - 0.5).contiguous(memory_format=torch.channels_last)
        with self.step.autocast():
            total = self.model(images).float().square().sum()
        total.backward()


def embedder(model: str, chunk_size: int | None, arguments: argparse.Namespace) -> TimmEmbedder:
    """In training, batch norms frozen, as the papers do."""
    made = TimmEmbedder(
        model,
        pretrained=False,
        image_size=arguments.image_size,
        chunk_size=chunk_size,
        freeze_batch_norm="statistics",
        channels_last=True,
    )
    return made.train()


def shape(size: int, arguments: argparse.Namespace) -> tuple[int, int, int, int]:
    """Of a batch of images."""
    return size, 3, arguments.image_size, arguments.image_size


def steps(arguments: argparse.Namespace) -> None:
    """Steps by turns."""
    print("| model | B | chunk | x plain | images/s in chunks | images/s plain | images/s bare timm |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models:
        plain = Step(model, arguments.batch, None, arguments)
        chunked = Step(model, arguments.batch, arguments.chunk_size, arguments)
        calls: list[Callable[[], object]] = [plain, chunked, BareStep(model, plain, arguments)]
        seconds = turns(calls, arguments)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[1], seconds[0], strict=True))
        rates = [f"{arguments.batch / statistics.median(times):.1f}" for times in seconds]
        row = [model, str(arguments.batch), str(arguments.chunk_size), f"{ratio:.2f}", rates[1], rates[0], rates[2]]
        print(f"| {' | '.join(row)} |", flush=True)


def turns(calls: list[Callable[[], object]], arguments: argparse.Namespace) -> list[list[float]]:
    """Seconds of each call in each turn, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(1 + arguments.turns):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if arguments.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return [times[1:] for times in seconds]


def memory(arguments: argparse.Namespace) -> None:
    """Peaks, above what the process holds before the step and its images."""
    size = arguments.large_batch
    print("| model | B | chunk | x (one chunk + uint8 batch) | GiB of the step | of one chunk | of uint8 images |")
    print("|---|---|---|---|---|---|---|")
    for model in arguments.models:
        whole, one = (peak_in_a_process(model, batch, arguments) for batch in (size, arguments.chunk_size))
        images = torch.Size(shape(size, arguments)).numel()
        gib = [f"{value / 2**30:.2f}" for value in (whole, one, images)]
        ratio = f"{whole / (one + images):.2f}"
        print(f"| {' | '.join([model, str(size), str(arguments.chunk_size), ratio, *gib])} |", flush=True)


def peak_in_a_process(model: str, size: int, arguments: argparse.Namespace) -> float:
    """Of a fresh process on a CPU, whose allocator has nothing to spare and gives back what is freed.

    By default glibc keeps freed blocks that fit nothing else, up to 0.3 GiB of them in these steps.
    """
    if arguments.device != "cpu":
        return peak(model, size, arguments)
    options = {
        name: getattr(arguments, name) for name in ("image_size", "chunk_size", "precision", "device", "threads")
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.training", "--models", model, "--peak_of", str(size), *words]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def peak(model: str, size: int, arguments: argparse.Namespace) -> float:
    """Bytes that a step adds with its images, a first small one having allocated gradients and what else stays."""
    small = Step(model, IMAGES_PER_CLASS, None, arguments)
    small()

    def step() -> None:
        large = Step(model, size, arguments.chunk_size, arguments)
        large.embedder = small.embedder
        large.embedder.chunk_size = arguments.chunk_size
        large()

    return memory_added(step, arguments.device)


class Epochs(Callback):
    """Seconds of each training epoch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_epoch_start(self, *_: object) -> None:
        self._start = time.perf_counter()

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self._start)


def epochs(arguments: argparse.Namespace) -> None:
    """An epoch of fit, of the loader and of the steps, one after the other, as often as there are turns."""
    print("| model | workers | x slower of the two | images/s of fit | of the loader alone | of the step alone |")
    print("|---|---|---|---|---|---|")
    model = arguments.models[0]
    with tempfile.TemporaryDirectory() as folder:
        draw(Path(folder), arguments.images)
        data = RetrievalDataModule(
            ImageFolderDataset,
            folder,
            arguments.batch // IMAGES_PER_CLASS,
            IMAGES_PER_CLASS,
            val_split="train",
            num_workers=arguments.workers,
            image_size=arguments.image_size,
        )
        data.setup("fit")
        loader = data.train_dataloader()
        step = Step(model, arguments.batch, arguments.chunk_size, arguments)
        rows: list[list[float]] = []
        for _ in range(arguments.turns):
            alone = [
                seconds_of(lambda: list(map(len, loader))),
                seconds_of(lambda: [step() for _ in range(len(loader))]),
            ]
            rows.append([fit(model, data, folder, arguments), *alone])
    kept = rows[1:] or rows  # the first is a warm-up
    ratio = statistics.median(max(loading, stepping) / fitting for fitting, loading, stepping in kept)
    images = len(loader) * arguments.batch
    rates = [f"{images / statistics.median(times):.1f}" for times in zip(*kept, strict=True)]
    print(f"| {' | '.join([model, str(arguments.workers), f'{ratio:.2f}', *rates])} |")


def fit(model: str, data: RetrievalDataModule, folder: str, arguments: argparse.Namespace) -> float:
    """Seconds of the second epoch of a run, whose workers have started."""
    clock = Epochs()
    module = RetrievalModule(embedder(model, arguments.chunk_size, arguments), SupAPLoss())
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu" if arguments.device == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed" if arguments.precision == "bf16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
        default_root_dir=folder,
        callbacks=[clock],
    )
    trainer.fit(module, datamodule=data)
    return clock.seconds[1]


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def references(arguments: argparse.Namespace) -> None:
    """SupAP of a batch and a memory: what recalling, ranking, differentiating and remembering take."""
    print("| memory | B | D | ms of loss and memory | MiB of the memory |")
    print("|---|---|---|---|---|")
    for size in arguments.memory_sizes:
        step = RememberingStep(size, arguments)
        (seconds,) = by_turns([step], arguments.device, budget=0.5 * arguments.turns)
        held = sum(t.nbytes for t in step.memory.get_extra_state()["rows"]) if step.memory else 0
        print(f"| {size} | {arguments.batch} | 512 | {seconds * 1e3:.0f} | {held / 2**20:.0f} |", flush=True)


class RememberingStep:
    """Loss, gradient and memory of batches that go round a data set as large as the memory, which is full."""

    def __init__(self, size: int, arguments: argparse.Namespace) -> None:
        self.loss, self.memory = SupAPLoss(), CrossBatchMemory(size) if size else None
        self.images = torch.arange(max(size, arguments.batch), device=arguments.device)
        self.batch = arguments.batch
        if self.memory is not None:
            self.memory.remember(*self.drawn(self.images))

    def drawn(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Random embeddings of images, their labels, and which they are."""
        embeddings = normalize(torch.randn(len(index), 512, device=index.device), dim=1)
        return embeddings, (index // IMAGES_PER_CLASS).unsqueeze(1), index

    def __call__(self) -> None:
        self.images = self.images.roll(-self.batch)
        embeddings, labels, index = self.drawn(self.images[: self.batch])
        embeddings.requires_grad_()
        memory = None if self.memory is None else self.memory.recall(index)
        if memory is None:
            self.loss(embeddings, labels).backward()
        else:
            references = {"ref_emb": memory.embeddings, "ref_labels": memory.labels, "include_batch": True}
            self.loss(embeddings, labels, **references).backward()
        if self.memory is not None:
            self.memory.remember(embeddings, labels, index)


if __name__ == "__main__":
    main()
