"""lm-evaluation-harness on a gated model: an adapter in which an arm chooses each prompt's gate.

The adapter answers the harness's three kinds of requests with the meaning that the harness's own
Hugging Face model gives them at batch size 1; on top of that it asks an arm for a gate. The gate
comes from the context alone, so all continuations of a question share it, and text without a
context (rolling log-likelihoods, an empty context) is scored at gate 0. Rows run in a fixed number
of slots and sampling is seeded by the prompt, so neither order nor neighbours matter.

Importing this module registers the model ``jroute`` with lm-eval, for example for
``simple_evaluate("jroute", "pretrained=runs/demo,arm=rl", ...)``.
"""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import jax
import lm_eval.models  # noqa: F401 - its models must be registered before ours, or they are lost
import numpy as np
from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)
from tqdm import tqdm

from jroute.errors import UserError
from jroute.evaluation.records import Record, gate_histogram, truncation_rate
from jroute.generate.decoding import Completion, Decoding
from jroute.lm import LanguageModel
from jroute.observe.progress import GenerationBar
from jroute.tasks.prompts import render_chat

logger = logging.getLogger(__name__)

GatePolicy = Callable[[list[str]], Any]
"""Prompts to their gates ``[prompts]``, each from its own prompt alone."""

DEFAULT_NEW_TOKENS = 256
"""Where a task sets no limit; the harness's models agree on this number."""

_SCORING_BATCH = 256
_OPTIONS = {"until", "do_sample", "temperature", "top_k", "top_p", "max_gen_toks"}


class Generated(str):
    """A generated text that knows whether it was cut off by its token limit."""

    truncated: bool = False

    @classmethod
    def of(cls, text: str, truncated: bool) -> "Generated":
        """Marks a text."""
        generated = cls(text)
        generated.truncated = truncated
        return generated


class _Plan(NamedTuple):
    """How to generate under one set of generation arguments.

    Attributes:
        decoding: What the engine is told.
        until: All stop strings, for the final cut of the text.
        special: Those that hold special tokens, which the engine's text does not show.
    """

    decoding: Decoding
    until: tuple[str, ...]
    special: tuple[str, ...]


