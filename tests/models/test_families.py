"""Every causal LM of transformers: its heads have the plain model's losses, or it is refused; docs/families.md."""

import pytest
from families import PAGE, look, row_of
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return [line for line in PAGE.read_text().splitlines() if line.startswith("| `")][1:]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
def test_a_family_is_as_the_page_says(model_type: str, rows: list[str]) -> None:
    """Where it has heads, `look` compares their losses with the plain model's."""
    assert row_of(model_type, look(model_type)) in rows


def test_the_page_knows_no_other_family(rows: list[str]) -> None:
    assert len(rows) == len(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
