"""The command line: `subspan plan | run | watch | sites | methods | status | verify | report | show | ls | rm | gc | export`.

Exit codes: 0 done, 1 refused, 2 finished with failures, 3 new alerts of a watch. Answers go to stdout, messages to stderr. Heavy
packages are imported by the command that needs them.
"""

import importlib.metadata
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from pydantic import ValidationError

from schemas.errors import SpecError, SubspanError
from schemas.model import Head
from tasks.log import begin_log

if TYPE_CHECKING:
    from pipelines.estimate import Estimate
    from pipelines.plan import Plan
    from pipelines.remove import Removal
    from pipelines.trial import Trial
    from schemas.outcome import RunOutcome
    from schemas.run import RunSpec
    from tasks.store.location import Location

DEBUG = "--debug"
DONE, REFUSED, FAILURES, ALERTS, STOPPED = 0, 1, 2, 3, 130

app = App(
    name="subspan",
    help="Capture the activations of a network, find the subspaces they live in, and report.",
    help_epilogue="Every command takes --json (one JSON document on stdout) and --debug (tracebacks).",
    help_format="plaintext",
    version=lambda: importlib.metadata.version("subspan"),
    version_flags=["--version"],
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)

Overrides = Annotated[list[str] | None, Parameter("--set", negative=(), consume_multiple=False)]
Json = Annotated[bool, Parameter("--json", negative=())]
Root = Annotated[str, Parameter("--root")]
TrustCode = Annotated[bool, Parameter("--trust-code", negative=())]
HERE = "subspan-out"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code. Errors are one message on stderr, with `--debug` a traceback too."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # `module.path:factory` may name a file of the current folder
    debug = DEBUG in given
    try:
        begin_log()
        code = app([word for word in given if word != DEBUG], exit_on_error=False, print_error=False)
    except KeyboardInterrupt:
        return refuse("stopped; what is finished is kept, run again to go on", debug, STOPPED)
    except CycloptsError as error:
        return refuse(
            f"{error}\n`subspan --help` lists commands, `subspan COMMAND --help` their options", debug
        )
    except (SubspanError, ValidationError) as error:
        return refuse(str(error), debug)
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # rich leaves so when who reads the help has gone
            return DONE
        # else somebody's code, not this program
        return refuse(f"code that the run loads called sys.exit({error.code!r})", debug)
    except Exception as error:  # noqa: BLE001  the last resort: no user should read a traceback unasked
        return refuse(f"unexpected {type(error).__name__}: {error}; {DEBUG} shows where", debug)
    return code if isinstance(code, int) else DONE


def refuse(message: str, debug: bool, code: int = REFUSED) -> int:
    """Say why on stderr."""
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"subspan: {message}\n")
    return code


