"""How an exported model is used: the section of its card, for each library what it takes to score a pair as trained."""

from __future__ import annotations

import json

from reranker.data.tokenize import Contract
from reranker.export.onnx import FILE
from reranker.export.quantize import INT8_FILE, Agreement


def usage(name: str, contract: Contract, onnx: bool, int8: Agreement | None = None) -> str:
    """The section of the card. `name` is what the model is loaded by; `onnx`: whether it lies there in ONNX as well;
    `int8`: how far it agrees in 8 bits, if it lies there so.
    """
    flags = f"path, use_fp16=False, max_length={contract.max_length}"
    flags += f", query_max_length={contract.query_max_length}" if contract.query_max_length else ""
    prefixes = [("query", contract.query_prefix), ("passage", contract.passage_prefix)]
    if told := [f"    {key}_instruction_for_rerank={_quoted(prefix)},\n" for key, prefix in prefixes if prefix]:
        flags = f"\n    {flags},\n{''.join(told)}"
    asked, one = _behind(contract.query_prefix, "query"), _behind(contract.passage_prefix, "passage")
    every = f"[{one} for passage in passages]" if contract.passage_prefix else "passages"
    return f"""## Usage

{_cutting(contract)}{_prefixes(contract)}

### transformers

`exp_normalize` turns the scores of one query's passages into shares that add up to 1.

```python
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def exp_normalize(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


path = "{name}"  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSequenceClassification.from_pretrained(path).eval()

query = "파이썬에서 리스트를 정렬하는 방법은?"
passages = ["list.sort()는 리스트를 제자리에서 정렬합니다.", "튜플은 바꿀 수 없는 시퀀스입니다."]
inputs = tokenizer(
    [{asked}] * len(passages), {every},
    padding=True, truncation="{contract.truncation}", max_length={contract.max_length}, return_tensors="pt",
)
with torch.no_grad():
    scores = model(**inputs).logits[:, 0].float().numpy()
print(scores, exp_normalize(scores))
```

### sentence-transformers

`config.json` sets the activation to the identity, so `predict` answers with the raw scores, as above; pass
`activation_fn=torch.nn.Sigmoid()` for values between 0 and 1.

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder(path)
print(model.predict([(query, {one}) for passage in passages]))
```
{_onnx(int8) if onnx else ""}
### FlagEmbedding

```python
from FlagEmbedding import FlagReranker

reranker = FlagReranker({flags})
print(reranker.compute_score([(query, passage) for passage in passages]))
```

### text-embeddings-inference, vLLM

Both find what they need in the files: one label, `max_seq_length` in `sentence_bert_config.json`, vLLM the activation
too. By their sources; neither was run with this model. A pair that is too long they cut, if at all, by their own rules.
text-embeddings-inference answers `/rerank` with a sigmoid of the score unless it is asked with `"raw_scores": true`,
vLLM with the raw score.{_served(contract)}

### reranker

The framework that trained it makes and cuts pairs exactly as the training did, whatever the settings. With
`long="windows"` it scores all of a passage that is too long, window by window: the best window's score is its own.

```python
from reranker import Reranker

print(Reranker(path).score(query, passages))
```

```bash
echo '{{"query": "파이썬 리스트 정렬", "passages": ["list.sort()", "튜플"]}}' | reranker score model=MODEL
```"""


def _onnx(int8: Agreement | None) -> str:
    quantised = f"""
`{INT8_FILE}` is the same in 8 bits (`model_kwargs={{"file_name": "model_quantized.onnx"}}`). Against the model:
{int8}.
""" if int8 else ""  # fmt: skip
    return f"""
### ONNX Runtime

`{FILE}` holds these weights and computes in float32. It is what `CrossEncoder(path, backend="onnx")`, optimum and
text-embeddings-inference load; its scores are those of the model to 1e-4. By hand, in this directory:

```python
import onnxruntime

session = onnxruntime.InferenceSession(f"{{path}}/{FILE}", providers=["CPUExecutionProvider"])
taken = {{one.name: inputs[one.name].numpy() for one in session.get_inputs()}}
print(session.run(["logits"], taken)[0][:, 0])
```
{quantised}"""


def _quoted(prefix: str) -> str:
    """As Python, and people, read it."""
    return json.dumps(prefix, ensure_ascii=False)


def _behind(prefix: str, name: str) -> str:
    """A variable of the snippets with its prefix."""
    return f"{_quoted(prefix)} + {name}" if prefix else name


def _prefixes(contract: Contract) -> str:
    """What stands before the texts, and which library puts it there."""
    shown = [
        f"before every {name} stands `{_quoted(prefix)}`"
        for name, prefix in (("query", contract.query_prefix), ("passage", contract.passage_prefix)) if prefix
    ]  # fmt: skip
    if not shown:
        return ""
    text = f"\n\nThe model was trained with instructions: {' and '.join(shown)}, with no blank but its own between."
    text += " They are tokenized, counted and cut with their text. `reranker` puts them there by itself,"
    text += " `FlagReranker` where it is told as below"
    if contract.query_prefix:
        text += "; `CrossEncoder` of sentence-transformers 5.4 or newer finds the query's in the files as its default"
        text += " prompt (tried with 6.2; an older one must be given it with the query)"
    if contract.passage_prefix:
        text += "; `CrossEncoder` has no setting for the passage's, which stands in its call"
    return text + ". All others are given texts with them."


def _served(contract: Contract) -> str:
    """What a server's client must do."""
    if not contract.query_prefix and not contract.passage_prefix:
        return ""
    return " Neither puts an instruction before a text: send query and passages with them."


def _cutting(contract: Contract) -> str:
    """Which library cuts a long pair as the training did."""
    text = _cutting_of_pairs(contract)
    if contract.passage_max_length:
        text += (
            f" Before that a passage is cut to {contract.passage_max_length} tokens. No library below but"
            " `reranker` has such a limit: what they make of a longer passage is not what the model was trained on."
        )
    return text


def _cutting_of_pairs(contract: Contract) -> str:
    text = f"A pair has at most {contract.max_length} tokens, special tokens included. "
    if contract.truncation == "only_second":
        query = contract.query_max_length or contract.max_length * 3 // 4
        text += f"The query is cut to {query} tokens first, then the passage to what is left (`only_second`)."
        return text + (
            " `FlagReranker` cuts alike. `CrossEncoder` and the `transformers` lines below cut otherwise where a pair"
            " is too long: `CrossEncoder` takes from the longer text, and neither limits the query by itself."
        )
    if contract.query_max_length:
        text += f"The query is cut to {contract.query_max_length} tokens first; of a pair that is still too long,"
    else:
        text += "Of a pair that is longer,"
    text += " the longer text is cut (`longest_first`)."
    if contract.query_max_length:
        return text + (
            " `CrossEncoder` and the `transformers` lines below do not limit the query by themselves;"
            " `FlagReranker` cuts the passage only."
        )
    return text + (
        " `CrossEncoder` and the `transformers` lines below cut alike; `FlagReranker` cuts the query to three quarters"
        " and then the passage only, which differs where a pair is too long."
    )
