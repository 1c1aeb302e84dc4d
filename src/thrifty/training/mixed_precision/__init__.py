"""Mixed precision: arithmetic of fewer bits on float32 weights."""

from thrifty.training.mixed_precision.autocast import Bf16 as Bf16
from thrifty.training.mixed_precision.autocast import Fp16 as Fp16
from thrifty.training.mixed_precision.fp8 import Fp8 as Fp8
from thrifty.training.mixed_precision.tf32 import Tf32 as Tf32
