"""The verbs that run recipes: one, several, or those that a search proposes."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from thrifty.cli.directories import of_directories
from thrifty.cli.options import (
    DONE,
    FAILED,
    BudgetOption,
    DeviceOption,
    DryRunOption,
    ForceOption,
    JsonOption,
    LogOption,
    MaxBytesOption,
    MaxDropOption,
    MaxLatencyOption,
    MinimizeOption,
    NprocOption,
    PairsOption,
    PriceOption,
    RecipeArgument,
    RestartsOption,
    SeedOption,
    StudyOption,
    ThreadsOption,
    TrafficOption,
    TrainingDeviceOption,
    TrainingThreadsOption,
    WorkloadArgument,
    answered,
)
from thrifty.cli.output import emit, hint, print_study
from thrifty.errors import ThriftyError
from thrifty.report.words import shortened

if TYPE_CHECKING:
    from thrifty.studies.events import Listener
    from thrifty.target import Target
    from thrifty.workloads.workload import Workload


@contextlib.contextmanager
def listening(workload: Workload, study: Path, log: list[str] | None) -> Iterator[Listener]:
    """A listener that tells what goes on to the terminal, and to the sinks that were asked for."""
    from thrifty.report.sinks.logs import both, log_to
    from thrifty.report.terminal import Progress

    with Progress() as shown, log_to(*(log or ()), study=study, workload=workload.name, say=shown.note) as logs:
        yield both(shown.hear, logs)


def begin_warm(device: str, dry_run: bool) -> None:
    """Have the process that runs jobs import while this one does."""
    from thrifty.runs import warm

    if device == "cpu" and not dry_run:
        warm.begin()


def target_of(device: str, threads: int) -> Target:
    from thrifty.target import Target

    return Target(device=device, threads=threads)


@of_directories
def check(workload: WorkloadArgument, recipe: Annotated[str | None, typer.Argument(
              metavar="RECIPE", help="The recipe; the workload's own reference recipe by default.")] = None,
          device: DeviceOption = "cpu", threads: ThreadsOption = 1, training_device: TrainingDeviceOption = None,
          as_json: JsonOption = False) -> None:
    """Check a workload and a recipe, and rehearse it: one training step or one calibration batch for each phase.

    Example: thrifty check digits "prune(ratio=0.5) | train(adamw)"
    """
    from thrifty.recipes.recipe import Recipe
    from thrifty.runs.preflight import check as check_recipe
    from thrifty.runs.preflight import resolve

    definition = resolve(workload)
    parsed = Recipe.parse(definition.reference if recipe is None else recipe)
    found = check_recipe(definition, parsed, target=target_of(device, threads), training_device=training_device)
    if as_json:
        emit({"recipe": str(parsed), "workload": workload, "status": "ok", "properties": sorted(found)})
    else:
        print(f"ok: {parsed or 'the model as it is'}\nleaves a model that is: {', '.join(sorted(found))}")


@of_directories
def run(workload: WorkloadArgument, recipe: RecipeArgument, study: StudyOption = None, device: DeviceOption = "cpu",
        threads: ThreadsOption = 1, seed: SeedOption = 0, pairs: PairsOption = 5, price: PriceOption = None,
        force: ForceOption = False, nproc: NprocOption = None, max_restarts: RestartsOption = 0,
        training_threads: TrainingThreadsOption = None, training_device: TrainingDeviceOption = None, log: LogOption = None,
        as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Run a recipe and measure it; the trial and its artifact are kept in a study.

    Example: thrifty run digits "train(adamw, epochs=2) | prune(ratio=0.5) | compile(onnxruntime)"
    """
    begin_warm(device, dry_run)
    from thrifty.recipes.recipe import Recipe
    from thrifty.report import terminal
    from thrifty.runs.preflight import check_ranks, check_recipe, resolve
    from thrifty.runs.ranks import count_here
    from thrifty.runs.runner import run as run_recipe
    from thrifty.studies.places import default_study
    from thrifty.units import plainly

    parsed, target, count = Recipe.parse(recipe), target_of(device, threads), count_here(nproc)
    definition = resolve(workload)
    if dry_run:
        properties = check_recipe(definition, parsed, target.device, training_device)
        check_ranks(definition, parsed, count)
        plan = {"recipe": str(parsed), "workload": definition.name, "reference": definition.reference,
                "target": target.to_json(), "seed": seed, "status": "dry-run", "properties": sorted(properties)}
        emit(plan) if as_json else print(shortened("\n".join(f"{key}: {plainly(value)}" for key, value in plan.items()), 4000))
        return
    place = study or default_study(definition.source)
    with listening(definition, place, log) as listener:
        trial = run_recipe(definition, parsed, study=place, target=target, seed=seed, pairs=pairs, price=price,
                           force=force, nproc=count, max_restarts=max_restarts, training_threads=training_threads,
                           training_device=training_device, listener=listener)
    if as_json:
        emit(trial.to_json())
    else:
        terminal.print_trial(trial)
        hint(f"The study is in {place}; thrifty show {place} shows all its trials.")
    raise typer.Exit(DONE if trial.status == "done" else FAILED)


