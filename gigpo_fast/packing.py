"""Labels of packed sequences, from what packed attention is given: cumulative lengths or positions."""

import torch
from torch import Tensor

from . import checks


def sequence_ids_of(
    cu_seqlens: Tensor,  # (S + 1,) int32 or int64: where each sequence starts, and where the last one ends
    token_ids: Tensor,  # (N,) or (1, N), any dtype: the packed tokens
) -> Tensor:  # shape of token_ids, int64
    """The number of its sequence at every token, -1 behind the last one: `sequence_ids` of losses, denominators and advantages.

    The same, slowly:

        ids = torch.full((N,), -1)
        for i, (start, stop) in enumerate(zip(cu_seqlens, cu_seqlens[1:])):
            ids[start:stop] = i

    A loss takes them cut as token ids are, `sequence_ids[1:]` or `[:, 1:]`: the first token of a sequence belongs to it, although the
    hidden state before it is another's, so mask it. Waits for no device. Raises for other shapes and dtypes and, where values are
    checked, for offsets that do not start at 0, fall, or pass the last token.
    """
    function = "sequence_ids_of"
    fix = "pass what packed attention is given: 0 and the cumulative lengths, torch.nn.functional.pad(lengths.cumsum(0), (1, 0))"
    checks.tensor(function, "cu_seqlens", cu_seqlens, shape=(None,), dtypes=(torch.int32, torch.int64), fix=fix)
    checks.tensor(function, "token_ids", token_ids, device=cu_seqlens.device, fix="pass the packed tokens")
    if token_ids.dim() not in (1, 2) or (token_ids.dim() == 2 and token_ids.shape[0] != 1):
        checks.fail(function, "token_ids", "(N,) or (1, N)", token_ids, "rows of a padded batch are sequences and need no labels")
    if cu_seqlens.shape[0] == 0:
        checks.fail(function, "cu_seqlens", "(S + 1,) offsets", cu_seqlens, fix)
    tokens, starts = token_ids.numel(), cu_seqlens.to(torch.int64)
    if checks.values_wanted(cu_seqlens) and not (starts[0] == 0 and bool((starts.diff() >= 0).all()) and starts[-1] <= tokens):
        checks.fail(function, "cu_seqlens", f"offsets that rise from 0 to at most {tokens}", f"{starts.tolist()!r:.80} ...", fix)
    place = torch.arange(tokens, device=starts.device)
    ids = torch.searchsorted(starts, place, right=True) - 1
    return torch.where(place < starts[-1], ids, -1).view(token_ids.shape)


def sequence_ids_of_positions(
    position_ids: Tensor,  # (N,) or (B, T) int64, positions within each sequence
) -> Tensor:  # shape of position_ids, int64
    """The number of its sequence at every token: a new one starts with each row, and where a position does not follow the one before.

    The same, slowly:

        sequence = -1
        for row, t in itertools.product(range(B), range(T)):
            sequence += t == 0 or position_ids[row, t] != position_ids[row, t - 1] + 1
            ids[row, t] = sequence

    Padding has no mark among positions, so it becomes sequences of its own: mask it. Rows of one sequence each need no labels. Used as
    those of `sequence_ids_of`. Waits for no device. Raises for other shapes and dtypes.
    """
    function = "sequence_ids_of_positions"
    checks.tensor(function, "position_ids", position_ids, dtypes=checks.INTEGERS, fix="pass the position_ids that the model is given")
    if position_ids.dim() not in (1, 2):
        checks.fail(function, "position_ids", "(N,) or (B, T)", position_ids, "of multimodal positions pass the text's, position_ids[0]")
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[..., 1:] = position_ids[..., 1:] != position_ids[..., :-1] + 1
    return (starts.reshape(-1).cumsum(0) - 1).view(position_ids.shape)
