"""Runs side by side: each alone in its folder, none twice, and all of them in the end."""

import ast
import json
import multiprocessing
import os
import signal

import pytest

from dml.sweep import Planned
from dml.sweep.plan import planned
from dml.sweep.state import digest, read_state, standing, write_state
from tests.sweep.running import run_them, runs, wait_for


def calls(out, run):
    lines = (out / run.name / "calls.txt").read_text().splitlines()
    return [line.split(" ", 3) for line in lines]


def test_each_run_has_a_process_a_folder_and_a_log(tmp_path):
    first, second = asked = runs("work", "work")
    outcomes = run_them(asked, tmp_path)
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    processes = {calls(tmp_path, run)[0][0] for run in asked}
    assert len(processes) == 2
    assert str(os.getpid()) not in processes
    words = ast.literal_eval(calls(tmp_path, first)[0][3])
    assert words == [*first.words, f"--folder={tmp_path / first.name}", "--ckpt_path=last"]
    assert "working" in (tmp_path / second.name / "output.log").read_text()
    assert read_state(tmp_path / second.name)["exit_code"] == 0


def test_what_is_done_is_not_done_again_and_what_failed_is(tmp_path):
    asked = runs("work", "fail", "once")
    assert [outcome.state for outcome in run_them(asked, tmp_path)] == ["done", "failed", "failed"]
    assert "out of luck" in (tmp_path / asked[1].name / "output.log").read_text()
    assert [outcome.state for outcome in run_them(asked, tmp_path)] == ["done", "failed", "done"]
    assert [len(calls(tmp_path, run)) for run in asked] == [1, 2, 2]


def test_the_exit_code_of_an_error_is_kept(tmp_path):
    (asked,) = runs("refuse")
    assert run_them([asked], tmp_path)[0].state == "failed"
    assert read_state(tmp_path / asked.name)["exit_code"] == 2
    assert (tmp_path / asked.name / "output.log").read_text().splitlines()[-1] == "dml: error: no such loss"


def test_another_command_of_the_same_name_is_not_done(tmp_path):
    (asked,) = runs("work")
    run_them([asked], tmp_path)
    other = Planned(asked.name, [*asked.words, "--trainer.max_epochs=3"])
    assert standing(tmp_path / asked.name, other.words) == "waiting"
    run_them([other], tmp_path)
    assert len(calls(tmp_path, asked)) == 2


def with_file(file, do):
    return planned(["fit", "-c", str(file), f"--do={do}"], {"do": do})


def test_what_is_done_or_begun_with_other_files_is_left_as_it_is(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("lr: 0.1")
    asked = [with_file(file, do) for do in ("work", "fail", "misread")]
    run_them(asked, tmp_path)
    assert [outcome.state for outcome in run_them(asked, tmp_path)] == ["done", "failed", "failed"]
    file.write_text("lr: 0.2")
    # The last of them left nothing that could be mixed with what another file makes.
    assert [outcome.state for outcome in run_them(asked, tmp_path)] == ["changed", "changed", "failed"]
    assert [len(calls(tmp_path, run)) for run in asked[:2]] == [1, 2]
    file.write_text("lr: 0.1")
    assert run_them(asked[:1], tmp_path)[0].state == "done"


def test_a_run_keeps_the_digest_of_its_start_also_if_it_is_killed(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("lr: 0.1")
    asked = with_file(file, "once")
    before = digest(asked.words)
    outcome = run_them([asked], tmp_path)[0]
    assert (outcome.state, outcome.exit_code) == ("failed", -signal.SIGKILL)
    state = read_state(tmp_path / asked.name)
    assert state == {"words": asked.words, "files": before, "exit_code": None, "minutes": None}
    assert run_them([asked], tmp_path)[0].state == "done"
    assert read_state(tmp_path / asked.name)["files"] == before


def test_a_file_that_changes_while_its_run_waits_is_noticed(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("lr: 0.1")
    asked = [with_file(file, do) for do in ("work", "once")]
    run_them(asked[1:], tmp_path)

    def change(outcomes):
        file.write_text("lr: 0.2")

    assert [outcome.state for outcome in run_them(asked, tmp_path, watch=change)] == ["done", "changed"]
    assert len(calls(tmp_path, asked[1])) == 1


@pytest.mark.parametrize(
    "words",
    [["-c", "{}"], ["-c={}"], ["-c{}"], ["--config", "{}"], ["--config={}"], ["-c", "other.yaml", "--config={}"]],
    ids=["short", "short_equals", "short_joined", "long", "long_equals", "second"],
)
def test_the_digest_is_of_all_files_that_are_named(words, tmp_path):
    file = tmp_path / "base.yaml"
    words = ["fit", *(word.format(file) for word in words), "--lr", "-1", "--text=a b"]
    absent = digest(words)
    file.write_text("lr: 0.1")
    first = digest(words)
    file.write_text("lr: 0.2")
    second = digest(words)
    assert len({absent, first, second}) == 3
    file.write_text("# Twice as fast.\nlr: 0.2  # or is it?")
    assert digest(words) == second
    file.write_text("lr: [")
    assert digest(words) not in (absent, first, second)
    assert digest(["fit", f"--data.root={file}"]) == digest(["fit"])


def test_what_has_no_digest_is_as_before(tmp_path):
    file = tmp_path / "base.yaml"
    file.write_text("lr: 0.1")
    asked = with_file(file, "work")
    folder = tmp_path / asked.name
    folder.mkdir()
    (folder / "metrics.csv").touch()
    assert standing(folder, asked.words) == "waiting"  # its process was killed before it wrote anything
    (folder / "sweep.json").write_text(json.dumps({"words": asked.words, "exit_code": 0, "minutes": 1.0}))
    assert standing(folder, asked.words) == "done"
    write_state(folder, asked.words, "of another time", 0)
    assert standing(folder, asked.words) == "changed"


def test_a_folder_without_a_state_goes_on_from_its_last_checkpoint(tmp_path):
    (asked,) = runs("work")
    (tmp_path / asked.name).mkdir()
    (tmp_path / asked.name / "metrics.csv").write_text("epoch,step,val/AP\n0,10,0.25\n")
    assert run_them([asked], tmp_path)[0].state == "done"
    assert "--ckpt_path=last" in ast.literal_eval(calls(tmp_path, asked)[0][3])


def test_jobs_run_side_by_side_and_share_the_threads(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 4)
    most = []
    run_them(
        runs(*["work"] * 4),
        tmp_path,
        jobs=2,
        watch=lambda outcomes: most.append(sum(each.state == "running" for each in outcomes)),
    )
    assert max(most) == 2
    assert {calls(tmp_path, run)[0][1] for run in runs(*["work"] * 4)} == {"2"}


def test_each_gpu_has_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    asked = runs("work", "work", "work")
    run_them(asked, tmp_path, jobs=2)
    assert {calls(tmp_path, run)[0][2] for run in asked} == {"4", "7"}


def test_a_run_that_another_sweep_has_is_left_to_it(tmp_path):
    (asked,) = runs("wait")
    other = multiprocessing.get_context("spawn").Process(target=run_them, args=([asked], tmp_path))
    other.start()
    waiting = tmp_path / asked.name / "waiting"
    wait_for(waiting.exists)
    try:
        assert [outcome.state for outcome in run_them([asked], tmp_path)] == ["elsewhere"]
        assert len(calls(tmp_path, asked)) == 1
    finally:
        os.kill(int(calls(tmp_path, asked)[0][0]), signal.SIGKILL)
        other.join(30)
