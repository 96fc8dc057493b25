"""Every command on bad input ends with one line that says where, what was found, what was expected, what to do.

The table holds command, mistake, exact line. It is run in a directory of broken inputs, so that the lines hold
short relative paths. `train` is run on two ranks, and on one where the line differs: all of them end with 2, rank 0 alone says the line,
and no run directory is left. Nothing else in the directory changes either.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from reranker import cli
from reranker.data.manifest import load_manifest
from reranker.data.order import Order
from reranker.data.plan import plan_fixed
from reranker.files import sha256
from reranker.groups import write_groups
from reranker.prepare.pack import pack
from reranker.train.checkpoint import newest
from tests.distributed.conftest import Inputs, make_groups, records
from tests.distributed.ranks import Finished, free_port, launch, naming, run, start, train
from tests.tiny import tiny_model

GOOD = '{"query": "q", "pos": ["p"], "neg": ["n"]}\n'

FILES = {
    "good.jsonl": GOOD,
    "pos_string.jsonl": GOOD + '{"query": "q", "pos": "one passage", "neg": ["n"]}\n',
    "neg_empty.jsonl": GOOD + GOOD + '{"query": "q", "pos": ["p"], "neg": []}\n',
    "pos_empty.jsonl": '{"query": "q", "pos": [], "neg": ["n"]}\n',
    "neg_number.jsonl": '{"query": "q", "pos": ["p"], "neg": ["n", 3]}\n',
    "query_empty.jsonl": '{"query": "  ", "pos": ["p"], "neg": ["n"]}\n',
    "renamed.jsonl": '{"query": "q", "positive": ["p"], "neg": ["n"]}\n',
    "scores.jsonl": '{"query": "q", "pos": ["p"], "neg": ["n"], "neg_scores": [1, 2]}\n',
    "pair.jsonl": '["q", "p"]\n',
    "torn.jsonl": GOOD + '{"query": "q", "pos": ["p"\n',
    "empty.jsonl": "\n",
    "corpus.jsonl": '{"id": "a", "text": "가"}\n{"id": "b", "text": "나"}\n',
    "corpus_twice.jsonl": '{"id": "a", "text": "가"}\n{"id": "a", "text": "나"}\n',
    "corpus_no_text.jsonl": '{"id": "a", "body": "가"}\n',
    "queries.jsonl": '{"qid": "1", "query": "가", "pos": "a"}\n',
    "queries_elsewhere.jsonl": '{"qid": "1", "query": "가", "pos": "c"}\n',
    "queries_empty.jsonl": "",
    "requests.jsonl": '{"query": "q", "passages": ["p"]}\n',
    "passages_string.jsonl": '{"query": "q", "passages": "p"}\n',
    "passages_renamed.jsonl": '{"query": "q", "passage": ["p"]}\n',
    "a_file": "x",
    "other/notes.txt": "x",
    "run_without_config/metrics.jsonl": "",
}

TRAIN = "train data.shards=shards model.name=model data.max_length=48 tracking=none data.workers=1 precision=fp32"
EVALUATE = "evaluate model=model corpus=corpus.jsonl queries=queries.jsonl first_stage.analyzer=bigrams"
SCORE = "score model=model input=requests.jsonl"

MISTAKES: dict[str, str] = {
    "pack output=new": "groups: found no value, expected groups, one JSON object a line (.jsonl, .jsonl.gz, .jsonl.zst); say groups=...",
    "pack groups=nowhere.jsonl output=new": "groups: found nowhere.jsonl, no such file, expected groups, one JSON object a line; check the path",
    "pack groups=pos_string.jsonl output=new": 'pos_string.jsonl:2: found "pos" a string \'one passage\', expected a list of strings; write "pos": ["..."]',
    "pack groups=neg_empty.jsonl output=new": 'neg_empty.jsonl:3: found an empty "neg" list, expected at least one passage; mine negatives for the group or leave it out',
    "pack groups=pos_empty.jsonl output=new": 'pos_empty.jsonl:1: found an empty "pos" list, expected at least one passage; add a passage or leave it out',
    "pack groups=neg_number.jsonl output=new": "neg_number.jsonl:1: found \"neg\"[1] a number '3', expected a string; write it as text",
    "pack groups=query_empty.jsonl output=new": 'query_empty.jsonl:1: found an empty "query", expected some text; fill it in or leave the record out',
    "pack groups=renamed.jsonl output=new": 'renamed.jsonl:1: found keys [\'neg\', \'positive\', \'query\'], expected a key "pos"; write {"query": "...", "pos": ["..."], "neg": ["..."]}',
    "pack groups=scores.jsonl output=new": 'scores.jsonl:1: found "neg_scores" 2 of them, expected 1 numbers, one a passage; mend or remove "neg_scores"',
    "pack groups=pair.jsonl output=new": "pair.jsonl:1: found an array of 2, expected [query, positive, negative]; write three texts",
    "pack groups=torn.jsonl output=new": 'torn.jsonl:2: found \'{"query": "q", "pos": ["p"\' (Expecting \',\' delimiter at column 27), expected one JSON value a line; write each record on one line of its own',
    "pack groups=latin1.jsonl output=new": "latin1.jsonl:2: found bytes that are not UTF-8 (<reason>), expected UTF-8 text; convert the file, for example with iconv",
    "pack groups=cut.jsonl.gz output=new": "cut.jsonl.gz: found a file that cannot be read to its end (<reason>), expected a whole file; copy or make the file anew",
    "pack groups=empty.jsonl output=new": 'empty.jsonl: found an empty file, expected one group a line, {"query": "...", "pos": ["..."], "neg": ["..."]}; check how the file was made',
    "pack groups=good.jsonl output=other": "output: found other, which holds notes.txt, expected a directory to make; move it away or choose another one",
    "pack groups=good.jsonl output=a_file": "output: found a_file, a file, expected a directory to make; move it away or choose another one",
    "pack groups=good.jsonl output=shards": "output: found shards with shards of other groups, expected a directory to make; choose another one or say overwrite=true",
    "pack groups=good.jsonl output=new groups_per_shard=0": "groups_per_shard: found 0, expected 1 or more; change the value",
    "pack groups=good.jsonl output=new query_prefix=q": "query_prefix: found 'q', expected a tokenizer beside it, as it changes nothing but token lengths; say tokenizer=MODEL, or leave query_prefix out",
    "pack groups=good.jsonl output=new groups_per_shard=many": "groups_per_shard: found 'many', expected int; say groups_per_shard=2048, for example",
    "pack group=good.jsonl output=new": "group: found an unknown key, expected a key of pack; did you mean groups?",
    "evaluate corpus=corpus.jsonl queries=queries.jsonl": "model: found no value, expected directory or hub name of the fine-tuned reranker; say model=...",
    f"{EVALUATE} model=nowhere/at/all": "model: found nowhere/at/all, which does not exist, expected a Hugging Face model directory or hub name; check the path",
    f"{EVALUATE} model=model_no_config": "model: found model_no_config, a directory without config.json, expected a Hugging Face model directory; check the path",
    f"{EVALUATE} model=model_no_weights": "model: found model_no_weights, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    f"{EVALUATE} model=model_cut": "model: found model_cut, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    f"{EVALUATE} base=./nowhere": "base: found ./nowhere, which does not exist, expected a Hugging Face model directory or hub name; check the path",
    f"{EVALUATE} corpus=nowhere.jsonl": "corpus: found nowhere.jsonl, which does not exist, expected a file; check the path",
    f"{EVALUATE} corpus=corpus_twice.jsonl": 'corpus_twice.jsonl:2: found a second passage "a", expected ids that differ; rename or remove one',
    f"{EVALUATE} corpus=corpus_no_text.jsonl": 'corpus_no_text.jsonl:1: found keys [\'body\', \'id\'], expected a key "text"; write {"id": "...", "text": "..."}',
    f"{EVALUATE} queries=nowhere.jsonl": "queries: found nowhere.jsonl, which does not exist, expected a file; check the path",
    f"{EVALUATE} queries=queries_elsewhere.jsonl": "queries_elsewhere.jsonl:1: found \"pos\" 'c', expected the id of a passage in the corpus; add the passage to the corpus or leave the query out",
    f"{EVALUATE} queries=queries_empty.jsonl": 'queries_empty.jsonl: found an empty file, expected one {"qid": "...", "query": "...", "pos": "..."} a line; check how the file was made',
    f"{EVALUATE} contexts=9 depth=5": "contexts: found 9, expected at most depth=5; raise depth or lower it",
    f"{EVALUATE} depth=0": "depth: found 0, expected 1 or more; change the value",
    f"{EVALUATE} long=windows window_best=0": "window_best: found 0, expected 1 or more; change the value",
    f"{EVALUATE} output=a_file": "output: found a_file, a file, expected a directory; name another one",
    f"{EVALUATE} first_stage.analyzer=kiwis": "first_stage.analyzer: found 'kiwis', expected one of kiwi, words, whitespace, bigrams; did you mean kiwi?",
    f"{EVALUATE} precision=fp16": "precision: found fp16 on a CPU, expected fp32, bf16 or auto; say precision=fp32",
    f"{EVALUATE} systems={{base:model}}": "systems: found a system called base, expected another name than without-reranker, base, fine-tuned, fused; call it otherwise",
    f"{EVALUATE} systems={{a:{{kind:onxx,model:model}}}}": "systems.a.kind: found 'onxx', expected one of reranker, sentence_transformers, flagembedding, cohere, onnx; did you mean onnx?",
    f"{EVALUATE} systems={{a:{{kind:onnx,model:model}}}}": "systems.a.model: found model/onnx/model.onnx, which does not exist, expected an ONNX file, or a directory with onnx/model.onnx; check the path, or export with onnx=true",
    f"{EVALUATE} systems={{a:{{kind:sentence_transformers,model:model_no_weights}}}}": "systems.a.model: found model_no_weights, which sentence-transformers does not load (<reason>), expected a model of its kind; check the name and the network",
    f"{EVALUATE} systems={{a:{{kind:flagembedding,model:model_cut}}}}": "systems.a.model: found model_cut, which FlagEmbedding does not load (<reason>), expected a model of its kind; check the name and the network",
    f"{EVALUATE} systems={{a:{{kind:sentence_transformers,model:model_no_tokenizer}}}}": "systems.a.model: found model_no_tokenizer, which sentence-transformers does not load (<reason>), expected a model of its kind; check the name and the network",
    f"{EVALUATE} modell=model": "modell: found an unknown key, expected a key of evaluate; did you mean model?",
    "export": "run: found no value, expected run directory of a training; say run=...",
    "export run=nowhere": "nowhere/config.json: found no such file, expected a JSON file; name the run_dir of a training",
    "export run=other": "other/config.json: found no such file, expected a JSON file; name the run_dir of a training",
    "export run=run_without_config": "run_without_config/config.json: found no such file, expected a JSON file; name the run_dir of a training",
    "export run=run_untrained": "run: found no checkpoint in run_untrained/checkpoints, expected a complete checkpoint; train first, or check the path",
    "export run=run_torn": "run: found run_torn/checkpoints/step-00000003: passed over, no readable manifest.json, expected a complete checkpoint; train first, or check the path",
    "export run=run_torn output=other": "output: found other, a directory that holds something else, expected a new directory or an earlier export; choose another one",
    "export run=run_torn dtype=auto": "dtype: found auto, expected fp32, fp16 or bf16; say dtype=fp32",
    "export run=run_torn onnx=model.onnx": "onnx: found 'model.onnx', expected bool; say onnx=false, for example",
    "export run=run_torn gate.action=warn": "gate.action: found 'warn', expected refuse|mark or null; see --help",
    "export run=run_torn gate.drop=0": "gate.drop: found an unknown key, expected a key of export; did you mean gate.max_drop?",
    "export run=run_torn dtype=fp8": "dtype: found 'fp8', expected auto|fp16|bf16|fp32; say dtype=fp32, for example",
    "score": "model: found no value, expected directory or hub name of a reranker; say model=...",
    f"{SCORE} model=./nowhere": "model: found ./nowhere, which does not exist, expected a Hugging Face model directory or hub name; check the path",
    f"{SCORE} model=other": "model: found other, a directory without config.json, expected a Hugging Face model directory or hub name; check the path",
    f"{SCORE} model=a_file": "model: found a_file, a file, expected a Hugging Face model directory or hub name; check the path",
    f"{SCORE} model=model_no_weights": "model: found model_no_weights, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    f"{SCORE} input=nowhere.jsonl": "nowhere.jsonl: found no such file, expected a file; check the path",
    f"{SCORE} input=passages_string.jsonl": 'passages_string.jsonl:1: found "passages" a string \'p\', expected a list of strings; write "passages": ["..."]',
    f"{SCORE} input=passages_renamed.jsonl": 'passages_renamed.jsonl:1: found keys [\'passage\', \'query\'], expected a key "passages"; rename "passage" to "passages"',
    f"{SCORE} input=torn.jsonl": 'torn.jsonl:1: found keys [\'neg\', \'pos\', \'query\'], expected a key "passages"; write {"query": "...", "passages": ["..."]}',
    f"{SCORE} output=other": "output: found other, a directory, expected a file or -; name a file in it",
    f"{SCORE} precision=fp16": "precision: found fp16 on a CPU, expected fp32, bf16 or auto; say precision=fp32",
    f"{SCORE} max_length=4": "max_length: found 4, expected 8 or more and at most 512, the model's positions; change the value",
    f"{SCORE} max_length=600": "max_length: found 600, expected 8 or more and at most 512, the model's positions; change the value",
    f"{SCORE} long=window": "long: found 'window', expected truncate|windows; did you mean windows?",
    f"{SCORE} long=windows window_overlap=-1": "window_overlap: found -1, expected 0 or more; change the value",
    f"{SCORE} batch_tokens=0": "batch_tokens: found 0, expected 1 or more; change the value",
    f"{SCORE} device=cuda": "device: found cuda, but no GPU that torch can use, expected cpu or auto; say device=auto",
    "demo dev_negatives=0 output=new": "dev_negatives: found 0, expected 1 or more; change the value",
    "demo dev_queries=-1 output=new": "dev_queries: found -1, expected 1 or more; change the value",
    "demo output=a_file": "a_file: found a file, expected a directory or nothing; move it away or choose another output",
    "demo outputs=new": "outputs: found an unknown key, expected a key of demo; did you mean output?",
    "trian": "command: found trian, expected one of prepare, translate, mine, check, pack, index, data inspect, data verify, train, submit, jobs, sweep show, doctor cluster, checkpoint list, checkpoint verify, replay, dashboard, evaluate, evaluate compare, export, push, trim, soup, score, demo; did you mean train?",
    "pack groups=good.jsonl output=new workers=0": "workers: found 0, expected 1 or more; change the value",
    "pack groups=good.jsonl output=new tokenizer=nowhere/at/all": "tokenizer: found nowhere/at/all, which does not exist, expected a Hugging Face model directory or hub name; check the path",
    "index output=new": "shards: found no value, expected tars of others: a directory, a pattern like dir/{000..127}.tar, an https://, s3:// or pipe: URL, or a list; say shards=...",
    "index shards=nowhere output=new": "shards: found <root>/nowhere, no such file, expected a tar or a directory of tars; check the path",
    "index shards=other output=new": "shards: found <root>/other with no .tar file, expected a directory of tars; check the path",
    "index shards=shards output=shards": "output: found shards, which holds <root>/shards/shard-00000.tar, expected a directory apart from the tars; choose another one",
    "data inspekt shards": "command: found data inspekt, expected one of data inspect, data verify; did you mean data inspect?",
    "data inspect nowhere": "shards: found nowhere, no such directory, expected shards with a manifest.json; write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index",
    "data inspect shards worlds=[0]": "worlds: found [0], expected numbers of ranks; say worlds=[1,8]",
    "data inspect shards passage_max_length=0": "passage_max_length: found 0, expected 1 or more; change the value",
    "data inspect shards tokens=100": "tokens: found 100, expected at least group_size x max_length = 1536, the longest group; raise it",
    "data verify": "shards: found no value, expected directory or URL of shards; say shards=...",
    "data verify nowhere": "shards: found nowhere, no such directory, expected shards with a manifest.json; write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index",
    "data verify shards workers=0": "workers: found 0, expected 1 or more; change the value",
    "checkpoint lst run_torn": "command: found checkpoint lst, expected one of checkpoint list, checkpoint verify; did you mean checkpoint list?",
    "checkpoint list": "run: found no value, expected run directory of a training; say run=...",
    "checkpoint list nowhere": "run: found nowhere, no such directory, expected a run directory of reranker train; check the path",
    "checkpoint list run_untrained": "run: found no checkpoint in run_untrained/checkpoints, expected a run directory of reranker train; train first, or check the path",
    "checkpoint list run_torn/checkpoints/step-00000003": "run: found run_torn/checkpoints/step-00000003, a checkpoint, expected its run directory; say run=run_torn",
    "checkpoint list run_torn output=other": "output: found other, a directory, expected a file; name a file in it",
    "checkpoint verify": "path: found no value, expected run directory of a training, or one of its checkpoints; say path=...",
    "checkpoint verify a_file": "path: found a_file, a file, expected a run directory of reranker train or one of its checkpoints; check the path",
    "checkpoint verify run_untrained": "path: found no checkpoint in run_untrained, expected a run directory of reranker train or one of its checkpoints; train first, or check the path",
    "replay": "checkpoint: found no value, expected directory of a checkpoint, as in runs/train/checkpoints/step-00000100; say checkpoint=...",
    "replay nowhere": "checkpoint: found nowhere, no such directory, expected a checkpoint of a run; check the path",
    "replay a_file": "checkpoint: found a_file, a file, expected a checkpoint of a run; check the path",
    "replay other": "checkpoint: found other, which is no checkpoint, expected a checkpoint of a run; name a directory under RUN/checkpoints",
    "replay run_torn": "checkpoint: found run_torn, a run directory, expected a checkpoint of a run; say checkpoint=run_torn/checkpoints/step-00000003",
    "replay run_torn/checkpoints/step-00000003": "checkpoint: found run_torn/checkpoints/step-00000003, no readable manifest.json, expected a complete checkpoint; choose another one",
    "replay run_torn/checkpoints/step-00000003 step=-1": "step: found -1, expected 1 or more; change the value",
    "replay run_torn/checkpoints/step-00000003 world=0": "world: found 0, expected 1 or more; change the value",
    "replay run_torn/checkpoints/step-00000003 world=two": "world: found 'two', expected int or null; see --help",
    "replay run_torn/checkpoints/step-00000003 output=other": "output: found other, a directory, expected a file; name a file in it",
}

TRAIN_MISTAKES: dict[str, str | tuple[str, str]] = {
    "data.shards=nowhere": "data.shards: found nowhere, no such directory, expected shards with a manifest.json; write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index",
    "data.shards=shards_no_manifest": "data.shards: found shards_no_manifest with 3 .tar files and no manifest.json, expected shards with a manifest.json; write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index",
    "data.shards=shards_torn_manifest": "shards_torn_manifest/manifest.json: found no JSON (<reason>), expected a JSON file; delete the directory and run reranker pack (or index) again",
    "data.shards=shards_schema": "shards_schema/manifest.json: found schema 9, expected schema 2; delete the directory and run reranker pack (or index) again",
    "data.shards=shards_gone": "shards_gone/shard-00001.tar: found no such file, expected a file of the 3 shards in manifest.json; delete the directory and run reranker pack (or index) again",
    "data.shards=shards_cut": "shards_cut/shard-00000.tar: found a truncated tar of 1000 bytes, expected <bytes>; copy it again or delete the directory and run reranker pack (or index) again",
    "data.shards=shards_no_index": "shards_no_index/shard-00000.index.safetensors: found no such file, expected a file of the 3 shards in manifest.json; delete the directory and run reranker pack (or index) again",
    "data.shards=shards_flipped data.check=sha256": "shards_flipped/shard-00002.tar: found sha256 <found>…, expected <packed>…; copy it again or delete the directory and run reranker pack (or index) again",
    "model.name=./nowhere": "model.name: found ./nowhere, which does not exist, expected a Hugging Face model directory or hub name; check the path",
    "model.name=other": "model.name: found other, a directory without config.json, expected a Hugging Face model directory or hub name; check the path",
    "model.name=a_file": "model.name: found a_file, a file, expected a Hugging Face model directory or hub name; check the path",
    "model.name=model_no_config": "model.name: found model_no_config, a directory without config.json, expected a Hugging Face model directory or hub name; check the path",
    "model.name=model_no_weights": "model.name: found model_no_weights, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    "model.name=model_cut": "model.name: found model_cut, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    "data.dev=nowhere.jsonl": "nowhere.jsonl: found no such file, expected a file; check the path",
    "data.dev=pos_string.jsonl": 'pos_string.jsonl:2: found "pos" a string \'one passage\', expected a list of strings; write "pos": ["..."]',
    "data.dev=neg_empty.jsonl": 'neg_empty.jsonl:3: found an empty "neg" list, expected at least one passage; mine negatives for the group or leave it out',
    "batch.per_gpu=64": (
        "batch: found groups=32, per_gpu=64, ranks=1, expected 32 to be a multiple of 64 x 1; set batch.per_gpu to one of [1, 2, 4, 8, 16, 32]",
        "batch: found groups=32, per_gpu=64, ranks=2, expected 32 to be a multiple of 64 x 2; set batch.per_gpu to one of [1, 2, 4, 8, 16]",
    ),
    "batch.groups=30 batch.per_gpu=4": (
        "batch: found groups=30, per_gpu=4, ranks=1, expected 30 to be a multiple of 4 x 1; set batch.per_gpu to one of [1, 2, 3, 5, 6, 10, 15, 30]",
        "batch: found groups=30, per_gpu=4, ranks=2, expected 30 to be a multiple of 4 x 2; set batch.per_gpu to one of [1, 3, 5, 15]",
    ),
    "data.max_length=600": "data.max_length: found 600, expected at most the model's 512 positions; lower it",
    "data.query_max_length=46": "data.query_max_length: found 46, expected at most data.max_length - 5 = 43, to leave room for the passage; lower it or raise data.max_length",
    "data.passage_max_length=0": "data.passage_max_length: found 0, expected 1 or more; change the value",
    "data.passage_max_length=3 data.passage_prefix=abc": "data.passage_prefix: found 4 tokens, expected fewer than the 3 that a passage has in a long pair; shorten it or raise data.max_length",
    "data.origin=": "data.origin: found an empty text, expected one line for the model card; write one, or say data.origin=null",
    "data.group_size=1": "data.group_size: found 1, expected 2 or more; change the value",
    "optim.lr=-1": "optim.lr: found -1.0, expected 0 or more; change the value",
    "optim.betas=[0.9,1]": "optim.betas: found [0.9,1], expected two numbers of at least 0 and below 1; say optim.betas=[0.9,0.999]",
    "optim.lr=fast": "optim.lr: found 'fast', expected float; say optim.lr=5e-6, for example",
    "train.epochs=0": "train.epochs: found 0, expected 1 or more; change the value",
    "train.metric=map": "train.metric: found map, expected mrr or ndcg@10; change the value",
    "data.dev=dev.jsonl train.metric=faq/mrr": "train.metric: found faq/mrr without data.dev_sets, expected mrr or ndcg@10 of data.dev; say data.dev_sets={faq: ...}, or train.metric=mrr",
    "data.dev_sets={faq:good.jsonl}": "train.metric: found mrr, which is of data.dev, and no data.dev, expected a metric of a set in data.dev_sets; say train.metric=NAME/mrr with the NAME of a set, or data.dev=dev.jsonl",
    "data.dev= data.dev_sets={faq:good.jsonl}": "train.metric: found mrr, which is of data.dev, and no data.dev, expected a metric of a set in data.dev_sets; say train.metric=NAME/mrr with the NAME of a set, or data.dev=dev.jsonl",
    "data.dev_sets={faq:good.jsonl} train.metric=fag/mrr": "train.metric: found fag/mrr, and no set of that name in data.dev_sets, expected one of faq/mrr; did you mean faq/mrr?",
    "data.dev_sets={faq:good.jsonl} train.metric=faq/map": "train.metric: found faq/map, expected mrr or ndcg@10, or NAME/mrr or NAME/ndcg@10 of a set in data.dev_sets; change the value",
    "data.dev=dev.jsonl data.dev_sets={faq:nowhere.jsonl}": "data.dev_sets.faq.path: found nowhere.jsonl, which does not exist, expected a file or directory; check the path",
    "data.dev=dev.jsonl data.dev_sets={faq:pos_string.jsonl}": 'pos_string.jsonl:2: found "pos" a string \'one passage\', expected a list of strings; write "pos": ["..."]',
    "data.dev=dev.jsonl data.dev_sets=good.jsonl": "data.dev_sets: found good.jsonl, a groups file, expected sets by their names; say data.dev_sets={NAME: good.jsonl}",
    "data.dev=dev.jsonl data.dev_sets=other": "data.dev_sets: found other, a directory, expected sets by their names; say data.dev_sets={NAME: other}",
    "data.dev=dev.jsonl gate.sets=dev.jsonl": "gate.sets: found dev.jsonl, a groups file, expected sets by their names; say gate.sets={NAME: dev.jsonl}",
    "data.dev=dev.jsonl data.dev_sets=nowhere.yaml": "data.dev_sets: found nowhere.yaml, which cannot be read ([Errno 2] No such file or directory: 'nowhere.yaml'), expected a yaml file of sets; check the path",
    "gate.sets={old:good.jsonl}": "data.dev: found no groups beside gate.sets, expected groups that select among the checkpoints that pass; say data.dev=dev.jsonl, or leave gate.sets out",
    "data.dev=dev.jsonl gate.sets={old:nowhere.jsonl}": "gate.sets.old.path: found nowhere.jsonl, which does not exist, expected a file or directory; check the path",
    "data.dev=dev.jsonl gate.sets={old:pos_string.jsonl}": 'pos_string.jsonl:2: found "pos" a string \'one passage\', expected a list of strings; write "pos": ["..."]',
    "data.dev=dev.jsonl gate.sets={old:good.jsonl} gate.max_drop=-1": "gate.max_drop: found -1.0, expected 0 or more; change the value",
    "data.dev=dev.jsonl gate.sets={old:good.jsonl} gate.action=warn": "gate.action: found 'warn', expected refuse|mark; say gate.action=refuse, for example",
    "data.dev=dev.jsonl gate.sets={old:good.jsonl} gate.base=model_no_weights": "gate.base: found model_no_weights, which cannot be loaded (<reason>), expected a Hugging Face encoder directory or hub name; check the name and the network",
    "deepspeed.stage=4": "deepspeed.stage: found 4, expected 0, 1, 2, 3 or null; say deepspeed=zero2, for example",
    "deepspeed=zero4": "deepspeed: found 'zero4', expected one of auto, zero0, zero1, zero2, zero2_offload, zero3, zero3_offload; did you mean zero3?",
    "precision=fp16": "precision: found fp16 on a CPU, expected fp32, bf16 or auto, as DeepSpeed has no fp16 there; say precision=fp32",
    "run_dir=a_file": "run_dir: found a_file, which is a file, expected a directory; choose another one",
    "data.shards={}": "data.shards: found {}, expected a directory, a URL, or {name: DIR, other: {shards: DIR, weight: 0.5}}; say data.shards=DIR",
    "data.shards={a:shards,b:{shards:shards,weight:0}}": "data.shards.b.weight: found 0, expected a number above 0; leave a source out to show none of it",
    "data.shards={a:shards,b:{directory:shards}}": "data.shards.b: found {'directory': 'shards'}, expected a directory or {shards: DIR, weight: NUMBER}; say b: DIR",
    "data.shards={a:shards,b:nowhere}": "data.shards.b: found nowhere, no such directory, expected shards with a manifest.json; write them with reranker pack groups=FILE output=DIR, or index those of others with reranker index",
    "batch.policy=tokens batch.tokens=100": "batch.tokens: found 100, expected at least data.group_size x data.max_length = 144, the longest group; raise it or lower one of the two",
    "batch.tokens=many": "batch.tokens: found 'many', expected a number or auto; say batch.tokens=8192, for example",
    "batch.packing=packt": "batch.packing: found 'packt', expected auto|packed|padded; did you mean packed?",
    "batch.policy=token": "batch.policy: found 'token', expected fixed|tokens; did you mean tokens?",
    "data.bad=skip": "data.bad: found 'skip', expected raise|ghost; say data.bad=raise, for example",
    "loss.labels=0": "loss.labels: found 0, as loss.distillation, expected a weight above 0 for one of them; change one",
    "loss.by_label=listnet": "loss.by_label: found 'listnet', expected listwise|multi_positive|pointwise|ranknet|lambdaloss|listmle|plistmle; did you mean listmle?",
    "loss.more={ranknett:1}": "loss.more: found ranknett, expected one of listwise, multi_positive, pointwise, ranknet, lambdaloss, listmle, plistmle, kl, mse, margin_mse; did you mean ranknet?",
    "loss.temperature=0": "loss.temperature: found 0.0, expected a number above 0; change the value",
    "data.shardz=shards": "data.shardz: found an unknown key, expected a key of train; did you mean data.shards?",
}


def damaged(source: Path, target: Path, file: str, change: object) -> Path:
    """A copy of a directory in which one file is changed by a function of its bytes; None removes it."""
    shutil.copytree(source, target)
    if change is None:
        (target / file).unlink()
    else:
        (target / file).write_bytes(change((target / file).read_bytes()))  # type: ignore[operator]
    return target


def flip(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of broken inputs, and a few whole ones beside them."""
    root = tmp_path_factory.mktemp("broken")
    for name, text in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, "utf-8")
    (root / "latin1.jsonl").write_bytes(GOOD.encode() + '{"query": "é", "pos": ["p"], "neg": ["n"]}'.encode("latin-1"))
    (root / "cut.jsonl.gz").write_bytes(gzip.compress(os.urandom(5000).hex().encode())[:-200])

    model, shards = tiny_model(root / "model"), root / "shards"
    pack(make_groups(90, 2), shards, {"name": "groups.jsonl"}, groups_per_shard=40)
    write_groups(root / "dev.jsonl", make_groups(3, 4, seed=1))
    damaged(model, root / "model_cut", "model.safetensors", lambda content: content[:-100])
    damaged(model, root / "model_no_weights", "model.safetensors", None)
    damaged(model, root / "model_no_tokenizer", "tokenizer.json", None)
    damaged(model, root / "model_no_config", "config.json", None)
    damaged(shards, root / "shards_cut", "shard-00000.tar", lambda content: content[:1000])
    damaged(shards, root / "shards_gone", "shard-00001.tar", None)
    damaged(shards, root / "shards_flipped", "shard-00002.tar", lambda content: flip(content, 600))
    damaged(shards, root / "shards_no_index", "shard-00000.index.safetensors", None)
    damaged(shards, root / "shards_no_manifest", "manifest.json", None)
    damaged(shards, root / "shards_torn_manifest", "manifest.json", lambda content: b"{")
    damaged(
        shards, root / "shards_schema", "manifest.json", lambda content: content.replace(b'"schema": 2', b'"schema": 9')
    )
    # A run that was never trained to its first checkpoint, and one with a single checkpoint that is torn.
    (root / "run_untrained").mkdir()
    (root / "run_untrained" / "config.json").write_text(
        json.dumps({"data": {"max_length": 48, "query_max_length": None, "truncation": "longest_first"}})
    )
    shutil.copytree(root / "run_untrained", root / "run_torn")
    (root / "run_torn" / "checkpoints" / "step-00000003").mkdir(parents=True)
    return root


