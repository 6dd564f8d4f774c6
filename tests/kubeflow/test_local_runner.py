"""What is told to Kubeflow's local runners, and what of their words reaches the terminal."""

from __future__ import annotations

import io
import sys

import pytest
import yaml
from pipeline_file import ROOT

pytest.importorskip("kfp")
sys.path.insert(0, str(ROOT))

from pipelines.local import Console, adapted

GOLDEN = (ROOT / "tests" / "kubeflow" / "golden" / "pdnet.yaml").read_text()
IMAGES = {"image": "registry/pdnet:1", "tensorrt_image": "registry/pdnet:2"}


def retries(text: str) -> set[tuple[int, str]]:
    pipeline = next(yaml.safe_load_all(text))
    graphs = [pipeline["root"], *pipeline["components"].values()]
    tasks = [task for graph in graphs for task in graph.get("dag", {}).get("tasks", {}).values()]
    policies = [task["retryPolicy"] for task in tasks if "retryPolicy" in task]
    return {(policy["maxRetryCount"], policy["backoffDuration"]) for policy in policies}


def test_each_task_runs_its_own_image():
    executors = next(yaml.safe_load_all(adapted(GOLDEN, IMAGES, retries=True)))["deploymentSpec"]["executors"]
    images = {name: executor["container"]["image"] for name, executor in executors.items()}
    assert images.pop("exec-export-tensorrt") == "registry/pdnet:2"
    assert set(images.values()) == {"registry/pdnet:1"}


def test_processes_are_not_retried_and_containers_are_without_a_long_wait():
    assert retries(GOLDEN) == {(2, "30s"), (5, "30s")}
    assert retries(adapted(GOLDEN, IMAGES, retries=False)) == {(0, "1s")}
    assert retries(adapted(GOLDEN, IMAGES, retries=True)) == {(2, "1s")}


LINES = """\
12:00:00.000 - INFO - Executing task \x1b[96m'train'\x1b[0m
12:00:00.000 - INFO - Streamed logs:
    [KFP Executor 2026-01-01 12:00:01,000 INFO]: Got executor_input:
    {
        "inputs": {}
    }
    pdnet: error: train: no memory
12:00:02.000 - ERROR - Task \x1b[96m'train'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
Task train failed (attempt 1/3). Retrying in 1.0s...
12:00:03.000 - INFO - Executing task \x1b[96m'train'\x1b[0m
12:00:04.000 - INFO - Task \x1b[96m'train'\x1b[0m finished with status \x1b[92mSUCCESS\x1b[0m
12:00:04.000 - INFO - Task \x1b[96m'train'\x1b[0m outputs:
    out: Model( name='out',
                uri='/somewhere',
                metadata={} )
Task report cache hit (key=0123456789ab); skipping execution.
"""


@pytest.mark.parametrize("succeeded", [True, False])
def test_a_person_reads_steps_errors_and_the_end(tmp_path, succeeded):
    terminal = io.StringIO()
    console = Console(tmp_path / "run.log", terminal)
    end = f"12:00:09.000 - INFO - Pipeline 'pdnet' finished with status {'SUCCESS' if succeeded else 'FAILURE'}"
    text = LINES + end + "\n"
    for start in range(0, len(text), 7):  # in pieces, as it comes
        console.write(text[start : start + 7])
    assert console.summary() == (0 if succeeded else 1)
    told = terminal.getvalue().splitlines()
    assert [line.partition(" after ")[0] for line in told] == [
        "train ...",
        "    pdnet: error: train: no memory",
        "train: FAILED",
        "train: attempt 1/3 failed, trying again",
        "train ...",
        "train: done",
        "report: unchanged, taken from an earlier run",
        "pipeline: done" if succeeded else "pipeline: FAILED",
    ]
    assert (tmp_path / "run.log").read_text() == text
