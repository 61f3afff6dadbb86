"""Checkpoints that are written whole, and read with care."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from dml import __version__, checkpoints
from dml.__main__ import main
from dml.callbacks.run import CONFIG_KEY, VERSION_KEY
from dml.checkpoints import AtomicCheckpointIO

CONFIG = {
    "model": {
        "embedder": {"class_path": "dml.models.TimmEmbedder", "init_args": {"name": "resnet50.a1_in1k"}},
        "loss": {"class_path": "dml.losses.SmoothAPLoss"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1}},
        "schedule": "dml.schedules.Cosine",
    },
    "data": {"dataset": "dml.data.datasets.Glyphs", "root": "data/glyphs", "batch_size": 3},
    "trainer": {"callbacks": [{"class_path": "pytorch_lightning.callbacks.Timer"}], "default_root_dir": "best.ckpt"},
}


def checkpoint_of(config, **more):
    return {"state_dict": {}, CONFIG_KEY: yaml.safe_dump(config), VERSION_KEY: __version__, **more}


def changed(key, value):
    """The configuration with one value replaced, or added."""
    config = yaml.safe_load(yaml.safe_dump(CONFIG))
    *path, last = key.split(".")
    inner = config
    for name in path:
        inner = inner.setdefault(name, {})
    inner[last] = value
    return config


@pytest.fixture
def save(tmp_path):
    def save(checkpoint):
        torch.save(checkpoint, tmp_path / "from_elsewhere.ckpt")
        return str(tmp_path / "from_elsewhere.ckpt")

    return save


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """A module that must not be imported."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "hostile_losses.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path / "modules")


def refusal(words, capsys):
    """The one line on which a command ends."""
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0].removeprefix("dml: error: ")


# Writing


def save_forever(path, is_ready):
    torch.set_num_threads(1)  # those of the parent have not come along
    step = 0
    while True:
        AtomicCheckpointIO().save_checkpoint({"step": step, "state_dict": {"a": torch.full((500_000,), step)}}, path)
        is_ready.set()
        step += 1


def test_a_checkpoint_is_whole_whenever_its_writer_is_killed(tmp_path):
    seed = random.SystemRandom().randrange(2**32)  # not fixed by a seed that another test has set
    print(f"seed {seed}")
    generator = random.Random(seed)
    path = tmp_path / "checkpoints" / "last.ckpt"
    processes = multiprocessing.get_context("fork")
    left = 0
    for _ in range(10):
        is_ready = processes.Event()
        writer = processes.Process(target=save_forever, args=(path, is_ready))
        writer.start()
        assert is_ready.wait(60)
        time.sleep(generator.random() * 0.05)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        checkpoint = torch.load(path, weights_only=True)
        assert torch.all(checkpoint["state_dict"]["a"] == checkpoint["step"])
        left += sum(file != path for file in path.parent.iterdir())
    print(f"{left} of 10 were killed within a save")
    AtomicCheckpointIO().save_checkpoint({}, path)
    assert list(path.parent.iterdir()) == [path]


