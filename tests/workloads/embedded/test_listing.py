"""The list of embedded workloads: light to read, true, and lazy down to the data."""

import json
import subprocess
import sys

import pytest

from thrifty.workloads.embedded import EMBEDDED
from thrifty.workloads.loading import load_workload

PROBE = """
import json, os, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
place = sys.argv[1]
module, _, attribute = place.partition(":")
workload = getattr(__import__(module, fromlist=[attribute]), attribute)
if sys.argv[2] == "model":
    model = workload.model()
    model(*workload.example(1))
heavy = {"pandas", "matplotlib", "mlxtend", "transformers", "tokenizers", "all_minilm_l6_v2"} & set(sys.modules)
data = [p for p in opened if p.endswith((".csv.gz", ".npy", "model.zip", "tokenizer.json"))]
print(json.dumps({"name": workload.name, "heavy": sorted(heavy), "data": data}))
"""


def probe(place: str, what: str) -> dict:
    out = subprocess.run([sys.executable, "-c", PROBE, place, what], capture_output=True, text=True, check=True)
    return json.loads(out.stdout)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if i else []) for i, name in enumerate(EMBEDDED)])
def test_import_is_light(name):
    """Worker processes import the module for its model alone: no data, nothing optional."""
    found = probe(EMBEDDED[name].place, "import")
    assert found == {"name": name, "heavy": [], "data": []}


@pytest.mark.parametrize("name", ["digits", "python-lm"])
def test_model_and_example_read_no_data(name):
    assert probe(EMBEDDED[name].place, "model") == {"name": name, "heavy": [], "data": []}


def test_listing_imports_no_workload():
    code = "import sys, thrifty.workloads; print(any(m.startswith('thrifty.workloads.') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("name", EMBEDDED)
def test_loads_by_name(name):
    workload = load_workload(name)
    assert workload.name == name
    assert workload.source == EMBEDDED[name].place
    assert (workload.train is None) == (workload.reference == "")
    assert workload.example(3)[0].shape[0] == 3
    assert all((a == b).all() for a, b in zip(workload.example(2), workload.example(2), strict=True))
