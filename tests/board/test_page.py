import base64
import copy
import functools
import json
import re
import shutil
import zlib
from collections import Counter
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plbench.board.page import file_link, render_page
from plbench.runs.page.html import harmless, island, reference_link, same_page

NASTY = [
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "' onmouseover='window.pwned=1",
    "javascript:window.pwned=1",
    "data:text/html,<script>window.pwned=1</script>",
    'https://example.org/" onclick="window.pwned=1',
    "java\nscript:alert(1)",
    "<!--<script>",
    "]]><![CDATA[",
    "{{ 7 * 7 }}{% raw %}",
    "\x00\x1b[31m\x7f\u202e\u2028\ud800",
    "&lt;b&gt;&amp;",
    "..\\..\\x/../../etc/passwd",
    "=cmd|' /C calc'!A0",
    "constructor",
    "__proto__",
    "",
    "é漢🦊 'quoted' \"twice\" `thrice`",
    "x" * 5000,
]


class Page(HTMLParser):
    """Elements, attributes and the text of script elements."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.islands = Counter(), [], {}
        self.open_script = None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += [(tag, name, value) for name, value in attrs]
        self.open_script = dict(attrs).get("id") if tag == "script" else None

    def handle_data(self, data):
        if self.open_script:
            self.islands[self.open_script] = self.islands.get(self.open_script, "") + data

    def handle_endtag(self, tag):
        self.open_script = None


def replaced(value, strings):
    """The same structure with each string, and each name of a parameter, from `strings`; None stays."""
    if isinstance(value, str):
        return next(strings)
    if isinstance(value, dict):
        return {key: replaced(each, strings) for key, each in value.items()}
    if isinstance(value, list):
        return [replaced(each, strings) for each in value]
    return value


def hostile(boards, texts):
    boards = copy.deepcopy(boards)
    for board in boards:
        board["classes"] = board["classes"][:2]
        for section in board["sections"]:
            section["rows"] = section["rows"][:2] + section["rows"][-3:]
            for row in section["rows"]:
                row["ap"] = row["ap"][:2]

    def strings():
        while True:
            yield from texts

    source = strings()
    boards = replaced(boards, source)
    for board in boards:
        board["groups"] = sorted(set(board["groups"]))
        for section in board["sections"]:
            for row in section["rows"]:
                row["params"] = {next(source): next(source), "deep": {next(source): [next(source)]}}
                row["figures"] |= {name: row["figures"]["map_c"] for name in board["groups"]}
    return boards


def test_same_bytes_for_the_same_boards(boards):
    before = copy.deepcopy(boards)
    text = render_page(boards)
    assert text == render_page(copy.deepcopy(boards))
    assert boards == before
    text.encode("utf-8")


def test_what_a_table_shows(boards):
    text = render_page(boards)
    for expected in (
        "provisional",
        "withdrawn: trained on test by mistake",
        "Ceiling: trained on complete labels, unranked",
        "✓ verified",
        "=1",
        "1 at its cost",
        "best",
        'href="https://arxiv.org/abs/2110.10955"',
        'href="../methods/ce_ignore.py"',
        "Assume Negative at 82.0 beats",
        "of 56",
        "0.006",
        "A difference of 0.8 points",
        "No rows yet",
        "no test has the power",
    ):
        assert expected in text, expected
    assert 'href="../methods' not in render_page(boards, sources=None)
    assert 'href="https://example.org/methods/ce_ignore.py"' in render_page(boards, sources="https://example.org/")


def test_no_boards_and_empty_boards(boards):
    assert "There are no boards yet" in render_page([])
    empty = {**boards[0], "sections": [], "classes": [], "published": [], "groups": []}
    bare = {**boards[0], "sections": [{**boards[0]["sections"][0], "rows": []}]}
    assert "No rows yet" in render_page([empty])
    render_page([bare, bare])


def test_values_that_are_missing(boards):
    row = boards[0]["sections"][0]["rows"][0]
    row |= {"figures": {"map_c": None, "map_o": {"mean": 5.0, "low": None, "high": None}}, "ap": [None] * 56}
    row |= {"to_best": None, "cost": {}, "params": {}, "plan": {}, "environment": {}, "commit": None, "paper": ""}
    row["figures"]["object"] = {"mean": float("nan"), "low": float("inf"), "high": 1e400}
    text = render_page(boards)
    shown = re.sub("<(script|style).*?</(script|style)>|<[^>]*>", "", text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|inf|infinity|none)\b", shown, re.IGNORECASE)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.sampled_from(NASTY) | st.text(max_size=20), min_size=1, max_size=12))
def test_hostile_values_are_only_text(boards, texts):
    tame = Page(render_page(hostile(boards, ["plain"])))
    given_boards = hostile(boards, texts)
    page = Page(render_page(given_boards))
    for tag in ("script", "style", "meta", "link", "template", "dialog", "table", "button", "section", "thead"):
        assert page.tags[tag] == tame.tags[tag], tag
    rows = {"tr", "tbody"}
    assert all(page.tags[tag] == tame.tags[tag] for tag in rows)
    assert {(tag, name) for tag, name, _ in page.attributes} <= _allowed(tame)
    identifiers = [value for _, name, value in page.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert not any(re.search(r"\s", value) for value in identifiers)
    links = [value for _, name, value in page.attributes if name in ("href", "src")]
    assert all(re.match(r"https?://|#|data:,$|\.\./\w", link) for link in links)
    texts = [text for name, text in page.islands.items() if name.startswith("data-")]
    contents = [json.loads(zlib.decompress(base64.b64decode(text, validate=True))) for text in texts]
    for content, board in zip(contents, harmless(given_boards), strict=True):
        assert content["name"] == board["name"]
        assert [each[0] for each in content["classes"]] == [each["name"] for each in board["classes"]]
        rows = [row for section in board["sections"] for row in section["rows"]]
        for found, row in zip(content["rows"], rows, strict=True):
            assert found["params"] == row["params"]
            assert content["shared"][found["environment"]] == row["environment"]
            assert found["ap"] == [round(100 * value) for value in row["ap"]]


def test_a_page_is_the_same_however_its_islands_were_deflated():
    """zlib-ng, which some Pythons are built with, gives other bytes of the same text."""
    page = '<p>a</p><script type="text/plain" id="data-x">{}</script><script>one</script>'
    value = {"rows": [0.25] * 500}
    weak = base64.b64encode(zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)).decode()
    strong = str(island(value))
    assert weak != strong and same_page(page.format(weak), page.format(strong))
    assert not same_page(page.format(weak), page.format(island({"rows": [0.5] * 500})))
    assert not same_page(page.format(weak), page.format(strong).replace("one", "two"))
    for damaged in (strong[:-8], strong[4:], base64.b64encode(b"x").decode(), "x"):
        assert not same_page(page.format(damaged), page.format(strong))


def _allowed(tame):
    """Elements with their attributes that the templates have, some only where a value is a link."""
    links = {("a", "href"), ("a", "rel"), ("a", "title"), ("td", "data-v"), ("td", "class"), ("code", "class")}
    return {(tag, name) for tag, name, _ in tame.attributes} | links


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_harmless_values_stay(value):
    once = harmless(value)
    assert harmless(once) == once
    json.dumps(once, allow_nan=False).encode()


def test_harmless_clips_and_cuts():
    assert len(harmless("x" * 50_000_000)) == 2000
    assert harmless(10**5000) is None
    nested = []
    for _ in range(500):
        nested = [nested]
    json.dumps(harmless(nested))
    assert harmless("a\tb\x00c\u202ed\ud800") == "a b\ufffdc\ufffdd\ufffd"


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("Ben-Baruch et al., CVPR 2022, arXiv 2110.10955", "https://arxiv.org/abs/2110.10955"),
        ("arXiv:2009.14119v2", "https://arxiv.org/abs/2009.14119"),
        ("2009.14119", "https://arxiv.org/abs/2009.14119"),
        ("https://example.org/a?b=c#d", "https://example.org/a?b=c#d"),
        ("javascript:alert(1)", None),
        (" javascript:alert(1)", None),
        ('https://example.org/"onclick="x', None),
        ("https://example.org/ x", None),
        ("//example.org", None),
        ("https://user@example.org", None),
        ("Kim et al., CVPR 2022", None),
        ("", None),
        (None, None),
    ],
)
def test_references_become_links(text, link):
    assert reference_link(text) == link


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("methods/selective.py", "../methods/selective.py"),
        ("../x.py", None),
        ("/etc/passwd", None),
        ("a//b", None),
        ("javascript:x", None),
        ("methods/.git/x", None),
        ("x y.py", None),
        (None, None),
    ],
)
def test_files_become_links(path, link):
    assert file_link(path, "../") == link


def test_size_of_two_thousand_rows(crowd):
    small, large = (len(render_page(crowd(number))) for number in (1000, 2000))
    assert large - small < 3000 * 1000  # bytes for each row, its 56 classes included
    assert large < 6_000_000


# ---- in a browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Opens boards from a file; afterwards there must have been no console error and no request beyond the file."""
    contexts, complaints, requests = [], [], []

    def open_page(boards, fragment="", **options):
        path = tmp_path / "index.html"
        path.write_text(render_page(boards), encoding="utf-8")
        context = browser.new_context(**{"viewport": {"width": 1440, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type != "log" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: requests.append(request.url))
        if options.get("java_script_enabled", True):
            page.goto = functools.partial(_unpacked, page, page.goto)
        page.goto(f"{path.as_uri()}{fragment}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []
    assert {url.partition("#")[0] for url in requests} <= {(tmp_path / "index.html").as_uri(), "data:,"}


def _unpacked(page, goto, address):
    goto(address)
    if address != "about:blank":
        page.wait_for_selector("html[data-unpacked]", state="attached")


def shown(page, table="scenes-fpc300.default"):
    return page.locator(f'table[data-key="{table}"] tbody.main tr').evaluate_all(
        "rows => rows.map(row => row.cells[1].firstChild.textContent)"
    )


def head(page, name, table="scenes-fpc300.default"):
    return page.locator(f'table[data-key="{table}"] th[data-key="{name}"]')


def test_sorting(boards, visit):
    page = visit(boards)
    given = shown(page)
    worst_first = [row["label"] for row in sorted(_main(boards), key=lambda row: row["figures"]["map_c"]["mean"])]
    head(page, "map_c").locator("button").click()
    assert head(page, "map_c").get_attribute("aria-sort") == "descending"
    assert shown(page) == worst_first[::-1]
    head(page, "map_c").locator("button").focus()
    page.keyboard.press("Enter")
    assert head(page, "map_c").get_attribute("aria-sort") == "ascending"
    assert shown(page) == worst_first
    link = page.url
    page.keyboard.press("Space")
    assert head(page, "map_c").get_attribute("aria-sort") == "none"
    assert shown(page) == given
    page.goto("about:blank")
    page.goto(link)
    assert shown(page) == worst_first
    page.goto(link + "&sort=scenes-fpc300.default:nothing:ascending")  # a link to what is no more
    assert shown(page) == given


def _main(boards):
    return [row for row in boards[0]["sections"][0]["rows"] if not row["ceiling"] and row["withdrawn"] is None]


def test_every_column_sorts(boards, visit):
    page = visit(boards)
    for name in page.locator("table[data-key] th[data-key]").evaluate_all("heads => heads.map(h => h.dataset.key)"):
        button = page.locator(f'th[data-key="{name}"] button').first
        button.click()
        cells = page.evaluate(
            """name => { const head = document.querySelector(`th[data-key="${name}"]`);
            return [...head.closest('table').tBodies[0].rows].map(row => row.cells[head.cellIndex])
              .map(cell => cell.dataset.v ?? cell.textContent.trim()); }""",
            name,
        )
        known = [cell for cell in cells if cell and cell != "–"]
        if name not in ("method", "tier", "backbone", "source"):
            known = [
                float(re.search(r"-?[\d.]+", cell.replace("−", "-").replace(",", ""))[0])
                for cell in known
                if cell != "best"
            ]
        assert known in (sorted(known), sorted(known, reverse=True)), name
        assert cells[: len(known)] == [cell for cell in cells if cell and cell not in ("–", "best")]  # blanks are last


def test_filters(boards, visit):
    page = visit(boards)
    count = page.locator("#count")
    assert count.text_content() == "33 rows"
    page.fill("[name=q]", "selective")
    page.locator("#count", has_text="7 of 33 rows").wait_for()
    page.select_option("[name=tier]", "published")
    page.locator("#count", has_text="1 of 33 rows").wait_for()
    assert page.locator(".board:visible").count() == 1
    link = page.url
    page.click("#filters [type=reset]")
    assert count.text_content() == "33 rows"
    page.goto("about:blank")
    page.goto(link)
    assert count.text_content() == "1 of 33 rows"
    assert page.input_value("[name=q]") == "selective"
    page.goto(link.partition("#")[0] + "#dataset=scenes&regime=probe&backbone=tf_efficientnet_lite0&tier=verified")
    assert count.text_content() == "6 of 33 rows"
    page.click("#boards a:text('RPA-0.5')")
    assert count.text_content() == "2 of 33 rows"
    assert page.locator("#boards a[aria-current]").text_content() == "Scenes, RPA-0.5"
    page.click("#all-boards")
    assert count.text_content() == "6 of 33 rows"
    page.focus(".skip")
    page.keyboard.press("Enter")
    page.goto(link.partition("#")[0] + "#reading")
    assert count.text_content() == "6 of 33 rows"  # an ordinary place on the page is no state


def test_class_by_class(boards, visit):
    page = visit(boards)
    page.click("#board\\=scenes-fpc300 [data-classes]")
    page.select_option(".classes [name=a]", "selective-0")
    page.select_option(".classes [name=b]", "ce-ignore-0")
    rows = {row["id"]: row for row in boards[0]["sections"][0]["rows"]}
    gaps = [
        round(100 * a) - round(100 * b)
        for a, b in zip(rows["selective-0"]["ap"], rows["ce-ignore-0"]["ap"], strict=True)
    ]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    total = page.locator(".totals tbody tr").first.locator("td").all_text_contents()
    assert total[:4] == ["56", str(wins), str(losses), str(56 - wins - losses)]
    assert float(total[4].replace("−", "-")) == pytest.approx(sum(gaps) / 5600, abs=0.006)
    assert f"ahead in {wins} classes" in page.text_content(".classes .summary")
    assert page.locator(".scatter circle").count() == 56
    assert page.locator(".scatter circle.first").count() == wins
    page.locator(".classes .tall").evaluate("block => block.scrollTo(0, block.scrollHeight)")
    page.locator(".list tbody tr").nth(55).wait_for()
    shown_gaps = page.locator(".list tbody tr td:last-child").all_text_contents()
    assert [round(100 * float(gap.replace("−", "-"))) for gap in shown_gaps] == sorted(gaps, reverse=True)
    head(page, "positives", "classes").locator("button").click()
    first = page.locator(".list tbody tr").first.locator("th").text_content()
    assert first == "object 0"
    link = page.url
    page.goto("about:blank")
    page.goto(link)
    assert page.locator(".list tbody tr").first.locator("th").text_content() == first
    assert page.input_value(".classes [name=b]") == "ce-ignore-0"
    page.click(".classes .close")
    assert page.locator(".classes").count() == 0
    assert page.evaluate("document.activeElement.textContent") == "Two methods, class by class"


def test_details(boards, visit):
    page = visit(boards)
    page.locator(".more").nth(1).click()
    text = page.text_content("#details")
    for expected in ("gamma_neg", "optimizer.name", "adamw", "2.9.0", "1f0c3b8e", "95 % interval"):
        assert expected in text
    link = page.url
    page.keyboard.press("Escape")
    assert not page.locator("#details").is_visible()
    page.wait_for_url(lambda url: "row" not in url)
    assert page.evaluate("document.activeElement.className") == "more"
    page.goto("about:blank")
    page.goto(link)
    assert page.locator("#details").is_visible()
    page.click("#details-body button")
    assert page.locator(".classes").is_visible()


def test_light_and_dark(boards, visit):
    page = visit(boards)
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.click("#theme")
    dark = page.evaluate(paper)
    assert dark != light
    assert visit(boards, color_scheme="dark").evaluate(paper) == dark
    page.reload()
    assert page.evaluate(paper) == dark
    page.emulate_media(media="print")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.emulate_media(media="screen")
    page.click("#theme")
    assert page.evaluate(paper) == light


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_accessible_and_not_wider_than_the_window(boards, visit, scheme, width):
    pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    page = visit(boards, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    for fragment in (
        "",
        "#board=scenes-fpc300&a=selective-0&b=ce-ignore-0",
        "#row=scenes-fpc300:selective-0",
        "#q=nothing",
    ):
        page.goto(page.url.partition("#")[0] + fragment)
        found = Axe().run(page).response["violations"]
        serious = [(each["id"], [node["html"] for node in each["nodes"][:2]]) for each in found]
        assert serious == []
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_two_thousand_rows(crowd, visit):
    page = visit(crowd(2000))
    assert page.text_content("#count") == "2,000 rows"
    assert len(shown(page)) == 50
    head(page, "map_c").locator("button").click()
    page.fill("[name=q]", "run 1999")
    page.locator("#count", has_text="1 of 2,000 rows").wait_for()
    assert shown(page)[0].endswith("run 1999")
    page.click("#filters [type=reset]")
    page.locator(".rest button").first.evaluate("button => button.click()")  # a pointer that comes near makes it move
    labels = shown(page)
    assert len(labels) == 2000
    assert (
        labels[0]
        == max(crowd(2000)[0]["sections"][0]["rows"], key=lambda row: row["figures"]["map_c"]["mean"])["label"]
    )


def test_growth_and_print(crowd, visit):
    page = visit(crowd(300))
    page.locator(".tall").first.evaluate("block => block.scrollTo(0, block.scrollHeight)")
    page.locator("tbody tr").nth(149).wait_for()
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert len(shown(page)) == 300
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.querySelector('.tall')).maxHeight") == "none"
    assert not page.locator("#filters").is_visible()


def test_without_script(crowd, visit):
    page = visit(crowd(120), java_script_enabled=False)
    assert page.locator("tbody tr:visible").count() == 120
    assert not page.locator("#filters").is_visible()
    assert page.locator(".more:visible").count() == 0


def test_hostile_values_do_nothing(boards, visit):
    page = visit(hostile(boards, NASTY))
    for opener in page.locator(".more").all()[:6]:
        opener.click()
        page.keyboard.press("Escape")
    page.locator("[data-classes]").first.click()
    page.fill("[name=q]", NASTY[1])
    page.wait_for_timeout(200)
    assert page.evaluate("window.pwned") is None
    for text in ("#board=__proto__&a=x", "#sort=constructor:a:b&row=a:b", "#%00=%ff&theme=<x>", "#board=x&a=<script>"):
        page.goto(page.url.partition("#")[0] + text)
        assert page.evaluate("window.pwned") is None
