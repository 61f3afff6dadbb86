import json

import pytest
import wandb
from jsonargparse import ArgumentParser

from dml import workspace_command

pytest.importorskip("wandb_workspaces")

from dml.workspace import pages


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("asked the network")

    monkeypatch.setattr(wandb, "Api", refuse)


@pytest.fixture
def specification(capsys):
    assert workspace_command.run(["team/birds", "--name", "all runs", "--dry_run"], ArgumentParser) == 0
    return json.loads(capsys.readouterr().out)


def metrics_of(section):
    return {name for panel in section["panels"] for name in panel["config"].get("metrics", [])}


def test_the_workspace_groups_runs_by_loss(specification):
    workspace = specification["workspace"]
    assert (workspace["entity"], workspace["project"], workspace["displayName"]) == ("team", "birds", "all runs")
    (runs,) = workspace["spec"]["section"]["runSets"]
    assert runs["grouping"] == [{"section": "run", "name": "group"}]
    assert workspace["spec"]["section"]["settings"]["xAxis"] == "trainer/global_step"


def test_the_workspace_has_a_section_for_each_question(specification):
    sections = {
        section["name"]: section
        for section in specification["workspace"]["spec"]["section"]["panelBankConfig"]["sections"]
    }
    assert list(sections) == [
        "Ranking, validation", "Ranking, test", "Loss", "Diagnostics", "Similarities", "System",
    ]  # fmt: skip
    assert {"val/AP", "val/R@1", "val/decomposability_gap"} <= metrics_of(sections["Ranking, validation"])
    assert {"test/AP", "test/mAP@R"} <= metrics_of(sections["Ranking, test"])
    assert all(name.startswith("epoch/") for name in metrics_of(sections["Diagnostics"]))
    assert {"val/similarity_positive", "test/similarity_negative"} <= metrics_of(sections["Similarities"])
    assert all(name.startswith("system/") for name in metrics_of(sections["System"]))
    for stage, name in (("val", "Ranking, validation"), ("test", "Ranking, test")):
        assert f'"{stage}/retrieval_table"' in json.dumps(sections[name])
        assert f'"{stage}/retrievals"' in json.dumps(sections[name])


def test_the_report_is_grouped_as_well(specification):
    report = specification["report"]
    assert (report["project"]["entityName"], report["project"]["name"]) == ("team", "birds")
    grids = [block for block in report["spec"]["blocks"] if block["type"] == "panel-grid"]
    assert len(grids) == 6
    for grid in grids:
        assert grid["metadata"]["runSets"][0]["grouping"] == [{"section": "run", "name": "group"}]


def test_panels_of_the_report_do_not_overlap(specification):
    for block in specification["report"]["spec"]["blocks"]:
        if block["type"] != "panel-grid":
            continue
        taken = set()
        for panel in block["metadata"]["panelBankSectionConfig"]["panels"]:
            x, y, width, height = (panel["layout"][key] for key in "xywh")
            cells = {(column, row) for column in range(x, x + width) for row in range(y, y + height)}
            assert x + width <= 24
            assert not cells & taken
            taken |= cells


def test_saving_gives_both_addresses(monkeypatch):
    made = pages("team", "birds")

    class Saved:
        def __init__(self, url):
            self.url = url

    for page, url in ((made.workspace, "https://w"), (made.report, "https://r")):
        monkeypatch.setattr(type(page), "save", lambda self, url=url: Saved(url))
    assert made.save() == ["https://w", "https://r"]


@pytest.mark.parametrize("project", ["birds", "/birds", "team/", "team/birds/3"])
def test_a_project_has_an_owner(project):
    with pytest.raises(ValueError, match=f"project is '{project}'; it must be entity/project"):
        workspace_command.run([project, "--dry_run"], ArgumentParser)


def test_says_what_to_install(monkeypatch):
    monkeypatch.setattr(workspace_command.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs wandb-workspaces: pip install 'dml\[workspaces\]'"):
        workspace_command.run(["team/birds"], ArgumentParser)


def test_says_that_nobody_is_logged_in(monkeypatch):
    monkeypatch.setattr(wandb, "login", lambda prompt: False)
    with pytest.raises(ValueError, match="nobody is logged in to Weights & Biases: wandb login, or add --dry_run"):
        workspace_command.run(["team/birds"], ArgumentParser)
