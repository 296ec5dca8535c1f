"""The stages in order, each callable alone; the outcome of a run and its exit code.

Each stage reads what the one before wrote. What is published with the fingerprint that it would
get now is left alone. What could not be made with it is not tried again, unless the failure was
transient or a bug.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from nightloom import __version__, stages
from nightloom.config import Config
from nightloom.engine.cluster import Engine
from nightloom.engine.progress import Listed
from nightloom.engine.recipe import (
    Event,
    Failed,
    Finished,
    LogLine,
    Outline,
    Recipe,
    Started,
    TaskDone,
    written,
)
from nightloom.engine.task import TaskResult
from nightloom.errors import ExitCode, RunError
from nightloom.frames.scan import MapChunks, ScanResult, map_serially
from nightloom.frames.scan import scan as scan_frames
from nightloom.gather.exclude import names_in
from nightloom.plan.recipes import Plan, make_plan
from nightloom.reduce.cosmic import load_astroscrappy
from nightloom.reduce.networks import network_of
from nightloom.report.pages import page_recipes
from nightloom.schema.frames import FRAMES_SCHEMA_VERSION, completed, empty_frames
from nightloom.schema.trace import TaskKind
from nightloom.store.filesystem import require_file_system
from nightloom.store.fingerprint import digest_of
from nightloom.store.ledger import Expected, write_expected
from nightloom.store.products import (
    Attempt,
    kind_of,
    published_fingerprint,
    read_attempt,
    write_attempt,
)
from nightloom.store.tables import read_table, write_table
from nightloom.store.trace import TraceWriter
from nightloom.store.work import sweep

FRAMES = "frames.parquet"
Listener = Callable[[Event], None]


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    n_made: int = 0
    n_kept: int = 0
    n_empty: int = 0
    failed: dict[str, str] = field(default_factory=dict)  # product -> reason
    blocked: dict[str, str] = field(default_factory=dict)
    cloudy: dict[str, float] = field(default_factory=dict)  # cube -> fraction quarantined

    @property
    def exit_code(self) -> ExitCode:
        troubled = self.failed or self.blocked or self.cloudy
        return ExitCode.SOME_FAILED if troubled else ExitCode.DONE


class Run:
    """A run over an archive: its engine, its listener, and its one log file."""

    def __init__(self, config: Config, engine: Engine, listen: Listener) -> None:
        names_in(config.gather.exclude)  # refused here, not after hours of reduction
        if config.calibration.cosmic_rays:
            load_astroscrappy()
        if config.photometry.ballet_weights:
            network_of(config.photometry.ballet_weights)
        self.config = config
        self.root = config.products_path
        self.engine = engine
        self.outcome = Outcome()
        self.id = datetime.now(UTC).strftime("%Y%m%dT%H%M%S") + f"-{os.getpid()}"
        self.log_path = self.root / "logs" / f"{self.id}.log"
        self.listeners = [listen]
        self.has_news = False  # something ended since the expected products were written
        self._started: dict[str, str] = {}
        self._trace = TraceWriter(self.root, self.id)
        require_file_system(self.root)
        try:
            self.log_path.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.root, error) from error
        self.log(f"nightloom {__version__} on {socket.gethostname()}, products in {self.root}")
        n_swept = sweep(self.root)
        if n_swept:
            self.log(f"removed {n_swept} folders of a run that was broken off")

    def log(self, text: str) -> None:
        """Append a line to the run's log."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        try:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(f"{now} {text}\n")
        except OSError as error:
            raise _cannot_write(self.log_path, error) from error

    def make(self, recipes: Iterable[Recipe | Outline]) -> None:
        """Make what is not there yet of one stage's products."""
        with closing(self.engine.make(self.root, self._due(recipes))) as events:
            for event in events:
                self._record(event)
                self._tell(event)

    def _due(self, recipes: Iterable[Recipe | Outline]) -> Iterator[Recipe]:
        for recipe in recipes:
            (expected,) = stages.expected_of([recipe], {})
            self._tell(Listed(recipe.product, expected))
            if published_fingerprint(self.root, recipe.product) == expected.fingerprint:
                self.outcome.n_kept += 1
            elif reason := self._hindered(recipe):
                self.outcome.blocked[recipe.product] = reason
                self.log(f"{recipe.product}: blocked: {reason}")
            elif not self._tried(recipe.product, expected.fingerprint):
                yield written(recipe)

    def map(
        self, function: Callable[[Any], Any], items: list[Any], *, kind: TaskKind,
        product: str = "",
    ) -> Iterator[TaskResult]:  # fmt: skip
        """A function over items on the engine; what each cost goes into the trace."""
        for result in self.engine.map(function, items, kind=kind, product=product):
            if result.record is not None:
                self._trace.add(result.record)
            yield result

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self._trace.close()

    def _tell(self, event: Event) -> None:
        for listen in self.listeners:
            listen(event)

    def _hindered(self, recipe: Recipe | Outline) -> str:
        for need in recipe.needs:
            if not published_fingerprint(self.root, need):
                attempt = read_attempt(self.root, need)
                why = attempt.reason if attempt is not None else "is not made"
                return f"{need}: {why}"
        return ""

    def _tried(self, product: str, fingerprint: str) -> bool:
        """Whether the same was tried before with an end that would be the same again."""
        attempt = read_attempt(self.root, product)
        if attempt is None or attempt.fingerprint != fingerprint:
            return False
        if attempt.outcome == "empty":
            self.outcome.n_empty += 1
            return True
        if attempt.outcome == "failed" and attempt.kind == "product":
            self.outcome.failed[product] = attempt.reason + " (tried before)"
            return True
        return False

    def _record(self, event: Event) -> None:
        match event:
            case LogLine(product=product, text=text):
                self.log(f"{product}: {text}")
            case Started(product=product, n_items=n):
                self._started[product] = datetime.now(UTC).isoformat(timespec="seconds")
                self.log(f"{product}: started" + (f", {n} frames" if n else ""))
            case Finished():
                self.has_news = True
                self._finished(event)
            case Failed(product=product, kind=kind, reason=reason, detail=detail):
                self.outcome.failed[product] = reason
                self.log(f"{product}: failed ({kind}): {reason}\n{detail}")
                self._attempt(event, "failed", kind=kind, reason=reason)
            case TaskDone(record=record):
                self._trace.add(record)

    def _finished(self, event: Finished) -> None:
        made = event.made
        if made.outcome == "empty":
            self.outcome.n_empty += 1
        else:
            self.outcome.n_made += 1
        share = made.n_quarantined / event.n_items if event.n_items else 0.0
        if share > self.config.run.max_quarantined:
            self.outcome.cloudy[event.product] = share
        caveats = f" ({'; '.join(made.caveats)})" if made.caveats else ""
        self.log(f"{event.product}: {made.outcome} {made.reason}{caveats} {event.seconds:.2f} s")
        self._attempt(
            event, made.outcome, reason=made.reason, caveats=made.caveats,
            n_quarantined=made.n_quarantined,
            n_killed=made.n_killed,
        )  # fmt: skip

    def _attempt(self, event: Finished | Failed, outcome: Any, **more: Any) -> None:
        attempt = Attempt(
            fingerprint=event.fingerprint,
            outcome=outcome,
            log=self.log_path.name,
            started=self._started.get(event.product, ""),
            seconds=round(event.seconds, 3),
            host=socket.gethostname(),
            run=self.id,
            n_items=event.n_items,
            **more,
        )
        write_attempt(self.root, event.product, attempt)


