"""Which parameters learn how fast: groups by role."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import timm.optim
from torch import nn
from torch.optim import Optimizer

Schedule = Callable[[float], float]
"""From the share of training that is done, in [0, 1], to a factor of the learning rate."""


@dataclass(frozen=True)
class Group:
    """How the parameters of one role are trained.

    Args:
        learning_rate: By default that of the optimizer.
        weight_decay: By default that of the optimizer; 0 for the loss's parameters, such as proxies.
        schedule: By default that of the run.
        frozen: Share of training, from its start, in which they are not trained: a new head, or proxies, settle first.
            Running statistics of batch norms move all the same; see ``freeze_batch_norm`` of the embedder.
        layer_decay: Factor of the learning rate from each layer to the one before it, of the backbone alone.

    Raises:
        ValueError: If a number is out of its range.
    """

    learning_rate: float | None = None
    weight_decay: float | None = None
    schedule: Schedule | None = None
    frozen: float = 0.0
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        if self.learning_rate is not None and self.learning_rate < 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be at least 0")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be at least 0")
        if not 0 <= self.frozen < 1:
            raise ValueError(f"frozen is {self.frozen}; it is a share of training, at least 0 and below 1")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay is {self.layer_decay}; it is a factor above 0, at most 1")


@dataclass(frozen=True)
class ParameterGroups:
    """The parameters of a run by their role.

    Args:
        backbone: Of timm's model.
        head: The rest of the embedder: pooling, normalisation, projection.
        loss: What the loss learns, such as proxies.
        decay_norms_and_biases: Decay all weights alike, as most published code does. By default those of one dimension,
            and those that timm's model names, are not decayed.

    Raises:
        ValueError: If a role without layers has a ``layer_decay``.
    """

    backbone: Group = field(default_factory=Group)
    head: Group = field(default_factory=Group)
    loss: Group = field(default_factory=Group)
    decay_norms_and_biases: bool = False

    def __post_init__(self) -> None:
        for role in ("head", "loss"):
            if getattr(self, role).layer_decay is not None:
                raise ValueError(
                    f"{role}.layer_decay is {getattr(self, role).layer_decay}; only the backbone has layers"
                )

    def optimizer(
        self, make: Callable[[list[dict[str, Any]]], Optimizer], embedder: nn.Module, loss: nn.Module
    ) -> Optimizer:
        """An optimizer whose groups have, beside the usual, their ``role`` and a ``name``."""
        optimizer = make(list(self._groups(embedder, loss)))
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_scale", 1.0)
        return optimizer

    def schedules(self, optimizer: Optimizer, default: Schedule | None) -> list[Schedule | None]:
        """The schedule of each group of the optimizer."""
        return [self.of(group["role"]).schedule or default for group in optimizer.param_groups]

    def check_start(self, default: Schedule | None) -> None:
        """Refuse schedules by epochs whose first epoch would train nothing.

        Raises:
            ValueError: If there is one.
        """
        for schedule in (default, *(self.of(role).schedule for role in ("backbone", "head", "loss"))):
            if schedule is not None and schedule(0.0) == 0:
                raise ValueError(
                    f"schedule_every is 'epoch', and {schedule} starts at a rate of 0, at which the first epoch would "
                    "train nothing; leave its warmup out, or set schedule_every to 'step'"
                )

    def freeze(self, optimizer: Optimizer, progress: float) -> None:
        """Take the gradients of roles that are not trained yet: an optimizer leaves such parameters as they are.

        Nothing else is as exact: a rate of 0 would still fill the moments, and parameters that take no gradient at
        first are an error to processes that average them.
        """
        for group in optimizer.param_groups:
            if progress < self.of(group["role"]).frozen:
                for parameter in group["params"]:
                    parameter.grad = None

    def of(self, role: str) -> Group:
        """The group of a role: backbone, head or loss."""
        group: Group = getattr(self, role)
        return group

    def _groups(self, embedder: nn.Module, loss: nn.Module) -> Iterator[dict[str, Any]]:
        backbone = getattr(embedder, "backbone", embedder)  # an embedder of one's own may be all backbone
        of_backbone = {id(parameter) for parameter in backbone.parameters()}
        head = nn.ParameterList([p for p in embedder.parameters() if id(p) not in of_backbone])
        for role, module in (("backbone", backbone), ("head", head), ("loss", loss)):
            for name, group in self._split(role, module).items():
                settings = self._settings(role, undecayed=group.pop("weight_decay") == 0)
                yield {**group, **settings, "role": role, "name": name}

    def _split(self, role: str, module: nn.Module) -> dict[str, dict[str, Any]]:
        """Parameters by what timm decays, and by layers; a weight decay of 0 marks those that are not decayed."""
        every = self.decay_norms_and_biases
        named: Iterable[str] = () if every or role != "backbone" else getattr(module, "no_weight_decay", tuple)()
        decay = self.of(role).layer_decay
        if decay is not None:
            groups = timm.optim.param_groups_layer_decay(  # type: ignore[attr-defined]  # no __all__
                module, 1.0, no_weight_decay_list=set(named), layer_decay=decay, weight_decay_exclude_1d=not every
            )
            return {f"{role}/{number}": group for number, group in enumerate(groups)}
        if every or role == "loss":
            parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
            return {role: {"params": parameters, "weight_decay": 1.0}} if parameters else {}
        groups = timm.optim.param_groups_weight_decay(module, 1.0, no_weight_decay_list=set(named))  # type: ignore[attr-defined]  # no __all__
        names = {0.0: f"{role}/undecayed", 1.0: role}
        return {names[group["weight_decay"]]: group for group in groups if group["params"]}

    def _settings(self, role: str, *, undecayed: bool) -> dict[str, float]:
        group = self.of(role)
        decay = 0.0 if undecayed or (role == "loss" and group.weight_decay is None) else group.weight_decay
        settings = {"lr": group.learning_rate, "weight_decay": decay}
        return {name: value for name, value in settings.items() if value is not None}
