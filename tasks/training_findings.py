"""Headline findings about trainings and curvature: each number beside what chance gives."""

from collections.abc import Sequence

from tasks.figures import percent, short
from tasks.findings import Finding
from tasks.measures import StageArtifact
from tasks.tables import short_site
from tasks.training_values import Artifacts, result_of


def training_findings(artifacts: Artifacts) -> list[Finding]:
    """Sentences about gradients, paths and updates, none where there is nothing to say."""
    found = [_eigenspace(artifacts), _path(artifacts), _updates(artifacts)]
    return [finding for finding in found if finding is not None]


def _eigenspace(artifacts: Artifacts) -> Finding | None:
    having = _having(artifacts, "gradients.hessian_overlap", "share")
    if not having:
        return None
    most = max(having, key=lambda a: float(result_of(a)["share"]))
    result = result_of(most)
    share, null = percent(float(result["share"])), percent(float(result["null"]))
    where = f"in the {result['components']} leading directions of the curvature ({most.stage})"
    least = min(float(result_of(a)["share"]) for a in having)
    others = f"; {percent(least)} where it is least, of {len(having)} results" if len(having) > 1 else ""
    return Finding(
        share, f"{share} of a gradient at {short_site(most.site)} lies {where}, {null} by chance{others}."
    )


def _path(artifacts: Artifacts) -> Finding | None:
    having = _having(artifacts, "gradients.trajectory", "first_share")
    if not having:
        return None
    most = max(having, key=lambda a: float(result_of(a)["first_share"]))
    result = result_of(most)
    share, null = percent(float(result["first_share"])), percent(float(result["first_share_null"]))
    above = result["exceeds_null"][:1] == [True]
    verdict = "more than such walks have" if above else "no more than such walks have"
    return Finding(
        share,
        f"One component holds {share} of the path at {short_site(most.site)}, {null} of a random walk's: {verdict}.",
    )


def _updates(artifacts: Artifacts) -> Finding | None:
    having = [a for a in _having(artifacts, "gradients.update_structure", "effective_rank") if _sides(a) > 1]
    if not having:
        return None
    least = min(having, key=lambda a: float(result_of(a)["effective_rank"]) / _sides(a))
    result = result_of(least)
    rank, null = short(float(result["effective_rank"])), result["effective_rank_null"]
    shuffled = f", {short(float(null))} with its entries shuffled" if null is not None else ""
    return Finding(
        rank,
        f"An update of {short_site(least.site)} has an effective rank of {rank} of {_sides(least)}{shuffled}.",
    )


def _having(artifacts: Artifacts, method: str, field: str) -> Sequence[StageArtifact]:
    return [a for a in artifacts if a.artifact.stage.method == method and result_of(a).get(field) is not None]


def _sides(a: StageArtifact) -> int:
    """Directions that an update could have."""
    return min(int(result_of(a)["rows"]), int(result_of(a)["columns"]))
