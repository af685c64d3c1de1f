"""Markdown tables of an audit: what each measures, models by audits, false alarms, agreement of audits."""

from collections.abc import Mapping
from typing import Any

from rumfast.bench.machine import taken
from rumfast.reporting.audit_figures import agreement, tau_text
from rumfast.reporting.audit_text import (
    HEADLINE,
    LEGEND,
    alarms_text,
    audited,
    checks,
    mark_text,
    shared_band,
    span_text,
    utility_text,
)
from rumfast.reporting.estimates import estimate
from rumfast.reporting.verdict import metric_label

Record = Mapping[str, Any]


def audit_matrix(record: Record) -> str:
    """Models by the audits of the headline, each with its verdict's mark, then the null bands."""
    metrics = audited(record, HEADLINE)
    labels = [metric_label(record, metric) for metric in metrics]
    lines = [
        f"| model | utility | {' | '.join(labels)} | verdict |",
        "|---|" + "---:|" * (len(labels) + 1) + "---|",
    ]
    for model in record["models"]:
        cells = [utility_text(model), *(mark_text(record, model, metric) for metric in metrics)]
        lines.append(f"| `{model['name']}` | {' | '.join(cells)} | {model['verdict']} |")
    least = record["models"][0]["utility"]["least"]
    bands = [span_text(record, metric, shared_band(record, metric)) for metric in metrics]
    lines.append(f"| *retrained* | ≥ {least:.3f} | {' | '.join(bands)} | |")
    return _page([*lines, "", f"{LEGEND}. {_setting(record)}"])


def audit_all(record: Record) -> str:
    """Every audit by models, with the null band of each."""
    names = [f"`{model['name']}`" for model in record["models"]]
    lines = [f"| audit | retrained | {' | '.join(names)} |", "|---|" + "---:|" * (len(names) + 1)]
    for metric in audited(record):
        cells = [mark_text(record, model, metric) for model in record["models"]]
        band = span_text(record, metric, shared_band(record, metric))
        lines.append(f"| {metric_label(record, metric)} | {band} | {' | '.join(cells)} |")
    lines.append(f"| utility | | {' | '.join(utility_text(model) for model in record['models'])} |")
    lines.append(f"| *verdict* | | {' | '.join(model['verdict'] for model in record['models'])} |")
    return _page([*lines, "", f"{LEGEND}. {_setting(record)}"])


def audit_metrics(record: Record) -> str:
    """What every audit measures, which way is better, and who defined it."""
    lines = ["| audit | what it is | better | source |", "|---|---|---|---|"]
    for metric in record["metrics"].values():
        better = "as oracles" if metric["better"] == "oracle" else metric["better"]
        definition = metric["definition"].replace("|", "\\|")
        lines.append(f"| {metric['label']} | {definition} | {better} | {metric['source']} |")
    return _page(lines)


def audit_alarms(record: Record) -> str:
    """Every audit's false alarms on held-out oracles, and whether it tells the originals from oracles."""
    lines = ["| audit | false alarms | catches the originals |", "|---|---:|---|"]
    lines += [f"| {row['name']} | {row['alarms']} | {row['power']} |" for row in checks(record)]
    return _page([*lines, "", f"{alarms_text(record)} {_setting(record)}"])


def audit_ranking(record: Record) -> str:
    """Kendall's τ between the audits of the headline; bold where its interval excludes zero."""
    ranking = record["ranking"]
    places = [ranking["metrics"].index(metric) for metric in HEADLINE if metric in ranking["metrics"]]
    labels = [metric_label(record, ranking["metrics"][place]) for place in places]
    lines = [f"| Kendall's τ | {' | '.join(labels[1:])} |", "|---|" + "---:|" * (len(labels) - 1)]
    for row, place in enumerate(places[:-1]):
        cells = [
            _tau(ranking["tau"][place][other]) if column > row else "" for column, other in enumerate(places)
        ]
        lines.append(f"| {labels[row]} | {' | '.join(cells[1:])} |")
    models = ", ".join(f"`{name}`" for name in ranking["models"])
    note = f"Over {models}; in brackets 95 % of random draws of a third of the models, bold: without zero."
    return _page([*lines, "", f"{note} {_setting(record)}"])


def audit_speed(record: Record) -> str:
    """What auditing whole populations takes, from logits to verdicts."""
    rows = [
        ("logits to attacks, margins and accuracies, s", f"{record['collect_s']:.1f}"),
        ("null bands, intervals and verdicts, s", f"{record['audit_s']:.1f}"),
        ("memory added at the peak, MB", f"{record['peak_mb']:.0f}"),
    ]
    lines = ["| | |", "|---|---:|", *(f"| {name} | {value} |" for name, value in rows)]
    examples = record["forget"] + record["retain"] + record["test"]
    scene = (
        f"{record['metrics']} audits of 3 × {record['models']} models, {examples:,} examples, made-up logits"
    )
    return _page([*lines, "", f"{scene}; {taken(record)}"])


def _tau(tau: Any) -> str:
    interval = estimate(tau).interval
    text = tau_text(tau) if agreement(tau) == "undecided" else f"**{tau_text(tau)}**"
    return text if interval is None else f"{text} [{interval[0]:+.2f}, {interval[1]:+.2f}]"


def _page(lines: list[str]) -> str:
    return "\n".join(lines) + "\n"


def _setting(record: Record) -> str:
    return (
        f"{record['forget']['size']} of {record['dataset']['train']} training examples forgotten; "
        f"{record['population']} models of each kind, {record['held_out']} held-out oracles; {taken(record)}"
    )
