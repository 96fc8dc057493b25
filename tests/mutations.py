"""Break each guarantee in one place, and show that a test which is named for it fails.

A test that passes whatever the code does proves nothing. Each mutation is one replacement in a copy of the
repository; the named test runs against the copy and must fail, and not for an error of the test run. In the unbroken
copy one test of each file must pass. By itself:

    python -m pytest tests/mutations.py

`bash launch/test.sh --all` runs this behind all tests, and of the mutations whose tests are not in tests/unit (they
start ranks, and take two thirds of the time) a third, on a slow machine a twelfth, chosen by the commit's hash:
MUTATIONS_SHARE=1/3 is the second of three shares.

Importing what is not ours takes longer than most of these tests, so that a process imports it once and runs each test
in a fork of itself.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
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
        "a chunk's second pass draws other dropout", "model/chunks.py",
        "        _seed(seed, number)\n        again_N", "        again_N",
        "tests/unit/test_chunks.py::test_dropout_draws_alike_in_both_passes_of_a_chunk",
    ),
    Mutation(
        "a chunk's gradient is that of its own pairs alone", "model/chunks.py",
        "(again_N * part_N).sum()", "again_N.sum()",
        "tests/unit/test_chunks.py::test_the_gradient_in_chunks_is_that_of_the_whole",
    ),
    Mutation(
        "random negatives end at once behind the warm-up", "data/choose.py",
        "left = 1 - behind / self.decay if behind < self.decay else 0.0", "left = 0.0",
        "tests/unit/test_choose.py::test_behind_the_warm_up_random_negatives_become_fewer_in_a_line",
    ),
    Mutation(
        "a training does not run in the chunks that it is told to", "train/job.py",
        "chunk_tokens=job.config.batch.chunk_tokens,", "chunk_tokens=None,",
        "tests/distributed/test_precision.py::test_fp16_and_bf16_follow_fp32_in_chunks[fp16]",
    ),
    Mutation(
        "a checkpoint from before a setting was there is refused", "train/resume.py",
        "return {**usual, **value} if isinstance(usual, dict) else value", "return value",
        "tests/unit/test_resume.py::test_a_setting_that_a_checkpoint_does_not_know_has_its_default",
    ),
    Mutation(
        "a draw by scores does not look at them", "data/choose.py",
        "return scores[place] / temperature - math.log", "return -math.log",
        "tests/unit/test_choose.py::test_negatives_come_as_often_as_their_scores_say",
    ),
    Mutation(
        "every pass begins with the first positives", "data/choose.py",
        "turn((pass_ * count + place) % positives)", "turn(place)",
        "tests/unit/test_choose.py::test_several_positives_stand_first_and_take_turns",
    ),
    Mutation(
        "only a group's first positive counts as one", "data/dataset.py",
        "sum(shown.positive for shown in every)", "1",
        "tests/unit/test_stream.py::test_several_positives_of_a_group_come_first_and_are_marked",
    ),
    Mutation(
        "the order depends on the number of workers", "data/stream.py",
        "itertools.islice(self._tasks(), first, None, stride)",
        "itertools.islice(self._tasks(), stride - 1 - first, None, stride)",
        "tests/unit/test_stream.py::test_any_number_of_workers_gives_the_same_micro_batches_in_the_same_order",
    ),
    Mutation(
        "a worker prepares whole steps by itself", "data/stream.py",
        "itertools.islice(self._tasks(), first, None, stride)",
        "(task for n, (_, tasks) in enumerate(itertools.groupby(self._tasks(), lambda task: task.step))"
        " if n % stride == first for task in tasks)",
        "tests/unit/test_stream.py::test_all_workers_prepare_the_first_step_together",
    ),
    Mutation(
        "workers prepare ahead without a bound", "data/stream.py",
        "ahead = prefetch * source.accumulation if", "ahead = 10_000 if",
        "tests/unit/test_stream.py::test_no_worker_prepares_more_than_it_is_allowed",
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
        "asking, asked = cu_q.diff().tolist(), cu_k.diff().tolist()", "asking, asked = [len(q_QHW)], [len(k_THW)]",
        "tests/unit/test_unpad.py::test_no_pair_sees_another",
    ),
    Mutation(
        "all tokens of the last layer are computed, though one of each pair is read", "model/unpad.py",
        "attention.output(out_1TH[:, starts_N], hidden_states[:, starts_N])", "attention.output(out_1TH, hidden_states)",
        "tests/unit/test_unpad.py::test_a_packed_micro_batch_computes_its_tokens_and_no_more",
    ),
    Mutation(
        "a CPU trains in float32 though it multiplies bfloat16", "checks.py",
        "Precision.bf16 if bf16_processor else Precision.fp32", "Precision.fp32",
        "tests/unit/test_config.py::test_auto_is_bf16_on_a_cpu_that_has_its_products",
    ),
    Mutation(
        "one rank that offloads is at a stage that does not", "train/job.py",
        "alone=ranks.world == 1 and not config.deepspeed.offload,", "alone=ranks.world == 1,",
        "tests/distributed/test_resume.py::test_one_rank_that_offloads_is_at_a_stage_that_does",
    ),
    Mutation(
        "one rank keeps the copies that ZeRO shares out among many", "checks.py",
        "stage = 0 if alone and (precision is Precision.fp32 or autocast) else 1", "stage = 1",
        "tests/unit/test_config.py::test_one_rank_with_weights_in_float32_keeps_no_copies_for_zero",
    ),
    Mutation(
        "bf16 on a CPU has weights and sums in 16 bits", "checks.py",
        '(device == "cpu" if config.autocast is None else config.autocast)', "bool(config.autocast)",
        "tests/distributed/test_parity.py::test_bf16_on_a_cpu_is_autocast_of_plain_pytorch",
    ),
    Mutation(
        "a training multiplies as the one before it in its process did", "train/distributed.py",
        "matmul.allow_tf32 = tf32", "matmul.allow_tf32 |= tf32",
        "tests/distributed/test_precision.py::test_float32_is_multiplied_whole_unless_a_training_asks_for_tf32",
    ),
    Mutation(
        "the optimizer is not offloaded", "train/deepspeed_config.py",
        "    if offload:\n", "    if False:\n",
        "tests/unit/test_deepspeed_config.py::test_offload_keeps_the_optimizer_in_the_machines_memory",
    ),
    Mutation(
        "a trimmed model forgets that it failed its gate", "export/trim.py",
        "if (verdict := Path(config.model) / GATE).is_file():", "if (verdict := Path(config.model) / GATE).is_dir():",
        "tests/unit/test_trim.py::test_a_trimmed_model_keeps_type_contract_and_card_and_tells_of_itself",
    ),
    Mutation(
        "under autocast attention is in 16 bits", "model/unpad.py",
        'with torch.autocast("cpu", enabled=False):', 'with torch.autocast("cpu", torch.bfloat16):',
        "tests/unit/test_unpad.py::test_under_autocast_packing_is_as_exact_as_padding",
    ),
    Mutation(
        "another base of the gate is rounded otherwise than the model in training", "train/gate.py",
        "by_autocast=job.arithmetic.autocast", "by_autocast=False",
        "tests/distributed/test_gate.py::test_another_base_is_measured_as_the_model_in_training_is",
    ),
    Mutation(
        "a replay multiplies in float32 what the run multiplied in bf16", "train/replay_setup.py",
        'settings.precision.autocast = state.get("autocast", False)', "settings.precision.autocast = False",
        "tests/distributed/test_replay.py::test_the_step_behind_a_checkpoint_has_the_loss_and_the_norm_that_its_ranks_recorded[autocast]",
    ),
    Mutation(
        "freed memory goes back to the system", "train/memory.py",
        "if mallopt is not None and not own:", "if False:",
        "tests/unit/test_memory.py::test_freed_blocks_are_not_cleared_anew",
    ),
    Mutation(
        "positions run on from pair to pair", "model/unpad.py",
        "(before_T - before_T[starts_T] + 1) * counted_T", "(before_T + 1) * counted_T",
        "tests/unit/test_unpad.py::test_positions_are_the_models_own",
    ),
    Mutation(
        "the score is read behind a pair's last token", "model/unpad.py",
        "starts_N = cu_seq_lens_q[:-1].long()", "starts_N = (cu_seq_lens_q[1:] - 1).long()",
        "tests/unit/test_unpad.py::test_packed_scores_and_gradients_equal_float64_as_the_padded_do",
    ),
    Mutation(
        "a micro-batch is tried that memory does not allow", "train/capacity.py",
        "(room if proved else (room + least) // 2)", "2 * room",
        "tests/unit/test_capacity.py::test_the_largest_that_fits_is_found_and_nothing_larger_is_tried",
    ),
    Mutation(
        "a checkpoint is not verified before it is loaded", "train/checkpoint.py",
        "        reason = damage(path)\n        if reason is None:\n            return path, passed",
        "        reason = None\n        if reason is None:\n            return path, passed",
        "tests/unit/test_checkpoint.py::test_a_flipped_byte_anywhere_is_passed_over",
    ),
    Mutation(
        "a checkpoint is not read back before older ones are removed", "train/checkpoint.py",
        "each(lambda: _verify(final) if ranks.first else None)", "pass",
        "tests/unit/test_checkpoint.py::test_what_does_not_read_back_is_never_a_checkpoint_and_removes_no_older_one",
    ),
    Mutation(
        "a training that was taken over prunes what the other one saved", "train/checkpoint.py",
        "    owned()  # reading back takes long: what is behind `step` by now may be another training's\n", "",
        "tests/unit/test_checkpoint.py::test_what_another_training_saved_meanwhile_is_not_pruned",
    ),
    Mutation(
        "the directory of checkpoints is not flushed", "train/checkpoint.py",
        "        fsync_directory(staging.parent.parent)", "        pass",
        "tests/unit/test_checkpoint.py::test_every_file_and_name_is_on_the_disk_before_the_checkpoint_has_its_name",
    ),
    Mutation(
        "records are not flushed before their checkpoint", "train/events.py",
        "        self._tracker.flush()\n", "",
        "tests/chaos/test_kill.py::test_the_records_of_a_checkpoint_are_on_the_disk_before_it_has_its_name",
    ),
    Mutation(
        "fragments are not flushed to the disk", "train/pieces.py",
        "os.fsync(stream.fileno())", "pass",
        "tests/unit/test_checkpoint.py::test_every_file_and_name_is_on_the_disk_before_the_checkpoint_has_its_name",
    ),
    Mutation(
        "a checkpoint is written under its own name", "train/checkpoint.py",
        'staging = final.with_name(f".{final.name}.staging")', "staging = final",
        "tests/chaos/test_kill.py::test_a_checkpoint_is_whole_or_absent_whenever_ranks_are_killed_while_writing_it",
    ),
    Mutation(
        "a fragment that no manifest names is read", "train/checkpoint.py",
        "    return files, wrong | {name: f\"{name} is not named in {MANIFEST}\" for name in sorted(surplus)}", "    return files, wrong",
        "tests/unit/test_checkpoints.py::test_fragments_that_no_manifest_names_are_found",
    ),
    Mutation(
        "a checkpoint holds what the training goes on with", "train/fragments.py",
        'values.detach().to("cpu", torch.float32, copy=True)', 'values.detach().to("cpu", torch.float32)',
        "tests/unit/test_checkpoint.py::test_fragments_are_copies_and_each_rank_has_an_equal_slice_at_stage_0",
    ),
    Mutation(
        "failed saves are never the end", "train/saving.py",
        "if len(self._failures) >= TRIES:", "if len(self._failures) > TRIES:",
        "tests/chaos/test_survive.py::test_two_saves_in_a_row_that_fail_stop_the_training_and_keep_the_old_checkpoint",
    ),
    Mutation(
        "a save that succeeds does not forget the one that failed", "train/saving.py",
        "self._failures.clear()", "pass",
        "tests/unit/test_saving.py::test_a_save_that_fails_is_told_and_the_next_one_counts_anew",
    ),
    Mutation(
        "the last checkpoint is not tried again", "train/saving.py",
        "if self._failures and self._again is not None:", "if False:",
        "tests/chaos/test_survive.py::test_the_last_checkpoint_is_tried_again",
    ),
    Mutation(
        "a rank stops without the others", "train/distributed.py",
        "return result, bool(any_raised)", "return result, raised",
        "tests/chaos/test_survive.py::test_a_signal_to_one_rank_saves_and_ends_all_at_the_same_step[0-SIGTERM]",
    ),
    Mutation(
        "a request to stop is not saved", "train/loop.py",
        "                events.save(done, last, None)\n", "",
        "tests/chaos/test_survive.py::test_a_signal_to_one_rank_saves_and_ends_all_at_the_same_step[0-SIGTERM]",
    ),
    Mutation(
        "workers take signals as the rank does", "data/stream.py",
        "signal.signal(number, signal.SIG_IGN)", "signal.signal(number, signal.SIG_DFL)",
        "tests/unit/test_stream.py::test_workers_outlive_the_signals_that_end_a_training",
    ),
    Mutation(
        "the workers of a killed rank are left behind", "data/stream.py",
        "    while os.getppid() == rank:", "    while True:",
        "tests/chaos/test_survive.py::test_a_rank_that_is_lost_takes_the_job_down_and_is_named[rank-0-killed]",
    ),
    Mutation(
        "a gradient that is not finite goes unnoticed", "train/loop.py",
        '(plan.precision != "fp16" or outcome.at_floor)', "False",
        "tests/chaos/test_survive.py::test_a_gradient_that_is_not_finite_stops_all_ranks_before_the_update[zero2-fp32-nan]",
    ),
    Mutation(
        "stage 0 updates with whatever gradient it has", "train/engine.py",
        "self._skipped_at_stage_0 = not bool(self._norm_at_stage_0.isfinite())", "self._skipped_at_stage_0 = False",
        "tests/chaos/test_survive.py::test_a_gradient_that_is_not_finite_stops_all_ranks_before_the_update[zero0-fp32-nan]",
    ),
    Mutation(
        "a step that was skipped counts as an update", "train/events.py",
        '"updates": step - self.tally.skipped,', '"updates": step,',
        "tests/chaos/test_survive.py::test_an_overflow_of_fp16_on_one_rank_is_skipped_by_all_and_the_schedule_goes_on",
    ),
    Mutation(
        "fp16 goes on at its least scale", "train/loop.py",
        "or outcome.at_floor", "or False",
        "tests/chaos/test_survive.py::test_fp16_that_overflows_at_its_least_scale_ends_the_run",
    ),
    Mutation(
        "a changed batch is resumed with", "train/resume.py",
        "refused = [key for key in differences if key not in accepted]", "refused: list[str] = []",
        "tests/chaos/test_survive.py::test_another_seed_and_batch_are_refused_with_everything_that_differs",
    ),
    Mutation(
        "an accepted batch misses groups", "train/resume.py",
        "position -= position % start.groups", "position += -position % start.groups",
        "tests/unit/test_resume.py::test_with_another_batch_it_goes_on_at_the_last_border_of_its_steps",
    ),
    Mutation(
        "a new level of the loss is a spike for ever", "train/guards.py",
        "self._losses.append(min(loss, self._limit()))", "self._losses.append(loss) if not self.is_spike(loss) else None",
        "tests/unit/test_guards.py::test_a_new_level_of_the_loss_is_soon_no_spike_any_more",
    ),
    Mutation(
        "a spike counts for all that it is", "train/guards.py",
        "self._losses.append(min(loss, self._limit()))", "self._losses.append(loss)",
        "tests/unit/test_guards.py::test_a_spike_is_far_above_what_came_before_and_does_not_hide_the_next",
    ),
    Mutation(
        "scores on their way to a teacher's are a collapse", "train/guards.py",
        "narrow = _mean(self._spreads) < COLLAPSED * _mean(self._teachers)", "narrow = True",
        "tests/distributed/test_guards.py::test_scores_that_come_as_close_as_a_teachers_are_no_collapse",
    ),
    Mutation(
        "scores that rank as a teacher are a collapse", "train/guards.py",
        "return narrow and _mean(self._losses) >= NEAR_CHANCE * _mean(self._equals)", "return narrow",
        "tests/unit/test_guards.py::test_scores_that_rank_as_the_teacher_have_not_collapsed_however_far_apart_its_own_are",
    ),
    Mutation(
        "no collapse is told beside a teacher", "train/guards.py",
        "(self.labels is not None or self._tells_nothing())", "self.labels is not None",
        "tests/distributed/test_guards.py::test_beside_a_teacher_scores_that_collapse_are_told",
    ),
    Mutation(
        "an older checkpoint counts as a loss of equal scores of what little was seen since", "train/guards.py",
        "if len(self._equals) < self.steps:", "if not self._equals:",
        "tests/unit/test_guards.py::test_a_checkpoint_of_before_says_nothing_of_a_teacher_until_the_window_is_full_again",
    ),
    Mutation(
        "what a teacher wants is not divided by its temperature", "train/meter.py",
        "wanted_GP = on_device.teacher_GP / self.objective.temperature", "wanted_GP = on_device.teacher_GP",
        "tests/unit/test_meter.py::test_with_a_teacher_a_record_has_the_loss_of_equal_scores_and_the_spread_of_what_the_teacher_wants",
    ),
    Mutation(
        "equal scores lose their order", "model/losses.py",
        "NEARLY = 1e-6", "NEARLY = 0.0",
        "tests/unit/test_objectives.py::test_scores_that_have_collapsed_have_the_loss_of_equal_ones_whatever_the_loss[lambdaloss]",
    ),
    Mutation(
        "offload goes on adding to a gradient that overflowed", "train/engine.py",
        "if skipped and self._offload and self.stage in (1, 2):", "if False:",
        "tests/chaos/test_survive.py::test_an_overflow_of_fp16_on_one_rank_is_skipped_by_all_and_the_schedule_goes_on[zero2-offload]",
    ),
    Mutation(
        "the best of an earlier numbering is kept", "train/saving.py",
        'if entry["step"] <= step', "if True",
        "tests/unit/test_saving.py::test_the_ranking_keeps_the_best_and_the_earlier_of_equals",
    ),
    Mutation(
        "a checkpoint loses its files before its name", "train/checkpoint.py",
        "    os.replace(path, aside)\n", "    aside = path\n",
        "tests/unit/test_checkpoint.py::test_what_cannot_be_removed_fails_no_save_and_leaves_no_half_with_a_name",
    ),
    Mutation(
        "the name of a checkpoint is not flushed", "train/checkpoint.py",
        "    fsync_directory(final.parent)", "    pass",
        "tests/unit/test_checkpoint.py::test_every_file_and_name_is_on_the_disk_before_the_checkpoint_has_its_name",
    ),
    Mutation(
        "the loss scaler begins anew", "train/resume.py",
        'engine.load_scaler(begun.state["scaler"])', "pass",
        "tests/distributed/test_precision.py::test_fp16_resumes_with_the_scaler_as_it_was[2]",
    ),
    Mutation(
        "a request to stop ends a rank that still imports", "train/preemption.py",
        "signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)", "signal.pthread_sigmask(signal.SIG_BLOCK, ())",
        "tests/chaos/test_start.py::test_a_request_to_stop_while_a_rank_still_imports_is_kept[module0-SIGUSR1]",
    ),
    Mutation(
        "the second signal is not heard", "train/preemption.py",
        "os._exit(128 + numbers[0])", "pass",
        "tests/chaos/test_survive.py::test_a_second_signal_ends_at_once",
    ),
    Mutation(
        "the requeue marker of an earlier stop is left", "train/main.py",
        "clear_requeue(job.run_dir)", "pass",
        "tests/chaos/test_survive.py::test_a_signal_to_one_rank_saves_and_ends_all_at_the_same_step[0-SIGTERM]",
    ),
    Mutation(
        "the ranks of a sweep meet where they met before", "train/distributed.py",
        'PrefixStore(f"meeting_{next(times)}", store)', 'PrefixStore("meeting", store)',
        "tests/distributed/test_sweep.py::test_a_local_sweep_is_shown_while_it_runs_when_it_is_cut_off_and_behind_its_end",
    ),
    Mutation(
        "a sweep whose process is gone is running", "cluster/sweep_directory.py",
        "with FileLock(directory / LOCK).acquire(blocking=False):\n            return False",
        "with FileLock(directory / LOCK).acquire(blocking=False):\n            return True",
        "tests/unit/test_local_sweep.py::test_a_sweep_is_running_as_long_as_its_process_is_there",
    ),
    Mutation(
        "a training that failed counts as done", "cluster/sweep.py",
        'if entry["code"] and start == entry["start"]:', "if False:",
        "tests/unit/test_local_sweep.py::test_the_trainings_of_a_local_sweep_are_listed_best_first",
    ),
    Mutation(
        "Hydra's own launcher begins the trainings of a sweep", "cluster/plugins.py",
        "store.store(_DEFAULT, local, group=_GROUP)", "pass",
        "tests/unit/test_launchers.py::test_a_sweep_is_one_however_it_is_asked_for[hydra.mode=MULTIRUN]",
    ),
    Mutation(
        "a sweep is submitted into the directory of one that is under way", "cluster/launcher.py",
        "with take(directory):", "if True:",
        "tests/unit/test_submit.py::test_a_sweep_is_not_submitted_into_the_directory_of_one_that_is_under_way",
    ),
    Mutation(
        "two trainings of a sweep begin in one directory that the clock names", "cluster/local.py",
        "refuse_shared([*begun, ", "list([*begun, ",
        "tests/unit/test_launchers.py::test_run_directories_that_hydra_or_the_clock_names",
    ),
    Mutation(
        "a sweep that was asked to stop begins the next training", "cluster/local.py",
        "self._stopped = isinstance(code, Stopped)", "self._stopped = False",
        "tests/unit/test_launchers.py::test_behind_a_training_that_was_asked_to_stop_no_other_begins",
    ),
    Mutation(
        "a request to stop is not one for the sweep", "train/main.py",
        "if any(ranks.gather(stop.requested)) else code", "if False else code",
        "tests/chaos/test_sweep.py::test_a_sweep_that_is_asked_to_stop_begins_no_further_training[between_two_steps]",
    ),
    Mutation(
        "in report.html what has no value comes first where the largest does", "evaluate/page_queries.js",
        "if (x === null) return 1;", "if (x === null) return choice.down ? -1 : 1;",
        "tests/unit/test_page_script.py::test_a_column_sorts_with_what_has_no_value_last_and_equal_ones_as_they_were",
    ),
    Mutation(
        "in report.html one of the words is enough", "evaluate/page_queries.js",
        "words.every((word)", "words.some((word)",
        "tests/unit/test_page_script.py::test_a_query_is_found_by_all_of_its_words_and_its_set",
    ),
    Mutation(
        "in report.html a query that one system has alone is a tie", "evaluate/page_queries.js",
        ".filter((by) => by !== null);", ";",
        "tests/unit/test_page_script.py::test_two_systems_are_compared_on_the_queries_that_both_have",
    ),
    Mutation(
        "in report.html small differences are rounded away", "evaluate/page.py",
        "round(of[metric], 6)", "round(of[metric], 4)",
        "tests/unit/test_page_script.py::test_a_difference_is_one_however_small",
    ),
    Mutation(
        "what is watched begins anew", "train/events.py",
        '"health": self._health.to_dict(),', '"health": Health(4, 1.0).to_dict(),',
        "tests/distributed/test_guards.py::test_spikes_are_skipped_by_all_ranks_and_alike_when_interrupted",
    ),
    Mutation(
        "a replay scales the gradient as if there were one rank", "train/replay.py",
        "share=job.world / step.groups,", "share=1 / step.groups,",
        "tests/distributed/test_replay.py::test_the_step_behind_a_checkpoint_has_the_loss_and_the_norm_that_its_ranks_recorded[packed]",
    ),
    Mutation(
        "verify does not compare a file's sha256", "train/checkpoints.py",
        "if _sha256(path / name, read) != digest:", "if False:",
        "tests/unit/test_checkpoints.py::test_every_flipped_byte_is_found_and_the_first_damaged_file_is_named",
    ),
    Mutation(
        "the workers of a rank that the watchdog ends live on", "train/watchdog.py",
        "process.kill()", "pass",
        "tests/distributed/test_watchdog.py::test_a_rank_that_stalls_is_named_and_every_rank_dumps_its_stacks_and_its_batch",
    ),
    Mutation(
        "a rank that raises does not say so", "train/watchdog.py",
        "self._error, self._due = error, 0.0", "self._due = 0.0",
        "tests/distributed/test_watchdog.py::test_a_rank_that_raises_is_named_with_its_error",
    ),
    Mutation(
        "a rank that nobody watches any more is taken for one that hangs", "train/watchdog.py",
        "if line is None and len(connected) == self._ranks.world:", "if line is None:",
        "tests/distributed/test_watchdog.py::test_a_defect_of_the_watchdog_is_told_and_ends_no_training",
    ),
    Mutation(
        "a forked process waits forever for the timer's thread", "train/watchdog.py",
        "before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._changing.release",
        "after_in_child=lambda: None",
        "tests/distributed/test_watchdog.py::test_a_training_that_gets_on_ends_well_and_leaves_nothing_behind",
    ),
    Mutation(
        "a worker keeps the connection of its killed rank open", "train/links.py",
        "os.register_at_fork(after_in_child=self._close_all)", "pass",
        "tests/distributed/test_watchdog.py::test_a_rank_that_is_killed_is_named_though_its_worker_lives_on",
    ),
    Mutation(
        "a rank that has ended goes unnoticed", "train/signs.py",
        "        if not sign.failure:", "        if False:",
        "tests/chaos/test_survive.py::test_a_rank_that_is_lost_takes_the_job_down_and_is_named[killed]",
    ),
    Mutation(
        "nothing is a hang", "train/signs.py",
        "    if min(sign.idle for sign in signs) < limit:", "    if True:",
        "tests/distributed/test_watchdog.py::test_a_hang_is_blamed_on_the_rank_that_the_others_wait_for",
    ),
    Mutation(
        "collectives have the half hour of torch and not train.timeout", "train/engine.py",
        "c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)",
        "c10d._set_pg_timeout(datetime.timedelta(seconds=1800), group)",
        "tests/chaos/test_survive.py::test_without_a_limit_for_hangs_a_collective_that_a_rank_does_not_join_ends_behind_its_timeout[backward-zero2]",
    ),
    Mutation(
        "a rank that waits in a collective is blamed for a hang", "train/signs.py",
        "free = [sign for sign in signs if not sign.waits] or signs", "free = signs",
        "tests/distributed/test_watchdog.py::test_a_hang_is_blamed_on_the_rank_that_the_others_wait_for",
    ),
    Mutation(
        "what a gate refused before its settings changed is not judged anew", "prepare/translate/run.py",
        "and entry.gates != self._gates.digest", "and False",
        "tests/unit/test_translate.py::test_what_a_gate_refuses_is_kept_with_its_reason_and_judged_anew_without_a_request",
    ),
    Mutation(
        "a line that is no group ends the translation", "prepare/translate/lines.py",
        "yield Line(record.where, None, record)", "raise ValueError(record.reason)",
        "tests/unit/test_translate.py::test_every_unreadable_line_is_named_and_the_others_are_translated",
    ),
    Mutation(
        "shards that prepare did not pack are replaced", "prepare/prepare.py",
        "if stage.name in journal.begun or not stage.result.parent.exists():", "if True:",
        "tests/end_to_end/test_prepare.py::test_what_stands_where_a_stage_writes_is_not_replaced",
    ),
    Mutation(
        "what follows an array is dropped in silence", "prepare/readers/lines.py",
        "if behind := _behind(text[1:], stream.buffer):", "if behind := None:",
        "tests/unit/test_readers.py::test_what_stands_behind_an_array_is_told_and_so_is_what_a_wrong_element_hides",
    ),
    Mutation(
        "the dev split of an evaluation may leak", "prepare/check/leaks.py",
        'if name != "train"] or', 'if name == "test"] or',
        "tests/unit/test_check.py::test_of_a_directory_every_split_but_train_is_guarded",
    ),
    Mutation(
        "a group whose negatives are all rejected is written", "prepare/translate/write.py",
        "if query is None or None in pos or (neg and not left):", "if query is None or None in pos:",
        "tests/unit/test_translate.py::test_a_group_goes_with_its_query_its_positive_or_all_of_its_negatives",
    ),
    Mutation(
        "a ghost's scores reach a loss by name", "model/objectives.py",
        "scores_GP = torch.where(present_GP, scores_GP, torch.zeros_like(scores_GP))", "pass",
        "tests/unit/test_objectives.py::test_a_ghost_adds_exactly_nothing_to_any_loss",
    ),
    Mutation(
        "a loss by name is a mean over the micro-batch's groups", "model/objectives.py",
        "return (loss_G * weight_G.to(loss_G.dtype)).sum()", "return (loss_G * weight_G.to(loss_G.dtype)).mean()",
        "tests/unit/test_objectives.py::test_a_group_weighs_the_same_in_any_batch",
    ),
    Mutation(
        "the share of a part leaves a group out", "prepare/part.py",
        "total * (self.number + 1) // self.of)", "(total * (self.number + 1) - 1) // self.of)",
        "tests/unit/test_part.py::test_the_ranges_of_all_parts_are_everything_once",
    ),
    Mutation(
        "a merge takes parts of other settings", "prepare/part.py",
        '(value.get("schema"), value.get("key")) != (SCHEMA, self._key)', 'value.get("schema") != SCHEMA',
        "tests/unit/test_part.py::test_a_part_with_other_settings_or_inputs_is_not_merged[pack]",
    ),
    Mutation(
        "a merge takes a shard that its task did not write", "prepare/pack.py",
        "if not file.is_file() or sha256(file) != digest:", "if not file.is_file():",
        "tests/unit/test_part.py::test_a_shard_of_a_part_that_is_damaged_or_gone_is_named",
    ),
    Mutation(
        "a merge takes what another run of a part has found", "prepare/mine/write.py",
        'if not path.is_file() or sha256(path) != record["sha256"]:', "if not path.is_file():",
        "tests/unit/test_part.py::test_what_another_run_of_a_part_of_mining_has_found_is_not_merged",
    ),
    Mutation(
        "a positive of the same query is mined as a negative", "prepare/mine/pool.py",
        "        if place in self._request.same:", "        if False:",
        "tests/unit/test_mine.py::test_no_positive_of_the_same_query_and_no_equivalent_is_a_negative",
    ),
    Mutation(
        "of several positives the highest counts", "prepare/mine/filters.py",
        "lowest = min(positives)", "lowest = max(positives)",
        "tests/unit/test_mine.py::test_several_positives_count_by_the_lowest",
    ),
    Mutation(
        "the positives take ranks of the window", "prepare/mine/pool.py",
        "others = [place for place in order if place not in pos]", "others = order",
        "tests/unit/test_mine.py::test_the_window_skips_ranks_that_the_positives_do_not_take",
    ),
    Mutation(
        "what was searched is searched again", "prepare/mine/command.py",
        "if not blocks.done(number)]", "if True]",
        "tests/unit/test_mine.py::test_a_killed_search_goes_on_behind_its_last_block",
    ),
    Mutation(
        "scores stay of passages that are gone", "prepare/check/fix.py",
        'neg_scores=chosen(group.neg_scores, "neg"),', "neg_scores=group.neg_scores,",
        "tests/unit/test_check.py::test_scores_go_with_their_passages",
    ),
    Mutation(
        "near is measured on one side", "prepare/check/near.py",
        "likeness = common / (len(of) + len(self._sets[text]) - common)", "likeness = common / len(of)",
        "tests/unit/test_check.py::test_the_near_join_finds_what_comparing_all_pairs_finds",
    ),
    Mutation(
        "a wrong checksum loses the last line", "prepare/readers/lines.py",
        "if size and (made :=", "if failure is None and size and (made :=",
        "tests/unit/test_readers.py::test_a_wrong_checksum_behind_the_last_line_loses_no_group",
    ),
    Mutation(
        "a damaged result counts as done", "prepare/prepare.py",
        'if entry.get("sha256") != sha256(stage.result):', "if False:",
        "tests/end_to_end/test_prepare.py::test_a_stage_that_is_done_is_not_run_again_until_something_before_it_changes",
    ),
    Mutation(
        "a lost URL passes the gate", "prepare/translate/gates.py",
        "if url.lower() not in text", "if url.lower() not in source.lower()",
        "tests/unit/test_gates.py::test_bad_translations_are_refused_by_their_gate",
    ),
    Mutation(
        "a model reads from the wrong side", "prepare/translate/generation.py",
        '"left" if self.causal else "right"', '"right"',
        "tests/unit/test_translate_huggingface.py::test_a_batch_gives_what_its_texts_give_one_by_one",
    ),
    Mutation(
        "what another group of a query calls right is mined as a negative", "prepare/mine/store.py",
        "for place in (*row.pos, *row.also):", "for place in row.pos:",
        "tests/unit/test_mine.py::test_what_any_group_of_a_query_calls_right_is_a_negative_in_none",
    ),
    Mutation(
        "equivalents of equivalents are mined as negatives", "prepare/mine/store.py",
        "self._parents[self._root(one)] = self._root(other)", "self._parents[one] = other",
        "tests/unit/test_mine.py::test_what_says_the_same_through_others_is_no_negative",
    ),
    Mutation(
        "scores stay where other passages stand", "prepare/mine/finish.py",
        "elif tuple(places) != request.neg and", "elif False and",
        "tests/unit/test_mine.py::test_scores_stay_where_the_passages_stay_and_are_told_of_where_they_go",
    ),
    Mutation(
        "equal embeddings stand by block", "prepare/mine/dense.py",
        "cut = values[:, depth - 1] == values[:, depth]", "cut = values[:, depth - 1] > 9",
        "tests/unit/test_mine.py::test_equal_embeddings_stand_by_place_for_any_block",
    ),
    Mutation(
        "a line too deep for the parser is a defect", "groups.py",
        "except (RecursionError, ValueError) as error:", "except json.JSONDecodeError as error:",
        "tests/unit/test_groups.py::test_a_line_that_no_parser_takes_is_named_as_any_other",
    ),
    Mutation(
        "AdamW forgets how many updates there were", "train/engine.py",
        "        self._set_updates(steps)", "        pass",
        "tests/distributed/test_resume.py::test_resume_of_a_killed_training_is_bitwise_the_uninterrupted_one[zero1-fp32]",
    ),
    Mutation(
        "the weights of the forward do not follow the masters", "train/engine.py",
        "            self._engine.optimizer.update_lp_params()", "            pass",
        "tests/distributed/test_resume.py::test_resume_of_a_killed_training_is_bitwise_the_uninterrupted_one[zero2-bf16]",
    ),
    Mutation(
        "moments of later parameter groups are not saved", "train/engine.py",
        "            optimizer._hp_optimizer_states_linked = False", "            return",
        "tests/distributed/test_resume.py::test_resume_of_a_killed_training_is_bitwise_the_uninterrupted_one[zero2-fp32]",
    ),
    Mutation(
        "an accepted change of the data goes on in the middle of an epoch", "train/resume.py",
        "        position = 0", "        pass",
        "tests/unit/test_resume.py::test_with_other_groups_or_another_order_the_epoch_begins_anew[data.shards]",
    ),
    Mutation(
        "a failure takes the place of a translation that was paid", "prepare/translate/ledger.py",
        "WHERE excluded.translation IS NOT NULL OR entries.translation IS NULL", "",
        "tests/unit/test_translate.py::test_a_paid_translation_stays_where_another_attempt_at_it_fails",
    ),
    Mutation(
        "a group without negatives is lost in translation", "prepare/translate/write.py",
        "or (neg and not left)", "or not left",
        "tests/unit/test_translate.py::test_a_source_may_be_in_any_form_and_have_no_negatives",
    ),
    Mutation(
        "the demo trains on documents of its dev queries", "demo/prepare.py",
        'if row["doc"] in dev_documents}', "if False}",
        "tests/unit/test_demo_data.py::test_the_source_is_english_groups_of_one_negative_without_dev_or_held_out_documents",
    ),
    Mutation(
        "a training that was taken over goes on saving", "train/owner.py", "if other != self:", "if False:",
        "tests/chaos/test_survive.py::test_a_run_directory_that_another_training_took_is_left_alone",
    ),
    Mutation(
        "an ONNX file is kept whatever it scores", "export/onnx.py",
        "if not difference <= TOLERANCE:", "if False:",
        "tests/end_to_end/test_onnx.py::test_scores_that_are_not_the_models_leave_nothing_behind[0.0002-True]",
    ),
    Mutation(
        "an ONNX file of NaN scores is kept", "export/onnx.py",
        "if not difference <= TOLERANCE:", "if difference > TOLERANCE:",
        "tests/end_to_end/test_onnx.py::test_scores_that_are_not_the_models_leave_nothing_behind[nan-True]",
    ),
    Mutation(
        "an attention that sees more than padding is fused as if it did not", "export/onnx_fusion.py",
        "if not np.where(kept_B11L, bias_BHLL == 0, bias_BHLL <= _TOO_LOW).all():", "if False:",
        "tests/end_to_end/test_onnx_fusion.py::test_a_mask_that_hides_more_than_padding_is_not_taken_for_one_of_padding",
    ),
    Mutation(
        "fused attentions see padding", "export/onnx_fusion.py",
        "node.replace_input_with(_MASK, mask)", "pass",
        "tests/end_to_end/test_onnx_fusion.py::test_attentions_that_pytorch_computes_step_by_step_are_fused_too",
    ),
    Mutation(
        "weights of fused attentions are joined each time they are used", "export/onnx_fusion.py",
        "    fold_constants_ir(program, should_fold=_joins_weights)\n", "",
        "tests/end_to_end/test_onnx_fusion.py::"
        "test_every_attention_is_one_operator_that_knows_padding_and_holds_its_weights[xlm-roberta]",
    ),
    Mutation(
        "a fused ONNX file is kept whatever it scores", "export/onnx.py",
        "_check_scores(model, path, longest)\n    except", "pass\n    except",
        "tests/end_to_end/test_onnx_fusion.py::test_what_fusing_breaks_is_exported_without_and_told[scores]",
    ),
    Mutation(
        "fused attentions stay in float32 in the 8-bit file", "export/onnx_fusion.py",
        'del node.attributes["qkv_hidden_sizes"]', "pass",
        "tests/end_to_end/test_onnx.py::test_the_8_bit_file_agrees_as_far_as_is_told[xlm-roberta]",
    ),
    Mutation(
        "an older restart takes the run directory back", "train/owner.py",
        "and other.restart > self.restart", "and False",
        "tests/chaos/test_survive.py::test_an_older_restart_of_a_job_does_not_take_its_run_directory_back",
    ),
    Mutation(
        "each record that W&B does not keep up with is told of", "train/aside.py",
        "            if not self._told:",
        "            if True:",
        "tests/unit/test_aside.py::test_a_call_that_never_returns_holds_nobody_up",
    ),
    Mutation(
        "a metric has the last value alone in its summary", "train/wandb_run.py",
        'summary = f"{metric.summary},last" if metric.summary else None',
        "summary = None",
        "tests/unit/test_tracking.py::test_every_metric_is_drawn_over_optimizer_steps_and_its_best_value_stands_for_the_run",
    ),
    Mutation(
        "a step has two values in TensorBoard behind a resume", "train/event_files.py",
        "purge_step=done + 1",
        "purge_step=None",
        "tests/unit/test_tracking.py::test_no_step_has_two_values_in_tensorboard_behind_a_resume_that_went_back",
    ),
    Mutation(
        "a run that ended early is one that is done", "train/wandb_run.py",
        "self._run.finish(exit_code=int(failed))",
        "self._run.finish(exit_code=0)",
        "tests/unit/test_tracking.py::test_an_error_that_ends_a_training_is_alerted_and_the_run_has_failed",
    ),
    Mutation(
        "the examples are the first of the dev file", "train/examples.py",
        "key=lambda place: (hashlib.sha256(queries[place].encode()).digest(), place)",
        "key=lambda place: place",
        "tests/unit/test_examples.py::test_the_queries_are_chosen_by_their_text_and_not_by_their_place",
    ),
    Mutation(
        "a table of examples lacks a right passage that ranks low", "train/examples.py",
        "if rank <= PASSAGES or rank == right_at",
        "if rank <= PASSAGES",
        "tests/unit/test_examples.py::test_a_table_holds_the_best_passages_and_the_right_one_wherever_it_is",
    ),
    Mutation(
        "the dashboard lacks metrics that share a panel", "train/dashboard.py",
        "names = [metric.name, *(name for name, place in TOGETHER.items() if place == metric.name)]",
        "names = [metric.name]",
        "tests/unit/test_dashboard.py::test_there_is_a_panel_over_steps_for_each_metric_in_its_section_and_none_for_another",
    ),
    Mutation(
        "a tie is broken in the system's favour", "evaluate/metrics.py",
        "(-pair[1], max(grades.get(pair[0], 0), 0))", "(-pair[1], -max(grades.get(pair[0], 0), 0))",
        "tests/unit/test_measures.py::test_no_order_of_equal_scores_is_worse_than_ours",
    ),
    Mutation(
        "what is relevant and not ranked is no miss", "evaluate/measures.py",
        "ideal = _dcg(sorted(judged, reverse=True)[:k], gain)", "ideal = _dcg(sorted(ranked, reverse=True)[:k], gain)",
        "tests/unit/test_measures.py::test_measures_equal_pytrec_evals_to_the_last_bit",
    ),
    Mutation(
        "the first of equal texts counts as the reference's", "evaluate/reference.py",
        "{text_of(passage): place for place, passage in enumerate(ranked[:k])}",
        "{text_of(passage): place for place, passage in reversed(list(enumerate(ranked[:k])))}",
        "tests/unit/test_reference.py::test_the_references_measures_are_those_of_its_notebook",
    ),
    Mutation(
        "queries of one document change sides apart", "evaluate/statistics.py",
        "members = [np.array([names[name] for name in clusters]) for _, clusters in samples]",
        "members = [np.arange(len(clusters)) % len(names) for _, clusters in samples]",
        "tests/unit/test_statistics.py::test_queries_of_one_document_change_sides_together",
    ),
    Mutation(
        "queries that several sets share count as if each set had others", "evaluate/statistics.py",
        "parts_C = (sums_SC / counts_SC.sum(axis=1, keepdims=True)).sum(axis=0) / len(samples)",
        "parts_C = (sums_SC / counts_SC.sum(axis=1, keepdims=True)).ravel() / len(samples)",
        "tests/unit/test_statistics.py::test_queries_that_several_sets_share_change_sides_together_and_make_nothing_surer",
    ),
    Mutation(
        "p-values are not corrected for their number", "evaluate/statistics.py",
        "p_values[index] * (len(p_values) - place)", "p_values[index]",
        "tests/unit/test_statistics.py::test_holm_rejects_what_its_definition_rejects",
    ),
    Mutation(
        "a query that a run lacks gets another one's passages", "evaluate/first_stage.py",
        "scores = run.get(query.qid, {})", "scores = run.get(query.qid, run[next(iter(run))])",
        "tests/unit/test_sets.py::test_a_run_is_ordered_by_its_scores_and_a_query_that_it_lacks_counts_as_zero",
    ),
    Mutation(
        "the batches of an evaluation depend on the number of ranks", "evaluate/shared.py",
        "batches = batches_by_tokens(lengths, self._batch_tokens, packed)",
        "batches = batches_by_tokens(lengths, self._batch_tokens // world, packed)",
        "tests/unit/test_dev.py::test_batches_are_the_same_on_any_number_of_ranks_and_no_rank_has_more_than_one_more",
    ),
    Mutation(
        "every rank scores every batch", "evaluate/systems.py",
        "batches = deal(scorer.batches(layout.lengths), crew.rank, crew.world)", "batches = scorer.batches(layout.lengths)",
        "tests/unit/test_crew.py::test_every_pair_is_scored_once_and_to_the_same_bits_on_any_number_of_ranks",
    ),
    Mutation(
        "a service's scores go to documents in the order of its answer", "evaluate/cohere.py",
        "scores[place] = float(score)", "scores[len(scores)] = float(score)",
        "tests/unit/test_cohere.py::test_each_query_is_one_call_as_documented_and_scores_go_back_by_index",
    ),
    Mutation(
        "what a service was paid for is not kept", "evaluate/answers.py",
        "if self._path is None:", "if True:",
        "tests/unit/test_cohere.py::test_what_was_answered_before_an_end_is_not_asked_and_paid_again",
    ),
    Mutation(
        "calls under way when another is refused are paid and lost", "evaluate/cohere.py",
        "if future.exception() is None and self._answers.get(name) is None:", "if False:",
        "tests/unit/test_cohere.py::test_calls_under_way_when_one_is_refused_are_kept",
    ),
    Mutation(
        "a service's key stands in a message", "evaluate/cohere.py",
        'str(text).replace(self._secret(), "...")', "str(text)",
        "tests/unit/test_cohere.py::test_the_key_is_in_no_file_and_no_message",
    ),
    Mutation(
        "every rank calls a service", "evaluate/cohere.py",
        "return crew.from_first(lambda: self._scores(queries, advance))",
        "return crew.together(lambda: self._scores(queries, advance))",
        "tests/distributed/test_evaluate.py::test_other_systems_score_alike_on_any_number_of_ranks_and_one_rank_alone_calls",
    ),
    Mutation(
        "scores of other settings are taken for a system's own", "evaluate/others.py",
        'settings | {"max_length": length, "versions": _versions(of, key)}',
        '{"max_length": length, "versions": _versions(of, key)}',
        "tests/unit/test_systems.py::test_scores_are_kept_for_the_same_settings_files_and_versions_alone",
    ),
    Mutation(
        "a setting does not reach the library", "evaluate/libraries.py",
        "query_max_length=config.query_max_length", "query_max_length=None",
        "tests/unit/test_systems.py::test_each_kind_scores_as_its_library_does",
    ),
    Mutation(
        "a model's own Python runs unasked", "evaluate/libraries.py",
        "trust_remote_code=config.trust_remote_code", "trust_remote_code=True",
        "tests/unit/test_systems.py::test_the_python_of_a_model_is_run_only_where_that_is_said",
    ),
    Mutation(
        "an encoder without a score head is a row", "evaluate/libraries.py",
        "if classifies and saved and not any(", "if False and not any(",
        "tests/unit/test_systems.py::test_a_wrong_system_is_one_line_that_says_what_to_do[st head]",
    ),
    Mutation(
        "a rank's mistake leaves the others waiting", "evaluate/systems.py",
        "if told is not None:", "if told is not None and told is mistake:",
        "tests/unit/test_crew.py::test_a_mistake_of_one_rank_is_raised_by_all",
    ),
    Mutation(
        "a saved model is kept whatever it scores", "export/reload.py",
        "if not difference <= TOLERANCE:", "if False:",
        "tests/unit/test_export.py::test_a_directory_that_does_not_score_as_its_weights_is_not_left[head-Precision.bf16]",
    ),
    Mutation(
        "an 8-bit file is kept however it orders", "export/quantize.py",
        "if found.order >= least:", "if True:",
        "tests/end_to_end/test_onnx.py::test_an_8_bit_file_that_changes_the_order_more_than_allowed_leaves_nothing_behind",
    ),
    Mutation(
        "what 8 bits cannot hold stays in them", "export/quantize.py",
        "whole = _second_products(directory / FILE) if second_products else []", "whole = []",
        "tests/unit/test_quantize.py::test_products_whose_inputs_lie_too_far_apart_stay_in_float32_where_the_order_asks_for_it[0.65-2]",
    ),
    Mutation(
        "a Korean model has no card in English", "export/model_card.py",
        'dict.fromkeys((own, "en"))', '(own or "en",)',
        "tests/unit/test_card.py::test_a_korean_model_has_its_card_in_korean_and_in_english_and_any_other_in_english",
    ),
    Mutation(
        "a card tells another number in Korean", "export/card.ko.yaml",
        "한 쌍에서 {max_length}토큰을", "한 쌍에서 512토큰을",
        "tests/unit/test_card.py::test_each_language_has_every_text_with_the_same_facts",
    ),
    Mutation(
        "a card does not tell what was packed", "export/origin.py",
        'made = found if isinstance(found := of.get("from"), Mapping) else {}', "made = {}",
        "tests/unit/test_card.py::test_the_file_that_the_groups_come_from_is_told_by_its_name_and_sha256",
    ),
    Mutation(
        "a card tells where a file lay", "export/origin.py",
        'replace("`", "\'"))[-1]', 'replace("`", "\'"))[0]',
        "tests/unit/test_card.py::test_a_manifest_of_others_can_neither_break_the_card_nor_name_a_directory",
    ),
    Mutation(
        "the sha256 of locations passes for that of a file", "export/origin.py",
        "tars = _TARS.fullmatch(name) is not None", "tars = False",
        "tests/unit/test_card.py::test_an_index_is_told_without_the_sha256_of_its_locations",
    ),
    Mutation(
        "the user's words of the data are HTML in the card", "export/origin.py",
        '|(?=<[A-Za-z/!?])")', '")',
        "tests/unit/test_card.py::test_no_origin_breaks_the_card_around_it",
    ),
    Mutation(
        "a training with another origin is refused", "checks.py",
        '"data.query_prefix", "data.passage_prefix",', '"data.query_prefix", "data.passage_prefix", "data.origin",',
        "tests/distributed/test_resume.py::test_another_origin_changes_the_model_card_and_nothing_else",
    ),
    Mutation(
        "the command of a card scores nothing", "export/usage.py",
        "| reranker score model=MODEL", "| reranker score input=MODEL",
        "tests/end_to_end/test_card.py::test_the_command_of_a_card_scores_as_the_framework_does",
    ),
    Mutation(
        "a card's evaluation does not come into it", "export/model_card.py",
        "output=RUN/report", "output=RUN/reports",
        "tests/end_to_end/test_card.py::test_the_commands_of_a_card_put_the_table_of_its_weights_into_it[usual]",
    ),
    Mutation(
        "a card has the evaluation of one checkpoint put to another", "export/model_card.py",
        'words += [f"checkpoint={facts.checkpoint}"] if facts.checkpoint != ExportConfig.checkpoint else []', "pass",
        "tests/end_to_end/test_card.py::test_the_commands_of_a_card_put_the_table_of_its_weights_into_it[asked]",
    ),
    Mutation(
        "a push overwrites what was committed meanwhile", "export/push.py",
        "            parent_commit=before.sha,\n", "",
        "tests/unit/test_push.py::test_a_commit_of_somebody_else_in_between_is_not_overwritten",
    ),
    Mutation(
        "a push to a public repository of what was meant to be private", "export/push.py",
        "if config.private and not before.private:", "if False:",
        "tests/unit/test_push.py::test_a_public_repository_gets_nothing_that_was_meant_to_be_private",
    ),
    Mutation(
        "an answer that repeats the token is told as it is", "export/push.py",
        '.replace(token, "***")', "",
        "tests/unit/test_push.py::test_the_token_goes_to_the_hub_alone_and_into_no_output",
    ),
    Mutation(
        "files of another export stay beside a pushed one", "export/push.py",
        "any(fnmatch(name, form) for form in OURS)", "False",
        "tests/unit/test_push.py::test_files_of_an_earlier_export_go_in_the_same_commit_and_others_stay",
    ),
    Mutation(
        "a model that failed its gate is pushed", "export/push_checks.py",
        "if failed_gate(directory) and not force:", "if False:",
        "tests/unit/test_push.py::test_a_model_that_failed_its_gate_is_pushed_only_by_force",
    ),
    Mutation(
        "a soup is the one that is worst on dev", "export/tasting.py",
        "return max(passing, key", "return min(passing, key",
        "tests/unit/test_soup.py::test_the_best_alpha_on_the_dev_groups_is_taken_and_all_are_told",
    ),
    Mutation(
        "a soup is the best on dev whatever it loses", "export/tasting.py",
        "passing = [one for one in tasted if one.passed]", "passing = list(tasted)",
        "tests/unit/test_soup.py::test_with_a_gate_the_best_alpha_is_the_best_of_those_that_pass",
    ),
    Mutation(
        "the base itself is taken for a soup that passes", "export/tasting.py",
        "if not any(one.alpha for one in passing):", "if not passing:",
        "tests/unit/test_soup.py::test_where_no_alpha_above_0_passes_all_are_told_and_none_is_written_unless_it_is_to_be_marked",
    ),
    Mutation(
        "a gain on one guard set makes up for a loss on another", "evaluate/regression_gate.py",
        "return all(one.passed for one in self.sets)", "return any(one.passed for one in self.sets)",
        "tests/unit/test_regression_gate.py::test_a_large_loss_on_one_set_is_not_made_up_for_by_a_gain_on_another",
    ),
    Mutation(
        "a loss that is not significant is excused unasked", "evaluate/regression_gate.py",
        "excused = rule.significance is not None and p_holm > rule.significance", "excused = p_holm > (rule.significance or 0.05)",
        "tests/unit/test_regression_gate.py::test_by_default_a_loss_that_is_not_significant_fails_too_and_with_a_level_it_is_excused",
    ),
    Mutation(
        "a checkpoint that fails its gate ranks by its dev metric", "train/saving.py",
        'key=lambda one: (not one.get("passed", True), -one["value"])', 'key=lambda one: -one["value"]',
        "tests/unit/test_saving.py::test_what_fails_its_gate_is_never_the_best_and_ranks_behind_all_that_pass",
    ),
    Mutation(
        "where none passes the best is one that fails", "train/saving.py",
        'if entry.get("passed", True)', "if True",
        "tests/unit/test_saving.py::test_what_fails_its_gate_is_never_the_best_and_ranks_behind_all_that_pass",
    ),
    Mutation(
        "a training does not heed its gate", "train/events.py",
        "verdict is None or verdict.passed)", "True)",
        "tests/distributed/test_gate.py::test_the_best_checkpoint_is_never_one_that_loses_too_much_though_it_is_better_on_dev",
    ),
    Mutation(
        "an evaluation set has a query less", "evaluate/in_training.py",
        "float(values_Q.mean())", "float(values_Q[:-1].mean())",
        "tests/unit/test_in_training.py::test_the_metrics_of_each_set_are_those_that_evaluate_reports",
    ),
    Mutation(
        "the dev groups select where an evaluation set should", "train/events.py",
        'value = scores[f"eval/{config.train.metric}"]', "value = scores[f\"eval/{config.train.metric.rpartition('/')[2]}\"]",
        "tests/distributed/test_dev_sets.py::test_the_best_checkpoint_is_that_of_the_set_that_the_metric_names",
    ),
    Mutation(
        "values on another evaluation set are compared with those on this one", "train/job.py",
        "self.dev_sha256 if name is None else self.evaluator.sets.digests[name]", "self.dev_sha256",
        "tests/distributed/test_dev_sets.py::test_a_resume_goes_on_with_the_ranking_unless_the_set_that_selects_is_another",
    ),
    Mutation(
        "an evaluation set that is not there is to select", "evaluate/in_training.py",
        "check_set(config.train.metric, self.sets.names)", "pass",
        "tests/unit/test_in_training.py::test_a_metric_by_which_nothing_can_be_selected_is_refused",
    ),
    Mutation(
        "the last checkpoint is said to be the chosen one", "export/huggingface.py",
        'chosen_by=metric if best and best["checkpoint"] == found.name else None', "chosen_by=metric",
        "tests/unit/test_export.py::test_the_card_tells_what_the_best_checkpoint_was_chosen_by_and_of_another_that_nothing_chose_it",
    ),
    Mutation(
        "the export that a card tells of loses the 8-bit file", "export/model_card.py",
        'words += ["int8=dev.jsonl"] if facts.int8 else []', "pass",
        "tests/unit/test_card.py::test_the_command_that_exports_again_makes_the_same_files_of_the_same_weights",
    ),
    Mutation(
        "the dashboard lacks the panels of evaluation sets", "train/dashboard.py",
        "for metric in shown if metric.section == name", "for metric in METRICS if metric.section == name",
        "tests/unit/test_dashboard.py::test_sets_have_their_panels_and_a_metric_of_one_orders_the_runs",
    ),
    Mutation(
        "the keys of a record pass for names of sets", "evaluate/sets.py",
        "    _refuse_nameless(config.sets)\n", "",
        "tests/unit/test_sets.py::test_a_set_without_a_name_is_told_how_to_have_one",
    ),
    Mutation(
        "an empty data.dev passes for dev groups that select", "selection.py",
        "name is None and not data.dev and", "name is None and data.dev is None and",
        "tests/unit/test_in_training.py::test_an_empty_dev_file_is_none",
    ),
    Mutation(
        "an evaluation set with a dot in its name has no best value in W&B", "train/wandb_run.py",
        'metric.name.replace(".", "\\\\.")', "metric.name",
        "tests/unit/test_tracking.py::test_the_metrics_of_evaluation_sets_are_drawn_like_those_of_the_dev_groups",
    ),
    Mutation(
        "what the base had by another gate is taken for what it has", "train/gate.py",
        'if kept.get("depends") == depends', "if True",
        "tests/distributed/test_gate.py::test_a_resume_keeps_what_the_base_had_and_measures_anew_what_is_another",
    ),
    Mutation(
        "a resume measures its base again", "train/gate.py",
        "base = ranks.from_first(lambda: _kept(job.run_dir / GATE_BASE, depends))", "base = None",
        "tests/distributed/test_gate.py::test_a_resume_keeps_what_the_base_had_and_measures_anew_what_is_another",
    ),
    Mutation(
        "a model that fails its gate is exported", "export/gate.py",
        "if action is GateAction.refuse:", "if False:",
        "tests/unit/test_export_gate.py::test_a_model_that_loses_too_much_is_refused_in_one_line_and_nothing_is_written",
    ),
    Mutation(
        "the training's own verdict is forgotten by an export", "export/gate.py",
        'if config.sets is None and state.get("gate"):', "if False:",
        "tests/unit/test_export_gate.py::test_what_the_training_found_of_a_checkpoint_counts_without_trying_it_again",
    ),
    Mutation(
        "a trimmed tokenizer is kept however it cuts the corpus", "export/trim.py",
        "            if compared.wrong:", "            if False:",
        "tests/unit/test_trim.py::test_a_tokenizer_that_cuts_the_corpus_otherwise_is_refused_and_nothing_is_written",
    ),
    Mutation(
        "a trimmed model is kept whatever it scores", "export/trim.py",
        "if not difference <= TOLERANCE:", "if False:",
        "tests/unit/test_trim.py::test_a_model_that_scores_otherwise_is_refused_and_nothing_is_written",
    ),
    Mutation(
        "merges of a kept piece lose their parts", "model/vocabulary.py",
        "kept = _closed(model, kept)", "pass",
        "tests/unit/test_trim.py::test_the_parts_of_a_kept_bpe_piece_stay_with_all_their_merges",
    ),
    Mutation(
        "the least piece goes, and with it the price of an unknown character", "model/vocabulary.py",
        "kept.add(min(range(len(scores)), key=scores.__getitem__))", "pass",
        "tests/unit/test_trim.py::test_the_price_of_an_unknown_character_stays",
    ),
    Mutation(
        "a trimmed embedding has the rows of other pieces", "model/trim.py",
        "table.weight.detach()[torch.tensor(ids)]", "table.weight.detach()[: len(ids)]",
        "tests/unit/test_trim.py::test_special_pieces_keep_their_meaning_and_the_padding_its_place[wordpiece]",
    ),
    Mutation(
        "pieces in front of the padding go, and all positions shift", "model/trim.py",
        "named.update(range(config.pad_token_id))", "pass",
        "tests/unit/test_trim.py::test_in_front_of_the_padding_all_stays_where_positions_count_from_it",
    ),
    Mutation(
        "a truncation that was saved with a tokenizer cuts the corpus", "export/trim_corpus.py",
        "    tokenizer.no_truncation()\n", "",
        "tests/unit/test_trim.py::test_a_truncation_that_was_saved_with_the_tokenizer_cuts_no_text_of_the_corpus",
    ),
    Mutation(
        "bytes go with the single characters", "model/vocabulary.py",
        "byte = _BYTE.fullmatch(piece) or (of_bytes and len(piece) == 1)", "byte = _BYTE.fullmatch(piece)",
        "tests/unit/test_trim.py::test_bytes_stay_though_single_characters_may_go",
    ),
    Mutation(
        "W&B is told of the settings with all credentials", "train/wandb_run.py",
        '"config": public(settings)', '"config": settings',
        "tests/unit/test_tracking.py::test_no_credential_of_a_location_reaches_weights_and_biases",
    ),
    Mutation(
        "a run of which a record failed is never finished", "train/aside.py",
        "        self._make(self._last)", "        self.over or self._make(self._last)",
        "tests/unit/test_aside.py::test_a_call_that_fails_is_told_of_and_ends_the_others",
    ),
    Mutation(
        "pieces of a model's prefixes are trimmed away", "export/trim.py",
        'dict.fromkeys(("", contract.query_prefix, contract.passage_prefix))', 'dict.fromkeys(("",))',
        "tests/unit/test_trim.py::test_prefixes_of_the_model_keep_their_pieces_before_every_text",
    ),
    Mutation(
        "a training without the prefix of its queries", "data/tokenize.py",
        "texts = [self.contract.query_prefix + query, *self._prefixed(passages)]",
        "texts = [query, *self._prefixed(passages)]",
        "tests/distributed/test_texts.py::test_a_training_with_prefixes_is_that_on_texts_that_have_them[1]",
    ),
    Mutation(
        "passages are not cut to their own length", "data/tokenize.py",
        "passage.truncate(self.contract.passage_max_length)", "pass",
        "tests/unit/test_tokenize.py::test_a_passage_is_cut_to_its_own_length_first",
    ),
    Mutation(
        "a plan by tokens counts texts without their prefixes", "data/lengths.py",
        "[self.passage_prefix + passage for passage", "[passage for passage",
        "tests/unit/test_stream.py::test_the_lengths_that_a_plan_counts_are_those_of_the_pairs_that_are_shown",
    ),
    Mutation(
        "a plan by tokens takes the lengths of other prefixes", "data/tokenize.py",
        "if not any(prefixes):", "if True:",
        "tests/unit/test_lengths.py::test_texts_count_behind_their_prefixes_and_other_lengths_stay",
    ),
    Mutation(
        "a plan by tokens does not know how passages are cut", "data/tokenize.py",
        "passage = min(passage, self.contract.passage_max_length)\n        return min(",
        "pass\n        return min(",
        "tests/unit/test_tokenize.py::test_the_length_of_a_pair_is_known_from_those_of_its_texts",
    ),
    Mutation(
        "a training goes on with another prefix", "checks.py",
        '"data.query_prefix", "data.passage_prefix",', '"data.passage_prefix",',
        "tests/distributed/test_texts.py::test_resume_with_other_prefixes_or_lengths_is_refused",
    ),
    Mutation(
        "an export forgets what stands before texts", "export/huggingface.py",
        "contract = Contract.of_settings(data)",
        "contract = Contract(data['max_length'], data['query_max_length'], data['truncation'])",
        "tests/distributed/test_texts.py::test_a_training_with_prefixes_is_that_on_texts_that_have_them[1]",
    ),
    Mutation(
        "sentence-transformers is not told of the prefix", "export/directory.py",
        "            _write_prompt(staging, prefix)\n", "",
        "tests/unit/test_export.py::test_cross_encoder_puts_the_querys_prefix_by_itself_and_is_given_the_passages",
    ),
    Mutation(
        "the end of a long passage is in no window", "data/windows.py",
        "for number in range(steps + 1))", "for number in range(steps))",
        "tests/unit/test_windows.py::test_what_stands_at_the_end_of_a_long_passage_is_found_in_windows_and_not_by_truncation",
    ),
    Mutation(
        "windows leave a gap", "data/windows.py",
        "steps = -(-behind // (size - min(overlap, size // 2)))", "steps = -(-behind // (size + 1))",
        "tests/unit/test_windows.py::test_windows_cover_every_token_in_order_and_are_as_few_as_will_do",
    ),
    Mutation(
        "later windows lack the passage's prefix", "data/windows.py",
        "prefix = min(uncut.prefix, kept - 1)", "prefix = 0 * min(uncut.prefix, kept - 1)",
        "tests/unit/test_windows.py::test_every_window_begins_with_the_passages_prefix",
    ),
    Mutation(
        "a window's score that is no number is passed over", "model/windows.py",
        "values_W = np.where(np.isfinite(values_W), values_W, np.float32(np.nan))",
        "values_W = np.where(np.isfinite(values_W), values_W, np.float32(-99))",
        "tests/unit/test_windows.py::test_no_window_hides_a_score_that_is_not_a_number",
    ),
    Mutation(
        "ranks score the first window of each passage alone", "evaluate/systems.py",
        "layout = Layout([sizes for share in crew.gather(sizes_of(own)) for sizes in share])",
        "layout = Layout([(1, sizes[1]) for share in crew.gather(sizes_of(own)) for sizes in share])",
        "tests/unit/test_crew.py::test_every_pair_is_scored_once_and_to_the_same_bits_on_any_number_of_ranks",
    ),
    Mutation(
        "all long passages are held at once", "model/reranker.py",
        "(self.long.windows and characters > CHARACTERS)", "False",
        "tests/unit/test_windows.py::test_long_passages_are_tokenized_a_few_at_a_time",
    ),
    Mutation(
        "an evaluation takes over scores of other windows", "evaluate/fingerprint.py",
        "return [config.max_length, *long_of(config).values()]", "return [config.max_length]",
        "tests/unit/test_report.py::test_scores_of_another_version_device_or_precision_are_not_taken_over",
    ),
]  # fmt: skip


def share_of(mutations: list[Mutation], share: str) -> list[Mutation]:
    """All those whose tests are in tests/unit, and of the others each `count`-th from `first` on, as FIRST/COUNT says."""
    first, count = (int(number) for number in share.split("/"))
    assert 0 <= first < count, f"MUTATIONS_SHARE: found {share}, expected 0/3, 1/3 or 2/3, for example"
    others = [mutation for mutation in mutations if not mutation.test.startswith("tests/unit/")]
    left_out = {mutation for place, mutation in enumerate(others) if place % count != first}
    return [mutation for mutation in mutations if mutation not in left_out]


CHOSEN = share_of(MUTATIONS, os.environ.get("MUTATIONS_SHARE", "0/1"))


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


_FORKS = """
import json, os, sys
import hydra.main, hypothesis, numpy, pytest, torch, webdataset
import transformers.models.auto.modeling_auto, transformers.models.auto.tokenization_auto
import transformers.models.xlm_roberta.modeling_xlm_roberta
copy, printed = sys.argv[1:]
sys.path.insert(0, copy)
os.chdir(copy)
for line in sys.stdin:
    fork = os.fork()
    if not fork:
        output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(output, 1), os.dup2(output, 2)
        code = pytest.main(json.loads(line))
        sys.stdout.flush()
        os._exit(code)  # what a failed test has left running must not hold the next one up
    print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), flush=True)
