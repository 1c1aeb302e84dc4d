from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from tests.compilers.nets import error
from thrifty import load_workload
from thrifty.artifacts import artifact
from thrifty.artifacts.artifact import ArtifactError
from thrifty.recipes.context import Context
from thrifty.recipes.registry import method_class
from thrifty.runs.context import outputs_of
from thrifty.runs.execution import Execution
from thrifty.runs.job import Job, place
from thrifty.target import Target
from thrifty.workloads.nested_inputs import Flat, FlattenError, InOrder, flatten

BATCH = {0: {0: (1, 8)}, 1: {0: (1, 8)}}


class Named(nn.Module):
    """By names in and out; the names of outputs are those of operators, which a backend may use for its own values."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None, scale=None):
        states = self.table(input_ids)
        if attention_mask is not None:
            states = states * attention_mask.unsqueeze(-1)
        logits = self.head(states.mean(1))
        return {"mean": logits, "linear": {"deep": logits.softmax(-1)}}


def requests(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(n)
    ids = torch.randint(0, 20, (n, 5), generator=generator)
    return {"attention_mask": (ids > 4).float(), "input_ids": ids}  # not in forward's order


def named() -> Named:
    torch.manual_seed(0)
    return Named().eval().requires_grad_(False)


@pytest.mark.parametrize("compiler", ["export", "onnxruntime", "openvino", *(
    pytest.param(name, marks=pytest.mark.slow) for name in ("xla", "inductor"))])
def test_names_go_through_every_backend(compiler, tmp_path):
    cls = method_class(compiler)
    if cls.missing():
        pytest.skip(cls.missing())
    net = named()
    flat, tensors = flatten(net, requests(1))
    lowered = cls().lower(flat, tensors, tmp_path, Context(tensors, lambda: iter(()), shapes=BATCH))
    artifact.write(tmp_path, lowered, {}, [x.numpy() for x in tensors], [x.numpy() for x in outputs_of(flat, tensors)])
    assert [x.name for x in lowered.inputs] == ["attention_mask", "input_ids"]
    assert [x.name for x in lowered.outputs] == ["mean", "linear_deep"]
    engine = artifact.load(tmp_path, trust_native_code=True)
    for n in (1, 3, 8):
        given, right = requests(n), net(**requests(n))
        for got in (engine(**given), engine(given["attention_mask"], input_ids=given["input_ids"])):
            assert list(got) == ["mean", "linear_deep"]
            assert error(got["mean"], right["mean"]) < 1e-5
            assert error(got["linear_deep"], right["linear"]["deep"]) < 1e-5
    with pytest.raises(ArtifactError, match=r"dimension 0 of attention_mask must be 1 to 8 but is 9"):
        engine(**requests(9))
    with pytest.raises(ArtifactError, match=r"dimension 0 of input_ids must equal dimension 0 of attention_mask, which is 2"):
        engine(requests(2)["attention_mask"], requests(3)["input_ids"])
    with pytest.raises(ArtifactError, match=r"takes 2 inputs \(attention_mask, input_ids\) but got 1 in order, mask"):
        engine(given["attention_mask"], mask=given["input_ids"])


def test_a_class_of_transformers_in_and_out(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                                     intermediate_size=32, max_position_embeddings=8)
    net = transformers.BertModel(config).eval().requires_grad_(False)
    flat, tensors = flatten(net, {"input_ids": requests(1)["input_ids"],
                                  "attention_mask": torch.ones(1, 5, dtype=torch.int64)})
    lowered = method_class("export")().lower(flat, tensors, tmp_path, Context(tensors, lambda: iter(())))
    artifact.write(tmp_path, lowered, {}, [], [])
    got = artifact.load(tmp_path)(*tensors)
    assert list(got) == ["last_hidden_state", "pooler_output"]
    assert error(got["pooler_output"], net(*tensors).pooler_output) < 1e-5


def test_nested_arguments_and_copies():
    class Nested(nn.Module):
        def forward(self, batch, scale):
            return batch["a"] * scale + batch["b"][1]

    a, b, c, scale = (torch.full((2,), float(i)) for i in range(4))
    flat, tensors = flatten(Nested(), ({"a": a, "b": [b, c]}, scale))
    assert isinstance(flat, Flat)
    assert flat.names == ("a", "b_0", "b_1", "scale")
    assert torch.equal(copy.deepcopy(flat)(*tensors), a * scale + c)


def test_tensors_alone_need_nothing():
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    assert flatten(net, (x,)) == (net, (x,))


@pytest.mark.parametrize(("example", "says"), [
    (({"a": torch.ones(1), "b": 3},), "only tensors but holds Tensor, int"), ({}, "holds nothing"),
    (({"x y": torch.ones(1)},), "'x y' must have a name"), (({"a": torch.ones(1)}, {"a": torch.ones(1)}), "name of its own"),
])
def test_what_cannot_be_taken_apart(example, says):
    class Any(nn.Module):
        def forward(self, one=None, two=None):
            return one

    with pytest.raises(FlattenError, match=says):
        flatten(Any(), example)


def test_items_that_lack_the_examples_names():
    for inputs, says in (((1, 2), "has a tuple"), ({"a": 1}, "has a$")):
        with pytest.raises(FlattenError, match=f"named a, b, .* item 0 {says}"):
            InOrder([(inputs, 0)], ("a", "b"))[0]


WORKLOAD = '''
import torch
from torch import nn
from thrifty import Accuracy, CrossEntropy, Offline, Workload

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 3), nn.Linear(2, 3)
    def forward(self, wide, narrow):
        return {"logits": self.left(wide) - self.right(narrow)}

class Loss(CrossEntropy):
    def __call__(self, outputs, batch):
        return super().__call__(outputs["logits"], batch)

class Rows(torch.utils.data.Dataset):
    def __len__(self): return 40
    def __getitem__(self, i):
        x = torch.randn(6, generator=torch.Generator().manual_seed(i))
        return {"narrow": x[4:], "wide": x[:4]}, int(x[0] > 0)

def example(n):
    return {"wide": torch.ones(n, 4), "narrow": torch.ones(n, 2)}

workload = Workload(name="named", model=Net, train=Rows(), validation=Rows(), test=Rows(), quality=Accuracy(),
                    loss=Loss(), example=example, scenario=Offline(max_batch=8), reference="train(steps=60)")
'''


def test_a_workload_by_names_goes_the_whole_way(tmp_path, monkeypatch):
    """Trained, checkpointed, lowered and compared; its data's order of names is not the example's."""
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "named.py").write_text(WORKLOAD)
    workload = load_workload(str(tmp_path / "named.py"))
    assert isinstance(workload.example(2), tuple)
    torch.testing.assert_close(workload.train[0][0], (torch.randn(6, generator=torch.Generator().manual_seed(0)).split([4, 2])))
    told: list = []
    job = Job(workload.source, "named", "train(adamw(lr=1e-1), steps=60) | compile(onnxruntime)", 0, Target())
    if method_class("onnxruntime").missing():
        job = dataclasses.replace(job, recipe="train(adamw(lr=1e-1), steps=60)")
    done = Execution(job, told.append).outcome()
    assert done.engine is not None
    engine = artifact.load(place("engines", done.engine))
    rows = workload.validation
    answers = [int(engine(wide=x[None], narrow=y[None])["logits"].argmax()) for (x, y), _ in (rows[i] for i in range(40))]
    assert np.mean([a == rows[i][1] for i, a in enumerate(answers)]) > 0.9
