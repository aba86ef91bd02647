"""lm-eval's generation arguments as decoding, and completions as lm-eval wants its texts."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from transformers import PreTrainedTokenizerFast

from jroute.generate.decoding import Completion, Decoding
from jroute.utils.errors import UserError

_OPTIONS = {"until", "do_sample", "temperature", "top_k", "top_p", "min_p", "max_gen_toks"}


class GeneratedText(str):
    """A generated text that knows whether it was cut off by its token limit."""

    truncated: bool = False

    @classmethod
    def of(cls, text: str, truncated: bool) -> "GeneratedText":
        """Mark a text."""
        generated = cls(text)
        generated.truncated = truncated
        return generated


class GenerationArguments(NamedTuple):
    """How to generate under one set of generation arguments.

    Attributes:
        decoding: What the engine is told.
        until: All stop strings, for the final cut of the text.
        ends: Stop strings that are one special token each: tokens that end a completion.
        special: Other stop strings with special tokens in them, which the engine's text does not
            show; they are looked for when a completion is there.
    """

    decoding: Decoding
    until: tuple[str, ...]
    ends: tuple[int, ...]
    special: tuple[str, ...]

    @classmethod
    def of(
        cls,
        arguments: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerFast,
        *,
        eos: int,
        default_limit: int,
        context: int,
    ) -> "GenerationArguments":
        """Translate generation arguments.

        Args:
            arguments: As lm-eval has them.
            tokenizer: The model's.
            eos: The token that ends a text; its text always is a stop string.
            default_limit: Limit on new tokens where the arguments set none.
            context: Most tokens of a prompt and its completion together.

        Raises:
            UserError: Arguments that are not implemented, or a limit that leaves no room.
        """
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), default_limit))
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise UserError(
                f"generation argument {unknown[0]!r} is not implemented in jroute; "
                f"known are {', '.join(sorted(_OPTIONS))}"
            )
        limit = options["max_gen_toks"]
        if not 0 < limit < context:
            raise UserError(
                f"max_gen_toks is {limit}, which leaves no room for a prompt in a context of "
                f"{context} tokens; set it, as with --gen_kwargs max_gen_toks={context // 2}"
            )
        until = [stop for stop in options["until"] if stop]
        names = set(tokenizer.all_special_tokens)
        ends = [stop for stop in until if stop in names]
        special = [s for s in until if s not in names and any(name in s for name in names)]
        decoding = Decoding(
            temperature=float(options.get("temperature", 0.0)) if options["do_sample"] else 0.0,
            top_k=int(options.get("top_k", 0)),
            top_p=float(options.get("top_p", 1.0)),
            min_p=float(options.get("min_p", 0.0)),
            max_new_tokens=limit,
            stop=tuple(stop for stop in until if stop not in (*ends, *special)),
        )
        ids = [int(tokenizer.convert_tokens_to_ids(stop)) for stop in ends]  # type: ignore[arg-type]
        text = str(tokenizer.decode([eos]))
        return cls(decoding, tuple(dict.fromkeys([*until, text])), tuple(ids), tuple(special))

    def cut(self, completion: Completion, tokenizer: PreTrainedTokenizerFast) -> GeneratedText:
        """The text of a completion before its first stop."""
        text, truncated = completion.text, completion.stop_reason == "length"
        whole = str(tokenizer.decode(list(completion.tokens))) if self.special else ""
        stops = [at for stop in self.special if (at := whole.find(stop)) >= 0]
        if stops:
            text, truncated = whole[: min(stops)], False
            text = without(tokenizer.all_special_tokens, text)
        cut = postprocess_generated_text(text, list(self.until), None)
        return GeneratedText.of(cut, truncated and len(cut) == len(text))


def without(names: Collection[str], text: str) -> str:
    """A text without these parts."""
    for name in names:
        text = text.replace(name, "")
    return text