def _cannot_write(path: Path, error: OSError) -> RunError:
    why = f"can't be written: {error.strerror or error}"
    return RunError(where=str(path), why=why, do="free space or rights, then run again")


def read_frames(root: Path) -> pd.DataFrame:
    """The frame table of the last scan; an empty one before there was one."""
    path = root / FRAMES
    return completed(read_table(path)) if path.exists() else empty_frames()


def scan(run: Run) -> ScanResult:
    """Read the headers of new and changed files; writes `frames.parquet`."""

    def map_chunks(read: Callable[[Any], Any], chunks: list[Any]) -> Iterator[Any]:
        for result in run.map(read, chunks, kind="scan"):
            if result.failure is not None:
                raise RunError(where="scan", why=result.failure[1])
            yield result.value

    result, is_as_written = _looked(run.config, map_chunks)
    if not is_as_written:
        write_table(run.root / FRAMES, result.frames)
    run.log(f"scan: {result.n_files} files, {result.n_read} read, {result.n_gone} gone")
    return result


def look(config: Config, *, map_chunks: MapChunks = map_serially) -> ScanResult:
    """The frame table as the archive lies there now, nothing written.

    Every header is read again when the profiles, or the reader itself, are not those of the last
    scan.
    """
    return _looked(config, map_chunks)[0]


