"""The numbers of a site that the page compares: where results hold them, what they mean, and how they are shown."""

from typing import NamedTuple


class Source(NamedTuple):
    """A field of results that holds a number."""

    field: str
    method: str | None = None
    """Only of this method; None: of any."""
    null: str | None = None
    """Field of the same result with what chance, or uniform directions, would give."""


class Group(NamedTuple):
    """Measures that tell one thing together."""

    key: str
    title: str
    question: str
    """What they answer."""


GROUPS = (
    Group("linear", "Linear dimension", "How many directions hold the variance?"),
    Group(
        "intrinsic", "Intrinsic dimension", "How many numbers would tell rows apart from their neighbours?"
    ),
    Group("evenness", "Evenness of directions", "Do rows point everywhere alike?"),
    Group("spread", "Spread of rows", "How far apart are rows, as points?"),
    Group("classes", "Classes", "How far do rows of one class fall together, and classes apart?"),
    Group("strange", "Strange rows", "How well do detectors' scores tell strange rows from normal ones?"),
    Group("weights", "Use of the weights", "How much of what a layer could use is used?"),
    Group("alignment", "Sites or captures in pairs", "How alike do both arrange the same rows?"),
)


class Measure(NamedTuple):
    """A column of a table of sites."""

    key: str
    group: str
    title: str
    sources: tuple[Source, ...]
    """Fields of results that hold it, the best first."""
    meaning: str
    share: bool = False
    """Shown as a percentage."""
    null: str = ""
    """What its null value is of."""
    chance: float | None = None
    """Its null value, where that is the same for all rows."""
    drawn: bool = False
    """Over depth."""
    log: bool = False
    """Drawn on a logarithmic axis where it spans decades."""
    from_zero: bool = True
    """Drawn on an axis that holds 0."""
    interval_of: Source | None = None
    """The same number with its bias, whose interval it has in proportion where its own source gives none: that of the jackknife is one of
    the logarithm, which a factor moves."""
    decimals: int | None = None
    """Of values that are told apart near 1 only; None: as many as the interval supports."""


JACKKNIFE = "spectrum.jackknife"


def _fields(*names: str) -> tuple[Source, ...]:
    return tuple(Source(name) for name in names)


def _first_jackknife(name: str) -> tuple[Source, ...]:
    """Its intervals allow rows of one sample to depend on each other, others' do not."""
    return (Source(name, JACKKNIFE), Source(name))


def _one(method: str, field: str, null: str | None = None) -> tuple[Source, ...]:
    return (Source(field, method, null),)


