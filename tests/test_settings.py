"""The settings of a run, frozen: a new one is added here on purpose, or not at all."""

from pathlib import Path

import pytest

from siri.config import RunConfig
from siri.engine.config import load_config

CONFIGS = Path(__file__).resolve().parent.parent / "configs"

NAMES = """
name runs_dir seed device algorithm
no_warmup no_validation no_internalisation no_gate oracle_skills
iterations max_env_steps tensorboard
environment.name environment.engine environment.games environment.path environment.size environment.num_train
environment.num_valid environment.split_by environment.reward environment.max_turns
policy.model policy.dtype policy.prompt_style policy.history_length policy.max_prompt_tokens policy.max_action_tokens
rollout.sampler rollout.num_tasks rollout.group_size rollout.temperature rollout.max_concurrent
gigpo.gamma gigpo.omega gigpo.normalize gigpo.episode_stats gigpo.penalty gigpo.min_sigma gigpo.grouping
gigpo.similarity_threshold gigpo.parity
loss.clip_low loss.clip_high loss.dual_clip loss.kl_coef loss.entropy_coef loss.importance_clip
optim.lr optim.schedule optim.warmup_steps optim.weight_decay optim.beta1 optim.beta2 optim.clip_norm optim.updates
optim.epochs optim.max_batch_tokens optim.max_bad_steps
phases.n_succ_required phases.min_tasks phases.max_warmup phases.mining_steps phases.only
mining.every mining.buffer_size mining.num_shown mining.num_candidates mining.temperature mining.request
mining.max_answer_tokens mining.max_chars mining.max_skill_tokens mining.dedup_threshold
skills.k skills.paired skills.explore skills.n_eval skills.max_eval skills.promote_above skills.retire_below
skills.confidence skills.max_size skills.statistics
internalize.gate internalize.c_adv internalize.lambda_max internalize.lambda_warmup internalize.divergence
internalize.distill_reasoning
eval.split eval.limit eval.every eval.temperature
checkpoint.every checkpoint.keep_last
"""


def leaves(tree: dict, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, value in tree.items():
        names += leaves(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return names


def test_the_settings_are_these():
    assert leaves(RunConfig().model_dump()) == NAMES.split()


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=str)
def test_shipped_configurations_load(path):
    load_config(RunConfig, str(path))


@pytest.mark.parametrize(
    ("name", "rows_a_step", "turns", "normalize", "scale"),
    [("alfworld_qwen2.5_7b", 256, 50, "mean_std", 1.0), ("webshop_qwen2.5_7b", 64, 15, "mean", 0.1)],
)
def test_large_configurations_have_the_published_numbers(name, rows_a_step, turns, normalize, scale):
    """Of GiGPO. Rewards of 1 in place of 10 make advantages, where they are only centred, `scale` times theirs."""
    config = load_config(RunConfig, str(CONFIGS / f"{name}.yaml"))
    assert (config.iterations, config.environment.max_turns, config.environment.games) == (150, turns, "official")
    assert (config.rollout.num_tasks, config.rollout.group_size, config.rollout.temperature) == (16, 8, 1.0)
    gigpo, optim, policy = config.gigpo, config.optim, config.policy
    assert (gigpo.gamma, gigpo.omega, gigpo.normalize) == (0.95, 1.0, normalize)
    assert gigpo.penalty == pytest.approx(0.1 / 10)  # in rewards, whatever the normalisation
    assert (config.loss.kl_coef, config.loss.entropy_coef) == pytest.approx((0.01 * scale, 0.001 * scale))
    assert (optim.lr, optim.weight_decay, optim.beta1, optim.beta2) == (1e-6, 0.01, 0.9, 0.999)
    assert (optim.clip_norm, optim.schedule, optim.epochs) == (pytest.approx(1.0 * scale), "constant", 1)
    mean_turns = {"alfworld_qwen2.5_7b": 32, "webshop_qwen2.5_7b": 8}[name]
    assert 16 * 8 * mean_turns / optim.updates == rows_a_step
    assert (policy.prompt_style, policy.history_length) == ("tagged", 2)
    assert (policy.max_prompt_tokens, policy.max_action_tokens, config.eval.temperature) == (4096, 512, 0.4)
