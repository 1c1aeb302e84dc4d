"""OpenVINO's engine in a process that lives on after it."""

import subprocess
import sys

import pytest

from tests.compilers.nets import conv_net, images, lowered

pytest.importorskip("thrifty.engines.openvino")  # not "openvino" itself, which would start its telemetry
from thrifty.compilers.openvino import OpenVino

OPENED = """
import gc, os, signal, sys, time
from pathlib import Path
from thrifty.engines.openvino import OpenVinoEngine

first, second = (OpenVinoEngine(Path(sys.argv[1]), 1, "fp32") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
if (child := os.fork()) == 0:
    signal.alarm(60)
    OpenVinoEngine(Path(sys.argv[1]), 1, "fp32")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "a forked process could not open one"
rang = []
signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while not rang:
    time.sleep(0.01)
print("rang")
"""


def test_engines_that_come_and_go_leave_a_process_that_forks_and_takes_signals(tmp_path):
    net, x = conv_net(), images()
    lowered(OpenVino(), net, (x[:1],), tmp_path)
    done = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path / "model.xml")], capture_output=True, text=True,
                          check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "rang"), done.stderr
