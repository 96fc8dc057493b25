"""How an exported model is used: the section of its card, for each library what it takes to score a pair as trained.

The code is the same in every language, and runs: the tests run it.
"""

from __future__ import annotations

import json
from dataclasses import asdict

from reranker.data.tokenize import Contract
from reranker.export.card_edit import ONNX
from reranker.export.card_words import Words
from reranker.export.onnx import FILE, Fusion
from reranker.export.quantize import INT8_FILE, Agreement


def usage(name: str, contract: Contract, say: Words, onnx: Fusion | None, int8: Agreement | None = None) -> str:
    """The section of the card. `name` is what the model is loaded by; `onnx`: its attentions in the ONNX file, if it
    lies there so; `int8`: how far it agrees in 8 bits, if it lies there so.
    """
    flags = f"path, use_fp16=False, max_length={contract.max_length}"
    flags += f", query_max_length={contract.query_max_length}" if contract.query_max_length else ""
    prefixes = [("query", contract.query_prefix), ("passage", contract.passage_prefix)]
    if told := [f"    {key}_instruction_for_rerank={_quoted(prefix)},\n" for key, prefix in prefixes if prefix]:
        flags = f"\n    {flags},\n{''.join(told)}"
    asked, one = _behind(contract.query_prefix, "query"), _behind(contract.passage_prefix, "passage")
    every = f"[{one} for passage in passages]" if contract.passage_prefix else "passages"
    return f"""## {say("usage.title")}

{say("usage.pair", max_length=contract.max_length)} {_cutting(contract, say)}{_prefixes(contract, say)}

### transformers

{say("usage.shares")}

```python
import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def exp_normalize(scores):
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


path = "{name}"  # {say("usage.path")}
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

{say("usage.activation")}

```python
from sentence_transformers import CrossEncoder

model = CrossEncoder(path)
print(model.predict([(query, {one}) for passage in passages]))
```
{_onnx(onnx, int8, say) if onnx else ""}
### FlagEmbedding

```python
from FlagEmbedding import FlagReranker

reranker = FlagReranker({flags})
print(reranker.compute_score([(query, passage) for passage in passages]))
```

### text-embeddings-inference, vLLM

{say("usage.servers")}{_served(contract, say)}

### reranker

{say("usage.reranker")}

```python
from reranker import Reranker

print(Reranker(path).score(query, passages))
```

```bash
echo '{{"query": "파이썬 리스트 정렬", "passages": ["list.sort()", "튜플"]}}' | reranker score model=MODEL
```"""


def _onnx(fusion: Fusion, int8: Agreement | None, say: Words) -> str:
    quantised = ""
    if int8:
        told = say("usage.agreement", **asdict(int8))
        whole = f" {say('usage.int8_whole', whole=int8.whole)}" if int8.whole else ""
        quantised = f"\n{say('usage.int8', file=INT8_FILE, agreement=told)}{whole}\n"
    fused = say("usage.onnx_fused", attentions=fusion.attentions) if fusion.attentions else say("usage.onnx_plain")
    return f"""
### {ONNX}

{say("usage.onnx", file=FILE, fused=fused)}

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


def _prefixes(contract: Contract, say: Words) -> str:
    """What stands before the texts, and which library puts it there."""
    given = {"query": contract.query_prefix, "passage": contract.passage_prefix}
    shown = [say(f"usage.before_{name}", prefix=_quoted(prefix)) for name, prefix in given.items() if prefix]
    if not shown:
        return ""
    told = [say("usage.prefixes", shown=say("usage.and").join(shown))]
    told += [say(f"usage.{name}_prefix") for name, prefix in given.items() if prefix]
    return "\n\n" + " ".join([*told, say("usage.other_prefixes")])


def _served(contract: Contract, say: Words) -> str:
    """What a server's client must do."""
    return f" {say('usage.served')}" if contract.query_prefix or contract.passage_prefix else ""


def _cutting(contract: Contract, say: Words) -> str:
    """Which library cuts a long pair as the training did."""
    query, passage = contract.query_max_length, contract.passage_max_length
    if contract.truncation == "only_second":
        told = say("usage.only_second", query=query or contract.max_length * 3 // 4)
    else:
        told = say("usage.query_first", query=query) if query else say("usage.longest_first")
    return f"{told} {say('usage.passage_first', passage=passage)}" if passage else told
