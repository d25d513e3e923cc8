"""What a model itself says to prompts, written down token by token: text for its heads to learn from.

Prompts go in batches of about one length. A batch is a file that appears by a rename when it is complete, so a kill
costs a process at most one; which prompts share a batch hangs on the prompts alone, so the number of processes and
interruptions change nothing, not even rounding.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

from wmtp_core.errors import UserError
from wmtp_models import (
    Generation,
    MtpForCausalLM,
    Sampling,
    generate,
    load_policy,
    load_tokenizer,
    load_wmtp,
    stop_tokens,
    weights_fingerprint,
)
from wmtp_models.loading import has_heads
from wmtp_train.atomic_io import atomic_file, write_json
from wmtp_train.data.conversations import ChatTemplate
from wmtp_train.data.files import expand
from wmtp_train.data.loading import read_template
from wmtp_train.data.prompts import read_prompts
from wmtp_train.ranks.collective import describe, run_on_rank0, run_on_rank0_and_broadcast
from wmtp_train.ranks.mesh import Mesh
from wmtp_train.settings.diff import differences

ABOUT = "about.json"
Decode = Callable[[list[list[int]], int], Generation]
"""From the prompts of a batch and its number to these and what follows each, up to and including a stop token."""


@dataclass(frozen=True)
class Decoding:
    """What decoding took, over all answers.

    Attributes:
        tokens: of the answers.
        forwards: of the trunk, counted once for every row, those that settled near-ties included.
        drafted: how many drafts of head 1 … H−1 were verified.
        accepted: how many of those the text took.
    """

    tokens: int
    forwards: int
    drafted: list[int]
    accepted: list[int]

    def __str__(self) -> str:
        """Return them in a line."""
        shares = (taken / max(drafts, 1) for taken, drafts in zip(self.accepted, self.drafted, strict=True))
        heads = ", ".join(f"head {h} {share:.1%}" for h, share in enumerate(shares, start=1))
        drafts = f"; drafts accepted: {heads}" if heads else ""
        return f"{self.tokens} tokens, {self.tokens / max(self.forwards, 1):.2f} a forward{drafts}"


@dataclass(frozen=True)
class AnswerJob:
    """All prompts' answers, and the file that they go to.

    A row of the file has `input_ids` (prompt and answer) and `labels` (the same, −100 for the prompt), which training
    takes as they are, and `answer`, the text for a person to read. An answer that was cut off ends without a stop
    token, and none is learned.

    Args:
        prompts: token ids.
        decode: goes on from prompts.
        tokenizer: of both.
        output: a `.jsonl` file; `OUTPUT.about` says what it was made with.
        about: what makes these answers these, as JSON.
        mesh: the processes.
        batch: prompts that go together.
        progress: is told after each batch how many prompts it had.
    """

    prompts: list[list[int]]
    decode: Decode
    tokenizer: PreTrainedTokenizerFast
    output: Path
    about: dict[str, Any]
    mesh: Mesh
    batch: int
    progress: Callable[[int], None] = lambda prompts: None

    def run(self) -> Decoding:
        """Write the file, if it is not there already; returns what decoding took. Every rank must call it.

        Raises:
            UserError: what is there, finished or not, was made with something else; or it cannot be written.
        """
        what = f"answers {self.output} cannot be written"
        fix = "make room or fix the folder, and start again: what is answered is kept"
        done = run_on_rank0_and_broadcast(self.mesh, self._read_done, what)
        if done is not None:
            return done
        parts = self.output.with_name(f".{self.output.name}.parts")
        run_on_rank0(self.mesh, lambda: self._begin(parts), what)
        for number, batch in self._batches()[self.mesh.rank :: self.mesh.world]:
            if not self._part(parts, number).is_file():
                found = self.decode([self.prompts[row] for row in batch], number)
                try:
                    self._write(self._part(parts, number), batch, found)
                except OSError as error:
                    raise UserError(f"{what}: {describe(error)}; {fix}") from error
            self.progress(len(batch))
        self.mesh.barrier()
        return run_on_rank0_and_broadcast(self.mesh, lambda: self._join(parts), what, fix)

    def _batches(self) -> list[tuple[int, list[int]]]:
        """Return the rows of each batch, prompts of like length together, and its number."""
        order = sorted(range(len(self.prompts)), key=lambda row: (len(self.prompts[row]), row))
        return list(enumerate(order[start : start + self.batch] for start in range(0, len(order), self.batch)))

    def _read_done(self) -> Decoding | None:
        return Decoding(**self._read(about_file(self.output))["decoding"]) if self.output.exists() else None

    def _begin(self, parts: Path) -> None:
        parts.mkdir(parents=True, exist_ok=True)
        if (parts / ABOUT).is_file():
            self._read(parts / ABOUT)
        else:
            write_json(parts / ABOUT, {"made_with": self.about})

    def _read(self, file: Path) -> dict[str, Any]:
        """Return what stands in a file about these answers, which must have been made as they are to be."""
        try:
            found: dict[str, Any] = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{file}: it cannot be read ({error}); remove {self.output} or name another") from error
        if other := differences(found["made_with"], self.about):
            name, theirs, ours = other[0]
            raise UserError(
                f"{self.output} was made with {name} = {theirs!r}, and now it is {ours!r}: name another --output, or "
                "remove that one"
            )
        return found

    def _part(self, parts: Path, number: int) -> Path:
        return parts / f"{number:08d}.jsonl"

    def _write(self, path: Path, rows: list[int], found: Generation) -> None:
        decoding = Decoding(found.new_tokens, found.row_forwards + found.tie_forwards, found.drafted, found.accepted)
        lines = [json.dumps(asdict(decoding))]
        for row, sequence in zip(rows, found.sequences, strict=True):
            prompt = len(self.prompts[row])
            text = self.tokenizer.decode(sequence[prompt:], skip_special_tokens=True)
            content = {"input_ids": sequence, "labels": [-100] * prompt + sequence[prompt:], "answer": text}
            lines.append(json.dumps([row, content], ensure_ascii=False))
        with atomic_file(path) as partial:
            partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _join(self, parts: Path) -> Decoding:
        """Publish all rows in the prompts' order; the parts go only after that, so a kill in between loses nothing."""
        rows: dict[int, str] = {}
        took = []
        for number, _ in self._batches():
            first, *lines = self._part(parts, number).read_text(encoding="utf-8").splitlines()
            took.append(Decoding(**json.loads(first)))
            for row, content in map(json.loads, lines):
                rows[row] = json.dumps(content, ensure_ascii=False)
        decoding = Decoding(
            sum(part.tokens for part in took),
            sum(part.forwards for part in took),
            [sum(head) for head in zip(*(part.drafted for part in took), strict=True)],
            [sum(head) for head in zip(*(part.accepted for part in took), strict=True)],
        )
        write_json(about_file(self.output), {"made_with": self.about, "decoding": asdict(decoding)})
        with atomic_file(self.output) as partial:
            partial.write_text("".join(f"{rows[row]}\n" for row in sorted(rows)), encoding="utf-8")
        shutil.rmtree(parts)
        return decoding


