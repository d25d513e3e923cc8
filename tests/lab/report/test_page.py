import re
from html.parser import HTMLParser
from typing import Any

import pytest

from wmtp_lab.report.page import render, shown_passage
from wmtp_lab.report.runs import read_runs


class Tokens(HTMLParser):
    """Collects the text, classes and title of every token of a passage, and every reference of the page."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[tuple[str, set[str], str]] = []
        self.references: list[str] = []
        self.open: tuple[set[str], str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.references += [found[key] or "" for key in ("src", "href", "xlink:href", "action", "data") if key in found]
        classes = set((found.get("class") or "").split())
        self.open = (classes, found["title"] or "") if "token" in classes and "title" in found else None
        if self.open:
            self.tokens.append(("", *self.open))

    def handle_data(self, data: str) -> None:
        if self.open:
            self.tokens[-1] = (self.tokens[-1][0] + data, *self.open)

    def handle_endtag(self, tag: str) -> None:
        self.open = None


@pytest.fixture
def page(make_run: Any) -> str:
    return render(read_runs([make_run()]))


def test_the_page_needs_no_network(page: str) -> None:
    assert "http" not in page
    assert "//" not in re.sub(r"<[!]--.*?-->", "", page)
    assert not re.search(r"<(script|link|iframe|object|embed|img)\b|@import", page)
    parser = Tokens()
    parser.feed(page)
    assert parser.references
    assert all(reference.startswith("#") for reference in parser.references)
    assert set(re.findall(r"url\((.)", page)) == {"#"}


def test_every_reference_within_the_page_is_met_once(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', page))
    assert used <= set(ids)
    assert not re.search(r'id="\w+_\d+"', page)


def test_the_page_shows_the_metrics(page: str) -> None:
    cells = re.findall(r"<td>([^<]*)</td>", page)
    assert cells[:9] == ["run", "rho1-wmtp", "30", "30,000", "4,000", "clean", "4.25", "5.75", "7.25"]
    assert "with an AUC of 0.79 (chance: 0.50)." in page
    assert page.count("<svg") == 5
    assert page.count("<b>Training loss</b>") == 1
    # Of noise, only head 2 keeps one of four predictions; of clean tokens, all four that there are are kept.
    assert "keep 100\u202f% of the predictions of clean tokens here, and 25\u202f% of noisy ones" in page


def test_tokens_are_shaded_as_their_weights_say(page: str) -> None:
    parser = Tokens()
    parser.feed(page)
    texts = ["def", " f", "():\n", "\t<script>", "AAA=", " x"]
    shades = ["unpredicted", "unpredicted", "shade-3", "shade-3", "shade-0", "shade-6"]
    assert [text for text, *_ in parser.tokens] == texts
    for (_, classes, _), shade in zip(parser.tokens, shades, strict=True):
        assert {name for name in classes if name.startswith("shade") or name == "unpredicted"} == {shade}
    assert ["noise" in classes for _, classes, _ in parser.tokens] == [False, False, False, True, True, False]
    assert parser.tokens[3][2] == "head 0 keeps, head 1 drops, head 2 keeps; noise: base64"
    assert page.count('<span class="boundary">') == 1


def test_text_from_the_corpus_is_text(page: str) -> None:
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_several_runs_stand_side_by_side(make_run: Any) -> None:
    baseline = make_run("baseline", algo="mtp-baseline", scalars={"ce/head_0": [(10, 8.0), (40, 4.5)]}, passages={})
    page = render(read_runs([make_run("rho1"), baseline]))
    assert "<b>Training loss: rho1</b>" in page
    assert "<b>Training loss: baseline</b>" in page
    assert "<b>Kept, by head: baseline</b>" not in page
    assert re.findall(r"<strong>(.*?):</strong>", page) == ["rho1", "baseline"]
    assert page.count('class="passage"') == 1


def test_the_same_runs_give_the_same_bytes(make_run: Any, page: str) -> None:
    assert render(read_runs([make_run("again/run")])) == page


def test_the_passage_with_noise_is_shown_unless_no_later_head_marks_it(make_run: Any) -> None:
    (run,) = read_runs([make_run()])
    assert shown_passage(run) is run.passages["noisy"]
    one_head = {"tokens": ["a"], "noise": [""], "documents": [0], "weights": [[1.0]]}
    (run,) = read_runs([make_run("one", passages={"clean": one_head})])
    assert shown_passage(run) is None
    assert 'class="passage"' not in render([run])
