"""The instruction that follows a question if the configuration gives none.

In: the kinds of answers and the style of the instruction. Out: a text that states what to do and
the form of the answer. `answers/extract.py` reads every form that is asked for here (tested), and
`protocol/hints.py` reads the strategies. `models/prompts.py` decides where the text stands in a
prompt.
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
    """Return the instruction for answers of these kinds, or None if no single form fits all kinds.

    Args:
        kinds: Kinds of answers. Numbers, integers and LaTeX together are asked for in a box, and a
            kind of the user like text.
        style: `direct` asks for one solution. `strategies` asks for several, each in a `<strategy>`
            block with its own outcome.

    >>> default_instruction({"number"}, "direct")
    "Solve the problem step by step. End with a line that has '#### ' and the final number only."
    >>> default_instruction({"number", "latex"}, "direct")
    'Solve the problem step by step. End with the final answer in \\\\boxed{}.'
    >>> default_instruction({"number", "letter"}, "direct") is None
    True
    """
    if len(kinds) > 1 and not _BOXED.issuperset(kinds):
        return None
    kind = next(iter(kinds)) if len(kinds) == 1 else "latex"
    if kind not in _ENDS:  # a kind of the user
        kind = "text"
    if style == DIRECT:
        return f"Solve the problem step by step. {_ENDS[kind]}"
    result = _RESULTS[kind]
    return (
        "Solve the problem in two or three different ways. Write each as a block\n"
        f"<strategy id=1>\nthe steps of this way\n<outcome>its {result} only</outcome>\n</strategy>\n"
        "with the ids 1, 2, 3. Compare the outcomes, and end with "
        f"<final_answer>the final {result} only</final_answer>."
    )
