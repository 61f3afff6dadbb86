"""The metrics of each evaluation, on the terminal."""

from collections.abc import Callable

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

from dml.callbacks.diagnostics import GAP
from dml.callbacks.metrics import UNANSWERABLE
from dml.callbacks.per_query import ENDS


class MetricsTable(Callback):
    """Print the loss and the metrics after each evaluation, beside the best so far."""

    def __init__(self) -> None:
        self._best: dict[str, float] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        metrics = _of_stage(trainer, "val")
        if not metrics:
            return
        self._best = {name: _better(name)(value, self._best.get(name, value)) for name, value in metrics.items()}
        table = Table(title=f"validation, epoch {trainer.current_epoch}, step {trainer.global_step}")
        loss = trainer.callback_metrics.get("train/loss")
        rows = {"now": metrics, "best": self._best}
        _fill(table, rows, {"now": "" if loss is None else f"{float(loss):.4f}", "best": ""})
        _console(trainer).print(table)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = _of_stage(trainer, "test")
        if metrics and trainer.is_global_zero:
            table = Table(title="test")
            _fill(table, {"test": metrics}, {})
            _console(trainer).print(table)

    def state_dict(self) -> dict[str, float]:
        return dict(self._best)

    def load_state_dict(self, state_dict: dict[str, float]) -> None:
        self._best = dict(state_dict)


def _better(name: str) -> Callable[[float, float], float]:
    return min if name in (GAP, UNANSWERABLE) else max


def _of_stage(trainer: Trainer, stage: str) -> dict[str, float]:
    """Metrics of a stage; the ends of intervals have lines of their own."""
    prefix = f"{stage}/"
    found = {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith(prefix) and not name.endswith(ENDS)
    }
    return {name.removeprefix(prefix): value for name, value in found.items()}


def _fill(table: Table, rows: dict[str, dict[str, float]], losses: dict[str, str]) -> None:
    names = next(iter(rows.values()))
    table.add_column("")
    if losses:
        table.add_column("train/loss", justify="right")
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for title, metrics in rows.items():
        cells = [losses[title]] if losses else []
        table.add_row(title, *cells, *(f"{metrics[name]:.4f}" for name in names))


def _console(trainer: Trainer) -> Console:
    # A live progress bar must be printed above, through its own console, or the two overwrite each other.
    bar = trainer.progress_bar_callback
    live = bar.progress.live.console if isinstance(bar, RichProgressBar) and bar.progress is not None else None
    return live or Console()
