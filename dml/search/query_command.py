"""The ``dml search`` command: the neighbours of an image, as tables and as a picture."""

from pathlib import Path
from typing import NamedTuple

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from dml.data.images import decode_image
from dml.search.embedder import ImageEmbedder, check_checkpoint, read_embedder, read_image, split_words
from dml.search.index import SearchIndex
from dml.search.picture import Shown, draw_neighbours


class Query(NamedTuple):
    """What was asked for, and what was found."""

    name: str
    row: int | None  # of the index, if it is one of its images
    image: Tensor | None  # [C, H, W] uint8
    scores: list[float]
    rows: list[int]


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml search``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, the index is damaged, or an image cannot be read.
    """
    own, of_model = split_words(words)
    options = _parser(parser_class).parse_args(own)
    if not options.image and not options.query:
        raise ValueError("image is not given: dml search needs --image FILE, or --query ROW or PATH of the index")
    if options.k < 1:
        raise ValueError(f"k is {options.k}; it must be at least 1")
    out = None if options.out is None else Path(options.out).expanduser()
    if out is not None and (out.is_dir() or not out.absolute().parent.is_dir()):
        raise ValueError(f"out is {options.out!r}; it must be the name of a file, in a folder that exists")
    index = SearchIndex(options.index, root=options.root, follow_links=options.follow_links)
    queries = [_of_index(index, each, options.k) for each in options.query]
    if options.image:
        contents = [_content(name) for name in options.image]  # a missing one is told before the model is read
        embedder, note = checked_embedder(index, options.ckpt_path, of_model, parser_class)
        _warn(note)
        queries += [_of_file(index, embedder, *each, options.k) for each in zip(options.image, contents, strict=True)]
    for query in queries:
        _print(index, query)
    if out is not None:
        draw_neighbours([_row(index, query) for query in queries], title=f"{index.count:,} images").savefig(
            out, dpi="figure"
        )
        Console().print(f"{out}: drawn", soft_wrap=True, highlight=False, markup=False)
    return 0


def add_index_arguments(parser: ArgumentParser) -> None:
    """What ``dml search`` and ``dml browse`` know of an index."""
    parser.add_argument("--index", type=str, required=True, help="Folder that dml index has written.")
    parser.add_argument("--ckpt_path", "--ckpt", type=str | None, default=None, help="If not that of the index.")
    parser.add_argument("--root", type=str | None, default=None, help="Folder of the images, if they have moved.")
    parser.add_argument("--follow_links", action="store_true", help="Show images behind links out of the root as well.")


def checked_embedder(
    index: SearchIndex, ckpt_path: str | None, words: list[str], parser_class: type[ArgumentParser]
) -> tuple[ImageEmbedder, str]:
    """The model for an index, and what is to be said of it.

    Raises:
        ValueError: If there is none, or that of the index does not give the embeddings that are in it.
    """
    embedder = read_embedder(check_checkpoint(index, ckpt_path), words, parser_class)
    differs = embedder.differs_from(index)
    if differs and (ckpt_path is None or embedder.dimension != index.facts.dimension):
        raise ValueError(
            f"the model is not that of the index: {differs}. Say -c and --data.* as when it was built: "
            f"{index.facts.command}"
        )
    return embedder, f"{ckpt_path} is not the model of the index: {differs}" if differs else ""


def _parser(parser_class: type[ArgumentParser]) -> ArgumentParser:
    parser = parser_class(
        prog="dml search",
        description="Find the images of an index that are nearest to others.",
        epilog="Images are transformed and embedded as by the checkpoint's run; -c FILE, --data.* and "
        "--model.embedder.* change that, and must be what they were for dml index.",
        allow_abbrev=False,
    )
    add_index_arguments(parser)
    # An option that is repeated adds to the list.
    parser.add_argument("--image", type=str, action="append", default=[], help="File to search by; may be repeated.")
    parser.add_argument(
        "--query", type=str, action="append", default=[], help="Row or path of an image of the index; may be repeated."
    )
    parser.add_argument("-k", "--k", type=int, default=10, help="How many neighbours.")
    parser.add_argument("--out", type=str | None, default=None, help="Picture to draw, such as neighbours.png.")
    return parser


def _content(name: str) -> bytes:
    try:
        return Path(name).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"image is {name!r}, which cannot be read: {error.strerror}") from error


def _of_file(index: SearchIndex, embedder: ImageEmbedder, name: str, content: bytes, k: int) -> Query:
    try:
        image = decode_image(content, embedder.model.channels)
    except ValueError as error:
        raise ValueError(f"image is {name!r}, which is not a whole image: {error}") from error
    scores, rows = index.search(embedder.embed(image), k)
    found = rows[0] >= 0
    return Query(name, None, image, scores[0][found].tolist(), rows[0][found].tolist())


def _of_index(index: SearchIndex, name: str, k: int) -> Query:
    row = index.row(name) if not name.isdecimal() or name in index else int(name)
    scores, rows = index.neighbours(row, k)
    path = str(index.images["path"].iloc[row])
    return Query(path, row, _image(index, row), scores.tolist(), rows.tolist())


def _image(index: SearchIndex, row: int) -> Tensor | None:
    try:
        return read_image(index, row, channels=3)
    except (OSError, ValueError):
        return None


def _print(index: SearchIndex, query: Query) -> None:
    labels = "" if query.row is None else "".join(f", {value}" for value in index.labels(query.row).values())
    table = Table(title=Text(f"{query.name}{labels}"), title_justify="left")
    for heading in ("rank", "score", "row"):
        table.add_column(heading, justify="right")
    for heading in ("path", *index.facts.levels):
        table.add_column(heading, overflow="fold")
    for rank, (score, row) in enumerate(zip(query.scores, query.rows, strict=True), start=1):
        right = None if query.row is None else index.is_right(query.row, row)
        cells = [str(rank), f"{score:.4f}", str(row), str(index.images["path"].iloc[row]), *index.labels(row).values()]
        style = {True: "green", False: "red", None: ""}[right]
        table.add_row(*map(Text, cells), style=style)  # paths may have brackets
    Console().print(table)


def _row(index: SearchIndex, query: Query) -> tuple[Shown, list[Shown]]:
    neighbours = [
        Shown(
            _image(index, row),
            f"{score:.3f}",
            next(iter(index.labels(row).values()), Path(str(index.images["path"].iloc[row])).name),
            None if query.row is None else index.is_right(query.row, row),
        )
        for score, row in zip(query.scores, query.rows, strict=True)
    ]
    label = None if query.row is None else next(iter(index.labels(query.row).values()), None)
    return Shown(query.image, "query", label or Path(query.name).name), neighbours


def _warn(note: str) -> None:
    if note:
        Console(stderr=True).print(f"dml: {note}", soft_wrap=True, highlight=False, markup=False)
