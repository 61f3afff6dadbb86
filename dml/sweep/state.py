"""What a run of a sweep leaves in its folder, for the next call to know where it stands."""

import argparse
import contextlib
import functools
import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import yaml

LOG = "output.log"
"""What the run has printed, in its folder."""
LOCK = "sweep.lock"

_STATE = "sweep.json"
_PARTIAL = f"{_STATE}.partial"


def standing(folder: Path, words: list[str]) -> Literal["waiting", "done", "changed"]:
    """Whether a command is still to run in a folder, or has ended well.

    It is changed if it was run, or begun, with other contents of its files: to go on would mix two configurations. One
    that left nothing but its output, such as an error about one of the files, can begin anew.
    """
    state = read_state(folder)
    is_ended = state.get("exit_code") == 0
    if state and state.get("files") not in (None, digest(words)) and (is_ended or _is_begun(folder)):
        return "changed"
    return "done" if is_ended and state.get("words") == words else "waiting"


def digest(words: list[str]) -> str:
    """Of what the files say that a command names by ``-c`` or ``--config``: their comments change no run."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-c", "--config", nargs="?", action="append", default=[])
    found = hashlib.sha256()
    for path in parser.parse_known_args(words)[0].config:
        found.update(_digest_of_file(path))
    return found.hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """What the last process in a folder has left, as :func:`write_state` wrote it; empty if nothing."""
    try:
        state = json.loads((folder / _STATE).read_text())
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def write_state(
    folder: Path, words: list[str], files: str, exit_code: int | None = None, minutes: float | None = None
) -> None:
    """Keep what a process does in a folder.

    Args:
        folder: Of the run.
        words: Of the command line.
        files: Their digest, when the process started.
        exit_code: None until it has ended.
        minutes: How long that took.
    """
    state = {"words": words, "files": files, "exit_code": exit_code, "minutes": minutes}
    (folder / _PARTIAL).write_text(json.dumps(state))
    (folder / _PARTIAL).replace(folder / _STATE)


def _is_begun(folder: Path) -> bool:
    return any(path.name not in (LOG, LOCK, _STATE, _PARTIAL) for path in folder.iterdir())


def _digest_of_file(path: str | None) -> bytes:
    """Nothing, of a file that is not there: the command will say so."""
    try:
        return _digest_of_content(Path(path).read_bytes()) if path else b""
    except OSError:
        return b""


@functools.cache  # many runs have the same few files
def _digest_of_content(content: bytes) -> bytes:
    with contextlib.suppress(yaml.YAMLError):  # what is no YAML is taken as it is
        content = repr(yaml.safe_load(content)).encode()
    return hashlib.sha256(content).digest()
