from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from thrifty.artifacts.artifact import ArtifactError
from thrifty.artifacts.generator import GenerationError, Generator
from thrifty.compilers.generator import lower_generator
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.compilers.openvino import OpenVino
from thrifty.engines import EngineError
from thrifty.errors import WorkloadError

transformers = pytest.importorskip("transformers")
WORDS = 97


def llama(spread=0.3):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
                                      intermediate_size=96, vocab_size=WORDS, max_position_embeddings=64,
                                      bos_token_id=1, eos_token_id=2, initializer_range=spread)
    return transformers.LlamaForCausalLM(config).eval()


def gpt2(spread=0.3):
    torch.manual_seed(0)
    config = transformers.GPT2Config(n_layer=2, n_head=4, n_embd=64, vocab_size=WORDS, n_positions=64, bos_token_id=1,
                                     eos_token_id=2, initializer_range=spread)
    return transformers.GPT2LMHeadModel(config).eval()


def mixtral(spread=0.3):
    torch.manual_seed(0)
    config = transformers.MixtralConfig(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
                                        intermediate_size=48, num_local_experts=4, vocab_size=WORDS, max_position_embeddings=64,
                                        bos_token_id=1, eos_token_id=2, initializer_range=spread)
    return transformers.MixtralForCausalLM(config).eval()


def jamba(spread=0.3):
    """Mamba, attention with experts, Mamba, Mamba with experts: a KV cache and two kinds of states."""
    torch.manual_seed(0)
    config = transformers.JambaConfig(num_hidden_layers=4, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
                                      intermediate_size=48, num_experts=4, attn_layer_period=4, attn_layer_offset=1,
                                      mamba_d_state=8, vocab_size=WORDS, max_position_embeddings=64, bos_token_id=1,
                                      eos_token_id=2, pad_token_id=0, initializer_range=spread)
    return transformers.JambaForCausalLM(config).eval()


MAKERS = {"llama": llama, "gpt2": gpt2}


def expected(body, prompt, new):
    """By transformers' own loop."""
    ids = torch.tensor([prompt])
    found = body.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, eos_token_id=None,
                          pad_token_id=0)
    return found[0, len(prompt):].tolist()


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def made(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param) / "generator"
    body = MAKERS[request.param]()
    lower_generator(body, OnnxRuntime(), place, prompt=8, tokens=32)
    return body, place


@pytest.mark.parametrize("length", [1, 5, 8, 13, 31])
def test_it_says_what_transformers_say(made, length):
    """Prompts that are shorter than the first engine's, as long, and longer."""
    body, place = made
    prompt = np.random.default_rng(length).integers(3, WORDS, length).tolist()
    new = min(12, 32 - length)
    assert Generator.load(place).generate(prompt, new) == expected(body, prompt, new)


@pytest.mark.slow
@pytest.mark.parametrize("maker", [mixtral, jamba])
def test_mixtures_and_state_spaces_say_what_transformers_say(tmp_path, maker):
    """A prompt shorter than the first engine's is filled up, which must not touch the states."""
    body = maker()
    lower_generator(body, OnnxRuntime(), tmp_path / "g", prompt=8, tokens=32)
    generator = Generator.load(tmp_path / "g")
    for length in (1, 5, 8, 13):
        prompt = np.random.default_rng(length).integers(3, WORDS, length).tolist()
        assert generator.generate(prompt, 12) == expected(body, prompt, 12)
    assert generator.generate(prompt, 12) == expected(body, prompt, 12), "a second answer knows nothing of the first"


def test_it_stops_at_the_end_token_and_takes_another_choice(made):
    body, place = made
    generator, prompt = Generator.load(place), [5, 9, 11]
    whole = expected(body, prompt, 10)
    end = whole[4]
    assert generator.generate(prompt, 10, end=end) == whole[: whole.index(end) + 1]
    worst = generator.generate(prompt, 3, choose=lambda logits: int(logits.argmin()))
    assert worst != whole[:3] and all(0 <= token < WORDS for token in worst)


def test_a_second_answer_knows_nothing_of_the_first(made):
    _, place = made
    generator = Generator.load(place)
    first = generator.generate([7, 8], 6)
    generator.generate([50] * 20, 6)
    assert generator.generate([7, 8], 6) == first


@pytest.mark.parametrize("cache", [pytest.param("fp32", marks=pytest.mark.slow), "int8"])
def test_other_engines_say_the_same(tmp_path, cache):
    if lacks := OpenVino.missing():
        pytest.skip(lacks)
    body = llama()
    lower_generator(body, OpenVino(), tmp_path / "g", prompt=4, tokens=16, cache=cache)
    assert Generator.load(tmp_path / "g").generate([3, 4, 5], 8) == expected(body, [3, 4, 5], 8)


