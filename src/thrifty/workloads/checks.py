"""Whether a workload can be used, before anything is spent on it: every part of it is run on one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, default_collate

from thrifty.errors import WorkloadError
from thrifty.workloads.blame import part
from thrifty.workloads.fingerprint import LOOKED_AT, SPLITS, item, leaves, spread
from thrifty.workloads.models import answers, check_steady, made, tensors_of
from thrifty.workloads.quality import Accuracy, Scores, as_inputs, length
from thrifty.workloads.workload import Batch, CrossEntropy, Inputs, Workload, call_model

EXAMPLES = 8
"""Of a batch that a part is tried on."""
LARGEST = 16
"""Examples that are really answered, where the quality asks for more."""
UNLABELLED = "unlabelled"
READ_TWICE = 16
"""Items of a split that is judged on, which must be the same at every look."""


def check_workload(workload: Workload) -> None:
    """Run every part of a workload once: items, collate, model, forward, loss, quality.

    Raises:
        WorkloadError: one raises, or what they give does not fit together; says which, where and what to do.
    """
    labels = check_data(workload)
    model = made(workload.model)
    check_example(workload, model)
    example = _example(workload, 1)
    check_steady(model, example)
    check_batch_dimension(workload, model, example)
    check_shapes(workload, example)
    check_quality(workload, model, example, labels)
    if workload.train is not None and workload.loss is not None:
        check_loss(workload, model, example)
    if workload.unlabelled is not None:
        batch = _batch(workload, Inputs(workload.unlabelled), UNLABELLED, min(EXAMPLES, workload.batch_size))
        _check_inputs(workload, batch[0], example, UNLABELLED)


# -- data -------------------------------------------------------------------------------------------------------


def check_data(workload: Workload) -> dict[str, list[int]]:
    """Refuse data sets that nothing can be learned from or judged by.

    Returns:
        {split: labels that were seen, where all are whole numbers}.

    Raises:
        WorkloadError: a split is empty or no data set, an item cannot be read, is no (input, target), holds NaN, or, where it is
            judged on, is another one at every look; or every label of a classification set is the same.
    """
    seen = {}
    for split in SPLITS:
        dataset = getattr(workload, split)
        if dataset is None and split == "train":
            continue
        n = _length(dataset, split)
        items = {i: item(dataset, split, i) for i in spread(n, LOOKED_AT)}
        for i, one in items.items():
            _check_item(one, f"item {i} of the {split} set")
        if split != "train":
            _check_steady_items(dataset, split, {i: items[i] for i in list(items)[:READ_TWICE]})
        labels = [_label(one) for one in items.values()]
        if n > 1 and None not in labels and len(set(labels)) == 1:
            whole = {_label(item(dataset, split, i)) for i in range(n)}
            if len(whole) == 1:
                raise WorkloadError(
                    f"every label of the {split} set of {workload.name} is {labels[0]}: nothing can be learned or "
                    "judged from one class"
                )
        seen[split] = [x for x in labels if x is not None]
    if workload.unlabelled is not None:
        for i in spread(_length(workload.unlabelled, UNLABELLED), LOOKED_AT):
            _check_item((item(workload.unlabelled, UNLABELLED, i), 0), f"item {i} of the {UNLABELLED} set")
    return seen


def _length(dataset: Any, split: str) -> int:
    if dataset is None or isinstance(dataset, type) or not hasattr(dataset, "__getitem__"):
        kind = f"the class {dataset.__name__}" if isinstance(dataset, type) else f"a {type(dataset).__name__}"
        raise WorkloadError(f"the {split} set is {kind}, which cannot be indexed; Thrifty needs map-style datasets with "
                            "__len__ and __getitem__, so that examples can be compared one by one")
    with part(f"the length of the {split} set"):
        n = length(dataset)
    if n == 0:
        raise WorkloadError(f"the {split} set is empty")
    return n


def _check_item(one: Any, name: str) -> None:
    if not isinstance(one, Sequence) or isinstance(one, str) or len(one) != 2:
        held = f" of {len(one)}" if isinstance(one, Sequence) else ""
        raise WorkloadError(f"{name} is a {type(one).__name__}{held} and must be a pair (input, target)")
    tensors = [x for x in torch.utils._pytree.tree_leaves(list(one)) if isinstance(x, Tensor) and x.is_floating_point()]
    if any(bool(x.isnan().any()) for x in tensors):
        raise WorkloadError(f"{name} contains NaN: the model would output NaN, and no loss can be learned from that; fill or "
                            "drop it")


def _check_steady_items(dataset: Dataset[Any], split: str, items: dict[int, Any]) -> None:
    for i, one in items.items():
        before, after = leaves(one), leaves(item(dataset, split, i))
        if any(before[path] != after.get(path) for path in before if before[path] is not None):
            raise WorkloadError(f"item {i} of the {split} set changes every time it is read, so models would not be judged on "
                                "the same examples: use random augmentation in the train set only")


def _label(one: Any) -> int | None:
    target = one[1] if isinstance(one, Sequence) and len(one) == 2 else None
    if isinstance(target, Tensor) and target.ndim == 0 and not target.is_floating_point():
        return int(target)
    return target if isinstance(target, int) else None


def _batch(workload: Workload, dataset: Dataset[Any], split: str, n: int) -> Batch:
    """The first examples, collated."""
    items = [item(dataset, split, i) for i in range(min(n, length(dataset)))]
    with part("collate" if workload.collate else f"joining items of the {split} set (give the Workload a collate)"):
        joined = (workload.collate or default_collate)(items)
    if not isinstance(joined, Sequence) or isinstance(joined, str | Tensor) or len(joined) != 2:
        held = f" of {len(joined)}" if isinstance(joined, list | tuple) else ""
        raise WorkloadError(f"collate must return (inputs, target) but returned a {type(joined).__name__}{held}")
    inputs, target = joined
    if isinstance(inputs, str) or not isinstance(inputs, Tensor | Sequence):
        raise WorkloadError(f"the inputs of a batch are a {type(inputs).__name__} and must be a tensor or a tuple of tensors; "
                            "if the model takes keyword arguments, example(n) must return a dictionary too")
    return as_inputs(inputs), target


# -- the example ------------------------------------------------------------------------------------------------


def check_example(workload: Workload, model: nn.Module) -> Any:
    """Run the model on one of the workload's examples.

    Returns:
        its outputs.

    Raises:
        WorkloadError: ``example`` gives no tensors, or the model cannot take them or gives none.
    """
    example = _example(workload, 1)
    with part(f"the model cannot take its own example ({_shapes(example)}): it"), torch.no_grad():
        outputs = model.eval()(*example)
    tensors_of(outputs)
    return outputs


def _example(workload: Workload, n: int) -> tuple[Tensor, ...]:
    with part(f"example({n})"):
        example = workload.example(n)
    if not isinstance(example, tuple) or not all(isinstance(x, Tensor) for x in example) or not example:
        raise WorkloadError(f"example(n) must return a tuple of tensors, or a dictionary of them, but returned "
                            f"{type(example).__name__}")
    return example


def check_batch_dimension(workload: Workload, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Refuse requests or answers whose first dimension is not the batch's.

    Raises:
        WorkloadError: they are.
    """
    two = _example(workload, 2)
    for i, (x, y) in enumerate(zip(example, two, strict=False)):
        moved = [d for d in range(min(x.ndim, y.ndim)) if x.shape[d] != y.shape[d]]
        if x.ndim == y.ndim and moved and 0 not in moved:
            raise WorkloadError(
                f"example(1) is {list(x.shape)} and example(2) {list(y.shape)} in input {i}: the batch is dimension {moved[0]}, "
                "but engines need it first: give requests as [n, ...] and transpose in the model's forward (batch_first=True)")
    with part(f"the model cannot take two examples at once ({_shapes(two)}): it"):
        _check_first(answers(model, example), example)


