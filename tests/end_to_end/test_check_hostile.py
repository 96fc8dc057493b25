"""A line of 600 MB and a group of a million negatives are named in bounded memory, and the groups around them checked."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

from reranker.groups import Group, write_groups
from tests.tiny import tiny_model

_HUGE_MB = 600
_MOST_MB = 400


def test_a_huge_line_and_a_million_negatives_cost_neither_memory_nor_the_rest(tmp_path: Path) -> None:
    good = [Group(f"질문 {n}", (f"정답 {n}",), (f"오답 {n}", f"다른 오답 {n}")).to_json().encode() for n in range(1000)]
    many = json.dumps({"query": "q", "pos": ["p"], "neg": [f"n{n}" for n in range(1_000_000)]}).encode()
    path = tmp_path / "groups.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"\n".join(good[:500]) + b'\n{"query": "q", "pos": ["')
        for _ in range(_HUGE_MB):
            stream.write(b"x" * 1_000_000)
        stream.write(b'"], "neg": ["n"]}\n' + b"\n".join([*good[500:], many]) + b"\n")
    code = (
        "import re\nfrom pathlib import Path\nfrom reranker.cli import main\n"
        f"code = main(['check', 'groups={path}', 'output={tmp_path / 'out'}', 'fix=true'])\n"
        # Not getrusage: its peak begins with that of the process that started this one.
        "print(code, int(re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1]) // 1024)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    exit_code, megabytes = done.stdout.split()[-2:]
    assert exit_code == "1"
    assert int(megabytes) < _MOST_MB
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert report["groups"] == 1000
    assert report["unreadable"] == {"long_line": 1, "many_negatives": 1}
    examples = [example["where"] for example in report["findings"][0]["examples"]]
    assert examples == [f"{path}:501", f"{path}:1002"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "unreadable.jsonl").read_bytes().splitlines()]
    assert lines[0]["size"] == _HUGE_MB * 1_000_000 + 41
    assert lines[1]["line"].encode() == many


def test_the_tokenizer_of_a_model_directory_counts_the_lengths(tmp_path: Path) -> None:
    model = tiny_model(tmp_path / "model")
    write_groups(tmp_path / "groups.jsonl", [Group("질문", ("가 " * 50,), ("나 " * 100, "다"))])
    arguments = (f"groups={tmp_path / 'groups.jsonl'}", f"output={tmp_path / 'out'}", f"tokenizer={model}")
    subprocess.run([sys.executable, "-m", "reranker", "check", *arguments, "max_length=64"], check=True)
    report = json.loads((tmp_path / "out" / "report.json").read_text("utf-8"))
    assert {found["kind"]: found["count"] for found in report["findings"]}["too_long"] == 2
    assert report["lengths"]["pair"]["p100"] > 100
