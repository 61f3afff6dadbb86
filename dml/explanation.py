"""What an error means to the user of the command."""

import difflib
import errno
import re
import traceback
from pathlib import Path
from types import ModuleType

import jsonargparse

import dml
from dml import checkpoints
from dml.module import NonFiniteError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Of a collective whose other end is gone, by gloo and NCCL, which have no error of their own for it.
_LOST = re.compile(r"(closed|reset) by peer|Broken pipe|Socket closed|ncclRemoteError")


def of(error: Exception, note: str) -> tuple[str, int] | None:
    """What to say of an error in one line, and the exit code; None for what needs a traceback."""
    if (unwritten := _unwritten(error)) is not None:
        return unwritten, 1
    if isinstance(error, AttributeError) and isinstance(error.obj, ModuleType):
        # A class that is named and not there, which jsonargparse lets through.
        close = difflib.get_close_matches(str(error.name), dir(error.obj), n=1)
        return f"{error}{f'; did you mean {close[0]!r}?' if close else ''}{note}", 2
    if isinstance(error, RuntimeError) and _LOST.search(str(error)):
        return (
            "another process of the run has ended, and this one cannot go on alone; what that one has said, if it "
            "could, explains why. Once this is put right, go on by the same command and --ckpt_path last"
        ), 1
    # Of an optional argument, jsonargparse tells at length what each of the types has against its value.
    while _is_raised_in(jsonargparse, error) and isinstance(error.__cause__, ValueError):
        error = error.__cause__
    if isinstance(error, (ValueError, OSError)) and _is_raised_in(dml, error):
        return str(error), 1 if isinstance(error, NonFiniteError) else 2
    return None


def _is_raised_in(package: ModuleType, error: BaseException) -> bool:
    """Whether a package raised the error: if it is this one, its message is meant for the user."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(str(package.__file__)).parent)


def _unwritten(error: BaseException | None) -> str | None:
    """What to say of a file that could not be written: because the disk is full, or for any reason if a checkpoint."""
    found: OSError | None = None
    while error is not None:
        # The first one to fail, if it names its file: others fail after it, such as a logger that is closed.
        if isinstance(error, checkpoints.UnwrittenError) or (isinstance(error, OSError) and error.errno in _FULL):
            found = error if found is None or error.filename else found
        error = error.__context__
    if found is None:
        return None
    return (
        f"{found.filename or 'a file of the run'} could not be written: {found.strerror or found}; the file that was "
        "there before is kept. Once this is put right, a fit goes on by the same command and --ckpt_path last"
    )