def _check_first(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    n = len(inputs[0]) if inputs[0].ndim else 0
    for i, x in enumerate(outputs):
        if x.ndim == 0 or len(x) != n:
            raise WorkloadError(f"for inputs of {_shapes(inputs)} the model's output {i} is {list(x.shape)}: the batch must be "
                                f"the first dimension of all inputs and outputs, {n} here")


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in tensors)


def check_shapes(workload: Workload, example: tuple[Tensor, ...]) -> None:
    """Refuse `shapes` of dimensions that the example does not have.

    Raises:
        WorkloadError: it names one, or is no {position: {dimension: (low, high)}}.
    """
    with part("shapes, which must be {position: {dimension: (low, high)}},"):
        named = [(i, d) for i, dims in workload.served_shapes.items() for d, (low, high) in dims.items() if low <= high]
        strange = [(i, d) for i, d in named if not (0 <= i < len(example) and 0 <= d < example[i].ndim)]
    if strange:
        raise WorkloadError(f"`shapes` names dimension {strange[0][1]} of input {strange[0][0]}, which the example does not have")


# -- quality and loss -------------------------------------------------------------------------------------------


@final
class Few(Subset[Any]):
    """Some examples of a data set, with whatever else it has."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in vars(self):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def check_quality(workload: Workload, model: nn.Module, example: tuple[Tensor, ...],
                  labels: Mapping[str, Sequence[int]]) -> None:
    """Judge the model on a few examples of validation.

    Raises:
        WorkloadError: the quality raises or gives no scores, or asks for what an engine cannot answer.
    """
    batch = _batch(workload, workload.validation, "validation", EXAMPLES)
    _check_inputs(workload, batch[0], example, "validation")
    seen: list[tuple[Tensor, ...]] = []

    def predict(inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            raise WorkloadError("quality calls predict(x) with a tensor; predict takes the tuple of the model's inputs: "
                                "predict((x,))")
        given = tuple(inputs)
        _check_inputs(workload, given, example, "validation")
        if seen and len(given[0]) + sum(len(x[0]) for x in seen) > LARGEST:  # the last answer again: shapes alone are looked at
            kept = [x.repeat(-(-len(given[0]) // len(x)), *([1] * (x.ndim - 1)))[: len(given[0])] for x in seen[-1]]
            return kept[0] if len(kept) == 1 else tuple(kept)
        with part(f"the model, given {_shapes(given)},"):
            outputs = answers(model, given)
        _check_first(outputs, given)
        seen.append(outputs)
        return outputs[0] if len(outputs) == 1 else outputs

    answered = predict(batch[0])
    seen.clear()
    with part("quality"):
        few = workload.quality.sample(workload.validation, EXAMPLES)
        scores = workload.quality(predict, Few(few.dataset, few.indices) if type(few) is Subset else few)
    if not isinstance(scores, Scores):
        raise WorkloadError(f"quality must return thrifty.Scores but returned {type(scores).__name__}")
    if scores.statistic is not workload.quality.statistic:
        raise WorkloadError("quality and its scores name different statistics: its property `statistic` must equal the fourth "
                            "field of Scores(numerator, denominator, cluster, statistic)")
    if not len(scores.numerator):
        raise WorkloadError("quality gave no scores for the validation set")
    _check_labels(workload, answered, labels)


def _check_inputs(workload: Workload, inputs: Sequence[Any], example: tuple[Tensor, ...], split: str) -> None:
    """Inputs of a batch against the example: an engine takes what the example says."""
    if strange := [type(x).__name__ for x in inputs if not isinstance(x, Tensor)]:
        raise WorkloadError(f"an input of the {split} set is a {strange[0]} and must be a tensor: convert it in the data set "
                            "or in collate")
    if len(inputs) != len(example):
        raise WorkloadError(f"a batch of the {split} set has {len(inputs)} inputs and example(n) {len(example)}: both must be "
                            "the model's inputs, in order")
    varies = workload.served_shapes
    for i, (x, like) in enumerate(zip(inputs, example, strict=True)):
        if x.dtype != like.dtype:
            raise WorkloadError(f"input {i} is {_name(x)} in the {split} set and {_name(like)} in example(n): convert one "
                                f"of them (x.to(torch.{_name(like)}) in the data set)")
        fixed = [d for d in range(1, x.ndim) if d not in varies.get(i, {})] if split not in ("train", UNLABELLED) else []
        if x.ndim != like.ndim or any(x.shape[d] != like.shape[d] for d in fixed):
            raise WorkloadError(f"input {i} is {list(x.shape)} in the {split} set and {list(like.shape)} in example(1): an "
                                "engine accepts only the example's sizes, except for the batch; make them equal, or name what "
                                "varies in `shapes`")


def _name(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")


def check_loss(workload: Workload, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Take the loss of a few examples of the training set, and its gradients.

    Raises:
        WorkloadError: forward or loss raises, or the loss is not (sum, weight), or cannot be learned from.
    """
    assert workload.train is not None and workload.loss is not None
    batch = _batch(workload, workload.train, "train", min(EXAMPLES, workload.batch_size))
    _check_inputs(workload, batch[0], example, "train")
    forward = "the model, in training," if workload.forward is call_model else "forward"
    with part(f"{forward} given {_shapes(batch[0])},"):
        outputs = workload.forward(model.train(), batch)
    with part("loss"):
        given = workload.loss(outputs, batch)
    if not (isinstance(given, tuple) and len(given) == 2 and all(isinstance(x, Tensor) and x.numel() == 1 for x in given)):
        held = f"a tuple of {len(given)}" if isinstance(given, tuple) and len(given) != 2 else (
            " and ".join(_what(x) for x in given) if isinstance(given, tuple) else _what(given))
        raise WorkloadError(f"loss must return (sum, weight), two scalar tensors, but returned {held}")
    if not any(p.requires_grad for p in model.parameters()):
        raise WorkloadError("the model has no parameter that can be trained")
    if not given[0].requires_grad:
        raise WorkloadError("no gradient flows from the loss to the model: a detach(), item() or no_grad() blocks it")
    with part("the gradient of the loss"):
        given[0].sum().backward()  # type: ignore[no-untyped-call]


def _what(x: Any) -> str:
    return f"a tensor {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"


def _check_labels(workload: Workload, outputs: Any, labels: Mapping[str, Sequence[int]]) -> None:
    """Labels of many items beside the classes of one batch, where the judge is one of ours."""
    judges = [judge for judge in (workload.loss, workload.quality) if type(judge) in (CrossEntropy, Accuracy)]
    if not judges or not isinstance(outputs, Tensor) or outputs.ndim != 2:
        return
    for split, found in labels.items():
        strange = [x for x in found if not 0 <= x < outputs.shape[1] and x != judges[0].ignore_index]  # type: ignore[union-attr]
        if strange:
            raise WorkloadError(f"a target of the {split} set is {strange[0]}, but the model's outputs {list(outputs.shape)} are "
                                f"for classes 0 to {outputs.shape[1] - 1}: give it more outputs, or fix the targets")
