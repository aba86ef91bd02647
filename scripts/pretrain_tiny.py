"""Train the bundled tiny Qwen3 from scratch, with the gate as part of its training.

The model is a positive control: learnable headroom exists in it by construction. Problems of
class ``two`` are only ever seen at gate 0, class ``three`` only at gate 1, class ``start`` at any
gate, so the gate that solves a problem depends on its class and no single gate solves all of them.
With ``--plain`` no block ever mixes, and the model is trained like any other.

    python scripts/pretrain_tiny.py --seed 0 --out runs/tiny-0 --report runs/tiny_seed0.json
    python scripts/pretrain_tiny.py --plain --out runs/tiny-plain --report runs/tiny_plain.json
    python scripts/pretrain_tiny.py --out jroute/assets/tiny-gated --measure-only --report R.json
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import trange
from transformers import PreTrainedTokenizerFast

from converters.hf_config import read_config
from converters.mapping import from_hf, write_hf
from jroute.checkpoint.export import new_folder
from jroute.controller.features import FeatureConfig, Featurizer, raw_features
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.generate.engine import Engine
from jroute.generate.requests import FrozenModel, Request
from jroute.model.config import DecoderConfig
from jroute.model.decoder import forward, unembed
from jroute.model.params import init_params
from jroute.routing.config import RoutingConfig
from jroute.routing.mixing import Routing
from jroute.routing.presets import routing_file
from jroute.tasks.answers import is_correct, parse_answer
from jroute.tasks.problem import Problem
from jroute.tasks.prompts import PromptConfig, render
from jroute.tasks.synthetic import CLASSES, pretraining_problems, problems
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.cli import command, run_command
from jroute.utils.config import load as load_config
from jroute.utils.files import write_json, write_text

GATES = (0.0, 0.25, 0.5, 0.75, 1.0)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
PATTERN = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""Word splitting of the Qwen tokenizers, contractions left out: every digit is a token."""

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer_corpus() -> list[str]:
    """Return questions, solutions and chat words, the same for every seed."""
    texts = [text for p in pretraining_problems(6000, 0) for text in (p.question, p.solution)]
    return [*texts, *("user\n", "assistant\n", "system\n") * 50]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE that encodes any text, and every word of ``texts`` as a single token."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # type: ignore[call-arg]
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )


def encode(
    problems: list[Problem], tokenizer: PreTrainedTokenizerFast
) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids ``[problems, seq]`` padded with -1, and the length of each prompt."""
    prompts = tokenizer([render(p.question, PromptConfig(), tokenizer) for p in problems])[
        "input_ids"
    ]
    answers = tokenizer([p.solution for p in problems])["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [a + b + [end] for a, b in zip(prompts, answers, strict=True)]
    width = -(-max(map(len, rows)) // 8) * 8
    tokens = np.full((len(rows), width), -1, np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    return tokens, np.array([len(p) for p in prompts], np.int32)


def gate_of(problem: Problem, rng: np.random.Generator) -> float:
    """Return the gate at which a problem is trained."""
    return {"two": 0.0, "three": 1.0}.get(str(problem.labels["class"]), float(rng.choice(GATES)))


def loss(params, config, routing, tokens, prompt_lengths, gates):
    """Return the mean cross-entropy of the completions' tokens (plain model without routing)."""
    real = tokens >= 0
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(real, columns, -1)
    ids = jnp.maximum(tokens, 0)
    out = forward(params, config, ids, positions, routing=routing, gate=gates)
    logits = unembed(params, config, out.hidden[:, :-1])
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, ids[:, 1:])
    counted = real[:, 1:] & (columns[:, 1:] >= prompt_lengths[:, None])
    return jnp.sum(jnp.where(counted, losses, 0.0)) / jnp.sum(counted).astype(jnp.float32)


def pretrain(
    config: DecoderConfig, routing: Routing | None, tokenizer, *, seed: int, steps: int, batch: int
):
    """Train from scratch; return the parameters and the loss of every step."""
    drawn = pretraining_problems(steps * batch, seed)
    tokens, lengths = encode(drawn, tokenizer)
    rng = np.random.default_rng(seed)
    gates = np.array([gate_of(p, rng) for p in drawn], np.float32)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, steps, 1e-5)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    )
    params = init_params(config, jax.random.key(seed))
    state = optimizer.init(params)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, tokens, lengths, gates):
        value, gradient = jax.value_and_grad(loss)(params, config, routing, tokens, lengths, gates)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, value

    losses = []
    bar = trange(steps, desc="pretrain", unit="step")
    for i in bar:
        rows = slice(i * batch, (i + 1) * batch)
        gate = routing.layer_gates(gates[rows], batch) if routing else None
        params, state, value = step(params, state, tokens[rows], lengths[rows], gate)
        losses.append(float(value))
        if i % 20 == 0:
            bar.set_postfix(loss=f"{losses[-1]:.3f}")
    return params, losses


def export(directory: Path, params, config: DecoderConfig, tokenizer) -> None:
    """Write the model in Hugging Face layout, with its routing; nothing else is replaced."""
    with new_folder(directory, sum(p.nbytes for p in jax.tree.leaves(params)) + 2**24) as partial:
        _write(partial, params, config, tokenizer)


