"""Seconds and peak memory of NannyML's univariate drift of all columns: run in its own environment with two parquet files; prints JSON."""

import json
import os
import sys
import time
import warnings

os.environ["NML_DISABLE_USAGE_LOGGING"] = "1"
warnings.filterwarnings("ignore")

import nannyml  # noqa: E402
import pandas as pd  # noqa: E402
from peak import peak_gigabytes  # noqa: E402


def main() -> None:
    reference, window, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    columns = [*asked["numbers"], *asked["categories"]]
    begin, worked = time.perf_counter(), time.process_time()
    current, before = (pd.read_parquet(path, columns=columns) for path in (window, reference))
    read = time.perf_counter()
    drift = nannyml.UnivariateDriftCalculator(column_names=columns, treat_as_categorical=asked["categories"], chunk_number=1).fit(before)
    table = drift.calculate(current).filter(period="analysis").to_df()
    done, processor = time.perf_counter(), time.process_time() - worked
    judged = sum((column, "jensen_shannon", "value") in table.columns for column in columns)
    print(json.dumps({"read": read - begin, "drift": done - read, "processor": processor, "columns": judged, "gigabytes": peak_gigabytes()}))


if __name__ == "__main__":
    main()
