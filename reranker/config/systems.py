"""The settings of one other system of an evaluation, by its kind."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Optional

from reranker.config.common import MISSING, Device, Packing, Precision

# omegaconf reads Optional[...] on every Python that we support; the X | None form it does not.
# ruff: noqa: UP045


class SystemKind(Enum):
    reranker = "reranker"
    sentence_transformers = "sentence_transformers"
    flagembedding = "flagembedding"
    cohere = "cohere"
    onnx = "onnx"


class Activation(Enum):
    raw = "raw"
    own = "own"


@dataclass
class SystemConfig:
    kind: SystemKind = SystemKind.reranker
    """What scores: this framework, CrossEncoder, FlagReranker, Cohere's API or an ONNX file"""
    model: str = MISSING
    """Directory or hub name; of cohere the service's name; of onnx the file, or the directory with onnx/model.onnx"""


@dataclass
class ForwardConfig(SystemConfig):
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the command's max_length, or else the model's own"""
    batch_tokens: Optional[int] = None
    """Tokens of a forward batch at most, padding included where there is any; null: the command's"""
    packing: Optional[Packing] = None
    """As the command's; null: the command's"""
    precision: Optional[Precision] = None
    """As the command's; null: the command's"""
    device: Optional[Device] = None
    """Where it scores; null: the command's"""


@dataclass
class CrossEncoderConfig(SystemConfig):
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the command's max_length, or else the model's own"""
    batch_size: int = 32
    """Pairs of a forward batch"""
    activation: Activation = Activation.raw
    """raw: the scores are the logits; own: what the model's files say, which is a sigmoid for most"""
    precision: Optional[Precision] = None
    """Type of weights and products; null: the command's"""
    device: Optional[Device] = None
    """Where it scores; null: the command's"""
    trust_remote_code: bool = False
    """Run the Python that lies with the model; false: refuse a model that wants it"""


@dataclass
class FlagConfig(SystemConfig):
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the command's max_length, or else 512, FlagReranker's own"""
    query_max_length: Optional[int] = None
    """Tokens of a query at most; null: three quarters of max_length, as FlagReranker does"""
    batch_size: int = 32
    """Pairs of a forward batch"""
    normalize: bool = False
    """Scores through a sigmoid"""
    precision: Optional[Precision] = None
    """fp32 or fp16, which FlagReranker has; null: the command's"""
    device: Optional[Device] = None
    """Where it scores; null: the command's"""


@dataclass
class CohereConfig(SystemConfig):
    base_url: str = "https://api.cohere.com"
    """Endpoint, before /v2/rerank"""
    api_key_env: str = "CO_API_KEY"
    """Environment variable that holds the key; the key itself is in no file"""
    max_tokens_per_doc: Optional[int] = None
    """Tokens of a passage that are looked at; null: the service's own, 4,096 by its documentation"""
    documents_per_call: int = 1000
    """Passages of a call at most: more than 1,000 the service advises against, more than 10,000 it refuses"""
    concurrency: int = 4
    """Calls at a time"""
    retries: int = 5
    """Times that a call is made again which was throttled, or failed on the service's side"""
    timeout: float = 120.0
    """Seconds that a call may take"""


@dataclass
class OnnxConfig(SystemConfig):
    tokenizer: Optional[str] = None
    """Directory or hub name of tokenizer and config.json; null: the file's directory, or the one above it"""
    max_length: Optional[int] = None
    """Tokens of a pair at most; null: the command's max_length, or else the config's own"""
    batch_tokens: Optional[int] = None
    """Tokens of a batch at most, padding included; null: the command's"""
    threads: Optional[int] = None
    """Threads of a rank; null: as many as torch takes"""
