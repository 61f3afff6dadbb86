"""Several losses at once."""

from collections.abc import Sequence

from torch import Tensor, nn


class WeightedSum(nn.Module):
    """A weighted sum of losses on the same batch; each term is logged.

    ROADMAP is SupAP and Calibration, HAPPIER is SupHAP and NormSoftmax.

    Args:
        losses: Any losses of :mod:`dml.losses`.
        weights: One for each; by default all are 1.

    Raises:
        ValueError: If there is no loss, or weights are not as many as losses.
    """

    def __init__(self, losses: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        weights = [1.0] * len(losses) if weights is None else list(weights)
        if len(losses) == 0 or len(weights) != len(losses):
            raise ValueError(
                f"losses are {len(losses)} and weights {weights}; give one or more losses, a weight for each"
            )
        self.losses = nn.ModuleList(losses)
        self.weights = weights
        self.logged: dict[str, float | Tensor] = {}
        """Value of each term for the last batch, without its weight, and what the terms have to report."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The weighted sum, a scalar.

        Args:
            embeddings: ``[B, D]``, unit norm.
            labels: ``[B]`` or ``[B, L]``, finest level first.
            ref_emb: ``[N, D]``, handed on to every loss.
            ref_labels: ``[N]`` or ``[N, L]``, needed with ``ref_emb``.
            include_batch: Handed on to every loss.
        """
        self.logged = {}
        terms = []
        for loss, weight in zip(self.losses, self.weights, strict=True):
            value = loss(embeddings, labels, ref_emb=ref_emb, ref_labels=ref_labels, include_batch=include_batch)
            terms.append(weight * value)
            name = type(loss).__name__
            name = name if name not in self.logged else f"{name}_{len(terms)}"
            self.logged[name] = value.detach()
            self.logged.update({f"{name}_{key}": reported for key, reported in getattr(loss, "logged", {}).items()})
        total: Tensor = sum(terms[1:], terms[0])
        return total
