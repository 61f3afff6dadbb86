"""One figure for each loss, drawn with the code of the loss itself when the pages are built.

Most show one query whose gallery holds a relevant item that moves along the scores, past irrelevant ones that stay: the
loss of that ranking, and how hard it pulls the item up.
"""

import functools
import io
from collections.abc import Callable, Mapping

import matplotlib as mpl
import torch
from curves import IRRELEVANT, MOVES, STAYS, Curve, of_pairs, of_proxies, of_ranking
from matplotlib.figure import Figure
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pytorch_metric_learning.losses import ContrastiveLoss, MultiSimilarityLoss, TripletMarginLoss
from torch import Tensor, nn
from torch.nn.functional import normalize

from dml import losses as L
from dml.memory import CrossBatchMemory
from dml.ranking import Sigmoid, UpperBound, heaviside

STYLE = {
    "svg.hashsalt": "dml",
    "font.size": 9,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#888888",
    "text.color": "#888888",
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": mpl.cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#888888"]),
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def draw(curves: Mapping[str, Curve], place: str, *, ticks: tuple[float, ...] = IRRELEVANT) -> Figure:
    """Two panels: the losses, and their pulls."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    for panel, axes in enumerate(figure.subplots(1, 2)):
        for label, curve in curves.items():
            axes.plot(MOVES, curve[panel], label=label, linewidth=1.4)
        axes.set(xlabel=place, title=["loss", "pull on it: $-dL/ds$"][panel])
        axes.plot(ticks, [0.0] * len(ticks), "|", color="#888888", markersize=7, transform=axes.get_xaxis_transform())
    figure.axes[0].legend(fontsize=8)
    return figure


def ranking_figure(curves: Mapping[str, L.RankLoss]) -> Figure:
    """Losses of one level, with the scores of the irrelevant items as marks."""
    return draw({label: of_ranking(loss) for label, loss in curves.items()}, "score of the relevant item")


def levels_figure(loss: L.RankLoss) -> Figure:
    """A loss of two levels, with an item of either that moves."""
    return draw({f"of the {kind}": of_ranking(loss, levels=2, kind=kind) for kind in STAYS}, "score of the item")


def sup_ap_figure() -> Figure:
    """The step beside others, and its pull, which does not vanish between the items."""
    published = {"offset 1.44": UpperBound(offset=1.44), "jump 0, offset 1": UpperBound(jump=0, offset=1)}
    steps = {"SupAP": UpperBound(), **published, "Smooth-AP": Sigmoid(), "true rank": heaviside}
    difference = torch.linspace(-0.04, 0.08, 1200)
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, step in steps.items():
        left.plot(difference, step(difference), label=label, linewidth=1.4)
    left.set(xlabel="score of another item minus that of the relevant one", title="step")
    left.legend(fontsize=8)
    for label, loss in {"SupAP": L.SupAPLoss(), "Smooth-AP": L.SmoothAPLoss()}.items():
        right.plot(MOVES, of_ranking(loss)[1], label=label, linewidth=1.4, color=f"C{3 * (label != 'SupAP')}")
    right.set(xlabel="score of the relevant item", title="pull on it: $-dL/ds$", yscale="log", ylim=(1e-4, 100))
    right.legend(fontsize=8)
    return figure


def calibration_figure() -> Figure:
    """A pair of one class, and one of two."""
    loss = L.CalibrationLoss()
    curves = {f"{kind} class": of_pairs(loss, same=kind == "same", others=()) for kind in ("same", "another")}
    return draw(curves, "score of the pair", ticks=(loss.negative_margin, loss.positive_margin))


def pair_figure() -> Figure:
    """Three losses of pytorch-metric-learning on the ranking of the other figures."""
    losses = MultiSimilarityLoss(), TripletMarginLoss(), ContrastiveLoss()
    curves = {type(loss).__name__: of_pairs(L.PairLoss(loss)) for loss in losses}
    return draw(curves, "score of the relevant item")


def norm_softmax_figure() -> Figure:
    """An embedding on its way from another proxy to its own."""
    losses = {f"$T$ = {t}": L.NormSoftmaxLoss(3, 2, t) for t in (0.05, 0.1, 0.5)}
    curves = {label: of_proxies(loss, levels=1) for label, loss in losses.items()}
    return draw(curves, "score with its own proxy", ticks=())


def csl_figure() -> Figure:
    """An embedding on its way from a proxy of another super-class to its own."""
    losses = {f"margins {m[0]}, {m[1]}": L.CSLLoss(3, 2, margins=m) for m in ((0.0, 0.0), (0.25, 0.45))}
    curves = {label: of_proxies(loss, levels=2) for label, loss in losses.items()}
    return draw(curves, "score with its own proxy", ticks=())


def weighted_sum_figure() -> Figure:
    """ROADMAP and its terms."""
    terms = [L.SupAPLoss(offset=1.44), L.CalibrationLoss()]
    curves = {"SupAPLoss": terms[0], "CalibrationLoss": terms[1], "their sum": L.WeightedSum(terms)}
    return draw({label: of_pairs(loss) for label, loss in curves.items()}, "score of the relevant item")


class Keep(nn.Module):
    """A loss that keeps what it is called with."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        include_batch: bool = False,
    ) -> Tensor:
        """The sum of the embeddings, a scalar."""
        self.embeddings, self.labels = embeddings, labels
        return embeddings.sum()


