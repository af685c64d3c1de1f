"""From a matplotlib figure to an SVG element that suits a page in any theme.

Figures are drawn in a light palette and every colour becomes ``var(--fig-…, #light)``: alone a figure shows
the light palette, inside the page the style sheet swaps the variables for a dark screen. Text stays text, so
it is searched, read aloud and set in the page's font.
"""

import hashlib
import html
import io
import re
import warnings
from typing import Any

from matplotlib.figure import Figure

# Blue and vermillion are Okabe and Ito's pair, darkened to 4.5:1 on white; shape repeats what colour says.
PALETTE = {
    "ink": "#1f2933",
    "muted": "#5a6775",
    "rule": "#d3dae1",
    "band": "#d9e9f4",
    "base": "#b3bdc7",
    "in": "#0067a3",
    "out": "#b84a00",
    "paper": "#fefefe",
}
STYLE: Any = {  # Any: matplotlib's stubs type each key on its own
    "svg.fonttype": "none",
    "svg.hashsalt": "rumfast",
    "text.parse_math": False,
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["rule"],
    "figure.titlesize": 10.0,
    "figure.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "legend.frameon": False,
}


def to_svg(figure: Figure, description: str) -> str:
    """Serialise a figure drawn under STYLE: ids no other figure has, themed colours, a spoken description.

    The same figure gives the same bytes: the date is left out and ids come from a hash of the content.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # A script that DejaVu lacks is only measured wrongly here: the browser has its own fonts for it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    # matplotlib's style element would reach the whole page; the root below carries the same two properties.
    text = re.sub(r"\s*<(metadata|style)\b.*?</\1>", "", buffer.getvalue(), flags=re.DOTALL)
    opening = re.search(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', text)
    assert opening is not None, "matplotlib writes an <svg> with a viewBox"
    prefix = "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
    body = re.sub(r"<[a-z][^>]*>", lambda tag: _adapt(tag[0], prefix), text[opening.end() :])
    label = html.escape(" ".join(description.split()), quote=True)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    joins = 'style="stroke-linejoin: round; stroke-linecap: butt"'
    return f'<svg {spaces} viewBox="{opening[1]}" {joins} role="img" aria-label="{label}">{body.strip()}'


def _adapt(tag: str, prefix: str) -> str:
    """One tag with its ids made unique on a page of several figures and its colours made variables."""
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
    tag = tag.replace("'DejaVu Sans'", "var(--fig-font, 'DejaVu Sans', sans-serif)")
    for role, colour in PALETTE.items():
        tag = tag.replace(colour, f"var(--fig-{role}, {colour})")
    return tag
