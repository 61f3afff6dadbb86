"""From images to embeddings, by the model and the transforms of a checkpoint."""

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from jsonargparse import ArgumentParser
from pytorch_lightning import Trainer
from torch import Tensor, nn

from dml import checkpoints
from dml.data import RetrievalDataModule, RetrievalDataset
from dml.data.images import decode_image
from dml.models import TimmEmbedder
from dml.module import RetrievalModule
from dml.search.index import SearchIndex, unit_norm
from dml.search.kinds import Embeddings

_OF_MODEL = ("-c", "--config", "--data", "--model")
_SAME = 0.999  # cosine of an image's embeddings on two machines
_PREFIX = "embedder."


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command, and those of them that say something of the model and the data."""
    own: list[str] = []
    of_model: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, equals, _ = word.partition("=")
        if option not in _OF_MODEL and not option.startswith(("--data.", "--model.")):
            own.append(word)
            continue
        of_model.append(word)
        if not equals:
            of_model.extend(word for word in [next(remaining, None)] if word is not None)
    return own, of_model


@dataclass
class ImageEmbedder:
    """A model in evaluation mode, with what happens to images before it.

    Args:
        model: From ``[B, C, H, W]`` uint8 to ``[B, D]``.
        data: Of the checkpoint's run, for its transforms and for a split to index.
        checkpoint: Where it is from.
    """

    model: TimmEmbedder
    data: RetrievalDataModule
    checkpoint: str

    def __post_init__(self) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self.model.eval().to(self.device)
        self.transform = nn.Sequential(*self.data.eval_transforms)
        self._one_at_a_time = threading.Lock()

    @property
    def dimension(self) -> int:
        """``D``, after whitening if that is learned."""
        whitening = self.model.whitening
        if whitening is not None and bool(whitening.learned):
            return int(whitening.projection.shape[1])
        return self.model.embedding_dim

    @torch.inference_mode()
    def embed(self, image: Tensor) -> Embeddings:
        """From ``[C, H, W]`` uint8, of any size, to ``[1, D]``; from any thread."""
        with self._one_at_a_time:
            transformed = self.transform(image)[None].to(self.device)
            return unit_norm(self.model(transformed).float().cpu().numpy())

    def dataset(self, split: str) -> RetrievalDataset:
        """A split of the data, ready to be embedded."""
        self.data.splits["predict"] = split
        self.data.prepare_data()
        self.data.setup("predict")
        return self.data.datasets["predict"]

    def embed_split(self, split: str) -> tuple[Embeddings, npt.NDArray[np.int64]]:
        """Embed a split as ``dml predict`` does: embeddings ``[N, D]``, and the row of each in the data set's index."""
        self.dataset(split)
        with _quiet():
            trainer = Trainer(
                accelerator="auto",
                devices=1,
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
            )
            # The loss has no part in this; whatever the module holds in its place is not called.
            outputs: Any = trainer.predict(RetrievalModule(self.model, nn.Identity()), self.data)
        self.model.eval().to(self.device)
        embeddings = torch.cat([batch["embeddings"].float().cpu() for batch in outputs])
        rows: npt.NDArray[np.int64] = torch.cat([batch["index"].cpu() for batch in outputs]).numpy()
        return unit_norm(embeddings.numpy()), rows

    def differs_from(self, index: SearchIndex) -> str:
        """What is wrong with searching an index by this model: its own images are embedded otherwise; or nothing."""
        if self.dimension != index.facts.dimension:
            return f"it gives dimension {self.dimension}, and the index is of dimension {index.facts.dimension}"
        for row, stored in index.facts.probes.items():
            with contextlib.suppress(OSError, ValueError):  # an image that is gone says nothing of the model
                image = read_image(index, int(row), self.model.channels)
                cosine = float(self.embed(image)[0] @ np.asarray(stored, dtype=np.float32))
                if not cosine >= _SAME:
                    path = index.images["path"].iloc[int(row)]
                    return f"it embeds {path!r} otherwise, by a cosine of {cosine:.3f}"
        return ""


def read_image(index: SearchIndex, row: int, channels: int) -> Tensor:
    """Decode an image of an index, cropped to its box, to ``[C, H, W]`` uint8.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no image, or lies outside of the root.
    """
    return decode_image(index.file(row).read_bytes(), channels, index.box(row))