"""

Outcome = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def outcome(copy: Path) -> Iterator[Outcome]:
    """(exit code of pytest, what it printed) of some tests against the copy."""
    printed = copy / "printed"
    servers: list[subprocess.Popen[str]] = []
    # A test that hangs is no test that fails: this way of ending prints every stack and names no failed test.
    hangs = ("-o", "timeout=900", "-o", "timeout_method=thread")

    def run(*tests: str) -> tuple[int, str]:
        if not servers:
            servers.append(subprocess.Popen(
                [sys.executable, "-c", _FORKS, str(copy), str(printed)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1",
                     "RANKS_DEADLINE": os.environ.get("RANKS_DEADLINE", "90")},  # some of what is broken never ends
            ))  # fmt: skip
        server = servers[0]
        assert server.stdin
        assert server.stdout
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "--no-header", *hangs, *tests]
        try:
            server.stdin.write(json.dumps(arguments) + "\n")
            server.stdin.flush()
            code = int(server.stdout.readline())
        except BaseException:
            servers.pop().kill()  # its answer, should it come, is none to the next question
            raise
        return code, printed.read_text("utf-8", errors="replace")

    yield run
    for server in servers:
        server.communicate()


def first_of_each_file() -> list[str]:
    """One named test of each file of tests."""
    files = {mutation.test.partition("::")[0]: mutation.test for mutation in reversed(CHOSEN)}
    return sorted(files.values())


def test_every_mutation_fits_the_code_and_names_a_test() -> None:
    for mutation in MUTATIONS:
        assert (ROOT / "reranker" / mutation.file).read_text("utf-8").count(mutation.old) == 1, mutation
        file, _, test = mutation.test.partition("::")
        assert f"def {test.partition('[')[0]}(" in (ROOT / file).read_text("utf-8"), mutation


@pytest.mark.timeout(3600)  # many tests in one
@pytest.mark.parametrize("directory", sorted({test.rpartition("/")[0] for test in first_of_each_file()}))
def test_the_copy_is_whole(outcome: Outcome, directory: str) -> None:
    """What fails below fails for the mutation, and not because the copy lacks something."""
    named = [test for test in first_of_each_file() if test.startswith(f"{directory}/")]
    code, printed = outcome(*named)
    assert code == 0, printed


@pytest.mark.timeout(1000)  # behind the test's own
@pytest.mark.parametrize("mutation", CHOSEN, ids=lambda mutation: mutation.breaks.replace(" ", "-"))
def test_a_broken_guarantee_makes_its_test_fail(copy: Path, outcome: Outcome, mutation: Mutation) -> None:
    path = copy / "reranker" / mutation.file
    whole = path.read_text("utf-8")
    assert whole.count(mutation.old) == 1, "the mutation no longer fits the code"
    path.write_text(whole.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        code, printed = outcome(mutation.test)
    finally:
        path.write_text(whole, encoding="utf-8")
    assert code == 1, printed
    assert re.search(r"^FAILED tests/", printed, re.MULTILINE), printed
