"""Adapters in peft's own format: peft loads them onto the base, and the outputs are those of the trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.training.peft.nets import adapted, answers, batch, mlp
from thrifty import CrossEntropy, Ia3, Lora, Vera, save_adapter
from thrifty.errors import ThriftyError
from thrifty.training.peft.adapter import Adapter
from thrifty.training.session import TrainingSession

peft = pytest.importorskip("peft")


@pytest.mark.parametrize("method", [
    Lora(), Lora(rank=5, variant="rslora"), Lora(variant="dora", targets="0|2"), Lora(variant="pissa"), Ia3(inputs="2"),
    Vera(rank=16)], ids=repr)
def test_peft_loads_it_back_with_equal_outputs(method: Adapter, tmp_path: Path) -> None:
    (x,), _ = batch()
    session = adapted(method, mlp())
    trained = answers(session.model, x)
    save_adapter(session.model, tmp_path / "deep" / "adapter", base="org/name")
    found = tmp_path / "deep" / "adapter"
    assert {path.name for path in found.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((found / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/name"
    loaded = peft.PeftModel.from_pretrained(mlp(), found)
    torch.testing.assert_close(answers(loaded, x), trained, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(session.finish(), x), trained, rtol=1e-5, atol=1e-5)  # saving changed nothing


def test_peft_would_have_written_the_same_names(tmp_path: Path) -> None:
    import safetensors.torch

    for method in (Lora(rank=3), Vera(rank=8)):
        session = TrainingSession(mlp(), [method], CrossEntropy(), steps=1)
        save_adapter(session.model, tmp_path / "ours")
        peft.get_peft_model(mlp(), session.model.peft_config["default"]).save_pretrained(tmp_path / "theirs")
        ours, theirs = (safetensors.torch.load_file(tmp_path / side / "adapter_model.safetensors")
                        for side in ("ours", "theirs"))
        assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_a_model_without_an_adapter_says_when_to_save(tmp_path: Path) -> None:
    for model in (mlp(), TrainingSession(mlp(), [Lora()], CrossEntropy(), steps=1).finish()):
        with pytest.raises(ThriftyError, match=r"no adapter to save; finish\(\) merges it"):
            save_adapter(model, tmp_path / "none")
    assert not (tmp_path / "none").exists()
