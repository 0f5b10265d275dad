"""The instruction that follows a question when the configuration gives none: what to do, and the form of the answer.

In: the kind of answer and the style of instruction. Out: text. Every form asked for here is read by answers.py (tested), and
strategies are written as protocol/hints.py reads them. Where the instruction stands in a prompt is prompts.py's.
"""

from __future__ import annotations

from collections.abc import Collection

DIRECT, STRATEGIES = "direct", "strategies"

_ENDS = {
    "number": "End with a line that has '#### ' and the final number only.",
    "integer": "End with the final answer, an integer from 0 to 999, in \\boxed{}.",
    "latex": "End with the final answer in \\boxed{}.",
    "letter": "End with a line that has 'Answer: ' and the letter of the right option only.",
    "text": "End with a line that has 'Answer: ' and the final answer only.",
}
_RESULTS = {
    "number": "number",
    "integer": "integer from 0 to 999",
    "latex": "answer in LaTeX",
    "letter": "letter of the right option",
    "text": "answer",
}
_BOXED = frozenset({"number", "integer", "latex"})


def default_instruction(kinds: Collection[str], style: str) -> str | None:
    """The instruction for problems whose answers are of these kinds; None when no one form suits them all.

    Numbers, integers and LaTeX together are asked for in a box. `style` is direct (one solution), or strategies (several
    in `<strategy>` blocks, each with its own outcome).

    >>> default_instruction({"letter"}, "direct")
    "Solve the problem step by step. End with a line that has 'Answer: ' and the letter of the right option only."
    >>> default_instruction({"number", "latex"}, "direct"), default_instruction({"number", "letter"}, "direct")
    ('Solve the problem step by step. End with the final answer in \\\\boxed{}.', None)
    """
    if len(kinds) > 1 and not _BOXED.issuperset(kinds):
        return None
    kind = next(iter(kinds)) if len(kinds) == 1 else "latex"
    if style == DIRECT:
        return f"Solve the problem step by step. {_ENDS[kind]}"
    result = _RESULTS[kind]
    return (
        "Solve the problem in two or three different ways. Write each as a block\n"
        f"<strategy id=1>\nthe steps of this way\n<outcome>its {result} only</outcome>\n</strategy>\n"
        f"with the ids 1, 2, 3. Compare the outcomes, and end with <final_answer>the final {result} only</final_answer>."
    )
