"""Backbones of any pattern: they generate what the whole sequence says, padded or not."""

from __future__ import annotations

import pytest
import torch

from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import BLOCKS, Sizes
from thrifty.errors import ThriftyError

SIZES = Sizes(32, heads=4, kv_heads=2, hidden=48, state=8, head=8, groups=2, limits=(0.05, 0.5), scan_state=4)
PATTERNS = ["attention mlp attention mlp", "mamba2 mamba2", "mamba mlp", "mamba2 mlp attention mlp mamba2 mlp",
            "attention moe mamba2 moe"]


@pytest.fixture(params=PATTERNS)
def model(request: pytest.FixtureRequest) -> Backbone:
    torch.manual_seed(0)
    made = Backbone(40, request.param, SIZES).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return made


@torch.no_grad()
def test_generates_what_the_whole_sequence_says(model: Backbone) -> None:
    prompt = torch.randint(40, (2, 13))
    answer = model.generate(prompt, 9)
    whole = model(torch.cat([prompt, answer], 1)[:, :-1])
    assert torch.equal(whole[:, 12:].argmax(-1), answer)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padded_prompts_generate_what_they_do_alone(model: Backbone, side: str) -> None:
    prompts = [torch.randint(40, (n,)) for n in (11, 6, 2)]
    ids, mask = torch.zeros(3, 11, dtype=torch.int64), torch.zeros(3, 11, dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        place = slice(11 - len(prompt), 11) if side == "left" else slice(0, len(prompt))
        ids[i, place], mask[i, place] = prompt, True
    answers = model.generate(ids, 7, mask=mask)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert torch.equal(model.generate(prompt[None], 7)[0], answer)


def test_learns(model: Backbone) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = torch.arange(24).repeat(4, 1) % 5
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_words_that_name_no_layer_are_answered() -> None:
    with pytest.raises(ThriftyError, match="'atention', which is not a layer; did you mean 'attention'"):
        Backbone(10, "atention mlp", SIZES)
    with pytest.raises(ThriftyError, match=f"known: {', '.join(BLOCKS)}"):
        Backbone(10, " ", SIZES)
    with pytest.raises(ThriftyError, match="a prompt of 0 tokens"):
        Backbone(10, "mlp", SIZES).generate(torch.zeros(1, 0, dtype=torch.int64), 1)


def test_tied_heads_share_the_embedding() -> None:
    model = Backbone(40, "mamba2", SIZES, tied=True)
    assert model.head.weight is model.embedding.weight