@app.command
def plan(
    run_file: Path,
    /,
    *,
    probe: Annotated[bool, Parameter(negative=())] = False,
    serial: Annotated[bool, Parameter(negative=())] = False,
    set_: Overrides = None,
    refresh: bool = False,
    json: Json = False,
) -> int:
    """Show what a run would do: ids, units, bytes on disk, memory and time. Refused like the run where it does not fit.

    Parameters
    ----------
    run_file:
        YAML file of a run.
    probe:
        Run the longest batch on the device: seconds per 1,000 tokens, and peak bytes beside the projection.
    serial:
        Plan for `run --serial`: this process does all the work.
    set_:
        Change a value: `--set execution.workers=2`. May be given several times.
    refresh:
        Plan anew even where a kept plan fits.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from pipelines.estimate import recomputing
    from pipelines.plan import make_plan
    from pipelines.preflight import refusal, workers_of
    from pipelines.runfile import load_run
    from pipelines.trial import paces

    made = make_plan(load_run(run_file, set_ or ()), refresh=refresh)
    refused = refusal(made, serial)
    trials, time = ([], None) if refused else _timed(made, serial, probe)
    device = None if refused or made.finished else workers_of(made, serial).device
    again = recomputing(made, device, paces(trials))
    if json:
        terminal.write_json(terminal.plan_record(made, trials, time, again))
    else:
        terminal.show_plan(made)
        terminal.show_again(again)
        terminal.show_trials(trials)
        terminal.write_line(terminal.plan_line(made, time))
    if refused is not None:
        raise refused
    return DONE


def _timed(made: "Plan", serial: bool, probe: bool) -> "tuple[list[Trial], Estimate | None]":
    """The trials of a plan, none unless `probe` asks for them, and the time of its captures."""
    from pipelines.estimate import estimate
    from pipelines.preflight import workers_of
    from pipelines.trial import paces, run_trials

    if made.finished:
        return [], None
    workers = workers_of(made, serial)
    trials = run_trials(made, workers.device or "cpu") if probe else []
    return trials, estimate(made, workers, paces(trials))


@app.command
def run(
    run_file: Path,
    /,
    *,
    serial: Annotated[bool, Parameter(negative=())] = False,
    full: Annotated[bool, Parameter(negative=())] = False,
    set_: Overrides = None,
    json: Json = False,
) -> int:
    """Capture, analyse and report. What is finished is not computed again.

    Parameters
    ----------
    run_file:
        YAML file of a run.
    serial:
        Run in this process, with neither Prefect nor Dask.
    full:
        Take all of the data, whatever subset the file draws.
    set_:
        Change a value: `--set execution.workers=2`. May be given several times.
    json:
        Answer in JSON.
    """
    from pipelines import results, terminal
    from pipelines.runfile import load_run

    spec = load_run(run_file, set_ or ())
    if full:
        spec = spec.whole()
    outcome = _execute(_planned(spec, serial, quiet=json), serial)
    if json:
        terminal.write_json({**outcome.model_dump(mode="json"), "failures": outcome.failures})
    else:
        results.show_outcome(outcome)
    return outcome.exit_code


@app.command
def watch(
    run_file: Path,
    /,
    *,
    serial: Annotated[bool, Parameter(negative=())] = False,
    set_: Overrides = None,
    json: Json = False,
) -> int:
    """Run a file again for new data and tell its new alerts, each once; exit code 3 where there are some.

    Parameters
    ----------
    run_file:
        YAML file of a run; captures and stages that `watch: {sealed: [...]}` names in it must be there already.
    serial:
        Run in this process, with neither Prefect nor Dask.
    set_:
        Change a value: `--set execution.workers=2`. May be given several times.
    json:
        Answer in JSON.
    """
    from pipelines import results, terminal
    from pipelines.alerts import check_sealed, keep_told, tell_new, untold
    from pipelines.runfile import load_run

    made = _planned(load_run(run_file, set_ or ()), serial, quiet=json)
    check_sealed(made)
    outcome = _execute(made, serial)
    if json:
        new = untold(outcome)
        told = {"failures": outcome.failures, "alerts": [one.model_dump(mode="json") for one in new]}
        terminal.write_json({**outcome.model_dump(mode="json"), **told})
        for one in new:
            keep_told(outcome, one)
    else:
        results.show_outcome(outcome)
        new = tell_new(outcome, lambda one: terminal.write_line(f"ALERT {one.line}"))
        if not new:
            terminal.write_line("No new alerts.")
    return ALERTS if new else outcome.exit_code


def _execute(made: "Plan", serial: bool) -> "RunOutcome":
    """Run a plan, here or as a flow, with bars."""
    from pipelines.progress import Terminal

    with Terminal() as bars:
        if serial:
            from pipelines.serial import execute_serial

            return execute_serial(made, bars)
        os.environ.setdefault("PREFECT_LOGGING_LEVEL", "WARNING")
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "WARNING")
        from pipelines.run import run_flow

        return run_flow(made, bars)


def _planned(spec: "RunSpec", serial: bool, quiet: bool) -> "Plan":
    """The plan of a run that begins, and its line where there is something to do; refused where it does not fit."""
    from pipelines import terminal
    from pipelines.plan import make_plan
    from pipelines.preflight import check_plan
    from pipelines.serial import plan_serial

    made = plan_serial(spec) if serial or spec.execution.cluster == "threads" else make_plan(spec)
    check_plan(made, serial)
    if not (quiet or made.finished):
        _, time = _timed(made, serial, probe=False)
        terminal.write_line(terminal.plan_line(made, time))
    return made


@app.command
def sites(
    model: str,
    /,
    *,
    head: Head = "base",
    input_shape: str | None = None,
    input_dtype: str = "float32",
    parameters: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """List every site of a network with its row space, width and type; or its parameters.

    Parameters
    ----------
    model:
        A transformers name or folder, `package:module/folder`, or `module.path:function` that makes one.
    head:
        Which auto class of transformers loads it, as in a run file; sites and parameters are called as it calls them.
    input_shape:
        Shape of one sample for a network made by a function, such as 3,224,224.
    input_dtype:
        NumPy name of its values.
    parameters:
        List the parameters of which gradients can be kept, with their shapes, instead of sites.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from pipelines.probe import parameters_table, sites_table

    with tempfile.TemporaryDirectory() as folder:
        data = example_data(input_shape, input_dtype, Path(folder))
        chosen = parse_model(model, head)
        rows = parameters_table(chosen) if parameters else sites_table(chosen, data)
    if json:
        terminal.write_json(rows)
    else:
        headings = list(dict.fromkeys(key for row in rows for key in row))
        terminal.write_table(model, headings, ([row.get(key) for key in headings] for row in rows))
    return DONE


