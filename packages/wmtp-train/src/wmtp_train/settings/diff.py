"""What differs between two trees of facts: settings, versions, configurations."""

from typing import Any

_ABSENT = "nothing"


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a tree of dicts by their dotted path; what is no dict is a leaf."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name and both values of every leaf that differs between two trees, by name; "nothing" where one has none."""
    mine, theirs = leaves(one), leaves(other)
    both = ((name, mine.get(name, _ABSENT), theirs.get(name, _ABSENT)) for name in sorted(mine.keys() | theirs.keys()))
    return [(name, ours, other) for name, ours, other in both if ours != other]
