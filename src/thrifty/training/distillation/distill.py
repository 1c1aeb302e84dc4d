"""Knowledge distillation: a student learns a teacher's outputs, and what it makes of the inputs on the way there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import Table, choice, number, recipe_text, table, workload_text
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.distillation import features, on_policy
from thrifty.training.distillation.balance import Balance
from thrifty.training.distillation.losses import (
    embedding_distance,
    forward_kl,
    jsd,
    reverse_kl,
    sampled_kl,
    similarity_distance,
)
from thrifty.training.distillation.remembered import drawn_by_key, keys_of, memory_of

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

OFF_POLICY = "off"
ON_POLICY = "on"


@final
@dataclass(frozen=True)
class Distill(TrainingMethod):
    """The student learns the teacher's outputs in addition to the labels.

        L = (1 - w) CE(student, labels) + w (D(student, teacher) + f (hidden + attention))

    summed over valid examples or tokens: those that the loss counts, so that a mask of responses is a target of -100
    elsewhere. D is T^2 KL(softmax(teacher / T) || softmax(student / T)) unless ``objective`` says otherwise; T^2 keeps the
    gradient's size whatever the temperature. The teacher runs in eval mode without gradients, in its own precision, on
    the very batch that the student sees; its FLOPs are counted with the step's. Where a workload has unlabelled inputs
    alone, the teacher's term is all there is.

    Args:
        objective: D: "forward_kl" covers what the teacher holds possible, "reverse_kl" seeks its peaks, "jsd" lies between;
            of outputs that are vectors, "embedding" (1 - cosine to the teacher's) or "similarity" (cosines between the
            examples of a batch, whatever the widths); "none" leaves hidden states and attention alone.
        temperature: T of the divergences; higher shows more of the small probabilities.
        weight: w, the share of the teacher's term.
        teacher: a recipe's text; the workload's reference where empty. It is run, kept and charged like any recipe.
        teacher_workload: whose recipe that is: a file, a module, an embedded workload's name or a Hugging Face directory;
            this workload's own where empty. Its model must take the same inputs.
        beta: for "jsd", in (0, 1): toward 0 it is the forward, toward 1 the reverse divergence, each times its distance
            from there.
        squared: whether divergences are multiplied by T^2.
        padded: whether logits that are too many on one side are padding, and left out.
        hidden: {layer of the student: layer of the teacher} whose outputs should agree; learned projections where widths
            differ.
        attention: {layer: layer} of convolutions, for where they look, or of queries, of keys or of values, for how tokens
            relate.
        feature_weight: f, of the terms of hidden states and attention.
        balance: whether these terms are kept as large as D by running means.
        mask: position of the input that is a mask [batch, tokens] of the tokens that are no padding.
        on_policy: share of the steps in which a language model continues the batch's texts itself and learns the teacher's
            opinion of that (GKD), without labels.
        sampled: tokens of such a continuation.
        remember: what of the teacher's answers is kept on disk, so that it is asked once for each example: its "outputs", or,
            of large vocabularies, "draws" of classes from them, which are unbiased. For data that are the same each epoch.
        draws: classes a distribution.

    >>> Distill(temperature=4)
    Distill(objective='forward_kl', temperature=4, weight=0.9, teacher='', teacher_workload='', beta=0.5, squared=True,
            padded=False, hidden={}, attention={}, feature_weight=1.0, balance=False, mask=None, on_policy=0.0, sampled=32,
            remember='nothing', draws=64)
    """

    objective: str = choice("forward_kl", "forward_kl", "reverse_kl", "jsd", "embedding", "similarity", "none")
    temperature: float = number(2.0, 0, open_low=True)
    weight: float = number(0.9, 0, 1, open_low=True)
    teacher: str = recipe_text()
    teacher_workload: str = workload_text()
    beta: float = number(0.5, 0, 1, open_low=True, open_high=True)
    squared: bool = True
    padded: bool = False
    hidden: Table = table()
    attention: Table = table()
    feature_weight: float = number(1.0, 0, open_low=True)
    balance: bool = False
    mask: int | None = number(None, 0)
    on_policy: float = number(0.0, 0, 1)
    sampled: int = number(32, 1)
    remember: str = choice("nothing", "nothing", "outputs", "draws")
    draws: int = number(64, 1)

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = "structure"
    card: ClassVar[Card] = Card(
        family="distillation",
        benefit="inference time",
        trade_off="the teacher's training, and its forward pass in every step",
        paper='"Distilling the Knowledge in a Neural Network", Hinton, Vinyals and Dean 2015, arXiv:1503.02531, '
              "section 2",
        needs=frozenset({"teacher"}),
        requires=frozenset({"module", "float-weights"}),
    )

    @property
    def refuses(self) -> frozenset[str]:
        """Packed rows hold several texts, and what layers make of them is not compared place by place."""
        packed = frozenset({"packed-rows"}) if self.hidden or self.attention or self.on_policy else frozenset()
        return self.card.refuses | packed

    @property
    def needs(self) -> frozenset[str]:
        """Divergences compare logits; vectors and layers are compared as they are."""
        return self.card.needs | ({"logits"} if self.objective in DIVERGENCES else set())

    # -- hooks ------------------------------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        self._require_terms(session)
        teacher = session.teacher(self.teacher, self.teacher_workload)
        memory = session.memory(self)
        memory.update(teacher=teacher, calls=0, answers=0, sampled=0, balance=Balance(), project=nn.ModuleDict())
        if self.hidden:
            memory["project"] = self._projections(session, teacher)
            memory["calls"] = 0  # one example, to see widths

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        project = session.memory(self)["project"].to(session.device)
        if parameters := list(project.parameters()):
            groups = [*groups, {**{k: v for k, v in groups[0].items() if k != "params"}, "params": parameters}]
        return groups

    def step_kind(self, session: Session) -> str:
        return ON_POLICY if self._on_policy(session.step_number + 1) else OFF_POLICY

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        memory = session.memory(self)
        memory["own"] = None
        if self._on_policy(session.step_number):
            memory["own"] = on_policy.continued(session, batch, self.sampled)
        if memory["own"] is not None:
            memory["sampled"] += 1
            return proceed(memory["own"].batch)
        with features.tapped(session.model, self._layers("student"), "student") as found:
            outputs = proceed(batch)
        memory["features"] = found
        return outputs

    def loss(self, session: Session, outputs: Any, batch: Batch, total: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        memory = session.memory(self)
        own: on_policy.Continued | None = memory["own"]
        given = batch if own is None else own.batch
        with features.tapped(memory["teacher"], self._layers("teacher"), "teacher") as taught_inside:
            taught = self._taught(session, given) if own is not None else self._remembered(session, given)
        memory["answers"] += 1
        if own is not None:
            student, teacher = (own.logits(x) for x in (outputs, taught))
            return self._divergence(student, teacher), torch.as_tensor(len(student), device=weight.device)
        terms = {"outputs": self._outputs(session, outputs, taught, batch, weight)} if self.objective != "none" else {}
        terms |= {name: weight * self.feature_weight * x
                  for name, x in self._inside(session, batch, memory["features"], taught_inside).items()}
        memory["features"] = None
        if self.balance:
            terms = memory["balance"].applied(terms, "outputs" if "outputs" in terms else next(iter(terms)))
        return (1 - self.weight) * total + self.weight * torch.stack([x.reshape(()) for x in terms.values()]).sum(), weight

    def state_dict(self, session: Session) -> dict[str, Any]:
        memory = session.memory(self)
        counts = {name: memory[name] for name in ("calls", "answers", "sampled")}
        return {**counts, "balance": memory["balance"].means, "project": memory["project"].state_dict()}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        memory = session.memory(self)
        memory.update({name: state[name] for name in ("calls", "answers", "sampled")}, balance=Balance(dict(state["balance"])))
        memory["project"].load_state_dict(state["project"])

    def claims(self, session: Session) -> tuple[Claim, ...]:
        memory = session.memory(self)
        sampled = (Claim("steps on the student's own samples", 0.0, float(memory["sampled"]), minimum=1.0),)
        due = self._on_policy_steps(session.steps) > 0
        what, count = (("teacher's forward passes", memory["calls"]) if self.remember == "nothing" else
                       ("batches that the teacher or its memory answered", memory["answers"]))
        return (Claim(what, 0.0, float(count), minimum=1.0), *(sampled if due else ()))

    def _require_terms(self, session: Session) -> None:
        inside = bool(self.hidden or self.attention)
        if inside and session.compiled:
            raise ThriftyError("distill(hidden=..., attention=...) hooks layers, which compiled steps do not allow: "
                               "remove compiled=True")
        if self.objective == "none" and not inside:
            raise ThriftyError("distill(none): there is nothing to distill; name layers with hidden= or attention=, or another "
                               "objective")
        if self.remember != "nothing" and inside:
            raise ThriftyError(f"distill(remember={self.remember}) keeps only the teacher's outputs: omit hidden= and "
                               "attention=, or omit remember")
        if self.remember == "draws" and self.objective != "forward_kl":
            raise ThriftyError(f"distill({self.objective}, remember=draws): draws from the teacher are for the forward "
                               "divergence only; use remember=outputs")
        if self.on_policy and (self.objective not in DIVERGENCES or inside):
            raise ThriftyError(f"distill(on_policy={self.on_policy:g}): a model's own samples can only be judged by a divergence "
                               f"of logits, {', '.join(DIVERGENCES)}, without hidden= and attention=")

    # -- the teacher ------------------------------------------------------------------------------------------------

    def _taught(self, session: Session, batch: Batch) -> Any:
        session.memory(self)["calls"] += 1
        try:
            with torch.no_grad(), torch.autocast(session.device, enabled=False):
                return session.call(session.memory(self)["teacher"], batch)
        except (IndexError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not self.teacher_workload:
                raise
            raise ThriftyError(f"the teacher cannot take the student's inputs ({error}): both must read the same inputs, token "
                               "ids of one tokenizer if they are texts") from error

    def _remembered(self, session: Session, batch: Batch) -> Any:
        """What the teacher says now, or said when it saw these examples first."""
        if self.remember == "nothing":
            return self._taught(session, batch)
        kind = (self.remember, self.draws, self.temperature) if self.remember == "draws" else self.remember
        memory, keys = memory_of(session.memory(self)["teacher"], kind), keys_of(batch[0])
        if (found := memory.recalled(keys)) is None:
            outputs = self._taught(session, batch)
            if not isinstance(outputs, Tensor) or len(outputs) != len(keys):
                raise ThriftyError(f"distill(remember={self.remember}) keeps one tensor [batch, ...], but the teacher gives "
                                   f"a {type(outputs).__name__}: omit remember")
            found = drawn_by_key(outputs, keys, self.draws, self.temperature) if self.remember == "draws" else outputs
            memory.keep(keys, found)
        return found.to(batch[0][0].device)

    def _projections(self, session: Session, teacher: nn.Module) -> nn.ModuleDict:
        """What brings the student's features to the teacher's width, found on one example."""
        batch = next(session.aside(session.ranks.count))
        was_training = session.model.training
        with torch.no_grad():
            with features.tapped(session.model.eval(), list(self.hidden), "student") as mine:
                session.call(session.model, batch)
            with features.tapped(teacher, list(self.hidden.values()), "teacher") as theirs:
                place = next((p.device for p in teacher.parameters()), torch.device("cpu"))
                self._taught(session, (tuple(x.to(place) for x in batch[0]), batch[1]))
        session.model.train(was_training)
        return features.projections(self.hidden, features.called(mine, list(self.hidden), "student"),
                                    features.called(theirs, list(self.hidden.values()), "teacher"))

    def _layers(self, whose: str) -> list[str]:
        both = (self.hidden, self.attention)
        return list(dict.fromkeys(name for names in both for name in (names if whose == "student" else names.values())))

    # -- what is compared -------------------------------------------------------------------------------------------

    def _outputs(self, session: Session, outputs: Any, taught: Any, batch: Batch, weight: Tensor) -> Tensor:
        """The term of the outputs: a sum, as the loss is."""
        if self.remember == "draws":
            student, valid = session.loss.logits(outputs, batch)
            drawn = taught.flatten(0, -2)
            if len(drawn) != len(student) or int(drawn.max()) >= student.shape[-1]:
                raise ThriftyError(f"the teacher drew {tuple(taught.shape)} classes for logits {tuple(student.shape)} of the "
                                   "student: draws need classes in the last dimension, of one vocabulary")
            return self._scale * sampled_kl(student[valid].float(), drawn[valid], self.temperature)
        if self.objective in DIVERGENCES:
            student, valid = session.loss.logits(outputs, batch)
            teacher, _ = session.loss.logits(taught, batch)
            student, teacher = self._fitting(student, teacher)
            return self._divergence(student[valid], teacher[valid])
        student, teacher = vectors(outputs, "student"), vectors(taught, "teacher")
        if self.objective == "embedding" and student.shape != teacher.shape:
            raise ThriftyError(f"the teacher gives vectors of shape {tuple(teacher.shape)} and the student "
                               f"{tuple(student.shape)}: distill(similarity) compares vectors of different widths")
        compare = embedding_distance if self.objective == "embedding" else similarity_distance
        return weight * compare(student.float(), teacher.float())

    @property
    def _scale(self) -> float:
        return self.temperature**2 if self.squared else 1.0

    def _fitting(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the same shape."""
        if self.padded and len(student) == len(teacher):
            common = min(student.shape[-1], teacher.shape[-1])
            return student[..., :common], teacher[..., :common]
        if student.shape != teacher.shape:
            raise ThriftyError(
                f"the teacher gives logits of shape {tuple(teacher.shape)} and the student {tuple(student.shape)}: logits "
                "are distilled between models with the same classes, from one tokenizer if they are tokens; if the vocabularies "
                "differ only in padding, use distill(padded=True)")
        return student, teacher

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = self._fitting(student, teacher)
        return self._scale * DIVERGENCES[self.objective](self, student.float(), teacher.float())

    def _inside(self, session: Session, batch: Batch, mine: features.Features,
                theirs: features.Features) -> dict[str, Tensor]:
        """The terms of layers inside: means."""
        features.called(mine, self._layers("student"), "student")
        features.called(theirs, self._layers("teacher"), "teacher")
        valid = None if self.mask is None else self._valid(batch)
        found = {}
        if self.hidden:
            project = session.memory(self)["project"]
            found["hidden"] = features.hidden_distance(self.hidden, mine, theirs, project, valid)
        if self.attention:
            found["attention"] = features.attention_distance(self.attention, mine, theirs, valid)
        return found

    def _valid(self, batch: Batch) -> Tensor:
        inputs = batch[0]
        assert self.mask is not None
        if self.mask >= len(inputs) or inputs[self.mask].dim() != 2:
            raise ThriftyError(f"distill(mask={self.mask}): the inputs are {', '.join(str(tuple(x.shape)) for x in inputs)}, and "
                               "the mask must be one of them, [batch, tokens]")
        return inputs[self.mask].bool()

    # -- steps on the student's own samples -------------------------------------------------------------------------

    def _on_policy(self, step: int) -> bool:
        """Whether a step is: evenly spread, so that ranks agree and a training that goes on does the same."""
        return self._on_policy_steps(step) > self._on_policy_steps(step - 1)

    def _on_policy_steps(self, steps: int) -> int:
        return int(steps * self.on_policy + 1e-9)


DIVERGENCES: dict[str, Callable[[Distill, Tensor, Tensor], Tensor]] = {
    "forward_kl": lambda method, student, teacher: forward_kl(student, teacher, method.temperature),
    "reverse_kl": lambda method, student, teacher: reverse_kl(student, teacher, method.temperature),
    "jsd": lambda method, student, teacher: jsd(student, teacher, method.temperature, method.beta),
}
"""Of logits, by name."""


def vectors(outputs: Any, whose: str) -> Tensor:
    """The one embedding an example, [batch, width], that a model gives.

    Raises:
        ThriftyError: it gives something else.
    """
    tensors = [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, Tensor)]
    if not tensors or tensors[0].dim() != 2:
        given = ", ".join(str(tuple(x.shape)) for x in tensors) or type(outputs).__name__
        raise ThriftyError(f"the {whose} gives {given}, but embeddings are [batch, width]: distill with forward_kl, or with "
                           "hidden=")
    return tensors[0]