@of_directories
def plan(workload: WorkloadArgument, recipe: RecipeArgument, nproc: NprocOption = None, device: DeviceOption = "cpu",
         as_json: JsonOption = False) -> None:
    """Estimate a distributed training before it runs: memory per rank for each ZeRO stage, time per step, which stage fits.

    Example: thrifty plan digits "train(zero3, adamw)" --nproc 2
    """
    from thrifty.report.plans import print_plans
    from thrifty.runs.ranks import count_here
    from thrifty.search.planner import plan as plan_recipe

    found = plan_recipe(workload, recipe, count_here(nproc), device)
    emit({"plans": [one.to_json() for one in found]}) if as_json else print_plans(found)


@of_directories
def sweep(workload: WorkloadArgument, recipes: Annotated[list[str] | None, typer.Argument(
              metavar="[RECIPE]...", help="The recipes; the embedded workload's own list by default.")] = None,
          study: StudyOption = None, device: DeviceOption = "cpu", threads: ThreadsOption = 1,
          seed: SeedOption = 0, price: PriceOption = None, training_threads: TrainingThreadsOption = None,
          training_device: TrainingDeviceOption = None, log: LogOption = None,
          as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Measure several recipes, then the best again with confidence intervals and on test; show the Pareto frontier.

    Example: thrifty sweep digits
    """
    begin_warm(device, dry_run)
    from thrifty.recipes.recipe import Recipe
    from thrifty.runs.preflight import check_recipe, resolve
    from thrifty.search.sweep import sweep as sweep_recipes
    from thrifty.studies.places import default_study
    from thrifty.workloads.embedded import suggested

    definition, target = resolve(workload), target_of(device, threads)
    chosen = [Recipe.parse(recipe) for recipe in recipes or suggested(workload)]
    if dry_run:
        for recipe in chosen:
            check_recipe(definition, recipe, target.device, training_device)
        texts = [str(recipe) for recipe in chosen]
        emit({"workload": definition.name, "recipes": texts}) if as_json else print("\n".join(texts))
        return
    place = study or default_study(definition.source)
    with listening(definition, place, log) as listener:
        found = sweep_recipes(definition, chosen, study=place, target=target, seed=seed, price=price,
                              training_threads=training_threads, training_device=training_device, listener=listener)
    print_study(place, as_json)
    hint(f"The study is in {place}; its page: thrifty report {place}")
    raise typer.Exit(DONE if any(trial.status == "done" for trial in found.trials) else FAILED)


@of_directories
def orders(workload: WorkloadArgument, methods: Annotated[list[str], typer.Argument(
               metavar="METHOD...", help='Two to five names or texts: "prune(ratio=0.3)" distill "quantize(w8a8)".')],
           compiler: Annotated[str, typer.Option(
               "--compiler", help="The compiler at the end of every recipe: compile(onnxruntime).")] = "",
           epochs: Annotated[int, typer.Option("--epochs", min=1, help="Epochs for each training.")] = 1,
           study: StudyOption = None, device: DeviceOption = "cpu", threads: ThreadsOption = 1, seed: SeedOption = 0,
           price: PriceOption = None, log: LogOption = None, as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Measure every order in which methods can be applied to the trained reference.

    Example: thrifty orders digits "prune(ratio=0.5)" distill "quantize(w8a8)"
    """
    from thrifty.report.orders import print_orders
    from thrifty.runs.preflight import resolve
    from thrifty.search.orders import measure_orders
    from thrifty.search.orders import orders as possible
    from thrifty.studies.places import default_study

    definition = resolve(workload)
    if dry_run:
        found = possible(definition, methods, epochs, compiler)
        texts = {order: str(recipe) for order, recipe in found.recipes.items()}
        emit({"workload": definition.name, "recipes": texts, "refused": found.refused}) if as_json else print(
            "\n".join([*texts.values(), *(f"{order}: {why}" for order, why in found.refused.items())]))
        return
    place = study or default_study(definition.source)
    with listening(definition, place, log) as listener:
        ran = measure_orders(definition, methods, epochs=epochs, compiler=compiler, study=place,
                             target=target_of(device, threads), seed=seed, price=price, listener=listener)
    emit(ran.to_json()) if as_json else print_orders(ran)
    hint(f"The study is in {place}; thrifty show {place} shows all its trials.")
    raise typer.Exit(DONE if any(trial.status == "done" for trial in ran.trials.values()) else FAILED)


@of_directories
def explore(workload: WorkloadArgument, budget: BudgetOption, max_drop: MaxDropOption = None,
            max_bytes: MaxBytesOption = None, max_latency: MaxLatencyOption = None,
            minimize: MinimizeOption = "latency",
            study: StudyOption = None,
            only: Annotated[str | None, typer.Option(
                "--methods", help="Use only these methods, separated by commas: prune,quantize,inductor.")]
            = None,
            device: DeviceOption = "cpu", threads: ThreadsOption = 1, seed: SeedOption = 0,
            workers: Annotated[str, typer.Option(
                "--workers", help="The number of recipes to compile in parallel, or ray.")] = "1",
            worker_cpus: Annotated[int, typer.Option("--worker-cpus", min=1, help="With ray: processors per recipe.")] = 1,
            worker_gpus: Annotated[int, typer.Option("--worker-gpus", min=0, help="With ray: GPUs per recipe.")] = 0,
            worker_memory: Annotated[str | None, typer.Option(
                "--worker-memory", help="With ray: memory per recipe, such as 4GB.")] = None,
            nproc: NprocOption = None, requests_per_day: TrafficOption = None, price: PriceOption = None,
            training_threads: TrainingThreadsOption = None, training_device: TrainingDeviceOption = None, log: LogOption = None,
            as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Search for the best recipe within a time budget: the reference, each method alone, then compositions.

    Reports the Pareto frontier of quality, training cost and inference cost, and recommends one trial. Ctrl-C ends with the
    frontier so far; the same command continues from there. Exit code 3: no trial is significantly better than the unmodified
    model, so keep that.

    Example: thrifty explore digits --budget 5m --max-drop 1pt --minimize latency
    """
    begin_warm(device, dry_run)
    from thrifty.runs.preflight import resolve
    from thrifty.runs.ranks import count_here
    from thrifty.search.explore import explore as explore_recipes
    from thrifty.search.space import Space
    from thrifty.studies.constraints import Bars
    from thrifty.studies.places import default_study
    from thrifty.units import seconds, size

    bars, limit = Bars.read(max_drop, max_bytes, max_latency, minimize), seconds(budget)
    methods = [name.strip() for name in (only or "").split(",") if name.strip()]
    definition, target = resolve(workload), target_of(device, threads)
    count = count_here(nproc)
    space = Space.of(definition, methods, target.device, count, training_device)
    if dry_run:
        slots = {slot.name: list(slot.options) for slot in space.slots}
        emit({"workload": definition.name, "choices": space.size(), "slots": slots}) if as_json else print(
            "\n".join(f"{name}: {', '.join(options)}" for name, options in slots.items()))
        return
    launcher = None
    if workers == "ray":
        from thrifty.runs.launcher_ray import RayLauncher

        launcher = RayLauncher(cpus=worker_cpus, gpus=worker_gpus,
                               memory=None if worker_memory is None else size(worker_memory))
        workers = str(launcher.workers)
    elif not workers.isdecimal() or not int(workers):
        raise ThriftyError(f"--workers must be 1 or more, or ray, but is {workers!r}")
    place = study or default_study(definition.source)
    with listening(definition, place, log) as listener:
        found = explore_recipes(definition, limit, study=place, bars=bars, methods=methods, target=target, seed=seed,
                                price=price, workers=int(workers), launcher=launcher, nproc=count,
                                training_threads=training_threads, training_device=training_device, listener=listener)
    print_study(place, as_json, requests_per_day)
    if found.ended == "interrupted":
        raise KeyboardInterrupt
    hint(f"The study is in {place}; its page: thrifty report {place}")
    if found.error:
        print(f"thrifty: {found.error}. What was measured is kept, and the same command resumes", file=sys.stderr)
        raise typer.Exit(FAILED)
    raise typer.Exit(answered(found.choice))


@of_directories
def tune(workload: WorkloadArgument, optimizers: Annotated[list[str], typer.Argument(
             metavar="OPTIMIZER...", help='Names, or recipe texts with values to search around: adamw "sophia(lr=3e-4)".')],
         trials: Annotated[int | None, typer.Option("--trials", help="Training runs per optimizer; 9 by default.")] = None,
         budget: Annotated[str | None, typer.Option("--budget", help="Total time instead of a number of trials: 2h.")]
         = None,
         also: Annotated[str, typer.Option("--also", help="Hyperparameters to tune besides the learning rate, instead of "
                                                  "those of each paper: weight_decay,warmup; lr for the learning rate "
                                                  "only.")] = "",
         seeds: Annotated[int, typer.Option("--seeds", help="Seeds for the final training runs.")] = 3,
         evaluations: Annotated[int, typer.Option("--evaluations", help="Evaluations during each final training run.")] = 20,
         study: StudyOption = None, device: DeviceOption = "cpu", seed: SeedOption = 0, price: PriceOption = None,
         training_threads: TrainingThreadsOption = None, training_device: TrainingDeviceOption = None, log: LogOption = None,
         as_json: JsonOption = False, dry_run: DryRunOption = False) -> None:
    """Tune optimizers with equal effort and compare how fast each reaches the reference's quality, over several seeds.

    Example: thrifty tune digits adamw muon sophia --trials 6
    """
    begin_warm(device, dry_run)
    from thrifty.report.tuning import print_tuned
    from thrifty.runs.preflight import resolve
    from thrifty.search.tune import plan
    from thrifty.search.tune import tune as tune_optimizers
    from thrifty.studies.places import default_study
    from thrifty.units import seconds

    definition, limit = resolve(workload), None if budget is None else seconds(budget)
    if dry_run:
        first = plan(definition, optimizers, also)
        emit({"workload": definition.name, "recipes": first}) if as_json else print("\n".join(first))
        return
    place = study or default_study(definition.source)
    with listening(definition, place, log) as listener:
        found = tune_optimizers(definition, optimizers, study=place, trials=trials, budget=limit, also=also, seeds=seeds,
                                evaluations=evaluations, target=target_of(device, 1), seed=seed, price=price,
                                training_threads=training_threads, training_device=training_device, listener=listener)
    emit(found.to_json()) if as_json else print_tuned(found)
    hint(f"The study is in {place}.")
    raise typer.Exit(DONE if any(one.final is not None for one in found.optimizers) else FAILED)
