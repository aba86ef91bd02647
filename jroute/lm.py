"""A model, its tokenizer and its routing behind one interface, for notebooks and commands."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from transformers import PreTrainedTokenizerFast

from jroute.checkpoint import load_model, model_fingerprint, read_manifest
from jroute.distributed.mesh import MeshConfig, fetch, num_replicas, place, replicate, shardings
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.engine import Engine
from jroute.generate.finite import check_tokens, finite_tokens
from jroute.generate.options import GenerationOptions, with_options
from jroute.generate.requests import FrozenModel, Progress, Request
from jroute.generate.sampling import Logprobs
from jroute.generate.scoring import score_pairs
from jroute.generate.shapes import check_context, check_divisible
from jroute.generate.stopping import end_tokens
from jroute.model.config import DecoderConfig
from jroute.model.decoder import ForwardOptions, forward, unembed
from jroute.model.params import Params, abstract_params, logical_axes
from jroute.routing.config import RoutingConfig
from jroute.routing.diagnostics import StreamMetrics
from jroute.routing.gate import GateLike
from jroute.routing.mixing import Routing
from jroute.routing.presets import routing_file
from jroute.tasks.special_tokens import encode_prompt
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.config import load as load_config
from jroute.utils.errors import UserError
from jroute.utils.inputs import check_kind, check_text, list_of, whole_numbers
from jroute.utils.inputs import token_ids as token_ids_of
from jroute.utils.paths import check_path


@partial(jax.jit, static_argnames=("config", "metrics"))
def _logits(
    params: Params,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    routing: Routing | None,
    gate: Float[Array, "batch layers"] | None,
    *,
    config: DecoderConfig,
    metrics: bool,
) -> tuple[Float[Array, "batch seq vocab"], StreamMetrics | None]:
    out = forward(
        params,
        config,
        tokens,
        positions,
        routing=routing,
        gate=gate,
        options=ForwardOptions(metrics=metrics),
    )
    return unembed(params, config, out.hidden), out.metrics


class LanguageModel:
    """A frozen decoder with gated streams.

    Attributes:
        params: Parameters, never changed.
        config: Shape of the model.
        tokenizer: Its tokenizer.
        routing: Streams and mixing that gates act on.
        end_token_ids: Tokens that end a completion, from the model's generation config.
        directory: The model directory it was loaded from.
        fingerprint: Fingerprint of weights and config; the same on every machine.
        mesh: The devices that hold the parameters; ``None`` for one device.
    """

    def __init__(
        self,
        params: Params,
        config: DecoderConfig,
        tokenizer: PreTrainedTokenizerFast,
        routing: RoutingConfig,
        *,
        end_token_ids: Sequence[int],
        directory: Path,
        fingerprint: str,
        mesh: Mesh | None = None,
    ):
        self.params = params
        self.config = config
        self.tokenizer = tokenizer
        self.routing = Routing.create(routing, config.num_hidden_layers)
        self.end_token_ids = tuple(end_token_ids)
        self.directory = directory
        self.fingerprint = fingerprint
        self.mesh = mesh

    def routed(
        self, routing: RoutingConfig, raw: Float[np.ndarray, "layers hooks *raw"] | None = None
    ) -> "LanguageModel":
        """Return the same model under another routing, or with learned mixing weights ``raw``."""
        check_kind(routing, RoutingConfig, "routing")
        other = copy.copy(self)
        other.routing = Routing.create(routing, self.config.num_hidden_layers, raw)
        return other

    @property
    def frozen(self) -> FrozenModel:
        """The model as the engine takes it."""
        return FrozenModel(
            self.params, self.config, self.tokenizer, self.end_token_ids, self.routing
        )

    @property
    def replicas(self) -> int:
        """Parts that a batch is cut into: the size of the mesh's ``data`` axis."""
        return 1 if self.mesh is None else num_replicas(self.mesh)

    def devices(self) -> AbstractContextManager[Any]:
        """Run the block on the model's mesh, if it has one."""
        return nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def check_slots(self, slots: int | Literal["auto"]) -> None:
        """Raise a ``UserError`` if the replicas cannot share this many slots evenly."""
        check_divisible(EngineConfig(slots).slots, self.replicas)

    @property
    def context(self) -> int:
        """Largest number of tokens of a prompt and its completion together."""
        return self.config.max_position_embeddings

    def encode(self, text: str) -> list[int]:
        """Encode a prompt; special tokens in it are recognized.

        Those that the tokenizer puts before every text, such as a Llama's ``<s>``, are added unless
        the prompt begins with them. Those that ``jroute.tasks.special_tokens.as_text`` has marked
        are text.
        """
        check_text(text, "the text to encode")
        return encode_prompt(text, self.tokenizer)

    def layer_gates(
        self, gate: GateLike | None, batch: int
    ) -> Float[np.ndarray, "batch layers"] | None:
        """Spread a gate over the batch and the layers; ``None`` stays ``None``."""
        return None if gate is None else self.routing.layer_gates(gate, batch)

    def _pair(self, pair: Any, what: str) -> tuple[list[int], list[int]]:
        """Return the token ids of a context and its continuation."""
        sides = list_of(pair, what)
        if len(sides) != 2:
            raise UserError(f"{what} has {len(sides)} parts; give (context ids, continuation ids)")
        vocab = self.config.vocab_size
        context, continuation = (token_ids_of(side, what, vocab) for side in sides)
        return context, continuation

    def logits(
        self, token_ids: Any, gate: GateLike | None = None, *, metrics: bool = False
    ) -> Float[Array, "batch seq vocab"] | tuple[Float[Array, "batch seq vocab"], StreamMetrics]:
        """Compute next-token logits at every position.

        Args:
            token_ids: ``[batch, seq]``, or a list of rows of different lengths (padded on the
                right; logits of the padding mean nothing). A negative id is padding, on any side.
            gate: How much mixing, as in ``generate``.
            metrics: Also return stream metrics, which need a gate.

        Raises:
            UserError: An id is outside the vocabulary, a row is longer than the context, the gate
                is invalid, or the logits of a token are not finite.
        """
        rows = list_of(token_ids, "token_ids")
        if not rows or not all(np.ndim(row) == 1 and len(row) for row in rows):
            raise UserError(
                "token_ids holds no tokens; give [batch, seq] or a list of non-empty rows"
            )
        vocab = self.config.vocab_size
        rows = [token_ids_of(row, f"row {i}", vocab, padding=True) for i, row in enumerate(rows)]
        width = max(map(len, rows))
        tokens = np.full((len(rows), width), -1, np.int32)
        for padded, row in zip(tokens, rows, strict=True):
            padded[: len(row)] = np.maximum(row, -1)
        check_context(int((tokens >= 0).sum(axis=1).max()), 0, self.context)
        gates = self.layer_gates(gate, len(rows))
        if metrics and gates is None:
            raise UserError(
                "stream metrics need a gate; give gate=0.0 to measure the plain model's streams"
            )
        padding = -len(rows) % self.replicas  # rows, so that the replicas divide the batch
        tokens = np.pad(tokens, ((0, padding), (0, 0)), constant_values=-1)
        positions = np.where(tokens >= 0, np.cumsum(tokens >= 0, axis=1) - 1, -1).astype(np.int32)
        with self.devices():
            placed = None
            if gates is not None:
                placed = place(np.pad(gates, ((0, padding), (0, 0))), ("batch", "layers"))
            logits, stream_metrics = _logits(
                self.params,
                place(np.maximum(tokens, 0), ("batch", "seq")),
                place(positions, ("batch", "seq")),
                None if gates is None else replicate(self.routing),
                placed,
                config=self.config,
                metrics=metrics,
            )
            check_tokens(
                "the logits of row",
                fetch(finite_tokens(logits))[: len(rows)],
                tokens[: len(rows)],
                self.params,
                self.config,
                routing=self.routing,
                gates=gates,
            )
            if padding:
                logits = logits[: len(rows)]
                stream_metrics = jax.tree.map(lambda leaf: leaf[:, :, : len(rows)], stream_metrics)
        return logits if stream_metrics is None else (logits, stream_metrics)

    def generate(  # noqa: PLR0913
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        gate: GateLike | None = None,
        *,
        decoding: Decoding | None = None,
        engine: EngineConfig | None = None,
        seed: int | Sequence[int] = 0,
        shared: int | Sequence[int] = 0,
        logprobs: Logprobs | None = None,
        margins: bool = False,
        finished: Callable[[list[int], list[Completion]], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[Completion]:
        """Complete prompts.

        Args:
            prompts: One text, texts, or rows of token ids. Texts are encoded by ``encode``.
            gate: How much mixing: one number for all prompts, one per prompt, or
                ``[prompts, layers]`` (``[prompts, bands]`` if the routing has bands).
            decoding: How tokens are chosen and when a completion ends; greedy by default.
            engine: The execution shape.
            seed: Seed of the sampling: one per prompt, or the first of consecutive ones.
            shared: How many leading tokens a prompt has in common with others, one number for all
                or one per prompt; the model reads them once per gate.
            logprobs: Return log-probabilities of the tokens: ``raw`` of the model's own
                distribution, ``truncated`` of the one drawn from.
            margins: Return the smallest margin by which a token was chosen.
            finished: Called with indices and completions as they finish.
            progress: Called with counts after every look at the device.
            **options: Single fields of ``Decoding`` and ``EngineConfig``, such as
                ``max_new_tokens=32`` or ``slots=8``, that replace those of ``decoding`` and
                ``engine``.

        Returns:
            One completion per prompt, in order.

        Raises:
            UserError: A prompt is empty or does not fit the context; a gate or option is invalid;
                the logits of a prompt are not finite.
        """
        decoding = Decoding() if decoding is None else decoding
        engine = EngineConfig() if engine is None else engine
        decoding, engine = with_options(decoding, engine, **options)
        for name, call in (("finished", finished), ("progress", progress)):
            if call is not None and not callable(call):
                raise UserError(f"{name} is {call!r:.60}; give a function")
        if logprobs not in (None, "raw", "truncated"):
            raise UserError(f"logprobs is {logprobs!r:.60}; give 'raw', 'truncated' or nothing")
        rows = [prompts] if isinstance(prompts, str) else list_of(prompts, "prompts")
        tokens = [
            self.encode(row)
            if isinstance(row, str)
            else token_ids_of(row, f"prompt {i}", self.config.vocab_size)
            for i, row in enumerate(rows)
        ]
        seeds = whole_numbers(seed, len(rows), "seed", counts_up=True)
        shared_tokens = whole_numbers(shared, len(rows), "shared")
        gates = self.layer_gates(gate, len(rows))
        requests = [
            Request(
                tokens[i], None if gates is None else gates[i], seeds[i], shared=shared_tokens[i]
            )
            for i in range(len(rows))
        ]
        runner = Engine(self.frozen, decoding, engine, logprobs=logprobs, margins=margins)
        with self.devices():
            return runner.run(requests, finished=finished, progress=progress)

    def loglikelihood(
        self,
        pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
        gate: GateLike | None = None,
        *,
        slots: int = 16,
    ) -> list[tuple[float, bool]]:
        """Compute log-probabilities of continuations.

        Args:
            pairs: (context ids, continuation ids); neither may be empty.
            gate: How much mixing, as in ``generate``.
            slots: Pairs that run at a time.

        Returns:
            For each pair the summed natural-log probability of the continuation given the
            context, and whether greedy decoding would have produced it.

        Raises:
            UserError: A side is empty, both have more tokens than the context holds, or the logits
                are not finite.
        """
        slots = EngineConfig(slots).batch
        self.check_slots(slots)
        pairs = [self._pair(pair, f"pair {i}") for i, pair in enumerate(list_of(pairs, "pairs"))]
        for context, continuation in pairs:
            if not context or not continuation:
                raise UserError(
                    "loglikelihood needs at least one context token and one continuation token"
                )
            check_context(len(context) + len(continuation) - 1, 0, self.context)
        gates = self.layer_gates(gate, len(pairs))
        with self.devices():
            return score_pairs(self.frozen, pairs, gates, slots=slots)


def resolve_routing(directory: Path, routing: str | RoutingConfig | None) -> RoutingConfig:
    """Read a routing configuration by preset name or YAML path; empty reads the model's own."""
    if isinstance(routing, RoutingConfig):
        return routing
    if routing is not None:
        check_text(routing, "routing")
    stored = directory / "routing.yaml"
    if not routing:
        return load_config(RoutingConfig, stored if stored.is_file() else routing_file("histories"))
    return load_config(RoutingConfig, routing_file(routing))


def load(
    directory: str | Path,
    routing: str | RoutingConfig | None = None,
    *,
    dtype: str = "",
    mesh: MeshConfig | None = None,
) -> LanguageModel:
    """Load a model that ``python -m jroute.convert`` wrote.

    Args:
        directory: The model directory.
        routing: Name of a preset, path of a YAML file, or a configuration; ``None`` takes the one
            stored with the model, or else ``histories``.
        dtype: ``float32`` or ``bfloat16``; empty keeps what is stored.
        mesh: Devices to spread it over, each of which reads its own part only; by default one.

    Raises:
        UserError: The model or the routing does not exist, the model is damaged, or the mesh does
            not fit.
    """
    directory = check_path(directory, "the model directory")
    if mesh is not None:
        check_kind(mesh, MeshConfig, "mesh")
    if dtype not in ("", "float32", "bfloat16"):
        raise UserError(f"dtype is {dtype!r}; give float32, bfloat16, or nothing to keep it")
    config = DecoderConfig.restore(read_manifest(directory)["config"])
    devices = placed = None
    if (mesh is not None and mesh != MeshConfig()) or jax.process_count() > 1:
        devices = (mesh or MeshConfig()).make()
        placed = shardings(logical_axes(config), abstract_params(config), devices)
    target = jnp.dtype(dtype) if dtype else None
    params, config = load_model(directory, dtype=target, shardings=placed)
    tokenizer = load_tokenizer(directory)
    return LanguageModel(
        params,
        config,
        tokenizer,
        resolve_routing(directory, routing),
        end_token_ids=end_tokens(directory, tokenizer, config.vocab_size),
        directory=directory,
        fingerprint=model_fingerprint(directory),
        mesh=devices,
    )
