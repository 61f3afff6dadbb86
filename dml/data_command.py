"""The ``dml data`` command: look at a data set, check it, prepare it, pack it."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from dml.data import RetrievalDataModule, RetrievalDataset
from dml.data.describe import describe
from dml.data.pack import pack
from dml.data.prepare import extract, prepare
from dml.data.verify import verify

_SHOWN = 20  # problems, on the screen


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command.

    Args:
        words: Of the command line, after ``dml data``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 1 if an image of the data set cannot be used, else 0.

    Raises:
        ValueError: If an argument is wrong, or the data set is not what it should be.
    """
    # Whole names, or a misspelling that is a prefix would pass.
    parser = parser_class(
        prog="dml data", description="Look at a data set, check it, prepare it, pack it.", allow_abbrev=False
    )
    commands = parser.add_subcommands(dest="action")

    def command(name: str, text: str) -> ArgumentParser:
        added = parser_class(description=text, allow_abbrev=False)
        added.add_argument("-c", "--config", metavar="FILE", help="An experiment: what it says of the data counts.")
        added.add_class_arguments(RetrievalDataModule, "data")
        commands.add_subcommand(name, added, help=text)
        return added

    one = command("describe", "Counts beside the published ones, class sizes, hierarchy; what a sampler shows of it.")
    one.add_argument("--sampler", action="store_true", help="Draw an epoch, and say what is seen in it.")
    one = command("verify", "Open every image; list those that are missing, damaged, or in two splits.")
    one.add_argument("--report", type=str, help="CSV file for the whole list.")
    one = command("prepare", "Unpack archives, and copy the data set with smaller images.")
    one.add_argument("--out", type=str, required=True, help="Folder for the copy.")
    one.add_argument("--shorter_side", type=int, default=256, help="Of a resized image, in pixels.")
    one.add_argument("--quality", type=int, default=90, help="Of JPEG, 1 to 95.")
    one = command("pack", "Write the data set as a stream, for one that does not fit a disk.")
    one.add_argument("--out", type=str, required=True, help="Folder for the stream.")
    one.add_argument("--splits", type=list[str] | None, default=None, help="Which to write; by default all.")
    one.add_argument("--chunk_bytes", type=str, default="64MB", help="Size of a chunk.")
    one.add_argument("--url", type=str, help="Where the chunks will lie, if not there: s3://...")
    one.add_argument("--max_cache_bytes", type=str, default="100GB", help="Of the chunks that a machine keeps of them.")

    config = parser.parse_args(_with_data_of_configs(words))
    # jsonargparse 4.49 has renamed it.
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes
    data = instantiate(config)[config.action].data
    actions = {"describe": _describe, "verify": _verify, "prepare": _prepare, "pack": _pack}
    return actions[config.action](data, config[config.action])


def _describe(data: RetrievalDataModule, options: Any) -> int:
    describe(data, sampler=options.sampler)
    return 0


def _verify(data: RetrievalDataModule, options: Any) -> int:
    if options.report is not None and not Path(options.report).absolute().parent.is_dir():
        raise ValueError(f"report is {options.report!r}, a file in a folder that does not exist")
    datasets = _all_splits(data)
    problems = verify(datasets, num_workers=_num_workers(data))
    if options.report is not None:
        problems.to_csv(options.report, index=False)
    num_images = len({path for dataset in datasets for path in dataset.index["path"]})
    _print_problems(problems, f"{len(problems):,} problems in {num_images:,} images", options.report)
    return int(len(problems) > 0)


def _prepare(data: RetrievalDataModule, options: Any) -> int:
    root = Path(data.root).expanduser()
    if root.is_dir():
        extract(root)
    errors = prepare(
        _all_splits(data),
        Path(options.out),
        shorter_side=options.shorter_side,
        quality=options.quality,
        num_workers=_num_workers(data),
    )
    console = Console()
    for error in errors[:_SHOWN]:
        console.print(f"no copy of {error}", soft_wrap=True, highlight=False, markup=False)
    copy = Path(options.out) / root.name if root.is_file() else options.out  # a list of the root's own name
    told = f"prepared; {len(errors):,} images could not be read. Use it as --data.root {copy}"
    console.print(told, soft_wrap=True, highlight=False, markup=False)
    return int(bool(errors))


def _pack(data: RetrievalDataModule, options: Any) -> int:
    packed = pack(
        data.dataset,
        data.root,
        options.out,
        levels=data.levels,
        splits=options.splits,
        chunk_bytes=options.chunk_bytes,
        max_cache_bytes=options.max_cache_bytes,
        url=options.url,
    )
    Console().print(
        f"packed {packed.images:,} images, {packed.bytes / 1e9:,.2f} GB, in {packed.chunks:,} chunks. Use it as "
        f"--data.dataset dml.data.datasets.PackedDataset --data.root {options.out}",
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _print_problems(problems: pd.DataFrame, title: str, report: str | None) -> None:
    console = Console()
    table = Table(title=title, title_justify="left")
    for column in problems.columns:
        table.add_column(column, overflow="fold")
    for row in problems.head(_SHOWN).itertuples(index=False):
        table.add_row(*map(str, row))
    console.print(table if len(problems) else title, markup=False)  # paths may have brackets
    if len(problems) > _SHOWN:
        rest = f"and {len(problems) - _SHOWN:,} more"
        console.print(f"{rest}, in {report}" if report else f"{rest}; --report FILE.csv writes all")


def _all_splits(data: RetrievalDataModule) -> list[RetrievalDataset]:
    index, _ = data.dataset.whole_index(Path(data.root).expanduser(), data.levels)
    return [
        data.dataset(data.root, str(split), channels=data.channels, levels=data.levels)
        for split in sorted(index["split"].unique())
    ]


def _num_workers(data: RetrievalDataModule) -> int:
    return data.num_workers or os.cpu_count() or 1


def _with_data_of_configs(words: list[str]) -> list[str]:
    """In place of each configuration of a run, what it says of the data. Some, as a loss, may say nothing."""
    replaced: list[str] = []
    silent, heard = "", False
    remaining = iter(words)
    for word in remaining:
        option, _, value = word.partition("=")
        if option not in ("-c", "--config"):
            replaced.append(word)
            continue
        file = Path(value or next(remaining, ""))
        if not file.is_file():
            raise ValueError(f"config is {str(file)!r}; there is no such file")
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"config is {str(file)!r}, which is not YAML: {error}") from error
        if isinstance(content, dict) and "data" in content:
            replaced.append(f"--data={json.dumps(content['data'])}")
            heard = True
        else:
            silent = str(file)
    if silent and not heard:
        raise ValueError(f"config is {silent!r}, which says nothing of the data")
    return replaced
