"""Which folder a run gets, and which one it goes on in."""

from types import SimpleNamespace

import pytest

from dml import runs
from dml.callbacks.run import WATCHED


@pytest.fixture
def logger(tmp_path):
    return SimpleNamespace(save_dir=str(tmp_path), name="sop", version=None)


def test_each_run_gets_a_folder_of_its_own(logger):
    folder = runs.of_logger(logger)
    assert [runs.reserve(folder, None) for _ in range(2)] == ["version_0", "version_1"]
    assert [runs.reserve(folder, "77") for _ in range(3)] == ["job_77", "job_77_1", "job_77_2"]


def test_a_job_finds_the_run_of_the_same_command(logger):
    folder = runs.of_logger(logger)
    first, second = ["fit", "-c", "sop.yaml"], ["fit", "-c", "sop.yaml", "--seed_everything=1"]
    names = []
    for words in (first, second):
        assert runs.checkpoint_of_job("77", words, [logger]) is None
        names.append(runs.reserve(folder, "77"))
        runs.remember_job(folder / names[-1], "77", words)
        assert runs.checkpoint_of_job("77", words, [logger]) is None  # nothing has been saved
        (folder / names[-1] / "checkpoints").mkdir()
        (folder / names[-1] / "checkpoints" / "last.ckpt").touch()
    for words, name in zip((first, second), names, strict=True):
        assert runs.checkpoint_of_job("77", words, [logger]) == folder / name / "checkpoints" / "last.ckpt"
    assert runs.checkpoint_of_job("7", first, [logger]) is None
    assert runs.checkpoint_of_job("77", first[:-1], [logger]) is None


def test_a_job_may_go_on_with_an_older_run_and_is_noted_once(logger):
    run = runs.of_logger(logger) / "version_3"
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.ckpt").touch()
    for _ in range(2):
        runs.remember_job(run, "78", ["fit", "--ckpt_path=last"])
    assert runs.checkpoint_of_job("78", ["fit", "--ckpt_path=last"], [logger]) == run / "checkpoints" / "last.ckpt"
    assert len((run / "jobs.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "train"}, "77"),
        ({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "bash"}, None),
        ({"SLURM_JOB_ID": "77"}, None),
    ],
    ids=["none", "srun", "interactive", "without srun"],
)
def test_a_job_is_what_lightning_takes_for_one(environment, job, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert runs.slurm_job() == job


def watched(**given):
    return SimpleNamespace(**{"id": None, "version": None, **given})


def test_a_run_that_goes_on_is_the_same_run_of_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    run, last = tmp_path / "version_0", tmp_path / "version_0" / "checkpoints" / "last.ckpt"
    first, second = watched(), watched()
    runs.watch_again(run, last, [first])  # of a version that noted nothing
    assert first.id is None
    run.mkdir()
    (run / WATCHED).write_text("abc\ndef\n")
    runs.watch_again(run, last, [first, second])
    assert (first.id, second.id) == ("abc", "def")


def test_an_id_that_is_set_and_a_run_that_starts_from_another_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    run, last = tmp_path / "version_1", tmp_path / "version_1" / "checkpoints" / "last.ckpt"
    run.mkdir()
    (run / WATCHED).write_text("abc\n")
    mine, named, fine_tuned, of_agent = watched(id="mine"), watched(version="mine"), watched(), watched()
    runs.watch_again(run, last, [mine])
    runs.watch_again(run, last, [named])
    runs.watch_again(run, tmp_path / "version_0" / "checkpoints" / "best.ckpt", [fine_tuned])
    monkeypatch.setenv("WANDB_RUN_ID", "of_agent")
    runs.watch_again(run, last, [of_agent])
    assert (mine.id, named.id, fine_tuned.id, of_agent.id) == ("mine", None, None, None)