def about_file(output: Path) -> Path:
    """Return where it stands what answers were made with; a folder of corpus files is read past it."""
    return output.with_name(f"{output.name}.about")


def open_answers(
    mesh: Mesh,
    *,
    model: str,
    data: list[str],
    output: Path,
    max_new_tokens: int,
    batch: int,
    text_tokens: int,
    chat_template: Path | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    dtype: str,
) -> AnswerJob:
    """Open what the options of wmtp answer name: prompts, model and output.

    Raises:
        UserError: one of them cannot be used.
    """
    if output.suffix != ".jsonl":
        raise UserError(f"--output {output}: the answers are rows of JSON: name a file that ends in .jsonl")
    if min(max_new_tokens, batch, text_tokens) < 1:
        raise UserError("--max-new-tokens, --batch and --text-tokens are numbers of at least 1")
    tokenizer = load_tokenizer(model)
    chat = ChatTemplate(tokenizer, read_template(chat_template), {})
    prompts = read_prompts(expand(data), tokenizer, chat, text_tokens)
    drawing: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    given = {name: value for name, value in drawing.items() if value is not None}
    sampling = Sampling(**given, seed=seed) if given else None
    policy = (
        load_wmtp(model, getattr(torch, dtype))
        if has_heads(model)
        else load_policy(model, 1, dtype=getattr(torch, dtype))
    )
    about = {
        "model": weights_fingerprint(model),
        "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "max_new_tokens": max_new_tokens,
        "batch": batch,
        "sampling": {**given, "seed": seed} if given else None,
        "dtype": dtype,
    }
    decode = _decoder(policy.to(mesh.device).eval(), tokenizer, max_new_tokens, sampling)
    return AnswerJob(prompts, decode, tokenizer, output, about, mesh, batch)


def _decoder(
    policy: MtpForCausalLM, tokenizer: PreTrainedTokenizerFast, max_new_tokens: int, sampling: Sampling | None
) -> Decode:
    stops = stop_tokens(policy, tokenizer)
    exact = policy.config.horizon > 1 and policy.dtype == torch.float32

    def decode(prompts: list[list[int]], number: int) -> Generation:
        drawn = None if sampling is None else replace(sampling, seed=sampling.seed + number)
        return generate(policy, prompts, max_new_tokens, eos_token_ids=stops, sampling=drawn, exact=exact)

    return decode
