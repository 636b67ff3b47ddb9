"""The WebShop text environment: search a shop for the product a customer describes, choose options, buy."""

from siri.envs.webshop.catalogue import Catalogue, load_catalogue
from siri.envs.webshop.engine import WebShopEnv
from siri.envs.webshop.goals import Goal
from siri.envs.webshop.procedural import procedural_catalogue
from siri.envs.webshop.state import State

__all__ = ["Catalogue", "Goal", "State", "WebShopEnv", "load_catalogue", "procedural_catalogue"]
