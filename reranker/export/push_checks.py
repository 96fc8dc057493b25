"""What `reranker push` asks of a directory before anything is sent: a whole export, and nothing besides.

In: a directory. Out: its files, or a UserError with the first thing that is wrong: a file of an export that is missing
or cut short, a card that is none, a hidden file, a gate that the model has failed.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from reranker.errors import UserError, shorten
from reranker.export.directory import is_export
from reranker.files import read_json

AGAIN = "export the run again"
CARD = "README.md"
GATE = "gate.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def files_to_push(directory: Path, force: bool = False) -> dict[str, Path]:
    """{name in the repository: path} of all files, in order. Raises UserError.

    `force`: a model that has failed its gate is taken as well.
    """
    if not directory.is_dir():
        raise UserError("model", f"{directory}, which is no directory", "an exported model", "export the run first")
    if not is_export(directory):
        raise UserError("model", f"{directory}, whose config.json is not of an export",
                        "what reranker export writes", "export the run, and name model/ in it")  # fmt: skip
    found = {path.relative_to(directory).as_posix(): path for path in sorted(directory.rglob("*")) if path.is_file()}
    for name in found:
        # A .git, an editor's copy, a file of secrets: nobody would look for them in a repository of a model.
        if any(part.startswith(".") for part in Path(name).parts):
            raise UserError(directory / name, "a hidden file or directory", "the files of an export alone",
                            "move it elsewhere")  # fmt: skip
    for name in (*TOKENIZER, CARD, *_weights(directory)):
        if name not in found:
            raise UserError(directory / name, "no such file", "a whole export", AGAIN)
    for name in (name for name in found if name.endswith(".safetensors")):
        _check_weights(found[name])
    _check_card(found[CARD])
    if failed_gate(directory) and not force:
        raise UserError(directory / GATE, "a gate that this model has failed", "a model that has passed it",
                        "train a better one, or say force=true to push it all the same")  # fmt: skip
    return found


def failed_gate(directory: Path) -> bool:
    """Whether the model was held against a gate and has failed it; without a file of it none was run."""
    path = directory / GATE
    if not path.is_file():
        return False
    passed = told.get("passed") if isinstance(told := read_json(path, AGAIN), dict) else None
    if not isinstance(passed, bool):
        raise UserError(path, f"passed: {shorten(passed)}", "true or false", AGAIN)
    return not passed


def _weights(directory: Path) -> list[str]:
    """The names of the files that hold the weights, as they should be there."""
    if not (directory / INDEX).is_file():
        return [WEIGHTS]
    index = read_json(directory / INDEX, AGAIN)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names:
        raise UserError(directory / INDEX, "no weight_map", "the files of the weights", AGAIN)
    return sorted(set(names.values()))


def _check_weights(path: Path) -> None:
    """Raise UserError for a file that is cut short, or none: its header says how long it is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise UserError(path, f"weights that cannot be read ({error})", "a whole safetensors file", AGAIN) from None


def _check_card(path: Path) -> None:
    """Raise UserError for a card that the hub's client cannot read, or that has no front matter."""
    from huggingface_hub import ModelCard, logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()  # of a card without front matter it warns; here that is an error
    try:
        card = ModelCard(path.read_text("utf-8"))
    except (ValueError, TypeError, yaml.YAMLError) as error:  # UnicodeDecodeError is a ValueError
        raise UserError(path, f"a model card that cannot be read ({shorten(error, 160)})", "Markdown behind YAML",
                        AGAIN) from None  # fmt: skip
    finally:
        logging.set_verbosity(before)
    if not card.data.to_dict():
        raise UserError(path, "a model card without front matter", "language, license, base model and tags in front",
                        AGAIN)  # fmt: skip
