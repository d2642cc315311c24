"""`plbench board`: leaderboards."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from plbench.cli import completion
from plbench.cli import options as opt
from plbench.cli.once import CommandGroup
from plbench.cli.options import all_records, echo, emit, make_workspace, open_registry, open_store, say
from plbench.cli.wording import in_options
from plbench.errors import PlbenchError
from plbench.files.paths import in_home
from plbench.progress import counted

board_app = CommandGroup(
    help="Submit to leaderboards; check, build and publish them.", no_args_is_help=True, rich_markup_mode=None
)
Boards = Annotated[Path, typer.Option(envvar="PLBENCH_BOARDS", help="Folder of boards.", callback=in_home)]
BOARDS = Path("leaderboards")
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Names of boards; default: all.", autocompletion=completion.board_names),
]


@board_app.command("add")
def board_add(
    run: Annotated[
        list[str] | None, typer.Argument(help="Keys or folders of runs.", autocompletion=completion.run_keys)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Add all finished runs whose protocol has a board.")] = False,
    boards: Boards = BOARDS,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Add records of finished runs to the boards of their protocols."""
    from plbench.board.submit import add, asked_for

    if not run and not every:
        raise PlbenchError("which runs? give keys or folders, or --all; plbench runs list shows them")
    store = open_store(runs)
    found = asked_for(all_records(runs), boards) if every else [store.find(text) for text in run or ()]
    left_out = (lambda why: echo(f"left out: {why}", err=True)) if every else None
    rows = [{"board": board, "run": key} for board, key in add(found, boards, refused=left_out)]
    emit(rows, as_json, lambda: echo(f"{len(rows)} records added; plbench board build renders the tables"))


@board_app.command("new")
def board_new(
    name: Annotated[str, typer.Argument(help="Name of the board's folder.")],
    protocol: Annotated[str, typer.Option(help="An official protocol, such as scenes-fpc300/v2.")],
    title: Annotated[str, typer.Option()],
    about: Annotated[str, typer.Option(help="One sentence.")] = "",
    order: Annotated[int, typer.Option(min=0, help="Position on the page: lowest first, then by name.")] = 100,
    boards: Boards = BOARDS,
    plugin: opt.Plugins = None,
) -> None:
    """Create a board for a dataset's protocol."""
    from plbench.board.submit import found_board

    folder = found_board(boards, name, title, protocol, open_registry(plugin), about=about, order=order)
    echo(f"{folder.path}: protocol {folder.board.protocol}")


@board_app.command("verify")
def board_verify(
    name: Names = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Folder of runs, or of published cells, from whose scores every figure is recomputed."),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="With --cells: folder of the dataset's files; the cells must have its labels.")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Git commit since which no row may have changed, and with --cells none be new without cells; default "
            "of the former: HEAD."
        ),
    ] = None,
    boards: Boards = BOARDS,
    plugin: opt.Plugins = None,
    runs: opt.Runs = opt.RUNS,
    as_json: opt.AsJson = False,
) -> None:
    """Check all records; exit with 2 if one is refused, naming record and field."""
    from plbench.board.boards import open_boards
    from plbench.board.checks import verify_board
    from plbench.board.installed import Installed

    if data_root is not None and cells is None:
        raise PlbenchError(
            "--data-root compares the labels in the cells with the dataset's; add --cells, or leave it out"
        )
    given = {"plugin": plugin, "data_root": data_root, "runs": runs, "quiet": True}
    workspace = None if data_root is None else make_workspace(given)
    installed = Installed(open_registry(plugin))
    problems = [
        {"board": folder.board.name, **asdict(problem), "text": str(problem)}
        for folder in open_boards(boards, name or ())
        for problem in verify_board(
            folder,
            cells=cells,
            workspace=workspace,
            against=against,
            installed=installed,
            note=lambda text: echo(text, err=True),
        )
    ]
    if problems:
        emit(problems, as_json, lambda: echo("\n".join(f"{r['board']}: {r['text']}" for r in problems)))
        say(counted(len(problems), "problem"), 2)
        raise typer.Exit(2)
    emit([], as_json, lambda: echo("OK: no problems found"))


