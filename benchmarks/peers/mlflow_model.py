"""The peer MLflow: a pyfunc model around the signature, which `mlflow models serve` serves."""

from typing import Any

import mlflow
import pandas as pd
from mlflow.models import set_model


class Champion(mlflow.pyfunc.PythonModel):
    """The signature on a table of rows."""

    def load_context(self, context: Any) -> None:
        """Load the SavedModel; mlflow calls this once."""
        from signature import Signature

        self.signature = Signature()

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> list[dict[str, float]]:
        """The answers to a table of rows."""
        rows = model_input.astype(object).where(model_input.notna(), None).to_dict("records")
        return self.signature.rows(rows)


set_model(Champion())
