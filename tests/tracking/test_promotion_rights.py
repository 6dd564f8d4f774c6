"""Promotions by accounts of different rights, on the server of infra/stack: who moves, who is told what it takes."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow_server import server
from processes import killed
from registered_models import MODEL, add_model, aliases, lock_is_there, reset, scores, write_run
from tiny_profile import write_params

from pdnet.cli import main
from pdnet.tracking import TrackingConfig, promotion_lock
from pdnet.tracking import aliases as moving
from pdnet.tracking.promotion_lock import Lock, lock_name
from pdnet.tracking.promotion_log import read_log
from pdnet.tracking.store import open_store

pytestmark = pytest.mark.slow

TRACKING = TrackingConfig(experiment="tiny", model=MODEL)
POLICY = Path(__file__).parents[2] / "configs" / "promotion.yaml"
EDIT_MODEL, EDIT_LOG = ("registered_model", MODEL), ("experiment", "tiny")
#: The accounts beside the owner's and the administrator's, and what each may change; all may read everything.
GRANTS = {"reader": (), "editor": (EDIT_MODEL,), "promoter": (EDIT_MODEL, EDIT_LOG)}
OWNER = f"pdnet@{socket.gethostname()}"

SignIn = Callable[[str], None]


@pytest.fixture(scope="module")
def passwords(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Those of the accounts, while the environment names a server with two models of `pdnet`, the better one second."""
    from mlflow.server.auth.client import AuthServiceClient

    root = tmp_path_factory.mktemp("rights")
    with pytest.MonkeyPatch.context() as patch, server() as running:
        patch.setenv("MLFLOW_TRACKING_URI", running.uri)
        patch.setenv("MLFLOW_TRACKING_USERNAME", running.username)
        patch.setenv("MLFLOW_TRACKING_PASSWORD", running.password)
        for name, jf in {"first": 80.0, "second": 82.0}.items():
            add_model(write_run(root / name, scores(jf)))
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", running.admin_password)
        experiment = mlflow.MlflowClient(running.uri).get_experiment_by_name("tiny")
        users = AuthServiceClient(running.uri)
        kept = {running.username: running.password, "admin": running.admin_password}
        for name, grants in GRANTS.items():
            kept[name] = f"the password of {name}"
            users.create_user(name, kept[name])
            for kind, what in grants:
                place = experiment.experiment_id if kind == "experiment" else what
                users.grant_user_permission(name, kind, place, "EDIT")
        yield kept


