import json

from dml.compare.differences import differing
from tests.compare.drawn import drawn


def test_settings_that_differ():
    logs, _ = drawn(2, 1)
    first, second = (json.loads(config) for config in logs.runs["config"])
    first["seed_everything"], first["data"]["root"] = 7, "elsewhere"  # change nothing that is compared
    first["model"]["loss"]["init_args"] |= {"chunk_size": 64, "temperature": 0.02}
    assert differing([first, second]) == {
        "model.loss": ["dml.losses.SmoothAPLoss", "dml.losses.SupAPLoss"],
        "model.loss.temperature": ["0.02", "0.01"],
        "model.loss.chunk_size": ["64", None],
    }
    assert differing([first, first]) == {}
