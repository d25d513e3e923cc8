"""Decoding, plain and with the heads' drafts, on random weights: what a forward costs, whatever is accepted."""

import time

import torch

from gpu_checking.parts import Task
from gpu_checking.record import Record
from gpu_checking.sizes import QUICK, SMALLEST
from wmtp_lab.tables import markdown_table
from wmtp_models import Generation, build_policy, generate

_COLUMNS = ["rows", "ms a forward", "tokens/s", "tokens a forward and row"]
_NOTE = (
    "Random weights: the share of accepted drafts says nothing here, and so tokens/s of drafting says little. What "
    "counts is what a forward costs: drafting pays where a trained model accepts more than the forwards' ratio less 1."
)


def run(record: Record, task: Task) -> None:
    """Decode from random prompts, for one text and for eight at a time."""
    size, device = QUICK[0] if task.quick else SMALLEST, torch.device(task.device)
    prompt_tokens, new_tokens = (8, 16) if task.quick else (128, 192)
    dtype = torch.float32 if task.device == "cpu" else torch.bfloat16
    policy = build_policy(size.trunk, size.vocab_size).to(device, dtype).eval()
    draw = torch.Generator().manual_seed(0)
    rows = []
    for texts in (1, 8):
        prompts = torch.randint(size.vocab_size, (texts, prompt_tokens), generator=draw).tolist()
        for name, speculate in (("plain", False), ("drafting, 4 heads", True)):

            def decode(prompts: list[list[int]] = prompts, speculate: bool = speculate) -> Generation:
                return generate(policy, prompts, new_tokens, speculate=speculate, exact=False)

            decode()
            began = time.perf_counter()
            result = decode()  # its tokens are on the host when it ends
            seconds = time.perf_counter() - began
            found = {
                "milliseconds_per_forward": 1000 * seconds / result.forwards,
                "tokens_per_second": result.new_tokens / seconds,
                "tokens_per_forward": result.tokens_per_forward,
            }
            rows.append([name, str(texts), *(f"{value:.2f}" for value in found.values())])
            record.sections = [_NOTE, markdown_table([f"{size.name}, {dtype}", *_COLUMNS], rows)]
            record.put(f"{name}, {texts} rows", found)
