"""lm-evaluation-harness on a gated model: an adapter in which an arm chooses each prompt's gate.

The adapter answers lm-eval's three kinds of requests as lm-eval's own Hugging Face model does at
batch size 1, but for one thing: special tokens in the texts of tasks are text, unless
``special_tokens`` is ``control``. The gate comes from the context alone, so all continuations of a
question share it; text without a context (rolling log-likelihoods, an empty context) is scored at
gate 0. Rows run in a fixed number of slots and sampling is seeded by the prompt, so neither order
nor neighbours matter.

Importing this module registers the model ``jroute`` with lm-eval, for example for
``simple_evaluate(model="jroute", model_args="run=runs/demo,arm=rl", ...)``.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import jax
import lm_eval.models  # noqa: F401 - its models must be registered before ours, or they are lost
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from jroute.generate.decoding import Completion
from jroute.harness.answer_store import Answer, AnswerStore
from jroute.harness.cache_names import answer_cache_name
from jroute.harness.foreign_prompts import ForeignPrompts
from jroute.harness.gen_kwargs import GenerationArguments, ResponseText
from jroute.harness.generation import (
    GenerationRequest,
    ending_at,
    group_by_arguments,
    number_repeats,
    timed,
)
from jroute.harness.model_args import constructor_arguments, constructor_names
from jroute.harness.policy import ArmPolicy, ContextGates, GatePolicy, constant
from jroute.harness.records import Record, totals
from jroute.harness.request_log import RequestLog, request_key
from jroute.harness.scoring import (
    ScoringRequest,
    batches_by_length,
    check_choices,
    fit_to_context,
    rolling_batches,
)
from jroute.harness.tokenization import SpecialTokens, TokenizedLM
from jroute.lm import LanguageModel
from jroute.observe.progress import GenerationBar, progress_bar
from jroute.routing.gate import Gate
from jroute.utils.errors import UserError
from jroute.utils.keys import stored

DEFAULT_NEW_TOKENS = 256
"""Limit on new tokens where a task sets none; lm-eval's own models agree on this number."""

DEFAULT_SLOTS = 64


