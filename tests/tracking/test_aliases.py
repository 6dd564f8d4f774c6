"""Moving aliases on a real registry: one at a time, killed anywhere, two at once, back again, and all on record."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from processes import PROCESSES, killed, new_process
from registered_models import DATA, MODEL, add_model, aliases, lock_is_there, new_store, reset, scores, write_run
from tiny_profile import write_params

from pdnet.cli import main
from pdnet.errors import PromotionError
from pdnet.tracking import TrackingConfig, promotion_lock
from pdnet.tracking import aliases as moving
from pdnet.tracking.aliases import rollback
from pdnet.tracking.promotion_lock import Lock, lock_name, new_lock, read_lock, whoami
from pdnet.tracking.promotion_log import line_of_champions, read_log
from pdnet.tracking.store import open_store

TRACKING = TrackingConfig(experiment="tiny", model=MODEL)
POLICY = Path(__file__).parents[2] / "configs" / "promotion.yaml"
NOT_A_LOCK = "the model or prompt 'tiny-promotion' is not the lock that pdnet makes; whoever made it, or an "


@pytest.fixture(scope="module", params=["sqlite", pytest.param("server", marks=pytest.mark.slow)])
def registry(
    request: pytest.FixtureRequest, empty_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The URI of a store with three models, each better than the one before, and a worse fourth."""
    root = tmp_path_factory.mktemp("registry")
    with new_store(request.param, root, empty_database) as uri:
        for name, jf in {"first": 80.0, "second": 82.0, "third": 84.0, "worse": 79.0}.items():
            add_model(write_run(root / name, scores(jf)))
        yield uri


