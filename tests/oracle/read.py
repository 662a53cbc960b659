"""Reads a run as docs/results.md shows it: its python blocks are run as they stand, and what they find is compared.

    python tests/oracle/read.py RUN FILES DOCS

FILES holds maps.safetensors, maps.npy and maps.txt as `lightbox maps` wrote them.
"""

import json
import re
import sys

import jsonschema
import numpy as np

run, files, docs = sys.argv[1:]
blocks = re.findall(r"```python\n(.*?)```", open(f"{docs}/results.md").read(), re.S)
assert len(blocks) == 4, len(blocks)
found = []
for block in blocks:
    scope = {"run": run, "files": files}
    exec(block, scope)
    found.append(scope)
pandas, polars, duckdb, maps = found

summary = json.load(open(f"{run}/summary.json"))
comparisons = json.load(open(f"{run}/comparisons.json"))
for name, value in [("summary-4", summary), ("comparisons-1", comparisons)]:
    jsonschema.Draft202012Validator(json.load(open(f"{docs}/schemas/{name}.schema.json"))).validate(value)

# The three libraries find what the summary says, where no map failed.
wanted = {
    (c["model"], c["explainer"]): c["mean"]
    for c in summary["summary"]["cells"]
    if c["metric"] == "pixel-auprc" and c["state"] == "value" and c["failed"] == 0
}
assert len(wanted) > 3
of_polars = {(r["model"], r["explainer"]): r["value"] for r in polars["table"].iter_rows(named=True)}
of_duckdb = {(model, explainer): mean for model, explainer, mean, _ in duckdb["table"]}
for (model, explainer), mean in wanted.items():
    for value in [pandas["table"].loc[model, explainer], of_polars[model, explainer], of_duckdb[model, explainer]]:
        assert abs(value - mean) < 1e-9, (model, explainer, value, mean)
assert len(pandas["by_size"]) > 3 and pandas["images"]["mask"].max() < 1
assert pandas["scores"].dtypes["value"] == np.float64
assert len(maps["names"]) == len(maps["maps"]) == len(maps["same"])
for name, map in zip(maps["names"], maps["same"]):
    assert np.array_equal(maps["maps"][name], map), name
print(f"{len(wanted)} cells, {len(maps['names'])} maps read by pandas, polars, DuckDB, NumPy and safetensors")
