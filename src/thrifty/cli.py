"""The verbs of the command line. Each is one function of the Python API with its arguments read and its result shown."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from thrifty.errors import RunFailed, ThriftyError

if TYPE_CHECKING:
    from thrifty.report.terminal import Progress
    from thrifty.target import Target

DONE, FAILED, USAGE = 0, 1, 2

app = typer.Typer(
    name="thrifty", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the efficiency frontier of a PyTorch model: what each method costs in training and gains in serving.",
)

WorkloadArgument = Annotated[str, typer.Argument(
    metavar="WORKLOAD", help="An embedded workload (thrifty workloads), a file that defines `workload`, or a Hugging "
                             "Face directory.")]
RecipeArgument = Annotated[str, typer.Argument(
    metavar="RECIPE", help='Such as "train(adamw, epochs=2) | quantize(w8a8) | compile(onnxruntime)".')]
TaskOption = Annotated[str | None, typer.Option("--task", help="Of a Hugging Face directory: text-classification, "
                                                "causal-lm, feature-extraction or image-classification.")]
DataOption = Annotated[Path | None, typer.Option("--data", help="Of a Hugging Face directory: its examples, JSON Lines.")]
StoreOption = Annotated[Path, typer.Option("--store", help="The study's directory; asking again resumes.")]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu or cuda.")]
ThreadsOption = Annotated[int, typer.Option("--threads", help="Of inference; one gives the steadiest timings.")]
SeedOption = Annotated[int, typer.Option("--seed", help="Of every random stream.")]
PairsOption = Annotated[int, typer.Option("--pairs", min=1, help="Process pairs: 1 screens, 5 or more claim.")]
PriceOption = Annotated[float | None, typer.Option("--price", help="Dollars an hour of this machine.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, all else on stderr.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Check, say what would run, and run nothing.")]
TrustOption = Annotated[bool, typer.Option("--trust-native-code", help="Let an artifact run its machine code.")]


def emit(value: Any) -> None:
    """The one JSON object of a command, on stdout; what was not measured, and what is not finite, is null."""
    print(json.dumps(finite(value), ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON has not."""
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            return None
        case dict():
            return {key: finite(part) for key, part in value.items()}
        case list() | tuple():
            return [finite(part) for part in value]
    return value


def progress() -> Progress:
    from thrifty.report.terminal import Progress

    return Progress()


def target_of(device: str, threads: int) -> Target:
    from thrifty.target import Target

    return Target(device=device, threads=threads)


def workload_reference(workload: str, task: str | None, data: Path | None) -> str:
    """The workload's reference; of a Hugging Face directory with its task and data in it."""
    if task is None and data is None:
        return workload
    from thrifty.workloads.huggingface import reference

    return reference(workload, task, data)


@app.command()
def workloads(as_json: JsonOption = False) -> None:
    """List the embedded workloads.

    Example: thrifty workloads --json
    """
    from thrifty.report import listing
    from thrifty.workloads import EMBEDDED

    if as_json:
        emit([{"name": name, "description": entry.description, "extra": entry.extra}
              for name, entry in EMBEDDED.items()])
    else:
        listing.print_workloads(EMBEDDED)


@app.command()
def methods(name: Annotated[str | None, typer.Argument(help="Show one method's card.")] = None,
            as_json: JsonOption = False) -> None:
    """List the methods, or show one's card: hyperparameters, what it needs, what it costs.

    Example: thrifty methods prune
    """
    from thrifty.registry import method_class, names
    from thrifty.report import listing

    chosen = [method_class(each) for each in ([name] if name else names())]
    if as_json:
        rows = [listing.method_json(cls) for cls in chosen]
        emit(rows[0] if name else [{key: row[key] for key in (
            "name", "family", "phase", "benefit", "trade_off", "paper")} for row in rows])
    elif name:
        listing.print_method(chosen[0])
    else:
        listing.print_methods(chosen)


@app.command()
def check(workload: WorkloadArgument, recipe: RecipeArgument, task: TaskOption = None, data: DataOption = None,
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, as_json: JsonOption = False) -> None:
    """Check a recipe and rehearse it: one step and one calibration batch of each phase, nothing long.

    Example: thrifty check digits "prune(ratio=0.5) | train(adamw)"
    """
    from thrifty.recipe import Recipe
    from thrifty.run import check as check_recipe

    found = check_recipe(workload_reference(workload, task, data), recipe, target=target_of(device, threads))
    if as_json:
        emit({"recipe": str(Recipe.parse(recipe)), "workload": workload, "status": "ok", "properties": sorted(found)})
    else:
        print(f"ok: {Recipe.parse(recipe)}\nleaves a model that is: {', '.join(sorted(found))}")


