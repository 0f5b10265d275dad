"""A prompt builder of your own: examples, hint and question in one text.

A prompt builder gets the question, the hint (None without one), the worked examples as pairs of
question and solution, the instruction, and the style of the model. It returns the text of the prompt;
in the style `chat` this is one message of the user, or it may return a list of messages with role and
content. It must not show the hint more than once. See core_hpc/README.md, Extension points.
"""


def tutor(question, hint, examples, instruction, style, *, heading="A friend began like this:"):
    """Blocks of question and answer. In the style chat the model's turn begins by itself."""
    blocks = [f"Question: {asked}\nAnswer: {solution}" for asked, solution in examples]
    shown = [] if hint is None else [f"{heading} {hint}"]
    last = "\n".join([f"Question: {question}", *shown, *([instruction] if instruction else [])])
    return "\n\n".join([*blocks, last if style == "chat" else f"{last}\nAnswer:"])
