"""The spine on a GPU: training, engines, a whole run."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import thrifty
from thrifty import AdamW, Bf16, Distill, Ema, Ia3, Inductor, Lora, Muon, Qat, Quantize, Sophia, Train, testing
from thrifty.artifacts import artifact
from thrifty.engines import EngineError
from thrifty.measure.meter import Meter
from thrifty.runs.context import make_context, score
from thrifty.target import Target
from thrifty.training.loop import train

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("methods", [(AdamW(lr=3e-3),), (AdamW(lr=3e-3), Bf16()), (AdamW(lr=3e-3), Distill(), Bf16())],
                         ids=str)
def test_training_learns(methods):
    torch.manual_seed(0)
    done = train(testing.training_setup(testing.workload, Train(*methods, epochs=4), 0, "cuda", testing.teacher),
                 testing.SmallNet())
    assert next(done.model.parameters()).device.type == "cpu"
    assert score(testing.workload, done.model) > 0.7
    assert all(claim.checked(name) for name, claim in done.claims)


HEAD = "head.*"


@pytest.mark.parametrize("methods", [
    (Lora(rank=4, targets=HEAD),), (Lora(rank=4, targets=HEAD, base="bf16"),), (Lora(rank=4, targets=HEAD, variant="pissa"),),
    (Ia3(targets=HEAD),), (Qat("w8a8"), AdamW(lr=1e-3)), (Qat("w4a8"), Bf16()), (Sophia(every=2),),
    (Sophia("hutchinson", every=2),), (Muon(),), (Ema(), Bf16())], ids=str)
def test_structure_and_numerics_are_changed_before_the_model_is_placed(methods):
    """Every stage of a training: what was put together beside the device learns on it, and comes back."""
    setup = testing.training_setup(testing.workload, Train(*methods, steps=6), 0, "cuda", testing.teacher)
    done = train(setup, testing.trained())
    assert {p.device.type for p in done.model.parameters()} <= {"cpu"}
    assert score(testing.workload, done.model) > 0.6
    assert all(claim.checked(name) for name, claim in done.claims)


def test_a_phase_is_metered_on_the_device():
    with Meter("cuda") as meter:
        kept = torch.empty(2**28, dtype=torch.uint8, device="cuda")
    del kept
    with Meter("cuda") as small:
        torch.empty(2**20, dtype=torch.uint8, device="cuda")
    large, little = meter.read().device_memory_bytes, small.read().device_memory_bytes
    assert large is not None and little is not None and large >= 2**28 and little < large - 2**27


def test_a_run_is_measured(tmp_path):
    trial = thrifty.run("thrifty.testing:workload", testing.workload.reference, study=tmp_path / "study",
                        target=Target(device="cuda"), pairs=1)
    assert trial.status == "done", trial.error
    assert trial.quality.drop.value < 0.1
    assert trial.inference.latency_p50 > 0 and trial.inference.peak_memory_bytes > 0


def test_a_gpu_trains_what_a_cpu_serves(tmp_path):
    """In a precision that processors may lack, which is then not refused."""
    trial = thrifty.run("thrifty.testing:workload", "train(adamw(lr=0.003), bf16, epochs=2) | prune(ratio=0.25) | quantize(w8a8)",
                        study=tmp_path / "study", pairs=1, training_device="cuda")
    assert trial.status == "done", trial.error
    assert max(charge.device_memory_bytes or 0 for charge in trial.ledger.charges if charge.kind == "training") > 0
    assert trial.target["device"] == "cpu" and trial.inference.latency_p50 > 0


def test_inductor_compiles_where_it_is_opened_and_replays_a_graph(tmp_path):
    model = testing.trained()
    example = testing.workload.example(4)
    context = make_context(testing.workload, Target(device="cuda"), 0, lambda event: None)
    record = Inductor().lower(model, example, tmp_path, context)
    assert (record.engine, record.native, record.precision) == ("compiled", False, "fp32")
    artifact.write(tmp_path, record, {}, [x.numpy() for x in example], [model(*example).detach().numpy()])
    engine = artifact.load(tmp_path, device="cuda")
    for _ in range(3):  # warmed up, recorded, replayed
        torch.testing.assert_close(engine(*example), model(*example), rtol=1e-2, atol=1e-2)
    with pytest.raises(EngineError, match="made for CUDA"):
        artifact.load(tmp_path, device="cpu")


@pytest.mark.parametrize("rest", ["fp32", "bf16"])
def test_float8_is_compiled_and_multiplied_as_such(tmp_path, rest):
    torch.manual_seed(0)
    model = Quantize("fp8", rest=rest)(torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 32)))
    # Numbers that bfloat16 holds: the compiler leaves out the rounding of what comes in, and float8 would round otherwise.
    example = (torch.randn(4, 64).bfloat16().float(),)
    context = make_context(testing.workload, Target(device="cuda"), 0, lambda event: None)
    record = Inductor().lower(model, example, tmp_path, dataclasses.replace(context, shapes={}))
    assert record.engine == "compiled" and record.precision == {"fp32": "fp8", "bf16": "fp8+bf16"}[rest]
    assert "aten._scaled_mm" in str(torch.export.load(str(tmp_path / record.files[0])).graph)
    artifact.write(tmp_path, record, {}, [x.numpy() for x in example], [model(*example).numpy()])
    engine = artifact.load(tmp_path, device="cuda")
    for _ in range(3):  # warmed up, recorded, replayed
        wanted = model(*example)
        assert float((engine(*example) - wanted).norm() / wanted.norm()) < 0.02


@pytest.mark.parametrize("bits", ["fp32", "bf16"])
def test_auto_runs_whole_on_cuda(tmp_path, bits):
    phases = " | quantize(bf16)" * (bits == "bf16")
    trial = thrifty.run("thrifty.testing:workload", f"{testing.workload.reference}{phases} | compile(auto, seconds=60)",
                        study=tmp_path / "study", target=Target(device="cuda"), pairs=1)
    assert trial.status == "done", trial.error
    assert trial.inference.speedup.value > 0
