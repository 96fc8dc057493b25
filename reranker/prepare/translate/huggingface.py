"""A backend: translation models of Hugging Face on the devices at hand, a process for each.

In: batches of texts. Out: an `Outcome` for each, in order. Texts are grouped by length into batches of at most
`batch_tokens` tokens, padding included; in float32 a text's translation does not depend on its batch, nor on the number
of processes. A text too long for the model is translated in parts, cut at sentence ends. A translation that does not
end within `max_new_tokens` is a failure, never a text cut short.
"""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reranker.errors import UserError
from reranker.files import sha256
from reranker.prepare.translate.backend import ERROR, Outcome, check_counts, check_whole
from reranker.prepare.translate.generation import Generator, Prompter, Recipe, check_recipe
from reranker.prepare.translate.segments import split_text

_recipe: Recipe
_device: str
"""What this process, a worker, translates with, and where."""


class HuggingFace:
    """A `Backend`. The weights are loaded with the first text, so that a dry run goes without.

    Args:
        model: directory or hub name.
        num_beams: 1: greedy.
        max_new_tokens: tokens of a translation at most.
        batch_tokens: tokens of a batch of inputs at most, padding included; one text at least.
        processes: 0: one for each visible GPU, or one on a CPU; 1: this process itself.
        device: auto, cpu or cuda.
        dtype: float32, or float16 or bfloat16, where rounding may depend on the batch.
        template: what the model reads, with {text}, {source} and {target}; None: the text, or a prompt for causal ones.
        batch_texts: texts of a call: what a kill loses.

    Raises UserError for settings that cannot be, a model that is not there and a language that it does not know.
    """

    concurrency = 1
    price = 0.0

    def __init__(
        self, source: str, target: str, *, model: str, revision: str | None = None, num_beams: int = 1,
        max_new_tokens: int = 512, batch_tokens: int = 4096, processes: int = 0, device: str = "auto",
        dtype: str = "float32", template: str | None = None, batch_texts: int = 512, seconds_per_text: float = 0.0,
    ) -> None:  # fmt: skip
        import transformers

        recipe = Recipe(model, source, target, revision, num_beams, max_new_tokens, dtype, template)
        check_recipe(recipe)
        check_counts("backend", self.concurrency, batch_texts, self.price, seconds_per_text)
        check_whole("backend", batch_tokens=(batch_tokens, 1), processes=(processes, 0))
        self.batch_texts, self.seconds_per_text = batch_texts, seconds_per_text
        self._recipe, self._batch_tokens = recipe, batch_tokens
        self._devices = _devices(device, processes)
        self._prompter = Prompter(recipe)
        commit = getattr(self._prompter.config, "_commit_hash", None)
        # A directory has no commit: one that was trained on under the same name is another model.
        version = _content(Path(model)) if os.path.isdir(model) else commit
        settings = {**asdict(recipe), "version": version, "transformers": transformers.__version__.split(".")[0]}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode("utf-8")).hexdigest()[:16]
        self.identity = f"huggingface {model} {digest}"
        self._generator: Generator | None = None
        self._pool: ProcessPoolExecutor | None = None

    def translate(self, texts: Sequence[str]) -> list[Outcome]:
        """One outcome for each text, in order. Raises UserError for a process that was killed."""
        parts = [self._split(text) for text in texts]
        # A part of white space alone is kept as it is.
        pieces = sorted({piece for found in parts for piece, _ in found or () if piece.strip()})
        inputs = self._prompter.ids(pieces) if pieces else []
        batches = list(batches_by_length([len(ids) for ids in inputs], self._batch_tokens))
        made: dict[str, str | None] = {}
        for batch, translations in zip(
            batches, self._generate([[inputs[place] for place in batch] for batch in batches]), strict=True
        ):
            made.update(zip((pieces[place] for place in batch), translations, strict=True))
        return [self._outcome(found, made) for found in parts]

    def close(self) -> None:
        """End the processes and let go of the weights."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)
        self._pool = self._generator = None

    def _split(self, text: str) -> list[tuple[str, str]] | None:
        """(part, separator) of a text, each part short enough for the model; None: there are no such parts."""
        most, tokens = self._prompter.most, len(self._prompter.ids([text])[0])
        if tokens <= most:
            return [(text, "")]
        limit = len(text.encode("utf-8")) * most // tokens
        while limit >= 4:
            parts = split_text(text, limit)
            if all(len(ids) <= most for ids in self._prompter.ids([part for part, _ in parts])):
                return parts
            limit = limit * 3 // 4
        return None

    def _outcome(self, parts: list[tuple[str, str]] | None, made: dict[str, str | None]) -> Outcome:
        if parts is None:
            return Outcome(None, f"{ERROR}too long: no part of it fits {self._prompter.most} tokens")
        texts = [made[part] if part.strip() else part for part, _ in parts]
        whole = [text for text in texts if text is not None]
        if len(whole) < len(texts):
            return Outcome(None, f"{ERROR}truncated: no end within max_new_tokens={self._recipe.max_new_tokens}")
        return Outcome("".join(text + separator for text, (_, separator) in zip(whole, parts, strict=True)))

    def _generate(self, batches: Sequence[list[list[int]]]) -> Iterable[list[str | None]]:
        if len(self._devices) == 1:
            if self._generator is None:
                self._generator = Generator(self._recipe, self._devices[0], self._prompter)
            yield from map(self._generator.translate, batches)
            return
        if self._pool is None:
            # Not forked: CUDA does not live in a copy of a process that used it.
            context = multiprocessing.get_context("spawn")
            devices = context.Queue()
            for device in self._devices:
                devices.put(device)
            self._pool = ProcessPoolExecutor(len(self._devices), context, _start, (self._recipe, devices))
        try:
            yield from self._pool.map(_translate, batches)
        except BrokenProcessPool:
            self.close()
            raise UserError("backend.processes", f"one of {len(self._devices)} processes killed",
                            "processes that live to the end",
                            "see whether memory ran out, or lower batch_tokens") from None  # fmt: skip


def _content(directory: Path) -> list[list[str]]:
    """[name, sha256] of the files that a model is loaded from."""
    suffixes = (".safetensors", ".bin", ".json", ".model", ".spm", ".txt", ".jinja")
    files = sorted(path for path in directory.iterdir() if path.suffix in suffixes and path.is_file())
    return [[path.name, sha256(path)] for path in files]


def batches_by_length(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """The places of inputs in batches of like length, the longest first; a batch is padded to at most `most` tokens.

    An input that is longer is a batch of its own.
    """
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > most:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _devices(device: str, processes: int) -> list[str]:
    """The device of each process. Raises UserError for one that is not there."""
    import torch

    gpus = torch.cuda.device_count()
    if device not in ("auto", "cpu", "cuda"):
        raise UserError("backend.device", repr(device), "auto, cpu or cuda", "change the value")
    if device == "cuda" and not gpus:
        raise UserError("backend.device", "cuda without a visible GPU", "auto, cpu or a GPU", "say backend.device=cpu")
    if device == "cpu" or not gpus:
        return ["cpu"] * (processes or 1)
    return [f"cuda:{number % gpus}" for number in range(processes or gpus)]


def _start(recipe: Recipe, devices: Any) -> None:
    global _recipe, _device
    # Ctrl-C goes to all processes of a terminal; the first one ends these.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _recipe, _device = recipe, devices.get()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _translate(batch: list[list[int]]) -> list[str | None]:
    return _loaded().translate(batch)


@functools.cache
def _loaded() -> Generator:
    # With the first batch: what a process raises as it starts would not be told.
    return Generator(_recipe, _device)
