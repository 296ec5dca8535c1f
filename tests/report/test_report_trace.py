"""The sums of a trace, against times that are known."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nightloom.report.trace import summed_up
from nightloom.schema.trace import COLUMNS, TaskRecord

STEP = TaskRecord(
    product="cube/A/2024-03-01/R", kind="step", n_frames=4, first_frame="a.fits", worker="w0",
    host="n0", queued_s=1000.0, started_s=1001.0, seconds=2.0, cpu_s=1.5, bytes_read=40_000_000,
    peak_bytes=300_000_000, outcome="done",
)  # fmt: skip


def table(*records: TaskRecord) -> pd.DataFrame:
    return pd.DataFrame([asdict(record) for record in records], columns=list(COLUMNS))


def test_where_the_time_went() -> None:
    made = summed_up(
        table(
            STEP,
            replace(STEP, worker="w1", host="n1", started_s=1003.0, seconds=6.0, first_frame="b"),
            replace(STEP, started_s=1003.5, seconds=1.0, outcome="killed", n_frames=1),
            replace(STEP, product="master/bias/x", kind="finish", n_frames=0, started_s=1005.0,
                    seconds=1.0, bytes_read=0),
        )
    )  # fmt: skip
    assert made.seconds == pytest.approx(8.0)  # 1001 to 1009
    assert made.n_frames == 8  # those of the killed task were not measured by it
    assert made.outcomes == {"done": 3, "killed": 1}
    first = made.kinds.iloc[0]
    assert (first["product"], first["task"], first["tasks"]) == ("cube", "step", 3)
    assert first["wall_s"] == pytest.approx(9.0)
    assert first["share"] == pytest.approx(0.9)
    assert first["read_mb_s"] == pytest.approx(120 / 9)
    assert first["queue_s"] == pytest.approx(3.0)  # the middle of 1, 3, 3.5
    assert made.slowest["first_frame"].tolist()[0] == "b"
    assert made.slowest["frame_s"].tolist() == pytest.approx([1.5, 1.0, 0.5])
    idle = made.workers.set_index("worker")["idle"]
    assert idle["w0"] == pytest.approx(1 - 4 / 8)
    assert idle["w1"] == pytest.approx(1 - 6 / 8)
    assert made.idle == pytest.approx(1 - 10 / 16)
    # Usual is a second a frame: n1 took 1.5, n0 for its four and one together 3 of 5.
    slowness = made.nodes.set_index("host")["slowness"]
    assert slowness["n1"] == pytest.approx(1.5)
    assert slowness["n0"] == pytest.approx(4 / 6)
    assert made.nodes.set_index("host").loc["n0", "killed"] == 1


def test_of_nothing_there_is_nothing() -> None:
    made = summed_up(table())
    assert (made.seconds, made.n_tasks, made.n_workers, made.idle) == (0.0, 0, 0, 0.0)
    assert json.loads(json.dumps(made.as_dict()))["kinds"] == []


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 400), st.integers(0, 80), st.sampled_from("abc"),
            st.sampled_from(["step", "pack", "finish"]), st.integers(0, 5),
        ),
        min_size=1, max_size=30,
    )
)  # fmt: skip
def test_sums_are_those_of_the_rows_and_shares_are_shares(rows: list[tuple]) -> None:  # type: ignore[type-arg]
    records = [
        replace(STEP, started_s=1001 + a / 4, seconds=s / 4, worker=w, host=w, kind=k, n_frames=n)
        for a, s, w, k, n in rows
    ]
    made = summed_up(table(*records))
    wall = sum(record.seconds for record in records)
    assert made.kinds["wall_s"].sum() == pytest.approx(wall)
    assert made.nodes["tasks"].sum() == len(records)
    assert np.all((made.workers["idle"] >= -1e-9) & (made.workers["idle"] <= 1 + 1e-9))
    assert np.all(made.workers["busy_s"] <= made.seconds + 1e-6)
    text = json.dumps(made.as_dict(), allow_nan=False)
    assert json.loads(text)["n_tasks"] == len(records)
