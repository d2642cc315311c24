"""What the site needs beyond mkdocs: files from outside docs/, links to them, formulas, and notebooks as pages."""

import base64
import re
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from plbench.cli.display.catalogue import describe_method
from plbench.runs.registry import Registry

TOP = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()\.\./([^)#\s]+)")
BOARD = re.compile(r"leaderboards/(?:([\w.-]+)/)?(?:README\.md|index\.html)")
NOTEBOOK = re.compile(r"(?<=\]\()((?:notebooks/)?[\w-]+)\.ipynb")
DATA_FRAME = re.compile(r"<style.*?</style>|(?: border| class| style)=\"[^\"]*\"|(?<=\n)\s+", flags=re.S)  # looks
METHOD_LINK = re.compile(r'"\.\./(methods/\w+\.py)"')


def source_path(path: str) -> str:
    """Return where the site keeps a copy of a repository file: with a suffix that every server calls plain text."""
    return f"source/{path}.txt"


def boards_page() -> str:
    """Return the page of the leaderboards, whose links to methods lead to the site's copies."""
    text = (TOP / "leaderboards" / "index.html").read_text(encoding="utf-8")
    return METHOD_LINK.sub(lambda link: f'"../{source_path(link[1])}"', text)


def linked_files(docs: Path) -> set[str]:
    """Return the repository files outside docs/ that pages or the boards link to, boards themselves apart."""
    pages = [path.read_text(encoding="utf-8") for path in docs.glob("*.md")]
    targets = {target for text in pages for target in LINK.findall(text) if not BOARD.fullmatch(target)}
    return targets | set(re.findall(r'"\.\./source/(methods/\w+\.py)\.txt"', boards_page()))


def output_of(output: nbformat.NotebookNode) -> tuple[str, bytes | None]:
    """Return what a cell shows as Markdown, with the bytes of the picture that it names, if it is one."""
    data = {"text/plain": output.text} if output.output_type == "stream" else output.data
    if "image/png" in data:
        return "![Output of the cell above]({picture})", base64.b64decode(data["image/png"])
    if "text/html" in data:
        table = re.sub(
            r"<style.*?</style>| border=\"1\"| class=\"dataframe\"| style=\"[^\"]*\"", "", data["text/html"], flags=re.S
        )
        return re.sub(r"\n\s*", "\n", table), None
    return f"```{{.text .output}}\n{data['text/plain'].rstrip()}\n```", None


def notebook_pages(path: Path) -> dict[str, str | bytes]:
    """Return the page of a notebook with what its cells show, and its pictures, by path in the site."""
    made: dict[str, str | bytes] = {}
    parts = [f"[This page as a notebook]({path.name})"]
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            text = NOTEBOOK.sub(r"\1.md", cell.source)
            text = re.sub(r"^\$\$\n(.*?)^\$\$$", r"```math\n\1```", text, flags=re.M | re.S)
            parts.append(re.sub(r"\$([^$`\n]+)\$", r"$`\1`$", text))
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.outputs):
            text, picture = output_of(output)
            name = f"{path.stem}-{number}-{place}.png"
            parts.append(text.replace("{picture}", name))
            if picture is not None:
                made[f"notebooks/{name}"] = picture
    parts[:2] = parts[1::-1]  # the heading first
    return {f"notebooks/{path.stem}.md": "\n\n".join(parts), **made}


def parameters_page() -> str:
    """Return a page with every method that is installed: its source, description and parameters."""
    registry = Registry.discover()
    parts = ["# Parameters of all methods", "Generated from the registry: what `plbench methods show NAME` prints."]
    for name in registry.names("method"):
        method = describe_method(registry, name)
        paper = re.sub(r"arXiv (\d+\.\d+)", r"[arXiv \1](https://arxiv.org/abs/\1)", method["paper"])
        about = [f"`{name}`, version {method['version']}", paper]
        about += [f"Needs: {', '.join(method['needs'])}"] if method["needs"] else []
        about += [f"Tags: {', '.join(method['tags'])}"] if method["tags"] else []
        parts += [f"## {method['title']} {{#{name}}}", ". ".join(about) + ".", method["about"]]
        columns = ("name", "default", "valid", "searched", "what")
        rows = [["`" + each["name"] + "`", *(each[column] for column in columns[1:])] for each in method["params"]]
        cells = [["–" if value is None else str(value).replace("|", "\\|") for value in row] for row in rows]
        lines = ["| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *cells)]
        parts.append("\n".join(lines) if rows else "It has no parameters.")
    return "\n\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the boards' page, methods' parameters, the files that something links to, and the pages of notebooks."""
    files.append(File.generated(config, "methods/parameters.md", content=parameters_page()))
    for notebook in sorted((Path(config.docs_dir) / "notebooks").glob("*.ipynb")):
        for path, made in notebook_pages(notebook).items():
            files.append(File.generated(config, path, content=made))
    files.append(File.generated(config, "boards/index.html", content=boards_page()))
    for path in sorted(linked_files(Path(config.docs_dir))):
        files.append(File.generated(config, source_path(path), content=(TOP / path).read_text(encoding="utf-8")))
    return files


def site_link(link: re.Match[str]) -> str:
    """Return where a link that leaves docs/ leads in the site."""
    if board := BOARD.fullmatch(link[1]):
        return "boards/index.html" + (f"#board={board[1]}" if board[1] else "")
    return source_path(link[1])


def mathml(formula: str, display: str = "inline") -> str:
    """Return a formula in LaTeX as MathML, which browsers draw without a script."""
    return re.sub(r"<mi>log</mi>(?!<mo)", r'\g<0><mspace width="0.17em"/>', convert(formula, display=display))


def block_formula(fence: re.Match[str]) -> str:
    """Return one of GitHub's fences of mathematics as a block of its own."""
    return f'<div class="formula">{mathml(fence[1], "block")}</div>'


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Point links at copies, render formulas, and inline drawings, which then follow the page's colours."""
    if not page.file.src_uri.startswith(("notebooks/", "methods/")):
        markdown = LINK.sub(site_link, markdown)
        markdown = NOTEBOOK.sub(r"\1.md", markdown)
    markdown = re.sub(r"^```math\n(.*?)^```$", block_formula, markdown, flags=re.M | re.S)
    markdown = re.sub(r"\$`(.+?)`\$", lambda span: mathml(span[1]), markdown)
    folder = Path(page.file.abs_src_path or "").parent
    return re.sub(
        r"^!\[.*\]\((assets/[\w-]+\.svg)\)$",
        lambda image: f'<figure class="drawing">\n{(folder / image[1]).read_text(encoding="utf-8")}</figure>',
        markdown,
        flags=re.M,
    )


def on_post_page(output: str, **_: Any) -> str:
    """Name the theme's search dialog, which has no name of its own, for screen readers."""
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )
