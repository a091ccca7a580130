"""The process of one contestant: PYTHON process.py prepare|measure JOB RESULT, both files of JSON.

A peer may live in an interpreter that has neither this package nor what it depends on (two builds of ONNX Runtime write
the same files, so onnxruntime-genai wants a virtual environment of its own). So this file is run by its path and loads
the package from where it lies, without putting anything on `sys.path` that would give the peer our libraries.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def main() -> None:
    what, job_file, result_file = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]
    package = HERE.parent
    spec = importlib.util.spec_from_file_location(package.name, package / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[package.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    job = import_module(f"{package.name}.bench.job").Job.read(job_file)
    measure = import_module(f"{package.name}.bench.measure").measure
    ours = import_module(f"{package.name}.base.errors").PythiaExportError
    result: dict[str, Any] = {}
    try:
        began = time.perf_counter()
        contestant = import_module(f"{package.name}.bench.contestants.{job.module}")
        if what == "prepare":
            contestant.prepare(job)
        else:
            figures = measure(job, began, contestant.open_contestant)
            result = {"figures": figures.to_json(), "versions": _versions(contestant.PACKAGES)}
    except ours as e:
        result = {"error": [type(e).__name__, str(e), e.hint]}
    result_file.write_text(json.dumps(result))


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
