"""Colours of figures and page, safe for colour-blind readers, each with a twin for dark paper.

A figure is drawn in the light colours. Where it is put inside a page, each light colour becomes a CSS
variable, which has the dark twin where the reader prefers dark. All light colours differ, so that this is
unambiguous.
"""

INK, MUTED, GRID, PAPER, GREY = "#1c2127", "#66707c", "#e4e8ec", "#fffffe", "#b9c0c8"

DEPTH = (
    "#440255", "#472a6b", "#414287", "#38588c", "#306a8e", "#297c8e", "#228d8d", "#1f9f88",
    "#2fb07f", "#4fbf70", "#78ca58", "#a2d038",
)  # fmt: skip
"""From shallow to deep: steps of equal lightness along viridis."""
_DEPTH_DARK = (
    "#7d6fc9", "#6f7fd6", "#628edb", "#579cda", "#4eaad4", "#49b7ca", "#4cc3bb", "#5acda8",
    "#74d792", "#96df7a", "#bce564", "#e6ea55",
)  # fmt: skip

CATEGORY = (
    "#0072b1", "#d55e01", "#009e74", "#cc79a6", "#e69f01", "#56b4e8", "#7f4fb0", "#8a6d3c",
    "#c2324b", "#5d7a00",
)  # fmt: skip
"""For names; the first eight follow Okabe and Ito (Color Universal Design, 2008)."""
_CATEGORY_DARK = (
    "#4ba3e3", "#ff8a3d", "#2fc79b", "#e9a0c9", "#f2b93b", "#8fd0f7", "#b08be0", "#c2a36b",
    "#f0707f", "#a3c43a",
)  # fmt: skip

_DARK = {INK: "#e8eaed", MUTED: "#9aa4b0", GRID: "#2b3139", PAPER: "#15181c", GREY: "#4c545e"}

LIGHT_TO_DARK: dict[str, str] = {
    **_DARK,
    **dict(zip(DEPTH, _DEPTH_DARK, strict=True)),
    **dict(zip(CATEGORY, _CATEGORY_DARK, strict=True)),
}
"""Light colour to its twin on dark paper."""


def variable(light: str) -> str:
    """The CSS variable of a colour."""
    return f"--c{list(LIGHT_TO_DARK).index(light)}"


def css(dark: bool) -> str:
    """Declarations of all variables."""
    return " ".join(f"{variable(light)}: {twin if dark else light};" for light, twin in LIGHT_TO_DARK.items())


def depth_color(index: int, n: int) -> str:
    """The colour of one of n depths."""
    return DEPTH[round(index / max(n - 1, 1) * (len(DEPTH) - 1))]
