"""Whatever the text, it is a recipe or a recipe error; nothing in it ever runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.generated_recipes import recipes
from thrifty.errors import RecipeError, ThriftyError
from thrifty.recipes.recipe import Recipe


def parse(text: str) -> Recipe:
    return Recipe.parse(text)


CODE = [
    "__import__('os').system('touch CANARY')",
    "train(__import__('os').system('touch CANARY'))",
    "prune(ratio=__import__('os').system('touch CANARY'))",
    "prune(ratio=open('CANARY', 'w').write('x'))",
    "exec(\"open('CANARY', 'w')\")",
    "train(distill(teacher=\"exec('x')\"))",
    "(lambda: open('CANARY', 'w'))()",
    "lambda: train",
    "[open('CANARY', 'w') for _ in (1,)]",
    "train([x for x in (1,)])",
    "train(*[open('CANARY', 'w')])",
    "train(**{'epochs': open('CANARY', 'w')})",
    "train(**dict(epochs=1))",
    "f\"{open('CANARY', 'w')}\" | train",
    "train(schedule=f'{open(\"CANARY\", \"w\")}')",
    "(x := train) | prune",
    "train(epochs=(x := 1))",
    "train.methods",
    "thrifty.train(epochs=1)",
    "train(adamw.__class__)",
    "train[0]",
    "train(epochs=1)(2)",
    "train(epochs=1 + 1)",
    "train(epochs=2 ** 10)",
    "train(epochs=-(-1))",
    "train(epochs=9 ** 9 ** 9)",
    "prune * 3 * train",
    "3 * prune",
    "prune * True",
    "prune * 'a'",
    "train & prune",
    "train or prune",
    "train, prune",
    "train if 1 else prune",
    "not train",
    "...",
    "None",
    "'train'",
    "b'train'",
    "{train}",
    "{'a': train}",
    "await train",
    "yield train",
    "train; import os",
    "import os",
    "train\nimport os",
    "train\\\n| prune\\",
    "train(epochs=1j)",
    "train(epochs=b'1')",
    "train(epochs=...)",
    "train(epochs={1})",
    "train(epochs=(1, 2))",
    "train(epochs=[])",
    "train(epochs=adamw)",
    "train |",
    "| train",
    "train || prune",
    "train)",
    "train(",
    "train(epochs=)",
    "train(epochs=1, epochs=2)",
    "train()()",
    "\0",
    "train\0",
    "train | \0prune",
    "train(distill(teacher='\0'))",
    "\ud800",
    "train('\ud800')",
    "тrain",
    "train | ｘ",
    "🐍",
    "train | prune\u2028import os",
    "\ufefftrain(x)",
    "train(adamw(lr='\\N{SNAKE}'))",
    "(" * 5000 + "train" + ")" * 5000,
    "-" * 19_000 + "1",
    "train(" * 3000 + ")" * 3000,
    "|".join(["train"] * 3000),
    "prune * 2" + " * 2" * 4000,
    "train(epochs=" + "9" * 5000 + ")",
    "train | " + "prune" * 10_000,
    "a.b" + ".c" * 5000,
]


@pytest.mark.parametrize("text", CODE, ids=[repr(text)[:40] for text in CODE])
def test_code_is_refused_and_never_run(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        parse(text)
    assert not list(tmp_path.iterdir()), "the recipe's text was executed"
    assert caught.value.reason
    assert 0 <= caught.value.start <= caught.value.end <= max(1, len(caught.value.text) + 1)


@given(st.text(max_size=60) | st.text("trainpuedmwc()|*=,.'\"0123456789 \\\n", max_size=60))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    try:
        recipe = parse(text)
    except ThriftyError:
        return
    assert parse(str(recipe)) == recipe


@given(recipes(most=3), st.data())
def test_a_recipe_with_a_character_changed_is_a_recipe_or_a_recipe_error(recipe: Recipe, data: st.DataObject) -> None:
    text = str(recipe)
    at = data.draw(st.integers(0, max(0, len(text) - 1)))
    changed = text[:at] + data.draw(st.text(max_size=2)) + text[at + 1:]
    try:
        again = parse(changed)
    except RecipeError:
        return
    assert parse(str(again)) == again


@pytest.mark.parametrize("text", ["train(sophia(gamma=auto))", "train(sophia(gamma='auto'))"])
def test_a_word_may_stand_in_the_place_of_a_number(text: str) -> None:
    assert str(parse(text)) == "train(sophia(gamma=auto))"
    assert parse(text).hash() != parse("train(sophia)").hash()


@pytest.mark.parametrize("value", ["large", "'large'", "-1", "True"])
def test_a_word_that_a_number_does_not_permit_is_refused(value: str) -> None:
    with pytest.raises(RecipeError, match="auto"):
        parse(f"train(sophia(gamma={value}))")
