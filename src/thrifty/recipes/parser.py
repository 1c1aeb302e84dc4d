"""A recipe's text, read as a Python expression with ``ast`` and never evaluated."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from thrifty.errors import RecipeError
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.method import Method
from thrifty.recipes.phases import MAX_PHASES, Phase, Train
from thrifty.recipes.registry import UnknownMethod, method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.recipes.transform import Transform


def parse_phases(text: str) -> list[Phase]:
    """Read a recipe's text; nothing of it is executed.

    Raises:
        RecipeError: it is not a recipe; points at the piece and names the nearest valid one.

    >>> [str(phase) for phase in parse_phases("train(adamw, epochs=2) | quantize(w8a8)")]
    ['train(adamw, epochs=2)', 'quantize(w8a8)']
    """
    return _Parser(text).read()


class _Parser:
    """Reads one text. Every error points at the node that it is about."""

    def __init__(self, text: str) -> None:
        self.text = re.sub(r"[\r\n\t\f\v]", " ", text).strip()  # what a text in quotes holds stays as it is

    def read(self) -> list[Phase]:
        if not self.text:
            return []
        if len(self.text) > 20_000:
            raise RecipeError(f"a recipe's text is at most 20,000 characters; this one has {len(self.text):,}")
        if "#" in self.text:
            at = self.text.index("#")
            raise RecipeError("a recipe cannot contain comments: what follows # would be lost", self.text, at, at + 1)
        try:
            tree = ast.parse(self.text, mode="eval")
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            at = max(0, (getattr(error, "offset", 1) or 1) - 1)
            raise RecipeError(f"this is not a recipe: {getattr(error, 'msg', None) or error}",
                              self.text, at, at + 1) from error
        try:
            return self.phases(tree.body)
        except RecursionError as error:
            raise RecipeError("this recipe is nested too deeply") from error

    def fail(self, node: ast.AST, message: str) -> NoReturn:
        start = getattr(node, "col_offset", 0)
        end = getattr(node, "end_col_offset", start + 1)
        prefix = self.text.encode()[:start].decode(errors="ignore")  # ast counts in UTF-8 bytes
        piece = self.text.encode()[start:end].decode(errors="ignore")
        raise RecipeError(message, self.text, len(prefix), len(prefix) + len(piece))

    def phases(self, node: ast.expr) -> list[Phase]:
        match node:
            case ast.BinOp(left=left, op=ast.BitOr(), right=right):
                found = self.phases(left) + self.phases(right)
            case ast.BinOp(left=left, op=ast.Mult(), right=ast.Constant(value=int(times))) if (
                not isinstance(times, bool)
            ):
                if not 1 <= times <= MAX_PHASES:
                    self.fail(node, f"a part can be repeated 1 to {MAX_PHASES} times but the recipe repeats it {times}")
                found = self.phases(left) * times
            case ast.Call() | ast.Name():
                found = [self.phase(node)]
            case _:
                self.fail(node, "a recipe is made of phases joined by |, such as train(...) | quantize(w8a8); "
                                "this is neither a phase nor a repetition (phase * 3), and is never executed")
        if len(found) > MAX_PHASES:
            self.fail(node, f"a recipe has at most {MAX_PHASES} phases; this one has {len(found)}")
        return found

    def phase(self, node: ast.Call | ast.Name) -> Phase:
        name, arguments, keywords = self.head(node)
        if name == "train":
            return self.train(node, arguments, keywords)
        if name == "compile":
            return self.compile(node, arguments, keywords)
        cls = self.method(node, name, extra=["train", "compile"])
        if issubclass(cls, TrainingMethod):
            self.fail(node, f"{name} modifies a training phase; write train({name}, ...)")
        if issubclass(cls, Compiler):
            self.fail(node, f"{name} is a compiler; write compile({name})")
        made = self.make(node, cls, arguments, keywords)
        assert isinstance(made, Transform)
        return made

    def head(self, node: ast.expr) -> tuple[str, list[ast.expr], list[ast.keyword]]:
        match node:
            case ast.Name(id=name):
                return name, [], []
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
                return name, arguments, keywords
        self.fail(node, "a method's name or a call to one was expected; nothing else is read, and nothing is executed")

    def method(self, node: ast.expr, name: str, extra: list[str] | None = None) -> type[Method]:
        try:
            return method_class(name)
        except UnknownMethod as error:
            near = difflib.get_close_matches(name, (extra or []) + names(), n=1)
            at = node.func if isinstance(node, ast.Call) else node
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join((extra or []) + names())}"
            try:
                self.fail(at, f"there is no method {name!r}; {hint}")
            except RecipeError as pointed:
                raise pointed from error

    def train(self, node: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Train:
        methods = []
        for argument in arguments:
            name, inner, inner_keywords = self.head(argument)
            cls = self.method(argument, name)
            if not issubclass(cls, TrainingMethod):
                self.fail(argument, f"{name} is a phase of its own, not a training method; write train(...) | {name}")
            methods.append(self.make(argument, cls, inner, inner_keywords))
        made: Train = self.build(node, Train, {}, keywords, methods)
        return made

    def compile(self, node: ast.expr, arguments: list[ast.expr], keywords: list[ast.keyword]) -> Compiler:
        if not arguments or not isinstance(arguments[0], ast.Name):
            self.fail(node, f"compile needs a compiler's name: {', '.join(f'compile({c})' for c in _compilers())}")
        name = arguments[0].id
        if name not in names() or not issubclass(method_class(name), Compiler):
            compilers = _compilers()
            near = difflib.get_close_matches(name, compilers, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(compilers)}"
            self.fail(arguments[0], f"there is no compiler {name!r}; {hint}")
        made = self.make(node, method_class(name), arguments[1:], keywords)
        assert isinstance(made, Compiler)
        return made

    def make(self, node: ast.expr, cls: type[Method], arguments: list[ast.expr],
             keywords: list[ast.keyword]) -> Any:
        fields = dataclasses.fields(cls)
        if len(arguments) > len(fields):
            self.fail(arguments[len(fields)], f"{cls.name} takes at most {len(fields)} arguments")
        values = {spec.name: self.value(argument, spec)
                  for spec, argument in zip(fields, arguments, strict=False)}
        return self.build(node, cls, values, keywords)

    def build(self, node: ast.expr, cls: Any, values: dict[str, Any], keywords: list[ast.keyword],
              methods: Sequence[TrainingMethod] = ()) -> Any:
        fields = {spec.name: spec for spec in dataclasses.fields(cls)}
        title = "train" if cls is Train else cls.name
        for given in keywords:
            key = given.arg
            if key is None:
                self.fail(given, f"{title} takes its arguments by name, one by one; ** is not read")
            if key not in fields or (cls is Train and key == "methods"):
                near = difflib.get_close_matches(key, list(fields), n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"it takes: {', '.join(fields) or 'none'}"
                self.fail(given, f"{title} has no argument {key!r}; {hint}")
            if key in values:
                self.fail(given, f"{title} got {key!r} twice")
            values[key] = self.value(given.value, fields[key])
        try:
            made = Train(*methods, **values) if cls is Train else cls(**values)
        except HyperparameterError as error:
            at = next((k for k in keywords if f"({k.arg}=" in str(error)), node)
            try:
                self.fail(at, str(error))
            except RecipeError as pointed:
                raise pointed from error
        for spec in fields.values():
            if "recipe" in spec.metadata:
                parse_phases(getattr(made, spec.name))
            for text in getattr(made, spec.name) if "recipes" in spec.metadata else ():
                parse_phases(text)
        return made

    def value(self, node: ast.expr, spec: dataclasses.Field[Any]) -> Any:
        match node:
            case ast.Name(id=word) if "options" in spec.metadata or word in spec.metadata.get("words", ()):
                return word
            case ast.Constant(value=bool() | int() | float() | str() | None as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                return -value
            case ast.Tuple(elts=parts) | ast.List(elts=parts):
                return tuple(self.value(part, spec) for part in parts)
            case ast.Dict(keys=keys, values=words) if "table" in spec.metadata:
                return self.table(keys, words, spec)
        what = "a number, a text in quotes, True, False or None"
        if "options" in spec.metadata:
            what = "one of " + ", ".join(map(str, spec.metadata["options"]))
        if spec.metadata.get("words"):
            what = "a number, " + ", ".join(spec.metadata["words"])
        if "table" in spec.metadata:
            what = (f"patterns in quotes, each with a word: {{'head': {spec.metadata['table'][0]}}}" if spec.metadata["table"]
                    else "layers in quotes, each with a layer: {'blocks.0': 'blocks.1'}")
        self.fail(node, f"{spec.name} must be {what}; code in a recipe is refused and never executed")


    def table(self, keys: Sequence[ast.expr | None], words: Sequence[ast.expr],
              spec: dataclasses.Field[Any]) -> dict[str, str]:
        found: dict[str, str] = {}
        for key, word in zip(keys, words, strict=True):
            match key, word:
                case ast.Constant(value=str(text)), ast.Name(id=name) | ast.Constant(value=str(name)):
                    if text in found:
                        self.fail(key, f"{spec.name} names {text!r} twice")
                    found[text] = name
                case _:
                    at = word if isinstance(key, ast.Constant) and isinstance(key.value, str) else key or word
                    options = ", ".join(spec.metadata["table"])
                    what = f"patterns in quotes, each with one of {options}" if options else "layers in quotes, each with a layer"
                    self.fail(at, f"{spec.name} takes {what}; code in a recipe is never executed")
        return found


def _compilers() -> list[str]:
    return [name for name in names() if issubclass(method_class(name), Compiler)]
