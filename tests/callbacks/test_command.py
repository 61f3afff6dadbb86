"""What Weights & Biases is told by a whole ``dml fit``, in the place of an agent of a sweep."""

import pytest
import wandb
import yaml

from dml.__main__ import main

from .offline import told_by


@pytest.fixture(scope="module")
def told(request, glyphs_root, tmp_path_factory):
    """A run of two epochs and a test, and its folder."""
    folder = tmp_path_factory.mktemp("run")
    arguments = {
        "seed_everything": 5,
        "data.root": glyphs_root,
        "data.classes_per_batch": 4,
        "data.samples_per_class": 2,
        "data.num_workers": 0,
        "model.embedder.name": "test_resnet",
        "model.embedder.embedding_dim": 8,
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "report": "false",
        "test": "true",
    }
    files = [request.config.rootpath / "experiments" / name for name in ("quickstart.yaml", "losses/roadmap.yaml")]
    words = [*(f"-c={file}" for file in files), *(f"--{key}={value}" for key, value in arguments.items())]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("WANDB_SWEEP_ID", "sweep7")
        patch.setenv("WANDB_RUN_ID", "chosen_by_agent")
        for name in ("WANDB_NAME", "WANDB_RUN_GROUP", "WANDB_JOB_TYPE", "WANDB_TAGS", "WANDB_SERVICE"):
            patch.delenv(name, raising=False)
        wandb.teardown()  # its service, if a test has started it, would write to the folder of that test
        main(["fit", *words])
        yield told_by(folder / "runs"), folder / "runs" / "quickstart" / "version_0"


def test_the_run_has_name_group_and_tags(told):
    run = told[0].run
    assert run.display_name == "Glyphs SupAPLoss+CalibrationLoss test_resnet seed 5"
    assert run.run_group == "SupAPLoss+CalibrationLoss"
    assert run.job_type == "Glyphs"
    assert list(run.tags) == ["glyphs", "Glyphs", "SupAPLoss+CalibrationLoss", "test_resnet"]


def test_the_run_is_that_of_the_agent(told):
    assert (told[0].run.sweep_id, told[0].run.run_id) == ("sweep7", "chosen_by_agent")


def test_another_run_of_the_configuration_gets_its_own_name(told):
    for config in (told[0].config, yaml.safe_load((told[1] / "config.yaml").read_text())):
        (logger,) = [each for each in config["trainer"]["logger"] if each["class_path"].endswith("WandbLogger")]
        assert (logger["init_args"]["name"], logger["init_args"]["group"]) == (None, None)
        assert logger["init_args"]["tags"] == ["glyphs"]


def test_the_configuration_is_that_of_the_run(told):
    config = told[0].config
    assert config["model"]["embedder"]["init_args"]["name"] == "test_resnet"
    assert config["seed_everything"] == 5


def test_media_and_artifacts_are_logged(told):
    logged = told[0]
    assert [len(logged.logged(f"{stage}/retrieval_table")) for stage in ("val", "test")] == [2, 1]
    assert [len(logged.logged(f"{stage}/similarity_negative")) for stage in ("val", "test")] == [2, 1]
    assert [set(each.aliases) for each in logged.artifacts_of("model")] == [{"best", "latest"}, {"last", "latest"}]
    assert (told[1] / "retrievals" / "test.parquet").is_file()


def test_summaries_of_media_are_whole(told):
    """A page finds a table by the path in the summary, in whose place no maximum may be."""
    for stage in ("val", "test"):
        assert told[0].summary[f"{stage}/retrieval_table/_type"] == "table-file"
        assert told[0].summary[f"{stage}/retrieval_table/path"].endswith(".table.json")
        assert told[0].summary[f"{stage}/similarity_positive/_type"] == "histogram"
    assert told[0].summary["val/AP"] == {"max": pytest.approx(max(told[0].logged("val/AP")))}
    assert 0 < told[0].summary["test/AP"] <= 1


def test_the_machine_is_watched(told):
    measured = {name for row in told[0].stats for name in row}
    assert {"memory_percent", "proc.memory.rssMB"} <= measured
