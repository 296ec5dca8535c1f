"""The verbs: parse, one call, print."""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from nightloom import __version__, pipeline
from nightloom.cli import answers, show, upkeep, watching
from nightloom.config import CONFIG_NAME, Config, load_config
from nightloom.engine.cluster import Engine
from nightloom.errors import ExitCode, NightloomError
from nightloom.monitor import monitoring
from nightloom.synth.archive import write_archive
from nightloom.synth.truth import SynthSpec

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Turn archives of raw CCD frames into light curves.",
    epilog="Start with: nightloom demo",
)
_state = {"debug": False}

ConfigFile = Annotated[
    Path | None, typer.Argument(help=f"configuration; {CONFIG_NAME} here, if not given")
]
ConfigOption = Annotated[Path | None, typer.Option("--config", "-c", help="the same, as an option")]
Cluster = Annotated[
    str | None,
    typer.Option(
        help="a file such as cluster/slurm.toml, an address tcp://..., a scheduler.json, or serial"
    ),
]
Products = Annotated[
    list[str] | None, typer.Argument(help="products' ids, as status shows them; all, if none")
]
OnlyConfig = Annotated[Path | None, typer.Option("--config", "-c", help=f"{CONFIG_NAME} here")]
AsJson = Annotated[bool, typer.Option("--json", help="answer in JSON")]


def _version(value: bool) -> None:
    if value:
        show.line(f"nightloom {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    debug: Annotated[bool, typer.Option(help="show tracebacks")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="say the version")
    ] = False,
) -> None:
    _state["debug"] = debug


@app.command()
def init(
    frames: Annotated[list[str], typer.Argument(help="folders or globs with FITS files")],
    config: Annotated[Path, typer.Option("--config", "-c")] = Path(CONFIG_NAME),
) -> None:
    """Write a configuration to start from. Example: nightloom init /data/2024"""
    answers.write_config(config, frames)
    show.line(f"wrote {config}; next: nightloom plan")


@app.command()
def scan(config: ConfigFile = None, config_option: ConfigOption = None, cluster: Cluster = None,
         json: AsJson = False) -> None:  # fmt: skip
    """Read the headers of new and changed files. Example: nightloom scan night.toml"""
    with _run(config or config_option, cluster) as run:
        result = pipeline.scan(run)
    answers.scanned(result, as_json=json)


@app.command()
def plan(
    config: ConfigFile = None, config_option: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="what a run would make, its bytes and core-hours")
    ] = False,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Show nights, masters and what is missing; changes nothing. Example: nightloom plan"""
    loaded = _load(config or config_option)
    if dry_run:
        upkeep.dry_run(loaded, as_json=json)
    else:
        answers.planned(loaded, as_json=json)


@app.command()
def reduce(config: ConfigFile = None, config_option: ConfigOption = None,
           cluster: Cluster = None) -> None:  # fmt: skip
    """Masters, references and the nights' cubes. Example: nightloom reduce"""
    _stages(config or config_option, cluster, pipeline.reduce)


@app.command()
def gather(config: ConfigFile = None, config_option: ConfigOption = None,
           cluster: Cluster = None) -> None:  # fmt: skip
    """Join nights, weigh comparisons, write light curves. Example: nightloom gather"""
    _stages(config or config_option, cluster, pipeline.gather)


@app.command()
def report(config: ConfigFile = None, config_option: ConfigOption = None,
           cluster: Cluster = None) -> None:  # fmt: skip
    """Pages with the plots of each target and night. Example: nightloom report"""
    _stages(config or config_option, cluster, pipeline.report)


@app.command()
def run(
    config: ConfigFile = None, config_option: ConfigOption = None, cluster: Cluster = None,
    profile: Annotated[Path | None, typer.Option(help="write Dask's performance report (HTML)")]
    = None,
) -> None:  # fmt: skip
    """Scan, plan, reduce, gather, report: all that is not there yet. Example: nightloom run"""
    _stages(
        config or config_option, cluster, pipeline.reduce, pipeline.gather, pipeline.report,
        with_scan=True, profile=profile,
    )  # fmt: skip