@pytest.fixture
def sign_in(passwords: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> SignIn:
    """Be somebody else from now on."""

    def as_account(name: str) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", passwords[name])

    return as_account


@pytest.fixture
def client(sign_in: SignIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Speaks to the server as whoever is signed in, at first the owner; nothing has been promoted."""
    monkeypatch.setattr(promotion_lock, "SETTLE", 0.1)
    monkeypatch.setattr(promotion_lock, "POLL", 0.05)
    write_params(tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    client = mlflow.MlflowClient()
    sign_in("admin")
    reset(client)
    sign_in("pdnet")
    return client


def promotion_of(version: str) -> list[str]:
    return ["promote", "--candidate", version, "--policy", str(POLICY)]


def promote(version: str) -> int:
    return main(promotion_of(version))


def be_champion(version: str, before: str | None) -> None:
    """Promote a version without judging it."""
    with open_store() as store:
        moving.carry_out(store, TRACKING, moving.promotion(MODEL, version, ["better"], champion=before, facts={}))


def standing(client: mlflow.MlflowClient) -> tuple[Any, ...]:
    """All that a promotion may change, but for how far the last intent is."""
    versions = {str(each.version): each.tags for each in client.search_model_versions(f"name = '{MODEL}'")}
    with open_store() as store:
        return aliases(client), read_log(store, MODEL), versions


def told(client: mlflow.MlflowClient, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr, without its beginning."""
    text = capsys.readouterr().err
    start = f"pdnet: error: MLflow at {client.tracking_uri}: "
    assert text.startswith(start)
    assert text.count("\n") == 1
    return text.removeprefix(start).rstrip("\n")


@pytest.mark.parametrize("account", ["reader", "editor"])
def test_who_lacks_a_right_is_told_what_it_takes_and_changes_nothing(
    client: mlflow.MlflowClient, sign_in: SignIn, capsys: pytest.CaptureFixture[str], account: str
) -> None:
    needed = (
        f"{account}@{socket.gethostname()} may not promote or roll back: that takes EDIT on the registered model "
        "'tiny' and on the experiment 'tiny', which has the promotion log"
    )

    def refused(*argv: str) -> None:
        before = standing(client)
        sign_in(account)
        capsys.readouterr()
        assert main(list(argv)) == 2
        assert told(client, capsys) == needed
        assert standing(client) == before
        assert not lock_is_there(client)
        sign_in("pdnet")

    refused(*promotion_of("1"))  # there is no log yet
    be_champion("1", None)
    refused(*promotion_of("2"))
    be_champion("2", "1")
    refused("rollback")
    assert main(["rollback"]) == 0
    assert aliases(client) == {"champion": "1"}


@pytest.mark.parametrize("how", ["refused", "killed"])
def test_what_the_owner_was_interrupted_in_is_the_owners_to_finish(
    client: mlflow.MlflowClient,
    sign_in: SignIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
) -> None:
    be_champion("1", None)
    if how == "killed":
        assert killed(promotion_of("2"), 6, tmp_path)
    else:

        def fail(*args: Any) -> None:
            raise ConnectionError("the network is gone")

        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", fail)
            assert promote("2") == 2
    before = standing(client), client.get_registered_model(lock_name(MODEL)).tags
    capsys.readouterr()
    for account in ("reader", "promoter"):
        sign_in(account)
        for command in (promotion_of("2"), ["rollback"]):
            assert main(command) == 2
            assert told(client, capsys) == (
                f"{OWNER} left the lock of tiny's aliases, which this account may not remove; they, or an "
                "administrator, have to run the command, or to delete the registered model 'tiny-promotion'"
            )
    assert (standing(client), client.get_registered_model(lock_name(MODEL)).tags) == before

    sign_in("pdnet")
    assert promote("2") == 0
    said = capsys.readouterr()
    assert f"pdnet: finished what {OWNER} was interrupted in at " in said.err
    assert said.out == "tiny version 2 is the champion already\n"
    now, log, _ = standing(client)
    assert now == {"champion": "2", "previous": "1"}
    assert [entry["outcome"] for entry in log] == ["promoted", "promoted"]
    assert not lock_is_there(client)


@pytest.mark.parametrize("forged", ["new", "copied"])
def test_a_planted_lock_is_told_and_what_is_in_it_is_never_done(
    client: mlflow.MlflowClient,
    sign_in: SignIn,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    forged: str,
) -> None:
    seen = []
    make = mlflow.MlflowClient.create_registered_model

    def make_seen(self: Any, name: str, tags: dict[str, str], description: str) -> Any:
        seen.append(tags["intent"])  # all may read a lock
        return make(self, name, tags, description)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "create_registered_model", make_seen)
        be_champion("1", None)
    client.delete_registered_model_alias(MODEL, "champion")  # by hand, so what was done once fits again
    before = standing(client)

    sign_in("reader")
    intent = moving.promotion(MODEL, "1", ["it pleases me"], champion=None, facts={})
    lock = Lock("00", OWNER, "elsewhere", 7, 0.0)
    text = json.dumps(asdict(intent)) if forged == "new" else seen[0]
    client.create_registered_model(lock_name(MODEL), tags={"lock": json.dumps(asdict(lock)), "intent": text})

    sign_in("pdnet")
    capsys.readouterr()
    assert promote("2") == 2
    assert told(client, capsys).endswith(
        "an administrator, have to run the command, or to delete the registered model 'tiny-promotion'"
    )
    assert standing(client) == before

    sign_in("admin")
    with open_store() as store:
        moving.finish_interrupted(store, TRACKING)
    assert standing(client) == before
    assert not lock_is_there(client)
    sign_in("pdnet")
    assert promote("2") == 0
    assert aliases(client) == {"champion": "2"}


def test_edit_on_model_and_log_is_enough(
    client: mlflow.MlflowClient, sign_in: SignIn, capsys: pytest.CaptureFixture[str]
) -> None:
    sign_in("promoter")
    assert [promote("1"), promote("2")] == [0, 0]
    assert aliases(client) == {"champion": "2", "previous": "1"}
    capsys.readouterr()
    assert main(["rollback"]) == 0
    assert capsys.readouterr().err == (
        "pdnet: the alias previous of tiny stays on the champion: to remove it takes MANAGE on the model\n"
    )
    assert aliases(client) == {"champion": "1", "previous": "1"}
    assert not lock_is_there(client)
    assert main(["rollback"]) == 3
    assert "nothing to go back to" in capsys.readouterr().err

    sign_in("pdnet")  # the owner is not held up by what others have done
    be_champion("2", "1")
    assert main(["rollback"]) == 0
    assert aliases(client) == {"champion": "1"}
    _, log, _ = standing(client)
    assert [(entry["outcome"], entry["by"].partition("@")[0]) for entry in log] == [
        ("promoted", "promoter"),
        ("promoted", "promoter"),
        ("rolled back", "promoter"),
        ("promoted", "pdnet"),
        ("rolled back", "pdnet"),
    ]
