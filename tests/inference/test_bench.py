"""What `pdnet bench` reports: ratios of the same round, whatever the machine did meanwhile."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_profile import SIZE, decided_network, write_params

from pdnet.cli import main
from pdnet.inference.bench import (
    FORMAT,
    LEAD_IN,
    PeakMemory,
    Spread,
    bench_record,
    compare,
    flushed_denormals,
    format_record,
    peak_memory,
    turns,
)
from pdnet.inference.session import PortraitSession
from pdnet.inference.ways import (
    compare_streams,
    largest_differences,
    measure,
    open_pair,
    some_frame,
    ways_of,
)
from pdnet.steps.bench import lay_out
from pdnet.weights import save_model

CPU = torch.device("cpu")


class Machine:
    """A clock, and calls of known cost; `load` says how many times slower everything is in a round.

    A round is over when each alternative has been timed; warm-up rounds count.
    """

    def __init__(self, costs: dict[str, float], load: list[float]) -> None:
        self.now, self.costs, self.load = 0.0, costs, load
        self.calls: list[str] = []

    def alternatives(self, calls_a_round: int):
        def call(name: str) -> None:
            turn = len(self.calls) // (calls_a_round * len(self.costs))
            self.calls.append(name)
            self.now += self.costs[name] * self.load[turn]

        return {name: partial(call, name) for name in self.costs}


def test_ratios_of_the_same_round_do_not_see_foreign_load():
    load = [1.0, 10.0, 1.0, 10.0, 3.0, 10.0, 2.0]
    machine = Machine({"slow": 0.8, "fast": 0.1, "slower": 1.0}, load)
    found = compare(machine.alternatives(1 + LEAD_IN), rounds=7, warm_up=0, clock=lambda: machine.now)
    assert found.baseline == "slow"
    assert found.rounds == 7
    assert found.ratio("fast") == pytest.approx((8, 8, 8))
    assert found.ratio("slower") == pytest.approx((0.8, 0.8, 0.8))
    assert found.ratio("slow") == pytest.approx((1, 1, 1))
    assert found.times["fast"] == pytest.approx([100 * each for each in load])  # all of them, milliseconds, in order
    assert found.milliseconds("fast").median == pytest.approx(300)
    assert found.milliseconds("fast").p95 == pytest.approx(1000)


def test_load_on_one_alternative_is_seen_in_the_spread():
    machine = Machine({"a": 1.0, "b": 1.0}, [1.0] * 10)
    alternatives = machine.alternatives(1 + LEAD_IN)
    turn = iter(range(100))

    def disturbed() -> None:
        alternatives["b"]()
        machine.now += 9.0 if next(turn) == 2 * LEAD_IN + 1 else 0.0  # the timed call of the second round

    both = {"a": alternatives["a"], "b": disturbed}
    found = compare(both, rounds=10, warm_up=0, clock=lambda: machine.now)
    assert found.ratio("b").median == pytest.approx(1)
    assert found.ratio("b").p5 < 0.7


def test_warm_up_is_not_timed_and_nothing_else_is_left_out():
    machine = Machine({"a": 1.0, "b": 2.0}, [1.0] * 50)
    found = compare(machine.alternatives(1), rounds=4, warm_up=3, clock=lambda: machine.now)
    assert found.warm_up == 3
    assert {name: len(times) for name, times in found.times.items()} == {"a": 4, "b": 4}
    assert Counter(machine.calls) == dict.fromkeys(("a", "b"), 3 + 4 * (1 + LEAD_IN))


def test_each_alternative_has_each_place_and_neighbour():
    names = ["a", "b", "c", "d"]
    rounds = [turns(names, turn) for turn in range(2 * len(names))]
    assert all(sorted(order) == names for order in rounds)
    for place in range(len(names)):
        assert Counter(order[place] for order in rounds) == dict.fromkeys(names, 2)
    before = {(order[i], order[i + 1]) for order in rounds for i in range(len(names) - 1)}
    assert {("a", "b"), ("b", "a"), ("c", "d"), ("d", "c")} <= before


def test_the_order_of_the_calls_rotates():
    machine = Machine({"a": 1.0, "b": 1.0, "c": 1.0}, [1.0] * 50)
    compare(machine.alternatives(1), rounds=3, warm_up=0, clock=lambda: machine.now)
    timed = machine.calls[LEAD_IN :: 1 + LEAD_IN]
    assert "".join(timed) == "abc" + "bca" + "cab"


def test_spread_is_of_nine_values_in_ten():
    assert Spread.of(range(101)) == (50, 5, 95)
    assert Spread.of([7.0]) == (7, 7, 7)


def some_record(measure: str, machine: Machine) -> dict:
    found = compare(
        machine.alternatives(1 + LEAD_IN), rounds=4, warm_up=0, table="t", measure=measure, clock=lambda: machine.now
    )
    return bench_record(
        [found],
        command="pdnet bench",
        device=CPU,
        flush_denormals=True,
        model={"source": "m", "architecture": None, "size": 65, "frame": [48, 64]},
        differences={"a": 0.0, "b": 0.001},
        memory={"a": PeakMemory(10.0, 30.0, None), "b": PeakMemory(10.0, 30.0, 20.0, 5.0)},
        not_measured={"OpenVINO": "is not installed"},
    )


def test_the_form_of_the_json():
    record = json.loads(json.dumps(some_record("faster", Machine({"a": 1.0, "b": 0.5}, [1, 2, 1, 1]))))
    assert record["format"] == FORMAT
    assert record["threads"] == torch.get_num_threads()
    assert record["flush_denormals"] is True
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert {"pdnet", "python", "torch", "onnxruntime", "openvino"} == set(record["versions"])
    (comparison,) = record["comparisons"]
    assert {key: comparison[key] for key in ("table", "measure", "baseline", "rounds", "warm_up", "lead_in")} == {
        "table": "t",
        "measure": "faster",
        "baseline": "a",
        "rounds": 4,
        "warm_up": 0,
        "lead_in": LEAD_IN,
    }
    assert comparison["rows"][1] == {
        "name": "b",
        "ms": {"median": 500.0, "p5": 500.0, "p95": 925.0},
        "ratio": {"median": 2.0, "p5": 2.0, "p95": 2.0},
        "times_ms": [500.0, 1000.0, 500.0, 500.0],
    }
    assert record["memory"] == {
        "a": {"start_mib": 10.0, "peak_mib": 30.0, "running_mib": None, "device_mib": None},
        "b": {"start_mib": 10.0, "peak_mib": 30.0, "running_mib": 20.0, "device_mib": 5.0},
    }


@pytest.mark.parametrize(("measure", "shown"), [("faster", "2.00x"), ("share", "200.0 %"), ("cost", "-50.0 %")])
def test_the_table(measure, shown):
    text = format_record(some_record(measure, Machine({"a": 1.0, "b": 0.5}, [1, 2, 1, 1])))
    row, memory = (line for line in text.splitlines() if line.startswith("b "))
    assert row.split()[:2] == ["b", "500.0"]
    assert memory.split() == ["b", "10", "30", "20", "5"]
    (other,) = (line for line in text.splitlines() if line.startswith("a ") and "30" in line.split())
    assert other.split() == ["a", "10", "30", "–", "–"]
    assert shown in row
    assert "not measured: OpenVINO: is not installed" in text
    assert "denormals flushed" in text


def test_denormals_are_flushed_meanwhile_alone():
    tiny = torch.tensor([1e-40])
    with flushed_denormals() as able:
        assert not able or (tiny * 1.0).item() == 0
    assert (tiny * 1.0).item() != 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, decided_network(), {"size": SIZE})
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """The real command on a network of the tiny profile."""
    folder = tmp_path_factory.mktemp("bench")
    params = write_params(folder / "params.yaml")
    options = ["--random", str(params), "--device", "cpu", "--rounds", "1", "--batch", "2", "--out", str(folder / "o")]
    assert main(["bench", *options]) == 0
    return json.loads((folder / "o").read_text())


def test_the_command_compares_what_is_here(result):
    network, streams, *others = result["comparisons"]
    here = [row["name"] for row in network["rows"]]
    assert here[:2] == ["pair formulation", "torch, fp32"]
    assert "ONNX Runtime, fp32" in here
    assert ("OpenVINO, fp32" in here) != ("OpenVINO" in result["not_measured"])
    assert network["baseline"] == "pair formulation"
    assert any("compiled" in name for name in result["not_measured"])
    assert [row["name"] for row in streams["rows"]] == ["pre- and post-processing", *here[1:]]
    assert streams["measure"] == "share"
    batches = [[row["name"] for row in each["rows"]] for each in others if each["table"] == "2 frames"]
    assert batches == [[f"{name}, one by one", f"{name}, at once"] for name in here[1:]]
    second = [[row["name"] for row in each["rows"]] for each in others if each["table"] == "second reference"]
    assert second == [[f"{name}, N = 1", f"{name}, N = 2"] for name in here[1:]]
    parts = [[row["name"] for row in each["rows"]] for each in others if each["table"] == "parts"]
    assert parts == [[f"{name}, p = 3", f"{name}, p = 16"] for name in here[1:]]
    assert all(len(row["times_ms"]) == 1 and row["times_ms"][0] > 0 for row in network["rows"])
    assert result["model"]["size"] == SIZE
    assert result["command"].startswith("pdnet bench --random ")


def test_what_is_compared_computes_the_same(result):
    differences = result["largest_difference"]
    assert differences["pair formulation"] == 0
    assert all(value < 1e-3 for name, value in differences.items() if name.endswith("fp32"))


def test_a_trained_model_needs_no_export_to_be_timed_by_torch(model, tmp_path):
    subject = lay_out(tmp_path, model=model, graphs=False)
    ways = ways_of(subject, CPU)
    assert "torch, fp32" in ways.streaming
    assert "ONNX Runtime" in ways.not_here
    assert [variant.table for variant in subject.variants] == ["second reference"]  # of weights for 3 parts
    one = ways._replace(streaming={"torch, fp32": ways.streaming["torch, fp32"]})
    record = measure(subject, one, device=CPU, rounds=2)
    assert [row["name"] for row in record["comparisons"][0]["rows"]] == ["pair formulation", "torch, fp32"]
    assert record["largest_difference"]["torch, fp32"] < 1e-4


def test_processing_is_what_a_session_does_beside_its_network(model):
    frame = some_frame()
    session = PortraitSession(open_pair(model.parent, device=CPU), reference=frame)
    found = compare_streams({"pair": session}, frame, rounds=3)
    assert list(found.times) == ["pre- and post-processing", "pair"]
    assert 0 < found.ratio("pair").median < 1
    assert largest_differences({"pair": session, "again": session}, frame) == {"pair": 0, "again": 0}


def test_the_released_formulation_of_the_benchmark_is_the_same_function(model):
    path = Path(__file__).parents[2] / "benchmarks" / "inference.py"
    spec = importlib.util.spec_from_file_location("benchmark_inference", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    first, frame = some_frame(), np.ascontiguousarray(some_frame()[:, ::-1])
    ours = PortraitSession(open_pair(model.parent, device=CPU), reference=first)
    theirs = PortraitSession(benchmark.ReleasedFormulation(model.parent, CPU), reference=first)
    wanted, found = (session.step(frame).probability for session in (ours, theirs))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4)
    assert wanted.std() > 0.001


def test_peak_memory_is_of_a_process_of_its_own(model):
    held = np.ones(400 * 2**17)  # 400 MiB here are no memory of the child
    way = partial(open_pair, model.parent, device=CPU)
    peak = peak_memory(way, some_frame(), device=CPU, threads=1)
    here = int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x).split()[1]) / 1024
    assert 50 < peak.start_mib <= peak.peak_mib < here
    assert peak.running_mib is None or peak.running_mib <= peak.peak_mib
    assert held[0] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "expected either --model, a trained network, or --random"),
        (["--model", "m", "--random", "p"], "expected either --model"),
        (["--random", "p", "--rounds", "0"], "--rounds: 0, expected at least 1"),
        (["--random", "p", "--batch", "0"], "--batch: 0, expected at least 1"),
        (["--random", "p", "--out", "."], ".: a folder; expected the path of a file to write"),
        (["--random", "p", "--size", "0"], "--size: 0, expected at least 1"),
        (["--model", "absent.safetensors"], "absent.safetensors: no such file"),
        (["--model", "."], "expected model.safetensors, or pdnet.onnx"),
        (["--random", "absent.yaml"], "absent.yaml"),
    ],
)
def test_wrong_input_is_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", *arguments, "--device", "cpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
