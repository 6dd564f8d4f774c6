"""The pipeline on a Kubeflow cluster: submitted, and followed where asked."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import kfp.client
import kfp_server_api
import urllib3
import yaml

from pdnet.errors import PDNetError
from pipelines.run import Place, tasks_of

#: Kubeflow's own namespace, where an installation for one user executes its runs too.
KUBEFLOW = "kubeflow"
#: Of pods; installations for several users would take one that may change nearly everything.
SERVICE_ACCOUNT = "pipeline-runner"
#: Tasks read the data with it.
S3_SECRET = "pdnet-s3"  # noqa: S105 - its name
UI = f"kubectl -n {KUBEFLOW} port-forward service/ml-pipeline-ui 8080:80"

ENDED = {"SUCCEEDED": 0, "FAILED": 1, "CANCELED": 1, "SKIPPED": 1}
#: Seconds between looks at a run: the first after a change, doubled while nothing changes up to the second.
PAUSES = (0.5, 10.0)
#: Seconds for which an API that does not answer is asked on.
PATIENCE = 600.0
#: Seconds for one answer.
TIMEOUT = 30


class ClusterError(PDNetError):
    """The cluster cannot be reached, or refuses."""


class SilentError(ClusterError):
    """The API does not answer just now."""


class Client(kfp.client.Client):
    """Kubeflow's client, which asks once, has a time limit and takes no login page for an answer."""

    health: Any = None

    def _load_config(self, host: str | None, *arguments: Any) -> Any:
        config = super()._load_config(host, *arguments)
        if not host and config.host == kfp_server_api.Configuration().host:
            raise ValueError("there is none, or it cannot be used")
        config.host = found = config.host.rstrip("/")
        config.retries = False  # nor follow redirections, to a login page or another address: they are told
        if (refresh := config.refresh_api_key_hook) is not None:

            def refresh_token(refreshed: Any) -> None:
                refresh(refreshed)
                # A kube config's hook puts back the cluster's own address, and itself.
                refreshed.host, refreshed.refresh_api_key_hook = found, refresh_token

            config.refresh_api_key_hook = refresh_token
        return config

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:  # noqa: ARG002 - Kubeflow's signature
        """What the API says of itself; Kubeflow's own method asks for 25 seconds."""
        if self.health is None:
            ask = self._healthz_api.healthz_service_get_healthz_with_http_info
            health, _, headers = ask(_request_timeout=TIMEOUT)
            if "json" not in headers.get("Content-Type", ""):
                raise ValueError("no Kubeflow Pipelines API there (it answers with a page, a login perhaps)")
            self.health = health
        return self.health

    def get_run(self, run_id: str) -> Any:
        """State of a run and of its tasks."""
        run = self._run_api.run_service_get_run(run_id=run_id, _request_timeout=TIMEOUT)
        if run.run_id != run_id:
            raise ValueError("no Kubeflow Pipelines API there any more (it answers with something else)")
        return run


def run(package: str, arguments: Mapping[str, Any], place: Place) -> int:
    """Submit the run, say where it is, and follow it with `--wait`.

    Returns:
        0, or 1 when the run failed.

    Raises:
        ClusterError: the API cannot be reached or refuses, or a secret is missing.
    """
    with quiet():
        client = connected(place)
        namespace = namespace_of_run(client, place)
        if arguments["data_remote"].startswith("s3://"):
            check_secret(namespace, place)
        with contextlib.redirect_stdout(io.StringIO()), explained(place):  # the client prints links of its own
            identifier = submitted(client, package if place.cache else without_cache(package), arguments, namespace)
        link = link_to(identifier, place)
        say(f"run {identifier}: {link}")
        if not place.wait:
            return 0
        try:
            return follow(client, identifier, steps_of(package), place)
        except (ClusterError, KeyboardInterrupt):
            say(f"run {identifier} goes on: {link}")
            raise


