"""On the ranks' path in these tests: what a job starts first stands still before its optimizer step of number TEST_HOLD
(from 0) until the file TEST_RELEASE is there. So a job of a tiny model can be hurt where it is to be, however fast it or
the machine is."""

import os
import sys
import threading
import time
from pathlib import Path

if "TEST_HOLD" in os.environ and "SLURM_STEP_ID" in os.environ and os.environ.get("SLURM_RESTART_COUNT", "0") == "0":

    def hold() -> None:
        while not hasattr(sys.modules.get("reranker.train.engine"), "Engine"):
            time.sleep(0.01)
        engine = sys.modules["reranker.train.engine"].Engine
        step, steps = engine.step, 0

        def held(self, *arguments):
            nonlocal steps
            while steps == int(os.environ["TEST_HOLD"]) and not Path(os.environ["TEST_RELEASE"]).exists():
                time.sleep(0.05)
            steps += 1
            return step(self, *arguments)

        engine.step = held

    threading.Thread(target=hold, daemon=True).start()
