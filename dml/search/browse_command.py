"""The ``dml browse`` command: an index as a page in the browser."""

import ipaddress
import socket
import sys
import webbrowser
from pathlib import Path

import uvicorn
from jsonargparse import ArgumentParser
from rich.console import Console

from dml.search.app import make_app, worst_queries
from dml.search.embedder import split_words
from dml.search.index import SearchIndex
from dml.search.query_command import add_index_arguments, checked_embedder

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def run(words: list[str], parser_class: type[ArgumentParser]) -> int:
    """Run the command, until it is stopped by Ctrl-C.

    Args:
        words: Of the command line, after ``dml browse``.
        parser_class: How errors are reported.

    Returns:
        Exit code: 0.

    Raises:
        ValueError: If an argument is wrong, the index is damaged, or the port is taken.
    """
    own, of_model = split_words(words)
    options = _parser(parser_class).parse_args(own)
    if not options.max_upload_mb > 0:
        raise ValueError(f"max_upload_mb is {options.max_upload_mb}; it must be more than 0")
    if not 0 <= options.port < 2**16:  # of a larger one, the system would take the remainder
        raise ValueError(f"port is {options.port}; it must be from 0 to {2**16 - 1}")
    index = SearchIndex(options.index, root=options.root, follow_links=options.follow_links)
    worst = None if options.per_query is None else worst_queries(index, Path(options.per_query).expanduser())
    embedder, note = None, "the index has no checkpoint: images cannot be dropped in, unless --ckpt_path gives one"
    if options.ckpt_path is not None or index.facts.checkpoint is not None:
        embedder, note = checked_embedder(index, options.ckpt_path, of_model, parser_class)
    is_local = _is_loopback(options.host)
    app = make_app(
        index,
        embedder,
        worst=worst,
        max_upload_bytes=int(options.max_upload_mb * 2**20),
        hosts=(*_LOOPBACK, options.host.lower()) if is_local else (),
    )
    listener = _listen(options.host, options.port)
    warnings = [note] if note else []
    if not is_local:
        warnings.append(f"host is {options.host}: whoever reaches this machine sees the images of the index")
    _serve(app, listener, options.host, warnings, opens=options.open)
    return 0


def _parser(parser_class: type[ArgumentParser]) -> ArgumentParser:
    parser = parser_class(
        prog="dml browse",
        description="Search an index from a page in the browser.",
        epilog="Images are transformed and embedded as by the checkpoint's run; -c FILE, --data.* and "
        "--model.embedder.* change that, and must be what they were for dml index.",
        allow_abbrev=False,
    )
    add_index_arguments(parser)
    parser.add_argument("--per_query", type=str | None, default=None, help="Parquet of queries and their AP.")
    parser.add_argument("--host", type=str, default="127.0.0.1", help="Address to listen on; by default this machine.")
    parser.add_argument("--port", type=int, default=8000, help="To listen on; 0 for any that is free.")
    parser.add_argument("--max_upload_mb", type=float, default=20.0, help="Of an image that is dropped in, in MiB.")
    parser.add_argument("--open", action="store_true", help="Open the page in the browser.")
    return parser


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> socket.socket:
    """A socket of the address, so that a port that is taken is told as any other error."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise ValueError(f"host is {host!r} and port {port}, where one cannot listen: {error}") from error
    return listener


def _serve(app: object, listener: socket.socket, host: str, warnings: list[str], *, opens: bool) -> None:
    name = f"[{host}]" if ":" in host else host
    url = f"http://{name}:{listener.getsockname()[1]}"
    console = Console(stderr=True)
    for warning in warnings:
        console.print(f"dml: {warning}", soft_wrap=True, highlight=False, markup=False)
    Console().print(f"{url} (Ctrl-C to stop)", soft_wrap=True, highlight=False, markup=False)
    sys.stdout.flush()  # for who reads the address from a pipe
    if opens:
        webbrowser.open(url)
    config = uvicorn.Config(app, log_level="warning", limit_concurrency=64, server_header=False)  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listener])
