"""Mixtures of experts: each token passes through few of many feed-forward layers."""

from thrifty.architectures.moe.experts import ExpertDown, ExpertUp, Meeting
from thrifty.architectures.moe.layer import MoE
from thrifty.architectures.moe.router import Router, Routing, penalty

__all__ = ["ExpertDown", "ExpertUp", "Meeting", "MoE", "Router", "Routing", "penalty"]
