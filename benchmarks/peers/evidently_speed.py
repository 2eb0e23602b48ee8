"""Seconds and peak memory of Evidently's drift of all columns: run in its own environment with two parquet files; prints JSON."""

import json
import sys
import time

import pandas as pd
from evidently import DataDefinition, Dataset, Report
from evidently.presets import DataDriftPreset
from peak import peak_gigabytes


def main() -> None:
    reference, window, asked = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    columns = [*asked["numbers"], *asked["categories"]]
    begin, worked = time.perf_counter(), time.process_time()
    rows = [pd.read_parquet(path, columns=columns) for path in (window, reference)]
    read = time.perf_counter()
    definition = DataDefinition(numerical_columns=asked["numbers"], categorical_columns=asked["categories"])
    current, before = (Dataset.from_pandas(part, data_definition=definition) for part in rows)
    found = json.loads(Report([DataDriftPreset()]).run(current, before).json())
    done, processor = time.perf_counter(), time.process_time() - worked
    judged = sum("ValueDrift" in metric["metric_name"] for metric in found["metrics"])
    print(json.dumps({"read": read - begin, "drift": done - read, "processor": processor, "columns": judged, "gigabytes": peak_gigabytes()}))


if __name__ == "__main__":
    main()
