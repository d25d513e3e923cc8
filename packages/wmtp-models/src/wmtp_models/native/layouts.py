"""How model families name the tensors of the modules that they ship."""

from collections.abc import Collection
from dataclasses import dataclass

from wmtp_core import UserError


@dataclass(frozen=True)
class Layout:
    """The names of one family of names; in them `{depth}` counts modules from 0, `{layer}` goes on from the trunk's.

    Attributes:
        eh_proj: prefix of the projection's tensors; the first module's tells which layout a model has.
        enorm: of the norm of the embedding.
        hnorm: of the norm of the hidden state.
        post_norm: of the norm at the end; None: modules have none.
        block: of the decoder layer; what begins with another of these prefixes is not in it.
        hidden_first: the projection reads [hidden, embedding], not [embedding, hidden].
        single: one module at most, as it shares its projection and norms with all.
        renamed: names in the block, theirs and the family's in transformers, where these differ.
        copies: what a module may hold once more, and which part of the trunk that is.
    """

    eh_proj: str
    enorm: str
    hnorm: str
    post_norm: str | None
    block: str
    hidden_first: bool = False
    single: bool = False
    renamed: tuple[tuple[str, str], ...] = ()
    copies: tuple[tuple[str, str], ...] = ()

    def rename(self, name: str, depth: int, trunk_layers: int) -> str | None:
        """Return what one of their names is called here, such as `enorm.weight` or `block.mlp.up_proj.weight`.

        A copy is called `embedding` or `unembedding`, and what is not of this depth's module None.
        """
        for part, prefix in (*self._parts(depth, trunk_layers), *self.copy_names(depth, trunk_layers)):
            if name.startswith(prefix):
                return part + name.removeprefix(prefix)
        block = self.block.format(depth=depth, layer=trunk_layers + depth)
        if not name.startswith(block):
            return None
        inner = name.removeprefix(block)
        for theirs, ours in self.renamed:
            inner = ours + inner.removeprefix(theirs) if inner.startswith(theirs) else inner
        return f"block.{inner}"

    def restore(self, name: str, depth: int, trunk_layers: int) -> str:
        """Return the name that `rename` got; the block's must be as the family has them in its files."""
        for part, prefix in self._parts(depth, trunk_layers):
            if name.startswith(part):
                return prefix + name.removeprefix(part)
        inner = name.removeprefix("block.")
        for theirs, ours in self.renamed:
            inner = theirs + inner.removeprefix(ours) if inner.startswith(ours) else inner
        return self.block.format(depth=depth, layer=trunk_layers + depth) + inner

    def copy_names(self, depth: int, trunk_layers: int) -> list[tuple[str, str]]:
        """Return which part of the trunk a module may hold once more, and under which name."""
        return [(part, name.format(depth=depth, layer=trunk_layers + depth)) for name, part in self.copies]

    def count(self, names: Collection[str], trunk_layers: int) -> int:
        """Return how many modules there are among the names of a model's tensors."""
        depth = 0
        while f"{self.eh_proj.format(depth=depth, layer=trunk_layers + depth)}weight" in names:
            depth += 1
            if self.single:
                break
        return depth

    def _parts(self, depth: int, trunk_layers: int) -> list[tuple[str, str]]:
        prefixes = {"eh_proj.": self.eh_proj, "enorm.": self.enorm, "hnorm.": self.hnorm, "post_norm.": self.post_norm}
        return [
            (part, prefix.format(depth=depth, layer=trunk_layers + depth))
            for part, prefix in prefixes.items()
            if prefix is not None
        ]


LAYOUTS = {
    "deepseek": Layout(  # DeepSeek-V3, GLM-4.5
        eh_proj="model.layers.{layer}.eh_proj.",
        enorm="model.layers.{layer}.enorm.",
        hnorm="model.layers.{layer}.hnorm.",
        post_norm="model.layers.{layer}.shared_head.norm.",
        block="model.layers.{layer}.",
        copies=(
            ("model.layers.{layer}.embed_tokens.weight", "embedding"),
            ("model.layers.{layer}.shared_head.head.weight", "unembedding"),
        ),
    ),
    "qwen": Layout(  # Qwen3-Next, Qwen3.5, Mellum, EXAONE MoE
        eh_proj="mtp.fc.",
        enorm="mtp.pre_fc_norm_embedding.",
        hnorm="mtp.pre_fc_norm_hidden.",
        post_norm="mtp.norm.",
        block="mtp.layers.{depth}.",
        single=True,
    ),
    "generic": Layout(  # what transformers loads for any family
        eh_proj="mtp.layers.{depth}.eh_proj.",
        enorm="mtp.layers.{depth}.enorm.",
        hnorm="mtp.layers.{depth}.hnorm.",
        post_norm="mtp.layers.{depth}.post_norm.",
        block="mtp.layers.{depth}.",
    ),
    "mimo": Layout(
        eh_proj="model.mtp_layers.{depth}.input_proj.",
        enorm="model.mtp_layers.{depth}.token_layernorm.",
        hnorm="model.mtp_layers.{depth}.hidden_layernorm.",
        post_norm="model.mtp_layers.{depth}.final_layernorm.",
        block="model.mtp_layers.{depth}.",
        hidden_first=True,
    ),
    "mimo_v2": Layout(
        eh_proj="model.mtp.layers.{depth}.eh_proj.",
        enorm="model.mtp.layers.{depth}.enorm.",
        hnorm="model.mtp.layers.{depth}.hnorm.",
        post_norm="model.mtp.layers.{depth}.final_layernorm.",
        block="model.mtp.layers.{depth}.",
        renamed=(("pre_mlp_layernorm.", "post_attention_layernorm."),),
    ),
    "ernie": Layout(
        eh_proj="model.mtp_linear_proj.{depth}.",
        enorm="model.mtp_emb_norm.{depth}.",
        hnorm="model.mtp_hidden_norm.{depth}.",
        post_norm=None,
        block="model.mtp_block.{depth}.",
    ),
}
"""The layouts that are known. A new one is an entry here."""


def find_layout(names: Collection[str], trunk_layers: int) -> str | None:
    """Return the name of the layout that a model's tensors are named by; None: none that is known here."""
    return next((name for name, layout in LAYOUTS.items() if layout.count(names, trunk_layers)), None)


def require_layout(name: str) -> Layout:
    """Return a layout by its name.

    Raises:
        UserError: there is none.
    """
    if name not in LAYOUTS:
        raise UserError(f"the layout of shipped modules is {name!r}: choose one of {', '.join(LAYOUTS)}")
    return LAYOUTS[name]
