"""Figures as bytes: PNG, SVG, and SVG for the inside of a page, where colours follow light or dark.

Equal figures give equal bytes: no dates, and ids from a fixed salt.
"""

import io
import logging
import re
import warnings

import matplotlib
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from tasks.palette import LIGHT_TO_DARK, PAPER, variable

_STYLE = {"svg.hashsalt": "subspan", "svg.fonttype": "path", "font.family": "DejaVu Sans"}
logging.getLogger("matplotlib.font_manager").setLevel(
    logging.ERROR
)  # tells of every font of mathematics that it tries
_COLOR = re.compile("|".join(map(re.escape, LIGHT_TO_DARK)))
_ID = re.compile(r'(\bid="|href="#|url\(#)')


def draw(figure: Figure, file_format: str) -> bytes:
    """The figure as a file on white paper: `png` (160 dpi) or `svg`."""
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": "subspan"} if file_format == "svg" else {"Software": "subspan"}
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # scripts that the font lacks are boxes
        figure.savefig(buffer, format=file_format, facecolor=PAPER, dpi=160, metadata=metadata)
    figure.set_layout_engine("none")  # the layout is found; another format keeps it
    return buffer.getvalue()


def inline(svg: bytes, name: str, description: str) -> Markup:
    """An SVG for the inside of a page: own ids, a description for screen readers, colours as variables."""
    text = svg.decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _ID.sub(lambda match: f"{match[0]}{name}-", text)
    text = _COLOR.sub(lambda match: f"var({variable(match[0])})", text)
    opening = f'<svg role="img" aria-label="{escape(description)}"'
    text = re.sub(r'^<svg([^>]*?) width="[^"]*"', r"<svg\1", text, count=1)
    text = re.sub(r'^(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return Markup(opening + text.removeprefix("<svg"))
