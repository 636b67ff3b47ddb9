"""Household text games: the ALFWorld games and games of the same kind made here."""

from siri.envs.household.engine import HouseholdEnv
from siri.envs.household.official import load_games
from siri.envs.household.problem import Game

__all__ = ["Game", "HouseholdEnv", "load_games"]