@pytest.fixture
def client(registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Speaks to the store; the working folder has parameters."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry)
    monkeypatch.setattr(promotion_lock, "SETTLE", 0.1)
    monkeypatch.setattr(promotion_lock, "POLL", 0.05)
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient(registry)
    reset(client)
    return client


def promote(version: str, *more: str) -> int:
    return main(["promote", "--candidate", version, "--policy", str(POLICY), *more])


def log() -> list[dict[str, Any]]:
    with open_store() as store:
        return read_log(store, MODEL)


def told() -> list[tuple[str, str, str | None, str | None]]:
    return [(entry["outcome"], entry["version"], entry["from"], entry["to"]) for entry in log()]


def is_begun(client: mlflow.MlflowClient) -> bool:
    """Whether a lock was left whose intent is to be finished, or was, but for the lock."""
    if not lock_is_there(client):
        return False
    intent = moving.Intent(**json.loads(client.get_registered_model(lock_name(MODEL)).tags["intent"]))
    tag = client.get_registered_model(MODEL).tags.get("promotions.intent")
    return tag in (f"begun {intent.digest}", f"done {intent.digest}")


# One after the other


def test_promoted_refused_and_rolled_back_as_far_as_it_goes(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote("1") == 0
    assert aliases(client) == {"champion": "1"}
    assert promote("2") == 0
    assert promote("4") == 3
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert promote("3") == 0
    assert aliases(client) == {"champion": "3", "previous": "2"}
    capsys.readouterr()

    assert main(["rollback"]) == 0
    assert capsys.readouterr().out == "tiny: version 2 is the champion again, in place of 3; version 1 is previous\n"
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert main(["rollback"]) == 0
    assert capsys.readouterr().out == (
        "tiny: version 1 is the champion again, in place of 2; there is no previous one\n"
    )
    assert aliases(client) == {"champion": "1"}
    assert main(["rollback"]) == 3
    assert capsys.readouterr().err == (
        "pdnet: error: tiny: nothing to go back to: it needs a champion and a previous one; "
        "found candidate is version 4, champion is version 1\n"
    )
    assert promote("3") == 0
    assert aliases(client) == {"champion": "3", "previous": "1"}

    assert told() == [
        ("promoted", "1", None, "1"),
        ("promoted", "2", "1", "2"),
        ("refused", "4", "2", "2"),
        ("promoted", "3", "2", "3"),
        ("rolled back", "3", "3", "2"),
        ("rolled back", "2", "2", "1"),
        ("promoted", "3", "1", "3"),
    ]
    tags = {str(each.version): each.tags.get("promotion") for each in client.search_model_versions(f"name = '{MODEL}'")}
    assert tags["2"] == "rolled back: version 1 is the champion again"
    assert tags["3"].startswith("promoted: J&F 84.00 against 80.00 of version 1, the champion: a lead of 4.00")
    assert tags["4"].startswith("refused: J&F 79.00 against 82.00 of version 2")
    assert not lock_is_there(client)


def test_the_log_says_who_when_by_which_policy_and_with_which_figures(client: mlflow.MlflowClient) -> None:
    before = time.time()
    assert promote("1") == 0
    assert promote("4") == 3
    first, refused = log()
    assert first["by"] == whoami()
    assert first["by"].endswith(f"@{socket.gethostname()}")
    assert first["at"].endswith("+00:00")
    assert (first["figures"], first["approval"], first["data"]) == ({"candidate": 80.0}, None, DATA)
    assert refused["policy"]["resamples"] == 10_000
    assert refused["figures"]["candidate"] == 79.0
    assert refused["figures"]["champion"] == 80.0
    difference = refused["figures"]["difference"]
    assert difference["low"] < difference["mean"] == -1.0 < difference["high"] < 0
    assert [row["what"] for row in refused["rows"] if row["ok"] is False] == ["lead, 95 % interval"]
    assert refused["reasons"][0].startswith("J&F 79.00 against 80.00")

    run_id = client.get_registered_model(MODEL).tags["promotions.run_id"]
    run = client.get_run(run_id)
    assert run.info.run_name == "promotions of tiny"
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "tiny"
    names = [Path(file.path).name for file in client.list_artifacts(run_id, "promotions")]
    assert names == sorted(names)
    assert [name.partition("Z-")[2] for name in names] == ["v1-promoted.json", "v4-refused.json"]
    assert all(time.strftime("%Y", time.gmtime(before)) <= name[:4] for name in names)


def test_a_dry_run_leaves_no_trace(client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote("1", "--dry-run") == 0
    assert capsys.readouterr().out.endswith(
        "it may be promoted: J&F 80.00, the first champion\n\nnothing was changed (--dry-run)\n"
    )
    assert (aliases(client), log()) == ({}, [])
    assert promote("2") == 0
    entries = log()
    assert promote("4", "--dry-run") == 3
    assert promote("3", "--dry-run") == 0
    assert (aliases(client), log()) == ({"champion": "2"}, entries)
    assert "promotion" not in client.get_model_version(MODEL, "4").tags


def test_a_champion_is_not_promoted_again(client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert promote("2") == 0
    capsys.readouterr()
    assert promote("2") == 0
    assert capsys.readouterr().out == "tiny version 2 is the champion already\n"
    assert told() == [("promoted", "2", None, "2")]


def test_a_rollback_passes_over_a_version_that_was_deleted(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    gone = add_model(write_run(tmp_path / "gone", scores(70.0)))
    assert [promote(version) for version in (gone, "2", "3")] == [0, 0, 0]
    client.delete_model_version(MODEL, gone)
    assert main(["rollback"]) == 0
    assert aliases(client) == {"champion": "2"}


@pytest.mark.parametrize(
    ("moves", "line"),
    [
        ([], []),
        ([("promoted", None, "1")], ["1"]),
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("refused", "2", "2")], ["1", "2"]),
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("rolled back", "2", "1")], ["1"]),
        # a version that came back
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("promoted", "2", "1")], ["1", "2", "1"]),
        (
            [("promoted", None, "1"), ("promoted", "1", "2"), ("promoted", "2", "1"), ("rolled back", "1", "2")],
            ["1", "2"],
        ),
        # champions that the log does not know were made by hand
        ([("promoted", None, "1"), ("promoted", "7", "2")], ["7", "2"]),
        ([("promoted", None, "1"), ("promoted", None, "2")], ["2"]),
        ([("rolled back", "3", "2")], ["2"]),
    ],
)
def test_the_line_of_champions(moves: list[tuple[str, str | None, str]], line: list[str]) -> None:
    log = [dict(zip(("outcome", "from", "to"), move, strict=True)) for move in moves]
    assert line_of_champions(log) == line


