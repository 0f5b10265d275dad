r"""Positions of explicit answers in a teacher's text (METHOD.md section 1.3).

In: text (untrusted, of any size). Out: spans that show an answer: answer tags, boxes, labels with
what follows them, sentences such as "42 is the answer" or "option B is correct", and thinking tags;
where answers are letters, also sentences such as "so (B)" or "B fits".
The patterns match everything that `answers/extract.py` reads and more, because losing one more line
of a hint is better than showing an answer. They do not know the gold answer; results inside the
computation are the task of `leaks.py`. The work is linear in the length of the text: every
quantifier is bounded, and every search backwards has a limit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from core_hpc.answers import extract

Span = tuple[int, int]

_FLAGS = re.IGNORECASE | re.MULTILINE
_MAX_BLOCK_CHARS = extract.MAX_PAYLOAD_CHARS
_MAX_SENTENCE_CHARS = 300
_MAX_CHAIN = 4

# --- words ---------------------------------------------------------------------------------------

# "answer" in many languages. The first group is written with spaces between words.
_ANSWER_WORDS = (
    r"(?:antwort(?:en)?|antwoord(?:en)?|r(?:\u00e9|e\u0301)ponses?|respuestas?|rispost[ae]|respostas?"
    r"|odpowied(?:\u017a|z\u0301)|odpov\u011b\u010f|r\u0103spuns(?:ul)?|svaret|cevap|\u0111\u00e1p[ ]\u00e1n"
    r"|jawaban(?:nya)?|\u043e\u0442\u0432\u0435\u0442(?:\u043e\u043c)?"
    r"|\u0432\u0456\u0434\u043f\u043e\u0432\u0456\u0434\u044c)"
)
_ANSWER = rf"\b{_ANSWER_WORDS}\b"
_ANSWER_CJK = (
    r"(?:\u7b54\u6848|\u7b54\u3048|\u89e3\u7b54|\u6b63\u89e3|\u56de\u7b54|\uc815\ub2f5|\ub2f5\ubcc0"
    r"|\u0627\u0644\u062c\u0648\u0627\u0628|\u0627\u0644\u0625\u062c\u0627\u0628\u0629"
    r"|\u0909\u0924\u094d\u0924\u0930|\u091c\u0935\u093e\u092c)"
)
# Results occur within a computation, too. They are labels only directly before a separator.
_RESULT = (
    r"(?:\b(?:(?:final_)?(?:outcome|result)|final[ ]solution|(?:end|gesamt|schluss)?ergebnis|resultat"
    r"|r(?:\u00e9|e\u0301)sultat|resultado|risultato|resultaat|uitkomst|wynik|l\u00f6sung"
    r"|\u0440\u0435\u0437\u0443\u043b\u044c\u0442\u0430\u0442(?:\u043e\u043c)?|\u0438\u0442\u043e\u0433)\b"
    r"|\u7ed3\u679c|\u7d50\u679c|\uacb0\uacfc|\u7b54|\ub2f5|\u0627\u0644\u0646\u0627\u062a\u062c)"
)
_VERB = r"(?:\b(?:is|are|be|was|were|equals?|becomes?|comes?[ ](?:out[ ])?to)\b|['\u2019]s\b)"
_VERB_ELSEWHERE = (
    r"(?:\b(?:ist|sind|lautet|lauten|betr\u00e4gt|w\u00e4re|est|sont|vaut|serait|es|son|ser\u00e1|ser\u00eda|\u00e8"
    r"|sono|sar\u00e0|\u00e9|s\u00e3o|is|luidt|jest|wynosi|este|\u00e4r|\u044f\u0432\u043b\u044f\u0435\u0442\u0441\u044f"
    r"|\u0440\u0430\u0432(?:\u0435\u043d|\u043d\u043e|\u043d\u0430)|\u0431\u0443\u0434\u0435\u0442|l\u00e0|adalah)\b)"
)
_VERB_CJK = (
    r"(?:\u662f|\u4e3a|\u70ba|\u7b49\u4e8e|\u7b49\u65bc|\u306f|\uc740|\ub294|\uc774"
    r"|\u0647\u0648|\u0647\u064a|\u0939\u0948)"
)
_ARROW = (
    r"(?:-{1,3}>|={1,3}>|[\u2192\u21d2\u27f9\u279c\u27a1\u27f6\u21a6]"
    r"|\\(?:to|implies|(?:long)?rightarrow)(?![a-z]))"
)
_SIGN = rf"(?:[:\uff1a=\uff1d\u2248]|{_ARROW})"
_DASH = r"(?:[ \t]{1,4}-{1,3}[ \t]|[ \t]{0,4}[\u2013\u2014])"
_DECORATION = r"[\s*_`\"'$\u00a0]{0,8}"
_START = r"(?:^|(?<=[.!?:;\u3002] )|(?<=[.!?:;\u3002]\n))[ \t>\#*_`-]{0,16}"
_FINAL = r"(?:(?:final|correct|right|our|my|overall)[ \t]{1,4}){0,2}"
# "answer" as a verb, or the answer as something that is only mentioned.
_VERBAL = (
    r"(?!(?<!the )(?<!our )(?<!an )(?<!final )(?<!correct )(?<!right )(?<!your )(?<!my )"
    r"answers?[ \t]{1,4}(?:the|this|that|these|those|each|all|both|every|any|how|what|which|it)\b)"
    r"(?!answers?[ \t]{1,4}(?:will[ \t]|would[ \t])?depends?\b)"
    r"(?!answers?[ \t]{0,4},[ \t]{0,4}(?:we|you|i|let|let's|first|then|one|just|simply|start|begin|add|note)\b)"
)
_NAMED = rf"(?:{_VERBAL}\b(?:final_)?answers?\b|{_ANSWER}|{_ANSWER_CJK})"

# --- labels before the answer ----------------------------------------------------------------------

_EMOJI = r"[^\x00-\u20ff\w]"
_PREFIX = (
    r"(?:\$?\\(?:textbf|mathbf|text|textit|emph|underline|(?:sub)*section\*?|paragraph\*?)\{|<\w{1,8}>)?"
    r"[*_]{0,3}(?:\bthe[ \t]{1,4})?(?:\bfinal[ \t]{1,4})?"
)
_LABEL = re.compile(
    # Headings come before the bare hashes of "#### 42", because their answer is below them.
    rf"{extract.HEADING}"
    # A line that is only a heading: "### Step 3: **Final Answer**", "## ✅ Answer", "<h3>Answer</h3>".
    r"|^(?:[ \t>\#*_`|-]{0,16})"
    rf"(?:(?:step[ \t]{{1,4}})?[0-9]{{1,2}}[.):][ \t*_]{{1,4}}|{_EMOJI}{{1,4}}[ \t*_]{{0,4}})?"
    rf"(?:<\w{{1,8}}>|\\[a-z]{{4,16}}\*?\{{)?[*_]{{0,3}}"
    rf"(?:the[ \t])?{_FINAL}(?:(?:final_)?answers?|{_ANSWER}|{_ANSWER_CJK}|{_RESULT})(?:[ \t]{{1,4}}finale?)?"
    rf"(?:[ \t*_`\#:\uff1a.}}=~]|{_EMOJI}|</\w{{1,8}}>){{0,12}}\r?$"
    rf"|\#{{4,8}}(?:[ \t*_]{{0,8}}(?:final[ \t]{{1,4}})?(?:answers?|result)\b[ \t*_:]{{0,8}}\r?$)?"
    rf"|{_PREFIX}(?:{extract.STATED}"
    rf"|{_VERBAL}\b(?:final_)?answers?\b(?:[^\n.:=<]{{0,60}}?(?:[:=]|{_VERB})|{_DECORATION}(?:{_SIGN}|\|))"
    rf"|{_ANSWER}(?:[^\n.:=<]{{0,40}}?(?:[:=]|{_VERB_ELSEWHERE})|{_DECORATION}(?:{_SIGN}|\|))"
    rf"|{_ANSWER_CJK}(?:[^\n.:=<,\uff0c\u3002]{{0,12}}?(?:[:=]|{_VERB_CJK})|{_DECORATION}(?:{_SIGN}|\|))"
    rf"|{_RESULT}(?:[ \t]{{1,4}}finale?)?{_DECORATION}(?:{_SIGN}|\bis\b|{_VERB_ELSEWHERE}|{_VERB_CJK})"
    # "Final answer - 42", "our final answer, 42", "an answer of 42".
    rf"|(?<=\bfinal[ ])answers?{_DASH}"
    rf"|(?<=\bfinal[ ])answers?[,(]?[ \t*_($]{{1,6}}(?=[-+\\]?[0-9\\])"
    rf"|\banswers?[ \t]{{1,4}}of[ \t*_$(]{{1,6}}(?=[-+\\]?[0-9\\])"
    r"|(?<=the[ ])answer[,(]?[ \t*_($]{1,6}(?=[-+]?[0-9])"
    rf"|\bans\b(?:[ \t]{{1,4}}is)?{_DECORATION}{_SIGN})"
    # Labels only at the beginning of a line or sentence.
    rf"|{_START}(?:the[ \t]{{1,4}})?{_FINAL}(?:{_NAMED}|{_RESULT}|\bans\b){_DASH}"
    rf"|{_START}(?:the[ \t]{{1,4}})?final[ \t]{{1,4}}(?:answers?\b|(?:{_ANSWER}))[ \t*_]{{1,8}}(?=\S)"
    rf"|{_START}{_FINAL}(?:{_NAMED})[ \t*_]{{1,8}}(?=[-+$\u20ac\u00a30-9(\\])"
    rf"|{_START}ans\b[.*_]{{0,4}}[ \t]{{1,4}}(?=[-+$\u20ac\u00a30-9(\\])"
    rf"|{_START}ans\.[ \t*_]{{1,8}}(?=\S)"
    rf"|{_START}final[ \t*_]{{0,4}}[:\uff1a]",
    _FLAGS,
)
# Without any of these parts there is no label; this makes most long texts cheap.
_PARTS = re.compile(
    rf"\#{{4}}|ans|final|outcome|result|option|choice|letter|{_ANSWER_WORDS}|{_ANSWER_CJK}|{_RESULT}", re.IGNORECASE
)
_GAP = re.compile(r"(?:[\s*_:\uff1a=\"'>\#~})-]|`(?!``)|</?(?:b|i|em|strong|u|h[1-6]|br|p)/?>){0,4096}", _FLAGS)
_BULLET = re.compile(r"[ \t>]{0,16}[-*+\u2022][ \t]")
_CONTINUES = re.compile(
    r"(?:[:\uff1a=\u2248]|\b(?:to|is|are|be|by|of|equals|follows|following|below|here))[\s.*_)]{0,8}\Z", re.IGNORECASE
)
_OPENING = re.compile(r"\$\$|\\\[|\\\(|```|~~~|\\begin\{[a-z*]{1,16}\}|<(?:table|pre|code|ul|ol|div|center)\b", re.I)
_CLOSING = {"\\[": "\\]", "\\(": "\\)"}
_TABLE_LINE = re.compile(r"[^\n|]{0,500}\|")

# --- statements after the answer -------------------------------------------------------------------

_LETTER = (
    r"[*_`\"'($\[{\\]{0,6}(?:(?:text|textbf|mathrm|mathbf)\{[(]?)?(?-i:(?<![A-Za-z0-9])[A-J](?![A-Za-z0-9]))"
    r"[*_`\"')$\]}.]{0,8}"
)
_OPTION = (
    r"(?:\b(?:option|choice|answer|letter|statement|alternative|variante?|opci(?:\u00f3|o\u0301)n|opzione"
    r"|op\u00e7\u00e3o|antwort|r\u00e9ponse|\u0432\u0430\u0440\u0438\u0430\u043d\u0442|\u043e\u0442\u0432\u0435\u0442)\b"
    r"|\u9009\u9879|\u9078\u9805|\u9078\u629e\u80a2)"
)
_CORRECT = (
    r"(?:correct|right(?![ -]angle)|best|true|richtig|korrekt|correcte|correcta|corretta|correta|juste|esatta"
    r"|\u043f\u0440\u0430\u0432\u0438\u043b\u044c\u043d)"
)
_ARTICLE = r"(?:(?:the|die|la|le|a|therefore|thus|clearly|indeed|hence|so|most[ \t]likely|l['\u2019])[ \t]{0,4}){0,3}"
_IS = r"(?:\b(?:is|are|was|be|as|equals|ist|est|es|\u00e8|\u00e9)|['\u2019]s)"
# "42 is the answer", "as our final answer".
_IS_ANSWER = (
    rf"{_IS}[ \t*_]{{1,4}}(?:(?:indeed|therefore|thus|then|also)[ \t])?(?:the|our|your|my|an?|die|la)[ \t]{{1,4}}"
    rf"{_FINAL}(?:required[ \t]|desired[ \t])?(?:\b(?:final_)?answers?\b|{_ANSWER})"
)
_IS_ANSWER_CJK = (
    r"[\u662f\u5373\u304c\uc774\uac00][^\n,\uff0c\u3002]{0,4}(?:\u7b54\u6848|\u7b54\u3048|\u6b63\u89e3|\uc815\ub2f5)"
)
# "42 (final answer)", "42 <- answer".
_MARKED = (
    rf"\((?:final[ \t])?(?:answer|{_ANSWER}|{_ANSWER_CJK})\)"
    r"|(?:\u2190|\u21d0|<-{1,3}|\\leftarrow)[ \t$]{0,4}(?:the[ \t])?(?:final[ \t])?"
    rf"(?:answer|{_ANSWER}|{_ANSWER_CJK})"
)
# "option B is correct", "B is the right choice", "the correct option is B", "we pick B".
_OPTION_IS_CORRECT = (
    rf"{_OPTION}[ \t]{{0,4}}{_LETTER}[ \t]{{1,4}}(?:is|must[ \t]be|ist|est|es|\u00e8|\u00e9|-|\u2014)[ \t]{{1,4}}"
    rf"{_ARTICLE}{_CORRECT}"
)
_LETTER_IS_CORRECT = (
    rf"{_LETTER}[ \t]{{1,4}}(?:(?:is|must[ \t]be)|(?:seems|appears|looks)(?:[ \t]to[ \t]be)?)[ \t]{{1,4}}{_ARTICLE}"
    r"(?:correct\b(?![ \t](?:that|if|to|for)\b)|right(?=[\s.,;!]|$)(?![ -]angle)"
    r"|(?:true|most[ \t](?:likely|appropriate)|one)(?=[.,;!]|[ \t]{0,4}$)"
    r"|(?:correct|right|best)[ \t](?:choice|option|answer|one|statement))"
)
_CORRECT_OPTION_IS = (
    r"\b(?:correct|right|best|true|richtige|bonne|correcta|corretta|correta"
    r"|\u043f\u0440\u0430\u0432\u0438\u043b\u044c\u043d\w{1,3})[ \t]{1,4}"
    rf"{_OPTION}[^\n.:=<]{{0,40}}?(?::|=|\bis\b|\bbe\b|{_DASH})[^\n]{{0,24}}?{_LETTER}"
)
_CHOICE = (
    r"\b(?:choose|chose|pick|select|go(?:ing)?[ \t]with|choosing)[ \t]{1,4}"
    rf"(?:(?:the|option|choice|answer|letter|statement)[ \t]{{1,4}}){{0,2}}{_LETTER}(?=[\s.,;:!]|$)"
)
_CHOICE_CJK = (
    r"(?:\u9009|\u9078)(?:\u62e9|\u64c7|\u9879|\u9805|\u629e)?[:\uff1a]?[ \t]{0,4}"
    rf"{_LETTER}(?=[\s.,;:!\u3002\uff0c]|$)"
    rf"|(?:\u9009\u9879|\u9078\u9805|\u9078\u629e\u80a2)?[ \t]{{0,4}}{_LETTER}[ \t]{{0,4}}\u662f?[ \t]{{0,4}}"
    r"(?:\u6b63\u786e|\u6b63\u78ba|\u6b63\u3057\u3044|\u5bf9\u7684)"
)
_STATEMENTS = (
    _IS_ANSWER,
    _IS_ANSWER_CJK,
    _MARKED,
    _OPTION_IS_CORRECT,
    _LETTER_IS_CORRECT,
    _CORRECT_OPTION_IS,
    _CHOICE,
    _CHOICE_CJK,
)
_STATEMENT = re.compile("|".join(_STATEMENTS), _FLAGS)

# --- statements of a letter, only where answers are letters -----------------------------------------

_ENDS = r"(?=[\s*_)$]{0,8}(?:[.!;:](?:\s|\Z)|$))"
CHECK_MARK = r"[\u2713\u2714\u2705\u2611]"
FITS = (
    r"(?:(?:fits?|match(?:es)?|agrees?|works?|corresponds|is[ \t](?:the[ \t])?(?:consistent|closest|nearest))\b"
    rf"|{CHECK_MARK})"
)
CONCLUSION = (
    r"(?:\b(?:therefore|thus|so|hence|conclude|conclusion|leav(?:es?|ing)(?:[ \t]us[ \t]with)?|left[ \t]with|namely"
    r"|(?:this|that|it|which)[ \t](?:is|must[ \t]be)|(?:this|that|it)['\u2019]s)\b|\bi\.e\."
    rf"|(?<![A-Z][ ]){_ARROW})[ \t]{{0,4}}[,:]?[ \t]{{0,4}}"
)
# No bond (C-H), no equation (C = 5), and no second letter (A and B).
_ALONE = r"(?![\w'\u2019\u2013-]|[ \t]{0,4}(?:[=&/]|(?:and|or|nor)\b))"
_OPTION_LETTER = rf"{_LETTER}{_ALONE}"
_OPTION_STATEMENTS = (
    # "we get option B.", "5 eV (option B)", "option (B) agrees with it", "B fits".
    rf"(?<=[^\s#*>_-][ ]){_OPTION}[ \t]{{1,4}}{_OPTION_LETTER}{_ENDS}",
    rf"\({_OPTION}[ \t]{{1,4}}{_OPTION_LETTER}",
    rf"(?:{_OPTION}[ \t]{{1,4}}|\((?=[A-J]\))|^|[,:][ \t]|\b(?:that|so|only|then|thus|hence|therefore)[ \t])"
    rf"{_OPTION_LETTER}[ \t]{{1,4}}{FITS}",
    # "therefore B.", "so B) 5 eV", "only B is possible", "the best match is **B) 5 eV**".
    rf"{CONCLUSION}(?:{_OPTION_LETTER}{_ENDS}|[*_(]{{0,4}}(?-i:[A-J])[*_]{{0,3}}\))",
    r"\b(?:match(?:es|ing)?|corresponds?[ \t]to|agrees?[ \t]with|only"
    r"|(?:match(?:ing)?|closest|nearest)(?:[ \t]\w{1,16})?[ \t](?:is|:))[ \t]{1,4}(?:the[ \t])?"
    rf"(?:{_OPTION}[ \t]{{1,4}})?{_OPTION_LETTER}(?![ \t](?:atoms?|bonds?|ions?|rings?|groups?)\b)",
    # "B) 5 eV \u2713".
    rf"^[ \t>*_-]{{0,16}}\(?(?-i:[A-J])[*_]{{0,3}}\)[^\n]{{0,80}}{CHECK_MARK}",
)
_OPTION_STATEMENT = re.compile("|".join(_OPTION_STATEMENTS), _FLAGS)
# A sentence that rejects or only examines an option.
_EXAMINED = re.compile(
    r"\b(?:not|never|rul(?:es?|ed|ing)[ ]out|exclud\w{1,3}|eliminat\w{1,3}|reject\w{0,3}|discard\w{0,3}|check|consider"
    r"|examine|test|try|look[ ]at|compare)\b[^,;.:\n]{0,24}\Z",
    re.IGNORECASE,
)
_REFUTED = re.compile(
    r"[^.\n]{0,80}?(?:n['\u2019]t\b"
    r"|\b(?:wrong|incorrect|false|not|cannot|fails?|impossible|excluded|eliminated|too[ ]\w{1,16}|contradicts?)\b)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"[.!?;](?=\s)|[\n\u3002\uff01\uff1f]")
_PRONOUN = re.compile(
    r"[\W_]{0,8}(?:(?:so|thus|hence|therefore|and)\b[\W_]{1,4}){0,2}"
    r"(?:this|that|it|these|those|das|dies|ce|c['\u2019]|esta|esto|questa|essa|\u8fd9|\u9019|\u3053\u308c)(?:\b|(?<=['\u2019]))?"
    r"[\W_]{0,4}(?:(?:indeed|then|therefore|thus|number|value|result|also)[ \t]{1,4}){0,2}\Z",
    re.IGNORECASE,
)
_QUESTION = re.compile(r"\b(?:what|where|how|who)\s{1,4}\Z", re.IGNORECASE)
# The last line of a text is an answer if it is only an option, alone or with its text ("C) 5 eV"), or
# if it starts with "A:".
_LAST_LINE = re.compile(
    rf"[ \t>\#*_-]{{0,16}}(?:(?:{_OPTION}[ \t:]{{1,4}})?{_LETTER}[\s.*_]{{0,8}}\Z|A[*_]{{0,3}}[:\uff1a]"
    r"|\(?(?-i:[A-J])[*_]{0,3}\)[*_:]{0,3}[ \t]{0,4}[^\s*_])",
    re.IGNORECASE,
)

# --- tags and boxes --------------------------------------------------------------------------------

_TAG_NAME = r"(?:(?:final|correct|my|the|our)[ _-]?(?:answer|result)|ans(?:wer)?)"
_TAG = re.compile(
    rf"(?P<open>{extract.OPEN_TAG}|<{_TAG_NAME}[ ]{{0,8}}>|\[{_TAG_NAME}\])"
    rf"|{extract.CLOSE_TAG}|</{_TAG_NAME}\s{{0,8}}>|\[/{_TAG_NAME}\]",
    _FLAGS,
)
_BOX = re.compile(
    rf"\\{{0,4}}{extract.BOX}"
    r"|\\{1,4}(?:framebox|makebox|fbox|boxed|bbox|ovalbox|shadowbox|tcbox)\s{0,8}(?:\[[^\[\]\n]{0,64}\]\s{0,8}){0,2}\{"
    r"|\\{1,4}f?colorbox(?:\{[^{}\n]{0,32}\}){1,2}\s{0,8}\{",
    _FLAGS,
)
_BARE_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s{0,8}[^\s{\[]{1,64}", _FLAGS)
_THINK_TAG = re.compile(r"</?think>|\[/?THINK\]", _FLAGS)


def answer_spans(text: str, *, letters: bool = False) -> list[Span]:
    """Every span of the text that must not be in a hint, sorted; spans may overlap.

    `letters`: whether answers are letters of options. In other texts a letter may be a name ("A works alone").
    """
    thinking = (match.span() for match in _THINK_TAG.finditer(text))
    labelled = [*_label_spans(text), *_statement_spans(text), *_last_line(text)]
    options = _option_spans(text) if letters else ()
    return sorted([*_tag_spans(text), *_box_spans(text), *labelled, *options, *thinking])


def _tag_spans(text: str) -> Iterator[Span]:
    """Answer tags with their content.

    Without a closing tag the span extends to the end of the text; without an opening tag it starts
    at the beginning of the line.
    """
    start, done = -1, 0
    for match in _TAG.finditer(text):
        if match["open"]:
            start = match.start() if start < 0 else start
            continue
        if start < 0:
            start = max(done, text.rfind("\n", done, match.start()) + 1)
        yield start, match.end()
        start, done = -1, match.end()
    if start >= 0:
        yield start, len(text)


def _box_spans(text: str) -> Iterator[Span]:
    r"""`\boxed{..}` with nested braces; to the end of the text if the braces are not closed."""
    position = 0
    while (box := _BOX.search(text, position)) is not None:
        end = extract.closing_brace(text, box.end(), len(text))
        position = end + 1 if end >= 0 else len(text)
        yield box.start(), position
    for match in _BARE_BOX.finditer(text):
        yield match.span()


def _label_spans(text: str) -> Iterator[Span]:
    """Labels ("the answer is", "####") with the line, block or table that follows them."""
    done = 0
    first = _PARTS.search(text)
    if first is None:
        return
    for match in _LABEL.finditer(text, text.rfind("\n", 0, first.start()) + 1):
        if match.start() < done:
            continue
        line = max(done, text.rfind("\n", done, match.start()) + 1)
        is_decoration = match.start() - line <= 32 and not text[line : match.start()].strip(" \t>#*_`-|")
        in_math = text.count("$$", line, match.start()) % 2 == 1
        done = _end_of_answer(text, match.end(), in_math=in_math)
        yield line if is_decoration else match.start(), done


def _end_of_answer(text: str, start: int, *, in_math: bool) -> int:
    """The end of what a label announces. `start` is the end of the label."""
    position = _end_of(_GAP, text, start)
    for _ in range(_MAX_CHAIN):
        end = _end_of_block(text, start, position, in_math=in_math)
        if end >= len(text) or not _CONTINUES.search(text, max(position, end - 80), end):
            return end
        start, position, in_math = end, _end_of(_GAP, text, end), False
    return end


def _end_of(pattern: re.Pattern[str], text: str, start: int) -> int:
    match = pattern.match(text, start)
    return match.end() if match else start


def _end_of_line(text: str, start: int) -> int:
    end = text.find("\n", start)
    return len(text) if end < 0 else end


def _end_of_block(text: str, before: int, start: int, *, in_math: bool) -> int:
    """The end of the line at `start`, or of the formula, code block, table or list that it opens.

    Args:
        text: the text.
        before: end of the label; if it is on an earlier line, the line at `start` is a line of its own.
        start: where the content begins.
        in_math: whether the label stands between `$$` marks, so that the next mark closes them.
    """
    end = _end_of_line(text, start)
    position = start
    if in_math:
        close = text.find("$$", start, end)
        position = close + 2 if close >= 0 else end
    while (opening := _OPENING.search(text, position, end)) is not None:
        mark = opening.group().lower()
        closing = _CLOSING.get(mark, mark.replace("begin", "end") if mark.startswith("\\") else mark)
        closing = f"</{mark[1:]}" if mark.startswith("<") else closing
        closed = text.find(closing, opening.end(), opening.end() + _MAX_BLOCK_CHARS)
        if closed < 0:
            return len(text)
        position = closed + len(closing)
        end = max(end, _end_of_line(text, position))
    line = text.rfind("\n", before, start) + 1
    if "|" in text[line or before : end] or text[start - 1 : start] == "|":
        while (row := _TABLE_LINE.match(text, end + 1)) is not None:
            end = _end_of_line(text, row.end())
    elif line and _BULLET.match(text, line):
        while (item := _BULLET.match(text, end + 1)) is not None:
            end = _end_of_line(text, item.end())
    return end


def _statement_spans(text: str) -> Iterator[Span]:
    """Sentences that state an answer before the word ("42 is the answer"), to the end of the line."""
    done = 0
    for match in _STATEMENT.finditer(text):
        if match.start() < done:
            continue
        start = _start_of_sentence(text, match.start(), done)
        before = text[start : match.start()]
        if _QUESTION.search(before[-16:]):
            continue
        if _PRONOUN.match(before[-64:]) and len(before) <= 64:  # "42. This is the answer."
            start = _start_of_previous(text, start, done)
        done = _end_of_line(text, match.end())
        yield start, done


def _option_spans(text: str) -> Iterator[Span]:
    """Sentences that name an option as the answer ("so (B)", "B fits"), to the end of the line."""
    done = 0
    for match in _OPTION_STATEMENT.finditer(text):
        if match.start() < done or _EXAMINED.search(text, max(done, match.start() - 48), match.start()):
            continue
        if _REFUTED.match(text, match.end()):
            continue
        start, done = _start_of_sentence(text, match.start(), done), _end_of_line(text, match.end())
        yield start, done


def _start_of_sentence(text: str, position: int, lowest: int) -> int:
    """Where the sentence at `position` begins, or a bounded number of characters before it."""
    lowest = max(lowest, position - _MAX_SENTENCE_CHARS)
    ends = [match.end() for match in _SENTENCE_END.finditer(text, lowest, position)]
    return ends[-1] if ends else lowest


def _start_of_previous(text: str, start: int, lowest: int) -> int:
    """Where the sentence, or the block of mathematics or code, before `start` begins."""
    lowest = max(lowest, start - _MAX_BLOCK_CHARS)
    window = text[lowest:start].rstrip()
    for closing, opening in (("$$", "$$"), ("\\]", "\\["), ("```", "```")):
        if window.endswith(closing) and (found := window.rfind(opening, 0, len(window) - len(closing))) >= 0:
            return lowest + found
    return _start_of_sentence(text, lowest + len(window.rstrip(".!?;\u3002")), lowest)


def _last_line(text: str) -> Iterator[Span]:
    """The last line of the text if it is only an option, or "A: ..", as in a list of questions."""
    end = len(text.rstrip())
    start = text.rfind("\n", 0, end) + 1
    if start and end - start <= _MAX_BLOCK_CHARS and _LAST_LINE.match(text[start:end]):
        yield start, len(text)
