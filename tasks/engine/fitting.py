"""Whether captures fit a stage, from their specs alone: asked by the plan, and again of the captures as they are opened."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from schemas.capture import CaptureSpec
from schemas.errors import MethodError, UnknownNameError, nearest
from schemas.layout import Site, SiteLayout, Space
from schemas.stage import RowsRef


class Place(Protocol):
    """A site of a capture, planned or sealed."""

    @property
    def ref(self) -> RowsRef:
        """Its name."""

    @property
    def spec(self) -> CaptureSpec:
        """The capture."""

    @property
    def layout(self) -> SiteLayout:
        """The site's."""

    @property
    def space(self) -> Space:
        """Of its rows."""


class Planned(NamedTuple):
    """A site of a capture that need not be there yet."""

    ref: RowsRef
    spec: CaptureSpec
    layout: SiteLayout
    space: Space


def planned(spec: CaptureSpec, ref: RowsRef) -> Planned:
    """The site of a spec that a reference names.

    Raises:
        UnknownNameError: if the capture has no such site.
    """
    layout = site_layout(spec, ref)
    return Planned(ref, spec, layout, spec.layout.space(layout.space))


def site_layout(spec: CaptureSpec, ref: RowsRef) -> SiteLayout:
    """The layout of a site.

    Raises:
        UnknownNameError: if the capture has no such site.
    """
    found = {str(layout.site): layout for layout in spec.layout.sites}
    if str(Site.parse(ref.site)) not in found:
        raise UnknownNameError(
            f"capture {ref.capture} has no site {ref.site!r}; nearest: {nearest(ref.site, found)}"
        )
    return found[ref.site]


def check_widths(places: Sequence[Place]) -> None:
    """Refuse captures that cannot be read as one.

    Raises:
        MethodError: naming two of different width.
    """
    first = places[0]
    for place in places[1:]:
        if place.layout.width != first.layout.width:
            raise MethodError(
                f"{place.ref.label} has {place.layout.width} features, {first.ref.label} has {first.layout.width}: "
                "captures that are read as one need one width; use a stage for each"
            )


def check_spaces(x: Sequence[Place], y: Sequence[Place]) -> None:
    """Refuse ports whose rows cannot be joined.

    Raises:
        MethodError: naming their row spaces.
    """
    spaces = {place.space.name for place in [*x, *y]}
    if len(spaces) > 1:
        raise MethodError(
            f"{x[0].ref.label} and {y[0].ref.label} have rows of different kinds "
            f"({', '.join(sorted(spaces))}), which cannot be joined; connect sites of one row space, or pool"
        )


def check_tokens(places: Sequence[Place]) -> None:
    """Refuse captures whose rows have no tokens, or tokens of different vocabularies.

    Raises:
        MethodError: naming the capture.
    """
    first = places[0]
    for place in places:
        if place.space.per_sample is not None:
            raise MethodError(
                f"{place.ref.label}: rows of space {place.space.name!r} are no tokens, so they have no `token` or `next_token`; "
                "choose a label of the samples, or a site with a row for each token"
            )
        if place.spec.tokenizer != first.spec.tokenizer:
            raise MethodError(
                f"{place.ref.label} and {first.ref.label} were captured with different tokenizers, so that their token ids mean different "
                "things; use a stage for each"
            )


def merged_categories(tables: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Names of codes over several captures: the first one's, then what others add."""
    names: dict[str, dict[str, None]] = {}
    for table in tables:
        for label, found in table.items():
            names.setdefault(label, {}).update(dict.fromkeys(found))
    return {label: tuple(found) for label, found in names.items()}


def other_weights(a: CaptureSpec, b: CaptureSpec) -> bool:
    """Whether networks are known to differ: digests are of files, but of the tensors themselves where a factory makes them."""
    models = a.request.model, b.request.model
    alike = models[0].dtype == models[1].dtype or all(model.kind == "transformers" for model in models)
    return alike and a.weights != b.weights
