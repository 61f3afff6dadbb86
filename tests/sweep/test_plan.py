"""Sweep files of W&B, and the runs they ask for."""

import collections
import math
from pathlib import Path

import pytest
import yaml

from dml.sweep import read_plan

SWEEPS = Path(__file__).parents[2] / "experiments" / "sweeps"
COMMAND = ["dml", "fit", "-c", "experiments/sop.yaml", "${args}"]


@pytest.fixture
def sweep(tmp_path):
    def write(**content):
        path = tmp_path / "losses.yaml"
        path.write_text(yaml.safe_dump({"program": "dml", "command": COMMAND, "method": "grid", **content}))
        return path

    return write


def test_a_grid_is_every_combination_in_the_order_of_the_file(sweep):
    parameters = {
        "config": {"values": ["experiments/losses/smooth_ap.yaml", "experiments/losses/sup_ap.yaml"]},
        "seed_everything": {"values": [0, 1]},
        "trainer.max_epochs": {"value": 3},
    }
    path = sweep(parameters=parameters)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()), sort_keys=False))
    plan = read_plan(path)
    assert [run.words[3:5] for run in plan.runs] == [
        [f"--config=experiments/losses/{loss}.yaml", f"--seed_everything={seed}"]
        for loss in ("smooth_ap", "sup_ap")
        for seed in (0, 1)
    ]
    assert all(run.words[:3] == ["fit", "-c", "experiments/sop.yaml"] for run in plan.runs)
    assert all(run.words[5:] == ["--trainer.max_epochs=3"] for run in plan.runs)


def test_names_say_what_is_varied_and_differ_with_the_command(sweep):
    parameters = {"config": {"values": ["experiments/losses/sup_ap.yaml"]}, "model.optimizer.lr": {"values": [0.1]}}
    (run,) = read_plan(sweep(parameters=parameters)).runs
    name, _, digest = run.name.rpartition("-")
    assert name == "sup_ap-lr=0.1"
    assert len(digest) == 8
    (other,) = read_plan(sweep(parameters=parameters, command=[*COMMAND, "--test=true"])).runs
    assert other.name.startswith("sup_ap-lr=0.1-")
    assert other.name != run.name
    (constant,) = read_plan(sweep(parameters={"trainer.max_epochs": {"value": 3}})).runs
    assert len(constant.name) == 8


def test_names_are_names_of_folders_however_long_the_values(sweep):
    values = ["../../" + "x" * 300, "a b/c\0"[:5]]
    runs = read_plan(sweep(parameters={"data.root": {"values": values}})).runs
    assert all("/" not in run.name and " " not in run.name and len(run.name) < 100 for run in runs)
    assert len({run.name for run in runs}) == 2


def test_values_are_words_as_w_and_b_writes_them(sweep):
    values = [True, None, 0.5, "text", [1, 2]]
    runs = read_plan(sweep(parameters={"a.b": {"values": values}})).runs
    assert [run.words[-1] for run in runs] == ["--a.b=true", "--a.b=null", "--a.b=0.5", "--a.b=text", "--a.b=[1, 2]"]


@pytest.mark.parametrize(
    "command",
    [
        ["${env}", "${interpreter}", "-m", "dml", "fit", "${args}"],
        ["${env}", "dml", "fit", "${args}"],
        ["python", "-m", "dml", "fit", "${args}"],
        ["fit", "${args}"],
    ],
    ids=["interpreter", "env", "python", "bare"],
)
def test_the_command_may_be_called_as_w_and_b_does(command, sweep):
    (run,) = read_plan(sweep(command=command, parameters={"seed_everything": {"value": 1}})).runs
    assert run.words == ["fit", "--seed_everything=1"]


def test_the_metric_is_that_of_the_file(sweep):
    parameters = {"seed_everything": {"values": [0]}}
    assert read_plan(sweep(parameters=parameters))[1:3] == ("val/AP", False)
    best = {"name": "best/val/R@1", "goal": "maximize"}
    assert read_plan(sweep(parameters=parameters, metric=best))[1:3] == ("val/R@1", False)
    assert read_plan(sweep(parameters=parameters, metric={"name": "train/loss"}))[1:3] == ("train/loss", True)


