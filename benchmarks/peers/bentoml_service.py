"""The peer BentoML with adaptive batching; its deadline is set so that it sheds nothing."""

from typing import Any

import bentoml
from signature import Signature


@bentoml.service(workers=1, traffic={"timeout": 300, "max_concurrency": 100_000})
class Champion:
    """The signature on batches of rows."""

    def __init__(self) -> None:
        self.signature = Signature()

    @bentoml.api(batchable=True, max_batch_size=128, max_latency_ms=60_000)
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, float]]:
        """The answers to gathered requests."""
        return self.signature.rows(rows)