@app.command()
def status(
    config: ConfigFile = None, config_option: ConfigOption = None, json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="follow the run that goes on")] = False,
    html: Annotated[Path | None, typer.Option(help="write the page of all nights")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="where the time of a run went")] = False,
    run: Annotated[str | None, typer.Option(help="the run of --trace; the last, if not given")]
    = None,
) -> None:  # fmt: skip
    """Products by state and frames by theirs. Example: nightloom status --json"""
    loaded = _load(config or config_option)
    if watch:
        _watch(loaded)
    elif html is not None:
        answers.write_page(loaded, html)
    elif trace:
        answers.trace(loaded, run, as_json=json)
    else:
        answers.status(loaded, as_json=json)


def _watch(config: Config) -> None:
    try:
        watching.watch(config)
    except KeyboardInterrupt:
        raise typer.Exit(ExitCode.INTERRUPTED) from None


@app.command()
def frames(
    config: ConfigFile = None, config_option: ConfigOption = None,
    state: Annotated[str, typer.Option(help="only frames of this state")] = "",
    json: AsJson = False,
) -> None:  # fmt: skip
    """List frames with state and reason. Example: nightloom frames --state quarantined"""
    answers.frames(_load(config or config_option), state=state, as_json=json)


@app.command()
def explain(
    product: Annotated[str, typer.Argument(help="a product's id, as status shows it")],
    config: Annotated[Path | None, typer.Option("--config", "-c")] = None,
    json: AsJson = False,
) -> None:
    """Say why a product would be made again. Example: nightloom explain cube/M13/2024-05-01/R"""
    answers.explain(_load(config), product, as_json=json)


@app.command()
def doctor(config: ConfigFile = None, config_option: ConfigOption = None, cluster: Cluster = None,
           json: AsJson = False) -> None:  # fmt: skip
    """Check all before a long run. Example: nightloom doctor --cluster cluster/slurm.toml"""
    loaded = _load(config or config_option)
    with Engine(cluster, logs=loaded.products_path / "logs") as engine:
        healthy = answers.doctor(loaded, engine, as_json=json)
    if not healthy:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
def verify(
    products: Products = None, config: OnlyConfig = None, cluster: Cluster = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="set aside what is damaged: run makes it again")
    ] = False,
    json: AsJson = False,
) -> None:  # fmt: skip
    """Read every byte and name what is lost or damaged. Example: nightloom verify"""
    root = _load(config).products_path
    with Engine(cluster) as engine:
        is_well = upkeep.verify(engine, root, products or [], take_away=forget, as_json=json)
    if not is_well:
        raise typer.Exit(ExitCode.SOME_FAILED)


@app.command()
def retry(
    products: Products = None, config: OnlyConfig = None, cluster: Cluster = None,
    failed: Annotated[bool, typer.Option("--failed", help="all that failed, or of those named")]
    = False,
) -> None:  # fmt: skip
    """Try again what failed with the same inputs, then go on. Example: nightloom retry --failed"""
    tried = upkeep.failures(_load(config).products_path, products or [], all_failed=failed)
    show.line(f"tried again: {', '.join(tried) or 'nothing failed'}")
    if tried:
        _stages(config, cluster, pipeline.reduce, pipeline.gather, pipeline.report)


