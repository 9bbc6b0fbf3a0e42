# SPDX-License-Identifier: Apache-2.0
"""What runs tell, added up by SQL: by service, cause, hour and target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from pymemcg.export._pyarrow import pa
from pymemcg.fleet._duckdb import connected
from pymemcg.fleet._find import FOUND, HOUR_NS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pymemcg.fleet._find import Found

_WHO: Final = ("service", "host", "target", "run")
STALLS: Final = pa.schema([*((name, pa.string()) for name in _WHO), *FOUND])
"""A row a stall or harmless episode: whose, when it began by that host's wall clock, and the fields of `Stall`."""
_HOURS: Final = pa.schema(
    [*((name, pa.string()) for name in _WHO), *((name, pa.int64()) for name in ("hour", "sampled_ns", "span_hits"))]
)

_SUMS: Final = """
    count(*) filter (not is_harmless) as stalls,
    count(*) filter (not is_harmless and stall_ns is null) as unknown,
    coalesce(sum(stall_ns) filter (not is_harmless), 0)::bigint as stall_ns,
    coalesce(sum(stall_lo_ns) filter (not is_harmless), 0)::bigint as stall_lo_ns,
    case when coalesce(bool_or(not is_harmless and stall_ns is not null and stall_hi_ns is null), false) then null
        else coalesce(sum(stall_hi_ns) filter (not is_harmless), 0) end::bigint as stall_hi_ns,
    max(stall_ns) filter (not is_harmless) as worst_ns,
    coalesce(sum(stall_ns) filter (is_harmless), 0)::bigint as harmless_ns,
    case when count(*) = 0 then 0 else sum(limit_hits) end::bigint as limit_hits"""
"""Of stalls. What counters alone tell has no duration and is counted as unknown; no upper bound is none of the sum."""
_RATES: Final = ", ".join(
    f"{name} * 3.6e12 / nullif(sampled_ns, 0) as {name}_per_hour" for name in ("stall_ns", "limit_hits", "span_hits")
)


def _by(columns: str, order: str) -> str:
    """Sums of what was sampled, and of the stalls meanwhile. A group without stalls has a row, too."""
    joined = f"seen left join all_stalls using ({columns})"
    return f"""
with seen as (
    select {columns}, count(distinct (host, target)) as targets, sum(sampled_ns)::bigint as sampled_ns,
        sum(span_hits)::bigint as span_hits
    from hours group by {columns}
), told as (
    select {columns}, {_SUMS} from stalls group by {columns}
), nothing as (
    select {_SUMS} from stalls where false
), causes as (
    select {columns}, first(cause order by ns desc, number desc, cause) as cause from (
        select {columns}, cause, coalesce(sum(stall_ns), 0) as ns, count(*) as number from stalls
        where not is_harmless group by {columns}, cause)
    group by {columns}
), all_stalls as (
    select * from told union all by name
    select {columns}, nothing.* from seen anti join told using ({columns}), nothing
)
select *, {_RATES} from {joined} left join causes using ({columns}) order by {order}"""  # noqa: S608 - names of ours


_QUERIES: Final = {
    "services": _by("service", "stall_ns_per_hour desc nulls last, unknown desc, limit_hits desc nulls last, service"),
    "causes": f"select cause, {_SUMS} from stalls group by cause order by stall_ns desc, stalls desc, cause",  # noqa: S608
    "hours": _by("hour", "hour"),
    "targets": _by("service, host, target", "service, host, target"),
}


def summed(found: Sequence[Found], stalls: pa.Table) -> dict[str, list[dict[str, Any]]]:
    """Rows by the name of the table; times are ns, and `hour` is its beginning (CLOCK_REALTIME).

    Args:
        found: What runs tell.
        stalls: Their stalls, by `STALLS`.
    """
    with connected() as database:
        database.register("hours", _hours_of(found))
        database.register("arrow_stalls", stalls.set_column(STALLS.names.index("time"), "time", _times(stalls)))
        hour = f"time // {HOUR_NS} * {HOUR_NS} as hour"
        table = f"select *, {hour}, coalesce(harmless, false) as is_harmless from arrow_stalls"  # noqa: S608 - as above
        database.execute(f"create table stalls as {table}")
        return {name: database.sql(query).to_arrow_table().to_pylist() for name, query in _QUERIES.items()}


def stalls_of(found: Sequence[Found]) -> pa.Table:
    """All stalls and episodes, by `STALLS`."""
    tables = [STALLS.empty_table()]
    for one in found:
        who = [pa.repeat(value, one.stalls.num_rows) for value in _who(one).values()]
        tables.append(pa.Table.from_arrays([*who, *one.stalls.columns], schema=STALLS))
    return pa.concat_tables(tables)


def _hours_of(found: Sequence[Found]) -> pa.Table:
    """A row an hour of each run; a run without any has one all the same, so that it is counted."""
    rows = []
    for one in found:
        spans = one.span_hits
        hours = {*one.sampled_ns, *(spans or ()), *(at // HOUR_NS * HOUR_NS for at in _times(one.stalls).to_pylist())}
        for hour in sorted(hours) or [None]:
            hits = None if spans is None else spans.get(hour or 0, 0)
            rows.append({**_who(one), "hour": hour, "sampled_ns": one.sampled_ns.get(hour or 0, 0), "span_hits": hits})
    return pa.Table.from_pylist(rows, _HOURS)


def _times(stalls: pa.Table) -> pa.ChunkedArray:
    return stalls["time"].cast(pa.int64())


def _who(found: Found) -> dict[str, str]:
    run = found.run
    return {"service": run.service, "host": run.host, "target": run.group, "run": run.run}
