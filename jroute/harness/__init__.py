"""lm-evaluation-harness on gated models, in which an arm chooses each prompt's gate.

Importing this package registers the model ``jroute`` with lm-eval, of one version only.

========================================  ========================================================
``command``, ``options``                  ``scripts/lm_eval_jax.py``: main; the command line
``subject``, ``suites``, ``policy``       what is evaluated; its tasks; prompt to gate under an arm
``runner``, ``lm_eval_adapter``           one arm after another; lm-eval, for one version of it
``lm_eval_version``                       which version that is
``model``, ``tokenization``, ``chat``     ``JaxLM``: requests; tokens and limits; chat templates
``gen_kwargs``, ``generation``            lm-eval's generation arguments; requests to generate
``scoring``                               pairs to score, rolling windows
``model_args``                            lm-eval's ``--model_args``
``records``, ``request_log``              what the model did for each request; kept with the cache
``cache_names``                           names of lm-eval's caches
``foreign_prompts``                       prompts of another form than an arm learned from
``comparison``                            arms side by side: conditions, contrasts, summary, table
``agreement``                             two evaluations, document by document
``agreement_with_training``               a run's own split against its outcome table
========================================  ========================================================
"""

from jroute.harness.lm_eval_version import check_installed

check_installed()  # before any import from lm-eval that another version may lack

from jroute.harness.agreement import Agreement, compare_samples  # noqa: E402
from jroute.harness.model import JaxLM  # noqa: E402
from jroute.harness.policy import ArmPolicy, GatePolicy, model_policy, run_policy  # noqa: E402

__all__ = [
    "Agreement",
    "ArmPolicy",
    "GatePolicy",
    "JaxLM",
    "compare_samples",
    "model_policy",
    "run_policy",
]
