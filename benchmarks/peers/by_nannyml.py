"""What NannyML says of windows: run in its own environment with a folder of parquet files; prints JSON."""

import json
import os
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
warnings.filterwarnings("ignore")  # of its plots

import nannyml  # noqa: E402
import pandas as pd  # noqa: E402

NUMBERS, CATEGORIES = ("kolmogorov_smirnov", "wasserstein"), ("jensen_shannon", "chi2")
# 0.13.1 asks for the name of the method, and then looks for its setting beside it.
EXACT = {**{method: {"calculation_method": "exact"} for method in NUMBERS}, "calculation_method": "exact"}


def main() -> None:
    folder, asked = Path(sys.argv[1]), json.loads(sys.argv[2])
    rows = {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("reference", *asked["windows"])}
    columns = [*asked["numbers"], *asked["categories"]]
    drift = nannyml.UnivariateDriftCalculator(
        column_names=columns, treat_as_categorical=asked["categories"], continuous_methods=list(NUMBERS), categorical_methods=list(CATEGORIES),
        chunk_number=1, computation_params=EXACT,
    ).fit(rows["reference"])  # fmt: skip
    losses = nannyml.DLE(feature_column_names=asked["features"], y_pred="prediction", y_true="actual", metrics=["mae"], chunk_number=1).fit(rows["reference"])
    found, estimates = {}, {}
    for name in asked["windows"]:
        table = drift.calculate(rows[name]).filter(period="analysis").to_df()
        used = {column: CATEGORIES if column in asked["categories"] else NUMBERS for column in columns}
        found[name] = {column: {method: float(table[column, method, "value"].iloc[0]) for method in methods} for column, methods in used.items()}
        estimates[name] = float(losses.estimate(rows[name].drop(columns="actual")).filter(period="analysis").to_df()["mae", "value"].iloc[0])
    versions = {name: version(name) for name in ("nannyml", "lightgbm", "scipy", "pandas", "numpy")}
    print(json.dumps({"versions": versions, "drift": found, "mae": estimates}))


if __name__ == "__main__":
    main()
