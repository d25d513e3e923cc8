"""The frozen next-token model that excess loss is measured against (Rho-1, arXiv 2404.07965, section 2.2)."""

import hashlib
import json
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmtp_core import UserError, linear_cross_entropy, mtp_targets
from wmtp_models.formats import consolidated
from wmtp_models.hf_loading import resolve_source
from wmtp_models.loading import load_causal_lm, load_tokenizer
from wmtp_models.trunk.packing_layout import DocumentBounds, infer_layout
from wmtp_models.trunk.parts import trunk_parts
from wmtp_models.trunk.probe import require_wrappable
from wmtp_models.trunk.row_slices import Slices, WholeRows
from wmtp_models.trunk.sequence_parallel import lay_out


class ReferenceModel(nn.Module):
    """A causal LM that is only ever read: no gradients, no dropout, one forward per call."""

    def __init__(self, causal_lm: PreTrainedModel, packing: bool = True) -> None:
        super().__init__()
        self.isolates_documents = require_wrappable(causal_lm, packing)
        self.trunk = trunk_parts(causal_lm)
        self.causal_lm = causal_lm.requires_grad_(False)
        self.slices: Slices = WholeRows()
        self.eval()

    @classmethod
    def load(
        cls,
        source: str | Path,
        dtype: torch.dtype = torch.float32,
        policy_vocab_size: int | None = None,
        policy_tokenizer: PreTrainedTokenizerFast | None = None,
        packing: bool = True,
    ) -> Self:
        """Load a causal LM, or trunk and head 0 of a WMTP folder.

        Args:
            source: folder, or a name that transformers can fetch.
            dtype: of the reference's parameters; its losses are float32 whatever it is.
            policy_vocab_size: V of the policy; the reference must have the same.
            policy_tokenizer: the policy's; the tokenizer beside the reference must be the same.
            packing: whether it is to be given rows of several documents.

        Raises:
            UserError: nothing to load, it has another vocabulary, or lets packed documents see each other.
        """
        if policy_tokenizer is not None:
            require_same_tokenizer(policy_tokenizer, load_tokenizer(source), source)
        reference = cls(load_causal_lm(source, dtype), packing)
        vocab_size = reference.trunk.unembedding.out_features
        if policy_vocab_size not in (None, vocab_size):
            raise UserError(
                f"the reference {source} has a vocabulary of {vocab_size} tokens, the policy one of "
                f"{policy_vocab_size}: train or choose a reference with the policy's tokenizer"
            )
        return reference

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode, whatever a trainer asks for."""
        return super().train(False)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bounds: DocumentBounds | None = None,
    ) -> Tensor:
        """Compute `token_losses`, which is what one calls; ZeRO-3 hooks into this where the reference is sharded."""
        position_ids, document_ids = infer_layout(position_ids, document_ids, attention_mask)
        targets, _ = mtp_targets(input_ids, 1, attention_mask, document_ids)  # [B, S, 1]
        layout = position_ids if self.isolates_documents else None
        part = self.slices.part
        rows = lay_out(self.slices, self.causal_lm.config._attn_implementation, input_ids, layout, bounds)
        how = rows.kwargs if rows.position_ids is None else rows.kwargs | {"position_ids": part(rows.position_ids)}
        with rows.known:
            output = self.causal_lm.base_model(input_ids=part(rows.input_ids), use_cache=False, **how)
        hidden, targets = output.last_hidden_state, part(targets.squeeze(-1))  # [B, S, D] or [1, B·S, D]; [B, S]
        weight, transform = self.trunk.weight, self.trunk.transform
        ce = linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten(), transform=transform)
        ce = self.slices.join(ce.view_as(targets))
        return nn.functional.pad(ce[:, :-1], (1, 0))  # from the position that predicts to the token predicted

    @torch.no_grad()
    def token_losses(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        bounds: DocumentBounds | None = None,
    ) -> Tensor:
        """Return the reference cross-entropy of every token, in one forward and never with all logits at once.

        Args:
            input_ids: int64 `[B, S]`.
            position_ids: int64 `[B, S]`, restarting at each packed document; default 0, 1, 2, … in each.
            document_ids: int64 `[B, S]`, equal numbers for equal documents; default as `position_ids` restart.
            attention_mask: `[B, S]`, 0 at padding.
            bounds: where `position_ids` restart, if the host knows: then nothing waits for an accelerator here.

        Returns:
            float32 `[B, S]`, −log P_ref(input_ids[b, p] | tokens < p of the same document), indexed by p: 0 at the
            first token of a document and at padding.
        """
        losses: Tensor = self(input_ids, position_ids, document_ids, attention_mask, bounds)
        return losses


def require_same_tokenizer(
    policy: PreTrainedTokenizerFast, reference: PreTrainedTokenizerFast, source: str | Path
) -> None:
    """Refuse a reference whose token ids mean something else than the policy's.

    Raises:
        UserError: the vocabularies differ (naming a token that does), or the rules that cut text into tokens.
    """
    fix = "train the reference with the policy's tokenizer, or start the policy from the reference's"
    ours, theirs = policy.get_vocab(), reference.get_vocab()
    differing = sorted(token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token))
    if differing:
        token = differing[0]
        raise UserError(
            f"the reference {source} has another tokenizer: {len(differing)} tokens differ, such as {token!r} "
            f"(id {theirs.get(token)} there, {ours.get(token)} in the policy): {fix}"
        )
    if (rules := _cutting_rules(policy)) != (other := _cutting_rules(reference)):
        part = next(name for name in sorted(rules.keys() | other.keys()) if rules.get(name) != other.get(name))
        raise UserError(f"the reference {source} has another tokenizer: same vocabulary, another {part}: {fix}")


def _cutting_rules(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    # Truncation and padding are leftovers of the last call, not part of what tokens mean.
    return {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}


def weights_fingerprint(source: str | Path) -> str:
    """Return what distinguishes one trained model from another: a hash of its weight files and what describes them.

    Returns:
        sha256 in hex over names and contents; the folder's own name and place do not enter.

    Raises:
        UserError: neither a GGUF file nor a folder with weights and what describes them.
    """
    place, gguf = resolve_source(source)
    folder = Path(place)
    files = [folder / name for name in gguf.values()]
    if not files and consolidated.is_folder(folder):
        files = [folder / consolidated.PARAMS, folder / consolidated.WEIGHTS]
        if not files[-1].is_file():
            raise UserError(f"there is no {files[-1]}: copy it again")
    if not files:
        weights = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
        config = folder / "config.json"
        if not weights or not config.is_file():
            raise UserError(
                f"{folder} does not hold a config.json and *.safetensors or pytorch_model*.bin: "
                "give a saved model's folder, or a GGUF file"
            )
        files = [config, *weights]
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