MEASURES = (
    Measure(
        "participation_ratio", "linear", "Participation ratio",
        (Source("participation_ratio_unbiased", JACKKNIFE), *_fields("participation_ratio_unbiased", "participation_ratio")),
        "(sum of eigenvalues)² / sum of their squares, without bias where the method gives that: "
        "how many directions hold the variance; the interval is the jackknife's of the plain ratio, in proportion",
        drawn=True, interval_of=Source("participation_ratio", JACKKNIFE),
    ),
    Measure(
        "effective_rank", "linear", "Effective rank", _first_jackknife("effective_rank"),
        "exponential of the entropy of the variance shares", drawn=True,
    ),
    Measure(
        "stable_rank", "linear", "Stable rank", _first_jackknife("stable_rank"),
        "total variance / largest eigenvalue",
    ),
    Measure(
        "components_90", "linear", "For 90 %", _fields("components_90"),
        "fewest components that hold 90 % of the variance",
    ),
    Measure(
        "parallel", "linear", "Parallel analysis", _one("spectrum.parallel_analysis", "components"),
        "components with more variance than in rows with random signs", drawn=True,
    ),
    Measure(
        "above_noise", "linear", "Above noise", _one("spectrum.rank", "above_noise"),
        "eigenvalues above the edge of white noise",
    ),
    Measure(
        "twonn", "intrinsic", "TwoNN", _one("geometry.dimension", "twonn"),
        "intrinsic dimension from two neighbours, by maximum likelihood; too low where it is high", drawn=True,
    ),
    Measure(
        "mle", "intrinsic", "MLE", _one("geometry.dimension", "dimension"),
        "intrinsic dimension from all neighbours (Levina, Bickel; averages of inverses); too low where it is high",
        drawn=True,
    ),
    Measure(
        "local_dimension", "intrinsic", "Local, median", _one("geometry.local_dimension", "median"),
        "median over rows of the dimension about each", drawn=True,
    ),
    Measure(
        "tree_dimension", "intrinsic", "Spanning tree",
        _one("geometry.spanning_tree", "dimension", "dimension_uniform"),
        "dimension from how the spanning tree of directions grows with rows", null="uniform", drawn=True,
    ),
    Measure(
        "magnitude_dimension", "intrinsic", "Magnitude",
        _one("geometry.magnitude", "dimension", "dimension_gaussian"),
        "largest growth of magnitude over scales", null="Gaussian", drawn=True,
    ),
    Measure(
        "persistent_dimension", "intrinsic", "Persistent, of a text",
        _one("geometry.persistent_dimension", "mean", "mean_gaussian"),
        "dimension of the rows of a single sample, mean over samples", null="Gaussian", drawn=True,
    ),
    Measure(
        "anisotropy", "evenness", "Anisotropy", _first_jackknife("anisotropy"),
        "share of the variance in the first component", share=True, drawn=True,
    ),
    Measure(
        "top_10", "evenness", "Top 10", _fields("top_10"),
        "share of the variance in the first ten components", share=True,
    ),
    Measure(
        "entropy", "evenness", "Entropy", _one("geometry.uniformity", "entropy", "entropy_uniform"),
        "von Neumann entropy of the directions: 0 for one direction", null="uniform", drawn=True, from_zero=False,
    ),
    Measure(
        "distance", "evenness", "Distance to uniform",
        _one("geometry.uniformity", "distance", "distance_uniform"),
        "Wasserstein distance of the directions, as a Gaussian, to uniform ones", null="uniform", drawn=True,
    ),
    Measure(
        "coding_rate", "evenness", "Coding rate",
        _one("geometry.uniformity", "coding_rate", "coding_rate_uniform"),
        "nats that the direction of a row takes", null="uniform",
    ),
    Measure(
        "mean_cosine", "evenness", "Mean cosine",
        (Source("mean_cosine", "geometry.capacity"), Source("mean_cosine")),
        "of pairs of different rows: 1 for one direction, 0 for uniform ones", drawn=True,
    ),
    Measure(
        "tree_length", "evenness", "Spanning tree", _one("geometry.spanning_tree", "relative_length"),
        "length of the spanning tree of directions over that of uniform ones: 1 for uniform ones", drawn=True,
    ),
    Measure(
        "diffusion_entropy", "spread", "Diffusion entropy",
        _one("geometry.diffusion_entropy", "entropy", "entropy_gaussian"),
        "bits; of the spectrum of a random walk over rows", null="Gaussian", drawn=True,
    ),
    Measure(
        "effective_points", "spread", "Effective points",
        _one("geometry.magnitude", "effective_points", "effective_points_gaussian"),
        "magnitude: how many rows differ at the scale of their median distance", null="Gaussian", drawn=True,
    ),
    Measure(
        "boundary", "spread", "Boundary of cosines",
        _one("geometry.capacity", "boundary", "boundary_uniform"),
        "how far from orthogonal directions may be to count as independent", null="uniform", drawn=True,
    ),
    Measure(
        "accuracy", "classes", "Probe accuracy",
        (Source("accuracy", "probe.linear", "baseline"),),
        "share of unseen rows whose class a linear map finds", share=True, null="most frequent class", drawn=True,
    ),
    Measure(
        "nc1", "classes", "NC1", _one("geometry.neural_collapse", "nc1", "nc1_chance"),
        "scatter within classes over scatter between them: falls to 0 in collapse", null="chance", drawn=True, log=True,
    ),
    Measure(
        "cdnv", "classes", "CDNV", _one("geometry.neural_collapse", "cdnv"),
        "variance of classes over the squared distance of their means: falls to 0 in collapse", drawn=True, log=True,
    ),
    Measure(
        "vci", "classes", "VCI",
        (Source("vci", "geometry.neural_collapse", "vci_chance"), Source("vci", "geometry.neural_collapse", "vci_random")),
        "variability collapse index: 0 in collapse, no invertible map changes it", null="chance", drawn=True,
    ),
    Measure(
        "etf_distance", "classes", "NC2", _one("geometry.neural_collapse", "etf_distance"),
        "distance of class means to a simplex that keeps them as far apart as can be",
    ),
    Measure(
        "nearest", "classes", "NC4", _one("geometry.neural_collapse", "nearest_is_label"),
        "share of rows whose nearest class mean is that of their own class", share=True, drawn=True,
    ),
    Measure(
        "rate_reduction", "classes", "Rate reduction",
        (
            Source("rate_reduction", "geometry.rate_reduction", "rate_reduction_chance"),
            Source("rate_reduction", "geometry.rate_reduction", "rate_reduction_random_samples"),
            Source("rate_reduction", "geometry.rate_reduction", "rate_reduction_random"),
        ),
        "nats a row that classes save by filling different directions; chance is of labels that say nothing, at most",
        null="chance", drawn=True,
    ),
    Measure(
        "information", "classes", "Class information",
        _one("geometry.diffusion_entropy", "information", "information_chance"),
        "bits of diffusion entropy that classes tell", null="chance",
    ),
    Measure(
        "auroc", "strange", "AUROC", _one("anomaly.quality", "auroc"),
        "chance that a strange row scores higher than a normal one", null="chance", chance=0.5, drawn=True, from_zero=False, decimals=4,
    ),
    Measure(
        "aupr", "strange", "AUPR", _one("anomaly.quality", "aupr_anomalous_positive"),
        "average precision in finding strange rows; chance is their share", share=True,
    ),
    Measure(
        "fpr95", "strange", "FPR95", _one("anomaly.quality", "fpr95_anomalous_positive"),
        "share of normal rows that score as high as the threshold that finds 95 % of strange rows", share=True,
    ),
    Measure(
        "aupro", "strange", "AUPRO", _one("anomaly.map_quality", "aupro"),
        "area under the overlap of each strange region, up to so many false alarms as the stage says", decimals=4,
    ),
    Measure(
        "utilisation", "weights", "Utilised rank",
        _one("spectrum.utilised_rank", "fractional_utilisation", "utilisation_alike"),
        "share of a layer's rank that its inputs and outputs use", share=True, null="even inputs", drawn=True,
    ),
    Measure(
        "active_subspace", "weights", "Active subspace",
        _one("spectrum.attention_subspace", "fractional_share", "white"),
        "share of the features that hold 99 % of the variance, or as much as was asked for",
        share=True, null="white noise", drawn=True,
    ),
    Measure(
        "aligned", "weights", "In leading directions of the weights",
        _one("spectrum.attention_subspace", "aligned", "aligned_null"),
        "share of the variance inside as many leading directions of the weights as the active subspace has",
        share=True, null="random", drawn=True,
    ),
    Measure(
        "logit_numbers", "weights", "Numbers for logits", _one("spectrum.logit_subspace", "numbers"),
        "that tell a next-token distribution",
    ),
    Measure(
        "cka_debiased", "alignment", "CKA, no bias", _one("geometry.cka", "cka_debiased"),
        "from unbiased estimates: 0 for unrelated rows, 1 for features that differ by a rotation and a scale",
        drawn=True, decimals=4,
    ),
    Measure(
        "cka", "alignment", "CKA", _one("geometry.cka", "cka"),
        "linear centred kernel alignment, biased up where rows are few", decimals=4,
    ),
)  # fmt: skip
"""In the order of the page."""

KEYS = {measure.key: measure for measure in MEASURES}


def lowered(title: str) -> str:
    """A title inside a sentence: names that have capitals keep them."""
    return title if any(letter.isupper() for letter in title[1:]) else title[:1].lower() + title[1:]


def groups_of(keys: set[str]) -> dict[Group, list[Measure]]:
    """Groups that have some of these measures, with them, in the order of the page."""
    found = {group: [m for m in MEASURES if m.group == group.key and m.key in keys] for group in GROUPS}
    return {group: measures for group, measures in found.items() if measures}
