"""The results table of the README, from the folders of finished runs.

``python -m benchmarks.results runs/omniglot runs/grocery`` reads ``config.yaml`` and ``metrics.csv`` of each run and
prints one row per data set and loss: mean and sample standard deviation over seeds of the test metrics at the epoch
that was best on validation, and the minutes of training.
"""

import sys
from pathlib import Path

import pandas as pd
import yaml

METRICS = ("test/AP", "test/mAP@R", "test/R@1")


def read_run(folder: Path) -> dict[str, object] | None:
    """One run as a row; None if it has not been tested."""
    metrics = pd.concat([pd.read_csv(path) for path in sorted(folder.glob("metrics*.csv"))])
    if not {*METRICS, "fit_minutes"} <= set(metrics.columns):
        return None
    config = yaml.safe_load((folder / "config.yaml").read_text())
    loss = config["model"]["loss"]
    inner = loss["init_args"].get("loss", loss)
    return {
        "data": config["data"]["dataset"].rpartition(".")[2],
        "loss": inner["class_path"].rpartition(".")[2],
        "seed": config["seed_everything"],
        **{name: metrics[name].dropna().iloc[-1] for name in METRICS},
        "minutes": metrics["fit_minutes"].sum(),
    }


def table(folders: list[Path]) -> pd.DataFrame:
    """One row per data set and loss."""
    rows = [read_run(run) for folder in folders for run in sorted(folder.iterdir()) if (run / "metrics.csv").exists()]
    runs = pd.DataFrame([row for row in rows if row is not None])
    groups = runs.groupby(["data", "loss"], sort=False)
    columns = {"seeds": groups["seed"].nunique().astype(str)}
    for name in METRICS:
        mean, spread = groups[name].mean(), groups[name].std()
        columns[name] = mean.map("{:.3f}".format) + " ± " + spread.map("{:.3f}".format)
    columns["minutes"] = groups["minutes"].mean().map("{:.1f}".format)
    return pd.DataFrame(columns).reset_index()


if __name__ == "__main__":
    result = table([Path(folder) for folder in sys.argv[1:]])
    lines = [result.columns.tolist(), ["---"] * len(result.columns), *result.to_numpy().tolist()]
    print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines))
