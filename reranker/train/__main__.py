"""`python -m reranker.train key=value ...`: the train command under the name that launchers take."""

import sys

from reranker.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
