"""What Evidently says of windows: run in its own environment with a folder of parquet files; prints JSON."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.metrics import ValueDrift

METHODS = {"numbers": ("ks", "wasserstein"), "categories": ("psi", "jensenshannon", "chisquare")}


def main() -> None:
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    definition = DataDefinition(numerical_columns=asked["numbers"], categorical_columns=asked["categories"])
    rows = {name: pd.read_parquet(folder / f"{name}.parquet")[[*asked["numbers"], *asked["categories"]]] for name in ("reference", *asked["windows"])}
    data = {name: Dataset.from_pandas(part, data_definition=definition) for name, part in rows.items()}
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in asked["windows"]:
        found[name] = {}
        for kind, methods in METHODS.items():
            for column in asked[kind]:
                report = Report([ValueDrift(column=column, method=method) for method in methods])
                metrics = json.loads(report.run(data[name], data["reference"]).json())["metrics"]
                found[name][column] = {method: float(metric["value"]) for method, metric in zip(methods, metrics, strict=True)}
    print(json.dumps({"versions": {name: version(name) for name in ("evidently", "scipy", "pandas", "numpy")}, "drift": found}))


if __name__ == "__main__":
    main()
