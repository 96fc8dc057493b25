"""`python -m reranker.train key=value ...`: the train command under the name that launchers take."""

import sys

from reranker.cli import console

if __name__ == "__main__":
    console(["train", *sys.argv[1:]])
