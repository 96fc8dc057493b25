"""One contestant of the training benchmark that is not ours, in this process; its figures as JSON on the last line.

    python tests/benchmarks/training_peers.py contestant=NAME micro=1 precision=fp32 steps=5 device=cpu work=DIR

NAME is flagembedding, sentence-transformers, transformers or plain; `micro` groups at a time, as often as 32 groups
need. All see the same groups in the same order with the same weights, AdamW, linear decay, clipping and no dropout,
and their loss is the cross-entropy of the positive in the softmax over its group. A step's seconds lie between the
end of the step before it and its own: fetching, tokenizing and everything else that it took. The first has no such.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.nn import functional
from torch.utils.data import DataLoader, SequentialSampler
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler

from tests.benchmarks.record import SEED, command_line
from tests.benchmarks.training_inputs import CLIP, GROUPS, LENGTH, LR, PASSAGES, WEIGHT_DECAY


def main() -> None:
    settings = command_line(sys.argv[1:])
    contestants = {
        "flagembedding": flagembedding, "sentence-transformers": sentence_transformers, "transformers": transformers_,
        "plain": plain,
    }  # fmt: skip
    steps = contestants[settings["contestant"]](settings)
    ends = steps.ends
    found: dict[str, Any] = {"seconds": [after - before for before, after in itertools.pairwise(ends)],
                             "losses": steps.losses}  # fmt: skip
    if settings["device"] == "cuda":
        found["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 1e6
    print(json.dumps(found))


class Steps(TrainerCallback):
    """When each optimizer step ended, and its loss."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def end(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.end()

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


def arguments(kind: Any, settings: dict[str, str], output: str, **others: Any) -> Any:
    """TrainingArguments that are the same for everyone."""
    micro = int(settings["micro"])
    values: dict[str, Any] = {
        "output_dir": output, "per_device_train_batch_size": micro, "gradient_accumulation_steps": GROUPS // micro,
        "max_steps": int(settings["steps"]), "learning_rate": LR, "weight_decay": WEIGHT_DECAY, "max_grad_norm": CLIP,
        "lr_scheduler_type": "linear", "warmup_steps": 0, "logging_steps": 1, "save_strategy": "no", "seed": SEED,
        "report_to": "none", "disable_tqdm": True, "dataloader_num_workers": 1, "use_cpu": settings["device"] == "cpu",
        "bf16": settings["precision"] == "bf16", "fp16": settings["precision"] == "fp16", "remove_unused_columns": False,
        "train_sampling_strategy": "sequential",
    }  # fmt: skip
    return kind(**{**values, **others})