def submitted(client: Client, package: str, arguments: Mapping[str, Any], namespace: str) -> str:
    """Identifier of the new run."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "pdnet.yaml"
        path.write_text(package, encoding="utf-8")
        started = client.create_run_from_pipeline_package(
            str(path),
            arguments=dict(arguments),
            run_name=f"data {arguments['data_md5'][:8]}, code {arguments['code'][:8]}, {datetime.now():%Y-%m-%d %H:%M}",
            experiment_name="pdnet",
            namespace=namespace if namespace != KUBEFLOW else None,
            service_account=SERVICE_ACCOUNT,
        )
    return str(started.run_id)


def follow(client: Client, identifier: str, steps: set[str], place: Place) -> int:
    """Tell each change of the run's steps until it ends; an API that does not answer for a while is waited for.

    Raises:
        ClusterError: the API has not answered for long, or refuses.
    """
    known: dict[str, str] = {}
    pause = PAUSES[0]
    silent_since = None
    while True:
        before = dict(known)
        try:
            with explained(place):
                now = client.get_run(identifier)
        except SilentError as error:
            if silent_since is None:
                say(f"{error}; asking on")
            silent_since = silent_since or time.monotonic()
            if time.monotonic() - silent_since > PATIENCE:
                raise
        else:
            if silent_since is not None:
                say("the API answers again")
            silent_since = None
            for task in (now.run_details.task_details if now.run_details else None) or []:
                if task.display_name in steps and task.state not in (None, "RUNTIME_STATE_UNSPECIFIED"):
                    if known.get(task.display_name) != task.state:
                        say(f"{task.display_name}: {task.state.lower()}{told_by(task)}")
                    known[task.display_name] = task.state
            if now.state in ENDED:
                failed = [name for name, state in known.items() if state == "FAILED"]
                # Older servers take the state of the exit handler for that of the run.
                state = "FAILED" if failed else now.state
                say(f"run {identifier}: {state.lower()}{' at ' if failed else ''}{', '.join(failed)}{told_by(now)}")
                return ENDED[state]
        pause = PAUSES[0] if known != before else min(2 * pause, PAUSES[1])
        time.sleep(pause)


def connected(place: Place) -> Client:
    """A client that has reached the API.

    Raises:
        ClusterError: nobody answers, or the token is refused, or no cluster is configured.
    """
    if place.token and not place.endpoint:
        raise ClusterError("a token is given, but not for which API: --endpoint URL or KF_PIPELINES_ENDPOINT")
    try:
        with contextlib.redirect_stdout(io.StringIO()), explained(place):
            client = Client(host=place.endpoint, existing_token=place.token)
            client.get_kfp_healthz()
    except ClusterError as error:
        if not place.endpoint:
            raise ClusterError(
                f"{error}; --endpoint URL names another, `--runner local` runs the pipeline here"
            ) from None
        if isinstance(error, SilentError):
            raise ClusterError(f"{error}; is the address right, and its port forwarded?") from None
        raise
    return client


def namespace_of_run(client: Client, place: Place) -> str:
    """Where the run's pods will be.

    Raises:
        ClusterError: the installation is for several users and none is named, or it is for one.
    """
    with explained(place):
        several = client.get_kfp_healthz().multi_user
    named = place.namespace or client.get_user_namespace()
    if several and not named:
        raise ClusterError("this Kubeflow has several users: --namespace NAME says whose run it is")
    if several is False and place.namespace not in (None, KUBEFLOW):
        raise ClusterError(
            f"--namespace {place.namespace}: this Kubeflow has one user and executes runs in its own; leave it out"
        )
    return named if several else KUBEFLOW


def check_secret(namespace: str, place: Place) -> None:
    """See that the Secret is there that tasks read the data with, where we may look.

    Raises:
        ClusterError: it is missing.
    """
    from kubernetes import client, config

    settings = client.Configuration()
    settings.retries = False
    try:
        config.load_kube_config(client_configuration=settings)
        api = client.CoreV1Api(client.ApiClient(settings))
        if place.endpoint:  # the kube config may be of another cluster
            api.read_namespaced_service("ml-pipeline", KUBEFLOW, _request_timeout=5)
    except Exception:  # whatever is wrong with a file that the run itself does not need
        return
    try:
        api.read_namespaced_secret(S3_SECRET, namespace, _request_timeout=5)
    except client.ApiException as error:
        if error.status == 404:
            remedy = f"kubectl -n {namespace} create secret generic {S3_SECRET} --from-env-file=s3.env"
            raise ClusterError(
                f"namespace '{namespace}' has no Secret '{S3_SECRET}' to read the data: `{remedy}`"
            ) from None
    except urllib3.exceptions.HTTPError:
        return


def steps_of(package: str) -> set[str]:
    """Names of the tasks that have a container; the API also lists groups, drivers and executors."""
    pipeline = next(yaml.safe_load_all(package))
    components = pipeline["components"]
    return {name for name, task in tasks_of(pipeline) if "executorLabel" in components[task["componentRef"]["name"]]}


def without_cache(package: str) -> str:
    """The compiled pipeline with no task taken from the cache; Kubeflow's own switch leaves the groups' tasks out."""
    pipeline, platform = yaml.safe_load_all(package)
    for _, task in tasks_of(pipeline):
        task.pop("cachingOptions", None)
    return yaml.safe_dump_all([pipeline, platform], sort_keys=False)


def link_to(identifier: str, place: Place) -> str:
    """The run's page."""
    page = os.environ.get("KF_PIPELINES_UI_ENDPOINT") or place.endpoint
    if page is None:
        return f"http://localhost:8080/#/runs/details/{identifier} after `{UI}`"
    return f"{page if page.startswith('http') else f'https://{page}'}".rstrip("/") + f"/#/runs/details/{identifier}"


