"""Markdown tables of the records about sweeps: engines, reductions, the simulated cluster, a real sweep."""

from collections.abc import Mapping
from typing import Any

from rumfast.bench.machine import taken
from rumfast.scores import worst_standard_error

Record = Mapping[str, Any]

# ImageNet: training and validation images, members, and what one ResNet-50 takes on all of it: 40 epochs in
# 35.6 minutes on eight A100, as the FFCV authors measured (github.com/libffcv/ffcv-imagenet).
IMAGENET, VALIDATION, MEMBERS, INCLUDE = 1_281_167, 50_000, 2000, 0.7
GPU_HOURS_PER_MODEL = 8 * 35.6 / 60


def plan_table(record: Record) -> str:
    """What ``rumfast sweep plan`` found, for 400 members."""
    members, seconds = 400, record["seconds_per_member"]
    rows = [
        (f"seconds per member, {record['workers']} at a time", f"{seconds:.1f}"),
        ("members per hour", f"{record['members_per_hour']:.0f}"),
        (f"hours for {members} members here", f"{members * seconds / record['workers'] / 3600:.2f}"),
        (
            f"… worked out for {record['slots']} such cores of a cluster",
            f"{members * seconds / record['slots'] / 3600:.2f}",
        ),
        (f"MB on disk for {members}", f"{members * record['disk_bytes'] / record['members'] / 1e6:.0f}"),
        (f"standard error at worst with {members}", f"{worst_standard_error(members, INCLUDE):.3f}"),
    ]
    lines = ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([*lines, "", taken(record)]) + "\n"


def engines_table(record: Record) -> str:
    """One sweep on several engines of one machine."""
    rows = ["| engine | workers | wall s | s per member | same records |", "|---|---:|---:|---:|---|"]
    for row in record["rows"]:
        same = "yes" if row["same_records"] else "**no**"
        rows.append(
            f"| `{row['engine']}` | {row['workers']} | {row['wall_s']:.0f} | {row['member_s']:.1f} | {same} |"
        )
    recipe = f"{record['members']} members of the digits recipe, {record['epochs']} epochs; start-up counts"
    return "\n".join([*rows, "", f"{recipe}; {taken(record)}"]) + "\n"


def reduce_table(record: Record) -> str:
    """Time and memory of reducing synthetic sweeps."""
    rows = ["| members | streamed s | MB | stacked s | MB |", "|---:|---:|---:|---:|---:|"]
    for row in record["rows"]:
        stacked = [f"{row[key]:.3g}" if key in row else "" for key in ("stacked_s", "stacked_peak_mb")]
        rows.append(
            f"| {row['members']:,} | {row['streamed_s']:.3g} | {row['streamed_peak_mb']:.0f} "
            f"| {' | '.join(stacked)} |"
        )
    others = (
        f"{record['examples']:,} training and {record['test_examples']:,} test examples, "
        f"{record['record_bytes'] / 1000:.0f} kB per member. Of {record['members']:,} members: `compact` "
        f"{record['compact_s']:.0f} s; the ten most helpful training examples of {record['influenced']} test "
        f"examples, from the compacted arrays, {record['influence_s']:.0f} s and "
        f"{record['influence_peak_mb']:.0f} MB"
    )
    return "\n".join([*rows, "", f"{others}; {taken(record)}"]) + "\n"


def scale_table(record: Record) -> str:
    """The simulated cluster."""
    scene = record["scene"]
    rows = [
        ("members, slots on nodes", f"{scene['members']:,}, {scene['slots']} on {scene['nodes']}"),
        ("stored; committed by just one worker", f"{record['stored']:,}; {record['committed_once']:,}"),
        ("workers that died", f"{record['worker_deaths']}"),
        ("members trained twice", f"{record['repeated']} ({record['repeated'] / scene['members']:.2%})"),
        (
            "simulated hours; without faults and waits",
            f"{record['simulated_hours']:.2f}; {record['ideal_hours']:.2f}",
        ),
        ("processor ms per member, engine and store", f"{record['processor_ms_per_member']:.1f}"),
    ]
    lines = ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
    facts = (
        f"Members of {scene['member_s']:.0f} s; {scene['deaths']:.0%} of them take their worker down; one of "
        f"{scene['nodes']} nodes is cut off half-way and works on unseen for {scene['zombie_s']:.0f} s; "
        f"listings are up to {scene['stale_s']:.0f} s old; time runs {scene['speed']:.0f} times as fast"
    )
    return "\n".join([*lines, "", f"{facts}; {taken(record)}"]) + "\n"


def sweep_table(record: Record) -> str:
    """What a real sweep's scores are worth."""
    sweep, data = record["sweep"], record["dataset"]
    halves = sweep["split_half"]
    rows = [
        (
            "training examples, members, share each",
            f"{data['train']:,}, {sweep['members']}, {sweep['include']}",
        ),
        ("diverged members", f"{sweep['diverged']}"),
        ("mean memorization", f"{sweep['mean']:.3f}"),
        ("Spearman between halves of the sweep", f"{halves['spearman']:.3f}"),
        ("… expected between this sweep and another like it", f"{halves['spearman_whole']:.3f}"),
        ("standard error, median of the estimates", f"{sweep['median_standard_error']:.3f}"),
        ("… root mean square, from the halves' differences", f"{halves['standard_error']:.3f}"),
        ("… at worst in theory", f"{sweep['worst_standard_error']:.3f}"),
    ]
    lines = ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
    return "\n".join([*lines, "", taken(record)]) + "\n"


def imagenet_table(record: Record) -> str:
    """What ImageNet would take, worked out from the reductions that were measured."""
    seen, most = IMAGENET + VALIDATION, record["rows"][-1]
    record_bytes = (2 * IMAGENET + VALIDATION) / 8 + 2 * seen
    per_cell_s = most["streamed_s"] / most["members"] / (record["examples"] + record["test_examples"])
    rows = [
        (
            "one record",
            "2 bits per training and 1 per validation example, 2 bytes of margin each",
            record_bytes / 1e6,
            "MB",
        ),
        ("all records", f"× {MEMBERS:,} members", MEMBERS * record_bytes / 1e9, "GB"),
        (
            "reduce, one pass",
            f"{1e9 * per_cell_s:.2f} ns per member and example, as measured above, × {MEMBERS:,} × {seen:,}",
            per_cell_s * MEMBERS * seen / 60,
            "min",
        ),
        (
            "memory of that",
            f"{1e6 * most['streamed_peak_mb'] / record['examples']:.0f} bytes per example, as measured above",
            most["streamed_peak_mb"] / record["examples"] * IMAGENET,
            "MB",
        ),
        (
            "training",
            f"{GPU_HOURS_PER_MODEL:.2f} A100-hours for 40 epochs on all, × {INCLUDE} × {MEMBERS:,} members",
            GPU_HOURS_PER_MODEL * INCLUDE * MEMBERS,
            "A100-hours",
        ),
        (
            "standard error at worst",
            f"√(¼/(rM) + ¼/((1−r)M)) at r = {INCLUDE}",
            worst_standard_error(MEMBERS, INCLUDE),
            "",
        ),
    ]
    lines = ["| | how | |", "|---|---|---:|"]
    lines += [f"| {name} | {how} | {_three_digits(value)} {unit} |" for name, how, value, unit in rows]
    return "\n".join(lines) + "\n"


def _three_digits(value: float) -> str:
    """Three significant digits, without an exponent.

    >>> _three_digits(6650.4), _three_digits(0.0244)
    ('6,650', '0.0244')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
