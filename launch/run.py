"""Run a module of the code beside this file: `python launch/run.py reranker.train key=value ...`.

`python -m` would take a checkout in the directory that it is started in before everything else: a job that was
submitted from one would run what stands there today, and not its snapshot.
"""

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
