"""Where the response tokens of a verl micro-batch lie: from nested or padded tensors to packed ones, without padding in between."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import checks


class Responses(NamedTuple):
    """The place of every response token, row after row."""

    places: Tensor  # (N,) int64, of the output that predicts it among all outputs of the model
    rows: Tensor  # (N,) int64
    columns: Tensor  # (N,) int64, within its response
    offsets: Tensor  # (B + 1,) int64, where each response begins among the N
    n_rows: int
    width: int  # of the padded responses: what "-sum-norm" divides by
    total: int  # outputs of the model, prompts included

    def take(self, output: Tensor) -> Tensor:
        """(N,) the outputs that predict response tokens, of a nested (B, j) or flat (total,) tensor."""
        return (output.values() if output.is_nested else output).index_select(0, self.places)


def responses_of(function: str, output: Tensor, data: Any) -> Responses:
    """Find the responses behind their prompts; `output` is one value a token of prompt and response.

        for row in range(B):                            # verl's padding.no_padding_2_padding
            padded[row, : response[row]] = output[end[row] - response[row] - 1 : end[row] - 1]

    Raises where lengths do not add up and for an empty prompt, whose response would have nothing that predicts its first token.
    """
    from verl.utils import tensordict_utils

    prompts, responses = data["prompts"], data["responses"]
    width = tensordict_utils.get_non_tensor_data(data=data, key="max_response_len", default=-1)
    if prompts.is_nested:
        prompt_lengths, lengths = prompts.offsets().diff(), responses.offsets().diff()
    else:
        attention = data["attention_mask"]
        prompt_lengths, lengths = attention[:, : prompts.shape[1]].sum(1), attention[:, prompts.shape[1] :].sum(1)
        width = responses.shape[1]
    total, count, empty, longest = torch.stack(
        [(prompt_lengths + lengths).sum(), lengths.sum(), (prompt_lengths == 0).sum(), lengths.amax()]
    ).tolist()
    flat = output.values() if output.is_nested else output
    if flat.dim() != 1 or flat.shape[0] != total:
        fix = "pass what verl's engine returns, without padding"
        checks.fail(function, "model_output['log_probs']", f"({total},) values, one a token of prompts and responses", flat, fix)
    if empty:
        checks.fail(function, "data['prompts']", "of at least one token each", f"{empty} empty ones", "nothing predicts their first token")
    n_rows, device = lengths.shape[0], lengths.device
    offsets = torch.zeros(n_rows + 1, dtype=torch.int64, device=device)
    offsets[1:] = lengths.cumsum(0)
    rows = torch.repeat_interleave(torch.arange(n_rows, device=device), lengths, output_size=count)
    columns = torch.arange(count, device=device) - offsets[rows]
    first = (prompt_lengths + lengths).cumsum(0) - lengths - 1
    return Responses(first[rows] + columns, rows, columns, offsets, n_rows, longest if width < 0 else width, total)


def field(function: str, name: str, data: Any, places: Responses) -> Tensor:
    """(N,) one field of the responses, nested (B, r) or padded (B, R)."""
    if name not in data:
        checks.fail(function, "data", f"a micro-batch with {name}", f"one without {name}", "verl's trainer computes it before the update")
    value = data[name]
    if value.is_nested:
        packed = value.values()
        same = packed.shape == places.rows.shape
        if not same or (checks.values_wanted(packed) and not torch.equal(value.offsets().to(places.offsets), places.offsets)):
            checks.fail(function, f"data[{name!r}]", "as long as the responses", packed, "select fields of one micro-batch")
        return packed
    if value.dim() != 2 or value.shape[0] != places.n_rows or value.shape[1] < places.width:
        checks.fail(function, f"data[{name!r}]", f"({places.n_rows}, {places.width})", value, "select fields of one micro-batch")
    if name == "response_mask" and checks.values_wanted(value):
        outside = int((value != 0).sum()) - int((value[places.rows, places.columns] != 0).sum())
        if outside:
            checks.fail(function, f"data[{name!r}]", "0 behind the responses", f"{outside} tokens beyond them", "pass verl's response_mask")
    return value[places.rows, places.columns]


def check_mask(function: str, mask: Tensor) -> Tensor:
    """`mask` as bool; of numbers everything but 0 is trained, and where values are checked they must be 0 or 1."""
    checks.tensor(function, "response_mask", mask)
    if mask.dtype == torch.bool:
        return mask
    if checks.values_wanted(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        checks.fail(function, "response_mask", "0 or 1 everywhere", "other numbers", "pass soft weights as rollout_is_weights")
    return mask.to(torch.bool)
