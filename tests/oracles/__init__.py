"""Peer oracles: what other projects' released code answered on recorded inputs, sent through the public functions of gigpo_fast.

    python -m tests.oracles FOLDER [--rollouts FOLDER] [--only FILE=REGEX]

Nothing here holds a formula. An adapter only configures and reshapes; the answer comes from gigpo_fast.
"""
