"""The page of ``dml browse``: search by an image that is dropped in, by one of the index, or by the worst queries."""

import base64
import io
import time
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pandas as pd
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.templating import Jinja2Templates
from torch import Tensor
from torchvision.transforms.v2 import functional

from dml.search.embedder import ImageEmbedder, read_image
from dml.search.guard import Guard
from dml.search.index import SearchIndex
from dml.search.uploads import RefusedUploadError, decode_upload, read_limited

_FOLDER = Path(__file__).parent
_SIDE = 384  # of an image on the page
_KEPT = 2000  # of those, in memory
_MOST = 200  # neighbours, and queries in the list
_AT_ONCE = 1  # searches: one has all cores


def make_app(
    index: SearchIndex,
    embedder: ImageEmbedder | None,
    *,
    worst: pd.DataFrame | None = None,
    max_upload_bytes: int = 20 * 2**20,
    hosts: tuple[str, ...] = (),
) -> Starlette:
    """The page as an ASGI application.

    Args:
        index: To search.
        embedder: Of images that are dropped in; without it, only images of the index can be searched by.
        worst: Queries to click through, from :func:`worst_queries`.
        max_upload_bytes: Of an image.
        hosts: Names under which it may be asked for; empty for any.
    """
    page = _Page(index, embedder, worst, max_upload_bytes)
    return Starlette(
        routes=[
            Route("/", page.show),
            Route("/images/{row:int}", page.image),
            Route("/neighbours/{row:int}", page.neighbours),
            Route("/search", page.search, methods=["POST"]),
            Route("/worst", page.worst),
            Mount("/page", StaticFiles(directory=_FOLDER / "page"), name="page"),
        ],
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={Exception: _failed},
    )


def worst_queries(index: SearchIndex, file: Path) -> pd.DataFrame:
    """The queries of a file with the lowest AP first, as far as they are images of the index.

    Args:
        index: Whose images they are.
        file: Parquet, with the columns ``path`` and ``AP``, and perhaps ``first_wrong_path``, ``first_wrong_score``.

    Raises:
        ValueError: If it is not such a file, or none of its queries is in the index.
    """
    try:
        frame = pd.read_parquet(file)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"per_query is {str(file)!r}, which cannot be read as Parquet: {reason}") from error
    missing = [name for name in ("path", "AP") if name not in frame]
    if missing:
        raise ValueError(f"per_query is {str(file)!r}, which lacks columns {missing}; it has {list(frame.columns)}")
    known = frame[[path in index for path in frame["path"]]]
    if known.empty:
        raise ValueError(f"per_query is {str(file)!r}, none of whose {len(frame)} queries is an image of the index")
    return known.sort_values("AP", kind="stable").reset_index(drop=True)


