"""Wrong arguments of the public functions: run as a script, it prints what each of them raises.

A process of its own, because the tests' type checker would refuse many of them before jroute does.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

NAN, INF = float("nan"), float("inf")
LONE, NUL = "a\ud800b", "a\0b"


def language_model(lm: Any) -> dict[str, Callable[[], Any]]:
    """Wrong arguments of ``LanguageModel``."""
    from jroute.generate.config import EngineConfig

    cases: dict[str, Callable[[], Any]] = {}

    def add(method: str, name: str, *arguments: Any, **options: Any) -> None:
        cases[f"{method}: {name}"] = lambda: getattr(lm, method)(*arguments, **options)

    prompts: dict[str, Any] = {
        "None": None,
        "a number": 3,
        "bytes": b"a",
        "a dictionary": {"a": 1},
        "an empty text": "",
        "an empty prompt among others": ["a", []],
        "a flat list of ids": [1, 2, 3],
        "None among texts": ["a", None],
        "a lone surrogate": LONE,
        "a lone surrogate in a list": ["a", LONE],
        "a negative id": [[1, -1]],
        "an id too large": [[1, 10**6]],
        "an id of 80 bits": [[1, 2**80]],
        "an id that is a float": [[1, 2.0]],
        "an id that is a text": [[1, "2"]],
        "ids that are Booleans": [[True, False]],
        "an array of floats": np.ones((2, 3)),
        "three axes": np.ones((2, 3, 4), np.int32),
        "too long": [[1] * 2000],
    }
    for name, value in prompts.items():
        add("generate", name, value, max_new_tokens=2)
    options: dict[str, Any] = {
        "temperature nan": {"temperature": NAN},
        "temperature a text": {"temperature": "hot"},
        "temperature None": {"temperature": None},
        "temperature 1e-300": {"temperature": 1e-300},
        "top_k a float": {"top_k": 1.5},
        "top_p nan": {"top_p": NAN},
        "max_new_tokens 0": {"max_new_tokens": 0},
        "max_new_tokens a float": {"max_new_tokens": 2.0},
        "max_new_tokens true": {"max_new_tokens": True},
        "max_new_tokens beyond the context": {"max_new_tokens": 5000},
        "stop None": {"stop": None},
        "stop empty": {"stop": ""},
        "stop a number": {"stop": 3},
        "stop of numbers": {"stop": [3]},
        "stop a lone surrogate": {"stop": LONE},
        "seed negative": {"seed": -1},
        "seed too large": {"seed": 2**31},
        "seed a float": {"seed": 1.5},
        "seed None": {"seed": None},
        "seed a text": {"seed": "7"},
        "seeds of another number": {"seed": [1, 2]},
        "seeds None": {"seed": [None]},
        "shared negative": {"shared": -1},
        "shared a float": {"shared": 0.5},
        "shared a text": {"shared": "all"},
        "slots 0": {"slots": 0},
        "slots a text": {"slots": "many"},
        "slots None": {"slots": None},
        "chunk a float": {"chunk": 1.5},
        "logprobs unknown": {"logprobs": "all"},
        "logprobs true": {"logprobs": True},
        "decoding a dictionary": {"decoding": {"temperature": 0}},
        "engine a dictionary": {"engine": {"slots": 2}},
        "decoding an engine": {"decoding": EngineConfig()},
        "an unknown option": {"temprature": 1.0},
        "finished no function": {"finished": 3},
        "progress no function": {"progress": "yes"},
    }
    for name, fields in options.items():
        add("generate", name, "a", **{"max_new_tokens": 2, **fields})
    gates: dict[str, Any] = {
        "nan": NAN,
        "infinite": -INF,
        "1e30": 1e30,
        "a text": "0.5",
        "a Boolean": True,
        "complex": 1j,
        "a wrong length": [0.5, 0.5],
        "ragged": [[0.5], [0.5, 1.0]],
        "empty": [],
        "None inside": [None],
        "a dictionary": {"a": 1},
        "10^400": 10**400,
    }
    for name, gate in gates.items():
        add("generate", f"gate {name}", ["a"], gate, max_new_tokens=2)
        add("logits", f"gate {name}", [[1, 2]], gate)
        add("loglikelihood", f"gate {name}", [([1], [2])], gate)
    ids: dict[str, Any] = {
        "None": None,
        "a number": 3,
        "a text": "abc",
        "texts": ["abc"],
        "empty": [],
        "an empty row": [[1], []],
        "floats": [[1.5]],
        "nan": [[NAN]],
        "80 bits": [[2**80]],
        "Booleans": [[True]],
        "None inside": [[None]],
        "three axes": np.ones((1, 2, 3), np.int32),
        "padding only": [[-1]],
    }
    for name, value in ids.items():
        add("logits", name, value)
    pairs: dict[str, Any] = {
        "None": None,
        "a number": 3,
        "texts": [("a", "b")],
        "one side": [([1],)],
        "three sides": [([1], [2], [3])],
        "numbers": [(1, 2)],
        "an empty side": [([1], [])],
        "floats": [([1.0], [2])],
        "a negative id": [([1], [-2])],
        "too long": [([1], [2] * 3000)],
    }
    for name, value in pairs.items():
        add("loglikelihood", name, value)
    add("loglikelihood", "slots 0", [([1], [2])], slots=0)
    add("loglikelihood", "slots a text", [([1], [2])], slots="x")
    for name, text in {"None": None, "a number": 3, "a list": ["a"], "surrogate": LONE}.items():
        add("encode", name, text)
    add("routed", "a text", "histories")
    add("routed", "None", None)
    add("routed", "weights of another shape", lm.routing.config, np.zeros(3))
    add("routed", "weights that are text", lm.routing.config, "weights")
    add("check_slots", "a text", "x")
    add("logits", "metrics without a gate", [[1, 2]], metrics=True)
    return cases


def loading(directory: str) -> dict[str, Callable[[], Any]]:
    """Wrong arguments of ``load`` and ``load_run``."""
    import jroute

    cases: dict[str, Callable[[], Any]] = {}
    paths: dict[str, Any] = {
        "None": None,
        "a number": 3,
        "empty": "",
        "missing": "/nowhere/at/all",
        "NUL": NUL,
        "surrogate": LONE,
        "too long": "a" * 5000,
        "a file": str(Path(directory) / "manifest.json"),
    }
    for name, path in paths.items():
        cases[f"load: {name}"] = lambda path=path: jroute.load(path)
        cases[f"load_run: {name}"] = lambda path=path: jroute.load_run(path)
    routings: dict[str, Any] = {
        "a number": 3,
        "unknown": "nothing",
        "missing": "/nowhere.yaml",
        "NUL": NUL,
        "surrogate": LONE,
        "too long": "a" * 5000,
        "a long file": "a" * 5000 + ".yaml",
    }
    for name, routing in routings.items():
        cases[f"load: routing {name}"] = lambda r=routing: jroute.load(directory, r)
    for name, dtype in {"None": None, "a number": 3, "int8": "int8", "a list": []}.items():
        cases[f"load: dtype {name}"] = lambda d=dtype: jroute.load(directory, dtype=d)
    for name, mesh in {"a text": "2,1,1", "a tuple": (2, 1, 1)}.items():
        cases[f"load: mesh {name}"] = lambda m=mesh: jroute.load(directory, mesh=m)
        cases[f"load_run: mesh {name}"] = lambda m=mesh: jroute.load_run(directory, mesh=m)
    return cases


def data_of_environments() -> tuple[dict[str, Callable[[], Any]], Any]:
    """Wrong arguments of ``EnvData``, and data that is right."""
    from jroute.envs import EnvData
    from jroute.tasks.problem import Problem

    class Backend:
        def outcomes(self, problems: Any, gates: Any) -> Any:
            raise AssertionError

    fields: dict[str, Any] = {
        "problems": [Problem("a", "q", "1"), Problem("b", "q", "2")],
        "prompts": ["q", "q"],
        "observations": np.zeros((2, 2)),
        "feature_names": ("prompt_length", "length_bucket"),
        "gates": (0.0, 1.0),
        "backend": Backend(),
    }
    cases: dict[str, Callable[[], Any]] = {}
    wrong: dict[str, list[Any]] = {
        "problems": [None, []],
        "prompts": [None, ["q"]],
        "observations": [None, np.zeros(2), np.full((2, 2), NAN), [["a", "b"]] * 2, [[1], [1, 2]]],
        "feature_names": [None, ("x", "y")],
        "gates": [None, (), (0.0, NAN), (0.0, 1e30), ("a", "b"), (0.0, 0.0)],
        "backend": [None, 3],
        "num_gate_dims": [0, "2", 1.5, None],
    }
    for name, values in wrong.items():
        for value in values:
            change = {**fields, name: value}
            cases[f"EnvData: {name} {value!r}"] = lambda change=change: EnvData(**change)
    return cases, EnvData(**fields)


def environments() -> dict[str, Callable[[], Any]]:
    """Wrong arguments of the environments."""
    import gymnasium

    from jroute import envs

    cases, data = data_of_environments()
    single: Any = envs.RoutingEnv
    vector: Any = envs.RoutingVectorEnv
    env, batch = single(data), vector(2, data)
    for value in (None, 3, "x", [data]):
        cases[f"RoutingEnv: {value!r:.9}"] = lambda value=value: single(value)
    for value in (None, 3, ["test"]):
        cases[f"RoutingEnv: split {value}"] = lambda v=value: single(data, split=v)
    for value in (0, -1, 1.5, "2", None):
        cases[f"RoutingVectorEnv: {value!r}"] = lambda v=value: vector(v, data)
    for seed in (-1, 1.5, "7"):
        cases[f"reset: seed {seed!r}"] = lambda seed=seed: env.reset(seed=seed)
        cases[f"vector reset: seed {seed!r}"] = lambda seed=seed: batch.reset(seed=seed)
        cases[f"vector reset: seeds {seed!r}"] = lambda seed=seed: batch.reset(seed=[seed, 1])
    options: list[Any] = [3, {"x": 1}, {"split": None}, {"split": "no"}, {"problem_ids": 5}]
    options += [{"problem_ids": [None]}, {"problem_ids": [[1]]}, {"problem_ids": ["no"]}]
    for option in options:
        cases[f"reset: {option}"] = lambda o=option: env.reset(options=o)
    for mask in ([True, False], np.zeros(2, bool), np.ones(3, bool)):
        cases[f"mask {mask}"] = lambda m=mask: batch.reset(options={"reset_mask": m})

    def step(action: Any) -> Any:
        env.reset(seed=0)
        return env.step(action)

    for action in (None, -1, 2, 0.5, "0", [0], NAN, True):
        cases[f"step: {action!r}"] = lambda action=action: step(action)
    cases["step before reset"] = lambda: single(data).step(0)
    for name in (None, 3, "/nowhere"):
        cases[f"make: run {name}"] = lambda n=name: gymnasium.make("jroute/Routing-v0", run=n)
    cases["make: both"] = lambda: gymnasium.make("jroute/Routing-v0", run="x", data=data)
    cases["TableEnv: lists"] = lambda: envs.TableEnv.create([1.0], [2.0])  # type: ignore[arg-type]
    cases["TableEnv: None"] = lambda: envs.TableEnv.create(None, None)  # type: ignore[arg-type]
    nan = np.full((2, 2), NAN)
    cases["TableEnv: rewards nan"] = lambda: envs.TableEnv.create(np.zeros((2, 2)), nan)
    cases["TableEnv: other rows"] = lambda: envs.TableEnv.create(np.zeros((2, 2)), np.zeros((3, 2)))
    cases["LiveEnv: None"] = lambda: envs.LiveEnv(None)  # type: ignore[arg-type]
    return cases


def main(directory: str) -> None:
    """Print, as JSON, the kind and the message of what every case raises."""
    import jroute

    lm = jroute.load(directory)
    results = {}
    for name, call in (language_model(lm) | loading(directory) | environments()).items():
        try:
            call()
        except jroute.UserError as error:
            results[name] = ["UserError", str(error)]
        except BaseException as error:
            results[name] = [type(error).__name__, str(error)]
        else:
            results[name] = ["nothing", ""]
    print(json.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1])
