"""The file of an offline run of Weights & Biases, read back."""

import json
import struct
from typing import Any, NamedTuple

import wandb
from wandb.proto import wandb_internal_pb2


class Told(NamedTuple):
    """What the run was told."""

    run: Any
    config: dict
    summary: dict
    metrics: dict
    history: list
    artifacts: list
    stats: list

    def logged(self, key):
        """Each value of a key, in the order in which it was logged."""
        return [row[key] for row in self.history if key in row]

    def artifacts_of(self, kind):
        return [artifact for artifact in self.artifacts if artifact.type == kind]


def records(path):
    """Records of a ``.wandb`` file: a LevelDB log, in blocks of 32 KiB, behind a header of 7 bytes."""
    data, position, partial = path.read_bytes(), 7, b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        partial += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(partial)
            partial = b""
            yield record


def told_by(folder):
    """Finish the run that is under way, the only one in a folder, and read it."""
    wandb.finish()
    wandb.teardown()  # on a busy machine, the file is not all written when the run is finished
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    of_kind = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        of_kind.setdefault(kind, []).append(getattr(record, kind))
    (run,) = of_kind["run"]
    return Told(
        run,
        _values([run.config, *of_kind.get("config", [])]),
        _values(of_kind["summary"]),
        {metric.name or metric.glob_name: metric for metric in of_kind["metric"]},
        [_row(history.item) for history in of_kind.get("history", [])],
        of_kind.get("artifact", []),
        [_row(stats.item) for stats in of_kind.get("stats", [])],
    )


def _values(updates):
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for update in updates
        for item in update.update
    }


def _row(items):
    row = {}
    for item in items:
        *path, last = (hasattr(item, "nested_key") and list(item.nested_key)) or [item.key]
        place = row
        for key in path:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return row