class _Page:
    def __init__(
        self, index: SearchIndex, embedder: ImageEmbedder | None, worst: pd.DataFrame | None, max_upload_bytes: int
    ) -> None:
        self._index, self._embedder, self._worst = index, embedder, worst
        self._max_upload_bytes = max_upload_bytes
        self._templates = Jinja2Templates(directory=_FOLDER / "templates")
        self._turns = CapacityLimiter(_AT_ONCE)
        self._jpeg = lru_cache(maxsize=_KEPT)(partial(_of_index, index))

    async def show(self, request: Request) -> Response:
        facts = self._index.facts
        context = {
            "facts": facts,
            "count": self._index.count,
            "others": len(self._index.images) - self._index.count,
            "recall": facts.report.get("recall", {}).get("recall", {}),
            "can_embed": self._embedder is not None,
            "limit": self._max_upload_bytes,
            "has_worst": self._worst is not None,
        }
        return self._templates.TemplateResponse(request, "page.html", context)

    async def image(self, request: Request) -> Response:
        """An image of the index, by its number and made anew from its pixels: no file is sent as it is."""
        try:
            content = await to_thread.run_sync(self._jpeg, request.path_params["row"])
        except (OSError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 404)
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def neighbours(self, request: Request) -> Response:
        row = request.path_params["row"]
        if row >= len(self._index.images):
            return JSONResponse({"error": f"row is {row}; the index has {len(self._index.images)} images"}, 404)
        work = partial(self._by_row, row, _wanted(request))
        return JSONResponse(await to_thread.run_sync(work, limiter=self._turns))

    async def search(self, request: Request) -> Response:
        if self._embedder is None:
            message = "the index has no checkpoint to embed images by; start dml browse with --ckpt_path"
            return JSONResponse({"error": message}, 409)
        try:
            content = await read_limited(request.stream(), self._max_upload_bytes)
            work = partial(self._by_upload, self._embedder, content, _wanted(request))
            return JSONResponse(await to_thread.run_sync(work, limiter=self._turns))
        except RefusedUploadError as error:
            # Nothing more is read of what is too large.
            return JSONResponse({"error": str(error)}, error.status, headers={"Connection": "close"})

    async def worst(self, request: Request) -> Response:
        if self._worst is None:
            return JSONResponse([])
        return JSONResponse([self._described_query(query) for query in self._worst.head(_MOST).to_dict("records")])

    def _by_row(self, row: int, k: int) -> dict[str, Any]:
        started = time.perf_counter()
        scores, rows = self._index.neighbours(row, k)
        return {
            "query": {**self._described(row), "image": f"images/{row}"},
            "neighbours": self._found(row, scores.tolist(), rows.tolist()),
            "milliseconds": 1000 * (time.perf_counter() - started),
        }

    def _by_upload(self, embedder: ImageEmbedder, content: bytes, k: int) -> dict[str, Any]:
        image = decode_upload(content, embedder.model.channels)
        started = time.perf_counter()
        scores, rows = self._index.search(embedder.embed(image), k)
        found = rows[0] >= 0
        shown = base64.b64encode(_small_jpeg(image)).decode()
        return {
            "query": {"row": None, "path": "", "labels": {}, "image": f"data:image/jpeg;base64,{shown}"},
            "neighbours": self._found(None, scores[0][found].tolist(), rows[0][found].tolist()),
            "milliseconds": 1000 * (time.perf_counter() - started),
        }

    def _found(self, query: int | None, scores: list[float], rows: list[int]) -> list[dict[str, Any]]:
        return [
            {
                **self._described(row),
                "score": score,
                "is_right": None if query is None else self._index.is_right(query, row),
            }
            for score, row in zip(scores, rows, strict=True)
        ]

    def _described(self, row: int) -> dict[str, Any]:
        return {"row": row, "path": str(self._index.images["path"].iloc[row]), "labels": self._index.labels(row)}

    def _described_query(self, query: dict[Any, Any]) -> dict[str, Any]:
        wrong = query.get("first_wrong_path")
        is_known = isinstance(wrong, str) and wrong in self._index
        return {
            **self._described(self._index.row(query["path"])),
            "AP": _finite(query["AP"]),
            "wrong": self._described(self._index.row(str(wrong))) if is_known else None,
            "wrong_score": _finite(query.get("first_wrong_score")),
        }


def _of_index(index: SearchIndex, row: int) -> bytes:
    return _small_jpeg(read_image(index, row, channels=3))


def _small_jpeg(image: Tensor) -> bytes:
    pixels = functional.to_pil_image(image).convert("RGB")
    pixels.thumbnail((_SIDE, _SIDE))
    content = io.BytesIO()
    pixels.save(content, "JPEG", quality=90)
    return content.getvalue()


def _wanted(request: Request) -> int:
    """How many neighbours are asked for."""
    text = request.query_params.get("k", "")
    return min(_MOST, max(1, int(text))) if text.isdecimal() and len(text) < 9 else 24


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and abs(value) < float("inf") else None


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": "the search has failed; the terminal says why"}, 500)
