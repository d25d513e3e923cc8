import ast
import textwrap

from hypothesis import given
from hypothesis import strategies as st

from corpus.cleaning import SHORTEST
from corpus.cutting import LONGEST, cut_code, cut_lines


def function(name: str, lines: int) -> str:
    return f"\n\ndef {name}(x):\n" + "    x = x + 'some text'\n" * lines


def cut(text: str) -> list[str]:
    return cut_code(text, ast.parse(text))


def test_a_short_file_stays_whole() -> None:
    text = '"""Short."""\n' + function("f", 20)
    assert cut(text) == [text]


def test_cuts_between_functions_and_joins_again() -> None:
    text = "".join(function(f"f{number}", 80) for number in range(12))
    pieces = cut(text)
    assert len(pieces) > 3
    assert "".join(pieces) == text
    for piece in pieces:
        assert SHORTEST <= len(piece) <= LONGEST
        assert piece.startswith("\n\ndef ")
        ast.parse(piece)


def test_cuts_a_long_class_between_its_methods() -> None:
    methods = "".join(function(f"m{number}", 60) for number in range(12))
    text = "class C:\n" + textwrap.indent(methods, "    ")
    pieces = cut(text)
    assert "".join(pieces) == text
    assert all(piece.lstrip("\n").startswith("    def ") for piece in pieces[1:])
    assert len(pieces) > 2


def test_cuts_inside_blocks_and_never_inside_a_statement() -> None:
    body = "".join(f"    y{number} = '''\n{'words ' * 100}\n'''\n" for number in range(30))
    for head, tail in (("try:\n", "finally:\n    pass\n"), ("if x:\n    pass\nelse:\n", ""), ("for x in y:\n", "")):
        pieces = cut(head + body + tail)
        assert "".join(pieces) == head + body + tail
        assert len(pieces) > 2
        assert all(piece.count("'''") % 2 == 0 for piece in pieces)


def test_an_indivisible_statement_stays_whole() -> None:
    text = f"x = 1\n'''{'word ' * 3000}'''\ny = 2\n"
    assert cut(text) == [text]


def test_form_feeds_and_odd_line_separators_do_not_shift_the_cuts() -> None:
    text = "".join("\x0c\n# \u2028 \x1c\n" + function(f"f{number}", 80) for number in range(8))
    pieces = cut(text)
    assert len(pieces) > 1
    assert "".join(pieces) == text
    for piece in pieces:
        ast.parse(piece)


@given(st.lists(st.text(alphabet="ab \u2028", max_size=3).map(lambda unit: unit * 900), max_size=12).map("\n".join))
def test_lines_join_again_and_are_short_enough(text: str) -> None:
    pieces = cut_lines(text)
    assert "".join(pieces) == text
    assert all(len(piece) <= LONGEST for piece in pieces)
    assert all(len(piece) > SHORTEST for piece in pieces[:-1])


def test_lines_are_cut_at_their_ends_where_they_have_some() -> None:
    pieces = cut_lines("a line of a table\n" * 2000)
    assert len(pieces) > 3
    assert all(piece.endswith("\n") for piece in pieces)
    assert [len(piece) for piece in cut_lines("x" * 15000)] == [LONGEST, LONGEST, 3000]
