"""Kinds of index: exact, a graph, and codes in lists."""

import math
from dataclasses import dataclass
from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt

Embeddings = npt.NDArray[np.float32]
"""``[N, D]`` of unit norm."""


class Kind(Protocol):
    """How an index is built; its fields are its parameters."""

    def completed(self, count: int, dimension: int) -> "Kind":
        """With the defaults that depend on the embeddings.

        Args:
            count: ``N``.
            dimension: ``D``.

        Raises:
            ValueError: If a parameter is out of range, or does not fit so many embeddings of that dimension.
        """
        ...

    def build(self, embeddings: Embeddings, seed: int) -> faiss.Index:
        """An index of inner products, in which each row of the embeddings has its number."""
        ...


@dataclass(frozen=True)
class Flat:
    """All embeddings as they are: exact, in time linear in their number."""

    def completed(self, count: int, dimension: int) -> "Flat":
        return self

    def build(self, embeddings: Embeddings, seed: int) -> faiss.Index:
        index = faiss.IndexFlatIP(embeddings.shape[1])
        index.add(embeddings)
        return index


@dataclass(frozen=True)
class HNSW:
    """All embeddings as they are, and a graph to walk from one to its neighbours (Malkov and Yashunin 2018).

    Args:
        m: Links of a node; twice as many in the lowest layer.
        ef_construction: Candidates that are kept while building.
        ef_search: Candidates that are kept while searching: more are slower, and find more.
        num_threads: That build. With more than one, the graph depends on which is faster: no two are the same.
    """

    m: int = 32
    ef_construction: int = 200
    ef_search: int = 128
    num_threads: int = 1

    def completed(self, count: int, dimension: int) -> "HNSW":
        _at_least(2, "hnsw.m", self.m)
        for name in ("ef_construction", "ef_search", "num_threads"):
            _at_least(1, f"hnsw.{name}", getattr(self, name))
        return self

    def build(self, embeddings: Embeddings, seed: int) -> faiss.Index:
        index = faiss.IndexHNSWFlat(embeddings.shape[1], self.m, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.rng = faiss.RandomGenerator(seed)
        index.hnsw.efConstruction, index.hnsw.efSearch = self.ef_construction, self.ef_search
        before = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(self.num_threads)
        try:
            index.add(embeddings)
        finally:
            faiss.omp_set_num_threads(before)
        return index


@dataclass(frozen=True)
class IVFPQ:
    """Codes of a few bytes, in lists of which a search reads some (Jégou et al. 2011).

    Args:
        nlist: Lists; by default four times the square root of the number of images, or fewer for a small gallery.
        nprobe: Lists that a search reads; by default an eighth of them, at least 8.
        m: Parts that an embedding is cut into, each with a code; by default one for 8 numbers, or for a few more.
        bits: Of a code.
        refine: Keep the embeddings as well, and rank so many times the wanted neighbours by them; 0 keeps codes only.
    """

    nlist: int | None = None
    nprobe: int | None = None
    m: int | None = None
    bits: int = 8
    refine: int = 0

    def completed(self, count: int, dimension: int) -> "IVFPQ":
        if not 1 <= self.bits <= 12:
            raise ValueError(f"ivfpq.bits is {self.bits}; it must be from 1 to 12")
        _at_least(0, "ivfpq.refine", self.refine)
        m = _parts(dimension) if self.m is None else self.m
        if not 1 <= m <= dimension or dimension % m:
            good = [value for value in range(1, dimension + 1) if dimension % value == 0]
            raise ValueError(f"ivfpq.m is {m}; it must divide the dimension, {dimension}: one of {good}")
        nlist = max(1, min(round(4 * math.sqrt(count)), count // 39)) if self.nlist is None else self.nlist
        _at_least(1, "ivfpq.nlist", nlist)
        needed = max(nlist, 2**self.bits)
        if count < needed:
            raise ValueError(
                f"ivfpq learns {nlist} lists and {2**self.bits} codes (ivfpq.bits is {self.bits}) from the gallery, "
                f"which has {count} images and must have at least {needed}; kind flat is made for so few"
            )
        nprobe = min(nlist, max(8, nlist // 8)) if self.nprobe is None else self.nprobe
        if not 1 <= nprobe <= nlist:
            raise ValueError(f"ivfpq.nprobe is {nprobe}; it must be from 1 to ivfpq.nlist, {nlist}")
        return IVFPQ(nlist, nprobe, m, self.bits, self.refine)

    def build(self, embeddings: Embeddings, seed: int) -> faiss.Index:
        count, dimension = embeddings.shape
        kind = self.completed(count, dimension)
        quantizer = faiss.IndexFlatIP(dimension)
        index = faiss.IndexIVFPQ(quantizer, dimension, kind.nlist, kind.m, kind.bits, faiss.METRIC_INNER_PRODUCT)
        for clustering in (index.cp, index.pq.cp):
            clustering.seed = seed
            clustering.min_points_per_centroid = 1  # below 39, faiss warns on stderr; the report tells what it costs
        index.nprobe = kind.nprobe
        if not kind.refine:
            index.train(embeddings)
            index.add(embeddings)
            return index
        refined = faiss.IndexRefineFlat(index)
        refined.k_factor = float(kind.refine)
        refined.train(embeddings)
        refined.add(embeddings)
        return refined


def _parts(dimension: int) -> int:
    """The largest number of parts, of 8 numbers or more, that a dimension divides into."""
    return max(m for m in range(1, max(1, dimension // 8) + 1) if dimension % m == 0)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