@app.command()
def gc(
    config: OnlyConfig = None,
    keep: Annotated[
        int, typer.Option(min=0, help="old versions to keep of each product, the newest")
    ] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    orphans: Annotated[
        bool, typer.Option("--orphans", help="also products that the plan does not want")
    ] = False,
    json: AsJson = False,
) -> None:
    """Remove old versions and what dead runs left. Example: nightloom gc --keep 1 --dry-run"""
    root = _load(config).products_path
    upkeep.gc(root, keep=keep, with_orphans=orphans, dry_run=dry_run, as_json=json)


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="folder to write into")],
    nights: Annotated[int, typer.Option(min=1)] = 3,
    frames_per_night: Annotated[int, typer.Option("--frames", min=1)] = 60,
    fields: Annotated[int, typer.Option(min=1)] = 1,
    filters: Annotated[str, typer.Option(help="comma between them")] = "R",
    size: Annotated[str, typer.Option(help="width x height in pixels")] = "500x400",
    stars: Annotated[int, typer.Option(min=1)] = 120,
    seed: Annotated[int, typer.Option()] = 1,
    processes: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Write a synthetic archive with known truth. Example: nightloom synth sky --nights 2"""
    nx, ny = answers.size(size)
    spec = SynthSpec(
        n_fields=fields, filters=tuple(filters.split(",")), n_nights=nights,
        frames_per_night=frames_per_night, ny=ny, nx=nx, n_stars=stars, seed=seed,
    )  # fmt: skip
    path = write_archive(folder, spec, n_processes=processes)
    show.line(f"wrote {path}; next: nightloom run {path}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="folder to write into")] = Path("demo"),
    cluster: Cluster = None,
) -> None:
    """Make a small archive and run all of it. Example: nightloom demo"""
    path = folder / CONFIG_NAME
    if not path.exists():
        write_archive(folder, SynthSpec(), n_processes=2)
    _stages(path, cluster, pipeline.reduce, pipeline.gather, pipeline.report, with_scan=True,
            leave=False)  # fmt: skip
    answers.demo(load_config(path))


def _load(path: Path | None) -> Config:
    return load_config(path or Path(CONFIG_NAME))


@contextmanager
def _run(
    path: Path | None, cluster: str | None, profile: Path | None = None
) -> Iterator[pipeline.Run]:
    """A run whose engine is closed at its end, with progress drawn meanwhile."""
    config = _load(path)
    watch = show.Watch()

    def announce(link: str) -> None:
        watch.say(show.dashboard(link))

    logs = config.products_path / "logs"
    try:
        with (
            Engine(cluster, announce=announce, profile=profile, logs=logs) as engine,
            pipeline.Run(config, engine, watch) as made,
            watch.drawing(),
            monitoring(made, say=watch.say),
        ):
            try:
                yield made
            except KeyboardInterrupt:
                made.log("interrupted")
                raise
            except BaseException:
                made.log("broken off:\n" + traceback.format_exc())
                raise
    except KeyboardInterrupt:
        show.err.print("interrupted; all done so far is kept: run it again to go on")
        raise typer.Exit(ExitCode.INTERRUPTED) from None


def _stages(
    path: Path | None, cluster: str | None, *stages: Any, with_scan: bool = False,
    leave: bool = True, profile: Path | None = None,
) -> None:  # fmt: skip
    started = time.monotonic()
    with _run(path, cluster, profile) as run:
        scanned = answers.slim(pipeline.scan(run)) if with_scan else None
        plan = pipeline.plan(run)
        upkeep.check_disk(run, plan)
        for stage in stages:
            stage(run, plan)
        if run.has_news:
            pipeline.keep_expected(run, plan)
    if scanned is not None:
        answers.scanned(scanned, as_json=False)
    show.outcome(run.outcome, time.monotonic() - started)
    if leave and run.outcome.exit_code != ExitCode.DONE:
        raise typer.Exit(run.outcome.exit_code)


def main() -> None:
    """One verb of the command line; its errors as a line and an exit code."""
    logging.getLogger("nightloom").addHandler(logging.NullHandler())
    try:
        app()
    except NightloomError as error:
        if _state["debug"]:
            traceback.print_exc()
        show.err.print(f"error: {error}", markup=False)
        sys.exit(error.exit_code)
