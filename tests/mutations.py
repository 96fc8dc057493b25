"""Break each guarantee of data and forward in one place, and show that a test which is named for it fails.

A test that passes whatever the code does proves nothing. Each mutation is one replacement in a copy of the package;
the named test runs against the copy and must fail, and not for an error of the test run. In the unbroken copy the same tests pass. `bash launch/test.sh --all` runs this; by itself:

    python -m pytest tests/mutations.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One replacement of `old` (found once) by `new` in a file of reranker/, and the test that must fail for it."""

    breaks: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    Mutation(
        "the order does not depend on the key", "data/permutation.py",
        "common = keyed(*key)", "common = 0",
        "tests/unit/test_order.py::test_another_epoch_or_seed_has_another_order",
    ),
    Mutation(
        "a round of the permutation that leaks its low bits", "data/permutation.py",
        "left, right = right, left ^ (mix(right ^ key) & mask)", "left, right = right, left ^ ((right * 5 + key) & mask)",
        "tests/unit/test_permutation.py::test_no_bit_of_neighbours_is_related",
    ),
    Mutation(
        "the same among all elements at once", "data/permutation.py",
        "left, right = right, left ^ (_mix_all(right ^ np.uint64(key)) & mask)",
        "left, right = right, left ^ ((right * np.uint64(5) + np.uint64(key)) & mask)",
        "tests/unit/test_permutation.py::test_no_bit_of_a_million_neighbours_is_related",
    ),
    Mutation(
        "the plan drops the short last step's tail", "data/plan.py",
        "positions = range(step * groups, min((step + 1) * groups, total))",
        "positions = range(step * groups, max(min((step + 1) * groups, total - 1), step * groups + 1))",
        "tests/unit/test_plan.py::test_every_group_is_seen_once_per_epoch_on_any_world_size",
    ),
    Mutation(
        "the plan repeats groups to fill the last step", "data/plan.py",
        "positions = range(step * groups, min((step + 1) * groups, total))",
        "positions = range(min(step * groups, max(0, total - groups)), min((step + 1) * groups, total))",
        "tests/unit/test_plan.py::test_every_group_is_seen_once_per_epoch_on_any_world_size",
    ),
    Mutation(
        "the make-up of a step depends on the world size", "data/plan.py",
        "order = sorted(pairs, key=lambda position: (-sum(pairs[position]), position))",
        "order = sorted(pairs, key=lambda position: (-sum(pairs[position]), position))[world - 1 :]",
        "tests/unit/test_plan.py::test_tokens_every_group_is_seen_once_per_epoch_on_any_world_size",
    ),
    Mutation(
        "ranks have different accumulation", "data/plan.py",
        "ranked += [()] * (-len(ranked) % world)", "pass",
        "tests/unit/test_plan.py::test_tokens_all_ranks_run_as_many_micro_batches_and_none_costs_more_than_the_limit",
    ),
    Mutation(
        "a ghost has weight one", "data/collate.py",
        "weight_G = torch.tensor([1.0] * len(groups) + [0.0] * len(bad))",
        "weight_G = torch.tensor([1.0] * (len(groups) + len(bad)))",
        "tests/unit/test_stream.py::test_a_ghost_counts_for_nothing",
    ),
    Mutation(
        "a ghost is multiplied by zero instead of selected out", "model/losses.py",
        "scores_GP = torch.where(real_G[:, None], scores_GP, torch.zeros_like(scores_GP))", "pass",
        "tests/unit/test_losses.py::test_a_ghost_adds_nothing_to_any_part_of_an_objective_whatever_its_scores",
    ),
    Mutation(
        "the order depends on the number of workers", "data/stream.py",
        "for numbers in itertools.islice(self._numbers(), first, None, stride):",
        "for numbers in list(self._numbers())[first * 3 :: 1][: 99 if stride == 1 else 3]:",
        "tests/unit/test_stream.py::test_any_number_of_workers_gives_the_same_micro_batches_in_the_same_order",
    ),
    Mutation(
        "a member's checksum is not compared", "data/reader.py",
        "if len(content) != size or zlib.crc32(content) != int(columns.crc32[index]):", "if len(content) != size:",
        "tests/unit/test_stream.py::test_a_damaged_member_is_a_users_error_that_names_it",
    ),
    Mutation(
        "an index's checksum is not compared", "data/reader.py",
        "if hashlib.sha256(content).hexdigest() != digest:", "if False:",
        "tests/unit/test_pack.py::test_an_index_that_is_not_the_one_packed_is_refused",
    ),
    Mutation(
        "a fetched shard's checksum is not compared", "data/cache.py",
        "if hashed.hexdigest() != digest and found <= room:", "if False:",
        "tests/unit/test_cache.py::test_a_file_that_is_not_the_one_of_the_manifest_is_refused",
    ),
    Mutation(
        "the choice of negatives depends on a running number", "data/choose.py",
        "deal = Permutation(negatives, seed, _NEGATIVE, number, pass_ // hands)",
        "deal = Permutation(negatives, seed, _NEGATIVE, number, pass_)",
        "tests/unit/test_choose.py::test_all_negatives_are_shown_before_one_repeats",
    ),
    Mutation(
        "a random negative may be the group's own positive", "data/choose.py",
        "taken = {*group.pos, *group.neg} if count else set()", "taken = set()",
        "tests/unit/test_choose.py::test_a_random_negative_is_no_positive_of_the_group_and_no_passage_stands_twice",
    ),
    Mutation(
        "a weighted source begins each epoch anew", "data/mixture.py",
        "number, place = divmod(epoch * share.positions + before, share.groups)",
        "number, place = epoch, before % share.groups",
        "tests/unit/test_mixture.py::test_all_groups_of_a_source_are_shown_before_one_is_shown_again",
    ),
    Mutation(
        "the cursor stays behind the step that was done", "data/plan.py",
        "position = step.step * self.groups + step.groups", "position = step.step * self.groups",
        "tests/unit/test_plan.py::test_a_cursor_continues_exactly_at_any_step_under_any_world_size",
    ),
    Mutation(
        "packed pairs see each other", "model/unpad.py",
        "lengths = cu_seq_lens_q.diff().tolist()", "lengths = [query.shape[2]]",
        "tests/unit/test_unpad.py::test_no_pair_sees_another",
    ),
    Mutation(
        "positions run on from pair to pair", "model/unpad.py",
        "(before_T - before_T[starts_T] + 1) * counted_T", "(before_T + 1) * counted_T",
        "tests/unit/test_unpad.py::test_positions_are_the_models_own",
    ),
    Mutation(
        "the score is read behind a pair's last token", "model/unpad.py",
        'starts_N = kwargs["cu_seq_lens_q"][:-1]', 'starts_N = kwargs["cu_seq_lens_q"][1:] - 1',
        "tests/unit/test_unpad.py::test_packed_scores_and_gradients_equal_float64_as_the_padded_do",
    ),
    Mutation(
        "a micro-batch is tried that memory does not allow", "train/capacity.py",
        "(room if proved else (room + least) // 2)", "2 * room",
        "tests/unit/test_capacity.py::test_the_largest_that_fits_is_found_and_nothing_larger_is_tried",
    ),
]  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository, as far as these tests need it."""
    target = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in ("reranker", "tests", "conf", "launch"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target / name)
    return target


def outcome(copy: Path, *tests: str) -> tuple[int, str]:
    """(exit code of pytest, what it printed) against the copy."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return ran.returncode, ran.stdout + ran.stderr


def test_the_named_tests_pass_while_nothing_is_broken(copy: Path) -> None:
    code, printed = outcome(copy, *sorted({mutation.test for mutation in MUTATIONS}))
    assert code == 0, printed


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks.replace(" ", "-"))
def test_a_broken_guarantee_makes_its_test_fail(copy: Path, mutation: Mutation) -> None:
    path = copy / "reranker" / mutation.file
    whole = path.read_text("utf-8")
    assert whole.count(mutation.old) == 1, "the mutation no longer fits the code"
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, printed = outcome(copy, mutation.test)
    finally:
        path.write_text(whole, encoding="utf-8")
    assert code == 1, printed
    assert re.search(r"^FAILED tests/", printed, re.MULTILINE), printed
