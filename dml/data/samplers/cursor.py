"""A cursor through what each owner has: the images of a class, or the classes of a super-class."""

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def take_next(owners: Integers, drawn: Integers, count: int, generator: np.random.Generator) -> Integers:
    """Take the next ``count`` items of each owner drawn, from its shuffled items, wrapping around.

    So an owner shows all its items before it repeats one, and ``count`` items taken at once are distinct unless the
    owner has fewer.

    Args:
        owners: ``[N]``, the owner of each item, from 0 without gaps.
        drawn: ``[D]``, owners in the order in which they are drawn.
        count: Items for each draw.
        generator: Of the order of each owner's items.

    Returns:
        Items ``[D, count]``.
    """
    sizes = np.bincount(owners)
    shuffled = np.lexsort((generator.random(len(owners)), owners))
    first = sizes.cumsum() - sizes
    order = np.argsort(drawn, kind="stable")
    draws = np.bincount(drawn, minlength=len(sizes))
    turn = np.empty_like(drawn)  # how often the owner was drawn before
    turn[order] = np.arange(len(drawn)) - np.repeat(draws.cumsum() - draws, draws)
    position = turn[:, None] * count + np.arange(count)
    items: Integers = shuffled[first[drawn, None] + position % sizes[drawn, None]]
    return items