def parse_model(text: str, head: Head = "base") -> Any:
    """A model as the command line names it.

    Raises:
        SpecError: if a head is asked of a function's network.
    """
    from schemas.model import FactoryModel, TransformersModel

    if ":" in text and not text.startswith("package:") and "/" not in text:
        if head != "base":
            raise SpecError(f"--head {head}: a function makes its network whole; leave the head out")
        return FactoryModel(factory=text)
    return TransformersModel(name=text, head=head)


def example_data(shape: str | None, dtype: str, folder: Path) -> Any:
    """Two samples of zeros in a file, as data; None where no shape is given.

    Raises:
        SpecError: if the shape is no list of positive integers, or the dtype is unknown.
    """
    if shape is None:
        return None
    import numpy as np

    from schemas.data import ArrayFiles, Data

    try:
        sides = [int(side) for side in shape.replace("x", ",").split(",")]
        zeros = np.zeros((2, *sides), dtype=dtype)
    except (ValueError, TypeError) as error:
        raise SpecError(
            f"--input-shape {shape} --input-dtype {dtype}: {error}; write for example 3,224,224"
        ) from None
    np.save(folder / "example.npy", zeros)
    return Data(source=ArrayFiles(path=str(folder / "example.npy")))


@app.command
def methods(name: str | None = None, /, *, json: Json = False) -> int:
    """List the methods, those of a family, or the options and results of one.

    Parameters
    ----------
    name:
        A method, such as spectrum.pca, or a family, such as spectrum.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from pipelines.methods_page import describe_method, method_page, method_record, reads_text, seeds_text
    from tasks.methods.contract import list_methods

    family = [method for method in list_methods() if name is None or method.startswith(f"{name}.")]
    found = [describe_method(method) for method in family or [str(name)]]
    if json:
        terminal.write_json([method_record(method) for method in found])
    elif not family:
        terminal.write_line(method_page(found[0]))
    else:
        headings = ("method", "family", "kind", "reads", "version", "seeds", "what it does", "reference")
        rows = (
            (m.name, m.family, m.kind, reads_text(m), m.version, seeds_text(m), m.summary, m.reference)
            for m in found
        )
        terminal.write_table("methods", headings, rows)
    return DONE


@app.command
def status(run_file: Path | None = None, /, *, root: Root = HERE, json: Json = False) -> int:
    """Show how far captures are, who is at work, and what is finished. Reads files only.

    Parameters
    ----------
    run_file:
        YAML file of a run, of which the root is taken.
    root:
        Folder or URL of captures and artifacts.
    json:
        Answer in JSON.
    """
    if run_file is not None:
        from pipelines.runfile import load_run

        root = load_run(run_file).root
    return _show_root(root, json, everything=False)


@app.command
def ls(*, root: Root = HERE, json: Json = False) -> int:
    """List captures, artifacts and runs.

    Parameters
    ----------
    root:
        Folder or URL of captures and artifacts.
    json:
        Answer in JSON.
    """
    return _show_root(root, json, everything=True)


def _show_root(root: str, json: bool, everything: bool) -> int:
    from pipelines import terminal
    from pipelines.status import root_status
    from tasks.store.location import Location

    found = root_status(Location(root))
    if json:
        terminal.write_json(found.model_dump(mode="json"))
    else:
        terminal.show_root(found, everything)
    return DONE


@app.command
def rm(
    names: list[str],
    /,
    *,
    root: Root = HERE,
    dependents: Annotated[bool, Parameter(negative=())] = False,
    names_too: Annotated[bool, Parameter("--names", negative=())] = False,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    json: Json = False,
) -> int:
    """Remove captures, artifacts or records of runs; refused where something was made from them, a name opens them, or somebody is at work.

    Parameters
    ----------
    names:
        Ids, their first letters, or names of captures.
    root:
        Folder or URL of captures and artifacts.
    dependents:
        Remove artifacts that were made from them too.
    names_too:
        Remove the names that open them too.
    dry_run:
        Show what would go, and remove nothing.
    json:
        Answer in JSON.
    """
    from pipelines.remove import removals
    from pipelines.status import find
    from tasks.store.location import Location

    place = Location(root)
    targets = list(dict.fromkeys(find(place, name) for name in names))
    return _remove(root, removals(place, targets, dependents, names_too), dry_run, json)


@app.command
def gc(
    *, root: Root = HERE, dry_run: Annotated[bool, Parameter(negative=())] = False, json: Json = False
) -> int:
    """Remove what no name opens, and no last record of a run has or needs. What is not finished is left.

    Parameters
    ----------
    root:
        Folder or URL of captures and artifacts.
    dry_run:
        Show what would go, and remove nothing.
    json:
        Answer in JSON.
    """
    from pipelines.remove import garbage
    from tasks.store.location import Location

    return _remove(root, garbage(Location(root)), dry_run, json)


def _remove(root: str, going: "list[Removal]", dry_run: bool, json: bool) -> int:
    from pipelines import terminal
    from pipelines.remove import remove
    from tasks.store.location import Location

    gone = going if dry_run else list(remove(Location(root), going))
    if json:
        told = {"removed": [one.model_dump(mode="json") for one in gone], "dry_run": dry_run}
        terminal.write_json(told)
        return DONE
    headings, total = ("kind", "id", "bytes", "why"), sum(one.bytes for one in gone)
    terminal.write_table(
        "would go" if dry_run else "removed", headings, ((o.kind, o.id, o.bytes, o.why) for o in gone)
    )
    terminal.write_line(f"{len(gone)} of them, {total:,} bytes{'; nothing was removed' if dry_run else ''}.")
    return DONE


@app.command
def show(id_: str, /, *, root: Root = HERE, json: Json = False) -> int:
    """Show everything known of a capture, artifact or run.

    Parameters
    ----------
    id_:
        The name of a capture, or an id, or the first letters of one.
    root:
        Folder or URL of captures and artifacts.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from pipelines.status import describe, find
    from tasks.store.location import Location

    place = Location(root)
    kind, name = find(place, id_)
    found = describe(place, kind, name)
    if json:
        terminal.write_json({"what": kind, **found})
    else:
        import yaml

        terminal.write_line(f"{kind} {name}")
        terminal.write_line(yaml.safe_dump(found, sort_keys=False, allow_unicode=True).rstrip())
    return DONE


