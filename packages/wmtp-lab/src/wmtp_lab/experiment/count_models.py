"""What counting reaches on the same text: the entropy of single tokens, and tables of pairs of tokens.

An arm above such a line has not learned yet what its context is good for, whatever other arm it is better than.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from wmtp_core import mtp_targets
from wmtp_lab.experiment.results import Row
from wmtp_train.data.batch import Batch
from wmtp_train.data.loading import TRAIN, data_spec, tokenizer_from_settings
from wmtp_train.data.packed.loader import TrainLoader, evaluation_batches
from wmtp_train.settings.schema import Settings

UNIGRAM_ENTROPY = "unigram entropy"
"""Of each head's held-out targets themselves: no model that ignores its context comes below."""
BIGRAM_TABLE = "bigram table"
"""Head h's holds pairs of tokens h + 1 apart, counted in the rows that a run of this seed is trained on."""
# Both stand among the results like arms, which have no spaces in their names.


class PairTable:
    """A conditional distribution that backs off to single tokens, by interpolated Witten-Bell smoothing.

    p(y | x) = (c(x, y) + u(x) q(y)) / (c(x) + u(x)) and q(y) = (c(y) + u / V) / (c + u), where c are counts, u(x) how
    many different tokens follow x, u how many there are, and V the size of the vocabulary (Witten and Bell 1991; Chen
    and Goodman 1999, section 2.5). There is nothing to tune.

    Attributes:
        predicted: the most probable y after each x, int64 `[V]`.
    """

    def __init__(self, first: Tensor, second: Tensor, vocab_size: int) -> None:
        """Count pairs, int64 `[N]` each, N at least 1, of tokens below `vocab_size`."""
        self._size = vocab_size
        self._pairs, self._counts = (first * vocab_size + second).unique(return_counts=True)
        x, y = self._pairs // vocab_size, self._pairs % vocab_size
        single = second.bincount(minlength=vocab_size).double()
        different = single.count_nonzero()
        self._single = (single + different / vocab_size) / (single.sum() + different)  # q
        self._follow = x.bincount(minlength=vocab_size)  # u(x)
        self._total = first.bincount(minlength=vocab_size) + self._follow
        # After x the best is the best of what was seen there, or what is most frequent everywhere.
        by_probability = self.probability(x, y).argsort(stable=True)
        order = by_probability[x[by_probability].argsort(stable=True)]  # by x, the most probable last
        everything = torch.arange(vocab_size)
        frequent = self._single.argmax().expand(vocab_size)
        seen = y[order[(self._follow.cumsum(0) - 1).clamp(min=0)]]
        better = (self._follow > 0) & (self.probability(everything, seen) > self.probability(everything, frequent))
        self.predicted = torch.where(better, seen, frequent)

    def probability(self, first: Tensor, second: Tensor) -> Tensor:
        """Return p(second | first), float64 `[N]`, of tokens int64 `[N]`."""
        pairs = first * self._size + second
        place = torch.searchsorted(self._pairs, pairs).clamp(max=len(self._pairs) - 1)
        counted = torch.where(self._pairs[place] == pairs, self._counts[place], 0)
        total, single = self._total[first], self._single[second]
        return torch.where(total > 0, (counted + self._follow[first] * single) / total.clamp(min=1), single)


def entropy(tokens: Tensor) -> float:
    """Return the entropy in nats of the distribution of tokens, int64 `[N]`."""
    counts = tokens.bincount().double()
    return float(torch.special.entr(counts / counts.sum()).sum())


def measure_counts(settings: Settings, seeds: Iterable[int], rows_per_step: int) -> Iterator[Row]:
    """Yield what counting reaches on the clean held-out text, in the metrics of `Run.evaluate`.

    Args:
        settings: of a run of the baseline; its text, steps and heads count.
        seeds: of the runs.
        rows_per_step: of every run.
    """
    spec = data_spec(settings, tokenizer_from_settings(settings))
    train, held_out = spec.prepare(TRAIN), spec.prepare("clean")
    batches = evaluation_batches(held_out, None, rows_per_step, 0, 1, settings.data.evaluation_rows)
    evaluated = _pairs(batches, settings.model.horizon)
    for seed in seeds:
        loader = TrainLoader(train, None, rows_per_step, 0, 1, seed, consumed_rows=0)
        counted = _pairs((next(loader) for _ in range(settings.steps)), settings.model.horizon)
        for head, (pairs, (first, second)) in enumerate(zip(counted, evaluated, strict=True)):
            table = PairTable(*pairs, vocab_size=len(spec.tokenizer))
            loss = -table.probability(first, second).log().mean()
            accuracy = (table.predicted[first] == second).double().mean()
            loss_name = f"evaluation/clean/ce/head_{head}"
            yield Row(BIGRAM_TABLE, seed, loss_name, settings.steps, float(loss))
            yield Row(BIGRAM_TABLE, seed, f"evaluation/clean/accuracy/head_{head}", settings.steps, float(accuracy))
            yield Row(UNIGRAM_ENTROPY, seed, loss_name, settings.steps, entropy(second))


def _pairs(batches: Iterable[Batch], horizon: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each head the last token that it sees and its target, int64 `[N]`, wherever there is one."""
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(horizon)]
    for batch in batches:
        targets, valid = mtp_targets(batch.labels, horizon, batch.attention_mask, batch.document_ids)
        for head, pairs in enumerate(found):
            where = valid[..., head]
            pairs.append((batch.input_ids[where], targets[..., head][where]))
    return [(torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])) for pairs in found]
