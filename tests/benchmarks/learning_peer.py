"""FlagEmbedding trained on the groups of the learning benchmark, in this process; its losses as JSON on the last line.

    python tests/benchmarks/learning_peer.py work=DIR output=DIR recipe=demo steps=50 precision=bf16 micro=4

Its encoder-only runner with the weights, groups, order, shown passages, learning rates, weight decay, clipping and seed of
ours, dropout 0. Texts were cut beforehand, so its own limits cut nothing. One thing is set in its trainer: the rate of a
warm-up's first step, which is 0 with transformers and a step's share of the peak with ours.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from FlagEmbedding.abc.finetune.reranker import (
    AbsRerankerDataArguments,
    AbsRerankerModelArguments,
    AbsRerankerTrainingArguments,
)
from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner

from reranker.train.schedule import learning_rate
from tests.benchmarks.learning_inputs import CLIP, GROUPS, LR, LR_WARMUP, WEIGHT_DECAY, shape_of
from tests.benchmarks.record import SEED, command_line
from tests.benchmarks.training_peers import Steps


def main() -> None:
    settings = command_line(sys.argv[1:])
    work, output, total = Path(settings["work"]), settings["output"], int(settings["steps"])
    micro, steps, shape = int(settings["micro"]), Steps(), shape_of(settings["recipe"])
    runner = EncoderOnlyRerankerRunner(
        model_args=AbsRerankerModelArguments(model_name_or_path=str(work / "model")),
        data_args=AbsRerankerDataArguments(
            train_data=[str(work / "ordered.jsonl")], cache_path=str(work / "datasets"), train_group_size=shape.passages,
            query_max_len=shape.length, passage_max_len=512 - shape.length,
        ),
        training_args=AbsRerankerTrainingArguments(
            output_dir=output, per_device_train_batch_size=micro, gradient_accumulation_steps=GROUPS // micro,
            max_steps=total, learning_rate=LR, weight_decay=WEIGHT_DECAY, max_grad_norm=CLIP, logging_steps=1,
            save_strategy="no", seed=SEED, report_to="none", disable_tqdm=True, dataloader_num_workers=1, use_cpu=True,
            bf16=settings["precision"] == "bf16", remove_unused_columns=False, train_sampling_strategy="sequential",
        ),
    )  # fmt: skip
    trainer = runner.trainer

    def create_scheduler(num_training_steps: int, optimizer: Any = None) -> Any:
        trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or trainer.optimizer, lambda step: learning_rate(step, total, 1.0, LR_WARMUP)
        )
        trainer._created_lr_scheduler = True
        return trainer.lr_scheduler

    trainer.create_scheduler = create_scheduler
    trainer.add_callback(steps)
    runner.run()
    seconds = [after - before for before, after in itertools.pairwise(steps.ends)]
    print(json.dumps({"seconds": seconds, "losses": steps.losses}))


if __name__ == "__main__":
    main()