def _looked(config: Config, map_chunks: MapChunks) -> tuple[ScanResult, bool]:
    """The scan's result, and whether its table is the one on disk."""
    previous = read_frames(config.products_path)
    rules = rules_of(config)
    was = previous.attrs.get("rules")
    reread = was is not None and was != rules
    result = scan_frames(config, previous, map_chunks=map_chunks, reread=reread)
    result.frames.attrs["rules"] = rules
    return result, was == rules and result.frames is previous


def rules_of(config: Config) -> str:
    """Digest of all that decides what a header becomes; kept with the frame table."""
    return digest_of([__version__, FRAMES_SCHEMA_VERSION, dict(config.instrument)])


def plan(run: Run) -> Plan:
    """The plan of what the last scan found; writes `plan.parquet`."""
    frames = read_frames(run.root)
    made = make_plan(frames, run.config)
    made.frames.attrs.update(frames.attrs)
    if not made.frames["field"].equals(frames["field"]):
        write_table(run.root / FRAMES, made.frames)
    keep_expected(run, made)
    return made


def keep_expected(run: Run, made: Plan) -> None:
    """Write what is expected, as things stand now, for the ledger."""
    write_expected(run.root, expected(run.root, made, run.config))
    run.has_news = False


def expected(root: Path, made: Plan, config: Config) -> list[Expected]:
    """Every product the archive wants, as things stand now."""
    return stages.expected_of(_outlines(root, made, config), stages.notes_of(made))


def expected_now(config: Config) -> list[Expected]:
    """Every product that the archive wants as it and the configuration are, nothing written."""
    return expected(config.products_path, make_plan(look(config).frames, config), config)


def all_recipes(root: Path, made: Plan, config: Config) -> Iterator[Recipe]:
    """Every product the archive wants, pages included; one at a time, for each holds its items."""
    return map(written, _outlines(root, made, config))


def _outlines(root: Path, made: Plan, config: Config) -> Iterator[Recipe | Outline]:
    shown: list[Recipe] = []
    for recipe in stages.all_recipes(root, made, config):
        if isinstance(recipe, Recipe) and kind_of(recipe.product) in ("field", "lightcurve"):
            shown.append(recipe)
        yield recipe
    yield from page_recipes(root, shown)


def reduce(run: Run, made: Plan) -> None:
    """Masters, references, plates, star lists and cubes."""
    root, config = run.root, run.config
    run.make(stages.master_recipes(root, made, config, flats=False))
    run.make(stages.master_recipes(root, made, config, flats=True))
    run.make(stages.lights_recipes(root, made, config))
    run.make(stages.reference_of(root, made, config, field) for field in made.fields)
    run.make(stages.plate_recipes(root, made, config))
    run.make(stages.stars_recipes(root, made, config))
    run.make(stages.cube_recipes(root, made, config))
    run.make(stages.stack_recipes(root, made, config))


def gather(run: Run, made: Plan) -> None:
    """Joined stores, differential curves, and the light curves of the targets."""
    run.make(stages.field_recipes(run.root, made))
    run.make(stages.ensemble_recipes(run.root, made, run.config))
    run.make(stages.lightcurve_recipes(run.root, made, run.config))


def report(run: Run, made: Plan) -> None:
    """Pages of what was made."""
    joined = stages.field_recipes(run.root, made)
    curves = stages.lightcurve_recipes(run.root, made, run.config)
    run.make(page_recipes(run.root, [*joined, *curves]))
