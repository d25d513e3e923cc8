"""lm-eval's view of a policy, and its tasks run on it (https://github.com/EleutherAI/lm-evaluation-harness)."""

import itertools
import logging
from pathlib import Path
from typing import Any

import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    DEFAULT_MAX_LENGTH,
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    resolve_max_length,
)
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from wmtp_core import UserError, linear_argmax, linear_cross_entropy
from wmtp_eval.complete import complete
from wmtp_models import MtpForCausalLM, Sampling, encode_prompt
from wmtp_models.trunk.attention import default_attention

_SAMPLING = ("temperature", "top_k", "top_p")
Request = tuple[tuple[str, str] | None, list[int], list[int]]


class PolicyLM(TemplateLM):
    """A policy as lm-eval sees it: probabilities are head 0's, texts are decoded by all heads.

    Probabilities are those of lm-eval's own `hf` model on the unwrapped policy, but no logits `[B, S, V]` are formed.

    Args:
        policy: in evaluation mode.
        tokenizer: the policy's.
        batch_size: requests in one forward.
    """

    def __init__(self, policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerFast, batch_size: int) -> None:
        super().__init__()
        self.policy, self.tokenizer, self.batch_size = policy, tokenizer, batch_size
        self.max_length: int = resolve_max_length(policy.config.trunk, tokenizer, default=DEFAULT_MAX_LENGTH)

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        token: int = self.tokenizer.eos_token_id
        return token

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        token: int | None = self.tokenizer.bos_token_id
        return self.eot_token_id if token is None else token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Return token ids; by default with the tokenizer's special tokens, unless they stand in the text."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        tokens: list[int] = self.tokenizer.encode(string, add_special_tokens=add_special_tokens)
        return tokens

    @torch.no_grad()
    def _loglikelihood_tokens(self, requests: list[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """Return log P(continuation | context) in nats, and whether it is what greedy decoding gives."""
        if (most := max((len(continuation) for _, _, continuation in requests), default=0)) > self.max_length:
            raise UserError(
                f"a task's answer has {most} tokens, and the model's context is {self.max_length}: shorten it"
            )
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        answers: dict[int, tuple[float, bool]] = {}
        for start in tqdm(range(0, len(requests), self.batch_size), desc="lm-eval", unit="batch"):
            chosen = longest_first[start : start + self.batch_size]
            # The last max_length tokens and one more, which is predicted and not read.
            texts = [(requests[i][1] + requests[i][2])[-self.max_length - 1 :] for i in chosen]
            losses, greedy = self._last_tokens(texts, [len(requests[i][2]) for i in chosen])
            answers |= dict(zip(chosen, zip(losses, greedy, strict=True), strict=True))
        return [answers[i] for i in range(len(requests))]

    def _last_tokens(self, texts: list[list[int]], counts: list[int]) -> tuple[list[float], list[bool]]:
        """Return log P of the last `counts[i]` tokens of text i in nats, and whether head 0 predicts all of them."""
        rows = [torch.tensor(text, device=self.policy.device) for text in texts]
        # Padding on the right, where no token before it can see it.
        padded = pad_sequence([row[:-1] for row in rows], batch_first=True)
        with default_attention(self.policy):
            output = self.policy.causal_lm.base_model(input_ids=padded, use_cache=False)
        states = output.last_hidden_state  # [B, S, D], of the trunk and head 0 alone
        hidden = torch.cat([s[len(row) - 1 - n : len(row) - 1] for s, row, n in zip(states, rows, counts, strict=True)])
        targets = torch.cat([row[len(row) - n :] for row, n in zip(rows, counts, strict=True)])  # [N]
        weight, transform = self.policy.trunk.weight, self.policy.trunk.transform
        losses: Tensor = linear_cross_entropy(hidden, weight, targets, transform=transform)
        right = linear_argmax(hidden, weight, transform) == targets
        sums = [-part.sum().item() for part in losses.split(counts)]
        return sums, [bool(part.all()) for part in right.split(counts)]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return log P(text) in nats, each token seen once, in windows of the model's context."""
        windows = [
            [
                (None, *make_disjoint_window(window))
                for window in get_rolling_token_windows(
                    self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
                )
            ]
            for request in requests
        ]
        answers = iter(self._loglikelihood_tokens(list(itertools.chain.from_iterable(windows))))
        return [sum(next(answers)[0] for _ in of_one) for of_one in windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return texts that go on from contexts, each up to one of its stops."""
        texts: dict[int, str] = {}
        by_options: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_options.setdefault(repr(request.args[1]), []).append(i)
        for members in by_options.values():
            options = normalize_gen_kwargs(requests[members[0]].args[1])
            stops = handle_stop_sequences(options["until"], eos=None)
            most = options["max_gen_toks"]
            if most >= self.max_length:
                raise UserError(
                    f"a task asks for {most} new tokens, and the model's context is {self.max_length}: "
                    "lower max_gen_toks in the task's generation_kwargs"
                )
            room = self.max_length - most
            prompts = [self._prompt(requests[i].args[0])[-room:] for i in members]
            wanted = {name: options[name] for name in _SAMPLING if name in options}
            sampling = Sampling(**wanted) if options["do_sample"] else None
            written = complete(self.policy, self.tokenizer, prompts, most, stops, sampling, self.batch_size)
            texts |= dict(zip(members, written, strict=True))
        return [texts[i] for i in range(len(requests))]

    def _prompt(self, text: str) -> list[int]:
        return encode_prompt(self.tokenizer, text) or [self.prefix_token_id]


def run_tasks(lm: PolicyLM, tasks: list[str], folder: Path | None, limit: int | None) -> dict[str, float]:
    """Return the metrics `task/metric` of lm-eval's tasks.

    Args:
        folder: of task files; then only the tasks in it are known. None: those that lm-eval brings.
        limit: examples of each task; None: all.

    Raises:
        UserError: there is no such task, or it cannot be read.
    """
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        raise UserError(f"evaluation.tasks names {unknown[0]!r}, which {folder or 'lm-eval'} does not have")
    logging.getLogger("lm_eval").setLevel(logging.WARNING)
    try:
        found = simple_evaluate(lm, tasks=tasks, task_manager=manager, limit=limit, log_samples=False)
    except OSError as error:  # no such data file, or no network to fetch it by
        reason = str(error).splitlines()[0]
        raise UserError(f"evaluation.tasks: {reason}; fix the task file's data_files or the network access") from error
    return {
        f"{task}/{name.removesuffix(',none')}": float(value)
        for task, metrics in found["results"].items()
        for name, value in metrics.items()
        if name != "sample_len" and isinstance(value, int | float)
    }
