"""How long `holdfast demo` takes as a whole process, and how much memory: wall and CPU seconds, peak MB, per step.

python benchmarks/demo.py [--out results.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def measure(words: list[str]) -> dict[str, object]:
    """Run one command and time it and the steps that it announces.

    Args:
        words: the command, without an `--out`; a temporary folder is given to it.
    """
    began = time.monotonic()
    marks: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        command = [*words, "--out", str(Path(folder) / "run")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            assert process.stdout is not None
            # A step is announced when it begins, and the line arrives when it is said.
            said = (line.split() for line in process.stdout if line.startswith("step ") and " of " in line)
            marks.extend((words[4], time.monotonic() - began) for words in said)
    wall = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    ends = [at for _, at in marks[1:]] + [wall]
    return {
        "command": "holdfast " + " ".join(words[3:]),
        "exit code": process.returncode,
        "wall seconds": round(wall, 1),
        "CPU seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak MB": round(used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)),
        "steps": [{"verb": verb, "seconds": round(end - at, 1)} for (verb, at), end in zip(marks, ends, strict=True)],
        "start-up seconds": round(marks[0][1], 1) if marks else None,
        "cores": os.cpu_count(),
        "load before": round(os.getloadavg()[0], 2),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    found = measure([sys.executable, "-m", "holdfast", "run", args.recipe])
    print(json.dumps(found, indent=1))
    if args.out:
        Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main()