@contextlib.contextmanager
def explained(place: Place) -> Iterator[None]:
    """Turn the client's exceptions into one line.

    Raises:
        ClusterError: what went wrong.
    """
    where = place.endpoint or "Kubeflow of the kube config"
    try:
        yield
    except kfp_server_api.ApiException as error:
        raise refusal(error, place, where) from None
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise SilentError(f"{where}: no answer ({reason_of(error)})") from None
    except ValueError as error:
        raise ClusterError(f"{where}: {one_line(error)}") from None
    except AttributeError as error:  # the client's, over a TLS error, which has no body
        if not isinstance(error.__context__, kfp_server_api.ApiException):
            raise
        raise refusal(error.__context__, place, where) from None


def refusal(error: Any, place: Place, where: str) -> ClusterError:
    """What an answer means that is not the wanted one."""
    answer = f"HTTP {error.status}"
    message = message_of(error)
    if error.status == 0:  # the certificate
        return SilentError(f"{where}: no answer ({one_line(error.reason)})")
    if error.status in (301, 302, 303, 307, 308):
        to = error.headers.get("Location", "").partition("?")[0]
        return ClusterError(
            f"{where}: sends on to {to} ({answer}): its address, or it wants a token (--existing-token)"
        )
    if error.status == 401:
        given = "the token is refused" if place.token else "it wants a token"
        return ClusterError(f"{where}: {given} ({answer}); --existing-token gives one, or KFP_EXISTING_TOKEN")
    if error.status == 403:
        return ClusterError(f"{where}: refused ({answer}: {message or error.reason}); are token and namespace right?")
    if error.status == 429 or error.status >= 500:
        return SilentError(f"{where}: {answer}: {message}" if message else f"{where}: no answer ({answer})")
    if not message:
        return ClusterError(f"{where}: no Kubeflow Pipelines API there ({answer})")
    return ClusterError(f"{where}: {answer}: {message}")


def message_of(error: Any) -> str:
    """What the API says went wrong, on one line; '' where it says nothing, or is no API."""
    try:
        content = json.loads(error.body or "")
    except ValueError:
        return ""
    return one_line(content.get("message") or content.get("error") or "") if isinstance(content, dict) else ""


def reason_of(error: BaseException) -> str:
    """The innermost cause."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return one_line(getattr(error, "strerror", None) or str(error) or type(error).__name__)


def told_by(thing: Any) -> str:
    """The error that the API tells of a run or a task, where it does."""
    return f": {one_line(thing.error.message)}" if thing.error and thing.error.message else ""


def one_line(text: object) -> str:
    """Text for a terminal's line."""
    return " ".join(str(text).split())[:300]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the client's logs and warnings out of the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def say(text: str) -> None:
    """Tell the user."""
    print(text, flush=True)