class JaxLM(TemplateLM):
    """A ``LanguageModel`` and a gate policy as a model of lm-evaluation-harness.

    Attributes:
        lm: The model.
        arm: Name of the policy, for the results file.
        records: What was done for each request so far, in order.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gate: GatePolicy | float | None = None,
        *,
        arm: str = "",
        slots: int = 64,
        seed: int = 0,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        max_length: int | None = None,
        enable_thinking: bool = False,
    ):
        """Wraps a model.

        Args:
            lm: The model.
            gate: A policy, one gate for all prompts, or ``None`` for the model without routing.
            arm: Name of the policy.
            slots: Rows that run at a time; nothing else is ever run, so results do not depend on
                how many requests there are.
            seed: Of sampling, for tasks that sample.
            max_gen_toks: Limit on new tokens where a task sets none.
            max_length: Use less than the model's context.
            enable_thinking: What to tell chat templates that can switch thinking, as in
                ``PromptConfig``.

        Raises:
            UserError: ``max_length`` is more than the model's context.
        """
        super().__init__()
        if max_length is not None and not 1 < max_length <= lm.context:
            raise UserError(
                f"max_length is {max_length}, but must lie between 2 and the model's context of "
                f"{lm.context} tokens"
            )
        self.lm = lm
        self.tokenizer: Any = lm.tokenizer
        self.arm = arm
        self.records: list[Record] = []
        self._policy = gate if callable(gate) or gate is None else _constant(gate)
        self._slots = slots
        self._seed = seed
        self._max_gen_toks = max_gen_toks
        self._max_length = max_length or lm.context
        self._enable_thinking = enable_thinking
        self._gates: dict[str, float] = {}
        self._special_tokens = sorted(self.tokenizer.all_special_tokens)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "JaxLM":
        """Builds the model that lm-eval's ``--model_args`` describe, from a folder."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "JaxLM":
        """Builds the model from a folder.

        Args:
            arg_dict: ``pretrained``: a run folder, together with ``arm``, or a model directory,
                with or without ``gate`` (one number for all prompts) and ``routing``. The rest
                are keyword arguments of the constructor.
            additional_config: lm-eval's ``batch_size`` is the number of slots, if it is a number;
                ``device`` and ``max_batch_size`` mean nothing to JAX.

        Raises:
            UserError: No such folder, or arguments that do not belong together.
        """
        import jroute  # the face stands above this module, so it is only looked up on demand

        arguments = dict(arg_dict)
        batch_size = (additional_config or {}).get("batch_size")
        if str(batch_size).isdigit():
            arguments.setdefault("slots", int(str(batch_size)))
        folder, arm = arguments.pop("pretrained", None), arguments.pop("arm", None)
        if folder is None:
            raise UserError("model_args name no model; give pretrained=<run folder>,arm=<arm>")
        if arm is None:
            lm = jroute.load(folder, arguments.pop("routing", None))
            return cls(lm, arguments.pop("gate", None), arm="", **arguments)
        if not {"gate", "routing"}.isdisjoint(arguments):
            raise UserError("model_args hold arm and also gate or routing; an arm brings its own")
        run = jroute.load_run(folder)
        arguments.setdefault("enable_thinking", run.experiment.prompt.enable_thinking)
        return cls(run.lm, lambda prompts: run.gates(arm, prompts), arm=arm, **arguments)

    # What lm-eval asks about the model

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return self.lm.end_token_ids[0] if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """What stands in for an empty context: the start token, or else the end token."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else int(start)

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt and its completion together."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """Limit on new tokens where a task sets none."""
        return self._max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """Key of lm-eval's request cache; tells chat templates and their switch apart as well."""
        chat = f"{self.tokenizer.chat_template} {self._enable_thinking}"
        template = hashlib.sha256(chat.encode()).hexdigest()[:16]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{template}"

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval files with the results; it asks after the run, so counts are complete."""
        generated = [record for record in self.records if record.kind == "generate_until"]
        leaves = jax.tree.leaves(dict(self.lm.params))
        return {
            "arm": self.arm,
            "model_fingerprint": self.lm.fingerprint,
            "model_num_parameters": sum(leaf.size for leaf in leaves),
            "model_dtype": str(leaves[0].dtype),
            "routing": asdict(self.lm.routing.config),
            "enable_thinking": self._enable_thinking,
            "slots": self._slots,
            "sampling_seed": self._seed,
            "requests": len(self.records),
            "gate_histogram": gate_histogram(self.records),
            "generated_tokens": sum(record.tokens for record in generated),
            "truncation_rate": truncation_rate(self.records),
            "prompts_cut": sum(record.prompt_cut for record in self.records),
        }

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids of a text; by default with the special tokens that the tokenizer adds.

        A text that begins with the prefix token already gets no second one.
        """
        if add_special_tokens is None:
            prefix = self.tokenizer.decode([self.prefix_token_id])
            add_special_tokens = not has_bos_prefix(string, prefix)
        return self.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Renders a conversation; without a generation prompt the last message is left open.

        A template that refuses the system role gets the conversation without it.
        """

        def render(messages: list[dict[str, str]]) -> str:
            return render_chat(
                messages,
                self.tokenizer,
                enable_thinking=self._enable_thinking,
                add_generation_prompt=add_generation_prompt,
            )

        try:
            return render(chat_history)
        except TemplateError as error:
            if all(message["role"] != "system" for message in chat_history):
                raise
            logger.warning("the chat template refuses the system message (%s); left out", error)
            return render([message for message in chat_history if message["role"] != "system"])

    # Requests

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Completes every request, in the order given.

        Contexts that leave no room for the new tokens lose their beginning.

        Raises:
            UserError: Generation arguments that are not implemented, or a limit on new tokens
                that leaves no room for a prompt.
        """
        repeats: Counter[str] = Counter()
        groups: dict[_Plan, list[int]] = {}
        samples, seeds = [], []
        for i, request in enumerate(requests):
            context, arguments = request.arguments
            groups.setdefault(self._plan(arguments), []).append(i)
            key = f"{sorted(arguments.items())}{context}"
            samples.append(repeats[key])
            seeds.append(_seed(f"{self._seed}/{repeats[key]}/{context}"))
            repeats[key] += 1
        texts: dict[int, Generated] = {}
        records: dict[int, Record] = {}
        with GenerationBar(len(requests), self._label("generate"), quiet=disable_tqdm) as progress:
            for plan, members in groups.items():
                room = self.max_length - plan.decoding.max_new_tokens
                contexts = [requests[i].arguments[0] for i in members]
                encoded = [self.tok_encode(context) for context in contexts]
                gates = self._choose(contexts, encoded, room)
                completions = self.lm.generate(
                    [ids[-room:] for ids in encoded],
                    gate=gates,
                    seed=[seeds[i] for i in members],
                    slots=self._slots,
                    progress=progress,
                    **vars(plan.decoding),
                )
                for row, (i, completion) in enumerate(zip(members, completions, strict=True)):
                    request, text = requests[i], self._cut(completion, plan)
                    self.cache_hook.add_partial("generate_until", request.arguments, text)
                    texts[i] = text
                    records[i] = Record(
                        request.task_name,
                        request.doc_id,
                        request.idx,
                        sample=samples[i],
                        kind="generate_until",
                        gate=None if gates is None else float(gates[row]),
                        tokens=len(completion.tokens),
                        prompt_cut=len(encoded[row]) > room,
                        truncated=text.truncated,
                    )
        self.records += [records[i] for i in range(len(requests))]
        return [texts[i] for i in range(len(requests))]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations of contexts; tokenization is lm-eval's, see ``TemplateLM``."""
        results = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        for request in requests:
            context, continuation = request.arguments
            scored = len(self.tok_encode(continuation, add_special_tokens=False))
            self._note(request, "loglikelihood", self._gate_of(context), scored)
        return results

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Scores pairs of token ids, which lose their beginning if they are too long.

        The last token of a pair is only predicted, never read, so a pair may be one longer than
        the context.
        """
        pairs = []
        for _, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} tokens cannot be scored in a context "
                    f"of {self.max_length}; choose another task or a model with a longer context"
                )
            pairs.append((context[len(continuation) - self.max_length - 1 :], continuation))
        asked = [texts[0] for texts, _, _ in requests if texts and texts[0]]
        self._choose(asked, [self.tok_encode(text) for text in asked], self.max_length)
        # By length, so that a call has few widths; the model fills up each one's last batch.
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        results: dict[int, tuple[float, bool]] = {}
        with tqdm(
            total=len(pairs), desc=self._label("score"), unit="request", disable=disable_tqdm
        ) as bar:
            for start in range(0, len(order), _SCORING_BATCH):
                members = order[start : start + _SCORING_BATCH]
                gates = [self._gate_of((requests[i][0] or ("",))[0]) for i in members]
                gate = None if self._policy is None else np.asarray(gates, np.float32)
                scores = self.lm.loglikelihood([pairs[i] for i in members], gate=gate)
                results.update(zip(members, scores, strict=True))
                bar.update(len(members))
        for i, (texts, _, _) in enumerate(requests):
            if texts is not None:  # the windows of a rolling request are filed there, as one
                self.cache_hook.add_partial("loglikelihood", texts, results[i])
        return [results[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, every token once, in windows as long as the context, at gate 0."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            (text,) = request.arguments
            for window in get_rolling_token_windows(
                self.tok_encode(text), self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals, tokens = [0.0] * len(requests), [0] * len(requests)
        scores = self._loglikelihood_tokens(list(windows), disable_tqdm=disable_tqdm)
        for i, window, (score, _) in zip(owners, windows, scores, strict=True):
            totals[i] += score
            tokens[i] += len(window[2])
        for request, total, count in zip(requests, totals, tokens, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.arguments, total)
            self._note(request, "loglikelihood_rolling", self._gate_of(""), count)
        return totals

    # Gates, stops, records

    def _choose(
        self, contexts: Sequence[str], encoded: Sequence[Sequence[int]], room: int
    ) -> np.ndarray | None:
        """The gates of contexts; each context is put to the policy once.

        The policy is shown what fits into ``room`` tokens, as the model is.
        """
        if self._policy is None:
            return None
        shown = {
            context: self._end(context, ids, room)
            for context, ids in zip(contexts, encoded, strict=True)
            if context and context not in self._gates
        }
        if shown:
            gates = np.asarray(self._policy(list(shown.values())), np.float64)
            if gates.shape != (len(shown),) or not np.isfinite(gates).all():
                raise ValueError(f"the gate policy of {len(shown)} prompts gave {gates!r}")
            self._gates.update(zip(shown, gates.tolist(), strict=True))
        return np.asarray([self._gate_of(context) for context in contexts], np.float32)

    def _end(self, context: str, ids: Sequence[int], room: int) -> str:
        """The end of a context that fits into ``room`` tokens."""
        if len(ids) <= room:
            return context
        text = self.tokenizer.decode(ids[-room:]).lstrip("\ufffd")
        while len(self.tok_encode(text)) > room:  # a text may split otherwise than it did within
            text = text[1:]
        return text

    def _gate_of(self, context: str) -> float | None:
        """The gate chosen for a context; 0 for the empty one."""
        if self._policy is None:
            return None
        return self._gates[context] if context else 0.0

    def _plan(self, arguments: Mapping[str, Any]) -> _Plan:
        """Translates lm-eval's generation arguments."""
        options: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), self.max_gen_toks))
        unknown = sorted(options.keys() - _OPTIONS)
        if unknown:
            raise UserError(
                f"generation argument {unknown[0]!r} is not implemented in jroute; "
                f"known are {', '.join(sorted(_OPTIONS))}"
            )
        limit = options["max_gen_toks"]
        if not 0 < limit < self.max_length:
            raise UserError(
                f"max_gen_toks is {limit}, which leaves no room for a prompt in a context of "
                f"{self.max_length} tokens; set it, as with "
                f"--gen_kwargs max_gen_toks={self.max_length // 2}"
            )
        until = [stop for stop in options["until"] if stop]
        special = [stop for stop in until if any(name in stop for name in self._special_tokens)]
        decoding = Decoding(
            temperature=float(options.get("temperature", 0.0)) if options["do_sample"] else 0.0,
            top_k=int(options.get("top_k", 0)),
            top_p=float(options.get("top_p", 1.0)),
            max_new_tokens=limit,
            stop=tuple(stop for stop in until if stop not in special),
        )
        end = self.tokenizer.decode([self.eot_token_id])
        return _Plan(decoding, tuple(dict.fromkeys([*until, end])), tuple(special))

    def _cut(self, completion: Completion, plan: _Plan) -> Generated:
        """The text of a completion before its first stop."""
        text, truncated = completion.text, completion.stop_reason == "length"
        whole = self.tokenizer.decode(completion.tokens) if plan.special else ""
        stops = [at for stop in plan.special if (at := whole.find(stop)) >= 0]
        if stops:
            text, truncated = whole[: min(stops)], False
            for name in self._special_tokens:
                text = text.replace(name, "")
        cut = postprocess_generated_text(text, list(plan.until), None)
        return Generated.of(cut, truncated and len(cut) == len(text))

    def _note(self, request: Instance, kind: str, gate: float | None, tokens: int) -> None:
        identity = (request.task_name, request.doc_id, request.idx)
        self.records.append(Record(*identity, sample=0, kind=kind, gate=gate, tokens=tokens))

    def _label(self, what: str) -> str:
        return f"{self.arm}: {what}" if self.arm else what


register_model("jroute")(JaxLM)


def _constant(gate: float) -> GatePolicy:
    return lambda prompts: np.full(len(prompts), gate)


def _seed(text: str) -> int:
    """31 bits from a text, the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
