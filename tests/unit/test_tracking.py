"""metrics.jsonl always holds each step once; Weights & Biases follows where it can and never stops anything."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from reranker.checks import check_tracking
from reranker.config.common import TrackingMode
from reranker.config.tracking import TrackingConfig
from reranker.data.location import public
from reranker.errors import UserError
from reranker.train import logged
from reranker.train.artifacts import Artifact
from reranker.train.tracking import METRICS, Tracker, run_id
from reranker.train.wandb_run import wandb_mode
from tests.distributed.ranks import until
from tests.wandb_records import Run, read_run

NONE = TrackingConfig(mode=TrackingMode.disabled)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def start(run_dir: Path, config: TrackingConfig = NONE, step: int = 0, enabled: bool = True, **more: Any) -> Tracker:
    run_dir.mkdir(exist_ok=True)
    return Tracker(run_dir, "ko", config, {"optim": {"lr": 1e-5}}, step, enabled, **more)


def offline_run(run_dir: Path) -> Run:
    """What the one offline run under a run directory has recorded. W&B's own process may write behind finish()."""
    (path,) = run_dir.glob("wandb/offline-run-*/run-*.wandb")
    until(lambda: read_run(path).ended, lambda: f"{path} does not end", deadline=30)
    return read_run(path)


def records(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / METRICS).read_text("utf-8").splitlines()]


def test_each_record_is_on_the_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run")
    tracker.log(1, {"train/loss": 0.5, "train/grad_norm": None})
    assert records(tmp_path / "run") == [{"step": 1, "train/loss": 0.5, "train/grad_norm": None}]
    tracker.log(2, {"train/loss": 0.25})
    assert [record["step"] for record in records(tmp_path / "run")] == [1, 2]
    tracker.close()


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", TrackingConfig(mode=TrackingMode.offline), enabled=False)
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert list((tmp_path / "run").iterdir()) == []


def test_a_resumed_run_loses_the_records_behind_its_checkpoint(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    tracker = start(run_dir)
    for step in range(1, 6):
        tracker.log(step, {"train/loss": step / 10})
    tracker.log(3, {"eval/mrr": 0.9})
    tracker.close()
    tracker = start(run_dir, step=3)
    for step in (4, 5):
        tracker.log(step, {"train/loss": 7.0})
    tracker.close()
    assert [(record["step"], record.get("train/loss")) for record in records(run_dir)] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (3, None), (4, 7.0), (5, 7.0),
    ]  # fmt: skip


TORN = [b'{"step": 2, "train/lo', b"{", b'{"step": ', b'{"train/loss": 1.0}', b"\0\0\0"]
DAMAGED = [
    b"\xff\xfe\x80",
    b"[1]",
    b"null",
    b"2",
    b'{"step": null}',
    b'{"step": [2]}',
    b'{"step": Infinity}',
    b"[" * 100_000,
]


@pytest.mark.parametrize("line", TORN + DAMAGED)
def test_a_line_that_was_torn_when_the_run_was_killed_or_damaged_is_removed(line: bytes, tmp_path: Path) -> None:
    (tmp_path / METRICS).write_bytes(b'{"step": 1, "train/loss": 0.5}\n' + line)
    tracker = start(tmp_path, step=5)
    tracker.log(6, {"train/loss": 0.1})
    tracker.close()
    assert records(tmp_path) == [{"step": 1, "train/loss": 0.5}, {"step": 6, "train/loss": 0.1}]


def test_a_run_that_begins_anew_begins_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1, "train/loss": 0.5}\n', encoding="utf-8")
    start(tmp_path, step=0).close()
    assert records(tmp_path) == []


def test_a_resumed_run_keeps_its_id_even_in_a_directory_that_moved(tmp_path: Path) -> None:
    tracker = start(tmp_path / "a")
    tracker.close()
    assert start(tmp_path / "a").run_id == tracker.run_id
    (tmp_path / "a").rename(tmp_path / "b")
    assert start(tmp_path / "b").run_id == run_id(tmp_path / "b") == tracker.run_id


def test_other_runs_have_other_ids_even_under_the_same_path(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "b", "a"):
        ids.append(start(tmp_path / name).run_id)
        shutil.rmtree(tmp_path / name)
    assert len(set(ids)) == 3
    assert all(identity and identity.isalnum() for identity in ids)