@board_app.command("fetch")
def board_fetch(
    to: Annotated[Path, typer.Option(help="Folder for the cells, as verify --cells takes it.", callback=in_home)],
    name: Names = None,
    kept: Annotated[
        str | None, typer.Option(help="Address below which archives are kept by their sha256, asked first.")
    ] = None,
    boards: Boards = BOARDS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Download the cells that submissions brought: the archives named in the boards' cells.sha256, unpacked."""
    from plbench.board.boards import open_boards
    from plbench.board.brought import LIST, fetch
    from plbench.cli.console import ConsoleReporter

    reporter = ConsoleReporter(quiet=quiet)
    archives: list[Path] = []
    for folder in open_boards(boards, name or ()):
        with reporter.task(f"Downloading the cells of {folder.board.name}", bytes=True) as report:
            archives += fetch(folder, to, report, kept=kept, note=reporter.line)

    def show() -> None:
        number = counted(len(archives), "archive")
        echo(f"{number} of cells; plbench board verify --cells {to}" if archives else f"no board has a {LIST}")

    emit([str(path) for path in archives], as_json, show)


@board_app.command("build")
def board_build(
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 2 if anything differs.")] = False,
    boards: Boards = BOARDS,
) -> None:
    """Build all tables and the page from the records."""
    from plbench.board import build

    files = build.build(boards)
    differing = build.differing(files) if check else build.write(boards, files)
    for path in differing:
        echo(f"{'differs' if check else 'written'}: {path}")
    if check and differing:
        raise PlbenchError(f"{len(differing)} built files differ from the records; plbench board build fixes them")
    if not differing:
        echo(f"all {len(files)} built files are up to date")


@board_app.command("show")
def board_show(name: Names = None, boards: Boards = BOARDS, as_json: opt.AsJson = False) -> None:
    """Print boards."""
    from plbench.board.boards import open_boards
    from plbench.board.rows import board_values
    from plbench.board.text import terminal_rows
    from plbench.cli.display import tables

    values = [board_values(folder) for folder in open_boards(boards, name or ())]

    def show() -> None:
        for board in values:
            echo(f"{board['title']} ({board['protocol']}, version {board['version']})")
            for section in board["sections"]:
                rows = terminal_rows(section, board["groups"])
                tables.print_rows(section["title"], rows, right=tuple(rows[0])[2:])
                echo("")
            if board["published"]:
                echo(f"{len(board['published'])} published rows: see {boards / board['name'] / 'README.md'}\n")

    emit(values, as_json, show)


@board_app.command("reproduce")
def board_reproduce(
    record: Annotated[str, typer.Argument(help="Key of a record on a board, or its folder.")],
    promote_by: Annotated[
        str | None, typer.Option("--promote", help="Mark the row as verified by this name, which is published.")
    ] = None,
    boards: Boards = BOARDS,
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    device: opt.Device = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run a record again and compare the results; with --promote, mark it as verified."""
    from plbench.board.boards import open_boards
    from plbench.board.reproduce import home_of, promote, reproduce
    from plbench.cli.display import tables

    given = {"plugin": plugin, "data_root": data_root, "device": device, "runs": runs, "quiet": quiet}
    folder, key = home_of(open_boards(boards), record)
    _, compared = reproduce(folder, key, make_workspace(given))
    rows = [asdict(comparison) for comparison in compared]
    emit(rows, as_json, lambda: tables.print_rows(f"record {key} and its repetition", rows))
    if not all(comparison.within for comparison in compared):
        first = next(comparison for comparison in compared if not comparison.within)
        raise PlbenchError(f"record {key} was not reproduced: {first.words}")
    if promote_by is not None:
        promote(folder, key, promote_by)
        echo("verified; plbench board build shows it", err=True)


@board_app.command("audit")
def board_audit(
    name: Names = None,
    sample: Annotated[int, typer.Option(min=1, help="Number of rows to run again.")] = 3,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of the sample; default: a random one.")] = None,
    boards: Boards = BOARDS,
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    device: opt.Device = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Run a random sample of rows again, one seed each; exit with 2 if one is not reproduced, or could not be run."""
    import secrets

    from plbench.board.audit import audit
    from plbench.board.boards import open_boards
    from plbench.cli.display import tables

    seed = secrets.randbelow(2**32) if seed is None else seed
    given = {"plugin": plugin, "data_root": data_root, "device": device, "runs": runs, "quiet": quiet}
    found = [
        replace(one, why=in_options(one.why))
        for one in audit(open_boards(boards, name or ()), sample, seed, make_workspace(given))
    ]

    def show() -> None:
        said = {True: "yes", False: "no", None: None}
        rows = [
            {"board": one.board, "record": one.key, "row": one.row, "seed": one.seed, "reproduced": said[one.within]}
            for one in found
        ]
        tables.print_rows(f"{counted(len(found), 'row')} run again, drawn by --seed {seed}", rows)
        for one in found:
            if not one.within:
                echo(f"record {one.key}: {one.why}")

    emit({"seed": seed, "rows": [asdict(one) | {"within": one.within} for one in found]}, as_json, show)
    if failed := [one for one in found if one.within is False]:
        raise PlbenchError(f"{len(failed)} of {counted(len(found), 'row')} not reproduced, the first {failed[0].key}")
    if missing := [one for one in found if one.within is None]:
        raise PlbenchError(f"{len(missing)} of {counted(len(found), 'row')} could not be run here")


@board_app.command("withdraw")
def board_withdraw(
    key: Annotated[str, typer.Argument(help="Key of a record.")],
    why: Annotated[str, typer.Option(help="One sentence, shown on the board.")],
    boards: Boards = BOARDS,
) -> None:
    """Remove a record from the ranking. It stays in the ledger, with the reason."""
    from plbench.board.submit import withdraw

    echo(f"withdrawn from {', '.join(withdraw(key, why, boards))}; plbench board build shows it")


@board_app.command("sign")
def board_sign(
    name: Annotated[str, typer.Argument(help="Name of a board.", autocompletion=completion.board_names)],
    key: Annotated[Path, typer.Option(help="SSH key of a maintainer, such as ~/.ssh/id_ed25519.")],
    boards: Boards = BOARDS,
) -> None:
    """Sign a board's version, and what was verified and withdrawn, as a maintainer."""
    from plbench.board.boards import open_boards
    from plbench.board.signatures import sign

    (folder,) = open_boards(boards, [name])
    echo(f"signed: {sign(folder, key.expanduser())}")


@board_app.command("export")
def board_export(
    name: Annotated[
        str | None,
        typer.Argument(help="With --cells: board whose scores are written.", autocompletion=completion.board_names),
    ] = None,
    to: Annotated[Path | None, typer.Option(help="Folder for the site: the page with its tables.")] = None,
    cells: Annotated[
        Path | None, typer.Option(help="Folder for the scores behind a board: Parquet files with a dataset card.")
    ] = None,
    sources: Annotated[
        str | None, typer.Option(help="With --to: address of the repository's files, for links to methods.")
    ] = None,
    boards: Boards = BOARDS,
    plugin: opt.Plugins = None,
    data_root: opt.DataRoot = None,
    runs: opt.Runs = opt.RUNS,
    quiet: opt.Quiet = False,
    as_json: opt.AsJson = False,
) -> None:
    """Write boards as a static site (--to), or the scores behind one board for others to compute metrics (--cells).

    The site has workflows that build it and check submissions. The scores are those at known cells, for every record
    whose run is in the runs folder; records without scores are listed.
    """
    if (to is None) == (cells is None):
        raise PlbenchError("give --to DIR for the site, or BOARD --cells DIR for the scores behind a board")
    if to is not None:
        from plbench.board.publish import export

        if name is not None:
            raise PlbenchError(f"--to writes all boards; leave {name!r} out, or give --cells DIR for its scores")
        written = [str(path) for path in export(boards, to, sources=sources)]
        emit(written, as_json, lambda: echo("\n".join(f"written: {path}" for path in written)))
        return
    assert cells is not None
    if name is None:
        raise PlbenchError(f"which board? plbench board export BOARD --cells {cells}; plbench board show lists them")
    if sources is not None:
        raise PlbenchError("--sources links the methods of the site; leave it out, or give --to DIR")
    from plbench.board.boards import open_boards
    from plbench.board.cells import export_cells

    (folder,) = open_boards(boards, [name])
    given = {"plugin": plugin, "data_root": data_root, "runs": runs, "quiet": quiet}
    found = export_cells(folder, cells, make_workspace(given))

    def show() -> None:
        for why in found.missing.values():
            echo(f"no cells: {why}")
        echo(
            f"Wrote {counted(found.num_cells, 'cell')} of {counted(len(found.files), 'run')} to {found.folder}; "
            f"{len(found.missing) or 'none'} of the board's {len(found.files) + len(found.missing)} records "
            "have no cells"
        )
        echo(f"Before you publish it: labels and image ids are under the dataset's licence: {found.licence}")

    emit(asdict(found), as_json, show)


@board_app.command("card")
def board_card(run: opt.Run, runs: opt.Runs = opt.RUNS) -> None:
    """Print a run as the model-index of a Hugging Face model card."""
    from plbench.board.publish import model_index
    from plbench.runs.stored import read_run

    echo(model_index(read_run(open_store(runs).find(run))), nl=False)
