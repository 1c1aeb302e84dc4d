"""The language models of transformers that a backbone can be: their sizes, their layers, what they call weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from thrifty.architectures.blocks import Sizes
from thrifty.errors import ThriftyError

if TYPE_CHECKING:
    from thrifty.architectures.backbone import Backbone

Names = Sequence[tuple[str, str]]
"""(pattern of the whole of one of our names, what it becomes)."""


@final
@dataclass(frozen=True)
class Family:
    """A model type of transformers.

    Args:
        model, config: classes.
        eps: what the config calls the norms' epsilon.
        pattern, sizes: of a backbone for a config.
        settings: of a config for a backbone, but those that all share.
        is_it: whether a backbone's layers are such a model's.
        names: the first that matches one of our names makes it theirs.
    """

    model: str
    config: str
    eps: str
    pattern: Callable[[Any], str]
    sizes: Callable[[Any], Sizes]
    settings: Callable[[Backbone], dict[str, Any]]
    is_it: Callable[[Sequence[str], Sizes], bool]
    names: Names

    def theirs(self, name: str) -> str:
        """What transformers call one of our weights.

        >>> FAMILIES["mamba2"].theirs("blocks.3.mixer.conv_weight")
        'backbone.layers.3.mixer.conv1d.weight'
        >>> FAMILIES["jamba"].theirs("blocks.7.mixer.experts.router.weight")
        'model.layers.3.feed_forward.router.weight'
        """
        for own, other in self.names:
            if found := re.fullmatch(own, name):
                return re.sub(r"\{half\}", lambda _: str(int(found[1]) // 2), found.expand(other))
        raise ThriftyError(f"{self.model} has no weight for {name}")


def family_of(model: Backbone) -> Family:
    """The family that a backbone's layers are of.

    Raises:
        ThriftyError: there is none.
    """
    words, sizes = model.pattern.split(), model.sizes
    for family in FAMILIES.values():
        if family.is_it(words, sizes):
            return family
    raise ThriftyError(
        f"transformers has no model with the pattern {model.pattern!r} and these sizes: use mamba only, mamba2 only, or "
        "(attention or mamba) and (gated_mlp or moe) in turns with rotary and weighting as in Mixtral or Jamba")


def _expand(sizes: Sizes) -> int:
    if sizes.expand != int(sizes.expand):
        raise ThriftyError("transformers needs a whole number of inner channels per outer channel, but expand is "
                           f"{sizes.expand:g}")
    return int(sizes.expand)


def _alone(word: str) -> Callable[[Sequence[str], Sizes], bool]:
    return lambda words, sizes: set(words) == {word} and not sizes.scan_eps


# -- Mamba and Mamba-2: a mixer a layer -----------------------------------------------------------------------------

_ALONE: Names = (
    ("embedding.weight", "backbone.embeddings.weight"), ("norm.weight", "backbone.norm_f.weight"),
    ("head.weight", "lm_head.weight"),
    (r"blocks\.(\d+)\.mixer\.conv_(\w+)", r"backbone.layers.\1.mixer.conv1d.\2"),
    (r"blocks\.(\d+)\.mixer\.norm_weight", r"backbone.layers.\1.mixer.norm.weight"),
    (r"blocks\.(.+)", r"backbone.layers.\1"),
)


def _sizes_of_mamba(config: Any) -> Sizes:
    return Sizes(config.hidden_size, scan_state=config.state_size, expand=config.intermediate_size / config.hidden_size,
                 rank=int(config.time_step_rank), taps=config.conv_kernel, bias=config.use_bias, conv_bias=config.use_conv_bias)


def _sizes_of_mamba2(config: Any) -> Sizes:
    low, high = config.time_step_limit
    return Sizes(config.hidden_size, state=config.state_size, head=config.head_dim, groups=config.n_groups,
                 expand=config.num_heads * config.head_dim / config.hidden_size, limits=(low, high), taps=config.conv_kernel,
                 bias=config.use_bias, conv_bias=config.use_conv_bias)


def _settings_alone(model: Backbone) -> dict[str, Any]:
    sizes = model.sizes
    return {"num_hidden_layers": len(model.blocks), "conv_kernel": sizes.taps, "use_bias": sizes.bias,
            "use_conv_bias": sizes.conv_bias, "expand": _expand(sizes)}


def _settings_of_mamba(model: Backbone) -> dict[str, Any]:
    first: Any = model.blocks[0].mixer
    return {**_settings_alone(model), "state_size": model.sizes.scan_state, "time_step_rank": first.rank}


def _settings_of_mamba2(model: Backbone) -> dict[str, Any]:
    first: Any = model.blocks[0].mixer
    sizes = model.sizes
    return {**_settings_alone(model), "num_heads": first.heads, "head_dim": sizes.head, "state_size": sizes.state,
            "n_groups": sizes.groups, "time_step_limit": sizes.limits}


# -- Mixtral and Jamba: a mixer of tokens and one of channels a layer ------------------------------------------------


def _pairs(before: str, behind: str, channels: str, router: str, last: str) -> Names:
    """Names where each of their layers is two of our blocks."""
    layer = "model.layers.{half}"
    even, odd = r"blocks\.(\d*[02468])", r"blocks\.(\d*[13579])"
    return (
        ("embedding.weight", "model.embed_tokens.weight"), ("norm.weight", f"model.{last}.weight"),
        ("head.weight", "lm_head.weight"),
        (even + r"\.norm\.weight", f"{layer}.{before}.weight"), (odd + r"\.norm\.weight", f"{layer}.{behind}.weight"),
        (even + r"\.mixer\.([qkvo])[a-z]+\.weight", layer + r".self_attn.\2_proj.weight"),
        (even + r"\.mixer\.conv_(\w+)", layer + r".mamba.conv1d.\2"),
        (even + r"\.mixer\.(dt|b|c)_norm\.weight", layer + r".mamba.\2_layernorm.weight"),
        (even + r"\.mixer\.(.+)", layer + r".mamba.\2"),
        (odd + r"\.mixer\.experts\.router\.weight", f"{layer}.{channels}.{router}.weight"),
        (odd + r"\.mixer\.experts\.(gate_up|down)", layer + rf".{channels}.experts.\2_proj"),
        (odd + r"\.mixer\.(gate|up|down)\.weight", layer + rf".{channels}.\2_proj.weight"),
    )


def _sizes_of_mixtral(config: Any) -> Sizes:
    told = config.rope_parameters
    if told["rope_type"] != "default" or config.sliding_window or (config.head_dim or 0) not in (
            0, config.hidden_size // config.num_attention_heads):
        raise ThriftyError(f"a Mixtral with positions by {told['rope_type']!r}, sliding_window={config.sliding_window} and "
                           f"head_dim={config.head_dim} is not supported: only default positions, no window, and heads that "
                           "divide the width are")
    return Sizes(config.hidden_size, heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
                 hidden=config.intermediate_size, rotary=float(told["rope_theta"]), experts=config.num_local_experts,
                 top_k=config.num_experts_per_tok, rate=0)


def _settings_of_pairs(model: Backbone) -> dict[str, Any]:
    sizes = model.sizes
    return {"num_hidden_layers": len(model.blocks) // 2, "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads or sizes.heads, "intermediate_size": sizes.hidden,
            "num_experts_per_tok": sizes.top_k}


def _settings_of_mixtral(model: Backbone) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": model.sizes.rotary}
    return {**_settings_of_pairs(model), "num_local_experts": model.sizes.experts, "rope_parameters": rope}


def _pattern_of_jamba(config: Any) -> str:
    return " ".join(f"{mixer} {'moe' if experts > 1 else 'gated_mlp'}" for mixer, experts in
                    zip(config.layers_block_type, config.layers_num_experts, strict=True))


def _sizes_of_jamba(config: Any) -> Sizes:
    return Sizes(config.hidden_size, heads=config.num_attention_heads, kv_heads=config.num_key_value_heads,
                 hidden=config.intermediate_size, rotary=0, experts=config.num_experts, top_k=config.num_experts_per_tok,
                 weighting="scores", rate=0, scan_state=config.mamba_d_state, rank=config.mamba_dt_rank,
                 scan_eps=config.rms_norm_eps, taps=config.mamba_d_conv, expand=config.mamba_expand,
                 bias=config.mamba_proj_bias, conv_bias=config.mamba_conv_bias)


def _settings_of_jamba(model: Backbone) -> dict[str, Any]:
    words, sizes = model.pattern.split(), model.sizes
    first: Any = next((block.mixer for block in model.blocks if hasattr(block.mixer, "rank")), None)
    attention, experts = _period([w == "attention" for w in words[::2]]), _period([w == "moe" for w in words[1::2]])
    if attention is None or experts is None:
        raise ThriftyError(f"Jamba has attention, and experts, in one layer of so many, from some layer on, but the pattern is "
                           f"{model.pattern!r}")
    return {**_settings_of_pairs(model), "num_experts": sizes.experts, "attn_layer_period": attention[0],
            "attn_layer_offset": attention[1], "expert_layer_period": experts[0], "expert_layer_offset": experts[1],
            "mamba_d_state": sizes.scan_state, "mamba_d_conv": sizes.taps, "mamba_expand": _expand(sizes),
            "mamba_dt_rank": "auto" if first is None else first.rank, "mamba_conv_bias": sizes.conv_bias,
            "mamba_proj_bias": sizes.bias}


def _period(there: Sequence[bool]) -> tuple[int, int] | None:
    """(period, offset) of the places that are true; None where they have none.

    >>> _period([False, True, False, True]), _period([False, False]), _period([True, True, False])
    ((2, 1), (3, 2), None)
    """
    return next(((period, offset) for period in range(1, len(there) + 2) for offset in range(period)
                 if all(own == (i % period == offset) for i, own in enumerate(there))), None)


def _is_pairs(mixers: set[str], channels: set[str], rotary: bool, weighting: str, scan: bool,
              ) -> Callable[[Sequence[str], Sizes], bool]:
    return lambda words, sizes: (
        len(words) % 2 == 0 and set(words[::2]) <= mixers and set(words[1::2]) <= channels and bool(sizes.rotary) == rotary
        and sizes.weighting == weighting and ("mamba" not in words or bool(sizes.scan_eps) == scan))


FAMILIES: Mapping[str, Family] = {
    "mamba": Family("MambaForCausalLM", "MambaConfig", "layer_norm_epsilon",
                    lambda config: " ".join(["mamba"] * config.num_hidden_layers), _sizes_of_mamba, _settings_of_mamba,
                    _alone("mamba"), _ALONE),
    "mamba2": Family("Mamba2ForCausalLM", "Mamba2Config", "layer_norm_epsilon",
                     lambda config: " ".join(["mamba2"] * config.num_hidden_layers), _sizes_of_mamba2, _settings_of_mamba2,
                     _alone("mamba2"), _ALONE),
    "mixtral": Family("MixtralForCausalLM", "MixtralConfig", "rms_norm_eps",
                      lambda config: " ".join(["attention moe"] * config.num_hidden_layers), _sizes_of_mixtral,
                      _settings_of_mixtral, _is_pairs({"attention"}, {"moe"}, True, "shares", False),
                      _pairs("input_layernorm", "post_attention_layernorm", "mlp", "gate", "norm")),
    "jamba": Family("JambaForCausalLM", "JambaConfig", "rms_norm_eps", _pattern_of_jamba, _sizes_of_jamba, _settings_of_jamba,
                    _is_pairs({"attention", "mamba"}, {"gated_mlp", "moe"}, False, "scores", True),
                    _pairs("input_layernorm", "pre_ff_layernorm", "feed_forward", "router", "final_layernorm")),
}
"""{model type of transformers: what it is}."""
