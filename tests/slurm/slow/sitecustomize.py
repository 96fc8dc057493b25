"""On the ranks' path in these tests: each optimizer step takes TEST_SLOW_STEP seconds longer, so that there is a time
in which a job of a tiny model can be hurt."""

import os
import sys
import threading
import time

if float(os.environ.get("TEST_SLOW_STEP", "0")) and "SLURM_PROCID" in os.environ and "SLURM_STEP_ID" in os.environ:

    def slow() -> None:
        while "reranker.train.engine" not in sys.modules or not hasattr(sys.modules["reranker.train.engine"], "Engine"):
            time.sleep(0.05)
        engine = sys.modules["reranker.train.engine"].Engine
        step = engine.step

        def slower(self, *arguments):
            time.sleep(float(os.environ["TEST_SLOW_STEP"]))
            return step(self, *arguments)

        engine.step = slower

    threading.Thread(target=slow, daemon=True).start()
