"""The two formats of eight bits."""

from __future__ import annotations

import torch

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
LARGEST = {E4M3: 448.0, E5M2: 57344.0}
"""Of each format; e4m3 has three bits of mantissa and no infinity, e5m2 two."""