def test_without_a_key_the_run_is_recorded_offline_under_its_id(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = start(tmp_path / "run", TrackingConfig())
    tracker.log(1, {"train/loss": 0.5, "train/grad_norm": None})
    tracker.close()
    run = offline_run(tmp_path / "run")
    # What `wandb sync` would send: the metric and the settings.
    assert [(row["_step"], row["train/loss"]) for row in run.history] == [(1, 0.5)]
    assert "train/grad_norm" not in run.history[0]
    assert run.config["optim"] == {"lr": 1e-5}
    assert run.of("run")[0].run_id == tracker.run_id
    assert records(tmp_path / "run") == [{"step": 1, "train/loss": 0.5, "train/grad_norm": None}]
    assert capfd.readouterr().err == ""


def test_a_run_carries_what_it_is_found_by(tmp_path: Path) -> None:
    config = TrackingConfig(
        project="rerankers", entity="team", group="rates", job_type="ablation", tags=["ko", "large"], notes="why not"
    )
    start(tmp_path / "run", config).close()
    (run,) = offline_run(tmp_path / "run").of("run")
    assert (run.project, run.entity, run.run_group, run.job_type) == ("rerankers", "team", "rates", "ablation")
    assert (list(run.tags), run.notes, run.display_name) == (["ko", "large"], "why not", "ko")


def test_every_metric_is_drawn_over_optimizer_steps_and_its_best_value_stands_for_the_run(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", TrackingConfig())
    for step, (loss, mrr) in enumerate([(1.0, 0.2), (0.25, 0.5), (0.75, 0.375)], 11):
        tracker.log(step, {"train/loss": loss, "train/learning_rate": loss / 2})
        tracker.log(step, {"eval/mrr": mrr, "gate/old/drop": 1 - mrr})
    tracker.close()
    run = offline_run(tmp_path / "run")
    defined = {metric.name or metric.glob_name: metric for metric in run.of("metric")}
    assert set(defined) == {"step", logged.OF_GUARDS, *(metric.name for metric in logged.METRICS)}
    assert {metric.step_metric for name, metric in defined.items() if name != "step"} == {"step"}
    # One row for each step, the axis among its columns.
    rows = [(row["step"], row["_step"], row["train/loss"], row["eval/mrr"]) for row in run.history]
    assert rows == [(11, 11, 1.0, 0.2), (12, 12, 0.25, 0.5), (13, 13, 0.75, 0.375)]
    assert [row["gate/old/drop"] for row in run.history] == [0.8, 0.5, 0.625]
    assert run.summary["train/loss"] == {"min": 0.25, "last": 0.75}
    assert run.summary["eval/mrr"] == {"max": 0.5, "last": 0.375}
    assert run.summary["train/learning_rate"] == 0.375


def test_the_metrics_of_evaluation_sets_are_drawn_like_those_of_the_dev_groups(tmp_path: Path) -> None:
    names = ("faq", "v1.2", "한국어")  # a dot is W&B's own sign for a key in a mapping
    tracker = start(tmp_path / "run", TrackingConfig(), sets=names)
    for step, value in enumerate((0.25, 0.5, 0.375), 1):
        tracker.log(step, {f"eval/{name}/ndcg@10": value for name in names} | {"eval/mrr": value})
    tracker.close()
    run = offline_run(tmp_path / "run")
    steps = {metric.name.replace("\\.", "."): metric.step_metric for metric in run.of("metric")}
    for name in names:
        assert [row[f"eval/{name}/ndcg@10"] for row in run.history] == [0.25, 0.5, 0.375]
        assert run.summary[f"eval/{name}/ndcg@10"] == run.summary["eval/mrr"] == {"max": 0.5, "last": 0.375}
        assert {steps[f"eval/{name}/{metric}"] for metric in ("mrr", "ndcg@10", "has_right_in_contexts")} == {"step"}
    titles = {metric.name: metric.title for metric in logged.of_sets(["faq"])}
    assert titles == {
        "eval/faq/mrr": "MRR of the queries of faq",
        "eval/faq/ndcg@10": "nDCG@10 of the queries of faq",
        "eval/faq/has_right_in_contexts": "share of queries of faq with a right passage in the first 5",
    }


def test_alerts_are_of_their_level_and_wait_before_the_same_is_sent_again(tmp_path: Path) -> None:
    tracker = start(tmp_path / "run", TrackingConfig(alerts=True, alert_wait=120.0))
    tracker.alert("loss at chance", "the loss has stayed at that of a guess")
    tracker.alert("stopped as asked", "behind step 3", "INFO")
    tracker.close()
    found = [(one.title, one.text, one.level, one.wait_duration) for one in offline_run(tmp_path / "run").of("alert")]
    assert found == [
        ("ko: loss at chance", "the loss has stayed at that of a guess", "WARN", 120_000),
        ("ko: stopped as asked", "behind step 3", "INFO", 120_000),
    ]


def test_an_error_that_ends_a_training_is_alerted_and_the_run_has_failed(tmp_path: Path) -> None:
    error = UserError("train/loss", "nan at step 3", "a finite number", "lower optim.lr")
    with pytest.raises(UserError), start(tmp_path / "run", TrackingConfig(alerts=True)) as tracker:
        tracker.log(1, {"train/loss": 1.0})
        raise error
    run = offline_run(tmp_path / "run")
    assert [(one.title, one.text, one.level) for one in run.of("alert")] == [("ko: ended early", str(error), "ERROR")]
    assert run.of("exit")[0].exit_code == 1
    with start(tmp_path / "other", TrackingConfig()) as tracker:
        tracker.alert("loss at chance", "nobody is told, offline")
    run = offline_run(tmp_path / "other")
    assert run.of("alert") == []
    assert run.of("exit")[0].exit_code == 0


def test_the_title_of_an_alert_is_no_longer_than_it_may_be_and_ends_with_its_cause(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = TrackingConfig(mode=TrackingMode.offline, alerts=True)
    with Tracker(run_dir, "n" * 90, config, {}, 0, True) as tracker:
        tracker.alert("loss at chance", "text")
    (alert,) = offline_run(run_dir).of("alert")
    assert len(alert.title) < 64
    assert alert.title.endswith("n: loss at chance")


def test_a_tracking_directory_that_cannot_be_made_stops_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wandb").write_text("a file where Weights & Biases wants a directory", encoding="utf-8")
    tracker = start(tmp_path, TrackingConfig(mode=TrackingMode.offline))
    tracker.log(1, {"train/loss": 0.5})
    tracker.log(2, {"train/loss": 0.4})
    tracker.close()
    assert [record["step"] for record in records(tmp_path)] == [1, 2]
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking:")]
    assert len(told) == 1
    assert told[0].startswith("tracking: Weights & Biases failed (")
    assert told[0].endswith("); metrics.jsonl goes on")


def test_a_key_file_that_cannot_be_read_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unreadable = Path("/proc/self/mem")  # a regular file that not even root can read from its beginning
    if not unreadable.is_file():
        pytest.skip("no /proc here")
    monkeypatch.setenv("NETRC", str(unreadable))
    tracker = start(tmp_path, TrackingConfig())
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert [record["step"] for record in records(tmp_path)] == [1]
    assert "metrics.jsonl goes on" in capfd.readouterr().err


def test_disabled_tracking_leaves_the_metrics_alone(tmp_path: Path) -> None:
    tracker = start(tmp_path)
    tracker.log(1, {"train/loss": 0.5})
    tracker.close()
    assert not (tmp_path / "wandb").exists()
    assert [record["step"] for record in records(tmp_path)] == [1]


def event_files(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run directory: (step, value) of each name."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {
        name: [(event.step, round(event.value, 6)) for event in read.Scalars(name)] for name in read.Tags()["scalars"]
    }


BOARD = TrackingConfig(mode=TrackingMode.disabled, tensorboard=True)


def test_tensorboard_has_the_same_names_and_steps(tmp_path: Path) -> None:
    with start(tmp_path / "run", BOARD) as tracker:
        tracker.log(1, {"train/loss": 0.5, "train/grad_norm": None})
        tracker.log(2, {"train/loss": 0.25, "eval/ndcg@10": 0.125})
        tracker.show(2, [("질문 | 둘", 2, None, 1, 0.5, False, "다른 글")])
    assert event_files(tmp_path / "run") == {"train/loss": [(1, 0.5), (2, 0.25)], "eval/ndcg@10": [(2, 0.125)]}
    assert not (tmp_path / "run/wandb").exists()
    (path,) = (tmp_path / "run/tensorboard").iterdir()
    assert "| 질문 \\| 둘 | 2 |  | 1 | 0.5000 | False | 다른 글 |".encode() in path.read_bytes()


def test_no_step_has_two_values_in_tensorboard_behind_a_resume_that_went_back(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    with start(run_dir, BOARD) as tracker:
        for step in range(1, 6):
            tracker.log(step, {"train/loss": float(step)})
    with start(run_dir, BOARD, step=3) as tracker:
        tracker.log(4, {"train/loss": 40.0})
    assert event_files(run_dir) == {"train/loss": [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]}
    with start(run_dir, BOARD) as tracker:  # begun anew
        tracker.log(1, {"train/loss": 100.0})
    assert event_files(run_dir) == {"train/loss": [(1, 100.0)]}


def test_event_files_that_cannot_be_written_stop_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file where TensorBoard wants a directory", encoding="utf-8")
    with start(tmp_path, BOARD) as tracker:
        tracker.log(1, {"train/loss": 0.5})
    assert [record["step"] for record in records(tmp_path)] == [1]
    assert "tracking: TensorBoard failed (" in capfd.readouterr().err


def test_tensorboard_that_is_not_installed_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # what is not installed cannot be found
    with pytest.raises(UserError) as caught:
        check_tracking(BOARD)
    assert str(caught.value) == (
        "tracking.tensorboard: found true without the package tensorboard, expected that package; "
        'pip install "ko-reranker[tensorboard]"'
    )


def test_the_mode_follows_the_setting_then_the_environment_then_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wandb_mode(TrackingMode.auto) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n", encoding="utf-8")
    assert wandb_mode(TrackingMode.auto) == "online"
    (tmp_path / "netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert wandb_mode(TrackingMode.auto) == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(TrackingMode.auto) == "disabled"
    assert wandb_mode(TrackingMode.offline) == "offline"


SECRETS = ("pass-word", "sig-nature", "be-arer", "to-ken", "un/quoted")
SHARDS = {
    "a": "https://user:pass-word@host:8080/shards",
    "b": {"shards": "s3://bucket/shards?X-Amz-Signature=sig-nature", "weight": 2.0},
    "c": "pipe:TOKEN=to-ken curl -H 'Authorization: be-arer' https://user:pass-word@host/{000..009}.tar",
    "d": "simplecache::zip://a.tar::https://user:pass-word@host/a.zip#sig-nature",
    "e": "ftp://user:un/quoted@host/a",
    "f": "https://host?to-ken=a@sig-nature",
}


def test_what_is_told_of_a_location_names_the_place_and_not_what_opens_it() -> None:
    assert public(SHARDS) == {
        "a": "https://host:8080/shards", "b": {"shards": "s3://bucket/shards", "weight": 2.0}, "c": "pipe:curl …",
        "d": "simplecache::zip://a.tar::https://host/a.zip", "e": "ftp://…", "f": "https://…",
    }  # fmt: skip
    same = ["shards/ko", "file:///a/b c.tar", "BAAI/bge-reranker", "https://[::1]:80/a@b", 3, None, True, ""]
    assert public(same) == same
    assert public("pipe:'un/quoted") == "pipe: …"


def test_no_credential_of_a_location_reaches_weights_and_biases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["reranker", "train", *(f"data.shards={one}" for one in SHARDS.values())])
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    config = TrackingConfig(mode=TrackingMode.offline, alerts=True)
    references = (("manifest.json", SHARDS["a"] + "/manifest.json"), ("other.json", SHARDS["b"]["shards"]))
    with Tracker(run_dir, "ko", config, {"data": {"shards": SHARDS}}, 0, True) as tracker:
        tracker.keep(Artifact("shards-1", "dataset", True, {"sources": SHARDS}, references=references))
        tracker.alert("ended early", f"{SHARDS['a']}: found nothing")
    run = offline_run(run_dir)
    assert run.config["data"] == {"shards": public(SHARDS)}
    (artifact,) = run.of("artifact")
    assert {entry.ref for entry in artifact.manifest.contents} == {
        "https://host:8080/shards/manifest.json", "s3://bucket/shards",
    }  # fmt: skip
    assert run.of("alert")[0].text == "https://host:8080/shards: found nothing"
    files = [path for path in (run_dir / "wandb").rglob("*") if path.is_file()]
    assert files
    for path in files:
        for secret in SECRETS:
            assert secret.encode() not in path.read_bytes(), f"{secret} in {path}"
    assert "pass-word" in sys.argv[2], "the command line is as it was"


def test_an_artifact_that_cannot_be_sent_ends_neither_the_others_nor_the_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"1")
    with start(tmp_path / "run", TrackingConfig(mode=TrackingMode.offline)) as tracker:
        tracker.keep(Artifact("a/name/that/W&B refuses", "dataset", False, {}))
        tracker.keep(Artifact("model", "model", False, {}, directory=model))
    run = offline_run(tmp_path / "run")
    assert [one.name for one in run.of("artifact")] == ["model"]
    assert run.of("exit")[0].exit_code == 0
    assert "tracking: Weights & Biases does not take the artifact a/name/that/W&B refuses (" in capfd.readouterr().err


def test_a_run_of_which_a_record_failed_is_finished_all_the_same(tmp_path: Path) -> None:
    with start(tmp_path / "run", TrackingConfig(mode=TrackingMode.offline)) as tracker:
        tracker.log(1, {"train/loss": 0.5})
        tracker.log("one", {"train/loss": 0.25})  # type: ignore[arg-type]  # a step that W&B refuses
    run = offline_run(tmp_path / "run")
    assert [row["_step"] for row in run.history] == [1]
    assert run.of("exit")[0].exit_code == 0
