"""In which precision matrix products are taken, whatever a program has set."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

_OF_BACKENDS = {"highest": "ieee", "high": "tf32"}


@contextmanager
def matmul_precision(precision: Literal["highest", "high"]) -> Iterator[None]:
    """Products of float32 in full, or with TF32, which rounds a score by 1e-3, a tenth of the usual temperature.

    Args:
        precision: As of ``torch.set_float32_matmul_precision``.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # settings of each backend are in use, which do not mix with this one
        with _precision_of_backends(_OF_BACKENDS[precision]):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _precision_of_backends(precision: str) -> Iterator[None]:
    backends: list[Any] = [torch.backends.cuda.matmul, torch.backends.mkldnn.matmul]  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    for backend in backends:
        backend.fp32_precision = precision
    try:
        yield
    finally:
        for backend, previous in zip(backends, before, strict=True):
            backend.fp32_precision = previous
