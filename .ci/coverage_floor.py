"""Read ``coverage json`` from standard input; fail if a folder is measured below its floor, branches included."""

import json
import sys

FLOORS = {"ipc_twisted/core/": 100, "ipc_twisted/": 95}

summaries = {name: file["summary"] for name, file in json.load(sys.stdin)["files"].items()}
failed = False
for folder, floor in FLOORS.items():
    chosen = [summary for name, summary in summaries.items() if name.startswith(folder)]
    total = sum(summary["num_statements"] + summary["num_branches"] for summary in chosen)
    covered = sum(summary["covered_lines"] + summary["covered_branches"] for summary in chosen)
    print(f"coverage of {folder}: {covered} of {total} statements and branches, {floor} % wanted")
    failed |= total == 0 or 100 * covered < floor * total  # nothing measured: the folder has moved
sys.exit(failed)
