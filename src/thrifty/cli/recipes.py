"""The verbs that run recipes: one, several, or those that a search proposes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.options import (
    DONE,
    FAILED,
    INTERRUPTED,
    BudgetOption,
    DataOption,
    DeviceOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    MaxBytesOption,
    MaxDropOption,
    MaxLatencyOption,
    MinimizeOption,
    PairsOption,
    PriceOption,
    RecipeArgument,
    SeedOption,
    StoreOption,
    TaskOption,
    ThreadsOption,
    TrafficOption,
    WorkloadArgument,
)
from thrifty.report.shown import emit, show_store
from thrifty.report.words import shortened

if TYPE_CHECKING:
    from thrifty.report.terminal import Progress
    from thrifty.target import Target


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


def check(workload: WorkloadArgument, recipe: RecipeArgument, task: TaskOption = None, data: DataOption = None,
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, as_json: JsonOption = False) -> None:
    """Check a recipe and rehearse it: one step and one calibration batch of each phase, nothing long.

    Example: thrifty check digits "prune(ratio=0.5) | train(adamw)"
    """
    from thrifty.recipes.recipe import Recipe
    from thrifty.runs.preflight import check as check_recipe

    found = check_recipe(workload_reference(workload, task, data), recipe, target=target_of(device, threads))
    if as_json:
        emit({"recipe": str(Recipe.parse(recipe)), "workload": workload, "status": "ok", "properties": sorted(found)})
    else:
        print(f"ok: {Recipe.parse(recipe)}\nleaves a model that is: {', '.join(sorted(found))}")


def run(workload: WorkloadArgument, recipe: RecipeArgument, task: TaskOption = None, data: DataOption = None,
        store: StoreOption = Path("study"), device: DeviceOption = "cpu", threads: ThreadsOption = 1,
        seed: SeedOption = 0, pairs: PairsOption = 5, price: PriceOption = None, force: ForceOption = False,
        as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Run a recipe, measure it, and keep the trial and its artifact.

    Example: thrifty run digits "train(adamw, epochs=2) | prune(ratio=0.5) | compile(onnxruntime)" --store study/
    """
    from thrifty.recipes.recipe import Recipe
    from thrifty.report import terminal
    from thrifty.runs.preflight import check_recipe, resolve
    from thrifty.runs.runner import run as run_recipe

    parsed, target = Recipe.parse(recipe), target_of(device, threads)
    definition = resolve(workload_reference(workload, task, data))
    if dry_run:
        properties = check_recipe(definition, parsed, target.device)
        plan = {"recipe": str(parsed), "workload": definition.name, "reference": definition.reference,
                "target": target.to_json(), "seed": seed, "status": "dry-run", "properties": sorted(properties)}
        emit(plan) if as_json else print(shortened("\n".join(f"{key}: {value}" for key, value in plan.items()), 4000))
        return
    with progress() as shown:
        trial = run_recipe(definition, parsed, store=store, target=target, seed=seed, pairs=pairs, price=price,
                           force=force, listener=shown.hear)
    if as_json:
        emit(trial.to_json())
    else:
        terminal.print_trial(trial)
    raise typer.Exit(DONE if trial.status == "done" else FAILED)


def sweep(workload: WorkloadArgument, recipes: Annotated[list[str] | None, typer.Argument(
              metavar="[RECIPE]...", help="Recipes; the workload's own list where none is given.")] = None,
          task: TaskOption = None, data: DataOption = None, store: StoreOption = Path("study"),
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, seed: SeedOption = 0, price: PriceOption = None,
          as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Measure several recipes, measure the best again with five pairs, score them on test, show the frontier.

    Example: thrifty sweep digits --store study/
    """
    from thrifty.recipes.recipe import Recipe
    from thrifty.runs.preflight import check_recipe, resolve
    from thrifty.search.sweep import sweep as sweep_recipes
    from thrifty.workloads.embedded import suggested

    definition, target = resolve(workload_reference(workload, task, data)), target_of(device, threads)
    chosen = [Recipe.parse(recipe) for recipe in recipes or suggested(workload)]
    if dry_run:
        for recipe in chosen:
            check_recipe(definition, recipe, target.device)
        texts = [str(recipe) for recipe in chosen]
        emit({"workload": definition.name, "recipes": texts}) if as_json else print("\n".join(texts))
        return
    with progress() as shown:
        found = sweep_recipes(definition, chosen, store=store, target=target, seed=seed, price=price,
                              listener=shown.hear)
    show_store(store, as_json)
    raise typer.Exit(DONE if any(trial.status == "done" for trial in found.trials) else FAILED)


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
    from thrifty.runs.preflight import resolve
    from thrifty.search.explore import explore as explore_recipes
    from thrifty.search.space import Space
    from thrifty.studies.constraints import Bars
    from thrifty.units import seconds

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


def tune(workload: WorkloadArgument, optimizers: Annotated[list[str], typer.Argument(
             metavar="OPTIMIZER...", help='Names, or texts whose values are searched around: adamw "sophia(lr=3e-4)".')],
         trials: Annotated[int | None, typer.Option("--trials", help="Trainings of each optimizer; 9 by default.")] = None,
         budget: Annotated[str | None, typer.Option("--budget", help="Time for everything, in the place of trials: 2h.")]
         = None,
         also: Annotated[str, typer.Option("--also", help="Tune these beside the learning rate, not what each paper says: "
                                                  "weight_decay,warmup; lr for it alone.")] = "",
         seeds: Annotated[int, typer.Option("--seeds", help="Of the final trainings.")] = 3,
         evaluations: Annotated[int, typer.Option("--evaluations", help="On the way of a final training.")] = 20,
         task: TaskOption = None, data: DataOption = None,
         store: StoreOption = Path("study"),
         device: DeviceOption = "cpu", seed: SeedOption = 0, price: PriceOption = None, as_json: JsonOption = False,
         dry_run: DryRunOption = False) -> None:
    """Tune optimizers alike, and say how soon each attains the reference's quality: seconds, steps, FLOPs, over seeds.

    Example: thrifty tune digits adamw muon sophia --trials 6 --out study/
    """
    from thrifty.report.tuning import print_tuned
    from thrifty.runs.preflight import resolve
    from thrifty.search.tune import plan
    from thrifty.search.tune import tune as tune_optimizers
    from thrifty.units import seconds

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
