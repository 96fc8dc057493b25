"""Run `reranker train` several times in one process: `train_many.py FILE`, a JSON list of override lists.

Importing torch and deepspeed takes longer than a tiny training; each training joins and leaves the ranks
anew. Ends with the first exit code that is not 0.
"""

import json
import sys

from reranker.cli import main

if __name__ == "__main__":
    for overrides in json.load(open(sys.argv[1], encoding="utf-8")):
        if code := main(["train", *overrides]):
            sys.exit(code)
