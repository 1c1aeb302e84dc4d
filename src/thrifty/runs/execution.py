"""The process of one run: takes a recipe's phases one by one, checkpoints after each, lowers the end.

Runs as ``python -m thrifty.runs.execution`` with a job as JSON on stdin, and tells what happens as JSON lines, so that a crash
or an out-of-memory takes nothing else with it and peak memory is its own.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import itertools
import json
import os
import resource
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.compilers.divergence import first_divergence
from thrifty.compilers.parity import ParityError, check_parity, check_random
from thrifty.errors import EffectLost, ThriftyError, TrainingFailed
from thrifty.measure import energy
from thrifty.measure.environment import runtime_versions
from thrifty.posttraining.quantization.listing import layers as quantized_layers
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.phases import Phase, Train
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs import cache, checkpoint
from thrifty.runs.checkpoint import Checkpoint, MethodClaim
from thrifty.runs.context import Tell, calibration, make_context, outputs_of, score, training_setup
from thrifty.runs.job import Job, Outcome, prefix_key, seed_of
from thrifty.runs.rehearsal import rehearse
from thrifty.studies.ledger import Charge, Kind, Ledger
from thrifty.studies.trial import Effect
from thrifty.target import Target, cores
from thrifty.training.loop import train
from thrifty.workloads.loading import check_data, check_example, load_workload


class Execution:
    """One job's phases."""

    def __init__(self, job: Job, tell: Tell) -> None:
        self.job, self.tell = job, tell
        self.workload = load_workload(job.workload)
        self.recipe = Recipe.parse(job.recipe)
        self.phases = self.recipe.transforms.phases
        self.keys = [prefix_key(job, Recipe(self.phases[:i])) for i in range(len(self.phases) + 1)]

    # -- phases -------------------------------------------------------------------------------------------------

    def outcome(self) -> Outcome:
        state, model = self.start()
        for i in range(state_length(state), len(self.phases)):
            self.tell({"event": "phase", "text": str(Recipe((self.phases[i],)))})
            state, model = self.advance(i, state, model)
        place = self.keep(len(self.phases), state, model)
        charges = state.charges
        effects = [effect(entry) for entry in state.claims]
        directory = None
        if self.job.lower:
            directory, paid, lowered = self.lower(state, model, place)
            charges += paid
            effects = lowered
        return Outcome(str(place), str(directory) if directory else None, charges, tuple(effects), state.curve)

    def start(self) -> tuple[Checkpoint, nn.Module]:
        """The longest prefix that is kept, or the model as it comes; rehearsed where training is still to come."""
        found = next(((i, place) for i in range(len(self.phases), 0, -1)
                      if (place := cache.lookup("checkpoints", self.keys[i])) is not None), None)
        done, place = found or (0, None)
        if place is None:
            check_data(self.workload)
            check_example(self.workload, self.fresh())
        if place is None or any(isinstance(phase, Train) for phase in self.phases[done:]):
            began = time.perf_counter()
            rehearse(self.workload, self.recipe, self.job.target, self.tell)
            self.charge("rehearsal", str(self.recipe), time.perf_counter() - began)
        if place is None:
            return Checkpoint(self.workload.source, ""), self.fresh()
        return checkpoint.load(place, self.fresh())

    def fresh(self) -> nn.Module:
        torch.manual_seed(seed_of(self.job.seed, 0, "weights"))
        return self.workload.model()

    def advance(self, i: int, state: Checkpoint, model: nn.Module) -> tuple[Checkpoint, nn.Module]:
        phase = self.phases[i]
        torch.manual_seed(seed_of(self.job.seed, i, "global"))  # dropout and other draws that take no generator
        after, model = (self.train(i, phase, state, model) if isinstance(phase, Train)
                        else self.transform(i, phase, state, model))
        after = dataclasses.replace(after, recipe=str(Recipe(self.phases[: i + 1])), claims=reprobe(after.claims, model))
        self.keep(i + 1, after, model)
        return after, model

    def keep(self, i: int, state: Checkpoint, model: nn.Module) -> Path:
        """Write the checkpoint once; a run beside this one may have been faster."""
        place = cache.lookup("checkpoints", self.keys[i])
        if place is None:
            with cache.building("checkpoints", self.keys[i]) as directory:
                checkpoint.save(state, model, directory)
            place = cache.lookup("checkpoints", self.keys[i])
            assert place is not None
        return place

    def train(self, i: int, phase: Train, state: Checkpoint, model: nn.Module) -> tuple[Checkpoint, nn.Module]:
        teachers: dict[str, nn.Module] = {}
        taught: list[Charge] = []

        def teacher(text: str) -> nn.Module:
            if text not in teachers:
                teachers[text], paid = self.teacher(text, i)
                taught.extend(paid)
            return teachers[text]

        earlier = sum(charge.seconds for charge in state.charges)
        meter, counted = self.meter()
        try:
            with cache.keeping("trainings", self.keys[i + 1]) as room:
                setup = training_setup(self.workload, phase, seed_of(self.job.seed, i, "train"), self.job.target.device, teacher)
                done = train(setup, model, evaluate=lambda m: score(self.workload, m), keep=room / "state.pt",
                             progress=lambda step: self.tell({"event": "step", **dataclasses.asdict(step)}))
        except TrainingFailed as error:
            self.charge("failure", str(Recipe((phase,))), error.seconds, flops=error.flops)
            raise
        charge = self.charge("training", str(Recipe((phase,))), done.seconds, flops=done.flops,
                             uncounted=done.uncounted, joules=meter.between(counted, meter.read()))
        if done.evaluation_seconds:
            self.charge("evaluation", str(Recipe((phase,))), done.evaluation_seconds)
        sign = 1 if self.workload.quality.higher_is_better else -1
        paid = tuple(taught)
        earlier += sum(entry.seconds for entry in paid)
        curve = tuple((earlier + point.seconds, sign * point.quality) for point in done.evaluations)
        claims = tuple(MethodClaim(name, claim.checked(name)) for name, claim in done.claims)
        return dataclasses.replace(state, plans=state.plans + done.plans, claims=state.claims + claims,
                                   charges=state.charges + paid + (charge,), curve=state.curve + curve), done.model

    def teacher(self, text: str, i: int) -> tuple[nn.Module, tuple[Charge, ...]]:
        """The teacher's model, and what it costs this recipe: nothing where it is one of its own prefixes."""
        recipe = Recipe.parse(text or self.workload.reference)
        if not recipe.phases and self.workload.reference:
            raise ThriftyError("a teacher needs a recipe")
        if len(recipe) and recipe.transforms != recipe:
            raise ThriftyError(f"a teacher is a model, not an engine: leave the compiler out of {recipe}")
        job = dataclasses.replace(self.job, recipe=str(recipe), lower=False)
        self.tell({"event": "phase", "text": f"teacher: {recipe or 'the model as it comes'}"})
        inner = Execution(job, self.tell)
        done = inner.outcome()
        model = checkpoint.load(Path(done.checkpoint), inner.fresh())[1]
        if inner.keys[-1] in self.keys[: i + 1]:
            return model, ()
        return model, tuple(dataclasses.replace(charge, kind="teacher") for charge in done.charges)

    def transform(self, i: int, phase: Phase, state: Checkpoint,
                  model: nn.Module) -> tuple[Checkpoint, nn.Module]:
        assert isinstance(phase, Transform)
        text = str(Recipe((phase,)))
        searched: list[float] = []
        recalled: list[float] = []
        context = make_context(self.workload, self.job.target, seed_of(self.job.seed, i, "plan"), searched, self.tell,
                               recalled=recalled)
        before = copy.deepcopy(model)
        meter, counted = self.meter()
        began = time.perf_counter()
        with torch.no_grad():
            plan = phase.plan(model, context)
            after = phase.build(model, plan).eval()
        seconds = time.perf_counter() - began
        charges = [self.charge("calibration", text, seconds - sum(searched), joules=meter.between(counted, meter.read()))]
        if searched:
            charges.append(self.charge("search", text, sum(searched)))
        if recalled:  # it cost that once: part of the trial as if it were alone, not of what ran now
            charges.append(Charge("calibration", f"{text}: recalled", sum(recalled)))
        claims = tuple(MethodClaim(phase.name, claim.checked(phase.name)) for claim in phase.claims(before, after))
        return dataclasses.replace(state, plans=(*state.plans, (text, plan)), claims=state.claims + claims,
                                   charges=state.charges + tuple(charges)), after

    # -- the end ------------------------------------------------------------------------------------------------

    def lower(self, state: Checkpoint, model: nn.Module,
              place: Path) -> tuple[Path, tuple[Charge, ...], list[Effect]]:
        compiler = self.recipe.compiler
        text = f"compile({compiler.name})" if compiler.name != "export" else "export"
        key = hashlib.sha256(f"{self.keys[-1]}|{Recipe((compiler,)).hash()}|{runtime_versions()}".encode()).hexdigest()
        kept = cache.lookup("engines", key)
        if kept is None:
            self.tell({"event": "phase", "text": str(Recipe((compiler,)))})
            example = self.workload.example(1)
            layers = [row for _, plan in state.plans if "convolutions" in plan.values for row in quantized_layers(model, plan)]
            context = make_context(self.workload, self.job.target, seed_of(self.job.seed, len(self.phases), "lower"),
                                   [], self.tell)
            with cache.building("engines", key) as directory:
                began = time.perf_counter()
                lowered = compiler.lower(model, example, directory, context)
                artifact.write(directory, lowered, {
                    "recipe": str(self.recipe), "workload": self.workload.name, "seed": self.job.seed,
                    "threads": self.job.target.threads, "device": self.job.target.device,
                    "versions": runtime_versions(), "layers": layers,
                }, [x.numpy() for x in example], [x.numpy() for x in outputs_of(model, example)])
                self.check_parity(compiler, model, directory, lowered.precision, context)
                seconds = time.perf_counter() - began
                paid = [self.charge("search", what, lost) for what, lost in lowered.spent]
                paid.append(self.charge("compilation", text, seconds - sum(lost for _, lost in lowered.spent)))
                (directory / "charges.json").write_text(json.dumps([charge.to_json() for charge in paid]))
            kept = cache.lookup("engines", key)
            assert kept is not None
        charges = Ledger.from_json(json.loads((kept / "charges.json").read_text())).charges
        facts = artifact.read(kept)["facts"]
        return kept, charges, [self.final_effect(entry, facts) for entry in state.claims]

    def check_parity(self, compiler: Compiler, model: nn.Module, directory: Path, precision: str, context: Context) -> None:
        """The engine, reloaded, on real inputs and on random ones; where it differs, the model is lowered again to say where."""
        device = self.job.target.device

        def module(*inputs: Tensor) -> tuple[Tensor, ...]:
            return outputs_of(model, inputs)

        requests = (tuple(x[:1] for x in inputs) for inputs in itertools.islice(calibration(self.workload, 0, 8), 8))
        try:
            with contextlib.closing(artifact.load(directory, threads=cores(), device=device, trust_native_code=True)) as engine:
                check_parity(module, engine, requests, precision, device)
                check_random(module, engine, context.example, context.shapes, precision, device)
        except ParityError as error:
            raise ParityError(f"{error}; {first_divergence(compiler, model, error.inputs, context)}") from error

    @staticmethod
    def final_effect(entry: MethodClaim, facts: Mapping[str, float]) -> Effect:
        if entry.claim.fact not in facts:
            return effect(entry)
        value = facts[entry.claim.fact]
        if not entry.claim.holds(value):
            raise EffectLost(
                f"{entry.method} had changed {entry.claim.what} from {entry.claim.before:.6g} to "
                f"{entry.claim.after:.6g}, and in the engine it is {value:.6g}: the compiler undid it; try another"
            )
        return Effect(entry.method, entry.claim.what, entry.claim.before, value, "engine")

    def meter(self) -> tuple[energy.Meter, tuple[float, ...]]:
        """A meter and its reading now."""
        meter = energy.meter(self.job.target.device)
        return meter, meter.read()

    def charge(self, kind: Kind, what: str, seconds: float, *, flops: float | None = None,
               uncounted: tuple[str, ...] = (), joules: float | None = None) -> Charge:
        made = Charge(kind, what, seconds, flops, peak_memory(), joules, uncounted)
        self.tell({"event": "charge", "charge": made.to_json()})
        return made