def test_draws_follow_their_distributions_and_their_seed(sweep):
    parameters = {
        "log": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0},
        "exponent": {"distribution": "log_uniform", "min": -2.0, "max": 0.0},
        "uniform": {"min": 0.0, "max": 2.0},
        "whole": {"min": 1, "max": 3},
        "steps": {"distribution": "q_uniform", "min": 0, "max": 10, "q": 5},
        "normal": {"distribution": "normal", "mu": 4.0, "sigma": 0.5},
        "chosen": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
        "same": {"value": 7},
    }
    path = sweep(parameters=parameters, method="random")
    runs = read_plan(path, count=400, seed=3).runs
    drawn = collections.defaultdict(list)
    for run in runs:
        for word in run.words[3:]:
            name, _, value = word.removeprefix("--").partition("=")
            drawn[name].append(value if name == "chosen" else float(value))
    assert sum(value < math.sqrt(0.001) for value in drawn["log"]) == pytest.approx(200, abs=50)
    assert math.exp(-2) <= min(drawn["exponent"]) <= max(drawn["exponent"]) <= 1
    assert sum(drawn["uniform"]) / 400 == pytest.approx(1, abs=0.15)
    assert set(drawn["whole"]) == {1, 2, 3}
    assert set(drawn["steps"]) == {0, 5, 10}
    assert sum(drawn["normal"]) / 400 == pytest.approx(4, abs=0.15)
    assert 330 < drawn["chosen"].count("a") < 390
    assert set(drawn["same"]) == {7}
    assert read_plan(path, count=400, seed=3) == read_plan(path, count=400, seed=3)
    assert read_plan(path, count=400, seed=4).runs != runs


def test_how_many_runs_there_are(sweep):
    seeds = {"seed_everything": {"values": [0, 1, 2]}}
    assert len(read_plan(sweep(parameters=seeds), count=2).runs) == 2
    assert len(read_plan(sweep(parameters=seeds, run_cap=1)).runs) == 1
    rates = {"lr": {"min": 0.0, "max": 1.0}}
    assert len(read_plan(sweep(parameters=rates, method="random", run_cap=5)).runs) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parameters": {}, "method": "bayes"}, "wandb sweep"),
        ({"parameters": {}, "method": "annealing"}, "method is 'annealing'; it is grid or random"),
        ({"parameters": {}, "method": "random"}, "say how many runs by --count"),
        ({"parameters": {"lr": {"min": 0.1, "max": 1.0}}}, "parameter 'lr' is .*; in a grid it has 'value'"),
        ({"parameters": {"lr": {"values": []}}}, "in a grid it has 'value'"),
        ({"parameters": {"model": {"parameters": {"lr": {"value": 1}}}}}, "write its dotted name, such as model.lr"),
        ({"parameters": {"lr": {"value": 1}}, "command": ["dml", "fit"]}, "it is a list such as"),
        ({"parameters": {"lr": {"value": 1}}, "command": ["train.py", "${args}"]}, "it must be of dml fit"),
        ({"parameters": {"lr": {"value": 1}}, "command": ["rm", "fit", "${args}"]}, "it must be of dml fit"),
        ({"parameters": {"lr": {"value": 1}}, "command": ["fit", "${args_json}", "${args}"]}, "args_json"),
        ({"parameters": {"lr": {"max": 1.0}}, "method": "random", "run_cap": 1}, "'min' is missing"),
        ({"parameters": {"lr": {"distribution": "beta"}}, "method": "random", "run_cap": 1}, "known are uniform"),
        ({"parameters": {}, "metric": "val/AP"}, "metric is 'val/AP'; it is a name and a goal"),
        ({"parameters": {}, "metric": {"goal": "maximise"}}, "minimize or maximize, such as {name: val/AP"),
        ({"parameters": {}, "run_cap": "two"}, "run_cap is 'two'; it is a number of runs, at least 1"),
        ({"parameters": {}, "run_cap": 0}, "run_cap is 0; it is a number of runs, at least 1"),
        ({"parameters": {True: {"value": 1}}}, "parameter True is bool to YAML; its name is that of an argument"),
        ({"parameters": {"folder": {"value": "x"}}}, "parameter 'folder' is set for each run by dml sweep"),
        ({"parameters": {"ckpt_path": {"value": "x"}}}, "parameter 'ckpt_path' is set for each run by dml sweep"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_what_cannot_be_run_is_said(content, message, sweep):
    with pytest.raises(ValueError, match=message):
        read_plan(sweep(**content))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"min": 0.0, "max": 1.0, "q": 0, "distribution": "q_uniform"}, "q is 0; .* more than 0"),
        ({"min": "1e-4", "max": 1.0}, "min is '1e-4'; it is a number, which is text to YAML: write 1.0e-4$"),
        ({"min": 1.0, "max": "1.5E4"}, r"max is '1.5E4'; .* write 1.5e\+4$"),
        ({"mu": "none", "distribution": "normal"}, "mu is 'none'; it is a number$"),
        ({"values": "ab"}, "'values' is a list of one or more"),
        ({"values": []}, "'values' is a list of one or more"),
    ],
    ids=["quantum", "exponent", "large_exponent", "text", "text_of_values", "no_values"],
)
def test_what_cannot_be_drawn_is_said(spec, message, sweep):
    with pytest.raises(ValueError, match=f"parameter 'lr' is {{.*: {message}"):
        read_plan(sweep(parameters={"lr": spec}, method="random", run_cap=1))