@pytest.mark.parametrize("found", [{}, {"champion": "1"}, {"previous": "1"}, {"champion": "1", "previous": "1"}])
def test_nothing_to_go_back_to(found: dict[str, str]) -> None:
    with pytest.raises(PromotionError, match="nothing to go back to"):
        rollback(MODEL, found, [], ["1"])


# Killed


def test_a_promotion_killed_before_any_of_its_calls_is_finished_by_the_next(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["promote", "--candidate", "2", "--policy", str(POLICY)]
    repaired, seen = 0, set()
    for nth in range(1, 30):
        reset(client)
        client.set_registered_model_alias(MODEL, "champion", "1")  # and no log yet: its run is made within the move
        if not killed(command, nth, tmp_path):
            break
        state = aliases(client)
        seen.add(tuple(sorted(state.items())))  # a database gives them in any order
        assert state["champion"] in ("1", "2")
        assert state.get("previous") == "1" or state["champion"] == "1"
        begun, locked = is_begun(client), lock_is_there(client)
        capsys.readouterr()
        assert main(command) == 0
        printed = capsys.readouterr()
        assert ("pdnet: finished what " in printed.err) == begun
        assert ("; nothing had been done" in printed.err) == (locked and not begun)
        assert ("was interrupted in at" in printed.err) == begun
        assert ("is the champion already" in printed.out) == begun
        repaired += begun
        assert aliases(client) == {"champion": "2", "previous": "1"}, f"killed before call {nth}"
        assert told() == [("promoted", "2", "1", "2")], f"killed before call {nth}"
        assert client.get_model_version(MODEL, "2").tags["promotion"].startswith("promoted: J&F 82.00")
        assert not lock_is_there(client)
    else:
        pytest.fail("the command never ended by itself")
    assert aliases(client) == {"champion": "2", "previous": "1"}
    # log_text, its log_artifact, previous, champion, the version's tag, done, delete
    assert repaired >= 7
    assert seen == {
        (("champion", "1"),),
        (("champion", "1"), ("previous", "1")),
        (("champion", "2"), ("previous", "1")),
    }


def test_a_rollback_killed_before_any_of_its_calls_is_finished_by_the_next(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = []
    for nth in range(1, 30):
        reset(client)
        with open_store() as store:
            for before, version in ((None, "1"), ("1", "2"), ("2", "3")):
                intent = moving.promotion(MODEL, version, ["better"], champion=before, facts={})
                moving.carry_out(store, TRACKING, intent)
        if not killed(["rollback"], nth, tmp_path):
            break
        begun = is_begun(client)
        assert aliases(client)["champion"] in ("3", "2")
        capsys.readouterr()
        assert promote("4") == 3  # another command finishes it as well
        assert (f"rolled back version 3 of {MODEL}" in capsys.readouterr().err) == begun
        ends.append(aliases(client))
        assert ends[-1] == ({"champion": "2", "previous": "1"} if begun else {"champion": "3", "previous": "2"})
        assert not lock_is_there(client)
    else:
        pytest.fail("the command never ended by itself")
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert len(ends) >= 6


def test_a_rollback_killed_before_any_of_its_calls_goes_back_once_when_it_is_run_again(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = 0
    for nth in range(1, 30):
        reset(client)
        with open_store() as store:
            for before, version in ((None, "1"), ("1", "2"), ("2", "3")):
                moving.carry_out(
                    store, TRACKING, moving.promotion(MODEL, version, ["better"], champion=before, facts={})
                )
        if not killed(["rollback"], nth, tmp_path):
            break
        begun = is_begun(client)
        capsys.readouterr()
        assert main(["rollback"]) == 0
        out = capsys.readouterr().out
        assert out.startswith("tiny: version 2 is the champion again, in place of 3; version 1 is previous")
        assert ("; this rollback had been interrupted, and is finished now" in out) == begun
        assert aliases(client) == {"champion": "2", "previous": "1"}, f"killed before call {nth}"
        assert [move[0] for move in told()] == [*["promoted"] * 3, "rolled back"], f"killed before call {nth}"
        assert not lock_is_there(client)
        finished += begun
    else:
        pytest.fail("the command never ended by itself")
    assert finished >= 6
    assert main(["rollback"]) == 0  # one that was finished is another one's business
    assert aliases(client) == {"champion": "1"}


def test_the_one_who_finishes_may_be_killed_too(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    command = ["promote", "--candidate", "2", "--policy", str(POLICY)]
    client.set_registered_model_alias(MODEL, "champion", "1")
    assert killed(command, 6, tmp_path)
    assert is_begun(client)
    for nth in (1, 3, 6):  # taking over, before the log, between the aliases
        assert killed(command, nth, tmp_path)
        assert is_begun(client)
    assert main(command) == 0
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert told() == [("promoted", "2", "1", "2")]


def test_what_was_interrupted_is_dropped_where_the_champion_was_changed_by_hand(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client.set_registered_model_alias(MODEL, "champion", "1")
    assert killed(["promote", "--candidate", "2", "--policy", str(POLICY)], 8, tmp_path)
    client.set_registered_model_alias(MODEL, "champion", "3")
    assert promote("4") == 3
    assert "dropped what " in (text := capsys.readouterr().err)
    assert "promoted version 2 of tiny; the champion is version 3 by now" in text
    assert aliases(client) == {"champion": "3"}
    assert not lock_is_there(client)
    begun, dropped, refused = log()
    assert (begun["outcome"], dropped["outcome"], refused["outcome"]) == ("promoted", "dropped", "refused")
    assert (dropped["dropped"], dropped["version"]) == (begun["file"], "2")
    assert dropped["text"] == "the champion is version 3 by now"
    assert line_of_champions([begun]) == ["1", "2"]
    assert line_of_champions([begun, dropped, refused]) == []


def test_what_was_interrupted_is_dropped_where_its_version_was_deleted(
    client: mlflow.MlflowClient, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = add_model(write_run(tmp_path / "gone", scores(83.0)))
    client.set_registered_model_alias(MODEL, "champion", "1")
    assert killed(["promote", "--candidate", gone, "--policy", str(POLICY)], 8, tmp_path)
    client.delete_model_version(MODEL, gone)
    assert promote("2") == 0
    assert f"version {gone} was deleted" in capsys.readouterr().err
    assert aliases(client) == {"champion": "2", "previous": "1"}


def test_a_store_that_refuses_leaves_a_lock_that_nobody_waits_for(
    client: mlflow.MlflowClient, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote("1") == 0

    def refuse(self: Any, name: str, alias: str, version: str) -> None:
        raise MlflowException("the champion stays")

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", refuse)
        assert promote("2") == 2
    assert "the champion stays" in capsys.readouterr().err
    assert aliases(client) == {"champion": "1"}
    assert promote("2") == 0  # this very process is alive: it has to have said that it gave up
    assert clock.waited < 1
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert told() == [("promoted", "1", None, "1"), ("promoted", "2", "1", "2")]


# At once


def run_at_once(argv: Sequence[str], gate: Any, output: Path) -> None:
    """Run a command that stops before the lock until all others have judged as well."""
    sys.stdout = sys.stderr = output.open("w")
    create = mlflow.MlflowClient.create_registered_model
    waited = False

    def create_together(*args: Any, **kwargs: Any) -> Any:
        nonlocal waited
        if not waited:
            waited = True
            gate.wait()
        return create(*args, **kwargs)

    mlflow.MlflowClient.create_registered_model = create_together  # type: ignore[method-assign]
    code = main(list(argv))
    sys.stdout.flush()
    sys.exit(code)


@pytest.mark.parametrize("candidates", [("2", "3"), ("2", "2"), ("2", "3", "2")])
def test_of_promotions_at_once_one_wins_and_the_others_say_so(
    client: mlflow.MlflowClient, tmp_path: Path, candidates: tuple[str, ...]
) -> None:
    assert promote("1") == 0
    gate = PROCESSES.Barrier(len(candidates))
    processes = [
        new_process(
            run_at_once, ["promote", "--candidate", version, "--policy", str(POLICY)], gate, tmp_path / f"output{index}"
        )
        for index, version in enumerate(candidates)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    outputs = [(tmp_path / f"output{index}").read_text() for index in range(len(candidates))]
    codes = [process.exitcode for process in processes]
    assert sorted(codes) == [0, *[3] * (len(candidates) - 1)], outputs  # type: ignore[type-var]
    winner = candidates[codes.index(0)]
    for code, output in zip(codes, outputs, strict=True):
        if code:
            assert f"tiny: version {winner} was promoted meanwhile, by {whoami()} at " in output
            assert output.rstrip().endswith("; judge again")
            assert "lead, 95 % interval" in output  # the table is shown all the same
    assert aliases(client) == {"champion": winner, "previous": "1"}
    assert told()[1:] == [("promoted", winner, "1", winner)]
    assert not lock_is_there(client)


def hold(client: mlflow.MlflowClient, *, state: str = "begun", **facts: Any) -> None:
    """Hold the lock as this process would, in the middle of a promotion of version 2 over version 1."""
    lock = new_lock()
    intent = moving.promotion(MODEL, "2", ["it is better"], champion="1", facts={})
    if state:
        client.set_registered_model_tag(MODEL, "promotions.intent", f"{state} {intent.digest}")
    tags = {"lock": json.dumps(asdict(lock) | facts), "intent": json.dumps(asdict(intent))}
    client.create_registered_model(lock_name(MODEL), tags=tags)


class Clock:
    """A time that goes on while somebody waits, and at no other time; `at` says what happens then."""

    def __init__(self) -> None:
        self.now, self.at = time.time(), dict[float, Callable[[], None]]()
        self.started = self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for due in [due for due in self.at if due <= self.waited]:
            self.at.pop(due)()

    @property
    def waited(self) -> float:
        return self.now - self.started


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(promotion_lock, "time", clock)
    return clock


def test_a_lock_that_somebody_holds_is_waited_for(
    client: mlflow.MlflowClient, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote("1") == 0
    hold(client, by="ann@elsewhere", host="elsewhere", pid=7)

    def finish() -> None:
        client.set_registered_model_alias(MODEL, "champion", "2")
        client.delete_registered_model(lock_name(MODEL))

    clock.at[20.0] = finish
    assert promote("3") == 0
    assert clock.waited == pytest.approx(20, abs=0.1)
    assert "pdnet: waits for ann@elsewhere (process 7), who moves the aliases of tiny\n" in capsys.readouterr().err
    assert aliases(client) == {"champion": "3", "previous": "2"}  # it was judged against what the other left


def test_a_lock_is_taken_over_at_the_end_of_its_lease(
    client: mlflow.MlflowClient, clock: Clock, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(promotion_lock, "POLL", 2.0)
    assert promote("1") == 0
    hold(client, by="ann@elsewhere", host="elsewhere", pid=7)
    assert promote("4") == 3
    assert clock.waited == pytest.approx(60, abs=2.5)
    text = capsys.readouterr().err
    assert "waits for ann@elsewhere" in text
    assert "finished what ann@elsewhere was interrupted in at 20" in text
    assert aliases(client) == {"champion": "2", "previous": "1"}


def test_a_lock_of_a_process_that_runs_is_respected_and_one_that_is_gone_is_not() -> None:
    process = PROCESSES.Process(target=os.getpid)
    process.start()
    process.join()
    assert process.pid is not None
    ours = new_lock()
    assert not ours.is_left_behind
    assert replace(ours, pid=process.pid).is_left_behind
    assert not replace(ours, pid=process.pid, host="elsewhere").is_left_behind
    # A container with the name of its machine has processes of its own.
    assert not replace(ours, pid=process.pid, host=f"{socket.gethostname()}/1").is_left_behind
    assert replace(ours, host="elsewhere", since=time.time() + 3600).is_left_behind
    assert replace(ours, host="elsewhere", since=time.time() - 61).is_left_behind
    assert replace(ours, abandoned=True).is_left_behind


def test_a_holder_that_was_taken_over_stops_before_its_next_call(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert promote("1") == 0
    set_alias = mlflow.MlflowClient.set_registered_model_alias

    def sleep_too_long(self: Any, name: str, alias: str, version: str) -> None:
        set_alias(self, name, alias, version)
        with open_store() as store:  # what another process does meanwhile
            held = read_lock(store, TRACKING)
            patch.undo()
            moving._finish(store, TRACKING, held)  # type: ignore[arg-type]
        assert main(["rollback"]) == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", sleep_too_long)
        assert promote("2") == 3
    assert "somebody has taken it over and finishes it" in capsys.readouterr().err
    assert aliases(client) == {"champion": "1"}  # the rollback stands
    assert [move[0] for move in told()] == ["promoted", "promoted", "rolled back"]


@pytest.mark.parametrize("state", ["", "done", "dropped"])
def test_a_lock_whose_intent_the_model_does_not_call_begun_moves_nothing(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    """Whoever has an account may make such a lock, and may copy an intent that was carried out once."""
    assert promote("1") == 0
    hold(client, state=state, by="eve@elsewhere", abandoned=True)
    assert promote("4") == 3
    words = "finished what eve@elsewhere" if state == "done" else "removed the lock that eve@elsewhere left at 20"
    assert words in capsys.readouterr().err
    assert aliases(client) == {"champion": "1"}
    assert [move[0] for move in told()] == ["promoted", "refused"]
    assert not lock_is_there(client)


def test_an_intent_that_was_changed_after_it_was_begun_moves_nothing(client: mlflow.MlflowClient) -> None:
    assert promote("1") == 0
    hold(client, abandoned=True)
    intent = json.loads(client.get_registered_model(lock_name(MODEL)).tags["intent"])
    for changed in (intent | {"aliases": {"champion": "4"}}, {"version": "4"}, [4]):
        with contextlib.suppress(MlflowException):
            client.create_registered_model(lock_name(MODEL), tags={"lock": json.dumps(asdict(left()))})
        client.set_registered_model_tag(lock_name(MODEL), "intent", json.dumps(changed))
        with open_store() as store:
            assert moving.finish_interrupted(store, TRACKING) is None
        assert aliases(client) == {"champion": "1"}
        assert not lock_is_there(client)


def left() -> Lock:
    """A lock that was left behind."""
    return replace(new_lock(), abandoned=True)


@pytest.mark.parametrize(
    "call", ["create_run", "set_registered_model_tag", "log_text"], ids=["experiment", "model", "log"]
)
def test_who_may_not_write_leaves_no_lock_and_moves_nothing(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], call: str
) -> None:
    client.set_registered_model_alias(MODEL, "champion", "1")
    original = getattr(mlflow.MlflowClient, call)

    def refuse(self: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if call == "set_registered_model_tag" and name != MODEL:
            return original(self, name, *args, **kwargs)
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, call, refuse)
        assert promote("2") == 2
    assert f"{whoami()} may not promote or roll back: that takes EDIT on the registered model 'tiny'" in (
        capsys.readouterr().err
    )
    assert not lock_is_there(client)
    assert (aliases(client), log()) == ({"champion": "1"}, [])
    assert promote("2") == 0
    assert capsys.readouterr().err == ""


def test_who_may_set_aliases_but_not_remove_them_rolls_back_to_the_first(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [promote("1"), promote("2")] == [0, 0]

    def refuse(*args: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "delete_registered_model_alias", refuse)
        assert main(["rollback"]) == 0
        assert capsys.readouterr().err.endswith(": to remove it takes MANAGE on the model\n")
        assert main(["rollback"]) == 3
    assert aliases(client) == {"champion": "1", "previous": "1"}
    assert promote("2") == 0
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert not lock_is_there(client)


def test_a_lock_of_another_account_is_told_in_one_line(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hold(client, by="ann@elsewhere", abandoned=True)

    def refuse(*args: Any) -> None:
        raise MlflowException("Permission denied", error_code=PERMISSION_DENIED)

    monkeypatch.setattr(mlflow.MlflowClient, "set_registered_model_tag", refuse)
    assert promote("2") == 2
    assert capsys.readouterr().err.partition(": ann@")[2] == (
        "elsewhere left the lock of tiny's aliases, which this account may not remove; they, or an administrator, "
        "have to run the command, or to delete the registered model 'tiny-promotion'\n"
    )


def test_two_who_take_the_same_lock_over_finish_it_once(
    client: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert promote("1") == 0
    hold(client, abandoned=True)
    gate, written, failures, finished = threading.Barrier(2), threading.Barrier(2), [], []

    # Both write their name before either looks whose stands: what the pause is for, whatever the machine's speed.
    def sleep(seconds: float) -> None:
        if seconds == promotion_lock.SETTLE:
            written.wait()
        else:
            time.sleep(seconds)

    monkeypatch.setattr(promotion_lock, "time", SimpleNamespace(time=time.time, sleep=sleep))

    def finish() -> None:
        try:
            gate.wait()
            finished.append(moving._finish(store, TRACKING, read_lock(store, TRACKING)))  # type: ignore[arg-type]
        except Exception as error:
            failures.append(error)

    with open_store() as store:
        threads = [threading.Thread(target=finish) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
    assert sorted(each is None for each in finished) == [False, True]
    assert aliases(client) == {"champion": "2", "previous": "1"}
    assert told()[1:] == [("promoted", "2", "1", "2")]
    assert not lock_is_there(client)


@pytest.mark.parametrize(
    "facts",
    [
        None,
        {"by": "eve\x1b[31m"},
        {"nonce": 7},
        {"pid": 0},
        {"pid": 2**31},
        {"since": "yesterday"},
        {"since": float("nan")},  # would be respected for ever
        {"since": 1e300},
        {"since": -1},
        {"since": None},
    ],
)
def test_a_model_of_the_locks_name_is_not_taken_for_a_lock(
    client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str], facts: dict[str, Any] | None
) -> None:
    lock = json.dumps(asdict(left()) | (facts or {}))
    client.create_registered_model(lock_name(MODEL), tags={} if facts is None else {"lock": lock, "intent": "{}"})
    assert promote("1") == 2
    assert NOT_A_LOCK in capsys.readouterr().err


def test_a_prompt_of_the_locks_name_is_told(client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]) -> None:
    """MLflow keeps prompts among its registered models, and shows them to nobody who asks for a model."""
    client.register_prompt(lock_name(MODEL), "What is a portrait?")
    try:
        assert promote("1") == 2
    finally:
        client.delete_prompt_version(lock_name(MODEL), "1")
        client.delete_prompt(lock_name(MODEL))
    assert NOT_A_LOCK in capsys.readouterr().err
    assert promote("1") == 0


@pytest.mark.parametrize("text", ['{"outcome": "prom', "[]", '{"outcome": "promoted"}'])
def test_what_is_no_entry_is_told_and_passed_over(
    client: mlflow.MlflowClient, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    assert promote("1") == 0
    run_id = client.get_registered_model(MODEL).tags["promotions.run_id"]
    client.log_text(run_id, text, "promotions/20990101T000000.000000Z-v9-promoted.json")
    assert told() == [("promoted", "1", None, "1")]
    assert "v9-promoted.json is no entry of it" in caplog.text
