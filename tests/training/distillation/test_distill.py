"""Distillation as a method of training: what is minimized, what the teacher is asked, what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy, Distill
from thrifty.errors import RecipeError, ThriftyError, TrainingFailed
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.training.distillation import losses, on_policy, remembered
from thrifty.training.loop import fit
from thrifty.training.session import TrainingSession
from thrifty.training.setup import Setup

DATA = TensorDataset(torch.randn(64, 4), torch.randint(0, 3, (64,)))
CONSTANT = Train(schedule="constant", warmup=0, clip=None, steps=1)


def naive(student: list[float], teacher: list[float], temperature: float) -> float:
    def softmax(logits: list[float]) -> list[float]:
        exps = [math.exp(x / temperature - max(logits) / temperature) for x in logits]
        return [e / sum(exps) for e in exps]

    return temperature**2 * sum(p * (math.log(p) - math.log(q))
                                for p, q in zip(softmax(teacher), softmax(student), strict=True))


def test_a_step_minimises_the_weighted_sum_over_valid_examples() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    x, y = torch.randn(6, 4), torch.tensor([0, 1, -100, 2, -100, 1])
    valid = y != -100
    logits, taught = student(x).detach()[valid], teacher(x).detach()[valid]
    hard = float(nn.functional.cross_entropy(logits, y[valid]))
    soft = sum(naive(a, b, 2.0) for a, b in zip(logits.tolist(), taught.tolist(), strict=True)) / 4
    session = TrainingSession(student, [Distill(temperature=2.0, weight=0.7)], CrossEntropy(), steps=1, settings=CONSTANT,
                  teachers=lambda text: teacher)
    assert float(session.step(((x,), y))) == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-5)


def test_the_teacher_is_asked_for_by_its_recipe_called_every_step_and_not_changed() -> None:
    asked: list[str] = []
    teacher = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}

    def provide(text: str) -> nn.Module:
        asked.append(text)
        return teacher

    done = fit(nn.Linear(4, 3), [Distill(teacher="train(adamw)"), AdamW(lr=0.1), Bf16()], DATA, CrossEntropy(),
               batch_size=16, teachers=provide)
    assert asked == ["train(adamw)"]
    assert next(c.after for name, c in done.claims if name == "distill") == done.steps == 4
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    alone = fit(nn.Linear(4, 3), [AdamW()], DATA, CrossEntropy(), batch_size=16)
    assert done.flops > alone.flops  # the teacher's forward passes count


def test_the_student_comes_nearer_to_the_teacher() -> None:
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    x = DATA.tensors[0]

    def distance() -> float:
        with torch.no_grad():
            return float(losses.forward_kl(student(x), teacher(x)))

    before = distance()
    fit(student, [Distill(weight=1.0), AdamW(lr=0.05)], DATA, CrossEntropy(), settings=Train(epochs=20),
        batch_size=16, teachers=lambda text: teacher)
    assert distance() < 0.1 * before


def test_mistakes_are_told() -> None:
    with pytest.raises(ThriftyError, match="teachers="):
        fit(nn.Linear(4, 3), [Distill()], DATA, CrossEntropy())
    with pytest.raises(ThriftyError, match="same classes"):
        fit(nn.Linear(4, 3), [Distill()], DATA, CrossEntropy(), teachers=lambda text: nn.Linear(4, 5))


# -- objectives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method, expected", [
    (Distill("reverse_kl", temperature=3.0, weight=1.0), lambda s, t: 9 * losses.reverse_kl(s, t, 3.0) / len(s)),
    (Distill("reverse_kl", temperature=3.0, weight=1.0, squared=False), lambda s, t: losses.reverse_kl(s, t, 3.0) / len(s)),
    (Distill("jsd", beta=0.2, weight=1.0), lambda s, t: 4 * losses.jsd(s, t, 2.0, 0.2) / len(s)),
    (Distill("embedding", weight=1.0), losses.embedding_distance),
    (Distill("similarity", weight=1.0), losses.similarity_distance),
])
def test_each_objective_is_its_loss(method, expected) -> None:
    student, teacher, x = nn.Linear(4, 3), nn.Linear(4, 3), DATA.tensors[0]
    with torch.no_grad():
        wanted = float(expected(student(x), teacher(x)))
    session = TrainingSession(student, [method], CrossEntropy(), steps=1, settings=CONSTANT, teachers=lambda text: teacher)
    assert float(session.step(((x,), DATA.tensors[1]))) == pytest.approx(wanted, rel=1e-5)


def test_padded_vocabularies_are_cut_where_that_is_asked_for_and_refused_where_not() -> None:
    torch.manual_seed(0)
    student, teacher, x = nn.Linear(4, 3), nn.Linear(4, 5), DATA.tensors[0]
    with pytest.raises(ThriftyError, match=r"padded=True"):
        fit(nn.Linear(4, 3), [Distill()], DATA, CrossEntropy(), teachers=lambda text: teacher)
    with torch.no_grad():
        wanted = 4 * float(losses.forward_kl(student(x), teacher(x)[:, :3], 2.0)) / len(x)
    session = TrainingSession(student, [Distill(weight=1.0, padded=True)], CrossEntropy(), steps=1, settings=CONSTANT,
                              teachers=lambda text: teacher)
    assert float(session.step(((x,), DATA.tensors[1]))) == pytest.approx(wanted, rel=1e-5)


def test_a_batch_without_a_valid_target_is_told_and_a_micro_batch_without_one_counts_nothing() -> None:
    x, masked = torch.randn(4, 4), torch.full((4,), -100)
    with pytest.raises(TrainingFailed, match="no valid target"):
        TrainingSession(nn.Linear(4, 3), [Distill()], CrossEntropy(), steps=1, settings=CONSTANT,
                        teachers=lambda text: nn.Linear(4, 3)).step(((x,), masked))
    teacher, found = nn.Linear(4, 3), []
    half = torch.cat([masked[:2], torch.tensor([0, 2])])
    for accumulate in (1, 2):
        torch.manual_seed(1)
        session = TrainingSession(nn.Linear(4, 3), [Distill()], CrossEntropy(), steps=1,
                                  settings=CONSTANT.but(accumulate=accumulate), teachers=lambda text: teacher)
        found.append(float(session.step(((x,), half))))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


# -- layers inside --------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    """(ids, mask) -> logits [batch, tokens, 7]; a layer before the last, whose width is asked for."""

    def __init__(self, width: int, vocabulary: int = 7) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(vocabulary, width), nn.Linear(width, width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.inner(self.embedding(ids)).relu())


def texts(n: int = 32) -> list[tuple[tuple[Tensor, Tensor], Tensor]]:
    draw = torch.Generator().manual_seed(0)
    items = []
    for _ in range(n):
        ids = torch.randint(0, 7, (6,), generator=draw)
        mask = (torch.arange(6) < int(torch.randint(2, 7, (), generator=draw))).long()
        items.append(((ids, mask), ids.where(mask.bool(), -100)))
    return items


def sessions(student: nn.Module, teacher: nn.Module, method: Distill, steps: int = 4) -> TrainingSession:
    return Setup(Train(AdamW(lr=0.01), method, steps=steps, batch_size=8), texts(), CrossEntropy(),
                 teachers=lambda text: teacher).session(student)


def first_batch() -> Any:
    return torch.utils.data.default_collate(texts()[:8])


def test_hidden_states_are_compared_at_the_places_that_count_and_projections_are_learnt() -> None:
    torch.manual_seed(0)
    student, teacher = Tokens(4), Tokens(6)
    session = sessions(student, teacher, Distill("none", hidden={"inner": "inner"}, mask=1, weight=1.0))
    ((ids, mask), target) = first_batch()
    project, = (p for group in session.optimizer.param_groups for p in group["params"] if p.shape == (6, 4)
                and not any(p is q for q in student.parameters()))
    before = project.detach().clone()
    with torch.no_grad():
        s, t = (m.inner(m.embedding(ids))[mask.bool()] for m in (student, teacher))
        wanted = float((s @ project.T - t).square().sum() / t.square().sum())
    assert float(session.step(((ids, mask), target))) == pytest.approx(wanted, rel=1e-5)
    assert not torch.equal(project, before)
    assert "project" not in "".join(session.finish().state_dict())  # the student keeps nothing of it


def test_attention_between_layers_and_weights_of_the_terms() -> None:
    torch.manual_seed(0)
    student, teacher = Tokens(4), Tokens(6)
    ((ids, mask), target) = first_batch()
    with torch.no_grad():
        s, t = (m.inner(m.embedding(ids)) for m in (student, teacher))
        valid = target.reshape(-1) != -100
        logits = [m(ids, mask).reshape(-1, 7)[valid] for m in (student, teacher)]
        inside = float(losses.attention_relation_distance(s, t, mask.bool(), 1))
        wanted = 0.5 * float(nn.functional.cross_entropy(logits[0], target.reshape(-1)[valid])) + 0.5 * (
            float(4 * losses.forward_kl(*logits, 2.0)) / int(valid.sum()) + 3 * inside)
    session = sessions(student, teacher, Distill(attention={"inner": "inner"}, mask=1, weight=0.5, feature_weight=3.0))
    assert float(session.step(((ids, mask), target))) == pytest.approx(wanted, rel=1e-5)


def test_maps_of_images_are_compared_as_hidden_states_and_as_attention() -> None:
    torch.manual_seed(0)
    student, teacher = (nn.Sequential(nn.Conv2d(1, c, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 3)) for c in (4, 8))
    data = TensorDataset(torch.randn(32, 1, 6, 6), torch.randint(0, 3, (32,)))
    with torch.no_grad():
        wanted = float(losses.attention_map_distance(student[0](data.tensors[0]), teacher[0](data.tensors[0])))
    session = Setup(Train(Distill("none", attention={"0": "0"}, weight=1.0), steps=1, batch_size=32), data, CrossEntropy(),
                    teachers=lambda text: teacher).session(student)
    assert float(session.step(((data.tensors[0],), data.tensors[1]))) == pytest.approx(wanted, rel=1e-5)
    done = fit(student, [Distill(hidden={"0": "0"})], data, CrossEntropy(), teachers=lambda text: teacher)
    assert done.steps == 1


def test_balanced_terms_are_as_large_as_the_outputs() -> None:
    torch.manual_seed(0)
    student, teacher = Tokens(4), Tokens(6)
    found = []
    for weight in (1.0, 1000.0):
        session = sessions(copy.deepcopy(student), teacher, Distill(hidden={"inner": "inner"}, weight=1.0, balance=True,
                                                                    feature_weight=weight))
        found.append(float(session.step(first_batch())))
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    ((ids, mask), target) = first_batch()
    with torch.no_grad():
        valid = target.reshape(-1) != -100
        logits = [m(ids, mask).reshape(-1, 7)[valid] for m in (student, teacher)]
        assert found[0] == pytest.approx(2 * float(4 * losses.forward_kl(*logits, 2.0)) / int(valid.sum()), rel=1e-5)


def test_a_distillation_that_goes_on_ends_as_one_that_was_not_interrupted() -> None:
    method = Distill(hidden={"inner": "inner"}, balance=True, mask=1)
    torch.manual_seed(0)
    teacher, start = Tokens(6), Tokens(4)

    def session() -> TrainingSession:
        torch.manual_seed(1)
        return sessions(copy.deepcopy(start), teacher, method)

    whole, first, second = session(), session(), session()
    for each in (whole, first):
        each.step(first_batch())
        each.step(first_batch())
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for each in (whole, second):
        each.step(first_batch())
    assert all(torch.equal(a, b) for a, b in zip(whole.finish().state_dict().values(), second.finish().state_dict().values(),
                                                 strict=True))
    assert next(c.after for name, c in second.claims() if name == "distill") == 3


# -- what is remembered ---------------------------------------------------------------------------------------------


def test_a_teacher_whose_outputs_are_remembered_is_asked_once_for_each_example_and_teaches_the_same() -> None:
    teacher, start, found = nn.Linear(4, 3), nn.Linear(4, 3), []
    asked: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: asked.append(1))
    for remember, calls in (("nothing", 12), ("outputs", 12), ("outputs", 0)):  # the last: another training of the process
        asked.clear()
        done = fit(copy.deepcopy(start), [Distill(remember=remember)], DATA, CrossEntropy(), settings=Train(epochs=3),
                   batch_size=16, teachers=lambda text: teacher)
        found.append(done.model.state_dict())
        assert next(c.after for name, c in done.claims if name == "distill") == 12
        assert len(asked) == (calls if remember == "nothing" else calls and 4)
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])


def test_draws_from_a_teacher_stand_for_the_whole_of_it() -> None:
    torch.manual_seed(0)
    teacher, x = nn.Linear(4, 50), torch.randn(256, 4)
    data = TensorDataset(x, torch.zeros(256, dtype=torch.int64))
    distances = {}
    for name, method in (("whole", Distill(weight=1.0, temperature=1.0)),
                         ("draws", Distill(weight=1.0, temperature=1.0, remember="draws", draws=64))):
        torch.manual_seed(1)
        student = nn.Linear(4, 50)
        fit(student, [method, AdamW(lr=0.1)], data, CrossEntropy(), settings=Train(epochs=10), batch_size=64,
            teachers=lambda text: teacher)
        with torch.no_grad():
            distances[name] = float(losses.forward_kl(student(x), teacher(x))) / 256
    torch.manual_seed(1)
    with torch.no_grad():
        before = float(losses.forward_kl(nn.Linear(4, 50)(x), teacher(x))) / 256
    assert distances["draws"] < 0.1 * before and distances["whole"] < 0.1 * before
    keys = remembered.keys_of((x[:3],))
    logits = teacher(x[:3]).detach()
    assert len(set(keys)) == 3 and keys == remembered.keys_of((x[:3].clone(),)) != remembered.keys_of((x[1:4],))
    same = [remembered.drawn_by_key(logits, keys, 20, 1.0) for _ in range(2)]
    assert torch.equal(*same) and same[0].shape == (3, 20)


# -- on the student's own samples -----------------------------------------------------------------------------------


class Causal(nn.Module):
    """ids -> logits [batch, tokens, 5]; each place sees its own token and the mean of those before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(5, 8), nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids)
        return self.head(x + x.cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None])