def test_what_is_written_for_an_exponent_is_a_number_to_yaml():
    assert yaml.safe_load("[1.0e-4, 1.5e+4]") == [1e-4, 1.5e4]


def test_multiples_are_as_one_writes_them(sweep):
    tenths = {"distribution": "q_uniform", "min": 0.0, "max": 1.0, "q": 0.1}
    path = sweep(parameters={"lr": tenths}, method="random")
    runs = read_plan(path, count=200).runs
    assert {run.words[-1] for run in runs} == {f"--lr={number / 10}" for number in range(11)}


def test_the_same_run_is_asked_for_once(sweep):
    runs = read_plan(sweep(parameters={"seed_everything": {"values": [0, 1, 0]}})).runs
    assert [run.words[-1] for run in runs] == ["--seed_everything=0", "--seed_everything=1"]
    path = sweep(parameters={"seed_everything": {"values": [0, 1]}}, method="random")
    assert len(read_plan(path, count=20).runs) == 2


def test_a_file_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        read_plan(tmp_path / "missing.yaml")
    path = tmp_path / "run.yaml"
    path.write_text("data: {root: x}")
    with pytest.raises(ValueError, match="not a sweep: it has no 'parameters'"):
        read_plan(path)
    path.write_text("a: [")
    with pytest.raises(ValueError, match="is not YAML"):
        read_plan(path)
    with pytest.raises(ValueError, match="count is 0"):
        read_plan(path, count=0)


@pytest.mark.parametrize("path", sorted(SWEEPS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_sweeps_of_the_project_can_be_run(path, tmp_path):
    content = yaml.safe_load(path.read_text())
    assert content["metric"] == {"name": "best/val/AP", "goal": "maximize"}
    if content["method"] == "bayes":  # by W&B only; what it varies can be drawn
        path = tmp_path / "random.yaml"
        path.write_text(yaml.safe_dump({**content, "method": "random"}))
    runs = read_plan(path).runs
    overlays = {word.removeprefix("--config=") for run in runs for word in run.words if word.endswith(".yaml")}
    assert len(overlays) > 1
    assert all((SWEEPS.parents[1] / overlay).is_file() for overlay in overlays)