class JaxLM(TokenizedLM):
    """A ``LanguageModel`` and a gate policy as a model of lm-evaluation-harness.

    Attributes:
        lm: The model.
        arm: Name of the policy, for the results file.
        records: What was done for each request so far, in order.
        seconds: Time spent on requests so far.
    """

    def __init__(  # noqa: PLR0913
        self,
        lm: LanguageModel,
        gate: GatePolicy | float | None = None,
        *,
        slots: int = DEFAULT_SLOTS,
        seed: int = 0,
        max_gen_toks: int = DEFAULT_NEW_TOKENS,
        max_length: int | None = None,
        enable_thinking: bool = False,
        force_template: bool = False,
        special_tokens: SpecialTokens = "text",
    ):
        """Wrap a model.

        Args:
            lm: The model.
            gate: A policy, one gate for all prompts, or ``None`` for the model without routing.
            slots: Rows that run at a time. Nothing else is ever run, so results do not depend on
                the number of requests.
            seed: Seed of sampling, for tasks that sample.
            max_gen_toks: Limit on new tokens where a task sets none.
            max_length: Use less than the model's context, in tokens.
            enable_thinking: Value for chat templates that can switch thinking, as in
                ``PromptConfig``.
            force_template: Let an arm choose for prompts of another form than it learned from.
            special_tokens: What special tokens such as ``<|im_end|>`` in the texts of tasks are:
                ``text``; ``control`` tokens, as in lm-eval's Hugging Face model, whose ids are
                then the same; or ``marked``, where ``special_tokens.as_text`` says which are text.

        Raises:
            UserError: ``max_length`` is more than the model's context.
        """
        super().__init__(
            lm,
            max_gen_toks=max_gen_toks,
            max_length=max_length,
            enable_thinking=enable_thinking,
            special_tokens=special_tokens,
        )
        self.records: list[Record] = []
        self.seconds = 0.0
        arm = gate if isinstance(gate, ArmPolicy) else None
        self.arm = "" if arm is None else arm.name
        self._policy_identity = repr(gate) if arm is None and not callable(gate) else ""
        if arm is not None:
            self._policy_identity = arm.identity
        self._gates = ContextGates(gate if callable(gate) or gate is None else constant(gate))
        self._foreign = ForeignPrompts(
            self.arm, None if arm is None else arm.render, allowed=force_template
        )
        self._slots = slots
        self._seed = seed
        self._log = RequestLog()
        self._store: AnswerStore | None = None

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
        known = constructor_names(cls)
        return cls(**constructor_arguments(arg_dict, additional_config, known=known))

    # Identity

    @property
    def namespace(self) -> str:
        """Name of this model's cache of answers: model, routing, arm, seed and limits."""
        limits = (self.max_length, self.max_gen_toks)
        config = {"arm": self._policy_identity, "seed": self._seed, "limits": limits}
        if self.special_tokens == "control":
            config["special_tokens"] = self.special_tokens
        return answer_cache_name(self.lm, **config)

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Take lm-eval's cache of answers, if they are this model's under this arm.

        lm-eval files answers by the request alone, so it would give one arm the answers of another.

        Raises:
            UserError: The cache holds the answers of another model or arm.
        """
        super().set_cache_hook(cache_hook)
        self._log.attach(cache_hook.dbdict, self.namespace)

    def keep_answers(self, store: AnswerStore) -> None:
        """Store answers from now on, and give those that are stored already without the model."""
        self._store = store

    def get_model_info(self) -> dict[str, Any]:
        """Describe the model for lm-eval's results file; called after the run, with all counts.

        Requests that a cache answered are not counted; see ``records_of``.
        """
        leaves = jax.tree.leaves(dict(self.lm.params))
        return {
            "arm": self.arm,
            "model_fingerprint": self.lm.fingerprint,
            "model_num_parameters": sum(leaf.size for leaf in leaves),
            "model_dtype": str(leaves[0].dtype),
            "routing": stored(self.lm.routing.config),
            "namespace": self.namespace,
            "enable_thinking": self.enable_thinking,
            "special_tokens": self.special_tokens,
            "slots": self._slots,
            "sampling_seed": self._seed,
            "seconds": round(self.seconds, 3),
            **totals(self.records),
        }

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Complete every request, in the order given.

        Contexts that leave no room for the new tokens lose their beginning. Answers are cached as
        they come, so that an interrupted evaluation resumes where it was.

        Raises:
            UserError: Generation arguments that are not implemented, a limit on new tokens that
                leaves no room for a prompt, or an arm that refuses foreign prompts.
        """
        self._foreign.check(requests, known=self._gates)
        rows = number_repeats(requests, self._seed)
        for row in rows:
            if stored_answer := self._stored(row.instance, row.sample):
                row.text, row.record = cast(tuple[ResponseText, Record], stored_answer)
        groups = group_by_arguments([row for row in rows if row.text is None], self._parse)
        title = self._label("generate")
        with (
            timed(self),
            GenerationBar(
                sum(row.text is None for row in rows), title, quiet=disable_tqdm
            ) as progress,
        ):
            for arguments, members in groups.items():
                self._generate(members, arguments, progress)
        self.records += [cast(Record, row.record) for row in rows]
        return [cast(str, row.text) for row in rows]

    def _parse(self, gen_kwargs: Mapping[str, Any]) -> GenerationArguments:
        return GenerationArguments.parse(
            gen_kwargs,
            self.tokenizer,
            eos=self.eot_token_id,
            default_limit=self.max_gen_toks,
            context=self.max_length,
        )

    def _generate(
        self, rows: list[GenerationRequest], arguments: GenerationArguments, progress: GenerationBar
    ) -> None:
        """Complete requests that share their generation arguments."""
        room = self.max_length - arguments.decoding.max_new_tokens
        contexts = [self.prompt_of(row.context) for row in rows]
        prompts = [self.tok_encode(context) for context in contexts]
        self._gates.choose(contexts, partial(self.tail, room=room))

        def finished(indices: list[int], completions: list[Completion]) -> None:
            for index, completion in zip(indices, completions, strict=True):
                row, length = rows[index], len(prompts[index])
                row.text = arguments.cut(completion, self.tokenizer)
                row.record = self._record(
                    row.instance,
                    row.sample,
                    self._gates[contexts[index]],
                    len(completion.tokens),
                    prompt_tokens=min(length, room),
                    prompt_cut=length > room,
                    truncated=row.text.truncated,
                )
                self._store_answer("generate_until", row.instance.args, row.text, row.record)

        ending_at(self.lm, arguments.end_token_ids).generate(
            [ids[-room:] for ids in prompts],
            gate=self._gates.array(contexts),
            decoding=arguments.decoding,
            seed=[row.seed for row in rows],
            slots=self._slots,
            progress=progress,
            finished=finished,
        )

    # Log-likelihoods

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """Score continuations of contexts; tokenization is lm-eval's, see ``TemplateLM``.

        Returns:
            For each request the log-likelihood, and whether greedy decoding gives the continuation.

        Raises:
            UserError: The model is to think first, or the arm refuses foreign prompts.
        """
        if self.enable_thinking:
            raise UserError(
                "enable_thinking is on, and a continuation cannot be scored before the model has "
                "thought; turn it off, or choose a task that generates"
            )
        self._foreign.check(requests, known=self._gates)
        check_choices(requests)
        answers = [self._stored(request) for request in requests]
        new = [request for request, answer in zip(requests, answers, strict=True) if not answer]
        with timed(self):
            scores = iter(super().loglikelihood(new, disable_tqdm=disable_tqdm) if new else [])
        results = [cast(Any, answer[0]) if answer else next(scores) for answer in answers]
        for request in requests:
            self.records += self._log.records_of([request], repeats=1)
        return results

    def _loglikelihood_tokens(
        self,
        requests: Sequence[ScoringRequest],
        disable_tqdm: bool = False,
        **kwargs: Any,
    ) -> list[tuple[float, bool]]:
        """Score pairs of token ids; contexts lose their beginning where they are too long."""
        pairs = fit_to_context(requests, self.max_length)
        contexts = [self.prompt_of(texts[0] if texts else "") for texts, _, _ in requests]
        self._gates.choose(contexts, partial(self.tail, room=self.max_length))
        results: dict[int, tuple[float, bool]] = {}
        with progress_bar(
            total=len(pairs), desc=self._label("score"), unit="request", disable=disable_tqdm
        ) as bar:
            for members in batches_by_length(pairs):
                gate = self._gates.array([contexts[i] for i in members])
                scores = self.lm.loglikelihood([pairs[i] for i in members], gate=gate)
                for i, score in zip(members, scores, strict=True):
                    results[i] = score
                    texts, _, continuation = requests[i]
                    if texts is not None:  # a rolling request is stored as a whole
                        instance = Instance("loglikelihood", {}, texts, 0)
                        record = self._record(
                            instance, 0, self._gates[contexts[i]], len(continuation)
                        )
                        self._store_answer("loglikelihood", texts, score, record)
                bar.update(len(members))
        return [results[i] for i in range(len(requests))]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """Score whole texts, every token once, in windows as long as the context, at gate 0."""
        totals: dict[int, float] = {}
        for i, request in enumerate(requests):
            if answer := self._stored(request):
                totals[i] = cast(float, answer[0])
                self.records.append(answer[1])
        new = [i for i in range(len(requests)) if i not in totals]
        batches = rolling_batches(
            [requests[i] for i in new], self.tok_encode, self.prefix_token_id, self.max_length
        )
        left = iter(new)
        with (
            timed(self),
            progress_bar(
                total=len(new), desc=self._label("roll"), unit="text", disable=disable_tqdm
            ) as bar,
        ):
            for batch in batches:
                flat = [window for _, windows in batch for window in windows]
                scores = iter(self._loglikelihood_tokens(flat, disable_tqdm=True))
                for request, windows in batch:
                    total = totals[next(left)] = sum(next(scores)[0] for _ in windows)
                    count = sum(len(scored) for _, _, scored in windows)
                    record = self._record(request, 0, self._gates[""], count)
                    self._store_answer("loglikelihood_rolling", request.args, total, record)
                    self.records.append(record)
                bar.update(len(batch))
        return [totals[i] for i in range(len(requests))]

    # Records

    def records_of(self, instances: Sequence[Instance]) -> list[Record]:
        """Return the records of requests, by this process or by the one that cached them."""
        return self._log.records_of(instances)

    def _record(
        self, request: Instance, sample: int, gate: Gate | None, tokens: int, **details: Any
    ) -> Record:
        identity = (request.task_name, request.doc_id, request.idx, sample, request.request_type)
        foreign = request.args[0] in self._foreign
        return Record(*identity, gate=gate, tokens=tokens, foreign=foreign, **details)

    def _stored(self, request: Instance, sample: int = 0) -> tuple[Answer, Record] | None:
        """Return the stored answer to a request and its record, if there is one."""
        if self._store is None:
            return None
        kind = request.request_type
        stored_answer = self._store.get(request_key(kind, request.args, sample))
        if stored_answer is None:
            return None
        answer = stored_answer[0]
        identity = (request.task_name, request.doc_id, request.idx)
        record = stored_answer[1].for_request(*identity)
        self._log.add(request.args, record)
        self.cache_hook.add_partial(kind, request.args, answer)
        return answer, record

    def _store_answer(self, kind: str, args: Any, answer: Any, record: Record) -> None:
        """Store an answer here and in lm-eval's cache, and before it its record."""
        if self._store is not None:
            self._store.add(request_key(kind, args, record.sample), answer, record)
        self._log.add(args, record)
        self.cache_hook.add_partial(kind, args, answer)

    def _label(self, action: str) -> str:
        return f"{self.arm}: {action}" if self.arm else action


register_model("jroute")(JaxLM)