def read_embedder(ckpt_path: str, words: Sequence[str], parser_class: type[ArgumentParser]) -> ImageEmbedder:
    """The model and the data of a checkpoint. Nothing in it is executed, and no weights are downloaded for it.

    Args:
        ckpt_path: Checkpoint of a run, with its configuration.
        words: Of the command line, that change the configuration: ``-c``, ``--data.*`` and ``--model.embedder.*``.
        parser_class: How errors are reported.

    Raises:
        ValueError: If it cannot be read, or names code that is not trusted.
    """
    (_, *configured), _ = checkpoints.with_config(["predict", f"--ckpt_path={ckpt_path}", *words])
    configured.remove(f"--ckpt_path={ckpt_path}")
    parser = parser_class(prog="dml", description="A model and its data.", allow_abbrev=False)
    parser.add_argument("-c", "--config", action="config")
    parser.add_argument("--model.embedder", type=TimmEmbedder, required=True)
    parser.add_class_arguments(RetrievalDataModule, "data")
    for name in ("image_size", "channels"):
        parser.link_arguments(f"model.embedder.{name}", f"data.{name}", apply_on="instantiate")
    config = parser.parse_args(_of_model_and_data(configured))
    config.model.embedder.init_args.compile = False  # it would take longer than all that a search embeds
    # jsonargparse 4.49 has renamed it.
    built = (getattr(parser, "instantiate", None) or parser.instantiate_classes)(config)
    model: TimmEmbedder = built.model.embedder
    weights = checkpoints.read(ckpt_path)["state_dict"]
    weights = {key.removeprefix(_PREFIX): value for key, value in weights.items() if key.startswith(_PREFIX)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise checkpoints.misfit(ckpt_path, error, fitting=False) from error
    return ImageEmbedder(model, built.data, ckpt_path)


def check_checkpoint(index: SearchIndex, ckpt_path: str | None) -> str:
    """The checkpoint to search an index by: that which it was built with, unless another is given.

    Raises:
        ValueError: If the index does not say with which, or that file is gone or has changed.
    """
    if ckpt_path is not None:
        return ckpt_path
    known = index.facts.checkpoint
    if known is None:
        raise ValueError("ckpt_path is not given, and the index was built from embeddings without one")
    if not Path(known).is_file():
        raise ValueError(f"the checkpoint of the index, {known}, is not there; --ckpt_path says where it is")
    if digest(known) != index.facts.sha256:
        raise ValueError(
            f"the checkpoint of the index, {known}, has changed since: its SHA-256 is not "
            f"{str(index.facts.sha256)[:12]}…; --ckpt_path takes it, or another, all the same"
        )
    return known


def digest(file: str) -> str:
    """The SHA-256 of a file, as hexadecimal digits."""
    found = sha256()
    with Path(file).open("rb") as stream:
        while block := stream.read(2**20):
            found.update(block)
    return found.hexdigest()


def _of_model_and_data(words: Sequence[str]) -> list[str]:
    """In place of each configuration of a run, what it says of embedder and data; the rest has no part in a search."""
    replaced: list[str] = []
    remaining = iter(words)
    for word in remaining:
        option, _, value = word.partition("=")
        if option not in ("-c", "--config"):
            replaced.append(word)
            continue
        text = value or next(remaining, "")
        content: Any = None
        with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError, OSError):
            content = yaml.safe_load(Path(text).read_text(encoding="utf-8") if _is_file(text) else text)
        if not isinstance(content, dict):
            raise ValueError(f"config is {text!r}, which is not the file of a configuration")
        kept = {"data": content["data"]} if "data" in content else {}
        if isinstance(content.get("model"), dict) and "embedder" in content["model"]:
            kept["model"] = {"embedder": content["model"]["embedder"]}
        replaced.append(f"--config={yaml.safe_dump(kept)}")
    return replaced


def _is_file(text: str) -> bool:
    with contextlib.suppress(OSError, ValueError):  # too long for a name
        return Path(text).is_file()
    return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Lightning says of itself."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers")
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")
        try:
            yield
        finally:
            logger.setLevel(level)