@app.command
def export(
    id_: str,
    folder: Path,
    /,
    *,
    root: Root = HERE,
    candidate: str = "",
    time: Annotated[bool, Parameter(negative=())] = False,
    trust_code: TrustCode = False,
    json: Json = False,
) -> int:
    """Write a compressed network of a `compression.model` artifact as a folder: `subspan.load_compressed(folder)` is a plain torch module.

    Parameters
    ----------
    id_:
        The artifact's id, the first letters of it, or the name of its stage.
    folder:
        A new folder, or one that an export wrote.
    root:
        Folder or URL of captures and artifacts.
    candidate:
        Its name as in the artifact's result; left out, the best.
    time:
        Run both networks on samples of the capture in turn, and tell their seconds.
    trust_code:
        Run the functions that the store names, such as the one that makes the network.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from tasks.export import compressed_artifact
    from tasks.export import export as written
    from tasks.latency import compare
    from tasks.store.capture_spec import read_spec, refuse_code

    view = compressed_artifact(root, id_)
    if not trust_code:
        refuse_code(read_spec(view.root, view.artifact.stage.rows["network"][0].capture), "give --trust-code")
    made = written(view, folder, candidate)
    timed = compare(view, made.network) if time else None
    terminal.show_export(made, timed, json)
    return DONE


@app.command
def verify(
    id_: str,
    /,
    *,
    root: Root = HERE,
    recompute: Annotated[bool, Parameter(negative=())] = False,
    units: int | None = None,
    seed: int = 0,
    trust_code: TrustCode = False,
    json: Json = False,
) -> int:
    """Read every byte of a capture or artifact again and name what changed; or compute a capture again and name what differs.

    Parameters
    ----------
    id_:
        The name of a capture, an id, the first letters of one, or `all`.
    root:
        Folder or URL of captures and artifacts.
    recompute:
        Compute the rows of a capture again, in this process, and compare every value with the store, which is only read.
        Refused where weights, tokenizer or data are not those that were captured.
    units:
        With --recompute: how many units, drawn with the seed; left out, all.
    seed:
        Of the draw.
    trust_code:
        With --recompute: run the functions that the store names, such as the one that makes the network.
    json:
        Answer in JSON.
    """
    from tasks.store.location import Location

    if recompute:
        return _verify_again(Location(root), id_, units, seed, trust_code, json)
    if units is not None:
        raise SpecError(
            "--units says how many units are computed again; give --recompute too, or leave it out"
        )
    from pipelines import terminal
    from pipelines.check import OPEN, damages

    found = damages(Location(root), id_)
    lost = [entry for entry in found if entry["damage"]]
    unsealed = [entry for entry in found if entry["state"] == OPEN]
    if json:
        terminal.write_json(found)
    else:
        rows = ((d["path"], d["what"]) for entry in lost for d in entry["damage"])
        terminal.write_table("damaged", ("file", "what"), rows)
        terminal.write_table("open", ("capture", "state"), ((e["id"], e["state"]) for e in unsealed))
        n_sealed = len(found) - len(unsealed)
        terminal.write_line(f"{n_sealed - len(lost)} of {n_sealed} are whole.")
    return FAILURES if lost else DONE


def _verify_again(
    root: "Location", name: str, units: int | None, seed: int, trust_code: bool, json: bool
) -> int:
    from pipelines import terminal
    from pipelines.check import recomputed
    from pipelines.progress import Terminal

    if units is not None and units < 1:
        raise SpecError(f"--units {units}: expected at least 1")
    label = f"{name} again"
    with Terminal() as bars:
        bars.begin(label, units or 1)
        found = recomputed(
            root, name, units, seed, trust_code, lambda done, total: bars.at(label, done, total)
        )
    if json:
        terminal.write_json({**found._asdict(), "arrays": [one._asdict() for one in found.arrays]})
    else:
        terminal.show_recomputed(found)
    return DONE if found.exact else FAILURES


@app.command
def report(run_: str, /, *, root: Root = HERE, set_: Overrides = None, json: Json = False) -> int:
    """Make the page of a finished run again.

    Parameters
    ----------
    run_:
        YAML file of a run, or the id of a recorded run.
    root:
        Folder or URL of a recorded run.
    set_:
        Change a value of the run file: `--set report.title=...`.
    json:
        Answer in JSON.
    """
    from pipelines import terminal
    from pipelines.rerender import rerender_file, rerender_run
    from tasks.store.location import Location

    looks_like_file = run_.endswith((".yaml", ".yml")) or Path(run_).is_file()
    if looks_like_file:
        url = rerender_file(Path(run_), set_ or ())
    elif set_:
        raise SpecError(f"--set changes a run file, and {run_!r} is the id of a recorded run")
    else:
        url = rerender_run(Location(root), run_)
    if json:
        terminal.write_json({"report": url})
    else:
        terminal.write_line(url)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
