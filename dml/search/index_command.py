"""The ``dml index`` command: embed the gallery of a split, and build an index of it."""

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from dml.search.build import Report, build_index, check_out
from dml.search.embedded import Embedded, of_dataset, read_embeddings
from dml.search.embedder import digest, read_embedder, split_words
from dml.search.index import SearchIndex
from dml.search.kinds import HNSW, IVFPQ, Flat, Kind


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml index``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, or the index cannot be built.
    """
    own, of_model = split_words(words)
    options = _parser(parser_class).parse_args(own)
    kind = _kind(options)
    out = Path(options.out).expanduser()
    check_out(out, overwrite=options.overwrite)
    embed = options.embeddings is None
    embedded = _embed(options, of_model, kind, parser_class) if embed else _read(options, of_model)
    command = shlex.join(["dml", "index", *words])
    report = build_index(embedded, kind, out, seed=options.seed, overwrite=options.overwrite, command=command)
    _print(out, SearchIndex(out), report)
    return 0


def _parser(parser_class: type[ArgumentParser]) -> ArgumentParser:
    parser = parser_class(
        prog="dml index",
        description="Build an index of images by their embeddings.",
        epilog="The data and the transforms are those of the checkpoint's run; -c FILE, --data.* and "
        "--model.embedder.* change them, as for dml predict.",
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", "--ckpt", type=str | None, default=None, help="Checkpoint of a run.")
    parser.add_argument(
        "--embeddings", type=str | None, default=None, help="What dml predict wrote, in place of embedding again."
    )
    parser.add_argument("--root", type=str | None, default=None, help="Folder of the images of --embeddings.")
    parser.add_argument("--split", type=str | None, default=None, help="Of the data set; by default test.")
    parser.add_argument("--kind", type=Literal["flat", "hnsw", "ivfpq"], default="flat", help="Of the index.")
    parser.add_class_arguments(HNSW, "hnsw")
    parser.add_class_arguments(IVFPQ, "ivfpq")
    parser.add_argument("--out", type=str, required=True, help="Folder to write.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an index that is there.")
    parser.add_argument("--seed", type=int, default=0, help="Of what is random in building and in measuring.")
    return parser


def _kind(options: Any) -> Kind:
    kinds: dict[str, Kind] = {"flat": Flat(), "hnsw": HNSW(**vars(options.hnsw)), "ivfpq": IVFPQ(**vars(options.ivfpq))}
    defaults: dict[str, Kind] = {"flat": Flat(), "hnsw": HNSW(), "ivfpq": IVFPQ()}
    for name, kind in kinds.items():
        if name != options.kind and kind != defaults[name]:
            raise ValueError(f"kind is {options.kind!r}, which has no parameters {name}.*; leave them out")
    return kinds[options.kind]


def _embed(options: Any, words: Sequence[str], kind: Kind, parser_class: type[ArgumentParser]) -> Embedded:
    if options.ckpt_path is None:
        raise ValueError("ckpt_path is not given: dml index needs a checkpoint, or --embeddings of dml predict")
    if options.root is not None:
        raise ValueError(f"root is {options.root!r}, which goes with --embeddings; here it is --data.root")
    embedder = read_embedder(options.ckpt_path, words, parser_class)
    split = options.split or "test"
    dataset = embedder.dataset(split)
    # Before the work of embedding.
    kind.completed(int((dataset.index["role"] != "query").sum()), embedder.dimension)
    if not dataset.path(0).is_file():
        raise ValueError(f"data.root is {str(dataset.root)!r}, whose images are not files: no {dataset.path(0)}")
    embedded = of_dataset(dataset, *embedder.embed_split(split))
    return _with_checkpoint(embedded, options.ckpt_path)


def _read(options: Any, words: Sequence[str]) -> Embedded:
    if words:
        raise ValueError(f"embeddings is {options.embeddings!r}, which is embedded already; {words[0]} has no effect")
    if options.root is None:
        raise ValueError("root is not given: --embeddings needs the folder that its paths are relative to")
    embedded = read_embeddings(Path(options.embeddings).expanduser(), Path(options.root).expanduser(), options.split)
    if options.ckpt_path is None:
        return embedded
    if not Path(options.ckpt_path).is_file():
        raise ValueError(f"ckpt_path is {options.ckpt_path!r}; there is no such file")
    return _with_checkpoint(embedded, options.ckpt_path)


def _with_checkpoint(embedded: Embedded, ckpt_path: str) -> Embedded:
    return replace(embedded, checkpoint=str(Path(ckpt_path).expanduser().resolve()), sha256=digest(ckpt_path))


def _print(out: Path, index: SearchIndex, report: Report) -> None:
    facts, recall = index.facts, report.recall
    table = Table(
        title=f"{facts.kind}, {facts.count:,} images, D {facts.dimension}", title_justify="left", show_header=False
    )
    table.add_column("")
    table.add_column("", justify="right")
    rows = {
        **{name: str(value) for name, value in facts.parameters.items()},
        **{name: f"{value:.4f}" for name, value in recall.recall.items()},
        "ms per query": f"{recall.milliseconds:.2f}",
        "ms, exact search": f"{recall.exact_milliseconds:.2f}",
        "in memory": f"{report.index_bytes / 1e6:,.2f} MB",
        "on disk": f"{report.folder_bytes / 1e6:,.2f} MB",
        "built in": f"{report.seconds:,.1f} s",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console = Console()
    console.print(table)
    others = len(index.images) - facts.count
    queries = f"; {others:,} more images are queries only" if others else ""
    told = f"{out}: recall is against exact search, of {recall.num_queries:,} queries{queries}"
    console.print(told, soft_wrap=True, highlight=False, markup=False)