def test_a_student_continues_texts_and_learns_what_the_teacher_thinks_of_that() -> None:
    ids = torch.randint(0, 5, (6, 8), generator=torch.Generator().manual_seed(0))
    target = torch.cat([ids[:, 1:], torch.full((6, 1), 1)], 1)
    target[0, 4:] = -100  # a short text
    student, teacher = Causal(0), Causal(1)
    method = Distill("reverse_kl", weight=1.0, on_policy=0.5, sampled=3, temperature=1.0)
    session = TrainingSession(student, [method], CrossEntropy(), steps=4, settings=CONSTANT.but(steps=4),
                              teachers=lambda text: teacher)
    off = float(session.step(((ids,), target)))
    with torch.no_grad():
        valid = target.reshape(-1) != -100
    assert off > 0 and int(valid.sum()) == 44
    torch.manual_seed(3)
    expected = on_policy.continued(session, ((ids,), target), 3)
    assert expected is not None and expected.rows.tolist() == [1, 2, 3, 4, 5]
    new = expected.batch[0][0]
    assert torch.equal(new[:, :5], ids[:, :5]) and not torch.equal(new[:, 5:], ids[:, 5:])
    with torch.no_grad():  # the places that predict the three drawn tokens
        logits = [m(new)[1:, 4:7].flatten(0, 1) for m in (student, teacher)]
        wanted = float(losses.reverse_kl(*logits)) / 15
    torch.manual_seed(3)
    assert float(session.step(((ids,), target))) == pytest.approx(wanted, rel=1e-5)
    session.step(((ids,), target))
    session.step(((ids,), target))
    claims = {claim.what: claim.after for _, claim in session.claims()}
    assert claims["steps on the student's own samples"] == 2 and claims["teacher's forward passes"] == 4
    torch.manual_seed(0)
    drawn = torch.cat([on_policy.continued(session, ((ids[1:],), target[1:]), 1).batch[0][0][:, -1:] for _ in range(400)], 1)
    with torch.no_grad():
        p = student(ids[1:])[:, -2].softmax(-1)
    for row in range(5):  # draws follow the student's own distribution
        assert float((torch.bincount(drawn[row], minlength=5) / 400 - p[row]).abs().max()) < 0.1