def contents(directory: Path) -> dict[str, str]:
    """{path: sha256} of every file under a directory."""
    return {str(path.relative_to(directory)): sha256(path) for path in directory.rglob("*") if path.is_file()}


def expected(line: str, root: Path) -> str:
    """A pattern: the line of the table with what only the files know put in; <reason> is another library's."""
    whole = load_manifest(root / "shards").shards
    known = {
        "<root>": str(root),
        "<bytes>": str(whole[0].bytes),
        "<found>": sha256(root / "shards_flipped" / "shard-00002.tar")[:16],
        "<packed>": whole[2].sha256[:16],
    }
    for word, value in known.items():
        line = line.replace(word, value)
    return re.escape(f"reranker: error: {line}\n").replace("<reason>", "[^\n]+")


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line(
    command: str, broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(broken)
    before = contents(broken)
    assert cli.main(shlex.split(command)) == 2
    out, err = capsys.readouterr()
    # A progress bar may have been at work before; the line is the last thing said.
    *bars, said = err.splitlines(keepends=True)
    assert re.fullmatch(expected(MISTAKES[command], broken), said), said
    assert [bar for bar in bars if bar.strip() and not re.search(r"\[\d\d:\d\d", bar)] == []
    assert out == ""
    assert contents(broken) == before


TRAININGS = [
    (command, world)
    for command, line in TRAIN_MISTAKES.items()
    for world in ((2,) if isinstance(line, str) else (1, 2))  # one rank, where the line depends on their number
]


@pytest.fixture(scope="module")
def outcomes(broken: Path) -> dict[tuple[str, int], list[Finished]]:
    """What the ranks of each training with a mistake left, four trainings at a time."""
    before = contents(broken)
    found = {}
    for first in range(0, len(TRAININGS), 4):
        several = TRAININGS[first : first + 4]
        jobs = [start(world, [*shlex.split(TRAIN), *shlex.split(command)], broken) for command, world in several]
        try:
            found.update(zip(several, [job.wait() for job in jobs], strict=True))
        finally:
            for job in jobs:
                job.end()
    assert contents(broken) == before
    assert not (broken / "runs").exists()
    return found


@pytest.mark.parametrize(("command", "world"), TRAININGS)
def test_a_mistake_in_training_is_one_line_of_rank_0_and_ends_every_rank(
    command: str, world: int, broken: Path, outcomes: dict[tuple[str, int], list[Finished]]
) -> None:
    ranks = outcomes[command, world]
    assert [rank.code for rank in ranks] == [2] * world
    line = TRAIN_MISTAKES[command]
    wanted = expected(line if isinstance(line, str) else line[world - 1], broken)
    assert re.fullmatch(wanted, ranks[0].err), ranks[0].err
    assert [rank.err for rank in ranks[1:]] == [""] * (world - 1)
    assert [rank.out for rank in ranks] == [""] * world


def of_rank_1(shards: Path, step: int, epoch: int = 0) -> tuple[str, int]:
    """(shard, offset of its bytes) of a member that rank 1 of 2 alone reads in this step of 32 groups."""
    manifest = load_manifest(shards)
    position = plan_fixed(epoch, step, manifest.groups, 32, 8, 2).slots[0][1][3]
    shard, index = Order(manifest.sizes, 42, epoch, 64).locate(position)
    name = manifest.shards[shard]
    offset = load_file(shards / name.index_name)["offset"][index]
    return name.name, int(offset)


def test_a_mistake_that_one_rank_meets_in_the_middle_of_training_ends_all_of_them(
    inputs: Inputs, tmp_path: Path
) -> None:
    shards, whole = tmp_path / "shards", tmp_path / "run"
    shutil.copytree(inputs.shards, shards)
    name, offset = of_rank_1(shards, step=1)
    content = (shards / name).read_bytes()
    (shards / name).write_bytes(flip(content, offset + 5))
    overrides = [
        *inputs.overrides(whole, **{"data.workers": 1, "batch.per_gpu": 8, "train.save_every": 1, "train.epochs": 1}),
        f"data.shards={shards}", "precision=fp32",
    ]  # fmt: skip
    first, second = run(2, ["train", *overrides])
    assert (first.code, second.code) == (2, 2)
    said = [line for line in first.err.splitlines() if "error" in line]
    assert len(said) == 1
    assert re.fullmatch(
        rf"reranker: error: {shards}/{name}:\d{{9}}\.json: found bytes that differ from those packed \(CRC-32\), expected "
        r"an undamaged shard; copy the shard again or delete the directory and run reranker pack \(or index\) again", said[0],
    ), said[0]  # fmt: skip
    assert first.err.endswith(said[0] + "\n")
    assert "reranker: error" not in second.err
    assert "Traceback" not in first.err + second.err
    path, passed = newest(whole)
    assert path is not None
    assert (path.name, passed) == ("step-00000001", [])
    assert [record["step"] for record in records(whole)] == [1]

    # The shard mended, the same command goes on from there.
    (shards / name).write_bytes(content)
    assert "resuming behind step 1\n" in train(2, overrides)[0].err
    assert [record["step"] for record in records(whole)] == [1, 2, 3]


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_mistake_under_a_launcher_is_told_once_and_leaves_nothing_behind(broken: Path, launcher: str) -> None:
    commands = {
        "deepspeed": ["deepspeed", "--no_local_rank", "--num_gpus", "2", "--master_port", str(free_port()), "--module"],
        "torchrun": ["torchrun", "--standalone", "--nproc_per_node", "2", "-m"],
    }
    before = contents(broken)
    key = "data.shards=shards_cut"
    line = expected(str(TRAIN_MISTAKES[key]), broken)
    unique = f"name=mistake-{os.getpid()}-{launcher}"
    arguments = [*shlex.split(TRAIN)[1:], key, unique]
    finished = launch([*commands[launcher], "reranker.train", *arguments], cwd=broken)[0]
    printed = finished.out + finished.err
    assert finished.code != 0
    assert len(re.findall(line, printed)) == 1
    assert printed.count("reranker: error") == 1
    # torchrun itself ends in a traceback; none of the frames are ours.
    assert str(Path(cli.__file__).parent) not in printed
    assert naming(unique) == []
    assert contents(broken) == before


def test_bad_groups_become_ghosts_are_named_and_stop_the_training_above_their_limit(
    inputs: Inputs, tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(inputs.shards, shards)
    name, offset = of_rank_1(shards, step=1)
    content = (shards / name).read_bytes()
    (shards / name).write_bytes(flip(content, offset + 5))
    values = {"data.workers": 1, "batch.per_gpu": 8, "train.save_every": 1, "train.epochs": 2, "data.bad": "ghost",
              "data.shards": shards, "data.retries": 0, "precision": "fp32"}  # fmt: skip
    run_dir = tmp_path / "run"
    first, second = train(2, inputs.overrides(run_dir, **values))
    # Once in each epoch, by the rank that reads it; the others learn of the count.
    named = [line for line in (first.err + second.err).splitlines() if line.startswith("data.bad=ghost: ")]
    assert len(named) == 2
    assert all(f"{shards}/{name}:" in line and "(CRC-32)" in line for line in named)
    counts = [record["data/bad_groups"] for record in records(run_dir)]
    assert sum(counts) == 2
    losses = [record["train/loss"] for record in records(run_dir)]
    assert all(0 < loss < 3 for loss in losses)

    ranks = run(2, ["train", *inputs.overrides(tmp_path / "strict", **values | {"data.bad_limit": 1})])
    assert [rank.code for rank in ranks] == [2, 2]
    said = [line for line in ranks[0].err.splitlines() if "reranker: error" in line]
    assert said == [
        "reranker: error: data.bad_limit: found 2 groups that could not be read, expected at most 1; "
        "see what is wrong with reranker data verify, or raise the limit"
    ]
    assert "reranker: error" not in ranks[1].err
    # Stopped and started again, it has not forgotten: the second one is still one too many.
    again = run(2, ["train", *inputs.overrides(tmp_path / "strict", **values | {"data.bad_limit": 1})])
    assert [rank.code for rank in again] == [2, 2]