@app.command()
def run(workload: WorkloadArgument, recipe: RecipeArgument, task: TaskOption = None, data: DataOption = None,
        store: StoreOption = Path("study"), device: DeviceOption = "cpu", threads: ThreadsOption = 1,
        seed: SeedOption = 0, pairs: PairsOption = 5, price: PriceOption = None, as_json: JsonOption = False,
        dry_run: DryRunOption = False) -> None:
    """Run a recipe, measure it, and keep the trial and its artifact.

    Example: thrifty run digits "train(adamw, epochs=2) | prune(ratio=0.5) | compile(onnxruntime)" --store study/
    """
    from thrifty.recipe import Recipe
    from thrifty.report import terminal
    from thrifty.run import check_recipe, resolve
    from thrifty.run import run as run_recipe

    parsed, target = Recipe.parse(recipe), target_of(device, threads)
    definition = resolve(workload_reference(workload, task, data))
    properties = check_recipe(definition, parsed)
    if dry_run:
        plan = {"recipe": str(parsed), "workload": definition.name, "reference": definition.reference,
                "target": target.to_json(), "seed": seed, "status": "dry-run", "properties": sorted(properties)}
        emit(plan) if as_json else print("\n".join(f"{key}: {value}" for key, value in plan.items()))
        return
    with progress() as shown:
        trial = run_recipe(definition, parsed, store=store, target=target, seed=seed, pairs=pairs, price=price,
                           listener=shown.hear)
    if as_json:
        emit(trial.to_json())
    else:
        terminal.print_trial(trial)
    raise typer.Exit(DONE if trial.status == "done" else FAILED)


@app.command()
def sweep(workload: WorkloadArgument, recipes: Annotated[list[str] | None, typer.Argument(
              metavar="[RECIPE]...", help="Recipes; the workload's own list where none is given.")] = None,
          task: TaskOption = None, data: DataOption = None, store: StoreOption = Path("study"),
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, seed: SeedOption = 0, price: PriceOption = None,
          as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Measure several recipes, measure the best again with five pairs, score them on test, show the frontier.

    Example: thrifty sweep digits --store study/
    """
    from thrifty.recipe import Recipe
    from thrifty.run import check_recipe, resolve
    from thrifty.search.sweep import sweep as sweep_recipes
    from thrifty.workloads import suggested

    definition, target = resolve(workload_reference(workload, task, data)), target_of(device, threads)
    chosen = recipes or suggested(workload)
    for recipe in chosen:
        check_recipe(definition, Recipe.parse(recipe))
    if dry_run:
        emit({"workload": definition.name, "recipes": chosen}) if as_json else print("\n".join(chosen))
        return
    with progress() as shown:
        found = sweep_recipes(definition, chosen, store=store, target=target, seed=seed, price=price,
                              listener=shown.hear)
    show_store(store, as_json)
    raise typer.Exit(DONE if any(trial.status == "done" for trial in found.trials) else FAILED)


@app.command()
def bench(artifact: Annotated[Path, typer.Argument(help="An artifact's directory.")],
          threads: Annotated[int | None, typer.Option("--threads", help="Of inference; the artifact's own by default.")] = None,
          rounds: Annotated[int, typer.Option("--rounds", min=1, help="Fresh processes.")] = 5,
          trust_native_code: TrustOption = False, as_json: JsonOption = False) -> None:
    """Load an artifact in clean processes and measure it again.

    Example: thrifty bench study/artifacts/6f3ad6fd8ef4
    """
    from thrifty.report import terminal
    from thrifty.run import bench as bench_artifact

    found = bench_artifact(artifact, threads=threads, rounds=rounds, trust_native_code=trust_native_code)
    emit(found) if as_json else terminal.print_bench(found)


@app.command()
def show(store: Annotated[Path, typer.Argument(help="A study's directory.")] = Path("study"),
         as_json: JsonOption = False) -> None:
    """Show a study's trials, its frontier, its failures and where the time went.

    Example: thrifty show study/
    """
    show_store(store, as_json)


@app.command()
def cache(clean: Annotated[bool, typer.Option("--clean", help="Remove what exceeds the quota, oldest first.")] = False,
          everything: Annotated[bool, typer.Option("--all", help="With --clean: remove all.")] = False,
          as_json: JsonOption = False) -> None:
    """Show the cache's size and quota, or clean it.

    Example: thrifty cache --clean
    """
    from thrifty import cache as kept
    from thrifty.report import listing

    removed = kept.clean(everything=everything) if clean else None
    usage = kept.usage()
    emit(listing.cache_json(usage, removed)) if as_json else listing.print_cache(usage, removed)


def show_store(store: Path, as_json: bool) -> None:
    from thrifty.frontier import frontier
    from thrifty.report import terminal
    from thrifty.store import Store

    with Store.open(store) as opened:
        trials, spent, failures = opened.trials(), opened.spent(), opened.failures()
    found = frontier(trials)
    if as_json:
        emit(terminal.study_json(trials, found, spent, failures))
    else:
        terminal.print_study(trials, found, spent, failures)


def main() -> NoReturn:
    """Run the command line: 0 done, 1 the run failed, 2 usage."""
    sys.exit(guarded(app))


def guarded(command: Callable[..., Any]) -> int:
    """Turn every error that is meant for the user into one message and an exit code."""
    try:
        command()
    except RunFailed as error:
        print(f"thrifty: {error}", file=sys.stderr)
        return FAILED
    except ThriftyError as error:
        print(f"thrifty: {error}", file=sys.stderr)
        return USAGE
    except OSError as error:
        full = "; free some space: thrifty cache --clean frees what the cache holds" if error.errno == errno.ENOSPC else ""
        print(f"thrifty: {error}{full}. What was measured is kept", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("thrifty: interrupted; what was measured is kept, and the same command goes on from there",
              file=sys.stderr)
        return 130
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else FAILED
    return DONE


if __name__ == "__main__":
    main()
