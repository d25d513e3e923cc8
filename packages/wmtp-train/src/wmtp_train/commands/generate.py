"""Go on from prompts with a trained model: `wmtp generate --model runs/…/model --prompt "def f("`.

The heads draft and the trunk verifies, several tokens a forward. Prints the text as it comes, and on stderr what the
heads were worth.
"""

import argparse
import sys
import time
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from wmtp_core import UserError
from wmtp_models import (
    Generation,
    MtpForCausalLM,
    Sampling,
    TextStream,
    encode_prompt,
    generate,
    load_tokenizer,
    load_wmtp,
    stop_tokens,
)
from wmtp_train.commands.options import generate_parser
from wmtp_train.ranks.lifecycle import run

RUNS = 5  # of each kind, to compare


def start() -> None:
    """Run the command and end the process."""
    run(main)


def main() -> None:
    """Read the prompts, decode and report."""
    logging.disable_progress_bar()
    arguments = generate_parser().parse_args()
    prompts = read_prompts(arguments)
    sampling = open_sampling(arguments)
    tokenizer, policy = open_model(arguments.model, getattr(torch, arguments.dtype))
    rows = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    options: dict[str, Any] = {
        "max_new_tokens": arguments.max_new_tokens,
        "eos_token_ids": stop_tokens(policy, tokenizer),
        "sampling": sampling,
        "exact": not arguments.no_exact,
    }
    printer = Printer(tokenizer, prompts, rows)
    result = generate(policy, rows, on_tokens=printer.put, **options)
    print(report(result), file=sys.stderr)
    if arguments.compare:
        print(compare(policy, rows, options), file=sys.stderr)


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """Return one prompt, or one a line."""
    if arguments.prompt is not None:
        return [arguments.prompt]
    try:
        text = sys.stdin.read() if arguments.prompts is None else arguments.prompts.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts from {arguments.prompts or 'stdin'}: {error}; give a file of UTF-8 text") from error
    lines = text.split("\n")
    return lines if lines[-1] else lines[:-1]


def open_sampling(arguments: argparse.Namespace) -> Sampling | None:
    """Return how to draw tokens, where any of its options is given."""
    names = ("temperature", "top_k", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    return Sampling(**given) if given else None


def open_model(source: str, dtype: torch.dtype) -> tuple[PreTrainedTokenizerFast, MtpForCausalLM]:
    """Return a WMTP model, on the GPU where there is one, and the tokenizer beside it."""
    policy = load_wmtp(source, dtype).eval()
    return load_tokenizer(source), policy.to("cuda" if torch.cuda.is_available() else "cpu")


class Printer:
    """Prints every prompt with its text: the first that is not complete as it comes, the others in their turn."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: list[str], rows: list[list[int]]) -> None:
        self._streams = [TextStream(tokenizer, row) for row in rows]
        self._waiting = list(prompts)
        self._ended = [False] * len(rows)
        self._turn = 0

    def put(self, number: int, tokens: list[int], ended: bool) -> None:
        """Print a row's next tokens, when it is its turn."""
        self._waiting[number] += self._streams[number].put(tokens)
        if ended:
            self._waiting[number] += self._streams[number].end() + "\n"
            self._ended[number] = True
        while self._turn < len(self._streams):
            print(self._waiting[self._turn], end="", flush=True)
            self._waiting[self._turn] = ""
            if not self._ended[self._turn]:
                break
            self._turn += 1


def report(result: Generation) -> str:
    """Return what the heads were worth."""
    heads = ", ".join(f"head {h} {share:.0%}" for h, share in enumerate(result.acceptance, start=1))
    settled = f"; {result.tie_forwards} forwards of the plain model settled near-ties" if result.tie_forwards else ""
    return (
        f"{result.new_tokens} tokens, {result.tokens_per_forward:.2f} a forward; "
        f"drafts accepted: {heads or 'there is one head alone, which drafts nothing'}{settled}"
    )


def compare(policy: MtpForCausalLM, rows: list[list[int]], options: dict[str, Any]) -> str:
    """Time decoding with the heads against plain decoding with the same cache, interleaved."""
    rates: dict[bool, list[float]] = {True: [], False: []}
    sequences = {}
    for _ in range(RUNS):
        for speculate, measured in rates.items():
            # Near-ties are the drafts' trouble alone: plain decoding goes without the settling, at its fastest.
            exact = options["exact"] and speculate
            start = time.perf_counter()
            result = generate(policy, rows, **{**options, "speculate": speculate, "exact": exact})
            measured.append(result.new_tokens / (time.perf_counter() - start))
            sequences[speculate] = result.sequences
    # The best of each, since whatever else the machine does only ever slows one down.
    heads, plain = max(rates[True]), max(rates[False])
    same = "" if options["sampling"] else f"; {'the same' if sequences[True] == sequences[False] else 'another'} text"
    return (
        f"with the heads {heads:.1f} tokens/s, plainly {plain:.1f} tokens/s: ratio {heads / plain:.2f} "
        f"(the best of {RUNS} runs each, interleaved){same}"
    )
