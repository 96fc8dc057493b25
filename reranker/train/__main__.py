"""`python -m reranker.train key=value ...`: the train command under the name that launchers take."""

import sys

from reranker.train.preemption import hold

if __name__ == "__main__":
    hold()
    from reranker.cli import console

    console(["train", *sys.argv[1:]])
