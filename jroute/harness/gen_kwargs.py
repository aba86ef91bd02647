"""lm-eval's generation arguments as decoding, and completions as the texts lm-eval expects."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from pydantic import ConfigDict
from transformers import PreTrainedTokenizerFast

from jroute.generate.decoding import Completion, Decoding
from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check


class _Arguments(Record):
    """lm-eval's generation arguments that are implemented; numbers may be written as text."""

    model_config = ConfigDict(strict=False)

    until: list[str | None]
    max_gen_toks: int
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None


_REMEDY = "correct it in the task's generation_kwargs or in --gen_kwargs"


class ResponseText(str):
    """A response to lm-eval that knows whether it was cut off by its token limit."""

    truncated: bool = False

    @classmethod
    def create(cls, text: str, truncated: bool) -> "ResponseText":
        """Mark a text."""
        generated = cls(text)
        generated.truncated = truncated
        return generated


class GenerationArguments(NamedTuple):
    """How to generate under one set of generation arguments.

    Attributes:
        decoding: Decoding of the engine.
        stop: All stop strings, for the final cut of the text.
        end_token_ids: Stop strings that are one special token each, as ids of tokens that end a
            completion.
        special_stops: Other stop strings with special tokens in them. The engine's text does not
            show these, so they are looked for in the finished completion.
    """

    decoding: Decoding
    stop: tuple[str, ...]
    end_token_ids: tuple[int, ...]
    special_stops: tuple[str, ...]

    @classmethod
    def parse(
        cls,
        gen_kwargs: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        *,
        eos: int,
        default_limit: int,
        context: int,
    ) -> "GenerationArguments":
        """Translate lm-eval's generation arguments.

        Args:
            gen_kwargs: lm-eval's generation arguments.
            tokenizer: The model's tokenizer.
            eos: The token that ends a text; its text always is a stop string.
            default_limit: Limit on new tokens where the arguments set none.
            context: Most tokens of a prompt and its completion together.

        Raises:
            UserError: Arguments that are not implemented, or a limit that leaves no room.
        """
        try:
            normal: dict[str, Any] = dict(normalize_gen_kwargs(dict(gen_kwargs), default_limit))
        except Exception as error:  # it computes with the values before it checks them
            raise UserError(
                f"generation arguments {gen_kwargs!r:.200} are wrong ({error}); {_REMEDY}"
            ) from error
        if unknown := sorted(normal.keys() - _Arguments.model_fields.keys()):
            raise UserError(
                f"generation argument {unknown[0]!r} is not implemented in jroute; "
                f"known are {', '.join(sorted(_Arguments.model_fields))}"
            )
        options = check(normal, _Arguments, "the generation arguments", _REMEDY)
        limit = options.max_gen_toks
        if not 0 < limit < context:
            raise UserError(
                f"max_gen_toks is {limit}, which leaves no room for a prompt in a context of "
                f"{context} tokens; set it, as with --gen_kwargs max_gen_toks={context // 2}"
            )
        stop = [text for text in options.until if text]
        special_tokens = set(tokenizer.all_special_tokens)
        ends = [text for text in stop if text in special_tokens]
        special = [
            text
            for text in stop
            if text not in special_tokens and any(token in text for token in special_tokens)
        ]
        decoding = Decoding(
            temperature=(options.temperature or 0.0) if options.do_sample else 0.0,
            top_k=options.top_k or 0,
            top_p=1.0 if options.top_p is None else options.top_p,
            min_p=options.min_p or 0.0,
            max_new_tokens=limit,
            stop=tuple(text for text in stop if text not in (*ends, *special)),
        )
        ids = [int(tokenizer.convert_tokens_to_ids(text)) for text in ends]  # type: ignore[arg-type]
        eos_text = str(tokenizer.decode([eos]))
        all_stops = tuple(dict.fromkeys([*stop, eos_text]))
        return cls(decoding, all_stops, tuple(ids), tuple(special))

    def cut(self, completion: Completion, tokenizer: PreTrainedTokenizerFast) -> ResponseText:
        """Return the text of a completion before its first stop."""
        text, truncated = completion.text, completion.stop_reason == "length"
        whole = str(tokenizer.decode(list(completion.tokens))) if self.special_stops else ""
        positions = [at for stop in self.special_stops if (at := whole.find(stop)) >= 0]
        if positions:
            text, truncated = whole[: min(positions)], False
            text = _without(tokenizer.all_special_tokens, text)
        cut = postprocess_generated_text(text, list(self.stop), None)
        return ResponseText.create(cut, truncated and len(cut) == len(text))


def _without(parts: Collection[str], text: str) -> str:
    for part in parts:
        text = text.replace(part, "")
    return text