@pytest.fixture(scope="module")
def held_in_bytes(tmp_path_factory):
    place = tmp_path_factory.mktemp("int8") / "generator"
    lower_generator(llama(), OnnxRuntime(), place, prompt=8, tokens=32, cache="int8")
    return place


@pytest.mark.slow
def test_a_cache_of_eight_bits_is_small_and_says_the_same(made, held_in_bytes):
    """The next token after each of many beginnings, some longer than the first engine's prompt."""
    body, exact = llama(), Generator.load(made[1])
    generator = Generator.load(held_in_bytes)
    tokens = np.random.default_rng(0).integers(3, WORDS, (2, 25)).tolist()
    same = [generator.generate(row[:n], 1) == expected(body, row[:n], 1) for row in tokens for n in range(2, 25)]
    assert sum(same) >= 0.9 * len(same)
    layers, heads, width = 2, 2, 16
    assert generator.cache_bytes == 2 * layers * heads * 32 * (width + 4)
    assert exact.cache_bytes == 4 * np.prod(exact.cache) * 2


def test_what_goes_in_and_out_is_eight_bits(held_in_bytes):
    seen = []

    class Watched:
        def __init__(self, engine):
            self.engine = engine

        def __getattr__(self, name):
            return getattr(self.engine, name)

        def native(self, arrays):
            seen.append(sum(x.nbytes for x in arrays[3:]))
            return self.engine.native(arrays)

        def arrays(self, outputs):
            found = self.engine.arrays(outputs)
            seen.append(sum(x.nbytes for x in found[1:]))
            return found

    generator = Generator.load(held_in_bytes)
    watched = Generator(Watched(generator.prefill), Watched(generator.decode), generator.prompt, generator.cache, "int8")
    assert watched.generate([5, 6, 7], 4) == generator.generate([5, 6, 7], 4)
    assert seen == [generator.cache_bytes] * 8


def test_another_cache_is_refused(tmp_path):
    with pytest.raises(GenerationError, match="fp32 or int8 but is 'int4'"):
        lower_generator(llama(), OnnxRuntime(), tmp_path / "g", cache="int4")
    assert not (tmp_path / "g").exists()


def test_it_runs_without_torch(made):
    _, place = made
    script = ("import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
              "from thrifty.artifacts.generator import Generator\n"
              "print(Generator.load(sys.argv[1]).generate([5, 6], 4))")
    done = subprocess.run([sys.executable, "-c", script, str(place)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == Generator.load(place).generate([5, 6], 4)


@pytest.mark.parametrize(("prompt", "new"), [([], 3), ([1, 2], 0), ([1] * 30, 3)])
def test_lengths_that_cannot_be_are_refused(made, prompt, new):
    with pytest.raises(GenerationError, match="2 to 32"):
        Generator.load(made[1]).generate(prompt, new)


def test_what_keeps_no_cache_is_refused(tmp_path):
    with pytest.raises(WorkloadError, match="causal LM"):
        lower_generator(torch.nn.Linear(2, 2), OnnxRuntime(), tmp_path / "g")
    with pytest.raises(WorkloadError, match="2 to 64"):
        lower_generator(llama(), OnnxRuntime(), tmp_path / "g", tokens=100)
    with pytest.raises(GenerationError, match="prompt must be"):
        lower_generator(llama(), OnnxRuntime(), tmp_path / "g", prompt=65, tokens=64)
    windowed = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(
        num_hidden_layers=2, hidden_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=20,
        intermediate_size=32))
    with pytest.raises(WorkloadError, match="sliding_attention"):
        lower_generator(windowed, OnnxRuntime(), tmp_path / "g", prompt=4, tokens=16)
    assert not (tmp_path / "g").exists()


def test_a_damaged_generator_is_not_opened(made, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(made[1], copy)
    (copy / "generator.json").write_text("{}")
    with pytest.raises(ArtifactError, match="damaged"):
        Generator.load(copy)
    told = json.loads((made[1] / "generator.json").read_text())
    told["cache"]["numbers"] = "int2"
    (copy / "generator.json").write_text(json.dumps(told))
    with pytest.raises(ArtifactError, match="int2"):
        Generator.load(copy)
    with pytest.raises(ArtifactError, match="not a generator"):
        Generator.load(tmp_path)
    shutil.copy(made[1] / "generator.json", copy)
    (copy / "decode" / "model.onnx").write_bytes(b"no")
    with pytest.raises((ArtifactError, EngineError)):
        Generator.load(copy)
