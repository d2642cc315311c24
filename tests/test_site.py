"""The documentation site is whole: it builds without a warning, its links lead somewhere, and it needs no network."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

TOP = Path(__file__).parents[1]


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loads, self.places = [], [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        said = dict(attrs)
        self.places |= {said[name] for name in ("id", "name") if said.get(name)}
        if tag == "a" and said.get("href"):
            self.links.append(said["href"])
        if said.get("src"):
            self.loads.append(said["src"])
        if tag == "link" and said.get("rel") in ("stylesheet", "icon", "preconnect"):
            self.loads.append(said["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    for name in ("material", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(name, reason="pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html") if path.name != "404.html"}  # whose links start at /


def test_every_page_of_the_folder_is_built(site):
    names = {path.stem for path in (TOP / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} - {"404"} == names
    assert not list(site.rglob("*.py"))


def test_links_lead_to_places_that_exist(site, pages):
    count = 0
    for path, page in pages.items():
        for link in page.links + page.loads:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file() and target.is_relative_to(site), f"{path.name}: {link}"
            if target in pages and path.parent == site:  # the boards' script knows further places of its own
                assert unquote(parts.fragment) in pages[target].places, f"{path.name}: {link}"
            count += 1
    assert count > 1000


def test_nothing_is_loaded_from_elsewhere(site, pages):
    loads = [link for page in pages.values() for link in page.loads]
    assert [link for link in loads if urlsplit(link).scheme not in ("", "data")] == []
    style = (site / "assets" / "site.css").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(['\"]?https?:", style)


def test_links_to_files_of_the_repository_lead_to_copies(site):
    assert 'href="source/plbench/metrics/statistics.py.txt"' in (site / "statistics.html").read_text(encoding="utf-8")
    original = (TOP / "plbench" / "metrics" / "statistics.py").read_text(encoding="utf-8")
    copy = site / "source" / "plbench" / "metrics" / "statistics.py.txt"
    assert copy.read_text(encoding="utf-8") == original
    assert 'href="boards/index.html#board=ucm17-fpc30"' in (site / "photographs.html").read_text(encoding="utf-8")


def test_notebooks_are_pages_with_what_their_cells_show(site):
    text = (site / "notebooks" / "own-data.html").read_text(encoding="utf-8")
    assert "<th>map_c</th>" in text and "CE, Ignore has the highest mAP(C)" in text
    pictures = re.findall(r'src="(own-data-[\d-]+\.png)"', text)
    assert len(pictures) == 2 and all((site / "notebooks" / name).stat().st_size > 1000 for name in pictures)
    assert (site / "notebooks" / "own-data.ipynb").is_file() and 'href="../your-own-data.html"' in text
    assert "<math" in (site / "notebooks" / "own-loss.html").read_text(encoding="utf-8")


def test_every_method_has_its_parameters(site):
    text = (site / "methods" / "parameters.html").read_text(encoding="utf-8")
    assert 'id="selective"' in text and "<code>top_k</code>" in text and "arxiv.org/abs/2110.10955" in text
    assert text.count("<h2") >= 40


def test_formulas_are_rendered(site):
    text = (site / "metrics.html").read_text(encoding="utf-8")
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == 3
    assert "$`" not in text and "\\frac" not in text


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


def test_search_works_from_a_folder(site, browser):
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((site / "index.html").as_uri())
    page.fill("input[name=query]", "wrong negatives")
    page.locator(".md-search-result__link").first.wait_for()
    assert any(
        "photographs.html" in link.get_attribute("href") for link in page.locator(".md-search-result__link").all()
    )
    assert not [url for url in requests if url.startswith("http")]
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
def test_accessible_and_not_wider_than_the_window(site, browser, scheme, width):
    pytest.importorskip("axe_playwright_python")
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce"
    )
    for name in ("index", "concepts", "metrics", "methods", "python", "results", "notebooks/own-data"):
        page = context.new_page()
        page.goto((site / f"{name}.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        found = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
        assert [(each["id"], [node["html"] for node in each["nodes"][:2]]) for each in found] == [], name
        page.close()
    context.close()
