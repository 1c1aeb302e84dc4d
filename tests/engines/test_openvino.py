"""OpenVINO's engine in a process that lives on after it."""

import subprocess
import sys

import pytest

from tests.compilers.nets import conv_net, images, lowered

pytest.importorskip("thrifty.engines.openvino")  # not "openvino" itself, which would start its telemetry
from thrifty.compilers.openvino import OpenVino

OPENED = """
import gc, signal, sys, time
from pathlib import Path
from thrifty.engines.openvino import OpenVinoEngine

first, second = (OpenVinoEngine(Path(sys.argv[1]), 1, "fp32") for _ in range(2))
del first
gc.collect()
del second
gc.collect()
rang = []
signal.signal(signal.SIGALRM, lambda *_: rang.append(True))
signal.setitimer(signal.ITIMER_REAL, 0.05)
while not rang:
    time.sleep(0.01)
print("rang")
"""


def test_engines_that_come_and_go_leave_a_process_that_takes_signals(tmp_path):
    net, x = conv_net(), images()
    lowered(OpenVino(), net, (x[:1],), tmp_path)
    done = subprocess.run([sys.executable, "-c", OPENED, str(tmp_path / "model.xml")], capture_output=True, text=True,
                          check=False, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "rang"), done.stderr
