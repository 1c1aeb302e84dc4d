"""All parameters of a model of eight billion trained on one GPU within 80 GB: random weights, real steps.

    python benchmarks/eight_billion.py --json eight_billion.json

Llama 3's shape of 8.03 billion parameters, built by transformers; rows of 4,096 random tokens, bf16 products, activations of
blocks computed again, the head and the loss in one operation. Each line is a process of its own: weights' precision and the
optimizer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from own_loss import OwnLoss
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from thrifty import Adafactor, AdamW, Bf16, Train
from thrifty.kernels.linear_loss import linear_cross_entropy
from thrifty.training.session import TrainingSession
from thrifty.workloads.workload import Batch

LINES = {"float32, adafactor": (torch.float32, Adafactor()), "bfloat16, adamw": (torch.bfloat16, AdamW())}
SHAPE = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
         "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}
SMALL = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 512}
LIMIT = 80e9


def forward(model: Any, batch: Batch) -> Tensor:
    hidden = model.model(batch[0][0]).last_hidden_state
    return linear_cross_entropy(hidden, model.lm_head.weight, batch[1])


def measure(line: str, arguments: argparse.Namespace) -> dict[str, Any]:
    dtype, optimizer = LINES[line]
    device = arguments.device
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaForCausalLM(LlamaConfig(**(SMALL if arguments.small else SHAPE), dtype=dtype)).to(dtype)
    model.config.use_cache = False
    numbers = sum(p.numel() for p in model.parameters())
    settings = Train(checkpointing="blocks", compiled=arguments.compiled, schedule="constant", warmup=0.0)
    session = TrainingSession(model, [optimizer, Bf16()], OwnLoss(), steps=1000, settings=settings, device=device,
                              forward=forward)
    ids = torch.randint(0, model.config.vocab_size, (arguments.rows, arguments.tokens + 1), device=device)
    batch = ((ids[:, :-1].contiguous(),), ids[:, 1:].contiguous())
    losses = [float(session.step(batch)) for _ in range(2)]
    seconds = []
    for _ in range(arguments.steps):
        began = time.perf_counter()
        losses.append(float(session.step(batch)))
        seconds.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    reserved = torch.cuda.max_memory_reserved() if device == "cuda" else 0
    return {"line": line, "parameters": numbers, "tokens_per_second": ids[:, 1:].numel() / statistics.median(seconds),
            "peak": peak, "reserved": reserved, "losses": losses, "seconds": seconds, "compiled": arguments.compiled}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--small", action="store_true", help="the script itself, tried on a small model")
    parser.add_argument("--line", choices=list(LINES))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.line:
        print(json.dumps(measure(arguments.line, arguments)))
        return
    rows = []
    for line in LINES:
        done = subprocess.run([sys.executable, *sys.argv, "--line", line], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            print(f"{line}: failed")
            continue
        row = json.loads(done.stdout.splitlines()[-1])
        rows.append(row)
        kept = "within" if row["reserved"] <= LIMIT else "over"
        print(f"{line:20} {row['parameters'] / 1e9:.2f}e9 parameters, {row['tokens_per_second']:,.0f} tokens/s, peak "
              f"{row['peak'] / 1e9:.1f} GB ({kept} 80 GB with what the allocator holds, {row['reserved'] / 1e9:.1f}), "
              f"loss {row['losses'][0]:.3f} to {row['losses'][-1]:.3f}", flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