@pytest.mark.parametrize("method, model, says", [
    (Distill("none"), lambda: nn.Linear(4, 3), "nothing to distil"),
    (Distill("jsd", remember="draws"), lambda: nn.Linear(4, 3), "forward divergence only"),
    (Distill(remember="outputs", hidden={"0": "0"}), lambda: nn.Sequential(nn.Linear(4, 3)), "only the teacher's outputs"),
    (Distill("embedding", on_policy=0.5), lambda: nn.Linear(4, 3), "divergence of logits"),
    (Distill(on_policy=1.0), lambda: nn.Linear(4, 3), "token ids"),
    (Distill(hidden={"missing": "0"}), lambda: nn.Sequential(nn.Linear(4, 3)), "the student has no layer 'missing'"),
    (Distill(hidden={"0": "missing"}), lambda: nn.Sequential(nn.Linear(4, 3)), "the teacher has no layer 'missing'"),
    (Distill(attention={"0": "0"}), lambda: nn.Sequential(nn.Linear(4, 3)), r"attention needs \[batch"),
    (Distill(attention={"0": "0"}, mask=3), lambda: nn.Sequential(nn.Linear(4, 3)), r"mask=3"),
])
def test_what_cannot_be_distilled_is_told(method, model, says) -> None:
    with pytest.raises(ThriftyError, match=says):
        fit(model(), [method], DATA, CrossEntropy(), teachers=lambda text: model())


