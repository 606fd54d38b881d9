"""A process ends as it should, whatever its daemon threads are reading."""

import subprocess
import sys
import threading
from itertools import pairwise
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from e2rank.encoders.onnx.exiting import Runs

_SCRIPT = """
import sys, threading, time
from pathlib import Path
import numpy as np
from e2rank.encoders.onnx.sessions import CPU, Sessions

graph = Sessions(Path(sys.argv[1]), provider=CPU, threads=1)
feed = {"x": np.ones((50, 50), dtype=np.float32)}
begun = threading.Barrier(9)

def loop():
    graph.run(["y"], feed, beside=False)
    begun.wait()
    while True:
        graph.run(["y"], feed, beside=False)

for _ in range(8):
    threading.Thread(target=loop, daemon=True).start()
begun.wait()
sys.exit()
"""


def test_daemon_threads_that_read_do_not_abort_the_process_at_its_end(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "n"]) for name in "xy"]
    names = ["x", *(f"x{place}" for place in range(20)), "y"]
    nodes = [helper.make_node("MatMul", [one, one], [other]) for one, other in pairwise(names)]
    made = helper.make_graph(nodes, "slow", ends[:1], ends[1:])
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(made, opset_imports=[opset], ir_version=10), tmp_path / "x.onnx")
    words = [sys.executable, "-c", _SCRIPT, str(tmp_path / "x.onnx")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_at_the_end_runs_are_waited_for_and_daemon_threads_begin_no_more() -> None:
    runs, inside, on, done = Runs(), threading.Event(), threading.Event(), []

    def reads() -> None:
        with runs.one():
            inside.set()
            on.wait()
            done.append("first")
        with runs.one():
            done.append("second")

    thread = threading.Thread(target=reads, daemon=True)
    thread.start()
    inside.wait()
    ending = threading.Thread(target=runs.end, daemon=True)
    ending.start()
    ending.join(0.1)
    assert ending.is_alive()
    on.set()
    ending.join(5)
    assert not ending.is_alive()
    thread.join(0.1)
    assert (done, thread.is_alive()) == (["first"], True)
    # What else reads at the end, such as another's atexit, is not in Python's way.
    with runs.one():
        done.append("main")
    assert done == ["first", "main"]


def test_a_run_that_fails_is_not_waited_for() -> None:
    runs = Runs()
    with pytest.raises(RuntimeError), runs.one():
        raise RuntimeError
    ending = threading.Thread(target=runs.end, daemon=True)
    ending.start()
    ending.join(5)
    assert not ending.is_alive()


_FORKING = """
import os, sys, threading
from e2rank.encoders.onnx import exiting

exiting._PATIENCE = 1e6
begun, ended = threading.Event(), threading.Event()

def reads():
    with exiting.RUNS.one():
        begun.set()
        ended.wait()

threading.Thread(target=reads).start()
begun.wait()
if not (child := os.fork()):
    sys.exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ended.set()
"""


def test_a_forked_child_does_not_wait_for_the_runs_of_its_parent() -> None:
    words = [sys.executable, "-c", _FORKING]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")