# -- pieces -----------------------------------------------------------------------------------------------------


def state_length(state: Checkpoint) -> int:
    return len(Recipe.parse(state.recipe))


def effect(entry: MethodClaim) -> Effect:
    return Effect(entry.method, entry.claim.what, entry.claim.before, entry.claim.after)


def reprobe(claims: tuple[MethodClaim, ...], model: nn.Module) -> tuple[MethodClaim, ...]:
    """Probe every earlier claim on the model as it is now.

    Raises:
        EffectLost: a later phase undid what an earlier one had claimed.
    """
    kept = []
    for entry in claims:
        claim = entry.claim
        value = claim.after if claim.probe is None else claim.probe(model)
        if not claim.holds(value):
            raise EffectLost(f"{entry.method} had changed {claim.what} from {claim.before:.6g} to {claim.after:.6g}, "
                             f"and a later phase undid it: it is {value:.6g}")
        kept.append(MethodClaim(entry.method, dataclasses.replace(claim, after=value)))
    return tuple(kept)


def peak_memory() -> int:
    """Peak resident bytes of this process so far."""
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def _end_with_parent() -> None:
    """Leave when the parent's end of stdin closes, however it died: nobody is left to tell."""
    sys.stdin.read()
    os._exit(1)


# -- the process ------------------------------------------------------------------------------------------------


def main() -> int:
    """Read a job from stdin; tell events on the descriptor that was stdout."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not be mistaken for an event

    def tell(event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    values = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(cores())
    try:
        job = Job(**{**values, "target": Target(**values["target"])})
        execution = Execution(job, tell)
        execution.charge("start", "process and workload", max(0.0, time.time() - job.spawned))
        done = execution.outcome()
        tell({"event": "done", **dataclasses.asdict(done)})
        return 0
    except ThriftyError as error:
        tell({"event": "failed", "error": str(error), "kind": type(error).__name__})
    except Exception as error:
        traceback.print_exc()
        tell({"event": "failed", "error": f"{type(error).__name__}: {error}", "kind": type(error).__name__})
    return 1


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    os._exit(code)  # all is told and written: tearing torch down would only make the parent wait