def simix_figure() -> Figure:
    """Embeddings of two classes on the unit circle, and their mixtures inside of it."""
    angles = torch.tensor([0.15, 0.55, 1.0, 1.45, 2.2, 2.6, 3.0])
    kept = Keep()
    L.SiMix(kept)(torch.stack([angles.cos(), angles.sin()], dim=1), torch.tensor([0, 0, 0, 0, 1, 1, 1]))
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    circle = torch.linspace(0, torch.pi, 200)
    axes.plot(circle.cos(), circle.sin(), color="#888888", linewidth=0.6)
    mixed = torch.arange(len(kept.labels)) >= len(angles)
    for label, color in enumerate(["#0072b2", "#d55e00"]):
        of_class = kept.labels == label
        axes.plot(*kept.embeddings[of_class & ~mixed].T, "o", color=color, label=f"class {label + 1}")
        axes.plot(*kept.embeddings[of_class & mixed].T, "x", color=color, label="its mixtures")
    axes.set(aspect="equal", xlim=(-1.1, 2.2))
    axes.legend(fontsize=8, loc="center right")
    return figure


def memory_figure() -> Figure:
    """Batches of 64 in 16 classes, ranked together with more and more of the 4,096 embeddings there are."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(4096) % 1024
    centres = torch.randn(1024, 16, generator=generator)[labels]
    embeddings = normalize(centres + 0.7 * torch.randn(4096, 16, generator=generator), dim=1)
    order = torch.randperm(4096, generator=generator)
    batches = torch.arange(4096).view(4, 64, 16).transpose(0, 1).flatten(1)[:16]
    loss, sizes, values = L.SmoothAPLoss(0.01, include_self=False), (64, 128, 256, 512, 1024, 2048, 4096), []
    for size in sizes:
        memory = CrossBatchMemory(size)
        memory.remember(embeddings[order], labels[order], order)
        found = [(rows, memory.recall(rows)) for rows in batches]
        values.append(
            [loss(embeddings[i], labels[i], ref_emb=m[0], ref_labels=m[1], include_batch=True) for i, m in found if m]
        )
    alone = torch.stack([loss(embeddings[rows], labels[rows]) for rows in batches])
    rows = torch.stack([alone, *(torch.stack(each) for each in values)])
    figure = Figure(figsize=(6, 2.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(range(len(rows)), rows.mean(dim=1), rows.std(dim=1), marker="o", markersize=4, capsize=3)
    axes.set_xticks(range(len(rows)), [f"{size:,}" for size in (0, *sizes)])
    axes.set(xlabel="size of the memory", title="loss of a batch of 64, of 4,096 embeddings", ylim=(0, 1))
    return figure


def each_temperature(loss: Callable[..., L.RankLoss]) -> dict[str, L.RankLoss]:
    """A loss at three temperatures."""
    return {rf"$\tau$ = {temperature}": loss(temperature=temperature) for temperature in (0.01, 0.03, 0.1)}


def each_bins(loss: Callable[..., L.RankLoss]) -> dict[str, L.RankLoss]:
    """A loss with three widths of bins."""
    return {f"{num_bins} bins": loss(num_bins=num_bins) for num_bins in (10, 20, 40)}


def each_k(loss: Callable[..., L.RankLoss]) -> dict[str, L.RankLoss]:
    """A loss of one k, of another, and of the five that are its default."""
    return {"k = 1": loss(at_k=[1]), "k = 4": loss(at_k=[4]), "k = 1, 2, 4, 8, 16": loss()}


def each_lambda(loss: Callable[..., L.RankLoss]) -> dict[str, L.RankLoss]:
    """A loss that looks near and far."""
    return {rf"$\lambda$ = {far}": loss(lambda_val=far) for far in (0.5, 4.0)}


FIGURES: dict[str, Callable[[], Figure]] = {
    "smooth_ap": lambda: ranking_figure(each_temperature(L.SmoothAPLoss)),
    "sup_ap": sup_ap_figure,
    "quantized_ap": lambda: ranking_figure(each_bins(L.QuantizedAPLoss)),
    "tie_aware_quantized_ap": lambda: ranking_figure(
        {
            "tie-aware": L.TieAwareQuantizedAPLoss(),
            "simplified": L.TieAwareQuantizedAPLoss(simplified=True),
            "QuantizedAP": L.QuantizedAPLoss(),
        }
    ),
    "fast_ap": lambda: ranking_figure(each_bins(L.FastAPLoss)),
    "blackbox_ap": lambda: ranking_figure(each_lambda(L.BlackboxAPLoss)),
    "recall_at_k": lambda: ranking_figure(
        {rf"$\tau_k$ = {t}, k = 4": L.RecallAtKLoss([4], recall_temperature=t) for t in (0.1, 1.0, 3.0)}
    ),
    "smooth_recall": lambda: ranking_figure(each_temperature(L.SmoothRecallLoss)),
    "sup_recall": lambda: ranking_figure(each_k(L.SupRecallLoss)),
    "blackbox_recall": lambda: ranking_figure(each_lambda(L.BlackboxRecallLoss)),
    "smooth_hap": lambda: levels_figure(L.SmoothHAPLoss(0.03)),
    "sup_hap": lambda: levels_figure(L.SupHAPLoss()),
    "smooth_ndcg": lambda: levels_figure(L.SmoothNDCGLoss(0.03)),
    "sup_ndcg": lambda: levels_figure(L.SupNDCGLoss()),
    "csl": csl_figure,
    "calibration": calibration_figure,
    "norm_softmax": norm_softmax_figure,
    "pair": pair_figure,
    "weighted_sum": weighted_sum_figure,
    "simix": simix_figure,
    "cross_batch_memory": memory_figure,
}


@functools.cache
def svg(name: str) -> str:
    """A figure, the same to the last letter each time; drawn once, however often the pages are built."""
    written = io.StringIO()
    with mpl.rc_context(STYLE):
        FIGURES[name]().savefig(written, format="svg", metadata={"Date": None})
    return written.getvalue()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called by MkDocs with the files of the pages, to which the figures are added."""
    for name in FIGURES:
        files.append(File.generated(config, f"losses/{name}.svg", content=svg(name)))
    return files
