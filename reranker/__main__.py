"""`python -m reranker <command> ...`, the same as `reranker <command> ...`."""

import sys

from reranker.cli import main

sys.exit(main())
