"""The verbs of the command line. Each is one function of the Python API with its arguments read and its result shown."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from thrifty.artifact_verbs import bench, serve, verify
from thrifty.errors import RunFailed, ThriftyError
from thrifty.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    USAGE,
    BudgetOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    JsonOption,
    MaxBytesOption,
    MaxDropOption,
    MaxLatencyOption,
    MinimizeOption,
    PairsOption,
    PriceOption,
    RecipeArgument,
    SavedAs,
    SeedOption,
    StoreOption,
    TaskOption,
    ThreadsOption,
    TrafficOption,
    WorkloadArgument,
)
from thrifty.report.shown import emit, show_layers, show_store

if TYPE_CHECKING:
    from thrifty.report.terminal import Progress
    from thrifty.target import Target


app = typer.Typer(
    name="thrifty", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find the efficiency frontier of a PyTorch model: what each method costs in training and gains in serving.",
)


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
def compilers(check: Annotated[bool, typer.Option("--check", help="Have each compile a tiny net; a minute.")] = False,
              as_json: JsonOption = False) -> None:
    """List the compilers: what is installed, what each serves, what to install, and whether it really works.

    Example: thrifty compilers --check
    """
    from thrifty.available import available
    from thrifty.report.artifacts import print_compilers

    found = available(check)
    emit([each.to_json() for each in found]) if as_json else print_compilers(found)
    raise typer.Exit(FAILED if any(each.tried is not None and not each.tried.works for each in found) else DONE)


@app.command()
def check(workload: WorkloadArgument, recipe: RecipeArgument, task: TaskOption = None, data: DataOption = None,
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, as_json: JsonOption = False) -> None:
    """Check a recipe and rehearse it: one step and one calibration batch of each phase, nothing long.

    Example: thrifty check digits "prune(ratio=0.5) | train(adamw)"
    """
    from thrifty.checking import check as check_recipe
    from thrifty.recipe import Recipe

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
    from thrifty.checking import check_recipe, resolve
    from thrifty.recipe import Recipe
    from thrifty.report import terminal
    from thrifty.run import run as run_recipe

    parsed, target = Recipe.parse(recipe), target_of(device, threads)
    definition = resolve(workload_reference(workload, task, data))
    properties = check_recipe(definition, parsed, target.device)
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
    from thrifty.checking import check_recipe, resolve
    from thrifty.recipe import Recipe
    from thrifty.search.sweep import sweep as sweep_recipes
    from thrifty.workloads import suggested

    definition, target = resolve(workload_reference(workload, task, data)), target_of(device, threads)
    chosen = recipes or suggested(workload)
    for recipe in chosen:
        check_recipe(definition, Recipe.parse(recipe), target.device)
    if dry_run:
        emit({"workload": definition.name, "recipes": chosen}) if as_json else print("\n".join(chosen))
        return
    with progress() as shown:
        found = sweep_recipes(definition, chosen, store=store, target=target, seed=seed, price=price,
                              listener=shown.hear)
    show_store(store, as_json)
    raise typer.Exit(DONE if any(trial.status == "done" for trial in found.trials) else FAILED)


@app.command()
def explore(workload: WorkloadArgument, budget: BudgetOption, task: TaskOption = None, data: DataOption = None,
            max_drop: MaxDropOption = None,
            max_bytes: MaxBytesOption = None, max_latency: MaxLatencyOption = None,
            minimize: MinimizeOption = "latency",
            store: StoreOption = Path("study"),
            only: Annotated[str | None, typer.Option("--methods", help="Only these, by comma: prune,quantize,inductor.")]
            = None,
            device: DeviceOption = "cpu", threads: ThreadsOption = 1, seed: SeedOption = 0,
            workers: Annotated[int, typer.Option("--workers", min=1, help="Recipes compiled side by side.")] = 1,
            requests_per_day: TrafficOption = None, price: PriceOption = None, as_json: JsonOption = False,
            dry_run: DryRunOption = False) -> None:
    """Explore recipes under a budget and recommend one: the reference, each method alone, then compositions.

    Ctrl-C ends it with the frontier so far; the same command goes on from there.

    Example: thrifty explore digits --budget 5m --max-drop 1pt --minimize latency --out study/
    """
    from thrifty.checking import resolve
    from thrifty.choosing import Bars, seconds
    from thrifty.search.explore import explore as explore_recipes
    from thrifty.search.space import Space

    bars, limit = Bars.read(max_drop, max_bytes, max_latency, minimize), seconds(budget)
    methods = [name.strip() for name in (only or "").split(",") if name.strip()]
    definition, target = resolve(workload_reference(workload, task, data)), target_of(device, threads)
    space = Space.of(definition, methods, target.device)
    if dry_run:
        slots = {slot.name: list(slot.options) for slot in space.slots}
        emit({"workload": definition.name, "choices": space.size(), "slots": slots}) if as_json else print(
            "\n".join(f"{name}: {', '.join(options)}" for name, options in slots.items()))
        return
    with progress() as shown:
        found = explore_recipes(definition, limit, store=store, bars=bars, methods=methods, target=target, seed=seed,
                                price=price, workers=workers, listener=shown.hear)
    show_store(store, as_json, requests_per_day)
    if not as_json:
        print(f"\nThe page: thrifty report {store}")
    if found.ended == "interrupted":
        print("thrifty: interrupted; what was measured is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)
    if found.error:
        print(f"thrifty: {found.error}. What was measured is kept, and the same command goes on from there", file=sys.stderr)
        raise typer.Exit(FAILED)
    raise typer.Exit(DONE if found.choice.trial is not None else FAILED)


@app.command()
def tune(workload: WorkloadArgument, optimizers: Annotated[list[str], typer.Argument(
             metavar="OPTIMIZER...", help='Names, or texts whose values are searched around: adamw "sophia(lr=3e-4)".')],
         trials: Annotated[int | None, typer.Option("--trials", help="Trainings of each optimizer; 6 by default.")] = None,
         budget: Annotated[str | None, typer.Option("--budget", help="Time for everything, in the place of trials: 2h.")]
         = None,
         also: Annotated[str, typer.Option("--also", help="A second number to tune: weight_decay, warmup, ...")] = "",
         seeds: Annotated[int, typer.Option("--seeds", help="Of the final trainings.")] = 3,
         evaluations: Annotated[int, typer.Option("--evaluations", help="On the way of a final training.")] = 20,
         task: TaskOption = None, data: DataOption = None,
         store: StoreOption = Path("study"),
         device: DeviceOption = "cpu", seed: SeedOption = 0, price: PriceOption = None, as_json: JsonOption = False,
         dry_run: DryRunOption = False) -> None:
    """Tune optimizers alike, and say how soon each attains the reference's quality: seconds, steps, FLOPs, over seeds.

    Example: thrifty tune digits adamw muon sophia --trials 6 --out study/
    """
    from thrifty.checking import resolve
    from thrifty.choosing import seconds
    from thrifty.report.tuning import print_tuned
    from thrifty.search.tune import plan
    from thrifty.search.tune import tune as tune_optimizers

    definition, limit = resolve(workload_reference(workload, task, data)), None if budget is None else seconds(budget)
    if dry_run:
        first = plan(definition, optimizers, also)
        emit({"workload": definition.name, "recipes": first}) if as_json else print("\n".join(first))
        return
    with progress() as shown:
        found = tune_optimizers(definition, optimizers, store=store, trials=trials, budget=limit, also=also, seeds=seeds,
                                evaluations=evaluations, target=target_of(device, 1), seed=seed, price=price,
                                listener=shown.hear)
    emit(found.to_json()) if as_json else print_tuned(found)
    raise typer.Exit(DONE if any(one.final is not None for one in found.optimizers) else FAILED)


@app.command()
def best(store: Annotated[Path, typer.Argument(help="A study's directory.")] = Path("study"),
         max_drop: MaxDropOption = None, max_bytes: MaxBytesOption = None, max_latency: MaxLatencyOption = None,
         minimize: MinimizeOption = "latency",
         place: Annotated[Path | None, typer.Option("--save", help="Write it into this new directory.")] = None,
         format: Annotated[SavedAs, typer.Option(
             "--format", help="Its engine, its model for transformers, or, of few bits, for vLLM (compressed-tensors).")]
         = SavedAs.artifact,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Choose the best trial of a study that keeps to the bars, and save its artifact.

    Example: thrifty best study/ --max-drop 0.5pt --save model/
    """
    from thrifty.choosing import Bars, choose
    from thrifty.findings import Findings
    from thrifty.report.choice import print_choice
    from thrifty.saving import save

    bars = Bars.read(max_drop, max_bytes, max_latency, minimize)
    if place is not None and place.exists():
        raise ThriftyError(f"{place} is there already: name a new directory to save in")
    found = Findings.read(store)
    choice = choose(found.trials, bars)
    saved = place if place is not None and choice.trial is not None else None
    if saved is not None and choice.trial is not None:
        save(saved, choice.trial, format.value, found.source)
    if as_json:
        emit({"trial": choice.trial and choice.trial.to_json(), "nearest": choice.nearest and choice.nearest.id,
              "misses": [vars(miss) for miss in choice.misses], "bars": bars.to_json(),
              "saved": None if saved is None else str(saved)})
    else:
        print_choice(choice, bars, found.spent, requests_per_day)
    raise typer.Exit(DONE if choice.trial is not None else FAILED)


