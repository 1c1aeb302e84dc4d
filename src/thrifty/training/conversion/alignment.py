"""Attention as the state-space layer that it becomes, and what brings the two together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.architectures.attention import Attention
from thrifty.architectures.mamba2 import Mamba2
from thrifty.errors import ThriftyError

ROWS = 4
"""Rows of a calibration batch that one step of the alignment takes."""


def attentions(model: nn.Module) -> dict[str, Attention]:
    """The layers of attention that can become state-space layers, by name: those whose projections are plain matrices."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, Attention)
            and all(type(part) is nn.Linear for part in (layer.query, layer.key, layer.value, layer.out))}


def counterpart(layer: Attention) -> Mamba2:
    """A Mamba-2 of the same heads, as large as they are now, whose weights are drawn."""
    width, inner = layer.out.out_features, layer.out.in_features
    return Mamba2(width, state=layer.query.out_features // layer.heads, head=inner // layer.heads, expand=inner / width,
                  groups=layer.kv_heads)


def converted(layer: Attention) -> Mamba2:
    """The Mamba-2 that reads what attention reads: C from its queries, B from its keys, x from its values, and its output.

    Without the softmax, attention is the state-space dual without decay. The gate, the steps, the decays and the convolution's
    earlier taps are new; the convolution begins with the token itself.

    Source: "The Mamba in the Llama", Wang et al. 2024, arXiv:2408.15237, section 2.
    """
    made = counterpart(layer)
    repeat, size, inner = layer.heads // layer.kv_heads, made.state, made.inner
    with torch.no_grad():
        value = layer.value.weight.unflatten(0, (layer.kv_heads, -1)).repeat_interleave(repeat, 0).flatten(0, 1)
        # A group has one C: the mean of its heads' queries.
        query = layer.query.weight.unflatten(0, (layer.kv_heads, repeat, size)).mean(1).flatten(0, 1) * size**-0.5
        nn.init.normal_(made.in_proj.weight, std=0.02)
        made.in_proj.weight[inner : 2 * inner] = value
        made.in_proj.weight[2 * inner : inner + len(made.conv_weight)] = torch.cat([layer.key.weight, query])
        made.conv_weight.mul_(0.1)[..., -1] = 1.0
        made.out_proj.weight.copy_(layer.out.weight)
    return made.to(layer.out.weight.device, layer.out.weight.dtype)


def batches(calibration: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
    """A few rows at a time."""
    for batch in calibration:
        for first in range(0, len(batch[0]), ROWS):
            yield tuple(x[first : first + ROWS] for x in batch)


def align(model: nn.Module, layers: Mapping[str, Attention], made: Mapping[str, Mamba2], calibration: Any, steps: int,
          lr: float) -> dict[str, float]:
    """Train each new layer to give what its attention gives, on what that reads: all side by side, the model standing still.

        loss = sum over layers of |mamba(x) - attention(x)|^2 / |attention(x)|^2

    Args:
        calibration: () -> a fresh iterator over batches of inputs.
        steps: of AdamW, the rate falling to 0.

    Returns:
        {layer: that ratio's root}, the mean over the last quarter of the steps.

    Raises:
        ThriftyError: there is no calibration data, or it does not reach a layer.

    Source: the second stage of "Transformers to SSMs", Bick et al. 2024, arXiv:2408.10189.
    """
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen[name] = (inputs[0].detach(), output.detach())
        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in layers.items()]
    weights = [p for layer in made.values() for p in layer.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    errors: dict[str, list[float]] = {name: [] for name in layers}
    source = batches(calibration())
    try:
        for step in range(steps):
            batch = next(source, None)
            if batch is None:
                source = batches(calibration())
                batch = next(source, None)
            if batch is None:
                raise ThriftyError("ssm had no calibration data: give batches of inputs")
            with torch.no_grad():
                model(*batch)
            if missed := layers.keys() - seen.keys():
                raise ThriftyError(f"calibration does not reach {', '.join(sorted(missed))}: give inputs that do")
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            with torch.enable_grad():
                total = torch.zeros((), device=weights[0].device)
                for name, layer in made.items():
                    x, wanted = seen[name]
                    ratio = (layer(x) - wanted).square().sum() / wanted.square().sum().clamp(min=1e-12)
                    errors[name].append(float(ratio.detach()) ** 0.5)
                    total = total + ratio
                optimizer.zero_grad()
                total.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    return {name: sum(late) / len(late) for name, found in errors.items() if (late := found[-max(1, steps // 4):])}
