"""Pairs of context and continuation for scoring: their truncation, batches, and rolling windows."""

from collections.abc import Callable, Iterator, Sequence
from typing import cast

from lm_eval.api.instance import Instance
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from jroute.utils.errors import UserError

SCORING_BATCH = 256
"""Pairs that are scored before their answers are cached."""

Pair = tuple[list[int], list[int]]
"""Token ids of a context and of the continuation that is scored."""

ScoringRequest = tuple[tuple[str, str] | None, list[int], list[int]]
"""Texts of a pair (``None`` for a rolling window), and its token ids."""


def check_choices(requests: Sequence[Instance]) -> None:
    """Refuse continuations without any text, which have no likelihood.

    Raises:
        UserError: Naming the first.
    """
    for request in requests:
        _, continuation = cast(tuple[str, str], request.args)
        if not continuation:
            raise UserError(
                f"task {request.task_name}, document {request.doc_id}: choice {request.idx} is "
                "empty, and only a text can be scored; mend the task's doc_to_choice, or its "
                "doc_to_target"
            )


def fit_to_context(requests: Sequence[ScoringRequest], max_length: int) -> list[Pair]:
    """Return pairs with contexts that are too long truncated from the left.

    The last token of a pair is predicted and never read, so a pair may be one longer than the
    context.

    Args:
        requests: Pairs.
        max_length: The context in tokens.

    Raises:
        UserError: A continuation has no token, or alone is longer than the context.
    """
    pairs = []
    for texts, context, continuation in requests:
        if not continuation:
            raise UserError(
                f"the continuation {(texts or ('', ''))[1]!r:.80} adds no token of its own to its "
                "context, so it cannot be scored; let the context or the continuation end otherwise"
            )
        if len(continuation) > max_length:
            raise UserError(
                f"a continuation of {len(continuation)} tokens cannot be scored in a context "
                f"of {max_length}; choose another task or a model with a longer context"
            )
        pairs.append((context[len(continuation) - max_length - 1 :], continuation))
    return pairs


def batches_by_length(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Yield indices of pairs in batches, shortest first, so that a call has few widths."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    for start in range(0, len(order), SCORING_BATCH):
        yield order[start : start + SCORING_BATCH]


def rolling_batches(
    requests: Sequence[Instance],
    encode: Callable[[str], list[int]],
    prefix_token_id: int,
    max_length: int,
) -> Iterator[list[tuple[Instance, list[ScoringRequest]]]]:
    """Yield requests with their windows, about a batch of windows at a time.

    Args:
        requests: Rolling log-likelihood requests.
        encode: Text to token ids.
        prefix_token_id: The token that precedes the first window.
        max_length: The context in tokens, which is the length of a window.
    """
    batch: list[tuple[Instance, list[ScoringRequest]]] = []
    for request in requests:
        rolled = get_rolling_token_windows(encode(request.args[0]), prefix_token_id, max_length, 1)
        batch.append((request, [(None, *make_disjoint_window(window)) for window in rolled]))
        if sum(len(windows) for _, windows in batch) >= SCORING_BATCH:
            yield batch
            batch = []
    yield batch
