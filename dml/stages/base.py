"""What a stage is."""

from abc import ABC, abstractmethod

from torch import Tensor


class Stage(ABC):
    """From embeddings to embeddings, of all queries and the whole gallery at once.

    An image may be query and item of the gallery. It is the same image then: it is no neighbour of itself. But it does
    augment, as any other item, what it is a neighbour of: these are methods for a database that is at hand as a whole.
    """

    @abstractmethod
    def __call__(self, queries: Tensor, gallery: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings to search with, and those to search among; the arguments stay as they are.

        Args:
            queries: ``[Q, D]``, float32 of unit norm.
            gallery: ``[N, D]``, likewise.
            own: ``[Q]``, the row of the gallery that is the image of the query, -1 if there is none.

        Returns:
            Queries ``[Q, K]`` and gallery ``[N, K]``, float32 of unit norm.
        """


def check(queries: Tensor, gallery: Tensor, own: Tensor) -> None:
    """Raise a ValueError if these are not what stages take."""
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries have shape {list(queries.shape)} and the gallery has {list(gallery.shape)}; they must be [Q, D] "
            "and [N, D]"
        )
    if own.shape != queries.shape[:1]:
        raise ValueError(f"own has shape {list(own.shape)}; it must be one row for each of {len(queries)} queries")
    if len(own) and not (int(own.min()) >= -1 and int(own.max()) < len(gallery)):
        raise ValueError(
            f"own has rows from {int(own.min())} to {int(own.max())}; they must be from 0 to {len(gallery) - 1}, or -1 "
            "for a query that is not in the gallery"
        )