def read_groups(settings: dict[str, str]) -> list[dict[str, Any]]:
    with open(Path(settings["work"]) / "ordered.jsonl", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def flagembedding(settings: dict[str, str]) -> Steps:
    """Its encoder-only runner. Query and passage limits that sum to 512: its limit for the pair is their sum."""
    from FlagEmbedding.abc.finetune.reranker import (
        AbsRerankerDataArguments,
        AbsRerankerModelArguments,
        AbsRerankerTrainingArguments,
    )
    from FlagEmbedding.finetune.reranker.encoder_only.base import EncoderOnlyRerankerRunner

    work, steps = Path(settings["work"]), Steps()
    with tempfile.TemporaryDirectory(dir=work) as output:
        runner = EncoderOnlyRerankerRunner(
            model_args=AbsRerankerModelArguments(model_name_or_path=str(work / "model")),
            data_args=AbsRerankerDataArguments(
                train_data=[str(work / "ordered.jsonl")], cache_path=str(work / "datasets"), train_group_size=PASSAGES,
                query_max_len=32, passage_max_len=LENGTH - 32,
            ),
            training_args=arguments(AbsRerankerTrainingArguments, settings, output),
        )  # fmt: skip
        runner.trainer.add_callback(steps)
        runner.run()
    return steps


def sentence_transformers(settings: dict[str, str]) -> Steps:
    """CrossEncoderTrainer with ListNetLoss. Its target is the softmax of the labels: of 200 and 0 that is 1 and 0.

    `mini_batch` is the loss's mini_batch_size: pairs of a forward; by default as many as there are groups, -1: all.
    """
    from datasets import Dataset
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss

    def in_order(dataset: Any, **options: Any) -> Any:
        return DefaultBatchSampler(SequentialSampler(dataset), **options)

    work, steps, groups = Path(settings["work"]), Steps(), read_groups(settings)
    dataset = Dataset.from_dict({
        "query": [group["query"] for group in groups], "docs": [[*group["pos"], *group["neg"]] for group in groups],
        "labels": [[200.0] + [0.0] * (PASSAGES - 1)] * len(groups),
    })  # fmt: skip
    model = CrossEncoder(str(work / "model"), max_length=LENGTH, device=settings["device"])
    mini_batch = int(settings["mini_batch"]) if "mini_batch" in settings else None
    with tempfile.TemporaryDirectory(dir=work) as output:
        CrossEncoderTrainer(
            model=model, args=arguments(CrossEncoderTrainingArguments, settings, output, batch_sampler=in_order),
            train_dataset=dataset, loss=ListNetLoss(model, mini_batch_size=mini_batch), callbacks=[steps],
        ).train()  # fmt: skip
    return steps


class ListwiseTrainer(Trainer):
    """The least that makes a reranker's trainer of transformers' own."""

    loss_is_scaled_for_ga = True

    def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
        return listwise(model(**inputs).logits) / GROUPS

    def _get_train_sampler(self, *given: Any) -> Any:
        sampler = super()._get_train_sampler(*given)
        if isinstance(sampler, BatchRebalanceSampler):
            sampler.shuffle = False
        return sampler


def listwise(logits: torch.Tensor) -> torch.Tensor:
    scores_GP = logits.view(-1, PASSAGES).float()
    return functional.cross_entropy(scores_GP, scores_GP.new_zeros(len(scores_GP), dtype=torch.long), reduction="sum")


def collator(settings: dict[str, str]) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(Path(settings["work"]) / "model")

    def collate(groups: list[dict[str, Any]]) -> Any:
        pairs = [(group["query"], text) for group in groups for text in (*group["pos"], *group["neg"])]
        return tokenizer(pairs, truncation=True, max_length=LENGTH, padding=True, return_tensors="pt")

    return collate


def transformers_(settings: dict[str, str]) -> Steps:
    """`sampling=batch_rebalance` is transformers' own way to less padding: the groups of a step sorted by length into
    micro-batches of like cost, `micro` groups in the mean."""
    from datasets import Dataset

    work, steps, groups = Path(settings["work"]), Steps(), read_groups(settings)
    lengths = [max(pairs) for pairs in json.loads((work / "lengths.json").read_text("utf-8"))]
    model = AutoModelForSequenceClassification.from_pretrained(work / "model")
    sampling = settings.get("sampling", "sequential")
    with tempfile.TemporaryDirectory(dir=work) as output:
        ListwiseTrainer(
            model=model, args=arguments(TrainingArguments, settings, output, train_sampling_strategy=sampling),
            train_dataset=Dataset.from_list(groups).add_column("length", lengths),
            data_collator=collator(settings), callbacks=[steps],
        ).train()  # fmt: skip
    return steps


def plain(settings: dict[str, str]) -> Steps:
    """A PyTorch loop without anything around it: padded, autocast for 16 bits, fp16 with a GradScaler."""
    steps, micro, device, total = Steps(), int(settings["micro"]), settings["device"], int(settings["steps"])
    groups: Any = read_groups(settings)
    batches = iter(DataLoader(groups, micro, collate_fn=collator(settings), num_workers=1))
    model = AutoModelForSequenceClassification.from_pretrained(Path(settings["work"]) / "model").to(device).train()
    optimizer = torch.optim.AdamW(parameter_groups(model), lr=LR)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings["precision"])
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    for _ in range(total):
        loss_sum = torch.zeros((), device=device)
        for batch in itertools.islice(batches, GROUPS // micro):
            with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
                loss = listwise(model(**batch.to(device)).logits) / GROUPS
            scaler.scale(loss).backward()
            loss_sum += loss.detach()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        decay.step()
        steps.end()
        steps.losses.append(loss_sum.item())
    return steps


def parameter_groups(model: torch.nn.Module) -> list[dict[str, Any]]:
    parameters = list(model.parameters())
    return [{"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip


if __name__ == "__main__":
    main()