@pytest.fixture
def limit_of_file_size():
    """As on a disk that is full after half a megabyte; the error is EFBIG instead of ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    yield 500_000
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_was_there_stays_if_the_disk_is_full(tmp_path, limit_of_file_size):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(checkpoints.UnwrittenError, match="File too large") as caught:
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.zeros(limit_of_file_size)}, path)
    assert caught.value.errno == errno.EFBIG
    assert caught.value.filename == str(path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_that_is_none_of_the_disk_is_raised_as_it_is(tmp_path):
    with pytest.raises(AttributeError, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"function": lambda: None}, tmp_path / "last.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_the_data_are_on_the_disk_before_the_name_is_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    replace, sync = Path.replace, os.fsync

    def noted_replace(self, target):
        calls.append("replace")
        return replace(self, target)

    def noted_sync(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        sync(descriptor)

    monkeypatch.setattr(Path, "replace", noted_replace)
    monkeypatch.setattr(os, "fsync", noted_sync)
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "folder" / "last.ckpt")
    assert calls[0].endswith(".ckpt.partial")
    assert calls[1:] == ["replace", "folder"]


# Reading


class Bomb:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("command", [["test"], ["fit", "-c=experiments/quickstart.yaml"]], ids=lambda words: words[0])
def test_a_checkpoint_that_would_execute_something_is_refused(command, save, tmp_path, monkeypatch, capsys):
    path = save(checkpoint_of(CONFIG, bomb=Bomb(tmp_path / "executed")))
    command = [word.replace("experiments", str(Path(__file__).parents[1] / "experiments")) for word in command]
    monkeypatch.chdir(tmp_path)
    message = refusal([*command, f"--ckpt_path={path}"], capsys)
    assert "holds more than tensors and plain values, such as posix.mkdir" in message
    assert path in message
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [b"", b"text", "half"], ids=str)
def test_a_damaged_checkpoint_is_one_line(content, save, capsys):
    path = save(checkpoint_of(CONFIG))
    whole = Path(path).read_bytes()
    Path(path).write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert "is not a checkpoint, or a damaged one" in refusal(["test", "--ckpt_path", path], capsys)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "it has no 'state_dict'"),
        ({"state_dict": {}}, "a checkpoint without a configuration"),
        ({"state_dict": {}, CONFIG_KEY: "model: hostile.yaml"}, "it has no 'model' and 'data'"),
    ],
    ids=["tensor", "no configuration", "configuration elsewhere"],
)
def test_a_checkpoint_of_something_else_is_one_line(content, message, save, capsys):
    assert message in refusal(["test", "--ckpt_path", save(content)], capsys)


HOSTILE = {
    "model.loss.class_path": "hostile_losses.Loss",
    "model.loss": "hostile_losses.Loss",
    "model.loss.init_args.losses": [{"class_path": "hostile_losses.Loss"}],
    "model.embedder": "{class_path: hostile_losses.Loss, init_args: {}}",
    "model.optimizer": "hostile_losses.Optimizer",
    "model.schedule": "torch.os.system",
    "data.sampler": "hostile_losses.Sampler",
    "data.dataset": "hostile_losses.Dataset",
    "data.train_transforms": ["hostile_losses.Transform"],
    "search.stages": [{"class_path": "hostile_losses.Stage"}],
    "search.reranker": "hostile_losses.Reranker",
    "trainer.callbacks": ["hostile_losses.Callback"],
    "trainer.logger": {"class_path": "not_here.Logger"},
    "trainer.profiler": "os.path",
}


@pytest.mark.parametrize("key", HOSTILE)
def test_a_configuration_that_names_other_code_is_refused_before_that_is_imported(key, save, hostile, capsys):
    path = save(checkpoint_of(changed(key, HOSTILE[key])))
    message = refusal(["test", "--ckpt_path", path], capsys)
    name = next(name for name in checkpoints._DOTTED.findall(str(HOSTILE[key])) if not name.startswith("dml."))
    assert repr(name) in message
    assert f"name it on the command line (--{key.removesuffix('.class_path')} " in message
    assert "hostile_losses" not in sys.modules


@pytest.fixture
def hub(tmp_path):
    """A call, in the words of a configuration, that would execute a file."""
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "hubconf.py").write_text(f"import os\n\ndef m(*a, **k):\n    os.mkdir('{tmp_path}/executed')\n")
    arguments = {"repo_or_dir": str(tmp_path / "hub"), "model": "m", "source": "local", "trust_repo": True}
    return {"class_path": "torch.hub.load", "init_args": arguments}


@pytest.mark.parametrize(
    "key",
    [
        "model.optimizer",
        "model.schedule",
        "model.groups.head.schedule",
        "model.loss.init_args.custom_encoder",
        "data.sampler",
        "trainer.profiler.init_args.filename",
    ],
)
def test_a_configuration_that_would_call_a_function_is_refused(key, save, hub, tmp_path, capsys):
    path = save(checkpoint_of(changed(key, hub)))
    assert "'torch.hub.load'" in refusal(["test", "--ckpt_path", path], capsys)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "name",
    [
        "torch.distributed.launcher.api.elastic_launch",
        "torch.utils.model_zoo.load_url",
        "torch.package.PackageImporter",
        "torch.optim.lr_scheduler.partial",
        "torch._utils_internal._os.system",
        "torch.nn.Missing",
        "torch.hub",
        "timm.create_model",
        "torchmetrics.functional.accuracy",
        "pytorch_lightning.callbacks.LambdaCallback",
        "pytorch_lightning.cli.LightningCLI",
        "pytorch_lightning.cli.instantiate_module",
        "pytorch_lightning.cli.yaml.YAMLObject",
        "pytorch_metric_learning.utils.common_functions.sqlite3.Connection",
        "dml.__main__.DMLCommand",
        "dml.checkpoints.yaml.unsafe_load",
        "dml.checkpoints.read",
    ],
)
def test_what_is_not_a_class_for_a_run_is_refused(name, save, capsys):
    message = refusal(["test", "--ckpt_path", save(checkpoint_of(changed("model.schedule", name)))], capsys)
    assert f"names {name!r} as model.schedule" in message
    checkpoints.with_config(["test", "--ckpt_path", save(checkpoint_of(CONFIG)), f"--model.schedule={name}"])


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_lightning.plugins.io.AsyncCheckpointIO",
        "pytorch_lightning.plugins.environments.SLURMEnvironment",
        "pytorch_lightning.plugins.precision.HalfPrecision",
        "pytorch_lightning.strategies.DDPStrategy",
        "pytorch_lightning.accelerators.CPUAccelerator",
        "pytorch_lightning.profilers.SimpleProfiler",
        "pytorch_lightning.loggers.TensorBoardLogger",
        "pytorch_metric_learning.miners.TripletMarginMiner",
        "pytorch_metric_learning.samplers.MPerClassSampler",
        "torch.optim.lr_scheduler.StepLR",
        "timm.optim.Lion",
        "torchmetrics.MeanMetric",
    ],
)
def test_a_class_for_a_run_is_accepted(name, save):
    words, _ = checkpoints.with_config(["test", "--ckpt_path", save(checkpoint_of(changed("trainer.plugins", [name])))])
    assert yaml.safe_load(words[2])["trainer"]["plugins"] == [name]


EXPERIMENTS = sorted((Path(__file__).parents[1] / "experiments").rglob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_what_an_experiment_names_is_accepted(experiment, save):
    config = yaml.safe_load(experiment.read_text(encoding="utf-8"))
    path = save(checkpoint_of({"model": {}, "data": {}, **config}))
    words, _ = checkpoints.with_config(["test", "--ckpt_path", path])
    assert yaml.safe_load(words[2])["data"] == config.get("data", {})


def test_a_configuration_in_a_file_that_came_with_it_is_looked_into(save, hostile, tmp_path, capsys):
    (tmp_path / "loss.txt").write_text("class_path: hostile_losses.Loss")
    path = save(checkpoint_of(changed("model.loss", str(tmp_path / "loss.txt"))))
    assert "'hostile_losses.Loss'" in refusal(["test", "--ckpt_path", path], capsys)


def test_the_name_of_the_checkpoint_is_no_word_of_the_user(hostile, tmp_path, capsys):
    path = tmp_path / "hostile_losses.Loss" / "best.ckpt"
    path.parent.mkdir()
    torch.save(checkpoint_of(changed("model.loss", "hostile_losses.Loss")), path)
    for words in (["--ckpt_path", str(path)], [f"--ckpt_path={path}"]):
        assert "'hostile_losses.Loss'" in refusal(["test", *words], capsys)


def test_code_that_the_user_names_is_accepted(save, hostile, tmp_path):
    path = save(checkpoint_of(changed("model.loss.class_path", "hostile_losses.Loss")))
    (tmp_path / "mine.yaml").write_text("model:\n  loss:\n    class_path: hostile_losses.Loss\n")
    for words in (["--model.loss=hostile_losses.Loss"], ["-c", str(tmp_path / "mine.yaml")]):
        accepted, note = checkpoints.with_config(["test", "--ckpt_path", path, *words])
        assert yaml.safe_load(accepted[2])["model"]["loss"]["class_path"] == "hostile_losses.Loss"
        assert note == ""


def test_a_configuration_of_trusted_classes_is_put_under_the_command_line(save):
    path = save(checkpoint_of(CONFIG | {"config": "other.yaml", "last": {}}))
    words, note = checkpoints.with_config(["test", "--ckpt_path", path, "--data.root=x"])
    assert [words[0], *words[3:]] == ["test", "--ckpt_path", path, "--data.root=x"]
    accepted = yaml.safe_load(words[2])  # and nothing but the parts that a checkpoint keeps
    assert accepted == CONFIG | {"model": CONFIG["model"] | {"embedder": accepted["model"]["embedder"]}}
    assert note == ""


WEIGHTLESS = {"pretrained": False, "weights": None}


@pytest.mark.parametrize("words", [["test"], ["validate"], ["predict"], ["fit"], ["test", "-c=a.yaml"]], ids="".join)
@pytest.mark.parametrize(
    ("embedder", "expected"),
    [
        (
            {"class_path": "dml.models.TimmEmbedder", "init_args": {"name": "a", "pretrained": True, "weights": "b"}},
            {"class_path": "dml.models.TimmEmbedder", "init_args": {"name": "a", **WEIGHTLESS}},
        ),
        ({"init_args": {"name": "a"}}, {"init_args": {"name": "a", **WEIGHTLESS}}),
        ({"name": "a", "weights": "b"}, {"name": "a", **WEIGHTLESS}),
        (
            {"class_path": "torch.nn.Linear", "init_args": {"weights": "b", "in_features": 3}},
            {"class_path": "torch.nn.Linear", "init_args": {"weights": None, "in_features": 3}},
        ),
    ],
    ids=["whole", "without class", "short", "another"],
)
def test_the_weights_are_those_of_the_checkpoint_alone(embedder, expected, words, save):
    accepted, _ = checkpoints.with_config(
        [*words, "--ckpt_path", save(checkpoint_of(changed("model.embedder", embedder)))]
    )
    assert yaml.safe_load(accepted[2])["model"]["embedder"] == expected


def test_the_untrained_model_of_a_report_has_its_weights(save):
    path = save(checkpoint_of(CONFIG))
    words, _ = checkpoints.with_config(["fit", "--ckpt_path", path, "--report=true"])
    assert yaml.safe_load(words[2])["model"] == CONFIG["model"]


@pytest.mark.parametrize(
    "embedder", ["{name: a, weights: b}", ["a"], {"class_path": "dml.models.TimmEmbedder", "init_args": "a"}], ids=str
)
def test_an_embedder_whose_weights_cannot_be_left_out_is_one_line(embedder, save, capsys):
    message = refusal(["test", "--ckpt_path", save(checkpoint_of(changed("model.embedder", embedder)))], capsys)
    assert f"whose model.embedder is {embedder!r}, not a class and its init_args" in message


# Errors in the options of an option


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.memory=dml.memory.CrossBatchMemory", "--model.memory.size=0"], "size is 0; it is a number of "),
        (
            ["--model.schedule=dml.schedules.MultiStep", "--model.schedule.milestones=[30,70]"],
            "milestones are [30.0, 7",
        ),
    ],
    ids=["memory", "schedule"],
)
def test_a_wrong_value_inside_an_optional_argument_is_one_line(words, message, tmp_path, monkeypatch, capsys):
    quickstart = Path(__file__).parents[1] / "experiments" / "quickstart.yaml"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "-c", str(quickstart), "--trainer.logger=false", *words])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"dml: error: {message}")


# Versions


@pytest.mark.parametrize(("rate", "groups"), [(0.1, {"groups": {"loss": {"learning_rate": 0.1}}}), (None, {})])
def test_a_configuration_of_the_first_version_is_brought_up_to_date(rate, groups, save):
    checkpoint = checkpoint_of(changed("model.loss_learning_rate", rate))
    del checkpoint[VERSION_KEY]
    words, note = checkpoints.with_config(["test", "--ckpt_path", save(checkpoint)])
    embedder = {"embedder": yaml.safe_load(words[2])["model"]["embedder"]}
    assert yaml.safe_load(words[2])["model"] == CONFIG["model"] | embedder | groups
    assert note == f"; the checkpoint was made by dml 0.1.0, and this is {__version__}"


def test_an_option_of_a_newer_version_says_so(save, capsys):
    checkpoint = checkpoint_of({"data": {}, "model": {"sharpness": 3}}, **{VERSION_KEY: "7.1"})
    message = refusal(["test", "--ckpt_path", save(checkpoint)], capsys)
    assert "sharpness" in message
    assert message.endswith(f"made by dml 7.1, newer than this one, {__version__}: install that version")


@pytest.mark.parametrize(
    ("version", "fitting", "advice"),
    [
        ("0.1.0", True, "its weights still serve dml test and dml predict, and dml 0.1.0 can train it on"),
        ("0.1.0", False, f"made by dml 0.1.0, and this is {__version__}"),
        ("7.1", True, "install that version"),
        (__version__, True, "is the configuration that of its run, which is in its folder as config.yaml?"),
    ],
)
def test_what_to_do_about_a_checkpoint_that_does_not_fit(version, fitting, advice, save):
    path = save(checkpoint_of(CONFIG, **{VERSION_KEY: version}))
    message = str(checkpoints.misfit(path, RuntimeError("Missing\n\t key"), fitting=fitting))
    assert message.startswith(f"ckpt_path is {path!r}, which does not fit this run (Missing key); ")
    assert message.endswith(advice)