for verb in (bench, verify, serve):
    app.command()(verb)


@app.command()
def show(store: Annotated[Path, typer.Argument(help="A study's directory; with --layers, or an artifact's.")] = Path("study"),
         layers: Annotated[bool, typer.Option("--layers", help="Of quantized layers: scheme, bytes and error of each.")] = False,
         requests_per_day: TrafficOption = None, as_json: JsonOption = False) -> None:
    """Show a study's trials, its frontier, its failures, where the time went, and what it recommends.

    Example: thrifty show study/
    """
    if layers:
        show_layers(store, as_json)
    else:
        show_store(store, as_json, requests_per_day)


@app.command()
def report(store: Annotated[Path, typer.Argument(help="A study's directory.")] = Path("study"),
           out: Annotated[Path | None, typer.Option("--out", help="The file; report.html in the study by default.")] = None,
           requests_per_day: Annotated[float | None, typer.Option(
               "--requests-per-day", help="How many the model will serve: tells break-even in days.")] = None,
           as_json: JsonOption = False) -> None:
    """Write a study's page: one HTML file that works offline, and print its path.

    Example: thrifty report study/ --out frontier.html --requests-per-day 100000
    """
    from thrifty.report.page import write

    path = write(store, out, requests_per_day=requests_per_day)
    emit({"page": str(path)}) if as_json else print(path)


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
        return INTERRUPTED
    except SystemExit as leave:
        return leave.code if isinstance(leave.code, int) else FAILED
    return DONE


if __name__ == "__main__":
    main()
