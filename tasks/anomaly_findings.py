"""What calibrated detectors found, as sentences for the top of a page."""

from collections.abc import Iterator, Sequence

from tasks.figures import percent
from tasks.findings import MOST_NAMED, Finding
from tasks.measures import StageArtifact
from tasks.tables import short_site

METHOD = "anomaly.calibrated"


def anomaly_findings(artifacts: Sequence[StageArtifact]) -> Iterator[Finding]:
    """One for each of the first stages that calibrated scores: at the site with most discoveries."""
    ours = [
        made for made in artifacts if made.artifact.stage.method == METHOD and made.artifact.result["n_rows"]
    ]
    for stage in list(dict.fromkeys(made.stage for made in ours))[:MOST_NAMED]:
        members = [made for made in ours if made.stage == stage]
        yield _finding(max(members, key=lambda made: made.artifact.result["discovered"]), len(members))


def _finding(made: StageArtifact, n_sites: int) -> Finding:
    result, config = made.artifact.result, made.artifact.stage.config
    most = f", the most of {n_sites} sites" if n_sites > 1 else ""
    share = 100 * float(str(config["q"]))
    of = f"{result.get('of', 'row')}s"
    rows = f"{result['n_rows']:,} {of} at {short_site(made.site)}"
    found = f"{result['discovered']:,} of {rows}"
    said = f"{found} are strange at a false discovery rate of {share:g} %{most}"
    if not result["discovered"]:
        said = f"None of {rows} is strange at a false discovery rate of {share:g} %"
        said += ", nor at any other site" if n_sites > 1 else ""
    flagged = f"; {percent(result['flagged'])} exceed the threshold, {100 * float(str(config['alpha'])):g} % of normal {of} would"
    doubt = ". The stage says where this may not hold" if result["caveats"] else ""
    return Finding(
        f"{result['discovered']:,}",
        f"{said}{flagged} ({result['detector'].partition('.')[2]}, {made.stage}){doubt}.",
    )
