"""lm-evaluation-harness on a gated model: an adapter in which an arm chooses each prompt's gate.

The adapter answers the harness's three kinds of requests with the meaning that the harness's own
Hugging Face model gives them at batch size 1; on top of that it asks an arm for a gate. The gate
comes from the context alone, so all continuations of a question share it, and text without a
context (rolling log-likelihoods, an empty context) is scored at gate 0. Rows run in a fixed number
of slots and sampling is seeded by the prompt, so neither order nor neighbours matter.

Importing this module registers the model ``jroute`` with lm-eval, for example for
``simple_evaluate(model="jroute", model_args="run=runs/demo,arm=rl", ...)``.
"""

import copy
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import jax
import lm_eval.models  # noqa: F401 - its models must be registered before ours, or they are lost
from jinja2.exceptions import TemplateError
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook, TemplateLM, hash_args
from lm_eval.api.registry import register_model
from lm_eval.models.utils import has_bos_prefix
from lm_eval.utils import (
    get_rolling_token_windows,
    make_disjoint_window,
    simple_parse_args_string,
)

from jroute.generate.decoding import Completion
from jroute.generate.sampling import hash_text
from jroute.harness import policy as gating
from jroute.harness.cache_names import answer_cache_name
from jroute.harness.gen_kwargs import GeneratedText, GenerationArguments
from jroute.harness.model_args import constructor_arguments, taken_by
from jroute.harness.policy import ArmPolicy, GatePolicy, Gates
from jroute.harness.records import Record, totals
from jroute.harness.request_log import RequestLog
from jroute.lm import LanguageModel
from jroute.observe.progress import GenerationBar, progress_bar
from jroute.routing.gate import Gate
from jroute.tasks.prompts import render_chat
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

logger = logging.getLogger(__name__)

DEFAULT_NEW_TOKENS = 256
"""Where a task sets no limit; the harness's models agree on this number."""

DEFAULT_SLOTS = 64

_SCORING_BATCH = 256