def test_a_layer_that_no_forward_pass_calls_is_told() -> None:
    class Idle(Tokens):
        def __init__(self) -> None:
            super().__init__(4)
            self.idle = nn.Linear(1, 1)

    for method in (Distill(hidden={"idle": "inner"}), Distill(attention={"inner": "idle"})):
        with pytest.raises(ThriftyError, match="idle of the .* is not called"):
            sessions(Idle(), Idle(), method).step(first_batch())


def test_a_teacher_that_cannot_read_the_students_tokens_is_told() -> None:
    with pytest.raises(ThriftyError, match="one tokenizer"):
        sessions(Tokens(4), Tokens(4, vocabulary=3), Distill()).step(first_batch())


def test_layers_are_listened_to_in_steps_that_are_not_compiled_nor_packed() -> None:
    recipe = Recipe.parse("train(distill(none, hidden={'blocks.0': 'blocks.1', 'head': head}, mask=1), epochs=1, packing=True)")
    assert Recipe.parse(str(recipe)) == recipe
    with pytest.raises(RecipeError, match="packed-rows"):
        carry(recipe, frozenset({"module", "float-weights"}))
    with pytest.raises(ThriftyError, match="remove compiled=True"):
        Setup(Train(Distill(hidden={"inner": "inner"}), compiled=True), texts(), CrossEntropy(),
              teachers=lambda text: Tokens(6)).session(Tokens(4))
