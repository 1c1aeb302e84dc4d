"""Workload files that attack: `thrifty check` answers each in one line, says nothing of success, and lives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.runs.test_faulty_workloads import HEAD, RECIPE, TAIL, given, items, loss, net, quality
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, FAILED, USAGE
from thrifty.errors import WorkloadError
from thrifty.workloads.blame import ExitCalled, ending_refused, part

LEAVES = "__import__('os')._exit(0)"
RAISES = "class Own(BaseException):\n    pass\n"


FILES: dict[str, str | bytes] = {
    # whoever leaves
    "leaves at once": LEAVES, "exits": "raise SystemExit", "exits well": "import sys; sys.exit(0)", "quits": "quit()",
    "the model leaves": given(model=f"lambda: {LEAVES}"), "forward leaves": net(f"{LEAVES}; return super().forward(x)"),
    "the loss leaves": loss(LEAVES), "quality leaves": quality(LEAVES), "an item leaves": items(LEAVES),
    "the example leaves": given(example=f"lambda n: {LEAVES}"), "collate leaves": given(collate=f"lambda items: {LEAVES}"),
    "forward exits in training": net("(self.training and exit(0)); return super().forward(x)"),
    "forward of the workload leaves": given(forward=f"lambda model, batch: {LEAVES}"),
    "an attribute leaves": f"def __getattr__(name):\n    {LEAVES}\nraise_ = __getattr__\ndel given\n",
    # whoever raises what is no Exception
    "its own kind": RAISES + "raise Own('x')", "a generator's end": "raise GeneratorExit",
    "its own kind in the loss": RAISES + loss("raise Own('x')"),
    "its own kind in the model": RAISES + given(model="lambda: (_ for _ in ()).throw(Own())"),
    # messages
    "escapes": "raise ValueError('\\x1b[2J\\x1b]0;owned\\x07\\u202e\\u2066')",
    "many lines": "raise ValueError('line\\n' * 10_000)",
    "a long message": "raise ValueError('x' * 10**7)", "no message": "raise ValueError",
    "a message that raises": "class Mute(Exception):\n    def __str__(self):\n        raise ValueError\nraise Mute",
    "a message that leaves": f"class Mute(Exception):\n    def __str__(self):\n        {LEAVES}\nraise Mute",
    "a name of escapes": "raise type('\\x1b[2J', (Exception,), {})('x')",
    "a chain": "try:\n    1 / 0\nexcept Exception as e:\n    raise KeyError('k') from e",
    # the file
    "bad UTF-8": b"x = '\xff\xfe'\n", "nulls": b"x = 1\0\n", "another coding": b"# coding: no-such\n",
    "deep brackets": "(" * 10_000,
    "deep sums": "x = " + "+".join(["1"] * 100_000), "deep recursion": "def f(): f()\nf()",
    "a tab too many": "if 1:\n\tx = 1\n        y = 2",
    "no workload": "del given\nif 0:\n    pass\nworkload_ = 1\nraise KeyError('workload')",
    "out of memory": "x = bytearray(2**60)",
}


def checked(path, tmp_path, *options):
    """The verb in a child of this process: exit code, stdout, stderr."""
    out, err = tmp_path / "stdout", tmp_path / "stderr"
    if (child := os.fork()) == 0:
        code = 99
        try:
            signal.alarm(60)
            os.environ.pop("THRIFTY_DEBUG", None)
            sys.stdout, sys.stderr = out.open("w"), err.open("w")
            sys.argv = ["thrifty", "check", str(path), *options]
            code = guarded(app)
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.kill(os.getpid(), signal.SIGKILL) if code == 99 else os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, out.read_text(), err.read_text()


def one_line(told):
    return (told.startswith("thrifty: ") and told.count("\n") == 1 and told.strip().isprintable() and len(told) < 1200
            and "Traceback" not in told)


def test_there_are_twenty_eight():
    assert len(FILES) >= 28


QUICK = ("leaves at once", "exits well", "forward leaves", "forward exits in training", "its own kind", "escapes",
    "a message that leaves",
         "bad UTF-8", "deep brackets")


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in FILES])
def test_a_file_is_answered_in_one_line(name, tmp_path):
    content, path = FILES[name], tmp_path / "hostile.py"
    path.write_bytes(content if isinstance(content, bytes) else (HEAD + content + TAIL).encode())
    before = path.read_bytes()
    code, out, err = checked(path, tmp_path, RECIPE)
    assert code in (USAGE, FAILED) and not out and one_line(err), (code, out, err)
    assert path.read_bytes() == before


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to(path),
    lambda path: path.symlink_to("/dev/zero"),
                                  lambda path: None], ids=["directory", "pipe", "circle", "device", "nothing"])
def test_a_file_that_is_none(make, tmp_path):
    make(tmp_path / "hostile.py")
    code, out, err = checked(tmp_path / "hostile.py", tmp_path, RECIPE)
    assert code == USAGE and not out and one_line(err), err


@pytest.mark.parametrize("name", ["x" * 5000 + ".py", "\x1b[2J.py", "\u202egnp.py", "no\nsuch.py", "a.b.c:d", "..:x", "os:path",
    ":", "",
                                  "hf:/nowhere", "~nobody/x.py"])
def test_strange_references(name, tmp_path):
    code, out, err = checked(name, tmp_path, RECIPE)
    assert code == USAGE and not out and one_line(err), err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["(" * 5000, "train(" * 200, "\x1b[2J", "train(epochs=" + "9" * 5000 + ")", "\u202e",
    "train(epochs=1e999)",
                                    "train() | " * 3000 + "train()", "__import__('os')", "train(epochs=1)\0"])
def test_strange_recipes(recipe, tmp_path):
    (tmp_path / "sound.py").write_text(HEAD + TAIL)
    code, out, err = checked(tmp_path / "sound.py", tmp_path, recipe)
    assert code in (USAGE, FAILED) and not out and "Traceback" not in err and err.startswith("thrifty: "), err
    assert all(line.isprintable() for line in err.splitlines()) and len(err) < 5000


def test_what_the_file_prints_goes_to_stderr(tmp_path):
    """Stdout has what Thrifty says alone: it may be read by a program."""
    loud = net("print('of forward'); return super().forward(x)")
    (tmp_path / "loud.py").write_text(HEAD + "print('of the file')\n" + loud + TAIL)
    code, out, err = checked(tmp_path / "loud.py", tmp_path, RECIPE)
    assert code == DONE and out.startswith("ok: ") and "of the" not in out and "of forward" not in out
    assert "of the file" in err and "of forward" in err


def test_a_process_that_left_as_if_all_were_well(tmp_path):
    (tmp_path / "hostile.py").write_text(HEAD + net(f"{LEAVES}") + TAIL)
    done = subprocess.run([sys.executable, "-m", "thrifty", "check", "hostile.py", RECIPE], capture_output=True, text=True,
        check=False,
                          cwd=tmp_path)
    assert done.returncode == USAGE and not done.stdout and one_line(done.stderr), done.stderr
    assert "os._exit(0) was called (hostile.py, line" in done.stderr


def test_leaving_is_refused_where_users_code_runs_alone():
    kept = os._exit
    with pytest.raises(WorkloadError, match=r"x raised ExitCalled: os\._exit\(3\) was called"), part("x"):
        os._exit(3)
    with ending_refused(), ending_refused():
        with pytest.raises(ExitCalled):
            os._exit(0)
        if (child := os.fork()) == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, "a child ends itself"
    assert os._exit is kept


def test_a_child_ends_with_its_parent(tmp_path):
    """Even where nothing of Python's runs in it, or it is stopped."""
    script = ("import os, subprocess, sys, time\n"
              "child = subprocess.Popen([sys.executable, '-c', 'from thrifty.measure.parent import end_with_parent as e; e(); "
              "print(1, flush=True); import time; time.sleep(600)'], stdout=subprocess.PIPE)\n"
              "child.stdout.readline(); os.kill(child.pid, 19); print(child.pid, flush=True); time.sleep(600)")
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(100):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("it lived on")
