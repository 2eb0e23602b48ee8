"""One call of a SavedModel's signature for one row of plain values; what every peer does with a request."""

import json
import os
from pathlib import Path
from typing import Any

import tensorflow as tf

MODEL = Path(os.environ["PEER_MODEL"])
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)


class Signature:
    """The signature `serving_default` with the types of its inputs."""

    def __init__(self, folder: Path = MODEL) -> None:
        self.loaded = tf.saved_model.load(str(folder))
        self.call = self.loaded.signatures["serving_default"]
        self.types = {name: spec.dtype for name, spec in self.call.structured_input_signature[1].items()}

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        """The answers to rows in one call; a missing number is `None`."""
        outputs = self.call(**{name: tf.constant([self.value(row, name) for row in rows], kind) for name, kind in self.types.items()})
        columns = {name: values.numpy().tolist() for name, values in outputs.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def value(self, row: dict[str, Any], name: str) -> Any:
        """One value as the signature takes it."""
        value = row.get(name)
        if value is None:
            return "" if self.types[name] == tf.string else float("nan")
        return value


def example() -> dict[str, Any]:
    """A sample request of the bundle, without missing values."""
    samples = json.loads((MODEL / "assets.extra" / "samples.json").read_text())["instances"]
    return {name: None if value != value else value for name, value in samples[0].items()}
