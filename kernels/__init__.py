"""Fused operations of language-model training for any trainer: `from siri.kernels import linear_logprob`."""

if __name__ == "kernels":
    # Imported under Hugging Face's name. With the root of the checkout on sys.path (`python -c`, `python -m`) this
    # folder comes before their package, so the name is handed over to it. Where it is not installed, the name goes to
    # an empty namespace module: what Python makes of a folder without __init__.py, and transformers takes for "absent".
    import importlib.util
    import sys
    from importlib.machinery import ModuleSpec, PathFinder
    from pathlib import Path

    _root = Path(__file__).resolve().parent.parent
    _elsewhere = [entry for entry in sys.path if Path(entry).resolve() != _root]
    _spec = PathFinder.find_spec("kernels", _elsewhere) or ModuleSpec("kernels", None, is_package=True)
    sys.modules["kernels"] = _module = importlib.util.module_from_spec(_spec)
    assert _spec.loader is not None  # module_from_spec gives a namespace its loader
    _spec.loader.exec_module(_module)
else:
    from .distill_loss import masked_distill_loss
    from .gigpo_advantage import gigpo_advantage
    from .linear_logprob import linear_logprob
    from .policy_loss import linear_policy_loss
    from .selective_logprob import selective_logprob

    __all__ = [
        "gigpo_advantage",
        "linear_logprob",
        "linear_policy_loss",
        "masked_distill_loss",
        "selective_logprob",
    ]
