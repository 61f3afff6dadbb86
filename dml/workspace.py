"""The standard workspace and report of a project of Weights & Biases, which need the extra ``workspaces``."""

from typing import Any, NamedTuple

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

_STEP = "trainer/global_step"
_MEASURES = ("AP", "mAP@R", "RP", "R@1")
_LOSS = ("train/loss", "epoch/loss")
_DIAGNOSTICS = (
    "epoch/batch_AP",
    "epoch/linear_range",
    "epoch/grad_norm",
    "epoch/grad_norm_max",
    "epoch/grad_norm_backbone",
    "epoch/grad_norm_head",
    "epoch/embedding_norm",
    "epoch/queries_without_positives",
)
_COST = ("epoch/images_per_second", "epoch/data_wait", "epoch/peak_memory_gib")
_SYSTEM = ("cpu", "memory_percent", "proc.memory.rssMB", "gpu.0.gpu", "gpu.0.memoryAllocated", "gpu.0.powerWatts")
_COLUMNS = ("best/val/AP", "best/epoch", *(f"test/{name}" for name in _MEASURES), "fit_minutes")

_ABOUT = """Runs are grouped by their loss, and each line or bar is the mean over the runs of a group: its seeds and, \
if there are several, its hyperparameters. Filter the runs of the left bar by the tag of a data set before reading off \
a difference. Test values are of the best checkpoint where the run was told to test it."""


class Pages(NamedTuple):
    """What the project gets."""

    workspace: workspaces.Workspace
    report: reports.Report

    def specification(self) -> dict[str, Any]:
        """Both, as they are sent."""
        models = {"workspace": self.workspace._to_model(), "report": self.report._to_model()}
        return {name: model.model_dump(mode="json", by_alias=True, exclude_none=True) for name, model in models.items()}

    def save(self) -> list[str]:
        """Make them, which needs the network; the addresses of both."""
        return [str(self.workspace.save().url), str(self.report.save().url)]


def pages(entity: str, project: str, name: str = "dml") -> Pages:
    """Lay out what ``dml fit`` logs, with runs grouped by loss.

    Args:
        entity: User or team.
        project: Of the runs.
        name: Of the workspace and of the report.
    """
    workspace = workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=_sections(),
        settings=workspaces.WorkspaceSettings(x_axis=_STEP, max_runs=50),
        runset_settings=workspaces.RunsetSettings(
            groupby=[workspaces.Metric("Group")], pinned_columns=[f"summary:{column}" for column in _COLUMNS]
        ),
        auto_generate_panels=True,  # of what else is logged, such as the terms of a sum of losses
    )
    return Pages(workspace, reports.Report(entity=entity, project=project, title=name, blocks=_blocks()))


def _sections() -> list[workspaces.Section]:
    return [
        _section("Ranking, validation", [*_lines("val"), *_retrievals("val")], is_open=True),
        _section("Ranking, test", [*_bars(), *_retrievals("test")], is_open=True),
        _section("Loss", [_line(name) for name in _LOSS], is_open=True),
        _section("Diagnostics", [_line(name) for name in (*_DIAGNOSTICS, *_COST)]),
        _section("Similarities", _similarities()),
        _section("System", [reports.LinePlot(x="_runtime", y=[f"system/{name}"]) for name in _SYSTEM]),
    ]


def _blocks() -> list[Any]:
    blocks: list[Any] = [reports.P(_ABOUT), reports.TableOfContents()]
    for heading, panels in (
        ("Test", _bars()),
        ("Validation", _lines("val")),
        ("Loss", [_line(name) for name in _LOSS]),
        ("What is retrieved", _retrievals("test")),
        ("Similarities", _similarities()),
        ("Cost", [_line(name) for name in _COST]),
    ):
        runs = reports.Runset(name="Runs by loss", groupby=["Group"])
        blocks += [reports.H2(heading), reports.PanelGrid(runsets=[runs], panels=_placed(panels))]
    return blocks


def _section(name: str, panels: list[Any], is_open: bool = False) -> workspaces.Section:
    return workspaces.Section(name=name, panels=panels, is_open=is_open)


def _lines(stage: str) -> list[Any]:
    return [_line(f"{stage}/{name}") for name in (*_MEASURES, "decomposability_gap")]


def _line(name: str) -> Any:
    return reports.LinePlot(title=name, x=_STEP, y=[name], groupby_aggfunc="mean", groupby_rangefunc="stddev")


def _bars() -> list[Any]:
    return [
        reports.BarPlot(title=f"test/{name}", metrics=[f"test/{name}"], groupby="Group", groupby_aggfunc="mean")
        for name in _MEASURES
    ]


def _retrievals(stage: str) -> list[Any]:
    return [
        reports.MediaBrowser(title=f"{stage}/retrievals", media_keys=[f"{stage}/retrievals"], num_columns=1),
        reports.WeavePanelSummaryTable(table_name=f"{stage}/retrieval_table", layout=reports.Layout(w=24, h=12)),
    ]


def _similarities() -> list[Any]:
    means = [f"epoch/{kind}_similarity" for kind in ("positive", "negative")]
    histograms = [f"{stage}/similarity_{kind}" for stage in ("val", "test") for kind in ("positive", "negative")]
    return [_line(name) for name in (*means, *histograms)]


def _placed(panels: list[Any]) -> list[Any]:
    """Side by side, three to a row, of the 24 columns that a report has; a panel as wide as that has a row to itself.

    Those of a workspace are placed by their section.
    """
    x = y = 0
    for panel in panels:
        width, height = panel.layout.w, panel.layout.h
        if x + width > 24:
            x, y = 0, y + 6
        panel.layout = reports.Layout(x=x, y=y, w=width, h=height)
        x += width
    return panels
