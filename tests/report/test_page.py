"""The page: its order, its safety, its accessibility, and that it needs nothing else."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from planner.recommendation import Recommendation
from planner.report.svg import BACKGROUND, GRID, INK
from planner.run_folder import RunFolder

HEADINGS = [
    "What to train",
    "Runners-up",
    "Loss against compute",
    "Learning curves",
    "Budget burn-down",
    "The trials",
    "How it was done",
]
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """Tags, ids, attributes and text of a page; unbalanced tags are an error."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def outline(text: str) -> Outline:
    parser = Outline()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_sections_come_in_reading_order(page: str) -> None:
    found = outline(page)
    assert found.texts["h1"] == ["<script>alert(1)</script>"]
    assert found.texts["h2"] == HEADINGS


def test_the_decision_comes_first_and_says_interval_cost_headroom_and_why(
    page: str, reported: RunFolder
) -> None:
    box = page[page.index('class="decision"') : page.index("</section>")]
    for words in ("Predicted loss", "should end between", "Cost", "Headroom", "what binds",
                  "Confidence", "largest compute of the fit", "unigram entropy"):  # fmt: skip
        assert words in box


def test_hostile_names_questions_and_reasons_show_as_text(page: str) -> None:
    found = outline(page)
    assert not {"script", "b", "iframe", "object", "embed", "form"} & {t for t, _ in found.tags}
    assert "Is <b>this</b> & 'that' safe?" in found.texts["p"]
    assert "<b>worker</b> died: signal 9" in found.texts["td"]


def test_nothing_outside_of_the_page_is_referred_to(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    for tag, attributes in outline(page).tags:
        assert tag not in ("link", "script", "img")
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert (attributes.get(name) or "#").startswith("#")
        assert not [name for name in attributes if name.startswith("on")]
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))


def test_the_content_security_policy_allows_inline_style_and_nothing_else(page: str) -> None:
    policies = [a for t, a in outline(page).tags if a.get("http-equiv")]
    assert [p["content"] for p in policies] == [
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    ]


def test_ids_are_unique_and_every_reference_to_one_is_answered(page: str) -> None:
    tags = outline(page).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids)) > 50
    used = {word for _, a in tags for word in (a.get("aria-labelledby") or "").split()}
    used |= {(a.get("href") or "#")[1:] for t, a in tags if t == "use"}
    used |= set(re.findall(r"url\(#([^)]*)\)", page))
    assert used <= set(ids)


def test_figures_are_images_with_a_title_and_a_description(page: str) -> None:
    found = outline(page)
    figures = [a for t, a in found.tags if t == "svg"]
    assert len(figures) == 3
    for attributes in figures:
        assert attributes["role"] == "img"
        assert "viewbox" in attributes
        assert "width" not in attributes
    assert "Validation loss against training compute" in found.texts["title"]
    assert all(len(text) > 20 for text in found.texts["desc"])


def test_heads_of_tables_have_a_scope_and_cells_a_label_for_narrow_screens(page: str) -> None:
    tags = outline(page).tags
    heads = [a for t, a in tags if t == "th"]
    assert heads
    assert {a["scope"] for a in heads} == {"col", "row"}
    assert all("data-label" in a for t, a in tags if t == "td")
    assert len([t for t, _ in tags if t == "caption"]) == len([t for t, _ in tags if t == "table"])


def test_colours_of_text_and_grid_follow_the_theme(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    assert "@media print" in page
    for stand_in in (INK, GRID, BACKGROUND):
        assert stand_in not in page
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert figures.count("var(--ink)") > 50
    assert "var(--grid)" in figures
    colours = set(re.findall(r"#[0-9a-f]{6}", figures.lower()))
    assert colours <= {"#0072b2", "#d55e00", "#009e73", "#cc79a7"}


def test_figures_name_their_lines_inside_and_beyond_the_data(page: str) -> None:
    figure = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)[0]
    for words in ("fitted envelope", "beyond the data", "90% prediction interval", "recommended",
                  "unigram entropy", "stopped early", "budget", "32.9k params"):  # fmt: skip
        assert words in figure
    assert "stroke-dasharray" in figure


def test_the_same_run_gives_the_same_bytes(reported: RunFolder, page: str) -> None:
    from planner.report import write_report

    before = {path.name: path.read_bytes() for path in reported.report.iterdir()}
    write_report(reported)
    assert {path.name: path.read_bytes() for path in reported.report.iterdir()} == before
    assert set(before) == {
        "index.html", "report.md", "report.json", "results.csv", "results.parquet",
    }  # fmt: skip


def test_a_run_without_a_fit_shows_everything_else_and_says_why(unfitted: RunFolder) -> None:
    page = (unfitted.report / "index.html").read_text(encoding="utf-8")
    found = outline(page)
    assert found.texts["h2"] == [h for h in HEADINGS if h != "Runners-up"]
    assert "There is no recommendation" in page
    assert "distinct num_params" in found.texts["pre"][0]
    assert "unigram entropy" in page
    assert "fitted envelope" not in page


def test_a_recommendation_that_was_written_is_the_one_shown(reported: RunFolder, page: str) -> None:
    from planner.report.contents import gather

    answer = gather(reported).recommendation
    assert isinstance(answer, Recommendation)
    assert str(answer) in outline(page).texts["p"]


@pytest.mark.parametrize("rule", ["max-width", "data-label", "break-inside: avoid"])
def test_the_style_serves_phones_and_paper(rule: str, page: str) -> None:
    assert rule in page
