"""The study of docs/study.md: every loss under one recipe and one budget, and what single settings change.

``python -m benchmarks.study`` runs what is not done yet, in the order of what a reader most wants to know; stop it at
any time, and the same command goes on. ``--only NAME`` runs some parts. The runs are those of ``dml fit`` on
experiments/study/*.yaml, by the runner of ``dml sweep``, in folders under ``runs/study``. What they logged is kept in
``benchmarks/study_logs``, a few small files for each part, and a run that is kept is not run again on another machine.
``python -m benchmarks.study_tables`` makes all tables and figures from there.

Each loss has one argument tuned, over three values and proxies over four, by the validation AP of seed 0; the best one
runs with the other seeds too. Nothing is chosen by the test.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from dml.__main__ import main as dml
from dml.compare import RunLogs, keep, read_folders, read_kept
from dml.compare.kept import is_kept
from dml.compare.logs import no_logs, only, together
from dml.sweep import Plan, Planned
from dml.sweep.plan import planned
from dml.sweep_command import STOPPED, watched

OUT = Path("runs/study")
KEPT = Path(__file__).with_name("study_logs")
SEEDS = (0, 1, 2)
MORE_SEEDS = (*SEEDS, 3, 4)  # of the tables that test many rows against the first
NUM_TRAIN_CLASSES = {"omniglot": 868, "grocery": 31, "glyphs": 1000}
BATCH_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
NUM_DRAWINGS, NUM_STEPS = 38_400, 24  # of the study of batch sizes


class Candidate(NamedTuple):
    """A loss, and what is tuned of it."""

    overlay: str
    argument: str
    choices: Sequence[object]
    proxies: str | None = None
    """The argument that holds the number of classes, of losses that learn a proxy of each."""


_INNER = "model.loss.init_args.loss.init_args"
_OWN = "model.loss.init_args"
_RATE = "model.groups.loss.learning_rate"  # of the proxies, which decides more than the constants of the loss
_RATES = (0.01, 0.1, 1.0, 10.0)
_TEMPERATURES = (0.01, 0.02, 0.05)
CANDIDATES = (
    Candidate("smooth_ap", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("multi_similarity", f"{_INNER}.base", (0.3, 0.5, 0.7)),
    Candidate("roadmap", f"{_OWN}.weights", ([1.0, 0.1], [1.0, 0.3], [1.0, 1.0])),
    Candidate("sup_ap", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("triplet_margin", "triplet", (0.05, 0.1, 0.2)),
    Candidate("proxy_anchor", _RATE, _RATES, _INNER),
    Candidate("fast_ap", f"{_OWN}.num_bins", (5, 10, 20)),
    Candidate("recall_at_k", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("nt_xent", f"{_INNER}.temperature", (0.05, 0.1, 0.2)),
    Candidate("quantized_ap", f"{_OWN}.num_bins", (10, 20, 40)),
    Candidate("contrastive", f"{_INNER}.neg_margin", (0.5, 0.75, 1.0)),
    Candidate("blackbox_ap", f"{_OWN}.lambda_val", (1.0, 4.0, 16.0)),
    Candidate("proxy_nca", _RATE, _RATES, _INNER),
    Candidate("smooth_recall", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("smooth_ndcg", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("sup_recall", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("sup_ndcg", f"{_OWN}.temperature", _TEMPERATURES),
    Candidate("tie_aware_quantized_ap", f"{_OWN}.num_bins", (10, 20, 40)),
    Candidate("blackbox_recall", f"{_OWN}.lambda_val", (1.0, 4.0, 16.0)),
    Candidate("recall_at_k_simix", f"{_INNER}.temperature", _TEMPERATURES),
)
_FREE_OFFSET = ("sup_ap", "sup_recall", "sup_ndcg")  # it follows from the temperature, as in the paper's formula


def run_of(data: str, overlay: str, seed: int, arguments: dict[str, object], *configs: str) -> Planned:
    """A run, named by its loss, what is set and its seed."""
    words = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in arguments.items()]
    overlays = itertools.chain(*(["-c", path] for path in (*configs, f"experiments/losses/{overlay}.yaml")))
    command = ["fit", "-c", f"experiments/study/{data}.yaml", *overlays, *words, f"--seed_everything={seed}"]
    return planned(command, {"config": overlay, **arguments, "seed": seed})


def tuned(data: str, candidate: Candidate, value: object, seed: int) -> Planned:
    """A run of a candidate at one value."""
    arguments: dict[str, object] = {candidate.argument: value}
    if candidate.argument == "triplet":  # one margin for the loss and for what it mines
        miner = "model.loss.init_args.miner.init_args.margin"
        arguments = {f"{_INNER}.margin": value, miner: value}
    if candidate.overlay == "fast_ap":  # as in the other losses; its paper leaves the query out
        arguments |= {f"{_OWN}.include_self": "true"}
    if candidate.overlay in _FREE_OFFSET:
        arguments |= {f"{_OWN}.offset": "null"}
    if candidate.proxies is not None:
        arguments |= {
            f"{candidate.proxies}.num_classes": NUM_TRAIN_CLASSES[data],
            f"{candidate.proxies}.embedding_size": 64,
        }
    return run_of(data, candidate.overlay, seed, arguments)


def losses(data: str, jobs: int) -> None:
    """All candidates: seed 0 at each value, then the best of each with the other seeds."""
    part = f"losses_{data}"
    first = [[tuned(data, each, value, MORE_SEEDS[0]) for value in each.choices] for each in CANDIDATES]
    logs = run(part, itertools.chain(*first), jobs)
    validated = logs.curves[logs.curves["metric"] == "val/AP"].groupby("run")["value"].max()
    validated = validated[validated.index.isin(logs.runs.index[logs.runs["finished"]])]
    validated.index = validated.index.map(lambda path: Path(path).name)
    chosen = []
    for candidate, runs in zip(CANDIDATES, first, strict=True):
        found = validated.reindex([each.name for each in runs])
        if found.notna().all():  # or the choice would be among fewer
            chosen.append((candidate, candidate.choices[int(found.to_numpy().argmax())]))
    run(part, [tuned(data, *each, seed) for seed in MORE_SEEDS[1:] for each in chosen], jobs)


def batch_size(jobs: int) -> None:
    """Smooth-AP at 64 to 4,096 drawings a step, eight of a class: the same number of drawings, or of steps."""
    runs = []
    for seed, size in itertools.product(SEEDS, BATCH_SIZES):
        common: dict[str, object] = {
            "data.samples_per_class": 8,
            "data.classes_per_batch": size // 8,
            "trainer.log_every_n_steps": 1,
            "trainer.max_epochs": -1,
            "trainer.limit_train_batches": 1.0,
            "trainer.check_val_every_n_epoch": "null",
            **({"model.embedder.chunk_size": 256} if size > 256 else {}),
        }
        for steps in dict.fromkeys((NUM_DRAWINGS // size, NUM_STEPS)):
            length = {"trainer.max_steps": steps, "trainer.val_check_interval": steps}
            runs.append(run_of("omniglot", "smooth_ap", seed, {**common, **length}))
    run("batch_size", runs, jobs)


def samples_per_class(jobs: int) -> None:
    """Smooth-AP and multi-similarity with 2 to 16 drawings of a class in batches of 128."""
    runs = [
        run_of("omniglot", overlay, seed, {"data.samples_per_class": m, "data.classes_per_batch": 128 // m})
        for seed in SEEDS
        for overlay in ("smooth_ap", "multi_similarity")
        for m in (2, 4, 8, 16)
    ]
    run("samples_per_class", runs, jobs)


def include_self(jobs: int) -> None:
    """Rank losses with the query in its own gallery, and without: at their defaults, and as tuned on Omniglot."""
    overlays = ("smooth_ap", "sup_ap", "quantized_ap", "fast_ap")
    settings: list[tuple[str, dict[str, object]]] = [(overlay, {}) for overlay in overlays]
    settings += [
        ("smooth_ap", {f"{_OWN}.temperature": 0.05}),
        ("sup_ap", {f"{_OWN}.offset": "null"}),
        ("quantized_ap", {f"{_OWN}.num_bins": 10}),
    ]
    runs = [
        run_of("omniglot", overlay, seed, {**setting, f"{_OWN}.include_self": kept})
        for seed in SEEDS
        for overlay, setting in settings
        for kept in ("true", "false")
    ]
    run("include_self", runs, jobs)


def calibration(jobs: int) -> None:
    """SupAP with more and more of the calibration term."""
    runs = [
        run_of("omniglot", "roadmap", seed, {f"{_OWN}.weights": [1.0, weight]})
        for seed in SEEDS
        for weight in (0.0, 0.1, 0.3, 1.0, 3.0)
    ]
    run("calibration", runs, jobs)


def hierarchical(data: str, jobs: int) -> None:
    """Losses of the finest level and of the hierarchy, by hierarchical AP."""
    overlays = ("smooth_ap", "smooth_hap", "sup_ap", "sup_hap", "smooth_ndcg", "sup_ndcg", "multi_similarity")
    happier = [
        {"class_path": "dml.losses.SupHAPLoss"},
        {
            "class_path": "dml.losses.NormSoftmaxLoss",
            "init_args": {"num_classes": NUM_TRAIN_CLASSES[data], "embedding_dim": 64, "temperature": 0.05},
        },
    ]
    arguments: dict[str, dict[str, object]] = {overlay: {} for overlay in overlays}
    arguments["happier"] = {f"{_OWN}.losses": happier}
    proxies = {"num_classes": NUM_TRAIN_CLASSES[data], "embedding_dim": 64, "margins": [0.25, 0.35, 0.45]}
    arguments["csl"] = {f"{_OWN}.{name}": value for name, value in proxies.items()}
    runs = [
        run_of(data, overlay, seed, settings, "experiments/study/levels.yaml")
        for seed in MORE_SEEDS
        for overlay, settings in arguments.items()
    ]
    run(f"hierarchical_{data}", runs, jobs)


def run(part: str, runs: Iterable[Planned], jobs: int) -> RunLogs:
    """Run what is not kept of some runs, and keep what they and others of the part have logged."""
    kept = read_kept(KEPT / part) if is_kept(KEPT / part) else no_logs()
    done = {Path(path).name for path in kept.runs.index}
    missing = [each for each in runs if each.name not in done]
    if missing:
        code = watched(dml, Plan(part, "val/AP", False, missing), OUT / part, jobs)
        keep_part(part)
        if code == STOPPED:
            sys.exit(code)
    return read_kept(KEPT / part)


def keep_part(part: str) -> None:
    """Keep the logs of the runs of a part that have been tested, beside those that are kept already."""
    kept = [read_kept(KEPT / part)] if is_kept(KEPT / part) else []
    logs = together([read_folders([OUT / part], with_retrievals=False), *kept])
    logs = only(logs, logs.runs.index[logs.runs["finished"]].tolist())
    compared = logs.classes["measure"].isin(("test/AP", "test/H-AP"))  # intervals of others are not shown
    keep(logs._replace(classes=logs.classes[compared]), KEPT / part)


PARTS: dict[str, Callable[[int], None]] = {
    "losses_omniglot": lambda jobs: losses("omniglot", jobs),
    "calibration": calibration,
    "include_self": include_self,
    "losses_grocery": lambda jobs: losses("grocery", jobs),
    "hierarchical_grocery": lambda jobs: hierarchical("grocery", jobs),
    "samples_per_class": samples_per_class,
    "batch_size": batch_size,
    "losses_glyphs": lambda jobs: losses("glyphs", jobs),
    "hierarchical_glyphs": lambda jobs: hierarchical("glyphs", jobs),
}


def main(words: Sequence[str] | None = None) -> None:
    """Run the parts, in their order."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=list(PARTS), nargs="+", default=list(PARTS))
    parser.add_argument("--jobs", type=int, default=1)
    arguments = parser.parse_args(words)
    for part in arguments.only:
        PARTS[part](arguments.jobs)


if __name__ == "__main__":
    sys.exit(main())