class JaxLM(TemplateLM):
    """A ``LanguageModel`` and a gate policy as a model of lm-evaluation-harness.

    Attributes:
        lm: The model.
        arm: Name of the policy, for the results file.
        records: What was done for each request so far, in order.
        seconds: Time spent on requests so far.
    """

    def __init__(
        self,
        lm: LanguageModel,
        gate: GatePolicy | float | None = None,
        *,
        arm: str = "",
        slots: int = DEFAULT_SLOTS,
        seed: int = 0,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        max_length: int | None = None,
        enable_thinking: bool = False,
        force_template: bool = False,
    ):
        """Wrap a model.

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
            force_template: Let an arm choose for prompts made otherwise than those it learnt from.

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
        self.records: list[Record] = []
        self.seconds = 0.0
        policy = gate if callable(gate) or gate is None else gating.constant(gate)
        self.arm = arm or (policy.name if isinstance(policy, ArmPolicy) else "")
        self._gates = Gates(policy)
        self._identity = repr(gate) if policy is None or not callable(gate) else self.arm
        self._render = None
        if isinstance(policy, ArmPolicy):
            self._identity, self._render = policy.identity, policy.render
        self._slots = slots
        self._seed = seed
        self._max_gen_toks = max_gen_toks
        self._max_length = max_length or lm.context
        self._enable_thinking = enable_thinking
        self._force_template = force_template
        self._foreign: set[str] = set()
        self._log = RequestLog()

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> "JaxLM":
        """Build the model that lm-eval's ``--model_args`` describe, from a folder."""
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> "JaxLM":
        """Build the model from a folder.

        Args:
            arg_dict: A folder, an arm, and keyword arguments of the constructor; see
                ``jroute.harness.model_args``.
            additional_config: lm-eval's ``batch_size`` and device.

        Raises:
            UserError: No such folder, or arguments that do not belong together.
        """
        return cls(**constructor_arguments(arg_dict, additional_config, known=taken_by(cls)))

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
        """Key of lm-eval's request cache; tells chat templates, their switch and limits apart."""
        about = (
            self.tokenizer.chat_template,
            self._enable_thinking,
            self.max_length,
            self.max_gen_toks,
        )
        digest = hashlib.sha256(repr(about).encode()).hexdigest()[:16]
        return f"{self.tokenizer.name_or_path.replace('/', '__')}-{digest}"

    @property
    def namespace(self) -> str:
        """Tells apart whatever could answer a request otherwise: model, routing, arm, settings."""
        limits = (self.max_length, self.max_gen_toks)
        return answer_cache_name(self.lm, arm=self._identity, seed=self._seed, limits=limits)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache of answers, if they are this model's under this arm.

        lm-eval files answers by the request alone, so it would give one arm the other's.

        Raises:
            UserError: They are not.
        """
        super().set_cache_hook(cache_hook)
        self._log.store(cache_hook.dbdict, self.namespace)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval files with the results; it asks after the run, so counts are complete.

        Requests that were answered from a cache are not among them: see ``records_of``.
        """
        leaves = jax.tree.leaves(dict(self.lm.params))
        return {
            "arm": self.arm,
            "model_fingerprint": self.lm.fingerprint,
            "model_num_parameters": sum(leaf.size for leaf in leaves),
            "model_dtype": str(leaves[0].dtype),
            "routing": stored(self.lm.routing.config),
            "namespace": self.namespace,
            "enable_thinking": self._enable_thinking,
            "slots": self._slots,
            "sampling_seed": self._seed,
            "seconds": round(self.seconds, 3),
            **totals(self.records),
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
        """Render a conversation; without a generation prompt the last message is left open.

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

        Contexts that leave no room for the new tokens lose their beginning. Answers are cached as
        they come, so that what is interrupted goes on from there.

        Raises:
            UserError: Generation arguments that are not implemented, or a limit on new tokens
                that leaves no room for a prompt; an arm that does not know such prompts.
        """
        self._check_template(requests)
        repeats: Counter[str] = Counter()
        groups: dict[GenerationArguments, list[int]] = {}
        samples, seeds = [], []
        for i, request in enumerate(requests):
            context, arguments = cast(tuple[str, dict[str, Any]], request.args)
            plan = GenerationArguments.of(
                arguments,
                self.tokenizer,
                eos=self.eot_token_id,
                default_limit=self.max_gen_toks,
                context=self.max_length,
            )
            groups.setdefault(plan, []).append(i)
            key = hash_args("generate_until", request.args)
            samples.append(repeats[key])
            seeds.append(hash_text(f"{self._seed}/{repeats[key]}/{context}"))
            repeats[key] += 1
        texts: dict[int, GeneratedText] = {}
        records: dict[int, Record] = {}
        title = self._label("generate")
        with self._timed(), GenerationBar(len(requests), title, quiet=disable_tqdm) as progress:
            for plan, members in groups.items():
                room = self.max_length - plan.decoding.max_new_tokens
                contexts = [requests[i].args[0] for i in members]
                encoded = [self.tok_encode(context) for context in contexts]
                self._gates.choose(contexts, lambda text, room=room: self._end(text, room))

                def finished(
                    rows: list[int],
                    completions: list[Completion],
                    *,
                    plan: GenerationArguments = plan,
                    members: list[int] = members,
                    encoded: list[list[int]] = encoded,
                    room: int = room,
                ) -> None:
                    for row, completion in zip(rows, completions, strict=True):
                        i = members[row]
                        texts[i] = plan.cut(completion, self.tokenizer)
                        records[i] = self._record(
                            requests[i],
                            samples[i],
                            self._gates[requests[i].args[0]],
                            len(completion.tokens),
                            prompt_tokens=min(len(encoded[row]), room),
                            prompt_cut=len(encoded[row]) > room,
                            truncated=texts[i].truncated,
                        )
                        self._keep("generate_until", requests[i].args, texts[i], records[i])

                self._ending(plan).generate(
                    [ids[-room:] for ids in encoded],
                    gate=self._gates.array(contexts),
                    seed=[seeds[i] for i in members],
                    decoding=plan.decoding,
                    slots=self._slots,
                    progress=progress,
                    finished=finished,
                )
        self.records += [records[i] for i in range(len(requests))]
        return [texts[i] for i in range(len(requests))]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Scores continuations of contexts; tokenization is lm-eval's, see ``TemplateLM``.

        Raises:
            UserError: The model is to think first; an arm that does not know such prompts.
        """
        if self._enable_thinking:
            raise UserError(
                "enable_thinking is on, and a continuation cannot be scored before the model has "
                "thought; turn it off, or choose a task that generates"
            )
        self._check_template(requests)
        with self._timed():
            results = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        for request in requests:
            self.records += self._log.records_of([request], repeats=1)
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
        contexts = [texts[0] if texts else "" for texts, _, _ in requests]
        self._gates.choose(contexts, lambda text: self._end(text, self.max_length))
        # By length, so that a call has few widths; the model fills up each one's last batch.
        order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        results: dict[int, tuple[float, bool]] = {}
        with progress_bar(
            total=len(pairs), desc=self._label("score"), unit="request", disable=disable_tqdm
        ) as bar:
            for start in range(0, len(order), _SCORING_BATCH):
                members = order[start : start + _SCORING_BATCH]
                gate = self._gates.array([contexts[i] for i in members])
                scores = self.lm.loglikelihood([pairs[i] for i in members], gate=gate)
                for i, score in zip(members, scores, strict=True):
                    results[i], texts = score, requests[i][0]
                    if texts is not None:  # rolling requests are filed there, as wholes
                        asked = Instance("loglikelihood", {}, texts, 0)
                        scored = len(requests[i][2])
                        record = self._record(asked, 0, self._gates[contexts[i]], scored)
                        self._keep("loglikelihood", texts, score, record)
                bar.update(len(members))
        return [results[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Scores whole texts, every token once, in windows as long as the context, at gate 0."""
        totals: list[float] = []
        with (
            self._timed(),
            progress_bar(
                total=len(requests), desc=self._label("roll"), unit="text", disable=disable_tqdm
            ) as bar,
        ):
            for some in self._in_batches(requests):
                flat = [window for _, windows in some for window in windows]
                scores = iter(self._loglikelihood_tokens(flat, disable_tqdm=True))
                for request, windows in some:
                    totals.append(sum(next(scores)[0] for _ in windows))
                    count = sum(len(scored) for _, _, scored in windows)
                    record = self._record(request, 0, self._gates[""], count)
                    self._keep("loglikelihood_rolling", request.args, totals[-1], record)
                    self.records.append(record)
                bar.update(len(some))
        return totals

    def _in_batches(self, requests: Sequence[Instance]) -> Iterator[list[tuple[Instance, list]]]:
        """Request with their windows of tokens, a batch of windows or a little more at a time."""
        some: list[tuple[Instance, list]] = []
        for request in requests:
            rolled = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, 1
            )
            some.append((request, [(None, *make_disjoint_window(window)) for window in rolled]))
            if sum(len(windows) for _, windows in some) >= _SCORING_BATCH:
                yield some
                some = []
        yield some

    # Gates, stops, records

    def records_of(self, instances: Sequence[Instance]) -> list[Record]:
        """What was done for requests, by this process or by the one that cached their answers."""
        return self._log.records_of(instances)

    def _check_template(self, requests: Sequence[Instance]) -> None:
        """Refuses prompts made otherwise than those the arm learnt from, unless forced."""
        if self._render is None:
            return
        for request in requests:
            context = request.args[0]
            if not context or context in self._foreign or context in self._gates:
                continue
            if gating.is_foreign(context, request.doc, self._render):
                if not self._force_template:
                    raise UserError(
                        f"arm {self.arm} learnt from prompts made otherwise than those of "
                        f"{request.task_name} (its first ends in {context[-60:]!r}); train on that "
                        "prompt (prompt.benchmark), or force it with --force_template"
                    )
                self._foreign.add(context)

    def _end(self, context: str, room: int) -> str:
        """The end of a context that fits into ``room`` tokens: what the model sees of it."""
        ids = self.tok_encode(context)
        if len(ids) <= room:
            return context
        text = self.tokenizer.decode(ids[-room:]).lstrip("\ufffd")
        while len(self.tok_encode(text)) > room:  # a text may split otherwise than it did within
            text = text[1:]
        return text

    def _ending(self, plan: GenerationArguments) -> LanguageModel:
        """The model, which ends at a plan's special tokens as well."""
        if set(plan.ends) <= set(self.lm.end_token_ids):
            return self.lm
        lm = copy.copy(self.lm)
        lm.end_token_ids = tuple(dict.fromkeys((*self.lm.end_token_ids, *plan.ends)))
        return lm

    def _record(
        self, request: Instance, sample: int, gate: Gate | None, tokens: int, **facts: Any
    ) -> Record:
        identity = (request.task_name, request.doc_id, request.idx, sample, request.request_type)
        foreign = request.args[0] in self._foreign
        return Record(*identity, gate=gate, tokens=tokens, foreign=foreign, **facts)

    def _keep(self, kind: str, args: Any, answer: Any, record: Record) -> None:
        """Files an answer with lm-eval's cache, and before it what was done for it."""
        self._log.keep(args, record)
        self.cache_hook.add_partial(kind, args, answer)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started

    def _label(self, what: str) -> str:
        return f"{self.arm}: {what}" if self.arm else what


register_model("jroute")(JaxLM)
