"""An image at several scales and mirrored, and one embedding of all of that."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dml.models.pooling import GeM


class View(NamedTuple):
    """What is done to an image before it is embedded."""

    scale: float
    is_mirrored: bool

    @property
    def name(self) -> str:
        """As the cost is reported."""
        return f"x{self.scale:.4g}{' mirrored' if self.is_mirrored else ''}"


class MultiScale:
    r"""Views of an image, and the generalised mean of what they are embedded as.

    .. math:: v = \Big(\frac1V \sum_i \operatorname{sign}(v_i) |v_i|^p\Big)^{1/p}

    of descriptors of unit norm, the root again with the sign kept, and normalised again. Without signs it is how
    Radenovic et al. combine scales, with the power of their pooling (https://arxiv.org/abs/1711.02512, ``extract_ms``
    of cnnimageretrieval-pytorch); with signs, how Revaud et al. do (https://arxiv.org/abs/1906.07589, ``pool`` of
    deep-image-retrieval, with 3). Theirs raises what is below 1e-6 to that, before the power and before the root: after
    a cube, whatever is below 0.01. Nothing is raised here.

    Args:
        backbone: That the views must suit.
        name: Of the backbone, for errors.
        scales: Of the views, 1 for the image as it comes.
        flip: Whether each scale is taken mirrored as well.
        power: ``p``.
        last_layer: Where no power is given, it is the exponent of this layer if that is a :class:`~dml.models.GeM`, as
            it is at the time; else 1.

    Raises:
        ValueError: If an argument is out of range, or the backbone takes images of one size only.
    """

    def __init__(
        self,
        backbone: Any,
        name: str,
        scales: Sequence[float],
        flip: bool,
        power: float | None = None,
        last_layer: nn.Module | None = None,
    ) -> None:
        if not scales or len(set(scales)) < len(scales) or not all(0 < s < math.inf for s in scales):
            raise ValueError(f"scales is {list(scales)}; it must be factors of both sides, above 0, each once")
        if power is not None and not 0 < power < math.inf:
            raise ValueError(f"view_power is {power}; it must be above 0, and 1 is the mean")
        if any(scale != 1 for scale in scales) and not _takes_any_size(backbone):
            raise ValueError(
                f"scales is {list(scales)}, but {name!r} takes images of one size only; leave scales at [1.0], which "
                "goes with flip, or take a backbone whose input may have any size"
            )
        self.views = [View(scale, mirrored) for scale in scales for mirrored in ((False, True) if flip else (False,))]
        self.clock = ViewClock()
        self._power = power
        self._gem = last_layer if isinstance(last_layer, GeM) else None
        self._step, self._least = _step(backbone), _least(backbone)

    def __call__(self, images: Tensor, embed: Callable[[View], Tensor]) -> Tensor:
        """Embed images in all views.

        Args:
            images: ``[B, C, H, W]``.
            embed: From a view to an embedding ``[B, D]`` of each image in it, of any norm.

        Returns:
            ``[B, D]`` of unit norm.

        Raises:
            ValueError: If a program is being exported and there are several views.
        """
        if torch.compiler.is_exporting() and self.views != [View(1.0, False)]:
            raise ValueError(
                f"the embedder takes the views {[view.name for view in self.views]} of an image, and a program that is "
                "exported takes one; build it with scales=[1.0] and flip=false"
            )
        embeddings = []
        for view in self.views:
            with self.clock.measure(view, images.device):
                embeddings.append(nn.functional.normalize(embed(view), dim=1))
        return embeddings[0] if len(embeddings) == 1 else combine(embeddings, self.power)

    @property
    def power(self) -> Tensor | float:
        """``p``, which may be learned."""
        if self._power is not None:
            return self._power
        return 1.0 if self._gem is None else self._gem.exponent.detach()

    def size(self, height: int, width: int, scale: float) -> tuple[int, int]:
        """Of the view of an image: to the next pixel, or the next patch of a transformer; at least the stride."""
        if scale == 1:
            return height, width
        step = self._step
        rounded = [max(step, int(side * scale / step + 0.5) * step) for side in (height, width)]
        return max(self._least, rounded[0]), max(self._least, rounded[1])

    def apply(self, images: Tensor, view: View) -> Tensor:
        """From ``[B, C, H, W]`` as floats to those of a view."""
        size = self.size(images.shape[-2], images.shape[-1], view.scale)
        if size != images.shape[-2:]:
            images = nn.functional.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True)
        return images.flip(-1) if view.is_mirrored else images


class ViewClock:
    """Seconds spent on each view.

    On a GPU it is the time between two events of the stream: nothing waits for the GPU before the time is read. A copy
    starts at nothing.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._running: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []

    def __reduce__(self) -> tuple[type["ViewClock"], tuple[()]]:
        return ViewClock, ()

    @contextmanager
    def measure(self, view: View, device: torch.device) -> Iterator[None]:
        """Count what is done inside."""
        if torch.compiler.is_compiling():  # a program that is exported has no clock
            yield
        elif device.type == "cuda":
            start, end = _event(), _event()
            stream = torch.cuda.current_stream(device)
            start.record(stream)
            yield
            end.record(stream)
            self._running.append((view.name, start, end))
            self._settle()
        else:
            begun = time.perf_counter()
            yield
            self._seconds[view.name] += time.perf_counter() - begun

    def seconds(self) -> dict[str, float]:
        """By name of the view, since the start or the last reset."""
        for _, _, end in self._running:
            end.synchronize()
        self._settle()
        return dict(self._seconds)

    def reset(self) -> None:
        """Start at nothing."""
        self._seconds.clear()
        self._running.clear()

    def _settle(self) -> None:
        """Count what has ended, so that a long evaluation does not heap up events."""
        while self._running and self._running[0][2].query():  # type: ignore[no-untyped-call]
            name, start, end = self._running.pop(0)
            self._seconds[name] += start.elapsed_time(end) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def combine(embeddings: Sequence[Tensor], power: Tensor | float) -> Tensor:
    """The generalised mean ``[B, D]``, of unit norm, of what each view is embedded as."""
    mean = torch.stack([_signed_power(each, power) for each in embeddings]).mean(dim=0)
    return nn.functional.normalize(_signed_power(mean, 1 / power), dim=1)


def _signed_power(values: Tensor, power: Tensor | float) -> Tensor:
    return values.abs().pow(power).mul(values.sign())


def _takes_any_size(backbone: Any) -> bool:
    fixed = getattr(backbone, "pretrained_cfg", {}).get("fixed_input_size", False)
    return not fixed or bool(getattr(backbone, "dynamic_img_size", False))


def _step(backbone: Any) -> int:
    """What the sides of an image are a multiple of."""
    patch_size = getattr(getattr(backbone, "patch_embed", None), "patch_size", 1)
    return int(patch_size if isinstance(patch_size, int) else max(patch_size))


def _least(backbone: Any) -> int:
    """Pixels to one position of the last features; convolutions fail on less."""
    stages = getattr(backbone, "feature_info", None) or [{}]
    return int(stages[-1].get("reduction", 1))