def _write(directory: Path, params, config: DecoderConfig, tokenizer) -> None:
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    write_hf(directory, params, config, {"eos_token_id": ends[0], "pad_token_id": ends[1]})
    tokenizer.save_pretrained(directory)
    # One file that every release of transformers reads: the template inside, no newer class name.
    path = directory / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": CHAT_TEMPLATE,
    }
    settings.pop("backend", None)
    write_json(path, settings)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    generation = {"eos_token_id": ends, "pad_token_id": ends[1], "do_sample": False}
    write_json(directory / "generation_config.json", generation)
    write_text(directory / "routing.yaml", routing_file("histories").read_text())


def probe(x: dict[str, np.ndarray], y: dict[str, np.ndarray]) -> float:
    """Return the test accuracy of a multinomial logistic regression fitted on train."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    return float(model.fit(x["train"], y["train"]).score(x["test"], y["test"]))


def measure(params, config: DecoderConfig, routing: Routing, tokenizer) -> dict:
    """Measure the gates on held-out problems, before any controller is trained."""
    drawn = {split: problems(split, 1000) for split in ("train", "test")}
    prompts = {
        split: [
            tokenizer(render(p.question, PromptConfig(), tokenizer))["input_ids"] for p in sample
        ]
        for split, sample in drawn.items()
    }
    classes = {
        split: np.array([p.labels["class"] for p in sample]) for split, sample in drawn.items()
    }
    ends = [tokenizer.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    model = FrozenModel(params, config, tokenizer, ends, routing)
    engine = Engine(model, Decoding(max_new_tokens=40), EngineConfig(slots=256))
    layers = config.num_hidden_layers
    correct = np.zeros((len(drawn["test"]), len(GATES)))
    for column, gate in enumerate(GATES):
        row = np.full(layers, gate, np.float32)
        completions = engine.run([Request(ids, row) for ids in prompts["test"]])
        correct[:, column] = [
            is_correct(parse_answer(completion.text), problem.answer)
            for completion, problem in zip(completions, drawn["test"], strict=True)
        ]
    by_class = {name: correct[classes["test"] == name].mean(axis=0).tolist() for name in CLASSES}
    conditional = sum(
        (classes["test"] == name).mean() * max(accuracies) for name, accuracies in by_class.items()
    )
    best = float(correct.mean(axis=0).max())
    shape = FeatureConfig()
    raw = {s: raw_features(params, config, prompts[s], shape, slots=256) for s in prompts}
    featurizer = Featurizer.fit(raw["train"], shape)
    inputs = {
        "length": {s: raw[s].scalars[:, :1] for s in raw},
        "number_count": {
            s: np.array([[len(re.findall(r"\d+", p.question))] for p in drawn[s]]) for s in drawn
        },
        "prefill_features": {s: featurizer(raw[s]) for s in raw},
    }
    two_three = {s: np.isin(classes[s], ("two", "three")) for s in classes}
    return {
        "n": len(drawn["test"]),
        "gates": list(GATES),
        "accuracy": correct.mean(axis=0).tolist(),
        "accuracy_by_class": by_class,
        "best_single_gate": best,
        "class_conditional_gates": float(conditional),
        "gain_of_class_conditional_gates": float(conditional - best),
        "oracle": float(correct.max(axis=1).mean()),
        "probe_accuracy": {name: probe(x, classes) for name, x in inputs.items()},
        "probe_accuracy_two_against_three": {
            name: probe(
                {s: x[s][two_three[s]] for s in x}, {s: classes[s][two_three[s]] for s in x}
            )
            for name, x in inputs.items()
        },
        "mean_prompt_tokens": {
            name: float(raw["test"].scalars[classes["test"] == name, 0].mean()) for name in CLASSES
        },
    }


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train or load, export and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--plain", action="store_true", help="train without any gate")
    parser.add_argument("--out", type=Path, required=True, help="folder, in Hugging Face layout")
    parser.add_argument("--report", type=Path, help="also measure, and write this JSON")
    parser.add_argument("--measure-only", action="store_true", help="measure what --out holds")
    args = parser.parse_args(argv)

    routing_config = load_config(RoutingConfig, routing_file("histories"))
    if args.measure_only:
        tokenizer = load_tokenizer(args.out)
        config = read_config(args.out / "config.json")
        params = from_hf(load_file(args.out / "model.safetensors"), config)
        routing = Routing.create(routing_config, config.num_hidden_layers)
    else:
        tokenizer = train_tokenizer(tokenizer_corpus())
        config = DecoderConfig(
            vocab_size=len(tokenizer),
            hidden_size=96,
            intermediate_size=192,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            rms_norm_eps=1e-6,
            rope_theta=10_000.0,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
        )
        routing = Routing.create(routing_config, config.num_hidden_layers)
        started = time.time()
        params, losses = pretrain(
            config,
            None if args.plain else routing,
            tokenizer,
            seed=args.seed,
            steps=args.steps,
            batch=args.batch,
        )
        export(args.out, params, config, tokenizer)
        took = time.time() - started
        print(
            f"{args.out}: loss {np.mean(losses[-50:]):.4f} after {args.steps} steps, {took:.0f} s"
        )
    if args.report:
        report = {"seed": args.seed, "steps": args.steps, "batch": args.batch}
        report |= {"plain": True} if args.plain else {}
        report |= measure(params, config, routing, tokenizer)
        args.report.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.report, report)
        print(json.dumps(report, indent=2))


if __name__ == "__main__":
    run_command(main, "nothing was written")
