"""The answer as Markdown."""

from scaling.compute import compute_table
from scaling.memory import memory_table
from scaling.plan import Plan, Table
from scaling.storage import storage_table
from scaling.traffic import traffic_table


def render(plan: Plan) -> str:
    """All tables, under the sizes that they were calculated from."""
    tables = [memory_table(plan), traffic_table(plan), storage_table(plan), compute_table(plan)]
    return "\n\n".join([_sizes(plan), *map(to_markdown, tables)]) + "\n"


def to_markdown(table: Table) -> str:
    """A heading, the table and its notes; a value of 0 is a dash."""
    unit = f", {table.unit_name}" if table.unit_name else ""
    lines = [
        f"**{table.title}{unit}**",
        "",
        f"| | {' | '.join(table.columns)} | formula |",
        f"|---|{'--:|' * len(table.columns)}---|",
    ]
    for row in table.rows:
        cells = [_number(value / table.unit) for value in row.values]
        lines.append(f"| {row.name} | {' | '.join(cells)} | {row.formula} |")
    return "\n".join(lines + [line for note in table.notes for line in ("", note)])


def _sizes(plan: Plan) -> str:
    policy, reference = plan.policy, plan.reference
    parts = [f"trunk {_millions(policy.trunk)}", f"{policy.horizon} heads {_millions(policy.heads)}"]
    parts.append(f"embedding {_millions(policy.embedding)}")
    parts.append(f"unembedding {_millions(policy.unembedding)}" if policy.unembedding else "tied to the unembedding")
    return (
        f"P = {policy.parameters:,} parameters ({', '.join(parts)}), "
        f"reference P′ = {reference.parameters:,}; R = {plan.gpus} GPUs, micro-batch m = {plan.micro_batch}, "
        f"accumulation a = {plan.accumulation}, S = {plan.sequence_length}, N = mS = {plan.positions:,}, "
        f"H = {policy.horizon}, k = {plan.k_percent:g}; L = {policy.layers}, D = {policy.hidden_size}, "
        f"W = {policy.attention_width}, I = {policy.intermediate_size}, V = {policy.vocab_size}, "
        f"C = {min(policy.rows_of_logits, plan.positions * policy.horizon)}. 1 GB is 10⁹ bytes."
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:,.1f}M"


def _number(value: float) -> str:
    if value == 0:
        return "–"
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value >= 0.01 else f"{value:.1g}"
