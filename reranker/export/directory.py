"""What every model directory that we write has in common: stock files, whole, which whoever reads one can all read.

In: a model and its tokenizer, and a directory that is being made. Out: config.json, model.safetensors (several, where
they are large) and the tokenizer in it, loaded by transformers 4 and 5 alike; the limit of a pair, for servers; what
stands before every query, for sentence-transformers.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reranker.data.tokenize import CONFIG_KEY
from reranker.errors import UserError
from reranker.files import read_json, write_json
from reranker.progress import without_hub_bars

if TYPE_CHECKING:
    import torch  # seconds, for `reranker push`


def save(model: Any, tokenizer: Any, staging: Path, state: Mapping[str, torch.Tensor] | None = None) -> None:
    """Write the stock files. `state`: the weights that are written; None: all of the model."""
    for key in ("is_local", "local_files_only", "name_or_path"):
        # How the base was loaded here says nothing about the model that is written.
        tokenizer.init_kwargs.pop(key, None)
    # save_pretrained imports deepspeed, which searches for an accelerator and writes of it to standard output.
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with without_hub_bars():
        model.save_pretrained(staging, state_dict=None if state is None else dict(state))
        tokenizer.save_pretrained(staging)
    if contract := getattr(model.config, CONFIG_KEY, None):
        # TEI and vLLM take from here how long a pair may be; CrossEncoder does not read it.
        limit = {"max_seq_length": contract["max_length"], "do_lower_case": False}
        if prefix := contract.get("query_prefix"):
            limit |= {"transformer_task": "sequence-classification"}
            _write_prompt(staging, prefix)
        write_json(staging / "sentence_bert_config.json", limit)
    written = read_json(staging / "tokenizer_config.json")
    if written["tokenizer_class"] == "TokenizersBackend":
        # transformers 4 knows the same class by this name only, and 5 reads both.
        write_json(staging / "tokenizer_config.json", written | {"tokenizer_class": "PreTrainedTokenizerFast"})


PROMPT_FILES = ("modules.json", "config_sentence_transformers.json")
"""Where CrossEncoder finds the prefix of a query; only a model that has one has these files."""


def _write_prompt(staging: Path, prefix: str) -> None:
    """Let CrossEncoder put a prefix before each query.

    Since sentence-transformers 5.4 it reads prompts where it finds a modules.json, and puts the default one before the
    first text of a pair, without a blank between. There is none for the second text.
    """
    module = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    write_json(staging / PROMPT_FILES[0], [module])
    prompts = {"model_type": "CrossEncoder", "prompts": {"query": prefix}, "default_prompt_name": "query"}
    write_json(staging / PROMPT_FILES[1], prompts)


def finish(staging: Path) -> None:
    """Give all files the mode of the model card, which must be there, and bring them to the disk."""
    mode = (staging / "README.md").stat().st_mode
    for path in (path for path in staging.rglob("*") if path.is_file()):
        path.chmod(mode)  # safetensors makes its file readable by its owner only
        with open(path, "rb") as stream:
            os.fsync(stream.fileno())


def is_export(directory: Path) -> bool:
    """Whether the directory is an earlier export: a run directory has a config.json as well."""
    config = directory / "config.json"
    return config.is_file() and CONFIG_KEY in read_json(config)


def check_output(output: Path, ours: Callable[[Path], bool] = is_export, made: str = "an earlier export") -> None:
    """Refuse to replace anything but what the same command has made before. Raises UserError."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not output.is_dir() or not ours(output):
        kind = "a directory that holds something else" if output.is_dir() else "a file"
        raise UserError("output", f"{output}, {kind}", f"a new directory or {made}", "choose another one")
