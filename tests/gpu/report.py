"""A run's report for docs/benchmarks: device, date, command, time and images a second of each part, the table."""

import collections
import datetime
import json
import pathlib
import subprocess
import sys

folder, command = pathlib.Path(sys.argv[1]), sys.argv[2]
environment = json.loads((folder / "environment.json").read_text())
machine = environment["machines"][-1]
device = machine["device"]
if device.startswith("cuda"):
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    all = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
    # CUDA counts in an order of its own; with unlike devices all are named.
    device = all[0] if len(set(all)) == 1 else f"{device} of " + "; ".join(all)
else:
    device = f"{machine['cpu']}, {machine['threads']} threads"

seconds, images = collections.Counter(), collections.Counter()
for line in (folder / "events.jsonl").read_text().splitlines():
    event = json.loads(line)
    if event["event"] == "unit-finished":
        unit = event["unit"]
        part = unit.split("-fold")[0] + (", training" if unit.endswith("-train") else ", maps") if "-fold" in unit else unit
        seconds[part] += event["seconds"]
        images[part] += event["images"]

print(f"Device: {device}. Date: {datetime.date.today()}. libtorch {machine['libtorch']}.\n")
print(f"```sh\nlightbox {command}\n```\n")
print("Of a run that was continued, a part's time is that since its last start.\n")
print("| part | images | seconds | images/s |\n|---|---|---|---|")
for part in seconds:
    print(f"| {part} | {images[part]} | {seconds[part]:.1f} | {images[part] / max(seconds[part], 1e-9):.1f} |")
print()
print((folder / "summary.md").read_text())
