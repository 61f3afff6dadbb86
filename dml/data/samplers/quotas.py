"""How many batches an epoch has, and how often it shows each class."""

import numpy as np

from dml.data.samplers.cursor import Integers


def count_batches(wanted: Integers, most: Integers, size: int) -> int:
    r"""The most batches :math:`T` that the classes fill, but enough for every class to appear.

    Filled means :math:`\sum_c \min(w_c, a_c T) \ge B T`, which holds up to some :math:`T` and for none beyond: the left
    side is concave in :math:`T`.

    Args:
        wanted: :math:`w_c` ``[K]``, how often each class is to be shown in an epoch.
        most: :math:`a_c` ``[K]``, how often a batch can show it at most.
        size: :math:`B`, what a batch shows in all.
    """
    fewest, too_many = 1, int(wanted.sum()) // size + 1
    while too_many - fewest > 1:
        middle = (fewest + too_many) // 2
        enough = np.minimum(wanted, most * middle).sum() >= size * middle
        fewest, too_many = (middle, too_many) if enough else (fewest, middle)
    return max(fewest, -(-len(wanted) // size))


def cut_or_top_up(wanted: Integers, most: Integers, total: int, generator: np.random.Generator) -> Integers:
    """Change ``wanted`` ``[K]`` at random to sum to ``total``, with each between 1 and ``most`` ``[K]``."""
    wanted = np.minimum(wanted, most)
    sign = 1 if wanted.sum() < total else -1
    while wanted.sum() != total:
        free = np.flatnonzero(wanted < most if sign > 0 else wanted > 1)
        missing = abs(total - int(wanted.sum()))
        # In proportion to size, so that what is left out is spread evenly over the images.
        keys = np.log(wanted[free]) * -sign + generator.gumbel(size=len(free))
        wanted[free[np.argsort(-keys)[:missing]]] += sign
    return wanted
