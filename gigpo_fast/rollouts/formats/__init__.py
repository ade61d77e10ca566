"""One file a format of other projects: how a record of theirs becomes steps. The first that knows a record reads the file.

Each names its format, `knows` it by a record, says in COLUMNS where a record keeps task, trajectory, reward, iteration and success
(a path through its objects, "a.b"), makes `turns` of a record, and says in MISSING what its files cannot tell. A reader that does not
know never guesses: a key without a place in COLUMNS must be named by whoever reads.
"""

from . import art, inspect_ai, nemo_gym, openai_chat, slime, steps, trl, verifiers, verl

FORMATS = (verifiers, nemo_gym, art, slime, inspect_ai, verl, trl, openai_chat, steps)  # steps knows everything, so it comes last
