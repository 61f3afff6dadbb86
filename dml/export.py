"""The ``dml export`` command: the model of a checkpoint as one file that needs no Python of this project."""

import contextlib
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from torch import Tensor, nn

from dml import checkpoints
from dml.models import TimmEmbedder, Whitening

_TOLERANCE = 1e-4  # of an embedding of unit norm
_LARGEST = 1_800_000_000  # bytes of weights in an ONNX file, which cannot exceed 2 GiB
_CHECKED = (1, 5)  # batch sizes


class Exported(nn.Module):
    """What is exported: the embedder in evaluation mode, with its whitening if that is learned.

    Whether it is learned is decided here once: a program that is exported cannot branch.

    Args:
        embedder: Whose whitening is taken out.
    """

    def __init__(self, embedder: TimmEmbedder) -> None:
        super().__init__()
        learned = embedder.whitening is not None and bool(embedder.whitening.learned)
        self.whitening: Whitening | None = embedder.whitening if learned else None
        embedder.whitening = None
        self.embedder = embedder.eval()

    def forward(self, images: Tensor) -> Tensor:
        """From ``[B, C, H, W]`` uint8 to ``[B, D]``."""
        embeddings: Tensor = self.embedder(images)
        return embeddings if self.whitening is None else self.whitening(embeddings)


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml export``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, a package is missing, or the file does not give what the model gives.
    """
    parser = parser_class(
        prog="dml export", description="Write the model of a checkpoint to a file.", allow_abbrev=False
    )
    parser.add_argument("--ckpt_path", "--ckpt", type=str, required=True, help="Checkpoint of a run.")
    parser.add_argument("--format", type=Literal["onnx", "pt2"], default="onnx", help="ONNX, or torch.export's own.")
    parser.add_argument("--out", type=str, required=True, help="File to write.")
    options = parser.parse_args(words)
    difference = export(options.ckpt_path, options.format, Path(options.out))
    Console().print(
        f"{options.out}: embeddings differ by {difference:.1e} at most from those of {options.ckpt_path}",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )
    return 0


def export(ckpt_path: str, kind: Literal["onnx", "pt2"], out: Path) -> float:
    """Write the model of a checkpoint to a file, once it is seen to give the same embeddings.

    Args:
        ckpt_path: Checkpoint of a run.
        kind: Format of the file.
        out: Where it is written. The weights of a large ONNX model lie beside it, in a file ``<out>.data``.

    Returns:
        The largest difference between embeddings of the file and of the model, over images of noise.

    Raises:
        ValueError: If an argument is wrong, a package is missing, or the difference is more than 1e-4.
    """
    if kind == "onnx":
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise ValueError(f"format is 'onnx', which needs {', '.join(missing)}: pip install 'dml[export]'")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"out is {str(out)!r}, a file in a folder that does not exist")
    if out.is_dir() or (kind == "pt2" and out.suffix != ".pt2"):
        raise ValueError(f"out is {str(out)!r}; it must be the name of a file, which of format pt2 ends in .pt2")
    model = Exported(_embedder(ckpt_path))
    # Whole or not at all: into a folder beside it, and moved when it is checked.
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".export-") as folder:
        file = Path(folder) / out.name
        write, load = (_write_onnx, _load_onnx) if kind == "onnx" else (_write_pt2, _load_pt2)
        with _quiet():
            write(model, file)
            difference = _largest_difference(model, load(file))
        for written in Path(folder).iterdir():
            os.replace(written, out.with_name(written.name))
    return difference


def _embedder(ckpt_path: str) -> TimmEmbedder:
    """The embedder of a checkpoint; nothing else that is named in it is built, and no weights are downloaded."""
    checkpoint = checkpoints.read(ckpt_path)
    arguments = checkpoint.get("hyper_parameters", {}).get("embedder")
    if not isinstance(arguments, dict):
        raise ValueError(f"ckpt_path is {ckpt_path!r}, a checkpoint without the configuration of its embedder")
    name = f"{TimmEmbedder.__module__}.{TimmEmbedder.__qualname__}"
    if arguments.get("class_path", name) not in (name, "dml.models.TimmEmbedder"):
        raise ValueError(f"ckpt_path is {ckpt_path!r}, whose embedder is {arguments['class_path']}; not a TimmEmbedder")
    # As built for this: the weights come from the checkpoint, and what is exported is not compiled, in chunks or views.
    plain = {"pretrained": False, "weights": None, "chunk_size": None, "compile": False}
    one_view = {"scales": (1.0,), "flip": False}
    try:
        embedder = TimmEmbedder(**{**arguments.get("init_args", arguments), **plain, **one_view})
    except TypeError as error:
        raise ValueError(f"ckpt_path is {ckpt_path!r}, whose embedder is not of this version: {error}") from error
    weights = checkpoint["state_dict"]
    prefix = "embedder."
    embedder.load_state_dict({key[len(prefix) :]: weights[key] for key in weights if key.startswith(prefix)})
    return embedder


def _write_onnx(model: Exported, file: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        model,
        (_images(model, 2),),
        dynamo=True,
        dynamic_shapes={"images": {0: batch}},
        input_names=["images"],
        output_names=["embeddings"],
        verbose=False,
    )
    if program is None:
        raise ValueError("the model could not be written as ONNX; format pt2 may do")
    program.model.metadata_props.update(_facts(model))
    size = sum(weight.nbytes for weight in model.state_dict().values())
    program.save(file, external_data=size > _LARGEST)


def _load_onnx(file: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # only who exports has it

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["embeddings"], {"images": images.numpy()})[0])


def _write_pt2(model: Exported, file: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(
            model, (_images(model, 2),), dynamic_shapes={"images": {0: torch.export.Dim("batch")}}
        )
    torch.export.save(program, file, extra_files={"metadata.json": json.dumps(_facts(model))})


def _load_pt2(file: Path) -> Callable[[Tensor], Tensor]:
    program: Callable[[Tensor], Tensor] = torch.export.load(file).module()
    return program


@torch.no_grad()
def _largest_difference(model: Exported, exported: Callable[[Tensor], Tensor]) -> float:
    batches = [_images(model, size) for size in _CHECKED]
    difference = max(float((exported(images) - model(images)).abs().max()) for images in batches)
    if not difference <= _TOLERANCE:  # nor NaN
        raise ValueError(
            f"what was written differs by {difference:.1e} from the model, more than {_TOLERANCE:.0e}; it is not kept"
        )
    return difference


def _images(model: Exported, count: int) -> Tensor:
    shape = (count, model.embedder.channels, model.embedder.image_size, model.embedder.image_size)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(count))


def _facts(model: Exported) -> dict[str, str]:
    """What the file says of itself."""
    embedder = model.embedder
    dim = embedder.embedding_dim if model.whitening is None else model.whitening.projection.shape[1]
    mean, std = ([round(value, 4) for value in values.flatten().tolist()] for values in (embedder.mean, embedder.std))
    return {
        "backbone": embedder.name,
        "image_size": str(embedder.image_size),
        "channels": str(embedder.channels),
        "embedding_dim": str(dim),
        "whitened": str(model.whitening is not None).lower(),
        "normalisation": f"inside the model: images are uint8 from 0 to 255; mean {mean}, std {std} of 0 to 1",
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters say of their own insides."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.disable(level)
