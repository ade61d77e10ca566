"""What TRL's preference trainers and the authors of INPO, CPL, RPO, EGPO, f-DPG and arXiv 2404.14367 recorded: all of it agrees."""

import pytest

from tests.oracles.claims import worst_error
from tests.test_oracles import ORACLES

FILES = [
    ("frameworks", "openrlhf_policy_loss", 3, 0),
    ("frameworks", "trl_dpo", 73, 0),
    ("frameworks", "trl_experimental_preference", 9, 0),
    ("methods", "trl_a2po_tpo", 27, 0),
    ("papers", "comal_inpo_ipo_dpo", 16, 0),
    ("papers", "cpl", 14, 1),  # ties
    ("papers", "egpo", 28, 0),
    ("papers", "fdpg", 24, 0),
    ("papers", "rpo", 19, 0),
    ("papers", "text2grad", 36, 27),  # text processing
    ("papers", "understanding_rlhf", 18, 0),
]


@pytest.mark.parametrize("folder, file, count, excluded", FILES, ids=[file for _, file, _, _ in FILES])
def test_recorded_answers(folder, file, count, excluded, capsys):
    cases = "^dpo/" if file == "openrlhf_policy_loss" else ""  # its other cases are policy losses
    assert worst_error(capsys, ORACLES / folder, file, cases, count, excluded) > 0
