"""Verdicts by algebra in worker processes: results, time limits, replaced workers."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import psutil
import pytest

from core_hpc.answers import verifier as verify_module
from core_hpc.answers.extract import extract_answer
from core_hpc.answers.latex import clean_latex, gold_latex
from core_hpc.answers.latex_comparison import compare_latex
from core_hpc.answers.symbolic import equal
from core_hpc.answers.verifier import Verifier, require_algebra
from core_hpc.common.errors import CoreHpcError, InputError
from core_hpc.store.schema import CORRECT, NO_ANSWER, TIMEOUT, VERDICTS, WRONG

CPU_LIMIT_S = 1.0
HANGS = "9^{9^{9^{9}}}"


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    made = Verifier(num_workers=2, cpu_limit_s=CPU_LIMIT_S)
    yield made
    made.close()


# (answer, gold, equal?), from the rules of arithmetic and algebra.
PAIRS = [
    (r"(x+1)^2", r"x^2+2x+1", True),
    (r"(x+1)^2", r"x^2+2x+2", False),
    (r"\sqrt{12}", r"2\sqrt{3}", True),
    (r"4\sqrt(2)", r"4\sqrt{2}", True),
    (r"\frac{\sqrt{3}}{2}", r"\sqrt{\frac{3}{4}}", True),
    (r"-5i+6", r"6-5i", True),
    (r"2,1", r"\{1,2\}", True),
    (r"(2,1)", "(1,2)", False),
    (r"[1,2]", "(1,2)", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", True),
    (r"\pi r^2", r"r^2\pi", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
    ("5", "x=5", True),
    (r"5\text{ cm}", "5", True),
    (r"90", r"90^\circ", True),
    (r"50\%", "0.5", True),
    (r"1\frac{1}{2}", r"\frac{3}{2}", True),
    ("1 1/2", "11/2", False),
    (r"1 \quad 2", "12", False),
    (r"2^{10}", "1024", True),
    (r"y=2x+1", "2x+1", True),
    (r"\pm 2", "2,-2", True),
    (r"x = \frac{-3 \pm \sqrt{5}}{2}", r"\frac{-3 \pm \sqrt{5}}{2}", True),
    (r"x = \frac{-3 \pm \sqrt{5}}{2}", r"-\frac{3}{2} \pm \frac{\sqrt{5}}{2}", True),
    (r"\frac{-3+\sqrt{5}}{2}, \frac{-3-\sqrt{5}}{2}", r"\frac{-3 \pm \sqrt{5}}{2}", True),
    (r"-\frac{3}{2} \pm \frac{\sqrt{5}}{2}", r"\frac{-3 \pm \sqrt{5}}{2}", True),
    (r"\frac{3 \pm \sqrt{5}}{2}", r"\frac{-3 \pm \sqrt{5}}{2}", False),
    (r"\frac{-3 + \sqrt{5}}{2}", r"\frac{-3 \pm \sqrt{5}}{2}", False),
    (r"7\pm 1", "7", False),
    (r"7", r"7\pm 1", False),
    (r"\{-1 \pm i\}", "-1+i,-1-i", True),
    (r"y=\pm 2", r"x=\pm 2", False),
    (r"\sin^2 x", r"1-\cos^2 x", True),
    (r"\ln 8", r"3\ln 2", True),
    (r"x", "y", False),
    (r"[0,1)\cup(2,3]", r"(2,3]\cup[0,1)", True),
    (r"\infty", r"-\infty", False),
    (r"0.5x", r"\frac{x}{2}", True),
    ("(x,y)=(3,-6)", "(3,-6)", True),
    ("(3,-6)", "(x,y)=(3,-6)", True),
    (r"(r,\theta)=(3,\frac{\pi}{2})", r"(3,\frac{\pi}{2})", True),
    (r"\vec{v}=\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", True),
    (r"\vec{v}=\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}2\\1\end{pmatrix}", False),
    ("(x,y)=(3,-5)", "(3,-6)", False),
    ("(x,y)=(3,6)", "(y,x)=(3,6)", False),
    ("(x+1,y)=(3,-6)", "(3,-6)", False),
    ("(2,y)=(3,-6)", "(3,-6)", False),
    ("42 and 7", "42", False),
    ("41, 42", "42", False),
    ("garbage 42", "42", False),
    ("f(2)", "f(3)", False),
    (r"x<5", "x>5", False),
    (r"5>x", "x<5", True),
    # A variable at the end is no unit.
    ("-16t^2+64t", "64t-16t^2", True),
    ("2l+2w", "2w+2l", True),
    (r"\frac{3t}{2}", r"\frac32 t", True),
    (r"\frac{1}{3}\pi r^2h", r"\frac{\pi r^2 h}{3}", True),
    ("5 m", "5", True),
    (r"12\sqrt2 cm", r"12\sqrt2", True),
    ("2", "2t", False),
    # R and r are two variables, but N is n.
    (r"\pi(R-r)(R+r)", r"\pi(R^{2}-r^{2})", True),
    ("r-R", "R-r", False),
    ("N+1", "n+1", True),
    # A product is no mixed number.
    (r"2\left(\frac34\right)", "1.5", True),
    (r"\log_2(\frac{1}{8})", "-3", True),
    ("f^{-1}(x)=\\frac{x-1}{2}", r"\frac{x-1}{2}", True),
]
# math-verify alone calls these equal.
FALSE_EQUALITIES = [
    ("2s+3", "2s+3t"),
    ("0", "R-r"),
    ("1", r"\frac{R}{r}"),
    (r"\frac{r}{2}", r"\frac{Rr}{R+r}"),
    (r"2(\frac34)", r"\frac{11}{4}"),
    (r"\frac{1}{2006!}", r"\frac{1}{2004!}"),
    (r"0.333333", r"\frac{\pi}{3\pi}"),
    (r"4\sqrt(2)", "4"),
    (r"\frac{x}{2006!}", r"\frac{x}{2004!}"),
    (r"\{1,\frac{1}{2006!}\}", r"\{1,\frac{1}{2004!}\}"),
    (r"\begin{pmatrix}1\\0.333333\end{pmatrix}", r"\begin{pmatrix}1\\\frac13\end{pmatrix}"),
    (r"3.14159265", r"\pi"),
    (r"\text{neEvly}", r"\text{Evelyn}"),
]


def test_algebra(verifier: Verifier) -> None:
    verdicts = verifier.verify_many([(answer, gold, "latex") for answer, gold, _ in PAIRS])
    expected = [CORRECT if same else WRONG for _, _, same in PAIRS]
    assert dict(zip(PAIRS, verdicts, strict=True)) == dict(zip(PAIRS, expected, strict=True))


@pytest.mark.parametrize("pair", FALSE_EQUALITIES)
def test_known_false_equalities_are_wrong(verifier: Verifier, pair: tuple[str, str]) -> None:
    assert verifier.verify_many([(*pair, "latex"), (*pair[::-1], "latex")]) == [WRONG, WRONG]


def test_a_batch_of_all_kinds_in_any_order_has_the_same_verdicts(verifier: Verifier) -> None:
    claims = [
        ("42", "42", "number"),
        ("1/3", "0.333333", "number"),
        ("042", "42", "integer"),
        ("b", "B", "letter"),
        ("Paris.", "paris", "text"),
        (None, "x", "latex"),
        (" ", "x", "latex"),
        (r"\frac{2}{4}x", r"\frac{x}{2}", "latex"),
        ("x+y", "y+x", "latex"),
        (HANGS, "2", "latex"),
        ("x+y", "y+x", "latex"),
        ("C", "B", "letter"),
        (r"\boxed", "x", "latex"),
    ]
    expected = [
        CORRECT,
        WRONG,
        CORRECT,
        CORRECT,
        CORRECT,
        NO_ANSWER,
        NO_ANSWER,
        CORRECT,
        CORRECT,
        TIMEOUT,
        CORRECT,
        WRONG,
        WRONG,
    ]
    assert verifier.verify_many(claims) == expected
    other = Verifier(num_workers=1, cpu_limit_s=CPU_LIMIT_S)
    try:
        assert other.verify_many(claims[::-1]) == expected[::-1]
    finally:
        other.close()
    assert set(expected) == set(VERDICTS)
    assert verifier.verify_many([]) == []


def test_comparison_by_notation_agrees_with_algebra() -> None:
    """The fast comparison against exact fractions, and on formulas against math-verify."""
    values = [Fraction(n, d) for n, d in ((1, 2), (-3, 4), (7, 1), (5, 8), (-12, 1), (1, 3), (1200, 1))]
    notations = [
        lambda v: str(v),
        lambda v: rf"\frac{{{v.numerator}}}{{{v.denominator}}}",
        lambda v: rf"$\dfrac{{{v.numerator}}}{{{v.denominator}}}$",
        lambda v: f"{float(v):g}" if v.denominator != 3 else str(v),
        lambda v: rf"\left({v.numerator}\right)/{v.denominator}",
        lambda v: f"{v.numerator:,}" if v.denominator == 1 else rf"x = {v}",
    ]
    decided = disagreed = 0
    for a, b in itertools.product(values, repeat=2):
        for i, j in ((0, 1), (1, 3), (2, 4), (3, 5), (5, 0)):
            answer, gold = notations[i](a), gold_latex(notations[j](b)) or ""
            verdict = compare_latex(answer, gold)
            if verdict is not None:
                decided += 1
                disagreed += (verdict == CORRECT) != (a == b)
    assert decided > 150
    assert disagreed == 0
    for answer, gold, same in PAIRS:
        if (verdict := compare_latex(answer, gold_latex(gold) or "")) is not None:
            assert (verdict == CORRECT) == same == equal(clean_latex(answer), clean_latex(gold))


def test_a_budget_of_timeouts_per_call_ends_the_comparisons(caplog: pytest.LogCaptureFixture) -> None:
    verifier = Verifier(num_workers=2, cpu_limit_s=0.5, timeout_budget_s=1.0)
    try:
        hanging = [(rf"{HANGS}+{i}", "2", "latex") for i in range(200)]
        start = time.monotonic()
        with caplog.at_level("WARNING"):
            verdicts = verifier.verify_many([*hanging, ("x+1", "1+x", "latex"), ("3", "3", "number")])
        assert time.monotonic() - start < 20
        assert verdicts == [*[TIMEOUT] * 201, CORRECT]  # no algebra is needed for the last
        assert verifier.num_not_compared == 199
        assert "2 comparisons ended at their limit of 0.5 s" in caplog.text
        assert "The other 199 comparisons of this call were not made" in caplog.text
        caplog.clear()
        assert verifier.verify_many([("x+1", "1+x", "latex"), *hanging[:2]]) == [CORRECT, TIMEOUT, TIMEOUT]
        assert caplog.text == ""  # a new call has a new budget, and both timeouts are in the cache
    finally:
        verifier.close()


@pytest.mark.parametrize("guarded", [False, True])
def test_a_script_without_a_guard_is_named(tmp_path: Path, guarded: bool) -> None:
    script = tmp_path / "mine.py"
    call = 'print(verify("x + y", "y + x", "latex"))'
    code = f'if __name__ == "__main__":\n    {call}' if guarded else call
    script.write_text(f"from core_hpc.answers.extract import verify\n{code}\n", encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    if guarded:
        assert (done.stdout, done.returncode) == ("correct\n", 0)
        return
    assert done.returncode != 0
    last = done.stderr.splitlines()[-1]
    assert f"each worker process ran the script {script} again" in last
    assert 'put the calls under `if __name__ == "__main__":`' in last
    assert "ulimit" not in done.stderr


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def test_only_claims_that_need_algebra_start_processes() -> None:
    code = """
        import sys, psutil
        from core_hpc.answers.extract import verify, verify_many
        heavy = {"sympy", "pebble", "math_verify", "torch"}
        verify_many([("1", "2", "number"), ("A", "B", "letter"), ("x", "x", "latex"), ("1/2", "0.5", "latex")])
        verify_many([(None, "x^2", "latex")])
        print(len(psutil.Process().children()), sorted(heavy & set(sys.modules)))
        if __name__ == "__main__":
            verdict = verify("x + y", "y + x", "latex")
            print(verdict, len(psutil.Process().children()) > 0, sorted(heavy & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == ["0 []", "correct True ['pebble']"], done.stderr
    assert done.stderr == ""


def test_workers_load_no_torch(verifier: Verifier) -> None:
    pool = verifier._running_pool()
    loaded = pool.schedule(
        eval, args=["sorted({'torch', 'polars', 'sympy', 'vllm'} & set(__import__('sys').modules))"]
    ).result(timeout=30)
    assert loaded == ["sympy"]


def test_a_hanging_comparison_is_ended_by_cpu_time_and_its_worker_is_replaced(verifier: Verifier) -> None:
    verifier.verify_many([("x+1", "1+x", "latex")])
    before = {p.pid for p in children()}
    start = time.monotonic()
    hanging = [(rf"{HANGS}+{i}", "2", "latex") for i in range(3)]
    assert verifier.verify_many([*hanging, ("x+2", "2+x", "latex")]) == [TIMEOUT] * 3 + [CORRECT]
    assert time.monotonic() - start >= 2 * CPU_LIMIT_S * 0.9  # two workers, and three comparisons hang
    assert {p.pid for p in children()} - before  # new workers
    start = time.monotonic()
    assert verifier.verify_many(hanging) == [TIMEOUT] * 3
    assert time.monotonic() - start < 0.2  # from the cache


def test_waiting_is_not_cpu_time_but_is_limited_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "WALL_FACTOR", 2)
    verifier = Verifier(num_workers=1, cpu_limit_s=0.5)
    try:
        pool = verifier._running_pool()
        assert pool.schedule(time.sleep, args=[0.7], timeout=30).result() is None
        monkeypatch.setattr(verify_module.symbolic, "equal_within", sleeping)
        start = time.monotonic()
        assert verifier._compare([("a", "b")]) == {("a", "b"): TIMEOUT}
        assert time.monotonic() - start < 10
    finally:
        verifier.close()


def sleeping(answer: str, gold: str, cpu_limit_s: float) -> bool:
    """Replaces a comparison that gets no CPU time."""
    time.sleep(60)
    return True


def kill_itself(answer: str, gold: str, cpu_limit_s: float) -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def out_of_memory(answer: str, gold: str, cpu_limit_s: float) -> bool:
    return len(bytearray(8 << 30)) > 0


@pytest.mark.parametrize("replacement", [kill_itself, out_of_memory])
def test_a_worker_that_dies_or_runs_out_of_memory_gives_a_timeout(
    replacement: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    verifier = Verifier(num_workers=1, cpu_limit_s=CPU_LIMIT_S)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(verify_module.symbolic, "equal_within", replacement)
            assert verifier.verify_many([("x+y", "y+x", "latex")]) == [TIMEOUT]
        assert verifier.verify_many([("x+z", "z+x", "latex")]) == [CORRECT]
    finally:
        verifier.close()


def no_start(memory_gb: float) -> None:
    """Replaces limits that the system rejects."""
    raise OSError("refused")


def test_workers_that_cannot_start_are_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module.symbolic, "initialise_worker", no_start)
    verifier = Verifier(num_workers=1, cpu_limit_s=CPU_LIMIT_S)
    try:
        with pytest.raises(CoreHpcError, match="worker processes end before they return a result"):
            verifier.verify_many([("x+y", "y+x", "latex")])
    finally:
        verifier.close()


def test_closing_ends_the_workers_and_a_later_claim_starts_them_again() -> None:
    verifier = Verifier(num_workers=2, cpu_limit_s=CPU_LIMIT_S)
    before = {p.pid for p in children()}
    assert verifier.verify_many([("x+y", "y+x", "latex")]) == [CORRECT]
    workers = [p for p in children() if p.pid not in before and "forkserver" in " ".join(p.cmdline())]
    verifier.close()
    verifier.close()
    gone, _ = psutil.wait_procs(workers, timeout=10)
    assert len(gone) >= 2
    assert verifier.verify_many([("x+z", "z+x", "latex")]) == [CORRECT]
    verifier.close()


def test_workers_end_when_their_parent_is_killed() -> None:
    code = f"""
        import os, signal, threading, time
        from core_hpc.answers.verifier import Verifier
        if __name__ == "__main__":
            verifier = Verifier(num_workers=1, cpu_limit_s=1.0)
            verifier.verify_many([("x+y", "y+x", "latex")])
            threading.Thread(target=verifier.verify_many, args=[[("{HANGS}", "x", "latex")]], daemon=True).start()
            time.sleep(0.3)
            print("ready", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2
        process.kill()
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def test_a_bad_gold_answer_is_an_error(verifier: Verifier) -> None:
    for gold in ("", "{", r"\frac{1}{2", "1" * 600):
        with pytest.raises(ValueError, match="is not of the kind latex; correct the problem data"):
            verifier.verify_many([("1", gold, "latex")])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    require_algebra()
    monkeypatch.setattr(verify_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs math-verify; run: pip install 'core_hpc\[latex\]'"):
        require_algebra()


def test_extraction_and_verification_together(verifier: Verifier) -> None:
    text = r"We get $x = \frac{6}{4}$, so the answer is \boxed{\frac{\sqrt{9}}{2}}."
    assert verifier.verify_many([(extract_answer(text, "latex"), r"\frac{3}{2}", "latex")]) == [CORRECT]
